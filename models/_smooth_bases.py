"""Functions of a column that a smooth term is a sum of: a penalised spline, a Gaussian process."""

import math
from collections.abc import Callable

import numpy as np
from scipy.interpolate import CubicSpline

Functions = Callable[[np.ndarray], np.ndarray]
"""The values of some functions of a column at new rows, (rows,) to (rows, functions)."""


def penalised_spline(x: np.ndarray, k: int) -> Functions:
    """The part of a cubic regression spline that a straight line does not have.

    A natural cubic spline f with k knots, at quantiles of x, has the penalty f''², integrated. The
    eigenvectors of this with values above zero, each divided by the root of its value, are k - 2
    functions whose coefficients are Normal(0, σ²) where the density falls by the penalty over 2 σ²
    (Wood, 2017, "Generalized additive models", sections 5.3.1 and 5.8; Wood, 2004, on smooth terms
    as random effects). They are taken less their least-squares lines, so that neither an intercept
    nor a slope has a part in them, and rotated to have no correlation over the rows, which leaves
    the prior as it is (Demmler and Reinsch, 1975). All are divided by one number: given
    coefficients Normal(0, 1), the variance of their sum is one on average over the rows.

    Beyond x they go on as straight lines.

    Args:
        x: Of the fitted rows, (rows,), with k different values at least.
        k: Knots, three or more.

    Example:
        >>> x = np.linspace(0, 5, 30)
        >>> found = penalised_spline(x, 6)(x)
        >>> found.shape, float(np.square(found).sum(1).mean().round(6))
        ((30, 4), 1.0)
    """
    centre, spread = x.mean(), x.std()
    z = (x - centre) / spread
    knots = np.quantile(np.unique(z), np.linspace(0, 1, k))
    cardinal = CubicSpline(knots, np.eye(k), bc_type="natural")
    second, steps = cardinal(knots, 2), np.diff(knots)  # the second derivative is linear between
    hats = np.diag(np.append(steps, 0) + np.append(0, steps)) / 3
    hats += (np.diag(steps, 1) + np.diag(steps, -1)) / 6
    values, vectors = np.linalg.eigh(second.T @ hats @ second)
    weights = vectors[:, 2:] / np.sqrt(values[2:])  # the first two are the straight lines

    def apart(z: np.ndarray) -> np.ndarray:
        inside = z.clip(knots[0], knots[-1])
        curve = cardinal(inside) + cardinal(inside, 1) * (z - inside)[:, None]
        return curve @ weights

    def line(z: np.ndarray) -> np.ndarray:
        return np.column_stack([np.ones_like(z), z])

    straight = np.linalg.lstsq(line(z), apart(z), rcond=None)[0]
    left = apart(z) - line(z) @ straight
    _, _, rotation = np.linalg.svd(left, full_matrices=False)
    turned = rotation.T / np.sqrt(np.square(left).sum(1).mean())
    # No machine has its own signs: at the first knot none of these functions is zero.
    first = knots[:1]
    turned = turned * np.sign((apart(first) - line(first) @ straight) @ turned)

    def functions(new: np.ndarray) -> np.ndarray:
        at = (new - centre) / spread
        return (apart(at) - line(at) @ straight) @ turned

    return functions


def hilbert_space(x: np.ndarray, count: int, boundary: float, centred: bool) -> Functions:
    """Eigenfunctions of the Laplacian between two ends, of which a Gaussian process is a sum.

    With z the column in its standard deviations from the middle of its range, and ends at ± L,

        φ_j(z) = sin(ω_j (z + L)) / √L,  ω_j = jπ / 2L

    (Solin and Särkkä, 2020, "Hilbert space methods for reduced-rank Gaussian process regression").

    Args:
        x: Of the fitted rows, (rows,).
        count: How many, m.
        boundary: L; see `boundary_of`.
        centred: Whether each is taken less its mean over x, which is an intercept's then.

    Example:
        >>> x = np.linspace(0, 5, 30)
        >>> hilbert_space(x, 8, 2.5, centred=True)(x).shape
        (30, 8)
    """
    middle, spread = (x.min() + x.max()) / 2, x.std()

    def apart(new: np.ndarray) -> np.ndarray:
        z = (new - middle) / spread
        return np.sin(frequencies(count, boundary) * (z[:, None] + boundary)) / math.sqrt(boundary)

    mean = apart(x).mean(0) if centred else 0.0
    return lambda new: apart(new) - mean


def frequencies(count: int, boundary: float) -> np.ndarray:
    """ω, (count,), in units of one over the column's standard deviation."""
    return np.arange(1, count + 1) * math.pi / (2 * boundary)


def boundary_of(x: np.ndarray, factor: float) -> float:
    """L, in standard deviations of x: half of its range, times a factor."""
    return float(factor * (x.max() - x.min()) / (2 * x.std()))


def shortest_length(count: float, boundary: float) -> float:
    """The length scale that so many functions can follow, in the unit of the boundary.

    And in turn the functions that a length scale needs (Riutort-Mayol, Bürkner, Andersen, Solin
    and Vehtari, 2023, "Practical Hilbert space approximate Bayesian Gaussian processes for
    probabilistic programming", equation 8, of the squared exponential kernel).
    """
    return 1.75 * boundary / count
