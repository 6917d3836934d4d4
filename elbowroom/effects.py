"""What a regression says of its columns: adjusted predictions, slopes and contrasts.

Rows are made that differ in the columns that are asked for. The model prepares them as any new
rows, so that transforms, interactions, splines and categories are right, and at each draw of the
posterior it gives what is expected of them, E(x): a mean, a probability, or the linear predictor.
With x_j a column and x the others,

    means      E(x_j = v, x)
    slopes     dE / dx_j, or E(x_j = b, x) - E(x_j = first level, x) for a category
    contrasts  E(x_j = b, x) - E(x_j = a, x)

The others are at their means and most common levels, as in brms' `conditional_effects`, or means
and contrasts are averaged over the fitted rows. Slopes always are: average marginal effects.
Effects of groups are zero, as with brms' `re_formula = NA`, so that these are of a typical group.
Of successes of trials it is the probability. Rows count as often as their weights say.

References: Arel-Bundock, Greifer and Heiss, 2024, "How to interpret statistical models using
marginaleffects for R and Python"; Searle, Speed and Milliken, 1980, "Population marginal means in
the linear model".
"""

import csv
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import combinations, product
from math import prod
from typing import Any, Protocol

import numpy as np
import pandas as pd
from torch import Tensor, as_tensor, finfo

from elbowroom.commands import EffectsOptions
from elbowroom.draws.predict import expectations
from elbowroom.errors import DataError, OptionError, shown
from elbowroom.memory import check_memory
from elbowroom.models import Effects
from elbowroom.models._columns import LISTED
from elbowroom.options import check_options, flag
from elbowroom.problem.bound import Problem
from elbowroom.rows import FittedModel, check_verb

Columns = str | Sequence[str] | Mapping[str, Sequence[Any] | None] | None
"""Columns by name, each with `=VALUES` or not; or by name with their values."""


class Regression(FittedModel, Protocol):
    """What is asked of a fit beside that; see `elbowroom.result.Fit`."""

    def as_written(self, sites: dict[str, Tensor]) -> tuple[Problem, dict[str, Tensor]]:
        """The problem as the user wrote it, and draws of its own sites."""


@dataclass(frozen=True)
class Sizes:
    """How finely effects are taken, and how much of them at once."""

    grid: int = 61
    """Points from the smallest number of a column to the largest."""
    few: int = 5
    """Different numbers of a column, up to which these are its points."""
    rows: int = 200_000
    """Rows that the model prepares at once."""
    work: float = 4e8
    """Rows times draws, above which fewer draws are taken."""
    fewest: int = 400
    """Draws that are taken at least: a quantile is then off by a tenth of an sd."""
    copies: int = 3
    """Arrays of the size of the draws that are held at once."""


SIZES = Sizes()
DRAWS = "draws of the posterior"
"""A column that is taken out again: an effect's draws."""
LINE = ("effect", "column", "value", "level", "mean", "sd", "lower", "upper")
"""Columns of the result, beside those of `by`."""


@dataclass(frozen=True)
class _Asked:
    """A column, and the values that were given for it."""

    option: str
    column: str
    values: tuple[Any, ...] | None = None

    @property
    def said(self) -> str:
        """As it stands on the command line, without its values."""
        return f"{self.option} {self.column}"


