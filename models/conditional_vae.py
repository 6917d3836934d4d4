"""Conditional variational autoencoder: rows made from latents and known columns, such as a label.

    z[i] ~ Normal(0, I)
    x[i] ~ likelihood(decoder(z[i], c[i]))

with c what is known about a row, such as the label of an image, which the encoder sees too (Kingma,
Mohamed, Rezende and Welling, 2014, "Semi-supervised learning with deep generative models"; Sohn,
Lee and Yan, 2015, "Learning structured output representation using deep conditional generative
models"). Columns of text, and of whole numbers with 20 different values or fewer, are labels, each
of which has an indicator; others are numbers, which are standardised. The rest is as in `vae`.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from elbowroom.data.tables import align_columns, numeric_columns
from elbowroom.errors import OptionError
from elbowroom.models import ROWS, Model, Prepared, Recipe, Training, register
from elbowroom.models import vae as unconditional
from elbowroom.models._columns import column_of_role, distinct, indicators
from elbowroom.models._recipes import pixels
from elbowroom.options import Name

MOST_LABELS = 20
"""Different whole numbers up to which a column counts as labels."""


@dataclass(frozen=True)
class Options(unconditional.Options):
    """Options of `conditional_vae`."""

    condition: Annotated[
        tuple[Name, ...] | None,
        Field(description="known columns; by default the label of a bundled table"),
    ] = None


def prepare(table: pd.DataFrame, options: Options, training: Training | None = None) -> Prepared:
    """A table as the model's arguments; see `elbowroom.models.Model.prepare`.

    Raises:
        DataError: If a column cannot be used, or a label was not there in training.
        OptionError: If no column is known, or one is both known and among the columns to make.
    """
    source = table if training is None else training.table
    names = options.condition
    if names is None:
        label = column_of_role(source, "label")
        if label is None:
            raise OptionError("name the known columns with --condition COLUMN.")
        names = (label,)
    both = [name for name in names if name in (options.columns or ())]
    if both:
        raise OptionError(f"'{both[0]}' is in --condition; leave it out of --columns.")
    known = align_columns(table, names)
    parts, labels = [], []
    for name in names:
        values, own = _known(known[name], source[name])
        parts.append(values)
        labels += own
    others = options
    if options.columns is None:
        roles = source.attrs.get("roles", {})
        left = [name for name in names if roles.get(name, "feature") == "feature"]
        others = replace(options, exclude=(*options.exclude, *left))
    prepared = unconditional.prepare(table, others, training)
    return replace(
        prepared,
        arguments={
            **prepared.arguments, "options": options, "condition": torch.cat(parts, 1),
        },
        dims={**prepared.dims, "condition": (ROWS, "known")},
        coords={**prepared.coords, "known": labels},
    )  # fmt: skip


def _known(column: pd.Series, fitted: pd.Series) -> tuple[Tensor, list[str]]:
    """A column as numbers for the networks, (rows, numbers), and what each is."""
    name = column.name
    levels = _levels(fitted)
    if levels is None:
        numbers = numeric_columns(column.to_frame(), allow_constant=True).to_numpy()
        reference = numeric_columns(fitted.to_frame()).to_numpy()
        spread = reference.std() or 1.0
        return torch.tensor((numbers - reference.mean()) / spread), [str(name)]
    return indicators(column, levels), [f"{name}={level}" for level in levels]


def _levels(column: pd.Series) -> list[object] | None:
    """The labels of a column, in order; None for one of numbers."""
    values = distinct(column)
    if not pd.api.types.is_numeric_dtype(column):
        return sorted(values, key=str)
    whole = np.all(np.asarray(values, dtype=float) % 1 == 0)
    return sorted(values) if whole and len(values) <= MOST_LABELS else None


def picture(fit: Callable[..., Any]) -> Any:
    """A row of new images for each label; the same latents stand in each column."""
    from elbowroom.models._pictures import panels, sheet

    own = fit("conditional_vae", "digits", latent=2, seed=1, epochs=100)
    pixels, count = list(own.problem.prepared.coords["column"]), 16
    rows = [
        own.generate(count, given={"digit": digit}, expected=True, seed=3)[pixels].to_numpy() / 16
        for digit in range(10)
    ]
    figure, ax = panels(width=7.2, height=4.8)
    ax.imshow(sheet(np.concatenate(rows), count), cmap="gray", vmin=0, vmax=1)
    ax.set_yticks([9 * k + 3.5 for k in range(10)], [str(k) for k in range(10)])
    ax.set_xticks([9 * k + 3.5 for k in range(0, count, 3)], [str(k + 1) for k in range(0, 16, 3)])
    ax.set(xlabel="new image: one draw of the latents a column", ylabel="the label that is given")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return figure


register(
    Model(
        name="conditional_vae",
        function=unconditional.vae,
        options=Options,
        prepare=prepare,
        observed="x",
        predicts="x",
        dataset="digits",
        in_units=unconditional.in_units,
        images=unconditional.images,
        suggested=unconditional.SUGGESTED,
        verbs=unconditional.VERBS,
        internal=("dequantisation",),
        recipe=Recipe(
            lambda: pixels().assign(kind=["u", "v"] * 15),
            {"latent": 2, "hidden": (4,), "batch_size": 10, "condition": "kind"},
            local_latents=True,
        ),
        picture=picture,
    ),
    __name__,
)
