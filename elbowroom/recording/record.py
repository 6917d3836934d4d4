"""A function of tensors recorded once as a flat list of operations, and replayed as plain code.

`record` runs the function twice, on batches of two sizes, and keeps what the dispatcher saw:
the operations below `vmap` and the gradient, with every layer of Python above them gone. Whole
numbers that follow the batch (the 6 of a view of 3 × 2, the 9 of 3 × 3) are told from the two runs,
so that one recording serves batches of every size. What does not depend on the input is computed
once.

`torch.fx`'s `make_fx` gives such a graph too, for one batch size, in twenty times the time.
"""

import gc
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from elbowroom.errors import SignalError
from elbowroom.recording.gathering import gathered
from elbowroom.recording.operations import (
    FILLED,
    READ,
    Affine,
    Operation,
    Slot,
    is_random,
    leaves,
    mapped,
    name_of,
)
from elbowroom.recording.python_state import python_numbers
from elbowroom.recording.replay import Replay
from elbowroom.recording.simplifying import Simplifier

BATCHES = (2, 3)
"""Rows of the two runs; not 1, which broadcasts like no other size."""


BLANK = ("empty", "empty_like", "new_empty", "empty_strided")
"""Operations that give a tensor whose numbers are nobody's."""


@contextmanager
def _uncollected() -> Iterator[None]:
    """Pauses the garbage collector, which would search a recording's objects for long."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class NotRecordableError(SignalError):
    """The function does not run the same operations at every point."""


class _Recorder(TorchDispatchMode):
    """Keeps the operations that reach the dispatcher, and the tensors they take from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []
        self.slots: dict[int, int] = {}
        self.values: list[Tensor] = []
        self.outside: list[int] = []
        self.mutated: set[int] = set()
        self.answers: set[int] = set()  # operations that gave a plain number

    def slot(self, tensor: Tensor, new: bool = False) -> Slot:
        # Every tensor is kept until the end, so that no two share an id.
        if new or id(tensor) not in self.slots:
            if not new:
                self.outside.append(len(self.values))
            self.slots[id(tensor)] = len(self.values)
            self.values.append(tensor)
        return Slot(self.slots[id(tensor)])

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        before = {id(x) for x in leaves((args, kwargs)) if isinstance(x, Tensor)}

        def slotted(x: Any) -> Any:
            return self.slot(x) if isinstance(x, Tensor) else x

        arguments, keywords = mapped(slotted, args), mapped(slotted, kwargs)
        result = function(*args, **kwargs)
        results = [x for x in leaves(result) if isinstance(x, Tensor)]
        # An operation in place gives back what it took, and keeps its slot.
        outputs = [self.slot(x, new=id(x) not in before).index for x in results]
        storages = [x.untyped_storage()._cdata for x in results]
        if function._schema.is_mutable:
            self.mutated.update(storages)
        if any(isinstance(x, (bool, int, float, complex)) for x in leaves(result)):
            self.answers.add(len(self.operations))
        places = tuple(i for i, x in enumerate(leaves(result)) if isinstance(x, Tensor))
        self.operations.append(Operation(function, arguments, keywords, outputs, storages, places))
        return result


