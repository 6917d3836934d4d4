"""Variational autoencoder: a neural network makes a row from a few latent numbers.

    z[i] ~ Normal(0, I)
    x[i] ~ likelihood(decoder(z[i]))

with the decoder a network whose weights are fitted as points (Kingma and Welling, 2014,
"Auto-encoding variational Bayes"). The likelihoods:

    bernoulli             Bernoulli(logits = decoder(z)), of pixels divided by their maximum
    continuous_bernoulli  the same with the constant that makes it a density of shares (Loaiza-Ganem
                          and Cunningham, 2019, "The continuous Bernoulli")
    normal                Normal(c + s decoder(z), s τ)
    discretised_logistic  Logistic(c + s decoder(z), s τ), rounded to whole numbers (Kingma et al.,
                          2016, "Improved variational inference with inverse autoregressive flow")

with one τ for each column. c and s are the columns' means and standard deviations, or for whole
numbers the middle and half the width of their range. `--binarise` draws each pixel as 0 or 1, once
or again at each step. `--dequantise` adds noise between zero and one to whole numbers under the
normal likelihood; the ELBO is then a bound on their log probability.
"""

from collections.abc import Callable, Mapping
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

from elbowroom.data.bundled import load_dataset
from elbowroom.data.tables import align_columns, numeric_columns, select_columns
from elbowroom.errors import DataError, OptionError
from elbowroom.models import ROWS, Model, Prepared, Recipe, Training, register
from elbowroom.models._columns import cells
from elbowroom.models._fresh import binarised
from elbowroom.models._likelihoods import Dequantised, DiscretisedLogistic
from elbowroom.models._networks import convolutional_decoder, perceptron
from elbowroom.models._options import Columns, Exclude, ImageShape, Layers
from elbowroom.models._recipes import pixels
from elbowroom.options import Width

LARGEST = 1e37
"""A tenth of the largest number in single precision."""
BINARISED = 0x0B1A_5ED0
"""Seed of the pixels that are drawn once."""


@dataclass(frozen=True)
class Options:
    """Options of `vae`."""

    latent: Annotated[Width, Field(description="number of latent dimensions")] = 2
    hidden: Annotated[
        Layers,
        Field(
            description="number of units in each hidden layer of the decoder, or channels of its "
            "convolutions; the encoder has them in reverse order",
        ),
    ] = (200,)
    network: Annotated[
        Literal["perceptron", "convolutional"],
        Field(description="perceptron, or convolutional for images"),
    ] = "perceptron"
    activation: Annotated[
        Literal["softplus", "tanh", "relu"],
        Field(description="activation of the hidden units: softplus, tanh or relu"),
    ] = "softplus"
    likelihood: Annotated[
        Literal["bernoulli", "continuous_bernoulli", "normal", "discretised_logistic"],
        Field(
            description="bernoulli or continuous_bernoulli for columns in one bounded range, such "
            "as pixels; normal; or discretised_logistic for whole numbers"
        ),
    ] = "bernoulli"
    binarise: Annotated[
        Literal["none", "once", "dynamic"],
        Field(description="draw each pixel as 0 or 1: none, once, or dynamic (again at each step)"),
    ] = "none"
    dequantise: Annotated[
        Literal["none", "uniform", "learned"],
        Field(
            description="noise added to whole numbers under --likelihood normal: none, uniform or "
            "learned"
        ),
    ] = "none"
    image_shape: ImageShape = None
    columns: Columns = None
    exclude: Exclude = ()

    def __post_init__(self) -> None:
        if self.binarise != "none" and self.likelihood != "bernoulli":
            raise OptionError(
                f"--binarise {self.binarise} needs --likelihood bernoulli, and --likelihood is "
                f"{self.likelihood}; change one of them."
            )
        if self.dequantise != "none" and self.likelihood != "normal":
            raise OptionError(
                f"--dequantise {self.dequantise} needs --likelihood normal, and --likelihood is "
                f"{self.likelihood}; change one of them."
            )


def vae(
    x: Tensor | None,
    centre: Tensor,
    spread: Tensor,
    rows: int,
    options: Options,
    shape: tuple[int, ...],
    limits: tuple[int, int],
    shares: Tensor | None = None,
    condition: Tensor | None = None,
    batch_size: int | None = None,
) -> None:
    """The Pyro model.

    Args:
        x: The table, (rows, columns): shares of the top for the Bernoulli likelihoods, else in the
            user's units. None draws it.
        centre: What is subtracted from each column for the networks, (columns,).
        spread: What each column is divided by, (columns,).
        rows: The number of rows.
        options: The sizes of the networks, and the likelihood.
        shape: Of the images, height first.
        limits: The lowest and the highest of the whole numbers in x.
        shares: The probabilities from which x is drawn again at each step, (rows, columns).
        condition: What is known of each row, (rows, conditions).
        batch_size: Rows drawn for a minibatch, all of them by default.
    """
    columns = len(centre)
    noise = None
    if options.likelihood in ("normal", "discretised_logistic"):
        noise = pyro.param(
            "decoder.noise", torch.full((columns,), 0.5), constraint=constraints.positive
        )
    with pyro.plate(ROWS, rows, subsample_size=batch_size):
        z = pyro.sample("z", dist.Normal(torch.zeros(options.latent), 1.0).to_event(1))
        if condition is not None:
            z = torch.cat([z, pyro.subsample(condition, event_dim=1)], -1)
        decoded = decode(z, columns, options, shape)  # (rows, columns)
        emission = _emission(decoded, centre, spread, noise, options, limits)
        if options.dequantise != "none":
            flat = dist.Uniform(torch.zeros(columns), 1.0).to_event(1)
            emission = Dequantised(emission, pyro.sample("dequantisation", flat))
        pyro.sample("x", emission.to_event(1), obs=None if x is None else seen(x, shares))


