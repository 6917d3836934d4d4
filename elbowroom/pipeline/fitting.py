"""The way through the house: bind, plan, start, engine, draws, verdict; `auto` climbs over it."""

import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro.infer.autoguide import AutoGuide, init_to_value

from elbowroom import budget
from elbowroom.density.circles import cut_opposite
from elbowroom.density.landscape import Landscape
from elbowroom.draws.row_weights import serves_few_rows
from elbowroom.engines.coordinate_ascent.engine import check_updates
from elbowroom.engines.fixed_draws.engine import why_not
from elbowroom.engines.options import DeterministicOptions, NumberOptions
from elbowroom.engines.protocol import Fitted
from elbowroom.engines.registry import ENGINES
from elbowroom.engines.settings import (
    Settings,
    Way,
    check_read,
    make_settings,
    seconds_allowed,
    split_settings,
)
from elbowroom.engines.svi.checkpoint import Checkpoints
from elbowroom.engines.task import Task
from elbowroom.errors import NoModeError, OptionError, unknown
from elbowroom.guides import Guide, Start, get_guide, guides_for
from elbowroom.guides.roots import numerical_failures
from elbowroom.guides.space import LatentSpace
from elbowroom.memory import check_memory
from elbowroom.models import Model
from elbowroom.models._own import own_guide
from elbowroom.models._prior_files import naming, prior_file, with_priors_read
from elbowroom.objectives.elbo import check_enumerable
from elbowroom.options import flag, make_options, option_names
from elbowroom.pipeline.concluding import conclude
from elbowroom.pipeline.drawing import draw_posterior
from elbowroom.pipeline.ladder import climb_ladder
from elbowroom.pipeline.reference import add_reference
from elbowroom.problem.bound import (
    Problem,
    bind,
    resolve_model,
)
from elbowroom.problem.enumeration import enumerated
from elbowroom.problem.given_start import given_start
from elbowroom.problem.isolation import resolve_device
from elbowroom.problem.leaves import kept_buffers
from elbowroom.problem.precision import resolve_dtype
from elbowroom.problem.row_batches import in_batches, plate_of_all
from elbowroom.result import Fit
from elbowroom.run.unfinished import Request, change_request, unfinished
from elbowroom.sizes import SIZES


@dataclass(frozen=True)
class Shares:
    """The shares of the time that is left which stages of a fit may take."""

    optimising: float = 0.7
    """A guide's optimum; drawing and checking come after it."""
    drawing: float = 0.8
    """Draws of the posterior; what is left is for the checks."""
    before_nuts: float = 0.4
    """All of the fit, where NUTS comes after it."""


SHARES = Shares()
AUTO_FULL_RANK = 200
"""The largest latent dimension for which `auto` takes `full_rank` for a user's own model."""


OWN_GUIDES = ("em", "coordinate_ascent")
"""The engines that have guides of their own, by the same name."""
ENUMERATION = "enumeration"
"""The guide for latents that are all discrete, which needs the model itself."""


def resolve_guide(guide: Any, problem: Problem) -> Guide:
    """A guide by name, from a guide function, or from a Pyro AutoGuide class.

    Raises:
        OptionError: If there is no such guide, or it does not fit the model.
    """
    space = problem.space
    if isinstance(guide, Guide):
        return _suiting(guide, problem)
    if guide == "auto":
        known = guides_for(problem.model_name, space.local_continuous)
        fitting = {name: each for name, each in known.items() if not _lacking(each, problem)}
        if problem.model_name is not None:
            guide = next(iter(fitting))
        elif not space.sites and space.parameters.size:  # and what is summed over
            guide = "map"
        elif not space.sites:
            guide = ENUMERATION
        else:
            full = space.dimension <= AUTO_FULL_RANK and "full_rank" in fitting
            guide = "full_rank" if full else "mean_field"
    if guide == ENUMERATION:
        return _enumeration(problem)
    if isinstance(guide, str):
        named = get_guide(guide, problem.model_name, space.local_continuous)
        if named.model is None and not (space.sites or named.point):
            raise OptionError(
                f"the guide '{guide}' is for continuous latents, and the model has none; fit with "
                "--guide auto, which takes enumeration or, for point parameters, map."
            )
        return _suiting(named, problem)
    if isinstance(guide, type) and issubclass(guide, AutoGuide):
        blocked = pyro.poutine.block(problem.function, hide=[*space.discrete])
        taken, given = inspect.signature(guide).parameters, dict[str, Any]()
        if space.subsampled and "create_plates" in taken:
            given["create_plates"] = space.row_plate
        if problem.start and "init_loc_fn" in taken:
            values = {n: v.to(problem.device, problem.dtype) for n, v in problem.start.items()}
            given["init_loc_fn"] = init_to_value(values=values)
        return Guide(
            guide.__name__, "a Pyro AutoGuide", lambda space, start: guide(blocked, **given)
        )
    if callable(guide):
        name = getattr(guide, "__name__", type(guide).__name__)
        amortised = bool(getattr(guide, "amortised", False))
        with problem.session(0):
            called = problem.called(own_guide(guide))
        return Guide(name, "the user's own guide", lambda space, start: called, amortised=amortised)
    raise OptionError(
        f"{guide!r} is not a guide: give a name, a guide function or an AutoGuide class."
    )


