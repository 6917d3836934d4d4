"""Posterior predictive checks: does the model reproduce simple statistics of what was observed?"""

from collections.abc import Callable, Mapping

import numpy as np

TAIL = 0.005
"""The share of replicated data sets beyond the observed statistic at which it is called missed."""
STATISTICS: Mapping[str, tuple[str, Callable[..., np.ndarray]]] = {
    "mean": ("mean", np.mean),
    "sd": ("sd", np.std),
    "smallest": ("smallest value", np.min),
    "largest": ("largest value", np.max),
}
"""For each statistic, its name in a sentence, and how it is computed."""


def predictive_checks(
    observed: Mapping[str, np.ndarray], replicated: Mapping[str, np.ndarray]
) -> tuple[dict[str, float], list[str]]:
    """Compares statistics of the observed data with those of draws of the posterior predictive.

    They tell of the model, not of how well its posterior was found.

    Args:
        observed: What was observed, by site.
        replicated: Draws of the same, (draws, ...).

    Returns:
        For each site and statistic, the share of replicated data sets that lie above the observed
        one; and a sentence for each site with statistics that hardly any data set reaches.

    Example:
        >>> random = np.random.default_rng(0)
        >>> _, sentences = predictive_checks(
        ...     {"y": np.array([0.1, 9.0, 0.2])}, {"y": random.normal(size=(500, 3))}
        ... )
        >>> sentences[0].partition(":")[0]
        "The model does not reproduce the mean, sd and largest value of 'y'"
    """
    shares, sentences = {}, []
    for name, draws in replicated.items():
        target = np.asarray(observed[name]).ravel()
        if target.size < 2:
            continue
        flat = np.asarray(draws).reshape(-1, target.size)
        missed = []
        for statistic, (words, function) in STATISTICS.items():
            with np.errstate(over="ignore", invalid="ignore"):  # of squares of far replicates
                values, seen = function(flat, axis=1), function(target)
            share = float(np.mean(values > seen) + 0.5 * np.mean(values == seen))
            shares[f"{name}.{statistic}"] = share
            if min(share, 1 - share) < TAIL:
                missed.append(words)
        if missed:
            what = ", ".join(missed[:-1]) + " and " * (len(missed) > 1) + missed[-1]
            sentences.append(
                f"The model does not reproduce the {what} of '{name}': compare the group "
                "posterior_predictive of posterior.nc with the data."
            )
    return shares, sentences
