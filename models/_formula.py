"""A table as the predictors and the response of a regression, by a formula or by columns."""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from pandas.api.types import is_numeric_dtype
from torch import Tensor

from elbowroom.data.tables import align_columns, numeric_columns
from elbowroom.errors import DataError, OptionError, shown
from elbowroom.models import Effects, Training
from elbowroom.models._columns import (
    cells,
    column_of_role,
    levels_of,
    predictor_columns,
    response_column,
)
from elbowroom.models._formula_limits import FORMULA_LIMITS, check_size
from elbowroom.models._formula_text import CURVES, PLAIN, columns_named, spelled_out, tilde
from elbowroom.models._groups import GroupRows, Term, read_groups, split_groups
from elbowroom.models._left import Left, form_of_levels, has_levels, plain_number, read_left
from elbowroom.models._regression_options import RegressionOptions
from elbowroom.models._responses import read_response
from elbowroom.models._smooths import (
    SmoothRows,
    SmoothTerm,
    read_smooths,
    refuse_smooths,
    split_smooths,
)

NOTHING = re.compile(r"~\s*(0|-\s*1)\s*$")
"""A right side without an intercept or anything else."""


@dataclass(frozen=True)
class Design:
    """What a regression is fitted to, in the user's units.

    Attributes:
        predictors: Without the intercept, (rows, columns).
        columns: Their names.
        response: (rows,), None where new rows do not have it.
        name: The response's.
        has_intercept: Whether there is an intercept.
        form: Of the response; see `elbowroom.models._responses.Response`, as for the next three.
        level: What its 1 stands for.
        levels: What its 0, 1, 2, ... stand for.
        rows: What else the rows have, such as trials.
        said: What was made of its column.
        offset: What is added to the linear predictor as it is, (rows,); None if there is nothing.
        groups: The group effects; None if there are none.
        smooths: The smooth terms; None if there are none. Splines have slopes among `predictors`.
        effects: The columns that the predictors are made of.
    """

    predictors: Tensor
    columns: list[str]
    response: Tensor | None
    name: str
    has_intercept: bool
    form: str = "number"
    level: str | None = None
    levels: tuple[str, ...] = ()
    rows: dict[str, Tensor] = field(default_factory=dict)
    said: tuple[str, ...] = ()
    offset: Tensor | None = None
    groups: GroupRows | None = None
    smooths: SmoothRows | None = None
    effects: Effects = field(default_factory=lambda: Effects({}))

    def units(self, unit: float) -> dict[str, float]:
        """What the sds and length scales of groups and smooth terms are measured in, by name.

        Args:
            unit: Of the linear predictor.
        """
        found = {} if self.groups is None else self.groups.units(unit)
        for each in () if self.smooths is None else self.smooths.smooths:
            found |= each.units(unit)
        return found


def columns_used(table: pd.DataFrame, options: RegressionOptions, *more: str | None) -> list[str]:
    """The columns whose cells a row needs.

    Args:
        table: The rows.
        options: The formula, or the columns.
        more: Further formulas or columns.
    """
    names = [each for each in more if each]
    if not options.formula:
        response = options.response or column_of_role(table, "response")
        if options.columns is not None:
            return [*options.columns, *names, *([response] if response else [])]
        others = [str(name) for name in table.columns if str(name) not in options.exclude]
        roles = table.attrs.get("roles", {})
        used = [name for name in others if roles.get(name, "feature") == "feature"]
        return list(dict.fromkeys([*used, *names, *([response] if response else [])]))
    formula, terms = split_groups(options.formula)
    formula, smooths = split_smooths(formula)
    written = spelled_out(formula, table, _apart(terms, smooths))
    return columns_named([written, options.formula, *names], table)


