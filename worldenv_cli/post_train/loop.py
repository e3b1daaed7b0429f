"""One round's updates: imagine groups, score them against each other, move the policy a little, stop before the models can be exploited."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from .. import distributed
from ..artifacts import Checkpoint, load_optimizer, optimizer_tensors, under
from ..errors import UserError
from ..policies.lora import AdaptedPolicy
from ..policies.observation import Observation
from ..policies.policy import rows_of
from ..policies.sft import ChunkSamples, SFTConfig, sft_loss
from ..progress import Metrics, check_finite, track
from ..simulator.simulator import History
from ..world_env import WorldEnv
from .config import UpdatesConfig
from .objective import clipped_objective, leave_one_out
from .rollouts import Rollouts, imagine


@dataclass
class StartPool:
    """Where imagined groups may begin: for each task, first frames and logged moments near the hard part."""

    first: dict[str, list[History]] = field(default_factory=dict)
    middle: dict[str, list[History]] = field(default_factory=dict)

    def draw(self, task: str, middle: bool, rng: np.random.Generator) -> History:
        pool = self.middle.get(task) if middle and self.middle.get(task) else self.first[task]
        return pool[rng.integers(len(pool))]


def run_updates(
    policy: AdaptedPolicy,
    env: WorldEnv,
    pool: StartPool,
    open_tasks: list[str],
    closed: Observation | None,
    successes: ChunkSamples,
    baseline: dict[str, float],
    measure: Callable[[list[str]], dict[str, float]],
    config: UpdatesConfig,
    sft: SFTConfig,
    *,
    seed: int,
    metrics: Metrics | None = None,
    checkpoint: Checkpoint | None = None,
) -> dict:
    """Post-train `policy` in place. `closed` holds real observations of the tasks that stay as they are. `measure(tasks)` plays `policy` from the
    first frames from which `baseline`, the starting policy's imagined success by task, was measured: the cap counts between these two, because
    an update's own groups are too few and begin elsewhere each time.

    Returns {"updates", "stopped_because", "capped": tasks whose cap was reached, "checked": [{"update", task: imagined success}], "history": one
    dict of figures for each update}.
    """
    if config.starts % distributed.count():
        there = f"expected a multiple of the {distributed.count()} processes"
        raise UserError(f"post_train.updates.starts is {config.starts}, {there}; change one of them")
    groups = policy.parameter_groups(config.backbone_rate, config.head_rate)
    optimizer = torch.optim.Adam(groups)
    capped: list[str] = []
    history, checked, because = [], [], "all updates done"
    first, kept = resume(policy, optimizer, checkpoint)
    if kept:
        capped, checked, history = kept["capped"], kept["checked"], kept["history"]
    with track("post-training", total=config.updates, unit="updates", done=first) as bar:
        for update in range(first, config.updates):
            rng = np.random.default_rng(distributed.seeds(seed, update))
            generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
            torch.manual_seed(int(rng.integers(2**62)))  # the simulator's own noise
            active = [task for task in open_tasks if task not in capped]
            if not active:
                because = "every open task reached its cap of imagined gain"
                break
            figures, kl = _one_update(policy, env, pool, active, closed, successes, optimizer, config, sft, rng, generator, update)
            history.append({"update": update, **figures})
            check_finite("post-training", update, loss=figures["loss"])
            kl = distributed.agreed(kl)
            if metrics:
                metrics.log(update, **figures)
            bar.advance(imagined=figures["imagined_success"], kl=kl)
            if (update + 1) % config.check_every == 0 and update + 1 < config.updates:
                found = distributed.agreed(measure(active) if distributed.first() else {})
                checked.append({"update": update, **found})
                capped += [task for task in active if found[task] > baseline[task] + config.gain_cap]
            if kl > config.kl_budget:
                because = f"the KL budget of {config.kl_budget} is spent"
                break
            if checkpoint and (update + 1) % config.checkpoint_every == 0:
                save(policy, optimizer, checkpoint, update + 1, {"capped": capped, "checked": checked, "history": history})
    return {"updates": len(history), "stopped_because": because, "capped": capped, "checked": checked, "history": history}


def save(policy: AdaptedPolicy, optimizer, checkpoint: Checkpoint, update: int, state: dict) -> None:
    """What moved so far, the optimizer's state and the round's bookkeeping."""
    tensors, optimizer_state = optimizer_tensors(optimizer)
    moving = {f"weights.{name}": p.detach() for name, p in policy.named_parameters() if p.requires_grad}
    checkpoint.save(update, moving | {f"optimizer.{name}": t for name, t in tensors.items()}, state | {"optimizer": optimizer_state})


def resume(policy: AdaptedPolicy, optimizer, checkpoint: Checkpoint | None) -> tuple[int, dict | None]:
    """(updates that were done, the bookkeeping after them), with weights and optimizer as they were then."""
    found = checkpoint.latest() if checkpoint else None
    if found is None:
        return 0, None
    update, tensors, state = found
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(tensors[f"weights.{name}"])
    load_optimizer(optimizer, under("optimizer.", tensors), state["optimizer"])
    return update, state


def _one_update(policy, env, pool, active, closed, successes, optimizer, config, sft, rng, generator, update) -> tuple[dict, float]:
    began = time.monotonic()
    # with fewer groups than open tasks, the tasks take turns from update to update
    share = config.starts // distributed.count()
    mine = range(distributed.rank() * share, (distributed.rank() + 1) * share)  # a group is never split between processes
    tasks = [active[(update * config.starts + i) % len(active)] for i in mine]
    blocks = [i // len(active) for i in mine]  # one group of every task each; a block starts in the middle or at the beginning
    middles = [int((block + 1) * config.middle) > int(block * config.middle) for block in blocks]
    histories = [pool.draw(task, middle, rng) for task, middle in zip(tasks, middles)]
    policy.eval()
    rollouts = imagine(env, policy, histories, config.group, generator)
    imagined_seconds = time.monotonic() - began
    advantage = leave_one_out(rollouts.reward, rollouts.group) * config.advantage_scale
    from_first = ~np.array(middles)
    figures = _gradient_steps(policy, rollouts, advantage, closed, successes, optimizer, config, sft, rng, update)
    rows = rng.choice(rollouts.decisions, min(config.kl_rows, rollouts.decisions), replace=False)
    kl = chunk_kl(policy, rollouts.observation.rows(rows), rows_of(rollouts.encoded, rows), rows_of(rollouts.trace, rows), config.microbatch)
    first_rows = from_first[rollouts.group]
    return {
        "imagined_success": float(rollouts.reward[first_rows].mean()) if first_rows.any() else float(rollouts.reward.mean()),
        "reward": float(rollouts.reward.mean()),
        "stopped": float(rollouts.stopped.mean()),
        "advantage_spread": float(advantage.std()),
        "kl": kl,
        **figures,
        "control_steps": rollouts.control_steps,
        "steps_per_second": rollouts.control_steps / imagined_seconds,
        "seconds": time.monotonic() - began,
    }, kl


def _gradient_steps(policy, rollouts: Rollouts, advantage, closed, successes, optimizer, config, sft, rng, update) -> dict:
    per_decision = torch.from_numpy(advantage[rollouts.episode]).to(policy.device)
    played, old = (torch.from_numpy(values).to(policy.device) for values in (rollouts.played, rollouts.log_prob))
    figures: dict[str, list[float]] = {}
    batches = [_batches(rollouts.decisions, config, rng) for _ in range(config.epochs)]
    if config.rescore:
        old = _rescored(policy, rollouts, old, batches[0])
    for minibatch in [rows for epoch in batches for rows in epoch]:
        optimizer.zero_grad(set_to_none=True)
        steps = []
        for rows in minibatch:
            density = policy.density(*_encoded(policy, rollouts, rows))
            log_prob = density.log_prob(rollouts.trace["sampled"][rows])
            weight = (played[rows].sum() / played[np.concatenate(minibatch)].sum()).item()
            loss, step = clipped_objective(log_prob, old[rows], per_decision[rows], played[rows], config.clip)
            (weight * loss).backward()
            steps.append((weight, step | {"surrogate": loss.item(), "scale": density.spread()}))
        anchor = _anchor(policy, successes, config, sft, rng)
        held = _held(policy, closed, config, rng)
        learning = [p for group in optimizer.param_groups for p in group["params"]]
        distributed.average_gradients(learning)
        norm = torch.nn.utils.clip_grad_norm_(learning, 1.0)
        check_finite("post-training", update, gradient=norm.item())
        optimizer.step()
        step = {name: sum(weight * found[name] for weight, found in steps) for name in steps[0][1]}
        step |= {"loss": step.pop("surrogate") + config.anchor * anchor + config.hold * held, "anchor": anchor, "held_kl": held}
        for name, value in step.items():
            figures.setdefault(name, []).append(value)
    return {name: float(np.mean(values)) for name, values in figures.items()}


def _batches(decisions: int, config: UpdatesConfig, rng: np.random.Generator) -> list[list[np.ndarray]]:
    """An epoch's minibatches, each in the parts that a forward pass takes."""
    steps = distributed.largest(max(round(decisions * distributed.count() / config.minibatch), 1))  # as many in every process
    minibatches = np.array_split(rng.permutation(decisions), steps)
    return [_parts(rows, config.microbatch) for rows in minibatches]


