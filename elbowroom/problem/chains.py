"""The sum over all paths of a chain of discrete sites, by filtering forwards and backwards.

A hidden Markov model's steps are taken one after the other, but each takes a few small operations:
what is elementwise, the exponentials above all, is done for all steps at once. The gradient is made
of the states' posterior probabilities, which the same filter gives when it runs backwards (Rabiner,
1989, "A tutorial on hidden Markov models and selected applications in speech recognition", with
its scaling).
"""

from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

LOST = 1e-9
"""Posterior probability of states at their least share from which the sum is not known."""


def _floor(dtype: torch.dtype) -> float:
    """The least share of a state at a step, so that none is lost: smaller ones have few digits."""
    return 1e16 * torch.finfo(dtype).tiny


def log_total(single: Tensor, pairs: Tensor) -> Tensor:
    """The log of the sum of exp(potentials) over all paths, with its gradient.

    The sum over z(1), ..., z(T) of the product of exp(single[t, z(t)]) and of
    exp(pairs[t, z(t), z(t + 1)]). Where it may rest on a state whose share of a step was below
    1e-291, it is not a number.

    Args:
        single: Log potentials of each step's state, (T, batch..., K).
        pairs: Of two steps after each other, (T - 1, batch..., K, K); batch dims of size one are
            those of all.

    Returns:
        (batch...).

    Example:
        >>> single = torch.tensor([[0.25, 0.75], [0.5, 0.5]], dtype=torch.float64).log()
        >>> pairs = torch.tensor([[[0.9, 0.1], [0.2, 0.8]]], dtype=torch.float64).log()
        >>> log_total(single, pairs).exp()
        tensor(0.5000, dtype=torch.float64)
    """
    batch = torch.broadcast_shapes(single.shape[1:-1], pairs.shape[1:-2])
    own = torch.promote_types(single.dtype, pairs.dtype)
    wide = own if single.device.type == "mps" else torch.float64  # float32 has too few exponents
    total = _LogTotal.apply(single.expand(-1, *batch, -1).to(wide), pairs.to(wide))
    return total.to(own)


