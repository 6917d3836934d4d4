"""The operations of a recording: what they take and what they give."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

CHECK = torch.ops.aten._linalg_check_errors.default
"""Raises for the whole batch where one row's matrix cannot be factorised."""
READ = torch.ops.aten._local_scalar_dense.default
"""Takes a number out of a tensor, to where no recording follows it."""
DETACH = torch.ops.aten.detach.default
"""Gives what it takes, where no gradient is followed."""
TURN = torch.ops.aten.t.default
"""Transposes a matrix."""
FILLED = {
    "zeros_like.default": 0.0, "new_zeros.default": 0.0,
    "ones_like.default": 1.0, "new_ones.default": 1.0,
    "full_like.default": None, "new_full.default": None,
}  # fmt: skip
"""Operations that take a tensor for its shape alone, and the number that they fill theirs with;
None where it is their last argument."""


@dataclass(frozen=True)
class Slot:
    """The value that an operation gave, in a recorded argument's place."""

    index: int


@dataclass(frozen=True)
class Affine:
    """A whole number that follows the batch: factor · rows + offset."""

    factor: int
    offset: int


@dataclass
class Operation:
    """One call of the dispatcher.

    Attributes:
        function: An overload of an operator.
        arguments: What it takes, with slots in the place of tensors.
        keywords: The same by name.
        outputs: The slots of the tensors that it gives.
        storages: Of those.
        places: Where they stand among all that it gives, some of which may be None.
    """

    function: Any
    arguments: Any
    keywords: Any
    outputs: list[int]
    storages: list[int]
    places: tuple[int, ...] = (0,)

    @cached_property
    def taken(self) -> set[int]:
        """The slots of the values that it takes."""
        taken = leaves((self.arguments, self.keywords))
        return {leaf.index for leaf in taken if isinstance(leaf, Slot)}


def leaves(value: Any) -> list[Any]:
    """What lies in nested lists, tuples and dicts."""
    found: list[Any] = []
    _collect((value,), found)
    return found


def _collect(values: Any, found: list[Any]) -> None:
    # Called for all arguments of all operations: no generators.
    for each in values:
        if isinstance(each, (list, tuple)):
            _collect(each, found)
        elif isinstance(each, dict):
            _collect(each.values(), found)
        else:
            found.append(each)


def mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """The same nest with its leaves changed."""
    if isinstance(value, (list, tuple)):
        return type(value)(
            [
                mapped(change, each) if isinstance(each, (list, tuple, dict)) else change(each)
                for each in value
            ]
        )
    if isinstance(value, dict):
        return {key: mapped(change, each) for key, each in value.items()}
    return change(value)


def is_random(operation: Operation) -> bool:
    """Whether it draws random numbers."""
    return torch.Tag.nondeterministic_seeded in operation.function.tags


def name_of(operation: Operation) -> str:
    """The name of an operation and its overload, as in "mul.Tensor"."""
    return str(operation.function).removeprefix("aten.")
