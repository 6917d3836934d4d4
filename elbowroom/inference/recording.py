"""A function of tensors recorded once as a flat list of operations, and replayed as plain code.

`record` runs the function twice, on batches of two sizes, and keeps what the dispatcher saw:
the operations below `vmap` and the gradient, with every layer of Python above them gone. Whole
numbers that follow the batch (the 6 of a view of 3 × 2, the 9 of 3 × 3) are told from the two runs,
so that one recording serves batches of every size. What does not depend on the input is computed
once.

`torch.fx`'s `make_fx` gives such a graph too, for one batch size, in twenty times the time.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

BATCHES = (2, 3)
"""Rows of the two runs; not 1, which broadcasts like no other size."""


CHECK = torch.ops.aten._linalg_check_errors.default
"""Raises for the whole batch where one row's matrix cannot be factorised."""


READ = torch.ops.aten._local_scalar_dense.default
"""Takes a number out of a tensor, to where no recording follows it."""


class NotRecordableError(Exception):
    """The function does not run the same operations at every point."""


@dataclass(frozen=True)
class _Slot:
    """The value that an operation gave, in a recorded argument's place."""

    index: int


@dataclass(frozen=True)
class _Affine:
    """A whole number that follows the batch: factor · rows + offset."""

    factor: int
    offset: int


@dataclass
class _Operation:
    function: Any
    arguments: Any
    keywords: Any
    outputs: list[int]
    storages: list[int]

    @property
    def taken(self) -> set[int]:
        """The slots of the values that it takes."""
        leaves = _leaves((self.arguments, self.keywords))
        return {leaf.index for leaf in leaves if isinstance(leaf, _Slot)}


def _leaves(value: Any) -> Iterator[Any]:
    """What lies in nested lists, tuples and dicts."""
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from _leaves(each)
    elif isinstance(value, dict):
        yield from _leaves(list(value.values()))
    else:
        yield value


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """The same nest with its leaves changed."""
    if isinstance(value, (list, tuple)):
        return type(value)([_mapped(change, each) for each in value])
    if isinstance(value, dict):
        return {key: _mapped(change, each) for key, each in value.items()}
    return change(value)


