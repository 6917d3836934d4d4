"""The families of a regression: what the response is, given its linear predictor.

A family is one entry here. `--family`, its messages, the table of the model's page and the tests
against references follow from the entries.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from elbowroom.models import _tails
from elbowroom.models._distributions import (
    Hurdle,
    InverseGaussian,
    PoissonOfLog,
    SkewNormal,
    WeibullOfMean,
    log_ndtr,
    log_rest,
)

LEAST = 1e-8
"""Added to the overdispersion: below it, the logarithm of the probability loses its digits."""
LARGEST_CLOGLOG = 50.0
"""Of a linear predictor: beyond, the probability is one, or its logit is the predictor."""


@dataclass(frozen=True)
class Link:
    """How the linear predictor and the response go together.

    Attributes:
        formula: For the table of families.
        scaled: Whether the linear predictor has the units of the response (or of its logarithm),
            so that the defaults of priors are in its standard deviations; otherwise they are in
            units of one.
    """

    formula: str
    scaled: bool = False


LINKS: dict[str, Link] = {
    "identity": Link("mean = eta", scaled=True),
    "log": Link("mean = exp(eta)"),
    "logit": Link("probability = 1 / (1 + exp(-eta))"),
    "probit": Link("probability = Phi(eta)"),
    "cloglog": Link("probability = 1 - exp(-exp(eta))"),
    "softmax": Link("probabilities = exp(eta) / sum(exp(eta))"),
}
"""The links, by name."""


@dataclass(frozen=True)
class Takes:
    """The numbers that a response may consist of.

    Attributes:
        words: In words.
        holds: Which of some numbers are such.
    """

    words: str
    holds: Callable[[Tensor], Tensor]


def _whole(y: Tensor) -> Tensor:
    return (y >= 0) & (y == y.round())


NUMBERS: dict[str, Takes] = {
    "binary": Takes("0 and 1, or two levels", lambda y: (y == 0) | (y == 1)),
    "share": Takes("numbers between 0 and 1, without the ends", lambda y: (y > 0) & (y < 1)),
    "count": Takes("counts: 0, 1, 2, ...", _whole),
    "positive": Takes("numbers above 0", lambda y: y > 0),
    "number": Takes("numbers", lambda y: torch.ones_like(y, dtype=torch.bool)),
    "trials": Takes("successes of trials, as p(successes, trials)", _whole),
    "ordered": Takes("three or more levels in an order", _whole),
    "class": Takes("three or more classes", _whole),
}
"""Kinds of responses, the special ones first."""


@dataclass(frozen=True)
class Parameter:
    """A parameter of a family beside its mean, which all rows share.

    Attributes:
        name: As it is reported.
        prior: The default, as `elbowroom.models._priors` reads it.
        unit: What the default's numbers are in: "spread", the sd of the response (of its
            logarithm, for `lognormal`), "mean", its mean, or nothing.
    """

    name: str
    prior: str
    unit: str = ""

    @property
    def site(self) -> str:
        """The latent site: that of the value divided by its unit, where it has one."""
        return f"standardised_{self.name}" if self.unit else self.name


@dataclass(frozen=True)
class Predicted:
    """What a family makes a distribution of, a number for each row.

    Attributes:
        eta: The linear predictor, (rows,); of each class but the first, (rows, classes - 1).
        link: Its name.
        parameters: The family's own, each ().
        trials: Of each row, (rows,).
        quantile: Which quantile `quantile` predicts.
    """

    eta: Tensor
    link: str
    parameters: Mapping[str, Tensor]
    trials: Tensor | None = None
    quantile: float = 0.5

    @property
    def logits(self) -> Tensor:
        """Of the probability that the link gives, in digits that last, (rows,)."""
        if self.link == "probit":
            return log_ndtr(self.eta) - log_ndtr(-self.eta)
        if self.link == "cloglog":
            hazard = self.eta.clamp(-LARGEST_CLOGLOG, LARGEST_CLOGLOG).exp()
            logits = torch.log(-torch.expm1(-hazard)) + hazard
            return torch.where(self.eta < -LARGEST_CLOGLOG, self.eta, logits)
        return self.eta

    def shares(self, precision: Tensor) -> tuple[Tensor, Tensor]:
        """The parameters of a beta distribution with the link's mean, each (rows,)."""
        logits = self.logits
        tiny = torch.finfo(logits.dtype).tiny
        parts = (precision * logsigmoid(sign * logits).exp() for sign in (1, -1))
        first, second = (each.clamp_min(tiny) for each in parts)
        return first, second

    def __getitem__(self, name: str) -> Tensor:
        return self.parameters[name]