def _lacking(guide: Guide, problem: Problem) -> bool:
    """Whether a guide is written for other options of the model."""
    return guide.needs is not None and guide.needs.unmet(
        problem.options, problem.prepared.arguments
    )


def _suiting(guide: Guide, problem: Problem) -> Guide:
    """The guide, if it is written for the model's options.

    Raises:
        OptionError: If not, with the option to give.
    """
    if guide.needs is not None and _lacking(guide, problem):
        option, value = flag(guide.needs.option), guide.needs.value
        raise OptionError(f"the guide '{guide.name}': {guide.needs.why}; give {option} {value}.")
    return guide


def _enumeration(problem: Problem) -> Guide:
    """The exact posterior of a model whose latents are all discrete."""
    if problem.space.sites:
        raise OptionError(
            f"--guide {ENUMERATION}: the site '{problem.space.sites[0].name}' is continuous; fit "
            "with --guide auto, which sums over the discrete sites."
        )

    def build(space: LatentSpace, start: Start) -> Callable[..., Any]:
        return enumerated(problem.function, space)

    return Guide(ENUMERATION, "the exact posterior of discrete latents", build, exact=True)


def resolve_settings(model: Model, given: Mapping[str, Any]) -> tuple[Settings, int | None]:
    """The settings of a run, the model's suggestions beneath the user's; and the draws."""
    suggested = dict(model.suggested)
    draws = suggested.pop("draws", None)
    if given.get("steps") is not None or given.get("epochs") is not None:
        suggested.pop("epochs", None)
        suggested.pop("steps", None)
    asked = {name: value for name, value in given.items() if value is not None}
    return make_settings(asked, suggested), draws


def resolve_options(
    model: Any, options: Mapping[str, Any]
) -> tuple[Model, Any, Settings, int | None]:
    """Sorts options to the model and to the fit, and looks at their values; no data are read.

    Returns:
        The model's declaration, its options, the settings of the fit, and the draws that the model
        suggests.

    Raises:
        OptionError: If an option is unknown or out of range.
    """
    declaration = resolve_model(model)
    options = with_priors_read(options)
    model_options, settings_options = split_settings(options, declaration.options)
    settings, draws = resolve_settings(declaration, settings_options)
    bound = None
    if declaration.options is not None:
        bound = make_options(declaration.options, model_options)
    return declaration, bound, settings, draws


def bind_model(
    model: Any, data: Any, options: Mapping[str, Any], *guides: Any
) -> tuple[Problem, Settings, int | None]:
    """Sorts options to the model and the optimiser, and binds the model to its data.

    Guides of the user's own have their say in the type of all numbers.

    Raises:
        OptionError: If an option is unknown or out of range.
        DataError: If the data cannot be used.
        ModelError: If the model cannot be fitted.
    """
    declaration, bound, settings, draws = resolve_options(model, options)
    device = resolve_device(settings.device)
    own = [guide for guide in guides if callable(guide) and not isinstance(guide, (type, Guide))]
    dtype = resolve_dtype(settings.dtype, declaration.function, *own)
    settings = replace(settings, dtype="float32" if dtype == torch.float32 else "float64")
    sizes = settings.batch_size, settings.particles
    with naming(prior_file(options)):
        problem = bind(declaration, data, bound, dtype, device, *sizes)
    problem = cut_opposite(problem)
    if settings.correlated is not None and problem.space.dimension <= SIZES.dense:
        raise OptionError(
            f"--correlated: this model has {problem.space.dimension} latent dimensions, few enough "
            "for all covariances; leave it out."
        )
    plate, size = problem.space.subsampled, settings.batch_size
    if "batch_size" not in options and size is not None and plate is not None:
        # A suggested minibatch gives way to a small table; one that was asked for is an error.
        settings = replace(settings, batch_size=size if size < plate.size else None)
    if settings.batch_size is None:
        settings = replace(settings, batch_size=problem.written_batch)
    return problem, settings, draws