class Handed(TorchDispatchMode):
    """Hands out random numbers that were drawn before, in order, as long as they fit.

    Args:
        numbers: Of each operation that draws some.

    Example:
        >>> with Handed([torch.tensor([1.0, 2.0])]):
        ...     torch.randn(2), torch.rand(1) < 1
        (tensor([1., 2.]), tensor([True]))
    """

    def __init__(self, numbers: Sequence[Tensor]) -> None:
        super().__init__()
        self.numbers = list(numbers)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        found = function(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in function.tags and self.numbers:
            number = self.numbers.pop(0)
            if number.shape == found.shape:
                found.copy_(number)
            else:  # another branch, with other numbers
                self.numbers.clear()
        return found


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
    if isinstance(first, Slot):
        if first.index != second.index:
            raise NotRecordableError
        return first
    if isinstance(first, (list, tuple)):
        if len(first) != len(second):
            raise NotRecordableError
        return type(first)([_merged(a, b) for a, b in zip(first, second, strict=True)])
    if isinstance(first, dict):
        if first.keys() != second.keys():
            raise NotRecordableError
        return {key: _merged(first[key], second[key]) for key in first}
    if isinstance(first, int) and not isinstance(first, bool) and first != second:
        factor, rest = divmod(second - first, BATCHES[1] - BATCHES[0])
        if rest:
            raise NotRecordableError
        return Affine(factor, first - factor * BATCHES[0])
    if first != second and not (first != first and second != second):
        raise NotRecordableError
    return first


def _both(first: Operation, second: Operation) -> Operation:
    """An operation of both runs."""
    if first.function is not second.function or first.outputs != second.outputs:
        raise NotRecordableError
    arguments = _merged(first.arguments, second.arguments)
    keywords = _merged(first.keywords, second.keywords)
    return replace(first, arguments=arguments, keywords=keywords)


def _simplified(
    first: _Recorder,
    second: _Recorder,
    kept: list[tuple[Operation, Operation]],
    constants: dict[int, Tensor],
    results: list[int],
) -> tuple[list[Operation], list[torch.Size], list[int]]:
    """What simplifying each run by itself leaves of both: operations, shapes and results."""
    left, right = (Simplifier(run.values, constants, run.mutated) for run in (first, second))
    one, given = left([each for each, _ in kept], results)
    two, again = right([each for _, each in kept], results)
    if given != again or len(one) != len(two):
        raise NotRecordableError
    return [_both(*pair) for pair in zip(one, two, strict=True)], left.held, given


def _same(first: Tensor, second: Tensor) -> bool:
    if first is second:
        return True
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    if first.is_meta:
        return True
    return torch.equal(first.isnan(), second.isnan()) and torch.equal(
        first.nan_to_num(), second.nan_to_num()
    )


def _from_outside(
    one: _Recorder, two: _Recorder, entries: set[int], moving: Collection[int] = ()
) -> dict[int, Tensor]:
    """The tensors that both runs took from outside, by slot.

    Args:
        one: The first run.
        two: The second run.
        entries: Slots of the inputs, which are none of them.
        moving: Slots of those whose values may differ.

    Raises:
        NotRecordableError: If the runs have other operations or took others from outside.
    """
    if len(one.operations) != len(two.operations) or one.outside != two.outside:
        raise NotRecordableError
    taken = [index for index in one.outside if index not in entries]
    if not all(index in moving or _same(one.values[index], two.values[index]) for index in taken):
        raise NotRecordableError
    return {index: one.values[index] for index in taken}


def _follows_batch(operation: Operation) -> bool:
    """Whether an operation takes a whole number that follows the size of the batch."""
    taken = leaves((operation.arguments, operation.keywords))
    return any(isinstance(leaf, Affine) for leaf in taken)


def alike(found: Tensor, expected: Tensor) -> bool:
    """Whether two tensors are the same but for rounding, relative to the largest number."""
    expected = expected.detach()
    finite = expected[torch.isfinite(expected)].abs()
    largest = float(finite.max()) if finite.numel() else 0.0
    relative = torch.finfo(expected.dtype).eps ** 0.5
    return torch.allclose(found, expected, rtol=relative, atol=relative * largest, equal_nan=True)


@_uncollected()
def record_step(
    function: Callable[..., Sequence[Tensor]],
    first: Sequence[Tensor],
    second: Sequence[Tensor],
    state: Sequence[Tensor] = (),
    between: Callable[[], None] = lambda: None,
) -> Replay:
    """Records a function that may draw random numbers and hold gradients by autograd.

    Args:
        function: Of tensors of fixed shapes to several tensors.
        first: What to run it on.
        second: What to run it on again, to see that no operation depends on a value.
        state: Tensors that it reads beside, whose values change between calls.
        between: Called between the two runs, to change them: what follows them by a way that is not
            seen, over numpy for one, would else be taken for a constant.

    Returns:
        The same function, faster. Its random numbers come from torch's generator, in the same
        order: from the same state of that it gives the same values. Where a branch is not the one
        that both runs took, it raises `BranchError`.

    Raises:
        NotRecordableError: If the two runs differ by more than the values of tensors.

    Example:
        >>> scale = torch.tensor(2.0, requires_grad=True)
        >>> def step(x):
        ...     loss = (scale * x * torch.randn(2)).square().sum()
        ...     return [loss, *torch.autograd.grad(loss, [scale])]
        >>> replay = record_step(step, [torch.ones(2)], [torch.zeros(2)], [scale])
        >>> _ = torch.manual_seed(0)
        >>> recorded = replay(torch.ones(2))
        >>> _ = torch.manual_seed(0)
        >>> [one == two for one, two in zip(recorded, step(torch.ones(2)))]
        [tensor(True), tensor(True)]
    """
    runs: list[tuple[_Recorder, list[int]]] = []
    for inputs in (first, second):
        if runs:
            between()
        recorder = _Recorder()
        entries = [recorder.slot(each).index for each in inputs]
        moving = {recorder.slot(each).index for each in state}
        with recorder:
            found = function(*inputs)
        runs.append((recorder, [recorder.slot(x).index for x in found]))
    (one, wanted), (two, again) = runs
    if wanted != again:
        raise NotRecordableError
    constants = _from_outside(one, two, set(entries), moving)
    steps = _Steps(one, two, constants, moving)
    lines = map(steps.kept, range(len(one.operations)))
    kept = [operation for operation in lines if operation is not None]
    fixed = {index: constants[index] for index in steps.folded}
    left, given = Simplifier(one.values, fixed, steps.mutated)(kept, wanted)
    return Replay(left, constants, entries, given, batched=False)


def record_agreeing(
    function: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Sequence[Tensor]],
    owners: Sequence[Any],
    state: Sequence[Tensor] = (),
    between: Callable[[], None] = lambda: None,
) -> Replay | None:
    """A recording of a function on the CPU that gives the same numbers as the function.

    Args:
        function: See `record_step`.
        inputs: Three of what it takes, the last one to compare the recording with the function.
        owners: Functions of a user's that it runs, which may keep numbers where no recording sees.
        state: See `record_step`.
        between: See `record_step`.

    Returns:
        None where it cannot be recorded, or the recording gives other numbers.

    Example:
        >>> inputs = [[torch.full((2,), value)] for value in (1.0, 2.0, 3.0)]
        >>> replay = record_agreeing(lambda x: [x.exp().sum()], inputs, [])
        >>> replay(torch.zeros(2))
        (tensor(2.),)
        >>> calls = []
        >>> counted = lambda x: [x.exp().sum()] if calls.append(1) is None else []
        >>> record_agreeing(counted, inputs, [calls]) is None
        True
    """
    numbers = python_numbers(*owners)
    with torch.random.fork_rng(devices=[]):
        # It fails to be recorded in as many ways as there are users' functions, which then are run.
        try:
            replay = record_step(function, inputs[0], inputs[1], state, between)
            between()
            before = torch.random.get_rng_state()
            found = replay(*inputs[2])
            after = torch.random.get_rng_state()
            torch.random.set_rng_state(before)
            expected = function(*inputs[2])
        except Exception:
            return None
        same = all(map(alike, found, expected)) and torch.equal(after, torch.random.get_rng_state())
    return replay if same and python_numbers(*owners) == numbers else None


