"""Hierarchical normal model: groups whose effects come from one population, such as eight schools.

    mean ~ Normal(m, s), sd ~ HalfCauchy(c)
    effects[j] ~ Normal(mean, sd)
    y[i] ~ Normal(effects[group[i]], standard_error[i])

With one row for each group and its known standard error this is a meta-analysis (Rubin, 1981,
"Estimation in parallel randomized experiments"). With several rows for each group and no standard
errors it is the one-way random-effects model; `sigma` ~ Exponential(1 / sd of y) takes the place of
the standard error. `--parameterisation non_centered`, the default, samples (effects - mean) / sd,
which suits few rows in a group; `centered` samples the effects themselves, which suits many rows in
a group (Betancourt and Girolami, 2015, "Hamiltonian Monte Carlo for hierarchical models"). By
default the priors are scaled to the data: m is the mean of y, c its standard deviation, and s 2.5
standard deviations.
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

from elbowroom.data.bundled import load_dataset
from elbowroom.data.tables import align_columns, numeric_columns
from elbowroom.errors import DataError
from elbowroom.models import ROWS, Model, Prepared, Recipe, Training, register
from elbowroom.models._columns import cells, column_of_role, response_column
from elbowroom.models._recipes import line
from elbowroom.options import Location, Name, Scale

WIDE = 2.5
"""The default prior's standard deviation of the mean, in that of the response."""


@dataclass(frozen=True)
class Options:
    """Options of `hierarchical_normal`."""

    response: Annotated[Name | None, Field(description="column to model")] = None
    group: Annotated[
        Name | None,
        Field(description="column with each row's group; by default each row is a group"),
    ] = None
    standard_error: Annotated[
        Name | None, Field(description="column of known standard errors, if there is one")
    ] = None
    parameterisation: Annotated[
        Literal["non_centered", "centered"],
        Field(
            description="how the effects are sampled: non_centered (few rows in a group) or "
            "centered (many rows in a group)"
        ),
    ] = "non_centered"
    prior_mean: Annotated[
        Location | None, Field(description="prior mean of `mean`; by default scaled to the data")
    ] = None
    prior_sd: Annotated[
        Scale | None, Field(description="prior sd of `mean`; by default scaled to the data")
    ] = None
    prior_scale: Annotated[
        Scale | None,
        Field(
            description="scale of the half-Cauchy prior of `sd`; by default scaled to the data",
        ),
    ] = None


def hierarchical_normal(
    y: Tensor | None,
    group: Tensor,
    groups: int,
    unseen: int,
    standard_error: Tensor | None,
    prior: Tensor,
    spread: Tensor,
    centered: bool,
    batch_size: int | None = None,
) -> None:
    """The Pyro model.

    Args:
        y: (rows,), or None to draw it.
        group: The number of each row's group, (rows,).
        groups: How many there are.
        unseen: How many more, with numbers from `groups` on, the model was not fitted to.
        standard_error: Of each row, (rows,); None where it is not known.
        prior: The mean's prior mean and standard deviation, and the scale of `sd`, (3,).
        spread: The standard deviation of y in the data that were fitted, ().
        centered: Whether the effects are sampled as they are.
        batch_size: Rows drawn for a minibatch, all of them by default.
    """
    mean = pyro.sample("mean", dist.Normal(prior[0], prior[1]))
    sd = pyro.sample("sd", dist.HalfCauchy(prior[2]))
    sigma = None
    if standard_error is None:
        sigma = pyro.sample("sigma", dist.Exponential(1 / spread))
    with pyro.plate("groups", groups):
        if centered:
            effects = pyro.sample("effects", dist.Normal(mean, sd))
        else:
            standard = pyro.sample("standardised_effects", dist.Normal(torch.zeros(()), 1.0))
            effects = pyro.deterministic("effects", mean + sd * standard)  # (groups,)
    if unseen:
        with pyro.plate("unseen_groups", unseen):
            more = pyro.sample("unseen_effects", dist.Normal(mean, sd))
        effects = torch.cat([effects, more], -1)
    with pyro.plate(ROWS, len(group), subsample_size=batch_size):
        of_row = effects.index_select(-1, pyro.subsample(group, event_dim=0))  # (rows,)
        error: Any = sigma
        if standard_error is not None:
            error = pyro.subsample(standard_error, event_dim=0)
        seen = None if y is None else pyro.subsample(y, event_dim=0)
        pyro.sample("y", dist.Normal(of_row, error), obs=seen)


