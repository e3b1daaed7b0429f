"""Reinforcement learning of the policy inside the world simulator, in rounds that real evidence opens and closes."""
