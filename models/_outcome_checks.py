"""A response and its family: which one is meant, whether they go together, and its scale."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor

from elbowroom.errors import DataError, OptionError
from elbowroom.models._families import FAMILIES, LINKS, NUMBERS, Family, families_for
from elbowroom.models._formula import Design
from elbowroom.models._responses import listed_names

MEANT = {
    "level": "bernoulli", "trials": "binomial", "number": "normal", "classes": "categorical",
    "levels": "ordinal", "truncated": "normal",
}  # fmt: skip
"""The family of a response of some form, where none is named."""
FAR = 3.0
"""Standard deviations between zero and the mean of counts that a Normal fits well enough."""
MOST_COUNTS = 100
"""Different values; those of more are measured numbers that were rounded."""

NO_NOISE = 1e-9
"""Of the largest response: what rounding leaves of a residual."""


@dataclass(frozen=True)
class Separation:
    """When predictors separate rows."""

    numbers: int = 500_000
    """In the predictors, at most: beyond, to look takes longer than many a fit."""
    gap: float = 1e-7
    """Between rows, in units of the predictors."""
    direction: float = 1e-6
    """What a column has to do with it."""
    named: int = 4
    """Columns in a message."""


SEPARATION = Separation()


def chosen_family(given: str | None, design: Design) -> Family:
    """The family of a response: the one that is named, or the only one that is meant.

    Raises:
        DataError: If the response is not what the family takes; the family that takes it is named.
        OptionError: If none is named, and several could be meant.
    """
    name = given or MEANT.get(design.form)
    if name is None:
        raise OptionError(
            f"the response {design.name} is censored, and several families can be meant; give "
            f"{listed_names(_with_tails(design))}."
        )
    family = FAMILIES[name]
    _check_form(family, design)
    takes, y = NUMBERS[family.takes], design.response
    if y is None or design.form in ("trials", "levels", "classes"):
        return family
    wrong = ~takes.holds(y)
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise DataError(
            f"column '{design.name}', row {row + 1}: {float(y[row]):g}; the family {name} takes "
            f"{takes.words}. Correct the row, or give {listed_names(families_for(y))}."
        )
    return family


def _check_form(family: Family, design: Design) -> None:
    """Sees that a family takes a response of this form."""
    form, name = design.form, design.name
    if family.takes == "trials" and form != "trials":
        raise DataError(
            f"the family {family.name} takes successes of trials: write p({name}, trials) ~ ..., "
            f"where trials is a column or a number. For a 0 or 1 in each row, give --family "
            "bernoulli."
        )
    if form == "trials" and family.takes != "trials":
        others = listed_names([each.name for each in FAMILIES.values() if each.takes == "trials"])
        raise DataError(
            f"the response {name} is successes of trials, which the family {family.name} does not "
            f"take; give {others}."
        )
    if family.several and form != family.several:
        raise DataError(
            f"the family {family.name} takes a column of {NUMBERS[family.takes].words}, and the "
            f"response is {name} ({form}); write the column alone on the left side."
        )
    if family.classes and design.smooths is not None:
        raise OptionError(
            f"--formula: the family {family.name} takes no smooth terms; leave that term out."
        )
    if family.levels and not design.has_intercept:
        raise OptionError(
            f"--formula: the family {family.name} has thresholds in the place of the intercept; "
            "leave out '0 +'."
        )
    if form == "level" and family.takes != "binary":
        raise DataError(
            f"the response '{name}' has levels ('{design.level}' against others), and the family "
            f"{family.name} takes {NUMBERS[family.takes].words}; give --family bernoulli, or a "
            "column of numbers."
        )
    if form in ("censored", "truncated") and family.tails is None:
        raise DataError(
            f"the family {family.name} does not take {form} responses such as {name}; give "
            f"{listed_names(_with_tails(design))}."
        )


def _with_tails(design: Design) -> list[str]:
    """The families that a censored or truncated response may have."""
    y = design.response
    return [
        each.name for each in FAMILIES.values()
        if each.tails is not None and (y is None or bool(NUMBERS[each.takes].holds(y).all()))
    ]  # fmt: skip


def limits_of(design: Design, family: Family) -> dict[str, Tensor]:
    """The limits of a truncated response, as `elbowroom.models._limits.Truncated` takes them.

    Those that a family's numbers have anyway are left out.
    """
    if design.form != "truncated":
        return {}
    lower, upper = design.rows["truncated_lower"], design.rows["truncated_upper"]
    if family.takes == "count":
        lower, upper = lower.ceil() - 0.5, upper.floor() + 0.5
    if family.takes in ("count", "positive", "share"):
        lower = torch.where(lower <= 0, -torch.inf, lower)
    if family.takes == "share":
        upper = torch.where(upper >= 1, torch.inf, upper)
    return {"truncated_lower": lower, "truncated_upper": upper}


def chosen_link(given: str | None, family: Family) -> str:
    """The link that is named, or the family's first.

    Raises:
        OptionError: If the family does not have it.
    """
    if given is not None and given not in family.links:
        raise OptionError(
            f"--link {given}: the family {family.name} has the link{'s' * (len(family.links) > 1)} "
            f"{', '.join(family.links)}; give one of them."
        )
    return given or family.links[0]


def scaling_of(design: Design, family: Family, link: str) -> dict[str, Tensor]:
    """What predictors and response are centred and divided by; see the model."""
    predictors, y = design.predictors, design.response
    assert y is not None
    one, zero = torch.ones_like(y[0]), torch.zeros_like(y[0])
    known = torch.zeros_like(y) if design.offset is None else design.offset
    centre, spread = zero, one
    mean = y.mean()
    if LINKS[link].scaled:
        values = (y.log() if family.logarithm else y) - known
        centre, spread = values.mean(), values.std()
        if not float(spread) > 0:
            spread = one
    elif link == "log":
        centre = mean.log() - known.exp().mean().log()
    intercept = design.has_intercept
    if family.several:
        mean = one
    of_mean = any(each.unit == "mean" for each in family.parameters)
    return {
        "centre": predictors.mean(0) if intercept else torch.zeros(predictors.shape[1]),
        "spread": predictors.std(0) if predictors.shape[1] else predictors.new_zeros(0),
        "response_centre": centre if intercept else torch.zeros(()),
        "response_spread": spread,
        **({"response_mean": mean} if of_mean else {}),
    }


def doubts_of(design: Design, family: Family, given: bool) -> tuple[str, ...]:
    """What a family may be wrong for, as sentences.

    Args:
        design: The response, and its predictors.
        family: The family.
        given: Whether the user has named it.
    """
    assert design.response is not None
    found: tuple[str, ...] = ()
    if family.name == "normal" and not given and design.form == "number":
        found = no_normal_number(design.response, design.name)
    return (
        *found,
        *_separated(design, family),
        *_without_noise(design, family),
        *_collinear(design),
    )


def no_normal_number(values: Tensor, name: str) -> tuple[str, ...]:
    """What a response is, if its noise cannot be Normal: two values, or counts near zero.

    Example:
        >>> no_normal_number(torch.tensor([0.5, 1.5, 2.5]), "dose")
        ()
    """
    different = values.unique()
    if len(different) == 2:
        low, high = (f"{float(value):g}" for value in different)
        edit = "Give --family bernoulli for a logistic regression."
        if (low, high) != ("0", "1"):
            edit = f"Write I({name} == {high}) ~ ... with --family bernoulli."
        return (
            f"The response '{name}' has only two values, {low} and {high}, so its noise is not "
            "Normal. The fit is a linear probability model, whose predictions can be below "
            f"{low} or above {high}. {edit}",
        )
    whole = bool((values == values.round()).all())
    near = 0 <= float(values.min()) <= 1 and float(values.mean()) < FAR * float(values.std())
    if whole and near and len(different) <= min(MOST_COUNTS, len(values) / 2):
        return (
            f"The response '{name}' looks like counts: whole numbers, the smallest "
            f"{float(values.min()):g}. The noise of counts is not Normal: its variance grows with "
            "the mean, and counts are not negative. Give --family poisson or --family "
            "negative_binomial.",
        )
    return ()


def _separated(design: Design, family: Family) -> tuple[str, ...]:
    """The predictors that tell rows of two values, or of a class, apart without an error."""
    y, found = design.response, []
    assert y is not None
    if family.takes != "binary" and not family.classes:
        return ()
    x = design.predictors
    one = x.new_ones(len(x), int(design.has_intercept))
    scale = x.abs().amax(0).clamp_min(torch.finfo(x.dtype).tiny) if x.numel() else 1.0
    x = torch.cat([one, (x - x.mean(0) if design.has_intercept else x) / scale], dim=1)
    for value in y.unique().tolist() if family.classes else [1]:
        direction, whole = _separating(x.numpy(), (y == value).numpy())
        places = np.flatnonzero(np.abs(direction[one.shape[1] :]) > SEPARATION.direction)
        if not len(places):
            continue
        names = [design.columns[place] for place in places[: SEPARATION.named]]
        every = ", ".join(f"'{name}'" for name in names) + ", ..." * (
            len(places) > SEPARATION.named
        )
        rows = f"'{design.levels[int(value)]}'" if family.classes else f"'{design.name}'"
        one_only = len(places) == 1
        found.append(
            f"{every} {'separates' if one_only else 'together separate'} "
            f"{'the' if whole else 'some'} rows of {rows} perfectly: the data alone would make "
            f"{'its coefficient' if one_only else 'their coefficients'} infinite, and how large "
            f"{'it is comes from its prior' if one_only else 'they are comes from their priors'}. "
            f"State {'that prior' if one_only else 'these'}, such as --prior '{names[0]} ~ "
            "normal(0, 1)'."
        )
    return tuple(found)


def _separating(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, bool]:
    """A direction in which no row of one value lies before one of the other; zero if none is.

    By a linear program, as Konis (2007, "Linear programming algorithms for detecting separated data
    in binary logistic regression models").

    Args:
        x: The predictors with the intercept, of sizes near one, (rows, columns).
        y: Whether a row has the value, (rows,).

    Returns:
        The direction, (columns,), and whether it tells all rows apart.
    """
    none = np.zeros(x.shape[1]), False
    if x.size > SEPARATION.numbers or y.all() or not y.any():
        return none
    signed = np.where(y[:, None], x, -x)
    found = linprog(-signed.mean(0), A_ub=-signed, b_ub=np.zeros(len(y)), bounds=(-1, 1))
    if found.x is None or -found.fun < SEPARATION.gap:
        return none
    nothing = np.zeros(x.shape[1])
    whole = linprog(nothing, A_ub=-signed, b_ub=-np.ones(len(y)), bounds=(None, None))
    return found.x, whole.status == 0


def _without_noise(design: Design, family: Family) -> tuple[str, ...]:
    """Whether the predictors give the response without an error, so that no noise is left."""
    y = design.response
    assert y is not None
    if not LINKS[family.links[0]].scaled or design.groups is not None or design.form != "number":
        return ()
    y = y.log() if family.logarithm else y
    y = y if design.offset is None else y - design.offset
    columns = [design.predictors, torch.ones(len(y), int(design.has_intercept)).to(y)]
    x, values = torch.cat(columns, 1).numpy(), y.numpy()
    # A few rows are enough to find the coefficients, if there is no noise.
    some = np.linspace(0, len(x) - 1, min(len(x), 2 * x.shape[1] + 10)).astype(int)
    coefficients, _, rank, _ = np.linalg.lstsq(x[some], values[some])
    left = np.abs(values - x @ coefficients).max()
    if rank >= len(x) or left > NO_NOISE * np.abs(values).max():
        return ()
    return (
        f"The predictors give '{design.name}' without an error: the data alone would make the "
        "noise zero, and how large it is comes from its prior. Most priors allow zero, and there "
        "is no posterior then; give --priors conjugate, or a prior that leaves zero out, such as "
        "--prior 'sigma ~ inverse_gamma(2, 0.1)'.",
    )


def _collinear(design: Design) -> tuple[str, ...]:
    """The columns that are a linear function of those before them."""
    x = design.predictors
    if not 2 <= x.shape[1] <= MOST_COUNTS or x.shape[0] <= x.shape[1]:
        return ()
    x = x - x.mean(0) if design.has_intercept else x
    x = x / x.norm(dim=0).clamp_min(torch.finfo(x.dtype).tiny)
    left = torch.linalg.qr(x, mode="r").R.diagonal().abs()
    names = [name for name, size in zip(design.columns, left.tolist(), strict=True) if size < 1e-7]
    if not names:
        return ()
    return (
        f"'{names[0]}' is a linear function of other predictors: the data tell the sum of their "
        "effects only, and the prior divides it among them. Leave one of them out.",
    )
