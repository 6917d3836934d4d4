"""Whether a log density falls at all in the directions in which it has no curvature."""

import numpy as np
import torch

from elbowroom.inference.densities.curvature import Curvature
from elbowroom.inference.densities.density import Density
from elbowroom.inference.densities.modes import Mode, climb

FAR = (1e2, 1e4, 1e6, 1e8)
"""Distances at which the log density is looked at."""
FALL = 1.0
"""Nats. A density that has an integral falls by more, ever farther out."""
FLATTEST = 4
"""Directions that are followed from each point."""
POINTS = 2
"""Points from which they are."""
STEPS = 30
"""Along a ridge that bends, each half of the way so far."""
CLIMBS = 20
"""Newton steps that bring a point that was moved back to it."""
NAMED = 4
"""Coordinates in a message."""
SHARE = 0.1
"""Of the largest part of a direction, from which a coordinate is named."""


def endless(density: Density, curvature: Curvature, ends: list[Mode]) -> str | None:
    """A direction in which a log density does not fall however far one goes, in words.

    From where climbs ended, the directions of least curvature are followed, straight on; then
    along the ridge, to which each step is brought back by a climb.

    Args:
        density: The log density.
        curvature: Of it.
        ends: Where climbs ended.

    Returns:
        The sites that change, with their unconstrained coordinates' parts of the direction; None
        if the density falls in all directions that were followed.
    """
    highest = sorted(ends, key=lambda end: (end.reached, end.log_density), reverse=True)
    for end in highest[:POINTS]:
        flattest = _flattest(curvature, end.location)
        if flattest is None:
            continue
        directions = [*flattest.T]
        outwards = np.linalg.norm(end.location)
        if outwards > FAR[0]:  # the climb itself ran off
            directions.append(end.location / outwards)
        both = [sign * direction for direction in directions for sign in (1, -1)]
        for direction in both:
            if _along_a_line(density, end, direction):
                return _in_words(density, direction)
        for direction in both[:2]:
            if end.reached and _along_a_ridge(density, curvature, end, direction):
                return f"a curve that begins as {_in_words(density, direction)}"
    return None


def _along_a_line(density: Density, end: Mode, direction: np.ndarray) -> bool:
    """Whether it does not fall from a point straight on, as far as it has a value there."""
    moved = end.location + np.outer(FAR, direction)
    values = density.value(moved)
    (missing,) = (~np.isfinite(values)).nonzero()
    values = values[: missing[0]] if len(missing) else values
    return len(values) > 0 and bool((values > end.log_density - FALL).all())


def _along_a_ridge(
    density: Density, curvature: Curvature, end: Mode, direction: np.ndarray
) -> bool:
    """Whether it does not fall along a ridge that bends, followed by ever longer steps."""
    at, gone = end.location, 0.0
    step = 1e-2 * max(1.0, float(np.linalg.norm(at)))
    for _ in range(STEPS):
        back = climb(density.value_and_gradient, curvature, (at + step * direction)[None], CLIMBS)
        if not back or not back[0].log_density > end.log_density - FALL:
            return False
        moved = back[0].location - at
        at, before = back[0].location, gone
        gone = float(np.linalg.norm(at - end.location))
        if not gone > before + step / 2:
            return False
        flattest = _flattest(curvature, at)
        if flattest is None:
            return False
        direction = flattest[:, 0] * np.sign(flattest[:, 0] @ moved or 1.0)
        step = gone / 2
    return True


def _flattest(curvature: Curvature, location: np.ndarray) -> np.ndarray | None:
    """The directions of least curvature at a point, (D, few); None where it has none."""
    precision = curvature(location[None])[0]
    if not np.isfinite(precision).all():
        return None
    values, vectors = np.linalg.eigh(precision)
    return vectors[:, np.argsort(np.abs(values))[:FLATTEST]]


def _in_words(density: Density, direction: np.ndarray) -> str:
    """The largest parts of a direction, by the names of the sites."""
    direction = direction * np.sign(direction[np.abs(direction).argmax()])
    parts = []
    for name, piece in density.space.split(torch.as_tensor(direction)).items():
        flat = piece.reshape(-1).tolist()
        labels = [name] if len(flat) == 1 else [f"{name}[{k}]" for k in range(len(flat))]
        parts += list(zip(labels, flat, strict=True))
    parts.sort(key=lambda part: -abs(part[1]))
    largest = [part for part in parts if abs(part[1]) > SHARE * abs(parts[0][1])]
    said = ", ".join(f"{label} {size:+.2f}" for label, size in largest[:NAMED])
    return said + ", ..." * (len(largest) > NAMED)
