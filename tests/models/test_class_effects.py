"""Group effects and offsets of a categorical regression, beside a density written by hand."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyro import poutine
from scipy import stats
from scipy.special import logsumexp

import elbowroom as er
from elbowroom.pipeline.fitting import bind_model


@dataclass(frozen=True)
class Sizes:
    groups: int = 20
    rows: int = 30
    points: int = 41
    draws: int = 2000


SIZES = Sizes()


def table() -> pd.DataFrame:
    """Three classes, whose log odds differ between groups, with an offset that a group shares."""
    random = np.random.default_rng(4)
    group = np.repeat(np.arange(SIZES.groups), SIZES.rows)
    known = random.normal(0, 0.5, SIZES.groups)
    effects = random.normal(size=(SIZES.groups, 2)) * [1.2, 0.8]
    eta = np.column_stack([0 * known, [0.5, -0.3] + effects + known[:, None]])[group]
    shares = np.exp(eta) / np.exp(eta).sum(1, keepdims=True)
    places = (random.random((len(group), 1)) > shares.cumsum(1)).sum(1)
    return pd.DataFrame({
        "kind": np.array(list("abc"))[places], "known": known[group],
        "school": [f"s{k:02d}" for k in group], "x": random.normal(size=len(group)),
    })  # fmt: skip


@pytest.fixture(scope="module")
def fit() -> Any:
    return er.fit(
        "bayesian_regression", table(), formula="kind ~ offset(known) + (1 | school)", seed=1
    )


def log_density(rows: pd.DataFrame, at: np.ndarray) -> np.ndarray:
    """Of intercepts and log standard deviations, (n, 4); the effects of a group are summed out."""
    counts = pd.crosstab(rows["school"], rows["kind"]).to_numpy()  # (groups, classes)
    known = rows.groupby("school")["known"].first().to_numpy()
    line = np.linspace(-6, 6, SIZES.points)
    z = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2)
    weights = stats.norm.logpdf(z).sum(1) + 2 * np.log(line[1] - line[0])
    total = np.zeros(len(at))
    for n, offset in zip(counts, known, strict=True):
        eta = at[:, None, :2] + np.exp(at[:, None, 2:]) * z + offset  # (n, points, 2)
        whole = np.logaddexp(np.logaddexp(eta[..., 0], eta[..., 1]), 0)
        total += logsumexp(eta @ n[1:] - n.sum() * whole + weights, axis=1)
    total += stats.norm.logpdf(at[:, :2], 0, 2.5).sum(1)
    return total + (stats.t.logpdf(np.exp(at[:, 2:]), 3, scale=2.5) + at[:, 2:]).sum(1)


def test_each_class_but_the_first_has_the_effects_of_quadrature(fit: Any) -> None:
    """By importance draws of the four hyperparameters, the effects integrated out on a grid."""
    assert fit.verdict.trusted, str(fit.verdict)
    draws = fit.posterior["posterior"]
    found = np.column_stack([
        draws["intercept"].values.reshape(-1, 2), draws["1|school_sigma"].values.reshape(-1, 2)
    ])  # fmt: skip
    own = np.column_stack([found[:, :2], np.log(found[:, 2:])])
    # The proposal may be any: that it is close to the truth is seen by the weights.
    proposal = stats.multivariate_t(own.mean(0), 1.5 * np.cov(own.T), df=5, seed=0)
    at = proposal.rvs(SIZES.draws)
    parts = np.array_split(at, 20)
    log_weights = np.concatenate([log_density(table(), part) for part in parts])
    log_weights -= proposal.logpdf(at)
    weights = np.exp(log_weights - logsumexp(log_weights))
    assert 1 / np.square(weights).sum() > SIZES.draws / 4
    at[:, 2:] = np.exp(at[:, 2:])
    means = weights @ at
    sds = np.sqrt(weights @ np.square(at - means))
    assert (np.abs(found.mean(0) - means) / sds).max() < 0.15
    assert np.abs(np.log(found.std(0) / sds)).max() < 0.15


def test_effects_of_classes_have_their_dims_and_priors(fit: Any) -> None:
    draws = fit.posterior["posterior"]
    assert draws["1|school"].dims[2:] == ("level", "school__factor_dim")
    assert draws["1|school_sigma"].dims[2:] == ("level",)
    assert list(draws["level"].values) == ["b", "c"]
    assert "1|school[c, s03]" in fit.summary().index
    rows = table()
    shares = fit.predict(rows)[["probability[b]", "probability[c]"]]
    seen = pd.crosstab(rows["school"], rows["kind"], normalize="index")[["b", "c"]]
    by_school = shares.groupby(rows["school"]).mean()
    assert np.abs(by_school.to_numpy() - seen.to_numpy()).max() < 0.12  # shrunk to each other
    new = pd.DataFrame({"known": [0.0], "school": ["new"]})
    drawn = fit.predict(new, new_groups="draw")
    assert drawn.filter(like="probability").to_numpy().sum() == pytest.approx(1, abs=1e-6)


def test_the_effects_of_a_class_are_added_to_its_linear_predictor() -> None:
    """At a draw of the prior, in which one class's standard deviation is as small as any."""
    rows = table()
    priors = "1|school_sigma ~ half_normal(0.01), x|school_sigma ~ half_normal(2)"
    options = {"formula": "kind ~ x + (x | school)", "prior": priors}
    problem, *_ = bind_model("bayesian_regression", rows, options)
    with problem.session(3):
        nodes: Any = poutine.trace(problem.function).get_trace(**problem.arguments).nodes
    at = {name: node["value"].numpy() for name, node in nodes.items() if node["type"] == "sample"}
    code, x = rows["school"].astype("category").cat.codes.to_numpy(), rows[["x"]].to_numpy()
    eta = at["intercept"] + x @ at["coefficients"].T
    eta = eta + at["1|school"].T[code] + at["x|school"].T[code] * x
    told = nodes["response"]["infer"]["linear_predictor"]
    np.testing.assert_allclose(told, eta, rtol=1e-6, atol=1e-6)
    assert at["school_correlation"].shape == (2, 1)
    assert at["1|school_sigma"].max() < 0.05 < at["x|school_sigma"].max()
    assert not np.allclose(at["x|school"][0], at["x|school"][1])
    hidden = {f"standardised_effects|school[{k}]" for k in (1, 2)}
    assert hidden <= problem.hidden
