"""Deterministic variational inference: the ELBO over fixed draws."""
