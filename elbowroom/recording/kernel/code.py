"""The code of a program: for a few points side by side, block after block."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from llvmlite import ir

from elbowroom.recording.kernel.functions import applied, numbers
from elbowroom.recording.kernel.lowering import CONSTANT, RUNNING, ZERO, Program, Step
from elbowroom.recording.kernel.matrices import write_matrices
from elbowroom.recording.kernel.schedule import Block, Schedule, is_run
from elbowroom.recording.kernel.vectors import WIDTH
from elbowroom.recording.kernel.writer import Writer, all_constant

LONG_SUM = 64
"""Terms beyond which a sum is compensated (Kahan 1965)."""
STARTS = {"sum": 0.0, RUNNING: 0.0, "max": -np.inf, "min": np.inf}
TOGETHER = {"sum": "add", RUNNING: "add", "max": "maximum", "min": "minimum"}


@dataclass(frozen=True)
class Code:
    """A function in LLVM's own language, and what it reads beside the points.

    Attributes:
        text: The module.
        numbers: Constants.
        places: Tables of places in memory.
        pinned: Constants in memory, by their place.
        memory: Vectors of memory that it needs.
    """

    text: str
    numbers: np.ndarray
    places: np.ndarray
    pinned: dict[int, float]
    memory: int


def written(program: Program, schedule: Schedule) -> Code:
    """The code of a program."""
    return _Blocks(program, schedule).whole()


class _Blocks(Writer):
    """Writes the blocks of a schedule."""

    def whole(self) -> Code:
        """All blocks, for as many points at a time as a vector has lanes."""
        rounded = self.builder.add(self.n, self.long(WIDTH - 1))
        blocks = self.builder.sdiv(rounded, self.long(WIDTH))
        with self.loop(blocks) as turn:
            self.take_points(turn)
            for block in self.schedule.blocks:
                if block.count < 0:
                    write_matrices(self, self.program.steps[block.steps[0]])
                else:
                    (self._loop_block if block.count else self._straight)(block)
            self.give_results(turn)
        self.builder.ret_void()
        self.entry.branch(self.function.blocks[1])
        return Code(
            str(self.module),
            self.constants.whole(np.float64),
            self.places.whole(np.int32),
            self.pinned,
            self.size,
        )

    # --- Steps that are written out

    def _straight(self, block: Block) -> None:
        known: dict[int, ir.Value] = {}

        def value(address: int) -> ir.Value:
            if address == ZERO or address >= CONSTANT:
                return self.v.number(self.constant(address))
            if address not in known:
                known[address] = self.load(self.long(int(self.place[address])))
            return known[address]

        for number in block.steps:
            step, kept = self.program.steps[number], self.schedule.stored[number]
            if step.targets is None:
                for k in range(step.count):
                    taken = [value(int(table[k])) for table in step.inputs]
                    known[step.out + k] = applied(self.v, step.function, taken, step.given)
            else:
                totals: dict[int, ir.Value] = {}
                for k, target in enumerate(step.targets):
                    term = numbers(self.v, value(int(step.inputs[0][k])))
                    before = totals.get(int(target))
                    together = TOGETHER[step.function]
                    totals[int(target)] = (
                        term if before is None else applied(self.v, together, [before, term], ())
                    )
                start = self.v.number(STARTS[step.function])
                for target in range(step.size):
                    known[step.out + target] = totals.get(target, start)
            if kept:
                for k in range(step.size):
                    self.store(known[step.out + k], self.long(int(self.place[step.out + k])))

    # --- Loops

    def _loop_block(self, block: Block) -> None:
        steps = [(number, self.program.steps[number]) for number in block.steps]
        length = block.length or _common_length([step for _, step in steps], block.count)
        inner = _Turns(self, block.count, length)
        for _, step in steps:
            if _scattered(step, length):
                self._clear(step)
        rolled = [step for _, step in steps if step.loop is not None]
        uniform = {
            address: self._uniform(address)
            for _, step in steps
            for table in step.inputs
            for address in [int(table[0])]
            if (table == table[0]).all() and not any(step.gives(address) for step in rolled)
        }
        sums = {
            number: _Total(self, step.function, block.count if _alone(step) else length)
            for number, step in steps
            if step.function == RUNNING
            or (step.targets is not None and not _scattered(step, length))
        }
        for number, step in steps:
            if number in sums and _alone(step):
                sums[number].begin()
        with inner.outer() as i:
            for number, step in steps:
                if number in sums and not _alone(step):
                    sums[number].begin()
            fixed = self._fixed([step for _, step in steps], inner, i)
            with inner.inner(i) as (j, k):
                values: dict[int, ir.Value] = {}
                for number, step in steps:
                    turn = (i, j, k)
                    taken = [
                        self._operand(table, uniform, fixed, values, inner, turn)
                        for table in step.inputs
                    ]
                    if step.targets is None:
                        if step.function == RUNNING:
                            found = sums[number].add(numbers(self.v, taken[0]))
                        else:
                            found = applied(self.v, step.function, taken, step.given)
                        values[step.out] = found
                        if self.schedule.stored[number]:
                            place = self.builder.add(j, self.long(int(self.place[step.out])))
                            self.store(found, place)
                    elif number in sums:
                        sums[number].add(numbers(self.v, taken[0]))
                    else:
                        self._scatter(step, numbers(self.v, taken[0]), inner, turn)
            for number, step in steps:
                if number in sums and step.targets is not None and not _alone(step):
                    place = self.builder.add(i, self.long(int(self.place[step.out])))
                    self.store(sums[number].value(), place)
        for number, step in steps:
            if number in sums and step.targets is not None and _alone(step):
                self.store(sums[number].value(), self.long(int(self.place[step.out])))

    def _uniform(self, address: int) -> ir.Value:
        if address == ZERO or address >= CONSTANT:
            return self.v.number(self.constant(address))
        if self.place[address] < 0:  # of this very block, which then is no loop
            raise AssertionError("a value that is not in memory")
        return self.load(self.long(int(self.place[address])))

    def _operand(
        self,
        table: np.ndarray,
        uniform: dict[int, ir.Value],
        fixed: dict[bytes, ir.Value],
        values: dict[int, ir.Value],
        turns: "_Turns",
        turn: tuple[ir.Value, ir.Value, ir.Value],
    ) -> ir.Value:
        """One element of an argument."""
        i, j, k = turn
        first = int(table[0])
        if first in values and is_run(table, first):
            return values[first]
        if first in uniform and (table == first).all():
            return uniform[first]
        if all_constant(table):
            array = np.append(self.program.constants, 0.0)[
                np.where(table == ZERO, -1, table - CONSTANT)
            ]
            begin = self.long(self.constants.add(array))
            pointer = self.builder.gep(self.numbers, [self.builder.add(j, begin)])
            return self.v.spread(self.builder.load(pointer))
        place = self.places_of(table)
        formula = turns.formula(place)
        if formula is None:
            return self.load(self.looked_up(place, j))
        if table.tobytes() in fixed:
            return fixed[table.tobytes()]
        return self.load(self._by_formula(formula, i, k))

    def _by_formula(self, formula: tuple[int, int, int], i: ir.Value, k: ir.Value) -> ir.Value:
        begin, by_outer, by_inner = formula
        offset = self.builder.add(
            self.builder.mul(i, self.long(by_outer)), self.builder.mul(k, self.long(by_inner))
        )
        return self.builder.add(offset, self.long(begin))

    def _fixed(self, steps: list[Step], turns: "_Turns", i: ir.Value) -> dict[bytes, ir.Value]:
        """What is the same in all turns of the inner loop, but not of the outer one."""
        found: dict[bytes, ir.Value] = {}
        if turns.length == turns.count:
            return found
        made = {step.out for step in steps}
        for table in (table for step in steps for table in step.inputs):
            first = int(table[0])
            own = (first in made and is_run(table, first)) or (table == first).all()
            if own or table.tobytes() in found or all_constant(table):
                continue
            formula = turns.formula(self.places_of(table))
            if formula is not None and formula[2] == 0:
                place = self._by_formula(formula, i, self.long(0))
                found[table.tobytes()] = self.load(place)
        return found

    def _clear(self, step: Step) -> None:
        start = self.v.number(STARTS[step.function])
        with self.loop(self.long(step.size)) as j:
            self.store(start, self.builder.add(j, self.long(int(self.place[step.out]))))

    def _scatter(
        self,
        step: Step,
        term: ir.Value,
        turns: "_Turns",
        turn: tuple[ir.Value, ir.Value, ir.Value],
    ) -> None:
        """Adds to an element of memory."""
        assert step.targets is not None
        i, j, k = turn
        places = self.place[step.out] + step.targets
        formula = turns.formula(places)
        place = self._by_formula(formula, i, k) if formula else self.looked_up(places, j)
        before = self.load(place)
        self.store(applied(self.v, TOGETHER[step.function], [before, term], ()), place)


def _alone(step: Step) -> bool:
    """Whether all elements of a step are summed, into one output or on the way."""
    if step.function == RUNNING:
        return int(step.given[0]) == step.count
    return step.targets is not None and step.size == 1


def _length(step: Step) -> int:
    """How many elements in a row go to each output; 0 if it is not so."""
    assert step.targets is not None
    length, rest = divmod(step.count, step.size)
    if rest or not np.array_equal(step.targets, np.repeat(np.arange(step.size), length)):
        return 0
    return length


def _repeats(step: Step) -> bool:
    """Whether a step's elements go to its outputs in turn, again and again."""
    assert step.targets is not None
    times, rest = divmod(step.count, step.size)
    return not rest and np.array_equal(step.targets, np.tile(np.arange(step.size), times))


