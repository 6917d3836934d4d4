"""The way through the house, in order: data, model, guide, inference, draws, ArviZ."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyro
import torch
from pyro.infer.autoguide import AutoGuide

from elbowroom.diagnostics.measures import measure
from elbowroom.errors import OptionError, unknown
from elbowroom.fitted import Fit, canonical_sites
from elbowroom.guides import Guide, Start, get_guide, guides_for
from elbowroom.guides.space import trace_model
from elbowroom.inference.elbo import (
    check_enumerable,
    choose_objective,
    make_objective,
    marked,
    read_guide,
)
from elbowroom.inference.isolation import (
    Parameters,
    checked_seed,
    parameter_values,
    resolve_device,
    resolve_dtype,
    set_parameter_values,
)
from elbowroom.inference.mode import find_start
from elbowroom.inference.problem import (
    Problem,
    bind,
    make_options,
    resolve_model,
    split_options,
)
from elbowroom.inference.svi import Settings, run_svi
from elbowroom.models import Model
from elbowroom.posterior import run_folder
from elbowroom.posterior.draws import draw
from elbowroom.posterior.groups import posterior_tree

ENGINES = ("auto", "svi")
DRAWS = 2000
AUTO_FULL_RANK = 200
"""The largest latent dimension for which `auto` takes `full_rank` for a user's own model."""

Progress = Callable[[int, int, float, float], None]


@dataclass(frozen=True)
class Plan:
    """What is about to be run, every option resolved."""

    problem: Problem
    guide: Guide
    settings: Settings
    objective: tuple[str, str]
    seed: int


@dataclass(frozen=True)
class Beginning:
    """Where a fit begins, what each start reached, and the seconds it took to find."""

    start: Start
    reached: list[float]
    seconds: float


def resolve_guide(guide: Any, problem: Problem) -> Guide:
    """A guide by name, from a guide function, or from a Pyro AutoGuide class.

    Raises:
        OptionError: If there is no such guide, or it does not fit the model.
    """
    space = problem.space
    if isinstance(guide, Guide):
        return guide
    if guide == "auto":
        fitting = guides_for(problem.model_name, space.local_continuous)
        if problem.model_name is not None:
            guide = next(iter(fitting))
        else:
            full = space.dimension <= AUTO_FULL_RANK and "full_rank" in fitting
            guide = "full_rank" if full else "mean_field"
    if isinstance(guide, str):
        return get_guide(guide, problem.model_name, space.local_continuous)
    if isinstance(guide, type) and issubclass(guide, AutoGuide):
        name, blocked = guide.__name__, pyro.poutine.block(problem.function, hide=[*space.discrete])
        return Guide(name, "a Pyro AutoGuide", lambda space, start: guide(blocked))
    if callable(guide):
        name = getattr(guide, "__name__", type(guide).__name__)
        return Guide(name, "the user's own guide", lambda space, start: guide)
    raise OptionError(
        f"{guide!r} is no guide: give a name, a guide function or an AutoGuide class."
    )


def resolve_settings(model: Model, given: Mapping[str, Any]) -> tuple[Settings, int]:
    """The settings of a run, the model's suggestions beneath the user's; and the draws."""
    suggested = dict(model.suggested)
    draws = suggested.pop("draws", DRAWS)
    if given.get("steps") is not None or given.get("epochs") is not None:
        suggested.pop("epochs", None)
        suggested.pop("steps", None)
    asked = {name: value for name, value in given.items() if value is not None}
    return make_options(Settings, {**suggested, **asked}), draws


def bind_model(model: Any, data: Any, options: Mapping[str, Any]) -> tuple[Problem, Settings, int]:
    """Sorts options to the model and the optimiser, and binds the model to its data.

    Raises:
        OptionError: If an option is unknown or out of range.
        DataError: If the data cannot be used.
        ModelError: If the model cannot be fitted.
    """
    declaration = resolve_model(model)
    model_options, settings_options = split_options(options, declaration.options, Settings)
    settings, draws = resolve_settings(declaration, settings_options)
    bound = None
    if declaration.options is not None:
        bound = make_options(declaration.options, model_options)
    device, dtype = resolve_device(settings.device), resolve_dtype(settings.dtype)
    problem = bind(declaration, data, bound, dtype, device)
    plate, size = problem.space.subsampled, settings.batch_size
    if "batch_size" not in options and size is not None and plate is not None:
        # A suggested minibatch gives way to a small table; one that was asked for is an error.
        settings = replace(settings, batch_size=size if size < plate.size else None)
    return problem, settings, draws


