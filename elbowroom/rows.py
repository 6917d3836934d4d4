"""What a fitted model does with rows: it makes, completes, scores and embeds them.

Which of these a model has, its declaration says; `elbowroom models MODEL` lists them.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from pyro import poutine
from torch import Tensor

from elbowroom.data.tables import align_columns, read_table
from elbowroom.draws.imputing import dispersion_of_shares, from_chains, from_normals
from elbowroom.draws.tree import check_interval
from elbowroom.draws.weighted import WeightedDraws
from elbowroom.errors import DataError, ModelError, OptionError
from elbowroom.guides.space import Unobserved
from elbowroom.models import ROWS, get_model, model_summaries
from elbowroom.problem.bound import Problem
from elbowroom.problem.isolation import Parameters, checked_seed


class FittedModel(Protocol):
    """What is asked of a fit; see `elbowroom.result.Fit`."""

    @property
    def problem(self) -> Problem:
        """The model bound to its data."""

    @property
    def parameters(self) -> Parameters:
        """Of the guide and the model."""

    @property
    def row_latents(self) -> bool:
        """Whether rows have latents that the guide draws."""

    @property
    def point_parameters(self) -> dict[str, np.ndarray]:
        """The model's own point parameters."""

    def active(self, seed: int) -> AbstractContextManager[Callable[..., Any]]:
        """The guide, with its parameters in the active store."""

    def global_sites(self) -> dict[str, Tensor]:
        """The posterior's draws of the sites that are not for each row."""

    def predict(self, data: Any = None) -> pd.DataFrame:
        """Describes each row."""

    def row_arguments(self, data: Any) -> dict[str, Any]:
        """The model's arguments for rows whose latents the guide gives."""

    def weigh_rows(
        self, data: Any, draws: int, seed: int, keep: Sequence[str] = ()
    ) -> WeightedDraws:
        """Draws of the rows' latents."""


MOST_ROWS = 100_000
"""Rows that are made at once."""


@dataclass(frozen=True)
class Imputed:
    """Missing cells, filled in.

    Attributes:
        completed: The rows as they were given, with the means in the missing cells.
        cells: A line for each missing cell: row (counted from 1), column, mean, sd, lower, upper.
        draws: A line for each draw, and a column `ROW.COLUMN` for each missing cell.
        acceptance: The share of a chain's proposals that were taken; None where draws are exact.
    """

    completed: pd.DataFrame
    cells: pd.DataFrame
    draws: pd.DataFrame
    acceptance: float | None = None


def check_verb(fit: FittedModel, verb: str) -> None:
    """Sees that a model has a verb.

    Raises:
        ModelError: If it has not; those that have are named.
    """
    if verb not in fit.problem.model.verbs:
        having = [name for name in model_summaries() if verb in get_model(name).verbs]
        raise ModelError(
            f"the model '{fit.problem.model.name}' has no command '{verb}'; these models have "
            f"it: {', '.join(having)}."
        )


def embed(fit: FittedModel, data: Any, draws: int, seed: int) -> pd.DataFrame:
    """See `elbowroom.result.Fit.embed`."""
    check_verb(fit, "embed")
    problem = fit.problem
    if problem.model.predicts in problem.space.discrete:
        return fit.predict(data)
    sites = [name for name in problem.space.local if name not in problem.hidden]
    weighed = fit.weigh_rows(data, draws, seed, sites)
    found = weighed.resample(draws, np.random.default_rng(seed))
    columns = {}
    for name in sites:
        values = found.sites[name].double().reshape(draws, len(weighed.k_hat), -1)
        for j, label in enumerate(_labels(fit, name, values.shape[-1])):
            columns[f"{label}.mean"] = values[..., j].mean(0).numpy()
            columns[f"{label}.sd"] = values[..., j].std(0).numpy()
    return pd.DataFrame({**columns, "k_hat": weighed.k_hat})


def _labels(fit: FittedModel, site: str, count: int) -> list[str]:
    """Of each number of a site's value in a row."""
    if count == 1 and site not in fit.problem.prepared.dims:
        return [site]
    dims = fit.problem.prepared.dims.get(site, ("",))
    known = fit.problem.prepared.coords.get(dims[-1], ())
    names = known if len(known) == count else range(count)
    return [f"{site}[{name}]" for name in names]


