"""New rows described by a fit: one line of a table for each."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import logsumexp
from torch import Tensor

from elbowroom.draws.predictive import (
    assignments,
    evaluate,
    means,
    predict_sites,
    probabilities,
)
from elbowroom.errors import ModelError
from elbowroom.problem.bound import Problem

DRAWS = 1000
"""Of predictions where all parameters are points."""


def log_density_of_rows(
    problem: Problem, arguments: Mapping[str, Any], sites: Mapping[str, Tensor]
) -> np.ndarray:
    """The log posterior predictive density of each row: the log of the mean over draws, (rows,)."""
    values = row_log_likelihood(problem, arguments, sites)
    return logsumexp(values, axis=0) - np.log(len(values))


def row_log_likelihood(
    problem: Problem, arguments: Mapping[str, Any], sites: Mapping[str, Tensor]
) -> np.ndarray:
    """The log density of each row at each draw, (draws, rows)."""
    given = problem.space.given(sites)
    count = None if given else 1
    scored = evaluate(problem.function, arguments, given, problem.space, count=count)
    return scored.log_likelihood[problem.observed].double().numpy()


def predict_rows(
    problem: Problem,
    arguments: Mapping[str, Any],
    sites: Mapping[str, Tensor],
    interval: float,
    observed: bool = True,
) -> pd.DataFrame:
    """A row of the table for each row of the data; see `elbowroom.result.Fit.predict`.

    Raises:
        ModelError: If a discrete site is shared by several observations: its posterior would have
            to be drawn with them.
    """
    given = problem.space.given(sites)
    unknown = [name for name in problem.space.shared_discrete if name not in given]
    if unknown:
        raise ModelError(
            f"'{unknown[0]}' is discrete and shared by several observations; such a model cannot "
            "predict yet."
        )
    count = None if given else DRAWS
    target = problem.model.predicts or problem.observed
    classes = problem.prepared.coords.get("class")
    if target in problem.space.discrete:
        probabilities = assignments(problem.function, arguments, given, problem.space, count)
        shares = probabilities[target].numpy()  # (support, rows)
        named = problem.prepared.coords.get("component", ())
        names = list(named) if len(named) == len(shares) else list(range(len(shares)))
        table = pd.DataFrame({target: [names[k] for k in shares.argmax(0)]})
        for name, row in zip(names, shares, strict=True):
            table[f"probability[{name}]"] = row
    elif problem.model.of_probability and problem.model.of_probability(problem.arguments):
        drawn = means(problem.function, arguments, given, problem.space, target)
        table = _described(problem, target, drawn.double().numpy(), interval)
        table = table.rename(columns={"mean": "probability"})
    elif classes:
        table = _classes(problem, arguments, sites, list(classes))
    else:
        sites_drawn = predict_sites(problem.function, arguments, given, problem.space, count)
        values = sites_drawn[target].double()
        if problem.model.in_units is not None:
            values = problem.model.in_units(values, problem.prepared.arguments)
        table = _described(problem, target, values.numpy(), interval)
    rows = not problem.space.row_latents(sites) and problem.space.observed_plates[problem.observed]
    if rows and observed:
        density = log_density_of_rows(problem, arguments, sites)
        if density.shape == (len(table),):
            table["log_density"] = density
    return table


def _classes(
    problem: Problem, arguments: Mapping[str, Any], sites: Mapping[str, Tensor], classes: list[Any]
) -> pd.DataFrame:
    """The likeliest class of each row, and the posterior predictive probability of each class."""
    site = problem.observed
    shares = probabilities(problem.function, arguments, sites, problem.space, site).numpy()
    table = pd.DataFrame({site: [classes[k] for k in shares.argmax(0)]})
    for label, row in zip(classes, shares, strict=True):
        table[f"probability[{label}]"] = row
    return table


def _described(problem: Problem, site: str, draws: np.ndarray, interval: float) -> pd.DataFrame:
    """Mean, sd, lower and upper of each row; of each of its columns, if it has several."""
    tail = (1 - interval) / 2
    lower, upper = np.quantile(draws, [tail, 1 - tail], axis=0)
    parts = {"mean": draws.mean(0), "sd": draws.std(0), "lower": lower, "upper": upper}
    parts = {name: np.atleast_1d(values) for name, values in parts.items()}
    if parts["mean"].ndim == 1:
        return pd.DataFrame(parts)
    rows = parts["mean"].shape[0]
    labels = list(problem.prepared.coords.get(problem.prepared.dims.get(site, ("", ""))[-1], []))
    columns = {}
    for j in range(parts["mean"][0].size):
        label = labels[j] if j < len(labels) else str(j)
        for name, values in parts.items():
            columns[f"{label}.{name}"] = values.reshape(rows, -1)[:, j]
    return pd.DataFrame(columns)
