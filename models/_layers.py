"""Layers of networks whose weights are latent sites, with Normal priors."""

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.runtime import effectful
from torch import Tensor
from torch.nn.functional import linear

from elbowroom.models._networks import ACTIVATIONS

# Their posterior has more modes than any number of starts would find.
SUGGESTED: dict[str, Any] = {"engine": "svi", "suggested": {"learning_rate": 0.01}}
"""Of the declaration of a model with such layers."""
Layer = tuple[Tensor, Tensor]
"""The weights of a layer, (outputs, inputs), and its biases, (outputs,)."""


def sample_layers(
    inputs: int, widths: Sequence[int], outputs: int, scale: float, scaled: bool = True
) -> list[Layer]:
    """The weights and biases of a perceptron, as the sites `layer_0.weight`, `layer_0.bias`, ....

    The prior standard deviation of a bias is `scale`, that of a weight `scale` over the root of the
    layer's inputs, so that the spread of the outputs does not grow with the width (Neal, 1996,
    "Bayesian learning for neural networks"). If it is not `scaled`, that of a weight is `scale`,
    too: with 1, the Normal(0, 1) of many papers, under which wide layers vary more.

    Args:
        inputs: Columns of what goes in.
        widths: Units of each hidden layer.
        outputs: Units of the last one.
        scale: See above.
        scaled: See above.
    """
    layers = []
    for i, width in enumerate([*widths, outputs]):
        spread = scale / inputs**0.5 if scaled else scale
        weight = pyro.sample(
            f"layer_{i}.weight", dist.Normal(torch.zeros(width, inputs), spread).to_event(2)
        )
        bias = pyro.sample(f"layer_{i}.bias", dist.Normal(torch.zeros(width), scale).to_event(1))
        layers.append((weight, bias))
        inputs = width
    return layers


def start_of_layers(
    inputs: int, widths: Sequence[int], outputs: int, seed: int
) -> dict[str, Tensor]:
    """Random values of the same sites, of the size that torch begins networks with.

    Example:
        >>> list(start_of_layers(3, [8], 2, seed=0))
        ['layer_0.weight', 'layer_0.bias', 'layer_1.weight', 'layer_1.bias']
    """
    random = torch.Generator().manual_seed(seed)
    values = {}
    for i, width in enumerate([*widths, outputs]):
        draw = torch.randn(width, inputs, generator=random, dtype=torch.float64)
        values[f"layer_{i}.weight"] = draw / (3 * inputs) ** 0.5
        values[f"layer_{i}.bias"] = torch.zeros(width)
        inputs = width
    return values


@effectful(type="layer")
def weigh(x: Tensor, weight: Tensor, bias: Tensor, name: str = "") -> Tensor:
    """What a layer makes of rows, (rows, outputs); a handler may draw it for each row instead.

    See `elbowroom.objectives.local_reparameterisation`.

    Args:
        x: (rows, inputs).
        weight: The site `NAME.weight`, (outputs, inputs).
        bias: The site `NAME.bias`, (outputs,).
        name: The layer's.
    """
    return linear(x, weight, bias)


def through(layers: Sequence[Layer], x: Tensor, activation: str) -> Tensor:
    """What the layers make of rows, (rows, inputs): (rows, outputs), the last one linear.

    Example:
        >>> layers = sample_layers(3, [8], 2, scale=1.0)
        >>> through(layers, torch.zeros(5, 3), "tanh").shape
        torch.Size([5, 2])
    """
    for i, (weight, bias) in enumerate(layers):
        if i > 0:
            x = ACTIVATIONS[activation](x)
        x = weigh(x, weight, bias, name=f"layer_{i}")
    return x
