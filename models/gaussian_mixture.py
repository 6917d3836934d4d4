"""Gaussian mixture: rows fall into K groups, each Normal with its own mean and covariance.

With c and s the columns' means and standard deviations (one common s, their root mean square,
where the covariances are spherical),

    w ~ Dirichlet(1, ..., 1)
    m[k,j] ~ Normal(0, 2)
    t[k,j] ~ LogNormal(-1, 1)
    R[k] ~ LKJ(1)
    z[i] ~ Categorical(w)
    x[i] ~ Normal(c + s m[z], D R[z] D)    with D = diag(s t[z])

so that a component's standard deviation is between 0.05 and 2.6 of its column's with prior
probability 0.95, and no component can collapse onto a row. R is left out of diagonal and spherical
covariances; a spherical one has one t for all columns. The assignments z are a discrete site: they
can be summed over, or drawn from a guide. The components are numbered by the posterior mean of
their first column, smallest first, and every draw is matched to that numbering. Reported, in the
user's units: `weights`, `means`, `standard_deviations` and, for full ones, `covariances`.
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
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from torch import Tensor

from elbowroom.data.bundled import load_dataset
from elbowroom.data.tables import align_columns, numeric_columns
from elbowroom.errors import OptionError
from elbowroom.models import ROWS, Model, Prepared, Recipe, Training, register
from elbowroom.models._columns import cells, varying
from elbowroom.models._options import Columns, Exclude
from elbowroom.models._recipes import groups


@dataclass(frozen=True)
class Options:
    """Options of `gaussian_mixture`."""

    components: Annotated[int, Field(ge=1, description="number of components, K")] = 3
    covariance_type: Annotated[
        Literal["full", "diagonal", "spherical"],
        Field(description="covariance of each component: full, diagonal or spherical"),
    ] = "full"
    columns: Columns = None
    exclude: Exclude = ()


def gaussian_mixture(
    x: Tensor | None,
    centre: Tensor,
    spread: Tensor,
    rows: int,
    components: int,
    covariance_type: str,
    batch_size: int | None = None,
) -> None:
    """The Pyro model.

    Args:
        x: The table in the user's units, (rows, columns), or None to draw it.
        centre: What is subtracted from each column, (columns,).
        spread: What each column is divided by, (columns,).
        rows: The number of rows.
        components: K.
        covariance_type: "full", "diagonal" or "spherical".
        batch_size: Rows drawn for a minibatch, all of them by default.
    """
    columns = len(centre)
    full = covariance_type == "full" and columns > 1
    spherical = covariance_type == "spherical"
    widths = 1 if spherical else columns
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(components)))
    with pyro.plate("components", components):
        location = pyro.sample(
            "standardised_means", dist.Normal(torch.zeros(columns), 2.0).to_event(1)
        )  # (components, columns)
        width = pyro.sample(
            "standardised_scales", dist.LogNormal(-torch.ones(widths), 1.0).to_event(1)
        )  # (components, columns), or (components, 1) if spherical
        if full:
            cholesky = pyro.sample(
                "correlation_cholesky", dist.LKJCholesky(columns, torch.ones(()))
            )  # (components, columns, columns)
    means = pyro.deterministic("means", centre + spread * location)
    deviations = spread * width  # (components, columns)
    pyro.deterministic("standard_deviations", deviations[..., 0] if spherical else deviations)
    if full:
        scale_tril = deviations.unsqueeze(-1) * cholesky
        pyro.deterministic("covariances", scale_tril @ scale_tril.mT)
    with pyro.plate(ROWS, rows, subsample_size=batch_size):
        batch = None if x is None else pyro.subsample(x, event_dim=1)
        assignments = pyro.sample(
            "assignments", dist.Categorical(weights), infer={"enumerate": "parallel"}
        )
        likelihood = (
            dist.MultivariateNormal(means[assignments], scale_tril=scale_tril[assignments])
            if full
            else dist.Normal(means[assignments], deviations[assignments]).to_event(1)
        )
        pyro.sample("x", likelihood, obs=batch)


def prepare(table: pd.DataFrame, options: Options, training: Training | None = None) -> Prepared:
    """A table as the model's arguments; see `elbowroom.models.Model.prepare`.

    Raises:
        DataError: If a column cannot be used; the message names it.
        OptionError: If there are more components than rows.
    """
    spherical = options.covariance_type == "spherical"
    source = table if training is None else training.table
    used, doubts = varying(source, options.columns, options.exclude)
    if training is None:
        chosen = numeric_columns(used)
        if options.components > len(chosen):
            raise OptionError(
                f"--components {options.components} is more than the {len(chosen)} rows of the "
                "table; give a smaller number."
            )
        x = cells(chosen)  # (rows, columns)
        centre, spread = x.mean(0), x.std(0)
        if spherical:
            spread = spread.square().mean().sqrt().expand_as(centre).clone()
    else:
        chosen = numeric_columns(align_columns(table, list(used.columns)), allow_constant=True)
        x = cells(chosen)
        centre, spread = training.arguments["centre"], training.arguments["spread"]
    return Prepared(
        arguments={
            "x": x,
            "centre": centre,
            "spread": spread,
            "rows": len(x),
            "components": options.components,
            "covariance_type": options.covariance_type,
        },
        dims={
            "x": (ROWS, "column"),
            "centre": ("column",),
            "spread": ("column",),
            "assignments": (ROWS,),
            "weights": ("component",),
            "means": ("component", "column"),
            "standard_deviations": ("component",) if spherical else ("component", "column"),
            "covariances": ("component", "column", "other_column"),
        },
        coords={
            "column": list(chosen.columns),
            "other_column": list(chosen.columns),
            "component": list(range(options.components)),
        },
        columns={"x": tuple(chosen.columns)},
        doubts=doubts,
    )


def starts(arguments: Mapping[str, Any], count: int, seed: int) -> list[dict[str, Tensor]]:
    """Initial values from k-means with different seeds, smallest inertia first.

    Args:
        arguments: The model's arguments.
        count: How many starts.
        seed: Of the first start; the others follow on.

    Returns:
        For each start, the initial value of every continuous latent site.
    """
    centre, spread = arguments["centre"], arguments["spread"]
    data = ((arguments["x"] - centre) / spread).double().cpu().numpy()  # (rows, columns)
    components, spherical = arguments["components"], arguments["covariance_type"] == "spherical"
    fits = [KMeans(components, n_init=1, random_state=seed + i).fit(data) for i in range(count)]
    values = []
    for fit in sorted(fits, key=lambda fit: fit.inertia_):
        order = np.argsort(fit.cluster_centers_[:, 0])
        groups = [data[fit.labels_ == k] for k in order]
        share = np.array([len(group) + 1.0 for group in groups])
        # A group of one row has no spread: a tenth of the column's keeps the start finite.
        scales = np.stack([np.sqrt(group.var(0) + 0.01) for group in groups])
        if spherical:
            scales = np.sqrt((scales**2).mean(1, keepdims=True))
        identity = torch.eye(data.shape[1]).expand(components, -1, -1)
        values.append(
            {
                "weights": torch.as_tensor(share / share.sum()).to(centre),
                "standardised_means": torch.as_tensor(fit.cluster_centers_[order]).to(centre),
                "standardised_scales": torch.as_tensor(scales).to(centre),
                "correlation_cholesky": identity.to(centre),
            }
        )
    return values


def canonical(
    sites: Mapping[str, Tensor], reference: Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    """Renumbers the components of every draw.

    Args:
        sites: Draws of the latent sites, each (draws, ...).
        reference: Draws already in canonical order, whose mean the components are matched to by
            the Hungarian method; None orders these draws' own mean by the first column.

    Returns:
        The same draws with their components renumbered.
    """
    means = sites["standardised_means"]  # (draws, components, columns)
    if reference is None:
        target = means.mean(0)
        target = target[target[:, 0].argsort()]
    else:
        target = reference["standardised_means"].mean(0)
    distances = torch.cdist(target.expand_as(means), means).double().cpu().numpy()
    orders = np.stack([linear_sum_assignment(distance)[1] for distance in distances])
    order = torch.as_tensor(orders, device=means.device)  # (draws, components)
    renumbered = dict(sites)
    for name, values in sites.items():
        if name == "assignments":  # (draws, rows): the inverse permutation of each label
            renumbered[name] = order.argsort(-1).gather(-1, values.long()).to(values)
        else:
            index = order.reshape(*order.shape, *[1] * (values.dim() - 2)).expand_as(values)
            renumbered[name] = values.gather(1, index)
    return renumbered


def normals(
    arguments: Mapping[str, Any], sites: Mapping[str, Tensor], points: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distribution of a row at one draw of the parameters, in the user's units.

    Returns:
        Weights (components,), means (components, columns) and covariances (components, columns,
        columns).
    """
    centre, spread = (arguments[name].double().cpu() for name in ("centre", "spread"))
    means = centre + spread * sites["standardised_means"].double()
    deviations = (spread * sites["standardised_scales"].double()).expand_as(means)
    factor = torch.diag_embed(deviations)
    if "correlation_cholesky" in sites:
        factor = deviations.unsqueeze(-1) * sites["correlation_cholesky"].double()
    return sites["weights"].double().numpy(), means.numpy(), (factor @ factor.mT).numpy()


