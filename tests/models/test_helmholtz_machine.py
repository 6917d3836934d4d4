"""The Helmholtz machine: its density, its verbs, what it refuses."""

import itertools
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import elbowroom as er
from elbowroom.density.importance import k_hat_threshold, pareto_k_hat
from elbowroom.draws.weighted import WeightedDraws
from elbowroom.errors import DataError, GuideError, OptionError
from elbowroom.result import Fit

MODEL = "helmholtz_machine"
CODES = np.array(list(itertools.product((0.0, 1.0), repeat=4)))
"""Every row of four columns."""


@cache
def table() -> pd.DataFrame:
    """Two switches, each of which sets two of the columns, mostly."""
    random = np.random.default_rng(0)
    switches = random.random((300, 2)) < 0.5
    cells = np.repeat(switches, 2, axis=1) ^ (random.random((300, 4)) < 0.1)
    return pd.DataFrame(7.0 * cells, columns=list("abcd"))  # in units of the user's


@cache
def fitted() -> Fit:
    return er.fit(
        MODEL, table(), units=(3, 2), seed=1, steps=1500, learning_rate=0.02, draws=200,
        dtype="float64",
    )  # fmt: skip


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def bernoulli(x: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Of every pair of rows of one and the other, the product over the columns."""
    x, probability = x[:, None], probability[None]
    return np.where(x == 1, probability, 1 - probability).prod(-1)


@cache
def exact() -> tuple[np.ndarray, np.ndarray]:
    """P(x) of every row, and P(x, lower layer), by sums over all latents."""
    weights = {name: value.detach().numpy() for name, value in fitted().parameters.values.items()}
    upper = np.array(list(itertools.product((0.0, 1.0), repeat=2)))
    lower = np.array(list(itertools.product((0.0, 1.0), repeat=3)))
    first = bernoulli(upper, sigmoid(weights["generator.2.bias"])[None])[:, 0]
    maps = [(weights[f"generator.{i}.0.weight"], weights[f"generator.{i}.0.bias"]) for i in (1, 0)]
    given = bernoulli(lower, sigmoid(upper @ maps[0][0].T + maps[0][1]))  # (lower, upper)
    seen = bernoulli(CODES, sigmoid(lower @ maps[1][0].T + maps[1][1]))  # (x, lower)
    joint = seen * (given @ first)
    return joint.sum(1), joint


def test_scores_are_the_log_probability_summed_over_all_latents() -> None:
    rows = pd.DataFrame(7 * CODES, columns=list("abcd"))
    found = fitted().score(rows, draws=4000)
    off = np.abs(found["log_density"] - np.log(exact()[0]))
    assert (off < 5 * found["standard_error"] + 1e-3).all()
    assert exact()[0].sum() == pytest.approx(1)


def test_it_learns_what_the_columns_have_in_common() -> None:
    """Nearly as likely as the truth that drew the rows; far more than columns apart."""
    cells = table().to_numpy() / 7
    index = (cells @ [8, 4, 2, 1]).astype(int)
    own = np.log(exact()[0][index]).mean()
    pair = {0: 0.5 * 0.82, 1: 0.5 * 0.18}  # of equal columns, and of unequal ones
    apart = np.abs(cells[:, ::2] - cells[:, 1::2])
    truth = np.log(np.where(apart == 0, pair[0], pair[1])).sum(1).mean()
    shares = cells.mean(0)
    independent = np.log(np.where(cells == 1, shares, 1 - shares)).sum(1).mean()
    assert own > truth - 0.03
    assert own > independent + 0.4


def test_generated_rows_come_as_often_as_they_are_likely() -> None:
    made = fitted().generate(6000, seed=3)
    assert set(np.unique(made)) == {0.0, 7.0}
    counts = np.bincount((made.to_numpy() / 7 @ [8, 4, 2, 1]).astype(int), minlength=16)
    expected = 6000 * exact()[0]
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected) + 3).all()


def test_missing_cells_have_their_conditional_probabilities() -> None:
    rows = pd.DataFrame([[7.0, np.nan, 0.0, np.nan]], columns=list("abcd"))
    found = fitted().impute(rows, draws=800)
    fits = (CODES[:, 0] == 1) & (CODES[:, 2] == 0)
    shares = exact()[0][fits] / exact()[0][fits].sum()
    for column, name in ((1, "b"), (3, "d")):
        chance = (shares * CODES[fits, column]).sum()
        mean = found.cells.loc[found.cells["column"] == name, "mean"].mean() / 7
        assert abs(mean - chance) < 5 * np.sqrt(chance * (1 - chance) / 400)


def test_units_are_embedded_by_their_posterior_probabilities() -> None:
    rows = pd.DataFrame(7 * CODES[[0, 5, 15]], columns=list("abcd"))
    found = fitted().embed(rows, draws=1500)
    lower = np.array(list(itertools.product((0.0, 1.0), repeat=3)))
    joint = exact()[1][[0, 5, 15]]
    posterior = joint / joint.sum(1, keepdims=True) @ lower  # (rows, units)
    columns = [f"h_1[{i}].mean" for i in range(3)]
    assert (found["k_hat"] < 0.6).all()
    assert np.abs(found[columns].to_numpy() - posterior).max() < 5 * 0.5 / 1000**0.5


def test_weights_of_values_drawn_again_and_again_have_no_tail_but_rare_heavy_ones_do() -> None:
    random = np.random.default_rng(0)
    few = np.log(np.array([0.5, 1.0, 2.0]))[random.integers(0, 3, 1000)]
    heavy = few.copy()
    heavy[:3] = np.log([100.0, 150.0, 400.0])
    log_p = np.stack([few, heavy, random.normal(size=1000)], axis=1)
    found = WeightedDraws({}, log_p, np.zeros_like(log_p), discrete=True).k_hat
    assert found[0] == -np.inf
    assert found[1] > k_hat_threshold(1000)
    assert found[2] == pareto_k_hat(log_p[:, 2])
    continuous = WeightedDraws({}, log_p, np.zeros_like(log_p)).k_hat
    assert continuous[0] == np.inf  # equal weights of continuous latents have another cause


def test_a_run_is_read_back_with_its_latents(tmp_path: Path) -> None:
    fit = fitted()
    assert fit.posterior["posterior"]["h_1"].dims == ("chain", "draw", "rows", "unit_1")
    again = er.load(fit.save(tmp_path / "run"))
    rows = table().head(3)
    pd.testing.assert_frame_equal(again.score(rows), fit.score(rows))
    pd.testing.assert_frame_equal(again.predict(rows), fit.predict(rows))


def test_latents_that_carry_something_are_counted() -> None:
    information = np.array(fitted().diagnostics["information_per_latent"])
    assert 1 <= fitted().diagnostics["active_units"] <= 5
    assert ((information >= 0) & (information <= np.log(2))).all()
    assert information.sum() > np.log(2)  # the two switches
    assert any("of 5 binary latents are active" in each for each in fitted().verdict.reasons)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"guide": "mean_field"}, OptionError, "'mean_field' is for continuous latents"),
        ({"engine": "fixed_draws"}, OptionError, "no continuous latent; fit with --engine svi"),
        ({"units": (5,)}, OptionError, "--units 5: a layer has more units than the 4 columns"),
        ({"units": ()}, OptionError, "--units"),
        ({"elbo": "iwae"}, OptionError, "is discrete; give --elbo trace_graph"),
        ({"particles": 1}, OptionError, "needs several draws; give --particles 2"),
        ({"image_shape": (3, 3)}, OptionError, "give a shape with 4 pixels"),
        ({"image_shape": (3,)}, OptionError, "^--image-shape 3: give height,width or"),
        ({"elbo": "trace_enum"}, OptionError, "no discrete site to sum over"),
    ],
)
def test_what_cannot_be_is_said_with_its_mend(
    options: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        er.fit(MODEL, table(), seed=1, steps=10, draws=100, **{"units": (3,), **options})


def test_cells_that_cannot_be_used_are_named() -> None:
    for cell, said in (
        (-1.0, "'b', row 3: -1 is outside"),
        (np.nan, r"'b' has 1 missing cell \(row 3\)"),
    ):
        rows = table().head(40).copy()
        rows.loc[2, "b"] = cell
        rows.attrs["value_range"] = [0, 7]
        with pytest.raises(DataError, match=said):
            er.fit(MODEL, rows, units=(3,), seed=1, steps=10)
    with pytest.raises((DataError, GuideError), match="'d'"):
        fitted().score(table().drop(columns="d"))
