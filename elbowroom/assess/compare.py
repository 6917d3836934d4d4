"""Several fits of one model side by side: the table, and how their posteriors differ."""

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray

COLUMNS = (
    "objective", "elbo", "elbo_se", "log_likelihood", "k_hat", "elpd_loo", "elpd_loo_se",
    "seconds", "parameters", "converged", "verdict",
)  # fmt: skip

WHERE_KNOWN = (
    "amortisation_gap", "test_log_density", "test_log_density_se", "test_unreliable",
    "test_coverage", "test_spread", "test_calibration_error",
)  # fmt: skip
"""Columns that a comparison has where a method has the number."""
DIFFERENCES = ["guide", "quantity", "mean", "sd", "mean_shift", "sd_ratio"]


@dataclass(frozen=True)
class Row:
    """One method of a comparison.

    Attributes:
        name: The guide, and its objective if that was asked for.
        measures: Its diagnostics by name; empty if it failed.
        posterior: Its posterior group; None if it failed.
        error: Why it failed.
    """

    name: str
    measures: dict[str, Any]
    posterior: xarray.Dataset | None
    error: str = ""


def comparison_table(rows: list[Row]) -> pd.DataFrame:
    """One line a method, best ELBO first, those without a bound next, failures last.

    Columns: the objective that was maximised, elbo and elbo_se in nats, log_likelihood where the
    priors are left out, k_hat, elpd_loo and its se, seconds, parameters, converged, verdict, best
    (whether no other bound is higher), error; where a method has them, its amortisation_gap in nats
    a row, and what `elbowroom.held_out` tells of held-out rows.
    """
    known = [name for name in WHERE_KNOWN if any(name in row.measures for row in rows)]
    lines = []
    for row in rows:
        line = {name: row.measures.get(name, np.nan) for name in (*COLUMNS, *known)}
        lines.append({"guide": row.name, **line, "error": row.error})
    table = pd.DataFrame(lines)
    failed = table["error"] != ""
    table["elbo"] = pd.to_numeric(table["elbo"])
    order = table.assign(failed=failed).sort_values(["failed", "elbo"], ascending=[True, False])
    table = table.loc[order.index].reset_index(drop=True)
    finite = table["elbo"].notna().any()
    table.insert(1, "best", (table.index == table["elbo"].idxmax()) if finite else False)
    return table


def posterior_differences(rows: list[Row], best: str) -> pd.DataFrame:
    """How each method's marginals differ from the best one's.

    Args:
        rows: Of a comparison.
        best: The name of the method to compare with.

    Returns:
        One line for each method and scalar quantity: mean and sd; `mean_shift`, the distance from
        the best one's mean in units of the best one's sd; `sd_ratio`, sd over the best one's.
    """
    reference = next((row.posterior for row in rows if row.name == best), None)
    if reference is None:
        return pd.DataFrame(columns=DIFFERENCES)
    centre, width = _moments(reference)
    lines = []
    for row in rows:
        if row.posterior is None:
            continue
        means, deviations = _moments(row.posterior)
        for quantity in (each for each in means if each in centre):
            sd = width[quantity]
            lines.append(
                {
                    "guide": row.name,
                    "quantity": quantity,
                    "mean": means[quantity],
                    "sd": deviations[quantity],
                    "mean_shift": (means[quantity] - centre[quantity]) / sd if sd > 0 else np.nan,
                    "sd_ratio": deviations[quantity] / sd if sd > 0 else np.nan,
                }
            )
    return pd.DataFrame(lines, columns=DIFFERENCES)


def labelled_scalars(posterior: xarray.Dataset) -> dict[str, np.ndarray]:
    """The draws of each scalar quantity, (chains, draws), by its label.

    Example:
        >>> draws = (("chain", "draw", "column"), np.zeros((1, 5, 2)))
        >>> scalars = labelled_scalars(xarray.Dataset({"b": draws}, {"column": ["bmi", "bp"]}))
        >>> {label: values.shape for label, values in scalars.items()}
        {'b[bmi]': (1, 5), 'b[bp]': (1, 5)}
    """
    scalars = {}
    for name, variable in posterior.data_vars.items():
        values = variable.transpose("chain", "draw", ...)
        inner = values.dims[2:]
        labels = itertools.product(*(values[dim].to_numpy() for dim in inner))
        for place, key in zip(np.ndindex(values.shape[2:]), labels, strict=True):
            label = f"{name}[{', '.join(map(str, key))}]" if inner else str(name)
            scalars[label] = values.to_numpy()[:, :, *place]
    return scalars


def _moments(posterior: xarray.Dataset) -> tuple[dict[str, float], dict[str, float]]:
    """Mean and sd of each scalar quantity, by its label."""
    scalars = labelled_scalars(posterior)
    means = {label: float(values.mean()) for label, values in scalars.items()}
    deviations = {label: float(values.std()) for label, values in scalars.items()}
    return means, deviations
