"""Factor analysis and probabilistic PCA: a row is a linear function of a few latents, plus noise.

    z[i] ~ Normal(0, I)
    x[i] ~ Normal(c + s (mean + loadings z[i]), s noise)

with c and s the columns' means and standard deviations; mean, loadings and noise are points, at
their maximum likelihood. With `--noise separate` each column has its own noise, which is factor
analysis; with `--noise shared` all have the same, which is probabilistic PCA (Tipping and Bishop,
1999, "Probabilistic principal component analysis"): its loadings span the first principal
components. The data cannot tell rotations of the latents apart. The rotation that is reported lets
the first column load on the first latent only, the second column on the first two, and so on
(Geweke and Zhou, 1996, "Measuring the pricing error of the arbitrage pricing theory").
`--scale none` divides all columns by one common factor, for columns in the same unit.
"""

from collections.abc import Callable, Mapping
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
from elbowroom.data.tables import align_columns, numeric_columns
from elbowroom.errors import OptionError
from elbowroom.models import ROWS, Model, Prepared, Recipe, Training, register
from elbowroom.models._columns import cells, varying
from elbowroom.models._options import Columns, Exclude
from elbowroom.models._recipes import pixels


@dataclass(frozen=True)
class Options:
    """Options of `factor_analysis`."""

    latent: Annotated[int, Field(ge=1, description="number of latent dimensions")] = 2
    noise: Annotated[
        Literal["shared", "separate"],
        Field(
            description="noise of the columns: shared (probabilistic PCA) or separate (factor "
            "analysis)"
        ),
    ] = "shared"
    scale: Annotated[
        Literal["columns", "none"],
        Field(
            description="columns divides each column by its standard deviation; none divides all "
            "columns by one factor"
        ),
    ] = "columns"
    columns: Columns = None
    exclude: Exclude = ()


