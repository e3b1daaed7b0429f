"""Demonstrations from Meta-World's own scripted experts: what `worldenv ingest` does where no recorded data is given."""

from ..envs.starts import starts
from ..envs.vector import RealVectorEnv
from ..errors import UserError
from ..rollout import environment_steps, play
from .config import IngestConfig
from .dataset import Episode


def demonstrate(env: RealVectorEnv, config: IngestConfig, run_seed: int) -> tuple[list[Episode], int]:
    """`demos_per_task` successful episodes of every task, each from a fresh start, and the environment steps that all tries have cost.

    Raises UserError for a task whose expert fails too often at this action repeat and horizon.
    """
    kept: dict[str, list[Episode]] = {task: [] for task in env.config.tasks}
    cost = 0
    for attempt in range(config.attempts):
        wanted = {task: config.demos_per_task - len(episodes) for task, episodes in kept.items()}
        first = attempt * config.demos_per_task
        batch = [
            start
            for task, missing in wanted.items()
            if missing
            for start in starts("demonstrations", [task], missing, offset=first, run_seed=run_seed)
        ]
        if not batch:
            break
        episodes = play(env, batch, description="demonstrations")
        cost += environment_steps(episodes)
        for episode in episodes:
            if episode.success[-1]:
                kept[episode.info["task"]].append(episode)
    short = {task: len(episodes) for task, episodes in kept.items() if len(episodes) < config.demos_per_task}
    if short:
        task, found = next(iter(short.items()))
        raise UserError(
            f"env.tasks.{task}: the scripted expert succeeded {found} times in {config.attempts * config.demos_per_task} tries at action_repeat "
            f"{env.config.action_repeat} and horizon {env.config.horizon}; expected {config.demos_per_task}: raise the horizon or leave the task out"
        )
    return [episode for episodes in kept.values() for episode in episodes], cost
