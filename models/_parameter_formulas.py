"""Formulas of a family's parameters, such as `sigma ~ x`: each row has its own parameter then."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from elbowroom.data.tables import numeric_columns
from elbowroom.errors import OptionError, unknown
from elbowroom.models._columns import cells
from elbowroom.models._families import Family, Parameter
from elbowroom.models._formula_text import columns_named
from elbowroom.models._priors import parts_of, read_prior
from elbowroom.models._smooths import refuse_smooths
from elbowroom.models._term_priors import PRIOR_SCALE, Priors

PARAMETER_LINKS = {"real": "identity", "positive": "log", "unit": "logit"}
"""The link of a parameter, by the support of its prior."""
EXAMPLE = "write it as 'sigma ~ x'."
NO_SMOOTHS = "formulas of parameters have none: write poly(x, 3) or bs(x, df=5)"


@dataclass(frozen=True)
class ParameterFormula:
    """What a parameter of a family depends on.

    Attributes:
        name: Of the parameter.
        columns: Of its design matrix, the intercept aside.
    """

    name: str
    columns: tuple[str, ...]

    @property
    def dim(self) -> str:
        """Of its coefficients."""
        return f"{self.name}_predictor"

    @property
    def coefficients(self) -> str:
        """The site of its coefficients, in the units of the columns."""
        return f"{self.name}_coefficients"

    @property
    def intercept(self) -> str:
        """The site of its linear predictor where all columns are zero."""
        return f"{self.name}_intercept"

    @property
    def hidden(self) -> tuple[str, str, str]:
        """Latent sites that the user sees through the intercept and the coefficients."""
        return self.standardised, self.name, f"standardised_{self.name}"

    @property
    def standardised(self) -> str:
        """The latent site of its coefficients, of standardised columns."""
        return f"standardised_{self.name}_coefficients"


@dataclass(frozen=True)
class ParameterRows:
    """The formulas of parameters, and their columns beside each other.

    Attributes:
        formulas: Those that there are.
        predictors: (rows, columns of all formulas), in the user's units.
    """

    formulas: tuple[ParameterFormula, ...] = ()
    predictors: Tensor | None = None

    def scaling(self) -> dict[str, Tensor]:
        """What the columns are centred and divided by."""
        if self.predictors is None:
            return {}
        means, sds = self.predictors.mean(0), self.predictors.std(0)
        return {"parameter_centre": means, "parameter_spread": sds}

    def spreads(self) -> dict[str, dict[str, float]]:
        """The standard deviation of each column, by parameter and column."""
        found: dict[str, dict[str, float]] = {}
        sds = iter(self.scaling().get("parameter_spread", torch.zeros(0)).tolist())
        for each in self.formulas:
            found[each.name] = dict(zip(each.columns, sds, strict=False))
        return found


def read_parameters(
    text: str | None,
    family: Family,
    columns_of: Callable[[str, str], tuple[pd.DataFrame, pd.DataFrame]],
    new: bool,
    response: Sequence[str],
) -> ParameterRows:
    """The design matrices of a family's parameters.

    Args:
        text: Formulas, separated by commas, such as "sigma ~ x"; None if there are none.
        family: Whose parameters they are.
        columns_of: What formulae makes of a right side and its parameter: of the fitted rows, and
            of those wanted.
        new: Whether the latter are new ones.
        response: The columns of the response.

    Raises:
        DataError: If a column cannot be used; it is named.
        OptionError: If a formula cannot be read, or is of no parameter of the family.
    """
    names = [each.name for each in family.parameters]
    formulas: list[ParameterFormula] = []
    parts: list[Tensor] = []
    for part in parts_of(text or "", "--parameter", EXAMPLE):
        name, tilde, inside = part.partition("~")
        name, inside = name.strip(), inside.strip()
        if not tilde or not name or not inside:
            raise OptionError(f"--parameter '{part}': {EXAMPLE}")
        refuse_smooths(inside, "--parameter", NO_SMOOTHS)
        if not names:
            raise OptionError(
                f"--parameter '{part}': the family {family.name} has no parameter beside its "
                "mean; leave it out, or give another --family."
            )
        if name not in names:
            raise OptionError(
                f"--parameter '{part}': {unknown(f'parameter of {family.name}', name, names)}"
            )
        if name in [each.name for each in formulas]:
            raise OptionError(f"--parameter: {name} has two formulas; join them by '+'.")
        for sign, what in (("|", "group effects"), ("offset(", "offsets")):
            if sign in inside:
                raise OptionError(
                    f"--parameter '{part}': formulas of parameters have no {what}; leave out the "
                    f"term with '{sign}'."
                )
        if predicted := columns_named([inside], pd.DataFrame(columns=list(response))):
            raise OptionError(
                f"--parameter '{part}': '{predicted[0]}' is the response, which a parameter cannot "
                "depend on; leave it out."
            )
        fitted, wanted = columns_of(inside, name)
        if "Intercept" not in fitted:
            raise OptionError(
                f"--parameter '{part}': the formula of a parameter has an intercept; leave out "
                "'0 +'."
            )
        if fitted.shape[1] == 1:
            raise OptionError(
                f"--parameter '{part}': every row has the same {name} without it; leave it out."
            )
        numeric_columns(fitted.drop(columns="Intercept"))
        wanted = numeric_columns(wanted.drop(columns="Intercept"), allow_constant=new)
        formulas.append(ParameterFormula(name, tuple(wanted.columns)))
        parts.append(cells(wanted).double())
    return ParameterRows(tuple(formulas), torch.cat(parts, 1) if parts else None)


@dataclass(frozen=True)
class SampledFormula:
    """A formula whose coefficients have been sampled.

    Attributes:
        formula: The formula.
        link: Of the parameter.
        slopes: In the units of the columns, (columns,).
        centre: The means of the columns, (columns,).
        place: Of its columns among those of all formulas.
    """

    formula: ParameterFormula
    link: str
    slopes: Tensor
    centre: Tensor
    place: slice

    def report(self, usual: Tensor) -> None:
        """Gives the intercept and the coefficients in the units of the columns.

        Args:
            usual: The parameter where all columns are at their means, ().
        """
        level = {"log": torch.log, "logit": torch.logit}.get(self.link, torch.clone)(usual)
        pyro.deterministic(self.formula.intercept, level - (self.slopes * self.centre).sum(-1))
        pyro.deterministic(self.formula.coefficients, self.slopes)

    def of_rows(self, usual: Tensor, predictors: Tensor) -> Tensor:
        """The parameter of each row, (rows,).

        Args:
            usual: Where all columns are at their means, ().
            predictors: The columns of all formulas, (rows, their number).
        """
        change = (predictors[..., self.place] - self.centre) @ self.slopes
        if self.link == "log":
            return usual * change.exp()
        return torch.sigmoid(usual.logit() + change) if self.link == "logit" else usual + change


def sample_formulas(
    formulas: Sequence[ParameterFormula],
    family: Family,
    centre: Tensor | None,
    spread: Tensor | None,
    term_priors: Priors,
) -> list[SampledFormula]:
    """Samples the coefficients of formulas.

    Args:
        formulas: The formulas.
        family: Whose parameters they are of.
        centre: The means of all their columns, (columns,).
        spread: Their standard deviations, (columns,).
        term_priors: Those that are not the default.
    """
    found, begin = [], 0
    links = {each.name: link_of(each) for each in family.parameters}
    for each in formulas:
        assert centre is not None
        assert spread is not None
        place = slice(begin, begin := begin + len(each.columns))
        usual = dist.Normal(torch.zeros(len(each.columns)), PRIOR_SCALE).to_event(1)
        slopes = pyro.sample(each.standardised, term_priors.of_formula(each.name, usual))
        found.append(
            SampledFormula(each, links[each.name], slopes / spread[place], centre[place], place)
        )
    return found


def link_of(parameter: Parameter) -> str:
    """The link of a parameter's formula.

    Example:
        >>> link_of(Parameter("sigma", "exponential(1)"))
        'log'
    """
    return PARAMETER_LINKS[read_prior(parameter.prior, parameter.name).support]


def dims_of(formulas: Sequence[ParameterFormula]) -> Mapping[str, tuple[str, ...]]:
    """The dims of what formulas have sampled and reported."""
    found: dict[str, tuple[str, ...]] = {}
    for each in formulas:
        found |= {
            each.intercept: (),
            each.coefficients: (each.dim,),
            each.standardised: (each.dim,),
        }
    return found
