"""Filtered behaviour cloning: a policy trained on with what succeeded. Every round begins with it, and it is the rival that RL has to beat."""

from collections.abc import Sequence

from .. import cards
from ..data.dataset import Episode
from ..errors import UserError
from ..models import save_model
from ..pipeline import Run
from ..policies.sft import fine_tune
from ..stages import needs


def successes(episodes: Sequence[Episode]) -> list[Episode]:
    """What filtered behaviour cloning keeps: what is known to have succeeded."""
    return [episode for episode in episodes if episode.outcome == "success"]


def clone_on_successes(run: Run, name: str, start: str, datasets: list[str]) -> None:
    """The artifact `name`: `start` trained on with the successes of `datasets`."""

    def make(folder, provenance):
        policy = run.model(start, "policy").trainable()
        kept = successes([episode for dataset in datasets for episode in run.episodes(dataset)])
        if not kept:
            told = "if the demonstrations are known to succeed, say so: ingest.outcome: success"
            raise UserError(f"{', '.join(datasets)}: no episode is known to have succeeded, expected one at least to learn from; {told}")
        part = {"checkpoint": run.checkpoint(name), "metrics": run.metrics(name)}
        fine_tune(policy, kept, run.recipe.post_train.filter, seed=run.recipe.seed + 1, **part)
        save_model(folder, "policy", policy, provenance, cards.policy("fine-tuned on demonstrations and successful rollouts", kept, policy))

    run.artifact(name, run.settings("post_train.filter"), needs(start, *datasets), make, together=True)
