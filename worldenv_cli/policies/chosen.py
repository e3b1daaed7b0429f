"""Several policies as one: for each instruction the member that real episodes chose."""

import numpy as np
import torch
from torch import nn

from .densities import Generators
from .observation import Observation
from .policy import Act, Policy


class ChosenPolicy(Policy):
    """`choice` is {instruction: name of a member}; wording that is not in it gets the member `default`."""

    def __init__(self, members: dict[str, Policy], choice: dict[str, str], default: str):
        super().__init__()
        self.members, self.choice, self.default = nn.ModuleDict(members), dict(choice), default
        self.config = members[default].config

    @property
    def device(self) -> torch.device:
        return self.members[self.default].device

    @torch.no_grad()
    def act(self, obs: Observation, *, explore: bool, scale: np.ndarray | None = None, generator: Generators = None) -> Act:
        """As a policy's own `act`; with one generator for all rows, the members draw from it in turn."""
        chosen = np.array([self.choice.get(instruction, self.default) for instruction in obs.instruction])
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
