"""Models of the same observations side by side: densities of rows left out, and which to take."""

import warnings
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import arviz_stats
import numpy as np
import pandas as pd
from arviz_stats.utils import ELPDData

from elbowroom.assess.measures import high_k
from elbowroom.assess.verdict import NOT_TRUSTED
from elbowroom.errors import DataError

COLUMNS = (
    "model", "rank", "elpd_loo", "elpd_loo_se", "elpd_diff", "elpd_diff_se", "p_loo", "weight",
    "rows", "high_k_rows", "refitted_rows", "verdict",
)  # fmt: skip


@dataclass(frozen=True)
class Telling:
    """When two models can be told apart."""

    errors: float = 2.0
    """Standard errors of their difference."""
    nats: float = 4.0
    """Nats below which a difference is small, and its standard error too low."""
    rows: int = 100
    """Rows below which standard errors are rough."""
    same: float = 1e-6
    """Relative difference up to which two responses are equal, as float32 rounds them."""
    shown: int = 3
    """Rows that a sentence names."""


TELLING = Telling()


@dataclass(frozen=True)
class Observed:
    """What a model was fitted to.

    Attributes:
        name: Of the model.
        values: The observed values, by column, each (rows, ...).
        beside: What else says what a row counts for, such as its weight, by name.
        units: How many log densities are left out.
        whole: Whether what it predicts are whole numbers; None where that is not known.
    """

    name: str
    values: Mapping[str, np.ndarray]
    beside: Mapping[str, np.ndarray]
    units: int
    whole: bool | None = None


@dataclass(frozen=True)
class Candidate:
    """One model of a comparison.

    Attributes:
        name: In the table.
        loo: ArviZ's result, with `elpd_i` and `pareto_k` of each row.
        verdict: The level of its fit's verdict.
        refitted: The log densities of rows that were left out by fitting again, by row, from 0.
    """

    name: str
    loo: ELPDData
    verdict: str
    refitted: Mapping[int, float] = field(default_factory=dict)

    @property
    def trusted(self) -> bool:
        """Whether its fit is, perhaps after correction."""
        return self.verdict != NOT_TRUSTED

    @property
    def elpd_i(self) -> np.ndarray:
        """The log density of each row given the others, in nats, (rows,)."""
        found = np.array(self.loo.elpd_i, dtype=float).ravel()
        for row, value in self.refitted.items():
            found[row] = value
        return found

    @property
    def pareto_k(self) -> np.ndarray:
        """Pareto's k of each row's importance weights, also of a row that was refitted, (rows,)."""
        return np.ravel(self.loo.pareto_k)

    @property
    def unreliable(self) -> np.ndarray:
        """Whether a row's k is above the limit, and it was not refitted, (rows,)."""
        found = high_k(self.loo)
        found[list(self.refitted)] = False
        return found

    @property
    def result(self) -> ELPDData:
        """ArviZ's result with what was refitted in its place, as `arviz_stats.reloo` gives it."""
        found, own = copy(self.loo), self.elpd_i
        before = np.ravel(self.loo.elpd_i)
        found.elpd_i = self.loo.elpd_i.copy(data=own.reshape(self.loo.elpd_i.shape))
        found.elpd = float(own.sum())
        found.se = float(np.sqrt(len(own) * own.var()))
        found.p = float(self.loo.p + (before - own).sum())
        found.warning = bool(self.unreliable.any())
        return found


def check_same_observations(models: Sequence[Observed]) -> None:
    """Sees that models predict the same values of the same rows.

    Raises:
        DataError: At the first that does not; what differs is named.
    """
    first = models[0]
    for other in models[1:]:
        pair = f"'{first.name}' and '{other.name}' cannot be compared"
        if first.units != other.units:
            _check_number(first, other, pair)
        one, two = _paired(first, other, pair)
        for name, values in one.items():
            own, others = values.reshape(len(values), -1), two[name].reshape(len(two[name]), -1)
            _check_values(first, other, own, others, name, pair)
        for name in dict.fromkeys([*first.beside, *other.beside]):
            had, has = first.beside.get(name), other.beside.get(name)
            if had is None or has is None:
                lacking = first.name if had is None else other.name
                raise DataError(f"{pair}: '{lacking}' was fitted without {name}; fit both alike.")
            if had.shape != has.shape or not np.allclose(had, has, rtol=TELLING.same):
                raise DataError(f"{pair}: they were fitted with different {name}; fit both alike.")


