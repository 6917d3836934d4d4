"""Ways to fit a guide to a model."""
