"""Importance weights: their Pareto shape, and what they give where the truth is known."""

from collections.abc import Callable, Iterator

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.special import gammaln, logsumexp, polygamma
from scipy.stats import chi2, f, multivariate_normal, multivariate_t
from torch import Tensor

from elbowroom.density.density import Density
from elbowroom.density.importance import (
    effective_sample_size,
    k_hat_interval,
    k_hat_threshold,
    log_mean_exp,
    pareto_k_hat,
    resampled,
    smoothed,
    standard_errors,
)
from elbowroom.density.mixtures import TAILS, Mixture
from elbowroom.draws.adaptive import ADAPTATION, AdaptiveImportance
from elbowroom.draws.weighted import WEIGHING, WeightedDraws
from elbowroom.guides.space import LatentSpace
from elbowroom.problem.isolation import isolated


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with isolated(0):
        yield


DRAWS = 4000
REPEATS = 20
TAIL = 3 * DRAWS**0.5
"""The number of weights that the shape is estimated from."""
PRIOR_COUNT, PRIOR_SHAPE = 10, 0.5
"""The weak prior of the estimate: ten observations of shape one half (Vehtari et al., 2024)."""


def pareto_log_weights(shape: float, seed: int) -> np.ndarray:
    """Logs of exact Pareto weights: their whole distribution has the tail's shape."""
    return shape * np.random.default_rng(seed).exponential(size=DRAWS)


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.7, 1.0, 1.5])
def test_the_shape_of_a_pareto_tail_is_found(shape: float) -> None:
    found = [pareto_k_hat(pareto_log_weights(shape, seed)) for seed in range(REPEATS)]
    wanted = (TAIL * shape + PRIOR_COUNT * PRIOR_SHAPE) / (TAIL + PRIOR_COUNT)
    error = (1 + shape) / (TAIL * REPEATS) ** 0.5  # the asymptotic error of maximum likelihood
    # Four standard errors, and as much again for the bias of a finite tail.
    assert abs(np.mean(found) - wanted) < 4 * error + 0.05


def test_a_constant_factor_changes_nothing() -> None:
    weights = pareto_log_weights(0.6, 0)
    assert pareto_k_hat(weights + 3000) == pytest.approx(pareto_k_hat(weights), abs=1e-6)


def test_the_right_tail_counts_and_not_the_left() -> None:
    """Few huge weights spoil an estimate; few tiny ones do not."""
    heavy = pareto_log_weights(1.5, 0)
    assert pareto_k_hat(heavy) > 1.0
    assert pareto_k_hat(-heavy) < 0.3


def test_a_guide_narrower_than_its_target_is_seen() -> None:
    """q = Normal(0, s) for p = Normal(0, 1) has a tail of shape 1 - s²; a wider one has none."""
    z = np.random.default_rng(0).normal(size=DRAWS)

    def log_weights(s: float) -> np.ndarray:
        return -0.5 * (s * z) ** 2 + 0.5 * z**2 + np.log(s)

    assert pareto_k_hat(log_weights(0.4)) > 0.7
    assert pareto_k_hat(log_weights(1.5)) < 0.3


def test_weights_that_are_not_numbers_are_never_trusted() -> None:
    weights = np.random.default_rng(0).normal(size=1000)
    for bad in (np.nan, np.inf):
        assert pareto_k_hat(np.append(weights, bad)) == np.inf
    assert pareto_k_hat(np.full(1000, 2.5)) == -np.inf


def test_draws_of_zero_density_are_allowed_but_one_draw_with_all_the_weight_is_not() -> None:
    random = np.random.default_rng(0).normal(size=900)
    assert pareto_k_hat(np.concatenate([random, np.full(100, -np.inf)])) < 0.7
    assert pareto_k_hat(np.append(np.full(999, -np.inf), 3.0)) > 0.7


def test_no_draw_with_any_density_is_never_trusted() -> None:
    assert pareto_k_hat(np.full(1000, -np.inf)) == np.inf


