"""Post-training as artifacts: every round's start, models, tuned policy and probe, then the acceptance test, the control and the rival.

rounds/1/start  = fine-tuned policy + successes of the exploration (filtered behaviour cloning)
rounds/1/tuned  = rounds/1/start, updated in the simulator                     -> rounds/1/probe, real episodes of it
rounds/2/start  = rounds/1/start + successes of the probe; simulator and reflector refreshed with the probe; and so on
post-trained    = the last tuned policy on the tasks that pass the acceptance test, its start elsewhere
rival           = the last start + successes of everything real that post-training has seen: filtered BC on the same data
control         = the last round again with its advantages at zero
"""

import json
from pathlib import Path

import torch

from .. import cards
from ..atomic import write_json
from ..data.explore import of_split
from ..envs.starts import starts
from ..evaluation.protocol import by_task, outcomes
from ..models import load_model, save_model
from ..pipeline import Run
from ..policies.lora import AdaptedPolicy
from ..policies.sft import ChunkSamples, fine_tune
from ..progress import say
from ..rollout import environment_steps, play
from ..simulator.train import train_simulator
from ..stages import make_reflector, needs, save_dataset, settings
from ..world_env import WorldEnv
from .gate import gate, score_both
from .loop import run_updates
from .rounds import accept, closed_observations, imagined_success, successes
from .starts import reset_frames, start_pool

PROBE_SPLITS = ("train", "train", "calibration", "held-out")


def post_train(run: Run) -> None:
    config = run.recipe.post_train
    for number in range(1, config.rounds + 1):
        _start(run, number)
        if number > 1:
            _refresh(run, number)
        _tuned(run, number, "tuned", config.updates)
        if config.probe:
            _probe(run, number)
    _accepted(run, "post-trained", "tuned")
    _rival(run)
    if config.control:
        still = config.updates.model_copy(update={"advantage_scale": 0.0})
        _tuned(run, config.rounds, "control", still)


def real_data(run: Run, until_round: int) -> list[str]:
    """Names of the datasets that are there when a round begins."""
    return ["demonstrations", "exploration"] + ([f"rounds/{n}/probe" for n in range(1, until_round)] if run.recipe.post_train.probe else [])


def models_of(number: int) -> tuple[str, str]:
    """(simulator, reflector) of a round."""
    return ("simulator", "reflector") if number == 1 else (f"rounds/{number}/simulator", f"rounds/{number}/reflector")


def _clone_on_successes(run: Run, name: str, start: str, datasets: list[str]) -> None:
    """Filtered behaviour cloning: `start` trained on with the successes of `datasets`."""

    def make(folder, provenance):
        policy = load_model(run.path(start), "policy")
        kept = successes([episode for dataset in datasets for episode in run.episodes(dataset)])
        part = {"checkpoint": run.checkpoint(name), "metrics": run.metrics(name)}
        fine_tune(policy, kept, run.recipe.post_train.filter, seed=run.recipe.seed + 1, **part)
        save_model(folder, "policy", policy, provenance, cards.policy("fine-tuned on demonstrations and successful rollouts", kept, policy))

    run.artifact(name, {"filter": settings(run, "post_train")["post_train"]["filter"], "seed": run.recipe.seed}, needs(start, *datasets), make)


def _start(run: Run, number: int) -> None:
    _clone_on_successes(run, f"rounds/{number}/start", "sft" if number == 1 else f"rounds/{number - 1}/start", real_data(run, number))


def _rival(run: Run) -> None:
    config = run.recipe.post_train
    datasets = real_data(run, config.rounds + 1) + (["acceptance"] if config.validation else [])
    _clone_on_successes(run, "rival", f"rounds/{config.rounds}/start", datasets)


