"""The way through the house: problem, start, engine, draws, verdict."""
