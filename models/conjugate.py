"""Models whose posterior has a closed form: a mean, a share, a rate, a regression.

By `--likelihood`, with the two numbers of `--prior` in brackets:

    normal        mean ~ Normal(m, s)          [m, s]    y[i] ~ Normal(mean, σ), σ known
    bernoulli     probability ~ Beta(a, b)     [a, b]    y[i] ~ Bernoulli(probability)
    poisson       rate ~ Gamma(a, b)           [a, b]    y[i] ~ Poisson(rate)
    regression    σ² ~ InverseGamma(a, b)      [a, b]    y[i] ~ Normal(β₀ + z[i]·β, σ)
                  β₀ ~ Normal(m, c σ), β[j] ~ Normal(0, c σ)

with z the predictors, each centred and divided by its standard deviation, m the mean of y, and c
the `--prior-scale`. The guide `exact` is the posterior itself (Gelman et al., 2013, "Bayesian data
analysis", chapters 2, 3 and 14): other guides can be compared with it. The default prior
is a weak one, scaled to the data: [mean of y, ten standard deviations of y], [1, 1],
[1, 1 / mean of y] and [1, variance of y].
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
from elbowroom.errors import DataError, OptionError
from elbowroom.models import ROWS, Model, Prepared, Recipe, Training, register
from elbowroom.models._columns import cells, predictor_columns, response_column
from elbowroom.models._options import Columns, Exclude
from elbowroom.models._recipes import line
from elbowroom.options import Location, Name, Scale

PRIORS = {
    "normal": "the prior mean, and a prior sd",
    "bernoulli": "the two parameters of a Beta, both",
    "poisson": "the shape and the rate of a Gamma, both",
    "regression": "the shape and the scale of the inverse Gamma of the variance, both",
}
WIDE = 10.0
"""The default prior's standard deviation of a mean, in those of the data."""


@dataclass(frozen=True)
class Options:
    """Options of `conjugate`."""

    likelihood: Annotated[
        Literal["normal", "bernoulli", "poisson", "regression"],
        Field(description="likelihood: normal, bernoulli, poisson or regression"),
    ] = "normal"
    response: Annotated[Name | None, Field(description="column to model")] = None
    prior: Annotated[
        tuple[Location, Location] | None,
        Field(
            description="two numbers of the prior, in the order shown above, such as 1,1; by "
            "default a weak prior"
        ),
    ] = None
    sigma: Annotated[
        Scale | None,
        Field(description="known sd of --likelihood normal; by default the sd of the data"),
    ] = None
    prior_scale: Annotated[
        Scale,
        Field(
            description="for --likelihood regression: prior sd of the standardised coefficients, "
            "in units of sigma",
        ),
    ] = 2.5
    columns: Columns = None
    exclude: Exclude = ()


def conjugate(
    y: Tensor | None,
    likelihood: str,
    prior: Tensor,
    sigma: Tensor,
    prior_scale: float,
    design: Tensor,
    prior_mean: Tensor,
    spread: Tensor,
    centre: Tensor,
    batch_size: int | None = None,
) -> None:
    """The Pyro model.

    Args:
        y: (rows,), or None to draw it.
        likelihood: "normal", "bernoulli", "poisson" or "regression".
        prior: Its two numbers, (2,).
        sigma: The known standard deviation of a normal likelihood, ().
        prior_scale: Of a regression's standardised coefficients, in standard deviations of y.
        design: Of a regression, a column of ones and the standardised predictors,
            (rows, 1 + columns); of the others (rows, 0).
        prior_mean: Of a regression's standardised coefficients, (1 + columns,).
        spread: What each predictor was divided by, (columns,).
        centre: What was subtracted from it before, (columns,).
        batch_size: Rows drawn for a minibatch, all of them by default.
    """
    first, second = prior
    if likelihood == "regression":
        variance = pyro.sample("variance", dist.InverseGamma(first, second))
        sigma = pyro.deterministic("sigma", variance.sqrt())
        standardised = pyro.sample(
            "standardised_coefficients",
            dist.Normal(prior_mean, prior_scale * sigma.unsqueeze(-1)).to_event(1),
        )  # (1 + columns,)
        coefficients = pyro.deterministic("coefficients", standardised[..., 1:] / spread)
        pyro.deterministic("intercept", standardised[..., 0] - (coefficients * centre).sum(-1))
    elif likelihood == "normal":
        level = pyro.sample("mean", dist.Normal(first, second))
    elif likelihood == "bernoulli":
        level = pyro.sample("probability", dist.Beta(first, second))
    else:
        level = pyro.sample("rate", dist.Gamma(first, second))
    with pyro.plate(ROWS, len(design), subsample_size=batch_size):
        seen = None if y is None else pyro.subsample(y, event_dim=0)
        if likelihood == "regression":
            level = pyro.subsample(design, event_dim=1) @ standardised  # (rows,)
        if likelihood == "bernoulli":
            emission: Any = dist.Bernoulli(level)
        elif likelihood == "poisson":
            emission = dist.Poisson(level)
        else:
            emission = dist.Normal(level, sigma)
        pyro.sample("y", emission, obs=seen)


