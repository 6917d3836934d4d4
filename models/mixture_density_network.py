"""Mixture density network: a perceptron gives each row a mixture of Normals for its response.

With z the predictors, each centred and divided by its standard deviation, f a perceptron with 3 K
outputs for K components, and m, s the response's mean and standard deviation,

    a[i], c[i], d[i] = f(z[i])                                    (K numbers each)
    k[i] ~ Categorical(softmax a[i])
    y[i] ~ Normal(m + s c[i,k[i]], s exp d[i,k[i]])
    w[l] ~ Normal(0, prior_scale / √inputs)     b[l] ~ Normal(0, prior_scale)

with the component k summed over (Bishop, 1994, "Mixture density networks"). If one input can have
several responses, as in inverse problems, their mean may be far from all of them; the density shows
each of them. The weights have a posterior under `bayes_by_backprop`; `map` and `mle`
give points. With `--weight-prior unscaled`, the weights have the prior standard deviation of the
biases. The likelihood alone may have no maximum: a component can collapse onto one row.
"""

from collections.abc import Callable, Mapping
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
from elbowroom.models import ROWS, Model, Prepared, Recipe, Training, register
from elbowroom.models._layers import SUGGESTED, sample_layers, start_of_layers, through
from elbowroom.models._outcomes import NetworkOptions, predictors_and_response
from elbowroom.models._recipes import SMALL_NETWORK, unrelated
from elbowroom.options import Width


@dataclass(frozen=True)
class Options(NetworkOptions):
    """Options of `mixture_density_network`."""

    components: Annotated[Width, Field(description="number of components, K")] = 3


def mixture_density_network(
    predictors: Tensor,
    response: Tensor | None,
    centre: Tensor,
    spread: Tensor,
    response_centre: Tensor,
    response_spread: Tensor,
    options: Options,
    batch_size: int | None = None,
) -> None:
    """The Pyro model.

    Args:
        predictors: In the user's units, (rows, predictors).
        response: In the user's units, (rows,); None draws it.
        centre: What is subtracted from each predictor, (predictors,).
        spread: What each predictor is divided by, (predictors,).
        response_centre: The mean of the response, ().
        response_spread: The standard deviation of the response, ().
        options: The sizes of the network, and the priors.
        batch_size: Rows drawn for a minibatch, all of them by default.
    """
    rows, inputs = predictors.shape
    layers = sample_layers(inputs, options.hidden, 3 * options.components, *options.prior)
    with pyro.plate(ROWS, rows, subsample_size=batch_size):
        x = pyro.subsample(predictors, event_dim=1)
        y = None if response is None else pyro.subsample(response, event_dim=0)
        output = through(layers, (x - centre) / spread, options.activation)
        logits, centres, log_widths = output.chunk(3, -1)  # (rows, components) each
        normals = dist.Normal(
            response_centre + response_spread * centres, response_spread * log_widths.exp()
        )
        mixture = dist.MixtureSameFamily(dist.Categorical(logits=logits), normals)
        pyro.sample("response", mixture, obs=y)


def prepare(table: pd.DataFrame, options: Options, training: Training | None = None) -> Prepared:
    """A table as the model's arguments; see `elbowroom.models.Model.prepare`.

    Raises:
        DataError: If a column cannot be used, or a label was not there in training.
        OptionError: If no response is named.
    """
    prepared = predictors_and_response(
        table, options, training, "normal", "mixture_density_network"
    )
    del prepared.arguments["classes"]
    prepared.arguments["options"] = options
    return prepared


def starts(arguments: Mapping[str, Any], count: int, seed: int) -> list[dict[str, Tensor]]:
    """Random networks with components side by side: equal ones would stay equal.

    Args:
        arguments: The model's arguments.
        count: How many starts.
        seed: Of them all.
    """
    options, inputs = arguments["options"], arguments["predictors"].shape[1]
    components = options.components
    side_by_side = torch.linspace(-1, 1, components + 2)[1:-1]
    biases = torch.cat([torch.zeros(components), side_by_side, torch.full((components,), -1.0)])
    last = f"layer_{len(options.hidden)}.bias"
    return [
        {**start_of_layers(inputs, options.hidden, 3 * components, seed + i), last: biases}
        for i in range(count)
    ]


def picture(fit: Callable[..., Any]) -> Any:
    """An inverse problem: the density of its branches, and a mean that no row is near to."""
    from elbowroom.models._pictures import BLUE, GREY, ORANGE, panels

    table = load_dataset("inverse_problem")
    own = fit(
        "mixture_density_network", table, "map", seed=1, steps=1500, learning_rate=0.02,
        activation="tanh", prior_scale=3.0,
    )  # fmt: skip
    inputs, outputs = np.linspace(0.0, 1.0, 61), np.linspace(-0.1, 1.1, 81)
    pairs = pd.DataFrame(
        {"input": np.repeat(inputs, len(outputs)), "output": np.tile(outputs, len(inputs))}
    )
    density = np.exp(own.log_density(pairs)).reshape(len(inputs), len(outputs))
    mean = (density * outputs).sum(1) / density.sum(1)
    figure, (left, right) = panels(2, 9.6)
    shades = left.contourf(inputs, outputs, np.minimum(density, 6).T, levels=12, cmap="Blues")
    left.scatter(table["input"], table["output"], s=4, color="black", alpha=0.45, lw=0,
                 label="rows")  # fmt: skip
    left.plot(inputs, mean, color=ORANGE, lw=2, ls="--", label="conditional mean")
    left.set(xlabel="input", ylabel="output", xlim=(0, 1), ylim=(-0.1, 1.1))
    left.legend(frameon=True, framealpha=0.9, fontsize=9, loc="upper left")
    figure.colorbar(shades, ax=left, label="density of the output, cut at 6")
    fine = np.linspace(-0.1, 1.1, 400)
    at = np.exp(own.log_density(pd.DataFrame({"input": np.full(400, 0.5), "output": fine})))
    near = table.loc[(table["input"] - 0.5).abs() < 0.05, "output"]
    right.hist(
        near, bins=np.linspace(0, 1, 26), density=True, color=GREY, alpha=0.35,
        label=f"{len(near)} rows with an input near 0.5",
    )  # fmt: skip
    right.plot(fine, at, color=BLUE, lw=2, label="density at the input 0.5")
    middle = float(np.interp(0.5, inputs, mean))
    right.vlines(middle, 0, at.max(), color=ORANGE, lw=2, ls="--", label="conditional mean")
    right.set(xlabel="output", ylabel="density", ylim=(0, 1.45 * at.max()))
    right.legend(frameon=False, fontsize=9, loc="upper left")
    return figure


register(
    Model(
        name="mixture_density_network",
        function=mixture_density_network,
        options=Options,
        prepare=prepare,
        observed="response",
        predicts="response",
        dataset="inverse_problem",
        starts=starts,
        **SUGGESTED,
        recipe=Recipe(unrelated, {"components": 1, **SMALL_NETWORK}),
        picture=picture,
    ),
    __name__,
)
