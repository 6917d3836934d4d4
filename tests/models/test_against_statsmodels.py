"""Regressions with wide priors beside statsmodels' generalised linear models, on its own tables."""

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest

import elbowroom as er

with warnings.catch_warnings():  # of libraries that statsmodels imports
    warnings.simplefilter("ignore")
    import statsmodels.api as sm
    from statsmodels.miscmodels.ordinal_model import OrderedModel
    from statsmodels.othermod.betareg import BetaModel

TOLERANCE = 0.1
"""In standard errors."""
WIDE = {"coefficients": "normal(0, 1000)", "intercept": "normal(0, 1000)"}


def table(name: str, rows: int | None = None) -> pd.DataFrame:
    data = getattr(sm.datasets, name).load_pandas().data
    return data if rows is None else data.sample(rows, random_state=0).reset_index(drop=True)


def compare(
    data: pd.DataFrame, left: str, columns: list[str], wanted: Any, more: str = "", **options: Any
) -> None:
    """The means and sds of coefficients beside estimates and standard errors."""
    names = {"intercept": "const", **{f"coefficients[{name}]": name for name in columns}}
    beside(
        data, f"{left} ~ {' + '.join(columns)}{more}", names, wanted.params, wanted.bse, **options
    )


def beside(
    data: pd.DataFrame, formula: str, names: dict[str, Any], estimates: Any, errors: Any,
    times: int = 1, sds: bool = True, **options: Any,
) -> None:  # fmt: skip
    """The same of numbers that statsmodels names in its own way.

    Args:
        data: The table.
        formula: Ours.
        names: Statsmodels' names by ours.
        estimates: By statsmodels' names.
        errors: Their standard errors.
        times: How often each row counts, where an estimate is not the mean of a posterior of so few
            rows.
        sds: Whether standard errors are those of the same density, which shrink with `times`.
        **options: Of the model.
    """
    priors = {name: prior for name, prior in WIDE.items() if options.get("family") != "ordinal"
              or name != "intercept"}  # fmt: skip
    fit = er.fit(
        "bayesian_regression", data.assign(times=times), formula=formula, priors=priors, seed=1,
        weights=None if times == 1 else "times", **options,
    )  # fmt: skip
    assert fit.verdict.trusted, str(fit.verdict)
    found = fit.summary()
    for own, theirs in names.items():
        error = errors[theirs] / (times**0.5 if sds else 1)
        assert abs(found.loc[own, "mean"] - estimates[theirs]) < TOLERANCE * error, own
        assert not sds or found.loc[own, "sd"] / error == pytest.approx(1, abs=TOLERANCE), own


def fitted(y: Any, data: pd.DataFrame, columns: list[str], family: Any, **more: Any) -> Any:
    return sm.GLM(y, sm.add_constant(data[columns]).astype(float), family=family, **more).fit()


@pytest.mark.parametrize("link", ["logit", "probit"])
def test_a_logistic_regression(link: str) -> None:
    """Whether there was an affair, in a survey (Fair, 1978)."""
    data = table("fair", 2500)
    data["any"] = (data["affairs"] > 0).astype(int)
    columns = ["age", "yrs_married", "religious", "rate_marriage"]
    of = sm.families.links.Logit() if link == "logit" else sm.families.links.Probit()
    wanted = fitted(data["any"], data, columns, sm.families.Binomial(of))
    compare(data, "any", columns, wanted, family="bernoulli", link=link)


def test_a_binomial_regression() -> None:
    """Pupils above the median, by school district (star98)."""
    data = table("star98")
    data["all"] = data["NABOVE"] + data["NBELOW"]
    columns = ["LOWINC", "PERASIAN", "PERBLACK", "PERHISP", "PCTCHRT"]
    wanted = fitted(data[["NABOVE", "NBELOW"]], data, columns, sm.families.Binomial())
    compare(data, "p(NABOVE, all)", columns, wanted)


def test_a_poisson_regression_with_an_offset() -> None:
    """Visits to a physician (RAND health insurance experiment)."""
    data = table("randhie", 2500)
    data["years"] = np.random.default_rng(0).uniform(0.5, 2, len(data))
    columns = ["lncoins", "idp", "lpi", "fmde", "physlm"]
    offset = np.log(data["years"])
    wanted = fitted(data["mdvis"], data, columns, sm.families.Poisson(), offset=offset)
    compare(data, "mdvis", columns, wanted, " + offset(log(years))", family="poisson")


