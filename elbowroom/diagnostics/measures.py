"""The numbers that tell how good a fit is, from its draws and its ArviZ tree."""

import warnings
from typing import Any

import arviz_stats
import numpy as np
import xarray

from elbowroom.inference.importance import (
    effective_sample_size,
    k_hat_threshold,
    pareto_k_hat,
)
from elbowroom.posterior.draws import Draws

NAN = float("nan")


def measure(
    draws: Draws, tree: xarray.DataTree, point: bool, local_continuous: bool
) -> dict[str, Any]:
    """Diagnostics of a fit.

    Args:
        draws: Of the guide.
        tree: Of the fit.
        point: Whether the guide is one point, which has no density and so no bound.
        local_continuous: Whether the model has latents for each row, whose pointwise log
            likelihood says nothing of rows left out.

    Returns:
        draws; elbo and elbo_se in nats; k_hat, its threshold and the effective sample size of the
        importance weights; elpd_loo, elpd_loo_se, p_loo and the share of rows whose Pareto k is
        too high. NaN where a number has no meaning.
    """
    count = len(draws.log_p)
    found: dict[str, Any] = {"draws": count, "elbo": NAN, "elbo_se": NAN}
    found.update(k_hat=NAN, k_hat_threshold=k_hat_threshold(count), effective_sample_size=NAN)
    if not point:
        found["elbo"], found["elbo_se"] = draws.elbo()
        found["k_hat"] = pareto_k_hat(draws.log_weights)
        found["effective_sample_size"] = effective_sample_size(draws.log_weights)
    # One point says nothing of how it would move without a row.
    found.update(_no_loo() if point or local_continuous else _loo(tree))
    return found


def _no_loo() -> dict[str, float]:
    return {"elpd_loo": NAN, "elpd_loo_se": NAN, "p_loo": NAN, "high_k_rows": NAN}


def _loo(tree: xarray.DataTree) -> dict[str, float]:
    """Leave-one-out expected log predictive density (Vehtari, Gelman and Gabry, 2017)."""
    group = tree.children.get("log_likelihood")
    if group is None or len(group.data_vars) != 1:
        return _no_loo()
    (values,) = group.data_vars.values()
    if values.ndim < 3 or values.shape[1] < 100:
        return _no_loo()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of high Pareto k: reported below as a number
        # Draws of a guide are independent, so that none is lost to autocorrelation.
        try:
            loo = arviz_stats.loo(tree, pointwise=True, reff=1.0)
        except ValueError:  # a row whose likelihood is the same for every draw has no tail
            return _no_loo()
    high = float(np.mean(np.asarray(loo.pareto_k) > loo.good_k))
    return {
        "elpd_loo": float(loo.elpd),
        "elpd_loo_se": float(loo.se),
        "p_loo": float(loo.p),
        "high_k_rows": high,
    }
