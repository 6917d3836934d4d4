"""What is asked of a fit, and what is about to be run."""

from collections.abc import Callable
from dataclasses import dataclass

from elbowroom.density.density import Density
from elbowroom.engines.settings import Settings
from elbowroom.engines.svi.checkpoint import Checkpoints
from elbowroom.guides import Guide
from elbowroom.problem.bound import Problem

Progress = Callable[[int, int, float, float], None]
"""Called with the step, the budget, the smoothed ELBO and the learning rate."""


@dataclass(frozen=True)
class Plan:
    """What is about to be run, every option resolved."""

    problem: Problem
    guide: Guide
    settings: Settings
    objective: tuple[str, str]
    seed: int
    engine: str


@dataclass(frozen=True)
class Task:
    """What is asked of a fit, whatever its guide and engine; see `elbowroom.api.fit`.

    Attributes:
        problem: The model bound to its data.
        settings: Of the fit.
        seed: Of all random numbers.
        draws: Posterior draws; None for the engine's own number.
        keep_local: Whether to keep the draws of large latents that each row has.
        announce: Called with the `Plan` before the optimiser begins.
        progress: Called at each step of the optimiser.
        checkpoints: Where the state of stochastic fits is kept.
        begins: Whether the guide was not asked for, and only begins importance sampling.
        auto: Whether the guide `auto` was asked for.
        density: The problem's, where it is recorded already.
    """

    problem: Problem
    settings: Settings
    seed: int
    draws: int | None = None
    keep_local: bool = False
    announce: Callable[[Plan], None] | None = None
    progress: Progress | None = None
    checkpoints: Checkpoints | None = None
    begins: bool = False
    auto: bool = False
    density: Density | None = None