class _Recorder(TorchDispatchMode):
    """Keeps the operations that reach the dispatcher, and the tensors they take from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[_Operation] = []
        self.slots: dict[int, int] = {}
        self.values: list[Tensor] = []
        self.outside: list[int] = []
        self.mutated: set[int] = set()

    def slot(self, tensor: Tensor, new: bool = False) -> _Slot:
        # Every tensor is kept until the end, so that no two share an id.
        if new or id(tensor) not in self.slots:
            if not new:
                self.outside.append(len(self.values))
            self.slots[id(tensor)] = len(self.values)
            self.values.append(tensor)
        return _Slot(self.slots[id(tensor)])

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        before = {id(x) for x in _leaves((args, kwargs)) if isinstance(x, Tensor)}

        def slotted(x: Any) -> Any:
            return self.slot(x) if isinstance(x, Tensor) else x

        arguments, keywords = _mapped(slotted, args), _mapped(slotted, kwargs)
        result = function(*args, **kwargs)
        results = [x for x in _leaves(result) if isinstance(x, Tensor)]
        # An operation in place gives back what it took, and keeps its slot.
        outputs = [self.slot(x, new=id(x) not in before).index for x in results]
        storages = [x.untyped_storage()._cdata for x in results]
        if function._schema.is_mutable:
            self.mutated.update(storages)
        self.operations.append(_Operation(function, arguments, keywords, outputs, storages))
        return result


def _run(
    function: Callable[[Tensor], Sequence[Tensor]], batch: Tensor
) -> tuple[_Recorder, int, list[int]]:
    recorder = _Recorder()
    entry = recorder.slot(batch).index
    with recorder:
        results = function(batch)
    return recorder, entry, [recorder.slot(x).index for x in results]


def _merged(first: Any, second: Any) -> Any:
    """An argument of both runs: the same, or a whole number that follows the batch."""
    if type(first) is not type(second):
        raise NotRecordableError
    if isinstance(first, (list, tuple)):
        if len(first) != len(second):
            raise NotRecordableError
        return type(first)(_merged(a, b) for a, b in zip(first, second, strict=True))
    if isinstance(first, dict):
        if first.keys() != second.keys():
            raise NotRecordableError
        return {key: _merged(first[key], second[key]) for key in first}
    if isinstance(first, int) and not isinstance(first, bool) and first != second:
        factor, rest = divmod(second - first, BATCHES[1] - BATCHES[0])
        if rest:
            raise NotRecordableError
        return _Affine(factor, first - factor * BATCHES[0])
    if first != second and not (first != first and second != second):
        raise NotRecordableError
    return first


def _same(first: Tensor, second: Tensor) -> bool:
    if first is second:
        return True
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    return first.is_meta or torch.equal(first.nan_to_num(), second.nan_to_num())


def record(function: Callable[[Tensor], Sequence[Tensor]], points: Tensor) -> "Replay":
    """Records a batched function.

    Args:
        function: Of a batch (n, D) to several tensors, each with leading dim n. It may hold
            `vmap` and gradients.
        points: Where to run it, (5, D): no two runs see the same point, so that a branch taken on
            a value shows.

    Returns:
        The same function of a batch of any size, faster. With `outputs=(0,)` only those outputs
        are computed. Rows for which a matrix cannot be factorised are NaN.

    Raises:
        NotRecordableError: If the two runs differ by more than the size of the batch.

    Example:
        >>> points = torch.arange(10.0).reshape(5, 2)
        >>> replay = record(lambda u: [(u * torch.tensor([1.0, 2.0])).sum(-1)], points)
        >>> replay(torch.ones(4, 2))
        (tensor([3., 3., 3., 3.]),)
    """
    size = BATCHES[0]
    with torch.no_grad():
        first, entry, results = _run(function, points[:size].clone())
        second, _, again = _run(function, points[size : size + BATCHES[1]].clone())
    if results != again or len(first.operations) != len(second.operations):
        raise NotRecordableError
    if first.outside != second.outside:
        raise NotRecordableError
    mutated = {
        storage
        for one, two in zip(first.operations, second.operations, strict=True)
        for storage, other in zip(one.storages, two.storages, strict=False)
        if storage in first.mutated or other in second.mutated
    }
    constants: dict[int, Tensor] = {}
    for index in first.outside:
        if index != entry:
            if not _same(first.values[index], second.values[index]):
                raise NotRecordableError
            constants[index] = first.values[index]
    kept = []
    for one, two in zip(first.operations, second.operations, strict=True):
        if one.function is not two.function or one.outputs != two.outputs:
            raise NotRecordableError
        arguments = _merged(one.arguments, two.arguments)
        keywords = _merged(one.keywords, two.keywords)
        leaves = list(_leaves((arguments, keywords)))
        slots = [leaf.index for leaf in leaves if isinstance(leaf, _Slot)]
        fixed = all(index in constants for index in slots)
        follows = any(isinstance(leaf, _Affine) for leaf in leaves)
        random = torch.Tag.nondeterministic_seeded in one.function.tags
        if fixed and not follows and not random and not mutated.intersection(one.storages):
            if all(_same(first.values[i], second.values[i]) for i in one.outputs):
                constants.update({index: first.values[index] for index in one.outputs})
                continue
            raise NotRecordableError
        if one.function is READ:
            raise NotRecordableError
        kept.append(_Operation(one.function, arguments, keywords, one.outputs, one.storages))
    replay = Replay(kept, constants, entry, results)
    replay.numbers = sum(
        first.values[index].numel() // size
        for operation in replay.needed(results)
        for index in operation.outputs
    )
    if any(
        torch.Tag.nondeterministic_seeded in operation.function.tags
        for operation in replay.needed(results)
    ):
        raise NotRecordableError  # a random number that matters
    return replay


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
        numbers: That its operations give for each row.
    """

    numbers: int

    def __init__(
        self,
        operations: list[_Operation],
        constants: dict[int, Tensor],
        entry: int,
        results: list[int],
    ) -> None:
        self.operations, self.constants = operations, constants
        self.entry, self.results = entry, results
        self._code: dict[tuple[int, ...], Callable[[Tensor], tuple[Tensor, ...]]] = {}

    def __call__(self, batch: Tensor, outputs: tuple[int, ...] | None = None) -> Any:
        """The outputs for a batch (n, D), or those of the numbers given."""
        wanted = tuple(range(len(self.results))) if outputs is None else outputs
        if wanted not in self._code:
            self._code[wanted] = self._compiled(wanted)
        with torch.no_grad():
            return self._code[wanted](batch)

    def needed(self, wanted: list[int]) -> list[_Operation]:
        """The operations that the wanted values follow from."""
        live, needed = set(wanted), []
        for operation in reversed(self.operations):
            always = operation.function._schema.is_mutable or operation.function is CHECK
            if always or live.intersection(operation.outputs):
                live.update(operation.taken)
                needed.append(operation)
        return needed[::-1]

    def _compiled(self, wanted: tuple[int, ...]) -> Callable[[Tensor], tuple[Tensor, ...]]:
        results = [self.results[i] for i in wanted]
        operations = self.needed(results)
        last: dict[int, int] = {}  # where each value is used for the last time
        for line, operation in enumerate(operations):
            last.update(dict.fromkeys(operation.taken, line))
        names: dict[str, Any] = {}
        lines = ["def replay(batch):", " n, bad = batch.shape[0], None", f" v{self.entry} = batch"]

        def written(value: Any) -> str:
            if isinstance(value, _Slot):
                if value.index in self.constants:
                    names[f"c{value.index}"] = self.constants[value.index]
                    return f"c{value.index}"
                return f"v{value.index}"
            if isinstance(value, _Affine):
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
            names[function] = operation.function
            if operation.function is CHECK:
                names["failed"] = _failed
                lines.append(f" bad = failed(bad, {written(operation.arguments[0])}, n)")
                continue
            arguments = [written(value) for value in operation.arguments]
            arguments += [f"{key}={written(value)}" for key, value in operation.keywords.items()]
            call = f"{function}({', '.join(arguments)})"
            returns = operation.function._schema.returns
            many = len(returns) > 1 or (returns and "List" in str(returns[0].type))
            targets = "".join(f"v{index}, " for index in operation.outputs)
            if not operation.outputs:
                lines.append(f" {call}")
            else:
                lines.append(f" {targets if many else targets[:-2]} = {call}")
            spent = [
                index
                for index in operation.taken
                if last[index] == line and index not in self.constants and index not in results
            ]
            if spent:
                lines.append(" " + " = ".join(f"v{index}" for index in sorted(spent)) + " = None")
        values = [written(_Slot(index)) for index in results]
        names["marked"] = _marked
        lines.append(f" return marked(bad, ({', '.join(values)},))")
        exec(compile("\n".join(lines), "<recording>", "exec"), names)
        return names["replay"]
