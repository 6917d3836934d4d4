"""Fits several guides to one model and data, and compares the results."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd
import xarray

from elbowroom import budget
from elbowroom.assess.compare import (
    NUTS,
    Row,
    best_reference,
    comparison_table,
    posterior_differences,
    which_to_take,
)
from elbowroom.assess.measures import leave_one_out
from elbowroom.commands import CompareOptions
from elbowroom.data.tables import read_table
from elbowroom.density.landscape import Landscape, explore
from elbowroom.engines.registry import ENGINES
from elbowroom.engines.settings import (
    Settings,
    Way,
    check_read,
    only_read,
    seconds_allowed,
)
from elbowroom.engines.task import Progress, Task
from elbowroom.errors import DataError, ElbowroomError, GuideError, OptionError
from elbowroom.guides import Guide, guides_for
from elbowroom.held_out import held_out_scores, split_rows
from elbowroom.models import model_summaries
from elbowroom.objectives import objectives
from elbowroom.options import check_options, make_options
from elbowroom.pipeline.fitting import (
    bind_model,
    check_engine,
    chosen_engine,
    fit_task,
    resolve_guide,
    resolve_options,
    started,
)
from elbowroom.pipeline.reference import add_reference
from elbowroom.problem.bound import Problem, resolve_model
from elbowroom.problem.isolation import checked_seed
from elbowroom.problem.process import alone
from elbowroom.result import Fit
from elbowroom.run.output import check_target, writing

MARKER = "comparison.json"
"""The file that tells a comparison's folder from others."""
FILES = (MARKER, "comparison.csv", "differences.csv", "predictions.png")


@dataclass(frozen=True)
class Comparison:
    """Several guides on the same model, data and seed.

    Attributes:
        table: One line a guide, trusted ones first; see
            `elbowroom.assess.compare.comparison_table`.
        differences: How far each guide's own draws, and its corrected ones, are from the
            baseline's; see `elbowroom.assess.compare.posterior_differences`.
        fits: The fits that succeeded, by the name in the table.
        seed: Of every fit.
        baseline: What the posteriors are compared with; see
            `elbowroom.assess.compare.best_reference`.
    """

    table: pd.DataFrame
    differences: pd.DataFrame
    fits: dict[str, Fit]
    seed: int
    baseline: str | None = None

    @property
    def best(self) -> str | None:
        """The name of the guide with the best ELBO, trusted ones first; of ties the fastest."""
        best = self.table[self.table["best"]]
        return (
            None if best.empty else str(best.sort_values("seconds", kind="stable")["guide"].iloc[0])
        )

    @property
    def recommendation(self) -> str:
        """Which guide to take, and why, in one line; empty if all have failed."""
        fit = self.fits.get(self.best or "")
        return which_to_take(self.table, "" if fit is None else fit.verdict.advice)

    @alone
    def save(
        self,
        path: str | Path,
        overwrite: bool = False,
        also: Callable[[Path], None] | None = None,
    ) -> Path:
        """Writes comparison.csv, comparison.json, differences.csv and a run folder for each guide.

        Args:
            path: Of the folder.
            overwrite: Whether to replace Elbowroom's own files, if it exists. All other files stay.
            also: Called with the folder before it takes its place, to write more files.

        Raises:
            RunFolderError: As `elbowroom.result.Fit.save`.
        """
        folders = [_folder_of(name) for name in self.fits]
        with writing(Path(path), overwrite, MARKER, [*FILES, *folders]) as folder:
            self._write(folder)
            if also is not None:
                also(folder)
        return Path(path)

    def _write(self, folder: Path) -> None:
        self.table.to_csv(folder / "comparison.csv", index=False)
        self.differences.to_csv(folder / "differences.csv", index=False)
        content = {
            "seed": self.seed,
            "best": self.best,
            "baseline": self.baseline,
            "recommendation": self.recommendation,
            "guides": json.loads(self.table.to_json(orient="records")),
            "differences": json.loads(self.differences.to_json(orient="records")),
        }
        text = json.dumps(content, indent=1) + "\n"
        (folder / "comparison.json").write_text(text, encoding="utf-8")
        for name, fit in self.fits.items():
            fit.save(folder / _folder_of(name))


