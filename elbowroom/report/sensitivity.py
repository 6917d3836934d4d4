"""The sensitivity of a posterior to its prior and its likelihood, in the terminal."""

import pandas as pd

from elbowroom.report.listing import add, console, table
from elbowroom.report.terminal import LONGEST, number, warn_untrusted
from elbowroom.result import Fit
from elbowroom.sensitivity import POWER_SCALING

MEANINGS = {
    "prior-data conflict": "prior and data pull apart: see whether the prior is meant so.",
    "strong prior / weak likelihood": "the data say little, and the prior decides.",
}
"""What a diagnosis is."""


def show_sensitivity(fit: Fit, sensitivity: pd.DataFrame) -> None:
    """Prints the table, and what its numbers and diagnoses are.

    Args:
        fit: The fit.
        sensitivity: Of `elbowroom.result.Fit.sensitivity`.
    """
    out = console()
    warn_untrusted(fit)
    made = table("quantity", "prior", "likelihood", "diagnosis", right=("prior", "likelihood"))
    for name, prior, likelihood, diagnosis in sensitivity.head(LONGEST).itertuples():
        add(made, name, number(round(prior, 3)), number(round(likelihood, 3)), diagnosis)
    out.print(made)
    if len(sensitivity) > LONGEST:
        out.print(f"… and {len(sensitivity) - LONGEST:,} more: --output FOLDER writes all.")
    out.print()
    out.print(
        "How far each quantity moves when the prior, or the likelihood, is raised to a power near "
        f"1; it counts from {POWER_SCALING.limit:g} on.", style="dim",
    )  # fmt: skip
    for diagnosis in MEANINGS:
        if (sensitivity["diagnosis"] == diagnosis).any():
            out.print(f"{diagnosis}: {MEANINGS[diagnosis]}", style="dim")
