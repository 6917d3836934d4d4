"""Negative binomial regression: counts whose variance grows faster than their mean.

With z the predictors, each centred and divided by its standard deviation, e the exposure, and m the
mean of the response divided by that of the exposure,

    y[i] ~ NegativeBinomial(mean μ[i], variance μ[i] + α μ[i]²)
    log μ[i] = log e[i] + log m + a + z[i]·b
    a, b[j] ~ Normal(0, 2.5)
    √α ~ HalfNormal(1)

The priors of a and b are the defaults of rstanarm (Goodrich, Gabry, Ali and Brilleman, 2020,
"rstanarm: Bayesian applied regression modeling via Stan"); that of √α is highest at α = 0, the
Poisson distribution (Simpson et al., 2017, "Penalising model component complexity"). What is
reported is in the user's units: `intercept` and `coefficients` of the logarithm of the mean, so
that one unit of a column multiplies the mean by exp(coefficient); and `overdispersion`, α. Without
an intercept nothing is centred, and m is one.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

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
from elbowroom.models._columns import cells
from elbowroom.models._formula import columns_used, read_design
from elbowroom.models._formula_text import code_in
from elbowroom.models._recipes import line
from elbowroom.models._regression_options import RegressionOptions
from elbowroom.models._remedies import of_counts
from elbowroom.options import Name

OFFSET = (
    "If the offset is the logarithm of a column, leave it out and give that column as --exposure."
)
"""What to do instead of an offset."""
LEAST = 1e-8
"""Added to the overdispersion: below it, the logarithm of the probability loses its digits."""
PRIOR_SCALE = 2.5
"""The prior standard deviation of the standardised intercept and coefficients."""


@dataclass(frozen=True)
class Options(RegressionOptions):
    """Options of `negative_binomial`."""

    exposure: Annotated[
        Name | None,
        Field(description="column that the mean is proportional to, such as hours of observation"),
    ] = None


def negative_binomial(
    predictors: Tensor,
    response: Tensor | None,
    exposure: Tensor,
    centre: Tensor,
    spread: Tensor,
    level: Tensor,
    has_intercept: bool = True,
    batch_size: int | None = None,
) -> None:
    """The Pyro model.

    Args:
        predictors: The design matrix without its intercept, in the user's units, (rows, columns).
        response: The counts, (rows,), or None to draw them.
        exposure: What the mean is proportional to, (rows,).
        centre: What is subtracted from each predictor, (columns,).
        spread: What each predictor is divided by, (columns,).
        level: The logarithm of the mean response for an exposure of one, ().
        has_intercept: Whether there is an intercept.
        batch_size: Rows drawn for a minibatch, all of them by default.
    """
    rows, columns = predictors.shape
    height = level
    if has_intercept:
        height = level + pyro.sample(
            "standardised_intercept", dist.Normal(torch.zeros(()), PRIOR_SCALE)
        )
    slopes = pyro.sample(
        "standardised_coefficients", dist.Normal(torch.zeros(columns), PRIOR_SCALE).to_event(1)
    )  # (columns,)
    root = pyro.sample("root_overdispersion", dist.HalfNormal(torch.ones(())))
    coefficients = slopes / spread  # (columns,)
    if has_intercept:
        pyro.deterministic("intercept", height - (coefficients * centre).sum(-1))
    pyro.deterministic("coefficients", coefficients)
    overdispersion = pyro.deterministic("overdispersion", LEAST + root**2)
    with pyro.plate(ROWS, rows, subsample_size=batch_size):
        x = pyro.subsample(predictors, event_dim=1)
        time = pyro.subsample(exposure, event_dim=0)
        y = None if response is None else pyro.subsample(response, event_dim=0)
        log_mean = time.log() + height + (x - centre) @ coefficients  # (rows,)
        known: Any = {"linear_predictor": log_mean}
        # Pyro's mean is total_count * exp(logits).
        pyro.sample(
            "response",
            dist.NegativeBinomial(1 / overdispersion, logits=log_mean + overdispersion.log()),
            obs=y,
            infer=known,
        )


def prepare(table: pd.DataFrame, options: Options, training: Training | None = None) -> Prepared:
    """A table as the model's arguments; see `elbowroom.models.Model.prepare`.

    Raises:
        DataError: If a column cannot be used, if the response is not of counts, or if an exposure
            is not above 0.
        OptionError: If both `formula` and `response` are given, or neither.
    """
    known = [] if options.exposure is None else [options.exposure]
    design = read_design(table, options, training, "negative_binomial", OFFSET, known)
    predictors, counts = design.predictors, design.response
    if counts is not None:
        _refuse(
            (counts < 0) | (counts != counts.round()), counts, design.name,
            "the response must be counts: 0, 1, 2, ...",
        )  # fmt: skip
    exposure = torch.ones(len(predictors), dtype=predictors.dtype)
    if known:
        column = numeric_columns(align_columns(table, known), allow_constant=True)
        exposure = cells(column)[:, 0]  # (rows,)
        _refuse(exposure <= 0, exposure, known[0], "an exposure must be above 0.")
    if training is None:
        assert counts is not None
        centred = design.has_intercept
        scaling = {
            "centre": predictors.mean(0) if centred else torch.zeros(predictors.shape[1]),
            "spread": predictors.std(0),
            "level": (counts.mean() / exposure.mean()).log() if centred else torch.zeros(()),
        }
    else:
        scaling = {name: training.arguments[name] for name in ("centre", "spread", "level")}
    effects = replace(
        design.effects, response=f"mean of {design.name}", name=design.name,
        columns={**design.effects.columns, **dict.fromkeys(known)}, fixed=tuple(known),
    )  # fmt: skip
    return Prepared(
        arguments={
            "predictors": predictors, "response": counts, "exposure": exposure, **scaling,
            "has_intercept": design.has_intercept,
        },
        dims={
            "predictors": (ROWS, "predictor"), "response": (ROWS,), "exposure": (ROWS,),
            "centre": ("predictor",), "spread": ("predictor",), "coefficients": ("predictor",),
            "standardised_coefficients": ("predictor",),
        },
        coords={"predictor": design.columns},
        columns={
            "response": design.name, "predictors": tuple(design.columns),
            **({"exposure": known[0]} if known else {}),
        },
        effects=effects,
    )  # fmt: skip


def _refuse(wrong: Tensor, values: Tensor, name: str, rule: str) -> None:
    """Names the first row that breaks a rule."""
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise DataError(f"column '{name}', row {row + 1}: {float(values[row]):g}; {rule}")


def _counts() -> pd.DataFrame:
    """Forty counts with a mean of e^(1 + a / 2), and an overdispersion of 1/2."""
    table = line()
    mean = np.exp(1 + table["a"] / 2)
    y = np.random.default_rng(4).negative_binomial(2, 2 / (2 + mean))
    return table.assign(y=y)


def picture(fit: Callable[..., Any]) -> Any:
    """Pull-ups against the waist, with bands; and the overdispersion's prior and posterior."""
    from elbowroom.models._pictures import BLUE, GREY, ORANGE, band, draws_of, panels

    table = load_dataset("linnerud")
    own = fit("negative_binomial", table, formula="chins ~ waist", seed=1, draws=20_000)
    figure, (left, right) = panels(2, 9.6)
    x = np.linspace(table["waist"].min(), table["waist"].max(), 80)
    means = np.exp(draws_of(own, "intercept")[:, None] + draws_of(own, "coefficients") * x)
    band(left, x, own.predict(pd.DataFrame({"waist": x})), BLUE, "a new man, 90%")
    low, high = np.quantile(means, [0.05, 0.95], axis=0)
    left.fill_between(x, low, high, color=ORANGE, alpha=0.6, lw=0, label="the mean, 90%")
    left.plot(x, np.median(means, 0), color="black", lw=1)
    left.scatter(table["waist"], table["chins"], s=16, color=GREY, lw=0, label="rows", zorder=3)
    left.set(xlabel="waist (inches)", ylabel="pull-ups", ylim=(0, None))
    left.legend(frameon=False, fontsize=9, loc="upper right")
    # The prior of √α is half Normal; that of α has the density exp(-α / 2) / √(2 π α).
    grid = np.linspace(0.002, 1.2, 400)
    prior = np.exp(-grid / 2) / np.sqrt(2 * np.pi * grid)
    right.hist(
        draws_of(own, "overdispersion"), bins=np.linspace(0, 1.2, 49), density=True, color=BLUE,
        alpha=0.5, label="posterior",
    )  # fmt: skip
    right.plot(grid, prior, "--", color=ORANGE, lw=2, label="prior")
    right.set(xlabel="overdispersion", ylabel="density", xlim=(0, 1.2), ylim=(0, 5))
    right.legend(frameon=False, fontsize=9, loc="upper right")
    return figure


register(
    Model(
        name="negative_binomial",
        function=negative_binomial,
        options=Options,
        prepare=prepare,
        observed="response",
        predicts="response",
        dataset="linnerud",
        needs=lambda table, options: columns_used(table, options, options.exposure),
        code_in=code_in,
        expected=lambda distribution, linear_predictor, arguments: distribution.mean,
        verbs=("score", "effects"),
        internal=("standardised_coefficients", "standardised_intercept", "root_overdispersion"),
        remedies=of_counts,
        recipe=Recipe(_counts, {"formula": "y ~ a + b"}),
        picture=picture,
    ),
    __name__,
)
