"""Where a kernel's code keeps its numbers, and the loops that it is made of."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from llvmlite import ir

from elbowroom.recording.kernel.functions import numbers
from elbowroom.recording.kernel.lowering import CONSTANT, MATRICES, ZERO, Program
from elbowroom.recording.kernel.schedule import Schedule, is_run
from elbowroom.recording.kernel.vectors import DOUBLE, LONG, VECTOR, WIDTH, Vectors

INT = ir.IntType(32)


class Arrays:
    """Arrays of one kind, put one after the other, each once."""

    def __init__(self) -> None:
        self.parts: list[np.ndarray] = []
        self.known: dict[bytes, int] = {}
        self.size = 0

    def add(self, array: np.ndarray) -> int:
        """Where it begins."""
        key = array.tobytes()
        if key not in self.known:
            self.known[key] = self.size
            self.parts.append(array)
            self.size += len(array)
        return self.known[key]

    def whole(self, dtype: Any) -> np.ndarray:
        """All of them, and one number more, so that there is one."""
        return np.concatenate([*self.parts, np.zeros(1)]).astype(dtype)


class Writer:
    """Writes `kernel(points, results, numbers, places, memory, n)`: its memory and its loops.

    Attributes:
        builder: Where the next instruction goes.
        v: Code for vectors there.
        place: Of each address in memory; -1 where it is kept in a register alone.
        row: Of a row of a matrix for the time being.
        pinned: Constants in memory, by their place.
        size: Vectors of memory.
    """

    def __init__(self, program: Program, schedule: Schedule) -> None:
        self.program, self.schedule = program, schedule
        self.module = ir.Module()
        pointer = ir.PointerType(DOUBLE)
        kinds = [pointer, pointer, pointer, ir.PointerType(INT), pointer, LONG]
        kind = ir.FunctionType(ir.VoidType(), kinds)
        self.function = ir.Function(self.module, kind, "kernel")
        self.points, self.results, self.numbers, self.tables, self.memory, self.n = (
            self.function.args
        )
        self.entry = ir.IRBuilder(self.function.append_basic_block("entry"))
        self.builder = ir.IRBuilder(self.function.append_basic_block("begin"))
        self.v = Vectors(self.module, self.builder)
        self.constants, self.places = Arrays(), Arrays()
        self.pinned: dict[int, float] = {}
        self._pins: dict[int, int] = {}
        self.size = 0
        self.place = np.full(program.addresses, -1, dtype=np.int64)
        self._lay_out()

    def _lay_out(self) -> None:
        self._reserve(np.arange(1, 1 + self.program.inputs))
        for step, kept in zip(self.program.steps, self.schedule.stored, strict=True):
            whole = step.function in MATRICES
            if kept or whole or (step.targets is not None and step.count > 1):
                self._reserve(np.arange(step.out, step.out + step.size))
        longest = [int(s.given[1]) for s in self.program.steps if s.function == "cholesky"]
        self.row, self.size = self.size, self.size + max(longest, default=0)

    def _reserve(self, addresses: np.ndarray) -> None:
        self.place[addresses] = self.size + np.arange(len(addresses))
        self.size += len(addresses)

    def pin(self, address: int) -> int:
        """The place in memory of a constant."""
        if address not in self._pins:
            self._pins[address] = self.size
            self.pinned[self.size] = self.constant(address)
            self.size += 1
        return self._pins[address]

    def constant(self, address: int) -> float:
        """The value of a constant."""
        return 0.0 if address == ZERO else float(self.program.constants[address - CONSTANT])

    def long(self, value: int) -> ir.Constant:
        """A whole number of the code's."""
        return ir.Constant(LONG, value)

    def _at(self, place: ir.Value) -> ir.Value:
        """The pointer to a vector in memory."""
        offset = self.builder.mul(place, self.long(WIDTH))
        pointer = self.builder.gep(self.memory, [offset])
        return self.builder.bitcast(pointer, ir.PointerType(VECTOR))

    def load(self, place: ir.Value) -> ir.Value:
        """The vector at a place in memory."""
        return self.builder.load(self._at(place), align=8 * WIDTH)

    def store(self, value: ir.Value, place: ir.Value) -> None:
        """Puts a vector, or the numbers 1 and 0 of flags, at a place in memory."""
        self.builder.store(numbers(self.v, value), self._at(place), align=8 * WIDTH)

    def variable(self) -> ir.Value:
        """A vector that changes."""
        pointer = self.entry.alloca(VECTOR)
        pointer.align = 8 * WIDTH
        return pointer

    @contextmanager
    def loop(self, count: ir.Value) -> Iterator[ir.Value]:
        """The turns of a loop that has at least one."""
        before = self.builder.block
        body = self.function.append_basic_block("loop")
        self.builder.branch(body)
        self.builder.position_at_end(body)
        turn = self.builder.phi(LONG)
        turn.add_incoming(self.long(0), before)
        yield turn
        following = self.builder.add(turn, self.long(1))
        turn.add_incoming(following, self.builder.block)
        end = self.function.append_basic_block("end")
        self.builder.cbranch(self.builder.icmp_signed("<", following, count), body, end)
        self.builder.position_at_end(end)

    @contextmanager
    def span(self, begin: ir.Value, end: ir.Value) -> Iterator[ir.Value]:
        """The turns from a first one to before a last one, if there are any."""
        count = self.builder.sub(end, begin)
        some = self.builder.icmp_signed(">", count, self.long(0))
        with self.builder.if_then(some), self.loop(count) as turn:
            yield self.builder.add(begin, turn)

    def take_points(self, turn: ir.Value) -> None:
        """Puts the numbers of points side by side; beyond the last one it is taken again."""
        size = self.long(self.program.inputs)
        last = self.builder.sub(self.n, self.long(1))
        rows = []
        for lane in range(WIDTH):
            row = self.builder.add(self.builder.mul(turn, self.long(WIDTH)), self.long(lane))
            inside = self.builder.icmp_signed("<", row, self.n)
            row = self.builder.select(inside, row, last)
            rows.append(self.builder.gep(self.points, [self.builder.mul(row, size)]))
        with self.loop(size) as j:
            found: ir.Value = ir.Constant(VECTOR, ir.Undefined)
            for lane, row in enumerate(rows):
                number = self.builder.load(self.builder.gep(row, [j]))
                found = self.builder.insert_element(found, number, ir.Constant(INT, lane))
            self.store(found, j)

    def give_results(self, turn: ir.Value) -> None:
        """Writes the results of each point side by side: rows (n rounded up, all results)."""
        addresses = np.concatenate(self.program.results)
        width = self.long(len(addresses))
        place = self.places_of(addresses)
        row = self.builder.mul(turn, self.long(WIDTH))
        base = self.builder.gep(self.results, [self.builder.mul(row, width)])
        with self.loop(width) as j:
            found = self.load(self.looked_up(place, j))
            for lane in range(WIDTH):
                offset = self.builder.add(j, self.builder.mul(width, self.long(lane)))
                number = self.builder.extract_element(found, ir.Constant(INT, lane))
                self.builder.store(number, self.builder.gep(base, [offset]))

    def looked_up(self, place: np.ndarray, j: ir.Value) -> ir.Value:
        """The place of an element, by a formula or a table."""
        if is_run(place, int(place[0])):
            return self.builder.add(j, self.long(int(place[0])))
        begin = self.long(self.places.add(place.astype(np.int32)))
        pointer = self.builder.gep(self.tables, [self.builder.add(j, begin)])
        return self.builder.sext(self.builder.load(pointer), LONG)

    def places_of(self, table: np.ndarray) -> np.ndarray:
        """The places in memory of addresses, of which some may be constants."""
        place = self.place[np.where(table < CONSTANT, table, 0)]
        for at in np.flatnonzero((table >= CONSTANT) | (table == ZERO)):
            place[at] = self.pin(int(table[at]))
        return place

    def reader(self, table: np.ndarray) -> Callable[[ir.Value], ir.Value]:
        """What gives an element of an argument."""
        if all_constant(table):
            known = np.append(self.program.constants, 0.0)
            array = known[np.where(table == ZERO, -1, table - CONSTANT)]
            begin = self.long(self.constants.add(array))

            def constant(j: ir.Value) -> ir.Value:
                pointer = self.builder.gep(self.numbers, [self.builder.add(j, begin)])
                return self.v.spread(self.builder.load(pointer))

            return constant
        places = self.places_of(table)
        return lambda j: self.load(self.looked_up(places, j))


def all_constant(table: np.ndarray) -> bool:
    """Whether all addresses are those of constants."""
    return bool(((table >= CONSTANT) | (table == ZERO)).all())
