"""Tails of families, and what is censored or truncated by them, beside scipy.stats."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy import special, stats

from elbowroom.models._families import FAMILIES, Predicted
from elbowroom.models._limits import Truncated, log_between
from elbowroom.problem.isolation import isolated


@dataclass(frozen=True)
class Checked:
    """How closely, and at how many places."""

    values: float = 1e-5
    slopes: float = 1e-5
    step: float = 1e-5
    draws: int = 4000


CHECKED = Checked()
Numbers = Mapping[str, Any]


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with isolated(0, dtype=torch.float64):
        yield


@dataclass(frozen=True)
class Zeros:
    """Counts of a base with more zeros, or with the base's zeros left out."""

    base: Any
    zero: float
    hurdle: bool

    def cdf(self, y: Any) -> Any:
        """P(Y ≤ y)."""
        return -np.expm1(self.logsf(y)) * (np.asarray(y) >= 0)

    def logcdf(self, y: Any) -> Any:
        """Its logarithm."""
        return np.log(self.cdf(y))

    def logsf(self, y: Any) -> Any:
        """Of the probability above y."""
        left_out = self.base.logsf(0) if self.hurdle else 0.0
        return np.log1p(-self.zero) + self.base.logsf(y) - left_out


def _skew(eta: Any, p: Numbers) -> Any:
    scale = p["sigma"] / stats.skewnorm.std(p["slant"])
    return stats.skewnorm(p["slant"], eta - scale * stats.skewnorm.mean(p["slant"]), scale)


def _negative_binomial(eta: Any, p: Numbers) -> Any:
    size = 1 / p["overdispersion"]
    return stats.nbinom(size, size / (size + np.exp(eta)))


def _beta(eta: Any, p: Numbers) -> Any:
    mean = special.expit(eta)
    return stats.beta(mean * p["precision"], (1 - mean) * p["precision"])


COUNTS: dict[str, Callable[..., Any]] = {
    "poisson": lambda eta, p: stats.poisson(np.exp(eta)),
    "negative_binomial": _negative_binomial,
}
LAWS: dict[str, Callable[..., Any]] = {
    "normal": lambda eta, p: stats.norm(eta, p["sigma"]),
    "student_t": lambda eta, p: stats.t(p["nu"], eta, p["sigma"]),
    "skew_normal": _skew,
    "laplace": lambda eta, p: stats.laplace(eta, p["sigma"]),
    "quantile": lambda eta, p: stats.laplace_asymmetric(2.0, eta, p["sigma"] / 0.4),
    **COUNTS,
    **{
        f"{kind}_{name}": lambda eta, p, law=law, kind=kind: Zeros(
            law(eta, p), p["zero_probability"], kind == "hurdle"
        )
        for kind in ("zero_inflated", "hurdle")
        for name, law in COUNTS.items()
    },
    "gamma": lambda eta, p: stats.gamma(p["shape"], scale=np.exp(eta) / p["shape"]),
    "lognormal": lambda eta, p: stats.lognorm(p["sigma"], scale=np.exp(eta)),
    "exponential": lambda eta, p: stats.expon(scale=np.exp(eta)),
    "weibull": lambda eta, p: stats.weibull_min(
        p["shape"], scale=np.exp(eta) / special.gamma(1 + 1 / p["shape"])
    ),
    "inverse_gaussian": lambda eta, p: stats.invgauss(np.exp(eta) / p["shape"], scale=p["shape"]),
    "beta": _beta,
}
"""The law of each family that has tails; `quantile` predicts that of 0.8."""
VALUES = {
    "number": [-5.0, -1.3, 0.2, 0.9, 4.0],
    "count": [0.0, 1.0, 2.0, 6.0, 12.0],
    "positive": [0.02, 0.6, 1.2, 2.5, 9.0],
    "share": [0.01, 0.3, 0.55, 0.7, 0.98],
}
SIZES = {"zero_probability": (0.2, 0.7), "slant": (-3.0, 2.0)}
"""Of parameters; of those that are not here, 0.6 and 7."""


def made(family: str, eta: torch.Tensor, parameters: Mapping[str, torch.Tensor]) -> Any:
    own = FAMILIES[family]
    return own.distribution(Predicted(eta, own.links[0], parameters, quantile=0.8))


def parameters_of(family: str, which: int) -> dict[str, float]:
    return {p.name: SIZES.get(p.name, (0.6, 7.0))[which] for p in FAMILIES[family].parameters}


def test_every_family_of_one_number_has_tails_and_a_law() -> None:
    numbers = {family.name for family in FAMILIES.values() if family.takes in VALUES}
    assert set(LAWS) == numbers
    assert all(FAMILIES[name].tails is not None for name in numbers)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("family", LAWS)