def decode(z: Tensor, columns: int, options: Options, shape: tuple[int, ...]) -> Tensor:
    """The decoder's output for latents and known columns: (..., columns)."""
    if options.network == "convolutional":
        return convolutional_decoder("decoder", z, shape, options.hidden, options.activation)
    return perceptron("decoder", z, options.hidden, columns, options.activation)


def seen(x: Tensor, shares: Tensor | None) -> Tensor:
    """The rows of a minibatch; drawn again from their probabilities if they have some."""
    batch = pyro.subsample(x, event_dim=1)
    if shares is None:
        return batch
    return binarised(batch, pyro.subsample(shares, event_dim=1), name="x")


def _emission(
    decoded: Tensor,
    centre: Tensor,
    spread: Tensor,
    noise: Tensor | None,
    options: Options,
    limits: tuple[int, int],
) -> Any:
    """The likelihood, one number a column."""
    if noise is None:
        if options.likelihood == "continuous_bernoulli":
            return dist.ContinuousBernoulli(logits=decoded)
        # Pixels between 0 and 1 are taken as probabilities, as is the custom.
        return dist.Bernoulli(logits=decoded, validate_args=False)
    location, scale = centre + spread * decoded, spread * noise
    if options.likelihood == "discretised_logistic":
        return DiscretisedLogistic(location, scale, *limits)
    return dist.Normal(location, scale)


def prepare(table: pd.DataFrame, options: Options, training: Training | None = None) -> Prepared:
    """A table as the model's arguments; see `elbowroom.models.Model.prepare`.

    Raises:
        DataError: If a column cannot be used, or a cell lies outside the likelihood's range.
        OptionError: If the columns are not the pixels of the image shape, or there are more latent
            dimensions than columns.
    """
    source = table if training is None else training.table
    pixels = options.likelihood in ("bernoulli", "continuous_bernoulli")
    whole = options.likelihood == "discretised_logistic" or options.dequantise != "none"
    used = select_columns(source, options.columns, options.exclude)
    names = [str(name) for name in used.columns]
    shape = _image_shape(used, options)
    if options.latent > len(names):
        raise OptionError(
            f"--latent {options.latent} is more than the {len(names)} columns, which the latents "
            f"would copy; give at most {len(names)}."
        )
    # A pixel that never changes is common, and does no harm where the range is given.
    allow_constant = pixels or whole or training is not None
    chosen = numeric_columns(align_columns(table, names), allow_constant=allow_constant)
    x = cells(chosen)  # (rows, columns)
    size = max(float(x.max()), -float(x.min())) if x.numel() else 0.0
    if size > LARGEST:
        raise DataError(
            f"the columns have numbers of size {size:g}, and networks compute with numbers up to "
            f"{LARGEST:g}: give them in other units."
        )
    if training is not None:
        known = training.arguments
        centre, spread, limits = known["centre"], known["spread"], known["limits"]
    elif pixels or whole:
        low, high = source.attrs.get("value_range", [min(0.0, float(x.min())), float(x.max())])
        limits = (int(np.floor(low)), max(int(np.ceil(high)), 1))
        middle, half = sum(limits) / 2, (limits[1] - limits[0]) / 2
        centre = torch.full((x.shape[1],), 0.0 if pixels else middle)
        spread = torch.full((x.shape[1],), float(limits[1]) if pixels else half)
    else:
        centre, spread, limits = x.mean(0), x.std(0), (0, 0)
    if pixels:
        _check_range(x, names, (0, limits[1]), options)
        x = x / spread.to(x)
    elif whole:
        _check_range(x, names, limits, options)
        _check_whole(x, names, options)
    shares = None
    if options.binarise != "none":
        generator = torch.Generator().manual_seed(BINARISED)
        shares = x if options.binarise == "dynamic" else None
        x = (torch.rand(x.shape, generator=generator, dtype=x.dtype) < x).to(x)
    return Prepared(
        arguments={
            "x": x, "centre": centre, "spread": spread, "rows": len(x), "options": options,
            "shape": shape, "limits": limits, "shares": shares,
        },
        dims={
            "x": (ROWS, "column"), "shares": (ROWS, "column"),
            "centre": ("column",), "spread": ("column",),
            "z": (ROWS, "latent"), "dequantisation": (ROWS, "column"),
        },
        coords={"column": names, "latent": list(range(options.latent))},
        columns={} if shape or pixels else {"x": tuple(names)},
    )  # fmt: skip


