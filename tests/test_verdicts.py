"""Every diagnostic of a verdict seen to say no, or mended, on posteriors whose truth is known."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.integrate import quad
from scipy.special import digamma, polygamma
from scipy.stats import invgamma
from torch import Tensor, tensor

import elbowroom as er
from elbowroom.assess.evidence import Gaps
from elbowroom.assess.verdict import CORRECTED, NOT_TRUSTED, TRUSTED
from elbowroom.density import mixtures
from elbowroom.density.importance import k_hat_threshold
from elbowroom.density.modes import climb
from elbowroom.draws import refining
from elbowroom.engines.fixed_draws import engine as deterministic
from elbowroom.engines.fixed_draws import optima as fixed_draws
from elbowroom.errors import GuideError, ModelError
from elbowroom.result import Fit

ERRORS = 4
"""Standard errors that a Monte Carlo result may be off."""
LOG_2PI = float(np.log(2 * np.pi))

Model = Callable[..., Any]
NOTHING = {"y": tensor(0.0)}


def values(fit: Fit, name: str) -> np.ndarray:
    """Posterior draws of a site, (draws, ...)."""
    return fit.posterior["posterior"][name].values[0]


def draws_worth(fit: Fit) -> float:
    """Independent draws that the posterior's are worth: few weighted ones, resampled."""
    return 1 / (1 / fit.measures["corrected_effective_sample_size"] + 1 / fit.measures["draws"])


def check_moments(fit: Fit, name: str, mean: Any, sd: Any, kurtosis: float = 3.0) -> None:
    """The posterior's mean and sd of a site, within their Monte Carlo errors."""
    found, worth = values(fit, name), draws_worth(fit)
    assert np.max(np.abs(found.mean(0) - mean) / sd) < ERRORS / worth**0.5
    error = ((kurtosis - 1) / worth) ** 0.5 / 2
    assert np.max(np.abs(np.log(found.std(0) / sd))) < ERRORS * error


# The eight schools, centred: a funnel that real data widen.

EFFECT = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERROR = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def centred_schools(effect: Tensor, error: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(tensor(0.0), 5.0))
    spread = pyro.sample("spread", dist.HalfCauchy(tensor(5.0)))
    with pyro.plate("school", len(effect)):
        school = pyro.sample("school_effect", dist.Normal(mean, spread))
        pyro.sample("effect", dist.Normal(school, error), obs=effect)


class Moments(NamedTuple):
    mean: Any
    sd: Any


def schools_truth() -> tuple[dict[str, Moments], float]:
    """Means and sds by quadrature over the spread, given which all is Normal; and log evidence."""
    # The midpoint rule over the prior's own quantiles of the spread, where it is uniform.
    spread = 5 * np.tan(0.5 * np.pi * (np.arange(20_000) + 0.5) / 20_000)[:, None]
    variance = spread**2 + ERROR**2  # of each effect given the mean
    precision = (1 / variance).sum(1) + 1 / 5**2
    centre = (EFFECT / variance).sum(1) / precision
    log_p = -0.5 * np.log(variance).sum(1) - 0.5 * np.log(precision) - np.log(5) - 4 * LOG_2PI
    log_p -= 0.5 * ((EFFECT**2 / variance).sum(1) - precision * centre**2)
    weights = np.exp(log_p - log_p.max())
    log_evidence = float(np.log(weights.mean()) + log_p.max())
    weights /= weights.sum()
    share = spread**2 / variance  # of an effect in its school's mean given the overall one
    school = share * EFFECT + (1 - share) * centre[:, None]
    within = share * ERROR**2 + (1 - share) ** 2 / precision[:, None]

    def moments(at: np.ndarray, around: np.ndarray) -> Moments:
        mean = weights @ at
        return Moments(mean, np.sqrt(weights @ (around + at**2) - mean**2))

    truth = {
        "mean": moments(centre, 1 / precision),
        "spread": moments(spread[:, 0], np.zeros(len(spread))),
        "school_effect": moments(school, within),
    }
    return truth, log_evidence


SCHOOLS = {"effect": tensor(EFFECT), "error": tensor(ERROR)}


@pytest.fixture
def all_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """No coordinates are drawn given the others, and none by several components."""
    monkeypatch.setattr(refining, "split_of", lambda curvature: None)
    monkeypatch.setattr(refining, "REFINEMENT", replace(refining.REFINEMENT, most_coordinates=0))