def picture(fit: Callable[..., Any]) -> Any:
    """Three components of iris in two of its columns, with some draws of each."""
    from elbowroom.models._pictures import (
        BLUE,
        GREEN,
        GREY,
        MARKERS,
        ORANGE,
        draws_of,
        ellipse,
        panels,
    )

    table = load_dataset("iris")
    own = fit("gaussian_mixture", table, components=3, seed=1)
    names = ["sepal_length", "petal_length"]
    columns = [list(own.problem.prepared.coords["column"]).index(name) for name in names]
    means = draws_of(own, "means")[..., columns]
    covariances = draws_of(own, "covariances")[..., columns, :][..., columns]
    probable = own.predict().filter(like="probability").to_numpy().argmax(1)
    figure, ax = panels(height=4.6)
    some = np.linspace(0, len(means) - 1, 10).astype(int)
    for k, colour in enumerate((BLUE, ORANGE, GREEN)):
        here = probable == k
        ax.scatter(
            table[names[0]][here], table[names[1]][here], s=22, marker=MARKERS[k], color=colour,
            alpha=0.75, lw=0, label=f"rows most likely of component {k}",
        )  # fmt: skip
        for i in some:
            style: dict[str, Any] = {"fill": False, "ec": colour, "lw": 0.6, "alpha": 0.35}
            ax.add_patch(ellipse(means[i, k], covariances[i, k], 2, **style))
        ax.add_patch(
            ellipse(
                means[:, k].mean(0), covariances[:, k].mean(0), 2, fill=False, ec=colour, lw=2.2
            )
        )
    ax.plot([], [], color=GREY, lw=2.2, label="two sds, posterior mean")
    ax.plot([], [], color=GREY, lw=0.6, label="two sds, 10 posterior draws")
    ax.set(xlabel="sepal length (cm)", ylabel="petal length (cm)")
    ax.legend(frameon=False, fontsize=9, loc="lower right")
    return figure


register(
    Model(
        name="gaussian_mixture",
        function=gaussian_mixture,
        options=Options,
        prepare=prepare,
        observed="x",
        predicts="assignments",
        dataset="iris",
        internal=("standardised_means", "standardised_scales", "correlation_cholesky"),
        starts=starts,
        canonical=canonical,
        verbs=("generate", "score", "embed", "impute"),
        normals=normals,
        recipe=Recipe(groups, {"components": 2, "restarts": 2}),
        picture=picture,
    ),
    __name__,
)
