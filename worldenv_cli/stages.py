"""The stages up to the models: what each artifact is made from, with which settings, and by which function."""

from pathlib import Path

from . import cards, distributed
from .artifacts import package_versions, write_artifact
from .atomic import read_json, write_json
from .data.dataset import Episode, read_description, write_dataset
from .data.expert import demonstrate
from .data.explore import explore as explore_with
from .data.explore import of_split
from .data.fitting import fitting_episodes
from .data.outcomes import known
from .errors import UserError
from .hub import downloaded, resolve, state_of
from .models import new_policy, save_model
from .pipeline import Run
from .policies.load import check_checkpoint
from .policies.parts import part
from .policies.vla import CONVERTED, VLAConfig, checkpoint_folder, is_on_the_hub
from .progress import say
from .provenance import PROVENANCE, recorded_files, total_hash, verify, write_provenance
from .recipe import Recipe
from .rollout import environment_steps

MADE_BY = {"demonstrations": "ingest", "sft": "sft", "exploration": "explore", "simulator": "simulate", "reflector": "calibrate"}


def needs(*names: str) -> dict[str, str]:
    """{artifact: the command that makes it}."""
    return {name: MADE_BY.get(name, "post-train") for name in names}


def check_policy(recipe: Recipe, stages: list[str]) -> None:
    """Whether a VLA's checkpoint and the text encoders are there and fit, told before anything is made.

    For `ingest` alone a folder must be there, and no more.
    """
    for stage, section in (("sft", recipe.policy), ("calibrate", recipe.reflector)):
        if stage in stages and not isinstance(section, VLAConfig) and section.text.pretrained:
            part(section.text.pretrained, "text encoder", "text.pretrained", None)
    if not isinstance(recipe.policy, VLAConfig):
        return
    if "sft" in stages:
        check_checkpoint(recipe.policy)
    elif "ingest" in stages and not is_on_the_hub(recipe.policy):
        checkpoint_folder(recipe.policy, weights=False)


def save_dataset(run: Run, folder: Path, episodes: list[Episode], provenance: dict, source: str, cost: int) -> None:
    """A dataset artifact: LeRobot v3.0 files, with everything said that a user of them must know."""
    env = run.recipe.env
    description = {"source": source, **env.description(), "environment_steps": cost, "versions": package_versions() | run.env_versions}
    write_dataset(
        folder,
        episodes,
        fps=env.control_hz,
        state_names=env.state_names,
        action_names=env.action_names,
        description=description,
        robot_type=env.robot,
    )
    write_artifact(folder, "dataset", {"source": source, "episodes": len(episodes)}, None, provenance, cards.dataset(episodes, description))


def ingest(run: Run) -> None:
    source, env = run.recipe.ingest.source, run.recipe.env
    if source is None and env.kind != "metaworld":
        raise UserError(f"ingest.source is not set, and {env.title} has no scripted experts; name a dataset that `worldenv ingest` wrote")

    def make(folder, provenance):
        if source is None:
            episodes, cost = demonstrate(run.env(), run.recipe.ingest, run.recipe.seed)
            save_dataset(run, folder, episodes, provenance, "Meta-World's scripted experts", cost)
            return
        found = resolve(source, "dataset")
        if (found / PROVENANCE).is_file():
            verify(found)
        episodes, cost, lines = fitting_episodes(env, source, found, run.recipe.ingest.outcome)
        for line in lines:
            say(f"ingest.source {source}: {line}")
        save_dataset(run, folder, episodes, provenance | {"downloaded": downloaded(found)}, f"Demonstrations of {source}", cost)

    chosen = run.settings("env", "ingest")
    if source is not None:
        chosen |= {"contents of ingest.source": _state_of_source(run, Path(source))}
    run.artifact("demonstrations", chosen, {}, make)


def _state_of_source(run: Run, source: Path) -> str | None:
    """Changes when the dataset on this machine does. Of one that is not here, a Hub reference say, what was recorded when it was read."""
    if source.is_dir():
        files = recorded_files(source)
        return state_of(source) if files is None else total_hash(files)
    record = run.path("demonstrations") / PROVENANCE
    return read_json(record).get("settings", {}).get("contents of ingest.source") if record.is_file() else None


