"""The seconds that a fit may take, and the stage that it is in.

Long loops ask `over()` and end with what they have, or call `check()`, which raises where nothing
is found yet. A stage may be given a share of what is left, so that something remains for the next.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from math import inf

from elbowroom.errors import OutOfTimeError


@dataclass
class Budget:
    """The time of one fit.

    Attributes:
        seconds: That it may take; infinity for no limit.
        say: Called with the name of each stage that begins.
        deadline: When the current stage has to end, on the clock of `time.monotonic`.
        stage: The name of the current stage.
        cut: The stages that came to their deadline, in order.
    """

    seconds: float = inf
    say: Callable[[str], None] | None = None
    deadline: float = field(init=False)
    stage: str = ""
    cut: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.deadline = time.monotonic() + self.seconds

    def over(self) -> bool:
        """Whether the current stage has to end; notes it."""
        if time.monotonic() < self.deadline:
            return False
        if self.stage not in self.cut:
            self.cut.append(self.stage)
        return True


_budget: ContextVar[Budget] = ContextVar("budget")


def current() -> Budget:
    """The budget of the fit that runs; one without a limit outside of `limited`."""
    return _budget.get(None) or Budget()


@contextmanager
def limited(
    seconds: float | None, say: Callable[[str], None] | None = None, spent: float = 0.0
) -> Iterator[Budget]:
    """A block that may take some seconds; within another such block, no more than that has left.

    Args:
        seconds: None for no limit.
        say: Called with the name of each stage that begins.
        spent: Seconds of these that are over; half of them are left in any case.

    Example:
        >>> with limited(60.0) as budget:
        ...     over(), round(budget.seconds)
        (False, 60)
    """
    outer = current()
    budget = Budget(inf if seconds is None else seconds, say or outer.say)
    budget.deadline = min(budget.deadline - min(spent, budget.seconds / 2), outer.deadline)
    token = _budget.set(budget)
    try:
        yield budget
    finally:
        _budget.reset(token)


@contextmanager
def stage(name: str, share: float = 1.0) -> Iterator[None]:
    """A stage of a fit, which may take a share of the seconds that are left.

    Args:
        name: As a user reads it, such as "searching for modes".
        share: Of the time that is left.
    """
    budget = current()
    before = budget.stage, budget.deadline
    budget.stage = name
    if budget.deadline < inf:
        now = time.monotonic()
        budget.deadline = now + share * max(0.0, budget.deadline - now)
    if budget.say is not None:
        budget.say(name)
    try:
        yield
    finally:
        budget.stage, budget.deadline = before


def left() -> float:
    """The seconds that the current stage has left; infinity for no limit."""
    return max(0.0, current().deadline - time.monotonic())


def over() -> bool:
    """Whether the current stage has to end with what it has."""
    return current().over()


def exceeded() -> bool:
    """Whether a stage has gone on for a tenth of the fit's time beyond its end."""
    budget = current()
    return time.monotonic() > budget.deadline + 0.1 * budget.seconds


def check() -> None:
    """Ends a stage that has nothing yet.

    Raises:
        OutOfTimeError: If its time is over.
    """
    if current().over():
        raise OutOfTimeError(f"the time was over while {current().stage}; give a longer --time.")
