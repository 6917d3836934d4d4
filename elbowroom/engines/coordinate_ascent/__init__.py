"""The engine of coordinate ascent variational inference."""