def test_a_gamma_regression() -> None:
    """Votes for a Scottish parliament, by district; the sds allow for an unknown shape."""
    data = table("scotland")
    columns = [name for name in data.columns if name != "YES"]
    family = sm.families.Gamma(sm.families.links.Log())
    wanted = fitted(data["YES"], data, columns, family)
    compare(data, "YES", columns, wanted, family="gamma")


def test_a_normal_regression() -> None:
    """Murders by state."""
    data = table("statecrime")
    columns = ["hs_grad", "poverty", "single"]
    wanted = sm.OLS(data["murder"], sm.add_constant(data[columns])).fit()
    compare(data, "murder", columns, wanted)


def test_a_negative_binomial_regression() -> None:
    data = table("randhie", 2500)
    columns = ["lncoins", "idp", "lpi", "fmde", "physlm"]
    x = sm.add_constant(data[columns]).astype(float)
    wanted = sm.NegativeBinomial(data["mdvis"], x).fit(disp=0, maxiter=200)
    names = {"overdispersion": "alpha", "intercept": "const"}
    names |= {f"coefficients[{name}]": name for name in columns}
    formula = f"mdvis ~ {' + '.join(columns)}"
    beside(data, formula, names, wanted.params, wanted.bse, 4, family="negative_binomial")


def test_a_zero_inflated_poisson_regression() -> None:
    data = table("randhie", 2500)
    columns = ["lncoins", "idp", "physlm"]
    x = sm.add_constant(data[columns]).astype(float)
    wanted = sm.ZeroInflatedPoisson(data["mdvis"], x).fit(disp=0, method="bfgs", maxiter=500)
    compare(data, "mdvis", columns, wanted, family="zero_inflated_poisson")


def test_a_beta_regression() -> None:
    """The share of pupils above the median, by school district."""
    data = table("star98")
    data["share"] = data["NABOVE"] / (data["NABOVE"] + data["NBELOW"])
    columns = ["LOWINC", "PERASIAN", "PERBLACK"]
    wanted = BetaModel(data["share"], sm.add_constant(data[columns])).fit(disp=0)
    compare(data, "share", columns, wanted, family="beta")


def test_a_median_regression() -> None:
    """Engel's households; the sds of an asymmetric Laplace density are no standard errors."""
    data = table("engel") / 100
    wanted = sm.QuantReg(data["foodexp"], sm.add_constant(data[["income"]])).fit(q=0.5)
    names = {"intercept": "const", "coefficients[income]": "income"}
    beside(
        data,
        "foodexp ~ income",
        names,
        wanted.params,
        wanted.bse,
        100,
        sds=False,
        family="quantile",
    )


def parties() -> tuple[pd.DataFrame, list[str]]:
    """The party that people identify with, in three classes (American National Election Study)."""
    data = table("anes96")
    data["party"] = np.array(["a", "b", "c"])[np.digitize(data["PID"], [2, 5])]
    return data, ["selfLR", "age", "educ"]


@pytest.mark.parametrize("link", ["logit", "probit"])
def test_an_ordinal_regression(link: str) -> None:
    data, columns = parties()
    ordered = pd.Series(pd.Categorical(data["party"], ordered=True))
    wanted = OrderedModel(ordered, data[columns], distr=link).fit(method="bfgs", disp=0)
    names = {f"coefficients[{name}]": name for name in columns}
    formula = f"party ~ {' + '.join(columns)}"
    beside(data, formula, names, wanted.params, wanted.bse, family="ordinal", link=link)


def test_a_categorical_regression() -> None:
    data, columns = parties()
    codes = data["party"].map({"a": 0, "b": 1, "c": 2})
    wanted = sm.MNLogit(codes, sm.add_constant(data[columns])).fit(disp=0)
    names = {}
    for k, level in enumerate("bc"):
        names[f"intercept[{level}]"] = ("const", k)
        names |= {f"coefficients[{level}, {name}]": (name, k) for name in columns}
    formula = f"party ~ {' + '.join(columns)}"
    estimates, errors = wanted.params.stack(), wanted.bse.stack()
    beside(data, formula, names, estimates, errors, 9, family="categorical")
