"""One row left out by fitting again, where weights do not reach the posterior without it."""

from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit

from elbowroom.draws.predict import row_log_likelihood
from elbowroom.engines.fixed_draws.engine import why_not
from elbowroom.engines.settings import Way, only_read
from elbowroom.engines.task import Task
from elbowroom.errors import GuideError
from elbowroom.pipeline.fitting import fit_task
from elbowroom.pipeline.reference import add_reference
from elbowroom.result import Fit


@dataclass(frozen=True)
class Bridge:
    """When two posteriors overlap enough."""

    error: float = 0.5
    """The standard error of a row's log density in nats, up to which it is taken."""


BRIDGE = Bridge()


def log_density_without(fit: Fit, row: int) -> float:
    """The log density of a row given all others, in nats, from a fit of these.

    The same model with the same priors and scales is fitted by `auto`, and by NUTS where the fit
    consists of its draws; the row's likelihood is left out (Vehtari, Gelman and Gabry, 2017,
    "Practical Bayesian model evaluation", section 2.1). The draws of both posteriors are put
    together: see `bridged`.

    Args:
        fit: Of all rows, without latents of its own for each row.
        row: Its number among the values of the log likelihood, from 0.

    Raises:
        GuideError: If the posterior without the row cannot be fitted, is not trusted, or is too far
            from that of all rows.

    Example:
        >>> import elbowroom as er
        >>> fit = er.fit("bayesian_regression", "diabetes", formula="progression ~ bmi", seed=1)
        >>> round(log_density_without(fit, 0), 1)
        -5.5
    """
    problem = fit.problem.original or fit.problem
    left = replace(problem, start={}).without_row(row)
    reason = why_not(left)
    if reason is not None:
        raise GuideError(f"it cannot be fitted without a row: {reason}.")
    settings = only_read(fit.settings, left.model.suggested, Way("fixed_draws"))
    again = fit_task(Task(left, settings, fit.seed, fit.measures["draws"]), "auto")
    if fit.origin == "nuts":
        again = add_reference(again, take=True)
    if not again.verdict.trusted or again.origin == "raw":
        why = [*again.verdict.reasons, again.trained.reason][0]
        raise GuideError(f"the fit without row {row + 1} is not trusted: {why}")
    _, sites = again.as_written(again.global_sites())
    with problem.session(0, again.parameters):
        values = row_log_likelihood(problem, problem.arguments, sites)
    (known,) = fit.posterior["log_likelihood"].data_vars.values()
    chains, draws, *_ = known.shape
    found, error = bridged(
        known.to_numpy().reshape(chains * draws, -1)[:, row],
        values.reshape(len(values), -1)[:, row],
    )
    if not error <= BRIDGE.error:
        raise GuideError(
            f"row {row + 1} lies so far out that the draws with it and without it hardly overlap "
            f"(its log density is {found:.1f} ± {error:.1f} nats)."
        )
    return found


def bridged(given: np.ndarray, left_out: np.ndarray) -> tuple[float, float]:
    """The log density of a row given the others, by bridge sampling between two posteriors.

    The mean of the row's likelihood over draws without it rests on few of them where the row is
    unlikely. The optimal bridge takes those of both posteriors (Bennett, 1976; Meng and Wong, 1996,
    "Simulating ratios of normalizing constants via a simple identity"): r solves

        sum of s(r - l[i] - m) over draws with the row = sum of s(m + l[j] - r) over those without

    with s the logistic function and m the log ratio of the numbers of draws.

    Args:
        given: The row's log likelihood l at draws of the posterior of all rows, (draws,).
        left_out: The same at draws of the posterior without it, (draws,).

    Returns:
        The log density and its standard error, in nats.

    Example:
        >>> value, error = bridged(np.full(100, -1.0), np.full(200, -1.0))
        >>> round(value, 6), round(error, 6)
        (-1.0, 0.0)
    """
    more = np.log(len(given) / len(left_out))
    both = np.concatenate([given, left_out])

    def excess(r: float) -> float:
        return float(expit(r - given - more).sum() - expit(more + left_out - r).sum())

    beyond = 1 + abs(more)
    r = float(brentq(excess, both.min() - beyond, both.max() + beyond, xtol=1e-10))
    share = expit(more + both - r)
    variance = 1 / max((share * (1 - share)).sum(), 1e-300) - 1 / len(given) - 1 / len(left_out)
    return r, float(np.sqrt(max(variance, 0.0)))
