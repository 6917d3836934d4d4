"""Mixtures that a network gives: where the conditional mean is wrong, the density is right."""

from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import integrate, stats

import elbowroom as er
from elbowroom.draws.predict import log_density_of_rows
from elbowroom.errors import OptionError
from elbowroom.pipeline.fitting import bind_model

MODEL = "mixture_density_network"


@cache
def fitted() -> er.Fit:
    return er.fit(
        MODEL, guide="map", seed=1, steps=600, learning_rate=0.03, activation="tanh", hidden=(12,),
        draws=100, prior_scale=3.0,
    )  # fmt: skip


def density(x: float, grid: np.ndarray) -> np.ndarray:
    rows = pd.DataFrame({"input": np.full(len(grid), x), "output": grid})
    return np.exp(fitted().log_density(rows))


def test_the_density_has_the_branches_of_the_inverse_problem() -> None:
    """At 0.5 the outputs are near 0.21, 0.5 and 0.79, where 0.3 sin(2 pi t) = 0.5 - t."""
    grid = np.linspace(-1, 2, 1501)
    found = density(0.5, grid)
    assert integrate.trapezoid(found, grid) == pytest.approx(1, abs=1e-3)
    for branch in (0.21, 0.5, 0.79):
        valley = density(0.5, np.array([0.35, 0.65])).max()
        assert density(0.5, np.array([branch]))[0] > 1.3 * valley
    assert grid[density(1.0, grid).argmax()] == pytest.approx(1.0, abs=0.1)


def test_one_normal_cannot_tell_the_branches_apart() -> None:
    """Beside the closest curve: least squares in bins, with its own spread in each."""
    rows = er.load_dataset("inverse_problem")
    groups = rows.groupby(pd.cut(rows["input"], 20))["output"]
    normal = stats.norm(groups.transform("mean"), groups.transform("std")).logpdf(rows["output"])
    assert (fitted().log_density(rows) - normal).mean() > 0.3


def test_the_density_is_the_sum_over_the_components() -> None:
    problem, *_ = bind_model(MODEL, "inverse_problem", {"hidden": (3,), "components": 2})
    with problem.session(1):
        sites = {site.name: torch.randn(1, *site.shape) for site in problem.space.sites}
        found = log_density_of_rows(problem, problem.arguments, sites)
    rows = er.load_dataset("inverse_problem")
    z = ((rows["input"] - rows["input"].mean()) / rows["input"].std()).to_numpy()[:, None]
    weights = {name: value[0].numpy() for name, value in sites.items()}
    hidden = np.maximum(z @ weights["layer_0.weight"].T + weights["layer_0.bias"], 0)
    output = hidden @ weights["layer_1.weight"].T + weights["layer_1.bias"]
    share = np.exp(output[:, :2]) / np.exp(output[:, :2]).sum(1, keepdims=True)
    y = rows["output"]
    centre, width = y.mean() + y.std() * output[:, 2:4], y.std() * np.exp(output[:, 4:])
    apart = (y.to_numpy()[:, None] - centre) / width
    expected = (share * np.exp(-0.5 * apart**2) / width / np.sqrt(2 * np.pi)).sum(1)
    np.testing.assert_allclose(found, np.log(expected), rtol=1e-9)


def test_a_response_is_needed() -> None:
    rows = er.load_dataset("inverse_problem").rename(columns={"output": "t"})
    with pytest.raises(OptionError, match="give --response COLUMN"):
        er.fit(MODEL, pd.DataFrame(rows.to_numpy(), columns=["x", "t"]))
