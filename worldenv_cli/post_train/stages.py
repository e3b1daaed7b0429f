"""Post-training as artifacts: every round's start, models, gate, tuned policy and probe; what comes after the last one is in acceptance.py.

rounds/1/start  = fine-tuned policy + successes of the exploration (filtered behaviour cloning)
rounds/1/gate   = which tasks both models can be trusted with, and what they make of the start
rounds/1/tuned  = rounds/1/start, updated in the simulator                     -> rounds/1/probe, real episodes of it
rounds/2/start  = rounds/1/start + successes of the probe; simulator and reflector refreshed with the probe; and so on
rounds/2/control = as rounds/2/tuned, with all advantages at zero
"""

from functools import lru_cache

import torch

from .. import cards
from ..artifacts import write_artifact
from ..atomic import write_json
from ..data.dataset import Episode
from ..data.explore import of_split
from ..data.outcomes import known
from ..envs.starts import starts
from ..errors import UserError
from ..models import save_model
from ..pipeline import Run
from ..policies.lora import AdaptedPolicy
from ..policies.sft import ChunkSamples
from ..progress import say
from ..recipe import Recipe
from ..rollout import environment_steps, play
from ..simulator.simulator import History
from ..simulator.train import train_simulator
from ..stages import make_reflector, needs, save_dataset
from ..world_env import WorldEnv
from .acceptance import accepted, play_test, rival
from .filtered import clone_on_successes, successes
from .gate import errors_on, gate, score_both
from .lineage import candidates, models_of, read_gate, real_data, start_of
from .loop import StartPool, UpdatesConfig, run_updates
from .rounds import closed_observations, imagined_success
from .starts import reset_frames, start_pool

MEASURED_EPISODES = 48  # imagined, of each task: where a start stands, and how far updates have moved it
PROBE_SPLITS = ("train", "train", "calibration", "held-out")


def check_cameras(recipe: Recipe) -> None:
    """Raises UserError for a policy that looks through a camera which the simulator does not draw: it cannot act in imagination."""
    drawn = recipe.simulator.camera
    unseen = [camera for camera in recipe.policy.cameras if camera != drawn]
    if unseen:
        told = f"the simulator draws {drawn!r} alone"
        raise UserError(f"policy.cameras: the policy also looks through {unseen[0]!r}, but {told}; choose that camera to post-train")


def post_train(run: Run) -> None:
    config = run.recipe.post_train
    for number in range(1, config.rounds + 1):
        clone_on_successes(run, start_of(number), "sft" if number == 1 else start_of(number - 1), real_data(run, number))
        if number > 1:
            _refresh(run, number)
        _gate(run, number)
        _tuned(run, number, "tuned", config.updates)
        if config.probe and number < config.rounds:
            _probe(run, number)
    for candidate, policy in candidates(run, "tuned").items():
        play_test(run, candidate, policy)
    accepted(run, "post-trained", "tuned")
    rival(run)
    if config.control:
        _tuned(run, config.rounds, "control", config.updates.model_copy(update={"advantage_scale": 0.0}))
        play_test(run, "control", candidates(run, "control")["control"])
        accepted(run, "control", "control")


def _refresh(run: Run, number: int) -> None:
    """Simulator and reflector of the round before, trained on with all real data so far."""
    config, (simulator_name, reflector_name) = run.recipe.post_train, models_of(number)
    before, datasets = models_of(number - 1), real_data(run, number)

    def make_simulator(folder, provenance):
        from ..simulator.fidelity import fidelity

        simulator = run.model(before[0], "simulator")
        episodes = [e for name in datasets for e in run.episodes(name)]
        parts = run.checkpoint(simulator_name, "proprioception"), run.checkpoint(simulator_name, "video")
        metrics = run.metrics(simulator_name, "video")
        trained, settings, seed = of_split(episodes, "train"), config.refresh_simulator, run.recipe.seed + number
        train_simulator(simulator, trained, settings, seed=seed, checkpoints=parts, metrics=metrics)
        measured = fidelity(simulator.eval(), of_split(episodes, "held-out"), run.model("sft", "policy"))
        write_json(folder / "fidelity.json", measured)
        save_model(folder, "simulator", simulator, provenance, cards.simulator(simulator, measured))

    def make_reflector_(folder, provenance):
        reflector, simulator = run.model(before[1], "reflector"), run.model(simulator_name, "simulator")
        episodes = [e for name in datasets for e in run.episodes(name)]
        make_reflector(run, reflector_name, folder, provenance, reflector, simulator, episodes, config.refresh_reflector)

    chosen = run.settings("post_train.refresh_simulator")
    run.artifact(simulator_name, chosen, needs(before[0], "sft", *datasets), make_simulator, together=True)
    chosen = run.settings("post_train.refresh_reflector")
    run.artifact(reflector_name, chosen, needs(before[1], simulator_name, *datasets), make_reflector_, together=True)


