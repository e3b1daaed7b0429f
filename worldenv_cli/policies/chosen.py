"""Several policies as one: for each instruction the member that real episodes chose, however the instruction is worded."""

import numpy as np
import torch
from torch import nn

from ..errors import UserError
from ..progress import say
from .densities import Generators
from .observation import Observation
from .policy import Act, Policy
from .wording import nearest


class ChosenPolicy(Policy):
    """`choice` is {instruction: name of a member}. Another wording gets the member of the nearest known instruction (see `wording`).

    `default` is the member for instructions that are near none; with None they are refused. Members that neither names are not kept.
    Raises UserError for a choice or default that names no member.
    """

    def __init__(self, members: dict[str, Policy], choice: dict[str, str], default: str | None):
        super().__init__()
        unknown = sorted({*choice.values(), *([] if default is None else [default])} - members.keys())
        used = {default, *choice.values()} - {None}
        if unknown or not used:
            raise UserError(f"a choice of {unknown[0] if unknown else 'nothing'!r}: expected members {sorted(members)}; make the policy again")
        self.members = nn.ModuleDict({name: member for name, member in members.items() if name in used})
        self.choice, self.default = dict(choice), default
        self.config = self.any_member.config
        self._taken: dict[str, str] = {}  # {another wording: member}, of those that have been told

    @property
    def any_member(self) -> Policy:
        """The default, or where there is none the last one: all members see and move the same."""
        return self.members[self.default] if self.default is not None else list(self.members.values())[-1]

    @property
    def device(self) -> torch.device:
        return self.any_member.device

    def member_for(self, instruction: str) -> str:
        """The name of the member that plays this instruction; another wording is told once. Raises UserError where it is refused."""
        if instruction in self.choice:
            return self.choice[instruction]
        if instruction not in self._taken:
            self._taken[instruction] = self._member_of_another(instruction)
        return self._taken[instruction]

    def _member_of_another(self, wording: str) -> str:
        known = nearest(wording, self.choice)
        if known is not None:
            say(f"instruction {wording!r} is taken for {known!r}: it is played by {self.choice[known]}")
            return self.choice[known]
        listed = ", ".join(repr(one) for one in self.choice)
        if self.default is None:
            raise UserError(f"instruction {wording!r} is near none that this policy knows ({listed}); use one of them")
        say(f"warning: instruction {wording!r} is near none that this policy was tested with ({listed}): it is played by {self.default}")
        return self.default

    @torch.no_grad()
    def act(self, obs: Observation, *, explore: bool, scale: np.ndarray | None = None, generator: Generators = None) -> Act:
        """As a policy's own `act`; with one generator for all rows, the members draw from it in turn."""
        chosen = np.array([self.member_for(instruction) for instruction in obs.instruction])
        rows = {name: np.flatnonzero(chosen == name) for name in self.members if (chosen == name).any()}
        acts = [
            self.members[name].act(
                obs.rows(mine),
                explore=explore,
                scale=None if scale is None else np.asarray(scale)[mine],
                generator=[generator[row] for row in mine] if isinstance(generator, list) else generator,
            )
            for name, mine in rows.items()
        ]
        order = np.argsort(np.concatenate(list(rows.values())))
        return Act(np.concatenate([act.chunk for act in acts])[order], np.concatenate([act.log_prob for act in acts])[order])
