"""Bayesian linear regression with Normal noise and priors scaled to the data.

With z the predictors, each centred and divided by its standard deviation, and m, s the response's
mean and standard deviation,

    y[i] ~ Normal(m + s (a + z[i]·b), s τ)
    a, b[j] ~ Normal(0, 2.5)
    τ ~ Exponential(1)

the weakly informative defaults of rstanarm (Goodrich, Gabry, Ali and Brilleman, 2020, "rstanarm:
Bayesian applied regression modeling via Stan"). What is reported is in the user's units:
`intercept`, `coefficients` (the response's unit for one unit of the column) and `sigma`. Without an
intercept nothing is centred.

With `--priors conjugate`, the posterior and each update of coordinate ascent have a closed form:

    τ² ~ InverseGamma(0.5, 0.01)
    a, b[j] ~ Normal(0, 2.5 τ)

so that τ is between 0.06 and 4.5 with prior probability 0.95.
"""

from collections.abc import Callable
from dataclasses import dataclass as plain_dataclass
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
from elbowroom.models import ROWS, Model, Prepared, Recipe, Training, register
from elbowroom.models._formula import RegressionOptions, code_in, read_design
from elbowroom.models._recipes import line

FAR = 3.0
"""Standard deviations between zero and the mean of counts that a Normal fits well enough."""
MOST_COUNTS = 100
"""Different values; those of more are measured numbers that were rounded."""
OFFSET = (
    "Subtract it from the response, which is the same model: add a column {response} - {known} to "
    "the table, or write I({response} - {known}) ~ and the other terms."
)
"""What to do instead of an offset."""
PRIOR_SCALE = 2.5
"""The prior standard deviation of the standardised intercept and coefficients."""


@plain_dataclass(frozen=True)
class ConjugatePriors:
    """The conjugate prior of the noise, in standard deviations of the response."""

    shape: float = 0.5
    """Of the inverse Gamma of its variance, which so counts for one row."""
    scale: float = 0.01
    """The square of that row's noise, by half: small, since the noise may be."""


CONJUGATE = ConjugatePriors()


@dataclass(frozen=True)
class Options(RegressionOptions):
    """Options of `bayesian_regression`."""

    priors: Annotated[
        Literal["weak", "conjugate"],
        Field(
            description="priors: weak, or conjugate, whose updates have a closed form (--engine "
            "coordinate_ascent)"
        ),
    ] = "weak"


def bayesian_regression(
    predictors: Tensor,
    response: Tensor | None,
    centre: Tensor,
    spread: Tensor,
    response_centre: Tensor,
    response_spread: Tensor,
    has_intercept: bool = True,
    conjugate: bool = False,
    batch_size: int | None = None,
) -> None:
    """The Pyro model.

    Args:
        predictors: The design matrix without its intercept, in the user's units, (rows, columns).
        response: (rows,), or None to draw it.
        centre: What is subtracted from each predictor, (columns,).
        spread: What each predictor is divided by, (columns,).
        response_centre: The mean of the response, ().
        response_spread: The standard deviation of the response, ().
        has_intercept: Whether there is an intercept.
        conjugate: Whether the priors are conjugate.
        batch_size: Rows drawn for a minibatch, all of them by default.
    """
    rows, columns = predictors.shape
    level = response_centre
    width: Any = PRIOR_SCALE
    if conjugate:
        inverse_gamma = dist.InverseGamma(torch.tensor(CONJUGATE.shape), CONJUGATE.scale)
        noise = pyro.sample("standardised_variance", inverse_gamma).sqrt()
        width = PRIOR_SCALE * noise
    if has_intercept:
        height = pyro.sample("standardised_intercept", dist.Normal(torch.zeros(()), width))
        level = response_centre + response_spread * height
    slopes = pyro.sample(
        "standardised_coefficients", dist.Normal(torch.zeros(columns), width).to_event(1)
    )  # (columns,)
    if not conjugate:
        noise = pyro.sample("standardised_sigma", dist.Exponential(torch.ones(())))
    coefficients = response_spread * slopes / spread  # (columns,)
    if has_intercept:
        pyro.deterministic("intercept", level - (coefficients * centre).sum(-1))
    pyro.deterministic("coefficients", coefficients)
    sigma = pyro.deterministic("sigma", response_spread * noise)
    with pyro.plate(ROWS, rows, subsample_size=batch_size):
        x = pyro.subsample(predictors, event_dim=1)
        y = None if response is None else pyro.subsample(response, event_dim=0)
        mean = level + (x - centre) @ coefficients  # (rows,)
        pyro.sample("response", dist.Normal(mean, sigma), obs=y)