@pytest.mark.slow
@pytest.mark.usefixtures("all_together")
def test_centred_schools_drawn_together_are_not_trusted_as_they_are_written() -> None:
    fit = er.fit(centred_schools, data=SCHOOLS, guide="linear_response", seed=1)
    assert fit.verdict.level == NOT_TRUSTED
    assert "cannot mend" in fit.verdict.reasons[0]
    truth, _ = schools_truth()
    spread = truth["spread"]
    assert spread.sd == pytest.approx(3.2, abs=0.1)  # the published posterior
    raw = fit.posterior.children.get("raw_posterior", fit.posterior["posterior"])
    own = raw["spread"].values[0]
    assert abs(own.mean() - spread.mean) / spread.sd > 0.3 or own.std() / spread.sd > 1.3


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("standardised", [False, True])
def test_auto_mends_the_schools_under_the_sites_own_names(
    request: pytest.FixtureRequest, seed: int, standardised: bool
) -> None:
    if standardised:
        request.getfixturevalue("all_together")
    fit = er.fit(centred_schools, data=SCHOOLS, seed=seed)
    assert fit.verdict.trusted
    posterior = fit.posterior["posterior"]
    assert set(posterior.data_vars) == {"mean", "spread", "school_effect"}
    assert posterior["school_effect"].dims == ("chain", "draw", "school")
    truth, log_evidence = schools_truth()
    for name, (mean, sd) in truth.items():
        check_moments(fit, name, mean, sd, kurtosis=20.0 if name == "spread" else 5.0)
    error = fit.measures["log_evidence_se"]
    assert abs(fit.measures["log_evidence"] - log_evidence) < ERRORS * error
    climbed = [note for note in fit.notes if note.startswith("auto: ")]
    if standardised:
        assert "linear_response: not trusted" in climbed[0]
        assert "(non-centred sites): trusted" in climbed[-1]
    else:
        assert not climbed
        assert (
            "8 of the 10 coordinates were drawn from their conditional distributions"
            in " ".join(fit.notes)
        )


# Neal's funnel: as hard as can be, and known.


def funnel(width: float) -> Model:
    """Nine Normals whose log variance v is Normal(0, width)."""

    def neal(y: Tensor) -> None:
        v = pyro.sample("v", dist.Normal(tensor(0.0), width))
        with pyro.plate("element", 9):
            pyro.sample("x", dist.Normal(tensor(0.0), (v / 2).exp()))
        pyro.sample("y", dist.Normal(0.0 * v, 1.0), obs=y)

    return neal


@pytest.mark.parametrize(
    ("engine", "width"),
    [
        ("fixed_draws", 3.0),
        pytest.param("svi", 1.5, marks=pytest.mark.slow),
        pytest.param("svi", 3.0, marks=pytest.mark.slow),
    ],
)
def test_a_funnel_drawn_together_is_not_trusted(
    request: pytest.FixtureRequest, engine: str, width: float
) -> None:
    if engine == "fixed_draws":
        request.getfixturevalue("all_together")
    fit = er.fit(funnel(width), data=NOTHING, guide="mean_field", engine=engine, seed=1)
    assert fit.verdict.level == NOT_TRUSTED
    assert fit.measures["corrected_k_hat"] > 0.5


@pytest.mark.parametrize(
    ("standardised", "width"),
    [
        (False, 1.0),
        (False, 3.0),
        pytest.param(True, 1.5, marks=pytest.mark.slow),
        pytest.param(True, 3.0, marks=pytest.mark.slow),
    ],
)
def test_auto_mends_the_funnel(
    request: pytest.FixtureRequest, standardised: bool, width: float
) -> None:
    if standardised:
        request.getfixturevalue("all_together")
    fit = er.fit(funnel(width), data=NOTHING, seed=1)
    assert set(fit.posterior["posterior"].data_vars) == {"v", "x"}
    assert fit.measures["corrected_k_hat"] < k_hat_threshold(fit.measures["weighted_draws"])
    assert fit.measures["log_evidence"] == pytest.approx(
        -0.5 * LOG_2PI, abs=ERRORS * fit.measures["log_evidence_se"]
    )
    check_moments(fit, "v", 0.0, width)
    # Standardised by v, what is left is a standard Normal.
    standard = values(fit, "x") * np.exp(-values(fit, "v") / 2)[:, None]
    worth = draws_worth(fit)
    assert np.abs(standard.mean(0)).max() < ERRORS / worth**0.5
    assert np.abs(np.log(standard.std(0))).max() < ERRORS * (0.5 / worth) ** 0.5
    if width == 1.0:
        assert fit.verdict.trusted
        # x has variance exp(1/2) and kurtosis 3e.
        check_moments(fit, "x", 0.0, np.exp(0.25), kurtosis=3 * np.e)


