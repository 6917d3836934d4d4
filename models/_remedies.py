"""What to try where the checks of a regression's predictions see a misfit."""

from collections.abc import Mapping
from typing import Any

from elbowroom.models import Remedies
from elbowroom.models._families import FAMILIES

TAILS = {"normal": "student_t", "laplace": "student_t", "skew_normal": "student_t"}
POSITIVE = ("gamma", "lognormal", "weibull", "inverse_gaussian")
"""Families of numbers above 0, of which another may fit better."""
SURVIVAL = ("weibull", "lognormal", "exponential")
"""Those of times, which are named where rows are censored."""


def _curve(example: str) -> str:
    """What to try where residuals depend on a column."""
    return (
        f"a curve, such as {example}({{column}}) or poly({{column}}, 2) in the formula, or an "
        "interaction with {column}"
    )


def remedies(arguments: Mapping[str, Any]) -> Remedies:
    """What to try with a regression; see `elbowroom.models.Remedies`.

    Example:
        >>> remedies({"family": "poisson"}).words["dispersion"]
        '--family negative_binomial'
    """
    family = FAMILIES[arguments["family"]]
    links = ", or another --link" if len(family.links) > 1 else ""
    words = {
        "mean": _curve("bs" if family.classes or arguments.get("conjugate") else "s"),
        "mean of prediction": f"a curve or an interaction in the formula{links}",
        "calibration": f"a curve or an interaction in the formula{links}",
        **_shape(family.name, family.takes, arguments.get("status") is not None),
    }
    if family.parameters and not arguments.get("conjugate"):
        name = family.parameters[0].name
        words["spread"] = f"--parameter '{name} ~ {{column}}'"
        words["spread of prediction"] = f"--parameter '{name} ~ ...' with the predictors"
    quantile = arguments["quantile"] if family.name == "quantile" else None
    return Remedies(words, quantile)


def of_counts(arguments: Mapping[str, Any]) -> Remedies:
    """What to try with the model `negative_binomial`."""
    inflated = "bayesian_regression --family zero_inflated_negative_binomial"
    return Remedies({"mean": _curve("bs"), "zeros": inflated, "dispersion": inflated})


def _shape(name: str, takes: str, censored: bool) -> dict[str, str]:
    """Other families, by misfit."""
    if takes == "count":
        base = name.removeprefix("zero_inflated_").removeprefix("hurdle_")
        found = {"dispersion": name.replace("poisson", "negative_binomial")}
        if base == name:
            found["zeros"] = f"zero_inflated_{base}"
        if name == "negative_binomial":
            found["dispersion"] = found["zeros"]
        return _families({**found, "no zeros": f"hurdle_{base}"}, name)
    if name == "binomial":
        return _families({"dispersion": "beta_binomial", "zeros": "beta_binomial"}, name)
    if takes == "positive":
        known = SURVIVAL if censored else POSITIVE
        others = " or ".join(each for each in known if each != name)
        misfits = ["skewness", "tails", "survival"]
        if name == "exponential":  # whose sd is its mean
            misfits.append("noise")
        return dict.fromkeys(misfits, f"--family {others}")
    if takes == "number":
        positive = " or ".join(SURVIVAL[:2] if censored else POSITIVE[:2])
        found = {"tails": TAILS.get(name, name), "skewness": "skew_normal", "positive": positive}
        return {"survival": f"--family {positive}", **_families(found, name)}
    return {}


def _families(by_misfit: Mapping[str, str], own: str) -> dict[str, str]:
    """Those that are not the model's own."""
    return {misfit: f"--family {each}" for misfit, each in by_misfit.items() if each != own}
