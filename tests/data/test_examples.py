"""The examples in the docstrings run as printed."""

import doctest
from importlib import import_module

import pytest


@pytest.mark.parametrize("name", ["bundled", "columns", "delimited", "files", "generate", "tables"])
def test_examples(name: str) -> None:
    results = doctest.testmod(import_module(f"elbowroom.data.{name}"))
    assert results.attempted > 0
    assert results.failed == 0
