"""The world simulator: action-conditioned video prediction from a few real episodes, fast enough to do reinforcement learning in."""
