"""When a stochastic fit has converged: the ELBO no longer rises by more than its noise."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NEGLIGIBLE = 0.01
"""A rise in nats, over one window, that no user of a posterior would notice."""


@dataclass(frozen=True)
class Trend:
    """The rise of the ELBO from one window of steps to the next, with its standard error."""

    rise: float
    standard_error: float

    @property
    def flat(self) -> bool:
        """Whether the rise is within two standard errors of nothing, or negligible."""
        return self.rise < 2 * self.standard_error + NEGLIGIBLE


def trend(elbo: Sequence[float], window: int) -> Trend | None:
    """Compares the last `window` estimates with those before them; None if there are too few.

    The standard error comes from ten batch means in each window, since successive estimates are
    not independent (Flegal and Jones, 2010, "Batch means and spectral variance estimators in Markov
    chain Monte Carlo"); a window is cut to a multiple of ten.

    Example:
        >>> trend([0.0] * 50 + [1.0] * 50, window=50)
        Trend(rise=1.0, standard_error=0.0)
    """
    window -= window % 10
    values = np.asarray(elbo, dtype=float)
    values = values[np.isfinite(values)][-2 * window :]
    if window < 10 or len(values) < 2 * window:
        return None
    means = values.reshape(2, 10, -1).mean(2)  # (windows, batches)
    variance = means.var(1, ddof=1).sum() / 10
    return Trend(float(means[1].mean() - means[0].mean()), float(variance**0.5))
