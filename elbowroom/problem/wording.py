"""Words for constraints, numbers and rows in error messages."""

import math
from typing import Any

import torch
from torch import Tensor

from elbowroom.errors import JITTER

LISTED = 3
"""Rows in a message."""
NUMBERS = 3
"""Different values in a message."""

SUPPORTS: dict[str, tuple[str, str]] = {
    "Boolean": ("0 or 1", "code the two answers as 0 and 1."),
    "OneHot": (
        "one 1 among zeros",
        "give labels as torch.nn.functional.one_hot(y), or observe them under a Categorical.",
    ),
    "Multinomial": (
        "counts that sum to its total_count",
        "give the sum of each row as total_count (one number, if all rows have the same sum).",
    ),
    "IntegerInterval": (
        "whole numbers from {lower_bound} to {upper_bound}",
        "number labels from 0, and give the distribution one probability for each; for counts, "
        "give the largest possible number.",
    ),
    "IntegerGreaterThan": (
        "whole numbers from {lower_bound} on",
        "give counts; for measured numbers use a continuous distribution, such as a Normal or a "
        "Gamma.",
    ),
    "GreaterThan": (
        "above {lower_bound}",
        "make the values positive with .exp() or softplus; if they are data, leave these rows "
        "out, or give the site a distribution whose support includes them.",
    ),
    "Interval": (
        "from {lower_bound} to {upper_bound}",
        "scale the numbers to that interval (shares, not percentages), or give the site a "
        "distribution whose support includes them.",
    ),
    "Simplex": (
        "shares that sum to one",
        "divide them by their sum; for arguments, use torch.softmax.",
    ),
    "Real": ("real numbers", "remove the NaN values."),
    "IndependentConstraint": ("real numbers", "remove the NaN values."),
    "PositiveDefinite": (
        "a positive definite matrix",
        f"{JITTER}.",
    ),
    "LowerCholesky": (
        "a lower triangular matrix with a positive diagonal",
        "give torch.linalg.cholesky of the covariance, or give the covariance as "
        "covariance_matrix.",
    ),
}
"""For each class of constraint: its description, and how to fix a value outside of it."""
SUPPORTS["GreaterThanEq"] = ("{lower_bound} or above", SUPPORTS["GreaterThan"][1])
SUPPORTS["LessThan"] = ("below {upper_bound}", "give values below it, or another distribution.")
SUPPORTS["HalfOpenInterval"] = SUPPORTS["Interval"]

ARGUMENT_EDITS = {
    SUPPORTS["Interval"][1]: "use torch.sigmoid, or give the site's logits instead.",
    SUPPORTS["GreaterThan"][1]: "make it positive: .exp(), softplus, or a positive prior.",
    SUPPORTS["IntegerGreaterThan"][1]: "give a whole number that is not negative.",
    SUPPORTS["Simplex"][1]: "use torch.softmax, or give the site's logits instead.",
}
"""How to fix an argument of a distribution, for each fix of a value."""


def described(constraint: Any) -> tuple[str, str]:
    """A constraint in words, and how to fix a number outside of it."""
    while hasattr(constraint, "base_constraint"):
        constraint = constraint.base_constraint
    name = type(constraint).__name__.strip("_")
    wanted, edit = SUPPORTS.get(
        name, (f"within {name}", "give values within it, or another distribution.")
    )
    bounds = {}
    for bound in ("lower_bound", "upper_bound"):
        limit = torch.as_tensor(getattr(constraint, bound, math.nan))
        same = limit.numel() > 0 and bool((limit == limit.reshape(-1)[0]).all())
        bounds[bound] = f"{float(limit.reshape(-1)[0]):g}" if same else "each row's limit"
    return wanted.format(**bounds), edit


def shown(numbers: Tensor) -> str:
    """A few of the different numbers of a tensor."""
    different = list(dict.fromkeys(f"{float(number):.4g}" for number in numbers.reshape(-1)[:100]))
    more = ", ..." if len(different) > NUMBERS else ""
    return ", ".join(different[:NUMBERS]) + more


def rows_of(bad: Tensor, numbers: Tensor | None = None) -> str:
    """The first rows with bad values, counted from one; with more dims, their index from zero."""
    if not bad.dim():
        return "" if numbers is None else f" {shown(numbers)}"
    places = bad.nonzero()
    said: list[str] = []
    for place, number in zip(
        places[:LISTED].tolist(), [None] * LISTED if numbers is None else numbers, strict=False
    ):
        from_one = "" if said else " (counted from 1)"
        where = f"row {place[0] + 1}{from_one}" if len(place) == 1 else f"the value at {place}"
        said.append(where if number is None else f"{where} has {shown(number)}")
    if len(places) > LISTED:
        said.append("...")
    return f" {'in ' if numbers is None else ''}{', '.join(said)}"
