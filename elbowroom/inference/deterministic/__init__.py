"""Variational inference over fixed draws, without noise: linear response, Laplace, pathfinder."""