def read_design(
    table: pd.DataFrame,
    options: RegressionOptions,
    training: Training | None,
    model: str,
    offset: str = "",
    leave_out: Sequence[str] = (),
    several: str | None = "",
    grouped: bool = False,
    draw_groups: bool = False,
) -> Design:
    """A table's predictors and response.

    Args:
        table: The rows.
        options: The formula, or the columns.
        training: What the model was fitted to, when the table has new rows.
        model: The model's name, for messages.
        offset: For a model that takes numbers and no offset, what to do instead of one, with
            {response} and {known} in it.
        leave_out: Columns that are no predictors, where they are not named.
        several: What a response that is a column is one of; see
            `elbowroom.models._left.form_of_levels`.
        grouped: Whether the formula may have group effects and smooth terms.
        draw_groups: Whether new rows may have groups that the fitted ones lack.

    Raises:
        DataError: If a column cannot be used; the message names it.
        OptionError: If both `formula` and `response` are given, or neither, or if a part of the
            formula cannot be fitted.
    """
    if options.formula and (options.response or options.columns or options.exclude):
        raise OptionError(
            "--formula names the response and the predictors; leave out --response, --columns "
            "and --exclude."
        )
    source, new = (table, None) if training is None else (training.table, table)
    if options.formula:
        formula, terms = split_groups(options.formula)
        formula, smooth = split_smooths(formula)
        if (terms or smooth) and not grouped:
            what, sign = ("group effects", "|") if terms else ("smooth terms", smooth[0].name)
            raise OptionError(
                f"--formula '{options.formula}' has {what}, which {model} does not fit; leave out "
                f"the terms with '{sign}', or fit bayesian_regression."
            )
        left_out = [*leave_out, *_apart(terms, smooth)]
        alone = NOTHING.search(formula) if terms or smooth else None
        common = f"{formula[: alone.start()]}~ 1" if alone else formula
        found = _by_formula(common, source, new, model, offset, left_out, several)
        found = replace(found, has_intercept=found.has_intercept and not alone)
        found = _with_groups(found, terms, source, new, model, draw_groups)
        found = _with_smooths(found, smooth, source, new)
    else:
        found = _by_columns(source, options, new, model, leave_out, several)
        columns = {name: levels_for(source[name], None) for name in found.columns}
        found = replace(found, effects=Effects(columns))
    if found.response is None:
        if training is None:
            raise DataError("the table has no response column; add it.")
    elif offset and found.form != "number":
        raise DataError(
            f"the response '{found.name}' is not a number in every row, and {model} takes numbers; "
            "encode it as numbers, or fit bayesian_regression with another --family."
        )
    return found


def _apart(terms: Sequence[Term], smooths: Sequence[SmoothTerm]) -> list[str]:
    """Columns of group effects and smooth terms, which no `.` stands for."""
    return [name for term in terms for name in term.factors] + [term.column for term in smooths]


def _with_groups(
    found: Design,
    terms: Sequence[Term],
    table: pd.DataFrame,
    new: pd.DataFrame | None,
    model: str,
    draw: bool,
) -> Design:
    """A design with its group effects."""
    for term in terms:
        refuse_smooths(term.inside, "--formula", "write it outside of the parentheses")
    groups = read_groups(terms, table, new, partial(columns_of, table, new, model), draw)
    within = {name for term in terms for name in _names_in(term, table)}
    own = replace(found.effects, groups=tuple(sorted(within - set(found.effects.columns))))
    return replace(found, groups=groups, effects=own)


def _with_smooths(
    found: Design, terms: Sequence[SmoothTerm], table: pd.DataFrame, new: pd.DataFrame | None
) -> Design:
    """A design with its smooth terms."""
    smooths = read_smooths(terms, table, new, found.has_intercept)
    known = found.effects
    if smooths is not None:
        for term in terms:
            if term.kind == "s" and term.column in found.columns:
                raise OptionError(
                    f"--formula: {term.name} has a slope of '{term.column}' within; leave out "
                    f"'+ {term.column}'."
                )
        curves = dict.fromkeys([*known.splines, *smooths.columns])
        known = replace(
            known, columns={**known.columns, **dict.fromkeys(smooths.columns)},
            splines=tuple(curves),
            groups=tuple(name for name in known.groups if name not in curves),
            fixed=tuple(name for name in known.fixed if name not in curves),
        )  # fmt: skip
        found = replace(
            found, smooths=smooths, columns=[*found.columns, *smooths.slopes],
            predictors=torch.column_stack([found.predictors, *smooths.slopes.values()]),
        )  # fmt: skip
    return replace(found, effects=known)


