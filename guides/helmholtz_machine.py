"""The guide written for `helmholtz_machine`."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
from torch import Tensor

from elbowroom.guides import Start, register
from elbowroom.guides.space import LatentSpace
from elbowroom.models import ROWS
from elbowroom.models._networks import perceptron
from elbowroom.models.helmholtz_machine import Options, site
from elbowroom.models.vae import seen


@register(
    "recognition",
    "amortised: a network from the data upwards gives each layer's probabilities",
    model="helmholtz_machine",
    elbo="vimco",
    amortised=True,
)
def recognition(space: LatentSpace, start: Start) -> Callable[..., Any]:
    r"""$q(h \mid x) = q(h_1 \mid x) \prod_l q(h_{l+1} \mid h_l)$, units independent in a layer.

    Dayan, Hinton, Neal and Zemel, 1995, "The Helmholtz machine".
    """

    def guide(
        x: Tensor,
        centre: Tensor,
        spread: Tensor,
        rows: int,
        options: Options,
        shape: tuple[int, ...],
        limits: tuple[int, int],
        shares: Tensor | None = None,
        batch_size: int | None = None,
    ) -> None:
        with pyro.plate(ROWS, rows, subsample_size=batch_size):
            below = seen(x, shares) - centre
            for layer, width in enumerate(options.units, start=1):
                logits = perceptron(f"recognition.{layer}", below, (), width)  # (rows, width)
                below = pyro.sample(site(layer), dist.Bernoulli(logits=logits).to_event(1))

    return guide