def started(
    problem: Problem, start: Mapping[str, Any] | str | Path | None, *guides: Any
) -> Problem:
    """A problem that is fitted from the user's start, if there is one.

    Raises:
        OptionError: If it does not go with the model, or a guide is a function of the user's.
    """
    if not start:
        return problem
    if any(callable(guide) and not isinstance(guide, (type, Guide)) for guide in guides):
        raise OptionError(
            "start: a guide of your own begins where its parameters do; give pyro.param the "
            "values, and leave start out."
        )
    return replace(problem, start=given_start(start, problem.space))


@dataclass(frozen=True)
class Work:
    """What is left of a fit when the model is bound to its data; see `elbowroom.api.fit`."""

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
        with budget.limited(seconds_allowed(task.settings)):
            with budget.stage("fitting", SHARES.before_nuts if asked else 1.0):
                found = fit_task(task, self.guide, self.engine, report=self.report)
            if found.trained.status == "interrupted":
                return found
            with budget.stage("sampling by NUTS"):
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
        """Does it with its state kept in a folder; without a request it continues from there."""
        with unfinished(path, request, overwrite) as folder:
            if changes:
                change_request(path, changes)
            checkpoints = Checkpoints(folder, say=self.report)
            with checkpoints.listening():
                found = self.done(replace(task, checkpoints=checkpoints))
            if checkpoints.failure is not None:
                found = found.with_remarks(
                    f"the last checkpoint could not be written: {checkpoints.failure}."
                )
            return replace(found, folder=path)


def check_engine(engine: str) -> None:
    """Sees that an engine's name is one.

    Raises:
        OptionError: If it is not; the nearest is suggested.
    """
    if engine not in ("auto", *ENGINES):
        raise unknown("engine", engine, ("auto", *ENGINES))


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
    check_engine(engine)
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
    """The guide, or that of an engine which has one of its own, by the same name."""
    automatic = isinstance(guide, str) and guide == "auto"
    return engine if automatic and engine in OWN_GUIDES else guide


def in_closed_form(problem: Problem) -> str | None:
    """The guide of a model whose updates have a closed form with these options, if it has one.

    `auto` takes it where the rows have latents, which fixed draws are not for.
    """
    known = guides_for(problem.model_name, problem.space.local_continuous)
    names = (
        name
        for name, guide in known.items()
        if guide.coordinates is not None and not _lacking(guide, problem)
    )
    return next(names, None)


def _check_draws(task: Task, guide: Guide) -> None:
    """Refuses more draws than fit into memory: as drawn, unconstrained, and in the posterior.

    Raises:
        OptionError: With both numbers.
    """
    if guide.point:
        return
    space, size = task.problem.space, task.problem.dtype.itemsize
    kept = [site for site in space.sites if task.keep_local or site.name not in space.local]
    numbers = sum(prod(site.shape) for site in kept)
    usual = min(engine.draws for engine in ENGINES.values())
    asked = {
        flag("draws"): task.draws or usual, flag("fixed_draws"): task.settings.fixed_draws or 0
    }  # fmt: skip
    for name, count in asked.items():
        given = name != flag("draws") or task.draws is not None
        said = f"{name} {count:,}" if given else f"the usual {count:,} draws"
        check_memory(
            f"{said} of {numbers:,} latent numbers",
            3 * size * count * numbers,
            f"give fewer {name}, or a smaller model",
            OptionError,
        )


