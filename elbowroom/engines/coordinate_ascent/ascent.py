r"""Coordinate ascent variational inference: each factor of the guide in turn set to its optimum.

With x the data and $\theta = (\theta_1, \ldots, \theta_m)$ all latents, the guide is a product,

$$\mathrm{ELBO}(q) = E_q[\log p(x, \theta) - \log q(\theta)], \qquad
q(\theta) = \prod_j q_j(\theta_j).$$

Given the other factors, the ELBO is largest at

$$q_j^*(\theta_j) \propto \exp E_{q_{-j}}[\log p(x, \theta)],$$

which is of a known family with parameters in closed form where the model is conjugate given the
other factors. No update lowers the ELBO (Bishop, 2006, "Pattern recognition and machine learning",
10.1; Blei, Kucukelbir and McAuliffe, 2017, "Variational inference: a review for statisticians").
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from elbowroom import budget
from elbowroom.engines.em.expectation_maximisation import ASCENT, arrived


@dataclass(frozen=True)
class Sweeping:
    """What is left to rounding, and when sweeps end; see also `Ascent`."""

    rounding: float = 1e-9
    """By how much of itself an ELBO, a sum of some hundred numbers, may fall."""
    sweeps: int = 20_000
    """From each start, unless the settings say otherwise. Updates that follow each other slowly, as
    those of loadings and scores do, need thousands, each of which is cheap."""


SWEEPING = Sweeping()


class Coordinates(Protocol):
    """The updates for one model and its data; what describes all factors is the model's own.

    Attributes:
        updates: Each sets one factor, by its name, to its optimum given the others.
    """

    @property
    def updates(self) -> Mapping[str, Callable[[Any], Any]]:
        """Each sets one factor, by its name, to its optimum given the others."""

    def starts(self, count: int, seed: int) -> list[Any]:
        """Factors to begin at, best guess first; one where there is one optimum alone."""

    def elbo(self, factors: Any) -> float:
        """The ELBO of any factors, in nats and the user's units."""

    def parameters(self, factors: Any) -> dict[str, Tensor]:
        """The guide's parameters, by name without `guide.`."""

    def remarks(self, factors: Any) -> list[str]:
        """What a reader should know of the factors."""


@dataclass(frozen=True)
class Ascended:
    """Where the sweeps from one start ended.

    Attributes:
        factors: There.
        elbo: Where it began, and after each sweep.
        status: "converged", "budget", "interrupted" or "diverged".
        cause: Why there is no optimum, if there is none.
        reached: How many starts ended there.
        tried: How many there were.
        cut: Whether the time was over.
    """

    factors: Any = field(repr=False)
    elbo: list[float] = field(repr=False)
    status: str
    cause: str = ""
    reached: int = 1
    tried: int = 1
    cut: bool = False


def ascend(
    coordinates: Coordinates,
    start: Any,
    sweeps: int = SWEEPING.sweeps,
    progress: Callable[[int, int, float], None] | None = None,
) -> Ascended:
    """Takes all updates in turn, again and again, until the ELBO no longer rises.

    The rise that is left is told as for expectation-maximisation.

    Args:
        coordinates: Of the model.
        start: Factors to begin at.
        sweeps: At most.
        progress: Called with the sweep, the most sweeps and the ELBO.

    Returns:
        Where it ended.

    Example:
        >>> import torch
        >>> from elbowroom.guides.gaussian_mixture import MixtureCoordinates
        >>> x = torch.tensor([[0.0], [1.0], [2.0], [7.0], [8.0], [9.0]], dtype=torch.float64)
        >>> arguments = {"x": x, "centre": x.mean(0), "spread": x.std(0), "conjugate": True}
        >>> arguments |= {"components": 2, "covariance_type": "full"}
        >>> coordinates = MixtureCoordinates.of(arguments)
        >>> found = ascend(coordinates, coordinates.starts(1, 0)[0])
        >>> found.status, found.factors.responsibilities[:, 0].round().tolist()
        ('converged', [1.0, 1.0, 1.0, 0.0, 0.0, 0.0])
    """
    factors, history = start, [coordinates.elbo(start)]
    try:
        while True:
            done = len(history) - 1
            if progress is not None:
                progress(done, sweeps, history[-1])
            if arrived(history):
                return Ascended(factors, history, "converged")
            cut = done > 0 and budget.over()
            if done >= sweeps or cut:
                return Ascended(factors, history, "budget", cut=cut)
            moved = factors
            for update in coordinates.updates.values():
                moved = update(moved)
            elbo = coordinates.elbo(moved)
            if not math.isfinite(elbo):
                return Ascended(factors, history, "diverged", "the ELBO is no longer finite.")
            if elbo < history[-1] - SWEEPING.rounding * (1 + abs(history[-1])):
                cause = (
                    f"the ELBO fell from {history[-1]:.6g} to {elbo:.6g} nats, which no exact "
                    "update does."
                )
                return Ascended(factors, history, "diverged", cause)
            factors = moved
            history.append(elbo)
    except KeyboardInterrupt:
        return Ascended(factors, history, "interrupted")


def best_of(
    coordinates: Coordinates,
    count: int,
    seed: int,
    sweeps: int = SWEEPING.sweeps,
    progress: Callable[[int, int, float], None] | None = None,
) -> Ascended:
    """The best of several starts, of those that were begun before the time was over.

    Args:
        coordinates: Of the model.
        count: How many starts.
        seed: Of the starts.
        sweeps: From each of them.
        progress: As for `ascend`.
    """
    ends: list[Ascended] = []
    for start in coordinates.starts(count, seed):
        ends.append(ascend(coordinates, start, sweeps, progress))
        if ends[-1].status == "interrupted" or ends[-1].cut:
            break
    whole = [end for end in ends if end.status != "diverged"]
    best = max(whole, key=lambda end: end.elbo[-1]) if whole else ends[0]
    status = ends[-1].status if ends[-1].status == "interrupted" else best.status
    reached = sum(best.elbo[-1] - end.elbo[-1] < ASCENT.same for end in whole)
    return Ascended(
        best.factors, best.elbo, status, best.cause, reached, len(ends), ends[-1].cut
    )  # fmt: skip
