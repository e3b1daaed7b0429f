"""How far a run is: how many of its artifacts are made, and about how long the others will take."""

ROUGH = {  # seconds of the quickstart on two cores, by the last part of an artifact's name; only their proportions count
    "demonstrations": 6, "sft": 62, "exploration": 51, "simulator": 137, "reflector": 109, "start": 19, "gate": 10, "tuned": 50, "control": 50,
    "probe": 12, "cloned": 20, "rival": 12, "imagined": 32, "post-trained": 2,
}  # fmt: skip
OTHER = 25.0  # an acceptance test, an arm of the evaluation
ENOUGH = 0.02  # share of the work after which its speed says something


class Remaining:
    """`names`: what is to be made, in order. `before`: {name: seconds} that an earlier run in the same folder took."""

    def __init__(self, names: list[str], before: dict[str, float]):
        self.waiting = list(dict.fromkeys(names))
        self.count, self.before, self.made, self.seconds = len(self.waiting), before, 0.0, 0.0

    def done(self, name: str, seconds: float) -> None:
        if name in self.waiting:
            self.waiting.remove(name)
            self.made, self.seconds = self.made + self._weight(name), self.seconds + seconds

    def line(self, name: str) -> str:
        """ "artifact 3 of 22, about 6 minutes left", for one that is begun now; empty where there is nothing to count."""
        if self.count < 2 or name not in self.waiting:
            return ""
        text, left = f"artifact {self.count - len(self.waiting) + 1} of {self.count}", sum(map(self._weight, self.waiting))
        if self.made >= ENOUGH * (self.made + left):
            seconds = left * self.seconds / self.made
        elif all(name in self.before for name in self.waiting):
            seconds = left
        else:
            return text
        return f"{text}, about {_words(seconds)} left"

    def _weight(self, name: str) -> float:
        first, _, last = name.rpartition("/")
        rough = OTHER if first in ("eval", "acceptance") and last != "imagined" else ROUGH.get(last, OTHER)
        return max(self.before.get(name, rough), 0.1)


def _words(seconds: float) -> str:
    if seconds < 90:
        return f"{max(round(seconds), 1)} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
