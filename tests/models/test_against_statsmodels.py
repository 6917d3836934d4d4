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
    formula = f"{left} ~ {' + '.join(columns)}{more}"
    fit = er.fit("bayesian_regression", data, formula=formula, priors=WIDE, seed=1, **options)
    assert fit.verdict.trusted, str(fit.verdict)
    found = fit.summary()
    names = {"intercept": "const", **{f"coefficients[{name}]": name for name in columns}}
    for own, theirs in names.items():
        shift = (found.loc[own, "mean"] - wanted.params[theirs]) / wanted.bse[theirs]
        assert abs(shift) < TOLERANCE, own
        assert found.loc[own, "sd"] / wanted.bse[theirs] == pytest.approx(1, abs=TOLERANCE), own


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
