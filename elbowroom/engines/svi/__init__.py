"""Stochastic variational inference: the loop, its steps, and when it ends."""
