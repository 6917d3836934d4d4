"""The memory that a named model takes, counted before anything is made.

The model is run on tensors without storage (PyTorch's fake tensors): every one that it would make
is counted, and none is allocated.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from inspect import signature
from typing import Any

import pyro
import torch
from pyro import poutine
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from elbowroom.errors import OptionError
from elbowroom.memory import check_memory
from elbowroom.options import flag


@dataclass(frozen=True)
class Footprints:
    """When the memory of a model is counted, and how often a fit holds what is counted."""

    counted: int = 1000
    """A size among the options, or the draws of an ELBO, from which it is counted."""
    parameters: int = 4
    """A parameter, its gradient, and the two averages that Adam keeps of it."""
    values: int = 2
    """All else that a run makes, and its gradient."""


FOOTPRINTS = Footprints()


class _Counting(TorchDispatchMode):
    """Counts the bytes of every storage that operations make."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self._kept: list[torch.Tensor] = []  # or a storage's place would be used again

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in tree_leaves(made):
            if isinstance(each, torch.Tensor):
                storage = each.untyped_storage()
                self.sizes[storage._cdata] = storage.nbytes()
                self._kept.append(each)
        return made


def footprint(function: Callable[..., Any], arguments: Mapping[str, Any]) -> tuple[int, int]:
    """The bytes of a model's point parameters, and of all that one run of it makes.

    To be called in a block that leaves Pyro's store as it was.

    Args:
        function: The Pyro model, whose operations' shapes do not depend on values.
        arguments: Of one run.

    Example:
        >>> def model(x):
        ...     weight = pyro.param("weight", lambda: torch.zeros(10_000, 10_000))
        ...     pyro.sample("y", pyro.distributions.Normal(weight.sum() * x, 1.0), obs=x)
        >>> from elbowroom.problem.isolation import isolated
        >>> with isolated(0):
        ...     parameters, everything = footprint(model, {"x": torch.ones(3)})
        >>> parameters, everything > parameters
        (800000000, True)
    """
    from torch._subclasses.fake_tensor import FakeTensorMode  # which takes a second to import

    counting = _Counting()
    with FakeTensorMode(allow_non_fake_inputs=True), counting, torch.no_grad():
        poutine.trace(function).get_trace(**arguments)
        named = dict(pyro.get_param_store().named_parameters())
    parameters = sum(each.numel() * each.element_size() for each in named.values())
    pyro.clear_param_store()
    return parameters, sum(counting.sizes.values())


def check_footprint(
    function: Callable[..., Any],
    arguments: Mapping[str, Any],
    options: Any,
    particles: int,
    batch_size: int | None,
) -> None:
    """Refuses sizes of a named model that would not fit into memory.

    To be called in a block that leaves Pyro's store as it was.

    Args:
        function: The Pyro model.
        arguments: Made of the data.
        options: Of the model.
        particles: Draws in each estimate of the ELBO.
        batch_size: Rows of a minibatch; None for all.

    Raises:
        OptionError: With the memory that they would take, and that is free.
    """
    large = {
        name: value
        for name, value in asdict(options).items()
        if max(_sizes(value), default=0) >= FOOTPRINTS.counted
    }
    if not large and particles < FOOTPRINTS.counted:
        return
    try:
        parameters, everything = footprint(function, arguments)
        of_step = everything
        if batch_size is not None and "batch_size" in signature(function).parameters:
            with suppress(ValueError):  # where there are fewer rows
                of_step = footprint(function, {**arguments, "batch_size": batch_size})[1]
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        return  # an operation that fake tensors do not have: it is left to the allocator
    said = [f"{flag(name)} {_written(value)}" for name, value in large.items()]
    if particles >= FOOTPRINTS.counted:
        said.append(f"--particles {particles}")
    once, steps = everything - parameters, particles * (of_step - parameters)
    size = FOOTPRINTS.parameters * parameters + FOOTPRINTS.values * max(once, steps)
    check_memory(f"a fit with {' and '.join(said)}", size, "give smaller numbers", OptionError)


def _sizes(value: Any) -> list[int]:
    """The whole numbers of an option."""
    values = value if isinstance(value, tuple) else (value,)
    return [each for each in values if isinstance(each, int)]


def _written(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
