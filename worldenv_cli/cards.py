"""Cards of artifacts: what each one is, from what it was made and what was measured, in the words of the one who has to use it."""

from collections.abc import Sequence

import numpy as np

from .data.dataset import Episode
from .evaluation.statistics import wilson

ORIGIN = "Settings, seeds, versions and the hashes of what it was made from: `provenance.json`."


def dataset(episodes: Sequence[Episode], description: dict) -> str:
    tasks = dict.fromkeys(episode.info["task"] for episode in episodes)
    rows = [_counts(task, [episode for episode in episodes if episode.info["task"] == task]) for task in tasks]
    return "\n".join(
        [
            f"# {description['source']}",
            "",
            f"LeRobotDataset v3.0, {description['control_hz']} Hz control, {len(episodes)} episodes, "
            f"{description['environment_steps']} environment steps.",
            f"Actions: {description['action']['meaning']}.",
            "",
            "| task | instruction | episodes | successes | mean control steps |",
            "|---|---|---|---|---|",
            *rows,
            "",
            *_reading(),
        ]
    )


def _counts(task: str, episodes: Sequence[Episode]) -> str:
    successes, unknown = (sum(episode.outcome == kind for episode in episodes) for kind in ("success", "unknown"))
    length = np.mean([len(episode.actions) for episode in episodes])
    return f"| {task} | {episodes[0].instruction} | {len(episodes)} | {successes}{f' ({unknown} unknown)' if unknown else ''} | {length:.1f} |"


def ingested(description: dict, episodes: Sequence[tuple[str, int]]) -> str:
    """episodes: (instruction, actions) of each."""
    lengths: dict[str, list[int]] = {}
    scale = "recorded = offset + unit * action, see meta/worldenv.json" if "offset" in description["action"] else "as they were recorded"
    for task, length in episodes:
        lengths.setdefault(task, []).append(length)
    return "\n".join(
        [
            f"# Demonstrations from {', '.join(sorted({source['format'] for source in description['sources']}))}",
            "",
            f"LeRobotDataset v3.0, {description['control_hz']} Hz control, {len(episodes)} episodes.",
            *(f"Outcomes of {found['source']}: {found['episodes']} ({found['known']})." for found in description["outcome"]),
            f"Actions in [-1, 1]: {description['action']['meaning']}; {scale}.",
            *(f"Camera {name}: {found['orientation'] or 'orientation unknown'}." for name, found in description["cameras"].items()),
            "",
            "| instruction | episodes | mean control steps |",
            "|---|---|---|",
            *(f"| {task} | {len(found)} | {np.mean(found):.1f} |" for task, found in lengths.items()),
            "",
            *_reading(),
        ]
    )


def _reading() -> list[str]:
    """How to read the episodes of a dataset."""
    lines = [
        "from worldenv_cli.data.dataset import read_dataset",
        "from worldenv_cli.hub import resolve",
        "",
        'episodes = read_dataset(resolve("owner/name", "dataset"))  # or a folder; LeRobotDataset("owner/name") opens it too',
        "print(len(episodes), episodes[0].instruction, episodes[0].actions.shape)",
    ]
    return ["```python", *lines, "```"]


def policy(what: str, episodes: Sequence[Episode], model) -> str:
    parameters = sum(p.numel() for p in model.parameters())
    base = model.base().config
    checkpoint = (
        [f"Adapters, heads and statistics for the checkpoint `{base.model}`, which is loaded with them.", ""]
        if "model" in base.model_fields_set
        else []
    )
    return "\n".join(
        [
            f"# Policy, {what}",
            "",
            *checkpoint,
            f"{parameters:,} parameters; image + instruction + proprioception -> a chunk of {base.chunk} actions with {model.base().density_is}.",
            f"Trained on {len(episodes)} episodes: {', '.join(sorted({episode.instruction for episode in episodes}))}.",
            "",
            *_acting(next((episode.instruction for episode in episodes), "...")),
        ]
    )


def chosen_policy(what: str, model, choice: dict[str, str], counts: dict[str, dict[str, dict]]) -> str:
    """choice: {task: member}; counts: {candidate: {task: successes with interval}} of the acceptance test, empty where there was none."""
    members = {name: sum(p.numel() for p in member.parameters()) for name, member in model.members.items()}
    return "\n".join(
        [
            f"# Policy, {what}",
            "",
            "Real episodes chose a policy for each task: "
            + ", ".join(f"{name} ({size:,} parameters)" for name, size in members.items())
            + f". Another wording is played as the nearest instruction below; one that is near none {_unknown(model.default)}.",
            "",
            f"| task | instruction | policy |{''.join(f' {name}: successes on validation starts, 95 % |' for name in counts)}",
            f"|---|---|---|{'---|' * len(counts)}",
            *(
                f"| {task} | {instruction} | {choice[task]} |{''.join(f' {_interval(found[task])} |' for found in counts.values())}"
                for task, instruction in zip(choice, model.choice)
            ),
            "",
            *_acting(next(iter(model.choice))),
        ]
    )


def _unknown(default: str | None) -> str:
    return "is refused" if default is None else f"is played by {default}"


def _acting(instruction: str) -> list[str]:
    """How to load a policy and ask it for actions."""
    lines = [
        "import numpy as np",
        "from worldenv_cli.policies.observation import Observation",
        "from worldenv_cli.policies.policy import Policy",
        "",
        'policy = Policy.from_pretrained("owner/name")  # or a folder',
        "size, state = policy.config.resolution, np.zeros((1, policy.config.state_size), np.float32)  # proprioception, in its units",
        "images = {camera: np.zeros((1, size, size, 3), np.uint8) for camera in policy.config.cameras}  # RGB",
        f"chunk = policy.act(Observation(images, state, [{instruction!r}]), explore=False).chunk  # (1, steps, action numbers) in [-1, 1]",
    ]
    return ["```python", *lines, "```", "", ORIGIN]


