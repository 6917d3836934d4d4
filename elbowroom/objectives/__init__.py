"""ELBOs and their relatives, each with its options and its estimator of the gradient.

An objective is one file: a class of `elbowroom.objectives.estimators.Objective` that is registered
beside its definition. Its flags say what it needs and can do, its `options_kind` what it reads; the
lists, the command line and the messages follow from these.
"""

from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

from elbowroom.errors import OptionError, unknown

if TYPE_CHECKING:  # the registry is named without torch
    from elbowroom.objectives.estimators import Objective

Kind = TypeVar("Kind", bound="type[Objective]")

_registered: "dict[str, type[Objective]]" = {}


def register(name: str) -> Callable[[Kind], Kind]:
    """Registers the decorated class as an objective.

    Raises:
        OptionError: If another file has registered the name.
    """

    def add(kind: Kind) -> Kind:
        known = _registered.get(name)
        if known is not None and known.__module__ != kind.__module__:
            raise OptionError(f"the objective '{name}' is registered by {known.__module__}.")
        kind.name = name
        _registered[name] = kind
        return kind

    return add


def objectives() -> "Mapping[str, type[Objective]]":
    """Every objective by its name: those of the files of this folder, and a user's own.

    Example:
        >>> objectives()["renyi"].several
        True
    """
    _import_files()
    return MappingProxyType(_registered)


@cache
def _import_files() -> None:
    for module in iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")


def get_objective(name: str) -> "type[Objective]":
    """An objective by its name.

    Raises:
        OptionError: If there is none; the nearest name is suggested.
    """
    found = objectives()
    if name not in found:
        raise unknown("objective", name, found)
    return found[name]


def objective_options() -> list[type]:
    """The options that objectives read, each dataclass once."""
    kinds = (kind.options_kind for kind in objectives().values())
    return list(dict.fromkeys(kind for kind in kinds if kind is not None))