def points(columns: int, latent: int, shared: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The mean (columns,), loadings (columns, latent) and noise (columns,), of scaled columns."""
    mean = pyro.param("mean", lambda: torch.zeros(columns))
    loadings = pyro.param("loadings", lambda: _initial(columns, latent))
    noise = pyro.param(
        "noise", lambda: torch.full((1 if shared else columns,), 0.7),
        constraint=constraints.positive,
    )  # fmt: skip
    return mean, loadings.tril(), noise.expand(columns)


def _initial(columns: int, latent: int) -> Tensor:
    """Loadings at random, those on the diagonal positive: of the latents' signs, one choice."""
    drawn = 0.3 * torch.randn(columns, latent).tril()
    return drawn * torch.where(drawn.diagonal() < 0, -1.0, 1.0)


def posterior(x: Tensor, mean: Tensor, loadings: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The latents' posterior: means (rows, latent) and the covariance that all rows share.

    Args:
        x: Scaled rows, (rows, columns).
        mean: (columns,).
        loadings: (columns, latent).
        noise: (columns,).

    Example:
        >>> half = torch.tensor([[1.0]])
        >>> posterior(torch.tensor([[2.0]]), torch.zeros(1), half, torch.ones(1))
        (tensor([[1.]]), tensor([[0.5000]]))
    """
    weighed = loadings / noise.square().unsqueeze(-1)  # (columns, latent)
    covariance = torch.linalg.inv(torch.eye(loadings.shape[1]).to(x) + loadings.T @ weighed)
    return (x - mean) @ weighed @ covariance, covariance


def factor_analysis(
    x: Tensor | None,
    centre: Tensor,
    spread: Tensor,
    rows: int,
    latent: int,
    shared: bool,
    batch_size: int | None = None,
) -> None:
    """The Pyro model.

    Args:
        x: The table in the user's units, (rows, columns); None draws it.
        centre: What is subtracted from each column, (columns,).
        spread: What each column is divided by, (columns,).
        rows: The number of rows.
        latent: Latent dimensions.
        shared: Whether all columns have the same noise.
        batch_size: Rows drawn for a minibatch, all of them by default.
    """
    mean, loadings, noise = points(len(centre), latent, shared)
    with pyro.plate(ROWS, rows, subsample_size=batch_size):
        z = pyro.sample("z", dist.Normal(torch.zeros(latent), 1.0).to_event(1))
        location = centre + spread * (mean + z @ loadings.T)  # (rows, columns)
        seen = None if x is None else pyro.subsample(x, event_dim=1)
        pyro.sample("x", dist.Normal(location, spread * noise).to_event(1), obs=seen)


def normals(
    arguments: Mapping[str, Any], sites: Mapping[str, Tensor], fitted: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distribution of a row at the fitted points: one Normal, in the user's units.

    Returns:
        Weights (1,), means (1, columns) and covariances (1, columns, columns).
    """
    centre, spread = (arguments[name].double().cpu().numpy() for name in ("centre", "spread"))
    loadings = spread[:, None] * np.tril(fitted["loadings"])  # (columns, latent)
    noise = np.broadcast_to(fitted["noise"], centre.shape)
    covariance = loadings @ loadings.T + np.diag(np.square(spread * noise))
    return np.ones(1), (centre + spread * fitted["mean"])[None], covariance[None]


def prepare(table: pd.DataFrame, options: Options, training: Training | None = None) -> Prepared:
    """A table as the model's arguments; see `elbowroom.models.Model.prepare`.

    Raises:
        DataError: If a column cannot be used.
        OptionError: If there are as many latent dimensions as columns.
    """
    source = table if training is None else training.table
    used, doubts = varying(source, options.columns, options.exclude)
    names = list(used.columns)
    most = _most_latents(len(names), options.noise == "shared")
    if options.latent > most:
        fewer = f"--latent {most} or less, or " if most else ""
        raise OptionError(
            f"--latent {options.latent}: with --noise {options.noise}, {len(names)} columns can "
            f"determine at most {most} latent dimension{'' if most == 1 else 's'}; give {fewer}"
            "more columns."
        )
    chosen = numeric_columns(align_columns(table, names), allow_constant=training is not None)
    x = cells(chosen)  # (rows, columns)
    if training is not None:
        centre, spread = training.arguments["centre"], training.arguments["spread"]
    else:
        centre, spread = x.mean(0), x.std(0)
        if options.scale == "none":
            spread = spread.square().mean().sqrt().expand(len(names)).clone()
    return Prepared(
        arguments={
            "x": x, "centre": centre, "spread": spread, "rows": len(x),
            "latent": options.latent, "shared": options.noise == "shared",
        },
        dims={
            "x": (ROWS, "column"), "centre": ("column",), "spread": ("column",),
            "z": (ROWS, "latent"), "mean": ("column",), "loadings": ("column", "latent"),
            "noise": () if options.noise == "shared" else ("column",),
        },
        coords={"column": names, "latent": list(range(options.latent))},
        columns={"x": tuple(names)},
        doubts=doubts,
    )  # fmt: skip


def _most_latents(columns: int, shared: bool) -> int:
    """The most whose loadings and noise are not more numbers than the covariance has.

    Example:
        >>> _most_latents(4, shared=True), _most_latents(4, shared=False), _most_latents(6, False)
        (3, 1, 3)
    """
    if shared:
        return columns - 1
    return max(k for k in range(columns) if (columns - k) ** 2 >= columns + k)


REACH = 2.9
"""How long the arrows of loadings are, in the picture."""
SHIFTS = {"petal_width": (-3, 6), "petal_length": (-3, -6), "sepal_length": (-3, 0)}
"""Of their names, in points."""


def picture(fit: Callable[..., Any]) -> Any:
    """Where the rows of iris lie among two latents, and what the latents do to each column."""
    from elbowroom.models._pictures import BLUE, GREEN, GREY, MARKERS, ORANGE, ellipse, panels

    table = load_dataset("iris")
    own = fit("factor_analysis", table, seed=1)
    placed, loadings = own.embed(), np.tril(own.point_parameters["loadings"])
    figure, ax = panels(width=7.2, height=4.8)
    for k, (species, colour) in enumerate(
        zip(sorted(table["species"].unique()), (BLUE, ORANGE, GREEN), strict=True)
    ):
        here = (table["species"] == species).to_numpy()
        ax.scatter(
            placed["z[0].mean"][here], placed["z[1].mean"][here], s=20, marker=MARKERS[k],
            color=colour, alpha=0.75, lw=0, label=species,
        )  # fmt: skip
    # All rows have the same posterior covariance.
    noise = own.point_parameters["noise"]
    precision = np.eye(2) + loadings.T @ (loadings / np.square(noise)[:, None])
    at = np.array([placed["z[0].mean"][0], placed["z[1].mean"][0]])
    ax.add_patch(
        ellipse(
            at, np.linalg.inv(precision), 2.146, fill=False, ec="black", lw=1.2,
            label="90% region of row 1",
        )
    )  # fmt: skip
    for name, (one, two) in zip(own.problem.prepared.coords["column"], loadings, strict=True):
        ends = REACH * one, REACH * two
        ax.annotate("", ends, (0, 0), arrowprops={"arrowstyle": "->", "color": GREY, "lw": 1.4})
        across = one if abs(one) > abs(two) else 0.0
        ax.annotate(
            name, ends, SHIFTS.get(name, (0, 0)), textcoords="offset points", fontsize=9,
            ha=("right", "center", "left")[int(np.sign(across)) + 1],
            va="center" if across else "bottom",
        )  # fmt: skip
    ax.plot([], [], color=GREY, lw=1.4, label=f"loadings of a column, times {REACH:g}")
    ax.set(xlabel="first latent, z[0]", ylabel="second latent, z[1]")
    ax.set(xlim=(-4.2, 2.4), ylim=(-3.2, 3.4))
    figure.legend(frameon=False, fontsize=9, loc="outside right center")
    return figure


register(
    Model(
        name="factor_analysis",
        function=factor_analysis,
        options=Options,
        prepare=prepare,
        observed="x",
        predicts="x",
        dataset="iris",
        suggested={"held_out": 0.0},
        verbs=("generate", "score", "embed", "reconstruct", "interpolate", "impute"),
        normals=normals,
        recipe=Recipe(pixels, {"latent": 1, "noise": "separate"}, local_latents=True),
        picture=picture,
    ),
    __name__,
)