def _refresh(run: Run, number: int) -> None:
    """Simulator and reflector of the round before, trained on with all real data so far."""
    config, (simulator_name, reflector_name) = run.recipe.post_train, models_of(number)
    before, datasets = models_of(number - 1), real_data(run, number)
    chosen = settings(run, "post_train")["post_train"]

    def make_simulator(folder, provenance):
        from ..simulator.fidelity import fidelity

        simulator = load_model(run.path(before[0]), "simulator")
        episodes = [e for name in datasets for e in run.episodes(name)]
        trained = [e for e in episodes if e.info.get("split", "train") == "train"]
        parts = run.checkpoint(simulator_name, "proprioception"), run.checkpoint(simulator_name, "video")
        train_simulator(simulator, trained, config.refresh_simulator, seed=run.recipe.seed + number, checkpoints=parts)
        held_out = [e for e in episodes if e.info.get("split") == "held-out"]
        measured = fidelity(simulator.eval(), held_out, load_model(run.path("sft"), "policy"))
        write_json(folder / "fidelity.json", measured)
        save_model(folder, "simulator", simulator, provenance, cards.simulator(simulator, measured))

    def make_reflector_(folder, provenance):
        reflector, simulator = load_model(run.path(before[1]), "reflector"), load_model(run.path(simulator_name), "simulator")
        episodes = [e for name in datasets for e in run.episodes(name)]
        make_reflector(run, reflector_name, folder, provenance, reflector, simulator, episodes, config.refresh_reflector)

    seeded = {"seed": run.recipe.seed}
    run.artifact(simulator_name, {"refresh": chosen["refresh_simulator"]} | seeded, needs(before[0], "sft", *datasets), make_simulator)
    run.artifact(reflector_name, {"refresh": chosen["refresh_reflector"]} | seeded, needs(before[1], simulator_name, *datasets), make_reflector_)


def _tuned(run: Run, number: int, kind: str, updates) -> None:
    recipe, config = run.recipe, run.recipe.post_train
    name, (simulator_name, reflector_name), datasets = f"rounds/{number}/{kind}", models_of(number), real_data(run, number)

    def make(folder, provenance):
        simulator, reflector = load_model(run.path(simulator_name), "simulator"), load_model(run.path(reflector_name), "reflector")
        torch.manual_seed(recipe.seed)
        policy = AdaptedPolicy(load_model(run.path(f"rounds/{number}/start"), "policy"), config.lora)
        episodes = [episode for dataset in datasets for episode in run.episodes(dataset)]
        usable = of_split([e for e in episodes if "split" in e.info], "train", "calibration")
        held_out = of_split([e for e in episodes if "split" in e.info], "held-out")
        real, imagined = score_both(simulator, reflector, held_out)
        table = gate(real, imagined, reflector.threshold.item(), list(recipe.env.tasks), config.gate)
        open_tasks = [row["task"] for row in table if row["open"]]
        say(f"open tasks: {', '.join(open_tasks) or 'none'}" + "".join(f"; {r['task']} closed, {r['reason']}" for r in table if not r["open"]))
        frames = reset_frames(run.env(), starts("frames", recipe.env.tasks, config.resets, offset=1000 * number, run_seed=recipe.seed))
        pool = start_pool(usable, frames, simulator.config.camera, simulator.config.chunk, recipe.seed)
        env = WorldEnv(simulator, reflector, recipe.world_env, [history for found in pool.first.values() for history in found])
        baseline = imagined_success(policy, env, pool, open_tasks, 48, recipe.seed, explore=True)
        closed = [task for task in recipe.env.tasks if task not in open_tasks]
        anchor = ChunkSamples(successes(episodes), policy.config.camera, policy.config.chunk)
        result = {"updates": 0, "stopped_because": "no open task", "capped": [], "history": []}
        if open_tasks:
            result = run_updates(
                policy,
                env,
                pool,
                open_tasks,
                closed_observations(usable, closed, simulator.config.camera),
                anchor,
                baseline,
                updates,
                config.filter,
                seed=recipe.seed + 100 * number,
                metrics=run.metrics(name),
                checkpoint=run.checkpoint(name),
            )
        write_json(folder / "round.json", {"round": number, "gate": table, "baseline": baseline, **result})
        save_model(
            folder,
            "policy",
            policy,
            provenance,
            cards.policy(f"post-trained in imagination, round {number}", successes(episodes), policy.policy),
        )

    chosen = settings(run, "post_train", "world_env")
    relevant = {key: chosen["post_train"][key] for key in ("resets", "lora", "gate", "filter")} | {"updates": updates.model_dump(mode="json")}
    relevant |= {"world_env": chosen["world_env"], "seed": recipe.seed, "env": settings(run, "env")["env"]}
    run.artifact(name, relevant, needs(f"rounds/{number}/start", simulator_name, reflector_name, *datasets), make)