@dataclass(frozen=True)
class _Rows:
    """The fitted rows, and what is expected of rows that differ from them in some columns.

    Attributes:
        fit: The fit.
        effects: What is expected, and the columns that it follows.
        table: The fitted rows.
        weights: How often each counts, summing to one.
        scale: "response" or "linear".
    """

    fit: Regression
    effects: Effects
    table: pd.DataFrame
    weights: np.ndarray
    scale: str

    def typical(self) -> pd.DataFrame:
        """One row: the mean of each number and the most common level of each category.

        What the predictors are not made of, such as groups, is of a row that there is.
        """
        row = self.table.head(1).copy()
        for name, levels in self.effects.columns.items():
            column = self.table[name]
            if levels is None:
                row[name] = float(self.weights @ column.to_numpy(dtype=float))
            else:
                counts = pd.Series(self.weights).groupby(column.to_numpy(), observed=True).sum()
                row[name] = _like(column, [counts.idxmax()], row.index)
        return row

    def expected(self, settings: Sequence[Mapping[str, Any]], average: bool) -> np.ndarray:
        """What is expected under each of some settings at each draw, (draws, settings[, levels]).

        Args:
            settings: The values of some columns; a number for each of the fitted rows is possible
                where these are averaged.
            average: Whether over the fitted rows; else of the typical one.
        """
        base = self.table if average else self.typical()
        weights = self.weights if average else np.ones(1)
        problem, sites = self.fit.as_written(self.fit.global_sites())
        sites = _fewer(sites, len(base) * len(settings))
        at_once = max(1, SIZES.rows // len(base))
        parts = []
        for begin in range(0, len(settings), at_once):
            some = settings[begin : begin + at_once]
            rows = pd.concat([_with(base, each) for each in some], ignore_index=True)
            rows.attrs = self.table.attrs
            arguments = self._prepared(problem, rows, [*some[0]])
            if problem.model.of_population is not None:
                arguments = problem.model.of_population(arguments)
            count, share = len(some), as_tensor(weights).to(problem.device)

            def averaged(values: Tensor, count: int = count, share: Tensor = share) -> Tensor:
                return (values.reshape(count, len(share), -1) * share[:, None]).sum(1)

            with problem.session(0, self.fit.parameters):
                found = expectations(problem, arguments, sites, self.scale, averaged)
            parts.append(found.numpy())  # (draws, settings, levels)
        return np.concatenate(parts, axis=1)

    def _prepared(
        self, problem: Problem, rows: pd.DataFrame, columns: Sequence[str]
    ) -> dict[str, Any]:
        """The model's arguments for rows with other values in some columns.

        Raises:
            OptionError: If a function of the formula has no value there, such as log(-1).
        """
        try:
            with np.errstate(all="ignore"):
                return problem.new_arguments(rows)[0]
        except DataError as error:
            ranges = [
                f"{name} from {self.table[name].min():.5g} to {self.table[name].max():.5g}"
                for name in columns if self.effects.columns[name] is None
            ]  # fmt: skip
            raise OptionError(
                f"the formula cannot be computed for every value of {' and '.join(columns)} that "
                f"is asked for; give values as in the fitted rows: {', '.join(ranges)}."
            ) from error

    def slopes(self, column: str, settings: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """The average derivative under each setting, (draws, settings, levels).

        By central differences, whose step balances rounding and curvature.
        """
        x = self.table[column].to_numpy(dtype=float)
        step = float(finfo(self.fit.problem.dtype).eps) ** (1 / 3) * x.std()
        ends = [{column: x + step}, {column: x - step}]
        both = self.expected([{**each, **end} for each in settings for end in ends], True)
        return (both[:, ::2] - both[:, 1::2]) / (2 * step)


def effects_of(
    fit: Regression,
    asked: Mapping[str, Columns],
    by: Columns,
    average: bool,
    scale: str,
    interval: float,
) -> pd.DataFrame:
    """See `elbowroom.result.Fit.effects`; `asked` has its means, slopes and contrasts."""
    check_options(EffectsOptions, average=average, scale=scale, interval=interval)
    check_verb(fit, "effects")
    problem = fit.problem
    effects = problem.prepared.effects
    assert effects is not None
    table, arguments = problem.data, problem.arguments
    given = arguments.get("weights")
    weights = np.ones(len(table)) if given is None else given.double().cpu().numpy()
    rows = _Rows(fit, effects, table, weights / weights.sum(), scale)
    settings = [_values(rows, each, _spread) for each in _read("--by", by, rows, ())]
    held = {name for name, _ in settings}
    if len(held) < len(settings):
        raise OptionError("--by: a column is given twice; write all of its values together.")
    if not any(asked.values()):
        asked = {**asked, "means": "."}
    wanted = {name: _read(flag(name), asked[name], rows, held) for name in asked}
    if not any(wanted.values()):
        raise OptionError(
            "no column of the formula has an effect that is left to describe; name one by --means, "
            "or leave out --by."
        )
    for each in (each for some in wanted.values() for each in some):
        if each.column in held:
            raise OptionError(f"--by {each.column} is the column of {each.said}; leave it out.")
    of = [name for name, _ in settings]
    _check_size(rows, wanted, prod(len(values) for _, values in settings))
    groups = [dict(zip(of, some, strict=True)) for some in product(*(v for _, v in settings))]
    lines = [
        line
        for kind, some in wanted.items() for each in some
        for line in _lines(rows, kind, each, groups, average, interval)
    ]  # fmt: skip
    found = pd.DataFrame(lines)
    fewest = int(found.pop(DRAWS).min())
    named = {name: f"{name} (by)" if name in LINE else name for name in of}
    order = [*LINE[:3], *map(_by_name, of), *LINE[3:]]
    found = found[[name for name in order if name in found]].rename(
        columns={_by_name(name): label for name, label in named.items()}
    )
    found.attrs = {
        "response": effects.response if scale == "response"
        else f"linear predictor of {effects.name}",
        "interval": interval, "by": list(named.values()),
        "notes": [*_notes(rows, wanted, settings, average), *_thinned(rows, fewest)],
    }  # fmt: skip
    return found


def _by_name(name: str) -> str:
    """Of a column of `by` until all have names: it may be called as one of ours."""
    return f"by {name}"


def _lines(
    rows: _Rows,
    kind: str,
    asked: _Asked,
    groups: Sequence[Mapping[str, Any]],
    average: bool,
    interval: float,
) -> Iterator[dict[str, Any]]:
    """The lines of one column."""
    column, number = asked.column, rows.effects.columns[asked.column] is None
    pairs: list[tuple[int, int]] = []
    if kind == "slopes" and number:
        draws, values = rows.slopes(column, groups), ["slope"]
    else:
        _, at = _values(rows, asked, _grid)
        average = average or kind == "slopes"
        settings = [{**each, column: value} for each in groups for value in at]
        draws, values = rows.expected(settings, average), at
        if kind == "means":
            values = [value if number else _label(value) for value in at]
        else:
            pairs = [*combinations(range(len(at)), 2)]
            if kind == "slopes":
                pairs = [(0, place) for place in range(1, len(at))]
            values = [f"{_label(at[late])} - {_label(at[early])}" for early, late in pairs]
    draws = draws.reshape(len(draws), len(groups), -1, draws.shape[-1])
    if pairs:
        early, late = (list(side) for side in zip(*pairs, strict=True))
        draws = draws[:, :, late] - draws[:, :, early]
    effect = {"means": "mean", "slopes": "slope", "contrasts": "contrast"}[kind]
    levels = rows.fit.problem.prepared.coords.get("class", ()) if draws.shape[-1] > 1 else ()
    tail = (1 - interval) / 2
    lower, upper = np.quantile(draws, [tail, 1 - tail], axis=0)
    parts = {"mean": draws.mean(0), "sd": draws.std(0), "lower": lower, "upper": upper}
    for place in np.ndindex(draws.shape[1:]):
        group, value, level = place
        yield {
            DRAWS: len(draws), "effect": effect, "column": column, "value": values[value],
            **{_by_name(name): each if rows.effects.columns[name] is None else _label(each)
               for name, each in groups[group].items()},
            **({"level": levels[level]} if len(levels) else {}),
            **{name: float(part[place]) for name, part in parts.items()},
        }  # fmt: skip


def _with(base: pd.DataFrame, setting: Mapping[str, Any]) -> pd.DataFrame:
    """Rows with other values in some columns, whose types stay but for whole numbers."""
    rows = base.copy(deep=False)
    for name, value in setting.items():
        if isinstance(value, (float, np.ndarray)):
            rows[name] = value
        else:
            rows[name] = _like(base[name], [value] * len(base), base.index)
    return rows


def _like(column: pd.Series, values: Sequence[Any], index: Any) -> pd.Series:
    """A column of the same type."""
    return pd.Series(values, index=index, dtype=column.dtype)


def _fewer(sites: dict[str, Tensor], rows: int) -> dict[str, Tensor]:
    """As many draws as there is time for, evenly spaced, since equal ones follow one another."""
    count = min((len(each) for each in sites.values()), default=1)
    kept = int(max(SIZES.fewest, SIZES.work // rows))
    if kept >= count:
        return sites
    picked = np.linspace(0, count - 1, kept).round().astype(int)
    return {name: values[picked] for name, values in sites.items()}


def _check_size(rows: _Rows, wanted: Mapping[str, Sequence[_Asked]], groups: int) -> None:
    """Refuses more lines than fit into memory."""
    columns = rows.effects.columns
    most = max(
        len(each.values or columns[each.column] or range(SIZES.grid))
        for some in wanted.values() for each in some
    )  # fmt: skip
    draws = max((len(each) for each in rows.fit.global_sites().values()), default=1)
    levels = max(1, len(rows.fit.problem.prepared.coords.get("class", ())))
    pairs = most * (most - 1) // 2 if wanted["contrasts"] else 0
    size = 8.0 * draws * groups * max(most, pairs) * levels * SIZES.copies
    what = f"{groups * max(most, pairs):,} effects by {draws:,} draws"
    check_memory(what, size, "give fewer values, or fewer columns to --by", OptionError)


# What is asked


def _read(option: str, given: Columns, rows: _Rows, held: Container[str]) -> list[_Asked]:
    """Columns with their values, as they were given.

    Args:
        option: By which.
        given: What was given by it.
        rows: The fitted ones.
        held: Columns that "." leaves out, as it does those whose effect is not fitted; and for
            contrasts, numbers.

    Raises:
        OptionError: If a column is not in the formula, or has no such level or value.
    """
    known = rows.effects.columns
    if isinstance(given, Mapping):
        pairs = [(str(name), None if v is None else list(v)) for name, v in given.items()]
    else:
        texts = [given] if isinstance(given, str) else [*dict.fromkeys(given or ())]
        if "." in texts:
            fitted = [
                name for name, levels in known.items()
                if name not in held and name not in rows.effects.fixed
                and (levels is not None or option != "--contrasts")
            ]  # fmt: skip
            texts = [*dict.fromkeys([*(text for text in texts if text != "."), *fitted])]
        pairs = [_pair(text, known) for text in texts]
    found = []
    for name, values in pairs:
        if name not in known:
            raise _unknown_column(option, name, rows)
        found.append(_Asked(option, name, None if values is None else _checked(
            option, name, values, known[name])))  # fmt: skip
        _check_kind(found[-1], known[name])
    return found


def _pair(text: str, known: Mapping[str, Any]) -> tuple[str, list[Any] | None]:
    """The column and the values of `COLUMN=VALUE,VALUE`; a value with a comma is in quotes."""
    if text in known or "=" not in text:
        return text, None
    name, _, rest = text.partition("=")
    return name.strip(), [each.strip() for each in next(csv.reader([rest]), [])]


def _unknown_column(option: str, name: str, rows: _Rows) -> OptionError:
    effects = rows.effects
    if name in effects.groups:
        return OptionError(
            f"{option} {shown(name)}: '{shown(name)}' is in group effects alone, which are zero "
            "here; 'elbowroom summary RUN' shows them, and 'elbowroom predict' rows of each group."
        )
    near = get_close_matches(name[:100], list(effects.columns), n=1)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    listed = ", ".join([*effects.columns][:LISTED]) or "none"
    return OptionError(
        f"{option} {shown(name)}: '{shown(name)}' is not among the predictors of the fit{hint} "
        f"They are {listed}."
    )


def _checked(
    option: str, name: str, values: Sequence[Any], levels: tuple[Any, ...] | None
) -> tuple[Any, ...]:
    """The values as the column has them, each once."""
    if not values:
        raise OptionError(f"{option} {name}=: write values after the equals sign, or leave it out.")
    if levels is None:
        return tuple(dict.fromkeys(_number(option, name, value) for value in values))
    return tuple(dict.fromkeys(_level(option, name, value, levels) for value in values))


def _number(option: str, name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = np.nan
    if not abs(number) <= 1e100:
        raise OptionError(
            f"{option} {name}={shown(value)}: '{name}' is a number; give numbers, such as "
            f"{name}=1,2."
        )
    return number


def _level(option: str, name: str, value: Any, levels: tuple[Any, ...]) -> Any:
    labels = {_label(level): level for level in levels}
    if isinstance(levels[0], float):  # a number in C(...)
        labels |= {str(level): level for level in levels}
    label = value if isinstance(value, str) else _label(value)
    if label in labels:
        return labels[label]
    near = get_close_matches(label[:100], [*labels], n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ";"
    listed = ", ".join([*map(_label, levels)][:LISTED])
    raise OptionError(
        f"{option} {name}={shown(value)}: '{name}' is a category, and no fitted row has this "
        f"level{hint} {'Its' if near else 'its'} levels are {listed}."
    )


def _check_kind(asked: _Asked, levels: tuple[Any, ...] | None) -> None:
    """Refuses what has no meaning for a number or a category."""
    name = asked.column
    if asked.option == "--slopes" and asked.values is not None:
        raise OptionError(
            f"{asked.said}: a slope is averaged over the fitted rows; leave out the values, or "
            f"compare them by --contrasts {name}=LOW,HIGH."
        )
    if asked.option != "--contrasts":
        return
    if asked.values is None and levels is None:
        raise OptionError(
            f"{asked.said}: '{name}' is a number, which has no levels to compare; write two "
            f"values, {name}=LOW,HIGH."
        )
    if asked.values is not None and len(asked.values) < 2:
        raise OptionError(f"{asked.said}: two different values are compared; write both.")


def _values(rows: _Rows, asked: _Asked, usual: Any) -> tuple[str, list[Any]]:
    """A column and its values: those given, its levels, or the usual numbers."""
    name, levels = asked.column, rows.effects.columns[asked.column]
    if asked.values is None:
        return name, list(levels if levels is not None else usual(rows.table[name]))
    return name, list(asked.values)


def _grid(column: pd.Series) -> Sequence[float]:
    """Numbers from one end of a column to the other; all of its own, if they are few."""
    own = np.unique(column.to_numpy(dtype=float))
    if len(own) <= SIZES.few:
        return own.tolist()
    return np.linspace(*_range(column), SIZES.grid).tolist()


def _spread(column: pd.Series) -> Sequence[float]:
    """The mean of a column, and one sd below and above; all of its numbers, if they are few."""
    own = np.unique(column.to_numpy(dtype=float))
    if len(own) <= SIZES.few:
        return own.tolist()
    mean, sd = float(column.mean()), float(column.std())
    return [mean - sd, mean, mean + sd]


def _range(column: pd.Series) -> tuple[float, float]:
    return float(column.min()), float(column.max())


def _beyond(rows: _Rows, column: str, values: Sequence[Any]) -> list[float]:
    """The values that are beyond the fitted rows."""
    if rows.effects.columns[column] is not None:
        return []
    low, high = _range(rows.table[column])
    return [value for value in values if not low <= value <= high]


def _label(value: Any) -> str:
    """A value or a level as it is written."""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


# What is said of it


def _thinned(rows: _Rows, fewest: int) -> list[str]:
    """A sentence where some effects are of fewer draws than there are."""
    there = max((len(each) for each in rows.fit.global_sites().values()), default=1)
    if fewest >= there:
        return []
    return [f"There are so many rows that averages are of {fewest:,} of {there:,} draws."]


def _notes(
    rows: _Rows,
    wanted: Mapping[str, Sequence[_Asked]],
    by: Sequence[tuple[str, Sequence[Any]]],
    average: bool,
) -> list[str]:
    """What the effects are of, as sentences."""
    notes, effects, table = [], rows.effects, rows.table
    typical = rows.typical()
    told = {each.column for kind in ("means", "contrasts") for each in wanted[kind]}
    set_to = {name for name, _ in by} | (told if len(told) == 1 else set())
    some = [name for name in effects.columns if name not in set_to]
    at = ", ".join(f"{name} = {_label(typical[name].iloc[0])}" for name in some)
    over = f"averaged over the {len(table):,} fitted rows"
    kinds = [name for name in ("means", "contrasts") if wanted[name]]
    named = " and ".join(kinds).capitalize()
    if kinds and average:
        notes.append(f"{named} are {over}.")
    elif kinds and some:
        but = ", but for the column itself" if told & set(some) else ""
        notes.append(f"{named} are at {at}{but}.")
    if wanted["slopes"]:
        categories = any(effects.columns[each.column] is not None for each in wanted["slopes"])
        less = "; of a category, its levels less the first one" if categories else ""
        notes.append(f"Slopes are {over}{less}.")
    if rows.fit.problem.arguments.get("groups"):
        factors = ", ".join(dict.fromkeys(g.factor for g in rows.fit.problem.arguments["groups"]))
        notes.append(f"Group effects ({factors}) are zero: this is a typical group.")
    given = [(each.column, each.values or ()) for some in wanted.values() for each in some]
    for name, values in [*given, *by]:
        if beyond := _beyond(rows, name, values):
            low, high = _range(table[name])
            notes.append(
                f"Beyond the fitted rows ({low:.5g} to {high:.5g}) is {name} = "
                f"{', '.join(map(_label, beyond))}: there the formula alone tells what is expected."
            )
    return notes