def test_a_sd_of_a_standardised_site_that_is_not_resolved_is_named() -> None:
    """The kurtosis of x is 3 exp(9): no number of draws that one can wait for resolves its sd."""
    fit = er.fit(funnel(3.0), data=NOTHING, seed=1)
    assert any("The sd of x" in reason for reason in fit.verdict.reasons)


# Several modes.


FAR = 300.0
"""A mode that the far draws of a proposal about another one do not reach."""


def two_normals(share: float, first: float = -2.0, second: float = 3.0) -> Model:
    """Normals of width 0.3: that at `first`, near the origin, holds `share` of the mass."""

    def bimodal(y: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(()), 1.0).mask(False))
        parts = dist.Normal(tensor([first, second]), 0.3).log_prob(x)
        pyro.factor("density", (parts + tensor([share, 1 - share]).log()).logsumexp(0))
        pyro.sample("y", dist.Normal(0.0 * x, 1.0), obs=y)

    return bimodal


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_by_default_both_modes_are_found_with_their_masses(seed: int) -> None:
    fit = er.fit(two_normals(0.3), data=NOTHING, seed=seed)
    assert fit.verdict.trusted
    assert "2 modes have these shares of the mass: 70%, 30%." in " ".join(fit.verdict.reasons)
    below = float((values(fit, "x") < 0.5).mean())
    assert abs(below - 0.3) < ERRORS * (0.3 * 0.7 / draws_worth(fit)) ** 0.5
    # Mean 0.3 · -2 + 0.7 · 3, variance 0.3² + 0.3 · 0.7 · 5²; flatter than a Normal.
    check_moments(fit, "x", 1.5, (0.09 + 5.25) ** 0.5)
    error = fit.measures["log_evidence_se"]
    assert abs(fit.measures["log_evidence"] + 0.5 * LOG_2PI) < ERRORS * error


def test_far_draws_find_a_mode_that_no_start_has_reached() -> None:
    fit = er.fit(two_normals(0.3), data=NOTHING, seed=1, restarts=1)
    assert fit.verdict.trusted
    mass = (values(fit, "x") < 0.5).mean()
    assert abs(mass - 0.3) < ERRORS * (0.21 / draws_worth(fit)) ** 0.5


def test_one_start_cannot_see_the_other_mode_and_claims_nothing_of_it() -> None:
    """What importance weights cannot tell: the draws hold one mode's mass, and fit it well."""
    fit = er.fit(two_normals(0.3, second=FAR), data=NOTHING, seed=1, restarts=1)
    assert values(fit, "x").max() < 0.5
    mass = np.log(0.3) - 0.5 * LOG_2PI
    error = fit.measures["log_evidence_se"]
    assert abs(fit.measures["log_evidence"] - mass) < ERRORS * error
    assert fit.verdict.reasons[-1] == (
        "The search for modes had only one start: other modes would be missed."
    )


