"""When a stochastic fit has converged, and at which rate it goes on until then."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from elbowroom.engines.svi.iterates import ITERATES, Iterates
from elbowroom.engines.svi.stepping import FlatParameters


@dataclass(frozen=True)
class Stopping:
    """When a run is stopped."""

    negligible: float = 0.01
    """A rise in nats that no user of a posterior would notice; of held-out rows, nats a row."""
    cut: float = 0.25
    """The factor by which a learning rate is cut."""
    noticed: float = 1.0
    """Nats by which an ELBO must fall to count as worse."""
    few_steps: int = 50
    """Steps below which a mean ELBO says nothing."""
    worse: int = 3
    """Windows in a row with a worse ELBO, after which the rate is cut."""
    grown: float = 1.3
    """How many times as long a window of iterates must be before its mean is evaluated again."""


STOPPING = Stopping()


@dataclass(frozen=True)
class Trend:
    """The rise of the ELBO from one window of steps to the next, with its standard error."""

    rise: float
    standard_error: float

    @property
    def level(self) -> bool:
        """Whether the rise is within two standard errors of nothing, or negligible."""
        return self.rise < 2 * self.standard_error + STOPPING.negligible


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


def level(elbo: Sequence[float], window: int) -> tuple[float, float]:
    """The mean of the last `window` estimates, and its standard error by ten batch means."""
    values = np.asarray(elbo[-window:], dtype=float)
    values = values[np.isfinite(values)]
    means = values[len(values) % 10 :].reshape(10, -1).mean(1)
    return float(means.mean()), float(means.std(ddof=1) / 10**0.5)


class Rule(Protocol):
    """What decides on the learning rate, on the end and on the parameters that are kept.

    Attributes:
        moves: Whether the parameters shall go on from `kept`.
    """

    moves: bool

    @property
    def iterates(self) -> Iterates | None:
        """What it looks at, which takes in each step."""

    @property
    def found(self) -> str:
        """What was seen when the run converged."""

    @property
    def unmet(self) -> str:
        """What was not seen in its budget."""

    def factor(self, step: int) -> float:
        """What the learning rate of a step is multiplied by."""

    def look(self, elbo: Sequence[float]) -> str | None:
        """Looks at the run so far, of which it is told the ELBO; a status if it shall end."""

    def end(self, elbo: Sequence[float]) -> str:
        """The status of a run whose budget ends."""

    def kept(self) -> list[Tensor] | None:
        """The parameters to keep, where they are not the last ones."""

    def restart(self) -> None:
        """Forgets the steps since the rate was cut: the parameters were put back."""

    def begin(self, elbo: Sequence[float]) -> None:
        """Begins here: what the run was told so far, in a warm-up, was not the ELBO."""

    def state(self) -> dict[str, Any]:
        """All that it holds."""

    def restore(self, state: dict[str, Any]) -> None:
        """Takes in what `state` gave; without its iterates, if they shall be begun anew."""


class Distance(Protocol):
    """See `elbowroom.engines.svi.movement.Movement`."""

    def __call__(self, one: list[Tensor], two: list[Tensor], tolerance: float) -> float:
        """The distance of two sets of parameters as a multiple of the tolerance."""

    def rises_beyond(self, one: list[Tensor], two: list[Tensor]) -> bool:
        """Whether the ELBO rises where the way from one to the other leads."""


class Stationary:
    """The rate is cut when the iterates are stationary, until a cut no longer moves their mean.

    At each rate: steps are made until a window of iterates is stationary, and on until the standard
    error of its mean is half the tolerance, as its halves show. If that mean lies so near to the
    one at the rate before that further cuts would move it by half the tolerance too, the run has
    converged; else it goes on from there at a quarter of the rate (Welandawe, Andersen,
    Vehtari and Huggins, 2024, "A framework for improving the reliability of black-box variational
    inference"). A rate at which the ELBO becomes worse than it was is cut as well, and the run goes
    back to where it was best.

    Args:
        parameters: That are optimised.
        distance: Of two sets of parameters, as a multiple of a tolerance in posterior standard
            deviations; see `elbowroom.engines.svi.movement.Movement`.
        tolerance: Posterior standard deviations that a quantity may be off by.
        rises: Whether the ELBO that it is told is what is maximised.
    """

    def __init__(
        self,
        parameters: FlatParameters,
        distance: Distance,
        tolerance: float,
        rises: bool = True,
    ) -> None:
        self.rises = rises
        self.iterates = Iterates(parameters)
        self.distance, self.tolerance = distance, tolerance
        self.moves = False
        self._factor = 1.0
        self.before: list[Tensor] | None = None
        self._onwards: list[Tensor] | None = None
        self.moved = math.nan
        self.best = -math.inf
        # Where the steps of the best look began, and those since the last one.
        self.best_values = self._here = parameters.copy()
        self._parameters = parameters
        self._looked = self._begun = self._seen = self._worse = 0

    @property
    def found(self) -> str:
        """What was seen when the run converged."""
        return "a cut of the learning rate no longer moved the guide"

    @property
    def unmet(self) -> str:
        """What was not seen in its budget."""
        if self.before is None:
            return "the parameters still moved"
        return "the cuts of the learning rate still moved the guide"

    def factor(self, step: int) -> float:
        """What the learning rate of a step is multiplied by."""
        return self._factor

    def _window(self, elbo: Sequence[float]) -> tuple[int, float]:
        """The last blocks that are stationary, and how far apart their halves' means may be.

        Parameters whose guide no longer changes, such as the logits of a certain event, may drift
        for ever: where the ELBO does not rise, the guide itself is looked at more closely.
        """
        window = self.iterates.window()
        if window is not None:
            return window, 1.0
        blocks = len(self.iterates.means) // 4 * 2
        if not self.rises or blocks < ITERATES.fewest_blocks:
            return 0, 0.0
        found = trend(elbo[self._begun :], blocks * self.iterates.length // 2)
        return (blocks, 0.5) if found is not None and found.level else (0, 0.0)

    def look(self, elbo: Sequence[float]) -> str | None:
        """Looks at the run so far, of which it is told the ELBO; a status if it shall end."""
        self.moves = False
        if self._is_worse(elbo):
            self.before, self.moves = None, True
            self._onwards = self._here = self.best_values
            self._cut(elbo)
            return None
        window, limit = self._window(elbo)
        if window == 0 or window * self.iterates.length < STOPPING.grown * self._looked:
            return None
        self._looked = window * self.iterates.length
        halves = self.iterates.average(-window, -window // 2), self.iterates.average(-window // 2)
        # The halves' means lie twice as far apart as the whole one's standard error.
        if self.distance(*halves, self.tolerance) > limit:
            return None
        if limit < 1 and self.distance.rises_beyond(*halves):
            return None
        mean = self.iterates.average(-window)
        if self.before is not None:
            self.moved = self.distance(self.before, mean, self.tolerance)
        converged = self._settled
        self.before = self._onwards = mean
        if converged:
            return "converged"
        self.moves = True
        self._cut(elbo)
        return None

    @property
    def _settled(self) -> bool:
        """Whether all further cuts together would move the mean by half the tolerance at most.

        The iterates' mean is off by a multiple of the rate.
        """
        return self.moved * STOPPING.cut / (1 - STOPPING.cut) <= 0.5

    def _cut(self, elbo: Sequence[float]) -> None:
        self._factor *= STOPPING.cut
        self._begun, self._looked, self._worse = len(elbo), 0, 0

    def _is_worse(self, elbo: Sequence[float]) -> bool:
        """Whether the ELBO since the last look, and at those before, is below what it once was."""
        steps, self._seen = len(elbo) - self._seen, len(elbo)
        if not self.rises or steps < STOPPING.few_steps:
            return False
        mean, error = level(elbo, steps)
        if mean - 2 * error > self.best:
            self.best, self.best_values = mean - 2 * error, self._here
        self._worse = self._worse + 1 if mean + 2 * error + STOPPING.noticed < self.best else 0
        self._here = self._parameters.copy()
        return self._worse >= STOPPING.worse

    def end(self, elbo: Sequence[float]) -> str:
        """The status of a run whose budget ends."""
        return "budget"

    def kept(self) -> list[Tensor] | None:
        """The parameters to keep, where they are not the last ones."""
        if self.moves or self._settled:
            return self._onwards
        window = self.iterates.window()
        return self._onwards if window is None else self.iterates.average(-window)

    def restart(self) -> None:
        """Forgets the steps since the rate was cut: the parameters were put back."""
        self.iterates.restart()
        self._looked = 0

    def begin(self, elbo: Sequence[float]) -> None:
        """Begins here: what the run was told so far, in a warm-up, was not the ELBO."""
        self.restart()
        self._begun = self._seen = len(elbo)
        self.best_values = self._here = self._parameters.copy()

    def state(self) -> dict[str, Any]:
        """All that it holds."""
        return {
            "iterates": self.iterates.state(), "factor": self._factor, "before": self.before,
            "moved": self.moved, "looked": self._looked, "begun": self._begun,
            "seen": self._seen, "worse": self._worse, "best": self.best,
            "best_values": self.best_values, "here": self._here, "onwards": self._onwards,
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Takes in what `state` gave."""
        if "iterates" in state:
            self.iterates.restore(state["iterates"])
        self._factor, self.before, self.moved = state["factor"], state["before"], state["moved"]
        self._looked, self._begun = state["looked"], state["begun"]
        self._seen, self._worse = state["seen"], state["worse"]
        self.best, self.best_values = state["best"], state["best_values"]
        self._here, self._onwards = state["here"], state["onwards"]


class HeldOut:
    """The rate is cut when the ELBO of held-out rows no longer rises, until a cut is of no use.

    The best parameters are kept, and gone on from after a cut (early stopping; Prechelt, 1998,
    "Early stopping - but when?").

    Args:
        parameters: That are optimised.
        evaluate: What is maximised, of the held-out rows, in nats per row, always at the same
            noise.
        patience: Looks without a rise after which the rate is cut.
        what: What is evaluated is called.
    """

    def __init__(
        self,
        parameters: FlatParameters,
        evaluate: Callable[[], float],
        patience: int,
        what: str = "ELBO",
    ) -> None:
        self.what = what
        self.parameters, self.evaluate, self.patience = parameters, evaluate, patience
        self.iterates: Iterates | None = None
        self.moves = False
        self._factor = 1.0
        self.best = -math.inf
        self.best_before = -math.inf
        self.since = 0
        self.values = parameters.copy()

    @property
    def found(self) -> str:
        """What was seen when the run converged."""
        return f"the {self.what} of the held-out rows no longer rose"

    @property
    def unmet(self) -> str:
        """What was not seen in its budget."""
        return f"the {self.what} of the held-out rows may still rise"

    def factor(self, step: int) -> float:
        """What the learning rate of a step is multiplied by."""
        return self._factor

    def look(self, elbo: Sequence[float]) -> str | None:
        """Looks at the run so far, of which it is told the ELBO; a status if it shall end."""
        self.moves = False
        value = self.evaluate()
        if value > self.best:
            self.best, self.since, self.values = value, 0, self.parameters.copy()
            return None
        self.since += 1
        if self.since < self.patience:
            return None
        if self.best - self.best_before < STOPPING.negligible:
            return "converged"
        self._factor, self.moves = self._factor * STOPPING.cut, True
        self.best_before, self.since = self.best, 0
        return None

    def end(self, elbo: Sequence[float]) -> str:
        """The status of a run whose budget ends."""
        return "budget"

    def kept(self) -> list[Tensor] | None:
        """The parameters to keep, where they are not the last ones."""
        return self.values if math.isfinite(self.best) else None

    def restart(self) -> None:
        """Forgets the steps since the rate was cut: the parameters were put back."""

    def begin(self, elbo: Sequence[float]) -> None:
        """Begins here: what the run was told so far, in a warm-up, was not the ELBO."""

    def state(self) -> dict[str, Any]:
        """All that it holds."""
        return {
            "factor": self._factor, "best": self.best, "best_before": self.best_before,
            "since": self.since, "values": self.values,
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Takes in what `state` gave."""
        self._factor, self.best, self.best_before = (
            state["factor"], state["best"], state["best_before"],
        )  # fmt: skip
        self.since, self.values = state["since"], state["values"]


class Scheduled:
    """The rate follows a schedule, and the run ends with its budget.

    Args:
        parameters: That are optimised.
        budget: Steps of the run.
        cosine: Whether the rate falls to nothing as a cosine; else it is constant.
    """

    moves = False

    def __init__(self, parameters: FlatParameters, budget: int, cosine: bool) -> None:
        self.iterates = None if cosine else Iterates(parameters)
        self.budget, self.cosine = budget, cosine

    @property
    def found(self) -> str:
        """What was seen when the run converged."""
        return "the parameters were stationary"

    @property
    def unmet(self) -> str:
        """What was not seen in its budget."""
        return "the parameters still moved"

    def factor(self, step: int) -> float:
        """What the learning rate of a step is multiplied by."""
        return 0.5 * (1 + math.cos(math.pi * step / self.budget)) if self.cosine else 1.0

    def look(self, elbo: Sequence[float]) -> str | None:
        """Looks at the run so far, of which it is told the ELBO; a status if it shall end."""
        return None

    def end(self, elbo: Sequence[float]) -> str:
        """The status of a run whose budget ends.

        A cosine rate ends flat whatever is left to gain: its end is no sign of convergence.
        """
        window = None if self.iterates is None else self.iterates.window()
        return "budget" if window is None else "converged"

    def kept(self) -> list[Tensor] | None:
        """The parameters to keep, where they are not the last ones."""
        return None

    def restart(self) -> None:
        """Forgets the steps since the rate was cut: the parameters were put back."""
        if self.iterates is not None:
            self.iterates.restart()

    def begin(self, elbo: Sequence[float]) -> None:
        """Begins here: what the run was told so far, in a warm-up, was not the ELBO."""
        self.restart()

    def state(self) -> dict[str, Any]:
        """All that it holds."""
        return {} if self.iterates is None else {"iterates": self.iterates.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes in what `state` gave."""
        if self.iterates is not None and "iterates" in state:
            self.iterates.restore(state["iterates"])
