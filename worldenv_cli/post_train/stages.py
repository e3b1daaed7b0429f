"""Post-training as artifacts: every round's start, models, gate, tuned policy and probe; then the acceptance test, the rival and the control.

rounds/1/start  = fine-tuned policy + successes of the exploration (filtered behaviour cloning)
rounds/1/gate   = which tasks both models can be trusted with, and what they make of the start
rounds/1/tuned  = rounds/1/start, updated in the simulator                     -> rounds/1/probe, real episodes of it
rounds/2/start  = rounds/1/start + successes of the probe; simulator and reflector refreshed with the probe; and so on
post-trained    = the last tuned policy on the tasks that pass the acceptance test, its start elsewhere
rival           = the last start + successes of everything real that post-training has seen: filtered BC on the same data
control         = the last round and its acceptance test again, with all advantages at zero
"""

from functools import lru_cache

import torch

from .. import cards
from ..artifacts import load_config, write_artifact
from ..atomic import read_json, write_json
from ..data.dataset import Episode
from ..data.explore import of_split
from ..envs.starts import starts
from ..evaluation.protocol import by_task, outcomes
from ..models import save_model
from ..pipeline import Run
from ..policies.lora import AdaptedPolicy
from ..policies.sft import ChunkSamples, fine_tune
from ..progress import say
from ..rollout import environment_steps, play
from ..simulator.simulator import History
from ..simulator.train import train_simulator
from ..stages import make_reflector, needs, save_dataset
from ..world_env import WorldEnv
from .gate import errors_on, gate, score_both
from .loop import StartPool, UpdatesConfig, run_updates
from .rounds import accept, closed_observations, imagined_success, successes
from .starts import reset_frames, start_pool

MEASURED_EPISODES = 48  # imagined, of each task: where a start stands, and how far updates have moved it
PROBE_SPLITS = ("train", "train", "calibration", "held-out")


def post_train(run: Run) -> None:
    config = run.recipe.post_train
    for number in range(1, config.rounds + 1):
        _start(run, number)
        if number > 1:
            _refresh(run, number)
        _gate(run, number)
        _tuned(run, number, "tuned", config.updates)
        if config.probe and number < config.rounds:
            _probe(run, number)
    if config.validation:
        _acceptance_test(run, "acceptance/start", f"rounds/{config.rounds}/start")
    accepted(run, "post-trained", "tuned")
    _clone_on_successes(run, "rival", f"rounds/{config.rounds}/start", all_real_data(run, "tuned"))
    if config.control:
        _tuned(run, config.rounds, "control", config.updates.model_copy(update={"advantage_scale": 0.0}))
        accepted(run, "control", "control")


def real_data(run: Run, number: int) -> list[str]:
    """Names of the datasets that are there when round `number` begins."""
    return ["demonstrations", "exploration"] + ([f"rounds/{n}/probe" for n in range(1, number)] if run.recipe.post_train.probe else [])


def all_real_data(run: Run, kind: str) -> list[str]:
    """All that a policy of the last round (`tuned` or `control`) has cost: its acceptance test included."""
    config = run.recipe.post_train
    return real_data(run, config.rounds) + (["acceptance/start", f"acceptance/{kind}"] if config.validation else [])


def models_of(number: int) -> tuple[str, str]:
    """(simulator, reflector) of a round."""
    return ("simulator", "reflector") if number == 1 else (f"rounds/{number}/simulator", f"rounds/{number}/reflector")


def _clone_on_successes(run: Run, name: str, start: str, datasets: list[str]) -> None:
    """Filtered behaviour cloning: `start` trained on with the successes of `datasets`."""

    def make(folder, provenance):
        policy = run.model(start, "policy")
        kept = successes([episode for dataset in datasets for episode in run.episodes(dataset)])
        part = {"checkpoint": run.checkpoint(name), "metrics": run.metrics(name)}
        fine_tune(policy, kept, run.recipe.post_train.filter, seed=run.recipe.seed + 1, **part)
        save_model(folder, "policy", policy, provenance, cards.policy("fine-tuned on demonstrations and successful rollouts", kept, policy))

    run.artifact(name, {"filter": run.settings("post_train")["post_train"]["filter"], "seed": run.recipe.seed}, needs(start, *datasets), make)


def _start(run: Run, number: int) -> None:
    _clone_on_successes(run, f"rounds/{number}/start", "sft" if number == 1 else f"rounds/{number - 1}/start", real_data(run, number))


