"""The way through the house, in order: data, model, guide, inference, draws, ArviZ."""

import math
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pyro
import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from elbowroom.diagnostics.measures import measure
from elbowroom.errors import DataError, GuideError, ModelError, OptionError, unknown
from elbowroom.guides import Guide, Start, get_guide, guides_for
from elbowroom.inference.elbo import (
    check_enumerable,
    choose_objective,
    make_objective,
    marked,
    read_guide,
)
from elbowroom.inference.isolation import resolve_device, resolve_dtype
from elbowroom.inference.mode import find_start
from elbowroom.inference.problem import (
    Problem,
    bind,
    make_options,
    option_names,
    resolve_model,
    split_options,
)
from elbowroom.inference.svi import Settings, Trained, run_svi
from elbowroom.models import Model, get_model
from elbowroom.posterior import run_folder
from elbowroom.posterior.draws import Draws, draw
from elbowroom.posterior.groups import posterior_tree
from elbowroom.posterior.predict import log_density_of_rows, predict_rows
from elbowroom.posterior.tree import summarise, to_arviz

ENGINES = ("auto", "svi")
DRAWS = 2000
AUTO_FULL_RANK = 200
"""The largest latent dimension for which `auto` takes `full_rank` for a user's own model."""

Progress = Callable[[int, int, float, float], None]


