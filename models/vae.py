"""Variational autoencoder: a row is made from a few latent numbers by a neural network.

    z[i] ~ Normal(0, I)
    x[i] ~ Bernoulli(decoder(z[i]))    or    Normal(c + s decoder(z[i]), s τ)

with the decoder a multilayer perceptron (softplus units) whose weights, and τ[j] for each column,
are fitted as points (Kingma and Welling, 2014, "Auto-encoding variational Bayes"). For the
Bernoulli likelihood the columns are divided by the top of their common range, so that they lie in
[0, 1]; for the Normal one c and s are the columns' means and standard deviations.
"""

from collections.abc import Mapping
from math import prod
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from pyro.distributions import constraints
from torch import Tensor

from elbowroom.data.tables import align_columns, numeric_columns, select_columns
from elbowroom.errors import DataError, OptionError
from elbowroom.models import ROWS, Model, Prepared, Training, register
from elbowroom.models._networks import perceptron
from elbowroom.models._options import Columns, Exclude


@dataclass(frozen=True)
class Options:
    """Options of `vae`."""

    latent: Annotated[int, Field(ge=1, description="number of latent dimensions")] = 2
    hidden: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...],
        Field(description="units of the decoder's hidden layers; the encoder's are the reverse"),
    ] = (200,)
    likelihood: Annotated[
        Literal["bernoulli", "normal"],
        Field(description="bernoulli for columns in one bounded range, such as pixels"),
    ] = "bernoulli"
    image_shape: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...] | None,
        Field(description="height,width of images whose pixels are the columns, if they are"),
    ] = None
    columns: Columns = None
    exclude: Exclude = ()


def vae(
    x: Tensor | None,
    centre: Tensor,
    spread: Tensor,
    rows: int,
    latent: int,
    hidden: tuple[int, ...],
    likelihood: str,
    batch_size: int | None = None,
) -> None:
    """The Pyro model.

    Args:
        x: The table; in [0, 1] for the Bernoulli likelihood, else in the user's units,
            (rows, columns). None draws it.
        centre: For the Normal likelihood, what the decoder's means are added to, (columns,).
        spread: For the Normal likelihood, what they are multiplied by, (columns,).
        rows: The number of rows.
        latent: Latent dimensions.
        hidden: Units of the decoder's hidden layers.
        likelihood: "bernoulli" or "normal".
        batch_size: Rows drawn for a minibatch, all of them by default.
    """
    columns = len(centre)
    if likelihood == "normal":
        noise = pyro.param(
            "decoder.noise", torch.full((columns,), 0.5), constraint=constraints.positive
        )
    with pyro.plate(ROWS, rows, subsample_size=batch_size):
        batch = None if x is None else pyro.subsample(x, event_dim=1)
        z = pyro.sample("z", dist.Normal(torch.zeros(latent), 1.0).to_event(1))
        decoded = perceptron("decoder", z, hidden, columns)  # (rows, columns)
        if likelihood == "bernoulli":
            # Pixels between 0 and 1 are taken as probabilities, as is the custom.
            emission = dist.Bernoulli(logits=decoded, validate_args=False)
        else:
            emission = dist.Normal(centre + spread * decoded, spread * noise)
        pyro.sample("x", emission.to_event(1), obs=batch)


def prepare(table: pd.DataFrame, options: Options, training: Training | None = None) -> Prepared:
    """A table as the model's arguments; see `elbowroom.models.Model.prepare`.

    Raises:
        DataError: If a column cannot be used, or a cell lies outside the Bernoulli range.
        OptionError: If the columns are not the pixels of the image shape.
    """
    source = table if training is None else training.table
    bernoulli = options.likelihood == "bernoulli"
    names = list(select_columns(source, options.columns, options.exclude).columns)
    # A pixel that never changes is common, and does a Bernoulli no harm.
    allow_constant = bernoulli or training is not None
    chosen = numeric_columns(align_columns(table, names), allow_constant=allow_constant)
    x = torch.tensor(np.ascontiguousarray(chosen))  # (rows, columns)
    if options.image_shape is not None and prod(options.image_shape) != x.shape[1]:
        raise OptionError(
            f"--image-shape {','.join(map(str, options.image_shape))} has "
            f"{prod(options.image_shape)} pixels, and there are {x.shape[1]} columns."
        )
    if training is not None:
        centre, spread = training.arguments["centre"], training.arguments["spread"]
    elif bernoulli:
        top = max(float(source.attrs.get("value_range", [0.0, float(x.max())])[1]), 1.0)
        centre, spread = torch.zeros(x.shape[1]), torch.full((x.shape[1],), top)
    else:
        centre, spread = x.mean(0), x.std(0)
    if bernoulli:
        x = x / spread.to(x)
        outside = ((x < 0) | (x > 1)).any(0)
        if outside.any():
            column = names[int(outside.nonzero()[0])]
            raise DataError(
                f"column '{column}' has cells outside [0, {float(spread[0]):g}], which the "
                "Bernoulli likelihood cannot take; give --likelihood normal."
            )
    return Prepared(
        arguments={
            "x": x,
            "centre": centre,
            "spread": spread,
            "rows": len(x),
            "latent": options.latent,
            "hidden": options.hidden,
            "likelihood": options.likelihood,
        },
        dims={
            "x": (ROWS, "column"),
            "centre": ("column",),
            "spread": ("column",),
            "z": (ROWS, "latent"),
        },
        coords={"column": names, "latent": list(range(options.latent))},
    )


def in_units(values: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    """Predicted cells on the user's scale: those of the Bernoulli likelihood lie in [0, 1]."""
    return values * arguments["spread"] if arguments["likelihood"] == "bernoulli" else values


register(
    Model(
        name="vae",
        function=vae,
        options=Options,
        prepare=prepare,
        observed="x",
        predicts="x",
        dataset="digits",
        in_units=in_units,
        suggested={
            "learning_rate": 5e-3,
            "batch_size": 128,
            "draws": 200,
            "dtype": "float32",
        },
    ),
    __name__,
)
