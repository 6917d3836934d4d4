"""Bayesian neural network: a perceptron with a prior on every weight, for numbers or classes.

With z the predictors, each centred and divided by its standard deviation, f a perceptron whose
weights w and biases b all have Normal priors, and m, s the response's mean and standard deviation,

    w[l] ~ Normal(0, prior_scale / √inputs)     b[l] ~ Normal(0, prior_scale)
    y[i] ~ Normal(m + s f(z[i]), s τ)           τ ~ Exponential(1)        for a number
    y[i] ~ Categorical(softmax f(z[i]))                                   for classes

(Neal, 1996, "Bayesian learning for neural networks"; Blundell, Cornebise, Kavukcuoglu and Wierstra,
2015, "Weight uncertainty in neural networks"). Predictions are averages over the posterior, whose
intervals widen away from the data; in a gap between data, independent Normals hardly widen (Foong,
Burt, Li and Turner, 2020, "On the expressiveness of approximate inference in Bayesian neural
networks"), where NUTS does. The hidden units can be exchanged and their signs flipped, so
that the weights themselves have many equal modes: read the predictions, not the weights.
Reported: `sigma`, in the response's unit.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from elbowroom.models import ROWS, Model, Prepared, Training, register
from elbowroom.models._layers import SUGGESTED, sample_layers, start_of_layers, through
from elbowroom.models._outcomes import NetworkOptions, predictors_and_response


@dataclass(frozen=True)
class Options(NetworkOptions):
    """Options of `bayesian_neural_network`."""

    likelihood: Annotated[
        Literal["normal", "categorical"] | None,
        Field(description="of the response; by default categorical if it is not a number"),
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
    layers = sample_layers(inputs, options.hidden, classes or 1, options.prior_scale)
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
    ),
    __name__,
)
