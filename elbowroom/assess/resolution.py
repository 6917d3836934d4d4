"""Which means and standard deviations weighted draws do not resolve."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from arviz_stats.base import array_stats

from elbowroom.density.importance import standard_errors


@dataclass(frozen=True)
class Resolution:
    """When weighted draws resolve a quantity's standard deviation."""

    error: float = 0.1
    """The relative standard error of an sd above which it is not resolved."""
    tail_shape: float = 0.45
    """The Pareto shape of a quantity's tail above which its sd may not be resolved; from 0.5 the
    variance is infinite."""
    farthest_mass: float = 1e-3
    """The mass farthest from the mean whose part of the variance is examined."""
    farthest_variance: float = 0.06
    """The part of the variance that is too much for it. For a Normal it is 0.013."""
    tail_reach: float = 6.0
    """Standard deviations from the mean; a tail that ends before is not examined."""


RESOLUTION = Resolution()


def unresolved_quantities(
    values: Mapping[str, np.ndarray], weights: np.ndarray
) -> tuple[dict[str, float], list[str]]:
    """Quantities whose mean or sd weighted draws do not resolve.

    Args:
        values: For each quantity, its value at each draw, float64, (draws, ...).
        weights: Of the draws, summing to one, (draws,).

    Returns:
        For each scalar quantity that reaches far, the Pareto shape of its heavier tail; and a
        sentence for each that is not resolved.

    Example:
        >>> random = np.random.default_rng(0)
        >>> weights = np.full(4000, 1 / 4000)
        >>> _, sentences = unresolved_quantities({"x": random.standard_cauchy(4000)}, weights)
        >>> sentences[0][:38]
        'The sd of x cannot be estimated well: '
    """
    shapes, sentences = {}, []
    for name, each in values.items():
        flat = each.reshape(len(weights), -1)
        with np.errstate(invalid="ignore", over="ignore"):
            _, errors = standard_errors(weights, flat)
            mean = weights @ flat
            squares = flat - mean
            np.square(squares, out=squares)
            sd, farthest = np.sqrt(weights @ squares), np.sqrt(squares.max(0))
            varies = ~(sd <= 1e-12 * np.maximum(1.0, np.abs(mean)))  # NaN too
            reach = farthest / np.where(varies, sd, np.inf)
        # A tail that does not reach far is not heavy.
        for j in np.flatnonzero(
            varies & ~((reach <= RESOLUTION.tail_reach) & (errors <= RESOLUTION.error))
        ):
            label = f"{name}[{j}]" if flat.shape[1] > 1 else name
            shapes[label] = _tail(flat[:, j], weights)
            heavy = (
                shapes[label] > RESOLUTION.tail_shape
                and _from_the_farthest(flat[:, j], weights) > RESOLUTION.farthest_variance
            )
            if not np.isfinite(reach[j]):
                sentences.append(f"The sd of {label} is not known: some of its draws are infinite.")
            elif heavy or not errors[j] <= RESOLUTION.error:
                tail = f"{label} has a heavy tail (its k-hat is {shapes[label]:.2f}), and "
                sentences.append(
                    f"The sd of {label} cannot be estimated well: {tail if heavy else ''}the "
                    f"relative standard error of the sd is {errors[j]:.0%}."
                )
    return shapes, sentences


def _from_the_farthest(column: np.ndarray, weights: np.ndarray) -> float:
    """The share of the variance that comes from the farthest draws, of a thousandth of the mass.

    A tail of many modes has the shape of a power law too, and gives as little as a Normal one.
    """
    with np.errstate(invalid="ignore", over="ignore"):  # of a square that is no number any more
        square = np.square(column - weights @ column)
        order = np.argsort(-square)
        far = order[np.cumsum(weights[order]) <= RESOLUTION.farthest_mass]
        return float(weights[far] @ square[far] / (weights @ square))


def _tail(column: np.ndarray, weights: np.ndarray) -> float:
    """The Pareto shape of the heavier tail of weighted draws."""
    order = np.argsort(column)
    at = (np.arange(4000) + 0.5) / 4000
    spread = np.interp(at, np.cumsum(weights[order]) - weights[order] / 2, column[order])
    try:
        with np.errstate(all="ignore"):
            shape = array_stats.pareto_khat(spread[None], r_eff=1.0)
    except ValueError:  # most of the weight is on one draw
        return float("inf")
    return float(np.max(shape))
