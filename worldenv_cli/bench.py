"""`worldenv bench`: imagined control steps per second against the real environment's, on one machine in one run."""

import time

import numpy as np

from .envs.starts import starts
from .pipeline import Run
from .progress import say

REPEATS = 5


def bench(run: Run) -> None:
    """Both environments under the same policy, in turn, for some seconds each; and the share of the matrix peak that the simulator reaches."""
    if run.dry_run:
        return
    import torch

    from .post_train.rollouts import imagine
    from .post_train.starts import reset_frames, start_pool
    from .rollout import play
    from .world_env import WorldEnv

    recipe = run.recipe
    policy, simulator, reflector = run.model("sft", "policy"), run.model("simulator", "simulator"), run.model("reflector", "reflector")
    env = run.env(until_horizon=True, every_frame=True)
    chosen = starts("development", recipe.env.tasks, max(2 * env.num_envs // len(recipe.env.tasks), 1))
    play(env, chosen, policy, description="warm-up")  # instances of tasks are made when first needed
    pool = start_pool([], reset_frames(env, chosen), simulator.config.camera, simulator.config.chunk, 0)
    histories = [history for found in pool.first.values() for history in found]
    world = WorldEnv(simulator, reflector, recipe.world_env.model_copy(update={"terminate": False}), histories)
    histories = [histories[i % len(histories)] for i in range(world.num_envs)]
    imagine(world, policy, histories, 1, None)  # takes the memory that it will need
    reals, imagineds = [], []
    for number in range(1, REPEATS + 1):  # in turn: what else the machine does at times must not fall on one of them
        began = time.monotonic()
        episodes = play(env, chosen, policy, description=f"real environment, {number} of {REPEATS}")
        reals.append(sum(len(episode.actions) for episode in episodes) / (time.monotonic() - began))
        began = time.monotonic()
        imagineds.append(imagine(world, policy, histories, 1, None).control_steps / (time.monotonic() - began))
    real, imagined = float(np.median(reals)), float(np.median(imagineds))

    peak, reached = matrix_peak(run.device), simulator_flops(simulator, world.num_envs)
    result = {
        "real_steps_per_second": real,
        "real_workers": len(env.workers),
        "imagined_steps_per_second": imagined,
        "imagined_rows": world.num_envs,
        "ratio": imagined / real,
        "measured": {"real": reals, "imagined": imagineds},
        "device": torch.cuda.get_device_name() if run.device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "matrix_peak_gflops": peak / 1e9,
        "simulator_gflops": reached / 1e9,
        "share_of_peak": reached / peak,
    }
    run.write_result("bench.json", result)
    say(
        f"medians of {REPEATS}: real {real:.0f} control steps/s with rendering ({len(env.workers)} workers), {_span(reals)}; "
        f"imagined {imagined:.0f} in {world.num_envs} rows, {_span(imagineds)}: {imagined / real:.1f}x"
    )
    say(f"simulator: {reached / 1e9:.1f} of {peak / 1e9:.1f} GFLOP/s float32, {100 * reached / peak:.0f} % of the matrix peak")


def _span(values: list[float]) -> str:
    return f"{min(values):.0f} to {max(values):.0f}"


def matrix_peak(device, dtype=None, seconds: float = 1.0) -> float:
    """FLOP/s of a square matrix product on a torch device, float32 unless another type is named, the best of several."""
    import torch

    size = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in "ab")
    best, began = float("inf"), time.monotonic()
    while time.monotonic() - began < seconds:
        start = time.perf_counter()
        (a @ b)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def simulator_flops(simulator, rows: int) -> float:
    """FLOP/s reached by imagining chunks: operations as torch counts them, over the time that they take."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from .simulator.compare import seconds_a_chunk
    from .simulator.simulator import History

    config = simulator.config
    state_size, action_size = np.shape(config.action_unit)
    frame = np.zeros((1, config.resolution, config.resolution, 3), np.uint8)
    history = History(frame, np.zeros((1, state_size), np.float32), np.zeros((0, action_size), np.float32), "")
    state, chunk = simulator.start([history] * rows), np.zeros((rows, config.chunk, action_size), np.float32)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        simulator.step(state, chunk)
    return counter.get_total_flops() / seconds_a_chunk(simulator, state)
