"""A model's log density: recorded, its curvature, modes and importance weights."""
