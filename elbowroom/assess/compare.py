"""Several fits of one model side by side: the table, and how far their posteriors are off."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray

from elbowroom.assess.reference import AGREEMENT, distances, labelled_scalars
from elbowroom.assess.verdict import CORRECTED, TRUSTED
from elbowroom.draws.weighted import WEIGHING

NUTS = "nuts"
"""The name of the sampler among the guides."""

COLUMNS = (
    "objective", "elbo", "elbo_se", "expected_log_likelihood", "kl_to_prior", "log_likelihood",
    "k_hat", "elpd_loo", "elpd_loo_se", "seconds", "parameters", "converged", "verdict",
)  # fmt: skip

WHERE_KNOWN = (
    "active_units", "nll", "nll_se", "good_rows", "amortisation_gap", "test_log_density",
    "test_log_density_se", "test_unreliable", "test_coverage", "test_spread",
    "test_calibration_error",
)  # fmt: skip
"""Columns that a comparison has where a method has the number."""
OF_DRAWS = ["mean", "sd", "lower", "upper", "mean_shift", "sd_ratio", "coverage"]
"""What is told of a quantity's draws."""
DIFFERENCES = ["guide", "quantity", *OF_DRAWS, *(f"corrected_{name}" for name in OF_DRAWS)]


@dataclass(frozen=True)
class Ties:
    """When two ELBOs are equal."""

    errors: float = 2.0
    """Standard errors of their difference."""
    nats: float = 0.01
    """Nats that nobody would notice, where both are known exactly."""


TIES = Ties()


@dataclass(frozen=True)
class Row:
    """One method of a comparison.

    Attributes:
        name: The guide, and its objective if that was asked for.
        measures: Its diagnostics by name; empty if it failed.
        posterior: The group of its own draws; None if it failed.
        error: Why it failed.
        corrected: The group of its corrected draws; None if it has none that can be used.
    """

    name: str
    measures: dict[str, Any]
    posterior: xarray.Dataset | None
    error: str = ""
    corrected: xarray.Dataset | None = None

    @property
    def trusted(self) -> bool:
        """Whether its posterior is, perhaps after correction."""
        return self.measures.get("verdict") in (TRUSTED, CORRECTED)


def comparison_table(rows: list[Row]) -> pd.DataFrame:
    """One line a method: the trusted ones first, best ELBO first, failures last.

    Columns: the objective that was maximised; elbo and elbo_se in nats, and its parts
    expected_log_likelihood and kl_to_prior; log_likelihood where the priors are left out; k_hat,
    elpd_loo and its se, seconds, parameters, converged, verdict; best (whether no other ELBO is
    clearly higher: of the trusted ones, if there are any; several may tie); error; where a
    method has them, its active_units, nll (minus the log density of a row by importance sampling,
    in nats), good_rows (the share of rows whose weights are good), amortisation_gap in nats a row,
    and what `elbowroom.held_out` tells of test rows.
    """
    known = [name for name in WHERE_KNOWN if any(name in row.measures for row in rows)]
    lines = []
    for row in rows:
        line = {name: row.measures.get(name, np.nan) for name in (*COLUMNS, *known)}
        lines.append({"guide": row.name, **line, "error": row.error})
    table = pd.DataFrame(lines)
    for name in ("elbo", "elbo_se"):
        table[name] = pd.to_numeric(table[name])
    failed, trusted = table["error"] != "", pd.Series([row.trusted for row in rows], dtype=bool)
    order = table.assign(failed=failed, doubtful=~trusted).sort_values(
        ["failed", "doubtful", "elbo"], ascending=[True, True, False], kind="stable"
    )
    # Where no trusted one has an ELBO, the highest of the others is the best.
    known_trusted = trusted & table["elbo"].notna()
    best = _highest(table, known_trusted if known_trusted.any() else table["elbo"].notna())
    table.insert(1, "best", best)
    return table.loc[order.index].reset_index(drop=True)


def _highest(table: pd.DataFrame, among: pd.Series) -> np.ndarray:
    """Which of some lines have an ELBO that no other one's is clearly above."""
    values, errors = table["elbo"].to_numpy(), table["elbo_se"].fillna(0.0).to_numpy()
    found = among.to_numpy(copy=True)
    if found.any():
        top = int(np.where(found, values, -np.inf).argmax())
        allowed = np.maximum(TIES.errors * np.hypot(errors, errors[top]), TIES.nats)
        found &= values[top] - values <= allowed
    return found


def best_reference(rows: list[Row]) -> str | None:
    """The method whose posterior is the best reference at hand.

    The draws of NUTS; else the trusted guide with the highest ELBO, of those with at least 400
    effective draws if there are any; else the highest ELBO of all, if there is any.
    """
    there = [row for row in rows if row.posterior is not None]
    trusted = [row for row in there if row.trusted]
    resolved = [
        row for row in trusted
        if row.measures.get("corrected_effective_sample_size", 0.0) >= WEIGHING.resolved
    ]  # fmt: skip
    if any(row.name == NUTS for row in there):
        return NUTS
    for among in (resolved, trusted, there):
        known = {row.name: row.measures.get("elbo", math.nan) for row in among}
        bounds = pd.to_numeric(pd.Series(known, dtype=object)).dropna()
        if not bounds.empty:
            return str(bounds.idxmax())
    return None