def reconstruct(fit: FittedModel, data: Any, draws: int, seed: int) -> pd.DataFrame:
    """See `elbowroom.result.Fit.reconstruct`."""
    check_verb(fit, "reconstruct")
    problem, arguments = fit.problem, fit.row_arguments(data)

    def once() -> Tensor:
        drawn = poutine.trace(guide).get_trace(**arguments)
        return _expected(fit, poutine.replay(problem.function, trace=drawn), arguments)

    with fit.active(checked_seed(seed)) as guide, torch.no_grad():
        total = once()
        for _ in range(draws - 1):
            total = total + once()
    return _table(fit, total / draws)


def _expected(fit: FittedModel, model: Any, arguments: Mapping[str, Any]) -> Tensor:
    """The mean of what is observed, given the latents; a draw if the mean is unknown."""
    node = poutine.trace(model).get_trace(**arguments).nodes[fit.problem.observed]
    try:
        return node["fn"].mean
    except (NotImplementedError, AttributeError):
        return node["fn"].sample()


def _table(fit: FittedModel, values: Tensor) -> pd.DataFrame:
    """Rows in the user's units, under the names of their columns."""
    problem = fit.problem
    values = values.double().cpu()
    if problem.model.in_units is not None:
        values = problem.model.in_units(values, problem.prepared.arguments)
    if values.dim() == 1:
        return pd.DataFrame({problem.observed: values.numpy()})
    dims = problem.prepared.dims[problem.observed]
    return pd.DataFrame(values.numpy(), columns=list(problem.prepared.coords[dims[-1]]))


def _known_columns(fit: FittedModel) -> list[str]:
    """The columns that rows are made from, where a model has any."""
    labels = fit.problem.prepared.coords.get("known", ())
    return list(dict.fromkeys(str(label).partition("=")[0] for label in labels))


