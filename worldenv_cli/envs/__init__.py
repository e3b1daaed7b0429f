"""Real environments: each one a `gymnasium.vector.VectorEnv` whose action is a chunk and whose rows live in worker processes."""
