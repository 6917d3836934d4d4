"""A recording as plain code, one line an operation."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from elbowroom.errors import SignalError
from elbowroom.recording.operations import (
    CHECK,
    DETACH,
    READ,
    TURN,
    Affine,
    Operation,
    Slot,
    is_random,
    name_of,
)


class BranchError(SignalError):
    """A branch was not the one that was recorded."""


BINDINGS: dict[str, Any] = {
    name: getattr(torch, name.partition(".")[0])
    for name in (
        "abs.default", "add.Scalar", "add.Tensor", "addmm.default", "bmm.default", "cat.default",
        "clone.default", "digamma.default", "div.Scalar", "div.Tensor", "eq.Scalar", "exp.default",
        "expm1.default", "gather.default", "gt.Scalar", "index_select.default", "le.Scalar",
        "lgamma.default", "log.default", "log1p.default", "logsumexp.default", "lt.Scalar",
        "mm.default", "mul.Scalar", "mul.Tensor", "mv.default", "neg.default", "pow.Tensor_Scalar",
        "reciprocal.default", "reshape.default", "rsqrt.default", "sigmoid.default",
        "sqrt.default", "squeeze.dim", "sub.Scalar", "sub.Tensor", "sum.default", "sum.dim_IntList",
        "t.default", "tanh.default", "transpose.int", "unsqueeze.default", "where.self",
    )
}  # fmt: skip
"""Torch's own functions for operators, which are called faster than these are."""
FILLING = ("addmm.default", "mm.default", "mul.Tensor", "sum.dim_IntList")
"""Of these, those that can fill a tensor that is there."""


def _failed(before: Tensor | None, info: Tensor, rows: int) -> Tensor:
    """Which rows of a batch a matrix factorisation has failed for, by now."""
    bad = (info != 0).reshape(rows, -1).any(1) if info.numel() % rows == 0 else (info != 0).any()
    return bad if before is None else before | bad