def test_draws_that_lack_the_best_mode_s_evidence_are_not_trusted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The best of two modes, with 999 times the mass, has no guide: as if it had no optimum."""
    responses = deterministic.responses
    monkeypatch.setattr(deterministic, "responses", lambda *given: responses(*given)[1:])
    monkeypatch.setattr(
        mixtures, "TAILS", replace(mixtures.TAILS, most_coordinates=0)
    )  # no far draws, which would find it
    monkeypatch.setattr(
        refining, "REFINEMENT", replace(refining.REFINEMENT, most_coordinates=0)
    )  # no components where draws are too few
    fit = er.fit(two_normals(1e-3), data=NOTHING, guide="linear_response", seed=1)
    assert fit.verdict.level == NOT_TRUSTED
    missing = np.log(0.999 / 0.001)
    assert f"of the draws is {missing:.0f} nats below" in fit.verdict.reasons[0]
    assert values(fit, "x").max() < 0.5


@pytest.mark.parametrize("seed", range(3))
def test_a_narrow_mode_that_holds_most_of_the_mass_is_found(seed: int) -> None:
    """Nine tenths of the mass in a peak of width 0.05, which few starts come near."""

    def spiked(y: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(()), 1.0).mask(False))
        wide = dist.Normal(0.0, 1.0).log_prob(x) + tensor(0.1).log()
        peak = dist.Normal(1.9, 0.05).log_prob(x) + tensor(0.9).log()
        pyro.factor("density", torch.logaddexp(wide, peak))
        pyro.sample("y", dist.Normal(0.0 * x, 1.0), obs=y)

    fit = er.fit(spiked, data=NOTHING, guide="linear_response", seed=seed, restarts=4)
    assert fit.verdict.trusted
    mean, variance = 0.9 * 1.9, 0.1 + 0.9 * (0.05**2 + 1.9**2)
    check_moments(fit, "x", mean, (variance - mean**2) ** 0.5, kurtosis=9.0)


# Heavy tails.


def prior_of(make: Callable[[], dist.TorchDistribution]) -> Model:
    """A posterior that is the given distribution."""

    def known(y: Tensor) -> None:
        x = pyro.sample("x", make())
        pyro.sample("y", dist.Normal(0.0 * x, 1.0), obs=y)

    return known


@pytest.mark.parametrize(
    ("make", "median"),
    [
        (lambda: dist.HalfCauchy(tensor(1.0)), 1.0),
        (lambda: dist.InverseGamma(tensor(1.5), tensor(1.0)), invgamma(1.5).median()),
        (lambda: dist.LogNormal(tensor(0.0), 3.0), 1.0),
    ],
    ids=["half_cauchy", "inverse_gamma", "log_normal"],
)
def test_a_quantity_whose_sd_is_not_resolved_is_named(
    make: Callable[..., Any], median: float
) -> None:
    """The weights are good, and there is no sd, or none that the draws can tell."""
    fit = er.fit(prior_of(make), data=NOTHING, guide="linear_response", seed=1)
    assert fit.measures["corrected_k_hat"] < 0.5
    assert fit.verdict.level == NOT_TRUSTED
    assert fit.verdict.reasons[0].startswith("The sd of x cannot be estimated well")
    assert "quantiles" in fit.verdict.advice
    # The quantiles are right all the same, as is promised.
    above = float((values(fit, "x") > median).mean())
    assert abs(above - 0.5) < ERRORS * (0.25 / draws_worth(fit)) ** 0.5


@pytest.mark.parametrize("shape", [4.0, 6.0])
def test_a_tail_with_a_variance_is_trusted(shape: float) -> None:
    fit = er.fit(
        prior_of(lambda: dist.InverseGamma(tensor(shape), tensor(1.0))), data=NOTHING, seed=1
    )
    assert fit.verdict.trusted
    mean = 1 / (shape - 1)
    check_moments(fit, "x", mean, mean / (shape - 2) ** 0.5, kurtosis=60.0)


def test_a_cauchy_is_not_trusted() -> None:
    """No t with seven degrees of freedom covers its tails, and it has no sd."""
    fit = er.fit(
        prior_of(lambda: dist.Cauchy(tensor(0.0), 1.0)),
        data=NOTHING,
        guide="linear_response",
        seed=1,
    )
    assert fit.verdict.level == NOT_TRUSTED
    reason = fit.verdict.reasons[0]
    assert "The importance weights" in reason or "has a heavy tail" in reason


# Flat directions: no posterior at all.


def flat_direction(y: Tensor) -> None:
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).mask(False).to_event(1))
    pyro.sample("y", dist.Normal(x.sum(), 1.0), obs=y)


@pytest.mark.parametrize("guide", ["linear_response", "laplace", "full_rank"])
def test_a_flat_direction_has_no_deterministic_guide(guide: str) -> None:
    with pytest.raises(GuideError, match=r"flat direction|positive curvature"):
        er.fit(flat_direction, data=NOTHING, guide=guide, seed=1, engine="fixed_draws")


def test_a_stochastic_guide_of_a_flat_direction_is_not_trusted() -> None:
    fit = er.fit(flat_direction, data=NOTHING, guide="mean_field", seed=1, steps=300)
    assert fit.verdict.level == NOT_TRUSTED


def test_all_the_weight_on_one_draw_is_not_trusted_and_no_error() -> None:
    """No mode to begin at, and a likelihood a thousand million times narrower than the guide."""

    def ridge(y: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).mask(False).to_event(1))
        pyro.sample("y", dist.Normal(x.sum(), 1e-9), obs=y)

    fit = er.fit(ridge, data=NOTHING, guide="mean_field", seed=1, steps=5)
    assert fit.verdict.level == NOT_TRUSTED
    assert fit.measures["corrected_effective_sample_size"] == pytest.approx(1.0)


def test_an_improper_site_that_nothing_depends_on_is_refused_by_the_package() -> None:
    def unused(y: Tensor) -> None:
        pyro.sample("x", dist.Normal(torch.zeros(()), 1.0).mask(False))
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    with pytest.raises((GuideError, ModelError)):
        er.fit(unused, data=NOTHING, guide="linear_response", seed=1)


@pytest.mark.slow
def test_no_rung_of_auto_is_trusted_on_a_flat_direction() -> None:
    """An improper posterior: its evidence is infinite, whatever a flow makes of it."""
    try:
        fit = er.fit(flat_direction, data=NOTHING, seed=1)
    except (GuideError, ModelError):
        return
    assert fit.verdict.level == NOT_TRUSTED


# Gradients, holes in the density, and optimisers that stop.


class TripledSlope(torch.autograd.Function):
    """x² with a wrong derivative: 3 x + 1/2."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * (3 * ctx.saved_tensors[0] + 0.5)


