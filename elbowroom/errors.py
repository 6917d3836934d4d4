"""Exceptions for users' mistakes, which say how to fix them."""

import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from functools import wraps
from pathlib import Path
from typing import Any

from elbowroom.printable import printable

JITTER = "add a small number to its diagonal: K + 1e-6 * torch.eye(n)"
"""What to do with a matrix that cannot be factorised."""
_MOST_SHOWN = 60  # characters of what a user gave, in a message
_USERS = "_elbowroom_users"
"""Where a `users_function` has the function, and what it raises what it was run for."""


class ElbowroomError(Exception):
    """Base of every error that Elbowroom raises for what a user gave.

    Names of columns and sites stand in messages: what would steer a terminal is written out.
    """

    def __init__(self, *parts: Any) -> None:
        super().__init__(*(printable(part) if isinstance(part, str) else part for part in parts))


class SignalError(Exception):
    """Leaves a model that runs, for whoever waits outside of it: no error of the model's."""


class DataError(ElbowroomError, ValueError):
    """A file, table or column that cannot be used; the message names it and the fix."""


class OptionError(ElbowroomError, ValueError):
    """An unknown name or a value out of range; the message names the option and what is allowed."""


class ModelError(ElbowroomError, ValueError):
    """A model function that cannot be fitted as asked; the message names the site."""


class GuideError(ElbowroomError, ValueError):
    """A guide that does not match its model; the message names the site or the guides that do."""


class NoModeError(GuideError):
    """A guide that needs a mode, for a density without one; the message names another guide."""


class OutOfTimeError(GuideError):
    """A stage of a fit whose time was over before it found anything; the message names it."""


class RunFolderError(ElbowroomError):
    """A run folder that cannot be written or read; the message names the path."""


def unknown(kind: str, name: str, known: Iterable[str]) -> OptionError:
    """An `OptionError` for a name that is not known, with the nearest known name.

    Example:
        >>> str(unknown("guide", "mean_feild", ["mean_field", "full_rank"]))
        "there is no guide 'mean_feild'; did you mean 'mean_field'? Known: full_rank, mean_field."
    """
    names = sorted(set(known))
    near = get_close_matches(name[:_MOST_SHOWN], names, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    return OptionError(f"there is no {kind} '{shown(name)}'{hint} Known: {', '.join(names)}.")


def shown(value: Any) -> str:
    """A value that a user gave, short enough for a message, in one line, with all signs to be seen.

    Example:
        >>> shown("x" * 5000)[-20:]
        '… (5,000 characters)'
    """
    try:
        text = printable(value if isinstance(value, str) else repr(value))
    except ValueError:  # Python does not write integers of thousands of digits
        return f"({type(value).__name__})"
    text = text.replace("\n", r"\n").replace("\t", r"\t")
    if len(text) > _MOST_SHOWN:
        return f"{text[:_MOST_SHOWN]}… ({len(text):,} characters)"
    return text or "''"


@contextmanager
def users_code(what: str, kind: type[ElbowroomError]) -> Iterator[None]:
    """Turns what a user's model or guide raises into an error that says so.

    Args:
        what: What was tried, such as "the model cannot be run".
        kind: Of the error.

    Raises:
        ElbowroomError: Of that kind, with the first error's message and the line of the user's in
            which it came up; Pyro's shapes are left out.

    Example:
        >>> with users_code("the model cannot be run", ModelError):  # doctest: +ELLIPSIS
        ...     raise ValueError("no such column")
        Traceback (most recent call last):
        elbowroom.errors.ModelError: the model cannot be run: ValueError: no such column (line 2 ...
    """
    try:
        yield
    except Exception as e:  # a model may raise any
        if isinstance(e, _signals()):
            raise
        reason = str(e).split("Trace Shapes")[0].strip()
        if isinstance(e, ElbowroomError):  # ours, to which Pyro has added the shapes
            raise type(e)(reason) from e
        if "positive-definite" in reason:
            reason = f"{reason.rstrip('.')}. If it is a covariance matrix, {JITTER}."
        raised = f"{type(e).__name__}: {reason}" if reason else type(e).__name__
        raise kind(f"{what}: {raised}{_users_line(e)}") from e


def users_function(
    function: Callable[..., Any], what: str, kind: type[ElbowroomError]
) -> Callable[..., Any]:
    """A user's model or guide that leaves word in what it raises; see `users_errors`.

    What it raises stays what it is until then: a run in a batch may fail where one by one does not.

    Args:
        function: The model or guide.
        what: What was tried, such as "the model cannot be run".
        kind: Of the error.
    """
    self = function  # so that what is said of its parts names them as its own code does

    @wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        try:
            return self(*args, **kwargs)
        except Exception as error:
            if not isinstance(error, (ElbowroomError, *_signals())):
                vars(error)[_USERS] = what, kind
            raise

    vars(called)[_USERS] = function
    return called


def as_given(function: Callable[..., Any]) -> Callable[..., Any]:
    """What a `users_function` was made of; any other function itself."""
    given: Any = getattr(function, _USERS, None)  # also of what was made of one in turn
    direct = given is not None and given is getattr(function, "__wrapped__", None)
    return given if direct else function


@contextmanager
def users_errors() -> Iterator[None]:
    """Turns whatever a `users_function` has raised, wherever it ran, into an error that says so.

    Raises:
        ElbowroomError: As of `users_code`.
    """
    try:
        yield
    except Exception as error:
        known = getattr(error, _USERS, None)
        if known is None:
            raise
        with users_code(*known):
            raise


def _signals() -> tuple[type[Exception], ...]:
    """Exceptions that are control flow, ours and Pyro's."""
    # Whoever has raised Pyro's has imported it; to import it here would cost everybody else's time.
    pyros = sys.modules.get("pyro.poutine.runtime")
    return (SignalError,) if pyros is None else (SignalError, pyros.NonlocalExit)


def _users_line(error: Exception) -> str:
    """The innermost line of an error that is neither ours nor a library's, in words."""
    others = {Path(__file__).parent, Path(sysconfig.get_path("stdlib"))}
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if frame.line and not others & {*file.parents} and "site-packages" not in file.parts:
            return f" (line {frame.lineno} of {file.name}: {frame.line})"
    return ""