class _Steps:
    """Two runs of a step, of which each operation is kept or is folded into a constant.

    Attributes:
        folded: Slots whose values never change.
        mutated: Storages that an operation of either run writes to.
    """

    def __init__(
        self, one: _Recorder, two: _Recorder, constants: dict[int, Tensor], moving: set[int]
    ) -> None:
        self.one, self.two, self.constants = one, two, constants
        self.folded = set(constants) - moving
        self.mutated = one.mutated | two.mutated

    def kept(self, line: int) -> Operation | None:
        """The operation of a line of both runs; None where its results never change.

        Raises:
            NotRecordableError: If the runs differ in it, or it follows values that change.
        """
        before, after = self.one.operations[line], self.two.operations[line]
        if before.function is not after.function or before.outputs != after.outputs:
            raise NotRecordableError
        if line in self.one.answers:
            return None if before.taken <= self.folded else self._branch(before)
        _exactly(before.arguments, after.arguments)
        _exactly(before.keywords, after.keywords)
        if before.function._schema.name.partition("::")[2] in BLANK:  # to be filled later on
            return before
        if self._is_constant(before):
            if not all(_same(self.one.values[i], self.two.values[i]) for i in before.outputs):
                raise NotRecordableError
            self.constants.update({index: self.one.values[index] for index in before.outputs})
            self.folded.update(before.outputs)
            return None
        if _follows_values(before, self.one.values, self.folded):
            raise NotRecordableError
        return before

    def _branch(self, operation: Operation) -> Operation:
        """A branch that both runs took."""
        if operation.function is not READ:
            raise NotRecordableError
        (taken,) = operation.taken
        first, second = self.one.values[taken], self.two.values[taken]
        if first.dtype != torch.bool or bool(first) != bool(second):
            raise NotRecordableError
        return replace(operation, arguments=(Slot(taken), bool(first)))

    def _is_constant(self, operation: Operation) -> bool:
        """Whether an operation takes nothing that changes, and nothing writes to its results."""
        touched = {self.one.values[i].untyped_storage()._cdata for i in operation.taken}
        changed = self.mutated & touched.union(operation.storages)
        alone = operation.taken <= self.folded or name_of(operation) in FILLED
        return alone and not is_random(operation) and not changed


