"""`worldenv bench RECIPE --update`: one post-training update of the recipe's policy, in an untrained world, on this machine.

8 imagined episodes of 64 chunks, whatever the recipe's horizon: what they show is noise and what is learned from them nothing, but the work is
that of a real update. Needs nothing but the recipe and, for a VLA, its checkpoint.
"""

import time

import numpy as np

from .bench import matrix_peak
from .pipeline import Run
from .progress import say

EPISODES, CHUNKS = 8, 64


def bench_update(run: Run) -> None:
    """Seconds of imagining and of learning, peak memory, and the share of the matrix peak, in the policy's type, that re-scoring reaches."""
    import torch

    from .memory import peak_memory_gb
    from .models import new_policy
    from .policies.lora import AdaptedPolicy
    from .policies.sft import ChunkSamples
    from .post_train.loop import run_updates

    recipe, rng = run.recipe, np.random.default_rng(0)
    torch.manual_seed(0)
    policy = new_policy(recipe.policy, run.device)
    policy.adopt(rng.standard_normal((64, len(recipe.env.state_names))), rng.uniform(-1, 1, (64, len(recipe.env.action_names))))
    policy = AdaptedPolicy(policy, recipe.post_train.lora).to(run.device)
    world, pool, episode = _untrained_world(run, rng)
    settings = recipe.post_train.updates.model_copy(update={"updates": 1, "starts": 1, "group": EPISODES, "middle": 0.0, "hold": 0.0})
    successes = ChunkSamples([episode], policy.config.cameras, policy.config.chunk)
    task = next(iter(recipe.env.tasks))
    measured = run_updates(policy, world, pool, [task], None, successes, {task: 0.0}, dict.fromkeys, settings, recipe.post_train.filter, seed=0)
    (figures,) = measured["history"]
    imagining = figures["control_steps"] / figures["steps_per_second"]
    rows = min(settings.microbatch or settings.minibatch, EPISODES * CHUNKS)
    passes, flops = _pass_of(policy, pool.first[task][0], rows)
    dtype = getattr(torch, getattr(policy.config, "dtype", "float32"))
    peak = matrix_peak(run.device, dtype)
    cuda = run.device.type == "cuda"
    result = {
        "parameters": sum(p.numel() for p in policy.parameters()),
        "learning": sum(p.numel() for p in policy.parameters() if p.requires_grad),
        "episodes": EPISODES,
        "chunks": CHUNKS,
        "seconds": figures["seconds"],
        "imagining_seconds": imagining,
        "learning_seconds": figures["seconds"] - imagining,
        "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30 if cuda else peak_memory_gb(),
        "pass_rows": rows,
        "pass_seconds": passes,
        "pass_gflops": flops / passes / 1e9,
        "matrix_peak_gflops": peak / 1e9,
        "share_of_peak": flops / passes / peak,
        "dtype": str(dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads",
    }
    run.write_result("bench-update.json", result)
    say(
        f"an update of {EPISODES} episodes x {CHUNKS} chunks, {result['parameters']:,} parameters ({result['learning']:,} learn): "
        f"{figures['seconds']:.1f} s, of which imagining {imagining:.1f}; peak {result['peak_memory_gib']:.2f} GiB"
    )
    say(f"scoring {rows} decisions again, and back: {passes:.2f} s, {100 * result['share_of_peak']:.0f} % of the matrix peak in {result['dtype']}")


def _untrained_world(run: Run, rng: np.random.Generator):
    """(imagined environment, where it begins, an episode to anchor on), all of noise, in the recipe's sizes."""
    from .data.dataset import Episode
    from .post_train.loop import StartPool
    from .reflector.compact import Reflector
    from .simulator.simulator import History, Simulator
    from .world_env import WorldEnv

    recipe, size, steps = run.recipe, run.recipe.env.resolution, CHUNKS * run.recipe.env.chunk
    states, actions, task = len(recipe.env.state_names), len(recipe.env.action_names), next(iter(recipe.env.tasks))
    camera = {"intrinsics": [[size, 0, size / 2], [0, size, size / 2], [0, 0, 1]], "extrinsics": np.eye(4).tolist()}
    unit = {"action_unit": (0.01 * np.eye(states, actions)).tolist(), "opening": (0.0,) * states}
    simulator = Simulator(type(recipe.simulator).model_validate(recipe.simulator.model_dump() | camera | unit)).to(run.device)
    reflector = Reflector(recipe.reflector).to(run.device)
    words = recipe.env.tasks[task]
    frames = {name: rng.integers(0, 256, (9, size, size, 3), dtype=np.uint8) for name in recipe.env.cameras}
    played = rng.uniform(-1, 1, (8, actions)).astype(np.float32)
    episode = Episode(frames, np.ones((9, states), np.float32), played, np.arange(9) > 6, words, {"task": task})
    first = History(frames[recipe.simulator.camera][:1], episode.states[:1], played[:0], words)
    config = recipe.world_env.model_copy(update={"rows": EPISODES, "horizon": steps, "terminate": False})
    return WorldEnv(simulator, reflector, config, [first]), StartPool(first={task: [first]}), episode


def _pass_of(policy, history, rows: int) -> tuple[float, float]:
    """(seconds, FLOPs) of scoring `rows` decisions again, forward and backward: the median of three."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from .policies.observation import Observation

    repeated = np.repeat(history.frames[-1:], rows, 0)
    obs = Observation({camera: repeated for camera in policy.config.cameras}, np.repeat(history.states[-1:], rows, 0), [history.instruction] * rows)
    act = policy.act(obs, explore=True)

    def once() -> None:
        policy.density(act.encoded if policy.reusable else policy.encode(obs), act.trace).log_prob(act.trace["sampled"]).mean().backward()
        policy.zero_grad(set_to_none=True)
        if policy.device.type == "cuda":
            torch.cuda.synchronize()

    with FlopCounterMode(display=False) as counter:
        once()
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        once()
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds)), counter.get_total_flops()
