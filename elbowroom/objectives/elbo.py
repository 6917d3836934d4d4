"""Which objective is right for a model and a guide, and how it is made."""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from pyro import poutine
from pyro.infer import config_enumerate

from elbowroom.errors import ModelError, OptionError
from elbowroom.guides.sites import GuideSites
from elbowroom.guides.space import LatentSpace, listed_values, sample_sites, trace_model
from elbowroom.objectives import get_objective, objectives
from elbowroom.objectives.estimators import Graph, Objective, Sampled, Summed
from elbowroom.options import flag, option_names

Kind = type[Objective]


def _left_out(space: LatentSpace, sites: GuideSites) -> list[str]:
    """The discrete sites of the model that the guide does not sample."""
    return sorted(set(space.discrete) - sites.discrete)


def _enumeration(kind: Kind, space: LatentSpace, sites: GuideSites) -> str | None:
    left = _left_out(space, sites)
    if left and not kind.enumerates:
        return (
            f" needs every latent site in the guide, and '{left[0]}' is not; give --elbo "
            f"{Summed.name}, which sums over it, or a guide that samples it."
        )
    if kind.enumerates and not (left or sites.enumerable):
        return ": there is no discrete site to sum over; leave --elbo out."
    return None


def _paths(kind: Kind, space: LatentSpace, sites: GuideSites) -> str | None:
    if not kind.pathwise:
        return None
    if sites.discrete:
        return (
            f" needs reparameterised sites, but '{min(sites.discrete)}' is discrete; give --elbo "
            f"{Graph.name} or, for several draws, --elbo vimco."
        )
    if sites.rough:
        return (
            f" needs reparameterised sites, but the distribution of '{min(sites.rough)}' cannot "
            f"be reparameterised; give --elbo {Graph.name}, or change the distribution."
        )
    return None


def _densities(kind: Kind, space: LatentSpace, sites: GuideSites) -> str | None:
    if not (kind.as_drawn or kind.scoreless):
        return None
    if sites.point:
        reason = ": the guide is a point, which has no score; leave --elbo out."
        return reason if kind.as_drawn else None
    still = sites.moved | sites.weighed if kind.as_drawn else sites.weighed
    if not still:
        return None
    return (
        " cannot use a Delta that depends on a parameter, and the guide has one at "
        f"'{min(still)}'; give --elbo {Sampled.name}."
    )


def _rows(kind: Kind, space: LatentSpace, sites: GuideSites) -> str | None:
    if not kind.of_rows:
        return None
    if not space.rows_only:
        return (
            " is for models whose latents all belong to rows, since it trains the guide on rows "
            f"drawn from the model; give --elbo {Graph.name}."
        )
    if sites.auxiliary:
        return (
            f": the guide draws '{min(sites.auxiliary)}', which is not a site of the model, so "
            f"rows drawn from the model have no value of it; give --elbo {Sampled.name}."
        )
    return None


def _own(kind: Kind, space: LatentSpace, sites: GuideSites) -> str | None:
    return kind.why_not(space, sites)


def _divergences(kind: Kind, space: LatentSpace, sites: GuideSites) -> str | None:
    if not (kind.closed and sites.auxiliary):
        return None
    return (
        f" takes KL divergences site by site, but the guide draws '{min(sites.auxiliary)}', "
        f"which is not a site of the model; give --elbo {Sampled.name}."
    )


RULES = (_enumeration, _paths, _densities, _rows, _own, _divergences)
"""Each says what a model and a guide do not have for an objective's flags; None for nothing."""


def refusals(kind: Kind, space: LatentSpace, sites: GuideSites) -> Iterator[str]:
    """Why an objective is wrong for a model and a guide, in the order of the rules."""
    for rule in RULES:
        why = rule(kind, space, sites)
        if why is not None:
            yield f"--elbo {kind.name}{why}"


def choose_objective(
    requested: str | None,
    suited: str | None,
    space: LatentSpace,
    sites: GuideSites,
    given: Collection[str] = (),
) -> tuple[str, str]:
    """The objective for a model and a guide, and why.

    Args:
        requested: The user's choice, or None.
        suited: The guide's own, or None.
        space: The model's latent space.
        sites: The guide's sites.
        given: Names of the options that the user gave, some of which ask for an objective.

    Raises:
        OptionError: If the objective is wrong for the pair.
    """
    by_option = None if requested else _asked_by_option(given)
    requested = requested or by_option
    if requested is not None:
        for refusal in refusals(get_objective(requested), space, sites):
            options = option_names(get_objective(requested).options_kind) if by_option else []
            asked = [f"{flag(name)}: " for name in options if name in given]
            raise OptionError(f"{asked[0] if asked else ''}{refusal}")
        return requested, "as asked"
    left = min(_left_out(space, sites), default="")
    summed = min(sites.enumerable, default="")
    discrete = min(sites.discrete, default="")
    scored = discrete and not (suited is not None and get_objective(suited).as_drawn)
    rules = (
        (left, Summed.name, f"it sums over '{left}', which the guide leaves out"),
        (summed, Summed.name, f"the guide's '{summed}' can be summed over"),
        (
            scored,
            Graph.name,
            f"the guide's '{discrete}' is discrete, so its gradient is a score function",
        ),
        (suited is not None, suited or "", "the guide's own objective"),
        (True, Sampled.name, "every site is reparameterised"),
    )
    return next((name, why) for applies, name, why in rules if applies)


def _asked_by_option(given: Collection[str]) -> str | None:
    """The objective that one of its options, given alone, asks for."""
    for name, kind in objectives().items():
        if kind.asked_by_option and not set(option_names(kind.options_kind)).isdisjoint(given):
            return name
    return None


def make_objective(name: str, particles: int, space: LatentSpace, options: Any = None) -> Objective:
    """The objective.

    Args:
        name: As it is registered.
        particles: Draws for each estimate.
        space: The model's latent space.
        options: Of its own class of options; the defaults by default.
    """
    rows = space.subsampled if space.rows_only else None
    return get_objective(name)(particles, space.max_plate_nesting, rows, space.observed, options)


def marked(
    name: str, model: Callable[..., Any], guide: Callable[..., Any]
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Model and guide as the objective needs them.

    For one that sums the model's discrete sites are marked for enumeration; for the others the
    guide's marks are taken off, since Pyro warns of marks that its objective does not read.
    """
    if get_objective(name).enumerates:
        return config_enumerate(model, "parallel"), guide
    unmarked: Any = {"enumerate": None}
    return model, poutine.infer_config(guide, config_fn=lambda site: unmarked)


def check_enumerable(
    model: Callable[..., Any],
    arguments: Mapping[str, Any],
    space: LatentSpace,
    sites: GuideSites | None = None,
) -> None:
    """Sees that the discrete sites left to the objective have finitely many values.

    Args:
        model: The Pyro model, to be called in a session.
        arguments: Its keyword arguments.
        space: Its latent space.
        sites: Of the guide; by default one that samples no discrete site.

    Raises:
        ModelError: If one has not; the site is named.
    """
    left = list(space.discrete) if sites is None else _left_out(space, sites)
    if not left:
        return
    nodes = dict(sample_sites(trace_model(model, arguments)))
    for name in left:
        fn = nodes[name]["fn"]
        if not listed_values(fn):
            listed = fn.has_enumerate_support or fn.event_shape
            values = "values that cannot be listed" if listed else "infinitely many values"
            raise ModelError(
                f"site '{name}' is discrete and has {values}, so it cannot be summed over; sample "
                "it in a guide of your own."
            )
