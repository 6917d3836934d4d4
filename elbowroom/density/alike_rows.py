"""Rows that are the same in every column, taken once and counted.

Five hundred rows of three yes-or-no columns are eight kinds of rows at most. A density that is a
sum over rows is that of the kinds, each times its count. Whether a model's is, only a comparison
with the model itself tells.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from elbowroom.guides.space import LatentSpace


@dataclass(frozen=True)
class AlikeRows:
    """When rows that are alike are taken once."""

    least: int = 64
    """Rows from which they are compared."""
    saved: int = 4
    """How many times as many rows as kinds of rows there are at least: few kinds are worth it."""


ALIKE_ROWS = AlikeRows()


class _Counted(Messenger):
    """Multiplies the log densities in a plate by the counts of its rows."""

    def __init__(self, plate: str, counts: Tensor) -> None:
        super().__init__()
        self.plate, self.counts = plate, counts

    def _pyro_sample(self, msg: Any) -> None:
        for frame in msg["cond_indep_stack"]:
            if frame.name == self.plate and frame.vectorized:
                shape = (-1, *(1,) * (-1 - frame.dim))
                msg["scale"] = msg["scale"] * self.counts.reshape(shape)


def kinds_of_rows(
    model: Callable[..., Any], arguments: Mapping[str, Any], space: LatentSpace
) -> tuple[Callable[..., Any], dict[str, Any], int] | None:
    """A model of the kinds of its rows, their arguments, and how many kinds there are.

    Args:
        model: The Pyro model.
        arguments: Its keyword arguments.
        space: Its latent space.

    Returns:
        None where few rows are alike, or rows have continuous latents of their own.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(y):
        ...     p = pyro.sample("p", dist.Beta(1.0, 1.0))
        ...     with pyro.plate("rows", len(y)):
        ...         pyro.sample("y", dist.Bernoulli(p), obs=y)
        >>> arguments = {"y": torch.tensor([1.0, 0.0, 1.0, 1.0] * 20)}
        >>> _, kinds, count = kinds_of_rows(model, arguments, LatentSpace.of(model, arguments))
        >>> kinds["y"], count
        (tensor([0., 1.]), 2)
    """
    plates = {plate for own in space.observed_plates.values() for plate in own}
    if len(plates) != 1 or not all(space.observed_plates.values()):
        return None
    (plate,) = plates
    own = {plate for site in space.sites for plate in site.plates}
    if plate in own or plate.size < ALIKE_ROWS.least:
        return None
    found: list[Tensor] = []

    def seen(value: Any) -> Any:
        if isinstance(value, Tensor) and value.dim() and len(value) == plate.size:
            found.append(value.reshape(plate.size, -1).double())
        return value

    _mapped(seen, dict(arguments))
    if not found:
        return None
    rows = torch.cat(found, 1)
    _, kind, counts = torch.unique(rows, dim=0, return_inverse=True, return_counts=True)
    if len(counts) * ALIKE_ROWS.saved > plate.size:
        return None
    first = torch.full((len(counts),), plate.size).scatter_reduce(
        0, kind, torch.arange(plate.size), "amin"
    )

    def picked(value: Any) -> Any:
        if isinstance(value, Tensor) and value.dim() and len(value) == plate.size:
            return value[first]
        whole = isinstance(value, int) and not isinstance(value, bool)
        return len(counts) if whole and value == plate.size else value

    counted = _Counted(plate.name, counts.to(torch.float64))
    return counted(model), _mapped(picked, dict(arguments)), len(counts)


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """The same dicts, lists and tuples with what they hold changed."""
    if isinstance(value, dict):
        return {key: _mapped(change, each) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_mapped(change, each) for each in value)
    return change(value)
