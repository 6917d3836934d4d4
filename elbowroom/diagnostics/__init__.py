"""What is checked before a run, and what tells whether a fit is good."""
