"""Guides that fit any model with continuous latents, discrete ones enumerated out.

All are written in the model's unconstrained coordinates, scaled by the curvature at the start
where that is known: an optimiser's step is then about the same fraction of the posterior's width
in every direction, whatever the units of the data. The family of distributions is not changed.
Parameters and auxiliary sites are named `guide. ...`, so that they meet no name of the model's.
"""

import math
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from elbowroom.errors import GuideError
from elbowroom.guides import Start, register
from elbowroom.guides.families import (
    REAL,
    FixedDraws,
    Found,
    Normal,
    Search,
    cholesky,
    flat_guide,
    sample_flat,
    sampled,
    scales,
)
from elbowroom.guides.pathwise import PathwiseNormal
from elbowroom.guides.space import LatentSpace, Site
from elbowroom.sizes import SIZES

FLAT = 1e-2
"""The least curvature that a number of a low-rank guide is guessed to have."""


def sample_normal(site: Site, location: Tensor, scale: Tensor) -> None:
    """Samples a site from a Normal in unconstrained coordinates with free mean and scale.

    The parameters are the mean's distance from `location` in units of `scale`, and the log ratio
    of the standard deviation to `scale`.
    """
    event_dim, shape = site.transform.domain.event_dim, site.unconstrained_shape
    offset = pyro.param(f"guide.{site.name}.offset", torch.zeros(shape), event_dim=event_dim)
    sample_spread(site, location + scale * offset, scale)


def sample_spread(site: Site, location: Tensor, scale: Tensor) -> None:
    """Samples a site from a Normal in unconstrained coordinates of which the scale alone is free.

    The parameter is the log ratio of the standard deviation to `scale`.
    """
    event_dim, shape = site.transform.domain.event_dim, site.unconstrained_shape
    log_ratio = pyro.param(f"guide.{site.name}.log_ratio", torch.zeros(shape), event_dim=event_dim)
    fn: Any = PathwiseNormal(location, scale * log_ratio.exp())
    fn = fn.to_event(event_dim)
    if not site.real:  # a plain Normal keeps its closed-form divergence
        fn = dist.TransformedDistribution(fn, [site.transform.with_cache()])
    pyro.sample(site.name, fn.to_event(site.event_dim - fn.event_dim))


def whitened(space: LatentSpace, start: Start) -> bool:
    """Whether a guide's means are optimised in coordinates whitened by the curvature.

    Strong correlations between the sites would make for a long way. Latents of every row have none
    with those of other rows that a minibatch would hold.
    """
    fits = start.precision is not None and space.dimension <= SIZES.products
    return fits and not space.local_continuous


def site_guide(
    space: LatentSpace,
    start: Start,
    centred: Callable[[Site, Tensor, Tensor], None],
    sample: Callable[[Site, Tensor, Tensor], None],
) -> Callable[..., Any]:
    """A guide that treats each site by itself, and so can hold one for every row.

    The samplers are called inside the site's plates with a location and the start's scale, both of
    the unconstrained shape. The location is free in whitened coordinates for `centred`, which is
    taken where there are some; else it is the start's.
    """
    starts, widths = space.split(start.location), space.split(scales(start))
    root = cholesky(start) if whitened(space, start) else None

    def guide(**arguments: Any) -> None:
        plates, locations = space.plates(arguments), starts
        if root is not None:
            offset = pyro.param("guide.offset", torch.zeros(space.dimension))
            locations = space.split(start.location + root @ offset)
        for site in space.sites:
            with plates(site.plates):
                location = _in_plate(site, locations[site.name])
                chosen = sample if root is None else centred
                chosen(site, location, _in_plate(site, widths[site.name]))

    return guide


def _in_plate(site: Site, values: Tensor) -> Tensor:
    """The rows of `values` that the open plates have subsampled."""
    return pyro.subsample(values, event_dim=site.transform.domain.event_dim)


@register("map", "the posterior's mode alone: a point, with no spread", point=True)
def map_guide(space: LatentSpace, start: Start) -> Callable[..., Any]:
    """The mode of the posterior of the sites' values (not of the unconstrained ones)."""

    def centred(site: Site, location: Tensor, scale: Tensor) -> None:
        pyro.sample(site.name, dist.Delta(site.transform(location), event_dim=site.event_dim))

    def sample(site: Site, location: Tensor, scale: Tensor) -> None:
        event_dim = site.transform.domain.event_dim
        zero = torch.zeros(site.unconstrained_shape)
        offset = pyro.param(f"guide.{site.name}.offset", zero, event_dim=event_dim)
        centred(site, location + scale * offset, scale)

    return site_guide(space, start, centred, sample)


