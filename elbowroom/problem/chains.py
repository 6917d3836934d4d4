"""The sum over all paths of a chain of discrete sites, by filtering forwards and backwards.

A hidden Markov model's steps are taken one after the other, but each takes a few small operations:
what is elementwise, the exponentials above all, is done for all steps at once. The gradient is made
of the states' posterior probabilities, which the same filter gives when it runs backwards (Rabiner,
1989, "A tutorial on hidden Markov models and selected applications in speech recognition", with
its scaling).
"""

from typing import Any

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


def _moved(weights: Tensor, moves: Tensor) -> Tensor:
    """What weights, (batch..., K), become by a step, (batch..., K, K): (batch..., K)."""
    if moves.dim() == 2:  # the same step for all
        return weights @ moves
    return (weights.unsqueeze(-2) @ moves).squeeze(-2)


def _filtered(own: Tensor, moves: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The filter forwards and backwards.

    Args:
        own: Weights of each step's state, (T, batch..., K).
        moves: Weights of two steps after each other, (T - 1, batch..., K, K).

    Returns:
        The states' shares given what came before, those sums over them that each step was divided
        by, (T, batch..., 1), the weight of what comes after each state, and which shares are the
        least ones.
    """
    shape = own.shape
    if moves.shape[1:-2].numel() == 1:  # the same step for all
        moves = moves.reshape(len(moves), *moves.shape[-2:])
        own = own.reshape(len(own), -1, shape[-1])
    first, *rest = own.unbind(0)
    floor = _floor(own.dtype)
    found = first.clamp_min(floor)
    weights, sums = [found], [found.sum(-1, keepdim=True)]
    for weight, move in zip(rest, moves.unbind(0), strict=True):
        found = (_moved(found / sums[-1], move) * weight).clamp_min(floor)
        weights.append(found)
        sums.append(found.sum(-1, keepdim=True))
    shares, total = torch.stack(weights), torch.stack(sums)
    coming = (own / total).unbind(0)
    after = [torch.ones_like(first)]
    back = moves.transpose(-2, -1).unbind(0)
    for weight, move in zip(reversed(coming[1:]), reversed(back), strict=True):
        after.append(_moved(weight * after[-1], move))
    parts = shares / total, total, torch.stack(after[::-1]), shares <= floor
    one, two, three, four = (part.reshape(*shape[:-1], -1) for part in parts)
    return one, two, three, four


class _LogTotal(torch.autograd.Function):
    """`log_total` with its gradient in closed form, which can be differentiated again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(single: Tensor, pairs: Tensor) -> Tensor:
        own, highest = _weights(single, (-1,))
        moves, most = _weights(pairs, (-2, -1))
        shares, sums, after, least = _filtered(own, moves)
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
        shares, sums, after, _ = _filtered(own, moves)
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
