"""Minibatches of a model that takes none: it is run for some of its arguments' rows."""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import apply_stack
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from elbowroom.guides.space import LatentSpace, Plate


def plate_of_all(space: LatentSpace) -> Plate | None:
    """The one plate that all latents and all observations lie in; None if there is none.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(y):
        ...     with pyro.plate("rows", len(y)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("y", dist.Normal(z, 1.0), obs=y)
        >>> arguments = {"y": torch.zeros(3)}
        >>> plate_of_all(LatentSpace.of(model, arguments))
        Plate(name='rows', dim=-1, size=3)
    """
    latents = [site.plates for site in space.sites] + list(space.discrete.values())
    if not latents or not space.observed:
        return None
    found = set.intersection(*map(set, [*latents, *space.observed_plates.values()]))
    return next(iter(found)) if len(found) == 1 else None


def some_rows(arguments: Mapping[str, Any], rows: int, index: Tensor) -> dict[str, Any]:
    """The arguments for some of the rows, as far as their sizes tell which have rows.

    Args:
        arguments: Of a model.
        rows: How many rows they have.
        index: Which are taken.

    Example:
        >>> given = {"x": torch.arange(4.0), "n": 4, "scale": 0.5}
        >>> some_rows(given, 4, torch.tensor([3, 0]))
        {'x': tensor([3., 0.]), 'n': 2, 'scale': 0.5}
    """
    found = dict(arguments)
    for name, value in arguments.items():
        if isinstance(value, Tensor) and value.dim() and len(value) == rows:
            found[name] = value[index.to(value.device)]
        elif type(value) is int and value == rows:
            found[name] = len(index)
    return found


class _Whole(Messenger):
    """Keeps a plate to all of the rows that it is given, whatever is set for a minibatch."""

    def __init__(self, plate: str) -> None:
        super().__init__()
        self.plate = plate

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == self.plate and isinstance(msg["fn"], _Subsample):
            msg["value"], msg["stop"] = torch.arange(msg["fn"].size), True


def in_batches(
    function: Callable[..., Any], plate: Plate, arguments: Mapping[str, Any]
) -> Callable[..., Any]:
    """A model or a guide that takes `batch_size`, where all of it lies in one plate.

    Args:
        function: One that takes none.
        plate: Of the rows.
        arguments: Of the function, of which those with as many rows as the plate have rows.
    """
    of_rows = [
        name
        for name, value in arguments.items()
        if isinstance(value, Tensor) and value.dim() and len(value) == plate.size
    ]

    @wraps(function)
    def batched(batch_size: int | None = None, **arguments: Any) -> Any:
        size = len(arguments[of_rows[0]]) if of_rows else plate.size  # of new rows, too
        if batch_size is None or batch_size >= size:
            return function(**arguments)
        rows: Any = {
            "type": "sample", "name": plate.name, "fn": _Subsample(size, batch_size),
            "is_observed": False, "args": (), "kwargs": {}, "value": None, "infer": {},
            "scale": 1.0, "mask": None, "cond_indep_stack": (), "done": False, "stop": False,
            "continuation": None,
        }  # fmt: skip
        apply_stack(rows)
        with poutine.scale(scale=size / batch_size), _Whole(plate.name):
            return function(**some_rows(arguments, size, rows["value"]))

    return batched
