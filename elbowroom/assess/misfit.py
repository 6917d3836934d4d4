"""What a model gets wrong, by the checks of its predictions, and what to try."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from elbowroom.assess.quantities import BINARY, COUNTS, LEVELS, NUMBERS, TRIALS

LINE = ("check", "quantity", "observed", "predicted", "lower", "upper", "p", "flagged")
"""Columns of the table of checks."""
RESPONSE, PIT, RESIDUALS = "response", "LOO-PIT", "residuals"
"""Groups of checks; those of a predictor are called "residuals by COLUMN"."""
PREDICTION = "the prediction"
"""In the place of a predictor: the predicted mean of each row."""


@dataclass(frozen=True)
class Level:
    """How often a right model may be told to be wrong, over all of its checks together."""

    band: float = 0.01
    """By the distribution function of its LOO-PIT."""
    others: float = 0.01
    """By all other checks (Holm, 1979)."""
    below: float = 0.01
    """Share of draws below zero from which on a model is told of positive numbers."""
    inflated: float = 2.0
    """Standard errors beyond which zeros are more than overdispersion explains."""
    shown: int = 3
    """Columns that a sentence names."""


LEVEL = Level()

WORDS: Mapping[str, str] = {
    "mean": "a curve of {column}, or an interaction with it",
    "mean of prediction": "a curve or an interaction of the predictors, or another link",
    "spread": "noise whose spread depends on {column}",
    "spread of prediction": "noise whose spread depends on the predictors",
    "zeros": "a distribution with more zeros, such as dist.ZeroInflatedPoisson",
    "no zeros": "a distribution whose zeros are apart from its counts",
    "dispersion": "a distribution of larger variance, such as dist.NegativeBinomial or "
    "dist.BetaBinomial",
    "skewness": "a skewed distribution, or a transformation of the response",
    "tails": "noise with longer tails, such as dist.StudentT",
    "positive": "a distribution of positive numbers, such as dist.Gamma or dist.LogNormal",
    "calibration": "another link, or a curve or an interaction of the predictors",
    "survival": "another distribution of times",
}
"""What to try against each misfit with a model of one's own."""


def flag(table: pd.DataFrame, outside: bool) -> pd.DataFrame:
    """The table of checks with those that a right model would fail too rarely.

    Holm's steps over all p-values, and the band of the LOO-PIT, which has none.

    Args:
        table: The lines, with p.
        outside: Whether the distribution of the LOO-PIT leaves its band.

    Example:
        >>> lines = pd.DataFrame({"check": ["response"] * 3, "p": [0.5, 0.001, 0.004]})
        >>> flag(lines, False)["flagged"].tolist()
        [False, True, True]
    """
    values = table["p"].to_numpy(dtype=float)
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    passed = values[order] <= LEVEL.others / np.arange(len(order), 0, -1)
    flagged = np.zeros(len(table), bool)
    flagged[order[: int(np.cumprod(passed).sum())]] = True
    flagged |= (table["check"] == PIT).to_numpy() & outside
    return table.assign(flagged=flagged)


@dataclass(frozen=True)
class Seen:
    """What the sentences are made of.

    Attributes:
        response: Its name.
        kind: Its kind.
        table: The checks.
        observed: The rows, (rows,).
        mean: What is predicted of them, (rows,).
        negative: The share of draws that are not above zero.
        words: What to try, by misfit.
    """

    response: str
    kind: str
    table: pd.DataFrame
    observed: np.ndarray
    mean: np.ndarray
    negative: float
    words: Mapping[str, str]

    def line(self, check: str, quantity: str) -> pd.Series | None:
        """A check that is flagged."""
        table = self.table
        rows = table[(table["check"] == check) & (table["quantity"] == quantity) & table["flagged"]]
        return rows.iloc[0] if len(rows) else None

    def by(self, quantity: str) -> list[str]:
        """The predictors on which a quantity of the residuals depends, the strongest first."""
        table = self.table
        rows = table[table["flagged"] & (table["quantity"] == quantity)].sort_values("p")
        by = f"{RESIDUALS} by "
        names = [each.removeprefix(by) for each in rows["check"] if each.startswith(by)]
        own = [name for name in names if name != PREDICTION]
        return (own or names)[: LEVEL.shown]

    def tried(self, misfit: str, column: str = "") -> str:
        """What to try against a misfit, as the end of a sentence; empty if nothing is known."""
        words = self.words.get(misfit, "")
        return f": try {words.format(column=column)}" if words else ""


