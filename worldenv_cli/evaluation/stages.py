"""The evaluation as a stage: all arms from the same starts, in the simulator and in the real environment, into eval.json, a report and videos."""

import numpy as np

from ..artifacts import package_versions
from ..atomic import read_json, write_json
from ..data.dataset import read_description
from ..data.explore import of_split
from ..envs.starts import starts
from ..pipeline import Run
from ..post_train.lineage import all_real_data, models_of, read_gate, read_updates, real_data
from ..post_train.rounds import imagined_success
from ..post_train.starts import reset_frames, start_pool
from ..progress import say
from ..provenance import write_provenance
from ..recipe import resolved_yaml
from ..rollout import play
from ..simulator.simulator import history_until
from ..stages import needs
from ..world_env import WorldEnv
from .protocol import STOP_COUNTS, arm, by_task, compare, outcomes, stopping
from .report import publish
from .video import contact_sheet, save_animation, save_video, side_by_side, stacked


def arms(run: Run) -> dict[str, tuple[str, list[str]]]:
    """{name: (policy artifact, the real data that it has cost)}."""
    config = run.recipe.post_train
    everything = all_real_data(run, "tuned")
    found = {
        "SFT": ("sft", ["demonstrations"]),
        "filtered SFT": ("rival", everything),
        "post-trained": ("post-trained", everything),
    }
    if config.control:
        found["control (zero advantages)"] = ("control", all_real_data(run, "control"))
    if run.recipe.eval.offline:
        found["post-trained offline, 1 round"] = ("rounds/1/tuned", real_data(run, 1))
    return found


def evaluate_imagined(run: Run) -> None:
    """Every arm in the last round's simulator and reflector, from the first frames of starts that it plays in reality too.

    From other starts the two would differ by which starts were drawn: a tenth and more with 50 of a task. Where post-training takes no resets
    (`post_train.resets=0`) none are taken here: arms begin at the first frames of held-out exploration, and no environment is opened.
    """
    config, (simulator, reflector) = run.recipe, models_of(run.recipe.post_train.rounds)
    policies = {name: policy for name, (policy, _) in arms(run).items()}
    logged = not config.post_train.resets

    def make(folder, provenance):
        env_model = run.model(simulator, "simulator"), run.model(reflector, "reflector")
        count = min(config.eval.imagined_starts, config.eval.starts)
        episodes, frames = [], []
        if logged:
            episodes = of_split([episode for episode in run.episodes("exploration") if "split" in episode.info], "held-out")
        else:
            frames = reset_frames(run.env(), starts("evaluation", config.env.tasks, count, offset=config.eval.offset))
        pool = start_pool(episodes, frames, env_model[0].config.camera, env_model[0].config.chunk, config.seed)
        env = WorldEnv(*env_model, config.world_env, [h for found in pool.first.values() for h in found])
        tasks = list(config.env.tasks)
        found = {name: imagined_success(run.model(path, "policy"), env, pool, tasks, count, config.seed) for name, path in policies.items()}
        write_json(folder / "imagined.json", {"n": count, "arms": found} | ({"starts": "held-out exploration"} if logged else {}))
        write_provenance(folder, provenance)
        for name, values in found.items():
            say(f"imagined success of {name}: " + ", ".join(f"{task} {value:.2f}" for task, value in values.items()))

    settings = run.settings("eval", "world_env", "env") | ({"starts": "held-out exploration"} if logged else {})
    inputs = needs(simulator, reflector, *policies.values(), *(["exploration"] if logged else []))
    run.artifact("eval/imagined", settings, inputs, make)


def evaluate_real(run: Run) -> None:
    """Every arm in the real environment; then the report."""
    for name, (policy, _) in arms(run).items():
        _play_arm(run, name, policy)
    if not run.dry_run:
        report = _report(run)
        run.keep_own_readme()
        publish(run.folder, report)


