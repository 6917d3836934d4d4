"""The plain numbers that functions keep in Python, where no recording of tensors sees them."""

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial, singledispatch
from operator import length_hint
from types import FunctionType, GeneratorType, MethodType
from typing import Any

from torch import nn

MOST = 5000
"""Objects that are looked at."""
PLAIN = (bool, int, float, complex, str)
"""Of which there is nothing further to reach."""
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
    for _, each in reached_from(*functions):
        if each is None or isinstance(each, PLAIN):
            found.append(each)
        elif hasattr(each, "__next__") and not isinstance(each, GeneratorType):
            found.append((repr(each), length_hint(each, -1)))
    return found


def reached_from(*functions: Any) -> Iterator[tuple[str, Any]]:
    """The objects that functions reach, the nearest first, each with how code there names it.

    What is no plain number or string comes once.

    Example:
        >>> list(reached_from({"two": [2]}))[-1]
        ("['two'][0]", 2)
    """
    seen: set[int] = set()
    waiting = deque(("", function) for function in functions)
    while waiting and len(seen) < MOST:
        path, each = waiting.popleft()
        plain = each is None or isinstance(each, PLAIN)
        if plain or id(each) not in seen:
            yield path, each
        if not plain and id(each) not in seen:
            seen.add(id(each))
            waiting.extend(_reached(each, path))


@singledispatch
def _reached(each: Any, path: str) -> Iterator[tuple[str, Any]]:
    """What an object reaches directly; nothing for an object of a library that is no module."""
    own = not _of_library(type(each).__module__)
    if isinstance(each, type) or not (own or isinstance(each, nn.Module)):
        return
    if hasattr(each, "__dict__"):
        at = f"{path}." if path else "self."
        yield from ((f"{at}{name}", value) for name, value in list(vars(each).items()))
    if own:
        methods = [each for each in vars(type(each)).values() if isinstance(each, FunctionType)]
        yield from ((path, method) for method in methods)


@_reached.register(list)
@_reached.register(tuple)
@_reached.register(set)
@_reached.register(frozenset)
def _of_items(each: Iterable[Any], path: str) -> Iterator[tuple[str, Any]]:
    yield from ((f"{path}[{i}]", value) for i, value in enumerate(each))


@_reached.register
def _of_dict(each: dict, path: str) -> Iterator[tuple[str, Any]]:
    yield from ((f"{path}[{key!r}]", value) for key, value in list(each.items()))


@_reached.register
def _of_partial(each: partial, path: str) -> Iterator[tuple[str, Any]]:
    yield path, each.func
    yield from ((f"{path}args[{i}]", value) for i, value in enumerate(each.args))
    yield from each.keywords.items()


@_reached.register
def _of_method(each: MethodType, path: str) -> Iterator[tuple[str, Any]]:
    yield path, each.__func__
    yield "self", each.__self__


@_reached.register
def _of_function(each: FunctionType, path: str) -> Iterator[tuple[str, Any]]:
    for name, cell in zip(each.__code__.co_freevars, each.__closure__ or (), strict=True):
        with suppress(ValueError):  # not filled yet
            yield name, cell.cell_contents
    yield path, each.__defaults__
    yield from (each.__kwdefaults__ or {}).items()
    # A library's function names its own globals, which are no one's counters.
    if not _of_library(each.__module__):
        names = [name for name in each.__code__.co_names if name in each.__globals__]
        yield from ((name, each.__globals__[name]) for name in names)


@_reached.register
def _of_generator(each: GeneratorType, path: str) -> Iterator[tuple[str, Any]]:
    if each.gi_frame is not None:
        yield from list(each.gi_frame.f_locals.items())


def _of_library(module: str | None) -> bool:
    return (module or "").partition(".")[0] in LIBRARIES