@dataclass
class Fit:
    """A fitted guide and its posterior.

    Attributes:
        problem: The model bound to its data.
        guide: The guide's declaration.
        settings: Of the optimiser.
        objective: The name of the ELBO that was maximised, and why.
        seed: Of all random numbers.
        trained: How the optimiser went; its history is `elbo_history`.
        posterior: The `xarray.DataTree` in the ArviZ schema.
        diagnostics: elbo, elbo_se, k_hat, elpd_loo and more, by name.
        notes: What a reader should know: groups left out, starts that disagreed.
    """

    problem: Problem
    guide: Guide
    settings: Settings
    objective: tuple[str, str]
    seed: int
    trained: Trained
    posterior: Any
    diagnostics: dict[str, Any]
    notes: list[str]
    start: Start = field(repr=False)
    _parameters: Any = field(repr=False)
    _callable: Callable[..., Any] | None = field(repr=False, default=None)

    @property
    def converged(self) -> bool:
        """Whether the optimum was reached as far as the noise allows to tell."""
        return self.trained.converged

    @property
    def elbo_history(self) -> np.ndarray:
        """An estimate of the ELBO for each step, in nats."""
        return self.trained.elbo_history

    @contextmanager
    def _active(self, seed: int) -> Iterator[Callable[..., Any]]:
        """The guide, with its parameters in the active store."""
        if self._callable is None:
            raise ModelError(
                "this run was fitted with a guide that is not in the registry; give it to "
                "er.load(..., guide=...)."
            )
        problem = self.problem
        with self.problem.session(seed, self._parameters):
            yield self._callable

    def draw(self, count: int, seed: int = 0, data: Any = None) -> Draws:
        """Fresh draws of the guide's sites, with log p and log q of each.

        Args:
            count: How many.
            seed: Of the draws.
            data: New rows, for an amortised guide; by default the fit's own.
        """
        arguments = self.problem.arguments
        if data is not None:
            self._check_amortised("to be drawn for new rows")
            arguments = self.problem.new_arguments(data)
        with self._active(seed) as guide:
            return draw(self.problem.function, guide, arguments, self.problem.space, count)

    def _check_amortised(self, purpose: str) -> None:
        if self.problem.space.local_continuous and not self.guide.amortised:
            fitting = guides_for(self.problem.model_name, True).values()
            names = ", ".join(guide.name for guide in fitting if guide.amortised)
            raise GuideError(
                f"the guide '{self.guide.name}' has latents for the fitted rows only, and none "
                f"{purpose}; fit with --guide {names or 'an amortised guide'}."
            )

    def sample(self, n: int = 1000, seed: int = 0) -> Any:
        """Fresh posterior draws, as an `xarray.Dataset` with dims chain and draw.

        Args:
            n: How many.
            seed: Of the draws; the same seed gives the same draws, after a reload too.
        """
        drawn = canonical_sites(self.problem, self.draw(n, seed).sites, self.global_sites())
        with self._active(seed):
            tree, _ = posterior_tree(self.problem, {"posterior": drawn}, {}, keep_local=True)
        return tree["posterior"].to_dataset()

    def global_sites(self) -> dict[str, Tensor]:
        """The posterior's draws of the sites that are not for each row, (draws, ...)."""
        group = self.posterior.children.get("unconstrained_posterior")
        if group is None:
            return {}
        sites = {}
        for site in self.problem.space.sites:
            if site.name in group.data_vars:
                flat = torch.tensor(group[site.name].values[0], dtype=self.problem.dtype)
                sites[site.name] = site.transform(flat)
        return sites

    def predict(self, data: Any = None, interval: float = 0.9, seed: int = 0) -> pd.DataFrame:
        """Describes each new row: mean, sd, and an equal-tailed interval of what the model predicts.

        For a mixture, the probabilities of the row's component instead. `log_density` is the log
        posterior predictive density of the row, where it holds what was observed.

        Args:
            data: New rows, as the fit took them; by default the fit's own.
            interval: Probability of the interval.
            seed: Of the predictive draws.

        Raises:
            DataError: If a column is missing or cannot be used.
            GuideError: If the guide has no latents for new rows.
        """
        if not 0 < interval < 1:
            raise OptionError(f"--interval {interval}: give a probability between 0 and 1.")
        arguments = self.problem.arguments
        if data is not None:
            arguments = self.problem.new_arguments(data)
        local = self.problem.space.local_continuous
        if local:
            sites = self.draw(self.diagnostics["draws"], seed, data).sites
        else:
            sites = self.global_sites()
        with self.problem.session(seed, self._parameters):
            return predict_rows(self.problem, arguments, sites, interval)

    def log_density(self, data: Any) -> np.ndarray:
        """The log posterior predictive density of each new row, in nats and the user's units.

        Raises:
            GuideError: If the model has latents for each row: their bound is `elbo`.
        """
        if self.problem.space.local_continuous:
            raise GuideError(
                "a model with latents for each row has a bound instead: Fit.elbo(data)."
            )
        arguments = self.problem.new_arguments(data)
        with self.problem.session(0, self._parameters):
            return log_density_of_rows(self.problem, arguments, self.global_sites())

    def elbo(self, data: Any = None, draws: int = 1000, seed: int = 1) -> tuple[float, float]:
        """The evidence lower bound in nats and its standard error, from fresh draws.

        Args:
            data: New rows for an amortised guide; by default the fit's own.
            draws: How many.
            seed: Of the draws.
        """
        return self.draw(draws, seed, data).elbo()

    def summary(self, interval: float = 0.9) -> pd.DataFrame:
        """Mean, sd and an equal-tailed interval of every quantity."""
        return summarise(self.posterior, interval)

    def to_arviz(self) -> Any:
        """The posterior as the installed ArviZ takes it: InferenceData before 1.0, DataTree after."""
        return to_arviz(self.posterior)

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Writes the run folder, whole or not at all.

        Raises:
            RunFolderError: If it cannot be written, or exists and `overwrite` is not given.
        """
        run_folder.save(self._run(), Path(path), overwrite)
        return Path(path)

    def _run(self) -> run_folder.Run:
        named = self._parameters["params"].items()
        parameters = {
            f"parameter.{name}": value.detach().cpu()
            for name, value in named
            if not name.startswith("__baseline")
        }
        parameters["start.location"] = self.start.location.cpu()
        if self.start.precision is not None:
            parameters["start.precision"] = self.start.precision.cpu()
        options = {} if self.problem.options is None else asdict(self.problem.options)
        trained = self.trained
        history = pd.DataFrame(
            {
                "step": np.arange(1, len(trained.elbo_history) + 1),
                "elbo": trained.elbo_history,
                "learning_rate": trained.learning_rates,
            }
        )
        return run_folder.Run(
            config={
                "model": self.problem.model.name,
                "registered_model": self.problem.model_name is not None,
                "options": options,
                "guide": self.guide.name,
                "settings": asdict(self.settings),
                "objective": list(self.objective),
                "seed": self.seed,
                "attributes": getattr(self.problem.data, "attrs", {}),
            },
            run={
                "status": trained.status,
                "reason": trained.reason,
                "skipped": trained.skipped,
                "seconds": trained.seconds,
                "parameters": trained.parameters,
                "versions": run_folder.versions(),
                "notes": self.notes,
            },
            history=history,
            parameters=parameters,
            posterior=self.posterior,
            diagnostics=self.diagnostics,
            data=self.problem.data,
        )


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


def canonical_sites(
    problem: Problem, sites: Mapping[str, Tensor], reference: Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    """Draws with exchangeable parts in the model's canonical order."""
    if problem.model.canonical is None:
        return dict(sites)
    return problem.model.canonical(sites, reference or None)


