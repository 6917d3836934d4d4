"""A fit's posterior beside a long run of NUTS: how far they differ, and whether that matters."""

import itertools
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray
from arviz_stats.base import array_stats
from scipy.stats import wasserstein_distance

from elbowroom.draws.weighted import WEIGHING
from elbowroom.engines.nuts.sampler import MIXING, NutsDraws, mixing
from elbowroom.errors import DataError


@dataclass(frozen=True)
class Agreement:
    """Limits of the comparison with a reference."""

    distance: float = 0.3
    """The distance of means, in the reference's sds, and the log ratio of sds, up to which a
    posterior serves as well as the reference."""
    errors: float = 2.0
    """Standard errors by which a distance may exceed that."""
    divergent: float = 0.01
    """The share of divergent transitions above which the reference may have missed some mass."""
    interval: float = 0.9
    """The mass of the intervals whose coverage is reported."""


AGREEMENT = Agreement()


COLUMNS = [
    "quantity", "mean_shift", "mean_shift_error", "sd_ratio", "log_ratio_error", "coverage",
    "wasserstein", "r_hat", "effective",
]  # fmt: skip


def labelled_scalars(posterior: xarray.Dataset) -> dict[str, np.ndarray]:
    """The draws of each scalar quantity, (chains, draws), by its label.

    Example:
        >>> draws = (("chain", "draw", "column"), np.zeros((1, 5, 2)))
        >>> scalars = labelled_scalars(xarray.Dataset({"b": draws}, {"column": ["bmi", "bp"]}))
        >>> {label: values.shape for label, values in scalars.items()}
        {'b[bmi]': (1, 5), 'b[bp]': (1, 5)}
    """
    scalars = {}
    for name, variable in posterior.data_vars.items():
        values = variable.transpose("chain", "draw", ...)
        inner = values.dims[2:]
        labels = itertools.product(*(values[dim].to_numpy() for dim in inner))
        for place, key in zip(np.ndindex(values.shape[2:]), labels, strict=True):
            label = f"{name}[{', '.join(map(str, key))}]" if inner else str(name)
            scalars[label] = values.to_numpy()[:, :, *place]
    return scalars


def compare_with_reference(posterior: xarray.Dataset, reference: xarray.Dataset) -> pd.DataFrame:
    """How each scalar quantity's posterior differs from the reference's.

    Args:
        posterior: Of a fit, with dims chain and draw.
        reference: Draws of NUTS of the same quantities, in the same units and order of labels.

    Returns:
        One line a quantity:

        - quantity: its label;
        - mean_shift: the posterior's mean less the reference's, in the reference's sds, and
          mean_shift_error, its Monte Carlo standard error, both samples' together;
        - sd_ratio: the posterior's sd over the reference's, and log_ratio_error, the standard
          error of its logarithm;
        - coverage: the share of the reference's draws within the posterior's equal-tailed
          90% interval: 0.9 if they agree;
        - wasserstein: the distance of the two distributions, in the reference's sds;
        - r_hat, effective: the reference's rank-normalised split R-hat and bulk effective sample
          size.

        A quantity that the reference holds fixed has shift 0 and ratio 1 if the posterior holds it
        at the same value; else one of them is infinite. A reference without draws gives no lines.

    Raises:
        DataError: If they share no quantity.

    Example:
        >>> random = np.random.default_rng(0)
        >>> wide, narrow = random.normal(size=(4, 1000)), 0.5 * random.normal(size=(1, 4000)) + 1
        >>> reference = xarray.Dataset({"b": (("chain", "draw"), wide)})
        >>> table = compare_with_reference(
        ...     xarray.Dataset({"b": (("chain", "draw"), narrow)}), reference
        ... )
        >>> table[["mean_shift", "sd_ratio", "coverage", "wasserstein"]].round(1).values.tolist()
        [[1.0, 0.5, 0.4, 1.0]]
    """
    found, wanted = labelled_scalars(posterior), labelled_scalars(reference)
    shared = [label for label in wanted if label in found]
    if not shared:
        raise DataError(
            f"the posterior ({', '.join(found) or 'empty'}) and the reference "
            f"({', '.join(wanted) or 'empty'}) have no quantity in common; give a reference of the "
            "same model."
        )
    lines = [_line(each, found[each], wanted[each]) for each in shared if wanted[each].size]
    return pd.DataFrame(lines, columns=COLUMNS)


@np.errstate(divide="ignore", invalid="ignore")
def _line(label: str, found: np.ndarray, wanted: np.ndarray) -> dict[str, object]:
    """One quantity's line, from draws of the posterior and the reference, (chains, draws) each."""
    found, wanted = found.astype(float), wanted.astype(float)
    own, sd = found.std(), wanted.std()
    (r_hat,), (effective,) = mixing(wanted[None])
    mean_error = np.hypot(_error(found, "mean"), _error(wanted, "mean")) / sd
    ratio_error = np.hypot(_error(found, "sd") / own, _error(wanted, "sd") / sd)
    return {
        "quantity": label,
        **distances(found, wanted),
        "mean_shift_error": float(mean_error),
        "log_ratio_error": float(ratio_error),
        "wasserstein": float(wasserstein_distance(found.ravel(), wanted.ravel()) / sd),
        "r_hat": float(r_hat),
        "effective": float(effective),
    }


