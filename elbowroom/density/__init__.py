"""A model's log density: its curvature, its modes, and where to look for them."""
