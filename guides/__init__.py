"""The registry of guides: those that fit any model, and those written by hand for one.

A guide's builder is called as `build(space, start)` with the model's `LatentSpace` and a
`Start`, and gives what Pyro calls a guide: a callable with the model's arguments.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.resources import files
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from elbowroom.errors import GuideError, OptionError, unknown
from elbowroom.guides.options import CorrelatedOptions, FixedDrawsOptions, HeldOutOptions
from elbowroom.models import get_model, model_summaries

if TYPE_CHECKING:  # the registry is read without torch
    from torch import Tensor

    from elbowroom.guides.families import FixedDraws
    from elbowroom.guides.space import LatentSpace

Build = Callable[["LatentSpace", "Start"], Callable[..., Any]]


@dataclass(frozen=True)
class Start:
    """Where a guide begins.

    Attributes:
        location: The flat unconstrained vector, (D,).
        precision: Minus the Hessian of the log density there, (D, D), positive definite; None
            where it was not taken.
        scale: Where that is too large for memory, standard deviations, (D,).
        factor: The same, (D, C): the covariance is diag(scale²) plus this times its transpose.
    """

    location: "Tensor"
    precision: "Tensor | None" = None
    scale: "Tensor | None" = None
    factor: "Tensor | None" = None


@dataclass(frozen=True)
class Needs:
    """What a guide needs of its model.

    Attributes:
        option: The name of an option.
        value: That it has to have.
        why: What is wrong with others, as a sentence without its end.
    """

    option: str
    value: str
    why: str

    def unmet(self, options: Any, arguments: Mapping[str, Any]) -> bool:
        """Whether the model has another value: among its arguments, else among its options."""
        return bool(arguments.get(self.option, getattr(options, self.option)) != self.value)


@dataclass(frozen=True)
class Guide:
    """The declaration of a guide's builder.

    Attributes:
        name: The name on the command line.
        summary: One line.
        build: See the module.
        model: The one model it was written for; None if it fits any.
        elbo: The objective that suits it, where the general rule does not.
        dense: Whether its parameters grow with the square of the latent dimension or its
            evaluation needs every latent at once, so that it cannot have latents for each row.
        point: Whether it is one point, with no density.
        amortised: Whether it gives the latents of rows that it was not fitted to. A user's own
            guide says so by an attribute: `guide.amortised = True`.
        exact: Whether it is the posterior itself, at given points; `auto` takes it.
        replaces: The guide for any model that it is, for this model, by another name.
        engines: Those that fit it, the one that `auto` takes first; by default fixed draws, if it
            says how, and stochastic gradients.
        fixed_draws: What the deterministic engine does with it.
        likelihood: Whether the priors of what it estimates are left out.
        coordinates: Given the model's arguments, the updates of coordinate ascent; see
            `elbowroom.engines.coordinate_ascent.ascent.Coordinates`.
        needs: The option of the model that it is written for; None for any.
        steps: Given the model's arguments and the columns' names, the steps of
            expectation-maximisation; see `elbowroom.engines.em.expectation_maximisation.Steps`.
        hard: Whether these put each row's latent at its most probable value, so that they maximise
            the likelihood of the rows and those values together.
        suggested: Settings of the fit that suit it better than the model's, by name.
    """

    name: str
    summary: str
    build: Build
    model: str | None = None
    elbo: str | None = None
    dense: bool = False
    point: bool = False
    amortised: bool = False
    exact: bool = False
    replaces: str | None = None
    engines: tuple[str, ...] = ()
    fixed_draws: "FixedDraws | None" = None
    likelihood: bool = False
    steps: Callable[[Mapping[str, Any], Sequence[str]], Any] | None = None
    hard: bool = False
    coordinates: Callable[[Mapping[str, Any]], Any] | None = None
    needs: Needs | None = None
    suggested: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = self.fixed_draws is not None
        if not self.engines:
            engines = ("fixed_draws", "svi") if known else ("svi",)
            object.__setattr__(self, "engines", engines)
        elif known != ("fixed_draws" in self.engines):
            raise GuideError(
                f"the guide '{self.name}': give fixed_draws= if 'fixed_draws' is one of its "
                "engines, and only then."
            )

    @property
    def reads(self) -> tuple[type, ...]:
        """The classes of the options that it reads, of `elbowroom.guides.options`."""
        declared = () if self.fixed_draws is None else self.fixed_draws.reads
        return (*declared, HeldOutOptions) if self.amortised else declared


_registered: dict[tuple[str | None, str], Guide] = {}


def register(
    name: str, summary: str, *, model: str | None = None, **capabilities: Any
) -> Callable[[Build], Build]:
    """Registers the decorated builder as a guide; `capabilities` are those of `Guide`.

    Raises:
        GuideError: If the name is taken, by any model's guide or by this model's.
    """

    def add(build: Build) -> Build:
        for key in ((None, name), (model, name)):
            known = _registered.get(key)
            if known is not None and known.build.__module__ != build.__module__:
                raise GuideError(f"the guide '{name}' is registered by {known.build.__module__}.")
        _registered[(model, name)] = Guide(name, summary, build, model, **capabilities)
        return build

    return add


def looks_amortised(parameters: Mapping[str, "Tensor"], space: "LatentSpace") -> bool:
    """Whether no parameter has a part for each row, as those of an amortised guide have none.

    A size that is the number of rows by chance is taken for such a part: this is told to a user who
    declared nothing, and decides nothing.

    Args:
        parameters: The guide's values, by name, and the model's.
        space: The model's latent space.
    """
    rows = space.subsampled
    return rows is not None and not any(rows.size in value.shape for value in parameters.values())


def guide_options() -> tuple[type, ...]:
    """The classes of the options that some guides read, and others do not."""
    return (FixedDrawsOptions, CorrelatedOptions, HeldOutOptions)


def guides_reading(kind: Any, models: Collection[str | None]) -> str:
    """The guides that read some options, as one asks for them.

    Args:
        kind: The class of the options.
        models: Of which guides count, beside those for any model.
    """
    import_module("elbowroom.guides.auto")
    written = (each for each in _registered.values() if each.model in (None, *models))
    names = dict.fromkeys(guide.name for guide in written if kind in guide.reads)
    return f"--guide {' or '.join(names)}" if names else str(kind.readers)


def guides_for(model: str | None, local_latents: bool = False) -> Mapping[str, Guide]:
    """The guides that fit a model, its hand-written ones first; None names a user's own model.

    Args:
        model: The model's name.
        local_latents: Whether the model has continuous latents for every row.

    Example:
        >>> list(guides_for("bayesian_regression"))[:2]
        ['structured', 'coordinate_ascent']
    """
    written = _written_for(model)
    return {
        name: guide
        for name, guide in written.items()
        if _why_not(guide, model, local_latents) is None
    }


def _written_for(model: str | None) -> Mapping[str, Guide]:
    """The guides for a model and those for any, whether they suit its latents or not."""
    for name in _general_files():
        import_module(f"{__name__}.{name}")
    if model is not None and find_spec(f"{__name__}.{model}") is not None:
        import_module(f"{__name__}.{model}")
    fitting = [guide for guide in _registered.values() if guide.model in (None, model)]
    fitting.sort(key=lambda guide: guide.model is None)
    replaced = {guide.replaces for guide in fitting}
    return {guide.name: guide for guide in fitting if guide.model or guide.name not in replaced}


@cache
def _general_files() -> list[str]:
    """The files beside this one that belong to no model, `auto` first: it has the plainest."""
    stems = [file.name.removesuffix(".py") for file in files(__name__).iterdir()
             if file.name.endswith(".py") and not file.name.startswith("_")]  # fmt: skip
    return sorted(set(stems) - set(model_summaries()), key=lambda name: (name != "auto", name))


def _why_not(guide: Guide, model: str | None, local_latents: bool) -> str | None:
    """Why a guide does not suit a model's latents; None if it does."""
    if guide.model is None and model is not None and not get_model(model).continuous:
        return f"is for continuous latents, but those of {model} are discrete"
    if guide.dense and local_latents:
        return "needs every latent at once, but this model has latents for each row"
    if guide.likelihood and guide.model is None:
        if local_latents:
            return (
                "cannot sum over the latents that this model has for each row. Every other guide "
                "already puts the point parameters (pyro.param) at the maximum of their "
                "likelihood, or of its bound"
            )
        population = None if model is None else get_model(model).population
        if population:
            return (
                f"leaves the priors out, but the density of '{population[0]}' in {model} is not a "
                "prior: it describes the population of the groups, and is part of the likelihood"
            )
    return None


def get_guide(name: str, model: str | None, local_latents: bool = False) -> Guide:
    """A guide of a model by name.

    Raises:
        OptionError: If there is no such guide, with the nearest name; if it belongs to another
            model or does not suit this one's latents, with the right ones.
    """
    fitting = guides_for(model, local_latents)
    if name in fitting:
        return fitting[name]
    known = _written_for(model)
    if name in known:
        reason = _why_not(known[name], model, local_latents)
        raise OptionError(f"the guide '{name}' {reason}. Guides to use: {', '.join(fitting)}.")
    owners = [owner for owner in model_summaries() if name in _written_for(owner)]
    if owners:
        raise OptionError(
            f"the guide '{name}' was written for {', '.join(owners)}, not for "
            f"{model or 'this model'}. Guides to use: {', '.join(fitting)}."
        )
    raise unknown("guide", name, fitting)