def sft(run: Run) -> None:
    def make(folder, provenance):
        import torch

        from .policies.sft import fine_tune

        torch.manual_seed(run.recipe.seed)
        policy = new_policy(run.recipe.policy, run.device).trainable()
        demonstrations = run.episodes("demonstrations")
        fine_tune(policy, demonstrations, run.recipe.sft, seed=run.recipe.seed, checkpoint=run.checkpoint("sft"), metrics=run.metrics("sft"))
        save_model(folder, "policy", policy, provenance, cards.policy("fine-tuned on demonstrations", demonstrations, policy))

    chosen, policy = run.settings("policy", "sft"), run.recipe.policy
    if isinstance(policy, VLAConfig):
        chosen |= {"checkpoint": state_of(checkpoint_folder(policy, weights=not run.dry_run), CONVERTED)}
    run.artifact("sft", chosen, needs("demonstrations"), make, together=True)


def explore(run: Run) -> None:
    def make(folder, provenance):
        recipe = run.recipe
        policy = run.model("sft", "policy")
        episodes = explore_with(run.env(), policy, recipe.explore, recipe.calibrate.calibration_share, recipe.seed, run.kept("exploration"))
        save_dataset(run, folder, episodes, provenance, "rollouts of the fine-tuned policy with exploration noise", environment_steps(episodes))

    chosen = run.settings("env", "explore", "calibrate.calibration_share")
    run.artifact("exploration", chosen, needs("sft"), make)


def simulator_config(run: Run):
    """The recipe's simulator with what the dataset fixes."""
    description = read_description(run.path("demonstrations"))
    camera = description["cameras"][run.recipe.simulator.camera]
    if "extrinsics" not in camera:
        told = "where it stands is unknown or differs between tasks, and the simulator draws the hand through it"
        raise UserError(f"simulator.camera {run.recipe.simulator.camera}: {told}; choose env.tasks of one kind of scene")
    found = {"intrinsics": camera["intrinsics"], "extrinsics": camera["extrinsics"], "action_unit": description["action"]["unit"]}
    found |= {"opening": description["state"]["opening"], "table": description["table"]}
    return type(run.recipe.simulator).model_validate(run.recipe.simulator.model_dump() | found)


def simulate(run: Run) -> None:
    def make(folder, provenance):
        import torch

        from .simulator.fidelity import fidelity
        from .simulator.simulator import Simulator
        from .simulator.train import train_simulator

        torch.manual_seed(run.recipe.seed)
        simulator = Simulator(simulator_config(run)).to(run.device)
        episodes = run.episodes("demonstrations") + run.episodes("exploration")
        parts = run.checkpoint("simulator", "proprioception"), run.checkpoint("simulator", "video")
        metrics = run.metrics("simulator", "video")
        train_simulator(simulator, of_split(episodes, "train"), run.recipe.simulate, seed=run.recipe.seed, checkpoints=parts, metrics=metrics)
        measured = fidelity(simulator.eval(), of_split(episodes, "held-out"), run.model("sft", "policy"))
        write_json(folder / "fidelity.json", measured)
        save_model(folder, "simulator", simulator, provenance, cards.simulator(simulator, measured))

    run.artifact("simulator", run.settings("simulator", "simulate"), needs("demonstrations", "exploration", "sft"), make, together=True)


def compare(run: Run) -> None:
    """Regression against flow matching at equal training time: for the report, nothing is made from it."""

    def make(folder, provenance):
        from .simulator.compare import compare_objectives

        episodes = run.episodes("demonstrations") + run.episodes("exploration")
        trained, held_out = of_split(episodes, "train"), of_split(episodes, "held-out")
        simulator, policy = run.model("simulator", "simulator"), run.model("sft", "policy")
        found = compare_objectives(simulator, trained, held_out, run.recipe.simulate, policy, run.recipe.seed)
        write_json(folder / "comparison.json", {"n_episodes": len(held_out), "compared": found})
        write_provenance(folder, provenance)

    run.artifact("comparison", run.settings("simulate"), needs("demonstrations", "exploration", "sft", "simulator"), make)


def calibrate(run: Run) -> None:
    def make(folder, provenance):
        import torch

        from .reflector.compact import Reflector

        torch.manual_seed(run.recipe.seed)
        simulator = run.model("simulator", "simulator")
        reflector = Reflector(run.recipe.reflector).to(run.device)
        episodes = run.episodes("demonstrations") + run.episodes("exploration")
        make_reflector(run, "reflector", folder, provenance, reflector, simulator, episodes, run.recipe.calibrate)

    run.artifact("reflector", run.settings("reflector", "calibrate"), needs("demonstrations", "exploration", "simulator"), make, together=True)


