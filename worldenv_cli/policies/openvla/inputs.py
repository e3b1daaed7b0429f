"""What OpenVLA-OFT reads and what its answers mean: pictures, prompts, and the statistics between its units and the robot's.

Every map to the model's side stands next to its way back, in one class, so that training and acting cannot drift apart.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
import torch
from pydantic import Field, ValidationError, model_validator
from torch import Tensor

from ...config import Config
from ...confine import inside
from ...errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and deviation, for DINOv2
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # for SigLIP
SPACE, STOP = 29871, 2  # Llama's tokens for a lone space, which ends every prompt, and for the end of the text
UNUSED = 0  # stands where actions will be: the model never looks at its embedding


# Pictures


class ImageConfig(Config):
    """How the published policies' pictures were made. A policy trained on other pictures turns off what its own did not go through."""

    side: int = Field(224, ge=1, description="pixels a side that the towers take")
    jpeg: int | None = Field(
        95, ge=1, le=100, description="quality of the JPEG that a picture is sent through, as recorded ones were; none: left out"
    )
    crop: float | None = Field(0.9, gt=0, le=1, description="area of the center crop, for policies trained with random ones; none: left out")


def pixels(images: Sequence[np.ndarray], config: ImageConfig) -> Tensor:
    """K pictures (B, H, W, 3) uint8, in the checkpoint's order of cameras -> (B, 6K, S, S) float32: of each, DINOv2's channels and then SigLIP's."""
    channels = []
    for image in images:
        picture = resized(image, config)
        if config.crop is not None:
            picture = centre_crop(picture, config.crop)
        channels += [_standardised(picture, *colours) for colours in (IMAGENET, HALF)]
    return torch.cat(channels, 1)


def resized(images: np.ndarray, config: ImageConfig) -> np.ndarray:
    """(B, H, W, 3) uint8 -> (B, S, S, 3) uint8, through a JPEG if the config says so."""
    from PIL import Image

    small = np.empty((len(images), config.side, config.side, 3), np.uint8)
    for row, array in enumerate(images):
        picture = Image.fromarray(array)
        if config.jpeg is not None:
            file = io.BytesIO()
            picture.save(file, "JPEG", quality=config.jpeg, subsampling="4:2:0")
            picture = Image.open(file)
        small[row] = picture.resize((config.side, config.side), Image.Resampling.LANCZOS)
    return small


def centre_crop(images: np.ndarray, area: float) -> np.ndarray:
    """(B, S, S, 3) uint8: the middle `area` of the pictures, back at their size. Bilinear, between the centres of the outermost pixels."""
    side, share = images.shape[1], np.sqrt(np.float32(area))
    places = (1 - share) / 2 * np.float32(side - 1) + np.arange(side, dtype=np.float32) * share
    low, high = np.floor(places).astype(int), np.ceil(places).astype(int)
    part = places - low.astype(np.float32)
    across, down = part[:, None], part[:, None, None]
    picture = images * np.float32(1 / 255)
    above, below = (_between(picture[:, row][:, :, low], picture[:, row][:, :, high], across) for row in (low, high))
    return np.floor(_between(above, below, down) * np.float32(255.5)).astype(np.uint8)  # round(255 x) would differ in a quarter of all values


def _between(first: np.ndarray, second: np.ndarray, part: np.ndarray) -> np.ndarray:
    return first + (second - first) * part


def _standardised(images: np.ndarray, mean: tuple, deviation: tuple) -> Tensor:
    values = torch.from_numpy(images).movedim(-1, 1).float() / 255
    return (values - torch.tensor(mean)[:, None, None]) / torch.tensor(deviation)[:, None, None]


# Prompts


def prompt(instruction: str) -> str:
    return f"In: What action should the robot take to {instruction.lower()}?\nOut:"


class Prompts:
    """Instructions as tokens, with places for the actions that the model fills in.

    tokenizer.json is read by `tokenizers` as it stands. transformers' AutoTokenizer would stop to ask whether a checkpoint's own code may run, and
    the LlamaTokenizer of version 5 makes other tokens of double spaces.
    """

    def __init__(self, tokenizer: "Tokenizer", padding: int):
        self.tokenizer, self.padding = tokenizer, padding

    @classmethod
    def from_folder(cls, folder: Path, padding: int) -> Self:
        """Raises UserError where tokenizer.json is missing or damaged."""
        from tokenizers import Tokenizer

        path = inside(folder, "tokenizer.json", folder)
        if not path.is_file():
            raise UserError(
                f"{path}: missing, expected the tokenizer there (tokenizer.model alone is not read); copy it from the base model, openvla/openvla-7b"
            )
        try:
            return cls(Tokenizer.from_str(path.read_text(encoding="utf-8")), padding)
        except Exception as error:  # tokenizers raises nothing narrower
            raise UserError(
                f"{path} is truncated or damaged ({str(error).splitlines()[0]:.200}); copy it from the base model, openvla/openvla-7b"
            ) from error

    def tokens(self, instruction: str) -> list[int]:
        """The prompt's tokens, from the beginning of the text to the colon."""
        return self.tokenizer.encode(prompt(instruction)).ids

    def batch(self, instructions: list[str], actions: int) -> tuple[Tensor, Tensor]:
        """(input_ids (B, L) int64, attention_mask (B, L) bool): prompt, lone space, `actions` unused places (T·A), stop, padding on the right."""
        rows = []
        for instruction in instructions:
            tokens = self.tokens(instruction)
            rows.append([*tokens, *([SPACE] if tokens[-1] != SPACE else []), *[UNUSED] * actions, STOP])
        longest = max(map(len, rows))
        input_ids = torch.tensor([row + [self.padding] * (longest - len(row)) for row in rows])
        return input_ids, torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]