class TurnedSlope(TripledSlope):
    """x² with the derivative of -x²."""

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return -2 * gradients[0] * ctx.saved_tensors[0]


def wrong_gradient(square: type[torch.autograd.Function]) -> Model:
    """Normal(0, 1) · exp(-2 x²) · Normal(y; x, 1): precision 6 and mean y / 6."""

    def model(y: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(tensor(0.0), 1.0))
        pyro.factor("sharpened", -2 * square.apply(x))
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    return model


def test_a_wrong_gradient_misleads_the_guide_and_not_the_posterior() -> None:
    """The weights rest on values alone and mend the guide; what is to be mended is the model."""
    fit = er.fit(wrong_gradient(TripledSlope), data={"y": tensor(1.0)}, seed=1)
    assert fit.verdict.level == NOT_TRUSTED
    assert (
        "gradient of the model's log density differs from finite differences"
        in fit.verdict.reasons[0]
    )
    assert "autograd.Function" in fit.verdict.advice
    raw = fit.posterior["raw_posterior"]["x"].values[0]
    assert abs(raw.mean() - 1 / 6) * 6**0.5 > 0.2
    check_moments(fit, "x", 1 / 6, 6**-0.5)
    log_evidence = -LOG_2PI - 0.5 + 1 / 12 + 0.5 * np.log(2 * np.pi / 6)
    error = fit.measures["log_evidence_se"]
    assert abs(fit.measures["log_evidence"] - log_evidence) < ERRORS * error


def test_a_gradient_of_the_wrong_sign_has_no_trust() -> None:
    model = wrong_gradient(TurnedSlope)
    fit = er.fit(model, data={"y": tensor(1.0)}, guide="linear_response", seed=1)
    assert fit.verdict.level == NOT_TRUSTED
    assert fit.verdict.reasons[0].startswith("The gradient of the model's log density differs")


def hole(edge: float) -> Model:
    """A standard Normal prior and one observation at 1, NaN below an edge."""

    def holed(y: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(tensor(0.0), 1.0))
        pyro.factor("edge", torch.where(x < edge, tensor(torch.nan), tensor(0.0)))
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    return holed


def truncated(edge: float) -> tuple[float, float, float]:
    """Mean, sd and log evidence of the Normal(1/2, 1/√2) that is left above an edge."""

    def density(x: float) -> float:
        return float(np.exp(-0.5 * x**2 - 0.5 * (1 - x) ** 2 - LOG_2PI))

    mass = quad(density, edge, 10)[0]
    mean = quad(lambda x: x * density(x), edge, 10)[0] / mass
    variance = quad(lambda x: (x - mean) ** 2 * density(x), edge, 10)[0] / mass
    return mean, variance**0.5, float(np.log(mass))


