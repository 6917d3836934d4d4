"""A posterior beside a reference: how far its means, sds, intervals and shapes are off."""

import numpy as np
import pandas as pd
import xarray
from scipy.stats import wasserstein_distance

from elbowroom.diagnostics.compare import scalar_draws
from elbowroom.inference.nuts import NutsDraws

AGREE = 0.3
"""The shift of a mean, in the reference's sds, and the log ratio of sds, up to which two agree."""
ERRORS = 3.0
"""Standard errors of the reference's own moments that are allowed beyond that."""
INTERVAL = 0.9


def compare_with_reference(posterior: xarray.Dataset, reference: xarray.Dataset) -> pd.DataFrame:
    """How each scalar quantity of a posterior differs from a reference's draws.

    Args:
        posterior: With dims chain and draw.
        reference: The same.

    Returns:
        One line for each quantity that both hold: `mean_shift`, in the reference's sds;
        `sd_ratio`, over the reference's sd; `coverage`, the share of the reference's draws in the
        posterior's equal-tailed 90 % interval; `wasserstein`, the Wasserstein-1 distance in the
        reference's sds. Quantities that do not vary in the reference are left out.

    Example:
        >>> draws = np.random.default_rng(0).normal(size=(1, 4000))
        >>> one = xarray.Dataset({"x": (("chain", "draw"), draws)})
        >>> table = compare_with_reference(one + 1.0, one)
        >>> table[["mean_shift", "wasserstein"]].round(1).iloc[0].tolist()
        [1.0, 1.0]
    """
    ours, theirs = scalar_draws(posterior), scalar_draws(reference)
    lines = []
    for quantity, draws in theirs.items():
        sd = draws.std()
        if quantity not in ours or not sd > 0:
            continue
        own = ours[quantity]
        lower, upper = np.quantile(own, [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2])
        lines.append(
            {
                "quantity": quantity,
                "mean_shift": float((own.mean() - draws.mean()) / sd),
                "sd_ratio": float(own.std() / sd),
                "coverage": float(np.mean((draws >= lower) & (draws <= upper))),
                "wasserstein": float(wasserstein_distance(own, draws) / sd),
            }
        )
    columns = ["quantity", "mean_shift", "sd_ratio", "coverage", "wasserstein"]
    return pd.DataFrame(lines, columns=columns)


def reference_sentence(table: pd.DataFrame, nuts: NutsDraws) -> tuple[str, bool] | None:
    """What a comparison with NUTS says, and whether the posterior agrees with it.

    None where it says nothing: the chains have not mixed, or the run has no draws.
    """
    if not nuts.converged or table.empty:
        return None
    shift = float(table["mean_shift"].abs().max())
    ratio = float(np.log(table["sd_ratio"]).abs().max())
    allowed = AGREE + ERRORS / nuts.fewest_effective**0.5
    agrees = shift <= allowed and ratio <= allowed
    word = "agrees with" if agrees else "differs from"
    sentence = (
        f"The posterior {word} NUTS (R-hat {nuts.worst_r_hat:.3f}, {nuts.fewest_effective:,.0f} "
        f"effective draws): means within {shift:.2g} sd, sds within a factor {np.exp(ratio):.3g}."
    )
    return sentence, agrees
