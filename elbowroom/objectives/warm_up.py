"""KL warm-up: the divergence from the prior comes in by and by."""

from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from elbowroom.objectives.baselines import PREFIX

STEPS = f"{PREFIX}_steps_of_warm_up"
"""Under which the steps that were made are kept, as baselines keep what they learn."""


class Weighed(Messenger):
    """Weighs the terms of the latent sites in the ELBO, of the model and of the guide alike.

    Together these are the divergence of the guide from the prior; the terms of what is observed
    stay as they are.

    Args:
        weight: ().
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def _pyro_sample(self, msg: Any) -> None:
        if not (msg["is_observed"] or isinstance(msg["fn"], _Subsample)):
            msg["scale"] = msg["scale"] * self.weight


def begin() -> None:
    """Begins a warm-up, in the active parameter store."""
    pyro.get_param_store()[STEPS] = torch.zeros(())


def next_weight(steps: int) -> Tensor:
    """The weight of the next step: it rises evenly to one in the first `steps`.

    Bowman et al., 2016, "Generating sentences from a continuous space"; Sønderby et al., 2016,
    "Ladder variational autoencoders".

    Example:
        >>> begin()
        >>> [next_weight(4).item() for _ in range(5)]
        [0.25, 0.5, 0.75, 1.0, 1.0]
        >>> pyro.clear_param_store()
    """
    store = pyro.get_param_store()
    made = store[STEPS].detach() + 1
    store[STEPS] = made
    return (made / steps).clamp(max=1.0)
