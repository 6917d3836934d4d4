"""Priors in words: what is read, what they are of, and what is refused."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from elbowroom.errors import OptionError
from elbowroom.models._priors import KINDS, OfSeveralKinds, Prior, read_prior, together
from elbowroom.models.bayesian_regression import Options, prepare
from elbowroom.options import make_options

RANDOM = np.random.default_rng(0)
TABLE = pd.DataFrame({"x": RANDOM.normal(size=30), "z": 50 * RANDOM.normal(size=30)})
TABLE["g"], TABLE["y"] = list("abc") * 10, 10 * RANDOM.normal(size=30)
OF: dict[str, Any] = {
    "normal": stats.norm(2, 3), "student_t": stats.t(2, 3, 4), "cauchy": stats.cauchy(2, 3),
    "laplace": stats.laplace(2, 3), "half_normal": stats.halfnorm(scale=2),
    "half_student_t": None, "half_cauchy": stats.halfcauchy(scale=2),
    "exponential": stats.expon(scale=1 / 2), "gamma": stats.gamma(2, scale=1 / 3),
    "inverse_gamma": stats.invgamma(2, scale=3), "lognormal": stats.lognorm(3, scale=np.exp(2)),
    "beta": stats.beta(2, 3),
}  # fmt: skip
"""Each kind with the numbers 2, 3, 4."""


def prior_of(name: str, **options: Any) -> Any:
    """The priors that a formula's terms have."""
    formula = options.pop("formula", "y ~ x + z + g")
    given = make_options(Options, {"formula": formula, "prior": name, **options})
    return prepare(TABLE, given).arguments["term_priors"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_has_the_density_of_scipy(kind: str) -> None:
    """And divided by a unit, that of the quotient."""
    prior = Prior(kind, (2.0, 3.0, 4.0)[: len(KINDS[kind].arguments)])
    at = torch.tensor([0.1, 0.6, 0.9])
    found = prior.distribution().log_prob(at)
    if kind == "half_student_t":
        expected = np.log(2 * stats.t.pdf(at.numpy(), 2, 0, 3))
    else:
        expected = OF[kind].logpdf(at.numpy())
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    if KINDS[kind].support != "unit":
        divided = prior.divided(10.0).distribution().log_prob(at / 10) - np.log(10)
        np.testing.assert_allclose(divided, found, rtol=1e-4)
    assert read_prior(str(prior), "") == prior


def test_a_vector_has_the_priors_of_its_numbers() -> None:
    priors = [read_prior(text, "") for text in ("normal(1, 2)", "cauchy(0, 1)", "normal(0, 3)")]
    at = torch.tensor([0.5, -1.0, 2.0])
    expected = sum(p.distribution().log_prob(v) for p, v in zip(priors, at, strict=True))
    found = together(priors)
    assert isinstance(found, OfSeveralKinds)
    torch.testing.assert_close(found.log_prob(at), torch.as_tensor(expected))
    torch.manual_seed(0)
    drawn = found.sample((4000,))
    assert abs(float(drawn[:, 0].mean()) - 1) < 4 * 2 / 4000**0.5
    assert abs(float(drawn[:, 1].median())) < 0.1
    assert abs(float(drawn[:, 2].std()) / 3 - 1) < 0.1


def test_a_name_is_of_a_column_a_term_all_coefficients_or_a_parameter() -> None:
    names = list(prepare(TABLE, Options(formula="y ~ x + z + g")).coords["predictor"])
    factor = TABLE["y"].std() / TABLE[["x", "z"]].std()
    found = prior_of("z ~ normal(0, 10), g ~ cauchy(0, 1), sigma ~ exponential(0.1)")
    of = dict(zip(names, found.coefficients, strict=True))
    assert of["x"] == Prior("normal", (0.0, 2.5))
    assert of["z"].numbers[1] == pytest.approx(10 / factor["z"])
    assert [of[name].kind for name in names] == ["normal", "normal", "cauchy", "cauchy"]
    assert dict(found.parameters)["sigma"].numbers[0] == pytest.approx(0.1 * TABLE["y"].std())
    for text in ("coefficients ~ cauchy(0, 1), x ~ normal(0, 1)",
                 "x ~ normal(0, 1), coefficients ~ cauchy(0, 1)"):  # fmt: skip
        kinds = [prior.kind for prior in prior_of(text).coefficients]
        assert kinds == ["normal", "cauchy", "cauchy", "cauchy"]
    assert prior_of("coefficients[g[b]] ~ cauchy(0, 1)").coefficients[2].kind == "cauchy"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("xx ~ normal(0, 1)", "no coefficient 'xx'; did you mean 'x'"),
        ("g[d] ~ normal(0, 1)", r"no coefficient 'g\[d\]'; did you mean 'g\["),
        ("nu ~ gamma(2, 0.1)", "no coefficient 'nu'"),
        ("x ~ normal(0, -1)", "the scale of normal is -1 and must be above 0"),
        ("x ~ normal(0, 0)", "the scale of normal is 0"),
        ("x ~ normal(0, inf)", "the scale of normal is inf"),
        ("x ~ normal(nan, 1)", "the location of normal is nan and must be a number"),
        ("x ~ normal(0, 1", "a parenthesis is not closed"),
        ("x ~ normal(0, 1))", "closed and was not opened"),
        ("x ~ norml(0, 1)", "did you mean 'normal'"),
        ("x ~ normal(0)", r"takes 2; write normal\(location, scale\)"),
        ("x ~ normal(0, wide)", "wide is no number"),
        ("x ~ 3", "'3' is no prior"),
        ("x normal(0, 1)", "write it as 'NAME ~"),
        ("~ normal(0, 1)", "write it as 'NAME ~"),
        ("x ~ normal(0, 1), x ~ normal(0, 2)", "'x' has two priors"),
        ("x ~ exponential(1)", "write 'x ~ normal"),
        ("sigma ~ normal(0, 1)", "write 'sigma ~ half_normal"),
        ("intercept ~ gamma(1, 1)", "write 'intercept ~ normal"),
    ],
)
def test_a_prior_that_cannot_be_is_refused(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        prior_of(text)


def test_a_formula_without_an_intercept_has_no_prior_of_it() -> None:
    with pytest.raises(OptionError, match="no coefficient 'intercept'"):
        prior_of("intercept ~ normal(0, 1)", formula="y ~ 0 + x")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior": "x ~ normal(0, 1)"}, "leave out --prior"),
        ({"family": "student_t"}, "leave out --family student_t"),
        ({"weights": "z"}, "leave out --weights"),
        ({"formula": "y ~ x + offset(z)"}, r"leave out offset\(\)"),
    ],
)
def test_conjugate_priors_go_with_nothing_else(options: dict[str, Any], message: str) -> None:
    given = {"formula": "y ~ x", "priors": "conjugate", **options}
    with pytest.raises(OptionError, match=message):
        prepare(TABLE, Options(**given))