def _parts(rows: np.ndarray, size: int | None) -> list[np.ndarray]:
    """Rows in parts of `size` at most, as equal as may be; all of them in one where no size is given."""
    return np.array_split(rows, -(-len(rows) // (size or len(rows))))


def _encoded(policy, rollouts: Rollouts, rows: np.ndarray) -> tuple[dict, dict]:
    """(encoded observations, traces) of some decisions: kept from when they were made, or made again."""
    encoded = rows_of(rollouts.encoded, rows) if rollouts.encoded else policy.encode(rollouts.observation.rows(rows))
    return encoded, rows_of(rollouts.trace, rows)


@torch.no_grad()
def _rescored(policy, rollouts: Rollouts, old: torch.Tensor, minibatches: list[list[np.ndarray]]) -> torch.Tensor:
    """Log densities of the samples under the policy that took them, computed as training will: its first ratios are exactly one."""
    again = old.clone()
    for rows in [rows for minibatch in minibatches for rows in minibatch]:
        again[rows] = policy.density(*_encoded(policy, rollouts, rows)).log_prob(rollouts.trace["sampled"][rows])
    return again


def _anchor(policy, successes: ChunkSamples, config: UpdatesConfig, sft: SFTConfig, rng: np.random.Generator) -> float:
    """Adds the gradient of the SFT loss on real successes; returns the loss."""
    if not config.anchor:
        return 0.0
    index, total = rng.integers(0, len(successes), 64), 0.0
    for rows in _parts(index, config.microbatch):
        loss = sft_loss(policy.base(), successes, rows, sft, rng) * len(rows) / 64
        (config.anchor * loss).backward()
        total += loss.item()
    return total


def _held(policy: AdaptedPolicy, closed: Observation | None, config: UpdatesConfig, rng: np.random.Generator) -> float:
    """Adds the gradient of KL(start || tuned) at real observations of closed tasks; returns it."""
    if closed is None or not config.hold:
        return 0.0
    chosen, total = rng.choice(len(closed.state), min(64, len(closed.state)), replace=False), 0.0
    for rows in _parts(chosen, config.microbatch):
        observation = closed.rows(rows)
        before, after = policy.reference_encode(observation), policy.encode(observation)
        trace = policy.trace(before)
        kl = policy.reference_density(before, trace).kl(policy.density(after, trace)).mean() * len(rows) / len(chosen)
        (config.hold * kl).backward()
        total += kl.item()
    return total


@torch.no_grad()
def chunk_kl(policy: AdaptedPolicy, observation: Observation, kept: dict, trace: dict, microbatch: int | None = None) -> float:
    """Mean KL(start || tuned) of whole chunks at these observations, in nats. `kept`: what is kept of encoding them, if anything."""
    count, total = len(observation.state), 0.0
    for rows in _parts(np.arange(count), microbatch):
        seen = observation.rows(rows)
        before = rows_of(kept, rows) or policy.reference_encode(seen)
        after = rows_of(kept, rows) or policy.encode(seen)
        given = rows_of(trace, rows) or policy.trace(before)
        total += policy.reference_density(before, given).kl(policy.density(after, given)).sum().item()
    return total / count