def _follows_values(operation: Operation, values: list[Tensor], folded: set[int]) -> bool:
    """Whether the shape of what an operation gives follows values that it takes and that change."""
    if torch.Tag.dynamic_output_shape not in operation.function.tags:
        return False
    if name_of(operation) != "index.Tensor":
        return True
    indices = [leaf.index for leaf in leaves(operation.arguments[1]) if isinstance(leaf, Slot)]
    changing = (index for index in indices if index not in folded)
    return any(values[index].dtype in (torch.bool, torch.uint8) for index in changing)


def _exactly(first: Any, second: Any) -> None:
    if _merged(first, second) != first and first == first:
        raise NotRecordableError


@_uncollected()
def record(
    function: Callable[[Tensor], Sequence[Tensor]], points: Tensor, gather: bool = True
) -> Replay:
    """Records a batched function.

    Args:
        function: Of a batch (n, D) to several tensors, each with leading dim n. It may hold
            `vmap` and gradients.
        points: Where to run it, (5, D): no two runs see the same point, so that a branch taken on
            a value shows.
        gather: Whether operations that are alike are done at once; see
            `elbowroom.recording.gathering`.

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
    if results != again:
        raise NotRecordableError
    constants = _from_outside(first, second, {entry})
    mutated = {
        storage
        for one, two in zip(first.operations, second.operations, strict=True)
        for storage, other in zip(one.storages, two.storages, strict=False)
        if storage in first.mutated or other in second.mutated
    }
    kept: list[tuple[Operation, Operation]] = []
    for one, two in zip(first.operations, second.operations, strict=True):
        merged = _both(one, two)
        fixed = merged.taken <= set(constants) and not is_random(one)
        if fixed and not _follows_batch(merged) and not mutated.intersection(one.storages):
            if not all(_same(first.values[i], second.values[i]) for i in one.outputs):
                raise NotRecordableError
            constants.update({index: first.values[index] for index in one.outputs})
        elif one.function is READ:
            raise NotRecordableError
        else:
            kept.append((one, two))
    if gather:
        pairs, runs = [_both(*each) for each in kept], (first.values, second.values)
        fewer = gathered(pairs, runs, constants, entry, results)
        expected = [first.values[index] for index in results]
        # It fails in as many ways as there are operations, which then stay as they are.
        with suppress(Exception):
            replay = record(fewer, points, gather=False) if fewer is not None else None
            if replay is not None and all(map(alike, replay(points[:size]), expected)):
                return replay
    shapes = [value.shape for value in first.values]
    try:
        operations, shapes, results = _simplified(first, second, kept, constants, results)
    except NotRecordableError:  # what is left depends on the size of the batch
        operations = [_both(one, two) for one, two in kept]
    replay = Replay(operations, constants, [entry], results)
    outputs = [shapes[index] for operation in replay.needed(results) for index in operation.outputs]
    given = [prod(shape) // size for shape in outputs]
    replay.numbers = sum(given)
    replay.matrix = max((prod(each) // size for each in outputs if len(each) > 2), default=0)
    replay.widest = 0 if gather else max(given, default=0)
    if any(is_random(operation) for operation in replay.needed(results)):
        raise NotRecordableError  # a random number that matters
    return replay
