"""How an evaluation is judged and shown: intervals for every figure, videos of what happened, one report to read."""
