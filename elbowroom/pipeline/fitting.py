"""The way through the house, in order: data, model, guide, engine, draws, ArviZ, verdict."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyro
from pyro.infer.autoguide import AutoGuide

from elbowroom.density.landscape import LARGEST, Landscape
from elbowroom.engines.options import DeterministicOptions, NumberOptions
from elbowroom.engines.settings import (
    Settings,
    Way,
    check_read,
    make_settings,
    split_settings,
)
from elbowroom.engines.svi.checkpoint import Checkpoints
from elbowroom.errors import NoModeError, OptionError, unknown
from elbowroom.guides import Guide, get_guide, guides_for
from elbowroom.guides.roots import numerical_failures
from elbowroom.models import Model
from elbowroom.options import make_options, option_names
from elbowroom.pipeline.em import EM, fit_em
from elbowroom.pipeline.fixed_draws import fit_fixed_draws, why_not
from elbowroom.pipeline.ladder import climb_ladder
from elbowroom.pipeline.reference import add_reference
from elbowroom.pipeline.svi import fit_stochastic
from elbowroom.pipeline.task import Plan, Progress, Task
from elbowroom.problem.bound import (
    Problem,
    bind,
    resolve_model,
)
from elbowroom.problem.isolation import checked_seed, resolve_device, resolve_dtype
from elbowroom.problem.leaves import kept_buffers
from elbowroom.result import Fit
from elbowroom.run.unfinished import Request, change_request, unfinished

ENGINES = ("auto", "fixed_draws", "svi", "em")
AUTO_FULL_RANK = 200
"""The largest latent dimension for which `auto` takes `full_rank` for a user's own model."""


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
        elif not space.sites:  # points alone, and what is summed over
            guide = "map"
        else:
            full = space.dimension <= AUTO_FULL_RANK and "full_rank" in fitting
            guide = "full_rank" if full else "mean_field"
    if isinstance(guide, str):
        named = get_guide(guide, problem.model_name, space.local_continuous)
        if named.model is None and not (space.sites or named.point):
            raise OptionError(
                f"the guide '{guide}' is for continuous latents, and the model has none; fit with "
                "--guide map, which puts its point parameters at their maximum likelihood."
            )
        return named
    if isinstance(guide, type) and issubclass(guide, AutoGuide):
        name, blocked = guide.__name__, pyro.poutine.block(problem.function, hide=[*space.discrete])
        return Guide(name, "a Pyro AutoGuide", lambda space, start: guide(blocked))
    if callable(guide):
        name = getattr(guide, "__name__", type(guide).__name__)
        amortised = bool(getattr(guide, "amortised", False))
        return Guide(name, "the user's own guide", lambda space, start: guide, amortised=amortised)
    raise OptionError(
        f"{guide!r} is no guide: give a name, a guide function or an AutoGuide class."
    )


def resolve_settings(model: Model, given: Mapping[str, Any]) -> tuple[Settings, int | None]:
    """The settings of a run, the model's suggestions beneath the user's; and the draws."""
    suggested = dict(model.suggested)
    draws = suggested.pop("draws", None)
    if given.get("steps") is not None or given.get("epochs") is not None:
        suggested.pop("epochs", None)
        suggested.pop("steps", None)
    asked = {name: value for name, value in given.items() if value is not None}
    return make_settings(asked, suggested), draws


def bind_model(
    model: Any, data: Any, options: Mapping[str, Any]
) -> tuple[Problem, Settings, int | None]:
    """Sorts options to the model and the optimiser, and binds the model to its data.

    Raises:
        OptionError: If an option is unknown or out of range.
        DataError: If the data cannot be used.
        ModelError: If the model cannot be fitted.
    """
    declaration = resolve_model(model)
    model_options, settings_options = split_settings(options, declaration.options)
    settings, draws = resolve_settings(declaration, settings_options)
    bound = None
    if declaration.options is not None:
        bound = make_options(declaration.options, model_options)
    device, dtype = resolve_device(settings.device), resolve_dtype(settings.dtype)
    problem = bind(declaration, data, bound, dtype, device)
    if settings.correlated is not None and problem.space.dimension <= LARGEST:
        raise OptionError(
            f"--correlated: this model has {problem.space.dimension} latent numbers, few enough "
            "for all covariances; leave it out."
        )
    plate, size = problem.space.subsampled, settings.batch_size
    if "batch_size" not in options and size is not None and plate is not None:
        # A suggested minibatch gives way to a small table; one that was asked for is an error.
        settings = replace(settings, batch_size=size if size < plate.size else None)
    return problem, settings, draws