# Units


class Bounds(Config):
    """Linear maps between a column's bounds and [-1, 1], column by column."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    mask: tuple[bool, ...] = Field(description="columns that are mapped; the others (a gripper's) are in the model's units already")
    constant: tuple[bool, ...] = Field(description="columns that never changed: 0 for the model, and there `low`")

    @model_validator(mode="after")
    def same_length(self) -> Self:
        if len({len(self.low), len(self.high), len(self.mask), len(self.constant)}) != 1:
            raise ValueError(f"{len(self.low)} lower and {len(self.high)} upper bounds, a mask of {len(self.mask)}: expected as many of each")
        if not np.isfinite([self.low, self.high]).all():
            raise ValueError("bounds that are not finite")
        return self

    @property
    def size(self) -> int:
        return len(self.low)

    def normalise(self, values: np.ndarray) -> np.ndarray:
        """(..., D) in the robot's units -> (..., D) float64, clipped to [-1, 1] where the mask says so."""
        low, span = np.array(self.low), self._span
        inside = np.clip(2 * (values - low) / span - 1, -1, 1)
        return np.where(self.constant, 0.0, np.where(self.mask, inside, values))

    def unnormalise(self, values: np.ndarray) -> np.ndarray:
        """The way back, (..., D) float64. Nothing is clipped: beyond [-1, 1] lies what is beyond the bounds."""
        return np.where(self.mask, (np.asarray(values, np.float64) + 1) / 2 * self._span + np.array(self.low), values)

    @property
    def _span(self) -> np.ndarray:
        return np.array(self.high) - np.array(self.low) + 1e-8  # as in training, which so never divides by zero


class Statistics(Config):
    """A dataset's bounds of actions and of proprioception."""

    action: Bounds
    proprio: Bounds | None = None

    @classmethod
    def unknown(cls, action_size: int, state_size: int) -> Self:
        """Sizes alone, where a checkpoint holds no statistics and those of the demonstrations will be taken."""
        sizes = {"action": action_size, "proprio": state_size}
        return cls(**{name: Bounds(low=(-1,) * n, high=(1,) * n, mask=(True,) * n, constant=(False,) * n) for name, n in sizes.items()})

    @classmethod
    def choose(cls, known: dict, key: str | None, where: Path, bounds: Literal["quantiles", "extremes"] = "quantiles") -> tuple[str, Self]:
        """(key, statistics) out of `dataset_statistics.json` or a config's `norm_stats`: {key: {action, proprio}}.

        Without a key there must be one dataset only. A key is also found with the ending `_no_noops`, which names the sets that policies for LIBERO
        were trained on. LIBERO's and Bridge's policies use the 1 % and 99 % quantiles, ALOHA's the extremes.
        Raises UserError for an unknown key, with the known ones, and for entries that are no statistics.
        """
        asked, key = key, known_key(known, key)
        if key is None:
            names = ", ".join(sorted(known))
            if not known:
                raise UserError(f"{where} holds no statistics, expected those of the data it was trained on; set policy.statistics=dataset")
            problem = f"statistics of {len(known)} data sets, and none is chosen" if asked is None else f"no statistics of {asked!r}"
            raise UserError(f"{where}: {problem}; set policy.unnorm_key to one of {names}")
        parts = {}
        for name in ("action", "proprio"):
            try:
                entry = known[key].get(name)
                if entry is not None:
                    parts[name] = _bounds(entry, bounds)
            except (ValidationError, AttributeError, KeyError, TypeError, ValueError) as error:
                reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else f"{type(error).__name__}: {error}"
                raise UserError(
                    f"{where}: {key}.{name} holds no usable statistics ({reason}); name another unnorm_key, or policy.statistics=dataset"
                ) from error
        if "action" not in parts:
            raise UserError(f"{where}: {key} has no 'action', expected its statistics; name another unnorm_key, or policy.statistics=dataset")
        return key, cls(**parts)


def known_key(known: dict, key: str | None) -> str | None:
    """The data set of `known` that `key` stands for: its name, with or without the ending `_no_noops`. Without a key the only one there is."""
    names = [key, f"{key}_no_noops", str(key).removesuffix("_no_noops")] if key is not None else list(known) if len(known) == 1 else []
    return next((name for name in names if name in known), None)


def _bounds(entry: dict, bounds: Literal["quantiles", "extremes"]) -> Bounds:
    low, high = ("q01", "q99") if bounds == "quantiles" else ("min", "max")
    constant = (np.array(entry["min"]) == np.array(entry["max"])).tolist()
    return Bounds(low=entry[low], high=entry[high], mask=entry.get("mask", [True] * len(entry[low])), constant=constant)


class Gripper(Config):
    """The last action column. The published policies of one arm say 0 for closed and 1 for open; LIBERO and Meta-World say +1 and -1."""

    convention: Literal["one opens", "unchanged"] = Field("one opens", description="'unchanged' for policies that speak the environment's language")
    binarise: bool = Field(True, description="send only -1 or +1, as the published evaluations do")

    def to_environment(self, actions: np.ndarray) -> np.ndarray:
        """(..., A) with the gripper in [0, 1] -> (..., A) with it in [-1, 1]."""
        if self.convention == "unchanged":
            return actions
        closing = 1 - 2 * actions[..., -1:]
        return np.concatenate([actions[..., :-1], np.sign(closing) if self.binarise else closing], -1)

    def to_training(self, actions: np.ndarray) -> np.ndarray:
        """The way back; what an environment would clip is clipped."""
        if self.convention == "unchanged":
            return actions
        return np.concatenate([actions[..., :-1], (1 - np.clip(actions[..., -1:], -1, 1)) / 2], -1)