def _marked(bad: Tensor | None, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The outputs, not a number in the rows where a factorisation failed."""
    if bad is None or not bad.any():
        return outputs
    return tuple(
        output.masked_fill(bad.reshape(-1, *(1,) * (output.dim() - 1)), torch.nan)
        for output in outputs
    )


def _gathered(source: Tensor, indices: list[Any]) -> Tensor:
    """What stands at the same indices of each row of a batch, moved in whole columns."""
    return source.transpose(0, 1).contiguous().index_select(0, indices[1]).transpose(0, 1)


def _scattered(onto: Tensor, indices: list[Any], values: Tensor, accumulate: bool) -> Tensor:
    """A batch with values added at the same indices of each row, in the order of their memory."""
    if values.dim() != onto.dim() or values.shape[1] != len(indices[1]):
        return torch.ops.aten.index_put(onto, indices, values, accumulate)
    values = values.expand(len(onto), -1, *onto.shape[2:])
    if values.stride(0) > values.stride(1):
        return onto.clone().index_add_(1, indices[1], values)
    columns = onto.transpose(0, 1).clone(memory_format=torch.contiguous_format)
    return columns.index_add_(0, indices[1], values.transpose(0, 1)).transpose(0, 1)


IN_COLUMNS = {"index.Tensor": _gathered, "index_put.default": _scattered}
"""Of operations with the same indices for each row of a batch, what is faster."""


class Replay:
    """A recording as generated Python code, one line an operation.

    Attributes:
        numbers: That its operations give for each row, of a recording for batches.
        widest: Of these, the most that one operation gives, where the turns of a loop are done at
            once; else 0.
        matrix: The most numbers of a matrix, or of several of one kind, that one operation gives.
        branches: Whether it may find another branch than the recorded one.
    """

    numbers: int
    widest: int
    matrix: int

    def __init__(
        self,
        operations: list[Operation],
        constants: dict[int, Tensor],
        entries: list[int],
        results: list[int],
        batched: bool = True,
    ) -> None:
        self.operations, self.constants = operations, constants
        self.entries, self.results, self.batched = entries, results, batched
        self.branches = any(operation.function is READ for operation in operations)
        self._code: dict[tuple[int, ...] | None, Callable[..., tuple[Tensor, ...]]] = {}
        self._places: dict[int, Tensor] = {}

    def place(self, places: dict[int, Tensor]) -> set[int]:
        """Has results, by their numbers, put where they are wanted; those for which that can be.

        Each call then gives the same tensors, filled anew.
        """
        made = {each.outputs[0]: each for each in self.operations if len(each.outputs) == 1}
        placed = set()
        self._places = {}
        for number, place in places.items():
            slot = self.results[number]
            if self.results.count(slot) > 1:
                continue
            while (
                slot in made and made[slot].function is TURN
            ):  # what is turned is put there turned back
                slot, place = made[slot].arguments[0].index, place.t()
            taken = slot in self._places  # by the same numbers, turned
            fills = slot in made and name_of(made[slot]) in FILLING and not made[slot].keywords
            if fills and not taken:
                self._places[slot] = place
                placed.add(number)
        self._code.clear()
        return placed

    def __call__(self, *inputs: Tensor, outputs: tuple[int, ...] | None = None) -> Any:
        """The outputs for a batch (n, D), or for all inputs, or those of the numbers given."""
        if outputs not in self._code:
            self._code[outputs] = self._compiled(outputs)
        with torch.no_grad():
            return self._code[outputs](*inputs)

    def _callable(self, operation: Operation) -> Any:
        """What an operation calls."""
        name, function = name_of(operation), operation.function
        if self.batched and name in IN_COLUMNS and self._picks_columns(operation):
            return IN_COLUMNS[name]
        return BINDINGS.get(name, getattr(function, "_op", function))

    def _picks_columns(self, operation: Operation) -> bool:
        """Whether the same columns of each row of a batch are read, or added to."""
        _, indices, *more = operation.arguments
        slot = indices[1] if len(indices) == 2 and indices[0] is None else None
        known = self.constants.get(slot.index) if isinstance(slot, Slot) else None
        return (
            known is not None
            and (not more or more[1:] == [True])
            and known.dtype == torch.int64
            and known.dim() == 1
            and known.numel() > 0
            and int(known.min()) >= 0
        )

    def needed(self, wanted: list[int]) -> list[Operation]:
        """The operations that the wanted values follow from."""
        live, needed = set(wanted), []
        for operation in reversed(self.operations):
            always = operation.function._schema.is_mutable or operation.function in (CHECK, READ)
            # What draws random numbers does so in the same order as the function itself.
            always |= not self.batched and is_random(operation)
            if always or live.intersection(operation.outputs):
                live.update(operation.taken)
                needed.append(operation)
        return needed[::-1]

    def function(self) -> Callable[..., tuple[Tensor, ...]]:
        """The code itself, in calls that `torch.compile` follows."""
        return self._compiled(None, lambda operation: operation.function)

    def _compiled(
        self,
        wanted: tuple[int, ...] | None,
        called: Callable[[Operation], Any] | None = None,
    ) -> Callable[..., tuple[Tensor, ...]]:
        results = self.results if wanted is None else [self.results[i] for i in wanted]
        operations = self.needed(results)
        last: dict[int, int] = {}  # where each value is used for the last time
        for line, operation in enumerate(operations):
            last.update(dict.fromkeys(operation.taken, line))
        code = _Code(self.entries, self.constants, self._places, self.batched)
        for line, operation in enumerate(operations):
            code.add(operation, called or self._callable)
            code.free(
                index
                for index in operation.taken
                if last[index] == line and index not in self.constants and index not in results
            )
        return code.function(results)


class _Code:
    """Python code that runs operations one after the other, and the names that it uses.

    The value of slot 3 is `v3`, or `c3` if it is a constant.
    """

    def __init__(
        self,
        entries: list[int],
        constants: dict[int, Tensor],
        places: dict[int, Tensor],
        batched: bool,
    ) -> None:
        self.constants, self.places, self.batched = constants, places, batched
        self.names: dict[str, Any] = {
            "BranchError": BranchError, "failed": _failed, "marked": _marked,
        }  # fmt: skip
        self.lines = [f"def replay({', '.join(f'v{entry}' for entry in entries)}):"]
        if batched:
            self.lines.append(f" n, bad = v{entries[0]}.shape[0], None")

    def add(self, operation: Operation, called: Callable[[Operation], Any]) -> None:
        """Adds the line of an operation."""
        arguments = [self.text(value) for value in operation.arguments]
        if operation.function is READ:
            taken, answer = arguments
            self.lines.append(f" if bool({taken}) is not {answer}: raise BranchError")
        elif operation.function is DETACH:
            self.lines.append(f" v{operation.outputs[0]} = {arguments[0]}")
        elif operation.function is CHECK and self.batched:
            self.lines.append(f" bad = failed(bad, {arguments[0]}, n)")
        else:
            arguments += [f"{key}={self.text(value)}" for key, value in operation.keywords.items()]
            if set(operation.outputs) & set(self.places):
                arguments.append(f"out={self.named(self.places[operation.outputs[0]])}")
            call = f"{self.named(called(operation))}({', '.join(arguments)})"
            self.lines.append(f" {_targets(operation)}{call}")

    def free(self, indices: Iterable[int]) -> None:
        """Adds a line after which values that are not results may be released."""
        spent = "".join(f"v{index} = " for index in sorted(indices))
        if spent:
            self.lines.append(f" {spent}None")

    def text(self, value: Any) -> str:
        """How an argument is written."""
        if isinstance(value, Slot):
            if value.index not in self.constants:
                return f"v{value.index}"
            self.names[f"c{value.index}"] = self.constants[value.index]
            return f"c{value.index}"
        if isinstance(value, Affine):
            return f"{value.factor} * n + {value.offset}"
        if isinstance(value, list):
            return "[" + ", ".join(map(self.text, value)) + "]"
        if isinstance(value, tuple):
            return "(" + "".join(f"{self.text(each)}, " for each in value) + ")"
        if value is None or isinstance(value, (bool, int)):
            return repr(value)
        return self.named(value)  # dtypes, devices, floats (inf has no literal)

    def named(self, value: Any) -> str:
        """A name for an object."""
        name = f"o{len(self.names)}"
        self.names[name] = value
        return name

    def function(self, results: list[int]) -> Callable[..., tuple[Tensor, ...]]:
        """The function of all lines."""
        found = f"({', '.join(self.text(Slot(index)) for index in results)},)"
        self.lines.append(f" return marked(bad, {found})" if self.batched else f" return {found}")
        exec(compile("\n".join(self.lines), "<recording>", "exec"), self.names)
        return self.names["replay"]


def _targets(operation: Operation) -> str:
    """What the result of an operation is assigned to."""
    if not operation.outputs:
        return ""
    returns = operation.function._schema.returns
    if len(returns) > 1:
        given = dict(zip(operation.places, operation.outputs, strict=True))
        targets = [f"v{given[i]}" if i in given else "_" for i in range(len(returns))]
    else:
        targets = [f"v{index}" for index in operation.outputs]
    many = len(returns) > 1 or (returns and "List" in str(returns[0].type))
    return ", ".join(targets) + ("," if many else "") + " = "
