"""The rows of a run that are checked, draws of them, and the weights of draws without a row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
import xarray
from torch import Tensor

from elbowroom.assess.measures import high_k, rows_left_out
from elbowroom.draws.predict import row_log_likelihood
from elbowroom.draws.predictive import predict_sites
from elbowroom.draws.tree import LARGEST_GROUP
from elbowroom.effects import Regression
from elbowroom.errors import ModelError
from elbowroom.problem.isolation import checked_seed


@dataclass(frozen=True)
class Sizes:
    """How much is looked at."""

    rows: int = 5000
    """Rows at most; of more, a random sample."""
    fewest: int = 5
    """Rows at least."""
    predictors: int = 50
    """Predictors on which residuals may depend, at most."""
    levels: int = 5
    """Rows for each level of a predictor, at least."""
    named: int = 3
    """Rows that a note names."""


SIZES = Sizes()


class Checked(Regression, Protocol):
    """What is asked of a fit beside that; see `elbowroom.result.Fit`."""

    @property
    def posterior(self) -> Any:
        """The `xarray.DataTree` in the ArviZ schema."""


@dataclass(frozen=True)
class CheckedRows:
    """Rows that are checked, and draws of them.

    Attributes:
        name: Of the response.
        numbers: Their numbers, from 0, (rows,).
        observed: (rows,).
        drawn: (draws, rows).
        tree: With the log likelihood of these rows.
        arguments: Of the model for them.
        predictors: Each with its values, (rows,), and its levels, or None if it is a number.
        notes: What was left out.
        repeated: Whether each row is there as often as its weight says.
    """

    name: str
    numbers: np.ndarray
    observed: np.ndarray
    drawn: np.ndarray
    tree: xarray.DataTree
    arguments: Mapping[str, Any]
    predictors: Mapping[str, tuple[Any, Sequence[Any] | None]]
    notes: tuple[str, ...] = ()
    repeated: bool = False

    def argument(self, name: str) -> np.ndarray | None:
        """An argument with a number for each row."""
        value = self.arguments.get(name)
        return None if value is None else value.detach().double().cpu().numpy()


def rows_of(fit: Checked, seed: int) -> CheckedRows:
    """The rows that are checked.

    Raises:
        ModelError: If the model has no rows whose predictions can be compared with them.
    """
    problem, tree = fit.problem, fit.posterior
    refused = f"the model '{problem.model.name}' cannot be checked: "
    if fit.row_latents or "row_weights" in tree.children:
        raise ModelError(
            f"{refused}its rows have latents of their own, from which they are predicted; compare "
            "rows with 'elbowroom reconstruct RUN', and look for unusual ones by 'elbowroom score "
            "RUN'."
        )
    group, likelihood = (
        tree.children.get(name) for name in ("posterior_predictive", "log_likelihood")
    )
    names = [] if group is None else [str(name) for name in group.data_vars]
    if not names:
        raise ModelError(
            f"{refused}the run has no draws of what was observed; observe the rows by one "
            "pyro.sample(..., obs=...) whose distribution can be sampled."
        )
    if len(names) > 1:
        raise ModelError(
            f"{refused}it observes several columns ({', '.join(names[:3])}, ...), and one response "
            "is checked; compare the group posterior_predictive of posterior.nc with the data."
        )
    assert group is not None
    name = names[0]
    observed = tree["observed_data"][name].to_numpy().astype(float)
    drawn = group[name]
    if likelihood is None or name not in likelihood or likelihood[name].shape[2:] != observed.shape:
        likelihood = None
    if observed.ndim != 1 and likelihood is None:
        raise ModelError(f"{refused}each of its rows has several values; one is checked.")
    rows = CheckedRows(
        name, np.arange(observed.size), observed.ravel(),
        _flat(drawn), tree, problem.arguments, _predictors(fit, name, observed.shape),
    )  # fmt: skip
    found = _chosen(fit, rows, seed)
    if len(found.numbers) < SIZES.fewest:
        count = len(found.numbers)
        raise ModelError(f"{refused}it has {count} rows, and a check needs {SIZES.fewest}.")
    return found


def _flat(draws: xarray.DataArray) -> np.ndarray:
    """Draws of all chains in one row, (draws, rows)."""
    values = draws.transpose("chain", "draw", ...).to_numpy().astype(float)
    return values.reshape(values.shape[0] * values.shape[1], -1)


def _predictors(
    fit: Checked, response: str, shape: tuple[int, ...]
) -> dict[str, tuple[Any, Sequence[Any] | None]]:
    """What residuals may depend on: the columns of a formula, or arguments of the rows."""
    problem, found = fit.problem, dict[str, tuple[Any, Sequence[Any] | None]]()
    effects = problem.prepared.effects
    if effects is not None:
        for name, levels in effects.columns.items():
            values = problem.data[name].to_numpy()
            found[name] = (values, levels)
    else:
        constants: Mapping[Any, Any] = fit.posterior.children.get("constant_data", {})
        for name in constants:
            values = constants[name].to_numpy()
            if str(name) != response and values.shape == shape:
                whole = np.issubdtype(values.dtype, np.integer) or values.dtype == bool
                flat = values.ravel()
                found[str(name)] = (flat, tuple(np.unique(flat)) if whole else None)
    usable = {
        name: (values, levels) for name, (values, levels) in found.items()
        if len(np.unique(values) if levels is None else levels) > 1
        and (levels is None or len(levels) * SIZES.levels <= len(values))
    }  # fmt: skip
    return dict(list(usable.items())[: SIZES.predictors])


def _chosen(fit: Checked, rows: CheckedRows, seed: int) -> CheckedRows:
    """The rows, each as often as its weight says; or a sample of very many."""
    weights = rows.argument("weights") if fit.problem.model_name is not None else None
    numbers, notes = rows.numbers, list[str]()
    repeated = weights is not None and all(
        bool((each == np.round(each)).all()) for each in (weights, rows.observed)
    )
    if weights is not None and repeated:
        numbers = np.repeat(numbers, weights.astype(int))
        notes.append("Each row is checked as often as its weight says.")
    elif weights is not None:
        numbers = numbers[weights > 0]
        notes.append("Each row is checked once, whatever its weight.")
    if len(numbers) > SIZES.rows:
        picked = np.random.default_rng(seed).choice(len(numbers), SIZES.rows, replace=False)
        notes.append(f"Checked is a random sample of {SIZES.rows:,} of {len(numbers):,} rows.")
        numbers = numbers[np.sort(picked)]
    if np.array_equal(numbers, rows.numbers):
        return replace(rows, notes=tuple(notes))
    table = fit.problem.data
    predictors = {
        name: (np.asarray(values)[numbers], levels)
        for name, (values, levels) in rows.predictors.items()
    }
    some = replace(
        rows, numbers=numbers, predictors=predictors, notes=tuple(notes), repeated=repeated
    )
    if fit.problem.model_name is not None and isinstance(table, pd.DataFrame):
        return _drawn_again(fit, some, table, seed)
    tree = rows.tree
    if "log_likelihood" in tree.children and rows.name in tree["log_likelihood"]:
        values = tree["log_likelihood"].to_dataset()[rows.name]
        density = _flat(values)
        draws = values["draw"].to_numpy() if values.sizes["chain"] == 1 else None
        if density.shape == rows.drawn.shape:
            tree = _with_likelihood(tree, rows.name, density[:, numbers], draws)
    return replace(some, observed=rows.observed[numbers], drawn=rows.drawn[:, numbers], tree=tree)


def _drawn_again(fit: Checked, rows: CheckedRows, table: pd.DataFrame, seed: int) -> CheckedRows:
    """Rows of which there are more or fewer than the run has draws of."""
    some = table.iloc[rows.numbers].reset_index(drop=True)
    some.attrs = table.attrs
    problem, sites = fit.as_written(fit.global_sites())
    arguments = fit.problem.new_arguments(some)[0]
    if rows.repeated:
        arguments["weights"] = torch.ones_like(arguments["weights"])
    count = min((len(values) for values in sites.values()), default=1)
    step = -(-count // max(1, LARGEST_GROUP // len(rows.numbers)))
    few: dict[str, Tensor] = {name: values[::step] for name, values in sites.items()}
    given = problem.space.given(few)
    with problem.session(checked_seed(seed), fit.parameters):
        drawn = predict_sites(problem.function, arguments, given, problem.space)
        density = row_log_likelihood(problem, arguments, few)
    group = fit.posterior["unconstrained_posterior"]
    draws = group["draw"].to_numpy()[::step] if group.sizes["chain"] == 1 else None
    return replace(
        rows, observed=rows.observed[rows.numbers],
        drawn=drawn[problem.observed].double().cpu().numpy(), arguments=arguments,
        tree=_with_likelihood(rows.tree, rows.name, density, draws),
    )  # fmt: skip


def _with_likelihood(
    tree: xarray.DataTree, name: str, density: np.ndarray, draws: np.ndarray | None
) -> xarray.DataTree:
    """A tree with the log likelihood of other rows, (draws, rows), and the numbers of its draws."""
    kept = {
        group: tree[group].to_dataset()
        for group in ("posterior", "sample_stats") if group in tree.children
    }  # fmt: skip
    numbers = np.arange(len(density)) if draws is None else draws
    likelihood = xarray.Dataset(
        {name: (("chain", "draw", "checked"), density[None])},
        coords={"chain": [0], "draw": numbers},
    )
    made = xarray.DataTree.from_dict({**kept, "log_likelihood": likelihood})
    made.attrs.update(tree.attrs)
    return made


@dataclass(frozen=True)
class LeftOut:
    """How draws count for each row given the other rows.

    Attributes:
        weights: Summing to one over draws, (draws, rows).
        pareto_k: Of these, (rows,); NaN where rows are not left out.
        followed: The share of rows that the model has parameters for, p_loo / rows: how far a
            prediction follows its own row. One where that is not known.
        notes: What a reader should know.
    """

    weights: np.ndarray
    pareto_k: np.ndarray
    followed: float
    notes: tuple[str, ...] = ()


def left_out(rows: CheckedRows) -> LeftOut:
    """The weights of draws for each row given the others."""
    count, number = rows.drawn.shape
    found = rows_left_out(rows.tree)
    if found is None or found.log_weights is None or np.size(found.pareto_k) != number:
        note = (
            "Each row is predicted with itself among the fitted rows: the run does not tell how it "
            "would move without it."
        )
        even = np.full((count, number), 1 / count)
        return LeftOut(even, np.full(number, np.nan), 1.0, (note,))
    logs = _flat(found.log_weights)
    weights = np.exp(logs - logs.max(0))
    weak, notes = high_k(found), list[str]()
    if weak.any():
        first = [str(row + 1) for row in rows.numbers[np.flatnonzero(weak)]]
        named = ", ".join(first[: SIZES.named]) + (", ..." if len(first) > SIZES.named else "")
        notes.append(
            f"Pareto k is above the limit for {weak.sum():,} of {number:,} rows ({named}): their "
            "residuals may be too small."
        )
    k, followed = np.ravel(found.pareto_k), float(found.p) / number
    return LeftOut(weights / weights.sum(0), k, followed, tuple(notes))
