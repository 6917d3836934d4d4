"""A recording for batches as steps over the numbers of one point.

Every number of a point has an address. Operations that only move numbers, such as views, slices
and gathers, are done on arrays of addresses and leave nothing to do; what is the same for all
elements of an array is computed once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elbowroom.errors import SignalError
from elbowroom.recording.operations import (
    CHECK,
    DETACH,
    FILLED,
    Affine,
    Operation,
    Slot,
    leaves,
    mapped,
    name_of,
)

LANE = 2**48
"""The address of a number of the second point is higher by this."""
CONSTANT = 2**40
"""Addresses from here on are those of constants, the same for all points."""
ZERO = 0
"""The address of the number 0."""
RUNNING = "running sum"
"""The function whose elements follow those before them, of as many in a row as are given."""
MATRICES = ("cholesky", "solve", "product")
"""Functions of whole matrices, whose sizes are given; see `elbowroom.recording.kernel.matrices`."""


@dataclass(frozen=True)
class Lowerable:
    """What is turned into steps."""

    rows: int = 2
    """Points at which the operations are run, to see which number of an array is of which point."""
    elements: int = 1_000_000
    """Of one step, at most: matrices beyond it are better multiplied by a library."""
    terms: int = 16
    """Of a cumulative sum or product whose elements are written out, at most."""
    small: int = 6
    """Rows of a matrix whose elements are written out where it is factorised or solved."""
    matrix: int = 200
    """Rows of any other: of a larger one, a library keeps the parts in a nearer cache."""


LOWERABLE = Lowerable()


class NotLowerableError(SignalError):
    """The recording holds something that there is no step for."""


@dataclass(frozen=True)
class Step:
    """One function of each element of an array, which may be summed.

    Attributes:
        function: Its name; see `elbowroom.recording.kernel.functions`.
        inputs: The addresses that it takes, one array for each argument.
        out: The first of the addresses that it gives, which follow each other.
        size: How many it gives.
        targets: Where each element goes, from 0 to `size`, where they are reduced by the function:
            "sum", "max" or "min"; None where each has a place of its own.
        given: Numbers that the function takes beside.
        loop: The same for steps that are done turn by turn, one after the other; see
            `elbowroom.recording.kernel.rolling`.
    """

    function: str
    inputs: tuple[np.ndarray, ...]
    out: int
    size: int
    targets: np.ndarray | None = None
    given: tuple[float, ...] = ()
    loop: int | None = None

    @property
    def count(self) -> int:
        """Elements that are gone through."""
        return len(self.inputs[0])

    def gives(self, address: int) -> bool:
        """Whether it gives the number at an address."""
        return self.out <= address < self.out + self.size


@dataclass(frozen=True)
class Program:
    """The steps from the numbers of a point to the results.

    Attributes:
        steps: In order.
        constants: Their values, by address less `CONSTANT`.
        inputs: Numbers of a point, whose addresses begin with 1.
        addresses: How many there are, `ZERO` included.
        results: The addresses of each result.
        shapes: Of each result, for one point.
    """

    steps: list[Step]
    constants: np.ndarray
    inputs: int
    addresses: int
    results: list[np.ndarray]
    shapes: list[tuple[int, ...]]


RESHAPING = {
    "_reshape_alias.default", "_unsafe_view.default", "reshape.default", "view.default",
}  # fmt: skip
"""Operations that give the same numbers in another shape, their second argument."""
INDEXED = {"gather.default", "index.Tensor", "index_select.default"}
"""Operations that take whole numbers for places."""
KINDS = {torch.float64, torch.bool, torch.int64}
"""Of numbers of a point: truth values, and how many of these are true, beside float64."""
COPYING = {"_to_copy.default", "alias.default", "clone.default", "lift_fresh.default"}
"""Operations that give the same numbers."""
MOVING = {
    *RESHAPING, *INDEXED, *COPYING, "cat.default", "diag_embed.default", "diagonal.default",
    "diagonal_backward.default", "expand.default", "flip.default", "permute.default",
    "repeat.default", "roll.default", "select.int", "select_backward.default", "slice.Tensor",
    "slice_backward.default", "split.Tensor", "split_with_sizes.default", "squeeze.default",
    "squeeze.dim", "squeeze.dims", "stack.default", "t.default", "transpose.int", "tril.default",
    "triu.default", "unbind.int", "unfold.default", "unsqueeze.default",
}  # fmt: skip
"""Operations that are done on addresses."""
UNARY = {
    "abs": "abs", "neg": "negative", "exp": "exp", "log": "log", "log1p": "log1p",
    "expm1": "expm1", "sqrt": "sqrt", "rsqrt": "rsqrt", "reciprocal": "reciprocal",
    "tanh": "tanh", "sigmoid": "sigmoid", "lgamma": "lgamma", "digamma": "digamma",
    "square": "square", "sgn": "sign", "sign": "sign", "logical_not": "not",
    "bitwise_not": "not", "erf": "erf", "sin": "sin", "cos": "cos", "atan": "atan",
    "log_sigmoid": "log_sigmoid", "isnan": "isnan",
}  # fmt: skip
"""Functions of one number, by the names of torch's operations."""
BINARY = {
    "mul": "multiply", "div": "divide", "maximum": "maximum", "minimum": "minimum",
    "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!=",
    "logical_and": "and", "bitwise_and": "and", "logical_or": "or", "bitwise_or": "or",
    "clamp_min": "maximum", "clamp_max": "minimum", "pow": "power", "logaddexp": "logaddexp",
    "xlogy": "xlogy",
}  # fmt: skip
"""Functions of two numbers."""
FOLDED: dict[str, Callable[..., Tensor]] = {
    "add": torch.add, "subtract": torch.sub, "multiply": torch.mul, "divide": torch.div,
    "exp": torch.exp, "log": torch.log, "square": torch.square, "sqrt": torch.sqrt,
    "negative": torch.neg,
}  # fmt: skip
"""Functions that are done at once where all that they take is constant."""
TRUTHS = {"<", "<=", ">", ">=", "==", "!=", "and", "or", "not", "isnan"}
"""Functions that give truth values."""