def test_a_far_hole_in_the_density_holds_no_draw() -> None:
    """The guide reaches into it, so that its own ELBO is minus infinity; the draws do not."""
    fit = er.fit(hole(-1.5), data={"y": tensor(1.0)}, seed=1)
    assert fit.verdict.trusted
    assert fit.measures["elbo"] == -np.inf
    assert values(fit, "x").min() >= -1.5
    mean, sd, log_evidence = truncated(-1.5)
    check_moments(fit, "x", mean, sd)
    error = fit.measures["log_evidence_se"]
    assert abs(fit.measures["log_evidence"] - log_evidence) < ERRORS * error


def test_a_hole_beside_the_mode_leaves_the_corrected_draws_right() -> None:
    """The ELBO over fixed draws ends at a cliff, where no gradient vanishes."""
    fit = er.fit(hole(0.3), data={"y": tensor(1.0)}, guide="linear_response", seed=1)
    assert values(fit, "x").min() >= 0.3
    assert "stopped before" in str(fit.verdict)
    assert fit.verdict.trusted  # of the corrected draws, which keep away from it
    mean, sd, _ = truncated(0.3)
    check_moments(fit, "x", mean, sd)


def test_a_density_that_is_nowhere_a_number_is_an_error() -> None:
    with pytest.raises((GuideError, ModelError)):
        er.fit(hole(np.inf), data={"y": tensor(1.0)}, guide="linear_response", seed=1)


def skewed(y: Tensor) -> None:
    u = pyro.sample("u", dist.Normal(torch.zeros(2), 1.0).mask(False).to_event(1))
    pyro.factor("density", (3 * u[0] - u[0].exp()) + 2 * (u[1] - u[0]) - (u[1] - u[0]).exp())
    pyro.sample("y", dist.Normal(0.0 * u.sum(), 1.0), obs=y)


