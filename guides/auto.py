"""Guides that fit any model with continuous latents, discrete ones enumerated out.

All are written in the model's unconstrained coordinates, scaled by the curvature at the start
where that is known: an optimiser's step is then about the same fraction of the posterior's width
in every direction, whatever the units of the data. The family of distributions is not changed.
Parameters and auxiliary sites are named `guide. ...`, so that they meet no name of the model's.
"""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from elbowroom.errors import GuideError
from elbowroom.guides import Start, register
from elbowroom.guides.options import CorrelatedOptions, FixedDrawsOptions
from elbowroom.guides.pathwise import PathwiseMultivariateNormal, PathwiseNormal
from elbowroom.guides.roots import factor_of_inverse
from elbowroom.guides.space import LatentSpace, Site

WHITENED = 300
"""The largest dimension in which means are optimised in whitened coordinates."""
INITIAL_SCALE = 0.1
"""Standard deviation, in unconstrained coordinates, where no curvature is known."""


def scales(start: Start) -> Tensor:
    """The conditional standard deviation of each coordinate at the start, (D,).

    It is the optimal one of a mean-field Normal where the posterior is Normal.
    """
    if start.scale is not None:
        return start.scale
    if start.precision is None:
        return torch.full_like(start.location, INITIAL_SCALE)
    return start.precision.diagonal().rsqrt()


def cholesky(start: Start) -> Tensor:
    """Lower Cholesky factor of the covariance at the start, (D, D)."""
    if start.precision is None:
        return INITIAL_SCALE * torch.eye(len(start.location)).to(start.location)
    return factor_of_inverse(start.precision)


def sample_site(site: Site, unconstrained: Tensor) -> Tensor:
    """Samples a site at the value of an unconstrained draw, with the density of the transform."""
    value = site.transform(unconstrained)
    log_density = -site.log_abs_det_jacobian(unconstrained, value)
    fn = dist.Delta(value, log_density=log_density, event_dim=site.event_dim)
    return pyro.sample(site.name, fn)


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


def flat_guide(space: LatentSpace, draw: Callable[[], Tensor]) -> Callable[..., Any]:
    """A guide that draws the flat unconstrained vector as a whole; `draw` samples it."""

    def guide(**arguments: Any) -> None:
        parts, plates = space.split(draw()), space.plates(arguments)
        for site in space.sites:
            with plates(site.plates):
                sample_site(site, parts[site.name])

    return guide


def sample_flat(fn: dist.TorchDistribution) -> Tensor:
    """Samples the flat unconstrained vector, which is no site of the model."""
    return pyro.sample("guide.unconstrained", fn, infer={"is_auxiliary": True})


def whitened(space: LatentSpace, start: Start) -> bool:
    """Whether a guide's means are optimised in coordinates whitened by the curvature.

    Strong correlations between the sites would make for a long way. Latents of every row have none
    with those of other rows that a minibatch would hold.
    """
    fits = start.precision is not None and space.dimension <= WHITENED
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


@register("mle", "maximum likelihood: a point, the priors left out", point=True, likelihood=True)
def mle(space: LatentSpace, start: Start) -> Callable[..., Any]:
    """The maximum of the likelihood of the sites' values, discrete ones summed out.

    Fisher, 1922, "On the mathematical foundations of theoretical statistics".
    """
    return map_guide(space, start)


BOTH: dict[str, Any] = {"engines": ("fixed_draws", "svi"), "options": (FixedDrawsOptions,)}
LANDING = "sticking_the_landing"
"""The objective of guides that can come near any posterior: its noise is that of what they miss."""


@register("mean_field", "independent Normals in unconstrained coordinates", **BOTH)
def mean_field(space: LatentSpace, start: Start) -> Callable[..., Any]:
    """Kucukelbir et al., 2017, "Automatic differentiation variational inference"."""
    return site_guide(space, start, sample_spread, sample_normal)


