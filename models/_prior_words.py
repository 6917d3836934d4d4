"""The priors of a regression in words, in the units of the table."""

from collections.abc import Mapping, Sequence
from typing import Any

from elbowroom.models._families import FAMILIES, Family
from elbowroom.models._group_effects import CONCENTRATION
from elbowroom.models._priors import SIGMA_PRIOR, Prior
from elbowroom.models._shrinkage import R2D2, noise_of
from elbowroom.models._term_priors import CONJUGATE, PRIOR_SCALE, Priors

AT_MEANS = "where all predictors are at their means"
"""Of what a prior is that is not of the number as it is reported."""
USUAL = Prior("normal", (0.0, PRIOR_SCALE))
"""Of standardised coefficients."""


def priors_in_words(
    arguments: Mapping[str, Any], coords: Mapping[str, Sequence[Any]]
) -> dict[str, str]:
    """The prior of each quantity that is reported, such as normal(0, 10), by its name.

    Args:
        arguments: Of the model.
        coords: The labels of its dims.
    """
    family: Family = FAMILIES[arguments["family"]]
    own: Priors = arguments["term_priors"]
    unit = float(arguments["response_spread"])
    found: dict[str, str] = {}

    def usual(location: float, width: float) -> str:
        if arguments["conjugate"]:
            return f"normal({location:.6g}, {width:.6g} * sigma / sd(y))"
        return str(Prior("normal", (location, width)))

    if family.levels:
        found["thresholds"] = f"uniform shares of the levels {AT_MEANS}"
    elif own.intercept is not None:
        found["intercept"] = str(own.intercept.divided(1 / unit))
    elif arguments["has_intercept"]:
        level = float(arguments["response_centre"])
        found["intercept"] = f"{usual(level, PRIOR_SCALE * unit)} {AT_MEANS}"
    spreads = arguments["spread"].tolist()
    shrinkage = own.shrinkage
    if shrinkage is not None:
        found["R2"] = str(Prior("beta", shrinkage.of_share))
        noise = noise_of(family, arguments["link"], {p.name: p.name for p in family.parameters})
    for place, (name, spread) in enumerate(zip(coords["predictor"], spreads, strict=True)):
        given = own.coefficients[place].divided(spread / unit) if own.coefficients else None
        words = usual(0.0, PRIOR_SCALE * unit / spread) if given is None else str(given)
        if shrinkage is not None:
            sd = f"{1 / spread:.6g} * sigma" if noise == "sigma" else f"{noise * unit / spread:.6g}"
            words = f"normal(0, {sd} * sqrt(share * R2 / (1 - R2)))"
        found[f"coefficients[{name}]"] = words
    units = {"spread": unit, "mean": float(arguments.get("response_mean") or 1.0), "": 1.0}
    formulas = {each.name: each for each in arguments["parameter_formulas"]}
    for parameter in family.parameters:
        prior = own.of_parameter(parameter).divided(1 / units[parameter.unit])
        if arguments["conjugate"]:
            noise = Prior("inverse_gamma", (CONJUGATE.shape, CONJUGATE.scale))
            found[parameter.name] = f"{noise} of sigma² / var(y)"
        elif parameter.name in formulas:
            found[parameter.name] = f"{prior} {AT_MEANS}"
        else:
            found[parameter.name] = str(prior)
    found |= _of_formulas(arguments, own)
    scales = dict(own.scales)
    for smooth in arguments["smooths"]:
        for name, default in smooth.defaults().items():
            prior = scales.get(name, default)
            found[name] = str(prior.divided(1 / smooth.units(unit)[name]))
    for groups in arguments["groups"]:
        for effect, spread in zip(groups.names(), groups.spread, strict=True):
            prior = scales.get(f"{effect}_sigma", SIGMA_PRIOR).divided(spread / unit)
            found[f"{effect}_sigma"] = str(prior)
        if groups.correlated:
            found[f"{groups.factor}_correlation"] = f"lkj({CONCENTRATION:g})"
    return found


def own_priors(
    arguments: Mapping[str, Any], coords: Mapping[str, Sequence[Any]]
) -> tuple[str, ...]:
    """The quantities whose priors are not the default, by the names of `priors_in_words`.

    Args:
        arguments: Of the model.
        coords: The labels of its dims.
    """
    own: Priors = arguments["term_priors"]
    usual = {**arguments, "term_priors": Priors()}
    words, others = (priors_in_words(each, coords) for each in (arguments, usual))
    given = [name for name, text in words.items() if others.get(name) != text]
    if own.shrinkage is None:
        return tuple(given)
    shrunk = [name for name in given if name == "R2" or name.startswith("coefficients[")]
    chosen = ["R2"] if own.shrinkage != R2D2() else []
    return (*chosen, *(name for name in given if name not in shrunk))


def _of_formulas(arguments: Mapping[str, Any], own: Priors) -> dict[str, str]:
    """Of the coefficients of parameters' formulas."""
    found, place = {}, 0
    for formula in arguments["parameter_formulas"]:
        given = dict(own.formulas).get(formula.name)
        for k, name in enumerate(formula.columns):
            prior = USUAL if given is None else given[k]
            spread = float(arguments["parameter_spread"][place])
            found[f"{formula.coefficients}[{name}]"] = str(prior.divided(spread))
            place += 1
    return found
