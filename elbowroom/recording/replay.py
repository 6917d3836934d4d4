"""A recording as plain code, one line an operation."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

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


class BranchError(Exception):
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


def _callable(operation: Operation) -> Any:
    """What an operation calls."""
    function = operation.function
    return BINDINGS.get(name_of(operation), getattr(function, "_op", function))


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


class Replay:
    """A recording as generated Python code, one line an operation.

    Attributes:
        numbers: That its operations give for each row, of a recording for batches.
        branches: Whether it may find another branch than the recorded one.
    """

    numbers: int

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
        called: Callable[[Operation], Any] = _callable,
    ) -> Callable[..., tuple[Tensor, ...]]:
        results = self.results if wanted is None else [self.results[i] for i in wanted]
        operations = self.needed(results)
        last: dict[int, int] = {}  # where each value is used for the last time
        for line, operation in enumerate(operations):
            last.update(dict.fromkeys(operation.taken, line))
        names: dict[str, Any] = {}
        lines = [f"def replay({', '.join(f'v{entry}' for entry in self.entries)}):"]
        if self.batched:
            lines.append(f" n, bad = v{self.entries[0]}.shape[0], None")

        def written(value: Any) -> str:
            if isinstance(value, Slot):
                if value.index in self.constants:
                    names[f"c{value.index}"] = self.constants[value.index]
                    return f"c{value.index}"
                return f"v{value.index}"
            if isinstance(value, Affine):
                return f"{value.factor} * n + {value.offset}"
            if isinstance(value, list):
                return "[" + ", ".join(map(written, value)) + "]"
            if isinstance(value, tuple):
                return "(" + "".join(f"{written(each)}, " for each in value) + ")"
            if value is None or isinstance(value, (bool, int)):
                return repr(value)
            name = f"o{len(names)}"  # dtypes, devices, floats (inf has no literal)
            names[name] = value
            return name

        for line, operation in enumerate(operations):
            function = f"f{line}"
            names[function] = called(operation)
            if operation.function is READ:
                names["BranchError"] = BranchError
                taken, answer = operation.arguments
                lines.append(f" if bool({written(taken)}) is not {answer}: raise BranchError")
                continue
            if operation.function is DETACH:
                (output,), (taken, *_) = operation.outputs, operation.arguments
                lines.append(f" v{output} = {written(taken)}")
                continue
            if operation.function is CHECK and self.batched:
                names["failed"] = _failed
                lines.append(f" bad = failed(bad, {written(operation.arguments[0])}, n)")
                continue
            arguments = [written(value) for value in operation.arguments]
            arguments += [f"{key}={written(value)}" for key, value in operation.keywords.items()]
            if set(operation.outputs) & set(self._places):
                names[f"p{line}"] = self._places[operation.outputs[0]]
                arguments.append(f"out=p{line}")
            call = f"{function}({', '.join(arguments)})"
            returns = operation.function._schema.returns
            many = len(returns) > 1 or (returns and "List" in str(returns[0].type))
            given = dict(zip(operation.places, operation.outputs, strict=True))
            if len(returns) > 1:
                targets = [f"v{given[i]}" if i in given else "_" for i in range(len(returns))]
            else:
                targets = [f"v{index}" for index in operation.outputs]
            if not operation.outputs:
                lines.append(f" {call}")
            else:
                lines.append(f" {', '.join(targets)}{',' * many} = {call}")
            spent = [
                index
                for index in operation.taken
                if last[index] == line and index not in self.constants and index not in results
            ]
            if spent:
                lines.append(" " + " = ".join(f"v{index}" for index in sorted(spent)) + " = None")
        values = [written(Slot(index)) for index in results]
        names["marked"] = _marked
        found = f"({', '.join(values)},)"
        lines.append(f" return marked(bad, {found})" if self.batched else f" return {found}")
        exec(compile("\n".join(lines), "<recording>", "exec"), names)
        return names["replay"]
