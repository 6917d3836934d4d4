"""The same operation on many tensors of one shape, as one operation on all of them.

A loop over rows or steps in Python records as many pieces as it has turns, which do the same to
other numbers. Of operations that are alike and wait for nothing, all are done at once on their
stacked arguments; those that occur early in the recording go first, so that the others gather
until all of theirs are ready (Neubig, Goldberg and Dyer, 2017, "On-the-fly operation batching in
dynamic computation graphs"). Long sums, such as those of the gradients of all rows, become one.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from elbowroom.recording.operations import (
    FILLED,
    Affine,
    Operation,
    Slot,
    is_random,
    leaves,
    mapped,
    name_of,
)
from elbowroom.recording.simplifying import hashable


@dataclass(frozen=True)
class Gathering:
    """Where operations are gathered."""

    least: int = 400
    """Operations from which a recording is looked at: fewer take milliseconds as they are."""
    terms: int = 8
    """Terms from which a sum of sums is taken at once."""
    few: int = 4
    """Alike operations from which they are done at once: fewer are not worth stacking."""
    gain: int = 4
    """How many times as few steps there have to be as operations: stacking takes time too."""
    large: int = 4096
    """Numbers of one row in a result from which calls cost less than copying what they take."""


GATHERING = Gathering()
PICK, JOIN = torch.ops.aten.select.int, torch.ops.aten.cat.default
STACK = torch.ops.aten.stack.default
ADD, FILL = torch.ops.aten.add.Tensor, torch.ops.aten.fill.Scalar
VIEWED = ("view.default", "_unsafe_view.default")


@dataclass(frozen=True)
class _Node:
    """An operation on values that each have one number for good.

    Attributes:
        function: Of the dispatcher.
        arguments: Those by place and by name, with slots in the place of values.
        given: The values that it gives.
        terms: The values that it adds up, of a long sum; its arguments then are not read.
    """

    function: Any
    arguments: Any
    given: list[int]
    terms: list[int] = field(default_factory=list)

    @cached_property
    def taken(self) -> list[int]:
        """The values that it takes, in order."""
        if self.terms:
            return self.terms
        return [leaf.index for leaf in leaves(self.arguments) if isinstance(leaf, Slot)]


class _Values:
    """The values of a recording by numbers of their own: none is written to once it is there.

    Attributes:
        nodes: The operations, none of them twice.
        slots: The value that is in each slot at last.
    """

    def __init__(self, operations: Sequence[Operation], runs: tuple[list[Tensor], ...]) -> None:
        self.runs = runs
        self.slots = list(range(len(runs[0])))
        self.shown = list(range(len(runs[0])))  # a slot that has the shape of each value
        self.nodes: list[_Node] = []
        self._made: dict[Any, list[int]] = {}
        self.known = self._alone(operations)
        if self.known:
            for operation in operations:
                self._add(operation)

    def _alone(self, operations: Sequence[Operation]) -> bool:
        """Whether nothing is random, and what is written to has no view of it."""
        if any(is_random(each) or _functional(each) is None for each in operations):
            return False
        storages: dict[int, set[int]] = {}
        written = set()
        for operation in operations:
            if operation.function._schema.is_mutable:
                written.update(operation.storages)
        for operation in operations if written else ():
            for index in operation.taken.union(operation.outputs):
                storage = self.runs[0][index].untyped_storage()._cdata
                storages.setdefault(storage, set()).add(index)
        return all(len(storages[storage]) == 1 for storage in written)

    def form(self, value: int) -> Any:
        """The shapes of a value in both runs, and its type."""
        one, two = (run[self.shown[value]] for run in self.runs)
        return one.shape, two.shape, one.dtype

    def size(self, value: int) -> int:
        """The numbers of a value in the first run."""
        return self.runs[0][self.shown[value]].numel()

    def _add(self, operation: Operation) -> None:
        def at(leaf: Any) -> Any:
            return Slot(self.slots[leaf.index]) if isinstance(leaf, Slot) else leaf

        function = _functional(operation)
        arguments = mapped(at, (operation.arguments, operation.keywords))
        read = arguments
        if name_of(operation) in FILLED:
            (first, *others), keywords = arguments
            read = (self.form(first.index), *others), keywords
        key = function, hashable(read)
        if key not in self._made:
            given = [len(self.shown) + i for i in range(len(operation.outputs))]
            self.shown += operation.outputs
            self._made[key] = given
            self.nodes.append(_Node(function, arguments, given))
        for slot, value in zip(operation.outputs, self._made[key], strict=True):
            self.slots[slot] = value


def _functional(operation: Operation) -> Any:
    """The same operation that gives a new tensor instead of writing into one; None without one."""
    schema = operation.function._schema
    if not schema.is_mutable:
        return operation.function
    name = schema.name.partition("::")[2]
    packet = getattr(torch.ops.aten, name.removesuffix("_"), None)
    writes = operation.outputs == [getattr(next(iter(leaves(operation.arguments))), "index", None)]
    if not (name.endswith("_") and writes and packet):
        return None
    return getattr(packet, schema.overload_name or "default", None)


def _long_sums(nodes: list[_Node], values: _Values, results: Sequence[int]) -> list[_Node]:
    """The nodes with long sums as one each, and without the sums that these are made of."""
    uses: dict[int, int] = {}
    for node in nodes:
        for value in node.taken:
            uses[value] = uses.get(value, 0) + 1
    for value in results:
        uses[value] = uses.get(value, 0) + 1
    terms: dict[int, list[int]] = {}
    inner = set()
    for node in nodes:
        (given, *_) = node.given or [-1]
        if node.function is not ADD or node.arguments[1] or len(node.taken) != 2:
            continue
        if any(values.form(value) != values.form(given) for value in node.taken):
            continue
        terms[given] = []
        for value in node.taken:
            if value in terms and uses[value] == 1:
                terms[given] += terms.pop(value)
                inner.add(value)
            else:
                terms[given].append(value)
    long = {given for given, each in terms.items() if len(each) >= GATHERING.terms}
    # Those of the short ones stay as they are.
    parts: dict[int, int] = {}
    for node in reversed(nodes):
        for given in node.given:
            root = parts.get(given, given)
            if root in long and (given == root or given in inner):
                parts.update({value: root for value in node.taken if value in inner})
    kept = []
    for node in nodes:
        (given, *_) = node.given or [-1]
        if given in long:
            kept.append(replace(node, terms=terms[given]))
        elif parts.get(given) is None:
            kept.append(node)
    return kept


class Gathered:
    """A recording's operations, each on as many tensors at once as there are.

    Args:
        operations: Of both runs.
        runs: The values of the slots in either.
        constants: The slots whose values never change.
        entry: The slot of the batch.
        results: The slots of the results.

    Attributes:
        fewer: Whether there is something to gather.
    """

    def __init__(
        self,
        operations: Sequence[Operation],
        runs: tuple[list[Tensor], ...],
        constants: dict[int, Tensor],
        entry: int,
        results: Sequence[int],
    ) -> None:
        self.values = _Values(operations, runs)
        self.constants, self.entry = constants, entry
        self.fewer = False
        if self.values.known:
            self.results = [self.values.slots[slot] for slot in results]
            nodes = _long_sums(self.values.nodes, self.values, self.results)
            self.steps = [*_scheduled(nodes, self.values)]
            self.fewer = GATHERING.gain * len(self.steps) < len(operations)

    def __call__(self, batch: Tensor) -> list[Tensor]:
        """The results for a batch, (n, D)."""
        held = _Held(self.values, {**self.constants, self.entry: batch}, len(batch))
        for step in self.steps:
            for part in [step] if len(step) >= GATHERING.few else [[node] for node in step]:
                held.run(part)
        return [held.one(value) for value in self.results]


def _alike(node: _Node, values: _Values) -> Any:
    """What nodes have in common that can be one; none with any other where they cannot."""
    single = len(node.given) == 1 and not node.terms and node.taken
    if not single or values.size(node.given[0]) > GATHERING.large:
        return id(node)

    def form(leaf: Any) -> Any:
        return values.form(leaf.index) if isinstance(leaf, Slot) else leaf

    if _picks(node, values):  # whatever it picks
        return node.function, values.form(node.taken[0]), node.arguments[0][1]
    return node.function, hashable(mapped(form, node.arguments))


def _picks(node: _Node, values: _Values) -> bool:
    """Whether a node takes one of the parts of a tensor, as many in batches of every size."""
    if node.function is not PICK:
        return False
    (one, two, _), (_, dim, part) = values.form(node.taken[0]), node.arguments[0]
    return isinstance(part, int) and one[dim] == two[dim]


def _scheduled(nodes: list[_Node], values: _Values) -> Iterator[list[_Node]]:
    """Nodes in an order in which each comes after those that it waits for, the alike ones together.

    Of those that wait for nothing more, the kind whose nodes have the least depth on average.
    """
    maker = {value: node for node in nodes for value in node.given}
    waits: dict[int, int] = {}
    followers: dict[int, list[_Node]] = {}
    depth: dict[int, int] = {}  # operations that a node waits for at least, one after the other
    depths: dict[Any, list[int]] = {}
    kinds = {}
    for node in nodes:
        before = {id(maker[value]) for value in node.taken if value in maker}
        depth[id(node)] = 1 + max((depth[each] for each in before), default=0)
        waits[id(node)] = len(before)
        for each in before:
            followers.setdefault(each, []).append(node)
        kind = kinds[id(node)] = _alike(node, values)
        depths.setdefault(kind, []).append(depth[id(node)])
    mean = {kind: sum(each) / len(each) for kind, each in depths.items()}
    ready: dict[Any, list[_Node]] = {}
    for node in nodes:
        if not waits[id(node)]:
            ready.setdefault(kinds[id(node)], []).append(node)
    while ready:
        kind = min(ready, key=mean.__getitem__)
        step = ready.pop(kind)
        yield step
        for node in step:
            for follower in followers.get(id(node), ()):
                waits[id(follower)] -= 1
                if not waits[id(follower)]:
                    ready.setdefault(kinds[id(follower)], []).append(follower)


def _repeated(join: Callable[[list[Tensor]], Tensor], parts: list[Tensor], first: int) -> Tensor:
    """What a function joins tensors to, without a copy of what all of them repeat along a dim.

    Args:
        join: Along the first dim, a new one or the same.
        parts: The tensors.
        first: Of their dims, that may be repeated.
    """
    dims = range(first, parts[0].dim())
    once = [d for d in dims if all(each.shape[d] > 1 and each.stride(d) == 0 for each in parts)]
    if not once:
        return join(parts)
    whole = join([_narrow(each, once) for each in parts])
    sizes = [-1] * whole.dim()
    for dim in once:
        sizes[dim + 1 - first] = parts[0].shape[dim]
    return whole.expand(sizes)


def _narrow(tensor: Tensor, dims: Sequence[int]) -> Tensor:
    """A tensor with the first of what it has along dims."""
    for dim in dims:
        tensor = tensor.narrow(dim, 0, 1)
    return tensor


class _Held:
    """Values while they are computed: tensors of their own, or places in a stack of several."""

    def __init__(self, values: _Values, tensors: dict[int, Tensor], rows: int) -> None:
        self.values, self.tensors, self.rows = values, tensors, rows
        self.stacks: list[Tensor] = []
        self.places: dict[int, tuple[int, int]] = {}  # of a value: its stack, where in it
        self._apart: dict[int, tuple[Tensor, ...]] = {}

    def one(self, value: int) -> Tensor:
        """A value by itself."""
        if value not in self.tensors:
            stack, place = self.places[value]
            if stack not in self._apart:
                self._apart[stack] = self.stacks[stack].unbind(0)
            self.tensors[value] = self._apart[stack][place]
        return self.tensors[value]

    def stacked(self, values: Sequence[int]) -> Tensor:
        """Some values stacked: those beside each other in a stack are taken as they are."""
        found = [(value, *self.places.get(value, (None, 0))) for value in values]
        stacks = dict.fromkeys(stack for _, stack, _ in found)
        runs = 1 + sum(
            before[1] != after[1] or (after[1] is not None and before[2] + 1 != after[2])
            for before, after in pairwise(found)
        )
        wholes, begins, begin = [], {}, 0
        for stack in stacks:
            singles = [value for value, own, _ in found if own is None]
            whole = self._part(found, stack) if runs == len(stacks) else None
            if whole is None and stack is not None:
                whole = self.stacks[stack]
            elif whole is None:
                whole = _repeated(torch.stack, [self.one(value) for value in singles], 0)
            wholes.append(whole)
            begins[stack], begin = begin, begin + len(whole)
        pool = wholes[0] if len(wholes) == 1 else _repeated(torch.cat, wholes, 1)
        if runs == len(stacks):
            return pool
        alone = iter(range(len(values)))
        order = [begins[own] + (next(alone) if own is None else place) for _, own, place in found]
        return _repeated(lambda each: each[0].index_select(0, torch.tensor(order)), [pool], 1)

    def _part(self, found: Sequence[Any], stack: int | None) -> Tensor:
        """The values of one stack that come after each other in it, or those in none, stacked."""
        own = [(value, place) for value, each, place in found if each == stack]
        if stack is None:
            return _repeated(torch.stack, [self.one(value) for value, _ in own], 0)
        whole = self.stacks[stack]
        return whole if len(own) == len(whole) else whole.narrow(0, own[0][1], len(own))

    def run(self, step: list[_Node]) -> None:
        """Computes what alike nodes give."""
        node = step[0]
        if node.terms:
            ordered = sorted(node.terms, key=lambda value: self.places.get(value, (-1, value)))
            self.tensors[node.given[0]] = self.stacked(ordered).sum(0)
        elif len(step) == 1 and self._joins(node):
            self.tensors[node.given[0]] = self._joined(node)
        elif len(step) == 1:
            found = self._called(node, {value: self.one(value) for value in node.taken})
            tensors = (x for x in leaves(found) if isinstance(x, Tensor))
            self.tensors.update(zip(node.given, tensors, strict=True))
        else:
            for place, each in enumerate(step):
                self.places[each.given[0]] = len(self.stacks), place
            self.stacks.append(self._together(step))

    def _joins(self, node: _Node) -> bool:
        """Whether a node joins tensors of one shape, of which some are in stacks."""
        if (
            node.function not in (JOIN, STACK)
            or len(node.taken) < GATHERING.few
            or node.arguments[1]
        ):
            return False
        alike = len({self.values.form(value) for value in node.taken}) == 1
        return alike and any(value in self.places for value in node.taken)

    def _joined(self, node: _Node) -> Tensor:
        """What a node makes of tensors of one shape, which a stack has in its first dim."""
        stack = self.stacked(node.taken)
        (dim,) = node.arguments[0][1:] or (0,)
        if node.function is STACK:
            return stack.movedim(0, dim)
        dim %= stack.dim() - 1
        return stack.movedim(0, dim).flatten(dim, dim + 1)

    def _picked(self, step: list[_Node]) -> Tensor:
        """The parts of tensors that nodes take."""
        sources = [*dict.fromkeys(node.taken[0] for node in step)]
        dim = step[0].arguments[0][1]
        stack = self.stacked(sources)  # (sources, parts, rest...), once the dim is moved
        stack = stack.movedim(dim + 1 if dim >= 0 else dim, 1)
        parts, begins = stack.shape[1], {source: i for i, source in enumerate(sources)}
        picked = ((node.taken[0], node.arguments[0][2] % parts) for node in step)
        order = [begins[source] * parts + part for source, part in picked]
        found = stack.flatten(0, 1)
        if order == [*range(order[0], order[0] + len(order))]:
            return found.narrow(0, order[0], len(order))
        return found.index_select(0, torch.tensor(order))

    def _together(self, step: list[_Node]) -> Tensor:
        node = step[0]
        if _picks(node, self.values):
            return self._picked(step)
        columns = [*zip(*(each.taken for each in step), strict=True)]
        moving = [i for i, column in enumerate(columns) if len(set(column)) > 1]
        fixed = {i: self.one(column[0]) for i, column in enumerate(columns) if i not in moving}
        stacks = [self.stacked(columns[i]) for i in moving]

        def of_one(*tensors: Tensor) -> Tensor:
            taken = {**fixed, **dict(zip(moving, tensors, strict=True))}
            return self._called(node, [taken[i] for i in range(len(columns))])

        return vmap(of_one)(*stacks)

    def _called(self, node: _Node, taken: Any) -> Any:
        """What a node's function gives for the values that it takes, by number or in order."""
        order = iter(taken) if isinstance(taken, list) else None

        def at(leaf: Any) -> Any:
            if isinstance(leaf, Slot):
                return next(order) if order is not None else taken[leaf.index]
            if isinstance(leaf, Affine):
                return leaf.factor * self.rows + leaf.offset
            return leaf

        arguments, keywords = mapped(at, node.arguments)
        if str(node.function).removeprefix("aten.") in VIEWED:
            return torch.ops.aten.reshape.default(*arguments)
        if node.function is FILL:  # which vmap makes a loop of
            return torch.full_like(*arguments)
        return node.function(*arguments, **keywords)


def gathered(
    operations: Sequence[Operation],
    runs: tuple[list[Tensor], ...],
    constants: dict[int, Tensor],
    entry: int,
    results: Sequence[int],
) -> Callable[[Tensor], list[Tensor]] | None:
    """A recording with alike operations done at once; None where there are too few of them.

    Args:
        operations: Of both runs.
        runs: The values of the slots in either.
        constants: The slots whose values never change.
        entry: The slot of the batch.
        results: The slots of the results.
    """
    if len(operations) < GATHERING.least:
        return None
    found = Gathered(operations, runs, constants, entry, results)
    return found if found.fewer else None