@pytest.mark.parametrize(
    ("draws", "threshold"), [(100, 0.5), (1000, 2 / 3), (2000, 0.69706), (2200, 0.7), (10**5, 0.7)]
)
def test_thresholds(draws: int, threshold: float) -> None:
    assert k_hat_threshold(draws) == pytest.approx(threshold, abs=1e-4)


def test_effective_sample_size_of_known_weights() -> None:
    assert effective_sample_size(np.full(50, -700.0)) == pytest.approx(50)
    assert effective_sample_size(np.log([3.0, 1.0, 1e-300])) == pytest.approx(16 / 10)
    assert effective_sample_size(np.array([0.0, -np.inf, -np.inf])) == 1.0


COVERED = 200
"""Samples in which an interval is checked: its coverage has a standard error of 0.021."""


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.7, 1.0])
def test_the_interval_of_k_hat_covers_the_shape_nine_times_in_ten(shape: float) -> None:
    inside = []
    for seed in range(COVERED):
        lower, upper = k_hat_interval(pareto_k_hat(pareto_log_weights(shape, seed)), DRAWS)
        inside.append(lower <= shape <= upper)
    # The weak prior draws towards one half, which only helps within this range.
    assert abs(np.mean(inside) - 0.9) < 3 * (0.9 * 0.1 / COVERED) ** 0.5


def test_a_normal_is_never_certain_to_do_for_a_cauchy() -> None:
    """The weights' tail has shape 1, slowly reached: the interval never lies below the limit."""
    found = []
    for seed in range(REPEATS):
        z = np.random.default_rng(seed).normal(size=DRAWS)
        found.append(pareto_k_hat(0.5 * z**2 - np.log1p(z**2)))
    limit = k_hat_threshold(DRAWS)
    assert np.mean(found) > limit
    assert min(k_hat_interval(k_hat, DRAWS)[1] for k_hat in found) > limit


def test_an_interval_of_what_is_no_number() -> None:
    assert k_hat_interval(np.inf, 1000) == (np.inf, np.inf)
    assert k_hat_interval(-np.inf, 1000) == (-np.inf, -np.inf)


def test_largest_weights_that_are_equal_are_not_trusted_and_no_error() -> None:
    weights = np.concatenate([np.random.default_rng(0).normal(size=3000), np.full(1000, 50.0)])
    assert not pareto_k_hat(weights) < 0.7


# The evidence and the errors.

MEAN, VARIANCE, OBSERVED, NOISE = 1.0, 4.0, 2.5, 0.25
POSTERIOR_VARIANCE = 1 / (1 / VARIANCE + 1 / NOISE)
POSTERIOR_MEAN = POSTERIOR_VARIANCE * (MEAN / VARIANCE + OBSERVED / NOISE)
LOG_EVIDENCE = float(multivariate_normal.logpdf(OBSERVED, MEAN, VARIANCE + NOISE))


def conjugate(x: np.ndarray) -> np.ndarray:
    """A Normal mean with one Normal observation: log prior plus log likelihood."""
    prior = multivariate_normal.logpdf(x, MEAN, VARIANCE)
    return prior + multivariate_normal.logpdf(OBSERVED - x, 0.0, NOISE)


def test_the_posterior_as_its_own_proposal_gives_equal_weights_and_the_exact_evidence() -> None:
    random = np.random.default_rng(0)
    x = POSTERIOR_MEAN + POSTERIOR_VARIANCE**0.5 * random.normal(size=1000)
    log_q = multivariate_normal.logpdf(x, POSTERIOR_MEAN, POSTERIOR_VARIANCE)
    drawn = WeightedDraws({"x": torch.tensor(x)}, conjugate(x), log_q)
    found = drawn.resample(1000, random)
    assert np.ptp(conjugate(x) - log_q) < 1e-10
    assert found.log_evidence[0] == pytest.approx(LOG_EVIDENCE, abs=1e-12)
    assert found.log_evidence[1] < 1e-12
    assert drawn.k_hat == -np.inf
    assert drawn.effective_sample_size == pytest.approx(1000)
    # Every draw is kept once.
    np.testing.assert_array_equal(np.sort(found.sites["x"].numpy()), np.sort(x))


