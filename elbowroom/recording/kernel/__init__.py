"""A recorded function of a batch of points as one kernel of machine code."""
