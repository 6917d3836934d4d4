"""A table as predictors and a response, for networks."""

import shlex
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import pandas as pd
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from elbowroom.data.columns import category_levels
from elbowroom.data.tables import align_columns, numeric_columns
from elbowroom.errors import DataError
from elbowroom.models import ROWS, Prepared, Training
from elbowroom.models._columns import (
    LISTED,
    MOST_CLASSES,
    cells,
    distinct,
    indicators,
    predictor_columns,
    response_column,
)
from elbowroom.models._options import Exclude, Layers
from elbowroom.options import Name, Scale

SCALING = ("centre", "spread", "response_centre", "response_spread")


@dataclass(frozen=True)
class NetworkOptions:
    """Options of the models in which a network of columns predicts one."""

    response: Annotated[
        Name | None, Field(description="column of the response; every other column is a predictor")
    ] = None
    columns: Annotated[
        tuple[Name, ...] | None, Field(description="columns of the predictors, all by default")
    ] = None
    exclude: Exclude = ()
    hidden: Annotated[
        Layers,
        Field(description="number of units in each hidden layer, such as 20,20"),
    ] = (20,)
    activation: Annotated[
        Literal["relu", "softplus", "tanh"],
        Field(
            description="activation of the hidden units: relu, softplus or tanh; with tanh the "
            "outputs are bounded far from the data"
        ),
    ] = "relu"
    prior_scale: Annotated[
        Scale,
        Field(
            description="prior sd of a bias; for a weight, --weight-prior may divide it by the "
            "square root of the layer's inputs",
        ),
    ] = 1.0
    weight_prior: Annotated[
        Literal["scaled", "unscaled"],
        Field(
            description="prior sd of a weight: scaled (the prior scale divided by the square root "
            "of the layer's inputs) or unscaled (the prior scale, so 1 by default)"
        ),
    ] = "scaled"

    @property
    def prior(self) -> tuple[float, bool]:
        """The prior sd of a bias, and whether that of a weight is divided by √inputs."""
        return self.prior_scale, self.weight_prior == "scaled"


def predictors_and_response(
    table: pd.DataFrame,
    options: NetworkOptions,
    training: Training | None,
    kind: Literal["normal", "categorical"] | None,
    model: str,
) -> Prepared:
    """A table's predictors and response; columns of text have an indicator for each value.

    What is made of text is said in `doubts`.

    Args:
        table: The rows.
        options: Which columns.
        training: What the model was fitted to, when the table has new rows.
        kind: "categorical" for a response of classes, "normal" for one of numbers; by default
            classes where the fitted column is not of numbers.
        model: The model's name, for messages.

    Returns:
        The arguments predictors (rows, predictors) and response (rows,) in the user's units or as
        class numbers, None where new rows do not have it; centre and spread (predictors,);
        response_centre and response_spread (); classes, how many there are, 0 for a number.

    Raises:
        DataError: If a column cannot be used; it is named.
        OptionError: If no response is named.
    """
    source = table if training is None else training.table
    hint = f"{model} needs to know what to predict; give --response COLUMN."
    response = response_column(source, options.response, hint)
    names = predictor_columns(source, response, options.columns, options.exclude)
    design, said = _design(table, source, names, new=training is not None)
    predictors = cells(design)  # (rows, predictors)
    levels = _levels(source[response], kind)
    if levels is not None and kind is None:
        said.append(
            f"The response '{response}' is not a number, so its {len(levels)} values are classes: "
            f"{_listed(levels)}."
        )
    outcome = None
    if response in table.columns and not (training and table[response].isna().all()):
        outcome = _outcome(table[response], levels, new=training is not None)
    scaling: dict[str, Any]
    if training is not None:
        scaling = {name: training.arguments[name] for name in SCALING}
    else:
        assert outcome is not None
        numbers = outcome if levels is None else torch.tensor([-1.0, 1.0])  # not scaled
        scaling = {
            "centre": predictors.mean(0),
            "spread": predictors.std(0),
            "response_centre": numbers.mean(),
            "response_spread": numbers.std(correction=1 if levels is None else 0),
        }
    return Prepared(
        arguments={
            "predictors": predictors, "response": outcome, **scaling,
            "classes": 0 if levels is None else len(levels),
        },
        dims={
            "predictors": (ROWS, "predictor"), "response": (ROWS,),
            "centre": ("predictor",), "spread": ("predictor",),
        },
        coords={"predictor": list(design.columns), "class": levels or []},
        columns={"response": response, "predictors": tuple(design.columns)},
        doubts=tuple(said),
    )  # fmt: skip


