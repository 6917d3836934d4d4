r"""Expectation-maximisation: the ELBO raised in turn over the latents and over the points.

With x the data, z the latents of the rows and $\theta$ what is estimated,

$$F(q, \theta) = E_q[\log p(x, z \mid \theta)] - E_q[\log q(z)] \le \log p(x \mid \theta).$$

The E-step sets q to the posterior of z given $\theta$, where the bound is tight; the M-step sets
$\theta$ to the maximum of F given q. Neither lowers F, so that the likelihood never falls
(Dempster, Laird and Rubin, 1977, "Maximum likelihood from incomplete data via the EM algorithm";
Neal and Hinton, 1998, "A view of the EM algorithm that justifies incremental, sparse, and other
variants").
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True)
class Ascent:
    """When expectation maximisation ends."""

    remaining: float = 1e-5
    """The rise that is left, in nats of all rows, at which a climb has arrived. For any number of
    rows an estimate is then off by 0.005 of its standard error: √(2 x 1e-5)."""
    same: float = 0.01
    """Nats by which climbs to the same maximum may differ."""
    budget: int = 5000
    """Steps of a climb, unless the settings say otherwise."""


ASCENT = Ascent()


class Steps(Protocol):
    """The two steps for one model and its data; values and expected moments are the model's own.

    Attributes:
        rows: How many there are.
    """

    @property
    def rows(self) -> int:
        """How many there are."""

    def starts(self, count: int, seed: int) -> list[Any]:
        """Values to begin at, best guess first."""

    def expect(self, values: Any) -> Any:
        """The E-step: the posterior of the rows' latents, as far as the M-step needs it."""

    def maximise(self, expected: Any) -> Any:
        """The M-step: the values at which the ELBO is largest given that posterior."""

    def elbo(self, values: Any, expected: Any) -> float:
        """The ELBO at some values and some posterior of the latents, in nats and the user's units.

        Where the posterior is that of the values, it is log p(x).
        """

    def log_likelihood(self, values: Any) -> float:
        """Log p(x) at some values, in nats and the user's units, without the latents."""

    def closing_in(self, values: Any, expected: Any) -> str | None:
        """What collapses onto few rows, where the likelihood grows without limit; None if nothing.

        The sentence goes on after "In the first, ".
        """

    def sites(self, values: Any) -> dict[str, Tensor]:
        """The values of the model's sites or point parameters, by their names."""

    def remarks(self, values: Any, expected: Any) -> list[str]:
        """What a reader should know of the values."""

    @property
    def remedy(self) -> str:
        """What to do where something collapses."""


@dataclass(frozen=True)
class Climb:
    """Where the climb from one start ended.

    Attributes:
        values: Where it ended; where something collapsed, before that.
        expected: The posterior of the latents there.
        elbo: After each E-step.
        status: "converged", "budget", "interrupted" or "diverged".
        cause: What collapsed, if something did.
    """

    values: Any = field(repr=False)
    expected: Any = field(repr=False)
    elbo: list[float] = field(repr=False)
    status: str
    cause: str = ""


@dataclass(frozen=True)
class Found(Climb):
    """The best climb of several.

    Attributes:
        reached: How many starts ended there.
        tried: How many there were.
        dropped: In how many of them something collapsed.
    """

    reached: int = 1
    tried: int = 1
    dropped: int = 0


def climb(
    steps: Steps,
    start: Any,
    budget: int = ASCENT.budget,
    progress: Callable[[int, int, float], None] | None = None,
) -> Climb:
    """Takes E-steps and M-steps in turn until the likelihood no longer rises.

    The rise that is left is told from the last two, which fall off geometrically (Aitken's rule;
    Böhning et al., 1994, "The distribution of the likelihood ratio for mixtures of densities from
    the one-parameter exponential family").

    Args:
        steps: Of the model.
        start: Values to begin at.
        budget: The most E-steps.
        progress: Called with the step, the budget and the ELBO.

    Returns:
        Where it ended.

    Example:
        >>> import torch
        >>> from elbowroom.guides.gaussian_mixture import MixtureSteps
        >>> x = torch.tensor([[0.0], [1.0], [2.0], [7.0], [8.0], [9.0]], dtype=torch.float64)
        >>> arguments = {"x": x, "centre": torch.zeros(1), "spread": torch.ones(1)}
        >>> arguments |= {"components": 2, "covariance_type": "full"}
        >>> steps = MixtureSteps.of(arguments, ["x"])
        >>> found = climb(steps, steps.starts(1, 0)[0])
        >>> found.status, found.values.means.flatten().round(decimals=3).tolist()
        ('converged', [1.0, 8.0])
    """
    values, expected = start, steps.expect(start)
    history = [steps.elbo(values, expected)]
    try:
        while True:
            if progress is not None:
                progress(len(history), budget, history[-1])
            if arrived(history):
                return Climb(values, expected, history, "converged")
            if len(history) >= budget:
                return Climb(values, expected, history, "budget")
            moved = steps.maximise(expected)
            cause = steps.closing_in(moved, expected)
            if cause is None:
                next_expected = steps.expect(moved)
                elbo = steps.elbo(moved, next_expected)
                if not math.isfinite(elbo):
                    cause = "the ELBO is no longer finite."
            if cause is not None:
                return Climb(values, expected, history, "diverged", cause)
            values, expected = moved, next_expected
            history.append(elbo)
    except KeyboardInterrupt:
        return Climb(values, expected, history, "interrupted")


def arrived(history: list[float]) -> bool:
    """Whether the rise that is left, of an objective that never falls, is below the tolerance.

    Args:
        history: The objective after each step, in nats.

    Example:
        >>> arrived([0.0, 1.0, 1.5]), arrived([0.0, 1.0, 1.0 + 1e-6])
        (False, True)
    """
    if len(history) < 3:
        return False
    before, last = history[-2] - history[-3], history[-1] - history[-2]
    if last <= 0:  # rounding
        return True
    ratio = last / before if before > 0 else 1.0
    return ratio < 1 and last * ratio / (1 - ratio) < ASCENT.remaining


def best_of(
    steps: Steps,
    count: int,
    seed: int,
    budget: int = ASCENT.budget,
    progress: Callable[[int, int, float], None] | None = None,
) -> Found:
    """The best of several climbs; those in which something collapsed are dropped.

    Args:
        steps: Of the model.
        count: How many starts.
        seed: Of the starts.
        budget: Of each climb.
        progress: As for `climb`.

    Returns:
        The best one; the first, if something collapsed in all of them.
    """
    climbs: list[Climb] = []
    for start in steps.starts(count, seed):
        climbs.append(climb(steps, start, budget, progress))
        if climbs[-1].status == "interrupted":
            break
    whole = [each for each in climbs if each.status != "diverged"]
    best = max(whole, key=lambda each: each.elbo[-1]) if whole else climbs[0]
    reached = sum(best.elbo[-1] - each.elbo[-1] < ASCENT.same for each in whole)
    status = climbs[-1].status if climbs[-1].status == "interrupted" else best.status
    return Found(
        best.values, best.expected, best.elbo, status, best.cause, reached, len(climbs),
        len(climbs) - len(whole),
    )  # fmt: skip
