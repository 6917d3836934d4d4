"""Networks whose weights are Pyro parameters, shared by models and guides."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from math import prod
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.nn.functional import conv2d, conv_transpose2d, linear, relu, softplus

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softplus": softplus,
    "tanh": torch.tanh,
    "relu": relu,
}
KERNEL = {"kernel_size": 3, "stride": 2, "padding": 1}
"""Of a convolution, which halves height and width, and of its transpose, which doubles them."""


def _parameters(name: str, make: Callable[[], Any]) -> tuple[Tensor, Tensor]:
    """The weight and bias of a layer; initially as torch draws them, within 1 / √inputs."""
    made = cache(make)
    return (
        pyro.param(f"{name}.weight", lambda: made().weight.detach()),
        pyro.param(f"{name}.bias", lambda: made().bias.detach()),
    )


def perceptron(
    name: str, x: Tensor, widths: Sequence[int], outputs: int, activation: str = "softplus"
) -> Tensor:
    """A multilayer perceptron, its weights named `NAME.0.weight` and so on.

    Args:
        name: Prefix of the parameters' names.
        x: Inputs, (..., inputs).
        widths: Units of each hidden layer.
        outputs: Units of the last layer, which is linear.
        activation: Of the hidden units, of `ACTIVATIONS`.

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
            x = ACTIVATIONS[activation](x)
        layer = _parameters(f"{name}.{i}", partial(torch.nn.Linear, x.shape[-1], width))
        x = linear(x, *layer)
    return x


def image_sizes(shape: Sequence[int], layers: int) -> list[tuple[int, int]]:
    """Height and width of an image before the first of some convolutions, and after each.

    Example:
        >>> image_sizes((28, 28), 2)
        [(28, 28), (14, 14), (7, 7)]
    """
    sizes = [(int(shape[0]), int(shape[1]))]
    for _ in range(layers):
        height, width = sizes[-1]
        sizes.append(((height + 1) // 2, (width + 1) // 2))
    return sizes


def convolutional_encoder(
    name: str, x: Tensor, shape: Sequence[int], channels: Sequence[int], outputs: int,
    activation: str, extra: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Convolutions of images, each halving height and width, and a linear layer.

    Args:
        name: Prefix of the parameters' names.
        x: Flat images, (..., pixels).
        shape: Height, width and, if there are several, colours of an image.
        channels: Of each convolution.
        outputs: Units of the last layer.
        activation: Of the hidden units, of `ACTIVATIONS`.
        extra: More numbers for the last layer, (..., numbers).

    Returns:
        (..., outputs).
    """
    leading = x.shape[:-1]
    colours = shape[2] if len(shape) > 2 else 1
    x = x.reshape(-1, *shape[:2], colours).movedim(-1, 1)  # (images, colours, height, width)
    for i, width in enumerate(channels):
        make = partial(torch.nn.Conv2d, x.shape[1], width, KERNEL["kernel_size"])
        layer = _parameters(f"{name}.{i}", make)
        x = conv2d(x, *layer, stride=KERNEL["stride"], padding=KERNEL["padding"])
        x = ACTIVATIONS[activation](x)
    flat = x.reshape(*leading, -1)
    if extra is not None:
        flat = torch.cat([flat, extra], -1)
    return perceptron(f"{name}.last", flat, (), outputs)


def convolutional_decoder(
    name: str, z: Tensor, shape: Sequence[int], channels: Sequence[int], activation: str
) -> Tensor:
    """A linear layer, and transposed convolutions that double height and width up to an image's.

    Args:
        name: Prefix of the parameters' names.
        z: Inputs, (..., inputs).
        shape: Height, width and, if there are several, colours of an image.
        channels: Of what goes into each convolution.
        activation: Of the hidden units, of `ACTIVATIONS`.

    Returns:
        Flat images, (..., pixels).

    Example:
        >>> pyro.clear_param_store()
        >>> convolutional_decoder("net", torch.zeros(2, 5, 3), (9, 7), (8, 4), "relu").shape
        torch.Size([2, 5, 63])
        >>> pyro.clear_param_store()
    """
    colours = shape[2] if len(shape) > 2 else 1
    sizes = image_sizes(shape, len(channels))[::-1]
    x = perceptron(f"{name}.first", z, (), channels[0] * prod(sizes[0]))
    x = x.reshape(-1, channels[0], *sizes[0])  # (images, channels, height, width)
    for i, width in enumerate([*channels[1:], colours]):
        make = partial(torch.nn.ConvTranspose2d, x.shape[1], width, KERNEL["kernel_size"])
        layer = _parameters(f"{name}.{i}", make)
        odd = [(size + 1) % 2 for size in sizes[i + 1]]
        x = conv_transpose2d(
            ACTIVATIONS[activation](x), *layer, stride=KERNEL["stride"],
            padding=KERNEL["padding"], output_padding=odd,
        )  # fmt: skip
    return x.movedim(1, -1).reshape(*z.shape[:-1], -1)
