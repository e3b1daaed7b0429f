"""One-step regression against few-step flow matching: one network, one proprioception model, the same episodes, the same training time.

A step of flow matching costs more where a sample's context is made by the simulator itself (several passes instead of one), so it gets fewer.
"""

import time
from collections.abc import Sequence

import numpy as np
import torch

from ..data.dataset import Episode
from ..progress import say
from .fidelity import fidelity
from .simulator import Simulator, SimulatorState, history_until
from .train import SimulateConfig, VideoTraining, train_video

PILOT_STEPS = 6


def compare_objectives(simulator: Simulator, episodes: Sequence[Episode], held_out: Sequence[Episode], config: SimulateConfig, policy, seed: int):
    """Train the video half of two new simulators, `config.video.steps` of regression and as much time of flow matching.

    `simulator` lends its settings and its proprioception model. Returns one dict for each objective: {"objective", "steps", "seconds" of training,
    "seconds_a_chunk" of imagining for all held-out episodes at once, "psnr", "ssim", "perceptual": by chunk, as `fidelity` gives them}.
    """
    made = {objective: _untrained(simulator, objective, seed) for objective in ("regression", "flow")}
    cost = _seconds_a_step(made, episodes, config)
    results = []
    for objective, one in made.items():
        steps = max(round(config.video.steps * cost["regression"] / cost[objective]), 1)
        began = time.monotonic()
        train_video(one, episodes, config.model_copy(update={"video": config.video.model_copy(update={"steps": steps})}), seed=seed)
        seconds = time.monotonic() - began
        torch.manual_seed(seed)
        measured = fidelity(one.eval(), held_out, policy)["simulator"]
        state = one.start([history_until(episode, one.config.camera, 0) for episode in held_out])
        results.append({"objective": objective, "steps": steps, "seconds": seconds, "seconds_a_chunk": seconds_a_chunk(one, state), **measured})
        say(f"{objective}: {steps} steps in {seconds:.0f} s, {measured['psnr'][0]:.1f} dB at the first chunk, {measured['psnr'][-1]:.1f} at the last")
    return results


def _untrained(simulator: Simulator, objective: str, seed: int) -> Simulator:
    torch.manual_seed(seed)
    config = simulator.config
    new = Simulator(config.model_copy(update={"unet": config.unet.model_copy(update={"objective": objective})})).to(simulator.device)
    new.proprioception.load_state_dict(simulator.proprioception.state_dict())
    return new


def _seconds_a_step(made: dict[str, Simulator], episodes: Sequence[Episode], config: SimulateConfig) -> dict[str, float]:
    """Mean over a training of loss and gradient, by a few steps of each of its two phases: of all objectives in turn, machines have their moods."""
    trainings = {objective: VideoTraining(one, episodes[:20], config, 0) for objective, one in made.items()}
    begin = next(iter(trainings.values())).begin
    times: dict[tuple[str, int], list[float]] = {}
    for number in range(PILOT_STEPS):
        for objective, training in trainings.items():
            for step in (0, begin):
                began = time.monotonic()
                training.loss(step, np.random.default_rng(number))[0].backward()
                times.setdefault((objective, step), []).append(time.monotonic() - began)
    for one in made.values():
        one.zero_grad()
    shares = {0: begin / config.video.steps, begin: 1 - begin / config.video.steps}
    return {objective: sum(share * float(np.median(times[objective, step])) for step, share in shares.items()) for objective in made}


def seconds_a_chunk(simulator: Simulator, state: SimulatorState) -> float:
    """Of imagining a chunk of all rows at once: the median of three."""
    chunk = np.zeros((len(state.state), simulator.config.chunk, np.shape(simulator.config.action_unit)[1]), np.float32)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        simulator.step(state, chunk)
        times.append(time.perf_counter() - began)
    return float(np.median(times))