class Value:
    """What a slot holds.

    Attributes:
        at: Its value at the points at which operations are run.
        codes: Its addresses, of the shape of `at`; None of constants, until they are asked for.
        moving: Whether numbers of a point are among them.
    """

    def __init__(self, at: Tensor, codes: Tensor | None = None, moving: bool = False) -> None:
        self.at, self.codes, self.moving = at, codes, moving


class Lowering:
    """Turns operations into steps.

    Attributes:
        steps: So far.
        flags: Addresses of truth values.
        values: What each slot holds.
        next: The next address.

    Args:
        dimension: Numbers of a point.
        handlers: What operations are made of, by their names.
        fixed: Slots of constants.
    """

    def __init__(
        self,
        dimension: int,
        handlers: Mapping[str, Callable[..., Any]],
        fixed: frozenset[int] = frozenset(),
    ) -> None:
        self.dimension, self.handlers, self.fixed = dimension, handlers, fixed
        self.steps: list[Step] = []
        self.flags: set[int] = set()
        self.values: dict[int, Value] = {}
        self.next = 1 + dimension
        self._constants: dict[int, int] = {}
        self._known: dict[Any, int] = {}

    # --- Constants and addresses

    def constant(self, value: Tensor) -> Tensor:
        """Addresses of numbers that are the same for all points."""
        numbers = np.ascontiguousarray(value.detach().to(torch.float64).reshape(-1).numpy())
        bits, places = np.unique(numbers.view(np.int64), return_inverse=True)
        known = self._constants
        codes = np.array(
            [
                ZERO if each == 0 else CONSTANT + known.setdefault(int(each), len(known))
                for each in bits
            ],
            dtype=np.int64,
        )
        return torch.from_numpy(codes[places.reshape(-1)]).reshape(value.shape)

    def codes(self, value: Any) -> Tensor:
        """Addresses of an argument: of a tensor that a slot holds, or of a number."""
        if isinstance(value, Value):
            if value.codes is None:
                if value.moving or value.at.is_complex():
                    raise NotLowerableError("numbers that have no addresses")
                value.codes = self.constant(value.at)
            return value.codes
        if isinstance(value, (bool, int, float)):
            return self.constant(torch.tensor(float(value), dtype=torch.float64))
        raise NotLowerableError(f"an argument of type {type(value).__name__}")

    def table(self) -> np.ndarray:
        """The constants by their addresses, less `CONSTANT`."""
        return np.array(list(self._constants), dtype=np.int64).view(np.float64)

    def numbers(self, codes: Tensor) -> Tensor:
        """The constants at addresses."""
        table = torch.from_numpy(np.append(self.table(), 0.0))
        return table[torch.where(codes == ZERO, len(table) - 1, codes - CONSTANT)]

    # --- Steps

    def map(self, function: str, *operands: Tensor, given: tuple[float, ...] = ()) -> Tensor:
        """Addresses of a function of each element of arrays of one shape, or broadcast."""
        broad = torch.broadcast_tensors(*operands)
        if function == "add" and bool((broad[0] == ZERO).any() or (broad[1] == ZERO).any()):
            return self._added(*broad)
        if function == "subtract" and bool((broad[1] == ZERO).all()):
            return broad[0]
        tables, places = _by_point(broad)
        if tables is None:
            if function not in FOLDED:
                raise NotLowerableError(f"{function} of constants")
            return self.constant(FOLDED[function](*map(self.numbers, broad)))
        tables, back = _distinct(tables)
        key = (function, given, *(table.tobytes() for table in tables))
        out = self._known.get(key)
        if out is None:
            out = self._known[key] = self._allocate(len(tables[0]))
            self.steps.append(Step(function, tuple(tables), out, len(tables[0]), None, given))
            if function in TRUTHS or (function == "where" and self._are_flags(tables[1:])):
                self.flags.update(range(out, out + len(tables[0])))
        return places(out + back)

    def _added(self, one: Tensor, two: Tensor) -> Tensor:
        """Addresses of sums of which some terms are the number 0."""
        found = torch.where(one == ZERO, two, one)
        both = (one != ZERO) & (two != ZERO)
        if both.any():
            found[both] = self.map("add", one[both], two[both])
        return found

    def reduce(self, function: str, codes: Tensor, outputs: Tensor, shape: Sequence[int]) -> Tensor:
        """Addresses of sums, or of the largest or smallest, of elements of an array.

        Args:
            function: "sum", "max" or "min".
            codes: Of the elements.
            outputs: The number of the output, of those of all points, that each element goes to.
            shape: Of the outputs of all points.
        """
        flat, targets = codes.reshape(-1).numpy(), outputs.reshape(-1).numpy()
        count = int(np.prod(shape))
        if function == "sum":
            kept = flat != ZERO
            flat, targets = flat[kept], targets[kept]
        lanes = np.full(count, -1)
        own = carried(flat)
        lanes[targets[own]] = flat[own] // LANE
        if not (lanes[targets[own]] == flat[own] // LANE).all():
            raise NotLowerableError("a sum over points")
        lanes = _completed(lanes, tuple(shape))
        first, second = np.flatnonzero(lanes == 0), np.flatnonzero(lanes == 1)
        if len(first) != len(second) or len(first) + len(second) != count:
            raise NotLowerableError("outputs that are not shared out among the points")
        number = np.empty(count, dtype=np.int64)
        number[first] = number[second] = np.arange(len(first))
        one, two = lanes[targets] == 0, lanes[targets] == 1
        table, places = flat[one] % LANE, number[targets[one]]
        if not (
            np.array_equal(table, flat[two] % LANE) and np.array_equal(places, number[targets[two]])
        ):
            raise NotLowerableError("sums that differ between points")
        found = self._reduced(function, table, places, len(first))
        out = np.empty(count, dtype=np.int64)
        out[first] = found
        out[second] = np.where(carried(found), found + LANE, found)
        return torch.from_numpy(out).reshape(tuple(shape))

    def _reduced(
        self, function: str, table: np.ndarray, places: np.ndarray, size: int
    ) -> np.ndarray:
        """The addresses of the outputs for one point."""
        counts = np.bincount(places, minlength=size)
        if function == "sum" and len(table) > 2 * size:
            pairs, times = np.unique(np.stack([places, table]), axis=1, return_counts=True)
            if 2 * pairs.shape[1] <= len(table) and carried(pairs[1]).all():
                codes = torch.from_numpy(np.stack([pairs[1], pairs[1] + LANE]))
                often = self.constant(torch.from_numpy(times.astype(float)))
                table = self.map("multiply", codes, often)[0].numpy() % LANE
                places = pairs[0]
                counts = np.bincount(places, minlength=size)
        if (counts <= 1).all() and (function == "sum" or (counts == 1).all()):
            found = np.full(size, ZERO, dtype=np.int64)
            found[places] = table
            return found
        if function != "sum" and (counts == 0).any():
            raise NotLowerableError("the largest of no numbers")
        key = (function, size, table.tobytes(), places.tobytes())
        out = self._known.get(key)
        if out is None:
            out = self._known[key] = self._allocate(size)
            self.steps.append(Step(function, (table,), out, size, places))
        return out + np.arange(size)

    def running(self, codes: Tensor) -> Tensor:
        """Addresses of the sums of all elements up to each one, along the last dim."""
        length = codes.shape[-1]
        tables, places = _by_point([codes])
        if tables is None:
            raise NotLowerableError("a cumulative sum of constants")
        (table,) = tables
        if len(table) % length or not np.array_equal(
            places(np.arange(len(table)))[0].reshape(-1).numpy() % LANE, np.arange(len(table))
        ):
            raise NotLowerableError("a cumulative sum over points")
        out = self._allocate(len(table))
        self.steps.append(Step(RUNNING, (table,), out, len(table), None, (float(length),)))
        return places(out + np.arange(len(table)))

    def matrices(
        self,
        function: str,
        operands: Sequence[Tensor],
        sizes: tuple[int, ...],
        shape: Sequence[int],
    ) -> Tensor:
        """Addresses of what a function gives of matrices, row by row, many of them one by one.

        Args:
            function: One of `MATRICES`.
            operands: Addresses, each (points, matrices, elements).
            sizes: What the function takes beside.
            shape: Of the results of all points, whose first dim is that of the points.
        """
        tables = []
        for each in operands:
            one, two = each.reshape(LOWERABLE.rows, -1).numpy()
            if not np.array_equal(np.where(carried(one), one + LANE, one), two):
                raise NotLowerableError("matrices that are not shared out among the points")
            tables.append(one % LANE)
        size = int(np.prod(shape)) // LOWERABLE.rows
        key = (function, sizes, *(table.tobytes() for table in tables))
        out = self._known.get(key)
        if out is None:
            out = self._known[key] = self._allocate(size)
            given = (float(shape[-2] * shape[-1]), *map(float, sizes))
            self.steps.append(Step(function, tuple(tables), out, size, None, given))
        own = torch.arange(out, out + size)
        return torch.stack([own, own + LANE]).reshape(tuple(shape))

    def _allocate(self, size: int) -> int:
        if size > LOWERABLE.elements:
            raise NotLowerableError(f"{size:,} numbers")
        out, self.next = self.next, self.next + size
        return out

    def _are_flags(self, tables: Sequence[np.ndarray]) -> bool:
        return all(set(np.unique(table)) <= self.flags for table in tables)

    # --- Operations

    def add(self, operation: Operation) -> None:
        """Adds an operation: its values at the points, and the addresses of what it gives."""
        arguments = mapped(self._argument, operation.arguments)
        keywords = mapped(self._argument, operation.keywords)
        taken = [each for each in leaves((arguments, keywords)) if isinstance(each, Value)]
        name = name_of(operation)
        function = operation.function
        if function is CHECK:
            return
        if function is DETACH:
            self.values[operation.outputs[0]] = arguments[0]
            return
        if function._schema.is_mutable:
            self._check_alone(operation)
        if any(each.moving and each.at.dtype not in KINDS for each in taken):
            raise NotLowerableError("numbers of a point in other than float64")
        codes = self._codes_of(name, arguments, keywords, taken)
        results = function(*mapped(_at, arguments), **mapped(_at, keywords))
        results = results if isinstance(results, (tuple, list)) else (results,)
        several = len(function._schema.returns) > 1
        places = operation.places if several else range(len(results))
        moving = any(each.moving for each in taken) and name not in FILLED
        for place, slot in zip(places, operation.outputs, strict=True):
            rounded = name in COPYING and taken[0].at.dtype == torch.float64
            if rounded and results[place].dtype != torch.float64:
                raise NotLowerableError("numbers that are rounded")
            own = None if codes is None else codes[place]
            self.values[slot] = Value(results[place], own, moving)
            if own is not None:
                self.values[slot].moving = self._check_addresses(name, own, results[place])

    def _argument(self, value: Any) -> Any:
        if isinstance(value, Slot):
            return self.values[value.index]
        if isinstance(value, Affine):
            return value.factor * LOWERABLE.rows + value.offset
        return value

    def _check_alone(self, operation: Operation) -> None:
        """Sees that nothing else holds what an operation writes to."""
        target, own = operation.arguments[0], operation.outputs[0]
        named = name_of(operation).partition(".")[0].endswith("_")
        if not (named and isinstance(target, Slot) and target.index == own):
            raise NotLowerableError("a tensor that is written to by another name")
        if own in self.fixed:
            raise NotLowerableError("a constant that is written to")
        storage = self.values[own].at.untyped_storage()._cdata
        for slot, value in self.values.items():
            if slot != own and value.at.untyped_storage()._cdata == storage:
                raise NotLowerableError("a tensor that is written to by two names")

    def _check_addresses(self, name: str, codes: Tensor, found: Tensor) -> bool:
        """Whether numbers of a point are among those of what an operation gives."""
        if codes.shape != found.shape:
            raise NotLowerableError(f"{name}: shapes differ")
        flat = codes.reshape(-1).numpy()
        own = carried(flat)
        if found.dtype == torch.bool and not set(np.unique(flat[own] % LANE)) <= self.flags:
            raise NotLowerableError(f"{name}: truth values")
        return bool(own.any())

    def _codes_of(
        self, name: str, arguments: Any, keywords: Any, taken: list[Value]
    ) -> list[Tensor | None] | None:
        """Addresses of all that an operation gives; None where these are constants."""
        if name in FILLED or not any(each.moving for each in taken):
            return None
        if name in MOVING:
            return self._moved(name, arguments, keywords)
        base = name.partition(".")[0].removesuffix("_")  # what is written in place is the same
        handler = self.handlers.get(name) or self.handlers.get(base)
        if handler is not None:
            found = handler(self, *arguments, **keywords)
            return list(found) if isinstance(found, tuple) else [found]
        if base.startswith("bitwise") and any(each.at.dtype != torch.bool for each in taken):
            raise NotLowerableError(name)
        if base in UNARY and len(arguments) == 1:
            return [self.map(UNARY[base], self.codes(arguments[0]))]
        if base in BINARY and len(arguments) == 2 and not keywords:
            return [self.map(BINARY[base], *map(self.codes, arguments))]
        raise NotLowerableError(name)

    def _moved(self, name: str, arguments: Any, keywords: Any) -> list[Tensor | None]:
        """Addresses of numbers that are only put elsewhere."""
        if name in COPYING:
            return [self.codes(arguments[0])]
        if name in RESHAPING:  # the addresses may lie in another order in memory
            return [self.codes(arguments[0]).reshape(arguments[1])]
        first, *others = arguments

        def moved(value: Any) -> Any:
            return self.codes(value) if isinstance(value, Value) else value

        def index(value: Any) -> Any:
            if isinstance(value, Value) and value.moving:
                raise NotLowerableError("an index that follows the point")
            return value.at if isinstance(value, Value) else value

        packet, _, overload = name.partition(".")
        function = getattr(getattr(torch.ops.aten, packet), overload)
        others = mapped(index if name in INDEXED else moved, others)
        found = function(mapped(moved, first) if isinstance(first, list) else moved(first), *others)
        return list(found) if isinstance(found, (tuple, list)) else [found]


def _at(value: Any) -> Any:
    return value.at if isinstance(value, Value) else value


def carried(codes: np.ndarray) -> np.ndarray:
    """Which addresses are of a point."""
    inner = codes % LANE
    return (inner != ZERO) & (inner < CONSTANT)


def _completed(lanes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The point of each element, where it was not told for all, by the dim of the points."""
    if (lanes >= 0).all():
        return lanes
    known = lanes >= 0
    for dim in range(len(shape)):
        if shape[dim] % LOWERABLE.rows == 0:  # matrices of all points may follow each other
            view = [1] * len(shape)
            view[dim] = shape[dim]
            each = np.arange(shape[dim]) * LOWERABLE.rows // max(1, shape[dim])
            along = np.broadcast_to(each.reshape(view), shape).reshape(-1)
            if known.any() and (along[known] == lanes[known]).all():
                return along
    raise NotLowerableError("elements of no point")


def _by_point(
    broad: Sequence[Tensor],
) -> tuple[list[np.ndarray] | None, Callable[[np.ndarray], Tensor]]:
    """Tables of addresses for one point, and what puts those of results where they belong."""
    shape = tuple(broad[0].shape)
    flat = [each.reshape(-1).numpy() for each in broad]
    lanes = np.full(len(flat[0]), -1)
    for each in flat:
        own = carried(each)
        of = each[own] // LANE
        if not ((lanes[own] == -1) | (lanes[own] == of)).all():
            raise NotLowerableError("a function of two points")
        lanes[own] = of
    if len(lanes) == 0 or (lanes == -1).all():
        if len(lanes):
            return None, lambda _: broad[0]
        return flat, lambda _: torch.zeros(shape, dtype=torch.int64)
    lanes = _completed(lanes, shape)
    first, second = np.flatnonzero(lanes == 0), np.flatnonzero(lanes == 1)
    tables = [each[first] % LANE for each in flat]
    if len(first) != len(second) or not all(
        np.array_equal(one, each[second] % LANE) for one, each in zip(tables, flat, strict=True)
    ):
        raise NotLowerableError("a function that differs between points")

    def places(found: np.ndarray) -> Tensor:
        out = np.empty(len(lanes), dtype=np.int64)
        out[first], out[second] = found, found + LANE
        return torch.from_numpy(out).reshape(shape)

    return tables, places


def _distinct(tables: list[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
    """The elements that differ, if these are at most half of all, and where each of all is."""
    count = len(tables[0])
    if count > 1 and not any((np.diff(table) > 0).all() for table in tables):
        keys = tables[0]
        for table in tables[1:]:
            _, one = np.unique(keys, return_inverse=True)
            values, two = np.unique(table, return_inverse=True)
            keys = one.reshape(-1) * len(values) + two.reshape(-1)
        _, first, back = np.unique(keys, return_index=True, return_inverse=True)
        if 2 * len(first) <= count:
            order = np.argsort(first, kind="stable")
            rank = np.empty(len(first), dtype=np.int64)
            rank[order] = np.arange(len(first))
            return [table[first[order]] for table in tables], rank[back.reshape(-1)]
    return tables, np.arange(count)