def test_the_evidence_from_a_t_proposal_is_within_its_standard_error() -> None:
    scale = np.full((1, 1, 1), POSTERIOR_VARIANCE**0.5)
    proposal = Mixture(np.ones(1), np.full((1, 1), POSTERIOR_MEAN + 0.3), scale, 7.0)
    scores = []
    for seed in range(REPEATS):
        x = proposal.draw(DRAWS, np.random.default_rng(seed))
        value, error = log_mean_exp(conjugate(x[:, 0]) - proposal.log_density(x))
        scores.append((value - LOG_EVIDENCE) / error)
    assert max(np.abs(scores)) < 4
    # Neither too small nor too large an error: a chi-squared with as many degrees of freedom.
    lower, upper = chi2.ppf([1e-3, 1 - 1e-3], REPEATS)
    assert lower < np.square(scores).sum() < upper


def test_errors_of_weighted_means_and_sds_are_their_spread() -> None:
    """Weights of a wider Normal for a standard one, over 100 samples of 2000 draws."""
    means, sds, errors, scale = [], [], [], 1.5
    for seed in range(100):
        z = scale * np.random.default_rng(seed).normal(size=2000)
        log_weights = -0.5 * z**2 + 0.5 * (z / scale) ** 2
        weights = np.exp(log_weights - logsumexp(log_weights))
        means.append(weights @ z)
        sds.append(np.sqrt(weights @ np.square(z - means[-1])))
        errors.append(np.concatenate(standard_errors(weights, z[:, None])))
    of_mean, of_sd = np.mean(errors, axis=0)
    error = 3 / (2 * 99) ** 0.5  # of a spread over 100
    assert abs(np.log(np.std(means) / of_mean)) < error
    assert abs(np.log(np.std(sds) / of_sd)) < error
    assert abs(np.mean(sds) - 1) < 4 * of_sd / 100**0.5 + 1 / 2000


def test_a_constant_has_no_error() -> None:
    mean, sd = standard_errors(np.full(10, 0.1), np.full((10, 2), 3.0))
    assert mean.tolist() == sd.tolist() == [0.0, 0.0]


def test_smoothing_keeps_a_known_expectation_where_raw_weights_do_not() -> None:
    """Weights of shape 0.6 have no variance: over samples the smoothed mean varies less."""
    raw, smooth = [], []
    for seed in range(100):
        log_weights = pareto_log_weights(0.6, seed)
        found, _ = smoothed(log_weights)
        assert logsumexp(found) == pytest.approx(0.0, abs=1e-9)
        raw.append(effective_sample_size(log_weights))
        smooth.append(effective_sample_size(found))
    assert np.std(smooth) < np.std(raw)


# Resampling.


@pytest.mark.parametrize("sorted_along", [False, True])
def test_resampling_takes_each_draw_as_often_as_its_weight_says(sorted_along: bool) -> None:
    random = np.random.default_rng(0)
    weights = random.gamma(0.3, size=40)
    weights /= weights.sum()
    along = random.normal(size=40) if sorted_along else None
    count, repeats = 100, 400
    counts = np.stack(
        [
            np.bincount(resampled(weights, count, np.random.default_rng(seed), along), minlength=40)
            for seed in range(repeats)
        ]
    )
    expected = count * weights
    # Systematic: never further than one from the expected number, and right on average.
    assert np.abs(counts - expected).max() < 1
    share = expected % 1
    error = np.sqrt(share * (1 - share) / repeats)
    assert (np.abs(counts.mean(0) - expected) <= 4.5 * error + 1e-12).all()


