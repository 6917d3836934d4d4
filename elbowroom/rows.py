"""What a fitted model does with rows: it makes, completes, scores and embeds them.

Which of these a model has, its declaration says; `elbowroom models MODEL` lists them.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from pyro import poutine
from torch import Tensor

from elbowroom.commands import (
    EmbedOptions,
    GenerateOptions,
    ImputeOptions,
    InterpolateOptions,
    ManifoldOptions,
    ReconstructOptions,
)
from elbowroom.data.tables import align_columns, read_table
from elbowroom.draws.imputing import dispersion_of_shares, from_chains, from_normals
from elbowroom.draws.row_runs import RowRuns
from elbowroom.draws.row_weights import draws_of_rows, plate_of_rows
from elbowroom.draws.weighted import WeightedDraws
from elbowroom.errors import DataError, ModelError, OptionError
from elbowroom.guides.space import Unobserved
from elbowroom.memory import check_memory
from elbowroom.models import ROWS, get_model, model_summaries
from elbowroom.models._columns import codes
from elbowroom.options import check_options
from elbowroom.problem.bound import Problem
from elbowroom.problem.isolation import Parameters, checked_seed
from elbowroom.problem.mapping import map_draws
from elbowroom.problem.row_batches import some_rows
from elbowroom.sizes import SIZES


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

    def guide_of_rows(self, seed: int) -> AbstractContextManager[Callable[..., Any]]:
        """The guide of the rows' latents, given draws of what rows share."""

    def global_sites(self) -> dict[str, Tensor]:
        """The posterior's draws of the sites that are not for each row."""

    def predict(self, data: Any = None) -> pd.DataFrame:
        """Describes each row."""

    def row_arguments(self, data: Any) -> dict[str, Any]:
        """The model's arguments for rows whose latents the guide gives."""

    def weigh_rows(
        self, data: Any, draws: int | None, seed: int, keep: Sequence[str] = ()
    ) -> WeightedDraws:
        """Draws of the rows' latents."""

    def moments_of_rows(
        self, data: Any, sites: Sequence[str], draws: int, seed: int
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """The guide's own means and sds of rows' latents, by site."""


@dataclass(frozen=True)
class Verbs:
    """How much work the verbs do unless they are told."""

    draws: int = 1000
    """Draws of each row that are weighed, where that takes seconds."""
    fewest: int = 100
    """Draws of a row that are worth weighing: a fifth of them is the tail that is smoothed."""
    scored: int = 6
    """How much longer a score may take than latents: there is no score without weights."""
    arrays: int = 4
    """Arrays of the size of a result that are held while it is made, at most."""
    own: int = 200
    """Draws of a guide whose distributions have no means, which are then off by an sd in 14."""


VERBS = Verbs()
OWN = ("generate", "embed", "reconstruct", "interpolate")
"""What a user's own model can do whose rows have latents, beside what all can."""


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

    A user's own model has those on rows if a guide draws their latents, and no others.

    Raises:
        ModelError: If it has not; those that have are named.
    """
    problem = fit.problem
    if verb in problem.model.verbs:
        return
    own = problem.model_name is None
    if own and verb in OWN and problem.space.rows_only and fit.row_latents:
        if verb != "interpolate" or len(_on_line(fit)) == 1:
            return
        raise ModelError(
            f"the model '{problem.model.name}' has no command 'interpolate': there is a line "
            "between rows where they have one continuous latent site, of real numbers."
        )
    having = [name for name in model_summaries() if verb in get_model(name).verbs]
    needed = (
        " Your own model has it where all latents and observations lie in one plate of the rows, "
        "and a guide of your own draws the latents from the rows alone, or the model takes "
        "batch_size as the plate's subsample_size."
        if own and verb in OWN
        else ""
    )
    if verb == "effects":
        needed = " Predict rows that differ in one column with 'elbowroom predict' instead."
    raise ModelError(
        f"the model '{problem.model.name}' has no command '{verb}'; these models have "
        f"it: {', '.join(having)}.{needed}"
    )


def _on_line(fit: FittedModel) -> list[str]:
    """The sites of rows' latents between which a line may be drawn."""
    local = [name for name in fit.problem.space.local if name not in fit.problem.hidden]
    real = {site.name for site in fit.problem.space.sites if site.real}
    return local if set(local) <= real else []


def check_size(
    fit: FittedModel,
    said: str,
    draws: int,
    arguments: Mapping[str, Any],
    keep: Sequence[str],
    edit: str,
) -> None:
    """Refuses more draws of rows than fit into memory: their weights, and what is kept of them.

    Args:
        fit: The fit.
        said: The option, as it was given.
        draws: Of each row.
        arguments: Of the rows.
        keep: Latent sites whose draws are kept.
        edit: What to give instead.

    Raises:
        OptionError: With the memory that they would take, and that is free.
    """
    problem = fit.problem
    rows = max((v.shape[0] for v in arguments.values() if isinstance(v, Tensor) and v.dim()),
               default=1)  # fmt: skip
    own = sum(prod(s.shape) for s in problem.space.sites if s.name in keep)
    plate = problem.space.subsampled
    each = own / plate.size if plate is not None else 0
    size = 8.0 * draws * rows * (VERBS.arrays + 2 * each)
    check_memory(f"{said} of {rows:,} rows", size, f"give {edit}", OptionError)


def check_table(fit: FittedModel, said: str, rows: int, copies: int = 1) -> None:
    """Refuses more rows than fit into memory, in the columns that the model makes.

    Args:
        fit: The fit.
        said: The option, as it was given.
        rows: How many.
        copies: Draws of all of them that are held at once.

    Raises:
        OptionError: With the memory that they would take, and that is free.
    """
    observed = fit.problem.arguments.get(fit.problem.observed)
    shape = observed.shape[1:] if isinstance(observed, Tensor) else ()
    size = 8.0 * rows * prod(shape) * (VERBS.arrays + copies - 1)
    check_memory(f"{said} of {prod(shape):,} numbers", size, "give fewer", OptionError)


def embed(fit: FittedModel, data: Any, draws: int | None, seed: int) -> pd.DataFrame:
    """See `elbowroom.result.Fit.embed`."""
    check_options(EmbedOptions, draws=draws, seed=seed)
    check_verb(fit, "embed")
    problem = fit.problem
    if problem.model.predicts in problem.space.discrete:
        return fit.predict(data)
    sites = [name for name in problem.space.local if name not in problem.hidden]
    own = False
    if draws is None:
        draws = draws_of_rows(fit.row_arguments(data), VERBS.draws, 0, SIZES.evaluated)
        own = draws < VERBS.fewest
    if own:
        found = fit.moments_of_rows(data, sites, VERBS.own, seed)
        k_hat = np.full(len(found[sites[0]][0]), np.nan)
    else:
        weighed = fit.weigh_rows(data, draws, seed, sites)
        values = weighed.resample(draws, np.random.default_rng(seed)).sites
        found = {name: (values[name].double().mean(0), values[name].double().std(0))
                 for name in sites}  # fmt: skip
        k_hat = weighed.k_hat
    columns = {}
    for name, (mean, sd) in found.items():
        means, sds = (each.double().reshape(len(k_hat), -1).numpy() for each in (mean, sd))
        for j, label in enumerate(_labels(fit, name, means.shape[-1])):
            columns[f"{label}.mean"], columns[f"{label}.sd"] = means[:, j], sds[:, j]
    return pd.DataFrame({**columns, "k_hat": k_hat})


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
    check_options(ReconstructOptions, draws=draws, seed=seed)
    check_verb(fit, "reconstruct")
    problem, arguments = fit.problem, fit.row_arguments(data)
    total: Tensor | None = None

    def of_draw(drawn: Any, given: Mapping[str, Any]) -> dict[str, Tensor]:
        replayed = poutine.replay(problem.function, trace=drawn)
        return {problem.observed: _expected(fit, replayed, given)}

    with fit.guide_of_rows(checked_seed(seed)) as guide:
        plate = plate_of_rows(guide, arguments, problem.space)
        runs = RowRuns(problem.function, guide, arguments, problem.space, plate)
        for part in runs.parts(of_draw, draws):
            values = part.values[problem.observed].cpu()
            if total is None:
                total = torch.zeros(plate.size, *values.shape[2:], dtype=values.dtype)
            total[part.rows] += values.sum(0)
    assert total is not None
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
    if problem.observed not in problem.prepared.dims:
        return _own_table(fit, values)
    dims = problem.prepared.dims[problem.observed]
    return pd.DataFrame(values.numpy(), columns=list(problem.prepared.coords[dims[-1]]))


def _own_table(fit: FittedModel, values: Tensor) -> pd.DataFrame:
    """Rows of a user's own model: a column for each number, named as the data's if they are."""
    known = list(fit.problem.prepared.coords.get("column", ()))
    if values.dim() != 2 or len(known) != values.shape[1]:
        known = [
            f"{fit.problem.observed}[{','.join(map(str, place))}]"
            for place in np.ndindex(*values.shape[1:])
        ]
    return pd.DataFrame(values.reshape(len(values), -1).numpy(), columns=known)


def _known_columns(fit: FittedModel) -> list[str]:
    """The columns that rows are made from, where a model has any."""
    labels = fit.problem.prepared.coords.get("known", ())
    return _labelled_column(fit) + list(
        dict.fromkeys(str(label).partition("=")[0] for label in labels)
    )


def _rows(fit: FittedModel, arguments: Mapping[str, Any]) -> int:
    """How many rows some arguments have."""
    problem = fit.problem
    if problem.model_name is not None:
        return len(arguments[problem.observed])
    if arguments is problem.arguments:
        assert problem.space.subsampled is not None
        return problem.space.subsampled.size
    with fit.active(0) as guide:
        return plate_of_rows(guide, arguments, problem.space).size


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
    if problem.model_name is None:
        return _taken(fit, problem.arguments, index), pd.DataFrame(index=range(len(index)))
    table = problem.data.iloc[index.tolist()].assign(**(given or {}))
    table.attrs = problem.data.attrs
    known = table[columns].reset_index(drop=True)
    if not given:
        return _taken(fit, problem.arguments, index), known
    everything = torch.arange(len(index))
    return _taken(fit, problem.new_arguments(table)[0], everything), known


def _taken(fit: FittedModel, arguments: Mapping[str, Any], index: Tensor) -> dict[str, Any]:
    """Of some rows' arguments those of a few, without what is observed of them."""
    if fit.problem.model_name is None:
        return some_rows(arguments, _rows(fit, arguments), index)
    made, dims, observed = dict(arguments), fit.problem.prepared.dims, fit.problem.observed
    for name, value in made.items():
        own = dims.get(name, ())
        told = name in (observed, fit.problem.model.labels)
        if told or (own and own == dims.get(observed)):
            made[name] = None
        elif isinstance(value, Tensor) and own and own[0] == ROWS:
            made[name] = value[index.to(value.device)]
    made["rows"] = len(index)
    return made


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
    check_options(GenerateOptions, count=count, seed=seed)
    check_verb(fit, "generate")
    if data is not None and (prior or given):
        raise OptionError("--data makes rows similar to given ones; leave --prior and --given out.")
    check_table(fit, f"--count {count:,}", count)
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
        index = torch.randint(_rows(fit, problem.arguments), (count,))
        arguments, known = _new_rows(fit, index, given)
        if problem.space.rows_only:
            return _beside(known, _table(fit, _made(fit, free, arguments, expected)))
        drawn = {} if prior else fit.global_sites()
        # New rows have latents of their own, by their prior.
        sites = {name: each for name, each in drawn.items() if name not in problem.space.local}
        asked, columns = _of_label(fit, given), _labelled_column(fit)
        rows, labels = [], []
        for i in range(count):
            picked = torch.randint(len(next(iter(sites.values()))), ()) if sites else None
            values = {name: value[picked].to(problem.device) for name, value in sites.items()}
            model: Any = poutine.condition(free, data={**values, **asked})
            arguments = _new_rows(fit, index[i : i + 1])[0]
            if columns:
                trace: Any = poutine.trace(model).get_trace(**arguments)
                labels.append(_label(fit, int(trace.nodes[problem.model.predicts]["value"])))
                model = poutine.replay(model, trace=trace)
            rows.append(_made(fit, model, arguments, expected))
        made = _table(fit, torch.cat(rows))
        return _beside(pd.DataFrame(dict.fromkeys(columns, labels)), made)


def _labelled_column(fit: FittedModel) -> list[str]:
    """The column that tells the discrete site of some rows, where the fit has one."""
    problem = fit.problem
    if problem.model.labels is None or problem.model.labels not in problem.prepared.columns:
        return []
    return [str(problem.prepared.columns[problem.model.labels])]


def _label(fit: FittedModel, value: int) -> Any:
    """What that column says of a value of the site; None where no label has it."""
    levels = fit.problem.arguments["levels"]
    return levels[value] if value < len(levels) else None


def _of_label(fit: FittedModel, given: Mapping[str, Any] | None) -> dict[str, Tensor]:
    """The discrete site of a row with a label that is given, (1,).

    Raises:
        DataError: If the label did not occur in the fitted rows.
    """
    for name in _labelled_column(fit):
        if name in (given or {}):
            label = pd.Series([str((given or {})[name])], name=name)
            levels = list(map(str, fit.problem.arguments["levels"]))
            return {fit.problem.model.predicts: codes(label, levels).to(fit.problem.device)}
    return {}


def _near(fit: FittedModel, count: int, data: Any, expected: bool, seed: int) -> pd.DataFrame:
    """Rows from the latents of given ones, which are taken in turn."""
    problem, arguments = fit.problem, fit.row_arguments(data)
    times = -(-count // _rows(fit, arguments))
    with fit.guide_of_rows(seed) as guide, torch.no_grad():
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
    check_options(InterpolateOptions, begin=begin, end=end, steps=steps, seed=seed)
    check_verb(fit, "interpolate")
    copies = 1 if fit.problem.space.rows_only else VERBS.own
    check_table(fit, f"--steps {steps:,}", steps, copies)
    arguments = fit.row_arguments(data)
    rows = _rows(fit, arguments)
    for option, row in (("--from", begin), ("--to", end)):
        if not 1 <= row <= rows:
            raise OptionError(f"{option} {row}: the rows are numbered from 1 to {rows}.")
    site = _only_site(fit)
    means, _ = fit.moments_of_rows(data, [site], VERBS.own, seed)[site]  # (rows, latents)
    share = torch.linspace(0, 1, steps).to(means).unsqueeze(-1)
    z = means[begin - 1] * (1 - share) + means[end - 1] * share
    index = torch.where(share[:, 0] <= 0.5, begin - 1, end - 1)
    return _decoded(fit, site, z, index, arguments)


def manifold(fit: FittedModel, size: int) -> pd.DataFrame:
    """See `elbowroom.result.Fit.manifold`."""
    check_options(ManifoldOptions, size=size)
    check_verb(fit, "manifold")
    site = _only_site(fit)
    latents = next(each.shape[-1] for each in fit.problem.space.sites if each.name == site)
    if latents > 2:
        raise ModelError(
            f"a manifold needs one or two latents, and the model has {latents}; fit with "
            "--latent 2."
        )
    copies = 1 if fit.problem.space.rows_only else VERBS.own
    check_table(fit, f"--size {size}, {size**latents:,} images", size**latents, copies)
    normal = torch.distributions.Normal(0.0, 1.0)
    line = normal.icdf((torch.arange(size, dtype=torch.float64) + 0.5) / size)
    # Of two, rows go downwards and columns to the right.
    z = line.unsqueeze(-1) if latents == 1 else torch.cartesian_prod(-line, line).flip(-1)
    return _decoded(fit, site, z, torch.zeros(len(z), dtype=torch.int64), fit.problem.arguments)


def _only_site(fit: FittedModel) -> str:
    """The latents of a row that are not noise of its cells."""
    (site,) = [name for name in fit.problem.space.local if name not in fit.problem.hidden]
    return site


def _decoded(
    fit: FittedModel, site: str, z: Tensor, index: Tensor, arguments: Mapping[str, Any]
) -> pd.DataFrame:
    """The expected row of each of some latents, which stand before it.

    Args:
        fit: The fit.
        site: Of the latents.
        z: The latents, (rows, ...).
        index: The rows whose known columns these have.
        arguments: Of those.
    """
    problem, given = fit.problem, _taken(fit, arguments, index)
    free = Unobserved()(problem.function)
    known = {} if problem.space.rows_only else fit.global_sites()
    shared = {name: each for name, each in known.items() if name not in problem.space.local}
    with problem.session(0, fit.parameters), torch.no_grad():
        own = {site: z.to(problem.device, problem.dtype)}

        def at(values: dict[str, Tensor]) -> Tensor:
            return _expected(fit, poutine.condition(free, data={**own, **values}), given)

        device = problem.device
        drawn = {name: each[: VERBS.own].to(device) for name, each in shared.items()}
        expected = map_draws(at, drawn).mean(0) if drawn else at({})
    labels = _labels(fit, site, z.shape[-1])
    return pd.concat([pd.DataFrame(z.numpy(), columns=labels), _table(fit, expected)], axis=1)


def impute(fit: FittedModel, data: Any, draws: int, interval: float, seed: int) -> Imputed:
    """See `elbowroom.result.Fit.impute`."""
    check_options(ImputeOptions, draws=draws, interval=interval, seed=seed)
    check_verb(fit, "impute")
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
    check_memory(
        f"--draws {draws:,} of {cells.size:,} cells",
        8.0 * VERBS.arrays * draws * cells.size,
        "give fewer --draws or rows",
        OptionError,
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
