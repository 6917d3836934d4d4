"""How a model and a guide are fitted: objectives, the SVI runner, densities, starts."""
