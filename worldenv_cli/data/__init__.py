"""Demonstrations and rollouts: the episodes in memory, the LeRobotDataset v3.0 folders they live in, and their statistics."""
