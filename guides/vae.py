"""The guides written for `vae` and `conditional_vae`."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.transforms import SigmoidTransform
from torch import Tensor

from elbowroom.guides import Start, register
from elbowroom.guides.auto import mean_field
from elbowroom.guides.space import LatentSpace
from elbowroom.models import ROWS
from elbowroom.models._networks import convolutional_encoder, perceptron
from elbowroom.models.vae import Options, seen


def _encode(name: str, batch: Tensor, known: Tensor | None, outputs: int, options: Options,
            shape: tuple[int, ...]) -> Tensor:  # fmt: skip
    """What a network makes of rows and of what is known of them: (rows, outputs)."""
    widths, activation = options.hidden[::-1], options.activation
    if options.network == "convolutional":
        return convolutional_encoder(name, batch, shape, widths, outputs, activation, known)
    inputs = batch if known is None else torch.cat([batch, known], -1)
    return perceptron(name, inputs, widths, outputs, activation)


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
        options: Options,
        shape: tuple[int, ...],
        shares: Tensor | None = None,
        condition: Tensor | None = None,
        batch_size: int | None = None,
        **others: Any,
    ) -> None:
        with pyro.plate(ROWS, rows, subsample_size=batch_size):
            batch = seen(x, shares)
            if "bernoulli" not in options.likelihood:
                batch = (batch - centre) / spread
            known = None if condition is None else pyro.subsample(condition, event_dim=1)
            encoded = _encode("encoder", batch, known, 2 * options.latent, options, shape)
            location, log_scale = encoded.chunk(2, -1)  # (rows, latent) each
            pyro.sample("z", dist.Normal(location, log_scale.exp()).to_event(1))
            if options.dequantise == "uniform":
                flat = dist.Uniform(torch.zeros_like(batch), 1.0).to_event(1)
                pyro.sample("dequantisation", flat)
            elif options.dequantise == "learned":
                both = _encode("dequantiser", batch, known, 2 * len(centre), options, shape)
                centred, log_width = both.chunk(2, -1)  # (rows, columns) each
                # As wide as the logit of a uniform number, to begin with.
                base = dist.Normal(centred, 1.8 * log_width.exp())
                noise = dist.TransformedDistribution(base, [SigmoidTransform()])
                pyro.sample("dequantisation", noise.to_event(1))

    return guide


# A row's parameters move only where it is in the minibatch, and in units of its prior's sd: at the
# rate that suits the networks, rows would not arrive within the budget.
QUICK = {"learning_rate": 0.02}
"""Settings of guides with parameters for each row, beside networks."""


@register(
    "local",
    "each row has its own mean and scale; no network",
    model="vae",
    elbo="trace_mean_field",
    replaces="mean_field",
    suggested=QUICK,
)
def local(space: LatentSpace, start: Start) -> Callable[..., Any]:
    """Stochastic variational inference without amortisation (Hoffman et al., 2013)."""
    return mean_field(space, start)