def _refresh(run: Run, number: int) -> None:
    """Simulator and reflector of the round before, trained on with all real data so far."""
    config, (simulator_name, reflector_name) = run.recipe.post_train, models_of(number)
    before, datasets = models_of(number - 1), real_data(run, number)
    chosen = run.settings("post_train")["post_train"]

    def make_simulator(folder, provenance):
        from ..simulator.fidelity import fidelity

        simulator = run.model(before[0], "simulator")
        episodes = [e for name in datasets for e in run.episodes(name)]
        parts = run.checkpoint(simulator_name, "proprioception"), run.checkpoint(simulator_name, "video")
        train_simulator(simulator, of_split(episodes, "train"), config.refresh_simulator, seed=run.recipe.seed + number, checkpoints=parts)
        measured = fidelity(simulator.eval(), of_split(episodes, "held-out"), run.model("sft", "policy"))
        write_json(folder / "fidelity.json", measured)
        save_model(folder, "simulator", simulator, provenance, cards.simulator(simulator, measured))

    def make_reflector_(folder, provenance):
        reflector, simulator = run.model(before[1], "reflector"), run.model(simulator_name, "simulator")
        episodes = [e for name in datasets for e in run.episodes(name)]
        make_reflector(run, reflector_name, folder, provenance, reflector, simulator, episodes, config.refresh_reflector)

    seeded = {"seed": run.recipe.seed}
    run.artifact(simulator_name, {"refresh": chosen["refresh_simulator"]} | seeded, needs(before[0], "sft", *datasets), make_simulator)
    run.artifact(reflector_name, {"refresh": chosen["refresh_reflector"]} | seeded, needs(before[1], simulator_name, *datasets), make_reflector_)


def _gate(run: Run, number: int) -> None:
    """Which tasks are open to this round, and the imagined success of its start, over which the cap of imagined gain counts."""
    recipe, config = run.recipe, run.recipe.post_train
    name, datasets = f"rounds/{number}/gate", real_data(run, number)

    def make(folder, provenance):
        env, pool = _imagination(run, number)
        unseen = of_split(_explored(run, datasets), "held-out", "calibration")  # by the weights; twenty episodes say little about an AUC
        real, imagined = score_both(env.simulator, env.reflector, unseen)
        threshold = env.reflector.threshold.item()
        table = gate(real, imagined, threshold, list(recipe.env.tasks), config.gate)
        open_tasks = [row["task"] for row in table if row["open"]]
        say(f"open tasks: {', '.join(open_tasks) or 'none'}" + "".join(f"; {r['task']} closed, {r['reason']}" for r in table if not r["open"]))
        start = run.model(f"rounds/{number}/start", "policy")
        baseline = imagined_success(start, env, pool, open_tasks, MEASURED_EPISODES, recipe.seed)
        errors = errors_on(open_tasks, {"real": real, "imagined": imagined}, threshold)
        found = {"round": number, "table": table, "open_tasks": open_tasks, "baseline": baseline, "errors": errors}
        write_artifact(folder, "gate", found, None, provenance, cards.gate(number, table))

    chosen = run.settings("env", "world_env") | {"gate": config.gate.model_dump(mode="json"), "resets": config.resets}
    run.artifact(name, chosen, needs(f"rounds/{number}/start", *models_of(number), *datasets), make)


def _explored(run: Run, datasets: list[str]) -> list[Episode]:
    """The policies' own episodes, which are split into training, calibration and held-out ones; experts' are not."""
    return [episode for name in datasets for episode in run.episodes(name) if "split" in episode.info]


def _imagination(run: Run, number: int) -> tuple[WorldEnv, StartPool]:
    """A round's imagined environment, and where its episodes may begin."""
    recipe = run.recipe
    simulator, reflector = (run.model(name, kind) for name, kind in zip(models_of(number), ("simulator", "reflector")))
    usable = of_split(_explored(run, real_data(run, number)), "train", "calibration")
    pool = start_pool(usable, _first_frames(run, number), simulator.config.camera, simulator.config.chunk, recipe.seed)
    return WorldEnv(simulator, reflector, recipe.world_env, [history for found in pool.first.values() for history in found]), pool


@lru_cache(maxsize=1)
def _first_frames(run: Run, number: int) -> list[tuple[str, History]]:
    """A round's extra resets: its gate, its updates and its control begin from the same ones."""
    recipe = run.recipe
    return reset_frames(run.env(), starts("frames", recipe.env.tasks, recipe.post_train.resets, offset=1000 * number, run_seed=recipe.seed))


