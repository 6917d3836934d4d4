"""Test quantities of a response: what is observed beside draws of the posterior predictive.

They follow from the kind of response. Each is taken of the rows, and of each replicated set of
rows; its p-value is twice the smaller share of replicates on either side of what is observed
(Gelman, Meng and Stern, 1996, "Posterior predictive assessment of model fitness via realized
discrepancies").
Such p-values are conservative: the same rows were used to fit the model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.stats import CensoredData, ecdf

NUMBERS, COUNTS, BINARY, LEVELS, TRIALS = "numbers", "counts", "0 or 1", "levels", "trials"
"""Kinds of responses."""
Quantity = Callable[[np.ndarray], np.ndarray]
"""Of rows, (sets, rows), gives a number for each set, (sets,)."""


@dataclass(frozen=True)
class Sizes:
    """How much is looked at."""

    levels: int = 12
    """Levels of a response, the most common first."""
    bins: int = 5
    """Of predicted probabilities."""
    rows_of_bin: int = 20
    """Rows of each, at least."""
    replicates: int = 1000
    """Replicated sets of censored rows, at most."""
    few: int = 500
    """Replicates of which none beyond what is observed tells little."""
    reached: tuple[float, ...] = (0.75, 0.5, 0.25)
    """Shares without an event at whose times survival is compared."""


SIZES = Sizes()


def kind_of(
    observed: np.ndarray, drawn: np.ndarray, levels: Sequence[Any], trials: np.ndarray | None
) -> str:
    """The kind of a response, by what is observed and what a model draws.

    Example:
        >>> kind_of(np.array([0.0, 1.0]), np.array([[1.0, 1.0]]), (), None)
        '0 or 1'
        >>> kind_of(np.array([0.0, 1.0]), np.array([[1.0, 4.0]]), (), None)
        'counts'
    """
    if levels:
        return LEVELS
    if trials is not None:
        return TRIALS
    both = [observed, drawn]
    if not all(bool((each >= 0).all() and (each == np.round(each)).all()) for each in both):
        return NUMBERS
    return BINARY if max(each.max() for each in both) <= 1 else COUNTS


def quantities_of(
    kind: str,
    observed: np.ndarray,
    drawn: np.ndarray,
    levels: Sequence[Any] = (),
    trials: np.ndarray | None = None,
) -> dict[str, Quantity]:
    """The test quantities of a kind of response, by name.

    Args:
        kind: Of the response.
        observed: The rows, (rows,).
        drawn: Draws of them, (draws, rows); their means are the predicted probabilities.
        levels: What 0, 1, 2, ... stand for, if they are levels.
        trials: Of each row, if it is successes of these.
    """
    if kind == LEVELS:
        counts = np.bincount(observed.astype(int), minlength=len(levels))
        shown = np.sort(np.argsort(-counts, kind="stable")[: SIZES.levels])
        return {f"proportion of {levels[k]}": _share_of(int(k)) for k in shown}
    if kind == BINARY:
        return {"proportion": lambda y: y.mean(-1), **_calibration(drawn.mean(0))}
    if kind == TRIALS:
        assert trials is not None
        return {
            "proportion": lambda y: y.sum(-1) / trials.sum(),
            "sd of proportions": lambda y: (y / trials).std(-1),
            "share of zeros": _share_of(0),
            "share of all": lambda y: (y == trials).mean(-1),
        }
    if kind == COUNTS:
        return {
            "mean": lambda y: y.mean(-1),
            "share of zeros": _share_of(0),
            "largest": lambda y: y.max(-1),
            "variance / mean": _dispersion,
        }
    return {
        "mean": lambda y: y.mean(-1),
        "sd": lambda y: y.std(-1),
        "smallest": lambda y: y.min(-1),
        "largest": lambda y: y.max(-1),
        "skewness": _skewness,
    }


def _share_of(value: int) -> Quantity:
    return lambda y: (y == value).mean(-1)


def _dispersion(y: np.ndarray) -> np.ndarray:
    mean = y.mean(-1)
    return np.asarray(y.var(-1) / np.where(mean > 0, mean, 1.0))


def _skewness(y: np.ndarray) -> np.ndarray:
    """Of finite numbers; draws of very long tails are cut where float64 ends."""
    away = y - y.mean(-1, keepdims=True)
    scaled = away / np.maximum(y.std(-1, keepdims=True), np.finfo(float).tiny)
    return np.asarray((scaled**3).mean(-1))


def _calibration(predicted: np.ndarray) -> dict[str, Quantity]:
    """The proportion of ones among rows of similar predicted probability."""
    bins = min(SIZES.bins, len(predicted) // SIZES.rows_of_bin, len(np.unique(predicted)))
    if bins < 2:
        return {}
    ends = np.unique(np.quantile(predicted, np.linspace(0, 1, bins + 1)))
    bin_of = np.clip(np.searchsorted(ends, predicted, side="right") - 1, 0, len(ends) - 2)
    found: dict[str, Quantity] = {}
    for k, (low, high) in enumerate(pairwise(ends)):
        rows = np.flatnonzero(bin_of == k)
        if len(rows):
            name = f"proportion where predicted {low:.2f} to {high:.2f}"
            found[name] = lambda y, rows=rows: y[..., rows].mean(-1)  # type: ignore[misc]
    return found


def compared(
    quantities: Mapping[str, Quantity], observed: np.ndarray, drawn: np.ndarray
) -> dict[str, tuple[float, np.ndarray]]:
    """Each quantity of the rows, and of each draw of them, (draws,)."""
    with np.errstate(over="ignore", invalid="ignore"):
        return {
            name: (float(quantity(observed[None])[0]), quantity(drawn))
            for name, quantity in quantities.items()
        }


def p_value(observed: float, replicates: np.ndarray) -> float:
    """Twice the smaller share of replicates on either side; equal ones count half on each.

    Of few replicates it is at least that of one beyond: they do not tell what is rare.

    Example:
        >>> p_value(3.0, np.array([1.0, 2.0, 3.0, 4.0]))
        0.75
        >>> p_value(9.0, np.zeros(99)), p_value(9.0, np.zeros(999))
        (0.02, 0.0)
    """
    above = np.mean(replicates > observed) + 0.5 * np.mean(replicates == observed)
    least = 2 / (len(replicates) + 1) if len(replicates) < SIZES.few else 0.0
    return float(max(least, 2 * min(above, 1 - above)))


# Censored rows


def survival(
    observed: np.ndarray, drawn: np.ndarray, events: np.ndarray, random: np.random.Generator
) -> dict[str, tuple[float, np.ndarray]]:
    """Kaplan and Meier's survival at three times, of the rows and of replicated ones.

    A replicate is censored as the rows were: those that were censored at the same time, those with
    an event at a time drawn from the distribution of the times of censoring beyond it.

    Args:
        observed: Times of events or of censoring, (rows,).
        drawn: Draws of times of events, (draws, rows).
        events: Whether a row had its event, (rows,).
        random: Of times of censoring.

    Returns:
        For each time its survival, and that of the replicates.
    """
    whole = ecdf(CensoredData(uncensored=observed[events], right=observed[~events])).sf
    times = [
        float(whole.quantiles[whole.probabilities <= share][0])
        for share in SIZES.reached
        if (whole.probabilities <= share).any()
    ]
    ends = _censored_at(observed, events, min(len(drawn), SIZES.replicates), random)
    drawn = drawn[np.linspace(0, len(drawn) - 1, len(ends)).astype(int)]
    happened = drawn <= ends
    seen = np.minimum(drawn, ends)
    return {
        f"survival at {time:.4g}": (
            float(whole.evaluate(time)), _kaplan_meier(seen, happened, time)
        )
        for time in dict.fromkeys(times)
    }  # fmt: skip


def _censored_at(
    observed: np.ndarray, events: np.ndarray, count: int, random: np.random.Generator
) -> np.ndarray:
    """Times at which rows would be censored, (count, rows); infinite beyond the last one known."""
    ends = np.tile(observed, (count, 1))
    if events.all():
        return np.full_like(ends, np.inf)
    lasting = ecdf(CensoredData(uncensored=observed[~events], right=observed[events])).sf
    later = lasting.evaluate(observed[events]) * random.random((count, int(events.sum())))
    falling = -lasting.probabilities
    place = np.searchsorted(falling, -later, side="left")
    known = np.append(lasting.quantiles, np.inf)
    ends[:, events] = known[place]
    return ends


def _kaplan_meier(times: np.ndarray, events: np.ndarray, at: float) -> np.ndarray:
    """The survival at a time, of each set of rows, (sets,)."""
    order = np.lexsort((~events, times), axis=1)
    times, events = (np.take_along_axis(each, order, 1) for each in (times, events))
    rest = times.shape[1] - np.arange(times.shape[1])
    steps = np.where(events & (times <= at), 1 - 1 / rest, 1.0)
    return np.asarray(steps.prod(1))
