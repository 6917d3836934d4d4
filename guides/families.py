"""Families of Normals, each defined once, for both engines.

A family is a Normal in unconstrained coordinates as a function of named parameters. Pyro samples
it (`sampled`), and the deterministic engine optimises the same parameters as one flat vector
(`Flat`). A guide says what that engine does with it by a `FixedDraws` beside its name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import transform_to

from elbowroom.errors import NoModeError
from elbowroom.guides import Start
from elbowroom.guides.options import CorrelatedOptions, FixedDrawsOptions
from elbowroom.guides.pathwise import PathwiseMultivariateNormal, PathwiseNormal
from elbowroom.guides.roots import factor_of_inverse
from elbowroom.guides.space import LatentSpace, Site

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


@dataclass(frozen=True)
class Normal:
    """The Normal of u = location + scale · z + factor · e, where z and e are standard Normal.

    Attributes:
        location: (D,).
        scale: Standard deviations, (D,), or a lower Cholesky factor, (D, D).
        factor: Of low rank, (D, R), beside standard deviations; None if there is none.

    Example:
        >>> one = Normal(torch.zeros(2), torch.ones(2), torch.ones(2, 1))
        >>> one.covariance
        tensor([[2., 1.],
                [1., 2.]])
        >>> one.noise, one.correlated
        (3, 1)
        >>> bool(one.log_determinant.isclose(0.5 * torch.tensor(3.0).log()))
        True
    """

    location: Tensor
    scale: Tensor
    factor: Tensor | None = None

    @property
    def distribution(self) -> dist.TorchDistribution:
        """As Pyro samples it."""
        if self.factor is not None:
            variances = self.scale.square()
            return dist.LowRankMultivariateNormal(self.location, self.factor, variances)
        if self.scale.dim() == 1:
            return PathwiseNormal(self.location, self.scale).to_event(1)
        return PathwiseMultivariateNormal(self.location, scale_tril=self.scale)

    @property
    def root(self) -> Tensor:
        """What all noise is multiplied by: (D,) if it is a diagonal, else (D, noise)."""
        if self.factor is None:
            return self.scale
        return torch.cat([self.scale.diag(), self.factor], -1)

    @property
    def covariance(self) -> Tensor:
        """(D, D)."""
        root = self.root
        return root.square().diag() if root.dim() == 1 else root @ root.mT

    @property
    def log_determinant(self) -> Tensor:
        """Half of the covariance's: the entropy is this and a constant."""
        if self.factor is not None:  # not by the determinant of R numbers, since a scale may vanish
            return 0.5 * torch.linalg.slogdet(self.covariance).logabsdet
        diagonal = self.scale if self.scale.dim() == 1 else self.scale.diagonal()
        return diagonal.log().sum()

    @property
    def noise(self) -> int:
        """How many standard Normals make one draw."""
        return len(self.location) + (0 if self.factor is None else self.factor.shape[-1])

    @property
    def correlated(self) -> int:
        """In how many dimensions there are correlations."""
        if self.factor is not None:
            return self.factor.shape[-1]
        return len(self.location) if self.scale.dim() == 2 else 0


