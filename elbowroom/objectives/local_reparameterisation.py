"""Noise of its own for each row, in place of one draw of the weights for all."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro import poutine
from pyro.infer.enum import get_importance_trace
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.nn.functional import linear

from elbowroom.guides.sites import GuideSites
from elbowroom.guides.space import LatentSpace, base_of
from elbowroom.objectives import register
from elbowroom.objectives.estimators import Analytic


class RowNoise(Messenger):
    """Draws what a layer makes of rows, whose weights a guide holds in independent Normals.

    Each row's is drawn by itself, from the distribution that the weights give it. Model and guide
    are run inside, the guide first.
    """

    def __init__(self) -> None:
        super().__init__()
        self._weights: dict[str, tuple[Tensor, Tensor]] = {}

    def _pyro_post_sample(self, msg: Any) -> None:
        fn = base_of(msg["fn"])
        if isinstance(fn, torch.distributions.Normal):  # the model's own are priors, and come later
            self._weights.setdefault(msg["name"], (fn.loc, fn.scale))

    def _pyro_layer(self, msg: Any) -> None:
        x, name = msg["args"][0], msg["name"]
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        location = linear(x, weight[0], bias[0])  # (rows, outputs)
        variance = linear(x.square(), weight[1].square(), bias[1].square())
        msg["value"] = location + variance.sqrt() * torch.randn_like(location)
        msg["done"] = True


@register("local_reparameterisation")
class LocalReparameterisation(Analytic):
    """Noise for each row and unit instead of each weight: `local_reparameterisation`.

    The likelihood of a row depends on the weights through what each layer makes of it, which is
    Normal where the weights are. Drawn for each row, the noise of the rows averages out, where one
    draw of the weights moves them all alike; divergences are taken in closed form, where there is
    one (Kingma, Salimans and Welling, 2015, "Variational dropout and the local reparameterization
    trick").
    """

    options_kind = None

    @classmethod
    def why_not(cls, space: LatentSpace, sites: GuideSites) -> str | None:
        """Needs layers whose weights are latent, and in independent Normals."""
        weights = [f"{layer}.{part}" for layer in space.layers for part in ("weight", "bias")]
        if not weights:
            return ": the model has no layer whose weights are latent; leave --elbo out."
        other = next((name for name in weights if name not in sites.normal), None)
        if other is None:
            return None
        return (
            " needs independent Normals for the weights, and the guide has another distribution "
            f"for '{other}'; leave --elbo out, or fit with another guide."
        )

    def traces(
        self, model: Callable[..., Any], guide: Callable[..., Any], arguments: dict[str, Any]
    ) -> Iterator[tuple[poutine.Trace, poutine.Trace]]:
        """The traces of the model and the guide at each draw."""
        for _ in range(self.particles):
            with RowNoise():
                yield get_importance_trace("flat", self.nesting, model, guide, (), arguments)
