"""Weighted draws of a posterior, what follows from them, and ArviZ."""
