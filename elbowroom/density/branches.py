"""The parts of a density that is a sum of several: each can be climbed alone.

Where a narrow part of a mixture lies beside a broad one, its basin is a cone that few directions
meet, and no gradient elsewhere tells of it. But the model adds the two up somewhere, by
`torch.logsumexp` or `torch.logaddexp`, as the sum over a discrete site does; with one term of that
sum in place of all, the way to its own mode is plain.
"""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

MOST = 6
"""Terms of a sum that are looked at, and sums."""


class Branch(TorchFunctionMode):
    """Puts one term in the place of a log of a sum of exponentials that is a single number.

    Sums for each row are left: their terms are no parts of the whole density. So are those of a
    model that takes one row after the other: there are many.

    Args:
        index: Of the term; None changes nothing.

    Attributes:
        terms: The most terms that such a sum had; none where there are more than `MOST` sums.
    """

    def __init__(self, index: int | None) -> None:
        super().__init__()
        self.index, self.terms, self._sums = index, 0, 0

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if function in (torch.logaddexp, Tensor.logaddexp):
            terms = [*torch.broadcast_tensors(*args[:2])] if result.numel() == 1 else []
        elif function in (torch.logsumexp, Tensor.logsumexp, torch.special.logsumexp):
            dim = args[1] if len(args) > 1 else (kwargs or {})["dim"]
            dims = [dim] if isinstance(dim, int) else list(dim)
            single = result.numel() == 1 and len(dims) == 1
            terms = [*args[0].unbind(dims[0])] if single else []
        else:
            return result
        self._sums += bool(terms)
        self.terms = max(self.terms, len(terms)) if self._sums <= MOST else 0
        if self.index is None or not terms:
            return result
        return terms[min(self.index, len(terms) - 1)].reshape(result.shape)