@np.errstate(divide="ignore", invalid="ignore")
def distances(found: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    """The mean_shift, sd_ratio and coverage of draws beside a reference's; see the table's."""
    off, own, sd = found.mean() - wanted.mean(), found.std(), wanted.std()
    lower, upper = np.quantile(found, [(1 - AGREEMENT.interval) / 2, (1 + AGREEMENT.interval) / 2])
    return {
        "mean_shift": float(off / sd if off or sd else 0.0),
        "sd_ratio": float(own / sd if own or sd else 1.0),
        "coverage": float(np.mean((wanted >= lower) & (wanted <= upper))),
    }


def _error(draws: np.ndarray, of: str) -> float:
    """The Monte Carlo standard error of a mean or sd; 0 where draws are too few to tell."""
    if draws.shape[1] < 4:
        return 0.0
    return float(array_stats.mcse(draws, method=of))


def how_well(r_hat: float, effective: float, divergences: int) -> str:
    """How well chains have mixed, in words."""
    words = f"R-hat {r_hat:.3f}, {effective:,.0f} effective draws"
    return (
        f"{words}, {divergences:,} divergence{'' if divergences == 1 else 's'}"
        if divergences
        else words
    )


def reference_sentence(table: pd.DataFrame, nuts: NutsDraws) -> tuple[str, bool] | None:
    """What a comparison with NUTS says, and whether the posterior agrees with it.

    They agree if every mean is within 0.3 of the reference's sds and every sd within a factor of
    e^0.3 either way, but for twice the Monte Carlo error.

    Whether the reference has converged is asked of the quantities in the table: in the
    unconstrained space the chains of a mixture may differ by labels alone.

    Args:
        table: Of `compare_with_reference`.
        nuts: The run that it is about.

    Returns:
        None where it says nothing: a quantity has R-hat above 1.01 or fewer than 400 effective
        draws, or more than 1% of the draws diverged.

    Example:
        >>> table = pd.DataFrame([dict.fromkeys(COLUMNS, 0.0)]).assign(
        ...     quantity="b", mean_shift=-1.2, sd_ratio=1.1, r_hat=1.0, effective=900.0
        ... )
        >>> nothing = np.zeros((4, 500, 1))
        >>> nuts = NutsDraws(nothing, 0, np.ones(1), np.ones(1), 0.0, "nutpie", "complete")
        >>> sentence, agrees = reference_sentence(table, nuts)
        >>> agrees, sentence.partition(": ")[2]
        (False, 'the mean of b is too low by 1.2 sds of NUTS.')
    """
    fixed = table["r_hat"].isna() & (table["mean_shift"] == 0) & (table["sd_ratio"] == 1)
    varying = table[~fixed]
    total = nuts.points.shape[0] * nuts.points.shape[1]
    r_hat, effective = varying["r_hat"].max(skipna=False), varying["effective"].min(skipna=False)
    reliable = r_hat <= MIXING.r_hat and effective >= WEIGHING.resolved
    if varying.empty or not reliable or nuts.divergences > AGREEMENT.divergent * total:
        return None
    with np.errstate(divide="ignore"):
        shifts = varying["mean_shift"].abs()
        ratios = np.log(varying["sd_ratio"]).abs()
    far = _beyond(varying["quantity"], shifts, varying["mean_shift_error"])
    wide = _beyond(varying["quantity"], ratios, varying["log_ratio_error"])
    which = f"NUTS ({how_well(r_hat, effective, nuts.divergences)})"
    if far is None and wide is None:
        return (
            f"The posterior agrees with {which}: its means are within {shifts.max():.2g} sds of "
            f"NUTS, and its sds within a factor of {np.exp(ratios.max()):.3g}."
        ), True
    parts = []
    if far is not None:
        low = "low" if varying["mean_shift"][far[0]] < 0 else "high"
        parts.append(f"the mean of {far[1]} is too {low} by {shifts[far[0]]:.2g} sds of NUTS")
    if wide is not None:
        ratio = varying["sd_ratio"][wide[0]]
        parts.append(f"the sd of {wide[1]} is {ratio:.2g} times that of NUTS")
    return f"The posterior differs from {which}: {' and '.join(parts)}.", False


def _beyond(names: pd.Series, distances: pd.Series, errors: pd.Series) -> tuple[int, str] | None:
    """The quantity that is farthest beyond what is usable, by its place and name."""
    excess = (distances - AGREEMENT.errors * errors).fillna(np.inf)
    worst = int(excess.to_numpy().argmax())
    if excess.iloc[worst] <= AGREEMENT.distance:
        return None
    return excess.index[worst], str(names.iloc[worst])