def fit_task(
    task: Task,
    guide: Any,
    engine: str = "auto",
    landscape: Landscape | None = None,
    report: Callable[[str], None] | None = None,
) -> Fit:
    """Fits one guide, or `auto`, to a model that is bound to its data already.

    Args:
        task: What is asked.
        guide: As for `elbowroom.api.fit`.
        engine: As for `elbowroom.api.fit`.
        landscape: Where other fits of the problem with the same seed begin.
        report: As for `elbowroom.api.fit`.
    """
    if engine == "coordinate_ascent":
        check_updates(task.problem)
    guide = _engines_own(guide, engine)
    automatic = isinstance(guide, str) and guide == "auto"
    if automatic and engine == "auto" and task.problem.space.local_continuous:
        guide = in_closed_form(task.problem) or guide
        automatic = guide == "auto"
    task = replace(task, auto=automatic)
    guide = resolve_guide(guide, task.problem)
    _check_draws(task, guide)
    problem, settings = task.problem, task.settings
    with (
        numerical_failures(),
        kept_buffers(problem.function, guide.build),
        budget.limited(seconds_allowed(settings)),
    ):
        if automatic and not guide.exact:
            chosen = chosen_engine(engine, None, problem, settings)
            if chosen == "fixed_draws":
                reason = why_not(problem)
                if reason is not None:
                    raise OptionError(f"--engine fixed_draws: {reason}; fit with --engine svi.")
                check_read(settings, [Way(chosen)])
                with problem.session(task.seed):
                    check_enumerable(problem.function, problem.arguments, problem.space)
                return climb_ladder(task, fit_guide, report)
        chosen = chosen_engine(engine, guide, problem, settings)
        check_read(settings, [Way(chosen, guide=guide)])
        if chosen not in guide.engines:
            raise OptionError(
                f"--engine {chosen}: the guide '{guide.name}' needs --engine {guide.engines[0]}."
            )
        task = replace(task, settings=suited(settings, guide))
        try:
            return fit_guide(task, guide, chosen, landscape)
        except NoModeError as error:
            if engine != "auto" or chosen == "svi" or "svi" not in guide.engines:
                raise
            why = str(error).partition(";")[0]
            found = fit_guide(task, guide, "svi", None)
            return found.with_remarks(f"Fitted with --engine svi, not fixed_draws: {why}.")


def suited(settings: Settings, guide: Guide) -> Settings:
    """Settings with those that suit a guide better, as far as they go with what the user gave."""
    for name, value in guide.suggested.items():
        if name == "kl_warm_up" and settings.steps is not None:
            value = max(1, min(value, settings.steps // 4))
        if name not in settings.given:
            # Some do not go with what was given, such as a warm-up of an ELBO without a KL term.
            with suppress(ValueError):
                settings = replace(settings, **{name: value})
    return settings


def fit_guide(task: Task, guide: Guide, engine: str, landscape: Landscape | None) -> Fit:
    """Fits one guide by one engine: plan, start, fit, draw, conclude.

    Args:
        task: What is asked.
        guide: The guide.
        engine: The engine's name.
        landscape: Where the fit begins, if that is known.
    """
    chosen = ENGINES[engine]
    plan = chosen.plan(task, guide)
    if task.announce is not None:
        task.announce(plan)
    start = landscape or chosen.start(task, guide)
    with budget.stage(f"fitting {guide.name}", SHARES.optimising):
        fitted = by_row(chosen.fit(task, guide, start))
    count = chosen.draws if task.draws is None else task.draws
    with budget.stage("drawing from the posterior", SHARES.drawing):
        drawn = draw_posterior(task, fitted, start, count)
    with budget.stage("checking the draws"):
        return conclude(task, fitted, drawn, start)


def by_row(fitted: Fitted) -> Fitted:
    """A fit whose rows are weighed each by itself, where all latents lie in one plate of rows.

    That is so of a model that takes minibatches anyway. Of another one, the guide must be seen to
    give the latents of some rows from these alone.
    """
    problem, space = fitted.problem, fitted.problem.space
    plate = plate_of_all(space)
    own = problem.model_name is None and fitted.guide.model is None and fitted.engine == "svi"
    if not own or plate is None or space.subsampled is not None or fitted.point:
        return fitted
    if "batch_size" in problem.arguments:  # an argument of the model's own, by that name
        return fitted
    space = replace(space, subsampled=plate)
    with problem.session(0, fitted.parameters):
        if not serves_few_rows(fitted.callable, problem.arguments, space):
            return fitted
    function, called = (
        in_batches(each, plate, problem.arguments) for each in (problem.function, fitted.callable)
    )
    model = replace(problem.model, function=function)
    return replace(fitted, problem=replace(problem, model=model, space=space), callable=called)
