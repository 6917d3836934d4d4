"""Which steps share a loop.

Steps over as many elements share one where each takes an element of the others at its own place
only, so that it stays in a register; steps of few elements are written out.
"""

from dataclasses import dataclass, field

import numpy as np

from elbowroom.recording.kernel.lowering import CONSTANT, MATRICES, RUNNING, ZERO, Program, Step

FEW = 8
"""Elements that are written out."""


@dataclass(frozen=True)
class Block:
    """Steps that are done together.

    Attributes:
        count: Turns of their loop; 0 where all elements are written out, -1 of matrices.
        length: Of the runs of a running sum in it; 0 where there is none, or one only.
        steps: By their numbers.
    """

    count: int
    length: int
    steps: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Schedule:
    """Blocks in order, and what is kept in memory between them.

    Attributes:
        blocks: In order.
        stored: Whether what a step gives goes into memory, by step.
    """

    blocks: list[Block]
    stored: list[bool]


def scheduled(program: Program) -> Schedule:
    """The steps of a program in blocks."""
    makers = np.full(program.addresses, -1)  # the step that gives each address
    blocks: list[Block] = []
    home: list[int] = []
    stored = [False] * len(program.steps)
    loops: dict[int, int] = {}  # the block of each loop
    for number, step in enumerate(program.steps):
        makers[step.out : step.out + step.size] = number
    for number, step in enumerate(program.steps):
        count = 0 if is_written_out(step) else step.count
        count = -1 if step.function in MATRICES else count
        length = int(step.given[0]) if step.function == RUNNING else 0
        length = 0 if length == count else length
        earliest, taken = 0, []
        for table in step.inputs:
            own = table[(table < CONSTANT) & (table != ZERO)]
            for maker in np.unique(makers[own]):
                if maker < 0:
                    continue
                if step.loop is not None and program.steps[maker].loop == step.loop:
                    stored[maker] |= not is_run(table, program.steps[maker].out)
                    continue
                taken.append(int(maker))
                follows = home[maker]
                same = _in_step(program.steps[maker], table, count, blocks[follows])
                earliest = max(earliest, follows if same else follows + 1)
        fitting = (
            k
            for k in range(earliest, len(blocks))
            if (blocks[k].count, blocks[k].length) == (count, length) and count >= 0
        )
        # All that a loop takes is in the blocks before, and what follows its turns comes after.
        if step.loop is not None:
            place = loops.setdefault(step.loop, len(blocks))
        else:
            place = next(fitting, len(blocks))
        if place == len(blocks):
            blocks.append(Block(count, length))
        blocks[place].steps.append(number)
        home.append(place)
        for maker in taken:
            stored[maker] |= home[maker] != place
    for result in program.results:
        for maker in np.unique(makers[result[(result < CONSTANT) & (result != ZERO)]]):
            if maker >= 0:
                stored[maker] = True
    return Schedule(blocks, stored)


def is_written_out(step: Step) -> bool:
    """Whether a step has so few elements, and gives so few, that there is no loop."""
    few = step.count <= FEW and step.size <= FEW**2
    return few and step.loop is None and step.function not in MATRICES


def _in_step(maker: Step, table: np.ndarray, count: int, block: Block) -> bool:
    """Whether what a step gives can be taken in its own block."""
    if block.count != count or count < 0:
        return False
    if count == 0:
        return True
    return maker.targets is None and is_run(table, maker.out)


def is_run(table: np.ndarray, begin: int) -> bool:
    """Whether addresses follow each other from a first one."""
    return bool(table[0] == begin and (np.diff(table) == 1).all())
