"""Whether groups of Markov chains have mixed, and how many independent draws theirs are worth.

Groups of chains begin at one place each. Chains that have not forgotten where they began differ
from group to group: the nested R-hat tells (Margossian, Hoffman, Sountsov, Riou-Durand, Vehtari and
Gelman, 2024, "Nested R-hat: assessing the convergence of Markov chain Monte Carlo when running many
short chains").
"""

from dataclasses import dataclass

import numpy as np
from arviz_stats.base import array_stats
from scipy.stats import chi2


@dataclass(frozen=True)
class Examined:
    """Which coordinates are looked at closely."""

    poor: float = 1.03
    """The nested R-hat by means above which ranks are not looked at."""
    few: float = 200.0
    """The same of effective draws: a long tail, such as that of a logarithm, makes few of many."""
    examined: int = 8
    """Coordinates that are examined closely by R-hat, and as many by their effective draws."""
    by_chance: float = 0.05
    """How often the largest of several numbers may be as large by chance as a limit for one."""


EXAMINED = Examined()


def mixing_of(
    points: np.ndarray, groups: int, among: np.ndarray | None = None
) -> tuple[float, float]:
    """The largest nested R-hat and the smallest bulk effective sample size of a coordinate.

    That size is of a coordinate's mean, or of its spread where this is smaller. All coordinates are
    looked at by their means and spreads, and those that look worst by ranks.

    Args:
        points: Draws of the chains, (trajectories, chains, D), the chains of a group together.
        groups: How many groups there are.
        among: How many coordinates each one stands beside, such as the thousands of a site of
            groups, (D,): the largest of as many is large by chance, which `of_several` takes out.
    """
    centred = points - points.mean((0, 1))
    seen = [rough(centred, groups), rough(np.abs(centred, out=centred), groups)]
    among = np.ones(points.shape[-1]) if among is None else among
    r_hats = of_several(np.max([r_hat for r_hat, _ in seen], axis=0), among, groups)
    effective = np.min([few for _, few in seen], axis=0)
    if np.isnan(r_hats).any():  # chains that stand still
        return np.inf, 0.0
    if r_hats.max() > EXAMINED.poor or effective.min() < EXAMINED.few:
        return float(r_hats.max()), float(effective.min())
    count = EXAMINED.examined
    worst = np.union1d(np.argsort(-r_hats)[:count], np.argsort(effective)[:count])
    draws = np.moveaxis(points[:, :, worst], 0, -1)  # (chains, worst, trajectories)
    groups_of = np.repeat(np.arange(groups), draws.shape[0] // groups)
    by_ranks = [array_stats.rhat_nested(each, groups_of) for each in np.moveaxis(draws, 1, 0)]
    r_hat = of_several(np.array(by_ranks), among[worst], groups).max()
    # Draws that lie on the two sides in turns tell more of a mean than of a spread.
    spreads = np.abs(draws - draws.mean((0, 2), keepdims=True))
    few = min(
        array_stats.ess(each) for both in (draws, spreads) for each in np.moveaxis(both, 1, 0)
    )
    return float(r_hat), float(few)


def of_several(r_hats: np.ndarray, among: np.ndarray, groups: int) -> np.ndarray:
    """Nested R-hats as one coordinate alone would have them, (...).

    Where chains have mixed, R-hat² - 1 is by chance alone a multiple of a chi-squared number of
    groups - 1 degrees of freedom. That of each of n coordinates is divided by how much larger its
    quantile for the largest of n is than that for one.

    Args:
        r_hats: (...).
        among: n, of the same shape.
        groups: How many groups of chains there are.

    Example:
        >>> of_several(np.array([1.01, 1.01]), np.array([1, 1000]), 8).round(4)
        array([1.01  , 1.0045])
    """
    freedom = groups - 1
    larger = chi2.isf(EXAMINED.by_chance / among, freedom) / chi2.isf(EXAMINED.by_chance, freedom)
    return np.asarray(np.sqrt(1 + (np.square(r_hats) - 1) / larger))


def rough(quantities: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Nested R-hat and effective draws by means and variances, (D,) each.

    Args:
        quantities: (trajectories, chains, D), their means zero or not many times their spread.
        groups: How many groups of chains there are.
    """
    count, chains, size = quantities.shape
    means = quantities.mean(0)
    squares = np.einsum("tcd,tcd->cd", quantities, quantities)
    within = np.maximum(squares - count * np.square(means), 0.0) / (count - 1)
    whole = squares.mean(0) / count - np.square(means.mean(0))
    with np.errstate(divide="ignore", invalid="ignore"):
        of_groups = means.reshape(groups, -1, size)
        inside = of_groups.var(1, ddof=1).mean(0) + within.mean(0)
        r_hat = np.sqrt(1 + of_groups.mean(1).var(0, ddof=1) / inside)
        effective = chains * whole / means.var(0, ddof=1)
    return r_hat, effective