def _numeric(
    design: pd.DataFrame, response: pd.Series | None, has_intercept: bool, new: bool
) -> Design:
    """Predictors and a response that are numbers.

    Args:
        design: The predictors.
        response: None where there is none, or it is read by itself.
        has_intercept: Whether there is an intercept.
        new: Whether the rows are new ones.
    """
    if design.shape[1]:
        design = numeric_columns(design, allow_constant=new)
    outcome, name = None, "" if response is None else str(response.name)
    if response is not None and not (new and response.isna().all()):
        outcome = cells(numeric_columns(response.to_frame(), allow_constant=new))[:, 0]  # (rows,)
    return Design(cells(design).double(), list(design.columns), outcome, name, has_intercept)


def _with_response(design: Design, left: Left, table: pd.DataFrame, new: Any) -> Design:
    """A design with a response that is read by itself."""
    found = read_response(left, table, new)
    return replace(
        design, response=found.values, name=found.name, form=found.form, level=found.level,
        levels=found.levels,
        rows=found.rows, said=found.said,
    )  # fmt: skip


def _by_columns(
    table: pd.DataFrame,
    options: RegressionOptions,
    new: pd.DataFrame | None,
    model: str,
    leave_out: Sequence[str],
    several: str | None,
) -> Design:
    """The predictors and the response: every other column, untransformed."""
    response = response_column(
        table, options.response,
        f"{model} needs to know what to predict; give --response COLUMN "
        "or --formula 'response ~ predictors'.",
    )  # fmt: skip
    left_out = list(dict.fromkeys([*options.exclude, *leave_out]))
    names = predictor_columns(table, response, options.columns, left_out)
    rows = table if new is None else new
    design = align_columns(rows, names)
    form = form_of_levels(table[response], several) or "level"
    if form == "level" and (plain_number(table[response]) or not has_levels(table[response])):
        return _numeric(design, rows.get(response), True, new is not None)
    found = _numeric(design, None, True, new is not None)
    return _with_response(found, Left(form, response, (response,)), table, new)


def _read(
    formula: str, table: pd.DataFrame, several: str | None
) -> tuple[str, set[str], Left | None]:
    """Where formulae's parser stops, the columns that it has read by then, and an own left side."""
    from formulae.parser import Parser
    from formulae.resolver import Resolver
    from formulae.scanner import Scanner
    from formulae.terms.terms import Model as Terms

    parser = Parser(Scanner(formula).scan())
    parsed = parser.parse()
    check_size(formula, parsed, table)
    read = Resolver(parsed).resolve()
    terms = read if isinstance(read, Terms) else Terms(read)
    left = read_left(parsed.left, table, several) if type(parsed).__name__ == "Binary" else None
    return "" if parser.at_end() else parser.peek().lexeme, terms.var_names, left


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


