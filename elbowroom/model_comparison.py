"""Compares models that were fitted to the same observations, by leaving out one row at a time."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray

from elbowroom.assess.compare_models import (
    Candidate,
    Observed,
    check_same_observations,
    models_table,
    remarks_on,
    rows_table,
    which_model,
)
from elbowroom.assess.measures import rows_left_out
from elbowroom.assess.verdict import NOT_TRUSTED, Verdict
from elbowroom.commands import CompareModelsOptions
from elbowroom.errors import ElbowroomError, ModelError, OptionError
from elbowroom.loading import load
from elbowroom.options import check_options
from elbowroom.pipeline.leaving_out import log_density_without
from elbowroom.problem.process import alone
from elbowroom.result import Fit
from elbowroom.run import folder as run_folder
from elbowroom.run.files import reading

BESIDE = ("weights", "trials", "status", "upper", "truncated_lower", "truncated_upper")
"""Arguments of a named model that say what a row counts for, or what is known of its response."""


@dataclass(frozen=True)
class ModelComparison:
    """Several models of the same observations.

    Attributes:
        table: One line a model, trusted ones first; see
            `elbowroom.assess.compare_models.models_table`.
        rows: One line for each model and row; see `elbowroom.assess.compare_models.rows_table`.
        recommendation: Which model to take, and whether the difference is more than its error.
        remarks: What a reader should know, in sentences.
    """

    table: pd.DataFrame
    rows: pd.DataFrame
    recommendation: str
    remarks: tuple[str, ...]

    @property
    def best(self) -> str | None:
        """The trusted model with the highest elpd; None if no model is trusted."""
        first = self.table.iloc[0]
        return None if first["verdict"] == NOT_TRUSTED else str(first["model"])


@dataclass(frozen=True)
class _Given:
    """A fit or a run folder of a comparison, and what is read of it.

    Attributes:
        name: In the table.
        fit: None for a folder.
        path: Of the folder; None for a fit.
        tree: The posterior.
        verdict: Of the fit.
        measures: Its diagnostics.
        model: The named model, its options and data, None for one of the user's own.
    """

    name: str
    fit: Fit | None
    path: Path | None
    tree: xarray.DataTree
    verdict: Verdict
    measures: Mapping[str, Any]
    model: tuple[Any, ...] | None

    def loaded(self, trust: bool) -> Fit:
        """The fit itself."""
        if self.fit is not None:
            return self.fit
        assert self.path is not None
        if self.model is None:
            raise ModelError(
                "the run is of a model of your own, which a run folder does not contain; in Python "
                f"give er.compare_models the fit, er.load('{self.path}', model=...)."
            )
        return load(self.path, trust=trust)


@alone
def compare_models(
    runs: Mapping[str, Fit | str | Path] | Sequence[str | Path],
    *,
    refit: int = CompareModelsOptions.refit,
    trust: bool = False,
    report: Callable[[str], None] | None = None,
) -> ModelComparison:
    """Compares models by the expected log predictive density of new rows, elpd, in nats.

    That is the sum over rows of the log density of a row given all others, by Pareto-smoothed
    importance sampling (Vehtari, Gelman and Gabry, 2017, "Practical Bayesian model evaluation using
    leave-one-out cross-validation and WAIC"), through `arviz_stats.compare`. Draws of a guide that
    no weights have corrected count by log p - log q as well; see
    `elbowroom.assess.measures.rows_left_out`. Rows whose Pareto k is too high are left out by
    fitting again; see `elbowroom.pipeline.leaving_out.log_density_without`.

    Args:
        runs: Fits or run folders by name; or folders, whose names are taken.
        refit: Rows of each trusted model that are left out by fitting again, at most, the highest
            k first.
        trust: Whether formulas in run folders may execute code, and files may be of any size.
        report: Called with a line before each of these fits.

    Raises:
        OptionError: If there are fewer than two runs, one is given twice, or `refit` is out of
            range.
        DataError: If their observations differ: number, order or values of rows, or the response.
        ModelError: If one has no log likelihood by row, of which it is said why.
        RunFolderError: If a folder cannot be read.

    Example:
        >>> import elbowroom as er
        >>> def fitted(column):
        ...     formula = f"progression ~ {column}"
        ...     return er.fit("bayesian_regression", "diabetes", formula=formula, seed=1)
        >>> fits = {column: fitted(column) for column in ("bmi", "bp")}
        >>> compare_models(fits).table[["model", "rank", "elpd_diff"]].round(0)
          model  rank  elpd_diff
        0   bmi     1        0.0
        1    bp     2       45.0
    """
    check_options(CompareModelsOptions, refit=refit)
    given = [_read(name, each, trust) for name, each in _named(runs).items()]
    candidates = [_candidate(each) for each in given]
    observed = [_observed(*pair) for pair in zip(given, candidates, strict=True)]
    check_same_observations(observed)
    said = [*_of_guides(given), *_of_kinds(observed)]
    for place, (each, candidate) in enumerate(zip(given, candidates, strict=True)):
        candidates[place], remarks = _refitted(each, candidate, refit, trust, report)
        said += remarks
    table, warned = models_table(candidates)
    return ModelComparison(
        table,
        rows_table(candidates),
        which_model(table),
        (*remarks_on(candidates, table), *said, *warned),
    )


def _named(runs: Any) -> dict[str, Any]:
    """Runs by their names: those of folders, or their whole paths where two have the same.

    Raises:
        OptionError: If there are fewer than two, or one is there twice.
    """
    if isinstance(runs, (str, Path, Fit)):
        runs = [runs]
    if not isinstance(runs, Mapping):
        for each in runs:
            if isinstance(each, Fit):
                raise OptionError(
                    "fits have no names; give them by name: er.compare_models({'a': fit_a, "
                    "'b': fit_b})."
                )
        paths = [Path(each) for each in runs]
        stems = [path.resolve().name for path in paths]
        names = [
            stem if stems.count(stem) == 1 else str(path)
            for stem, path in zip(stems, paths, strict=True)
        ]
        for path in paths:
            if [each.resolve() for each in paths].count(path.resolve()) > 1:
                raise _twice(f"'{path}'")
        runs = dict(zip(names, paths, strict=True))
    if len(runs) < 2:
        raise OptionError(
            f"{'one run is' if len(runs) else 'no runs are'} given, and a comparison needs two or "
            "more; give the runs of other models of the same rows."
        )
    seen: dict[Any, str] = {}
    for name, each in runs.items():
        key = id(each) if isinstance(each, Fit) else Path(each).resolve()
        if key in seen:
            raise _twice(f"'{seen[key]}' and '{name}' are the same run, which")
        seen[key] = name
    return {str(name): each for name, each in runs.items()}


def _twice(what: str) -> OptionError:
    return OptionError(f"{what} is given twice; give it once.")


def _read(name: str, given: Any, trust: bool) -> _Given:
    if isinstance(given, Fit):
        problem, tree = given.problem, given.posterior
        options = None if problem.options is None else asdict(problem.options)
        model = None if options is None else _key(problem.model.name, options, tree)
        return _Given(name, given, None, tree, given.verdict, given.diagnostics, model)
    path = Path(given)
    run = run_folder.load(path, trust, data=False)
    config, tree = run.config, run.posterior
    model = _key(config.model, config.options, tree) if config.registered_model else None
    return _Given(name, None, path, tree, run.run.verdict, run.diagnostics, model)


def _key(model: str, options: Mapping[str, Any], tree: xarray.DataTree) -> tuple[Any, ...]:
    """What two fits have in common if they are of one posterior."""
    constants: Mapping[Any, Any] = tree.children.get("constant_data", {})
    data = [constants[name].to_numpy().tobytes() for name in constants]
    return model, json.dumps(options, default=str, sort_keys=True), *data


def _candidate(given: _Given) -> Candidate:
    """A model with the log densities of its rows left out.

    Raises:
        ModelError: If it has none.
    """
    loo = None
    if not np.isnan(given.measures["elpd_loo"]):
        with reading(given.path or Path(given.name), "log_likelihood"):
            loo = rows_left_out(given.tree)
    if loo is None:
        raise ModelError(f"'{given.name}' cannot be compared: {_why_no_rows(given)}")
    return Candidate(given.name, loo, given.verdict.level)


def _why_no_rows(given: _Given) -> str:
    group = given.tree.children.get("log_likelihood")
    names = [] if group is None else list(group.data_vars)
    if not names:
        return (
            "it has no log likelihood by row; observe the rows by one site in a pyro.plate, and "
            "fit again."
        )
    if len(names) > 1:
        listed = ", ".join(map(str, names))
        return f"it observes several sites ({listed}), and rows can be left out of one alone."
    if np.isnan(given.measures["elbo"]):
        return (
            "it was fitted as one point, which does not say how it would move without a row; fit "
            "with --guide auto."
        )
    if "row_weights" in given.tree.children:
        return (
            "its rows have latents of their own, so that a draw's likelihood of a row is none of "
            "the row given the others; compare test rows by 'elbowroom compare --test-size'."
        )
    return (
        "the log likelihood of a row is the same for all draws, has too few of them, or is given "
        "latents of its own; compare test rows by 'elbowroom compare --test-size'."
    )


def _observed(given: _Given, candidate: Candidate) -> Observed:
    tree = given.tree
    with reading(given.path or Path(given.name), "observed_data"):
        values = {str(name): v.to_numpy() for name, v in tree["observed_data"].data_vars.items()}
    constants: Mapping[Any, Any] = tree.children.get("constant_data", {})
    named = BESIDE if given.model is not None else ()
    beside = {name: constants[name].to_numpy() for name in named if name in constants}
    return Observed(given.name, values, beside, candidate.loo.n_data_points, _whole(tree))


def _whole(tree: xarray.DataTree) -> bool | None:
    """Whether draws of what was observed are whole numbers; None where there are none."""
    drawn = tree.children.get("posterior_predictive")
    if drawn is None or not drawn.data_vars:
        return None
    numbers = [each.to_numpy().ravel() for each in drawn.data_vars.values()]
    return all(bool((each == np.round(each)).all()) for each in numbers)


def _of_kinds(observed: Sequence[Observed]) -> list[str]:
    """A remark where some models give probabilities and others densities."""
    whole = [each.name for each in observed if each.whole]
    real = [each.name for each in observed if each.whole is False]
    if not (whole and real):
        return []
    return [
        f"'{whole[0]}' gives probabilities of whole numbers and '{real[0]}' densities: their "
        "difference has a meaning only where values one unit apart are all that can be observed."
    ]


def _of_guides(given: Sequence[_Given]) -> list[str]:
    """A remark on each run whose model and options another run has, too."""
    said, seen = [], dict[tuple[Any, ...], str]()
    for each in given:
        if each.model is None:
            continue
        if each.model in seen:
            said.append(
                f"'{seen[each.model]}' and '{each.name}' are fits of the same model with the same "
                "options: they differ by the error of the fits alone (guides are compared by "
                "'elbowroom compare')."
            )
        seen.setdefault(each.model, each.name)
    return said


def _refitted(
    given: _Given,
    candidate: Candidate,
    most: int,
    trust: bool,
    report: Callable[[str], None] | None,
) -> tuple[Candidate, list[str]]:
    """A model with its worst rows left out by fitting again, and why others were not."""
    rows = np.flatnonzero(candidate.unreliable)
    rows = rows[np.argsort(-candidate.pareto_k[rows], kind="stable")][:most]
    if not (len(rows) and candidate.trusted):
        return candidate, []
    try:
        fit = given.loaded(trust)
    except ElbowroomError as error:
        return candidate, [f"No row of '{given.name}' was refitted: {error}"]
    found: dict[int, float] = {}
    said = []
    for place, row in enumerate(rows, 1):
        if report is not None:
            report(f"{given.name}: fitting without row {row + 1} ({place} of {len(rows)})")
        try:
            found[int(row)] = log_density_without(fit, int(row))
        except ElbowroomError as error:
            said.append(f"'{given.name}' was not refitted without row {row + 1}: {error}")
    return replace(candidate, refitted=found), said