def _play_arm(run: Run, name: str, policy: str) -> None:
    """One arm's outcomes from the evaluation's starts. SFT and the post-trained policy play some of them to the horizon, to compare stops."""
    recipe = run.recipe
    stops = min(recipe.eval.stops, recipe.eval.starts) * len(recipe.env.tasks) if name in ("SFT", "post-trained") else 0
    reflector = models_of(recipe.post_train.rounds)[1]
    slug = policy.replace("/", "-")

    def make(folder, provenance):
        chosen = starts("evaluation", recipe.env.tasks, recipe.eval.starts, offset=recipe.eval.offset)
        player, keep, told = run.model(policy, "policy"), run.kept(f"eval/{slug}"), f"evaluation: {name}"
        to_the_end = []
        if stops:
            to_the_end = play(run.env(until_horizon=True), chosen[:stops], player, description=f"{told}, to the horizon", keep=keep / "horizon")
        others = play(run.env(every_frame=False), chosen[stops:], player, description=told, keep=keep)
        result = {"tasks": [task for task, _ in chosen], "outcomes": outcomes(to_the_end + others).tolist(), "versions": run.env_versions}
        if stops:
            result |= stopping(to_the_end, run.model(reflector, "reflector"))
            _film(run, folder, to_the_end)
        write_json(folder / "outcomes.json", result)
        write_provenance(folder, provenance)

    protocol = run.settings("env", "eval.starts", "eval.offset", *(["eval.stops"] if stops else []))
    run.artifact(f"eval/{slug}", protocol, needs(policy, *([reflector] if stops else [])), make)


def _film(run: Run, folder, episodes) -> None:
    """A real episode of every task beside the simulator's replay of its actions; all of them in one small animation; a sheet of stills."""
    simulator = run.model(models_of(run.recipe.post_train.rounds)[0], "simulator")
    camera, rows, columns = simulator.config.camera, [], []
    for task in run.recipe.env.tasks:
        episode = next(e for e in episodes if e.info["task"] == task)
        imagined, _ = simulator.replay([history_until(episode, camera, 0)], [episode.actions])[0]
        rows += [(f"{task} real", episode.frames[camera]), (f"{task} imagined", imagined)]
        columns.append((task, episode.frames[camera], imagined))
        frames = side_by_side(episode.frames[camera], imagined, ("real", "imagined"), bool(episode.success[-1]))
        save_video(folder / f"{task}.mp4", frames, run.recipe.env.control_hz / 2)
    contact_sheet(folder / "stills.png", rows)
    save_animation(folder / "rollouts.gif", stacked(columns), run.recipe.env.control_hz / 2)


def _read(run: Run, name: str) -> dict:
    return read_json(run.path(name))


def _shown(run: Run, name: str) -> bool:
    """Whether the report may show an artifact that it can do without: it is there, and was made from what the others were made from."""
    conflict = run.conflict(name) if run.path(name).is_dir() else None
    if conflict:
        say(f"not in the report: {run.path(conflict.name)} {conflict.message}")
    return run.path(name).is_dir() and conflict is None


