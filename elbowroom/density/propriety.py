"""Whether a log density without a mode falls at all in the directions without curvature."""

from dataclasses import dataclass

import numpy as np
import torch

from elbowroom.density.curvature import Curvature
from elbowroom.density.density import Density
from elbowroom.density.modes import Mode, climb

FAR = tuple(10.0 ** (k / 2) for k in range(2, 17))
"""Distances at which the log density is looked at, from 10 to 10⁸."""


@dataclass(frozen=True)
class Ends:
    """How the ends of a density are examined."""

    fewest_distances: int = 3
    """The distances along a line at which the mass must be known, at least: up to 100."""
    fall: float = 1.0
    """Nats by which it must fall there, beyond the logarithm of the distance. A density that falls
    by the logarithm alone has no integral along the line."""
    flattest: int = 4
    """The flattest directions that are followed from each point."""
    points: int = 2
    """Ends of climbs from which they are followed, beside the first start."""
    steps: int = 30
    """Steps along a curved ridge, each half as long as the way so far."""
    climbs: int = 20
    """Newton steps that bring a point back to the ridge."""
    least_curvature: float = 1e-10
    """The least curvature across a line that counts, relative to the largest."""
    spike: float = 1e12
    """The curvature of a spike, where float64 has too few digits to decide."""
    resolved: float = 10.0
    """Nats by which it may fall within a standard deviation across the line, at most: where it
    falls by more, differences of the gradient are too coarse to tell the curvature."""
    named: int = 4
    """Coordinates that a message names."""
    named_share: float = 0.1
    """The share of a direction's largest part from which a coordinate is named."""


ENDS = Ends()


def endless(
    density: Density, curvature: Curvature, ends: list[Mode], first: np.ndarray
) -> str | None:
    """A direction in which a log density does not fall however far one goes, in words.

    From where climbs ended, the directions of least curvature are followed, straight on; then
    along the ridge, to which each step is brought back by a climb. What counts is the mass across
    the line, by Laplace's method: where a hierarchy's scale goes to zero the density may rise
    without end, and its mass does not.

    Args:
        density: The log density.
        curvature: Of it.
        ends: Where climbs ended.
        first: The first start, (D,).

    Returns:
        The sites that change, with their unconstrained coordinates' parts of the direction; None
        if the density falls in all directions that were followed.
    """
    ends = sorted(ends, key=lambda end: (end.reached, end.log_density), reverse=True)[: ENDS.points]
    for point in [*(end.location for end in ends), first]:
        for direction in _flattest(curvature, point):
            for signed in (direction, -direction):
                if _along_a_line(density, curvature, point, signed):
                    return _in_words(density, signed)
    for end in ends:
        for direction in _flattest(curvature, end.location)[:1]:
            for signed in (direction, -direction):
                if end.reached and _along_a_ridge(density, curvature, end.location, signed):
                    return f"a curve that begins in the direction of {_in_words(density, signed)}"
    return None


def _along_a_line(
    density: Density, curvature: Curvature, point: np.ndarray, direction: np.ndarray
) -> bool:
    """Whether it does not fall from a point straight on, as far as it has a value there."""
    mass, known = _mass_across(density, curvature, point, direction), 0
    if mass is None or np.isnan(mass):
        return False
    for distance in FAR:
        there = _mass_across(density, curvature, point + distance * direction, direction)
        if there is None:
            break
        if there < mass - np.log(distance) - ENDS.fall:
            return False
        known += not np.isnan(there)
    return known >= ENDS.fewest_distances


def _along_a_ridge(
    density: Density, curvature: Curvature, point: np.ndarray, direction: np.ndarray
) -> bool:
    """Whether it does not fall along a ridge that bends, followed by ever longer steps."""
    mass = _mass_across(density, curvature, point, direction)
    at, gone, step = point, 0.0, 1e-2 * max(1.0, float(np.linalg.norm(point)))
    for _ in range(ENDS.steps):
        back = climb(
            density.value_and_gradient, curvature, (at + step * direction)[None], ENDS.climbs
        )
        if not back:
            return False
        moved, before = back[0].location - at, gone
        at, gone = back[0].location, float(np.linalg.norm(back[0].location - point))
        flattest = _flattest(curvature, at)
        if not (gone > before + step / 2 and len(flattest)):
            return False
        direction = flattest[0] * np.sign(flattest[0] @ moved or 1.0)
        there = _mass_across(density, curvature, at, direction)
        fall = max(0.0, np.log(gone)) + ENDS.fall
        if mass is None or there is None or not there >= mass - fall:
            return False
        step = gone / 2
    return True


def _flattest(curvature: Curvature, point: np.ndarray) -> list[np.ndarray]:
    """The directions of least curvature at a point, each (D,); none where it has no curvature."""
    precision = curvature(point[None])[0]
    if not np.isfinite(precision).all():
        return []
    values, vectors = np.linalg.eigh(precision)
    return [vectors[:, k] for k in np.argsort(np.abs(values))[: ENDS.flattest]]


def _mass_across(
    density: Density, curvature: Curvature, point: np.ndarray, direction: np.ndarray
) -> float | None:
    """The logarithm of the mass across a line at a point, but for a constant.

    Returns:
        None where there is no density, NaN where its curvature cannot be told.
    """
    (value,) = density.value(point[None])
    precision = curvature(point[None])[0]
    if not (np.isfinite(value) and np.isfinite(precision).all()):
        return None
    across = np.linalg.qr(np.column_stack([direction, np.eye(len(point))]))[0][:, 1 : len(point)]
    curvatures, vectors = np.linalg.eigh(across.T @ precision @ across)
    curved = np.abs(curvatures)
    if not curved.size:
        return float(value)
    if curved.max() > ENDS.spike:
        return None
    least = max(ENDS.least_curvature * curved.max(), 1e-300)
    steep = curved > least
    moves = (across @ vectors[:, steep] / np.sqrt(curved[steep])).T
    within = np.concatenate([point[None], point + moves, point - moves])
    if not (value - density.value(within) < ENDS.resolved).all():
        return np.nan
    return float(value - 0.5 * np.log(np.maximum(curved, least)).sum())


def _in_words(density: Density, direction: np.ndarray) -> str:
    """The largest parts of a direction, by the names of the sites."""
    parts = []
    for name, piece in density.space.split(torch.as_tensor(direction)).items():
        flat = piece.reshape(-1).tolist()
        labels = [name] if len(flat) == 1 else [f"{name}[{k}]" for k in range(len(flat))]
        parts += list(zip(labels, flat, strict=True))
    parts.sort(key=lambda part: -abs(part[1]))
    largest = [part for part in parts if abs(part[1]) > ENDS.named_share * abs(parts[0][1])]
    said = ", ".join(f"{label} {size:+.2f}" for label, size in largest[: ENDS.named])
    return said + ", ..." * (len(largest) > ENDS.named)
