"""Sizes up to which work is affordable, on a machine with a few cores and gigabytes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sizes:
    """Sizes that several rooms share."""

    memory: int = 20_000_000
    """Numbers that one batch of evaluations may hold: 160 MB in float64."""
    cache: int = 100_000
    """Numbers of one operation that stay in a core's cache; larger batches are slower."""
    evaluated: int = 300_000_000
    """Numbers of rows, once for each draw of their latents, that a few seconds evaluate."""
    dense: int = 2000
    """The largest dimension in which covariances are stored whole: their factors take a second."""
    products: int = 300
    """The largest dimension in which a Hessian is taken whole: one product for each coordinate."""
    arguments: int = 200_000
    """Numbers in a model's arguments below which one run of it takes milliseconds on one thread."""


SIZES = Sizes()


def numbers_in(arguments: Mapping[str, Any]) -> int:
    """How many numbers the tensors among a model's arguments hold.

    Args:
        arguments: Anything with a `numel` is a tensor.
    """
    return sum(value.numel() for value in arguments.values() if hasattr(value, "numel"))
