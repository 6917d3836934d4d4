"""The point parameters of a model (`pyro.param`), and the flat unconstrained vector of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor
from torch.distributions import transform_to

MOST = 60
"""The most numbers that are fitted by their marginal likelihood."""


@dataclass(frozen=True)
class PointParameters:
    """The point parameters of a model, in the order in which it makes them.

    Attributes:
        initial: Unconstrained values by name, float64, where the model begins.
        constraints: By name.

    Example:
        >>> positive = torch.distributions.constraints.positive
        >>> parameters = PointParameters({"scale": torch.zeros(2)}, {"scale": positive})
        >>> parameters.size, parameters.constrained(torch.zeros(2))
        (2, {'scale': tensor([1., 1.])})
    """

    initial: Mapping[str, Tensor] = field(default_factory=dict)
    constraints: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, trace: Any) -> "PointParameters":
        """Those of a run of the model; those that are held at some values are none."""
        store = pyro.get_param_store()
        values, constraints = dict(store.named_parameters()), store.get_state()["constraints"]
        params = [name for name, node in trace.nodes.items() if node["type"] == "param"]
        names = [name for name in params if name in values]
        return cls(
            {name: values[name].detach().double().cpu().clone() for name in names},
            {name: constraints[name] for name in names},
        )

    @cached_property
    def size(self) -> int:
        """The length P of the flat vector."""
        return sum(value.numel() for value in self.initial.values())

    @property
    def start(self) -> np.ndarray:
        """The flat vector where the model begins, (P,)."""
        return torch.cat([value.reshape(-1) for value in self.initial.values()]).numpy()

    @property
    def why_not(self) -> str | None:
        """Why they cannot be fitted by their marginal likelihood; None if they can."""
        if any("$$$" in name for name in self.initial):
            return "the model has a network of point parameters (pyro.module)"
        if self.size > MOST:
            return f"the model has {self.size} numbers in point parameters, more than {MOST}"
        return None

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """The unconstrained parameters of a flat vector, (P,)."""
        parts = flat.split([value.numel() for value in self.initial.values()])
        return {
            name: part.reshape(value.shape)
            for (name, value), part in zip(self.initial.items(), parts, strict=True)
        }

    def constrained(self, flat: Tensor) -> dict[str, Tensor]:
        """The parameters' values of a flat vector, (P,)."""
        return {
            name: transform_to(self.constraints[name])(part)
            for name, part in self.split(flat).items()
        }