def _folder_of(name: str) -> str:
    """The name of a guide's folder."""
    return name.replace(":", "-")


def check_comparison(
    path: Path, overwrite: bool, model: Any, guides: Sequence[Any] | None, inputs: Sequence[Any]
) -> None:
    """Sees before any fit that a comparison can be written.

    Args:
        path: The folder to be.
        overwrite: Whether to replace Elbowroom's own files in one that is there.
        model: As `compare` takes it.
        guides: As `compare` takes it.
        inputs: Files that are read, or other values.

    Raises:
        RunFolderError: As `elbowroom.run.output.check_target`.
    """
    known = guides or (guides_for(model if model in model_summaries() else None))
    names = [*FILES, *(_folder_of(each) for each in known if isinstance(each, str))]
    check_target(path, overwrite, MARKER, names, inputs)


def _guide_and_objective(guide: Any) -> tuple[Any, str | None]:
    """A guide and the objective that `GUIDE:OBJECTIVE` asks for."""
    if not isinstance(guide, str) or ":" not in guide:
        return guide, None
    name, _, objective = guide.partition(":")
    return name, objective


@alone
def compare(
    model: Any,
    data: Any = None,
    guides: Sequence[Any] | None = None,
    *,
    engine: str = "auto",
    seed: int | None = None,
    draws: int | None = None,
    test_size: float | None = None,
    start: Mapping[str, Any] | str | Path | None = None,
    progress: Callable[[str], Progress | None] | None = None,
    **options: Any,
) -> Comparison:
    """Fits every guide to the same data with the same seed, and compares them.

    Each ELBO is estimated after the fit, from new draws, with its standard error.

    Args:
        model: As `elbowroom.fit` takes it.
        data: As `elbowroom.fit` takes it.
        guides: Names, `auto` too, `GUIDE:OBJECTIVE` (such as "local:trace_graph"), guide functions
            or AutoGuide classes; and "nuts", the sampler, which starts at draws of `auto`. By
            default every guide that can be used with the model.
        engine: As `elbowroom.fit` takes it; each guide has its own where it is "auto".
        seed: Of every fit; by default a new one, which is recorded.
        draws: Posterior draws of each fit.
        test_size: The share or number of test rows. No fit uses them; each predicts them, and the
            table has its scores; see `elbowroom.held_out.held_out_scores`.
        start: Of every fit, as `elbowroom.fit` takes it.
        progress: Given a guide's name, the progress callback of its fit, or None.
        **options: As `elbowroom.fit` takes them.

    Returns:
        The comparison. The line of a guide that failed says why.

    Raises:
        DataError, OptionError, ModelError: If nothing can be fitted.

    Example:
        >>> result = compare(
        ...     "bayesian_regression", "diabetes", ["laplace", "map"], formula="progression ~ bmi",
        ...     seed=1, steps=300,
        ... )
        >>> result.best
        'laplace'
    """
    check_options(CompareOptions, seed=seed, draws=draws, test_size=test_size)
    check_engine(engine)
    seed = checked_seed(seed)
    resolve_options(model, options)  # looked at before the table is read
    test = None
    if test_size is not None:
        data, test = _split(model, data, test_size, seed)
    problem, settings, suggested_draws = bind_model(model, data, options, *(guides or ()))
    problem = started(problem, start, *(guides or ()))
    if test is not None and not problem.new_arguments(test)[1]:
        raise DataError(
            "--test-size: the table has no column with the observed values, so there is nothing "
            "to predict; leave --test-size out."
        )
    methods = _methods(guides, problem, settings, engine)
    count = suggested_draws if draws is None else draws
    starts = _Starts(problem, settings, seed)
    rows: list[Row] = []
    fits: dict[str, Fit] = {}
    for method in methods:
        task = Task(
            problem, method.settings, seed, count,
            progress=progress(method.name) if progress is not None else None,
        )  # fmt: skip
        row, fit = _fitted(method, task, starts, test)
        rows.append(row)
        if fit is not None:
            fits[method.name] = fit
            if fit.trained.status == "interrupted":
                break
    baseline = best_reference(rows)
    differences = posterior_differences(rows, baseline or "")
    return Comparison(comparison_table(rows), differences, fits, seed, baseline)


