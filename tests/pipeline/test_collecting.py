"""The collected evidence: each number from draws, modes and chains whose answer is known."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from elbowroom.density.modes import Mode
from elbowroom.pipeline import collecting
from elbowroom.pipeline.collecting import SPIKE


def mode(log_density: float, starts: int = 1, relabelled: bool = False) -> Mode:
    """A standard Normal in one dimension of some height."""
    found = Mode(np.zeros(1), log_density, np.eye(1), True)
    return replace(found, starts=starts, relabelled=relabelled)


def landscape(*modes: Mode, **given: Any) -> Any:
    usual = {
        "best": modes[0] if modes else None, "modes": list(modes), "proper": list(modes),
        "tried": 8, "rows": None, "own_starts": False, "unfinished": False, "density": None,
        "climbed": None,
    }  # fmt: skip
    return SimpleNamespace(**{**usual, **given})


def drawn(log_evidence: float | None, **importance: Any) -> Any:
    together = None
    if log_evidence is not None:
        together = SimpleNamespace(log_evidence=(log_evidence, 0.01))
    found = SimpleNamespace(**importance) if importance else None
    return SimpleNamespace(together=together, importance=found)


FITTED: Any = SimpleNamespace(starts=(2, 3))
HALF_LOG_2PI = 0.5 * float(np.log(2 * np.pi))


def test_starts_are_those_of_the_best_mode_or_the_engine_s_own() -> None:
    modes = collecting._modes(FITTED, drawn(HALF_LOG_2PI), landscape(mode(0.0, starts=5)))
    assert modes.starts == (5, 8)
    assert modes.missing == pytest.approx(0.0, abs=1e-12)
    assert collecting._modes(FITTED, drawn(0.0), landscape()).starts == (2, 3)


@pytest.mark.parametrize("lower", [0.9, 1.1])
def test_a_spike_says_nothing_of_starts(lower: float) -> None:
    """Its Laplace evidence is far below that of the draws."""
    evidence = HALF_LOG_2PI + lower * SPIKE
    modes = collecting._modes(FITTED, drawn(evidence), landscape(mode(0.0, starts=5)))
    assert modes.starts == ((5, 8) if lower < 1 else None)
    assert modes.missing == pytest.approx(-lower * SPIKE)


def test_evidence_of_some_of_the_rows_is_none_of_all() -> None:
    few = landscape(mode(0.0, starts=5), rows=1000)
    modes = collecting._modes(FITTED, drawn(-100.0), few)
    assert (modes.starts, modes.missing) == ((5, 8), 0.0)
    assert collecting._modes(FITTED, drawn(None), landscape(mode(0.0))).missing == 0.0


def test_shares_of_modes_next_to_nothing_are_not_told() -> None:
    shares = drawn(HALF_LOG_2PI, shares=lambda: (0.7, 0.2990, 0.0010))
    assert collecting._modes(FITTED, shares, landscape(mode(0.0))).shares == (0.7, 0.299)
    flags = landscape(mode(0.0, relabelled=True), own_starts=True, unfinished=True)
    modes = collecting._modes(FITTED, drawn(HALF_LOG_2PI), flags)
    assert (modes.relabelled, modes.own_starts, modes.unfinished) == (True, True, True)


@pytest.mark.parametrize(
    ("climbed", "whole", "covered"),
    [
        (np.zeros((3, 1)), True, True),
        (np.zeros((3, 1)), False, False),
        (np.zeros((0, 1)), True, False),
        (None, True, False),
    ],
)
def test_draws_cover_what_was_looked_at_alone(climbed: Any, whole: bool, covered: bool) -> None:
    coverage = SimpleNamespace(share=0.02, chains=4, lasting=True, whole=whole)
    chains = collecting._chains(drawn(0.0, coverage=coverage), landscape(climbed=climbed))
    assert (chains.outside, chains.count, chains.lasting) == (0.02, 4, True)
    assert chains.covered == covered
    assert collecting._chains(drawn(0.0), landscape()).count == 0


def moved(raw: list[float], values: list[float], weights: list[float]) -> tuple[float, float]:
    own = {"x": torch.tensor(raw, dtype=torch.float64)[:, None]}
    return collecting._moved(own, {"x": np.array(values)}, np.array(weights))


def test_a_shift_is_in_weighted_sds_and_a_ratio_either_way() -> None:
    """Weighted: mean 1, sd 1. The raw draws: mean 3, sd 0.5; and mean 1, sd 2."""
    shift, ratio = moved([2.5, 3.5], [0.0, 2.0], [0.5, 0.5])
    assert (shift, ratio) == (pytest.approx(2.0), pytest.approx(np.log(2.0)))
    shift, ratio = moved([-1.0, 3.0], [0.0, 2.0], [0.5, 0.5])
    assert (shift, ratio) == (pytest.approx(0.0), pytest.approx(np.log(2.0)))
    shift, _ = moved([0.0, 2.0], [0.0, 2.0], [0.9, 0.1])  # mean 0.2, sd 0.6
    assert shift == pytest.approx(0.8 / 0.6)


def test_the_worst_quantity_decides_and_constants_are_none() -> None:
    raw = torch.tensor([[0.0, 5.0], [2.0, 5.0]], dtype=torch.float64)
    weighted = np.array([[0.0, 5.0], [2.0, 5.0]])
    assert collecting._moved({"x": raw}, {"x": weighted}, np.full(2, 0.5)) == (0.0, 0.0)
    both = {"x": raw, "y": torch.tensor([3.0, 5.0], dtype=torch.float64)}
    found = collecting._moved(both, {"x": weighted, "y": np.array([0.0, 2.0])}, np.full(2, 0.5))
    assert found == (pytest.approx(3.0), 0.0)
    assert moved([5.0, 5.0], [0.0, 2.0], [0.5, 0.5])[1] > 1e6
    assert moved([0.0, 2.0], [5.0, 5.0], [0.5, 0.5])[0] > 1e6
