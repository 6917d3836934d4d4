"""Fits several guides to one model and data, and lays the results side by side."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import xarray

from elbowroom.assess.compare import (
    Row,
    comparison_table,
    posterior_differences,
)
from elbowroom.assess.measures import leave_one_out
from elbowroom.data.tables import read_table
from elbowroom.density.landscape import Landscape, explore
from elbowroom.engines.settings import Settings, Way, check_read, only_read
from elbowroom.errors import DataError, ElbowroomError, GuideError, OptionError
from elbowroom.guides import guides_for
from elbowroom.held_out import held_out_scores, split_rows
from elbowroom.objectives import objectives
from elbowroom.pipeline.em import EM
from elbowroom.pipeline.fitting import bind_model, chosen_engine, fit_problem, resolve_guide
from elbowroom.pipeline.fixed_draws import survey
from elbowroom.pipeline.reference import add_reference
from elbowroom.pipeline.task import Progress
from elbowroom.problem.bound import Problem, resolve_model
from elbowroom.problem.isolation import checked_seed
from elbowroom.result import Fit
from elbowroom.run.folder import writing

NUTS = "nuts"
"""The name of the sampler among the guides."""


@dataclass(frozen=True)
class Comparison:
    """Several guides on the same model, data and seed.

    Attributes:
        table: One line a guide, best first; see
            `elbowroom.assess.compare.comparison_table`.
        differences: Each quantity's shift in mean and ratio of sd to the baseline's.
        fits: The fits that succeeded, by the name in the table.
        seed: Of every fit.
    """

    table: pd.DataFrame
    differences: pd.DataFrame
    fits: dict[str, Fit]
    seed: int

    @property
    def best(self) -> str | None:
        """The name of the guide with the highest ELBO, if any has one."""
        names = self.table.loc[self.table["best"], "guide"]
        return None if names.empty else str(names.iloc[0])

    @property
    def baseline(self) -> str | None:
        """What the posteriors are compared with: NUTS if it is there, the best guide else."""
        return NUTS if NUTS in self.fits else self.best

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Writes comparison.csv, comparison.json, differences.csv and a run folder for each guide.

        Raises:
            RunFolderError: If it cannot be written, or exists and `overwrite` is not given.
        """
        with writing(Path(path), overwrite, marker="comparison.json") as folder:
            self._write(folder)
        return Path(path)

    def _write(self, folder: Path) -> None:
        self.table.to_csv(folder / "comparison.csv", index=False)
        self.differences.to_csv(folder / "differences.csv", index=False)
        content = {
            "seed": self.seed,
            "best": self.best,
            "guides": json.loads(self.table.to_json(orient="records")),
            "differences": json.loads(self.differences.to_json(orient="records")),
        }
        text = json.dumps(content, indent=1) + "\n"
        (folder / "comparison.json").write_text(text, encoding="utf-8")
        for name, fit in self.fits.items():
            fit.save(folder / name.replace(":", "-"))


def _guide_and_objective(guide: Any) -> tuple[Any, str | None]:
    """A guide and the objective that `GUIDE:OBJECTIVE` asks for."""
    if not isinstance(guide, str) or ":" not in guide:
        return guide, None
    name, _, objective = guide.partition(":")
    return name, objective


