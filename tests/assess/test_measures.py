"""The numbers of a fit: of draws whose weights are known, and rows left out in closed form."""

from typing import Any

import arviz_base
import numpy as np
import pytest
import xarray
from scipy.special import logsumexp
from scipy.stats import norm

from elbowroom.assess.measures import bound, leave_one_out, rows_left_out
from elbowroom.density.importance import smoothed
from elbowroom.draws.weighted import WeightedDraws

DRAWS = 4000


def weighted(log_weights: np.ndarray) -> WeightedDraws:
    log_q = np.random.default_rng(3).normal(size=log_weights.shape)
    return WeightedDraws({}, log_weights + log_q, log_q)


def test_the_bound_of_draws_of_known_weights() -> None:
    """Weights of one and three by halves: the mean log weight, its error and (Σw)² / Σw²."""
    found = bound(weighted(np.log(np.repeat([1.0, 3.0], DRAWS // 2))), point=False)
    assert found["draws"] == DRAWS
    assert found["elbo"] == pytest.approx(np.log(3.0) / 2)
    error = np.log(3.0) / 2 / (DRAWS - 1) ** 0.5
    assert found["elbo_se"] == pytest.approx(error)
    assert found["k_hat_threshold"] == pytest.approx(0.7)
    assert found["effective_sample_size"] == pytest.approx(0.8 * DRAWS)
    log_weights = 0.5 * np.random.default_rng(0).normal(size=200)
    few = bound(weighted(log_weights), point=False, loss=0.3)
    assert few["k_hat"] == pytest.approx(smoothed(log_weights)[1])
    assert few["k_hat_threshold"] == pytest.approx(1 - 1 / np.log10(200))
    error = log_weights.std(ddof=1) / 200**0.5
    assert few["elbo_se"] == pytest.approx((error**2 + 0.3**2) ** 0.5)


def test_a_point_has_draws_and_no_bound() -> None:
    found = bound(weighted(np.zeros(DRAWS)), point=True, loss=1.0)
    assert found.pop("draws") == DRAWS
    assert found.pop("k_hat_threshold") == pytest.approx(0.7)
    assert set(found) == {"elbo", "elbo_se", "k_hat", "effective_sample_size"}
    assert np.isnan(list(found.values())).all()


def test_where_rows_have_weights_what_all_but_a_few_have_is_told_of_them() -> None:
    """The bound is that of the guide's draws; the rows have fewer draws, and one of them is bad."""
    random = np.random.default_rng(0)
    log_weights = 0.1 * random.normal(size=(500, 20))
    log_weights[:, 7] *= 50
    rows = weighted(log_weights)
    found = bound(weighted(np.full(DRAWS, -2.0)), point=False, rows=rows)
    assert (found["draws"], found["elbo"]) == (DRAWS, pytest.approx(-2.0))
    shapes = [smoothed(each)[1] for each in log_weights.T]
    assert found["k_hat"] == pytest.approx(sorted(shapes)[-2])
    assert found["k_hat_threshold"] == pytest.approx(1 - 1 / np.log10(500))
    kish = [1 / np.square(np.exp(smoothed(each)[0])).sum() for each in log_weights.T]
    assert found["effective_sample_size"] == pytest.approx(sorted(kish)[1])


Y = np.array([-1.0, -0.4, 0.1, 0.3, 1.1, 1.9])


def tree(log_likelihood: dict[str, np.ndarray], means: np.ndarray) -> xarray.DataTree:
    dims = ("chain", "draw", "row")
    groups: dict[str, Any] = {
        "posterior": {"mean": (dims[:2], means[None])},
        "log_likelihood": {
            name: (dims[: each.ndim + 1], each[None]) for name, each in log_likelihood.items()
        },
    }
    return xarray.DataTree.from_dict({k: xarray.Dataset(v) for k, v in groups.items() if v})


def normal_mean(draws: int = DRAWS) -> tuple[np.ndarray, np.ndarray]:
    """A flat prior and sds of one: draws of the mean without noise, and each row's log density."""
    at = norm.ppf((np.arange(draws) + 0.5) / draws, Y.mean(), len(Y) ** -0.5)
    means = np.random.default_rng(0).permutation(at)
    return means, norm.logpdf(Y, means[:, None], 1.0)


def test_rows_left_out_have_the_density_of_the_closed_form() -> None:
    """Given the others, a row is Normal about their mean, with variance 1 + 1 / (n - 1)."""
    means, log_likelihood = normal_mean()
    found = leave_one_out(tree({"y": log_likelihood}, means))
    rows = len(Y)
    others = (Y.sum() - Y) / (rows - 1)
    exact = norm.logpdf(Y, others, (1 + 1 / (rows - 1)) ** 0.5)
    assert found["elpd_loo"] == pytest.approx(exact.sum(), abs=0.02)
    assert found["elpd_loo_se"] == pytest.approx(rows**0.5 * exact.std(), abs=0.02)
    within = norm.logpdf(Y, Y.mean(), (1 + 1 / rows) ** 0.5)
    assert found["p_loo"] == pytest.approx((within - exact).sum(), abs=0.02)
    assert found["high_k_rows"] == 0


def test_an_arviz_that_is_told_to_keep_no_rows_keeps_these() -> None:
    means, log_likelihood = normal_mean()
    given = tree({"y": log_likelihood}, means)
    usual = leave_one_out(given)
    with arviz_base.rc_context({"stats.ic_pointwise": False}):
        assert leave_one_out(given) == usual


def test_draws_of_a_guide_are_independent_in_whatever_order_they_lie() -> None:
    means, log_likelihood = normal_mean()
    weights = [smoothed(-each)[0] for each in log_likelihood.T]
    rows = [logsumexp(w + each) for w, each in zip(weights, log_likelihood.T, strict=True)]
    for order in (np.arange(DRAWS), np.argsort(means)):
        found = leave_one_out(tree({"y": log_likelihood[order]}, means[order]))
        assert found["elpd_loo"] == pytest.approx(sum(rows), abs=1e-9)


def test_the_share_of_rows_that_move_the_posterior_too_much_is_told() -> None:
    """A row with a parameter of its own: the weights without it have a tail of shape one."""
    means, log_likelihood = normal_mean()
    own = norm.logpdf(np.random.default_rng(1).permutation((means - Y.mean()) * len(Y) ** 0.5))
    found = leave_one_out(tree({"y": np.column_stack([log_likelihood, own])}, means))
    assert found["high_k_rows"] == pytest.approx(1 / 7)


@pytest.mark.parametrize("seed", range(3))
def test_draws_of_a_guide_that_is_off_are_corrected_by_row(seed: int) -> None:
    """A guide whose mean is an sd off and whose sd is a third too large; some draws have no p."""
    rows, sd = len(Y), len(Y) ** -0.5
    means = np.random.default_rng(seed).normal(Y.mean() + sd, 1.3 * sd, DRAWS)
    log_p, log_q = norm.logpdf(means, Y.mean(), sd), norm.logpdf(means, Y.mean() + sd, 1.3 * sd)
    log_p[:5] = -np.inf
    given = tree({"y": norm.logpdf(Y, means[:, None], 1.0)}, means)
    given["sample_stats"] = xarray.Dataset(
        {"log_p": (("chain", "draw"), log_p[None] - 7), "log_q": (("chain", "draw"), log_q[None])}
    )
    exact = norm.logpdf(Y, (Y.sum() - Y) / (rows - 1), (1 + 1 / (rows - 1)) ** 0.5)
    assert leave_one_out(given)["elpd_loo"] != pytest.approx(exact.sum(), abs=0.2)
    given.attrs["draws"] = "raw"
    found = rows_left_out(given)
    assert found is not None
    assert found.elpd_i.to_numpy() == pytest.approx(exact, abs=0.05)
    assert leave_one_out(given)["elpd_loo"] == pytest.approx(exact.sum(), abs=0.1)


def test_the_limit_of_a_row_s_k_is_that_of_the_effective_draws() -> None:
    means, log_likelihood = normal_mean()
    given = tree({"y": log_likelihood}, means)
    for effective, limit in ((1e9, 0.7), (100.0, 0.5), (10.0**1.25, 0.2), (1.0, 0.04)):
        given.attrs["effective_draws"] = effective
        found = rows_left_out(given)
        assert found is not None
        assert found.good_k == pytest.approx(limit, abs=0.001)


NO_LOO = {"elpd_loo", "elpd_loo_se", "p_loo", "high_k_rows"}


@pytest.mark.parametrize("what", ["two sites", "no site", "no rows", "99 draws", "a constant row"])
def test_without_rows_or_draws_there_is_nothing_to_leave_out(what: str) -> None:
    means, each = normal_mean(100)
    assert not np.isnan(list(leave_one_out(tree({"y": each}, means)).values())).any()
    sites: dict[str, Any] = {
        "two sites": {"y": each, "z": each},
        "no site": {},
        "no rows": {"y": each[:, 0]},
        "99 draws": {"y": each[:99]},
        "a constant row": {"y": np.column_stack([each, np.zeros(100)])},
    }[what]
    found = leave_one_out(tree(sites, means[:99] if what == "99 draws" else means))
    assert set(found) == NO_LOO
    assert np.isnan(list(found.values())).all()
