"""What every engine takes and gives."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pydantic.dataclasses
from pydantic import ConfigDict
from torch.distributions import Distribution

from elbowroom.density.landscape import Landscape
from elbowroom.density.mixtures import LowRankNormal, Mixture
from elbowroom.draws.many_chains import MixedChains
from elbowroom.engines.task import Plan, Task
from elbowroom.guides import Guide, Start
from elbowroom.guides.sites import GuideSites
from elbowroom.problem.bound import Problem
from elbowroom.problem.isolation import Parameters


@pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(arbitrary_types_allowed=True))
class Trained:
    """How a run of an optimiser went.

    Attributes:
        status: "converged", "budget", "interrupted", "diverged" or "exact" (nothing to optimise).
        reason: The same as a sentence.
        elbo_history: An estimate for each step, in nats.
        learning_rates: Of each step.
        skipped: Steps left out for a non-finite ELBO or gradient.
        seconds: Wall time.
        parameters: The number of optimised numbers.
        eager: Why the steps were not recorded, if they were not.
        uncompiled: Why they were not compiled, if they were meant to be.
        unfitted: The names of parameters without a gradient, which are as they were.
    """

    status: str
    reason: str
    elbo_history: np.ndarray = field(repr=False)
    learning_rates: np.ndarray = field(repr=False)
    skipped: int
    seconds: float
    parameters: int
    eager: str | None = None
    uncompiled: str | None = None
    unfitted: tuple[str, ...] = ()

    @property
    def converged(self) -> bool:
        """Whether the optimum was reached as far as the noise allows to tell."""
        return self.status in ("converged", "exact")


@dataclass(frozen=True)
class Gaussian:
    """A guide that is one Normal of the flat unconstrained vector, and where to go on from it.

    Attributes:
        distribution: The Normal, in float64 on the CPU.
        proposal: Where importance sampling begins.
        low_rank: The same in so many dimensions that no covariance fits in memory.
        chains: Markov chains whose moments it has, where their draws are the posterior.
    """

    distribution: Distribution
    proposal: Mixture | None = None
    low_rank: LowRankNormal | None = None
    chains: MixedChains | None = None


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A guide at its optimum.

    Attributes:
        problem: The model as the guide sees it.
        guide: Its declaration.
        callable: The Pyro guide.
        sites: What a run of it shows.
        start: What its parameters are relative to.
        parameters: Of it and of the model.
        trained: How the optimiser went.
        objective: The name of the objective that was maximised, and why.
        engine: The engine's name.
        point: Whether it is one point.
        gaussian: What is known of a guide that is one Normal.
        starts: How many starts reached the optimum, and of how many, where there are no modes.
        loss: Nats of ELBO that it is expected to be below the best guide of its form, as far as
            that is known.
        remarks: What a reader should know.
        remedy: What to do where the optimum was not reached, if more is known than usual.
        seeks_maximum: Whether it remains to be seen that the likelihood has a maximum there.
        said: What the verdict tells of the objective, as sentences.
        adapts: Whether adaptive importance sampling begins at its draws.
    """

    problem: Problem
    guide: Guide
    callable: Callable[..., Any]
    sites: GuideSites
    start: Start
    parameters: Parameters
    trained: Trained
    objective: tuple[str, str]
    engine: str
    point: bool = False
    gaussian: Gaussian | None = None
    starts: tuple[int, int] | None = None
    loss: float = 0.0
    remarks: tuple[str, ...] = ()
    remedy: str = ""
    seeks_maximum: bool = True
    said: tuple[str, ...] = ()
    adapts: bool = False


class Engine(Protocol):
    """A way to fit a guide to a model.

    Attributes:
        name: On the command line.
        draws: Posterior draws by default.
        stochastic: Whether it climbs a noisy objective, which more steps bring further.
        explores: Whether its fits begin at modes of the density; others find starts of their own.
    """

    name: str
    draws: int
    stochastic: bool
    explores: bool

    def plan(self, task: Task, guide: Guide) -> Plan:
        """What is about to be run, if model, guide and options go together.

        Raises:
            OptionError: If the engine cannot fit the guide to the model.
        """

    def start(self, task: Task, guide: Guide) -> Landscape:
        """Where the fit begins.

        Raises:
            GuideError: If there is no such place.
        """

    def fit(self, task: Task, guide: Guide, start: Landscape) -> Fitted:
        """The guide at its optimum.

        Raises:
            GuideError: If it has none.
        """