def simulator(model, measured: dict) -> str:
    horizon = measured["horizon"]
    rows = [
        f"| {chunk} | {a:.1f} | {b:.1f} | {c:.1f} |"
        for chunk, a, b, c in zip(horizon, measured["simulator"]["psnr"], measured["copy"]["psnr"], measured["shuffled_actions"]["psnr"])
    ]
    return "\n".join(
        [
            "# World simulator",
            "",
            f"{sum(p.numel() for p in model.parameters()):,} parameters, {model.config.resolution} pixels, chunks of {model.config.chunk} frames,"
            f" objective: {model.config.unet.objective}.",
            f"Open loop on {measured['n_episodes']} held-out episodes, PSNR in dB:",
            "",
            "| chunk | simulator | copy of the first frame | with shuffled actions |",
            "|---|---|---|---|",
            *rows,
            "",
            *_loading("simulator.simulator", "Simulator"),
            "",
            "It knows the scenes and motions of its data; what a policy does elsewhere it may imagine wrongly.",
        ]
    )


def reflector(model, measured: dict) -> str:
    rows = [
        f"| {kind} | {m['auc']:.3f} ({m['auc_low']:.3f} to {m['auc_high']:.3f}) | {_share(m['false_termination'])} of {m['n_failed']} | "
        f"{_share(m['missed_success'])} of {m['n_episodes'] - m['n_failed']} | {m['ece']:.3f} |"
        for kind, m in (("real", measured["real"]), ("imagined", measured["imagined"]))
    ]
    return "\n".join(
        [
            "# Instant reflector",
            "",
            f"{sum(p.numel() for p in model.parameters()):,} parameters; instruction + frames so far -> P(success by frame). "
            + (f"Stops at {measured['threshold']:.3f}." if "never_stops" not in measured else f"{measured['never_stops']['message']}."),
            "",
            "| held-out frames | AUC (95 %) | failed episodes stopped | successes missed | calibration error |",
            "|---|---|---|---|---|",
            *rows,
            "",
            *_loading("reflector.compact", "Reflector"),
            "",
            "Its errors were measured on the policies that made its data; a policy that was trained against it may find others.",
        ]
    )


def gate(number: int, table: Sequence[dict]) -> str:
    shown = ("real_success", "reflector_on_real", "reflector_on_imagined", "auc_imagined")
    rows = ["| " + " | ".join([row["task"], str(row["n"]), *(_share(row.get(key)) for key in shown), row["reason"]]) + " |" for row in table]
    return "\n".join(
        [
            f"# Gate of round {number}: which tasks both models can be trusted with",
            "",
            "| task | unseen episodes | true success | reflector on real frames | on imagined frames | AUC, imagined | verdict |",
            "|---|---|---|---|---|---|---|",
            *rows,
        ]
    )


def _loading(module: str, name: str) -> list[str]:
    """How to load what the card is of; and where it says what it was made from."""
    lines = [f"from worldenv_cli.{module} import {name}", f'loaded = {name}.from_pretrained("owner/name")  # or a folder']
    return ["```python", *lines, "```", "", ORIGIN]


def run(report: dict) -> str:
    """Of a whole run: what was compared, what came out with its intervals, and how to load it. `report` is eval.json."""
    tasks = list(report["arms"][0]["tasks"])
    arms = [
        f"| {arm['name']} | {' | '.join(str(arm['tasks'][task]['successes']) for task in tasks)} | {_interval(arm['pooled'])} | "
        f"{arm['real_environment_steps']:,} |"
        for arm in report["arms"]
    ]
    differences = [
        f"| {found['b']} − {found['a']} | {100 * d['estimate']:+.1f} [{100 * d['low']:+.1f}, {100 * d['high']:+.1f}] | {found['mcnemar_p']:.2g} |"
        for found, d in ((found, found["difference"]) for found in report["comparisons"])
    ]
    return "\n".join(
        [
            f"# {report['name']}: a policy post-trained in a learned world",
            "",
            "A run of worldenv: datasets, policies, world simulators and reflectors in folders of their own, `recipe.yaml` with every setting,",
            "`eval.json` with the whole protocol and every outcome, `report.html`.",
            "",
            f"Successes in {report['protocol'].get('environment', 'the real environment')}, from starts that nothing else has seen:",
            "",
            f"| policy | {' | '.join(tasks)} | all, 95 % (Wilson) | real environment steps |",
            f"|{'---|' * (len(tasks) + 3)}",
            *arms,
            "",
            "| paired difference, points | 95 % (Newcombe) | McNemar p |",
            "|---|---|---|",
            *differences,
            "",
            "```python",
            "import numpy as np",
            "from worldenv_cli.models import load_model",
            "from worldenv_cli.policies.observation import Observation",
            "",
            'policy = load_model("owner/name/post-trained", "policy")',
            'simulator, reflector = load_model("owner/name/simulator", "simulator"), load_model("owner/name/reflector", "reflector")',
            "size, state = policy.config.resolution, np.zeros((1, policy.config.state_size), np.float32)",
            "images = {camera: np.zeros((1, size, size, 3), np.uint8) for camera in policy.config.cameras}",
            "chunk = policy.act(Observation(images, state, [next(iter(policy.choice))]), explore=False).chunk  # (1, steps, action numbers)",
            "```",
            "",
            "Limits: simulated tasks and one policy architecture; the models are trusted only on the tasks that their gate opened.",
        ]
    )


def _interval(counts: dict) -> str:
    found = wilson(counts["successes"], counts["n"])
    return f"{counts['successes']} of {counts['n']} [{100 * found.low:.1f}, {100 * found.high:.1f}] %"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
