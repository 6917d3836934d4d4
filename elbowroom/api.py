"""The public functions: fit a model, check one, measure its gradient estimators."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from elbowroom import budget
from elbowroom.assess.estimators import measure
from elbowroom.commands import CheckOptions, EstimatorOptions, FitOptions
from elbowroom.engines.settings import seconds_allowed
from elbowroom.engines.svi.checks import Finding, run_checks
from elbowroom.engines.task import Plan, Progress, Task
from elbowroom.errors import unknown
from elbowroom.models import Model
from elbowroom.models._prior_files import prior_file
from elbowroom.options import check_options
from elbowroom.pipeline.fitting import Work, bind_model, check_engine, resolve_guide, started
from elbowroom.problem.isolation import checked_seed
from elbowroom.problem.process import alone
from elbowroom.result import Fit
from elbowroom.run.output import BEGUN_FILES, check_target
from elbowroom.run.unfinished import Request


@alone
def fit(
    model: str | Callable[..., Any] | Model,
    data: Any = None,
    guide: Any = "auto",
    *,
    engine: str = "auto",
    seed: int | None = None,
    draws: int | None = None,
    keep_local: bool = False,
    reference: bool = False,
    fallback: str | None = None,
    start: Mapping[str, Any] | str | Path | None = None,
    checkpoints: str | Path | None = None,
    overwrite: bool = False,
    announce: Callable[[Plan], None] | None = None,
    progress: Progress | None = None,
    report: Callable[[str], None] | None = None,
    **options: Any,
) -> Fit:
    """Fits a guide to a model's posterior, and says whether the posterior can be trusted.

    Args:
        model: A name, `FILE.py:FUNCTION`, or a Pyro model function.
        data: A table (path, bundled dataset's name, DataFrame or array); for a function, also a
            dict of its arguments. By default the model's bundled dataset.
        guide: A name, a guide function, or a Pyro AutoGuide class. `auto` uses the cheapest whose
            posterior can be trusted; for a model with latents for each row, the one written for
            it. A function
            that tells the latents of rows from the rows alone says so: `guide.amortised = True`.
        engine: "fixed_draws", deterministic; "svi", stochastic; "em", expectation-maximisation, and
            "coordinate_ascent", which the guides of these names need; "auto" uses the first where
            the model, the guide and the options allow it.
        seed: Random seed; by default a new one, which is recorded.
        draws: Posterior draws.
        keep_local: Whether to keep the draws of each row's latents even if they are large.
        reference: Whether to compare the posterior with a run of NUTS; see
            `elbowroom.pipeline.reference.add_reference`.
        fallback: "nuts", to use draws of NUTS if no guide is trusted; by default none.
        start: Values of latent sites that the fit begins at, by site, or a JSON file of them;
            those of the others are found as by default. Of several starts it is the first.
        checkpoints: A folder in which the state of a stochastic fit is kept every 30 s, so that
            `elbowroom.resume` can continue after a crash. `Fit.save` to the same path replaces
            it.
        overwrite: Whether to replace Elbowroom's own files in that folder if it exists; others
            stay.
        announce: Called with the resolved `Plan` before the optimiser begins.
        progress: Called at each step with the step, the budget, the smoothed ELBO and the rate.
        report: Called with a line for each guide that `auto` tries.
        **options: Of the model, and of `elbowroom.engines.settings.Settings`.

    Returns:
        The fit. No exception is raised for one that cannot be trusted: read `fit.verdict`.

    Raises:
        DataError, OptionError, ModelError, GuideError: For what cannot be fitted, with the fix.
        RunFolderError: If the folder for checkpoints cannot be used.

    Example:
        >>> formula = "progression ~ bmi + bp"
        >>> result = fit("bayesian_regression", "diabetes", formula=formula, seed=1)
        >>> result.summary().index.tolist()
        ['intercept', 'coefficients[bmi]', 'coefficients[bp]', 'sigma']
    """
    began = time.monotonic()
    check_options(FitOptions, seed=seed, draws=draws)
    check_engine(engine)
    if checkpoints is not None:  # before anything is read
        check_target(Path(checkpoints), overwrite, names=BEGUN_FILES, inputs=(data, start))
    if fallback not in (None, "nuts"):
        raise unknown("fallback", str(fallback), ["nuts"])
    problem, settings, suggested_draws = bind_model(model, data, options, guide)
    if prior_file(options):  # whose text is a part of the run
        options = {**options, "priors": problem.options.priors}
    problem = started(problem, start, guide)
    draws = suggested_draws if draws is None else draws
    seed = checked_seed(seed)
    work = Work(guide, engine, reference, fallback, report)
    task = Task(problem, settings, seed, draws, keep_local, announce, progress)
    asked = {
        "model": problem.model.name, "registered_model": problem.model_name is not None,
        "guide": guide if isinstance(guide, str) else None, "engine": engine, "seed": seed,
        "draws": draws, "keep_local": keep_local, "reference": reference, "fallback": fallback,
        "options": options, "start": {name: v.tolist() for name, v in problem.start.items()},
    }  # fmt: skip
    with budget.limited(seconds_allowed(settings), spent=time.monotonic() - began):
        if checkpoints is None:
            return work.done(task)
        return work.kept(task, Path(checkpoints), Request(asked, problem.data), overwrite)


@alone
def check(
    model: str | Callable[..., Any] | Model,
    data: Any = None,
    guide: Any = "auto",
    *,
    seed: int | None = None,
    **options: Any,
) -> list[Finding]:
    """Checks a model, its data and a guide, as every stochastic fit does before it begins.

    Args:
        model: As for `fit`.
        data: As for `fit`.
        guide: As for `fit`.
        seed: As for `fit`.
        **options: As for `fit`.

    Returns:
        What each check found: "ok", a "warning" or an "error", with the edit that fixes it.

    Example:
        >>> [finding.level for finding in check("bayesian_regression", guide="mean_field", seed=1)]
        ['ok', 'ok', 'ok', 'ok', 'ok', 'ok']
    """
    check_options(CheckOptions, seed=seed)
    problem, settings, _ = bind_model(model, data, options, guide)
    return run_checks(problem, resolve_guide(guide, problem), settings, checked_seed(seed))


@alone
def estimators(
    model: str | Callable[..., Any] | Model,
    data: Any = None,
    guide: Any = "auto",
    *,
    seed: int | None = None,
    gradients: int = EstimatorOptions.gradients,
    **options: Any,
) -> pd.DataFrame:
    """Measures bias, noise and cost of every gradient estimator that a model and a guide can have.

    Args:
        model: As for `fit`.
        data: As for `fit`.
        guide: As for `fit`.
        seed: As for `fit`.
        gradients: Of each estimator at the start, the middle and the end of a fit.
        **options: As for `fit`.

    Returns:
        The table of `elbowroom.assess.estimators.measure`.
    """
    check_options(EstimatorOptions, seed=seed, gradients=gradients)
    problem, settings, _ = bind_model(model, data, options, guide)
    seed = checked_seed(seed)
    return measure(problem, resolve_guide(guide, problem), settings, seed, gradients)