def test_resampling_along_a_quantity_keeps_its_distribution() -> None:
    """Each quantile is off by one draw at most, where a random order is off by many."""
    random = np.random.default_rng(1)
    values = random.normal(size=5000)
    weights = np.exp(0.7 * values)
    weights /= weights.sum()
    exact = np.cumsum(weights[np.argsort(values)])
    picked = np.sort(values[resampled(weights, 500, random, values)])
    reached = np.searchsorted(picked, np.sort(values), side="right") / 500
    assert np.abs(reached - exact).max() <= 1 / 500 + 1e-12


def test_resampled_draws_come_in_random_order() -> None:
    picked = resampled(np.full(1000, 1e-3), 1000, np.random.default_rng(0), np.arange(1000.0))
    assert sorted(picked) == list(range(1000))
    assert abs(np.corrcoef(picked, np.arange(1000))[0, 1]) < 4 / 1000**0.5


# The proposal.

TWO = Mixture(
    np.array([0.3, 0.7]),
    np.array([[0.0, 1.0], [2.0, -1.0]]),
    np.array([[[1.0, 0.0], [0.5, 2.0]], [[0.3, 0.0], [-0.1, 0.4]]]),
    5.0,
)
SHAPES = [(mean, factor @ factor.T) for mean, factor in zip(TWO.means, TWO.factors, strict=True)]
NORMALS = [multivariate_normal(*shape) for shape in SHAPES]
COMPONENTS = [multivariate_t(*shape, TWO.freedom) for shape in SHAPES]


def test_a_mixture_s_density_is_that_of_scipy() -> None:
    points = 4 * np.random.default_rng(0).normal(size=(50, 2))
    parts = [
        multivariate_t(mean, factor @ factor.T, freedom).logpdf(points)
        for freedom in (TWO.freedom, 1.0)
        for mean, factor in zip(TWO.means, TWO.factors, strict=True)
    ]
    # Of the squared length over the dimension of a Cauchy's draws.
    within = f.cdf(TAILS.reach**2, 2, 1)
    shares = np.concatenate(
        [(1 - TAILS.defensive) * TWO.shares, TAILS.defensive / within * TWO.shares]
    )
    wanted = logsumexp(np.stack(parts, axis=1), b=shares, axis=1)
    np.testing.assert_allclose(TWO.log_density(points), wanted, rtol=1e-12)
    far = np.array([[0.0, 1.0 + 5 * TAILS.reach]])  # beyond the reach of both Cauchy parts
    alone = logsumexp(
        [part.logpdf(far) for part in COMPONENTS], b=(1 - TAILS.defensive) * TWO.shares
    )
    assert TWO.log_density(far)[0] == pytest.approx(alone)


def test_a_mixture_s_draws_have_its_density() -> None:
    """Importance weights to two Normals within it, whose mass and moments are known."""
    draws = TWO.draw(50_000, np.random.default_rng(0))
    parts = [normal.logpdf(draws) for normal in NORMALS]
    weights = np.exp(logsumexp(parts, b=TWO.shares[:, None], axis=0) - TWO.log_density(draws))
    for values, wanted in (
        (np.ones(len(draws)), 1.0),
        (draws[:, 0], TWO.shares @ TWO.means[:, 0]),
        (draws[:, 1], TWO.shares @ TWO.means[:, 1]),
        (np.exp(parts[0] - logsumexp(parts, b=TWO.shares[:, None], axis=0)) * 0.3, 0.3),
    ):
        error = (weights * values).std() / len(draws) ** 0.5
        assert abs((weights * values).mean() - wanted) < 4 * error
    far = np.linalg.norm(draws - TWO.shares @ TWO.means, axis=1) > 50
    share = TAILS.defensive * (1 - f.cdf(50**2 / 2, 2, 1) / f.cdf(TAILS.reach**2, 2, 1))
    assert 0.3 * share < far.mean() < 3 * share  # the parts' scales are 0.3 to 2
    counts = [len(TWO.draw(n, np.random.default_rng(0))) for n in (1, 2, 3, 10)]
    assert counts == [1, 2, 3, 10]