@dataclass(frozen=True)
class Work:
    """What is left of a fit when the model is bound to its data; see `fit`."""

    guide: Any
    engine: str
    reference: bool
    fallback: str | None
    report: Callable[[str], None] | None

    def done(self, task: Task) -> Fit:
        """Does it."""
        asked = "--reference" if self.reference else self.fallback and "--fallback nuts"
        guide = _engines_own(self.guide, self.engine)
        if asked and resolve_guide(guide, task.problem).likelihood:
            raise OptionError(
                f"{asked}: the guide '{guide}' leaves the priors out, and NUTS needs them; "
                "fit with another guide."
            )
        found = _fit_task(task, self.guide, self.engine, report=self.report)
        if found.trained.status == "interrupted":
            return found
        if self.fallback == "nuts" and not found.verdict.trusted:
            return add_reference(found, take=True)
        return add_reference(found) if self.reference else found

    def kept(
        self,
        task: Task,
        path: Path,
        request: Request | None,
        overwrite: bool = False,
        changes: dict[str, Any] | None = None,
    ) -> Fit:
        """Does it with its state kept in a folder; without a request it goes on from there."""
        with unfinished(path, request, overwrite) as folder:
            if changes:
                change_request(path, changes)
            checkpoints = Checkpoints(folder, say=self.report)
            with checkpoints.listening():
                found = self.done(replace(task, checkpoints=checkpoints))
            if checkpoints.failure is not None:
                found.remarks.append(
                    f"the last checkpoint could not be written: {checkpoints.failure}."
                )
            return replace(found, folder=path)


def chosen_engine(engine: str, guide: Guide | None, problem: Problem, settings: Settings) -> str:
    """The engine of a fit; for `auto`, fixed draws where model, guide and options allow them.

    Args:
        engine: As it was asked for.
        guide: None for the guide `auto`.
        problem: The model bound to its data.
        settings: Of the fit.

    Raises:
        OptionError: If there is no such engine.
    """
    if engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    if engine != "auto":
        return engine
    if guide is not None and len(guide.engines) == 1:
        return guide.engines[0]
    if guide is None and problem.model.engine is not None:
        return problem.model.engine
    fits = guide is None or "fixed_draws" in guide.engines
    read = {*option_names(DeterministicOptions), *option_names(NumberOptions), "draws"}
    stochastic = not read.issuperset({*settings.given, *problem.model.suggested})
    return "fixed_draws" if fits and not stochastic and why_not(problem, guide) is None else "svi"


def _engines_own(guide: Any, engine: str) -> Any:
    """The guide, or that of an engine that has one of its own."""
    return EM if engine == EM and isinstance(guide, str) and guide == "auto" else guide


def checked_draws(draws: int | None) -> None:
    """Sees that the posterior draws of a fit are enough.

    Raises:
        OptionError: If they are too few.
    """
    if draws is not None and draws < 100:
        raise OptionError(f"--draws {draws}: give at least 100, or no diagnostic can be trusted.")


def fit_problem(
    problem: Problem,
    guide: Any,
    settings: Settings,
    *,
    engine: str = "auto",
    seed: int | None = None,
    draws: int | None = None,
    keep_local: bool = False,
    announce: Callable[[Plan], None] | None = None,
    progress: Progress | None = None,
    landscape: Landscape | None = None,
) -> Fit:
    """The same as `fit` with one guide, for a model that is bound to its data already.

    `landscape` is where other fits of the problem with the same seed begin, as
    `elbowroom.pipeline.fixed_draws.survey` gave it.
    """
    checked_draws(draws)
    task = Task(problem, settings, checked_seed(seed), draws, keep_local, announce, progress)
    return _fit_task(task, guide, engine, landscape)


def _fit_task(
    task: Task,
    guide: Any,
    engine: str,
    landscape: Landscape | None = None,
    report: Callable[[str], None] | None = None,
) -> Fit:
    with numerical_failures():
        return _fit_by_engine(task, guide, engine, landscape, report)


def _fit_by_engine(
    task: Task,
    guide: Any,
    engine: str,
    landscape: Landscape | None,
    report: Callable[[str], None] | None,
) -> Fit:
    guide = _engines_own(guide, engine)
    automatic = isinstance(guide, str) and guide == "auto"
    guide = resolve_guide(guide, task.problem)
    with kept_buffers(task.problem.function, guide.build):
        return _fit_guide(task, guide, automatic, engine, landscape, report)


def _fit_guide(
    task: Task,
    guide: Guide,
    automatic: bool,
    engine: str,
    landscape: Landscape | None,
    report: Callable[[str], None] | None,
) -> Fit:
    problem, settings = task.problem, task.settings
    if (
        automatic
        and not guide.exact
        and chosen_engine(engine, None, problem, settings) == "fixed_draws"
    ):
        reason = why_not(problem)
        if reason is not None:
            raise OptionError(f"--engine fixed_draws: {reason}; fit with --engine svi.")
        check_read(settings, [Way("fixed_draws")])
        return climb_ladder(task, report)
    chosen = chosen_engine(engine, guide, problem, settings)
    check_read(settings, [Way(chosen, guide=guide)])
    if chosen not in guide.engines:
        raise OptionError(
            f"--engine {chosen}: the guide '{guide.name}' needs --engine {guide.engines[0]}."
        )
    if chosen == EM:
        return fit_em(task, guide)
    if chosen == "fixed_draws":
        try:
            return fit_fixed_draws(task, guide, landscape)
        except NoModeError as error:
            if engine != "auto" or "svi" not in guide.engines:
                raise
            found = fit_stochastic(task, guide)
            why = str(error).partition(";")[0]
            return replace(found, remarks=[*found.remarks, f"By stochastic gradients: {why}."])
    return fit_stochastic(task, guide, landscape)
