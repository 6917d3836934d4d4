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

With `--labels COLUMN`, z[i] is known where the cell is not blank (a supervised mixture; Nigam et
al., 2000, "Text classification from labeled and unlabeled documents using EM"). The components then
have the labels' names and order, and only those beyond are numbered.

With `--priors conjugate`, the priors of a component are those for which each update of coordinate
ascent has a closed form. With d columns and P[k] the precision matrix of the scaled columns,

    P[k] ~ Wishart(d + 1, 10 I)
    m[k] ~ Normal(0, (0.02 P[k])⁻¹)
    x[i] ~ Normal(c + s m[z], diag(s) P[z]⁻¹ diag(s))

so that a component's standard deviation is between 0.12 and 1.4 of its column's with prior
probability 0.95. Of diagonal and spherical covariances, each precision is Gamma(1, 0.05), which is
what the Wishart says of one column.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass as plain_dataclass
from types import MappingProxyType
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans, kmeans_plusplus
from torch import Tensor

from elbowroom.data.bundled import load_dataset
from elbowroom.data.tables import align_columns, named_columns, numeric_columns
from elbowroom.errors import DataError, OptionError
from elbowroom.models import ROWS, Model, Prepared, Recipe, Training, register
from elbowroom.models._columns import (
    LISTED,
    MOST_CLASSES,
    cells,
    levels_of,
    varying,
    without_blanks,
)
from elbowroom.models._options import Columns, Exclude
from elbowroom.models._recipes import groups
from elbowroom.models._wishart import Wishart
from elbowroom.options import Name, Width


@plain_dataclass(frozen=True)
class ConjugatePriors:
    """The conjugate priors, in standard deviations of the columns."""

    concentration: float = 1.0
    """Of the Dirichlet, for each component: every composition is as probable as any other."""
    rows: float = 0.02
    """How many rows the prior of a mean counts for: it is seven times as wide as the component, so
    about twice as wide as all rows."""
    freedom: float = 1.0
    """Degrees of freedom beyond the fewest at which a variance has a density: it counts for so many
    rows."""
    variance: float = 0.1
    """The scatter of those rows."""


CONJUGATE = ConjugatePriors()


@dataclass(frozen=True)
class Options:
    """Options of `gaussian_mixture`."""

    components: Annotated[
        Width | None,
        Field(
            description="number of components, K; by default 3, or with --labels one a label",
        ),
    ] = None
    covariance_type: Annotated[
        Literal["full", "diagonal", "spherical"],
        Field(description="covariance of each component: full, diagonal or spherical"),
    ] = "full"
    labels: Annotated[
        Name | None,
        Field(
            description="column that names the component of the rows in which it is known; in the "
            "others its cells are blank"
        ),
    ] = None
    priors: Annotated[
        Literal["weak", "conjugate"],
        Field(
            description="priors of the components: weak, or conjugate, whose updates have a closed "
            "form (--engine coordinate_ascent)"
        ),
    ] = "weak"
    columns: Columns = None
    exclude: Exclude = ()


COMPONENTS = 3
"""K, where neither labels nor the user tell it."""
LLOYD = 100
"""Steps of k-means with labels, at most."""


