"""Held-out rows of a comparison: scores of every method's predictions."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from torch import Tensor

from elbowroom.draws.weighted import WeightedDraws
from elbowroom.engines.task import Task
from elbowroom.errors import GuideError, ModelError, OptionError
from elbowroom.pipeline.fitting import fit_task
from elbowroom.result import Fit


@dataclass(frozen=True)
class Scoring:
    """How held-out rows are scored."""

    draws: int = 1000
    """Draws of the latents of each row."""
    interval: float = 0.9
    """Probability of the intervals whose coverage is counted."""
    bins: int = 10
    """Bins of probabilities in which they are compared with frequencies."""
    fewest_rows: int = 2
    """Rows on either side of a split, at least."""


SCORING = Scoring()


def split_rows(table: pd.DataFrame, size: float, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Splits a table at random into rows to fit and held-out rows, each in the table's order.

    Args:
        table: The rows.
        size: The share to hold out, or if it is one or more, the number of rows.
        seed: Of the choice.

    Raises:
        OptionError: If too few rows are left on either side.

    Example:
        >>> train, test = split_rows(pd.DataFrame({"y": range(10)}), 0.3, seed=0)
        >>> len(train), len(test)
        (7, 3)
    """
    rows = len(table)
    count = size * rows if 0 < size < 1 else size
    if not SCORING.fewest_rows <= np.round(count) <= rows - SCORING.fewest_rows:
        raise OptionError(
            f"--test-size {size:g} makes {count:,.0f} of {rows:,} rows test rows; choose at least "
            f"{SCORING.fewest_rows}, and leave at least {SCORING.fewest_rows} to fit."
        )
    count = round(count)
    test = np.zeros(rows, bool)
    test[np.random.default_rng(seed).permutation(rows)[:count]] = True
    return table[~test], table[test]


def held_out_scores(fit: Fit, table: pd.DataFrame) -> dict[str, float]:
    """How well a fit predicts rows that it has not seen.

    Args:
        fit: The fit.
        table: The rows, with what was observed.

    Returns:
        `test_log_density`, the mean log density of a row in nats: of the posterior predictive, or
        where rows have latents, summed over these by importance sampling; where the guide knows the
        fitted rows alone, it is fitted to these first, with the model's point parameters fixed.
        `test_log_density_se`, its standard error over the rows; `test_unreliable`, the share of
        rows whose importance weights are not good enough for their density, which is then rather a
        lower bound. Where a number is predicted,
        `test_coverage`, the share of the rows inside their 90% intervals, and `test_spread`,
        the mean sd of the predictions over the sd of the observed values. Where classes are,
        `test_calibration_error`, the mean distance of their probabilities from their frequencies
        (Guo, Pleiss, Sun and Weinberger, 2017, "On calibration of modern neural networks"). Scores
        that a fit does not have are missing.
    """
    problem = fit.problem
    weights: WeightedDraws | None = None
    try:
        if fit.row_latents:
            weights = _weighed(fit, table)
            density = weights.log_density()[0]
        else:
            density = fit.log_density(table)
    except (GuideError, ModelError):  # a point has no density of a row's latents
        density = np.full(len(table), np.nan)
    found = {
        "test_log_density": float(density.mean()),
        "test_log_density_se": float(density.std(ddof=1) / len(density) ** 0.5),
    }
    if weights is not None:
        found["test_unreliable"] = weights.unreliable_density
    if fit.row_latents or problem.model.predicts in problem.space.discrete:
        return found
    predicted = fit.predict(table, SCORING.interval)
    observed = _observed(fit, table)
    classes = problem.prepared.coords.get("class")
    if classes:
        shares = predicted[[f"probability[{label}]" for label in classes]].to_numpy()
        return {**found, "test_calibration_error": calibration_error(shares, observed.astype(int))}
    parts = {
        part: predicted.filter(regex=rf"(^|\.){part}$").to_numpy()
        for part in ("lower", "upper", "sd")
    }
    values = observed.reshape(parts["sd"].shape)
    if np.isin(values, (0, 1)).all():  # an interval of these says nothing
        return found
    inside = (values >= parts["lower"]) & (values <= parts["upper"])
    return {
        **found,
        "test_coverage": float(inside.mean()),
        "test_spread": float((parts["sd"].mean(0) / values.std(0, ddof=1)).mean()),
    }


def _weighed(fit: Fit, table: pd.DataFrame) -> WeightedDraws:
    """Draws of the rows' latents, from a guide that is fitted to them if necessary."""
    if fit.amortised:
        return fit.weigh_rows(table, SCORING.draws, fit.seed)
    size = fit.settings.batch_size
    settings = replace(
        fit.settings, batch_size=None if size is None or size >= len(table) else size
    )
    problem = fit.problem.with_rows(table, fit.model_parameters)
    task = Task(problem, settings, fit.seed, draws=100)
    again = fit_task(task, fit.guide, fit.engine)
    return again.weigh_rows(None, SCORING.draws, fit.seed)


def _observed(fit: Fit, table: pd.DataFrame) -> np.ndarray:
    """The observed values, in the user's units or as numbers of classes."""
    problem = fit.problem
    values: Tensor = problem.new_arguments(table)[0][problem.observed].double().cpu()
    if problem.model.in_units is not None:
        values = problem.model.in_units(values, problem.prepared.arguments)
    return values.numpy()


def calibration_error(probabilities: np.ndarray, observed: np.ndarray) -> float:
    """The mean distance of the likeliest class's probability from its frequency, in ten bins.

    Args:
        probabilities: (rows, classes).
        observed: The number of each row's class, (rows,).

    Example:
        >>> sure = np.array([[0.8, 0.2]] * 10)
        >>> round(calibration_error(sure, np.array([0] * 8 + [1] * 2)), 3)
        0.0
        >>> round(calibration_error(sure, np.array([0] * 5 + [1] * 5)), 3)
        0.3
    """
    sure = probabilities.max(1)
    right = probabilities.argmax(1) == observed
    bins = np.minimum((sure * SCORING.bins).astype(int), SCORING.bins - 1)
    error = sum(abs((sure - right)[bins == each].sum()) for each in range(SCORING.bins))
    return float(error / len(observed))
