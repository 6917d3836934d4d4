"""Bayesian linear regression with Normal noise and priors scaled to the data.

With z the predictors, each centred and divided by its standard deviation, and m, s the response's
mean and standard deviation,

    y[i] ~ Normal(m + s (a + z[i]·b), s τ)
    a, b[j] ~ Normal(0, 2.5)
    τ ~ Exponential(1)

the weakly informative defaults of rstanarm (Goodrich, Gabry, Ali and Brilleman, 2020, "rstanarm:
Bayesian applied regression modeling via Stan"). What is reported is in the user's units:
`intercept`, `coefficients` (the response's unit for one unit of the column) and `sigma`. Without an
intercept nothing is centred.
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from elbowroom.data.tables import align_columns, numeric_columns
from elbowroom.errors import DataError, OptionError
from elbowroom.models import ROWS, Model, Prepared, Training, register
from elbowroom.models._columns import cells, predictor_columns, response_column
from elbowroom.models._options import Exclude

FAR = 3.0
"""Standard deviations between zero and the mean of counts that a Normal fits well enough."""
MOST_COUNTS = 100
"""Different values; those of more are measured numbers that were rounded."""
PRIOR_SCALE = 2.5
"""The prior standard deviation of the standardised intercept and coefficients."""


@dataclass(frozen=True)
class Options:
    """Options of `bayesian_regression`."""

    formula: Annotated[
        str | None, Field(description="model formula, such as 'progression ~ bmi + bp'")
    ] = None
    response: Annotated[
        str | None, Field(description="column of the response; every other column is a predictor")
    ] = None
    columns: Annotated[
        tuple[str, ...] | None, Field(description="columns of the predictors, all by default")
    ] = None
    exclude: Exclude = ()


def bayesian_regression(
    predictors: Tensor,
    response: Tensor | None,
    centre: Tensor,
    spread: Tensor,
    response_centre: Tensor,
    response_spread: Tensor,
    has_intercept: bool = True,
    batch_size: int | None = None,
) -> None:
    """The Pyro model.

    Args:
        predictors: The design matrix without its intercept, in the user's units, (rows, columns).
        response: (rows,), or None to draw it.
        centre: What is subtracted from each predictor, (columns,).
        spread: What each predictor is divided by, (columns,).
        response_centre: The mean of the response, ().
        response_spread: The standard deviation of the response, ().
        has_intercept: Whether there is an intercept.
        batch_size: Rows drawn for a minibatch, all of them by default.
    """
    rows, columns = predictors.shape
    level = response_centre
    if has_intercept:
        height = pyro.sample("standardised_intercept", dist.Normal(torch.zeros(()), PRIOR_SCALE))
        level = response_centre + response_spread * height
    slopes = pyro.sample(
        "standardised_coefficients", dist.Normal(torch.zeros(columns), PRIOR_SCALE).to_event(1)
    )  # (columns,)
    noise = pyro.sample("standardised_sigma", dist.Exponential(torch.ones(())))
    coefficients = response_spread * slopes / spread  # (columns,)
    if has_intercept:
        pyro.deterministic("intercept", level - (coefficients * centre).sum(-1))
    pyro.deterministic("coefficients", coefficients)
    sigma = pyro.deterministic("sigma", response_spread * noise)
    with pyro.plate(ROWS, rows, subsample_size=batch_size):
        x = pyro.subsample(predictors, event_dim=1)
        y = None if response is None else pyro.subsample(response, event_dim=0)
        mean = level + (x - centre) @ coefficients  # (rows,)
        pyro.sample("response", dist.Normal(mean, sigma), obs=y)


HARMLESS = ("C", "center", "scale", "np.log", "np.log1p", "np.exp", "np.sqrt", "poly", "bs")
"""Functions that a formula from a run folder may call."""


def code_in(options: Options) -> str | None:
    """The formula, if it calls functions: formulae evaluates the Python in it."""
    formula = options.formula or ""
    rest = re.sub(rf"\b({'|'.join(map(re.escape, HARMLESS))})\(", "(", formula)
    plain = re.fullmatch(r"[\w\s.,+*:/~()-]*", rest) and not re.search(r"\w\s*\(", rest)
    return None if plain else formula


def _read(formula: str) -> tuple[str, set[str]]:
    """Where formulae's parser stops before the end, and the columns that it has read by then."""
    from formulae.parser import Parser
    from formulae.resolver import Resolver
    from formulae.scanner import Scanner
    from formulae.terms.terms import Model as Terms

    parser = Parser(Scanner(formula).scan())
    read = Resolver(parser.parse()).resolve()
    terms = read if isinstance(read, Terms) else Terms(read)
    return "" if parser.at_end() else parser.peek().lexeme, terms.var_names


