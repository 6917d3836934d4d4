"""What tells whether a fit is good."""