def gaussian_mixture(
    x: Tensor | None,
    centre: Tensor,
    spread: Tensor,
    rows: int,
    components: int,
    covariance_type: str,
    labels: Tensor | None = None,
    levels: tuple[str | int, ...] = (),
    conjugate: bool = False,
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
        labels: Each row's component, -1 where it is unknown, (rows,); None if all are.
        levels: What the labels are called: the names of the first components.
        conjugate: Whether the priors are conjugate.
        batch_size: Rows drawn for a minibatch, all of them by default.
    """
    columns = len(centre)
    full = covariance_type == "full" and columns > 1
    spherical = covariance_type == "spherical"
    widths = 1 if spherical else columns
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(components)))
    with pyro.plate("components", components):
        if conjugate:
            precision = pyro.sample("standardised_precisions", prior_of_precisions(widths, full))
            prior = means_given(precision, full, torch.zeros(columns))
            location = pyro.sample("standardised_means", prior)  # (components, columns)
        else:
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
    if conjugate and full:
        factor = CONJUGATE.rows**0.5 * prior.scale_tril  # (components, columns, columns)
        width = factor.square().sum(-1).sqrt()
        cholesky = factor / width.unsqueeze(-1)
    elif conjugate:
        width = precision.rsqrt()
    means = pyro.deterministic("means", centre + spread * location)
    deviations = spread * width  # (components, columns)
    pyro.deterministic("standard_deviations", deviations[..., 0] if spherical else deviations)
    if full:
        scale_tril = deviations.unsqueeze(-1) * cholesky
        pyro.deterministic("covariances", scale_tril @ scale_tril.mT)
    with pyro.plate(ROWS, rows, subsample_size=batch_size):
        batch = None if x is None else pyro.subsample(x, event_dim=1)
        chances = dist.Categorical(weights)
        if labels is not None:
            # A label has its weight as its probability, and leaves its row one component.
            least = torch.finfo(weights.dtype).tiny
            known = pyro.subsample(labels, event_dim=0)
            left = weights.clamp_min(least).log() + allowed(known, components)
            pyro.factor("labels", left.logsumexp(-1))
            chances = dist.Categorical(logits=left)
        assignments = pyro.sample("assignments", chances, infer={"enumerate": "parallel"})
        likelihood = (
            dist.MultivariateNormal(means[assignments], scale_tril=scale_tril[assignments])
            if full
            else dist.Normal(means[assignments], deviations[assignments]).to_event(1)
        )
        pyro.sample("x", likelihood, obs=batch)


def allowed(labels: Tensor, components: int) -> Tensor:
    """Zero where a row may be of a component, and minus infinity elsewhere, (rows, components).

    Args:
        labels: Each row's component, -1 where it is unknown, (rows,).
        components: K.

    Example:
        >>> allowed(torch.tensor([1, -1]), 2)
        tensor([[-inf, 0.],
                [0., 0.]])
    """
    each = torch.arange(components, device=labels.device)
    other = (labels.unsqueeze(-1) != each) & (labels >= 0).unsqueeze(-1)
    return torch.zeros(other.shape, device=labels.device).masked_fill(other, -torch.inf)


def prior_of_precisions(widths: int, full: bool) -> Any:
    """The conjugate prior of one component's precision.

    Args:
        widths: How many columns it has, or one where it is spherical.
        full: Whether it is a matrix, (widths, widths), or independent numbers, (widths,).
    """
    if full:
        freedom = torch.tensor(widths + CONJUGATE.freedom)
        return Wishart(freedom, covariance_matrix=torch.eye(widths) / CONJUGATE.variance)
    shape = torch.full((widths,), (1 + CONJUGATE.freedom) / 2)
    return dist.Gamma(shape, CONJUGATE.variance / 2).to_event(1)


def means_given(
    precisions: Tensor, full: bool, location: Tensor, rows: Tensor | float = CONJUGATE.rows
) -> Any:
    """The components' means given their precisions: the conjugate prior, or its posterior.

    Args:
        precisions: (components, columns, columns) if full, else (components, columns or 1).
        full: Whether they are matrices.
        location: (columns,) or (components, columns).
        rows: How many a mean is known from, () or (components,).
    """
    rows = torch.as_tensor(rows).to(precisions)
    if full:
        matrices = rows[..., None, None] * precisions
        return dist.MultivariateNormal(location, precision_matrix=matrices)
    return dist.Normal(location, (rows[..., None] * precisions).rsqrt()).to_event(1)


def prepare(table: pd.DataFrame, options: Options, training: Training | None = None) -> Prepared:
    """A table as the model's arguments; see `elbowroom.models.Model.prepare`.

    New rows are described by their columns alone: a label among them is not looked at, so that
    predictions can be compared with it.

    Raises:
        DataError: If a column cannot be used; the message names it.
        OptionError: If there are more components than rows, or fewer than labels.
    """
    spherical = options.covariance_type == "spherical"
    source = table if training is None else training.table
    labels, exclude = None, options.exclude
    levels: tuple[str | int, ...] = ()
    if options.labels is not None:
        labels, levels = _labelled(source, options)
        exclude = tuple(dict.fromkeys((*exclude, options.labels)))
    components = options.components or len(levels) or COMPONENTS
    used, doubts = varying(source, options.columns, exclude)
    if labels is not None and components > len(levels) and bool((labels >= 0).all()):
        doubts += (
            f"Every row has one of the {len(levels)} labels, so that the other "
            f"{components - len(levels)} of the {components} components have no rows.",
        )
    if training is None:
        chosen = numeric_columns(used)
        if components > len(chosen):
            raise OptionError(
                f"--components {components} is more than the {len(chosen)} rows of the table; "
                "give a smaller number."
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
            "components": components,
            "covariance_type": options.covariance_type,
            "labels": labels if training is None else None,
            "levels": levels,
            "conjugate": options.priors == "conjugate",
        },
        dims={
            "x": (ROWS, "column"),
            "labels": (ROWS,),
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
            "component": _names(levels, components),
        },
        columns={
            "x": tuple(chosen.columns),
            **({} if options.labels is None else {"labels": options.labels}),
        },
        doubts=doubts,
    )


def _labelled(
    source: pd.DataFrame, options: Options
) -> tuple[Tensor | None, tuple[str | int, ...]]:
    """The number of each fitted row's component, -1 where it is unknown, and their names.

    Raises:
        DataError: If there is no such column, all of its cells are blank, or they are no labels.
        OptionError: If the column is among those that the components describe, or there are fewer
            components than labels.
    """
    assert options.labels is not None
    (name,) = named_columns(source, "labels", options.labels)
    if name in (options.columns or ()):
        raise OptionError(f"'{name}' is in --labels; leave it out of --columns.")
    column = without_blanks(source[name])
    found = levels_of(column)
    if not found:
        raise DataError(
            f"--labels {name}: the column is blank in every row; label some rows, or leave "
            "--labels out."
        )
    numbers = all(isinstance(level, float) for level in found)
    whole = not numbers or all(level == int(level) for level in found)
    if not whole or len(found) > MOST_CLASSES:
        raise DataError(
            f"--labels {name}: the column has {len(found)} different values, such as {found[0]}; "
            f"labels are text or whole numbers, of at most {MOST_CLASSES} kinds. Give the column "
            "with the labels."
        )
    if options.components is not None and options.components < len(found):
        listed = ", ".join(map(str, found[:LISTED])) + ", …" * (len(found) > LISTED)
        raise OptionError(
            f"--components {options.components} is fewer than the {len(found)} labels of column "
            f"'{name}' ({listed}); give {len(found)} or more, or leave --components out."
        )
    place = {level: k for k, level in enumerate(found)}
    codes = torch.tensor([-1 if pd.isna(cell) else place[cell] for cell in column])
    return codes, tuple(int(level) if numbers else str(level) for level in found)


def _names(levels: tuple[str | int, ...], components: int) -> list[str | int]:
    """Of the components: the labels, and numbers for those without one."""
    beyond = components - len(levels)
    if not levels or not beyond:
        return [*levels, *range(beyond)]
    if beyond == 1:
        return [*map(str, levels), "unlabelled"]
    return [*map(str, levels), *(f"unlabelled {k + 1}" for k in range(beyond))]


def starts(arguments: Mapping[str, Any], count: int, seed: int) -> list[dict[str, Tensor]]:
    """Initial values from k-means with different seeds, smallest inertia first.

    Rows with a label are in its component.

    Args:
        arguments: The model's arguments.
        count: How many starts.
        seed: Of the first start; the others follow on.

    Returns:
        For each start, the initial value of every continuous latent site.
    """
    centre, spread = arguments["centre"], arguments["spread"]
    data = ((arguments["x"] - centre) / spread).double().cpu().numpy()  # (rows, columns)
    spherical = arguments["covariance_type"] == "spherical"
    grouped = [_grouped(data, arguments, seed + i, varied=i > 0) for i in range(count)]
    values = []
    for number, centres, _ in sorted(grouped, key=lambda found: found[2]):
        groups = [data[number == k] for k in range(len(centres))]
        share = np.array([len(group) + 1.0 for group in groups])
        # A group of one row has no spread: a tenth of the column's keeps the start finite.
        variances = [group.var(0) if len(group) else data.var(0) for group in groups]
        scales = np.sqrt(np.stack(variances) + 0.01)
        if spherical:
            scales = np.sqrt((scales**2).mean(1, keepdims=True))
        squares = torch.as_tensor(scales).square().expand(-1, data.shape[1])
        values.append(
            {
                "weights": torch.as_tensor(share / share.sum()).to(centre),
                "standardised_means": torch.as_tensor(centres).to(centre),
                **covariance_sites(arguments, torch.diag_embed(squares).to(centre)),
            }
        )
    return values


def _grouped(
    data: np.ndarray, arguments: Mapping[str, Any], seed: int, varied: bool
) -> tuple[np.ndarray, np.ndarray, float]:
    """Groups of rows by k-means; a row with a label stays in its group.

    Basu, Banerjee and Mooney, 2002, "Semi-supervised clustering by seeding". Groups without a
    label come after the others, in the order of their first column.

    Args:
        data: Scaled rows, (rows, columns).
        arguments: Of the model.
        seed: Of the random numbers.
        varied: Whether the group of a label begins at one of its rows, not at their mean.

    Returns:
        The number of each row's group, (rows,), the groups' centres, (components, columns), and the
        sum of squared distances from them.
    """
    components, levels = arguments["components"], len(arguments.get("levels", ()))
    labels = np.full(len(data), -1)
    if levels:
        labels = arguments["labels"].cpu().numpy()
    free = labels < 0
    if not levels:
        fit = KMeans(components, n_init=1, random_state=seed).fit(data)
        number, centres = fit.labels_, fit.cluster_centers_
    else:
        random = np.random.default_rng(seed)
        own = [data[labels == k] for k in range(levels)]
        begin = [random.choice(each) if varied else each.mean(0) for each in own]
        if components > levels:
            among = data[free] if free.sum() >= components - levels else data
            begin += [*kmeans_plusplus(among, components - levels, random_state=seed)[0]]
        number, centres = labels, np.array(begin)
        for _ in range(LLOYD):
            nearest = cdist(data, centres).argmin(1)
            before, number = number, np.where(free, nearest, labels)
            if (before == number).all():
                break
            held = [data[number == k] for k in range(components)]
            centres = np.array(
                [each.mean(0) if len(each) else centre
                 for each, centre in zip(held, centres, strict=True)]
            )  # fmt: skip
    order = np.concatenate([np.arange(levels), levels + centres[levels:, 0].argsort()])
    inertia = float(np.square(data - centres[number]).sum())
    return order.argsort()[number], centres[order], inertia


def covariance_sites(arguments: Mapping[str, Any], covariances: Tensor) -> dict[str, Tensor]:
    """The sites that describe the components' covariances.

    Args:
        arguments: The model's arguments.
        covariances: Of the scaled columns, (components, columns, columns).
    """
    columns, kind = covariances.shape[-1], arguments["covariance_type"]
    variances = covariances.diagonal(dim1=-2, dim2=-1)
    variances = variances[:, :1] if kind == "spherical" else variances
    if not arguments.get("conjugate", False):
        deviations = covariances.diagonal(dim1=-2, dim2=-1).sqrt()
        factor = torch.linalg.cholesky(covariances)
        return {
            "standardised_scales": variances.sqrt(),
            "correlation_cholesky": factor / deviations.unsqueeze(-1),
        }
    full = kind == "full" and columns > 1
    return {"standardised_precisions": torch.linalg.inv(covariances) if full else 1 / variances}


def covariances_of(sites: Mapping[str, Tensor]) -> Tensor:
    """The covariances of the scaled columns, the other way round."""
    means = sites["standardised_means"]  # (components, columns)
    if "standardised_precisions" in sites:
        precisions = sites["standardised_precisions"]
        if precisions.dim() == means.dim() + 1:
            return torch.linalg.inv(precisions)
        return torch.diag_embed((1 / precisions).expand_as(means))
    deviations = sites["standardised_scales"].expand_as(means)
    factor = torch.diag_embed(deviations)
    if "correlation_cholesky" in sites:
        factor = deviations.unsqueeze(-1) * sites["correlation_cholesky"]
    return factor @ factor.mT


def canonical(
    sites: Mapping[str, Tensor],
    reference: Mapping[str, Tensor] | None,
    arguments: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Tensor]:
    """Renumbers the components of every draw; those that have a label stay in their place.

    Args:
        sites: Draws of the latent sites, each (draws, ...).
        reference: Draws already in canonical order, whose mean the components are matched to by
            the Hungarian method; None orders these draws' own mean by the first column.
        arguments: Of the model.

    Returns:
        The same draws with their components renumbered.
    """
    levels = len(arguments.get("levels", ()))
    means = sites["standardised_means"][:, levels:]  # (draws, components without a label, columns)
    if means.shape[1] < 2:
        return dict(sites)
    if reference is None:
        target = means.mean(0)
        target = target[target[:, 0].argsort()]
    else:
        target = reference["standardised_means"][:, levels:].mean(0)
    distances = torch.cdist(target.expand_as(means), means).double().cpu().numpy()
    orders = np.stack([linear_sum_assignment(distance)[1] for distance in distances])
    in_place = np.tile(np.arange(levels), (len(orders), 1))
    order = torch.as_tensor(np.concatenate([in_place, levels + orders], 1), device=means.device)
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
    known = {name: value.double() for name, value in sites.items()}
    means = centre + spread * known["standardised_means"]
    covariances = spread.unsqueeze(-1) * covariances_of(known) * spread
    return known["weights"].numpy(), means.numpy(), covariances.numpy()


def simpler(arguments: Mapping[str, Any]) -> str | None:
    """The option by which components get more rows for each number that describes them.

    A component that the rows do not need is anywhere in its prior, and takes rows from any other:
    a posterior of so many parts that neither one Normal nor short chains follow it.

    Example:
        >>> iris = {"x": torch.zeros(150, 4), "covariance_type": "full", "components": 3}
        >>> simpler(iris), simpler({**iris, "components": 1})
        ('--components 2', None)
    """
    rows, columns = arguments["x"].shape
    fewest = max(1, len(arguments.get("levels", ())))
    components = arguments["components"]
    if arguments["covariance_type"] == "full" and components * columns * (columns + 1) / 2 > rows:
        return "--covariance-type diagonal"
    return f"--components {components - 1}" if components > fewest else None


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
        internal=(
            "standardised_means",
            "standardised_scales",
            "correlation_cholesky",
            "standardised_precisions",
        ),
        population=(),  # a precision scales the prior of its mean, and is the component's own
        starts=starts,
        canonical=canonical,
        labels="labels",
        verbs=("generate", "score", "embed", "impute"),
        normals=normals,
        simpler=simpler,
        recipe=Recipe(groups, {"components": 2, "restarts": 2}),
        picture=picture,
    ),
    __name__,
)