@dataclass(frozen=True)
class Family:
    """A family of distributions of the response.

    Attributes:
        name: On the command line.
        formula: Of a response y, for the table of families.
        takes: A name in `NUMBERS`.
        links: Names in `LINKS`, the default first.
        distribution: Of the rows, given what is predicted.
        parameters: Beside the mean.
        logarithm: Whether the linear predictor has the units of the response's logarithm.
        tails: The probabilities of censored and truncated rows; None for levels, classes and
            successes of trials.
    """

    name: str
    formula: str
    takes: str
    links: tuple[str, ...]
    distribution: Callable[[Predicted], Any]
    parameters: tuple[Parameter, ...] = ()
    logarithm: bool = False
    tails: _tails.Tails | None = None

    @property
    def levels(self) -> bool:
        """Whether the response is one of several levels, with thresholds between them."""
        return self.takes == "ordered"

    @property
    def classes(self) -> bool:
        """Whether the response is one of several classes, with a linear predictor for each."""
        return self.takes == "class"

    @property
    def several(self) -> str:
        """What a response is one of, as `elbowroom.models._left.form_of_levels` has it."""
        return {"ordered": "levels", "class": "classes"}.get(self.takes, "")

    @property
    def of_probability(self) -> bool:
        """Whether a prediction of a new row is its probability rather than a draw."""
        return self.takes == "binary"


# Levels


def thresholds_of(shares: Tensor, link: str) -> Tensor:
    """Where a latent number passes from one level to the next, (levels - 1,).

    Args:
        shares: The probabilities of the levels where the linear predictor is zero, (levels,).
        link: Whose inverse is the latent number's distribution function.

    Example:
        >>> thresholds_of(torch.tensor([0.5, 0.25, 0.25]), "logit")
        tensor([0.0000, 1.0986])
    """
    below = shares.cumsum(-1)[..., :-1]
    above = shares.flip(-1).cumsum(-1).flip(-1)[..., 1:]
    if link == "logit":
        return below.log() - above.log()
    low = below < above
    return torch.where(low, torch.special.ndtri(torch.where(low, below, 0.5)),
                       -torch.special.ndtri(torch.where(low, 0.5, above)))  # fmt: skip


def _ordinal(of: Predicted) -> Any:
    """The probabilities of levels, from one threshold to the next."""
    ends = of["thresholds"] - of.eta.unsqueeze(-1)  # (rows, levels - 1)
    log_below = log_ndtr if of.link == "probit" else logsigmoid
    upper, lower = ends[..., 1:], ends[..., :-1]
    if of.link == "probit":
        # In the tail where the two probabilities are small, and their digits last.
        flip = upper + lower > 0
        upper, lower = torch.where(flip, -lower, upper), torch.where(flip, -upper, lower)
        between = log_ndtr(upper) + log_rest(log_ndtr(lower) - log_ndtr(upper))
    else:
        between = logsigmoid(upper) + logsigmoid(-lower) + log_rest(lower - upper)
    parts = [log_below(ends[..., :1]), between, log_below(-ends[..., -1:])]
    return dist.Categorical(logits=torch.cat(parts, -1))


