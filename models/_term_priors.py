"""The priors of a regression's terms: which coefficient or parameter has which."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions.transforms import ReshapeTransform

from elbowroom.errors import OptionError, unknown
from elbowroom.models._families import Family, Parameter
from elbowroom.models._formula import Design
from elbowroom.models._priors import SUPPORTS, Prior, read_prior, read_priors, together
from elbowroom.models._shrinkage import R2D2

PRIOR_SCALE = 2.5
"""The prior standard deviation of the standardised intercept and coefficients."""
ALL = "coefficients"
"""What stands for every coefficient."""


@dataclass(frozen=True)
class ConjugatePriors:
    """The conjugate prior of the noise, in standard deviations of the response."""

    shape: float = 0.5
    """Of the inverse Gamma of its variance, which so counts for one row."""
    scale: float = 0.01
    """The square of that row's noise, by half: small, since the noise may be."""


CONJUGATE = ConjugatePriors()


@dataclass(frozen=True)
class Priors:
    """The priors that are not the defaults.

    Attributes:
        coefficients: Of the standardised coefficients, one for each column, or none at all.
        intercept: Of the intercept as it is reported, divided by the unit of the linear predictor.
        parameters: Of the family's parameters, divided by their units, by name.
        scales: Of the standard deviations of group effects and smooth terms, and of length scales,
            divided by their units, by name.
        formulas: Of the standardised coefficients of a parameter's formula, one for each column, by
            the parameter's name.
        shrinkage: Of all coefficients together.
    """

    coefficients: tuple[Prior, ...] = ()
    intercept: Prior | None = None
    parameters: tuple[tuple[str, Prior], ...] = ()
    scales: tuple[tuple[str, Prior], ...] = ()
    formulas: tuple[tuple[str, tuple[Prior, ...]], ...] = ()
    shrinkage: R2D2 | None = None

    def slopes(self, shape: tuple[int, ...], width: Any, noise: Any = 1.0) -> Tensor:
        """Samples the standardised coefficients, (columns,), or (classes - 1, columns).

        Args:
            shape: How many there are.
            width: The standard deviation of the default.
            noise: That of the noise, in units of the linear predictor.
        """
        if not shape[-1]:
            return torch.zeros(shape)
        if self.shrinkage is not None:
            return self.shrinkage.slopes(shape[-1], noise)
        fn: Any = dist.Normal(torch.zeros(shape), width).to_event(len(shape))
        if self.coefficients:
            every = self.coefficients * math.prod(shape[:-1])
            fn = together(every)
            if len(shape) > 1:
                fn = dist.TransformedDistribution(
                    fn, [ReshapeTransform(torch.Size([len(every)]), torch.Size(shape))]
                )
        return pyro.sample("standardised_coefficients", fn)

    def of_parameter(self, parameter: Parameter) -> Prior:
        """The prior of a parameter of the family, divided by its unit."""
        given = dict(self.parameters).get(parameter.name)
        return given or read_prior(parameter.prior, parameter.name)

    def sampled(self, parameters: Sequence[Parameter]) -> dict[str, Tensor]:
        """Samples parameters of the family, divided by their units, by name."""
        return {
            p.name: pyro.sample(p.site, self.of_parameter(p).distribution()) for p in parameters
        }

    def of_formula(self, name: str, usual: Any) -> Any:
        """The distribution of the standardised coefficients of a parameter's formula.

        Args:
            name: Of the parameter.
            usual: The default.
        """
        given = dict(self.formulas).get(name)
        return usual if given is None else together(given)


