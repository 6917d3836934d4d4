"""The plain numbers that functions keep in Python, where no recording of tensors sees them."""

from collections.abc import Iterator
from functools import partial
from operator import length_hint
from types import FunctionType, GeneratorType, MethodType
from typing import Any

from torch import nn

MOST = 5000
"""Objects that are looked at."""
LIBRARIES = ("torch", "pyro", "numpy", "elbowroom", "builtins")
"""Those whose own functions and objects keep nothing of a user's."""


def python_numbers(*functions: Any) -> list[Any]:
    """The numbers, strings and places of iterators that functions reach.

    Closures, defaults, the globals that a function names, attributes of objects and modules of
    networks, lists, tuples, sets and dicts are followed.

    Example:
        >>> def counting():
        ...     calls = []
        ...     return lambda: calls.append(1)
        >>> model = counting()
        >>> before = python_numbers(model)
        >>> model()
        >>> python_numbers(model) == before
        False
    """
    found: list[Any] = []
    seen: set[int] = set()
    waiting = list(functions)
    while waiting and len(seen) < MOST:
        each = waiting.pop()
        if each is None or isinstance(each, (bool, int, float, complex, str)):
            found.append(each)
        elif id(each) not in seen:
            seen.add(id(each))
            if hasattr(each, "__next__") and not isinstance(each, GeneratorType):
                found.append((repr(each), length_hint(each, -1)))
            waiting.extend(_reached(each))
    return found


def _reached(each: Any) -> Iterator[Any]:
    if isinstance(each, (list, tuple, set, frozenset)):
        yield from list(each)
    elif isinstance(each, dict):
        yield from list(each.values())
    elif isinstance(each, partial):
        yield from (each.func, each.args, each.keywords)
    elif isinstance(each, MethodType):
        yield from (each.__func__, each.__self__)
    elif isinstance(each, FunctionType):
        for cell in each.__closure__ or ():
            try:
                yield cell.cell_contents
            except ValueError:  # not filled yet
                continue
        yield from (each.__defaults__, each.__kwdefaults__)
        # A library's function names its own globals, which are no one's counters.
        if not _of_library(each.__module__):
            names = each.__code__.co_names
            yield from (each.__globals__[name] for name in names if name in each.__globals__)
    elif isinstance(each, GeneratorType):
        if each.gi_frame is not None:
            yield from list(each.gi_frame.f_locals.values())
    elif isinstance(each, nn.Module) or (
        not isinstance(each, type) and not _of_library(type(each).__module__)
    ):
        yield from list(vars(each).values()) if hasattr(each, "__dict__") else ()


def _of_library(module: str | None) -> bool:
    return (module or "").partition(".")[0] in LIBRARIES
