"""The counted acceptance test: on validation starts, task by task, which policy is used. Fine-tuning on successes can harm, and so can imagination.

post-trained = of the fine-tuned policy, the last start and the tuned policy, the one with the most successes
control      = the same of the last round with its advantages at zero
rival        = the fine-tuned policy, or where the last start was chosen over it, that start trained on with the successes of everything real that
               post-training has seen, the acceptance test included: filtered behaviour cloning on the same data, and with the same choice
"""

from collections.abc import Iterable, Sequence

from .. import cards
from ..atomic import write_json
from ..envs.starts import starts
from ..evaluation.protocol import by_task, outcomes
from ..models import save_model
from ..pipeline import Run
from ..policies.chosen import ChosenPolicy
from ..progress import say
from ..rollout import environment_steps, play
from ..stages import needs, save_dataset
from .filtered import clone_on_successes
from .lineage import all_real_data, candidates, read_gate, start_of

DEPENDS_ON = ("env.tasks", "post_train.unknown_instruction")  # of the recipe, beside what the candidates and their tests depend on


def choose(counts: dict[str, dict[str, dict]], task: str, names: Sequence[str]) -> str:
    """The candidate with the most successes on the same validation starts; of equals the last. counts: {candidate: {task: {"successes", ...}}}."""
    best = max(counts[name][task]["successes"] for name in names)
    return [name for name in names if counts[name][task]["successes"] == best][-1]


def play_test(run: Run, candidate: str, policy: str) -> None:
    """The dataset of a candidate's episodes from validation starts; nothing where the recipe has no test."""
    recipe, name = run.recipe, f"acceptance/{candidate}"
    if not recipe.post_train.validation:
        return

    def make(folder, provenance):
        chosen = starts("validation", recipe.env.tasks, recipe.post_train.validation, run_seed=recipe.seed)
        episodes = play(run.env(), chosen, run.model(policy, "policy"), description=f"acceptance test: {policy}", keep=run.kept(name))
        save_dataset(run, folder, episodes, provenance, f"acceptance test of {policy}", environment_steps(episodes))

    run.artifact(name, run.settings("post_train.validation", "env"), needs(policy), make)


def accepted(run: Run, name: str, kind: str) -> None:
    """The last round's policy (`kind` tuned or control) after its acceptance test; tasks that were closed have no use for it."""
    found, rounds = candidates(run, kind), run.recipe.post_train.rounds
    tests = _tests(run, found)

    def make(folder, provenance):
        counts, choice, opened = _counts(run, tests), {}, read_gate(run, rounds)["open_tasks"]
        for task in run.recipe.env.tasks:
            usable = list(found) if task in opened else ["sft", "start"]
            choice[task] = choose(counts, task, usable) if counts else usable[-1]
        _save(run, folder, provenance, name, found, choice, counts)

    run.artifact(name, run.settings(*DEPENDS_ON), needs(*found.values(), f"rounds/{rounds}/gate", *tests.values()), make)


def rival(run: Run) -> None:
    members, tests = {"sft": "sft", "cloned": "cloned"}, _tests(run, ("sft", "start"))
    clone_on_successes(run, "cloned", start_of(run.recipe.post_train.rounds), all_real_data(run, "tuned"))

    def make(folder, provenance):
        counts = _counts(run, tests)
        choice = {task: "sft" if counts and choose(counts, task, list(counts)) == "sft" else "cloned" for task in run.recipe.env.tasks}
        _save(run, folder, provenance, "rival", members, choice, counts)

    run.artifact("rival", run.settings(*DEPENDS_ON), needs(*members.values(), *tests.values()), make)


def default_member(members: Sequence[str], choice: dict[str, str], unknown_instruction: str) -> str | None:
    """Who plays an instruction that is near none: of the members, from the first policy to the last, the last one that a task uses; or "sft"; or
    nobody. choice: {task: member}.
    """
    if unknown_instruction == "refuse":
        return None
    return "sft" if unknown_instruction == "sft" else [name for name in members if name in choice.values()][-1]


def _save(run: Run, folder, provenance: dict, name: str, members: dict[str, str], choice: dict[str, str], counts: dict) -> None:
    """Only the members that something uses are kept."""
    default = default_member(list(members), choice, run.recipe.post_train.unknown_instruction)
    policies = {member: run.model(artifact, "policy") for member, artifact in members.items() if member in {default, *choice.values()}}
    policy = ChosenPolicy(policies, {run.recipe.env.tasks[task]: member for task, member in choice.items()}, default)
    write_json(folder / "acceptance.json", {"choice": choice, "counts": counts})
    say(f"{name}: " + ", ".join(f"{task} by {member}" for task, member in choice.items()))
    save_model(folder, "policy", policy, provenance, cards.chosen_policy(name, policy, choice, counts))


def _tests(run: Run, names: Iterable[str]) -> dict[str, str]:
    """{candidate: the dataset of its episodes from validation starts}; none where the recipe has no test."""
    return {name: f"acceptance/{name}" for name in names} if run.recipe.post_train.validation else {}


def _counts(run: Run, tests: dict[str, str]) -> dict[str, dict[str, dict]]:
    """{candidate: {task: {"successes", "n", ...}}}."""
    played = {candidate: run.episodes(dataset) for candidate, dataset in tests.items()}
    return {candidate: by_task([episode.info["task"] for episode in episodes], outcomes(episodes)) for candidate, episodes in played.items()}
