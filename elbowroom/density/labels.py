"""Parts of a model whose labels mean nothing, and how many labellings a posterior has.

A mixture of K components has K! modes that differ by the components' labels alone. Draws about one
of them hold 1/K! of the evidence, where the modes are apart; all of it where they are one. With a
proposal q about some of the labellings, the weights p / q̄ of its draws have the whole evidence as
their mean, where q̄ is the mean of q over the K! relabellings of a point: p is the same at each
(Frühwirth-Schnatter, 2004, "Estimating marginal likelihoods for mixture and Markov switching models
using bridge sampling techniques").
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from math import lgamma

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.special import logsumexp
from torch import Tensor
from torch.func import vmap

from elbowroom.density.density import Density
from elbowroom.errors import OutOfTimeError


@dataclass(frozen=True)
class Relabelling:
    """When a density does not change under a permutation of its labels."""

    same: float = 1e-7
    """The largest relative difference between two equal values of a density."""
    probes: int = 3
    """Random points at which a permutation is tried."""
    varies: float = 0.01
    """Nats by which the density differs between these, at least: where it is flat, any permutation
    seems to leave it as it is."""
    widenings: int = 50
    """How often they are drawn ten times as wide until it does, at most."""
    alike: float = 0.1
    """The distance, in sds, up to which a relabelled mode is the same mode."""
    few: int = 20
    """The most parts of which some alone are looked for: each pair of neighbours is exchanged."""
    apart: float = 10.0
    """Nats from a mode down to the middle between it and a relabelled one, from which they are
    separate."""
    averaged: int = 4
    """The most parts over all of whose orders a proposal is averaged."""
    overlap: float = 1e-3
    """The share of draws that may as well have another labelling, from which it is."""
    checked: int = 500
    """Draws that tell that share."""
    matchings: int = 5
    """How often draws are put in the order that their own moments tell, at most."""


RELABELLING = Relabelling()


@dataclass(frozen=True)
class Labels:
    """Parts that can be put in any order without a change of the density.

    Attributes:
        density: The log density.
        length: How many parts there are, those that keep their place among them.
        axes: For each site that holds them, the axes of its value along which they lie.
        first: The first of those that can be put in any order, which stand beside each other.
        last: The one after the last of them.
    """

    density: Density
    length: int
    axes: dict[str, tuple[int, ...]]
    first: int
    last: int

    @property
    def count(self) -> int:
        """How many can be put in any order, K."""
        return self.last - self.first

    def in_place(self, order: Sequence[int]) -> tuple[int, ...]:
        """An order of these, counted from 0, as one of all parts."""
        others = range(self.last, self.length)
        return (*range(self.first), *(self.first + each for each in order), *others)

    @property
    def log_orders(self) -> float:
        """The log of the number of labellings, log K!."""
        return lgamma(self.count + 1)

    def relabelled(
        self, points: np.ndarray, order: tuple[int, ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Unconstrained points, (n, D), with the parts in another order, one of all of them.

        Returns:
            The points, and the log of the volume that the change gives to a unit of it, (n,).
        """
        space, index = self.density.space, torch.as_tensor(order)

        def changed(u: Tensor) -> tuple[Tensor, Tensor]:
            values = space.constrain(u)
            for name, axes in self.axes.items():
                for axis in axes:
                    values[name] = values[name].index_select(axis, index)
            moved = space.unconstrain(values)
            return moved, log_jacobian(self.density, u) - log_jacobian(self.density, moved)

        found, volumes = vmap(changed)(torch.as_tensor(points))
        return found.numpy(), volumes.numpy()

    def hold(self, points: np.ndarray) -> bool:
        """Whether the density is the same at some points with their parts in other orders."""
        plain = self.density.value(points)
        orders = [(1, 0, *range(2, self.count)), (*range(1, self.count), 0)]
        for order in map(self.in_place, orders):
            moved, volumes = self.relabelled(points, order)
            with np.errstate(invalid="ignore"):
                gaps = np.abs(self.density.value(moved) - volumes - plain)
            if not (gaps <= RELABELLING.same * np.maximum(1.0, np.abs(plain))).all():
                return False
        return True

    def exchanges(self) -> list[tuple[int, ...]]:
        """The orders that exchange two parts."""
        found = []
        for i in range(self.count):
            for j in range(i):
                order = [*range(self.count)]
                order[i], order[j] = j, i
                found.append(self.in_place(order))
        return found


def log_jacobian(density: Density, u: Tensor) -> Tensor:
    """The log volume of the sites' values for a unit of unconstrained space, (D,) to ()."""
    parts, total = density.space.split(u), torch.zeros((), dtype=u.dtype)
    for site in density.space.sites:
        part = parts[site.name]
        total = total + site.log_abs_det_jacobian(part, site.transform(part)).sum()
    return total