def _categorical(of: Predicted) -> Any:
    """The probabilities of classes, of which the first has the linear predictor zero."""
    return dist.Categorical(logits=torch.cat([torch.zeros_like(of.eta[..., :1]), of.eta], -1))


# Distributions


def _quantile(of: Predicted) -> Any:
    """Two exponential sides: below, of the scale sigma / (1 - q), above, of sigma / q."""
    q = of.quantile
    return dist.AsymmetricLaplace(
        of.eta, of["sigma"] / math.sqrt(q * (1 - q)), torch.tensor(math.sqrt(q / (1 - q)))
    )


def _poisson(of: Predicted) -> Any:
    return PoissonOfLog(of.eta)


def _negative_binomial(of: Predicted) -> Any:
    overdispersion = of["overdispersion"] + LEAST
    return dist.NegativeBinomial(1 / overdispersion, logits=of.eta + overdispersion.log())


def _zero_inflated(base: Callable[[Predicted], Any], of: Predicted) -> Any:
    logits = of["zero_probability"].logit()
    return dist.ZeroInflatedDistribution(base(of), gate_logits=logits.expand(of.eta.shape))


def _hurdle(base: Callable[[Predicted], Any], of: Predicted) -> Any:
    return Hurdle(base(of), of["zero_probability"])


def _binomial(of: Predicted) -> Any:
    assert of.trials is not None
    return dist.Binomial(of.trials, logits=of.logits)


def _beta_binomial(of: Predicted) -> Any:
    return dist.BetaBinomial(*of.shares(of["precision"]), total_count=of.trials)


SIGMA = Parameter("sigma", "exponential(1)", "spread")
SHAPE = Parameter("shape", "inverse_gamma(0.4, 0.3)")
OVERDISPERSION = Parameter("overdispersion", "exponential(1)")
PRECISION = Parameter("precision", "inverse_gamma(0.4, 0.3)")
ZEROS = Parameter("zero_probability", "beta(1, 1)")
PROBABILITY_LINKS = ("logit", "probit", "cloglog")