def _weights(potentials: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """exp(potentials) over their largest, and the log of that."""
    largest = potentials.detach().amax(dims, keepdim=True)
    largest = largest.clamp(-torch.finfo(largest.dtype).max, torch.finfo(largest.dtype).max)
    return (potentials - largest).exp(), largest


def _stepwise(own: Tensor, moves: Tensor) -> Tensor:
    """`_filtered` by torch's operations, one after the other, of which gradients are taken."""
    floor = _floor(own.dtype)
    first, *rest = own.unbind(0)
    found = first.clamp_min(floor)
    weights, sums = [found], [found.sum(-1, keepdim=True)]
    for weight, move in zip(rest, moves.unbind(0), strict=True):
        found = ((found / sums[-1]).unsqueeze(-2) @ move).squeeze(-2) * weight
        found = found.clamp_min(floor)
        weights.append(found)
        sums.append(found.sum(-1, keepdim=True))
    shares, total = torch.stack(weights), torch.stack(sums)
    coming = (own / total).unbind(0)
    after = [torch.ones_like(first)]
    back = moves.transpose(-2, -1).unbind(0)
    for weight, move in zip(reversed(coming[1:]), reversed(back), strict=True):
        after.append(((weight * after[-1]).unsqueeze(-2) @ move).squeeze(-2))
    return torch.stack([shares / total, torch.stack(after[::-1]), total.expand_as(own)])


@torch.library.custom_op("elbowroom::filtered", mutates_args=())
def _filtered(own: Tensor, moves: Tensor) -> Tensor:
    """The filter forwards and backwards, as one operation of a recording.

    NumPy's calls take a third of the time of torch's, and a step has few numbers.

    Args:
        own: Weights of each step's state, (T, batch..., K).
        moves: Weights of two steps after each other, (T - 1, batch..., K, K); batch dims of size
            one are those of all.

    Returns:
        The states' shares given what came before, the weight of what comes after each state, and
        the sums over states that each step was divided by, repeated: (3, T, batch..., K).
    """
    if own.device.type != "cpu":
        return _stepwise(own, moves)
    floor, weights, steps = _floor(own.dtype), own.numpy(), moves.numpy()
    count, states = len(weights), weights.shape[-1]
    dims = range(1, weights.ndim - 1)
    differ = [dim for dim in dims if steps.shape[dim] > 1]
    same = [dim for dim in dims if steps.shape[dim] == 1]
    order = [0, *differ, *same, weights.ndim - 1]
    # What has the same moves is multiplied by them at once: (T, differ, same, K).
    kinds = prod(weights.shape[dim] for dim in differ)
    ordered = weights.transpose(order)
    weights = np.ascontiguousarray(ordered).reshape(count, kinds, -1, states)
    steps = steps.transpose([*order, steps.ndim - 1]).reshape(count - 1, kinds, states, states)
    found = np.empty((3, *weights.shape), weights.dtype)
    shares, after, total = found
    sums = np.empty((*weights.shape[:-1], 1), weights.dtype)
    ones, here = np.ones(states, weights.dtype), np.empty(weights.shape[1:], weights.dtype)
    flat = here.reshape(-1, states)
    for step in range(count):
        if step:
            np.matmul(shares[step - 1], steps[step - 1], out=here)
            np.multiply(here, weights[step], out=here)
        else:
            here[...] = weights[step]
        np.maximum(here, floor, out=here)
        np.dot(flat, ones, out=sums[step].reshape(-1))
        np.divide(here, sums[step], out=shares[step])
    total[...] = sums
    coming, back = weights / sums, steps.swapaxes(-2, -1)
    after[-1] = 1.0
    for step in range(count - 1, 0, -1):
        np.multiply(coming[step], after[step], out=here)
        np.matmul(here, back[step - 1], out=after[step - 1])
    found = found.reshape(3, *ordered.shape)
    return torch.from_numpy(found.transpose([0, *(1 + np.argsort(order))]))


@_filtered.register_vmap
def _(info: Any, dims: Any, own: Tensor, moves: Tensor) -> tuple[Tensor, int]:
    own, moves = (
        each.unsqueeze(1) if dim is None else each.movedim(dim, 1)
        for each, dim in zip((own, moves), dims, strict=True)
    )
    return _filtered(own.expand(-1, info.batch_size, *own.shape[2:]), moves), 2


class _Filter(torch.autograd.Function):
    """`_filtered` with a gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(own: Tensor, moves: Tensor) -> Tensor:
        return _filtered(own, moves)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        return torch.func.vjp(_stepwise, *ctx.saved_tensors)[1](slope)


def _parts(own: Tensor, moves: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The shares, what comes after, and the sums, (T, batch..., 1); see `_filtered`."""
    shares, after, sums = _Filter.apply(own, moves).unbind(0)
    return shares, after, sums[..., :1]


class _LogTotal(torch.autograd.Function):
    """`log_total` with its gradient in closed form, which can be differentiated again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(single: Tensor, pairs: Tensor) -> Tensor:
        own, highest = _weights(single, (-1,))
        moves, most = _weights(pairs, (-2, -1))
        shares, after, sums = _parts(own, moves)
        least = shares * sums <= 2 * _floor(own.dtype)
        lost = (shares * after * least).sum(-1).amax(0) > LOST
        total = (sums.log() + highest).sum(0).squeeze(-1) + most.sum((0, -2, -1))
        return torch.where(lost, torch.nan, total)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Any:
        single, pairs = ctx.saved_tensors
        own, _ = _weights(single, (-1,))
        moves, _ = _weights(pairs, (-2, -1))
        shares, after, sums = _parts(own, moves)
        slopes = slope.unsqueeze(0).unsqueeze(-1)
        coming = slopes * own[1:] * after[1:] / sums[1:]
        if moves.shape[1:-2].numel() == 1:  # the same step for all
            before, behind = (part.unsqueeze(1).flatten(1, -2) for part in (shares[:-1], coming))
            both = (before.transpose(-2, -1) @ behind).reshape(moves.shape)
        else:
            both = shares[:-1].unsqueeze(-1) * coming.unsqueeze(-2)
            once = [dim for dim in range(1, both.dim() - 2) if moves.shape[dim] < both.shape[dim]]
            both = both.sum(once, keepdim=True) if once else both
        return slopes * shares * after, moves * both
