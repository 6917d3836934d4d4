"""Evidence and the other values of an assessment: what they are made of, and that they stay so."""

from dataclasses import asdict, is_dataclass
from importlib import import_module
from pkgutil import iter_modules

import pytest

from elbowroom import assess
from elbowroom.assess.evidence import Evidence, Optimum, Weights

VALUES = {
    value
    for module in iter_modules(assess.__path__)
    for value in vars(import_module(f"{assess.__name__}.{module.name}")).values()
    if isinstance(value, type) and is_dataclass(value)
    if value.__module__.startswith(assess.__name__)
}


def test_what_is_found_is_not_changed_afterwards() -> None:
    """A fit shares its evidence with the fits that are made of it by a reference or a ladder."""
    assert {Evidence, Optimum, Weights} < VALUES
    for value in VALUES:
        with pytest.raises(AttributeError, match="cannot assign to field"):
            value.__setattr__(value.__new__(value), next(iter(value.__dataclass_fields__)), None)


def test_what_was_not_looked_at_is_no_evidence() -> None:
    """Not a nat, a share or a sentence: what a part leaves out is nothing."""
    whole = Evidence(Optimum(True, ""), Weights(0.0, 0, 0.0, False))
    plain = asdict(whole)
    assert plain.pop("ladder")
    assert plain["optimum"].pop("converged")
    values = [value for part in plain.values() for value in (part or {}).values()]
    assert len(values) > 20
    flat = [each for value in values for each in (value if isinstance(value, tuple) else [value])]
    assert not any(flat)
