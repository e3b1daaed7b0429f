"""What every policy, simulator and reflector sees of a robot."""

from dataclasses import dataclass

import numpy as np


@dataclass
class Observation:
    """B rows. Normalisation is not done here: it lives with each model and is saved with it."""

    images: dict[str, np.ndarray]  # camera -> (B, H, W, 3) uint8
    state: np.ndarray  # (B, S) float32, in the units that the dataset names
    instruction: list[str]

    def rows(self, index) -> "Observation":
        """The rows that `index` (a mask or numbers) picks."""
        numbers = np.arange(len(self.state))[index]
        return Observation({name: image[numbers] for name, image in self.images.items()}, self.state[numbers], [self.instruction[i] for i in numbers])

    @classmethod
    def from_vector_env(cls, observation: dict) -> "Observation":
        return cls(observation["images"], observation["state"], list(observation["instruction"]))