def test_tails_and_their_slopes_are_those_of_scipy(family: str, which: int) -> None:
    """Both tails, by the linear predictor and every parameter."""
    y, own = np.array(VALUES[FAMILIES[family].takes]), FAMILIES[family]
    given = {"eta": 0.4, **parameters_of(family, which)}
    at = {name: torch.full((len(y),), value, requires_grad=True) for name, value in given.items()}
    assert own.tails is not None
    found = own.tails(made(family, at["eta"], at), torch.tensor(y))
    for side, tail in zip(("logcdf", "logsf"), found, strict=True):

        def wanted(name: str = "eta", step: float = 0.0, side: str = side) -> Any:
            values = given | {name: given[name] + step}
            return getattr(LAWS[family](values["eta"], values), side)(y)

        # Where SciPy has the tail of a probability near one by a difference, its digits are few.
        np.testing.assert_allclose(tail.detach(), wanted(), rtol=CHECKED.values, atol=1e-9)
        slopes = torch.autograd.grad(tail.sum(), [*at.values()], retain_graph=True)
        for name, slope in zip(given, slopes, strict=True):
            step = CHECKED.step * abs(given[name])
            rise = wanted(name, step) - wanted(name, -step)
            np.testing.assert_allclose(
                slope, rise / (2 * step), rtol=CHECKED.slopes, atol=CHECKED.slopes,
                err_msg=f"{side} by {name}",
            )  # fmt: skip


def test_a_probability_between_two_values_keeps_its_digits_in_both_tails() -> None:
    """By symmetry it is the same on either side, also where one less the other is zero."""
    tails = FAMILIES["normal"].tails
    assert tails is not None
    fn = torch.distributions.Normal(torch.zeros(3), 1.0)
    low, high = torch.tensor([-30.0, 20.0, -1.0]), torch.tensor([-20.0, 30.0, 2.0])
    found = log_between(tails(fn, low), tails(fn, high))
    far, near = stats.norm.logcdf(-20), np.log(stats.norm.cdf(2) - stats.norm.cdf(-1))
    np.testing.assert_allclose(found, [far, far, near], rtol=1e-12)


@pytest.mark.parametrize("family", LAWS)
def test_a_truncated_density_is_the_whole_one_divided_by_the_probability(family: str) -> None:
    """Of rows with both limits, one of them, none, and a value beyond."""
    takes, given = FAMILIES[family].takes, parameters_of(family, 0)
    _, low, value, high, beyond = VALUES[takes]
    half = 0.5 * (takes == "count")
    lower = torch.tensor([low - half, low - half, -torch.inf, -torch.inf, low - half])
    upper = torch.tensor([high + half, torch.inf, high + half, torch.inf, high + half])
    y = torch.tensor([value] * 4 + [beyond])
    at = {name: torch.tensor(size) for name, size in given.items()}
    eta = torch.full((5,), 0.4, requires_grad=True)
    fn = made(family, eta, at)
    tails = FAMILIES[family].tails
    assert tails is not None
    found = Truncated(fn, tails, lower, upper).log_prob(y)
    law = LAWS[family](0.4, given)
    below, above = law.cdf(low - 2 * half), 1 - law.cdf(high)
    inside = np.log([1 - below - above, 1 - below, 1 - above, 1])
    whole = fn.log_prob(y).detach().numpy()[:4]
    np.testing.assert_allclose(found[:4].detach(), whole - inside, rtol=CHECKED.values)
    assert float(found[4].detach()) == -np.inf
    (slope,) = torch.autograd.grad(found[:4].sum(), eta)
    assert slope.isfinite().all()


@pytest.mark.parametrize(
    ("family", "lower", "upper"),
    [
        ("normal", -0.5, 2.0),
        ("normal", 6.0, np.inf),
        ("normal", -np.inf, -6.0),
        ("gamma", 5.0, 9.0),
        ("beta", 0.99, 1.0),
    ],
)
def test_draws_within_limits_have_their_law(family: str, lower: float, upper: float) -> None:
    """Also far out, where one less a probability has no digits."""
    given = {"sigma": 0.9, "shape": 7.0, "precision": 7.0}
    fn = made(family, torch.zeros(1), {name: torch.tensor(v) for name, v in given.items()})
    limits = torch.tensor([lower]), torch.tensor([upper])
    tails = FAMILIES[family].tails
    assert tails is not None
    drawn = Truncated(fn, tails, *limits).sample((CHECKED.draws,))[:, 0].numpy()
    law = LAWS[family](0.0, given)
    assert drawn.min() >= lower
    assert drawn.max() <= upper
    if lower > 0:  # in the upper tail, whose probabilities have digits
        shares = (law.sf(drawn) - law.sf(upper)) / (law.sf(lower) - law.sf(upper))
    else:
        shares = (law.cdf(drawn) - law.cdf(lower)) / (law.cdf(upper) - law.cdf(lower))
    assert stats.kstest(shares, "uniform").pvalue > 1e-3


def test_counts_far_out_have_their_probabilities() -> None:
    """Of a Poisson with the mean one, those of eight and more: one in a hundred thousand."""
    fn = made("poisson", torch.zeros(1), {})
    tails = FAMILIES["poisson"].tails
    assert tails is not None
    limits = torch.full((1,), 7.5), torch.full((1,), torch.inf)
    drawn = Truncated(fn, tails, *limits).sample((CHECKED.draws,))[:, 0].numpy()
    counts = np.array([(drawn == k).sum() for k in (8, 9, 10)])
    law = stats.poisson(1)
    wanted = CHECKED.draws * law.pmf([8, 9, 10]) / law.sf(7)
    assert (np.abs(counts - wanted) < 4 * np.sqrt(wanted)).all()
    assert set(np.unique(drawn)) <= {*range(8, 40)}