def _check_number(first: Observed, other: Observed, pair: str) -> None:
    rows = [len(next(iter(each.values.values()), ())) for each in (first, other)]
    if rows[0] == rows[1]:
        raise DataError(
            f"{pair}: of the same {rows[0]:,} rows '{first.name}' has {first.units:,} log "
            f"densities and '{other.name}' {other.units:,}, as one leaves out groups or cells; "
            "give both models one value for each row."
        )
    raise DataError(
        f"{pair}: '{first.name}' was fitted to {first.units:,} rows and '{other.name}' to "
        f"{other.units:,}; fit both to the same rows (rows with missing cells are left out where a "
        "model needs the column)."
    )


def _paired(first: Observed, other: Observed, pair: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The observed values of two models by the names of the first; one value each may be renamed.

    Raises:
        DataError: If they predict different columns.
    """
    one, two = dict(first.values), dict(other.values)
    if len(one) == len(two) == 1:
        return one, dict(zip(one, two.values(), strict=True))
    if set(one) != set(two):
        raise DataError(
            f"{pair}: '{first.name}' predicts {_listed(one)}, and '{other.name}' {_listed(two)}; "
            "fit both to the same columns."
        )
    return one, two


def _listed(names: Mapping[str, Any]) -> str:
    shown = [f"'{name}'" for name in names][: TELLING.shown]
    return ", ".join(shown) + (", ..." if len(names) > len(shown) else "")


def _check_values(
    first: Observed, other: Observed, own: np.ndarray, others: np.ndarray, name: str, pair: str
) -> None:
    same = own.shape == others.shape
    if same:
        scale = TELLING.same * max(1e-300, float(np.nanmax(np.abs(own), initial=0.0)))
        close = np.isclose(own, others, rtol=TELLING.same, atol=scale, equal_nan=True)
        if close.all():
            return
    its_name = name if len(other.values) > 1 else next(iter(other.values))
    if its_name != name:
        hint = "a density of one is none of the other"
        if its_name in name or name in its_name:
            hint = "after a transformation of the response densities are in other units"
        family = " (for the logarithm, --family lognormal)" if "log" in f"{name}{its_name}" else ""
        raise DataError(
            f"{pair}: '{first.name}' predicts '{name}', and '{other.name}' '{its_name}'; {hint}: "
            f"fit both to the same response{family}."
        )
    if not same:
        raise DataError(
            f"{pair}: '{name}' has the shape {own.shape} in one and {others.shape} in the other; "
            "fit both to the same values."
        )
    wrong = np.flatnonzero(~close.all(1))
    if np.allclose(np.sort(own, 0), np.sort(others, 0), rtol=TELLING.same, equal_nan=True):
        raise DataError(
            f"{pair}: their rows are in another order, as '{name}' shows from row {wrong[0] + 1} "
            "on; fit both to the same table."
        )
    rows = ", ".join(
        f"{row + 1} ({_value(own[row])} and {_value(others[row])})"
        for row in wrong[: TELLING.shown]
    )
    more = ", ..." if len(wrong) > TELLING.shown else ""
    raise DataError(
        f"{pair}: '{name}' differs in {len(wrong):,} of {len(own):,} rows, such as {rows}{more}; "
        "fit both to the same rows and the same response."
    )


def _value(row: np.ndarray) -> str:
    return ", ".join(f"{each:g}" for each in row[: TELLING.shown])


def models_table(models: Sequence[Candidate]) -> tuple[pd.DataFrame, list[str]]:
    """One line a model: those that are trusted first, the highest elpd first.

    Columns: rank, from 1, and weight, of stacking (Yao, Vehtari, Simpson and Gelman, 2018, "Using
    stacking to average Bayesian predictive distributions"), of the trusted ones, or of all where
    none is trusted; elpd_loo and elpd_loo_se in nats; elpd_diff and elpd_diff_se, how far the elpd
    is below the first line's, as in ArviZ, so that it is zero or positive where models are trusted;
    p_loo, the effective number of parameters; rows; high_k_rows, those whose Pareto k is above the
    limit and that were not refitted; refitted_rows; verdict.

    Returns:
        The table, and what ArviZ warns of.
    """
    ranked = [each for each in models if each.trusted] or list(models)
    results = {each.name: each.result for each in models}
    said: list[str] = []
    if len(ranked) == 1:
        places, weights = [ranked[0].name], {ranked[0].name: 1.0}
    else:
        found = _compared({each.name: results[each.name] for each in ranked}, said)
        places = [str(name) for name in found.index]
        weights = dict(zip(places, found["weight"], strict=True))
    others = sorted(
        (each.name for each in models if each.name not in places), key=lambda n: -results[n].elpd
    )
    known = {each.name: each for each in models}
    lines = []
    for name in (*places, *others):
        model, result = known[name], results[name]
        difference, error = _difference(results[places[0]], result)
        lines.append({
            "model": name,
            "rank": places.index(name) + 1 if name in places else np.nan,
            "elpd_loo": result.elpd,
            "elpd_loo_se": result.se,
            "elpd_diff": difference,
            "elpd_diff_se": error,
            "p_loo": result.p,
            "weight": weights.get(name, np.nan),
            "rows": result.n_data_points,
            "high_k_rows": int(model.unreliable.sum()),
            "refitted_rows": len(model.refitted),
            "verdict": model.verdict,
        })  # fmt: skip
    table = pd.DataFrame(lines, columns=COLUMNS)
    return table.astype({"rank": "Int64", "elpd_loo": float, "elpd_loo_se": float}), said


def _compared(results: Mapping[str, ELPDData], said: list[str]) -> pd.DataFrame:
    """ArviZ's comparison, the highest elpd first.

    What a row's densities have in common is taken off: it changes neither differences nor weights,
    and the densities of wide rows would be zero in float64.
    """
    common = np.max([each.elpd_i.to_numpy() for each in results.values()], axis=0)
    shifted = {}
    for name, each in results.items():
        shifted[name] = copy(each)
        shifted[name].elpd_i = each.elpd_i.copy(data=each.elpd_i.to_numpy() - common)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        found = arviz_stats.compare(shifted)
    said += [str(each.message) for each in seen if each.category is UserWarning]
    return found


def _difference(best: ELPDData, other: ELPDData) -> tuple[float, float]:
    """How far an elpd is below the best one, and its standard error, from the pairs of rows."""
    rows = np.ravel(best.elpd_i) - np.ravel(other.elpd_i)
    return float(rows.sum()), float(np.sqrt(len(rows) * rows.var()))


def rows_table(models: Sequence[Candidate]) -> pd.DataFrame:
    """One line for each model and row: model, row (from 1), elpd in nats, pareto_k, refitted."""
    tables = []
    for each in models:
        elpd = each.elpd_i
        refitted = np.isin(np.arange(len(elpd)), list(each.refitted))
        columns = {
            "model": each.name, "row": np.arange(1, len(elpd) + 1), "elpd": elpd,
            "pareto_k": each.pareto_k, "refitted": refitted,
        }  # fmt: skip
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables, ignore_index=True)


def which_model(table: pd.DataFrame) -> str:
    """Which model to take, and whether the difference is more than its error, in one sentence.

    A difference counts if it is more than four nats and two of its standard errors (Sivula,
    Magnusson, Matamoros and Vehtari, 2020, "Uncertainty in Bayesian leave-one-out cross-validation
    based model comparison").

    Args:
        table: Of `models_table`.

    Example:
        >>> table = pd.DataFrame({
        ...     "model": ["a", "b"], "elpd_diff": [0.0, 10.0], "elpd_diff_se": [0.0, 3.0],
        ...     "rows": [200, 200], "verdict": ["trusted", "trusted"]})
        >>> which_model(table).partition(", which")[0]
        "Take 'a': its elpd is 10.0 ± 3.0 nats above that of 'b', the next"
    """
    ranked = table[table["verdict"] != NOT_TRUSTED]
    if ranked.empty:
        return "Take none of them: no model is trusted."
    best, others = ranked["model"].iloc[0], ranked.iloc[1:]
    if others.empty:
        return f"Take '{best}': it is the only one that is trusted."
    limit = np.maximum(TELLING.errors * others["elpd_diff_se"], TELLING.nats)
    tied = others[others["elpd_diff"] <= limit]
    if tied.empty:
        after = others.iloc[0]
        return (
            f"Take '{best}': its elpd is {_pm(after)} nats above that of '{after['model']}', the "
            "next, which is more than twice the standard error."
        )
    names = _joined([f"'{name}'" for name in tied["model"]])
    small = tied["elpd_diff"] <= TELLING.nats
    noisy = tied["elpd_diff"] <= TELLING.errors * tied["elpd_diff_se"]
    limits = [f"{TELLING.nats:g} nats"] * (not noisy.all())
    limits += ["twice the standard error"] * (not small.all() or bool(noisy.all()))
    differences = _joined([_pm(line) for _, line in tied.iterrows()])
    return (
        f"Take '{best}', whose elpd is the highest, or {names}: {table['rows'].iloc[0]:,} rows "
        f"cannot tell them apart, as it is higher by {differences} nats, less than "
        f"{' or '.join(limits)}."
    )


def _joined(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if words[1:] else words[0]


def _pm(line: Any) -> str:
    return f"{line['elpd_diff']:.1f} ± {line['elpd_diff_se']:.1f}"


def remarks_on(models: Sequence[Candidate], table: pd.DataFrame) -> list[str]:
    """What a reader of the table should know: doubts about fits, rows and errors, in sentences."""
    said = []
    best = table.iloc[0]
    some = any(each.trusted for each in models)
    for each in models:
        if each.trusted:
            continue
        line = table[table["model"] == each.name].iloc[0]
        text = f"'{each.name}' is not trusted"
        if some:
            text += ", so it has no rank and no weight"
            if line["elpd_diff"] < 0:
                text += f"; its elpd may be wrong, though it is above that of '{best['model']}'"
        said.append(f"{text}.")
    for each in models:
        rows = np.flatnonzero(each.unreliable)
        if not len(rows):
            continue
        worst = rows[np.argsort(-np.nan_to_num(each.pareto_k[rows], nan=np.inf), kind="stable")]
        shown = ", ".join(f"{row + 1} ({each.pareto_k[row]:.2f})" for row in worst[: TELLING.shown])
        more = ", ..." if len(worst) > TELLING.shown else ""
        fix = f"; --refit {len(rows)} leaves such rows out by fitting again" if each.trusted else ""
        said.append(
            f"'{each.name}': Pareto k is above the limit {each.loo.good_k:.2f} for {len(rows):,} "
            f"of {len(each.pareto_k):,} rows, {shown}{more}, so its elpd is unreliable{fix}."
        )
    for each in models:
        if each.refitted:
            again = len(each.refitted)
            by_weights = float(np.ravel(each.loo.elpd_i).sum())
            said.append(
                f"'{each.name}': {again:,} row{'s were' if again > 1 else ' was'} left out by "
                f"fitting again; by importance weights alone its elpd is {by_weights:.1f} nats."
            )
    count = int(table["rows"].iloc[0])
    if count < TELLING.rows:
        said.append(f"With only {count:,} rows the standard errors are rough.")
    return said