def _matrices(
    formula: str, table: pd.DataFrame, model: str, several: str | None = "", added: str = ""
) -> tuple[Any, set[str], Left | None]:
    """What formulae makes of a formula, the columns in it, and the left side if we read that.

    There is no response in the matrices then. Messages do not show a column that was added.
    """
    from formulae import design_matrices  # half a second, and few need it

    if len(formula) > FORMULA_LIMITS.characters:
        raise OptionError(
            f"--formula '{formula[:100]}...' has {len(formula):,} characters, and "
            f"{FORMULA_LIMITS.characters:,} are allowed; write a shorter one."
        )
    if "~" not in formula:
        raise OptionError(f"--formula '{formula}' has no response; write 'response ~ predictors'.")
    try:
        with _heard() as said:
            end, variables, left = _read(formula, table, several)
            read = formula if left is None else formula[tilde(formula) + 1 :]
            matrices = design_matrices(
                read, table, na_action="error", extra_namespace={"np": np, **PLAIN}
            )
    except OptionError:
        raise
    except Exception as error:  # formulae raises what its parser and the formula's code raise
        columns = ", ".join(str(name) for name in table.columns if name != added)
        shorter = formula[:100].replace(f"`{added}`", added) if added else formula[:100]
        raise DataError(
            f"the formula '{shorter}' cannot be read with the columns {columns}: "
            f"{error}{_nearest(error, table)}"
        ) from error
    if end or said:
        cause = said[0] if said else f"it can only be read up to '{end}'."
        raise OptionError(
            f"--formula '{formula}': {cause} Join terms by +, : or *, and write arithmetic within "
            "I(...)."
        )
    if (matrices.response is None and left is None) or matrices.common is None:
        raise OptionError(f"--formula '{formula}' needs a response and at least one predictor.")
    return matrices, variables, left


