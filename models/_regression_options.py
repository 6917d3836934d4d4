"""The options of regressions, which formulas and columns are for all of them."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic.dataclasses import dataclass

from elbowroom.errors import OptionError, shown, unknown
from elbowroom.models._families import FAMILIES, LINKS
from elbowroom.models._options import Exclude
from elbowroom.models._prior_files import LARGEST_FILE
from elbowroom.models._priors import as_text
from elbowroom.models._shrinkage import read_r2d2
from elbowroom.options import Name


@dataclass(frozen=True)
class RegressionOptions:
    """Options of the models in which a linear function of columns predicts one."""

    formula: Annotated[
        Annotated[str, Field(min_length=1, max_length=10_000)] | None,
        Field(description="model formula, such as 'progression ~ bmi + bp'"),
    ] = None
    response: Annotated[
        Name | None, Field(description="column of the response; every other column is a predictor")
    ] = None
    columns: Annotated[
        tuple[Name, ...] | None, Field(description="columns of the predictors, all by default")
    ] = None
    exclude: Exclude = ()
    missing: Annotated[
        Literal["drop", "error"] | None,
        Field(
            description="rows with missing cells in the columns that are used: drop (leave them "
            "out, and say how many) or error. Default: drop"
        ),
    ] = None


def _known(kind: str, names: Mapping[str, Any]) -> Callable[[str | None], str | None]:
    def check(name: str | None) -> str | None:
        if name is not None and name not in names:
            raise unknown(kind, name, names)
        return name

    return check


def _named_priors(text: str) -> str:
    if text in ("weak", "conjugate") or "~" in text or read_r2d2(text):
        return text
    raise OptionError(
        f"--priors {shown(text)}: give weak, conjugate, r2d2 or a FILE.toml; write a prior of your "
        "own as --prior 'NAME ~ normal(0, 10)'."
    )


@dataclass(frozen=True)
class Options(RegressionOptions):
    """Options of `bayesian_regression`."""

    family: Annotated[
        Name | None,
        AfterValidator(_known("family", FAMILIES)),
        Field(
            description=f"distribution of the response: {', '.join(FAMILIES)}. Default: normal for "
            "numbers, bernoulli for two levels, categorical for more (ordinal, if they are an "
            "ordered category), binomial for p(successes, trials)"
        ),
    ] = None
    link: Annotated[
        Name | None,
        AfterValidator(_known("link", LINKS)),
        Field(
            description=f"link of the linear predictor: {', '.join(LINKS)}. Default: the family's "
            "first; see its page"
        ),
    ] = None
    quantile: Annotated[
        float | None,
        Field(gt=0, lt=1, description="which quantile --family quantile predicts. Default: 0.5"),
    ] = None
    parameter: Annotated[
        Annotated[str, Field(min_length=1, max_length=10_000)] | None,
        BeforeValidator(partial(as_text, option="parameter", example="x + z")),
        Field(
            description="formula of a parameter of the family, such as 'sigma ~ x': each row has "
            "its own then; repeat it for several"
        ),
    ] = None
    weights: Annotated[
        Name | None,
        Field(description="column of weights: a row of weight 2 counts as two such rows"),
    ] = None
    prior: Annotated[
        Annotated[str, Field(min_length=1, max_length=10_000)] | None,
        BeforeValidator(as_text),
        Field(
            description="prior of a coefficient, of intercept, of coefficients (all) or of a "
            "parameter of the family, in the units of the table, such as 'bmi ~ normal(0, 10)'; "
            "repeat it for several"
        ),
    ] = None
    priors: Annotated[
        Annotated[str, Field(min_length=1, max_length=LARGEST_FILE)],
        BeforeValidator(as_text),
        AfterValidator(_named_priors),
        Field(
            description="priors: weak; r2d2, for many predictors, more of them than rows perhaps; "
            "conjugate, whose updates have a closed form (--engine coordinate_ascent); or a "
            "FILE.toml with a line 'NAME = \"normal(0, 10)\"' for each; in Python also a dict of "
            "priors by name"
        ),
    ] = "weak"

    new_groups: Annotated[
        Literal["error", "draw"] | None,
        Field(
            description="groups of new rows that the fit has not seen: error, or draw, their "
            "effects from the distribution of those of all groups. Default: error"
        ),
    ] = None

    @property
    def own_priors(self) -> str:
        """The priors that the user wrote, in one text."""
        parts = (self.prior, self.priors if "~" in self.priors else None)
        return ", ".join(part for part in parts if part)