def test_tails_suit_the_dimension() -> None:
    for size, freedom in ((2, 7.0), (14, 7.0), (40, 20.0)):
        mixture = Mixture.of(np.array([2.0]), np.zeros((1, size)), np.eye(size)[None])
        assert mixture.freedom == freedom
        assert mixture.shares.tolist() == [1.0]


@pytest.mark.parametrize("narrow", [0.0, 1e-300, 1e-26, 1e-17, 1e-10])
def test_a_component_that_float64_cannot_resolve_has_the_density_that_it_says(
    narrow: float,
) -> None:
    """Half of the draws are its own: without their density, evidence would be twice as large."""
    factors = np.array([np.eye(3), [[narrow, 0, 0], [1e-15, 1e-15, 0], [1.0, 1.0, narrow]]])
    mixture = Mixture(np.array([0.5, 0.5]), np.array([np.zeros(3), [1.8, -2.0, -1.4]]), factors, 7)
    draws = mixture.draw(40_000, np.random.default_rng(0))
    log_q = mixture.log_density(draws)
    target = -0.5 * np.square(draws / 0.7).sum(1) - 1.5 * np.log(2 * np.pi * 0.49)
    evidence = np.exp(target - log_q)
    assert abs(evidence.mean() - 1) < 4 * evidence.std() / len(draws) ** 0.5
    parts = mixture.log_densities(draws) - log_q[:, None]
    assert np.abs(np.exp(parts).mean(0) - 0.5).max() < 0.01


# Adaptive importance sampling.


def density_of(size: int, log_density: Callable[[Tensor], Tensor]) -> Density:
    """Of the unconstrained vector itself, (size,)."""

    def model(y: Tensor) -> None:
        u = pyro.sample("u", dist.Normal(torch.zeros(size), 1.0).mask(False).to_event(1))
        pyro.factor("density", log_density(u))
        pyro.sample("y", dist.Delta(y), obs=y)

    arguments = {"y": torch.tensor(0.0)}
    return Density(model, arguments, LatentSpace.of(model, arguments))


def importance(density: Density, first: Mixture, seed: int = 0) -> AdaptiveImportance:
    return AdaptiveImportance(density, first, np.random.default_rng(seed))


def log_gammas(u: Tensor) -> Tensor:
    """The log of a gamma(3), and that plus the log of a gamma(2): skewed and correlated."""
    first, second = u[0], u[1] - u[0]
    return 3 * first - first.exp() + 2 * second - second.exp()


def normal(u: Tensor) -> Tensor:
    return -0.5 * u.square().sum()


def standard(size: int, scale: float = 1.0) -> Mixture:
    return Mixture.of(np.ones(1), np.zeros((1, size)), scale * np.eye(size)[None])


@pytest.mark.parametrize("seed", range(5))
def test_moments_and_evidence_of_a_skewed_target(seed: int) -> None:
    found = importance(density_of(2, log_gammas), standard(2), seed)
    found.run()
    assert found.settled
    means, variances = polygamma(0, [3, 2]), polygamma(1, [3, 2])
    mean = np.cumsum(means)
    covariance = np.array([[variances[0], variances[0]], [variances[0], variances.sum()]])
    of_mean, of_sd = standard_errors(found.weights, found.points)
    assert max(of_mean.max(), of_sd.max()) <= ADAPTATION.precise
    sd = np.sqrt(np.diag(covariance))
    centred = found.points - found.weights @ found.points
    moments = (centred * found.weights[:, None]).T @ centred
    assert (np.abs(found.weights @ found.points - mean) / sd < 4 * of_mean).all()
    assert (np.abs(np.log(np.sqrt(np.diag(moments)) / sd)) < 4 * of_sd).all()
    correlation = moments[0, 1] / np.sqrt(moments[0, 0] * moments[1, 1])
    assert correlation == pytest.approx(covariance[0, 1] / sd.prod(), abs=4 * ADAPTATION.precise)
    value, error = log_mean_exp(found.log_weights)
    assert abs(value - gammaln([3, 2]).sum()) < 4 * error