def _image_shape(used: pd.DataFrame, options: Options) -> tuple[int, ...]:
    """As given, or as stored with the table; () for columns that are not pixels."""
    shape = options.image_shape or tuple(used.attrs.get("image_shape", ()))
    if shape and prod(shape) != used.shape[1]:
        raise OptionError(
            f"--image-shape {','.join(map(str, shape))} has {prod(shape)} pixels, but there are "
            f"{used.shape[1]} columns; give a shape with {used.shape[1]} pixels, or choose the "
            "pixels with --columns."
        )
    if options.network == "convolutional" and not shape:
        raise OptionError("--network convolutional is for images; give their --image-shape.")
    return shape


def _check_range(x: Tensor, names: list[str], limits: tuple[int, int], options: Options) -> None:
    outside = ((x < limits[0]) | (x > limits[1])).any(0)
    if outside.any():
        column = int(outside.nonzero()[0])
        row = int(((x[:, column] < limits[0]) | (x[:, column] > limits[1])).nonzero()[0])
        raise DataError(
            f"column '{names[column]}', row {row + 1}: {float(x[row, column]):g} is outside "
            f"[{limits[0]}, {limits[1]}], the range of --likelihood {options.likelihood}; "
            "give --likelihood normal, or fix the cell."
        )


def _check_whole(x: Tensor, names: list[str], options: Options) -> None:
    broken = x != x.round()
    if broken.any():
        row, column = broken.nonzero()[0].tolist()
        why = (
            f"--dequantise {options.dequantise}"
            if options.dequantise != "none"
            else f"--likelihood {options.likelihood}"
        )
        raise DataError(
            f"column '{names[column]}', row {row + 1}: {float(x[row, column]):g} is not a whole "
            f"number, but {why} needs whole numbers; give --likelihood normal without "
            "--dequantise."
        )


def in_units(values: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    """Predicted cells on the user's scale: those of the Bernoulli likelihoods are in [0, 1]."""
    pixels = "bernoulli" in arguments["options"].likelihood
    return values * arguments["spread"] if pixels else values


def images(arguments: Mapping[str, Any]) -> tuple[tuple[int, ...], float] | None:
    """The shape of the images, and their highest pixel, where the columns are pixels."""
    shape = arguments["shape"]
    return (shape, arguments["limits"][1]) if shape else None


VERBS = ("generate", "score", "embed", "reconstruct", "interpolate", "manifold", "impute")
SUGGESTED = {
    "learning_rate": 5e-3, "batch_size": 128, "draws": 200, "dtype": "float32", "time": 3600.0,
}  # fmt: skip

TEN = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8c6d1f",
       "#7a7a7a", "#5a3e9c")  # fmt: skip
"""Colours of digits."""


def picture(fit: Callable[..., Any]) -> Any:
    """The digits that a decoder makes of two latents, and where the rows lie among them."""
    from scipy import stats

    from elbowroom.models._pictures import panels, sheet

    table = load_dataset("digits")
    own = fit("vae", table, latent=2, seed=1, epochs=150)
    columns, size = own.problem.prepared.coords["column"], 15
    figure, (left, right) = panels(2, 9.6, 4.8)
    grid = own.manifold(size)
    made = grid[list(columns)].to_numpy() / 16
    left.imshow(sheet(made, size), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    quantiles = (0, 3, 7, 11, 14)
    labels = [f"{stats.norm.ppf((k + 0.5) / size):.1f}" for k in quantiles]
    left.set_xticks([9 * k + 3.5 for k in quantiles], labels)
    left.set_yticks([9 * k + 3.5 for k in quantiles], labels[::-1])
    left.set(xlabel="z[0], at even quantiles of its prior", ylabel="z[1]")
    left.set_title("what the decoder makes of the latents", fontsize=10)
    placed = own.embed(draws=50)
    for digit in range(10):
        here = (table["digit"] == digit).to_numpy()
        right.scatter(
            placed["z[0].mean"][here], placed["z[1].mean"][here], s=22, lw=0, alpha=0.8,
            marker=f"${digit}$", color=TEN[digit],
        )  # fmt: skip
    right.set(xlabel="z[0], posterior mean", ylabel="z[1], posterior mean")
    right.set_title("where the rows lie, each written as its digit", fontsize=10)
    return figure


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
        images=images,
        suggested=SUGGESTED,
        verbs=VERBS,
        internal=("dequantisation",),
        recipe=Recipe(pixels, {"latent": 2, "hidden": (4,), "batch_size": 10}, local_latents=True),
        picture=picture,
    ),
    __name__,
)