@register("mle", "maximum likelihood: a point, without priors", point=True, likelihood=True)
def mle(space: LatentSpace, start: Start) -> Callable[..., Any]:
    """The maximum of the likelihood of the sites' values, discrete ones summed out.

    Fisher, 1922, "On the mathematical foundations of theoretical statistics".
    """
    return map_guide(space, start)


LANDING = "sticking_the_landing"
"""The objective of guides that can come near any posterior: its noise is that of what they miss."""


class MeanField:
    """Independent Normals; the means move in whitened coordinates where there are some.

    Its parameters are those that `site_guide` makes in Pyro, site by site.
    """

    def __init__(self, space: LatentSpace, start: Start) -> None:
        self.start, self.sites, self.scales = start, space.sites, scales(start)
        self.root = cholesky(start) if whitened(space, start) else None
        offsets = ["offset"] if self.root is not None else [f"{s.name}.offset" for s in space.sites]
        names = [*offsets, *(f"{site.name}.log_ratio" for site in space.sites)]
        self.parameters = dict.fromkeys(names, REAL)

    def initial(self, width: float = 1.0) -> dict[str, Tensor]:
        """No offset, and the log of the width."""
        found = {}
        for site in self.sites:
            shape = site.unconstrained_shape
            found[f"{site.name}.offset"] = torch.zeros(shape)
            found[f"{site.name}.log_ratio"] = torch.full(shape, math.log(width))
        return {"offset": torch.zeros(len(self.scales)), **found}

    def normal(self, values: Mapping[str, Tensor]) -> Normal:
        """With a diagonal covariance."""
        if self.root is None:
            moved = self.scales * self._flat(values, "offset")
        else:
            moved = self.root @ values["offset"]
        return Normal(
            self.start.location + moved, self.scales * self._flat(values, "log_ratio").exp()
        )

    def curvature(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Two of each log standard deviation, where the posterior is Normal."""
        return {name: torch.full_like(values[name], 2.0) for name in self.parameters
                if name.endswith(".log_ratio")}  # fmt: skip

    def _flat(self, values: Mapping[str, Tensor], name: str) -> Tensor:
        return torch.cat([values[f"{site.name}.{name}"].reshape(-1) for site in self.sites])


@register(
    "mean_field",
    "independent Normals in unconstrained coordinates",
    fixed_draws=FixedDraws(MeanField, wide=True),
)
def mean_field(space: LatentSpace, start: Start) -> Callable[..., Any]:
    """Kucukelbir et al., 2017, "Automatic differentiation variational inference"."""
    return site_guide(space, start, sample_spread, sample_normal)


class FullRank:
    """One Normal, its mean and Cholesky factor in coordinates whitened by the curvature."""

    def __init__(self, space: LatentSpace, start: Start) -> None:
        self.start, self.whitening, self.size = start, cholesky(start), space.dimension
        self.parameters = {"offset": REAL, "factor": constraints.lower_cholesky}

    def initial(self, width: float = 1.0) -> dict[str, Tensor]:
        """The unit matrix, so many times."""
        return {"offset": torch.zeros(self.size), "factor": width * torch.eye(self.size)}

    def normal(self, values: Mapping[str, Tensor]) -> Normal:
        """With all correlations."""
        location = self.start.location + self.whitening @ values["offset"]
        return Normal(location, self.whitening @ values["factor"])

    def curvature(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One, in whitened coordinates."""
        return {}


@register(
    "full_rank",
    "one Normal with all correlations",
    elbo=LANDING,
    dense=True,
    fixed_draws=FixedDraws(FullRank, proposes=True),
)
def full_rank(space: LatentSpace, start: Start) -> Callable[..., Any]:
    """Kucukelbir et al., 2017, "Automatic differentiation variational inference"."""
    return sampled(space, FullRank(space, start))


class LowRank:
    """A Normal whose covariance is diagonal plus a part of rank √D, rounded up.

    The mean moves in whitened coordinates; the rest is in units of the start's scales.
    """

    def __init__(self, space: LatentSpace, start: Start) -> None:
        self.start, self.size = start, space.dimension
        self.widths, self.whitening = scales(start), cholesky(start)
        self.parameters = dict.fromkeys(("offset", "factor", "log_ratio"), REAL)

    @cached_property
    def factor(self) -> Tensor:
        """What the conditional variances leave out, in its leading directions, (D, R)."""
        rank, precision = math.ceil(self.size**0.5), self.start.precision
        if precision is None:
            return 0.1 * torch.randn(self.size, rank) / rank**0.5
        covariance = torch.linalg.inv(precision) / torch.outer(self.widths, self.widths)
        values, vectors = torch.linalg.eigh(covariance - torch.eye(self.size).to(covariance))
        return vectors[:, -rank:] * values[-rank:].clamp(min=1e-4).sqrt()

    def initial(self, width: float = 1.0) -> dict[str, Tensor]:
        """The start's scales, and the factor beside them."""
        log_ratio = torch.full((self.size,), math.log(width))
        return {
            "offset": torch.zeros(self.size), "factor": width * self.factor, "log_ratio": log_ratio
        }  # fmt: skip

    def normal(self, values: Mapping[str, Tensor]) -> Normal:
        """With correlations of low rank."""
        location = self.start.location + self.whitening @ values["offset"]
        scale = self.widths * values["log_ratio"].exp()
        return Normal(location, scale, self.widths.unsqueeze(-1) * values["factor"])

    def curvature(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """That of the divergence from the guide, each number by itself."""
        factor, variances = values["factor"], (2 * values["log_ratio"]).exp()
        inverse = torch.linalg.inv(factor @ factor.mT + variances.diag())
        own, across = inverse.diagonal(), inverse @ factor
        by_factor = torch.outer(own, (factor * across).sum(0)) + across.square()
        return {
            "factor": by_factor + FLAT,
            "log_ratio": 2 * (variances * own).square() + FLAT,
        }


@register(
    "low_rank",
    "a Normal with correlations of low rank",
    dense=True,
    fixed_draws=FixedDraws(LowRank),
)
def low_rank(space: LatentSpace, start: Start) -> Callable[..., Any]:
    """Rank √D, rounded up.

    Ong, Nott and Smith, 2018, "Gaussian variational approximation with a factor covariance
    structure".
    """
    return sampled(space, LowRank(space, start))


def start_normal(space: LatentSpace, start: Start) -> Callable[..., Any]:
    """The Normal at the start with its precision: nothing to optimise."""
    if start.scale is not None and start.factor is not None:
        fn = Normal(start.location, start.scale, start.factor).distribution
        return flat_guide(space, lambda: sample_flat(fn))
    if start.precision is None:
        raise GuideError("this guide is fitted with --engine fixed_draws.")
    scale_tril = cholesky(start)

    def draw() -> Tensor:
        return sample_flat(dist.MultivariateNormal(start.location, scale_tril=scale_tril))

    return flat_guide(space, draw)


@register(
    "linear_response",
    "mean-field means with the covariance of linear response",
    dense=True,
    engines=("fixed_draws",),
    fixed_draws=FixedDraws(wide=True),
)
def linear_response(space: LatentSpace, start: Start) -> Callable[..., Any]:
    """Giordano, Broderick and Jordan, 2018, "Covariances, robustness and variational Bayes"."""
    return start_normal(space, start)


def match_mode(search: Search) -> Found:
    """The Normal at the best mode with its curvature."""
    mode = search.mode
    assert mode.precision is not None
    covariance = np.linalg.inv(mode.precision.numpy())
    reason = "the guide is the mode and its curvature: nothing to optimise."
    return Found(mode.location.numpy(), covariance, reason)


@register(
    "laplace",
    "the Normal that matches the mode and its curvature",
    dense=True,
    engines=("fixed_draws",),
    fixed_draws=FixedDraws(search=match_mode),
)
def laplace(space: LatentSpace, start: Start) -> Callable[..., Any]:
    """The mode and inverse Hessian of the unconstrained log density."""
    return start_normal(space, start)


@register(
    "flow", "a neural spline flow: a flexible density made by a network", elbo=LANDING, dense=True
)
def flow(space: LatentSpace, start: Start) -> Callable[..., Any]:
    """Durkan et al., 2019, "Neural spline flows", through zuko; affine in one dimension.

    The flow maps a standard Normal to coordinates whitened by the curvature at the start.
    """
    validate = torch.distributions.Distribution._validate_args
    import zuko  # switches argument validation off in the whole process: put back below

    torch.distributions.Distribution.set_default_validate_args(validate)
    from pyro.contrib.zuko import ZukoToPyro

    size = space.dimension
    architecture = zuko.flows.MAF if size == 1 else zuko.flows.NSF
    # Coupling, two passes, because every step samples, and must not take a pass a coordinate.
    passes = {} if size == 1 else {"passes": 2}
    network = architecture(size, transforms=3, hidden_features=(64, 64), **passes)
    network = network.to(start.location)
    with torch.no_grad():  # begin at the identity, so that the start is the Laplace approximation
        for transform in network.transform.transforms:
            for parameter in list(transform.parameters())[-2:]:
                parameter.mul_(0.01)
    whitening = cholesky(start)
    log_determinant = whitening.diagonal().log().sum()

    def draw() -> Tensor:
        pyro.module("guide.flow", network)
        whitened = pyro.sample(
            "guide.whitened", ZukoToPyro(network()), infer={"is_auxiliary": True}
        )
        u = start.location + whitening @ whitened
        fn = dist.Delta(u, log_density=-log_determinant, event_dim=1)
        return pyro.sample("guide.unconstrained", fn, infer={"is_auxiliary": True})

    return flat_guide(space, draw)
