"""ELBOs and their relatives, each with its options and its estimator of the gradient."""
