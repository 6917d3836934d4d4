"""A model's calls of torch in the words that a batch of its runs understands."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from pyro.ops import special
from torch import Tensor
from torch.distributions import dirichlet
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_WHOLE = (torch.int64, torch.int32)


def _picked(index: Any) -> tuple[Any, ...] | None:
    """An index that begins with whole numbers in scalar tensors, these as vectors of length one."""
    parts = index if isinstance(index, tuple) else (index,)
    scalars = [
        isinstance(part, Tensor) and part.dim() == 0 and part.dtype in _WHOLE for part in parts
    ]
    first = scalars.index(False) if False in scalars else len(scalars)
    if first == 0 or any(isinstance(part, (Tensor, list)) for part in parts[first:]):
        return None
    return (*(part.reshape(1) for part in parts[:first]), *parts[first:])


def _safe_log(x: Tensor) -> Tensor:
    """Pyro's `safe_log`, whose gradient at zero is finite: of operations that can be batched."""
    least = torch.finfo(x.dtype).eps
    near = x.detach().log() + (x - x.detach()) / least
    return torch.where(x > least, torch.where(x > least, x, 1.0).log(), near)


def _binary_cross_entropy(logits: Tensor, values: Tensor, **options: Any) -> Tensor:
    """Torch's function of logits, of each element by two operations in the place of a dozen."""
    given = {name: option for name, option in options.items() if option is not None}
    if given != {"reduction": "none"}:
        return functional.binary_cross_entropy_with_logits(logits, values, **options)
    # Above the threshold, softplus is taken to be its argument: at 40 it is, to the last digit.
    return functional.softplus(logits, threshold=40.0) - values * logits


def _shares(concentration: Tensor) -> Tensor:
    """Draws of a Dirichlet, by Gammas."""
    drawn = torch._standard_gamma(concentration)
    drawn = drawn.clamp_min(torch.finfo(drawn.dtype).tiny)
    return drawn / drawn.sum(-1, keepdim=True)


_UNBATCHED: dict[Any, Callable[[Tensor], Tensor]] = {
    special._SafeLog: _safe_log,
    dirichlet._Dirichlet: _shares,
}
"""Functions with a gradient of their own, which `vmap` refuses; and the same of operations."""


class Batchable(TorchFunctionMode):
    """Says in another way what `vmap` refuses, or what takes many operations where few do.

    Random numbers are made anew where torch fills a tensor in place, a boolean mask is filled where
    it is indexed, a scalar tensor indexes as a vector of one, what a normalisation layer in
    training keeps of a batch is not updated. Pyro's `safe_log` and clamping in place, which its
    hidden Markov models are made of, are written out; and so are the draws of a Dirichlet.

    Args:
        batched: A scalar zero of the batch. What a model makes to be filled in place is then made
            in the batch as well.
    """

    _normalising = frozenset({torch.batch_norm, torch.instance_norm})
    _blank = frozenset({torch.zeros, torch.ones, torch.empty, torch.full})
    _looped: ClassVar[dict[Any, Callable[..., Tensor]]] = {
        Tensor.clamp_: torch.clamp,
        Tensor.clamp_min_: torch.clamp_min,
        Tensor.clamp_max_: torch.clamp_max,
    }
    """In place, of which `vmap` makes a loop over the batch; and the same out of place."""

    def __init__(self, batched: Tensor | None = None) -> None:
        super().__init__()
        self.batched = batched
        self._written: list[Any] = []

    def __enter__(self) -> Any:
        # Subclasses of autograd.Function, which no mode sees. Sessions take turns.
        for kind, function in _UNBATCHED.items():
            if "apply" not in vars(kind):
                kind.apply = staticmethod(function)
                self._written.append(kind)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        while self._written:
            del self._written.pop().apply
        super().__exit__(*error)

    _made: ClassVar[dict[Any, Callable[..., Tensor]]] = {
        functional.binary_cross_entropy_with_logits: _binary_cross_entropy,
        Tensor.normal_: lambda like, mean=0.0, std=1.0, generator=None: (
            mean + std * torch.randn_like(like)
        ),
        Tensor.uniform_: lambda like, low=0.0, high=1.0, generator=None: (
            low + (high - low) * torch.rand_like(like)
        ),
        Tensor.exponential_: lambda like, lambd=1.0, generator=None: (
            -torch.log1p(-torch.rand_like(like)) / lambd
        ),
        Tensor.cauchy_: lambda like, median=0.0, sigma=1.0, generator=None: (
            median + sigma * torch.tan(torch.pi * (torch.rand_like(like) - 0.5))
        ),
    }

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is Tensor.__setitem__:
            tensor, index, value = args
            masked = isinstance(index, Tensor) and index.dtype == torch.bool
            if masked and index.shape == tensor.shape and isinstance(value, (int, float)):
                tensor.masked_fill_(index, value)
                return None
        if function is Tensor.__getitem__ and (index := _picked(args[1])) is not None:
            return function(args[0], index).squeeze(0)
        if function in self._looped:
            return args[0].copy_(self._looped[function](*args, **(kwargs or {})))
        if function in self._normalising and args[5]:
            args = (*args[:3], None, None, *args[5:])
        if function is Tensor.add_ and args[0].dtype is torch.int64 and args[1:] == (1,):
            return args[0]  # such a layer's count of its batches
        made = self._made.get(function, function)(*args, **(kwargs or {}))
        if self.batched is not None and function in self._blank and made.is_floating_point():
            return made + self.batched.to(made.dtype)
        return made