class Family(Protocol):
    """Normals in unconstrained coordinates, by the values of named parameters.

    It is made of a `LatentSpace` and a `Start`. Its parameters count in units of the start's
    curvature, so that a step of one is about a standard deviation of the posterior.
    """

    @property
    def parameters(self) -> Mapping[str, Any]:
        """The constraint that each parameter's values obey, by name; in Pyro, `guide.NAME`."""
        ...

    def initial(self, width: float = 1.0) -> Mapping[str, Tensor]:
        """Where the parameters begin: at the start's Normal, so many times as wide."""
        ...

    def normal(self, values: Mapping[str, Tensor]) -> Normal:
        """The Normal at the parameters' values, differentiable by them."""
        ...

    def curvature(self, values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """How minus the ELBO curves in each number, about; a parameter left out has ones.

        It only speeds up what finds the errors of an optimum.
        """
        ...


MakeFamily = Callable[[LatentSpace, Start], Family]


class Flat:
    """The parameters of a family as one flat vector of unconstrained numbers, (P,).

    Args:
        family: The family.
        width: See `Family.initial`.

    Attributes:
        start: Where it begins, (P,).
    """

    def __init__(self, family: Family, width: float = 1.0) -> None:
        self.family, initial = family, family.initial(width)
        self._transforms = {name: transform_to(kind) for name, kind in family.parameters.items()}
        parts = [transform.inv(initial[name]) for name, transform in self._transforms.items()]
        self._shapes = [part.shape for part in parts]
        self.start = torch.cat([part.reshape(-1) for part in parts])

    def values(self, flat: Tensor) -> dict[str, Tensor]:
        """The constrained values by name."""
        parts = flat.split([shape.numel() for shape in self._shapes])
        return {
            name: transform(part.reshape(shape))
            for (name, transform), part, shape in zip(
                self._transforms.items(), parts, self._shapes, strict=True
            )
        }

    def curvature(self, flat: Tensor) -> Tensor:
        """The family's, (P,)."""
        known = self.family.curvature(self.values(flat))
        parts = [
            known[name].reshape(-1) if name in known else torch.ones(shape.numel()).to(flat)
            for name, shape in zip(self._transforms, self._shapes, strict=True)
        ]
        return torch.cat(parts)

    def normal(self, flat: Tensor) -> Normal:
        """The Normal that a flat vector stands for."""
        return self.family.normal(self.values(flat))


class LogDensity(Protocol):
    """A log density of the flat unconstrained vector, in float64."""

    dimension: int

    def value(self, points: np.ndarray) -> np.ndarray:
        """At points, (n, D) to (n,)."""
        ...


@dataclass(frozen=True)
class Search:
    """What the deterministic engine knows of a posterior before a guide is fitted.

    Attributes:
        guide: The guide's name, for what is said of it.
        density: The log density.
        loss: Minus the log density and its gradient at a point, (D,), for a minimiser.
        first: Where the first search began, (D,).
        best: The best mode and its curvature; None if there is none.
        random: Of all that is drawn.
    """

    guide: str
    density: LogDensity
    loss: Callable[[np.ndarray], tuple[float, np.ndarray]]
    first: np.ndarray
    best: Start | None
    random: np.random.Generator

    @property
    def mode(self) -> Start:
        """The best mode.

        Raises:
            NoModeError: If there is none.
        """
        if self.best is None:
            raise NoModeError(
                f"{self.guide} needs a mode with positive curvature, and none was found; "
                "fit with --engine svi --guide mean_field."
            )
        return self.best


@dataclass(frozen=True)
class Found:
    """A Normal of which nothing is left to optimise.

    Attributes:
        mean: In unconstrained coordinates, (D,).
        covariance: (D, D).
        reason: How it was found, as a sentence.
        history: The ELBO of each Normal that was looked at.
    """

    mean: np.ndarray
    covariance: np.ndarray
    reason: str
    history: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class FixedDraws:
    """What the deterministic engine does with a guide.

    With neither a family nor a search of its own, the guide is linear response at the best mode,
    which begins importance sampling for every guide.

    Attributes:
        family: The family whose ELBO over fixed draws is brought to its optimum.
        search: The guide's own way to a Normal.
        proposes: Whether importance sampling begins at the guide instead of linear response.
        wide: Whether it is fitted where the dimension is too large for a covariance as well: a
            family as independent Normals, linear response with some of the covariance.
        chains: Whether Markov chains give the Normal, and the draws of the posterior.
    """

    family: MakeFamily | None = None
    search: Callable[[Search], Found] | None = None
    proposes: bool = False
    wide: bool = False
    chains: bool = False

    @property
    def reads(self) -> tuple[type, ...]:
        """The classes of the options that it reads."""
        if self.search is not None or self.chains:
            return ()
        responds = self.family is None and self.wide
        return (FixedDrawsOptions, CorrelatedOptions) if responds else (FixedDrawsOptions,)


def sampled(space: LatentSpace, family: Family) -> Callable[..., Any]:
    """The guide that samples the flat vector of a family, as Pyro sees it."""

    def draw() -> Tensor:
        values = {
            name: pyro.param(f"guide.{name}", partial(_initial, family, name), constraint=kind)
            for name, kind in family.parameters.items()
        }
        return sample_flat(family.normal(values).distribution)

    return flat_guide(space, draw)


def _initial(family: Family, name: str) -> Tensor:
    return family.initial()[name]


def sample_site(site: Site, unconstrained: Tensor) -> Tensor:
    """Samples a site at the value of an unconstrained draw, with the density of the transform."""
    value = site.transform(unconstrained)
    log_density = -site.log_abs_det_jacobian(unconstrained, value)
    fn = dist.Delta(value, log_density=log_density, event_dim=site.event_dim)
    return pyro.sample(site.name, fn)


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


REAL = constraints.real
"""The constraint of parameters that have none."""