def labels_of(density: Density, centre: np.ndarray, scales: np.ndarray) -> list[Labels]:
    """The parts of a density that can be put in any order, and are not all alike at a point.

    Args:
        density: The log density.
        centre: The point, such as a mode, (D,).
        scales: Of the coordinates there, (D,).

    Returns:
        Those; none where the time is over.
    """
    values = density.space.constrain(torch.as_tensor(centre))
    shapes = {name: tuple(value.shape) for name, value in values.items()}
    sizes = sorted({size for shape in shapes.values() for size in shape if size > 1})
    found: list[Labels] = []
    if not sizes:
        return found
    try:
        points = _probes(density, centre, scales)
    except OutOfTimeError:
        return found
    for size in sizes:
        every = {
            name: tuple(axis for axis, length in enumerate(shape) if length == size)
            for name, shape in shapes.items()
        }
        # A square matrix of each part has other axes of the same length.
        for kept in (slice(None), slice(1)):
            axes = {name: each[kept] for name, each in every.items() if each}
            try:
                groups = _exchangeable(Labels(density, size, axes, 0, size), points)
            except (RuntimeError, ValueError, NotImplementedError):  # of a transform's inverse
                continue
            if not groups:
                continue
            for labels in groups:
                orders = labels.exchanges()
                moved = [labels.relabelled(centre[None], order)[0][0] for order in orders]
                if any((np.abs(m - centre) > RELABELLING.alike * scales).any() for m in moved):
                    found.append(labels)
            break
    return found


def _probes(density: Density, centre: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Random points about a centre at which the density differs, (n, D)."""
    size = (RELABELLING.probes, density.dimension)
    away = 0.5 * scales * np.random.default_rng(0).standard_normal(size)
    for _ in range(RELABELLING.widenings):
        values = density.value(np.concatenate([centre[None], centre + away]))
        if not (np.isfinite(values).all() and np.ptp(values) < RELABELLING.varies):
            break
        away = 10 * away
    return np.asarray(centre + away)


def _exchangeable(whole: Labels, points: np.ndarray) -> list[Labels]:
    """All parts, if they can be put in any order; else the runs of neighbours that can.

    Some of the parts of a mixture may be named by labels of the data, and others not.
    """
    if whole.hold(points):
        return [whole]
    runs: list[Labels] = []
    first = 0
    if whole.length <= RELABELLING.few:
        for last in range(1, whole.length + 1):
            pair = replace(whole, first=last - 1, last=last + 1)
            if last == whole.length or not pair.hold(points):
                if last - first > 1:
                    runs.append(replace(whole, first=first, last=last))
                first = last
    return runs


def log_orders_apart(labels: Labels, mode: np.ndarray, precision: np.ndarray) -> float | None:
    """The log of the number of labellings, if a mode's are apart from each other; else None."""
    for order in labels.exchanges():
        gap = labels.relabelled(mode[None], order)[0][0] - mode
        if (
            gap @ precision @ gap < 4 * RELABELLING.apart
        ):  # half of it from either, in half its square
            return None
    return labels.log_orders


def in_one_order(labels: Labels, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draws whose parts are put in the order in which they are most alike.

    Where the labels mean nothing, such draws are draws of the same posterior. The order of each is
    the likeliest one of independent Normals that have the moments of all draws, which are taken
    anew with these orders, again and again (Stephens, 2000, "Dealing with label switching in
    mixture models").

    Args:
        labels: The parts.
        points: Unconstrained, (n, D).

    Returns:
        The points, and what the log density of each has gained, (n,).
    """
    values = labels.density.constrained(points)
    own = [np.moveaxis(values[name].numpy(), 1 + axes[0], 1) for name, axes in labels.axes.items()]
    numbers = np.concatenate([each.reshape(*each.shape[:2], -1) for each in own], axis=2)
    numbers = numbers[:, labels.first : labels.last]  # (n, parts, numbers)
    order = np.tile(np.arange(labels.count), (len(points), 1))
    for _ in range(RELABELLING.matchings):
        placed = np.take_along_axis(numbers, order[:, :, None], axis=1)
        mean, sd = placed.mean(0), placed.std(0) + np.finfo(float).tiny
        apart = (numbers[:, None] - mean[:, None]) / sd[:, None]  # (n, places, parts, numbers)
        costs = np.square(apart).sum(-1)
        better = np.stack([linear_sum_assignment(cost)[1] for cost in costs])
        if (better == order).all():
            break
        order = better
    moved, gained = points.copy(), np.zeros(len(points))
    for each in np.unique(order, axis=0):
        if (each == np.arange(labels.count)).all():
            continue
        here = (order == each).all(1)
        moved[here], gained[here] = labels.relabelled(points[here], labels.in_place(each))
    return moved, gained


def overlapping(
    density: Density,
    points: np.ndarray,
    weights: np.ndarray,
    log_proposal: Callable[[np.ndarray], np.ndarray],
) -> Labels | None:
    """The parts whose labels weighted draws do not tell, if there are such ones, and few.

    Args:
        density: The log density.
        points: The draws, (n, D).
        weights: Of them, summing to one, (n,).
        log_proposal: The log density of what they were drawn from, (n, D) to (n,).
    """
    mean = weights @ points
    groups = labels_of(density, mean, np.sqrt(weights @ np.square(points - mean)))
    if len(groups) != 1 or groups[0].count > RELABELLING.averaged:
        return None
    (labels,) = groups
    picked = np.random.default_rng(0).choice(len(points), RELABELLING.checked, p=weights)
    own = log_proposal(points[picked])
    every = log_mean_proposal(labels, points[picked], log_proposal) + labels.log_orders
    return labels if np.mean(1 - np.exp(own - every)) > RELABELLING.overlap else None


def log_mean_proposal(
    labels: Labels, points: np.ndarray, log_proposal: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """The log of the mean of a proposal's density over all orders of a point's parts, (n,).

    Args:
        labels: The parts.
        points: (n, D).
        log_proposal: The log density of the proposal, (n, D) to (n,).
    """
    found = []
    for order in map(labels.in_place, permutations(range(labels.count))):
        moved, volumes = labels.relabelled(points, order)
        found.append(log_proposal(moved) + volumes)
    return logsumexp(found, axis=0) - labels.log_orders