@pytest.mark.parametrize("guide", ["linear_response", "mean_field", "full_rank"])
def test_an_optimiser_that_stops_early_is_not_trusted(
    guide: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert er.fit(skewed, data=NOTHING, guide=guide, seed=1).converged
    ascend = fixed_draws.ascend
    monkeypatch.setattr(fixed_draws, "ascend", lambda f, start, _: ascend(f, start, 1))
    monkeypatch.setattr(fixed_draws, "climb", lambda f, h, start, **_: climb(f, h, start, 1))
    fit = er.fit(skewed, data=NOTHING, guide=guide, seed=1)
    assert not fit.converged
    assert "The optimiser stopped before the gradient of the ELBO" in str(fit.verdict)
    if fit.verdict.trusted:  # the corrected draws are; the first coordinate is log Gamma(3, 1)
        found = values(fit, "u")[:, 0]
        sd = polygamma(1, 3) ** 0.5
        assert abs(found.mean() - digamma(3)) < ERRORS * sd / draws_worth(fit) ** 0.5


def test_the_stochastic_engine_s_budget_is_not_trusted() -> None:
    fit = er.fit(skewed, data=NOTHING, guide="mean_field", engine="svi", steps=20, seed=1)
    assert fit.verdict.level == NOT_TRUSTED
    assert "20 steps" in fit.verdict.reasons[0]
    assert "more --steps" in fit.verdict.advice


def test_one_point_is_not_trusted() -> None:
    fit = er.fit(skewed, data=NOTHING, guide="map", steps=20, seed=1)
    assert fit.verdict.level == NOT_TRUSTED
    assert fit.verdict.reasons[0] == "The guide is one point, which has no spread."


def test_a_model_that_does_not_reproduce_its_data_is_trusted_and_said_so() -> None:
    """The verdict is on the posterior; that the model is wrong is a remark."""
    random = np.random.default_rng(0)
    spread_out = tensor(random.normal(scale=5.0, size=50))

    def too_narrow(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(tensor(0.0), 10.0))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    fit = er.fit(too_narrow, data={"y": spread_out}, seed=1)
    assert fit.verdict.level == TRUSTED
    assert "The model does not reproduce the sd" in fit.verdict.reasons[-1]
    fine = er.fit(too_narrow, data={"y": spread_out / 5}, seed=1)
    assert "reproduce" not in str(fine.verdict)


# Where all of it is known: log p(data) = ELBO + KL.

X = np.random.default_rng(1).normal(size=(12, 3)) @ np.array(
    [[1.0, 0.9, 0.0], [0.0, 0.5, 0.4], [0.0, 0.0, 0.6]]
)
Y = X @ [1.0, -2.0, 0.5] + 0.5 * np.random.default_rng(2).normal(size=12)
PRECISION = X.T @ X / 0.5**2 + np.eye(3) / 3.0**2
COVARIANCE = np.linalg.inv(PRECISION)
MEAN = COVARIANCE @ X.T @ Y / 0.5**2


def regression(x: Tensor, y: Tensor) -> None:
    slopes = pyro.sample("slopes", dist.Normal(torch.zeros(3), 3.0).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(x @ slopes, 0.5), obs=y)


def log_evidence() -> float:
    covariance = tensor(9.0 * X @ X.T + 0.25 * np.eye(12))
    return float(dist.MultivariateNormal(torch.zeros(12).double(), covariance).log_prob(tensor(Y)))


REGRESSION = {"x": tensor(X), "y": tensor(Y)}


def test_the_exact_posterior_as_guide_has_an_elbo_of_the_log_evidence() -> None:
    fit = er.fit(regression, data=REGRESSION, guide="linear_response", seed=1)
    assert fit.verdict.level == TRUSTED
    # Linear response is exact to 1e-6: half its square each for three sds is the divergence.
    assert fit.measures["elbo"] == pytest.approx(log_evidence(), abs=1e-6)
    assert fit.measures["elbo_se"] < 1e-6
    assert fit.measures["effective_sample_size"] == pytest.approx(fit.measures["draws"])
    error = fit.measures["log_evidence_se"]
    assert abs(fit.measures["log_evidence"] - log_evidence()) < ERRORS * error
    assert abs(fit.measures["kl_to_posterior"]) < ERRORS * error
    check_moments(fit, "slopes", MEAN, np.sqrt(np.diag(COVARIANCE)))


def test_log_evidence_is_elbo_plus_divergence_of_a_factorising_guide() -> None:
    fit = er.fit(regression, data=REGRESSION, guide="mean_field", seed=1, fixed_draws=512)
    assert fit.verdict.level == CORRECTED  # too narrow, and mended
    check_moments(fit, "slopes", MEAN, np.sqrt(np.diag(COVARIANCE)))
    precision = fit.start.precision
    assert precision is not None
    width = 1 / np.sqrt(np.diag(precision.numpy()))
    offset, log_ratio = (
        fit.parameters.values[f"guide.{name}"].numpy() for name in ("offset", "slopes.log_ratio")
    )
    root = np.linalg.cholesky(np.linalg.inv(precision.numpy()))
    gap = fit.start.location.numpy() + root @ offset - MEAN
    variance = (width * np.exp(log_ratio)) ** 2
    divergence = 0.5 * (
        np.diag(PRECISION) @ variance + gap @ PRECISION @ gap - 3
        - np.log(variance).sum() - np.linalg.slogdet(PRECISION)[1]
    )  # fmt: skip
    assert divergence > 1.0
    elbo, error = fit.measures["elbo"], fit.measures["elbo_se"]
    assert abs(elbo + divergence - log_evidence()) < ERRORS * error
    error = np.hypot(error, fit.measures["log_evidence_se"])
    assert abs(fit.measures["kl_to_posterior"] - divergence) < ERRORS * error


def test_the_tree_says_the_verdict_that_stands() -> None:
    """Evidence that comes in after the draws were made, such as another guide's, is in it."""
    fit = er.fit(two_normals(0.3), data=NOTHING, seed=1)
    assert fit.verdict.trusted
    assert fit.posterior.attrs["verdict"] == fit.verdict.level
    fit = replace(fit, evidence=replace(fit.evidence, gaps=Gaps(other_guide=(1.0, 0.1))))
    assert fit.verdict.level == NOT_TRUSTED
    assert fit.posterior.attrs["verdict"] == NOT_TRUSTED
    assert fit.posterior["posterior"].attrs["verdict"] == NOT_TRUSTED
