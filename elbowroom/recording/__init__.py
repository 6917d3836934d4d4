"""Functions of tensors, recorded once and replayed as plain code."""
