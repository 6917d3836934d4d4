"""Recorded operations that give nothing new, left out.

A value is followed as a sum of products of what was computed before, plus a number, broadcast to a
shape. Factors are powers of two with a sign, by which numbers are scaled without rounding (or how
often a number was summed), so that what is multiplied by them, negated or squared costs nothing
until another operation wants it; the numbers added are the constants of log densities, which no
gradient sees. What is the same for many
rows is computed for one of them. What was computed before is not computed again.

Where a large value is a product with something smaller, broadcast to it, the product waits to be
wanted: a sum over the rows of a plate takes what is the same for all of them out, and contracts the
rest by a matrix product, without a tensor of that size. A tensor that is filled with one number is
that number.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby
from math import frexp, isfinite, prod
from typing import Any

import torch
from torch import Tensor

from elbowroom.recording.operations import (
    DETACH,
    FILLED,
    READ,
    Operation,
    Slot,
    is_random,
    mapped,
    name_of,
)

LARGE = 4096
"""Numbers of a product from which it waits."""
LARGEST_MERGED = 100_000
"""Numbers of a constant that is compared with others, at most."""
MOST_TERMS = 6
"""Of a sum that waits."""
SAME_SHAPE = ("view.default", "expand.default", "_unsafe_view.default", "reshape.default")
VIEWS = ("view.default", "_unsafe_view.default")
FOLDING = ("squeeze.default", "squeeze.dim", "squeeze.dims", "unsqueeze.default")
"""Operations that give the same numbers in the same order, in another shape."""
MOVING = ("permute.default", "t.default", "transpose.int")
"""Operations that give the same numbers in another order."""
UNARY = (
    "clamp.default", "exp.default", "expm1.default", "log.default", "log1p.default",
    "reciprocal.default", "rsqrt.default", "sigmoid.default", "sqrt.default", "tanh.default",
)  # fmt: skip
COMPARISONS = ("ge.Scalar", "gt.Scalar", "le.Scalar", "lt.Scalar")
SUMS = ("sum.default", "sum.dim_IntList")
MATRIX = ("bmm.default", "mm.default", "mv.default")
"""Products of matrices, linear in both."""
EXPAND = torch.ops.aten.expand.default
RESHAPE = torch.ops.aten.reshape.default
SCALE = torch.ops.aten.mul.Scalar
SHIFT = torch.ops.aten.add.Scalar
ADD, SUBTRACT = torch.ops.aten.add.Tensor, torch.ops.aten.sub.Tensor
MULTIPLY = torch.ops.aten.mul.Tensor
RECIPROCAL = torch.ops.aten.reciprocal.default
SUM = torch.ops.aten.sum.dim_IntList
CONTRACT = torch.ops.aten.einsum.default


@dataclass(frozen=True)
class _Term:
    """A number times the product of some slots, broadcast against each other."""

    factor: float
    bases: tuple[int, ...]


@dataclass(frozen=True)
class _Value:
    """A sum of terms plus a number, broadcast to a shape if there is one."""

    terms: tuple[_Term, ...]
    shift: float = 0.0
    shape: torch.Size | None = None

    @staticmethod
    def at(base: int, factor: float = 1.0, shift: float = 0.0, shape: Any = None) -> "_Value":
        return _Value((_Term(factor, (base,)),), shift, shape)

    @property
    def plain(self) -> bool:
        """Whether it is factor · base + shift."""
        return len(self.terms) == 1 and len(self.terms[0].bases) == 1

    @property
    def base(self) -> int:
        return self.terms[0].bases[0]

    @property
    def factor(self) -> float:
        return self.terms[0].factor

    def times(self, number: float) -> "_Value":
        terms = tuple(replace(term, factor=term.factor * number) for term in self.terms)
        return replace(self, terms=terms, shift=self.shift * number)

    def plus(self, number: float) -> "_Value":
        return replace(self, shift=self.shift + number)


def _exact(number: float) -> bool:
    """Whether multiplying by a number does not round."""
    return isfinite(number) and number != 0 and abs(frexp(number)[0]) == 0.5


def hashable(value: Any) -> Any:
    """Nested arguments as a key of a dict: 1, 1.0 and True are not the same."""
    if isinstance(value, (list, tuple)):
        return tuple(
            [
                hashable(each) if isinstance(each, (list, tuple, dict)) else (type(each), each)
                for each in value
            ]
        )
    if isinstance(value, dict):
        return tuple((key, hashable(each)) for key, each in value.items())
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
        self.values, self.constants, self.mutated = values, constants, mutated
        self.found: dict[int, _Value] = {}
        self.held = [value.shape for value in values]  # by the slots as they are in the end
        self.made: dict[Any, list[int]] = {}
        self.summed: dict[tuple[_Term, ...], _Value] = {}
        self.folded: dict[int, int] = {}  # what the slots of a reshape were made of
        self.uniform: dict[int, float] = {}  # slots that hold one number
        self.kept: list[Operation] = []
        self._merge_constants()
        self.rules: dict[str, Callable[[Operation], _Value | None]] = {
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
            **dict.fromkeys(SAME_SHAPE + FOLDING, self._reshaped),
            **dict.fromkeys(MOVING, self._moved),
            **dict.fromkeys(MATRIX, self._matrix_product),
            **dict.fromkeys(UNARY + COMPARISONS, self._unary),
        }

    def __call__(
        self, operations: Sequence[Operation], results: Sequence[int]
    ) -> tuple[list[Operation], list[int]]:
        """The operations that are left, and the slots of the results."""
        for operation in operations:
            if name_of(operation) in VIEWS and not self._touches_mutated(operation):
                # What it takes may be held for one of many rows, which no view can be of.
                operation = replace(operation, function=RESHAPE)
            unlike = is_random(operation) or operation.function is READ
            if unlike or self._touches_mutated(operation):
                self.kept.append(self._written(operation))
                continue
            number = self._filling(operation)
            if number is not None:
                self.uniform[operation.outputs[0]] = number
            if operation.function is DETACH:
                self.found[operation.outputs[0]] = self._of(operation.arguments[0])
            else:
                found = self._simpler(operation)
                if found is None:
                    self._once(self._written(operation), operation.outputs)
                else:
                    self.found[operation.outputs[0]] = found
        return self.kept, [self._slot(index) for index in results]

    def _merge_constants(self) -> None:
        """Takes constants of the same numbers for one: two runs of a model make them anew."""
        known: dict[Any, int] = {}
        for index, value in self.constants.items():
            written = value.untyped_storage()._cdata in self.mutated if self.mutated else False
            if written or value.is_meta or value.numel() > LARGEST_MERGED:
                continue
            # A tensor of one number that was expanded has no bytes to view.
            own = value.detach().cpu().clone(memory_format=torch.contiguous_format)
            numbers = own.reshape(-1).view(torch.uint8).numpy().tobytes()
            first = known.setdefault((value.shape, value.dtype, numbers), index)
            if first != index:
                self.found[index] = _Value.at(first)

    def _touches_mutated(self, operation: Operation) -> bool:
        if not self.mutated:
            return False
        storages = {self.values[i].untyped_storage()._cdata for i in operation.taken}
        return bool(storages.union(operation.storages) & self.mutated)

    def _filling(self, operation: Operation) -> float | None:
        """The number that all that an operation gives is filled with, or None."""
        name, taken = name_of(operation), operation.arguments[0]
        if name in FILLED:
            if not self.values[operation.outputs[0]].is_floating_point():
                return None
            number = FILLED[name]
            return self._number(operation.arguments[-1]) if number is None else number
        number = self.uniform.get(taken.index) if isinstance(taken, Slot) else None
        if number is None or name not in SAME_SHAPE + FOLDING + MOVING + SUMS:
            return None
        if name not in SUMS:
            return number
        given = self.values[operation.outputs[0]].numel()
        return number * (self.values[taken.index].numel() // given) if given else None

    def _simpler(self, operation: Operation) -> _Value | None:
        name = name_of(operation)
        rule = self.rules.get(name)
        if rule is None or len(operation.outputs) != 1 or not operation.taken:
            return None
        taken = [self.values[i] for i in operation.taken]
        if not taken[0].is_floating_point() or len({tensor.dtype for tensor in taken}) != 1:
            return None
        given = self.values[operation.outputs[0]].dtype
        return rule(operation) if given == taken[0].dtype or name in COMPARISONS else None

    # What a value is.

    def _of(self, leaf: Any) -> _Value:
        value = self.found.get(leaf.index, _Value.at(leaf.index))
        # What had to be computed in the end is there to be used.
        return self._plain(value) if value.terms in self.summed else value

    def _slot(self, index: int) -> int:
        """A slot that holds the value itself."""
        value = self._plain(self.found.get(index, _Value.at(index)))
        base = self._small(value)
        if value.shape is None:
            return base
        return self._new(EXPAND, [Slot(base), list(value.shape)], value.shape)

    def _small(self, value: _Value) -> int:
        """A slot that holds a plain value before it is broadcast."""
        base = value.base
        if value.factor != 1.0:
            base = self._new(SCALE, [Slot(base), value.factor], self.held[base])
        if value.shift != 0.0:
            base = self._new(SHIFT, [Slot(base), value.shift], self.held[base])
        return base

    def _plain(self, value: _Value) -> _Value:
        """The same value with its terms computed, the smaller ones first."""
        if value.plain:
            return value
        if value.terms not in self.summed:
            parts = [(self._multiplied(term.bases), term.factor) for term in value.terms]
            (base, factor), *rest = sorted(parts, key=lambda part: self.held[part[0]].numel())
            for other, weight in rest:
                base = self._added(base, other, weight / factor)
            self.summed[value.terms] = _Value.at(base, factor)
        plain = self.summed[value.terms]
        shape = None if self.held[plain.base] == value.shape else value.shape
        return replace(plain, shift=value.shift, shape=shape)

    def _multiplied(self, bases: Sequence[int]) -> int:
        first, *rest = sorted(bases, key=lambda base: (self.held[base].numel(), base))
        for other in rest:
            first = self._elementwise(MULTIPLY, first, other)
        return first

    def _added(self, base: int, other: int, ratio: float) -> int:
        """Base + ratio · other."""
        keywords = {} if abs(ratio) == 1.0 else {"alpha": abs(ratio)}
        return self._elementwise(ADD if ratio > 0 else SUBTRACT, base, other, **keywords)

    def _elementwise(self, function: Any, *bases: int, **keywords: Any) -> int:
        shape = _broadcast(*(self.held[base] for base in bases))
        return self._new(function, [Slot(base) for base in bases], shape, **keywords)

    def _new(
        self, function: Any, arguments: list[Any], shape: Sequence[int], **keywords: Any
    ) -> int:
        self.held.append(torch.Size(shape))
        output = len(self.held) - 1
        return self._once(Operation(function, tuple(arguments), keywords, [output], []))

    def _once(self, operation: Operation, outputs: Sequence[int] = ()) -> int:
        """Keeps an operation if the same was not done before: the slot of its first output.

        Args:
            operation: What it takes is in slots of its own.
            outputs: The slots of what it gives, where they are followed.
        """
        key = (operation.function, hashable(operation.arguments), hashable(operation.keywords))
        if key not in self.made:
            self.made[key] = operation.outputs
            self.kept.append(operation)
        for output, before in zip(outputs, self.made[key], strict=False):
            self.found[output] = _Value.at(before)
        return self.made[key][0] if operation.outputs else -1

    def _written(self, operation: Operation) -> Operation:
        """The operation with the values that it takes in slots of their own."""

        def held(leaf: Any) -> Any:
            return Slot(self._slot(leaf.index)) if isinstance(leaf, Slot) else leaf

        arguments, keywords = mapped(held, operation.arguments), mapped(held, operation.keywords)
        return replace(operation, arguments=arguments, keywords=keywords)

    def _given(
        self, operation: Operation, base: int, factor: float = 1.0, shift: float = 0.0
    ) -> _Value:
        """What an operation gives, as factor · base + shift, broadcast if it must be."""
        whole = self._shape(operation)
        return _Value.at(base, factor, shift, None if self.held[base] == whole else whole)

    def _shape(self, operation: Operation) -> torch.Size:
        return self.values[operation.outputs[0]].shape

    def _number(self, leaf: Any) -> float | None:
        """A constant number, or None."""
        if isinstance(leaf, (int, float)) and not isinstance(leaf, bool):
            return float(leaf)
        if isinstance(leaf, Slot) and leaf.index in self.uniform:
            return self.uniform[leaf.index]
        if isinstance(leaf, Slot) and leaf.index in self.constants:
            value = self.constants[leaf.index]
            if value.numel() and bool((value == value.reshape(-1)[0]).all()):
                return float(value.detach().reshape(-1)[0])
        return None

    def _shape_stays(self, operation: Operation, leaf: Any) -> bool:
        return self.values[leaf.index].shape == self._shape(operation)

    def _waits(self, *values: _Value) -> bool:
        """Whether values are large together, some of them for being broadcast."""
        shapes = [self.held[b] for value in values for term in value.terms for b in term.bases]
        whole = _broadcast(*shapes)
        return whole.numel() >= LARGE and any(shape != whole for shape in shapes)

    def _times(self, operation: Operation, one: _Value, two: _Value) -> _Value:
        """The product of values without a shift."""
        if not self._waits(one, two):
            one, two = self._plain(one), self._plain(two)
            base = self._elementwise(MULTIPLY, one.base, two.base)
            return self._given(operation, base, one.factor * two.factor)
        one, two = (each if len(each.terms) == 1 else self._plain(each) for each in (one, two))
        bases = sorted(one.terms[0].bases + two.terms[0].bases, key=lambda base: self.held[base])
        # Those of one shape are multiplied at once.
        groups = [tuple(group) for _, group in groupby(bases, key=lambda base: self.held[base])]
        term = _Term(one.factor * two.factor, tuple(map(self._multiplied, groups)))
        return _Value((term,), shape=self._shape(operation))

    # The rules: the value that an operation gives, or None where it is done as it stands.

    def _product(self, operation: Operation) -> _Value | None:
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
        return None if one.shift or two.shift else self._times(operation, one, two)

    def _quotient(self, operation: Operation) -> _Value | None:
        left, right, *more = operation.arguments
        if more or operation.keywords or not isinstance(left, Slot):
            return None
        number = self._number(right)
        if number is not None and _exact(number) and self._shape_stays(operation, left):
            return self._of(left).times(1 / number)
        if not isinstance(right, Slot):
            return None
        one, two = self._of(left), self._plain(self._of(right))
        if one.shift or two.shift:
            return None
        number = self._number(left)
        if number is not None and _exact(number) and self._shape_stays(operation, left):
            inverse = self._elementwise(RECIPROCAL, two.base)
            return self._given(operation, inverse, number / two.factor)
        if self._waits(one, two) and self.held[two.base].numel() < LARGE:
            inverse = self._elementwise(RECIPROCAL, two.base)
            return self._times(operation, one, _Value.at(inverse, 1 / two.factor))
        one = self._plain(one)
        base = self._elementwise(operation.function, one.base, two.base)
        return self._given(operation, base, one.factor / two.factor)

    def _sum(self, operation: Operation, sign: float) -> _Value | None:
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
        shift = one.shift + two.shift
        # Terms that cancel are summed apart only where there are digits to spare.
        double = self.values[left.index].dtype == torch.float64
        if double and self._waits(one, two) and len(one.terms) + len(two.terms) <= MOST_TERMS:
            return _Value(one.terms + two.terms, shift, self._shape(operation))
        one, two = self._plain(one), self._plain(two)
        base = self._added(one.base, two.base, two.factor / one.factor)
        return self._given(operation, base, one.factor, shift)

    def _reversed(self, operation: Operation) -> _Value | None:
        taken, number, *more = operation.arguments
        if more or operation.keywords:
            return None
        return self._of(taken).times(-1.0).plus(float(number))

    def _power(self, operation: Operation) -> _Value | None:
        taken, exponent = operation.arguments
        if exponent == 1:
            return self._of(taken)
        value = self._plain(self._of(taken))
        if exponent != 2 or value.shift:
            return None
        base = self._new(operation.function, [Slot(value.base), 2], self.held[value.base])
        return self._given(operation, base, value.factor**2)

    def _unary(self, operation: Operation) -> _Value | None:
        taken, *more = operation.arguments
        value = self._plain(self._of(taken))
        if operation.keywords or value.shape is None:
            return None
        base = self._small(value)
        small = self._new(operation.function, [Slot(base), *more], self.held[base])
        return self._given(operation, small)

    def _moved(self, operation: Operation) -> _Value | None:
        value = self._of(operation.arguments[0])
        moved = self._linear(
            operation, operation.arguments[:1], operation.arguments[1:], value.shift
        )
        return None if moved is None else moved.plus(value.shift)

    def _matrix_product(self, operation: Operation) -> _Value | None:
        left, right = (self.values[leaf.index].shape for leaf in operation.arguments)
        if len(left) == len(right) and left[-1] == 1 and not operation.keywords:
            one, two = (self._of(leaf) for leaf in operation.arguments)
            return None if one.shift or two.shift else self._times(operation, one, two)
        return self._linear(operation, operation.arguments, ())

    def _linear(
        self, operation: Operation, taken: Sequence[Any], more: Sequence[Any], shift: float = 0.0
    ) -> _Value | None:
        """An operation that is linear in each of what it takes, on their bases, less a shift."""
        values = [self._plain(self._of(leaf)).plus(-shift) for leaf in taken]
        if operation.keywords or any(value.shift or value.shape for value in values):
            return None
        slots = [Slot(value.base) for value in values]
        base = self._new(operation.function, [*slots, *more], self._shape(operation))
        return _Value.at(base, prod(value.factor for value in values))

    def _total(self, operation: Operation) -> _Value | None:
        taken, *more = operation.arguments
        value, whole = self._of(taken), self.values[taken.index].shape
        if operation.keywords or 0 in whole:
            return None
        if not whole:
            return value
        dims = {dim % len(whole) for dim in (more[0] if more else ()) or range(len(whole))}
        shift = value.shift * prod(whole[dim] for dim in dims)
        if value.plain and value.shape is None:
            if all(whole[dim] == 1 for dim in dims):
                base = self._fold(value.base, self._shape(operation))
                return _Value.at(base, value.factor, value.shift)
            base = self._new(operation.function, [Slot(value.base), *more], self._shape(operation))
            return _Value.at(base, value.factor, shift)
        terms = tuple(self._reduced(term, whole, dims, more[1:] == [True]) for term in value.terms)
        if len(terms) == 1 and len(terms[0].bases) == 1:
            return self._given(operation, terms[0].bases[0], terms[0].factor, shift)
        return _Value(terms, shift, self._shape(operation))

    def _reduced(self, term: _Term, whole: torch.Size, dims: set[int], keep: bool) -> _Term:
        """The sum of a term over some dims of its whole shape."""
        rank = len(whole)
        sizes = {b: (1,) * (rank - len(self.held[b])) + tuple(self.held[b]) for b in term.bases}
        alike = [dim for dim in dims if all(size[dim] == 1 for size in sizes.values())]
        inner = [b for b in term.bases if any(sizes[b][dim] != 1 for dim in dims)]
        bases = [self._without(b, rank, dims, keep) for b in term.bases if b not in inner]
        if len(inner) == 1:
            (base,) = inner
            own = self._own(base, rank, dims)
            shape = _left(self.held[base], own, keep)
            bases.append(self._new(SUM, [Slot(base), own, keep], shape))
        elif inner:
            *few, most = sorted(inner, key=lambda base: self.held[base].numel())
            bases.append(self._contracted(self._multiplied(few), most, rank, dims, keep))
        return _Term(term.factor * prod(whole[dim] for dim in alike), tuple(sorted(bases)))

    def _own(self, base: int, rank: int, dims: set[int]) -> list[int]:
        """The dims of a shape of some rank as those of a base that is broadcast to it."""
        missing = rank - len(self.held[base])
        return [dim - missing for dim in sorted(dims) if dim >= missing]

    def _without(self, base: int, rank: int, dims: set[int], keep: bool) -> int:
        own = self._own(base, rank, dims)
        if keep or not own:
            return base
        return self._fold(base, _left(self.held[base], own, keep))

    def _contracted(self, one: int, two: int, rank: int, dims: set[int], keep: bool) -> int:
        """The sum of a product over some dims."""
        letters = "abcdefghijklmnopqrstuvwxyz"[:rank]
        names = [letters[rank - len(self.held[base]) :] for base in (one, two)]
        whole = _broadcast(self.held[one], self.held[two])
        missing = rank - len(whole)
        left = "".join(letters[dim] for dim in range(missing, rank) if dim not in dims)
        own = [dim - missing for dim in sorted(dims) if dim >= missing]
        pattern = f"{','.join(names)}->{left}"
        found = self._new(CONTRACT, [pattern, [Slot(one), Slot(two)]], _left(whole, own, False))
        if not keep:
            return found
        return self._fold(found, _left(whole, own, True))

    def _fold(self, base: int, shape: Sequence[int]) -> int:
        """A slot with the same numbers in the same order, in another shape."""
        base = self.folded.get(base, base)
        if self.held[base] == torch.Size(shape):
            return base
        folded = self._new(RESHAPE, [Slot(base), list(shape)], shape)
        self.folded[folded] = base
        return folded

    def _reshaped(self, operation: Operation) -> _Value | None:
        taken = operation.arguments[0]
        value = self._of(taken)
        if self._shape_stays(operation, taken):
            return value
        if operation.function is EXPAND:
            return None if operation.keywords else replace(value, shape=self._shape(operation))
        value = self._plain(value)
        if operation.keywords or value.shape is not None:
            return None
        base = self._fold(value.base, self._shape(operation))
        return _Value.at(base, value.factor, value.shift)


@cache
def _broadcast(*shapes: torch.Size) -> torch.Size:
    """What torch.broadcast_shapes gives, which takes its time."""
    return torch.broadcast_shapes(*shapes)


def _left(shape: Sequence[int], dims: Sequence[int], keep: bool) -> tuple[int, ...]:
    """What a sum over some dims leaves of a shape."""
    if keep:
        return tuple(1 if dim in dims else size for dim, size in enumerate(shape))
    return tuple(size for dim, size in enumerate(shape) if dim not in dims)
