"""New rows described by a fit: one line of a table for each."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import logsumexp
from torch import Tensor

from elbowroom.draws.predictive import (
    assignments,
    evaluate,
    means,
    of_observed,
    predict_sites,
    probabilities,
)
from elbowroom.errors import ModelError, OptionError
from elbowroom.memory import check_memory
from elbowroom.models import get_model, model_summaries
from elbowroom.problem.bound import Problem

DRAWS = 1000
"""Of predictions where all parameters are points."""
COPIES = 6
"""Columns of the size of all draws that are held while a table of them is made, at most."""


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
    scale: str | None = None,
    draws: int | None = None,
) -> pd.DataFrame:
    """A row of the table for each row of the data; see `elbowroom.result.Fit.predict`.

    Raises:
        ModelError: If a discrete site is shared by several observations: its posterior would have
            to be drawn with them; or if draws are asked for where only probabilities are predicted.
        OptionError: If there are fewer draws than are asked for, or too many for the memory.
    """
    if draws is not None:
        sites = _some(problem, sites, draws)
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
    if scale is not None:
        drawn = expectations(problem, arguments, sites, scale).numpy()
        if draws is not None:
            return _drawn(problem, target, drawn)
        return _described(problem, target, drawn, interval)
    if target in problem.space.discrete:
        if draws is not None:
            raise ModelError(
                f"--draws: of the model '{problem.model.name}' the probabilities of components "
                "are predicted, which are no draws; leave it out."
            )
        probabilities = assignments(problem.function, arguments, given, problem.space, count)
        shares = probabilities[target].numpy()  # (support, rows)
        named = problem.prepared.coords.get("component", ())
        names = list(named) if len(named) == len(shares) else list(range(len(shares)))
        table = pd.DataFrame({target: [names[k] for k in shares.argmax(0)]})
        for name, row in zip(names, shares, strict=True):
            table[f"probability[{name}]"] = row
    elif problem.model.of_probability and problem.model.of_probability(problem.arguments):
        drawn = means(problem.function, arguments, given, problem.space, target).double().numpy()
        if draws is not None:
            return _drawn(problem, target, drawn)
        table = _described(problem, target, drawn, interval)
        table = table.rename(columns={"mean": "probability"})
    elif classes and draws is None:
        table = _classes(problem, arguments, sites, list(classes))
    else:
        sites_drawn = predict_sites(problem.function, arguments, given, problem.space, count)
        values = sites_drawn[target].double()
        if problem.model.in_units is not None:
            values = problem.model.in_units(values, problem.prepared.arguments)
        if draws is not None:
            return _drawn(problem, target, values.numpy(), classes)
        table = _described(problem, target, values.numpy(), interval)
    rows = not problem.space.row_latents(sites) and problem.space.observed_plates[problem.observed]
    if rows and observed:
        density = log_density_of_rows(problem, arguments, sites)
        if density.shape == (len(table),):
            table["log_density"] = density
    return table


def expectations(
    problem: Problem,
    arguments: Mapping[str, Any],
    sites: Mapping[str, Tensor],
    scale: str,
    reduced: Callable[[Tensor], Tensor] = lambda values: values,
) -> Tensor:
    """What is expected of rows at each draw, float64, (draws, rows) or (draws, rows, levels).

    Args:
        problem: The model bound to its data.
        arguments: Of the rows.
        sites: Draws of the latent sites, each (draws, ...).
        scale: "response", or "linear" for the linear predictor.
        reduced: What is made of the rows of one draw, such as averages of them.

    Raises:
        ModelError: If the model has no linear predictor.
    """
    model = problem.model
    if model.expected is None:
        having = [name for name in model_summaries() if get_model(name).expected is not None]
        raise ModelError(
            f"--scale {scale}: the model '{model.name}' has no linear predictor; these models have "
            f"one: {', '.join(having)}. Leave it out."
        )

    def wanted(node: Any) -> Tensor:
        found = node["infer"]["linear_predictor"]
        if scale == "response":
            assert model.expected is not None
            found = model.expected(node["fn"], found, arguments)
        return reduced(found.double())

    given = problem.space.given(sites)
    site, count = problem.observed, None if given else 1
    return of_observed(problem.function, arguments, given, problem.space, site, wanted, count)


def _some(problem: Problem, sites: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """As many draws of the posterior, evenly spaced, since equal ones follow one another."""
    there = min((len(each) for each in sites.values()), default=DRAWS)
    if count > there:
        raise OptionError(
            f"--draws {count:,}: the run has {there:,} draws of the posterior; give at most as "
            "many, or fit with more --draws."
        )
    picked = np.linspace(0, there - 1, count).round().astype(int)
    return {name: values[picked] for name, values in sites.items()}


def _drawn(
    problem: Problem, site: str, draws: np.ndarray, classes: Sequence[Any] | None = None
) -> pd.DataFrame:
    """A line for each row and draw, both counted from 1.

    Args:
        problem: The model bound to its data.
        site: What the draws are of.
        draws: (draws, rows, ...).
        classes: What 0, 1, 2, ... stand for, if they are levels.
    """
    count, rows = draws.shape[:2]
    size = 8.0 * draws.size * COPIES
    check_memory(f"--draws {count:,} of {rows:,} rows", size, "give fewer", OptionError)
    values = draws.swapaxes(0, 1).reshape(rows * count, -1)
    table = pd.DataFrame(
        {"row": np.repeat(np.arange(rows) + 1, count), "draw": np.tile(np.arange(count) + 1, rows)}
    )
    if values.shape[1] == 1:
        numbers = values[:, 0]
        levels = None if classes is None else np.array(classes, dtype=object)
        return table.assign(prediction=numbers if levels is None else levels[numbers.astype(int)])
    named = _labels(problem, site)
    for j in range(values.shape[1]):
        table[str(named[j]) if j < len(named) else f"{site}[{j}]"] = values[:, j]
    return table


def _labels(problem: Problem, site: str) -> list[Any]:
    """Of the numbers of a row."""
    classes = problem.prepared.coords.get("class")
    if classes:
        return list(classes)
    return list(problem.prepared.coords.get(problem.prepared.dims.get(site, ("", ""))[-1], []))


def _classes(
    problem: Problem, arguments: Mapping[str, Any], sites: Mapping[str, Tensor], classes: list[Any]
) -> pd.DataFrame:
    """The likeliest class of each row, and the posterior predictive probability of each class."""
    site = problem.observed
    if problem.model.expected is not None:
        shares = expectations(problem, arguments, sites, "response").mean(0).T.numpy()
    else:
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
    labels = _labels(problem, site)
    columns = {}
    for j in range(parts["mean"][0].size):
        label = labels[j] if j < len(labels) else str(j)
        for name, values in parts.items():
            columns[f"{label}.{name}"] = values.reshape(rows, -1)[:, j]
    return pd.DataFrame(columns)
