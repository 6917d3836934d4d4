"""A model bound to its data, in a session of its own, checked before a run."""
