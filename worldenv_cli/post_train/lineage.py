"""Which artifact of a run is made from which, and what each round left for those that come after."""

from ..artifacts import load_config
from ..atomic import read_json
from ..pipeline import Run


def start_of(number: int) -> str:
    """The policy from which a round's updates begin."""
    return f"rounds/{number}/start"


def models_of(number: int) -> tuple[str, str]:
    """(simulator, reflector) of a round."""
    return ("simulator", "reflector") if number == 1 else (f"rounds/{number}/simulator", f"rounds/{number}/reflector")


def real_data(run: Run, number: int) -> list[str]:
    """Names of the datasets that are there when round `number` begins."""
    return ["demonstrations", "exploration"] + ([f"rounds/{n}/probe" for n in range(1, number)] if run.recipe.post_train.probe else [])


def candidates(run: Run, kind: str) -> dict[str, str]:
    """{candidate of an acceptance test: policy artifact}, from the first policy to the last; `kind` is tuned or control."""
    rounds = run.recipe.post_train.rounds
    return {"sft": "sft", "start": start_of(rounds), kind: f"rounds/{rounds}/{kind}"}


def all_real_data(run: Run, kind: str) -> list[str]:
    """All that a policy of the last round (`tuned` or `control`) has cost: its acceptance test included."""
    config = run.recipe.post_train
    return real_data(run, config.rounds) + ([f"acceptance/{name}" for name in candidates(run, kind)] if config.validation else [])


def read_gate(run: Run, number: int) -> dict:
    """{"round", "table": one row for each task, "open_tasks", "baseline": {open task: imagined success of the start}, "errors"}."""
    return load_config(run.path(f"rounds/{number}/gate"), "gate")


def read_updates(run: Run, number: int) -> dict:
    """{"round", "updates", "stopped_because", "capped", "checked", "history": figures of every update}."""
    return read_json(run.path(f"rounds/{number}/tuned/round.json"))