def no_normal_number(values: Tensor, name: str) -> tuple[str, ...]:
    """What a response is, if its noise cannot be Normal: two values, or counts near zero.

    Example:
        >>> no_normal_number(torch.tensor([0.5, 1.5, 2.5]), "dose")
        ()
    """
    different = values.unique()
    if len(different) == 2:
        low, high = (f"{float(value):g}" for value in different)
        return (
            f"The response '{name}' has only two values, {low} and {high}, so its noise is not "
            "Normal. The fit is a linear probability model, whose predictions can be below "
            f"{low} or above {high}. Write a model of your own with pyro.sample('{name}', "
            "dist.Bernoulli(logits=...), obs=y).",
        )
    whole = bool((values == values.round()).all())
    near = 0 <= float(values.min()) <= 1 and float(values.mean()) < FAR * float(values.std())
    if whole and near and len(different) <= min(MOST_COUNTS, len(values) / 2):
        return (
            f"The response '{name}' looks like counts: whole numbers, the smallest "
            f"{float(values.min()):g}. The noise of counts is not Normal: its variance grows with "
            "the mean, and counts are not negative. Use the model negative_binomial.",
        )
    return ()


def prepare(table: pd.DataFrame, options: Options, training: Training | None = None) -> Prepared:
    """A table as the model's arguments; see `elbowroom.models.Model.prepare`.

    Raises:
        DataError: If a column cannot be used; the message names it.
        OptionError: If both `formula` and `response` are given, or neither.
    """
    design = read_design(table, options, training, "bayesian_regression", OFFSET)
    predictors, outcome, has_intercept = design.predictors, design.response, design.has_intercept
    doubts: tuple[str, ...] = ()
    if training is None:
        assert outcome is not None
        doubts = no_normal_number(outcome, design.name)
        zero = torch.zeros(())
        scaling = {
            "centre": predictors.mean(0) if has_intercept else torch.zeros(predictors.shape[1]),
            "spread": predictors.std(0),
            "response_centre": outcome.mean() if has_intercept else zero,
            "response_spread": outcome.std(),
        }
    else:
        scaling = {
            name: training.arguments[name]
            for name in ("centre", "spread", "response_centre", "response_spread")
        }
    return Prepared(
        arguments={
            "predictors": predictors,
            "response": outcome,
            **scaling,
            "has_intercept": has_intercept,
            "conjugate": options.priors == "conjugate",
        },
        dims={
            "predictors": (ROWS, "predictor"),
            "response": (ROWS,),
            "centre": ("predictor",),
            "spread": ("predictor",),
            "coefficients": ("predictor",),
            "standardised_coefficients": ("predictor",),
        },
        coords={"predictor": design.columns},
        columns={"response": design.name, "predictors": tuple(design.columns)},
        doubts=doubts,
    )


def picture(fit: Callable[..., Any]) -> Any:
    """Rows with the band of their mean and of new rows; intervals of all coefficients."""
    from elbowroom.models._pictures import BLUE, GREY, ORANGE, band, draws_of, panels

    table = load_dataset("diabetes")
    own = fit("bayesian_regression", table, formula="progression ~ bmi", seed=1, draws=20_000)
    figure, (left, right) = panels(2, 9.6)
    x = np.linspace(table["bmi"].min(), table["bmi"].max(), 80)
    lines = draws_of(own, "intercept")[:, None] + draws_of(own, "coefficients") * x
    left.scatter(table["bmi"], table["progression"], s=9, color=GREY, alpha=0.5, lw=0, label="rows")
    band(left, x, own.predict(pd.DataFrame({"bmi": x})), BLUE, "a new row, 90%")
    low, high = np.quantile(lines, [0.05, 0.95], axis=0)
    left.fill_between(x, low, high, color=ORANGE, alpha=0.6, lw=0, label="the mean, 90%")
    left.plot(x, lines.mean(0), color="black", lw=1)
    left.set(xlabel="body mass index, bmi (kg/m²)", ylabel="disease progression after a year")
    left.legend(frameon=False, fontsize=9, loc="upper left")
    whole = fit("bayesian_regression", table, response="progression", seed=1)
    names = list(whole.problem.prepared.coords["predictor"])
    by_sd = draws_of(whole, "coefficients") * table[names].std().to_numpy()
    low, middle, high = np.quantile(by_sd, [0.05, 0.5, 0.95], axis=0)
    places = np.arange(len(names))[::-1]
    right.axvline(0, color=GREY, lw=0.8, ls=":")
    right.hlines(places, low, high, color=BLUE, lw=2.5, label="90% interval")
    right.plot(middle, places, "o", color=BLUE, ms=5, label="median")
    right.set_yticks(places, names)
    right.set(xlabel="change of progression for one sd of the column", ylabel="predictor")
    right.legend(frameon=False, fontsize=9, loc="upper left")
    return figure


register(
    Model(
        name="bayesian_regression",
        function=bayesian_regression,
        options=Options,
        prepare=prepare,
        observed="response",
        predicts="response",
        dataset="diabetes",
        code_in=code_in,
        internal=(
            "standardised_coefficients",
            "standardised_intercept",
            "standardised_sigma",
            "standardised_variance",
        ),
        population=(),  # the variance scales the coefficients' prior, and is the rows' own
        recipe=Recipe(line, {"formula": "y ~ a + b"}),
        picture=picture,
    ),
    __name__,
)
