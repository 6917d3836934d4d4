"""A response and its family: which one is meant, whether they go together, and its scale."""

import torch
from torch import Tensor

from elbowroom.errors import DataError, OptionError
from elbowroom.models._families import FAMILIES, LINKS, NUMBERS, Family, families_for
from elbowroom.models._formula import Design
from elbowroom.models._responses import listed_names

FAR = 3.0
"""Standard deviations between zero and the mean of counts that a Normal fits well enough."""
MOST_COUNTS = 100
"""Different values; those of more are measured numbers that were rounded."""


def chosen_family(given: str | None, design: Design) -> Family:
    """The family of a response: the one that is named, or the only one that is meant.

    Raises:
        DataError: If the response is not what the family takes; the family that takes it is named.
        OptionError: If none is named, and several could be meant.
    """
    name = given or {"level": "bernoulli", "trials": "binomial", "number": "normal"}.get(
        design.form
    )
    if name is None:
        several = [each.name for each in FAMILIES.values() if each.tails is not None]
        raise OptionError(
            f"the response {design.name} is censored, and several families can be meant; give "
            f"{listed_names(several)}."
        )
    family = FAMILIES[name]
    _check_form(family, design)
    takes, y = NUMBERS[family.takes], design.response
    if y is None or design.form in ("trials", "levels"):
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
    if family.levels and form != "levels":
        raise DataError(
            f"the family {family.name} takes a column of three or more levels in an order, and the "
            f"response is {name} ({form}); write the column alone on the left side."
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
    if form == "censored" and family.tails is None:
        others = listed_names([each.name for each in FAMILIES.values() if each.tails is not None])
        raise DataError(
            f"the family {family.name} does not take censored responses such as {name}; give "
            f"{others}."
        )


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
    if family.levels:
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
    return (*found, *_separated(design, family), *_collinear(design))


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
    """The predictors that tell a response of two values apart without an error."""
    y = design.response
    assert y is not None
    if family.takes != "binary" or not 0 < float(y.mean()) < 1:
        return ()
    ones, others = design.predictors[y == 1], design.predictors[y == 0]  # (some rows, columns)
    apart = (ones.amin(0) > others.amax(0)) | (ones.amax(0) < others.amin(0))
    return tuple(
        f"'{name}' separates the rows of '{design.name}' perfectly: the data alone would make its "
        "coefficient infinite, and how large it is comes from its prior. State that prior, such "
        f"as --prior '{name} ~ normal(0, 1)'."
        for name, here in zip(design.columns, apart.tolist(), strict=True)
        if here
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