@contextmanager
def _heard() -> Iterator[list[str]]:
    """What formulae warns of, which it prints and then leaves out."""
    said: list[str] = []

    def kept(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            said.append(record.getMessage().replace("\n", " "))
        return False

    logger = logging.getLogger("formulae")
    logger.addFilter(kept)
    try:
        yield said
    finally:
        logger.removeFilter(kept)


def design_matrix(
    formula: str, table: pd.DataFrame, new: pd.DataFrame | None
) -> tuple[pd.DataFrame, pd.Series | None, bool]:
    """The predictors, the response and whether there is an intercept, by a model formula.

    The categories and transforms of the formula are those of `table`; the rows are those of
    `new`, or of `table` itself. The response is None if `new` does not have it.

    Raises:
        DataError: If the formula cannot be read, or names a column that is not in the table.
        OptionError: If the formula has an offset, group effects, no response or no predictor, or
            if a part of it is not read.
    """
    from formulae import design_matrices  # half a second, and few need it

    if "|" in formula:
        raise OptionError(
            f"--formula '{formula}' has group effects, which bayesian_regression does not fit; "
            "leave out the terms with '|'."
        )
    if "~" not in formula:
        raise OptionError(f"--formula '{formula}' has no response; write 'response ~ predictors'.")
    try:
        with _heard() as said:
            left, variables = _read(formula)
            matrices = design_matrices(
                formula, table, na_action="error", extra_namespace={"np": np}
            )
    except Exception as error:  # formulae raises what its parser and the formula's code raise
        raise DataError(
            f"the formula '{formula}' cannot be read with the columns "
            f"{', '.join(map(str, table.columns))}: {error}"
        ) from error
    if left or said:
        cause = said[0] if said else f"it can only be read up to '{left}'."
        raise OptionError(
            f"--formula '{formula}': {cause} Join terms by +, : or *, and write arithmetic within "
            "I(...)."
        )
    if matrices.response is None or matrices.common is None:
        raise OptionError(f"--formula '{formula}' needs a response and at least one predictor.")
    response_column = str(matrices.response.name)
    for name, term in matrices.common.terms.items():
        if term.kind == "offset":
            known = name.removeprefix("offset(").removesuffix(")")
            raise OptionError(
                f"--formula '{formula}': {name} has a fixed coefficient, and bayesian_regression "
                "fits every coefficient. Subtract it from the response, which is the same model: "
                f"add a column {response_column} - {known} to the table, or write "
                f"I({response_column} - {known}) ~ and the other terms."
            )
    names = list(matrices.common.as_dataframe().columns)
    values = matrices.common.design_matrix
    if matrices.response.kind == "proportion":
        raise DataError(
            f"the response {response_column} is a share of trials, whose noise is Binomial; write "
            "a model of your own with pyro.sample(..., dist.Binomial(trials, logits=...), obs=y)."
        )
    if matrices.response.kind != "numeric":
        raise DataError(
            f"the response '{response_column}' is not a number in every row; encode it as numbers."
        )
    response: pd.Series | None = pd.Series(matrices.response.design_matrix.reshape(-1))
    if new is not None:
        align_columns(new, sorted(variables & set(table.columns) - {response_column}))
        try:
            again = matrices.common.evaluate_new_data(table.tail(-1)).design_matrix
            same = np.allclose(again, values[1:])
            values = matrices.common.evaluate_new_data(new).design_matrix
        except Exception as error:  # as above
            raise DataError(
                f"the new rows do not fit the formula '{formula}' of the run: {error}"
            ) from error
        if not same:
            raise DataError(
                f"the formula '{formula}' has a term whose value in a row depends on the other "
                "rows, so it cannot be computed for new rows; write center(x), scale(x) or "
                "poly(x, 2), which use the fitted rows."
            )
        response = new[response_column] if response_column in new.columns else None
    design = pd.DataFrame(values, columns=names)
    has_intercept = "Intercept" in design
    design = design.drop(columns="Intercept", errors="ignore")
    if design.shape[1] == 0:
        raise OptionError(f"--formula '{formula}' has no predictor.")
    if response is not None:
        response = response.rename(response_column)
    return design, response, has_intercept


def _plain_columns(
    table: pd.DataFrame, options: Options, new: pd.DataFrame | None
) -> tuple[pd.DataFrame, pd.Series | None, bool]:
    """The same as `design_matrix`, for a response and every other column, untransformed."""
    response = response_column(
        table, options.response,
        "bayesian_regression needs to know what to predict; give --response COLUMN "
        "or --formula 'response ~ predictors'.",
    )  # fmt: skip
    names = predictor_columns(table, response, options.columns, options.exclude)
    rows = table if new is None else new
    design = align_columns(rows, names)
    return design, rows[response] if response in rows.columns else None, True


def no_normal_number(values: Tensor, name: str) -> tuple[str, ...]:
    """What a response is, if its noise cannot be Normal: two values, or counts near zero.

    Example:
        >>> no_normal_number(torch.tensor([0.5, 1.5, 2.5]), "dose")
        ()
    """
    own = "write a model of your own with pyro.sample('{}', dist.{}, obs=y)."
    different = values.unique()
    if len(different) == 2:
        low, high = (f"{float(value):g}" for value in different)
        return (
            f"The response '{name}' has only two values, {low} and {high}, so its noise is not "
            "Normal: the fit is a linear probability model, whose predictions go beyond them; "
            + own.format(name, "Bernoulli(logits=...)"),
        )
    whole = bool((values == values.round()).all())
    near = 0 <= float(values.min()) <= 1 and float(values.mean()) < FAR * float(values.std())
    if whole and near and len(different) <= min(MOST_COUNTS, len(values) / 2):
        return (
            f"The response '{name}' looks like counts: whole numbers from "
            f"{float(values.min()):g} on. "
            "Their noise is not Normal: its variance grows with the mean, and no count "
            f"is negative; " + own.format(name, "Poisson(...) or dist.NegativeBinomial(...)"),
        )
    return ()


def prepare(table: pd.DataFrame, options: Options, training: Training | None = None) -> Prepared:
    """A table as the model's arguments; see `elbowroom.models.Model.prepare`.

    Raises:
        DataError: If a column cannot be used; the message names it.
        OptionError: If both `formula` and `response` are given, or neither.
    """
    if options.formula and (options.response or options.columns or options.exclude):
        raise OptionError(
            "--formula names the response and the predictors; leave out --response, --columns "
            "and --exclude."
        )
    source, new = (table, None) if training is None else (training.table, table)
    if options.formula:
        design, response, has_intercept = design_matrix(options.formula, source, new)
    else:
        design, response, has_intercept = _plain_columns(source, options, new)
    design = numeric_columns(design, allow_constant=training is not None)
    predictors = cells(design)  # (rows, columns)
    outcome = None
    blank = training is not None and response is not None and response.isna().all()
    if response is not None and not blank:
        column = numeric_columns(response.to_frame(), allow_constant=training is not None)
        outcome = cells(column)[:, 0]  # (rows,)
    doubts: tuple[str, ...] = ()
    if training is None:
        if outcome is None:
            raise DataError("the table has no column for the response.")
        doubts = no_normal_number(outcome, str(column.columns[0]))
        zero = torch.zeros(())
        scaling = {
            "centre": predictors.mean(0) if has_intercept else torch.zeros(predictors.shape[1]),
            "spread": predictors.std(0),
            "response_centre": outcome.mean() if has_intercept else zero,
            "response_spread": outcome.std(),
        }
    else:
        scaling = {
            name: training.arguments[name]
            for name in ("centre", "spread", "response_centre", "response_spread")
        }
    return Prepared(
        arguments={
            "predictors": predictors,
            "response": outcome,
            **scaling,
            "has_intercept": has_intercept,
        },
        dims={
            "predictors": (ROWS, "predictor"),
            "response": (ROWS,),
            "centre": ("predictor",),
            "spread": ("predictor",),
            "coefficients": ("predictor",),
            "standardised_coefficients": ("predictor",),
        },
        coords={"predictor": list(design.columns)},
        doubts=doubts,
    )


register(
    Model(
        name="bayesian_regression",
        function=bayesian_regression,
        options=Options,
        prepare=prepare,
        observed="response",
        predicts="response",
        dataset="diabetes",
        code_in=code_in,
        internal=("standardised_coefficients", "standardised_intercept", "standardised_sigma"),
    ),
    __name__,
)
