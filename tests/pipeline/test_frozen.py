"""What one step hands to the next is made once, and no later step changes it."""

import pkgutil
from dataclasses import is_dataclass
from importlib import import_module
from typing import Any

from elbowroom import comparison, pipeline
from elbowroom.pipeline.ladder import Ladder


def test_what_is_handed_on_is_frozen() -> None:
    modules = [comparison, *(
        import_module(f"elbowroom.pipeline.{each.name}") for each in pkgutil.iter_modules(
            pipeline.__path__
        )
    )]  # fmt: skip
    kinds: list[Any] = [
        kind
        for module in modules
        for kind in vars(module).values()
        if is_dataclass(kind) and kind.__module__ == module.__name__
    ]
    assert len(kinds) >= 6
    # The ladder alone collects, and is seen by nobody else.
    assert [kind for kind in kinds if not kind.__dataclass_params__.frozen] == [Ladder]
