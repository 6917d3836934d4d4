"""Predictions of rows beside the Normal distribution that they have."""

import inspect

import pandas as pd
import pytest

from elbowroom.commands import COMMANDS
from elbowroom.options import declared
from elbowroom.result import Fit

QUANTILES = {0.9: 1.6449, 0.5: 0.6745}
"""Standard deviations of a Normal between its mean and the end of an interval."""


@pytest.mark.parametrize("interval", QUANTILES)
def test_an_interval_ends_at_the_quantiles_of_a_normal(regression: Fit, interval: float) -> None:
    found = regression.predict(interval=interval)
    for end, sign in (("lower", -1), ("upper", 1)):
        distance = sign * (found[end] - found["mean"]) / found["sd"]
        # The mean of hundreds of rows, each off by 3 % or so in 1,000 draws.
        assert distance.mean() == pytest.approx(QUANTILES[interval], rel=0.03)


def test_intervals_hold_nine_tenths_unless_told_otherwise(regression: Fit) -> None:
    pd.testing.assert_frame_equal(regression.predict(), regression.predict(interval=0.9))
    pd.testing.assert_frame_equal(regression.summary(), regression.summary(interval=0.9))
    assert inspect.signature(Fit.impute).parameters["interval"].default == 0.9
    for command in ("summary", "predict", "impute"):
        options = {each.name: each for each in declared(COMMANDS[command])}
        assert options["interval"].default == 0.9
    summary = regression.summary()
    lower, upper = summary.columns[2:4]
    distances = (summary[upper] - summary[lower]) / summary["sd"] / 2
    assert distances.mean() == pytest.approx(QUANTILES[0.9], rel=0.05)