def prepare(table: pd.DataFrame, options: Options, training: Training | None = None) -> Prepared:
    """A table as the model's arguments; see `elbowroom.models.Model.prepare`.

    Raises:
        DataError: If a column is missing or cannot be used, or a standard error is not above 0.
        OptionError: If no response is named.
    """
    source = table if training is None else training.table
    hint = "hierarchical_normal needs to know what to model; give --response COLUMN."
    response = response_column(source, options.response, hint)
    by = options.group or column_of_role(source, "identifier")
    known = options.standard_error or column_of_role(source, "known_scale")
    align_columns(table, [name for name in (by, known) if name is not None])
    labels = _labels(source, by)
    own = _labels(table, by) if training is not None else labels
    names = list(dict.fromkeys(labels))
    number = {name: i for i, name in enumerate(dict.fromkeys([*names, *own]))}
    standard_error = None
    if known is not None:
        standard_error = _column(table, known)
        if bool((standard_error <= 0).any()):
            row = int((standard_error <= 0).nonzero()[0])
            raise DataError(
                f"column '{known}', row {row + 1}: a standard error of "
                f"{float(standard_error[row]):g}; it must be above 0."
            )
    y = None
    if training is None or (response in table.columns and not table[response].isna().all()):
        y = _column(table, response)
    if training is None:
        assert y is not None
        spread = y.std() if len(y) > 1 and float(y.std()) > 0 else torch.ones(())
        given = (options.prior_mean, options.prior_sd, options.prior_scale)
        scaled = (y.mean(), WIDE * spread, spread)
        prior = [float(b if a is None else a) for a, b in zip(given, scaled, strict=True)]
        fitted = {"prior": torch.tensor(prior), "spread": spread}
    else:
        fitted = {name: training.arguments[name] for name in ("prior", "spread")}
    return Prepared(
        arguments={
            "y": y, "group": torch.tensor([number[name] for name in own]), "groups": len(names),
            "unseen": len(number) - len(names), "standard_error": standard_error, **fitted,
            "centered": options.parameterisation == "centered",
        },
        dims={
            "y": (ROWS,), "group": (ROWS,), "standard_error": (ROWS,), "prior": ("number",),
            "effects": ("group",), "standardised_effects": ("group",),
            "unseen_effects": ("unseen_group",),
        },
        coords={"group": [str(name) for name in names]},
        columns={
            "y": response, **({} if by is None else {"group": by}),
            **({} if known is None else {"standard_error": known}),
        },
    )  # fmt: skip


def _labels(table: pd.DataFrame, by: str | None) -> list[object]:
    """The group of each row; each row is a group if no column names them."""
    if by is None:
        return list(range(len(table)))
    if table[by].isna().any():
        row = int(np.flatnonzero(table[by].isna())[0])
        raise DataError(f"column '{by}', row {row + 1}: the group is missing; fill it in.")
    return list(table[by])


def _column(table: pd.DataFrame, name: str) -> Tensor:
    column = numeric_columns(align_columns(table, [name]), allow_constant=True)
    return cells(column)[:, 0]  # (rows,)


def picture(fit: Callable[..., Any]) -> Any:
    """Eight schools: each effect as it was measured, and drawn to the population's mean."""
    from elbowroom.models._pictures import BLUE, GREEN, ORANGE, draws_of, panels

    table = load_dataset("eight_schools")
    own = fit("hierarchical_normal", table, seed=1)
    effects, mean = draws_of(own, "effects"), draws_of(own, "mean")
    order = np.argsort(table["effect"].to_numpy())
    figure, ax = panels(height=4.4)
    places = np.arange(len(table))
    measured, error = table["effect"].to_numpy()[order], table["standard_error"].to_numpy()[order]
    ax.errorbar(
        places - 0.14, measured, 1.645 * error, fmt="s", color=ORANGE, ms=5, lw=1.5,
        label="as measured, ± 1.645 standard errors",
    )  # fmt: skip
    low, middle, high = np.quantile(effects[:, order], [0.05, 0.5, 0.95], axis=0)
    ax.errorbar(
        places + 0.14, middle, [middle - low, high - middle], fmt="o", color=BLUE, ms=5, lw=1.5,
        label="posterior median and 90% interval",
    )  # fmt: skip
    ax.axhline(mean.mean(), color=GREEN, lw=1.2, ls="--", label="population mean (posterior)")
    ax.set_xticks(places, table["school"].to_numpy()[order])
    ax.set(xlabel="school", ylabel="effect of coaching (points)")
    ax.legend(frameon=False, fontsize=9, loc="upper left")
    ax.set_ylim(top=75)
    return figure


register(
    Model(
        name="hierarchical_normal",
        function=hierarchical_normal,
        options=Options,
        prepare=prepare,
        observed="y",
        predicts="y",
        dataset="eight_schools",
        internal=("standardised_effects",),
        population=("effects", "standardised_effects"),
        recipe=Recipe(
            lambda: line().head(12).assign(g=list("aaabbbcccddd")), {"response": "a", "group": "g"}
        ),
        picture=picture,
    ),
    __name__,
)
