"""What a formula expands to, counted before it is expanded; and what takes forever, refused."""

import numpy as np
import pandas as pd
import pytest
from formulae.parser import Parser
from formulae.scanner import Scanner

from elbowroom.errors import OptionError
from elbowroom.models import _formula_limits
from elbowroom.models._formula import _matrices
from elbowroom.models._formula_limits import FORMULA_LIMITS, size_of

RANDOM = np.random.default_rng(0)
TABLE = pd.DataFrame({name: RANDOM.normal(size=40) for name in "yabcd"})
TABLE["g"] = list("pqrs") * 10
TABLE["n"] = [1, 2] * 20


@pytest.mark.parametrize(
    ("right", "exact"),
    [
        ("a", True),
        ("a + b", True),
        ("a:b", True),
        ("a*b*c", True),
        ("a*b*c*d", True),
        ("(a + b + c + d)**2", True),
        ("(a + b + c + d)**3", True),
        ("(a + b):(c + d)", True),
        ("I(a**2) + np.exp(b)", True),
        ("g", False),
        ("g*a", False),
        ("C(n):a", False),
        ("poly(a, 3)", False),
        ("bs(a, df=6) + g", False),
        ("a/b", False),
    ],
)
def test_terms_and_columns_are_those_that_formulae_makes(right: str, exact: bool) -> None:
    """Or more: a category fewer where there is an intercept."""
    terms, columns = size_of(Parser(Scanner(f"y ~ {right}").scan()).parse(), TABLE)
    common = _matrices(f"y ~ {right}", TABLE, "m")[0].common
    made = len(common.terms), common.design_matrix.shape[1]
    assert terms >= made[0]
    assert columns >= made[1]
    if exact:
        assert (terms, columns) == made


@pytest.mark.parametrize(
    "right",
    ["a**11", "(a + b)**99", "I(9**9**9)", "I((9**9)**9)", "I(9**(9))", "{2**99 + a}", "I(2**a)",
     "poly(a, 101)", "bs(a, df=101)", "*".join(f"I(a + {k})" for k in range(10))],
)  # fmt: skip
def test_a_formula_that_takes_forever_is_refused(right: str) -> None:
    with pytest.raises(OptionError, match="--formula"):
        _matrices(f"y ~ {right}", TABLE, "m")


def test_numbers_that_do_not_fit_into_memory_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = _formula_limits.FormulaLimits(numbers=40 * 21)
    monkeypatch.setattr(_formula_limits, "FORMULA_LIMITS", limits)
    _matrices("y ~ g*a*b", TABLE, "m")  # 20 columns
    with pytest.raises(OptionError, match="expands to more than"):
        _matrices("y ~ g*a*b + c + d", TABLE, "m")
    with pytest.raises(OptionError, match="characters"):
        _matrices(f"y ~ a{' ' * FORMULA_LIMITS.characters}", TABLE, "m")