@register("full_rank", "one Normal with all correlations", elbo=LANDING, dense=True, **BOTH)
def full_rank(space: LatentSpace, start: Start) -> Callable[..., Any]:
    """Kucukelbir et al., 2017, "Automatic differentiation variational inference"."""
    whitening, size = cholesky(start), space.dimension

    def draw() -> Tensor:
        offset = pyro.param("guide.offset", torch.zeros(size))
        factor = pyro.param("guide.factor", torch.eye(size), constraint=constraints.lower_cholesky)
        location = start.location + whitening @ offset
        return sample_flat(PathwiseMultivariateNormal(location, scale_tril=whitening @ factor))

    return flat_guide(space, draw)


@register("low_rank", "a Normal with correlations of low rank", dense=True, **BOTH)
def low_rank(space: LatentSpace, start: Start) -> Callable[..., Any]:
    """Rank √D, rounded up.

    Ong, Nott and Smith, 2018, "Gaussian variational approximation with a factor covariance
    structure".
    """
    widths, whitening, size = scales(start), cholesky(start), space.dimension
    rank = max(1, round(size**0.5 + 0.499))

    def initial_factor() -> Tensor:
        if start.precision is None:
            return 0.1 * torch.randn(size, rank) / rank**0.5
        covariance = torch.linalg.inv(start.precision) / torch.outer(widths, widths)
        # What the conditional variances leave out, in its leading directions.
        values, vectors = torch.linalg.eigh(covariance - torch.eye(size).to(covariance))
        return vectors[:, -rank:] * values[-rank:].clamp(min=1e-4).sqrt()

    def draw() -> Tensor:
        offset = pyro.param("guide.offset", torch.zeros(size))
        factor = pyro.param("guide.factor", initial_factor)
        log_ratio = pyro.param("guide.log_ratio", torch.zeros(size))
        fn = dist.LowRankMultivariateNormal(
            start.location + whitening @ offset,
            widths.unsqueeze(-1) * factor,
            (widths * log_ratio.exp()).square(),
        )
        return sample_flat(fn)

    return flat_guide(space, draw)


def _normal(space: LatentSpace, start: Start) -> Callable[..., Any]:
    """The Normal at the start with its precision: nothing to optimise."""
    if start.scale is not None and start.factor is not None:
        variances, factor = start.scale.square(), start.factor
        fn = dist.LowRankMultivariateNormal(start.location, factor, variances)
        return flat_guide(space, lambda: sample_flat(fn))
    if start.precision is None:
        raise GuideError("this guide is fitted with --engine fixed_draws.")
    scale_tril = cholesky(start)

    def draw() -> Tensor:
        return sample_flat(dist.MultivariateNormal(start.location, scale_tril=scale_tril))

    return flat_guide(space, draw)


FIXED = ("fixed_draws",)


@register(
    "linear_response",
    "mean-field means with the covariance of linear response",
    dense=True,
    engines=FIXED,
    options=(FixedDrawsOptions, CorrelatedOptions),
)
def linear_response(space: LatentSpace, start: Start) -> Callable[..., Any]:
    """Giordano, Broderick and Jordan, 2018, "Covariances, robustness and variational Bayes"."""
    return _normal(space, start)


@register(
    "laplace", "the Normal that matches the mode and its curvature", dense=True, engines=FIXED
)
def laplace(space: LatentSpace, start: Start) -> Callable[..., Any]:
    """The mode and inverse Hessian of the unconstrained log density."""
    return _normal(space, start)


@register(
    "pathfinder", "the best Normal along paths of a quasi-Newton climb", dense=True, engines=FIXED
)
def pathfinder(space: LatentSpace, start: Start) -> Callable[..., Any]:
    """Zhang, Carpenter, Gelman and Vehtari, 2022, "Pathfinder"."""
    return _normal(space, start)


@register("flow", "a neural spline flow", elbo=LANDING, dense=True)
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
