"""Networks whose weights are Pyro parameters, shared by models and guides."""

from collections.abc import Sequence

import pyro
import torch
from torch import Tensor
from torch.nn.functional import linear, softplus


def _layer(inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    """Initial weight and bias, as `torch.nn.Linear` draws them: uniform within 1 / √inputs."""
    layer = torch.nn.Linear(inputs, outputs)
    return layer.weight.detach(), layer.bias.detach()


def perceptron(name: str, x: Tensor, widths: Sequence[int], outputs: int) -> Tensor:
    """A multilayer perceptron with softplus units, its weights named `NAME.0.weight` and so on.

    Args:
        name: Prefix of the parameters' names.
        x: Inputs, (..., inputs).
        widths: Units of each hidden layer.
        outputs: Units of the last layer, which is linear.

    Returns:
        (..., outputs).

    Example:
        >>> pyro.clear_param_store()
        >>> perceptron("net", torch.zeros(5, 3), [8], 2).shape
        torch.Size([5, 2])
        >>> sorted(pyro.get_param_store().keys())
        ['net.0.bias', 'net.0.weight', 'net.1.bias', 'net.1.weight']
        >>> pyro.clear_param_store()
    """
    for i, width in enumerate([*widths, outputs]):
        if i > 0:
            x = softplus(x)
        known = f"{name}.{i}.weight" in pyro.get_param_store()
        weight, bias = (None, None) if known else _layer(x.shape[-1], width)
        x = linear(
            x, pyro.param(f"{name}.{i}.weight", weight), pyro.param(f"{name}.{i}.bias", bias)
        )
    return x
