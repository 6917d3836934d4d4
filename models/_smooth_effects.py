"""Smooth terms in a Pyro model: their standard deviations and length scales, and their sum."""

import math
from collections.abc import Mapping, Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from elbowroom.models._smooth_bases import shortest_length
from elbowroom.models._smooths import Smooth
from elbowroom.models._term_priors import Priors

SMALLEST = 30.0
"""Of minus the log of a function's standard deviation, relative to the others, at most: what is
below is no part of the sum, and has a density nevertheless."""


def sample_smooths(smooths: Sequence[Smooth], unit: Tensor, term_priors: Priors) -> list[Tensor]:
    """Samples the coefficients of the functions of smooth terms.

    Args:
        smooths: Which there are.
        unit: Of the linear predictor, ().
        term_priors: Those that are not the defaults.

    Returns:
        Of each term, in the units of the linear predictor, (functions,).
    """
    return [_sampled(each, unit, term_priors) for each in smooths]


def _sampled(smooth: Smooth, unit: Tensor, term_priors: Priors) -> Tensor:
    found = {}
    for name, usual in smooth.defaults().items():
        prior = dict(term_priors.scales).get(name, usual)
        found[name] = pyro.sample(_hidden(name), prior.distribution())
    scale = found[smooth.sigma]
    pyro.deterministic(smooth.sigma, unit * scale)
    if smooth.boundary is not None:
        length = found[smooth.length_scale]
        pyro.deterministic(smooth.length_scale, smooth.spread * length)
        scale = scale * spectral_root(smooth.frequencies, length)
    # As a whole, so that chains move along what the data tell of it, at each standard deviation.
    size = smooth.functions
    normal = dist.MultivariateNormal(
        torch.zeros(size), scale_tril=torch.diag_embed(scale * torch.ones(size))
    )
    return unit * pyro.sample(_hidden(smooth.name), normal)


def spectral_root(frequencies: Tensor, length: Tensor) -> Tensor:
    """The root of the spectral density of a Gaussian process of variance one, (functions,).

    The kernel is exp(-(x - x')² / 2ℓ²), and S(ω) = √(2π) ℓ exp(-ℓ² ω² / 2).

    Args:
        frequencies: ω, (functions,).
        length: ℓ, ().
    """
    falling = (length * frequencies).square() / 4
    return (2 * math.pi) ** 0.25 * length.sqrt() * (-falling.clamp(max=SMALLEST)).exp()


def described(smooths: Sequence[Smooth]) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
    """The dims of what is reported, and the sites that are not shown."""
    names = [name for each in smooths for name in each.defaults()]
    sampled = [*names, *(each.name for each in smooths)]
    return dict.fromkeys(names, ()), tuple(map(_hidden, sampled))


def too_few_functions(smooths: Sequence[Smooth], draws: Mapping[str, Tensor]) -> list[str]:
    """What is to be said where a length scale is shorter than a term's functions can follow.

    Args:
        smooths: The terms.
        draws: Of the posterior, by site, (draws,).
    """
    said = []
    for each in smooths:
        if each.boundary is None:
            continue
        length = float(draws[_hidden(each.length_scale)].double().mean())
        least = shortest_length(each.functions, each.boundary)
        if length < least:
            needed = math.ceil(shortest_length(length, each.boundary))
            said.append(
                f"The length scale of {each.name}, {each.spread * length:.3g}, is shorter than its "
                f"{each.functions} functions can follow, {each.spread * least:.3g}: write "
                f"m={needed} in it."
            )
    return said


def _hidden(name: str) -> str:
    """The name of the site that is sampled for what is reported."""
    return f"standardised_{name}"