def sentences(seen: Seen) -> list[str]:
    """What the model gets wrong and what to try, the likeliest cause alone.

    A curve that is missed makes residuals spread, and spreads that differ have long tails: what is
    named first explains the others, which are checked again with the next fit.
    """
    if not seen.table["flagged"].any():
        return []
    for of_kind in (_positive, _mean, _counts, _noise, _skewed, _spread, _tails, _shares):
        said = of_kind(seen)
        if said:
            return said
    names = [
        f"{row['check']}, {row['quantity']}" if row["check"] != RESPONSE else row["quantity"]
        for _, row in seen.table[seen.table["flagged"]].iterrows()
    ]
    listed = "; ".join(names[: LEVEL.shown])
    return [f"The model does not reproduce '{seen.response}' ({listed})."]


def _depends(seen: Seen, quantity: str) -> list[str]:
    """What a quantity of the residuals depends on."""
    columns = seen.by(quantity)
    if not columns:
        return []
    misfit = f"{quantity} of prediction" if columns == [PREDICTION] else quantity
    subject = (
        "The residuals depend" if quantity == "mean" else "The spread of the residuals depends"
    )
    then = " Then check again." if quantity == "mean" else ""
    return [
        f"{subject} on {_named(columns)}, which the model misses"
        f"{seen.tried(misfit, columns[0])}.{then}"
    ]


def _mean(seen: Seen) -> list[str]:
    return _depends(seen, "mean")


def _spread(seen: Seen) -> list[str]:
    return _depends(seen, "spread")


def _counts(seen: Seen) -> list[str]:
    """Zeros and the variance of counts and of successes."""
    if seen.kind not in (COUNTS, TRIALS):
        return []
    zeros, said = seen.line(RESPONSE, "share of zeros"), []
    wide = seen.line(RESIDUALS, "spread")
    if wide is None:
        wide = seen.line(RESPONSE, "variance / mean")
    if wide is None:
        wide = seen.line(RESPONSE, "sd of proportions")
    many = zeros is not None and zeros["observed"] > zeros["upper"]
    apart = wide is None or (seen.kind == COUNTS and inflated(seen.observed, seen.mean))
    if zeros is not None and many and apart:
        said.append(
            f"'{seen.response}' has more zeros than the model draws ({_told(zeros)})"
            f"{seen.tried('zeros')}."
        )
    elif zeros is not None and not many:
        said.append(
            f"'{seen.response}' has fewer zeros than the model draws ({_told(zeros)})"
            f"{seen.tried('no zeros')}."
        )
    elif wide is not None and wide["observed"] > wide["upper"]:
        what = "residuals" if wide["check"] == RESIDUALS else wide["quantity"]
        said.append(
            f"'{seen.response}' varies more than the model draws ({what}: {_told(wide)})"
            f"{seen.tried('dispersion')}."
        )
    elif seen.kind == COUNTS and "zeros" in seen.words and inflated(seen.observed, seen.mean):
        said.append(
            f"'{seen.response}' has more zeros than its overdispersion explains"
            f"{seen.tried('zeros')}."
        )
    elif wide is not None:
        said.append(f"'{seen.response}' varies less than the model draws ({_told(wide)}).")
    return said


