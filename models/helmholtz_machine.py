"""Helmholtz machine: layers of binary latents above the data, each drawn given the layer above.

With L layers of binary units, from the top one h[L] down to the one next to the data, h[1], and σ
the logistic function, for each row

    h[L] ~ Bernoulli(σ(a[L]))
    h[l] ~ Bernoulli(σ(W[l] h[l+1] + a[l]))      l = L-1, ..., 1
    x    ~ Bernoulli(σ(W[0] h[1] + a[0]))

with weights and biases fitted as points (Dayan, Hinton, Neal and Zemel, 1995, "The Helmholtz
machine"; as a network, the sigmoid belief network of Neal, 1992, "Connectionist learning of belief
networks"). A draw of a binary unit has no derivative. The gradient is therefore a score function
(`score_function`, `vimco`) or not that of the ELBO (`wake_sleep`, `reweighted_wake_sleep`). Each
cell, divided by the maximum of its range, is the probability that it is drawn as 1, once or again
at each step.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from elbowroom.errors import OptionError
from elbowroom.models import ROWS, Model, Prepared, Recipe, Training, register, vae
from elbowroom.models._networks import perceptron
from elbowroom.models._options import Columns, Exclude, ImageShape, Layers
from elbowroom.models._recipes import pixels


@dataclass(frozen=True)
class Options:
    """Options of `helmholtz_machine`."""

    units: Annotated[
        Layers,
        Field(
            description="number of binary latents in each layer, beginning with the layer next to "
            "the data",
        ),
    ] = (30, 10)
    binarise: Annotated[
        Literal["once", "dynamic"],
        Field(description="draw each cell as 0 or 1: once, or dynamic (again at each step)"),
    ] = "once"
    image_shape: ImageShape = None
    columns: Columns = None
    exclude: Exclude = ()


def site(layer: int) -> str:
    """The name of a layer's latents; layer 1 is next to the data."""
    return f"h_{layer}"


def helmholtz_machine(
    x: Tensor | None,
    centre: Tensor,
    spread: Tensor,
    rows: int,
    options: Options,
    shape: tuple[int, ...],
    limits: tuple[int, int],
    shares: Tensor | None = None,
    batch_size: int | None = None,
) -> None:
    """The Pyro model.

    Args:
        x: Zero or one, (rows, columns); None draws it.
        centre: The mean of each column, which the recognition network subtracts, (columns,).
        spread: What each column was divided by, (columns,).
        rows: The number of rows.
        options: The layers.
        shape: Of the images, height first.
        limits: Of the cells, in the user's units.
        shares: The probabilities from which x is drawn again at each step, (rows, columns).
        batch_size: Rows drawn for a minibatch, all of them by default.
    """
    highest = len(options.units)
    with pyro.plate(ROWS, rows, subsample_size=batch_size):
        logits = pyro.param(f"generator.{highest}.bias", lambda: torch.zeros(options.units[-1]))
        for layer in range(highest, 0, -1):
            h = pyro.sample(site(layer), dist.Bernoulli(logits=logits).to_event(1))
            below = options.units[layer - 2] if layer > 1 else len(centre)
            logits = perceptron(f"generator.{layer - 1}", h, (), below)  # (rows, units below)
        seen = None if x is None else vae.seen(x, shares)
        pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=seen)


def prepare(table: pd.DataFrame, options: Options, training: Training | None = None) -> Prepared:
    """A table as the model's arguments; see `elbowroom.models.Model.prepare`.

    Raises:
        DataError: If a column cannot be used, or a cell lies outside of the range.
        OptionError: If the columns are not the pixels of the image shape, or a layer has more
            latents than the data columns.
    """
    as_pixels = vae.Options(
        latent=1, binarise=options.binarise, image_shape=options.image_shape,
        columns=options.columns, exclude=options.exclude,
    )  # fmt: skip
    pixels = vae.prepare(table, as_pixels, training)
    known = pixels.arguments
    columns = known["x"].shape[1]
    if max(options.units) > columns:
        raise OptionError(
            f"--units {','.join(map(str, options.units))}: a layer has more units than the "
            f"{columns} columns, so the latents would copy the columns; give at most {columns} "
            "units in a layer."
        )
    x, shares = known["x"], known["shares"]
    mean = (x if shares is None else shares).mean(0)
    units = {site(i): (ROWS, f"unit_{i}") for i in range(1, len(options.units) + 1)}
    return Prepared(
        arguments={
            "x": x, "centre": mean if training is None else training.arguments["centre"],
            "spread": known["spread"], "rows": known["rows"], "options": options,
            "shape": known["shape"], "limits": known["limits"], "shares": shares,
        },
        dims={
            **units, "x": (ROWS, "column"), "shares": (ROWS, "column"), "centre": ("column",),
            "spread": ("column",),
        },
        coords={"column": pixels.coords["column"]},
    )  # fmt: skip


def in_units(values: Tensor, arguments: Any) -> Tensor:
    """Predicted cells on the user's scale."""
    return values * arguments["spread"]


def picture(fit: Callable[..., Any]) -> Any:
    """What the units next to the data paint, and new digits."""
    from elbowroom.models._pictures import panels, sheet

    own = fit("helmholtz_machine", "digits", seed=1, epochs=150, schedule="cosine", draws=100,
                 learning_rate=0.03)  # fmt: skip
    pixels, paints = list(own.problem.prepared.coords["column"]), own.model_parameters
    weights = paints["generator.0.0.weight"].numpy().T  # (units, pixels)
    shares = 0.5 + 0.5 * np.clip(weights / 4, -1, 1)
    made = own.generate(60, seed=3)[pixels].to_numpy() / 16
    figure, (left, right) = panels(2, 9.0, 3.9)
    for ax, images, columns, title in (
        (left, shares, 6, "weights of the 30 units of the layer $h_1$"),
        (right, made, 10, "new digits, ink or paper"),
    ):
        ax.imshow(sheet(images, columns), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        ax.set_title(title, fontsize=10)
        ax.spines[:].set_visible(False)
    return figure


register(
    Model(
        name="helmholtz_machine",
        function=helmholtz_machine,
        options=Options,
        prepare=prepare,
        observed="x",
        predicts="x",
        dataset="digits",
        in_units=in_units,
        images=vae.images,
        suggested={
            "learning_rate": 3e-3, "batch_size": 100, "draws": 200, "dtype": "float32",
            "particles": 10, "time": 3600.0,
        },
        verbs=("generate", "score", "embed", "reconstruct", "impute"),
        continuous=False,
        recipe=Recipe(lambda: pixels().round(), {"units": (2, 1), "batch_size": 10}),
        picture=picture,
    ),
    __name__,
)  # fmt: skip