def columns_of(
    table: pd.DataFrame, new: pd.DataFrame | None, model: str, inside: str, left: str = "the groups"
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The columns of a formula's right side: of the fitted rows, and of those that are wanted.

    Args:
        table: The fitted rows.
        new: New ones, if they are wanted.
        model: The model's name, for messages.
        inside: The right side.
        left: What it is of, for messages.
    """
    # formulae wants a left side.
    added, known = ("", table) if left in table else (left, table.assign(**{left: 0.0}))
    matrices, variables, _ = _matrices(f"`{left}` ~ {inside}", known, model, added=added)
    fitted = matrices.common.as_dataframe()
    if new is None:
        return fitted, fitted
    align_columns(new, sorted(variables & set(table.columns)))
    values = _of_new_rows(inside, matrices.common, table, new)
    return fitted, pd.DataFrame(values, columns=fitted.columns)


def _nearest(error: Exception, table: pd.DataFrame) -> str:
    """The column that is meant by a name that is none."""
    name = str(error.args[0]) if isinstance(error, KeyError) and error.args else ""
    near = get_close_matches(name, [str(column) for column in table.columns], n=1)
    return f"; there is no column {error}, did you mean '{near[0]}'?" if near else ""


def _check_offset(formula: str, matrices: Any, model: str, offset: str) -> None:
    response = str(matrices.response.name) if matrices.response is not None else "response"
    for name, term in matrices.common.terms.items():
        if term.kind == "offset":
            known = name.removeprefix("offset(").removesuffix(")")
            raise OptionError(
                f"--formula '{formula}': {name} has a fixed coefficient, and {model} fits every "
                f"coefficient. {offset.format(response=response, known=known)}"
            )


def _of_new_rows(formula: str, terms: Any, table: pd.DataFrame, new: pd.DataFrame) -> np.ndarray:
    """The predictors of new rows, by the categories and transforms of the fitted ones."""
    try:
        again = terms.evaluate_new_data(table.tail(-1)).design_matrix
        same = np.allclose(again, terms.design_matrix[1:])
        values = np.asarray(terms.evaluate_new_data(new).design_matrix)
    except Exception as error:  # formulae raises what the formula's code raises
        raise DataError(
            f"the formula '{formula}' of the run cannot be computed for the new rows ({error}); "
            "give them the columns of the fitted table."
        ) from error
    if not same:
        raise DataError(
            f"the formula '{formula}' has a term whose value in a row depends on the other rows, "
            "so it cannot be computed for new rows; write center(x), scale(x) or poly(x, 2), "
            "which use the fitted rows."
        )
    return values


def _effects(table: pd.DataFrame, terms: Any) -> Effects:
    """The columns of a formula, in the order of its terms."""
    found: dict[str, tuple[Any, ...] | None] = {}
    fitted, splines = set[str](), set[str]()
    for term in terms.values():
        for part in getattr(term, "components", ()):
            names = [str(name) for name in table.columns if name in part.var_names]
            for name in names:
                ordered = getattr(part, "levels", None) if part.kind == "categoric" else None
                found[name] = found.get(name) or levels_for(table[name], ordered)
            fitted.update(names if term.kind != "offset" else ())
            curve = part.name.partition("(")[0] in CURVES
            splines.update(name for name in names if curve and found[name] is None)
    return Effects(
        found,
        fixed=tuple(name for name in found if name not in fitted),
        splines=tuple(name for name in found if name in splines),
    )


def levels_for(column: pd.Series, ordered: Sequence[Any] | None) -> tuple[Any, ...] | None:
    """The levels of a category or of truth values, in order; None for numbers.

    Args:
        column: Of the table.
        ordered: The levels in the order of the formula, the first one without a coefficient; they
            are others where the formula has a function of the column.
    """
    number = is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    if number and ordered is None:
        return None
    there = levels_of(column)
    known = [each for each in np.asarray(ordered or ()).tolist() if each in there]
    return tuple(known if len(known) == len(there) else there)


def _names_in(term: Term, table: pd.DataFrame) -> set[str]:
    """The columns of a group effect."""
    words = {quoted or word for quoted, word in re.findall(r"`([^`]+)`|([^\W\d]\w*)", term.inside)}
    return {*term.factors, *(words & set(table.columns))}


def _by_formula(
    formula: str,
    table: pd.DataFrame,
    new: pd.DataFrame | None,
    model: str,
    offset: str,
    leave_out: Sequence[str] = (),
    several: str | None = "",
) -> Design:
    """The predictors, the response and the offset, by a model formula.

    The categories and transforms of the formula are those of `table`; the rows are those of
    `new`, or of `table` itself. The response is None if `new` does not have it.

    Raises:
        DataError: If the formula cannot be read, or names a column that is not in the table.
        OptionError: If the formula has no response or no predictor, an offset where
            there can be none, or if a part of it is not read.
    """
    formula = spelled_out(formula, table, leave_out)
    matrices, variables, left = _matrices(formula, table, model, several)
    if offset:
        _check_offset(formula, matrices, model, offset)
    names = list(matrices.common.as_dataframe().columns)
    values = matrices.common.design_matrix
    response: pd.Series | None = None
    outcome = set(left.columns) if left is not None else set()
    if left is None:
        name = str(matrices.response.name)
        if matrices.response.kind != "numeric":
            raise DataError(
                f"the response '{name}' is not a number in every row; encode it as numbers."
            )
        outcome = {name}
        response = pd.Series(matrices.response.design_matrix.reshape(-1), name=name)
    if new is not None:
        align_columns(new, sorted(variables & set(table.columns) - outcome))
        values = _of_new_rows(formula, matrices.common, table, new)
        response = None if response is None else new.get(str(response.name))
    design = pd.DataFrame(values, columns=names)
    added = [name for name in names if getattr(matrices.common.terms.get(name), "kind", "") ==
             "offset"]  # fmt: skip
    known = None
    if added:
        known = cells(numeric_columns(design[added], allow_constant=True)).sum(1)  # (rows,)
    design = design.drop(columns=added)
    has_intercept = "Intercept" in design
    design = design.drop(columns="Intercept", errors="ignore")
    if design.shape[1] == 0:
        for name in sorted(variables & set(table.columns) - outcome):
            if table[name].nunique() == 1 and not is_numeric_dtype(table[name]):
                raise DataError(
                    f"column '{name}' is {shown(table[name].iloc[0])} in every row, so nothing can "
                    f"be learned from it: leave it out of --formula '{formula}'."
                )
    if design.shape[1] == 0 and (offset or not has_intercept):
        raise OptionError(f"--formula '{formula}' has no predictor; write 'response ~ predictors'.")
    found = replace(
        _numeric(design, response, has_intercept, new is not None), offset=known,
        effects=_effects(table, matrices.common.terms),
    )  # fmt: skip
    return found if left is None else _with_response(found, left, table, new)