def _probe(run: Run, number: int) -> None:
    recipe, config = run.recipe, run.recipe.post_train
    name, tuned = f"rounds/{number}/probe", f"rounds/{number}/tuned"

    def make(folder, provenance):
        tasks = list(recipe.env.tasks)
        chosen = starts("probe", tasks, config.probe, offset=1000 * number, run_seed=recipe.seed)
        noise = [config.probe_noise[(i // len(tasks)) % len(config.probe_noise)] for i in range(len(chosen))]
        episodes = play(
            run.env(),
            chosen,
            load_model(run.path(tuned), "policy"),
            noise=noise,
            seed=recipe.seed,
            description=f"probe {number}",
            keep=run.kept(name),
        )
        for index, episode in enumerate(episodes):
            episode.info["split"] = PROBE_SPLITS[(index // len(tasks)) % len(PROBE_SPLITS)]
        save_dataset(run, folder, episodes, provenance, f"probe of the policy of round {number}", environment_steps(episodes))

    run.artifact(name, {"probe": config.probe, "noise": config.probe_noise, **settings(run, "env")}, needs(tuned), make)


def _accepted(run: Run, name: str, kind: str) -> None:
    """The acceptance test on validation starts, and the policy that comes out of it."""
    recipe, config = run.recipe, run.recipe.post_train
    start_name, tuned_name = f"rounds/{config.rounds}/start", f"rounds/{config.rounds}/{kind}"

    def play_both(folder, provenance):
        chosen = starts("validation", recipe.env.tasks, config.validation, run_seed=recipe.seed)
        env = run.env(every_frame=True)
        both = [
            play(env, chosen, load_model(run.path(n), "policy"), description=f"acceptance: {n}", keep=run.kept("acceptance") / n)
            for n in (start_name, tuned_name)
        ]
        for label, episodes in zip(("start", "tuned"), both):
            for episode in episodes:
                episode.info |= {"split": "train", "policy": label}
        episodes = both[0] + both[1]
        save_dataset(run, folder, episodes, provenance, "acceptance test: start and tuned policy", environment_steps(episodes))

    if config.validation:
        run.artifact("acceptance", {"validation": config.validation, **settings(run, "env")}, needs(start_name, tuned_name), play_both)

    def make(folder, provenance):
        policy = load_model(run.path(tuned_name), "policy")
        gate_rows = json.loads((run.path(tuned_name) / "round.json").read_text())["gate"]
        open_tasks, counts = [row["task"] for row in gate_rows if row["open"]], None
        if config.validation:
            episodes = run.episodes("acceptance")
            counts = {}
            for label in ("start", "tuned"):
                mine = [episode for episode in episodes if episode.info["policy"] == label]
                counts[label] = by_task([episode.info["task"] for episode in mine], outcomes(mine))
            open_tasks = accept(counts["start"], counts["tuned"], open_tasks)
        policy.accepted = [recipe.env.tasks[task] for task in open_tasks]
        write_json(folder / "acceptance.json", {"accepted": open_tasks, "counts": counts})
        say(f"tuned weights are used for: {', '.join(open_tasks) or 'no task'}")
        save_model(folder, "policy", policy, provenance, cards.policy("post-trained in imagination", [], policy.policy))

    run.artifact(name, {"tasks": recipe.env.tasks}, needs(tuned_name, *(["acceptance"] if config.validation else [])), make)


def read_round(folder: Path) -> dict:
    return json.loads((folder / "round.json").read_text())