def priors_of(
    text: str,
    design: Design,
    family: Family,
    scaling: Mapping[str, Tensor],
    formulas: Mapping[str, Mapping[str, float]],
    shrinkage: R2D2 | None = None,
) -> Priors:
    """The priors that a user has written.

    Args:
        text: As `elbowroom.models._priors.read_priors` takes it.
        design: The columns.
        family: Its parameters.
        scaling: What predictors and response are divided by.
        formulas: Of the family's parameters that have one: what each column is divided by.
        shrinkage: The prior of all coefficients together, if there is one.

    Raises:
        OptionError: If a prior is of nothing that there is, or of the wrong kind for it.
    """
    given = read_priors(text)
    _check_shrinkage(shrinkage, given, design, family)
    of_columns: dict[str, Prior] = {}
    intercept, parameters, scales = None, {}, {}
    names = {each.name: each for each in family.parameters}
    has_intercept = design.has_intercept and not family.levels
    unit = float(scaling["response_spread"])
    units = design.units(unit)
    of_formulas: dict[str, dict[str, Prior]] = {}
    for name, prior in given.items():
        columns = _columns(name, design.columns)
        if columns:
            _check(name, prior, "real")
            of_columns = {**dict.fromkeys(columns, prior), **of_columns} if name == ALL else {
                **of_columns, **dict.fromkeys(columns, prior)}  # fmt: skip
        elif name == "intercept" and has_intercept:
            _check(name, prior, "real")
            intercept = prior.divided(unit)
        elif name in names:
            of = names[name].unit
            _check(name, prior, read_prior(names[name].prior, name).support)
            parameters[name] = prior.divided(float(scaling[f"response_{of}"])) if of else prior
        elif name in units:
            _check(name, prior, "positive")
            scales[name] = prior.divided(units[name])
        elif found := _of_formula(name, formulas):
            _check(name, prior, "real")
            own = of_formulas.setdefault(found[0], {})
            own |= {c: prior.divided(1 / formulas[found[0]][c]) for c in found[1]}
        else:
            there = ["intercept"] if has_intercept else []
            there += [*design.columns, *sorted(names), *([ALL] if design.columns else [])]
            there += units
            there += [f"{of}_{column}" for of, columns in formulas.items() for column in columns]
            raise OptionError(f"--prior '{name} ~ {prior}': {unknown('coefficient', name, there)}")
    coefficients: tuple[Prior, ...] = ()
    usual = Prior("normal", (0.0, PRIOR_SCALE))
    if of_columns:
        factors = (scaling["response_spread"] / scaling["spread"]).tolist()
        coefficients = tuple(
            of_columns[name].divided(factor) if name in of_columns else usual
            for name, factor in zip(design.columns, factors, strict=True)
        )
    several = tuple(
        (of, tuple(own.get(column, usual) for column in formulas[of]))
        for of, own in of_formulas.items()
    )
    return Priors(
        coefficients, intercept, tuple(parameters.items()), tuple(scales.items()), several,
        shrinkage,
    )  # fmt: skip


def _check_shrinkage(
    shrinkage: R2D2 | None, given: Mapping[str, Prior], design: Design, family: Family
) -> None:
    """Sees that a prior of all coefficients together is the only one of them."""
    if shrinkage is None:
        return
    if family.classes:
        raise OptionError(
            f"--priors {shrinkage.name} is of one linear predictor, and --family {family.name} has "
            "several; give --priors weak."
        )
    if not design.columns:
        raise OptionError(
            f"--priors {shrinkage.name} would have no effect: the formula has no predictor; leave "
            "it out."
        )
    for name, prior in given.items():
        if _columns(name, design.columns):
            raise OptionError(
                f"--prior '{name} ~ {prior}': --priors {shrinkage.name} is of all coefficients; "
                "leave out one of the two."
            )


def _of_formula(
    name: str, formulas: Mapping[str, Mapping[str, float]]
) -> tuple[str, list[str]] | None:
    """The parameter and the columns of its formula that a prior is of, such as sigma_x."""
    for of, columns in formulas.items():
        found = _columns(name.removeprefix(f"{of}_"), list(columns))
        if name.startswith(f"{of}_") and found:
            return of, found
    return None


def _columns(name: str, columns: Sequence[str]) -> list[str]:
    """The columns that a prior is of: one, those of a term with several, or all."""
    inner = name.removeprefix(f"{ALL}[").removesuffix("]") if name.startswith(f"{ALL}[") else name
    if inner in columns:
        return [inner]
    several = [column for column in columns if column.startswith(f"{inner}[")]
    return several or (list(columns) if name == ALL else [])


def _check(name: str, prior: Prior, support: str) -> None:
    """Sees that a prior has the support of what it is of."""
    if prior.support != support:
        instead = {
            "real": "normal(0, 10)", "positive": "half_normal(10)", "unit": "beta(1, 1)"
        }[support]  # fmt: skip
        raise OptionError(
            f"--prior '{name} ~ {prior}': {name} takes a prior of {SUPPORTS[support]}, and "
            f"{prior.kind} is one of {SUPPORTS[prior.support]}; write '{name} ~ {instead}', for "
            "example."
        )