_COUNTS: tuple[tuple[str, Any, tuple[Parameter, ...], _tails.Tails], ...] = (
    ("poisson", _poisson, (), _tails.of_poisson),
    ("negative_binomial", _negative_binomial, (OVERDISPERSION,), _tails.of_negative_binomial),
)
_ENTRIES = (
    Family(
        "normal", "y ~ Normal(mean, sigma)", "number", ("identity",),
        lambda of: dist.Normal(of.eta, of["sigma"]), (SIGMA,), tails=_tails.of_normal,
    ),
    Family(
        "student_t", "y ~ StudentT(nu, mean, sigma)", "number", ("identity",),
        lambda of: dist.StudentT(of["nu"], of.eta, of["sigma"]),
        (SIGMA, Parameter("nu", "gamma(2, 0.1)")), tails=_tails.of_student_t,
    ),
    Family(
        "skew_normal", "y ~ SkewNormal(mean, sd sigma, slant)", "number", ("identity",),
        lambda of: SkewNormal(of.eta, of["sigma"], of["slant"]),
        (SIGMA, Parameter("slant", "normal(0, 4)")), tails=_tails.of_skew_normal,
    ),
    Family(
        "laplace", "y ~ Laplace(mean, sigma)", "number", ("identity",),
        lambda of: dist.Laplace(of.eta, of["sigma"]), (SIGMA,), tails=_tails.of_laplace,
    ),
    Family(
        "quantile", "y ~ AsymmetricLaplace(quantile, sigma)", "number", ("identity",),
        _quantile, (SIGMA,), tails=_tails.of_asymmetric_laplace,
    ),
    Family(
        "bernoulli", "y ~ Bernoulli(probability)", "binary", PROBABILITY_LINKS,
        lambda of: dist.Bernoulli(logits=of.logits),
    ),
    Family(
        "binomial", "successes ~ Binomial(trials, probability)", "trials", PROBABILITY_LINKS,
        _binomial,
    ),
    Family(
        "beta_binomial", "successes ~ Binomial(trials, Beta(mean probability, precision))",
        "trials", PROBABILITY_LINKS, _beta_binomial, (PRECISION,),
    ),
    Family(
        "poisson", "y ~ Poisson(mean)", "count", ("log",), _poisson, tails=_tails.of_poisson
    ),
    Family(
        "negative_binomial",
        "y ~ NegativeBinomial(mean, variance mean + overdispersion * mean²)", "count", ("log",),
        _negative_binomial, (OVERDISPERSION,), tails=_tails.of_negative_binomial,
    ),
    *(
        Family(
            f"zero_inflated_{name}", f"y = 0 with zero_probability, otherwise y ~ {name}",
            "count", ("log",), partial(_zero_inflated, base), (*parameters, ZEROS),
            tails=_tails.inflated(tails),
        )
        for name, base, parameters, tails in _COUNTS
    ),
    *(
        Family(
            f"hurdle_{name}", f"y = 0 with zero_probability, otherwise y ~ {name} without 0",
            "count", ("log",), partial(_hurdle, base), (*parameters, ZEROS),
            tails=_tails.hurdle(tails),
        )
        for name, base, parameters, tails in _COUNTS
    ),
    Family(
        "gamma", "y ~ Gamma(mean, shape)", "positive", ("log",),
        lambda of: dist.Gamma(of["shape"].expand(of.eta.shape), of["shape"] * (-of.eta).exp()),
        (SHAPE,), tails=_tails.of_gamma,
    ),
    Family(
        "lognormal", "log(y) ~ Normal(mean, sigma)", "positive", ("identity",),
        lambda of: dist.LogNormal(of.eta, of["sigma"]), (SIGMA,), logarithm=True,
        tails=_tails.of_lognormal,
    ),
    Family(
        "exponential", "y ~ Exponential(mean)", "positive", ("log",),
        lambda of: dist.Exponential((-of.eta).exp()), tails=_tails.of_exponential,
    ),
    Family(
        "weibull", "y ~ Weibull(mean, shape)", "positive", ("log",),
        lambda of: WeibullOfMean(of.eta, of["shape"]), (SHAPE,), tails=_tails.of_weibull,
    ),
    Family(
        "inverse_gaussian", "y ~ InverseGaussian(mean, variance mean³ / shape)", "positive",
        ("log",), lambda of: InverseGaussian(of.eta, of["shape"]),
        (Parameter("shape", "inverse_gamma(0.4, 0.3)", "mean"),),
        tails=_tails.of_inverse_gaussian,
    ),
    Family(
        "beta", "y ~ Beta(mean probability, precision)", "share", PROBABILITY_LINKS,
        lambda of: dist.Beta(*of.shares(of["precision"])), (PRECISION,), tails=_tails.of_beta,
    ),
    Family(
        "ordinal", "P(y ≤ level) = probability at thresholds[level] - eta", "ordered",
        ("logit", "probit"), _ordinal,
    ),
    Family(
        "categorical", "P(y = class) = exp(eta[class]) / sum(exp(eta)), eta[first class] = 0",
        "class", ("softmax",), _categorical,
    ),
)  # fmt: skip

FAMILIES: dict[str, Family] = {family.name: family for family in _ENTRIES}
"""The families by name."""


def families_for(response: Tensor, takes: str = "") -> list[str]:
    """The families that take a response: those of the most special kind that all its numbers have.

    Args:
        response: The numbers.
        takes: The kind, where it is known.

    Example:
        >>> families_for(torch.tensor([0.0, 3.0, 1.0]))[:2]
        ['poisson', 'negative_binomial']
    """
    for name, kind in NUMBERS.items():
        if name == takes or (not takes and bool(kind.holds(response).all())):
            return [family.name for family in FAMILIES.values() if family.takes == name]
    return []
