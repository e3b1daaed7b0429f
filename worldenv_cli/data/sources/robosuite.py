"""What robosuite's `env_args` say, as LIBERO and robomimic keep them: robots, rate, and what an action's numbers mean to its controller."""

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, Field

POSES = ("OSC_POSE", "IK_POSE")  # controllers whose input is a position and a rotation of the hand
ARMS = ("right", "left")
DELTA, ABSOLUTE = ["dx", "dy", "dz", "drx", "dry", "drz"], ["x", "y", "z", "rx", "ry", "rz"]


class _Arguments(BaseModel):
    robots: list[str] | str = []
    control_freq: float | None = Field(None, gt=0, allow_inf_nan=False)
    controller_configs: dict | list[dict] | None = None


class EnvironmentArguments(BaseModel):
    """Older robosuite has one controller, or one for each robot; from 1.5 on a composite one holds one for each part of the body."""

    env_name: str = ""
    type: int | None = None
    env_kwargs: _Arguments = _Arguments()

    @property
    def robots(self) -> list[str]:
        robots = self.env_kwargs.robots
        return [robot.lower() for robot in ([robots] if isinstance(robots, str) else robots)]

    @property
    def robot(self) -> str | None:
        return "+".join(self.robots) or None

    @property
    def is_robosuite(self) -> bool:
        """robomimic's environments of other kinds (gym, real robots) have types of their own, and no controllers."""
        return self.type in (None, 1) and bool(self._arms())

    def controller(self, size: int) -> "Controller | None":
        """Of an action with that many numbers; None where it is not known, or is of another kind than a pose and a gripper for each arm."""
        arms, count = self._arms(), size // 7
        if not self.is_robosuite or size % 7 or not 1 <= count <= 2:
            return None
        arms = arms * count if len(arms) == 1 else arms[:count]
        if len(arms) < count or any(arm.get("type") not in POSES for arm in arms):
            return None
        one_robot = len(self.robots) == 1
        prefixes = [""] if count == 1 else [f"{side}_" for side in ARMS] if one_robot else [f"robot{number}_" for number in range(count)]
        return Controller(arms, prefixes)

    def _arms(self) -> list[dict]:
        """The arms' controllers in the order of the action."""
        configs = self.env_kwargs.controller_configs
        found = []
        for config in configs if isinstance(configs, list) else [configs]:
            parts = config.get("body_parts") if isinstance(config, dict) else None
            if isinstance(parts, dict):
                parts = parts.get("arms") if isinstance(parts.get("arms"), dict) else parts
                found += [parts[arm] for arm in ARMS if isinstance(parts.get(arm), dict)]
            elif config:
                found.append(config)
        return found


@dataclass(frozen=True)
class Controller:
    """An arm's pose and its gripper, for each arm."""

    arms: list[dict[str, Any]]
    prefixes: list[str]  # which arm a number belongs to, where there are two

    @property
    def absolute(self) -> bool:
        return any(arm.get("control_delta") is False or arm.get("input_type") == "absolute" for arm in self.arms)

    @property
    def limits(self) -> tuple[list[float], list[float]] | None:
        """Of the normalized input; an absolute one has none. Grippers take -1 to 1."""
        if self.absolute:
            return None
        low, high = self._numbers("input_min", -1.0), self._numbers("input_max", 1.0)
        return (low, high) if low and high and all(a < b for a, b in zip(low, high)) else None

    @property
    def unit(self) -> list[float] | None:
        """What the largest input means in metres and radians, in each dimension."""
        return None if self.absolute else self._numbers("output_max", 1.0)

    def _numbers(self, key: str, gripper: float) -> list[float] | None:
        found = []
        for arm in self.arms:
            value = arm.get(key)
            values = value if isinstance(value, list) else [value] * 6
            if len(values) != 6 or not all(isinstance(number, (int, float)) and abs(number) < 1e6 for number in values):
                return None
            found += [*map(float, values), gripper]
        return found

    @property
    def names(self) -> list[str]:
        return [prefix + name for prefix in self.prefixes for name in [*(ABSOLUTE if self.absolute else DELTA), "gripper"]]