def _new_rows(
    fit: FittedModel, index: Tensor, given: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Arguments for new rows, with the known columns of some fitted rows.

    Args:
        fit: The fit.
        index: Of the fitted rows.
        given: For a column that rows are made from, what is known instead.

    Returns:
        The arguments, and what is known as a table.

    Raises:
        DataError: If a label was not there in training.
        OptionError: If a column that is given is none that rows are made from.
    """
    problem, columns = fit.problem, _known_columns(fit)
    for name in given or ():
        if name not in columns:
            has = (
                f"the known columns are {', '.join(columns)}"
                if columns
                else "this model has no known columns"
            )
            raise OptionError(f"--given {name}: '{name}' is not a known column; {has}.")
    table = problem.data.iloc[index.tolist()].assign(**(given or {}))
    table.attrs = problem.data.attrs
    made = dict(problem.new_arguments(table)[0] if given else problem.arguments)
    dims = problem.prepared.dims
    for name, value in made.items():
        own = dims.get(name, ())
        if name == problem.observed or (own and own == dims.get(problem.observed)):
            made[name] = None
        elif isinstance(value, Tensor) and own and own[0] == ROWS and not given:
            made[name] = value[index.to(value.device)]
    made["rows"] = len(index)
    return made, table[columns].reset_index(drop=True)


def generate(
    fit: FittedModel,
    count: int,
    data: Any,
    given: Mapping[str, Any] | None,
    expected: bool,
    prior: bool,
    seed: int,
) -> pd.DataFrame:
    """See `elbowroom.result.Fit.generate`."""
    check_verb(fit, "generate")
    if not 1 <= count <= MOST_ROWS:
        raise OptionError(f"--count {count}: give a number from 1 to {MOST_ROWS:,}.")
    if data is not None and (prior or given):
        raise OptionError("--data makes rows similar to given ones; leave --prior and --given out.")
    problem, seed = fit.problem, checked_seed(seed)
    # The observations are freed inside: the other way round frees what is conditioned on too.
    free = Unobserved()(problem.function)
    if data is not None:
        if not fit.row_latents:
            raise OptionError(
                "--data: the model has no latents for each row, so it cannot make rows similar "
                "to given ones."
            )
        return _near(fit, count, data, expected, seed)
    with problem.session(seed, fit.parameters), torch.no_grad():
        index = torch.randint(len(problem.arguments[problem.observed]), (count,))
        arguments, known = _new_rows(fit, index, given)
        if problem.space.rows_only:
            return _beside(known, _table(fit, _made(fit, free, arguments, expected)))
        sites = {} if prior else fit.global_sites()
        rows = []
        for i in range(count):
            picked = torch.randint(len(next(iter(sites.values()))), ()) if sites else None
            values = {name: value[picked].to(problem.device) for name, value in sites.items()}
            model = poutine.condition(free, data=values)
            rows.append(_made(fit, model, _new_rows(fit, index[i : i + 1])[0], expected))
        return _table(fit, torch.cat(rows))


def _near(fit: FittedModel, count: int, data: Any, expected: bool, seed: int) -> pd.DataFrame:
    """Rows from the latents of given ones, which are taken in turn."""
    problem, arguments = fit.problem, fit.row_arguments(data)
    times = -(-count // len(arguments[problem.observed]))
    with fit.active(seed) as guide, torch.no_grad():
        traces = [poutine.trace(guide).get_trace(**arguments) for _ in range(times)]
        replayed = [poutine.replay(Unobserved()(problem.function), trace=each) for each in traces]
        made = [_made(fit, model, arguments, expected) for model in replayed]
    return _table(fit, torch.cat(made)[:count])


def _beside(known: pd.DataFrame, made: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([known, made], axis=1) if len(known.columns) else made


def _made(fit: FittedModel, model: Any, arguments: Mapping[str, Any], expected: bool) -> Tensor:
    """What is observed of a model whose observations are freed, or its mean given the latents."""
    if expected:
        return _expected(fit, model, arguments)
    trace: Any = poutine.trace(model).get_trace(**arguments)
    return trace.nodes[fit.problem.observed]["value"]


def interpolate(
    fit: FittedModel, begin: int, end: int, steps: int, data: Any, seed: int
) -> pd.DataFrame:
    """See `elbowroom.result.Fit.interpolate`."""
    check_verb(fit, "interpolate")
    if steps < 2:
        raise OptionError(f"--steps {steps}: give at least 2.")
    arguments = fit.row_arguments(data)
    rows = len(arguments[fit.problem.observed])
    for option, row in (("--from", begin), ("--to", end)):
        if not 1 <= row <= rows:
            raise OptionError(f"{option} {row}: the rows are numbered from 1 to {rows}.")
    site = _only_site(fit)
    means = fit.weigh_rows(data, 200, seed, [site]).sites[site].mean(0)  # (rows, latents)
    share = torch.linspace(0, 1, steps).to(means).unsqueeze(-1)
    z = means[begin - 1] * (1 - share) + means[end - 1] * share
    index = torch.where(share[:, 0] <= 0.5, begin - 1, end - 1)
    return _decoded(fit, site, z, index)


def manifold(fit: FittedModel, size: int) -> pd.DataFrame:
    """See `elbowroom.result.Fit.manifold`."""
    check_verb(fit, "manifold")
    site = _only_site(fit)
    latents = next(each.shape[-1] for each in fit.problem.space.sites if each.name == site)
    if latents > 2:
        raise ModelError(
            f"a manifold needs one or two latents, and the model has {latents}; fit with "
            "--latent 2."
        )
    normal = torch.distributions.Normal(0.0, 1.0)
    line = normal.icdf((torch.arange(size, dtype=torch.float64) + 0.5) / size)
    # Of two, rows go downwards and columns to the right.
    z = line.unsqueeze(-1) if latents == 1 else torch.cartesian_prod(-line, line).flip(-1)
    return _decoded(fit, site, z, torch.zeros(len(z), dtype=torch.int64))


def _only_site(fit: FittedModel) -> str:
    """The latents of a row that are not noise of its cells."""
    (site,) = [name for name in fit.problem.space.local if name not in fit.problem.hidden]
    return site


def _decoded(fit: FittedModel, site: str, z: Tensor, index: Tensor) -> pd.DataFrame:
    """The expected row of each of some latents, which stand before it."""
    problem = fit.problem
    with problem.session(0, fit.parameters), torch.no_grad():
        values = {site: z.to(problem.device, problem.dtype)}
        model = poutine.condition(Unobserved()(problem.function), data=values)
        expected = _expected(fit, model, _new_rows(fit, index)[0])
    labels = _labels(fit, site, z.shape[-1])
    return pd.concat([pd.DataFrame(z.numpy(), columns=labels), _table(fit, expected)], axis=1)


def impute(fit: FittedModel, data: Any, draws: int, interval: float, seed: int) -> Imputed:
    """See `elbowroom.result.Fit.impute`."""
    check_verb(fit, "impute")
    check_interval(interval)
    problem, seed = fit.problem, checked_seed(seed)
    table = read_table(data, minimum_rows=1)
    names = list(problem.prepared.coords[problem.prepared.dims[problem.observed][-1]])
    given = align_columns(table, names)
    try:
        cells = given.astype("float64").to_numpy()
    except (TypeError, ValueError) as error:
        raise DataError(
            f"a column of the rows is not numeric ({error}); encode it as numbers."
        ) from error
    missing = np.isnan(cells)
    if not missing.any():
        raise DataError(
            "no cell of these rows is missing, so there is nothing to impute; leave cells empty "
            "to have them filled."
        )
    if problem.model.normals is not None:
        sites, points = fit.global_sites(), fit.point_parameters
        known = len(next(iter(sites.values()))) if sites else 1
        picked = np.random.default_rng(seed).integers(0, known, draws)
        of_draw = {
            i: problem.model.normals(
                problem.arguments, {name: value[i] for name, value in sites.items()}, points
            )
            for i in np.unique(picked)
        }
        normals = [of_draw[i] for i in picked]
        filled = from_normals(cells, normals, np.random.default_rng(seed))
        acceptance = None
    else:
        # A missing cell needs some value: the median of the fitted rows.
        middle = align_columns(problem.data, names).quantile(0.5, interpolation="nearest")
        complete = table.copy()
        complete[names] = given.fillna(middle)
        complete.attrs = table.attrs
        arguments = fit.row_arguments(complete)
        with fit.active(seed) as guide:
            dispersion = dispersion_of_shares(
                problem.function, guide, problem.arguments, problem.observed
            )
            values, acceptance = from_chains(
                problem.function, guide, arguments, problem.observed,
                torch.as_tensor(missing, device=problem.device), problem.space, draws,
                dispersion,
            )  # fmt: skip
        drawn = torch.as_tensor(values)
        if problem.model.in_units is not None:
            drawn = problem.model.in_units(drawn, problem.prepared.arguments)
        there = align_columns(problem.data, names).to_numpy(dtype=float)
        if dispersion is not None and np.array_equal(there, there.round()):
            drawn = drawn.round()  # to the levels of grey
        filled = drawn.numpy()
    return _imputed(table, names, missing, filled, interval, acceptance)


def _imputed(
    table: pd.DataFrame,
    names: list[str],
    missing: np.ndarray,
    filled: np.ndarray,
    interval: float,
    acceptance: float | None,
) -> Imputed:
    rows, columns = np.nonzero(missing)
    values = filled[:, rows, columns]  # (draws, missing cells)
    tail = (1 - interval) / 2
    lower, upper = np.quantile(values, [tail, 1 - tail], axis=0)
    cells = pd.DataFrame(
        {
            "row": rows + 1,
            "column": [names[j] for j in columns],
            "mean": values.mean(0),
            "sd": values.std(0),
            "lower": lower,
            "upper": upper,
        }
    )
    completed = table.copy()
    for j, name in enumerate(names):
        here = missing[:, j]
        if here.any():
            column = completed[name].astype("float64").to_numpy(copy=True)
            column[here] = filled[:, here, j].mean(0)
            completed[name] = column
    labels = [f"{row + 1}.{names[column]}" for row, column in zip(rows, columns, strict=True)]
    return Imputed(completed, cells, pd.DataFrame(values, columns=labels), acceptance)
