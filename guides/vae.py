"""The guides written for `vae`."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
from torch import Tensor

from elbowroom.guides import Start, register
from elbowroom.guides.auto import mean_field
from elbowroom.guides.space import LatentSpace
from elbowroom.models import ROWS
from elbowroom.models._networks import perceptron


@register(
    "encoder",
    "amortised: a network gives each row's mean and scale",
    model="vae",
    elbo="trace_mean_field",
    amortised=True,
)
def encoder(space: LatentSpace, start: Start) -> Callable[..., Any]:
    """Kingma and Welling, 2014, "Auto-encoding variational Bayes"."""

    def guide(
        x: Tensor,
        centre: Tensor,
        spread: Tensor,
        rows: int,
        latent: int,
        hidden: tuple[int, ...],
        likelihood: str,
        batch_size: int | None = None,
    ) -> None:
        with pyro.plate(ROWS, rows, subsample_size=batch_size):
            batch = pyro.subsample(x, event_dim=1)
            if likelihood == "normal":
                batch = (batch - centre) / spread
            encoded = perceptron("encoder", batch, hidden[::-1], 2 * latent)
            location, log_scale = encoded.chunk(2, -1)  # (rows, latent) each
            pyro.sample("z", dist.Normal(location, log_scale.exp()).to_event(1))

    return guide


@register(
    "local",
    "every row its own mean and scale, no network",
    model="vae",
    elbo="trace_mean_field",
    replaces="mean_field",
)
def local(space: LatentSpace, start: Start) -> Callable[..., Any]:
    """Stochastic variational inference without amortisation (Hoffman et al., 2013)."""
    return mean_field(space, start)