def compare(
    model: Any,
    data: Any = None,
    guides: Sequence[Any] | None = None,
    *,
    engine: str = "auto",
    seed: int | None = None,
    draws: int | None = None,
    test_size: float | None = None,
    progress: Callable[[str], Progress | None] | None = None,
    **options: Any,
) -> Comparison:
    """Fits every guide to the same data with the same seed, and compares them.

    Each ELBO is estimated anew after the fit, from fresh draws, with its standard error.

    Args:
        model: As `elbowroom.fit` takes it.
        data: As `elbowroom.fit` takes it.
        guides: Names, `auto` too, `GUIDE:OBJECTIVE` (such as "local:trace_graph"), guide functions
            or AutoGuide classes; and "nuts", the sampler, which begins where `auto` ends. By
            default every guide that fits the model.
        engine: As `elbowroom.fit` takes it; each guide has its own where it is "auto".
        seed: Of every fit; drawn and recorded by default.
        draws: Posterior draws of each fit.
        test_size: A share of the rows, or a number of them, that is held out of every fit and
            foretold by it: the table then has the scores of `elbowroom.held_out.held_out_scores`.
        progress: Given a guide's name, the progress callback of its fit, or None.
        **options: As `elbowroom.fit` takes them.

    Returns:
        The comparison. A guide that failed has a line that says why.

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
    seed = checked_seed(seed)
    test = None
    if test_size is not None:
        data, test = _split(model, data, test_size, seed)
    problem, settings, suggested_draws = bind_model(model, data, options)
    if test is not None and not problem.new_arguments(test)[1]:
        raise DataError("the table lacks what was observed, which is to be foretold.")
    if guides is None:
        fitting = guides_for(problem.model_name, problem.space.local_continuous).values()
        some = bool(problem.space.sites)
        guides = [g.name for g in fitting if some or g.model or (g.point and not g.likelihood)]
    names = [g if isinstance(g, str) else resolve_guide(g, problem).name for g in guides]
    for name in names:
        if names.count(name) > 1:
            raise OptionError(f"--guide {name} is given twice; give it once.")
    parts = [_guide_and_objective(guide) for guide in guides]
    ways: dict[str, Way] = {}
    for name, (guide, objective) in zip(names, parts, strict=True):
        if guide == NUTS and objective is None:
            continue
        declared = resolve_guide(guide, problem)
        if objective is not None and "svi" not in declared.engines:
            raise OptionError(
                f"--guide {guide}:{objective}: the guide '{guide}' is not fitted by stochastic "
                f"gradients, whose objective that is; give --guide {guide}."
            )
        if objective is not None and objective not in objectives():
            raise OptionError(
                f"--guide {guide}:{objective}: the objective is one of {', '.join(objectives())}."
            )
        chosen = settings if objective is None else replace(settings, elbo=objective)
        ways[name] = Way(chosen_engine(engine, declared, problem, chosen), chosen.elbo, declared)
    suggested = problem.model.suggested
    if ways:
        check_read(settings, ways.values())
    count = suggested_draws if draws is None else draws

    @cache
    def landscape(kind: str) -> Landscape | None:
        """Where fits begin; with point parameters, or no climb, each engine begins by itself."""
        if kind == "svi":
            return None
        return (survey if kind == "fixed_draws" else explore)(problem, settings.restarts, seed)

    apart = problem.space.parameters.size > 0 or problem.model.engine is not None

    rows: list[Row] = []
    fits: dict[str, Fit] = {}
    for name, (guide, objective) in zip(names, parts, strict=True):
        report = progress(name) if progress is not None else None
        if name == NUTS:
            rows.append(_by_nuts(problem, settings, seed, fits, test))
            continue
        taken = ways[name].engine
        chosen = only_read(settings, suggested, ways[name])
        chosen = chosen if objective is None else replace(chosen, elbo=objective)
        try:
            fit = fit_problem(
                problem, guide, chosen, engine=engine, seed=seed, draws=count, progress=report,
                landscape=None if taken == EM else landscape(taken if apart else ""),
            )  # fmt: skip
        except ElbowroomError as error:
            rows.append(Row(name, {}, None, str(error)))
            continue
        fits[name] = fit
        measures = {
            **fit.diagnostics,
            "objective": fit.objective[0],
            "converged": fit.converged,
            "verdict": fit.verdict.level,
            **_scored(fit, test),
        }
        rows.append(Row(name, measures, _compared(fit)))
        if fit.trained.status == "interrupted":
            break
    table = comparison_table(rows)
    found = Comparison(table, pd.DataFrame(), fits, seed)
    return replace(found, differences=posterior_differences(rows, found.baseline or ""))


def _split(model: Any, data: Any, size: float, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows to learn from, and those held out."""
    source = resolve_model(model).dataset if data is None else data
    if source is None or isinstance(source, Mapping):
        raise OptionError("--test-size holds rows of a table out; give the data as a table.")
    return split_rows(read_table(source), size, seed)


def _scored(fit: Fit, test: pd.DataFrame | None) -> dict[str, float]:
    """What a fit makes of rows held out, if there are any; a remark where it can make nothing."""
    if test is None:
        return {}
    try:
        return held_out_scores(fit, test)
    except ElbowroomError as error:
        fit.remarks.append(f"the rows held out have no score: {error}")
        return {}


def _compared(fit: Fit) -> xarray.Dataset:
    """Latents of each row are no quantity to compare: a rotation of all changes nothing."""
    posterior = fit.posterior["posterior"].to_dataset()
    return posterior.drop_vars(fit.problem.space.local, errors="ignore")


def _by_nuts(
    problem: Problem,
    settings: Settings,
    seed: int,
    fits: dict[str, Fit],
    test: pd.DataFrame | None,
) -> Row:
    """The row of the sampler, whose fit is added to the others."""
    try:
        own = only_read(settings, problem.model.suggested, Way("fixed_draws"))
        begun = fit_problem(problem, "auto", own, seed=seed)
        fit = add_reference(begun, take=True)
        if fit.held != NUTS:
            raise GuideError(fit.notes[-1])
    except ElbowroomError as error:
        return Row(NUTS, {}, None, str(error))
    fits[NUTS] = fit
    measures = {
        "objective": "sampled",
        **leave_one_out(fit.posterior),
        "seconds": begun.diagnostics["seconds"] + fit.diagnostics["reference_seconds"],
        "parameters": 0,
        "converged": True,
        "verdict": fit.verdict.level,
        **_scored(fit, test),
    }
    return Row(NUTS, measures, _compared(fit))