def _design(
    table: pd.DataFrame, source: pd.DataFrame, names: list[str], new: bool
) -> tuple[pd.DataFrame, list[str]]:
    """The predictors as numbers, in the order of the fitted table's columns, and what was made."""
    columns = align_columns(table, names)
    parts, said = [], []
    for name in names:
        levels = None if pd.api.types.is_numeric_dtype(source[name]) else _labels(source[name])
        if levels is None:  # numbers, or what is refused with the cells that are none
            parts.append(columns[[name]])
            continue
        found = indicators(columns[name], levels).numpy()
        labels = [f"{name}={level}" for level in levels]
        # All of them but the first: together they are one.
        parts.append(pd.DataFrame(found[:, 1:], columns=labels[1:], index=columns.index))
        said.append(
            f"Column '{name}' is text, and stands as an indicator for each of its values but the "
            f"first: {_listed(levels)}."
        )
    return numeric_columns(pd.concat(parts, axis=1), allow_constant=new), said


def _labels(column: pd.Series) -> list[Any] | None:
    """The labels of a predictor that is no column of numbers; None if some cells are numbers.

    Raises:
        DataError: If they are all alike, or as many as no column of labels has.
    """
    leave_out = f"leave it out (--exclude {shlex.quote(str(column.name))})."
    present = column.dropna()
    levels = sorted(distinct(column), key=str)
    if not levels:
        return None
    if len(levels) == 1:
        raise DataError(f"column '{column.name}' has the same label in every row; {leave_out}")
    categorical = isinstance(column.dtype, pd.CategoricalDtype)
    if not categorical and pd.to_numeric(present, errors="coerce").notna().any():
        return None
    if len(levels) > MOST_CLASSES or (len(levels) == len(present) and len(present) > 2):
        raise DataError(
            f"column '{column.name}' has {len(levels)} different labels in {len(present)} rows, "
            f"too many to learn from; {leave_out}"
        )
    return levels


def _listed(levels: Sequence[object]) -> str:
    more = ", …" if len(levels) > LISTED else ""
    return f"{', '.join(map(str, levels[:LISTED]))}{more}"


def _levels(
    column: pd.Series, kind: Literal["normal", "categorical"] | None
) -> list[object] | None:
    """The classes of a response, in order; None if it is a number."""
    number = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    if kind == "normal" or (kind is None and number):
        return None
    levels = distinct(column)
    if not levels:
        raise DataError(
            f"the response '{column.name}' has no values at all; fill it, or give another "
            "--response."
        )
    if kind is None and category_levels(column) is None and not pd.api.types.is_bool_dtype(column):
        numeric_columns(column.to_frame())  # which names the cells that are no numbers
    if len(levels) > MOST_CLASSES:
        raise DataError(
            f"the response '{column.name}' has {len(levels)} different values, too many for "
            "classes; make it a column of numbers, or give another --response."
        )
    if len(levels) < 2:
        raise DataError(
            f"the response '{column.name}' has the same class in every row; give another "
            "--response."
        )
    return sorted(levels) if number else sorted(levels, key=str)


def _outcome(column: pd.Series, levels: list[object] | None, new: bool) -> Tensor:
    """The response as numbers or class numbers, (rows,)."""
    if levels is not None:
        return indicators(column, levels).argmax(1)
    numbers = numeric_columns(column.to_frame(), allow_constant=new)
    return cells(numbers)[:, 0]
