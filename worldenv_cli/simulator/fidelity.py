"""How faithful the simulator is, open loop on held-out episodes, by horizon; and whether it listens to the actions at all."""

import importlib.util
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from ..data.dataset import Episode
from ..packing import normalised, planes
from .simulator import Simulator, history_until


def fidelity(simulator: Simulator, episodes: Sequence[Episode], policy, seed: int = 0) -> dict:
    """{"horizon": chunk numbers, "simulator" | "copy" | "shuffled_actions": {"psnr", "ssim", "perceptual"} by chunk, ...}.

    `copy` repeats the episode's first frame, the last real one that an open-loop prediction has. `shuffled_actions` replays with another
    episode's actions of the same task: how much worse it is shows how much the actions matter.
    """
    camera, chunk = simulator.config.camera, simulator.config.chunk
    starts = [history_until(e, camera, 0) for e in episodes]
    replays = simulator.replay(starts, [e.actions for e in episodes])
    shuffled = simulator.replay(starts, _other_actions(episodes, np.random.default_rng(seed)))
    real = [e.frames[camera] for e in episodes]
    distance, name = perceptual_distance(policy)
    horizon = list(range(1, max(len(e.actions) for e in episodes) // chunk + 1))
    made = {
        "simulator": [frames for frames, _ in replays],
        "copy": [np.repeat(frames[:1], len(frames), 0) for frames in real],
        "shuffled_actions": [frames for frames, _ in shuffled],
    }
    result: dict = {"horizon": horizon, "perceptual_name": name, "n_episodes": len(episodes), "n_by_chunk": []}
    for kind, frames in made.items():
        result[kind] = {"psnr": [], "ssim": [], "perceptual": []}
        for number in horizon:
            rows = slice((number - 1) * chunk + 1, number * chunk + 1)
            long = [i for i, e in enumerate(episodes) if len(e.actions) >= number * chunk]
            a = np.concatenate([frames[i][rows] for i in long])
            b = np.concatenate([real[i][rows] for i in long])
            result[kind]["psnr"].append(float(psnr(a, b).mean()))
            result[kind]["ssim"].append(float(ssim(a, b).mean()))
            result[kind]["perceptual"].append(float(distance(a, b)))
            if kind == "simulator":
                result["n_by_chunk"].append(len(long))
    drift = [np.abs(s - e.states)[1:, :3].mean(1) for (_, s), e in zip(replays, episodes)]
    result["hand_error_mm"] = [float(1000 * np.mean([d[(n - 1) * chunk : n * chunk].mean() for d in drift if len(d) >= n * chunk])) for n in horizon]
    return result


def _other_actions(episodes: Sequence[Episode], rng: np.random.Generator) -> list[np.ndarray]:
    """For each episode the actions of another one of its task, cut or repeated to its length."""
    found = []
    for i, episode in enumerate(episodes):
        others = [j for j, other in enumerate(episodes) if j != i and other.info["task"] == episode.info["task"]] or [i]
        actions = episodes[rng.choice(others)].actions
        found.append(np.resize(actions, episode.actions.shape))
    return found


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N, H, W, 3) uint8 twice -> (N,) dB."""
    error = ((a.astype(np.float32) - b.astype(np.float32)) ** 2).mean((1, 2, 3))
    return 10 * np.log10(255**2 / np.maximum(error, 1e-3))


def ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Structural similarity (Wang et al. 2004): Gaussian window of 11 pixels, sigma 1.5, mean over colours. (N, H, W, 3) twice -> (N,)."""
    axis = torch.arange(11) - 5.0
    window = torch.exp(-0.5 * (axis / 1.5) ** 2)
    window = (window[:, None] * window[None, :] / window.sum() ** 2)[None, None]

    def blur(x):
        return F.conv2d(x.flatten(0, 1)[:, None], window).unflatten(0, x.shape[:2])[:, :, 0]

    x, y = (torch.from_numpy(planes(v)).float() / 255 for v in (a, b))
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y, cov = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2, blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    value = ((2 * mean_x * mean_y + c1) * (2 * cov + c2)) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return value.mean((1, 2, 3)).numpy()


def perceptual_distance(policy):
    """(function of two frame arrays, its name): LPIPS where its weights are on this machine, else a distance in the policy's own eyes.

    The latter is built like LPIPS (unit-normalised feature maps, squared difference, averaged over positions and layers) on the convolutional
    stages of the fine-tuned policy: what it calls different, the policy can tell apart.
    """
    if importlib.util.find_spec("lpips") and importlib.util.find_spec("torchvision"):
        try:
            return _lpips(), "LPIPS (AlexNet)"
        except Exception as error:  # its weights are a download, which may be neither cached nor allowed
            reason = f"LPIPS not used: {type(error).__name__}"
    else:
        reason = "LPIPS not installed"

    @torch.no_grad()
    def distance(a: np.ndarray, b: np.ndarray) -> float:
        rows = np.linspace(0, len(a) - 1, min(len(a), 256)).astype(int)
        values = [[F.normalize(stage, dim=1) for stage in policy.look(frames[rows])] for frames in (a, b)]
        return float(np.mean([((x - y) ** 2).sum(1).mean().item() for x, y in zip(*values)]))

    return distance, f"distance of the policy's features ({reason})"


def _lpips():
    import lpips

    network = lpips.LPIPS(net="alex", verbose=False).eval()

    @torch.no_grad()
    def distance(a: np.ndarray, b: np.ndarray) -> float:
        x, y = (normalised(torch.from_numpy(planes(v))) for v in (a, b))
        return float(np.mean([network(x[i : i + 64], y[i : i + 64]).mean().item() for i in range(0, len(x), 64)]))

    return distance
