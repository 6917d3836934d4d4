"""Data that are drawn again at each step of a fit, and otherwise stay the same."""

from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import effectful
from torch import Tensor


@effectful(type="fresh")
def binarised(x: Tensor, shares: Tensor, name: str = "x") -> Tensor:
    """Binary data, drawn again from their probabilities if the handler `Fresh` is active.

    Dynamic binarisation (Burda, Grosse and Salakhutdinov, 2016, "Importance weighted
    autoencoders"): the optimiser sees other draws at each step, which it cannot learn by heart;
    whatever else is done with the fit sees those that were drawn once.

    Args:
        x: The draws that were made once, (rows, columns).
        shares: The probability of each cell, (rows, columns).
        name: What both a model and a guide call it.

    Example:
        >>> x, shares = torch.zeros(1, 2), torch.tensor([[0.0, 1.0]])
        >>> binarised(x, shares, name="x")
        tensor([[0., 0.]])
        >>> with Fresh():
        ...     binarised(x, shares, name="x")
        tensor([[0., 1.]])
    """
    return x


class Fresh(Messenger):
    """Draws data again, once for all that runs inside: a model sees what its guide saw."""

    def __init__(self) -> None:
        super().__init__()
        self._drawn: dict[str, Tensor] = {}

    def _pyro_fresh(self, msg: Any) -> None:
        if msg["name"] not in self._drawn:
            shares = msg["args"][1]
            self._drawn[msg["name"]] = (torch.rand_like(shares) < shares).to(shares)
        msg["value"], msg["done"] = self._drawn[msg["name"]], True
