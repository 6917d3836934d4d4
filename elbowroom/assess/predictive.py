"""Posterior predictive checks: does the model reproduce simple statistics of what was observed?"""

from collections.abc import Callable, Mapping

import numpy as np

TAIL = 0.005
"""The share of replicated data sets beyond the observed statistic at which it is called missed."""
FLAT = 0.05
"""The share of the variance of what was observed below which predictions are said to be flat."""
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


def flat_predictions(
    observed: Mapping[str, np.ndarray], replicated: Mapping[str, np.ndarray]
) -> list[str]:
    """Says so where a network predicts nearly the same for every row.

    A guide of independent Normals may put a network's weights back to their prior, for then it
    need not know them: the fit has converged, and has learnt nothing.

    Args:
        observed: What was observed, by site, a number for each row.
        replicated: Draws of the same, (draws, rows).

    Returns:
        A sentence for each site of numbers whose predictive mean hardly differs between rows.

    Example:
        >>> random = np.random.default_rng(0)
        >>> x = random.normal(size=200)
        >>> flat_predictions({"y": x}, {"y": x + random.normal(size=(400, 200))})
        []
        >>> flat_predictions({"y": x}, {"y": random.normal(size=(400, 200))})[0][:37]
        "The prediction of 'y' is nearly the s"
    """
    sentences = []
    for name, draws in replicated.items():
        target = np.asarray(observed[name])
        if not np.issubdtype(target.dtype, np.floating) or target.ndim != 1 or len(draws) < 2:
            continue
        noise = draws.var(axis=0, ddof=1).mean() / len(draws)  # of the means of so many draws
        explained = max(0.0, draws.mean(0).var(ddof=1) - noise)
        if explained < FLAT * target.var(ddof=1):
            sentences.append(
                f"The prediction of '{name}' is nearly the same for every row: its mean has "
                f"{explained / target.var(ddof=1):.1%} of the variance of '{name}'. Unless the "
                "predictors tell nothing, the guide has put the network's weights back to their "
                "prior: fit with --kl-warm-up 3000, another --seed or a larger --prior-scale."
            )
    return sentences