def _tuned(run: Run, number: int, kind: str, updates: UpdatesConfig) -> None:
    recipe, config = run.recipe, run.recipe.post_train
    name, datasets = f"rounds/{number}/{kind}", real_data(run, number)

    def make(folder, provenance):
        gated = read_gate(run, number)
        torch.manual_seed(recipe.seed)
        policy = AdaptedPolicy(run.model(f"rounds/{number}/start", "policy"), config.lora).to(run.device)
        kept = successes([episode for dataset in datasets for episode in run.episodes(dataset)])
        result = {"updates": 0, "stopped_because": "no open task", "capped": [], "checked": [], "history": []}
        if gated["open_tasks"]:
            env, pool = _imagination(run, number)
            camera, closed = env.simulator.config.camera, [task for task in recipe.env.tasks if task not in gated["open_tasks"]]
            result = run_updates(
                policy,
                env,
                pool,
                gated["open_tasks"],
                closed_observations(of_split(_explored(run, datasets), "train", "calibration"), closed, camera),
                ChunkSamples(kept, camera, policy.config.chunk),
                gated["baseline"],
                lambda tasks: imagined_success(policy, env, pool, tasks, MEASURED_EPISODES, recipe.seed),
                updates,
                config.filter,
                seed=recipe.seed + 100 * number,
                metrics=run.metrics(name),
                checkpoint=run.checkpoint(name),
            )
        write_json(folder / "round.json", {"round": number, **result})
        save_model(folder, "policy", policy, provenance, cards.policy(f"post-trained in imagination, round {number}", kept, policy.policy))

    chosen = run.settings("post_train", "world_env", "env")
    relevant = {key: chosen["post_train"][key] for key in ("resets", "lora", "filter")} | {"updates": updates.model_dump(mode="json")}
    relevant |= {key: chosen[key] for key in ("world_env", "env", "seed")}
    run.artifact(name, relevant, needs(f"rounds/{number}/start", f"rounds/{number}/gate", *models_of(number), *datasets), make)


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
            run.model(tuned, "policy"),
            noise=noise,
            seed=recipe.seed,
            description=f"probe {number}",
            keep=run.kept(name),
        )
        for index, episode in enumerate(episodes):
            episode.info["split"] = PROBE_SPLITS[(index // len(tasks)) % len(PROBE_SPLITS)]
        save_dataset(run, folder, episodes, provenance, f"probe of the policy of round {number}", environment_steps(episodes))

    run.artifact(name, {"probe": config.probe, "noise": config.probe_noise, **run.settings("env")}, needs(tuned), make)


def accepted(run: Run, name: str, kind: str) -> None:
    """The last round's policy after its acceptance test: played on validation starts beside the start, and used where it is not worse."""
    recipe, config = run.recipe, run.recipe.post_train
    tuned = f"rounds/{config.rounds}/{kind}"
    tests = {"start": "acceptance/start", "tuned": f"acceptance/{kind}"} if config.validation else {}
    if tests:
        _acceptance_test(run, tests["tuned"], tuned)

    def make(folder, provenance):
        policy, counts = run.model(tuned, "policy"), None
        used = read_gate(run, config.rounds)["open_tasks"]
        if tests:
            counts = {}
            for label, dataset in tests.items():
                episodes = run.episodes(dataset)
                counts[label] = by_task([episode.info["task"] for episode in episodes], outcomes(episodes))
            used = accept(counts["start"], counts["tuned"], used)
        policy.accepted = [recipe.env.tasks[task] for task in used]
        write_json(folder / "acceptance.json", {"accepted": used, "counts": counts})
        say(f"{name}: tuned weights are used for {', '.join(used) or 'no task'}")
        save_model(folder, "policy", policy, provenance, cards.policy("post-trained in imagination", [], policy.policy))

    run.artifact(name, {"tasks": recipe.env.tasks}, needs(tuned, f"rounds/{config.rounds}/gate", *tests.values()), make)


def _acceptance_test(run: Run, name: str, policy: str) -> None:
    recipe = run.recipe

    def make(folder, provenance):
        chosen = starts("validation", recipe.env.tasks, recipe.post_train.validation, run_seed=recipe.seed)
        episodes = play(run.env(), chosen, run.model(policy, "policy"), description=f"acceptance test: {policy}", keep=run.kept(name))
        save_dataset(run, folder, episodes, provenance, f"acceptance test of {policy}", environment_steps(episodes))

    run.artifact(name, {"validation": recipe.post_train.validation, **run.settings("env")}, needs(policy), make)


def read_gate(run: Run, number: int) -> dict:
    """{"round", "table": one row for each task, "open_tasks", "baseline": {open task: imagined success of the start}, "errors"}."""
    return load_config(run.path(f"rounds/{number}/gate"), "gate")


def read_updates(run: Run, number: int) -> dict:
    """{"round", "updates", "stopped_because", "capped", "checked", "history": figures of every update}."""
    return read_json(run.path(f"rounds/{number}/tuned/round.json"))
