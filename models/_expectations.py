"""What a regression expects of rows, and the columns that this follows."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from elbowroom.models import Effects
from elbowroom.models._distributions import Weighted
from elbowroom.models._families import FAMILIES, Family
from elbowroom.models._formula import Design, levels_for
from elbowroom.models._formula_text import columns_named


def effects_of(
    fitted: pd.DataFrame, parameter: str | None, design: Design, arguments: Mapping[str, Any]
) -> Effects:
    """What is expected of a row, and the columns that it follows, those of parameters included."""
    known, name = design.effects, design.name
    if design.form in ("trials", "censored", "truncated"):  # functions of a column and others
        name = name.partition("(")[2].partition(",")[0].strip() or name
    more = columns_named([parameter or ""], fitted)
    columns = {each: levels_for(fitted[each], None) for each in more}
    expectation = _expectation(FAMILIES[arguments["family"]], design, name, arguments["quantile"])
    if design.form == "truncated":
        expectation += ", of rows within and beyond the limits"
    return replace(
        known, columns={**columns, **known.columns}, response=expectation, name=name,
        groups=tuple(each for each in known.groups if each not in columns),
    )  # fmt: skip


def _expectation(family: Family, design: Design, name: str, quantile: float) -> str:
    """What is expected of a row, in words."""
    if family.of_probability:
        return f"probability that {name} is {design.level or 1}"
    if family.several:
        return f"probability of each {'level' if family.levels else 'class'} of {name}"
    if family.takes == "trials":
        return f"probability of {name}"
    if family.name == "quantile":
        return f"{quantile:g} quantile of {name}"
    return f"mean of {name}"


def expected(distribution: Any, linear_predictor: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    """What is expected of rows; see `elbowroom.models.Model.expected`.

    Of `quantile` it is the quantile, of `ordinal` and `categorical` the
    probability of each level, else the mean.
    Where the link is the identity this is the linear predictor, also of a `student_t` so wide that
    it has no mean.
    """
    family = FAMILIES[arguments["family"]]
    if family.several:
        return (distribution.base if isinstance(distribution, Weighted) else distribution).probs
    if arguments["link"] == "identity" and not family.logarithm:
        return linear_predictor
    return distribution.mean


def of_population(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Rows without groups, each of one trial; see `elbowroom.models.Model.of_population`."""
    found = {**arguments, "groups": (), "group_codes": None, "group_values": None}
    if arguments.get("trials") is not None:
        found["trials"] = torch.ones_like(arguments["trials"])
    return found
