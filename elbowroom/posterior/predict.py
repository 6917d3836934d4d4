"""New rows described by a fit: one line of a table for each."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from elbowroom.inference.problem import Problem
from elbowroom.posterior.predictive import assignments, log_likelihood, predict_sites


def log_density_of_rows(
    problem: Problem, arguments: Mapping[str, Any], sites: Mapping[str, Tensor]
) -> np.ndarray:
    """The log posterior predictive density of each row: the log of the mean over draws, (rows,)."""
    pointwise = log_likelihood(
        problem.function, arguments, _continuous(problem, sites), problem.space
    )
    values = pointwise[problem.observed].double()  # (draws, rows)
    return (values.logsumexp(0) - np.log(len(values))).numpy()


def _continuous(problem: Problem, sites: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {site.name: sites[site.name] for site in problem.space.sites}


def predict_rows(
    problem: Problem, arguments: Mapping[str, Any], sites: Mapping[str, Tensor], interval: float
) -> pd.DataFrame:
    """A row of the table for each row of the data; see `elbowroom.fitting.Fit.predict`."""
    continuous = _continuous(problem, sites)
    target = problem.model.predicts or problem.observed
    if target in problem.space.discrete:
        probabilities = assignments(problem.function, arguments, continuous, problem.space)
        values = probabilities[target].numpy()  # (support, rows)
        table = pd.DataFrame({target: values.argmax(0)})
        for k, row in enumerate(values):
            table[f"probability[{k}]"] = row
    else:
        drawn = predict_sites(problem.function, arguments, continuous, problem.space)
        table = _described(problem, target, drawn[target].double().numpy(), interval)
    observed = arguments.get(problem.observed)
    rows = not problem.space.local_continuous and problem.space.observed_plates[problem.observed]
    if rows and isinstance(observed, Tensor) and len(observed) == len(table):
        table["log_density"] = log_density_of_rows(problem, arguments, sites)
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