def prepare(table: pd.DataFrame, options: Options, training: Training | None = None) -> Prepared:
    """A table as the model's arguments; see `elbowroom.models.Model.prepare`.

    Raises:
        DataError: If a column cannot be used, or the response has cells that the likelihood cannot
            have.
        OptionError: If there is no response, or the prior's numbers are none of its.
    """
    source = table if training is None else training.table
    response = _response(source, options)
    y = None
    new = training is not None
    if not new or (response in table.columns and not table[response].isna().all()):
        column = align_columns(table, [response])
        column = numeric_columns(column, allow_constant=new or options.likelihood != "regression")
        y = cells(column)[:, 0]  # (rows,)
        _check_cells(y, response, options.likelihood)
    names: list[str] = []
    design = torch.ones(len(table), 0)
    centre = spread = torch.zeros(0)
    if options.likelihood == "regression":
        names = predictor_columns(source, response, options.columns, options.exclude)
        chosen = numeric_columns(align_columns(table, names), allow_constant=new)
        predictors = cells(chosen)  # (rows, columns)
        if training is None:
            centre, spread = predictors.mean(0), predictors.std(0)
        else:
            centre, spread = (training.arguments[name].to(predictors) for name in SCALING)
        standardised = (predictors - centre) / spread
        design = torch.cat([torch.ones_like(standardised[:, :1]), standardised], 1)
    known: dict[str, Any]
    if training is not None:
        known = {name: training.arguments[name] for name in ("prior", "sigma", "prior_mean")}
    else:
        assert y is not None
        level = torch.zeros(design.shape[1])
        level[:1] = y.mean()
        known = {
            "prior": torch.tensor(_prior(y, options)),
            "sigma": y.std() if options.sigma is None else torch.tensor(options.sigma),
            "prior_mean": level,
        }
    return Prepared(
        arguments={
            "y": y, "likelihood": options.likelihood, "prior_scale": options.prior_scale,
            "design": design, "centre": centre, "spread": spread, **known,
        },
        dims={
            "y": (ROWS,), "design": (ROWS, "term"), "centre": ("predictor",),
            "spread": ("predictor",), "coefficients": ("predictor",),
            "standardised_coefficients": ("term",), "prior_mean": ("term",),
            "prior": ("number",),
        },
        coords={"predictor": names, "term": ["intercept", *names] if names else []},
        columns={"y": response},
    )  # fmt: skip


SCALING = ("centre", "spread")


def _response(table: pd.DataFrame, options: Options) -> str:
    """The column to model: the one named, or the table's own, or its only feature."""
    features = [name for name, role in table.attrs.get("roles", {}).items() if role == "feature"]
    alone = features if len(features) == 1 else list(table.columns)
    given = options.response or (str(alone[0]) if len(alone) == 1 else None)
    hint = "conjugate needs to know which column it models; give --response COLUMN."
    return response_column(table, given, hint)


def _check_cells(y: Tensor, name: str, likelihood: str) -> None:
    """Checks that the likelihood can give every cell."""
    if likelihood == "bernoulli":
        wrong, whole = (y != 0) & (y != 1), "0 or 1"
    elif likelihood == "poisson":
        wrong, whole = (y < 0) | (y != y.round()), "a count: 0, 1, 2, ..."
    else:
        return
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise DataError(
            f"column '{name}', row {row + 1}: {float(y[row]):g} is not {whole}; --likelihood "
            f"{likelihood} needs such values. Correct the cell, or give another --likelihood."
        )


def _prior(y: Tensor, options: Options) -> tuple[float, float]:
    """The two numbers of the prior, as they were given or scaled to the data."""
    likelihood, mean = options.likelihood, float(y.mean())
    spread = float(y.std()) if len(y) > 1 and float(y.std()) > 0 else 1.0
    if options.prior is not None:
        positive = options.prior[1:] if likelihood == "normal" else options.prior
        if min(positive) <= 0:
            raise OptionError(
                f"--prior {options.prior[0]:g},{options.prior[1]:g}: for --likelihood "
                f"{likelihood}, give {PRIORS[likelihood]} above 0."
            )
        return options.prior
    return {
        "normal": (mean, WIDE * spread),
        "bernoulli": (1.0, 1.0),
        "poisson": (1.0, 1 / mean if mean > 0 else 1.0),
        "regression": (1.0, spread**2),
    }[likelihood]


def picture(fit: Callable[..., Any]) -> Any:
    """Prior, likelihood and posterior of a mean, and draws of another guide."""
    from scipy import stats

    from elbowroom.models._pictures import BLUE, GREEN, ORANGE, PINK, draws_of, panels

    adults = load_dataset("heights").query("group == 'adult'").head(8)
    options = {"prior": (160.0, 4.0), "sigma": 9.0, "response": "height", "seed": 1}
    exact = fit("conjugate", adults, **options)
    other = fit("conjugate", adults, "mean_field", engine="svi", **options)
    figure, ax = panels()
    grid = np.linspace(145, 186, 400)
    average, error = adults["height"].mean(), 9 / len(adults) ** 0.5
    posterior = draws_of(exact, "mean")
    ax.hist(
        draws_of(other, "mean"), bins=24, density=True, color=PINK, alpha=0.35,
        label="draws of mean_field",
    )  # fmt: skip
    for mean, sd, style, colour, label in (
        (160, 4, "--", ORANGE, "prior"),
        (average, error, ":", BLUE, "likelihood, scaled to area one"),
        (posterior.mean(), posterior.std(), "-", GREEN, "posterior (exact)"),
    ):
        ax.plot(grid, stats.norm(mean, sd).pdf(grid), style, color=colour, lw=2, label=label)
    heights = adults["height"].to_numpy()
    ax.plot(heights, np.full(len(adults), -0.006), "|", color="black", ms=10, label="rows")
    ax.set(xlabel="mean height of adults (cm)", ylabel="density (per cm)", xlim=(145, 186))
    ax.legend(frameon=False, loc="upper left", fontsize=9)
    return figure


register(
    Model(
        name="conjugate",
        function=conjugate,
        options=Options,
        prepare=prepare,
        observed="y",
        predicts="y",
        dataset="heights",
        internal=("standardised_coefficients",),
        population=(),  # the variance scales the coefficients' prior, and is the rows' own
        recipe=Recipe(line, {"likelihood": "regression", "response": "y"}),
        picture=picture,
    ),
    __name__,
)
