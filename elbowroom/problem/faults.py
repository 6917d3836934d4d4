"""What is wrong with a site of a model."""

from dataclasses import dataclass

import pyro.distributions as dist
import torch

from elbowroom.errors import ElbowroomError, ModelError

WRAPPERS = (torch.distributions.Independent, dist.MaskedDistribution, dist.ExpandedDistribution)
"""Distributions that change another one's shape or mask alone."""


@dataclass(frozen=True)
class Fault:
    """What is wrong with a site: `place` is the same at whatever values of the latents.

    Attributes:
        place: The site and the part of it.
        text: What is said of it.
        kind: Of the error that it is; None for what may be meant so, and is a warning.
        warns: Whether it is worth a warning where it is not so at all values.
    """

    place: tuple[str, str]
    text: str
    kind: type[ElbowroomError] | None = ModelError
    warns: bool = True