def _gate(run: Run, number: int) -> None:
    """Which tasks are open to this round, and the imagined success of its start, over which the cap of imagined gain counts."""
    recipe, config = run.recipe, run.recipe.post_train
    name, datasets = f"rounds/{number}/gate", real_data(run, number)

    def make(folder, provenance):
        env, pool = _imagination(run, number)
        unseen = known(of_split(_explored(run, datasets), "held-out", "calibration"))  # by the weights; twenty episodes say little about an AUC
        real, imagined = score_both(env.simulator, env.reflector, unseen)
        threshold = env.reflector.threshold.item()
        table = gate(real, imagined, threshold, list(recipe.env.tasks), config.gate)
        open_tasks = [row["task"] for row in table if row["open"]]
        say(f"open tasks: {', '.join(open_tasks) or 'none'}" + "".join(f"; {r['task']} closed, {r['reason']}" for r in table if not r["open"]))
        start = run.model(start_of(number), "policy")
        baseline = imagined_success(start, env, pool, open_tasks, MEASURED_EPISODES, recipe.seed)
        errors = errors_on(open_tasks, {"real": real, "imagined": imagined}, threshold)
        found = {"round": number, "table": table, "open_tasks": open_tasks, "baseline": baseline, "errors": errors}
        write_artifact(folder, "gate", found, None, provenance, cards.gate(number, table))

    chosen = run.settings("env", "world_env", "post_train.gate", "post_train.resets")
    run.artifact(name, chosen, needs(start_of(number), *models_of(number), *datasets), make)


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
    """A round's extra resets: its gate, its updates and its control begin from the same ones. Without any, no environment is opened."""
    recipe = run.recipe
    if not recipe.post_train.resets:
        return []
    return reset_frames(run.env(), starts("frames", recipe.env.tasks, recipe.post_train.resets, offset=1000 * number, run_seed=recipe.seed))


def _tuned(run: Run, number: int, kind: str, updates: UpdatesConfig) -> None:
    recipe, config = run.recipe, run.recipe.post_train
    name, datasets = f"rounds/{number}/{kind}", real_data(run, number)

    def make(folder, provenance):
        gated = read_gate(run, number)
        torch.manual_seed(recipe.seed)
        policy = AdaptedPolicy(run.model(start_of(number), "policy").plain(), config.lora).to(run.device)
        kept = successes([episode for dataset in datasets for episode in run.episodes(dataset)])
        result = {"updates": 0, "stopped_because": "no open task", "capped": [], "checked": [], "history": []}
        if gated["open_tasks"]:
            env, pool = _imagination(run, number)
            cameras, closed = policy.config.cameras, [task for task in recipe.env.tasks if task not in gated["open_tasks"]]
            result = run_updates(
                policy,
                env,
                pool,
                gated["open_tasks"],
                closed_observations(of_split(_explored(run, datasets), "train", "calibration"), closed, cameras),
                ChunkSamples(kept, cameras, policy.config.chunk),
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

    chosen = run.settings("world_env", "env", *(f"post_train.{part}" for part in ("resets", "lora", "filter", "updates")))
    chosen["post_train.updates"] = updates.model_dump(mode="json")
    run.artifact(name, chosen, needs(start_of(number), f"rounds/{number}/gate", *models_of(number), *datasets), make, together=True)


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

    run.artifact(name, run.settings("env", "post_train.probe", "post_train.probe_noise"), needs(tuned), make)
