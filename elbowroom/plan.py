"""What is about to be run."""

from collections.abc import Callable
from dataclasses import dataclass

from elbowroom.guides import Guide
from elbowroom.inference.problem import Problem
from elbowroom.inference.svi import Settings

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