def inflated(observed: np.ndarray, mean: np.ndarray) -> bool:
    """Whether counts have more zeros than a negative binomial of their variance would have.

    The overdispersion α is that of moments: the sum of (y - μ)² - μ over that of μ².

    Args:
        observed: The counts, (rows,).
        mean: What is predicted of each, μ, (rows,).

    Example:
        >>> random = np.random.default_rng(1)
        >>> mean = np.full(2000, 3.0)
        >>> inflated(random.negative_binomial(1, 0.25, 2000), mean)
        False
        >>> inflated(random.poisson(4.0, 2000) * (random.random(2000) < 0.75), mean)
        True
    """
    mean = np.maximum(mean, 1e-9)
    alpha = max(1e-9, float(((observed - mean) ** 2 - mean).sum() / (mean**2).sum()))
    expected = (1 + alpha * mean) ** (-1 / alpha)
    error = np.sqrt((expected * (1 - expected)).sum())
    return bool((observed == 0).sum() > expected.sum() + LEVEL.inflated * error)


def _positive(seen: Seen) -> list[str]:
    """Numbers above zero, of which a model draws some below."""
    smallest = seen.line(RESPONSE, "smallest")
    if smallest is None or seen.observed.min() <= 0 or seen.negative <= LEVEL.below:
        return []
    return [
        f"All of '{seen.response}' is above 0, and {seen.negative:.0%} of the model's draws are "
        f"not{seen.tried('positive')}."
    ]


def _noise(seen: Seen) -> list[str]:
    """The spread of numbers, where a family has no parameter of it."""
    line = seen.line(RESIDUALS, "spread")
    if line is None or "noise" not in seen.words:
        return []
    more = "more" if line["observed"] > 0 else "less"
    return [f"'{seen.response}' varies {more} than the model draws{seen.tried('noise')}."]


def _skewed(seen: Seen, check: str = RESIDUALS) -> list[str]:
    """The skewness of numbers, beyond what the spreads of rows explain."""
    line = seen.line(check, "skewness")
    if seen.kind != NUMBERS or line is None:
        return []
    side = "right" if line["observed"] > line["upper"] else "left"
    return [
        f"'{seen.response}' is skewed more to the {side} than the model draws"
        f"{seen.tried('skewness')}."
    ]


def _tails(seen: Seen) -> list[str]:
    """The tails of numbers; the skewness of all of them follows one far row."""
    if seen.kind != NUMBERS:
        return []
    tails = seen.line(RESIDUALS, "tails")
    smallest, largest = (seen.line(RESPONSE, each) for each in ("smallest", "largest"))
    far = smallest is not None and smallest["observed"] < smallest["lower"]
    far |= largest is not None and largest["observed"] > largest["upper"]
    if far or (tails is not None and tails["observed"] > tails["upper"]):
        return [
            f"Some rows of '{seen.response}' are farther off than the model draws"
            f"{seen.tried('tails')}, and look at the rows farthest off."
        ]
    if tails is not None:
        return [f"'{seen.response}' has shorter tails than the model draws."]
    return _skewed(seen, RESPONSE)


def _shares(seen: Seen) -> list[str]:
    """Proportions of levels, calibration of probabilities, and survival."""
    rows = seen.table[seen.table["flagged"] & (seen.table["check"] == RESPONSE)]
    for start, misfit in (("proportion", "calibration"), ("survival", "survival")):
        some = rows[[str(each).startswith(start) for each in rows["quantity"]]]
        if len(some) and (seen.kind in (BINARY, LEVELS) or misfit == "survival"):
            worst = some.sort_values("p").iloc[0]
            return [
                f"The model does not reproduce the {worst['quantity']} of '{seen.response}' "
                f"({_told(worst)}){seen.tried(misfit)}."
            ]
    return []


def _told(line: pd.Series) -> str:
    return f"{line['observed']:.3g} observed, {line['lower']:.3g} to {line['upper']:.3g} drawn"


def _named(columns: Sequence[str]) -> str:
    quoted = [each if each == PREDICTION else f"'{each}'" for each in columns]
    return f"{', '.join(quoted[:-1])} and {quoted[-1]}" if quoted[1:] else quoted[0]