def _common_length(steps: list[Step], count: int) -> int:
    """The turns of the inner loop, by the first step with many outputs."""
    for step in steps:
        if step.targets is not None and not _alone(step):
            if _length(step) > 1:
                return _length(step)
            if _repeats(step):
                return step.size
    return count


def _scattered(step: Step, length: int) -> bool:
    """Whether a step's elements are added to memory, one by one."""
    return step.targets is not None and not _alone(step) and _length(step) != length


@dataclass(frozen=True)
class _Turns:
    """The turns of a block: of one loop, or of an outer and an inner one."""

    writer: Writer
    count: int
    length: int

    @contextmanager
    def outer(self) -> Iterator[ir.Value]:
        if self.length == self.count:
            yield self.writer.long(0)
            return
        with self.writer.loop(self.writer.long(self.count // self.length)) as i:
            yield i

    @contextmanager
    def inner(self, i: ir.Value) -> Iterator[tuple[ir.Value, ir.Value]]:
        with self.writer.loop(self.writer.long(self.length)) as k:
            base = self.writer.builder.mul(i, self.writer.long(self.length))
            yield self.writer.builder.add(base, k), k

    def formula(self, place: np.ndarray) -> tuple[int, int, int] | None:
        """A place as begin + i · outer + k · inner."""
        grid = place.reshape(-1, self.length)
        outer = int(grid[1, 0] - grid[0, 0]) if len(grid) > 1 else 0
        inner = int(grid[0, 1] - grid[0, 0])
        begin = int(grid[0, 0])
        rows, columns = np.arange(len(grid))[:, None], np.arange(self.length)
        same = np.array_equal(grid, begin + outer * rows + inner * columns)
        return (begin, outer, inner) if same else None


class _Total:
    """A sum, or a largest or smallest number, over the turns of a loop."""

    def __init__(self, writer: Writer, function: str, terms: int) -> None:
        self.writer, self.function = writer, function
        self.total = writer.variable()
        self.lost = writer.variable() if function == "sum" and terms > LONG_SUM else None

    def begin(self) -> None:
        """Starts it anew."""
        builder, v = self.writer.builder, self.writer.v
        builder.store(v.number(STARTS[self.function]), self.total)
        if self.lost is not None:
            builder.store(v.number(0.0), self.lost)

    def add(self, term: ir.Value) -> ir.Value:
        """The total so far."""
        builder, v = self.writer.builder, self.writer.v
        before = builder.load(self.total)
        if self.lost is None:
            found = applied(v, TOGETHER[self.function], [before, term], ())
        else:
            term = builder.fsub(term, builder.load(self.lost))
            found = builder.fadd(before, term)
            lost = builder.fsub(builder.fsub(found, before), term)
            finite = builder.fcmp_ordered("ord", lost, lost)
            builder.store(v.select(finite, lost, v.number(0.0)), self.lost)
        builder.store(found, self.total)
        return found

    def value(self) -> ir.Value:
        return self.writer.builder.load(self.total)
