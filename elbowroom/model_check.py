"""Whether a fitted model predicts rows as they are: posterior predictive checks of a run.

What is observed is compared with draws of the posterior predictive (`elbowroom.assess.quantities`),
each row with what is predicted of it given the others, through Pareto-smoothed importance sampling
(`elbowroom.assess.residuals`), and the likeliest cause of what does not fit is named
(`elbowroom.assess.misfit`). Gabry, Simpson, Vehtari, Betancourt and Gelman, 2019, "Visualization in
Bayesian workflow".
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binom, norm

from elbowroom.assess.misfit import (
    LEVEL,
    LINE,
    PIT,
    PREDICTION,
    RESIDUALS,
    RESPONSE,
    WORDS,
    Seen,
    flag,
    sentences,
)
from elbowroom.assess.quantities import (
    BINARY,
    LEVELS,
    compared,
    kind_of,
    p_value,
    quantities_of,
    survival,
)
from elbowroom.assess.residuals import (
    RIGHT,
    Band,
    Places,
    band_of,
    columns_of,
    dependence,
    expected_share,
    places_of,
    shapes_of,
)
from elbowroom.checked_rows import Checked, CheckedRows, left_out, rows_of
from elbowroom.models import Remedies

INTERVAL = (0.05, 0.95)
"""The quantiles of what is predicted that are shown."""
FAR = 3.0
"""A residual that draws do not resolve any more."""
FOLLOWED = 0.05
"""How far predictions may follow their own rows, whose residuals would then depend on them."""
COVERED = (0.5, 0.9)
"""Intervals of which it is counted how many rows are within."""


@dataclass(frozen=True)
class ModelCheck:
    """How well a model predicts the rows that it was fitted to.

    Attributes:
        response: The name of what was observed.
        kind: Of its values: "numbers", "counts", "0 or 1", "levels" or "trials".
        table: A line for each check: what is looked at (`check`, `quantity`), its value `observed`,
            the mean (`predicted`) and the 90% interval (`lower`, `upper`) where the model is right,
            the two-sided p-value `p`, and whether it is `flagged`.
        rows: A line for each row: its number `row`, from 1; observed; mean and sd, predicted given
            the other rows; `pit`, its place in that distribution; `residual`, the Normal quantile
            of the place; and `pareto_k` of its importance weights.
        findings: What the model gets wrong, and what to try, in sentences; empty if no check is
            flagged. A right model is told to be wrong about once in fifty times.
        notes: What a reader should know of the checks.
        band: The distribution function of the places beside its band.
        observed: The rows, (rows,).
        drawn: Draws of the same, (draws, rows).
        levels: What 0, 1, 2, ... stand for, if they are levels.
        predictors: What residuals may depend on: values, (rows,), and levels, or None for numbers.
        events: Whether a row had its event, (rows,), where some are censored.
    """

    response: str
    kind: str
    table: pd.DataFrame
    rows: pd.DataFrame
    findings: tuple[str, ...]
    notes: tuple[str, ...]
    band: Band
    observed: np.ndarray
    drawn: np.ndarray
    levels: tuple[Any, ...] = ()
    predictors: Mapping[str, tuple[Any, Sequence[Any] | None]] = field(default_factory=dict)
    events: np.ndarray | None = None

    def farthest(self, count: int) -> pd.DataFrame:
        """The rows whose residuals are the largest."""
        # Beyond all draws a residual is no more than one of a draw more: then sizes tell.
        residuals = self.rows["residual"].abs().clip(upper=FAR).to_numpy()
        sizes = ((self.rows["observed"] - self.rows["mean"]) / self.rows["sd"]).abs().to_numpy()
        return self.rows.iloc[np.lexsort((-sizes, -residuals))[:count]]


def check_fit(fit: Checked, seed: int) -> ModelCheck:
    """See `elbowroom.result.Fit.check`."""
    rows = rows_of(fit, seed)
    random = np.random.default_rng(seed)
    known = _remedies(fit, rows)
    left = left_out(rows)
    notes = [*rows.notes, *left.notes]
    status = rows.argument("status")
    censored = status is not None and bool(status.any())
    places = places_of(
        rows.observed, rows.drawn, left.weights, random, status, rows.argument("upper")
    )
    band = band_of(places.u, 1 - LEVEL.band, random)
    levels = tuple(fit.problem.prepared.coords.get("class", ()))
    levels = levels if rows.drawn.max() < len(levels) else ()
    kind = kind_of(rows.observed, rows.drawn, levels, rows.argument("trials"))
    if known.quantile is not None:
        lines = [*_of_quantile((places.u <= known.quantile).astype(float), known.quantile, rows)]
        notes.append(
            f"Only the {known.quantile:g} quantile is checked: the distribution about it is a "
            "means to find it."
        )
    else:
        far = (band.farthest, np.nan, 0.0, _half(band), np.nan)
        lines = [
            *_of_response(kind, rows, levels, random),
            *_of_places(kind, places),
            *_of_predictors(kind, places, rows, censored, left.followed < FOLLOWED),
            (PIT, "farthest from uniform", *far),
        ]
    if status is not None and censored:
        notes.append(_of_censored(status))
    table = flag(pd.DataFrame(lines, columns=LINE[:-1]), band.outside)
    negative = float((rows.drawn <= 0).mean())
    seen = Seen(rows.name, kind, table, rows.observed, places.mean, negative, known.words)
    about = {
        "row": rows.numbers + 1, "observed": rows.observed, "mean": places.mean, "sd": places.sd,
        "pit": places.u, "residual": places.residuals, "pareto_k": left.pareto_k,
    }  # fmt: skip
    return ModelCheck(
        rows.name, kind, table, pd.DataFrame(about), tuple(sentences(seen)),
        tuple(notes), band, rows.observed, rows.drawn, levels, rows.predictors,
        np.equal(status, 0) if status is not None and censored else None,
    )  # fmt: skip


def _remedies(fit: Checked, rows: CheckedRows) -> Remedies:
    """What to try; of a named model that does not say it, nothing."""
    model = fit.problem.model
    if model.remedies is not None:
        return model.remedies(rows.arguments)
    return Remedies({} if fit.problem.model_name is not None else WORDS)


def _half(band: Band) -> float:
    """The largest half width of a band."""
    return float(np.maximum(band.upper - band.at, band.at - band.lower).max())


Line = tuple[str, str, float, float, float, float, float]


def _of_response(
    kind: str, rows: CheckedRows, levels: Sequence[Any], random: np.random.Generator
) -> Iterator[Line]:
    status = rows.argument("status")
    if status is not None and status.any():
        if not np.isin(status, (0, RIGHT)).all():
            return
        found = survival(rows.observed, rows.drawn, status == 0, random)
    else:
        wanted = quantities_of(kind, rows.observed, rows.drawn, levels, rows.argument("trials"))
        found = compared(wanted, rows.observed, rows.drawn)
    for name, (seen, every) in found.items():
        replicates = every[~np.isnan(every)]  # of draws beyond float64 some have no value
        if not len(replicates):
            continue
        lower, upper = np.quantile(replicates, INTERVAL)
        mean = float(replicates.mean())
        yield RESPONSE, name, seen, mean, float(lower), float(upper), p_value(seen, replicates)


def _of_censored(status: np.ndarray) -> str:
    if np.isin(status, (0, RIGHT)).all():
        return (
            "Survival is that of Kaplan and Meier; replicates are censored as the rows were. The "
            "places of censored rows are drawn from beyond the time of censoring."
        )
    return (
        "Some rows are known by an interval or from below: they are checked by their places alone, "
        "which are drawn from within."
    )


def _of_places(kind: str, places: Places) -> Iterator[Line]:
    """The spread and the form of residuals; those of 0 and 1 have neither."""
    count = len(places.u)
    if kind in (BINARY, LEVELS):
        return
    for share in COVERED:
        within = np.abs(2 * places.u - 1) <= share
        yield RESIDUALS, f"share in {share:.0%} intervals", *_share(within, share)
    end = float(norm.ppf(INTERVAL[1])) / np.sqrt(count)
    for name, (value, p) in shapes_of(places.u).items():
        yield RESIDUALS, name, value, 0.0, -end, end, p


def _share(which: np.ndarray, share: float) -> tuple[float, float, float, float, float]:
    """How many rows are such, beside the share of them that is expected, by the binomial."""
    count, found = len(which), int(which.sum())
    lower, upper = binom.ppf(INTERVAL, count, share) / count
    tails = binom.cdf(found, count, share), binom.sf(found - 1, count, share)
    return found / count, share, float(lower), float(upper), min(1.0, 2 * float(min(tails)))


def _of_predictors(
    kind: str, places: Places, rows: CheckedRows, censored: bool, prediction: bool
) -> Iterator[Line]:
    """What residuals depend on: by their places and by their sizes, and the less sure of both.

    Places are uniform about one half only where the distribution is right, and a few far rows
    decide a mean of sizes: a curve that is missed is seen in both.
    """
    for name, columns in _columns(rows, prediction):
        both = [] if kind == BINARY else [dependence(places.u, columns)]
        both += [] if censored else [dependence(places.sizes, columns)]
        found = [each for each in both if each is not None]
        if found:
            yield _explained(name, "mean", max(found, key=lambda each: each[1]), columns)
        if kind not in (BINARY, LEVELS):
            spread = dependence(np.abs(2 * places.u - 1), columns)
            if spread is not None:
                yield _explained(name, "spread", spread, columns)


def _columns(rows: CheckedRows, prediction: bool) -> Iterator[tuple[str, np.ndarray]]:
    """Each predictor, and where there are several the prediction."""
    yield from ((name, columns_of(*each)) for name, each in rows.predictors.items())
    if prediction and len(rows.predictors) > 1:
        yield PREDICTION, columns_of(rows.drawn.mean(0), None)


def _explained(name: str, what: str, found: tuple[float, float], columns: np.ndarray) -> Line:
    mean, lower, upper = expected_share(columns, INTERVAL)
    return f"{RESIDUALS} by {name}", what, found[0], mean, lower, upper, found[1]


def _of_quantile(below: np.ndarray, quantile: float, rows: CheckedRows) -> Iterator[Line]:
    """The share of rows below a quantile, and what it depends on."""
    yield RESPONSE, f"share below the {quantile:g} quantile", *_share(below, quantile)
    for name, each in rows.predictors.items():
        columns = columns_of(*each)
        found = dependence(below, columns)
        if found is not None:
            yield _explained(name, "mean", found, columns)