def test_a_proposal_that_is_far_off_is_adapted_until_the_weights_are_good() -> None:
    density = density_of(2, log_gammas)
    first = Mixture.of(np.ones(1), np.full((1, 2), -2.0), np.eye(2)[None])
    once = importance(density, first)
    once.round(1000)
    assert not once.settled
    before = density.evaluations
    found = importance(density, first)
    found.run()
    assert density.evaluations - before > len(found.points)  # those it was adapted to are not kept
    assert found.settled
    assert len(found.proposals[0].shares) == 2  # the latest, and the first
    assert found.effective_sample_size >= ADAPTATION.enough
    # The mixture of all rounds, the first and useless one included, is far better than that.
    fresh = importance(density, found.proposals[-1], 1)
    fresh.round(1000)
    assert fresh.effective_sample_size > max(200, 50 * once.effective_sample_size)


def test_good_weights_end_it_and_hopeless_ones_end_it_too() -> None:
    exact = importance(density_of(1, normal), standard(1))
    exact.run()
    assert exact.rounds <= 2
    size = (
        TAILS.most_coordinates + 10
    )  # in so many dimensions no proposal has a part with Cauchy tails
    heavy = density_of(size, lambda u: -(size + 1) / 2 * u.square().sum().log1p())
    cauchy = importance(heavy, standard(size))
    cauchy.run()
    assert not cauchy.settled
    assert k_hat_interval(cauchy.k_hat, len(cauchy.points))[1] > k_hat_threshold(len(cauchy.points))


@pytest.mark.parametrize("size", [2, 5, 20, 50])
def test_the_evidence_is_within_its_error_in_many_dimensions(size: int) -> None:
    """A standard Normal, up to its constant, from the proposal that suits it, by four seeds."""
    density, scores = density_of(size, normal), []
    for seed in range(4):
        found = importance(density, standard(size), seed)
        found.run()
        value, error = log_mean_exp(found.log_weights)
        scores.append((value - 0.5 * size * np.log(2 * np.pi)) / error)
    assert abs(np.mean(scores)) < 4 / 4**0.5


def two_normals(u: Tensor) -> Tensor:
    """Masses 0.2 and 0.8 at -3 and 3."""
    parts = dist.Normal(torch.tensor([-3.0, 3.0]), 0.5).log_prob(u)
    return (parts + torch.tensor([0.2, 0.8]).log()).logsumexp(0)


def test_the_masses_of_two_modes_are_found_from_equal_shares() -> None:
    means = np.array([[-3.0], [3.0]])
    first = Mixture.of(np.ones(2), means, np.full((2, 1, 1), 0.25))
    found = importance(density_of(1, two_normals), first)
    found.run()
    error = (0.2 * 0.8 / found.effective_sample_size) ** 0.5
    assert found.shares() == pytest.approx((0.8, 0.2), abs=4 * error)
    correction = found.resample(1000)
    assert found.weighted.usable
    assert float((correction.sites["u"] < 0).double().mean()) == pytest.approx(0.2, abs=4 * error)


def test_a_correction_says_when_it_is_not_usable() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=1000)
    heavy = WeightedDraws({"x": torch.tensor(x)}, 1.5 * x**2, 0.0 * x)
    assert heavy.k_hat > k_hat_threshold(1000)
    assert not heavy.usable
    few = WeightedDraws({"x": torch.tensor(x)}, 4.0 * x, 0.0 * x)
    assert few.effective_sample_size < WEIGHING.fewest_effective
    assert not few.usable
