"""Posterior predictive checks: does the model reproduce simple statistics of what was observed?"""

from collections.abc import Callable, Mapping

import numpy as np
import xarray

TAIL = 0.005
"""The share of replicated data sets beyond the observed statistic at which it is called missed."""
MOST = 400
"""Replicated data sets that are looked at."""

STATISTICS: Mapping[str, Callable[..., np.ndarray]] = {
    "mean": np.mean,
    "sd": np.std,
    "smallest": np.min,
    "largest": np.max,
}


def predictive_checks(tree: xarray.DataTree) -> tuple[dict[str, float], list[str]]:
    """Compares statistics of the observed data with those of draws of the posterior predictive.

    They tell of the model, not of how well its posterior was found.

    Args:
        tree: Of a fit, with the groups posterior_predictive and observed_data.

    Returns:
        For each site and statistic, the share of replicated data sets that lie above the observed
        one; and a sentence for each site with statistics that hardly any data set reaches.
    """
    shares, sentences = {}, []
    groups = tree.children
    if "posterior_predictive" not in groups or "observed_data" not in groups:
        return {}, []
    for name, variable in groups["posterior_predictive"].data_vars.items():
        observed = groups["observed_data"][name].to_numpy().astype(float).ravel()
        if observed.size < 2:
            continue
        draws = variable.to_numpy()[0]
        replicated = draws[:: max(1, len(draws) // MOST)].reshape(-1, observed.size).astype(float)
        missed = []
        for statistic, function in STATISTICS.items():
            values, target = function(replicated, axis=1), function(observed)
            share = float(np.mean(values > target) + 0.5 * np.mean(values == target))
            shares[f"{name}.{statistic}"] = share
            if min(share, 1 - share) < TAIL:
                missed.append(statistic)
        if missed:
            what = ", ".join(missed)
            sentences.append(f"The model does not reproduce the {what} of '{name}': look at it.")
    return shares, sentences