def fit(
    model: str | Callable[..., Any] | Model,
    data: Any = None,
    guide: Any = "auto",
    *,
    engine: str = "auto",
    seed: int | None = None,
    draws: int | None = None,
    keep_local: bool = False,
    announce: Callable[[Plan], None] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Fit:
    """Fits a guide to a model's posterior.

    Args:
        model: A name, `FILE.py:FUNCTION`, or a Pyro model function.
        data: A table (path, bundled dataset's name, DataFrame or array); for a function, also a
            dict of its arguments. By default the model's bundled dataset.
        guide: A name, a guide function, or a Pyro AutoGuide class; `auto` takes the model's own.
        engine: "auto" or "svi".
        seed: Of all random numbers; drawn and recorded by default.
        draws: Posterior draws.
        keep_local: Whether to keep the draws of large latents that each row has.
        announce: Called with the resolved `Plan` before the optimiser begins.
        progress: Called at each step with the step, the budget, the smoothed ELBO and the rate.
        **options: Of the model, and of `elbowroom.inference.svi.Settings`.

    Returns:
        The fit. One that did not converge is a value like any other: read `fit.converged`.

    Raises:
        DataError, OptionError, ModelError, GuideError: For what cannot be fitted, with the mend.

    Example:
        >>> formula = "progression ~ bmi + bp"
        >>> result = fit("bayesian_regression", "diabetes", formula=formula, seed=1)
        >>> result.summary().index.tolist()
        ['intercept', 'coefficients[bmi]', 'coefficients[bp]', 'sigma']
    """
    problem, settings, suggested_draws = bind_model(model, data, options)
    return fit_problem(
        problem,
        resolve_guide(guide, problem),
        settings,
        engine=engine,
        seed=seed,
        draws=suggested_draws if draws is None else draws,
        keep_local=keep_local,
        announce=announce,
        progress=progress,
    )


def fit_problem(
    problem: Problem,
    guide: Guide,
    settings: Settings,
    *,
    engine: str = "auto",
    seed: int | None = None,
    draws: int = DRAWS,
    keep_local: bool = False,
    announce: Callable[[Plan], None] | None = None,
    progress: Progress | None = None,
    begin: Beginning | None = None,
) -> Fit:
    """The same as `fit`, for a model that is bound to its data already.

    `begin` is where other fits of the problem with the same seed began, as `beginning` gave it.
    """
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    if draws < 100:
        raise OptionError(f"--draws {draws}: give at least 100, or no diagnostic can be trusted.")
    seed = checked_seed(seed)
    if not guide.needs_curvature:
        _rehearse(problem, guide, settings, seed)
    begin = begin or beginning(problem, settings, seed)
    space, arguments, reached = problem.space, problem.arguments, begin.reached
    with problem.session(seed) as state:
        called = guide.build(space, begin.start)
        sites = read_guide(called, arguments, space)
        name, why = choose_objective(settings.elbo, guide.elbo, space, sites)
        check_enumerable(problem.function, arguments, space, sites)
        if announce is not None:
            announce(Plan(problem, guide, settings, (name, why), seed))
        trace_model(problem.function, arguments)  # makes the model's own parameters
        initial = parameter_values()
        try:
            trained = run_svi(
                *marked(name, problem.function, called),
                arguments,
                make_objective(name, settings.particles, space),
                settings,
                space.subsampled,
                progress,
            )
            fitted = parameter_values()
        finally:  # a network of the user's is left as it was
            set_parameter_values(dict(pyro.get_param_store().named_parameters()), initial)
    parameters = Parameters(state, fitted)
    point = guide.point or sites.point
    trained = replace(trained, seconds=trained.seconds + begin.seconds)
    with problem.session(seed + 1, parameters):
        drawn = draw(problem.function, called, arguments, space, draws)
        posterior = canonical_sites(problem, drawn.sites, None)
        groups: dict[str, Mapping[str, Any]] = {
            "posterior": posterior,
            "sample_stats": {"log_p": drawn.log_p, "log_q": drawn.log_q},
        }
        attributes = {
            "model": problem.model.name,
            "guide": guide.name,
            "elbo_objective": name,
            "seed": seed,
            "converged": int(trained.converged),
            "status": trained.reason,
            "settings": asdict(settings),
            "versions": run_folder.versions(),
            "options": {} if problem.options is None else asdict(problem.options),
            "elbo_history": _thinned(trained.elbo_history),
        }
        tree, notes = posterior_tree(problem, groups, attributes, keep_local)
    if reached:
        best = max(reached)
        agreeing = sum(value > best - 0.5 for value in reached)
        if len(reached) > 1:
            notes.insert(0, f"{agreeing} of {len(reached)} starts reached the best mode.")
    diagnostics = measure(drawn, tree, point, space.local_continuous)
    diagnostics.update(seconds=trained.seconds, parameters=trained.parameters)
    return Fit(
        problem, guide, settings, (name, why), seed, trained, tree, diagnostics, notes,
        begin.start, parameters, called,
    )  # fmt: skip


def _rehearse(problem: Problem, guide: Guide, settings: Settings, seed: int) -> None:
    """Sees that model, guide and objective go together, before the search for a start."""
    with problem.session(seed):
        called = guide.build(problem.space, Start(torch.zeros(problem.space.dimension)))
        sites = read_guide(called, problem.arguments, problem.space)
        choose_objective(settings.elbo, guide.elbo, problem.space, sites)


def beginning(problem: Problem, settings: Settings, seed: int) -> Beginning:
    """Where every fit of a problem with these settings and this seed begins."""
    began = time.perf_counter()
    starts, restarts = problem.model.starts, settings.restarts
    candidates = starts(problem.arguments, restarts, seed) if starts is not None else []
    with problem.session(seed):
        start, reached = find_start(
            problem.function, problem.arguments, problem.space, candidates, restarts, seed
        )
    return Beginning(start, reached, time.perf_counter() - began)


def _thinned(history: np.ndarray, length: int = 1000) -> list[float]:
    """At most about `length` values, evenly spaced: attributes are small; history.csv has all."""
    step = max(1, math.ceil(len(history) / length))
    return [float(value) for value in history[::step]]