@dataclass(frozen=True)
class _Method:
    """One line of a comparison.

    Attributes:
        name: In the table.
        guide: As it was given; "nuts" is the sampler.
        engine: The engine that was asked for.
        chosen: The one that fits it.
        settings: Those of the comparison that it reads, with its objective.
    """

    name: str
    guide: Any
    engine: str
    chosen: str
    settings: Settings


def _methods(
    guides: Sequence[Any] | None, problem: Problem, settings: Settings, engine: str
) -> list[_Method]:
    """The methods of a comparison.

    Raises:
        OptionError: If a guide is given twice, has no such objective, or no method reads an option.
    """
    if guides is None:
        fitting = guides_for(problem.model_name, problem.space.local_continuous).values()
        some = bool(problem.space.sites)
        guides = [g.name for g in fitting if some or g.model or (g.point and not g.likelihood)]
    names = [g if isinstance(g, str) else resolve_guide(g, problem).name for g in guides]
    for name in names:
        if names.count(name) > 1:
            raise OptionError(f"--guide {name} is given twice; give it once.")
    suggested = problem.model.suggested
    methods: list[_Method] = []
    ways: list[Way] = []
    for name, given in zip(names, guides, strict=True):
        guide, objective = _guide_and_objective(given)
        if guide == NUTS and objective is None:
            own = only_read(settings, suggested, Way("fixed_draws"))
            methods.append(_Method(name, guide, engine, NUTS, own))
            continue
        declared = resolve_guide(guide, problem)
        _check_objective(guide, objective, declared)
        own = settings if objective is None else _asking_for(objective, settings)
        chosen = chosen_engine(engine, declared, problem, own)
        way = Way(chosen, own.elbo, declared)
        if objective is not None:  # no other line of the comparison reads it
            check_read(replace(own, given=frozenset({"elbo"})), [way])
        ways.append(way)
        methods.append(_Method(name, guide, engine, chosen, only_read(own, suggested, way)))
    if ways:
        check_read(settings, ways)
    return methods


def _asking_for(objective: str, settings: Settings) -> Settings:
    """Settings that ask for an objective, as the option `elbo` does.

    Raises:
        OptionError: If it cannot be had with the others.
    """
    values = {each.name: getattr(settings, each.name) for each in fields(settings)}
    given = settings.given | {"elbo"}
    found: Settings = make_options(Settings, {**values, "elbo": objective, "given": given})
    return found


def _check_objective(guide: Any, objective: str | None, declared: Guide) -> None:
    if objective is None:
        return
    if "svi" not in declared.engines:
        raise OptionError(
            f"--guide {guide}:{objective}: objectives are for stochastic gradients, and the guide "
            f"'{guide}' is fitted in another way; give --guide {guide}."
        )
    if objective not in objectives():
        raise OptionError(
            f"--guide {guide}:{objective}: there is no objective '{objective}'; give one of "
            f"{', '.join(objectives())}."
        )


class _Starts:
    """Where the fits of a comparison begin, found once for all that begin alike."""

    def __init__(self, problem: Problem, settings: Settings, seed: int) -> None:
        self.task = Task(problem, settings, seed)
        # With point parameters, or an engine of the model's own, each engine begins by itself.
        self.apart = problem.space.parameters.size > 0 or problem.model.engine is not None
        self.known: Landscape | None = None

    def of(self, engine: str, guide: Guide) -> Landscape | None:
        """Where a guide begins; None where its engine finds that by itself."""
        if not ENGINES[engine].explores or (self.apart and ENGINES[engine].stochastic):
            return None
        if self.known is None:
            task = self.task
            self.known = (
                ENGINES[engine].start(task, guide)
                if self.apart
                else explore(task.problem, task.settings.restarts, task.seed)
            )
        return self.known


