"""Draws of a posterior itself: adaptive importance sampling, and NUTS."""