def posterior_differences(rows: list[Row], best: str) -> pd.DataFrame:
    """How far each method's marginals are from those of the best reference.

    Args:
        rows: Of a comparison.
        best: The name of the method to compare with; of its draws the corrected ones, if it has
            some.

    Returns:
        One line for each method and scalar quantity. Of the guide's own draws: mean, sd, lower and
        upper, their equal-tailed 90% interval; mean_shift, the distance of the mean from the
        reference's, in the reference's sds; sd_ratio, the sd over the reference's; coverage, the
        share of the reference's draws within that interval. And `corrected_` with each of these
        names, of its corrected draws, if it has some.
    """
    reference = next((row for row in rows if row.name == best), None)
    if reference is None or reference.posterior is None:
        return pd.DataFrame(columns=DIFFERENCES)
    found = reference.posterior if reference.corrected is None else reference.corrected
    wanted = labelled_scalars(found)
    lines = []
    for row in rows:
        if row.posterior is None:
            continue
        own = labelled_scalars(row.posterior)
        corrected = {} if row.corrected is None else labelled_scalars(row.corrected)
        for quantity, draws in own.items():
            if quantity not in wanted:
                continue
            line = {"guide": row.name, "quantity": quantity, **_of(draws, wanted[quantity])}
            if quantity in corrected:
                of_corrected = _of(corrected[quantity], wanted[quantity])
                line.update({f"corrected_{name}": each for name, each in of_corrected.items()})
            lines.append(line)
    return pd.DataFrame(lines, columns=DIFFERENCES)


def _of(draws: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    """What is told of a quantity's draws beside those of the reference."""
    draws, wanted = draws.astype(float), wanted.astype(float)
    tail = (1 - AGREEMENT.interval) / 2
    lower, upper = np.quantile(draws, [tail, 1 - tail])
    off = distances(draws, wanted)
    if wanted.std() == 0:  # what the reference holds fixed has no sd to measure by
        off = dict.fromkeys(off, math.nan)
    whole = {"mean": draws.mean(), "sd": draws.std(), "lower": lower, "upper": upper, **off}
    return {name: float(value) for name, value in whole.items()}


def which_to_take(table: pd.DataFrame, advice: str = "") -> str:
    """Which guide to take, and why, in one line.

    Args:
        table: Of `comparison_table`.
        advice: What to do next where no guide is trusted, if that is known.

    Example:
        >>> rows = [
        ...     Row("laplace", {"elbo": -2.0, "verdict": "trusted"}, xarray.Dataset()),
        ...     Row("map", {"verdict": "not trusted"}, xarray.Dataset()),
        ... ]
        >>> which_to_take(comparison_table(rows))
        'Take laplace: it is the only one that is trusted.'
    """
    fitted = table[table["error"] == ""]
    if fitted.empty:
        return ""
    trusted = fitted[fitted["verdict"].isin([TRUSTED, CORRECTED])]
    if trusted.empty:
        return _where_none_is_trusted(fitted, advice)
    guides = trusted[trusted["guide"] != NUTS]
    if guides.empty:
        return "Take nuts: its chains have mixed, and no guide is trusted."
    starred = guides[guides["best"]]
    line = (starred if len(starred) else guides).sort_values("seconds", kind="stable").iloc[0]
    others = [name for name in starred["guide"] if name != line["guide"]]
    corrected = line["verdict"] == CORRECTED
    use = " Use its posterior, which is corrected, not the guide's own draws." if corrected else ""
    if len(trusted) == 1:
        why = "it is the only one that is trusted"
    elif not len(starred):
        why = f"it is trusted, and took {line['seconds']:.1f} s"
    elif others:
        tied = f"{', '.join(others[:-1])} and {others[-1]}" if others[1:] else others[0]
        why = (
            f"it is trusted, {tied} tie{'' if others[1:] else 's'} with it for the highest ELBO, "
            f"and it was the fastest of these ({line['seconds']:.1f} s)"
        )
    else:
        why = "it is trusted, and its ELBO is the highest of the trusted guides"
    return f"Take {line['guide']}: {why}.{use}"


def _where_none_is_trusted(fitted: pd.DataFrame, advice: str) -> str:
    """What to say of several lines of which none is trusted."""
    said = "Take none of them: no guide is trusted."
    scores = pd.to_numeric(fitted.get("test_log_density", pd.Series(dtype=float)))
    if scores.notna().any():
        name = fitted["guide"].iloc[int(scores.fillna(-np.inf).to_numpy().argmax())]
        said = (
            f"No guide is trusted. {name} predicts the test rows best "
            f"({scores.max():.2f} nats per row): take its predictions, not its posterior."
        )
    return f"{said} Next: {advice}" if advice else said
