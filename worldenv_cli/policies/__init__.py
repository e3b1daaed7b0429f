"""Policies: observation in, action chunk out, with the density of what was sampled."""