def make_reflector(run: Run, name: str, folder: Path, provenance: dict, reflector, simulator, episodes: list[Episode], config) -> None:
    """Train, calibrate and measure a reflector on real frames and on the simulator's replays, and write it. It sees known outcomes only."""
    from .reflector.report import measured_errors, why_never
    from .reflector.train import calibrate as set_calibration
    from .reflector.train import imagined_sequences, real_sequences, score_sequences, train_reflector

    camera = reflector.config.camera
    parts = {part: known(of_split(episodes, part)) for part in ("train", "calibration", "held-out")}
    real = {part: real_sequences(found, camera) for part, found in parts.items()}
    imagined = {part: imagined_sequences(simulator, found) for part, found in parts.items()}
    train_reflector(
        reflector,
        real["train"] + imagined["train"],
        config,
        seed=run.recipe.seed,
        checkpoint=run.checkpoint(name),
        metrics=run.metrics(name),
    )
    shortage = set_calibration(reflector, real["calibration"], imagined["calibration"], config.calibration)
    measured = measured_errors(
        score_sequences(reflector, real["held-out"]), score_sequences(reflector, imagined["held-out"]), reflector.threshold.item()
    )
    if measured["threshold"] > 1:
        measured["never_stops"] = {"message": why_never(shortage), **(shortage or {})}
        say(f"{name}: {why_never(shortage)}")
    if shortage:
        more = f"{shortage['needed'] - shortage['failed']} more, by explore.episodes or calibrate.calibration_share"
        say(f"{name}: for a stop it takes {more}, or a larger calibrate.calibration.false_termination")
    write_json(folder / "errors.json", measured)
    save_model(folder, "reflector", reflector, provenance, cards.reflector(reflector, measured))


def _estimate_policy(recipe, found) -> None:
    """What the policy takes in memory at the recipe's batches."""
    sft, updates = recipe.sft, recipe.post_train.updates
    episodes = updates.starts * updates.group
    decisions = episodes * -(-recipe.world_env.horizon // recipe.env.chunk)
    passed = min(updates.microbatch or updates.minibatch, decisions)
    say(f"policy: {found.parameters:,} parameters, of which {found.learning:,} learn")
    say(f"policy, memory: weights {_size(found.weights)}, gradients and optimizer {_size(found.learning_state)}")
    effective = sft.batch * sft.accumulate * distributed.count()
    say(f"fine-tuning: {sft.batch} samples a pass, effective batch {effective}; activations {_size(sft.batch * found.row)}")
    say(
        f"an update: {episodes} imagined episodes, {decisions} decisions at most, {passed} a pass, batch {min(updates.minibatch, decisions)}; "
        f"activations {_size(passed * found.row)}, kept observations {_size(decisions * found.kept)}"
    )


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def estimate(run: Run) -> None:
    """For a dry run: what would be built, and what it would cost at most in environment steps."""
    from .policies.footprint import Footprint
    from .reflector.compact import Reflector
    from .simulator.unet import VideoUNet

    recipe, tasks = run.recipe, len(run.recipe.env.tasks)
    sizes = {
        "simulator (video)": VideoUNet(recipe.simulator.unet, recipe.simulator.chunk, len(recipe.env.state_names)),
        "reflector": Reflector(recipe.reflector),
    }
    _estimate_policy(recipe, Footprint.of(new_policy(recipe.policy, weights=False).trainable()))
    for name, model in sizes.items():
        say(f"{name}: {sum(p.numel() for p in model.parameters()):,} parameters")
    config = recipe.post_train
    real = {
        "demonstrations": recipe.ingest.demos_per_task,
        "exploration": recipe.explore.episodes + recipe.explore.held_out,
        "probes": (config.rounds - 1) * config.probe,
        "acceptance": (4 if config.control else 3) * config.validation,
    }
    for name, episodes in real.items():
        say(f"{name}: {episodes * tasks} real episodes, at most {episodes * tasks * recipe.env.horizon:,} environment steps")
    frames = sum(real.values()) * tasks * (recipe.env.chunks * recipe.env.chunk + 1)
    say(f"pictures in memory: at most {frames * recipe.env.resolution**2 * 3 / 2**30:.2f} GiB")