def resolve_guide(guide: Any, problem: Problem) -> Guide:
    """A guide by name, from a guide function, or from a Pyro AutoGuide class.

    Raises:
        OptionError, GuideError: If there is no such guide, or it does not fit the model.
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
    return bind(declaration, data, bound, dtype, device), settings, draws


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
        >>> result = fit("bayesian_regression", "diabetes", formula="progression ~ bmi + bp", seed=1)
        >>> result.summary().index.tolist()
        ['coefficients[bmi]', 'coefficients[bp]', 'intercept', 'sigma']
    """
    problem, settings, suggested_draws = bind_model(model, data, options)
    return fit_problem(
        problem,
        resolve_guide(guide, problem),
        settings,
        engine=engine,
        seed=seed,
        draws=draws or suggested_draws,
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
    seed = secrets.randbelow(2**31) if seed is None else seed
    begin = begin or beginning(problem, settings, seed)
    space, arguments, reached = problem.space, problem.arguments, begin.reached
    with problem.session(seed) as parameters:
        called = guide.build(space, begin.start)
        sites = read_guide(called, arguments, space)
        name, why = choose_objective(settings.elbo, guide.elbo, space, sites)
        check_enumerable(problem.function, arguments, space, sites)
        if announce is not None:
            announce(Plan(problem, guide, settings, (name, why), seed))
        trained = run_svi(
            *marked(name, problem.function, called),
            arguments,
            make_objective(name, settings.particles, space),
            settings,
            space.subsampled,
            progress,
        )
    trained = replace(trained, seconds=trained.seconds + begin.seconds)
    with problem.session(seed + 1, parameters):
        drawn = draw(problem.function, called, arguments, space, draws)
        posterior = canonical_sites(problem, drawn.sites, None)
        groups = {
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
            "elbo_history": _thinned(trained.elbo_history),
        }
        tree, notes = posterior_tree(problem, groups, attributes, keep_local)
    if reached:
        best = max(reached)
        agreeing = sum(value > best - 0.5 for value in reached)
        if len(reached) > 1:
            notes.insert(0, f"{agreeing} of {len(reached)} starts reached the best mode.")
    diagnostics = measure(drawn, tree, guide.point, space.local_continuous)
    diagnostics.update(seconds=trained.seconds, parameters=trained.parameters)
    return Fit(
        problem, guide, settings, (name, why), seed, trained, tree, diagnostics, notes,
        begin.start, parameters, called,
    )  # fmt: skip


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


def load(path: str | Path, model: Callable[..., Any] | None = None, guide: Any = None) -> Fit:
    """Reads a run folder back as a fit that predicts. No code in the folder is run.

    Args:
        path: The run folder.
        model: The Pyro function, if the run was of a user's own model.
        guide: The guide function or AutoGuide class, if it was the user's own.

    Raises:
        RunFolderError: If the folder cannot be read.
        ModelError: If the run is of a user's own model, and `model` is not given.
    """
    run = run_folder.load(path)
    config = run.config
    if config["registered_model"]:
        declaration = get_model(config["model"])
    elif model is None:
        raise ModelError(
            f"'{path}' is a run of your own model '{config['model']}', whose code a run folder does "
            "not hold; give it as er.load(path, model=...) or --model FILE.py:FUNCTION."
        )
    else:
        declaration = resolve_model(model)
    options = None
    if declaration.options is not None:
        known = option_names(declaration.options)
        options = make_options(
            declaration.options, {k: v for k, v in config["options"].items() if k in known}
        )
    settings = make_options(Settings, config["settings"])
    if isinstance(run.data, pd.DataFrame):
        run.data.attrs.update(config["attributes"])
    dtype = resolve_dtype(settings.dtype)
    problem = bind(declaration, run.data, options, dtype, torch.device("cpu"), from_file=True)
    start = Start(run.parameters["start.location"], run.parameters.get("start.precision"))
    fitted_guide = resolve_guide(guide or config["guide"], problem)
    parameters, called = _restored(problem, fitted_guide, start, run.parameters)
    history = run.history
    trained = Trained(
        run.run["status"],
        run.run["reason"],
        history["elbo"].to_numpy(),
        history["learning_rate"].to_numpy(),
        run.run["skipped"],
        run.run["seconds"],
        run.run["parameters"],
    )
    name, why = config["objective"]
    return Fit(
        problem, fitted_guide, settings, (name, why), config["seed"], trained, run.posterior,
        run.diagnostics, run.run["notes"], start, parameters, called,
    )  # fmt: skip


def _restored(
    problem: Problem, guide: Guide, start: Start, saved: Mapping[str, Tensor]
) -> tuple[Any, Callable[..., Any]]:
    """Builds a guide again, lets it and the model make their parameters, and fills these in."""
    values = {
        name.removeprefix("parameter."): value
        for name, value in saved.items()
        if name.startswith("parameter.")
    }
    with problem.session(0) as parameters:
        called = guide.build(problem.space, start)
        read_guide(called, problem.arguments, problem.space)
        pyro.poutine.trace(problem.function).get_trace(**problem.arguments)
        store = cast(Mapping[str, Tensor], dict(pyro.get_param_store().named_parameters()))
        missing = sorted(set(store) - set(values))
        if missing:
            raise DataError(f"the run folder lacks the guide's parameter '{missing[0]}'.")
        with torch.no_grad():
            for name, tensor in store.items():
                tensor.copy_(values[name])
    return parameters, called
