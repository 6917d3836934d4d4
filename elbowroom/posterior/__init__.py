"""From a fitted guide to draws, ArviZ groups, predictions and the run folder."""
