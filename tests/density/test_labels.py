"""Parts whose labels mean nothing: one order for draws, and weights of any order."""

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from scipy.special import logsumexp
from scipy.stats import norm

from elbowroom.density.density import Density
from elbowroom.density.importance import log_mean_exp
from elbowroom.density.labels import in_one_order, labels_of
from elbowroom.density.mixtures import Mixture
from elbowroom.draws.adaptive import AdaptiveImportance
from elbowroom.draws.many_chains import run_many_chains
from elbowroom.guides.space import LatentSpace
from elbowroom.problem.isolation import isolated

NEAR, APART = np.array([-1.7, -1.5, 1.4, 1.6]), np.array([-4.2, -4.0, -3.8, 3.9, 4.0, 4.3])


def mixture(y: np.ndarray, parts: int = 2) -> Density:
    """Of Normals of unknown weights and means."""

    def model(y: Any) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(parts)))
        with pyro.plate("parts", parts):
            means = pyro.sample("means", dist.Normal(torch.zeros(()), 3.0))
        with pyro.plate("rows", len(y)):
            part = pyro.sample("part", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("y", dist.Normal(means[part], 1.0), obs=y)

    arguments = {"y": torch.as_tensor(y)}
    with isolated(0, dtype=torch.float64):
        return Density(model, arguments, LatentSpace.of(model, arguments))


def log_evidence(y: np.ndarray) -> tuple[float, float]:
    """Log p(y), and the posterior mean of the larger mean, by a sum over a grid."""
    w, m = (np.arange(60) + 0.5) / 60, np.linspace(-9, 9, 181)
    one, two, share = m[:, None, None], m[None, :, None], w[None, None, :]
    log_p = norm(0, 3).logpdf(one) + norm(0, 3).logpdf(two) + np.zeros_like(share)
    for value in y:
        density = share * norm(one, 1).pdf(value) + (1 - share) * norm(two, 1).pdf(value)
        log_p = log_p + np.log(density)
    total = logsumexp(log_p)
    larger = (np.exp(log_p - total) * np.maximum(one, two)).sum()
    return float(total + 2 * np.log(m[1] - m[0]) - np.log(60)), float(larger)


def test_draws_are_put_in_the_order_in_which_they_are_most_alike() -> None:
    random = np.random.default_rng(0)
    with isolated(0, dtype=torch.float64):
        density = mixture(APART, 3)
        centre = np.array([0.5, -0.5, -4.0, 0.0, 4.0])
        (three,) = labels_of(density, centre, np.ones(5))
        own = centre + 0.3 * random.standard_normal((200, 5))
        turned = three.relabelled(own[:80], (1, 2, 0))[0]
        mixed = np.concatenate([turned, own[80:]])
        found, gained = in_one_order(three, mixed)
        np.testing.assert_allclose(found, own, rtol=1e-9)
        heights = density.value(mixed) + gained
        np.testing.assert_allclose(heights, density.value(found), rtol=1e-9)
    assert (gained[80:] == 0).all()


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-26])
def test_where_a_density_is_flat_no_labels_are_seen(scale: float) -> None:
    """Near the middle of a plateau any order of the coordinates seems to be as good."""
    widths = torch.tensor([3.8, 3.9, 0.5], dtype=torch.float64)

    def plateau() -> None:
        x = pyro.sample("x", dist.ImproperUniform(constraints.real_vector, (), (3,)))
        pyro.factor("density", -(((x / widths).square().sum() + 1e-12) ** 3.7))

    with isolated(0, dtype=torch.float64):
        density = Density(plateau, {}, LatentSpace.of(plateau, {}))
        assert labels_of(density, scale * np.array([0.1, 0.2, -0.1]), np.full(3, scale)) == []


def test_weights_of_any_order_have_the_whole_evidence_though_draws_have_one_labelling() -> None:
    with isolated(0, dtype=torch.float64):
        density = mixture(NEAR)
        first = Mixture.of(np.ones(1), np.array([[0.0, -1.5, 1.5]]), np.diag([1.0, 0.5, 0.5])[None])
        plain = AdaptiveImportance(density, first, np.random.default_rng(1))
        plain.round(4000)
        found = plain.of_any_order()
    assert plain.labels is None
    assert found.labels is not None
    truth, larger = log_evidence(NEAR)
    value, error = log_mean_exp(found.log_weights)
    assert error < 0.02
    assert abs(value - truth) < 4 * error
    sites = density.constrained(found.counting)["means"].numpy()
    spread = sites.max(1)
    mean = found.weights @ spread
    standard_error = np.sqrt(np.square(found.weights) @ np.square(spread - mean))
    assert abs(mean - larger) < 4 * standard_error
    # The same draws by themselves have heavy weights: the other labelling is far out.
    np.testing.assert_array_equal(found.points, plain.points)
    assert found.k_hat < 0.5 < 0.7 < plain.k_hat
    assert found.effective_sample_size > 5 * plain.effective_sample_size
    with isolated(0, dtype=torch.float64):
        found.round(2000)
        again, its_error = log_mean_exp(found.log_weights)
    assert abs(again - truth) < 4 * its_error


def test_labellings_that_are_apart_keep_their_own_weights() -> None:
    with isolated(0, dtype=torch.float64):
        density = mixture(APART)
        first = Mixture.of(np.ones(1), np.array([[0.0, -4.0, 4.0]]), 0.3 * np.eye(3)[None])
        found = AdaptiveImportance(density, first, np.random.default_rng(1))
        found.round(2000)
        assert found.of_any_order() is found


def test_chains_that_stay_in_different_labellings_have_mixed() -> None:
    """Four groups begin at one labelling and four at the other, which no chain leaves."""
    random = np.random.default_rng(0)
    sides = np.array([1, -1, 1, -1, -1, 1, 1, -1])[:, None] * np.array([0.0, 4.0, -4.0])
    with isolated(0, dtype=torch.float64):
        density = mixture(APART)
        found = run_many_chains(density, sides + 0.1 * random.normal(size=(8, 3)), random)
        means = density.constrained(found.points.reshape(-1, 3))["means"].numpy()
        values = density.value(found.points.reshape(-1, 3))
    assert found.mixed
    assert np.abs(np.mean(means[:, 0] > means[:, 1]) - 0.5) > 0.49
    np.testing.assert_allclose(found.values.ravel(), values, atol=1e-8)


def test_chains_leave_latents_that_are_alike_by_chance_in_their_places() -> None:
    """Groups with the same data: each of them has the mean of all, in whatever draw."""

    def groups(y: Any) -> None:
        with pyro.plate("groups", 6):
            level = pyro.sample("level", dist.Normal(torch.zeros(()), 1.0))
            kind = pyro.sample("kind", dist.Bernoulli(0.5))
            pyro.sample("y", dist.Normal(level + 0.1 * kind, 1.0), obs=y)

    random = np.random.default_rng(0)
    with isolated(0, dtype=torch.float64):
        arguments = {"y": torch.zeros(6, dtype=torch.float64)}
        density = Density(groups, arguments, LatentSpace.of(groups, arguments))
        starts = random.normal(size=(8, 6))
        assert labels_of(density, starts[0], np.ones(6))
        found = run_many_chains(density, starts, random)
    means = found.points.reshape(-1, 6).mean(0)
    assert np.abs(means - means.mean()).max() < 4.5 * 0.75 / found.effective**0.5
