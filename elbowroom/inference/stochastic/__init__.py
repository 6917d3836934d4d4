"""Stochastic variational inference: gradient estimators, steps, stopping, checkpoints."""
