"""Bayesian neural network: a perceptron with a prior on every weight, for a number or a class.

With z the predictors, each centred and divided by its standard deviation, f a perceptron whose
weights w and biases b all have Normal priors, and m, s the response's mean and standard deviation,

    w[l] ~ Normal(0, prior_scale / √inputs)     b[l] ~ Normal(0, prior_scale)
    y[i] ~ Normal(m + s f(z[i]), s τ)           τ ~ Exponential(1)        for a number
    y[i] ~ Categorical(softmax f(z[i]))                                   for classes

(Neal, 1996, "Bayesian learning for neural networks"; Blundell, Cornebise, Kavukcuoglu and Wierstra,
2015, "Weight uncertainty in neural networks"). Predictions are averages over the posterior, and
their intervals widen away from the data. In a gap between data the intervals of NUTS widen, but
those of independent Normals hardly do (Foong, Burt, Li and Turner, 2020, "On the expressiveness of
approximate inference in Bayesian neural networks"). The hidden units can be exchanged and their
signs flipped, so the weights themselves have many equal modes: read the predictions, not the
weights.
Reported: `sigma`, in the response's unit. With `--weight-prior unscaled`, weights have the prior
standard deviation of the biases.
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
from torch import Tensor

from elbowroom.models import ROWS, Model, Prepared, Recipe, Training, register
from elbowroom.models._layers import SUGGESTED, sample_layers, start_of_layers, through
from elbowroom.models._outcomes import NetworkOptions, predictors_and_response
from elbowroom.models._recipes import SMALL_NETWORK, unrelated


@dataclass(frozen=True)
class Options(NetworkOptions):
    """Options of `bayesian_neural_network`."""

    likelihood: Annotated[
        Literal["normal", "categorical"] | None,
        Field(
            description="likelihood of the response: normal or categorical; by default categorical "
            "if the response is not a number"
        ),
    ] = None


def bayesian_neural_network(
    predictors: Tensor,
    response: Tensor | None,
    centre: Tensor,
    spread: Tensor,
    response_centre: Tensor,
    response_spread: Tensor,
    classes: int,
    options: Options,
    batch_size: int | None = None,
) -> None:
    """The Pyro model.

    Args:
        predictors: In the user's units, (rows, predictors).
        response: (rows,), in the user's units or class numbers; None draws it.
        centre: What is subtracted from each predictor, (predictors,).
        spread: What each predictor is divided by, (predictors,).
        response_centre: The mean of the response, ().
        response_spread: The standard deviation of the response, ().
        classes: How many classes there are; 0 where the response is a number.
        options: The sizes of the network, and the priors.
        batch_size: Rows drawn for a minibatch, all of them by default.
    """
    rows, inputs = predictors.shape
    layers = sample_layers(inputs, options.hidden, classes or 1, *options.prior)
    if not classes:
        noise = pyro.sample("standardised_sigma", dist.Exponential(torch.ones(())))
        sigma = pyro.deterministic("sigma", response_spread * noise)
    with pyro.plate(ROWS, rows, subsample_size=batch_size):
        x = pyro.subsample(predictors, event_dim=1)
        y = None if response is None else pyro.subsample(response, event_dim=0)
        output = through(layers, (x - centre) / spread, options.activation)  # (rows, outputs)
        if classes:
            likelihood = dist.Categorical(logits=output)
        else:
            likelihood = dist.Normal(response_centre + response_spread * output[..., 0], sigma)
        pyro.sample("response", likelihood, obs=y)


def prepare(table: pd.DataFrame, options: Options, training: Training | None = None) -> Prepared:
    """A table as the model's arguments; see `elbowroom.models.Model.prepare`.

    Raises:
        DataError: If a column cannot be used, or a label was not there in training.
        OptionError: If no response is named.
    """
    prepared = predictors_and_response(
        table, options, training, options.likelihood, "bayesian_neural_network"
    )
    prepared.arguments["options"] = options
    return prepared


def starts(arguments: Mapping[str, Any], count: int, seed: int) -> list[dict[str, Tensor]]:
    """Initial values drawn at random: equal hidden units would have equal gradients.

    Args:
        arguments: The model's arguments.
        count: How many starts.
        seed: Of them all.
    """
    options, inputs = arguments["options"], arguments["predictors"].shape[1]
    outputs = arguments["classes"] or 1
    noise = {} if arguments["classes"] else {"standardised_sigma": torch.tensor(0.5)}
    return [
        {**start_of_layers(inputs, options.hidden, outputs, seed + i), **noise}
        for i in range(count)
    ]


def sine_with_gap() -> pd.DataFrame:
    """Eighty rows of a noisy sine, none of them near zero."""
    random = np.random.default_rng(1)
    x = np.sort(np.concatenate([random.uniform(-2, -0.7, 40), random.uniform(0.7, 2, 40)]))
    return pd.DataFrame({"x": x, "y": np.sin(2 * x) + 0.1 * random.normal(size=80)})


def picture(fit: Callable[..., Any]) -> Any:
    """Predictions of posterior weights, and of the mode alone, in and around the data."""
    from elbowroom.models._pictures import BLUE, GREY, ORANGE, band, panels

    table, x = sine_with_gap(), np.linspace(-4, 4, 161)
    figure, (left, right) = panels(2, 9.6)
    for guide, colour, style in (("bayes_by_backprop", BLUE, "-"), ("map", ORANGE, "--")):
        own = fit(
            "bayesian_neural_network", table, guide, response="y", seed=1, steps=4000,
            draws=4000, prior_scale=2.0,
        )  # fmt: skip
        found = own.predict(pd.DataFrame({"x": x}))
        band(left, x, found, colour, f"{guide}: 90% interval of a new row")
        left.plot(x, found["mean"], style, color=colour, lw=1.6, label=f"{guide}: mean")
        right.plot(x, found["sd"], style, color=colour, lw=2, label=guide)
    left.plot(x, np.sin(2 * x), color=GREY, lw=1.2, ls=":", label="the curve behind the rows")
    left.plot(table["x"], table["y"], ".", color="black", ms=4, label="rows")
    left.set(xlabel="x", ylabel="y", ylim=(-5.5, 11))
    left.legend(frameon=False, fontsize=8.5, loc="upper right")
    for k, (low, high) in enumerate(((-2, -0.7), (0.7, 2))):
        label = "where rows are" if k == 0 else None
        right.axvspan(low, high, color=GREY, alpha=0.15, lw=0, label=label)
    right.set(xlabel="x", ylabel="sd of a new row's y", ylim=(0, None))
    right.legend(frameon=False, fontsize=9, loc="upper center")
    return figure


register(
    Model(
        name="bayesian_neural_network",
        function=bayesian_neural_network,
        options=Options,
        prepare=prepare,
        observed="response",
        predicts="response",
        dataset="diabetes",
        internal=("standardised_sigma",),
        starts=starts,
        **SUGGESTED,
        recipe=Recipe(unrelated, SMALL_NETWORK),
        picture=picture,
    ),
    __name__,
)
