"""Angles: the cut of each circle is put opposite the posterior, wherever that lies.

The support of a von Mises distribution is the real line to torch, on which its density has a mode
at each turn. An interval of 2 pi at whose ends the density is the same is a circle as well. Both
get coordinates in which the circle is cut opposite the highest mode, so that no mode is cut in two.
"""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.distributions import Transform

from elbowroom.density.curvature import Curvature
from elbowroom.density.density import Density
from elbowroom.density.modes import find_modes
from elbowroom.density.starts import Starts
from elbowroom.errors import ElbowroomError
from elbowroom.guides.space import LatentSpace, Site
from elbowroom.guides.transforms import Circle, Wrapped
from elbowroom.problem.bound import Problem
from elbowroom.problem.isolation import isolated, placed
from elbowroom.sizes import SIZES


@dataclass(frozen=True)
class Circles:
    """How circles are found, and cut."""

    width: float = 1e-3
    """How far from 2 pi the width of an interval may be, as for bounds of a few digits."""
    ends: float = 1e-6
    """Distance from both ends of an interval at which its density is compared."""
    same: float = 1e-3
    """The largest difference there, in nats, relative to the density where that is large."""
    points: int = 4
    """Places of the other coordinates at which it is."""
    starts: int = 6
    """Climbs to the mode that the cut is opposite of."""
    grid: int = 32
    """Places in half a turn at which a circle may be cut: rounding makes a fit that is loaded the
    same on any machine."""


CIRCLES = Circles()


def cut_opposite(problem: Problem) -> Problem:
    """A problem whose angles have coordinates that are cut opposite their posterior.

    Args:
        problem: The model bound to its data; itself if it has no angles.
    """
    space = problem.space
    lows = {site.name: -torch.pi for site in space.sites if site.angles}
    intervals = [site for site in space.sites if _wide_as_a_circle(site)]
    if not lows and not intervals:
        return problem
    with isolated(0, dtype=torch.float64, threads=problem.threads):
        arguments = placed(problem.arguments, torch.float64, torch.device("cpu"))
        with suppress(ElbowroomError, RuntimeError):
            for site in intervals:
                low = float(torch.as_tensor(site.support.lower_bound).reshape(-1)[0])
                turning = _with(space, {site.name: Wrapped(low)})
                if _is_circle(Density(problem.function, arguments, turning), site, low):
                    lows[site.name] = low
        if not lows:
            return problem
        centres = {
            site.name: torch.zeros(site.shape) + lows[site.name] + torch.pi
            for site in space.sites
            if site.name in lows
        }
        few = space.dimension <= SIZES.products and not space.local_continuous
        with suppress(ElbowroomError, RuntimeError):
            if few:
                wrapped = _with(space, {name: Wrapped(low) for name, low in lows.items()})
                density = Density(problem.function, arguments, wrapped)
                centres = _modes_of(density, lows) or centres
    circles = {name: Circle(lows[name], centre) for name, centre in centres.items()}
    return replace(problem, space=_with(space, circles))


def _with(space: LatentSpace, transforms: dict[str, Any]) -> LatentSpace:
    """A space with other coordinates of some sites."""

    def changed(site: Site, transform: Transform) -> Site:
        return replace(site, transform=transform, unconstrained_shape=site.shape)

    sites = (
        changed(site, transforms[site.name]) if site.name in transforms else site
        for site in space.sites
    )
    return replace(space, sites=tuple(sites))


def _wide_as_a_circle(site: Site) -> bool:
    support = getattr(site.support, "base_constraint", site.support)
    bounds = [getattr(support, name, None) for name in ("lower_bound", "upper_bound")]
    if None in bounds or support.is_discrete:
        return False
    low, high = (torch.as_tensor(each).double() for each in bounds)
    one = bool((low == low.reshape(-1)[0]).all())
    return one and bool(((high - low - 2 * torch.pi).abs() < CIRCLES.width).all())


def _is_circle(density: Density, site: Site, low: float) -> bool:
    """Whether the density is the same at both ends of an interval, which its value wraps around."""
    random = np.random.default_rng(0)
    points = random.standard_normal((CIRCLES.points, density.dimension))
    place = _place(density.space, site.name)
    ends = [points.copy(), points.copy()]
    for end, away in zip(ends, (CIRCLES.ends, -CIRCLES.ends), strict=True):
        end[:, place] = low + away
    one, two = (density.value(end) for end in ends)
    usable = np.isfinite(one) & np.isfinite(two)
    near = np.abs(one - two) <= CIRCLES.same * (1 + np.abs(one))
    return bool(usable.any() and near[usable].all())


def _place(space: LatentSpace, name: str) -> slice:
    """Where a site is in the flat vector."""
    names = [site.name for site in space.sites]
    begin = sum(space.sizes[: names.index(name)])
    return slice(begin, begin + space.sizes[names.index(name)])


def _modes_of(density: Density, names: Iterable[str]) -> dict[str, torch.Tensor] | None:
    """The angles at the highest mode, rounded."""
    starts = Starts(density, np.random.default_rng(0))
    begun = starts.first()
    count = CIRCLES.starts if density.width <= SIZES.cache else CIRCLES.starts // 2
    ends = find_modes(density, Curvature(density), np.stack([next(begun) for _ in range(count)]))
    if not ends:
        return None
    step = torch.pi / CIRCLES.grid
    values = density.constrained(ends[0].location[None])
    return {name: (values[name][0] / step).round() * step for name in names}
