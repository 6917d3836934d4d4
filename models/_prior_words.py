"""The priors of a regression in words, in the units of the table."""

from collections.abc import Mapping, Sequence
from typing import Any

from elbowroom.models._families import FAMILIES, Family
from elbowroom.models._group_effects import CONCENTRATION, SIGMA_PRIOR
from elbowroom.models._priors import Prior
from elbowroom.models._term_priors import PRIOR_SCALE, Priors

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
    width = PRIOR_SCALE * unit
    about = "" if not arguments["conjugate"] else " · sigma / sd(y)"
    if family.levels:
        found["thresholds"] = f"uniform shares of the levels {AT_MEANS}"
    elif arguments["has_intercept"]:
        usual = Prior("normal", (float(arguments["response_centre"]), width))
        found["intercept"] = f"{usual}{about} {AT_MEANS}"
        if own.intercept is not None:
            found["intercept"] = str(own.intercept.divided(1 / unit))
    spreads = arguments["spread"].tolist()
    for place, (name, spread) in enumerate(zip(coords["predictor"], spreads, strict=True)):
        prior = own.coefficients[place] if own.coefficients else USUAL
        found[f"coefficients[{name}]"] = f"{prior.divided(spread / unit)}{about}"
    units = {"spread": unit, "mean": float(arguments.get("response_mean") or 1.0), "": 1.0}
    formulas = {each.name: each for each in arguments["parameter_formulas"]}
    for parameter in family.parameters:
        prior = own.of_parameter(parameter).divided(1 / units[parameter.unit])
        if arguments["conjugate"]:
            found[parameter.name] = "inverse_gamma(0.5, 0.01) of sigma² / var(y)"
        elif parameter.name in formulas:
            found[parameter.name] = f"{prior} {AT_MEANS}"
        else:
            found[parameter.name] = str(prior)
    found |= _of_formulas(arguments, own)
    for groups in arguments["groups"]:
        given = dict(own.sigmas)
        for name, spread in zip(groups.names(), groups.spread, strict=True):
            prior = given.get(name, SIGMA_PRIOR).divided(spread / unit)
            found[f"{name}_sigma"] = str(prior)
        if groups.correlated:
            found[f"{groups.factor}_correlation"] = f"lkj({CONCENTRATION:g})"
    return found


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