def _fitted(
    method: _Method, task: Task, starts: _Starts, test: pd.DataFrame | None
) -> tuple[Row, Fit | None]:
    """The line of a method, and its fit; one that failed has a line that says why."""
    try:
        return _fitted_in_time(method, task, starts, test)
    except ElbowroomError as error:
        return Row(method.name, {}, None, str(error)), None


def _fitted_in_time(
    method: _Method, task: Task, starts: _Starts, test: pd.DataFrame | None
) -> tuple[Row, Fit]:
    """The line of a method, and its fit, in the time that a fit has."""
    with budget.limited(seconds_allowed(task.settings)):
        if method.chosen == NUTS:
            begun = fit_task(replace(task, draws=None), "auto")
            fit = add_reference(begun, take=True)
            if fit.origin != NUTS:
                raise GuideError(fit.notes[-1])
        else:
            guide = resolve_guide(method.guide, task.problem)
            begin = starts.of(method.chosen, guide)
            fit = fit_task(task, method.guide, method.engine, begin)
    scores, remark = _scored(fit, test)
    fit = fit.with_remarks(*remark)
    measures = {**(_of_nuts(fit) if method.chosen == NUTS else _of_guide(fit)), **scores}
    own, corrected = _compared(fit)
    return Row(method.name, measures, own, corrected=corrected), fit


def _of_guide(fit: Fit) -> dict[str, Any]:
    return {
        **fit.diagnostics,
        **_of_rows(fit),
        "objective": fit.objective[0],
        "converged": fit.converged,
        "verdict": fit.verdict.level,
    }


def _of_rows(fit: Fit) -> dict[str, float]:
    """Of a guide whose rows have weights of their own: minus the log density of a row, and more."""
    rows, measures = fit.evidence.weights.rows, fit.diagnostics
    if rows is None:
        return {}
    return {
        "nll": -measures["log_evidence"] / rows[0],
        "nll_se": measures["log_evidence_se"] / rows[0],
        "good_rows": 1 - rows[1],
    }


def _of_nuts(fit: Fit) -> dict[str, Any]:
    """The measures of a sampler, which has no bound."""
    return {
        "objective": "sampled",
        **leave_one_out(fit.posterior),
        "seconds": fit.diagnostics["seconds"] + fit.diagnostics["reference_seconds"],
        "parameters": 0,
        "converged": True,
        "verdict": fit.verdict.level,
    }


def _split(model: Any, data: Any, size: float, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows to fit, and the test rows."""
    source = resolve_model(model).dataset if data is None else data
    if source is None or isinstance(source, Mapping):
        raise OptionError(
            "--test-size picks test rows from a table, but the data are not a table; give a table, "
            "or leave --test-size out."
        )
    return split_rows(read_table(source), size, seed)


def _scored(fit: Fit, test: pd.DataFrame | None) -> tuple[dict[str, float], list[str]]:
    """The fit's scores on the test rows, if there are any; a remark if it has none."""
    if test is None:
        return {}, []
    try:
        return held_out_scores(fit, test), []
    except ElbowroomError as error:
        return {}, [f"The test rows could not be scored: {error}"]


def _compared(fit: Fit) -> tuple[xarray.Dataset, xarray.Dataset | None]:
    """A guide's own draws, and the corrected ones if its posterior consists of these.

    Without latents of each row, which a rotation of all would change.
    """
    tree, local = fit.posterior, fit.problem.space.local
    whole = [
        tree[name].to_dataset().drop_vars(local, errors="ignore")
        for name in ("posterior", "raw_posterior")
        if name in tree.children
    ]
    if fit.origin == "corrected" and len(whole) == 2:
        return whole[1], whole[0]
    return whole[0], None