def _report(run: Run) -> dict:
    recipe, config = run.recipe, run.recipe.post_train
    costs = {}
    for dataset in dict.fromkeys(dataset for _, data in arms(run).values() for dataset in data):
        costs[dataset] = read_description(run.path(dataset))["environment_steps"]
    found, rows, tasks, versions = {}, [], [], package_versions()
    for name, (policy, data) in arms(run).items():
        result = _read(run, f"eval/{policy.replace('/', '-')}/outcomes.json")
        tasks = result["tasks"]
        versions |= result.get("versions", {})  # of the environment, which may have an interpreter of its own
        extra = {key: result[key] for key in STOP_COUNTS if key in result}
        found[name] = arm(name, tasks, np.array(result["outcomes"]), sum(costs[dataset] for dataset in data), **extra)
        rows.append(found[name])
    pairs = [
        ("SFT", "post-trained"),
        ("filtered SFT", "post-trained"),
        ("SFT", "filtered SFT"),
        ("control (zero advantages)", "post-trained"),
    ]
    pairs += [("SFT", "post-trained offline, 1 round")]
    imagined = _read(run, "eval/imagined/imagined.json") if _shown(run, "eval/imagined") else {"arms": {}, "n": 0}
    times = run.times
    rounds = [read_gate(run, n) | read_updates(run, n) for n in range(1, config.rounds + 1)]
    accepted = _read(run, "post-trained/acceptance.json")
    last_simulator, last_reflector = models_of(config.rounds)
    errors = _read(run, f"{last_reflector}/errors.json")
    errors["per_task"] += rounds[-1]["errors"]  # of the last gate: the open tasks together
    return {
        "name": recipe.name,
        "recipe": resolved_yaml(recipe),
        "versions": versions,
        "wall_seconds": {stage: values["seconds"] for stage, values in times.items()},
        "peak_memory_gb": max((values["peak_memory_gb"] for values in times.values()), default=None),
        "protocol": _protocol(recipe),
        "tasks": tasks,  # of every outcome below
        "arms": rows,
        "comparisons": [compare(found[a], found[b], tasks) for a, b in pairs if a in found and b in found],
        "trust_table": [{"round": r["round"], **row} for r in rounds for row in r["table"] if row["n"]],
        "imagined_vs_real": _agreement(imagined, found, tasks),
        "fidelity": _read(run, f"{last_simulator}/fidelity.json"),
        "compared": _read(run, "comparison/comparison.json") if _shown(run, "comparison") else {},
        "reflector": errors,
        "updates": [{"round": r["round"], **update} for r in rounds for update in r["history"]],
        "rounds": [_round(run, r, accepted if r["round"] == config.rounds else None) for r in rounds],
        "videos": [
            {"path": f"eval/{policy}/{task}.mp4", "caption": f"{task}, {name}: real | the simulator's open-loop replay of the same actions"}
            for policy, name in (("sft", "SFT"), ("post-trained", "post-trained"))
            for task in recipe.env.tasks
            if run.path(f"eval/{policy}/{task}.mp4").is_file()
        ],
        "cost_by_dataset": costs,
    }


def _agreement(imagined: dict, found: dict[str, dict], tasks: list[str]) -> list[dict]:
    """Imagined and real success of every arm and task, both from the starts that were imagined: the first ones. Where logged frames were imagined,
    the real success of all starts."""
    rows, same = [], len(tasks) if "starts" in imagined else imagined["n"] * len(set(tasks))
    for name, values in imagined["arms"].items():
        real = by_task(tasks[:same], np.array(found[name]["outcomes"])[:same])
        for task, value in values.items():
            counts = real[task]
            row = {"checkpoint": name, "task": task, "imagined": value, "real": counts["successes"] / counts["n"], "n": counts["n"]}
            rows.append(row | ({"starts": imagined["starts"]} if "starts" in imagined else {}))
    return rows


def _protocol(recipe) -> dict:
    starts = f"{recipe.eval.starts} for each task, the same for every policy, never used before"
    return recipe.env.protocol | {"starts": starts, "training seed": recipe.seed}


def _round(run: Run, result: dict, accepted: dict | None) -> dict:
    number, shown = result["round"], {}
    if run.path(f"rounds/{number}/probe").is_dir():
        episodes = run.episodes(f"rounds/{number}/probe")
        for task in run.recipe.env.tasks:
            mine = [bool(e.success[-1]) for e in episodes if e.info["task"] == task]
            shown[task] = {"successes": sum(mine), "n": len(mine)}
    row = {"round": number, "updates": result["updates"], "stopped_because": result["stopped_because"], "probe": shown}
    if accepted and accepted["counts"]:
        row["acceptance"] = {
            task: {name: [counts[task]["successes"], counts[task]["n"]] for name, counts in accepted["counts"].items()} | {"used": used}
            for task, used in accepted["choice"].items()
        }
    return row
