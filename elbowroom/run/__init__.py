"""The run folder: written, read, and gone on with."""
