"""Recorded operations that give nothing new, left out.

A value is followed as factor · base + shift, broadcast to a shape. Factors are powers of two with a
sign, by which numbers are scaled without rounding, so that what is multiplied by them, negated or
squared costs nothing until another operation wants it; shifts are the constants of log densities,
which no gradient sees. What is the same for many rows is computed for one of them. What was
computed before is not computed again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import frexp, isfinite
from typing import Any

import torch
from torch import Tensor

from elbowroom.inference.operations import (
    DETACH,
    READ,
    Operation,
    Slot,
    is_random,
    mapped,
    name_of,
)

SAME_SHAPE = ("view.default", "expand.default", "_unsafe_view.default", "reshape.default")
UNARY = (
    "exp.default", "expm1.default", "log.default", "log1p.default", "reciprocal.default",
    "rsqrt.default", "sigmoid.default", "sqrt.default", "tanh.default",
)  # fmt: skip
SUMS = ("sum.default", "sum.dim_IntList")
EXPAND = torch.ops.aten.expand.default
MULTIPLY = torch.ops.aten.mul.Scalar
SHIFT = torch.ops.aten.add.Scalar
ADD, SUBTRACT = torch.ops.aten.add.Tensor, torch.ops.aten.sub.Tensor


@dataclass(frozen=True)
class _Linear:
    """A value as factor · base + shift, broadcast to a shape if there is one."""

    base: int
    factor: float = 1.0
    shift: float = 0.0
    shape: torch.Size | None = None

    def times(self, number: float) -> "_Linear":
        return replace(self, factor=self.factor * number, shift=self.shift * number)

    def plus(self, number: float) -> "_Linear":
        return replace(self, shift=self.shift + number)


def _exact(number: float) -> bool:
    """Whether multiplying by a number does not round."""
    return isfinite(number) and number != 0 and abs(frexp(number)[0]) == 0.5


def _hashable(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(map(_hashable, value))
    if isinstance(value, dict):
        return tuple((key, _hashable(each)) for key, each in value.items())
    return type(value), value


class Simplifier:
    """Simplifies the operations of a recording.

    Args:
        values: Of every slot in one run, for their shapes.
        constants: The slots whose values never change.
        mutated: Storages that some operation writes into.
    """

    def __init__(
        self, values: Sequence[Tensor], constants: dict[int, Tensor], mutated: set[int]
    ) -> None:
        self.values, self.constants, self.mutated = list(values), constants, mutated
        self.linear: dict[int, _Linear] = {}
        self.held = [value.shape for value in values]  # by the slots as they are in the end
        self.made: dict[Any, list[int]] = {}
        self.kept: list[Operation] = []
        self.rules: dict[str, Callable[[Operation], _Linear | None]] = {
            "neg.default": lambda each: self._of(each.arguments[0]).times(-1.0),
            "mul.Tensor": self._product,
            "mul.Scalar": self._product,
            "div.Tensor": self._quotient,
            "div.Scalar": self._quotient,
            "add.Tensor": lambda each: self._sum(each, 1.0),
            "add.Scalar": lambda each: self._sum(each, 1.0),
            "sub.Tensor": lambda each: self._sum(each, -1.0),
            "sub.Scalar": lambda each: self._sum(each, -1.0),
            "rsub.Scalar": self._reversed,
            "pow.Tensor_Scalar": self._power,
            **dict.fromkeys(SUMS, self._total),
            **dict.fromkeys(SAME_SHAPE, self._reshaped),
            **dict.fromkeys(UNARY, self._unary),
        }

    def __call__(
        self, operations: Sequence[Operation], results: Sequence[int]
    ) -> tuple[list[Operation], list[int]]:
        """The operations that are left, and the slots of the results."""
        for operation in operations:
            unlike = is_random(operation) or operation.function is READ
            if unlike or self._touches_mutated(operation):
                self._keep(operation)
            elif operation.function is DETACH:
                self.linear[operation.outputs[0]] = self._of(operation.arguments[0])
            else:
                found = self._simpler(operation)
                if found is None:
                    self._once(operation)
                else:
                    self.linear[operation.outputs[0]] = found
        return self.kept, [self._slot(index) for index in results]

    def _touches_mutated(self, operation: Operation) -> bool:
        storages = {self.values[i].untyped_storage()._cdata for i in operation.taken}
        return bool(storages.union(operation.storages) & self.mutated)

    def _simpler(self, operation: Operation) -> _Linear | None:
        rule = self.rules.get(name_of(operation))
        if rule is None or len(operation.outputs) != 1:
            return None
        tensors = [self.values[i] for i in (*operation.taken, *operation.outputs)]
        if len({tensor.dtype for tensor in tensors}) != 1 or not tensors[0].is_floating_point():
            return None
        return rule(operation)

    # What a value is.

    def _of(self, leaf: Any) -> _Linear:
        return self.linear.get(leaf.index, _Linear(leaf.index))

    def _slot(self, index: int) -> int:
        """A slot that holds the value itself."""
        return self._expanded(self.linear.get(index, _Linear(index)))

    def _expanded(self, value: _Linear) -> int:
        base = self._small(value)
        if value.shape is None:
            return base
        return self._new(EXPAND, [Slot(base), list(value.shape)], base, value.shape)

    def _small(self, value: _Linear) -> int:
        """A slot that holds it before it is broadcast."""
        base = value.base
        if value.factor != 1.0:
            base = self._new(MULTIPLY, [Slot(base), value.factor], base, self.held[base])
        if value.shift != 0.0:
            base = self._new(SHIFT, [Slot(base), value.shift], base, self.held[base])
        return base

    def _new(self, function: Any, arguments: list[Any], like: int, shape: torch.Size) -> int:
        self.values.append(self.values[like])
        self.held.append(shape)
        return self._once(
            Operation(function, tuple(arguments), {}, [len(self.values) - 1], []), whole=True
        )

    def _once(self, operation: Operation, whole: bool = False) -> int:
        """Keeps an operation if the same was not done before: the slot of its first output."""
        written = operation if whole else self._written(operation)
        key = (written.function, _hashable(written.arguments), _hashable(written.keywords))
        if key not in self.made:
            self.made[key] = written.outputs
            self.kept.append(written)
        for output, before in zip(operation.outputs, self.made[key], strict=True):
            self.linear[output] = _Linear(before)
        return self.made[key][0] if operation.outputs else -1

    def _written(self, operation: Operation) -> Operation:
        """The operation with the values that it takes in slots of their own."""

        def held(leaf: Any) -> Any:
            return Slot(self._slot(leaf.index)) if isinstance(leaf, Slot) else leaf

        return Operation(
            operation.function,
            mapped(held, operation.arguments),
            mapped(held, operation.keywords),
            operation.outputs,
            operation.storages,
        )

    def _keep(self, operation: Operation) -> None:
        self.kept.append(self._written(operation))

    def _with_bases(
        self, operation: Operation, *arguments: Any, factor: float = 1.0, shift: float = 0.0
    ) -> _Linear:
        """What an operation element by element on the bases of what it takes gives."""
        (output,) = operation.outputs
        shapes = [self.held[each.index] for each in arguments if isinstance(each, Slot)]
        whole, held = self.values[output].shape, torch.broadcast_shapes(*shapes)
        self.held[output] = held
        base = self._once(replace(operation, arguments=arguments), whole=True)
        return _Linear(base, factor, shift, None if held == whole else whole)

    def _number(self, leaf: Any) -> float | None:
        """A constant number, or None."""
        if isinstance(leaf, (int, float)) and not isinstance(leaf, bool):
            return float(leaf)
        if isinstance(leaf, Slot) and leaf.index in self.constants:
            value = self.constants[leaf.index]
            if value.numel() and bool((value == value.reshape(-1)[0]).all()):
                return float(value.detach().reshape(-1)[0])
        return None

    def _shape_stays(self, operation: Operation, leaf: Any) -> bool:
        return self.values[leaf.index].shape == self.values[operation.outputs[0]].shape

    # The rules: the value that an operation gives, or None where it is done as it stands.

    def _product(self, operation: Operation) -> _Linear | None:
        left, right = operation.arguments
        for taken, other in ((left, right), (right, left)):
            number = self._number(other)
            if not isinstance(taken, Slot) or number is None or not _exact(number):
                continue
            if self._shape_stays(operation, taken):
                return self._of(taken).times(number)
        if not (isinstance(left, Slot) and isinstance(right, Slot)):
            return None
        one, two = self._of(left), self._of(right)
        if one.shift or two.shift:
            return None
        factor = one.factor * two.factor
        return self._with_bases(operation, Slot(one.base), Slot(two.base), factor=factor)

    def _quotient(self, operation: Operation) -> _Linear | None:
        left, right, *more = operation.arguments
        if more or operation.keywords or not isinstance(left, Slot):
            return None
        number = self._number(right)
        if number is not None and _exact(number) and self._shape_stays(operation, left):
            return self._of(left).times(1 / number)
        if not isinstance(right, Slot):
            return None
        one, two = self._of(left), self._of(right)
        if one.shift or two.shift:
            return None
        factor = one.factor / two.factor
        return self._with_bases(operation, Slot(one.base), Slot(two.base), factor=factor)

    def _sum(self, operation: Operation, sign: float) -> _Linear | None:
        left, right, *more = operation.arguments
        if more or operation.keywords:
            return None
        if isinstance(left, Slot) and self._shape_stays(operation, left):
            number = self._number(right)
            if number is not None:
                return self._of(left).plus(sign * number)
        if isinstance(right, Slot) and self._shape_stays(operation, right):
            number = self._number(left)
            if number is not None:
                return self._of(right).times(sign).plus(number)
        if not (isinstance(left, Slot) and isinstance(right, Slot)):
            return None
        one, two = self._of(left), self._of(right).times(sign)
        ratio = two.factor / one.factor
        function, keywords = (ADD, {}) if ratio > 0 else (SUBTRACT, {})
        if abs(ratio) != 1.0:
            keywords = {"alpha": abs(ratio)}
        return self._with_bases(
            replace(operation, function=function, keywords=keywords),
            Slot(one.base), Slot(two.base), factor=one.factor, shift=one.shift + two.shift,
        )  # fmt: skip

    def _reversed(self, operation: Operation) -> _Linear | None:
        taken, number, *more = operation.arguments
        if more or operation.keywords:
            return None
        return self._of(taken).times(-1.0).plus(float(number))

    def _power(self, operation: Operation) -> _Linear | None:
        taken, exponent = operation.arguments
        value = self._of(taken)
        if exponent == 1:
            return value
        if exponent != 2 or value.shift:
            return None
        return self._with_bases(operation, Slot(value.base), 2, factor=value.factor**2)

    def _unary(self, operation: Operation) -> _Linear | None:
        (taken,) = operation.arguments
        value = self._of(taken)
        if operation.keywords or value.shape is None:
            return None
        return self._with_bases(operation, Slot(self._small(value)))

    def _total(self, operation: Operation) -> _Linear | None:
        taken, *more = operation.arguments
        if operation.keywords:
            return None
        value = self._of(taken)
        if self.values[taken.index].dim() == 0:
            return value
        if value.shape is not None:
            return None
        count = self.values[taken.index].numel() / max(1, self.values[operation.outputs[0]].numel())
        base = self._once(replace(operation, arguments=(Slot(value.base), *more)), whole=True)
        return _Linear(base, value.factor, value.shift * count)

    def _reshaped(self, operation: Operation) -> _Linear | None:
        taken = operation.arguments[0]
        value = self._of(taken)
        if self._shape_stays(operation, taken):
            return value
        if operation.function is EXPAND and not operation.keywords:
            return replace(value, shape=self.values[operation.outputs[0]].shape)
        return None
