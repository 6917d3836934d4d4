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

With `--priors conjugate` there is a posterior of the points as well, and each update of coordinate
ascent has a closed form:

    mean[j] ~ Normal(0, 2)
    loadings[j,k] ~ Normal(0, 2)    for k <= j, else 0
    1 / noise[j]² ~ Gamma(0.5, 0.01)

The sign of each latent says nothing; in every draw its loadings are those that agree with their
posterior mean.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass as plain_dataclass
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
from elbowroom.options import Width


@plain_dataclass(frozen=True)
class ConjugatePriors:
    """The conjugate priors, of scaled columns."""

    width: float = 2.0
    """The standard deviation of a mean and of a loading: the columns' own are one."""
    shape: float = 0.5
    """Of the Gamma of a precision, which so counts for one row."""
    rate: float = 0.01
    """The square of that row's noise, by half: small, since the noise may be."""


CONJUGATE = ConjugatePriors()


@dataclass(frozen=True)
class Options:
    """Options of `factor_analysis`."""

    latent: Annotated[Width, Field(description="number of latent dimensions")] = 2
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
    priors: Annotated[
        Literal["none", "conjugate"],
        Field(
            description="priors of mean, loadings and noise: none (they are points), or conjugate, "
            "whose updates have a closed form (--engine coordinate_ascent)"
        ),
    ] = "none"
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


def sampled(columns: int, latent: int, shared: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The same, drawn from their conjugate priors."""
    mean = pyro.sample(
        "mean", dist.Normal(torch.zeros(columns), CONJUGATE.width).to_event(1)
    )  # (columns,)
    count = len(below(columns, latent)[0])
    free = pyro.sample(
        "free_loadings", dist.Normal(torch.zeros(count), CONJUGATE.width).to_event(1)
    )  # (loadings that are not zero,)
    size = torch.full((1 if shared else columns,), CONJUGATE.shape)
    precision = pyro.sample("noise_precision", dist.Gamma(size, CONJUGATE.rate).to_event(1))
    loadings = pyro.deterministic("loadings", filled(free, columns, latent))
    noise = precision.rsqrt()
    pyro.deterministic("noise", noise[..., 0] if shared else noise)
    return mean, loadings, noise.expand(columns)


def below(columns: int, latent: int) -> tuple[Tensor, Tensor]:
    """The columns and the latents of the loadings that are not zero, column by column.

    Example:
        >>> below(3, 2)
        (tensor([0, 1, 1, 2, 2]), tensor([0, 0, 1, 0, 1]))
    """
    rows, places = torch.tril_indices(columns, latent)
    return rows, places


def filled(free: Tensor, columns: int, latent: int) -> Tensor:
    """Loadings (..., columns, latent), from those that are not zero (..., n)."""
    rows, places = below(columns, latent)
    where = torch.full((columns, latent), len(rows))  # one past the end: a zero
    where[rows, places] = torch.arange(len(rows))
    padded = torch.cat([free, torch.zeros_like(free[..., :1])], -1)
    found = padded[..., where.reshape(-1).to(free.device)]
    return found.reshape(*free.shape[:-1], columns, latent)


def canonical(
    sites: Mapping[str, Tensor],
    reference: Mapping[str, Tensor] | None,
    arguments: Mapping[str, Any],
) -> dict[str, Tensor]:
    """Turns the signs of each latent and its loadings, in every draw.

    Args:
        sites: Draws of the latent sites, each (draws, ...).
        reference: Draws whose mean the loadings are to agree with; None has the diagonal of these
            draws' own mean positive.
        arguments: Of the model.

    Returns:
        The same draws; points have no draws, and their signs stay.
    """
    if "free_loadings" not in sites:
        return dict(sites)
    free = sites["free_loadings"]  # (draws, n)
    columns, latent = sites["mean"].shape[-1], arguments["latent"]
    rows, places = (index.to(free.device) for index in below(columns, latent))
    by_latent = torch.eye(latent).to(free)[places]  # (n, latent)
    mean = (free if reference is None else reference["free_loadings"]).mean(0)
    if reference is None:
        mean = mean * torch.where(mean[rows == places] < 0, -1.0, 1.0).to(mean)[places]
    signs = torch.where((free * mean) @ by_latent < 0, -1.0, 1.0).to(free)  # (draws, latent)
    turned = {**sites, "free_loadings": free * signs[:, places]}
    if "z" in sites:
        turned["z"] = sites["z"] * signs[:, None].to(sites["z"])
    return turned


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
    conjugate: bool = False,
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
        conjugate: Whether mean, loadings and noise have conjugate priors; else they are points.
        batch_size: Rows drawn for a minibatch, all of them by default.
    """
    known = sampled if conjugate else points
    mean, loadings, noise = known(len(centre), latent, shared)
    with pyro.plate(ROWS, rows, subsample_size=batch_size):
        z = pyro.sample("z", dist.Normal(torch.zeros(latent), 1.0).to_event(1))
        location = centre + spread * (mean + z @ loadings.T)  # (rows, columns)
        seen = None if x is None else pyro.subsample(x, event_dim=1)
        pyro.sample("x", dist.Normal(location, spread * noise).to_event(1), obs=seen)


def normals(
    arguments: Mapping[str, Any], sites: Mapping[str, Tensor], fitted: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distribution of a row at the fitted points, or a draw: one Normal, in the user's units.

    Returns:
        Weights (1,), means (1, columns) and covariances (1, columns, columns).
    """
    centre, spread = (arguments[name].double().cpu().numpy() for name in ("centre", "spread"))
    known = {name: np.asarray(value) for name, value in fitted.items()}
    if "free_loadings" in sites:
        drawn = {name: value.double().cpu() for name, value in sites.items()}
        noise = drawn["noise_precision"].rsqrt().numpy()
        loadings = filled(drawn["free_loadings"], len(centre), arguments["latent"]).numpy()
        known = {"mean": drawn["mean"].numpy(), "loadings": loadings, "noise": noise}
    loadings = spread[:, None] * np.tril(known["loadings"])  # (columns, latent)
    noise = np.broadcast_to(known["noise"], centre.shape)
    covariance = loadings @ loadings.T + np.diag(np.square(spread * noise))
    return np.ones(1), (centre + spread * known["mean"])[None], covariance[None]


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
            "conjugate": options.priors == "conjugate",
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
        internal=("free_loadings", "noise_precision"),
        canonical=canonical,
        suggested={"held_out": 0.0},
        verbs=("generate", "score", "embed", "reconstruct", "interpolate", "impute"),
        normals=normals,
        recipe=Recipe(pixels, {"latent": 1, "noise": "separate"}, local_latents=True),
        picture=picture,
    ),
    __name__,
)
