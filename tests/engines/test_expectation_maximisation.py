"""Expectation-maximisation: neither half-step lowers the ELBO, and it ends where others end."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.decomposition import FactorAnalysis
from sklearn.mixture import GaussianMixture
from torch import Tensor

import elbowroom as er
from elbowroom.draws.of_guide import draw
from elbowroom.engines.em.expectation_maximisation import ASCENT, best_of, climb
from elbowroom.errors import OptionError
from elbowroom.guides import get_guide
from elbowroom.guides.factor_analysis import Factors, FactorSteps
from elbowroom.guides.gaussian_mixture import MixtureSteps
from elbowroom.pipeline.fitting import bind_model
from elbowroom.problem.bound import Problem
from elbowroom.problem.isolation import isolated
from elbowroom.problem.score import score

ROUNDING = 1e-9
"""Of a sum of some hundred logarithms, relative."""
ARRIVED = 3 * ASCENT.remaining
"""Nats below the maximum: the rise that is left is itself an estimate."""
SHAPES = ("full", "diagonal", "spherical")


def bound(model: str, **options: Any) -> tuple[Problem, Any]:
    """A model bound to iris, and its steps."""
    problem, _, _ = bind_model(model, "iris", options)
    guide = get_guide("em", model, model == "factor_analysis")
    assert guide.steps is not None
    steps = guide.steps(problem.arguments, problem.prepared.coords["column"])
    return problem.for_guide(guide), steps


@pytest.mark.parametrize("shape", SHAPES)
def test_the_elbo_of_a_mixture_is_the_models_log_likelihood(shape: str) -> None:
    problem, steps = bound("gaussian_mixture", covariance_type=shape)
    (values,) = steps.starts(1, 0)
    for _ in range(4):
        expected = steps.expect(values)
        with isolated(0):
            sites = steps.sites(values)
            joint = score(problem.function, problem.arguments, sites, problem.space).log_joint
        assert steps.elbo(values, expected) == pytest.approx(float(joint), rel=ROUNDING)
        assert steps.elbo(values, expected.roll(1, 0)) < float(joint)
        values = steps.maximise(expected)


@pytest.mark.parametrize("noise", ["shared", "separate"])
def test_the_elbo_of_factor_analysis_is_the_models_log_likelihood(noise: str) -> None:
    """p(x) is p(x, z) / p(z | x) at every z."""
    problem, steps = bound("factor_analysis", latent=1, noise=noise)
    (values,) = steps.starts(1, 0)
    guide = get_guide("exact", "factor_analysis", True)
    for _ in range(4):
        expected = steps.expect(values)
        with problem.session(0):
            called = guide.build(problem.space, None)  # type: ignore[arg-type]
            called(**problem.arguments)
            for name, value in steps.sites(values).items():
                pyro.get_param_store()[name] = value.clone()
            weights = draw(problem.function, called, problem.arguments, problem.space, 5)
        found = steps.elbo(values, expected)
        np.testing.assert_allclose(weights.log_weights, found, rtol=ROUNDING)
        means, covariance = expected
        assert steps.elbo(values, (means, 1.1 * covariance)) < found
        assert steps.elbo(values, (means + 0.1, covariance)) < found
        values = steps.maximise(expected)


def table(seed: int, rows: int, columns: int) -> dict[str, Tensor]:
    random = np.random.default_rng(seed)
    mixed = random.normal(size=(rows, columns)) @ random.normal(size=(columns, columns))
    x = torch.tensor(mixed + 3 * random.integers(0, 2, size=(rows, 1)))
    return {"x": x, "centre": x.mean(0), "spread": x.std(0)}


def check_steps(steps: Any, start: Any, count: int = 10) -> None:
    """Neither half-step lowers the ELBO, and after an E-step it is the log likelihood."""
    values, expected = start, steps.expect(start)
    for _ in range(count):
        before = steps.elbo(values, expected)
        assert before == pytest.approx(steps.log_likelihood(values), rel=ROUNDING)
        moved = steps.maximise(expected)
        if steps.closing_in(moved, expected) is not None:
            return
        slack = ROUNDING * (1 + abs(before))
        between = steps.elbo(moved, expected)
        after = steps.elbo(moved, steps.expect(moved))
        assert before - slack <= between <= after + slack
        values, expected = moved, steps.expect(moved)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(12, 60),
    columns=st.integers(1, 3),
    components=st.integers(1, 3),
    shape=st.sampled_from(SHAPES),
)
def test_no_half_step_lowers_the_elbo_of_a_mixture(
    seed: int, rows: int, columns: int, components: int, shape: str
) -> None:
    arguments: dict[str, Any] = {
        **table(seed, rows, columns), "components": components, "covariance_type": shape,
    }  # fmt: skip
    steps = MixtureSteps.of(arguments, list("abc"))
    check_steps(steps, steps.starts(1, seed)[0])


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(12, 60),
    columns=st.integers(2, 6),
    latent=st.integers(1, 3),
    shared=st.booleans(),
)
def test_no_half_step_lowers_the_elbo_of_factor_analysis(
    seed: int, rows: int, columns: int, latent: int, shared: bool
) -> None:
    arguments: dict[str, Any] = {
        **table(seed, rows, columns), "latent": min(latent, columns - 1), "shared": shared,
    }  # fmt: skip
    steps = FactorSteps.of(arguments, list("abcdef"))
    (start,) = steps.starts(1, seed)
    check_steps(steps, Factors(start.mean + 0.5, start.loadings, start.variances))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_mixture_ends_where_scikit_learns_ends(shape: str) -> None:
    _, steps = bound("gaussian_mixture", covariance_type=shape)
    (start,) = steps.starts(1, 0)
    found = climb(steps, start)
    assert found.status == "converged"
    kind = {"diagonal": "diag"}.get(shape, shape)
    precisions = torch.linalg.inv(start.covariances).numpy()
    diagonals = np.diagonal(precisions, axis1=1, axis2=2)
    initial = {"full": precisions, "diag": diagonals, "spherical": diagonals[:, 0]}
    peer = GaussianMixture(
        3, covariance_type=kind, tol=1e-12, reg_covar=1e-12, max_iter=5000,
        weights_init=start.weights.numpy(), means_init=start.means.numpy(),
        precisions_init=initial[kind],
    ).fit(steps.x.numpy())  # fmt: skip
    expected = len(steps.x) * peer.score(steps.x.numpy()) - steps.units
    assert expected - ARRIVED < found.elbo[-1] < expected + ARRIVED
    np.testing.assert_allclose(found.values.means, peer.means_, atol=0.01)


def scaled(data: pd.DataFrame) -> np.ndarray:
    return ((data - data.mean()) / data.std()).to_numpy()


def test_probabilistic_pca_is_its_closed_form() -> None:
    """Tipping and Bishop, 1999, equations 7 to 9."""
    fit = er.fit("factor_analysis", "iris", "em", seed=1)
    data = er.load_dataset("iris").drop(columns="species")
    x = scaled(data)
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    noise = values[:2].mean()
    logs = np.log(values[2:]).sum() + 2 * np.log(noise)
    best = -0.5 * len(x) * (4 * np.log(2 * np.pi) + logs + 4) - len(x) * np.log(data.std()).sum()
    assert best - ARRIVED < fit.elbo_history[-1] <= best + ROUNDING * abs(best)
    assert fit.diagnostics["elbo"] == pytest.approx(fit.elbo_history[-1], rel=ROUNDING)
    found = fit.point_parameters
    loadings = found["loadings"]
    assert loadings[0, 1] == 0
    assert (np.diag(loadings) > 0).all()
    # Errors of the order of the root of the rise that is left, for each row.
    error = 10 * (ASCENT.remaining / len(x)) ** 0.5
    expected = (vectors[:, 2:] * (values[2:] - noise)) @ vectors[:, 2:].T
    np.testing.assert_allclose(loadings @ loadings.T, expected, atol=error)
    assert found["noise"] == pytest.approx(noise**0.5, rel=error)
    assert fit.verdict.level == "trusted"
    assert "all importance weights are equal" in fit.verdict.reasons[0]
    assert "8 of 8 climbs ended at the best mode." in fit.verdict.reasons


def test_factor_analysis_ends_where_scikit_learns_ends() -> None:
    random = np.random.default_rng(1)
    z, loadings = random.normal(size=(400, 2)), random.normal(size=(2, 7))
    x = z @ loadings + random.normal(size=(400, 7)) * random.uniform(0.3, 1.0, size=7)
    data = pd.DataFrame(x * [1, 10, 1, 1, 0.1, 1, 1], columns=list("abcdefg"))
    fit = er.fit("factor_analysis", data, "em", seed=1, noise="separate", restarts=2)
    peer = FactorAnalysis(2, tol=1e-12, max_iter=20_000, svd_method="lapack").fit(scaled(data))
    expected = len(x) * (peer.score(scaled(data)) - np.log(data.std()).sum())
    assert expected - ARRIVED < fit.elbo_history[-1] < expected + ARRIVED
    assert fit.verdict.level == "trusted"


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), rows=st.integers(12, 60), shape=st.sampled_from(SHAPES))
def test_no_hard_step_lowers_the_likelihood_of_rows_and_components(
    seed: int, rows: int, shape: str
) -> None:
    arguments: dict[str, Any] = {**table(seed, rows, 2), "components": 2, "covariance_type": shape}
    steps = MixtureSteps.of(arguments, list("ab"), hard=True)
    found = climb(steps, steps.starts(1, seed)[0])
    slack = ROUNDING * (1 + abs(found.elbo[0]))
    assert (np.diff(found.elbo) >= -slack).all()
    if found.status == "converged":
        assert ((found.expected == 0) | (found.expected == 1)).all()
        assert found.elbo[-1] <= steps.log_likelihood(found.values) + slack
        # Every row has its most probable component under the parameters of all.
        again = steps.expect(steps.maximise(found.expected))
        assert torch.equal(again, found.expected)


def test_hard_steps_find_the_best_of_all_partitions() -> None:
    """Of ten rows in two components, each of 1,022 partitions by its own weights and Normals."""
    x = np.array([-2.1, -1.7, -1.2, -0.9, -0.2, 0.6, 1.3, 1.6, 2.2, 3.1])
    data = pd.DataFrame({"x": x})

    def joint(members: np.ndarray) -> float:
        total = 0.0
        for part in (x[members], x[~members]):
            total += (
                len(part) * np.log(len(part) / len(x))
                + norm(part.mean(), part.std()).logpdf(part).sum()
            )
        return float(total)

    best = max(
        joint(members)
        for code in range(1, 2**9)
        if 2 <= (members := np.array([code >> i & 1 for i in range(10)], dtype=bool)).sum() <= 8
    )
    fit = er.fit("gaussian_mixture", data, "hard_em", components=2, restarts=8, seed=1, draws=100)
    assert fit.elbo_history[-1] == pytest.approx(best, abs=1e-9)
    assert "the log likelihood of rows and components no longer rose" in fit.trained.reason
    # The likelihood that is told is that of the rows alone, at those parameters.
    soft = er.fit("gaussian_mixture", data, "em", components=2, restarts=8, seed=1, draws=100)
    told = fit.diagnostics["log_likelihood"]
    assert best < told < soft.diagnostics["log_likelihood"]
    assert fit.objective[1].endswith("by hard expectation-maximisation")
    assert (fit.fitted.seeks_maximum, soft.fitted.seeks_maximum) == (False, True)
    assert not any("maximum" in said for said in fit.verdict.reasons)


@pytest.mark.slow
def test_the_mixture_of_stochastic_gradients_is_the_same() -> None:
    found = er.fit("gaussian_mixture", "iris", "em", seed=1, draws=100)
    other = er.fit("gaussian_mixture", "iris", "mle", seed=1, draws=100)
    likelihoods = [each.diagnostics["log_likelihood"] for each in (found, other)]
    # Measured: 4e-6 nats of all 150 rows.
    assert abs(likelihoods[0] - likelihoods[1]) < 0.01 * 150
    assert likelihoods[0] == pytest.approx(found.elbo_history[-1], rel=ROUNDING)
    assert (np.diff(found.elbo_history) > 0).all()
    assert found.converged
    assert "8 of 8 climbs ended at the best maximum." in found.notes
    assert not found.verdict.trusted
    means = [each.posterior["posterior"]["means"].mean("draw") for each in (found, other)]
    # In the units of each column's noise, that 0.01 nats cost.
    spread = er.load_dataset("iris").drop(columns="species").std().to_numpy()
    assert (np.abs(means[0] - means[1]) < 0.02 * spread).all()


def doubled() -> pd.DataFrame:
    """Forty rows about the origin, and three copies of one far away."""
    near = np.random.default_rng(0).normal(size=(40, 2))
    return pd.DataFrame(np.concatenate([near, np.full((3, 2), 20.0)]), columns=["a", "b"])


def test_a_component_that_closes_in_is_named(tmp_path: Path) -> None:
    fit = er.fit("gaussian_mixture", doubled(), "em", components=2, restarts=3, seed=1, draws=100)
    assert fit.trained.status == "diverged"
    said = " ".join(fit.verdict.reasons)
    assert "The likelihood has no maximum: a part of the model collapsed in each of 3" in said
    assert "In the first, component 2 of 2, at a 20, collapses onto 3 rows (41, 42, 43)." in said
    assert "fewer --components, --covariance-type diagonal, or --guide map" in fit.verdict.advice
    assert not fit.verdict.trusted
    assert np.isfinite(fit.elbo_history).all()
    again = er.load(fit.save(tmp_path / "run"))
    assert again.verdict == fit.verdict
    spherical = er.fit(
        "gaussian_mixture", doubled(), "em", components=1, restarts=1, seed=1, draws=100
    )
    assert spherical.converged


def test_columns_that_determine_each_other_have_no_likelihood() -> None:
    data = doubled().assign(c=lambda each: each["a"] - each["b"])
    mixture = er.fit("gaussian_mixture", data, "em", components=1, restarts=1, seed=1, draws=100)
    assert "the columns a, b, c determine each other" in mixture.trained.reason
    copied = pd.DataFrame(np.random.default_rng(0).normal(size=(50, 4)), columns=list("abcd"))
    copied["d"] = copied["c"]
    factors = er.fit(
        "factor_analysis", copied, "em", latent=1, noise="separate", restarts=2, seed=1, draws=100
    )
    assert not factors.verdict.trusted
    assert not factors.converged
    assert any("the noise of 'c'" in said for said in [*factors.notes, factors.trained.reason])
    assert factors.verdict.advice.startswith("give a smaller --latent, give --noise shared")


@pytest.mark.parametrize("model", ["factor_analysis", "gaussian_mixture"])
def test_a_budget_that_ends_is_said(model: str) -> None:
    """And not that there is no maximum, which was not come to."""
    fit = er.fit(model, "iris", "em", seed=1, steps=4, restarts=2)
    assert fit.trained.status == "budget"
    assert len(fit.elbo_history) == 4
    assert not fit.verdict.trusted
    assert "no maximum" not in str(fit.verdict)
    assert "Stopped at the budget of 4 steps: the log likelihood still rose." in fit.verdict.reasons
    assert fit.verdict.advice == "give more --steps."


def test_what_was_found_before_an_interrupt_is_kept() -> None:
    _, steps = bound("gaussian_mixture")

    def interrupt(step: int, *_: Any) -> None:
        if step == 5:
            raise KeyboardInterrupt

    found = best_of(steps, 3, 0, progress=interrupt)
    assert (found.status, found.tried, len(found.elbo)) == ("interrupted", 1, 5)
    assert found.elbo[-1] == pytest.approx(steps.log_likelihood(found.values), rel=ROUNDING)


def test_starts_that_close_in_are_dropped() -> None:
    fit = er.fit("gaussian_mixture", "iris", "em", components=6, seed=1, draws=100)
    assert fit.converged
    assert any("2 of 8 climbs were dropped" in note for note in fit.notes)
    assert any("component 2 of 6" in note and "may be chance" in note for note in fit.notes)


@pytest.mark.parametrize(
    ("model", "asked", "named"),
    [
        ("bayesian_regression", {"guide": "em"}, "written for factor_analysis, gaussian_mixture"),
        ("bayesian_regression", {"engine": "em"}, "written for factor_analysis, gaussian_mixture"),
        ("gaussian_mixture", {"guide": "em", "engine": "svi"}, "'em' needs --engine em"),
        ("gaussian_mixture", {"guide": "map", "engine": "em"}, "'map' needs --engine svi"),
        (
            "gaussian_mixture",
            {"guide": "em", "elbo": "trace_enum"},
            "--elbo would have no effect: it is for --engine svi",
        ),
        (
            "gaussian_mixture",
            {"guide": "em", "batch_size": 10},
            "--batch-size would have no effect",
        ),
    ],
)
def test_what_it_is_not_for_is_refused(model: str, asked: dict[str, Any], named: str) -> None:
    with pytest.raises(OptionError, match=named):
        er.fit(model, seed=1, **asked)


def test_it_has_no_objective_to_choose() -> None:
    with pytest.raises(OptionError, match="the guide 'em' is fitted in another way"):
        er.compare("gaussian_mixture", guides=["em:trace"], seed=1)
    assert er.fit("factor_analysis", "iris", engine="em", seed=1).guide.name == "em"
