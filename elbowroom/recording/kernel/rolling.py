"""Loops that a model runs through turn by turn, found among a program's steps.

A chain whose states follow each other, in a Python loop, is recorded turn after turn: thousands of
steps of one number each, in an order that repeats itself. They become one loop again, whose steps
take an element each turn, in the same order. What a turn takes may be what the turn before gave.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from elbowroom.recording.kernel.lowering import CONSTANT, MATRICES, RUNNING, Program, Step


@dataclass(frozen=True)
class Rolling:
    """Which steps are rolled up."""

    period: int = 200
    """Steps of a turn, at most."""
    turns: int = 8
    """Turns of a loop, at least."""
    steps: int = 32
    """Steps of all turns, at least."""


ROLLING = Rolling()


@dataclass(frozen=True)
class _Loop:
    """Steps that repeat.

    Attributes:
        begin: The number of the first one.
        period: Steps of a turn.
        turns: How many there are.
    """

    begin: int
    period: int
    turns: int


def rolled(program: Program) -> Program:
    """The same program with steps that repeat as loops.

    Of a loop of T turns, each of its steps has T elements, one for each turn, and `Step.loop` is
    the number of its first one.
    """
    loops = list(_loops(_kinds(program.steps)))
    if not loops:
        return program
    moved = np.arange(program.addresses)
    for loop in loops:
        first, end = loop.begin, loop.begin + loop.period * loop.turns
        outs = np.array([step.out for step in program.steps[first:end]])
        # Each step's elements follow each other, in the places that all of them had.
        by_turn = outs.reshape(loop.turns, loop.period)
        moved[by_turn.T.ravel()] = np.sort(outs)

    def now(addresses: np.ndarray) -> np.ndarray:
        own = addresses < CONSTANT
        return np.where(own, moved[np.where(own, addresses, 0)], addresses)

    tables = iter([now(table) for step in program.steps for table in step.inputs])
    steps = [
        replace(step, inputs=tuple(next(tables) for _ in step.inputs), out=int(moved[step.out]))
        for step in program.steps
    ]
    for loop in reversed(loops):
        end = loop.begin + loop.period * loop.turns
        every = [steps[loop.begin + k : end : loop.period] for k in range(loop.period)]
        steps[loop.begin : end] = [_together(turns, loop.begin) for turns in every]
    return replace(program, steps=steps, results=[now(each) for each in program.results])


def _together(turns: list[Step], loop: int) -> Step:
    """The same step of all turns."""
    tables = zip(*(step.inputs for step in turns), strict=True)
    inputs = tuple(np.concatenate(each) for each in tables)
    return replace(turns[0], inputs=inputs, size=len(turns), loop=loop)


def _kinds(steps: list[Step]) -> np.ndarray:
    """A number for each step: the same for those that may be turns of one."""
    known: dict[object, int] = {}
    kinds = []
    for number, step in enumerate(steps):
        single = step.count == step.size == 1 and step.targets is None
        rolls = single and step.function not in (*MATRICES, RUNNING)
        kind = (step.function, step.given) if rolls else number
        kinds.append(known.setdefault(kind, len(known)))
    return np.array(kinds)


def _loops(kinds: np.ndarray) -> Iterator[_Loop]:
    """The longest repetition at each place, from the first to the last."""
    count = len(kinds)
    covered, periods = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.int64)
    for period in range(1, min(ROLLING.period, count - 1) + 1):
        other = np.flatnonzero(kinds[:-period] != kinds[period:])
        # How far each place repeats what is a period before: up to the next one that does not.
        ends = np.append(other, count - period)
        at = np.arange(count - period)
        turns = (ends[np.searchsorted(other, at)] - at) // period + 1
        steps = np.where(turns >= ROLLING.turns, turns * period, 0)
        longer = steps > covered[: count - period]
        covered[: count - period][longer] = steps[longer]
        periods[: count - period][longer] = period
    place = 0
    while place < count:
        if covered[place] >= ROLLING.steps:
            period = int(periods[place])
            yield _Loop(place, period, int(covered[place]) // period)
            place += int(covered[place])
        else:
            place += 1
