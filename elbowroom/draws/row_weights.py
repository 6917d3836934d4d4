"""Draws of each row's latents from a fitted guide, where all latents belong to rows."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from elbowroom.draws.of_guide import chunk_size
from elbowroom.draws.weighted import WeightedDraws
from elbowroom.guides.space import (
    FixedRows,
    LatentSpace,
    Plate,
    of_each_row,
    plates_of,
    sample_sites,
)
from elbowroom.problem.score import each_tensor, map_draws
from elbowroom.sizes import SIZES


def weigh_rows(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    arguments: Mapping[str, Any],
    space: LatentSpace,
    count: int,
    keep: Sequence[str] = (),
) -> WeightedDraws:
    """Draws every row's latents from a guide whose parameters are in the active store.

    Args:
        model: The Pyro model.
        guide: The fitted guide.
        arguments: Keyword arguments of both.
        space: The model's latent space.
        count: How many draws of each row.
        keep: Latent sites whose draws are kept.
    """
    plate = plate_of_rows(guide, arguments, space)
    rows, size = plate.size, max(1, min(plate.size, SIZES.memory // count))
    blocks, axes = [], {}
    for block in torch.arange(rows).split(size):
        given = {**arguments, "batch_size": len(block)}

        def at(
            _: dict[str, Tensor], block: Tensor = block, given: dict[str, Any] = given
        ) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
            with FixedRows({plate.name: block}):
                drawn = poutine.trace(guide).get_trace(**given)
                scored = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(**given)
            kept = {}
            for name, node in sample_sites(drawn):
                if name in keep:
                    axes[name] = len(node["fn"].batch_shape) + plate.dim
                    kept[name] = node["value"].movedim(axes[name], 0)
            log_p, log_q = of_each_row(scored, plate), of_each_row(drawn, plate)
            return kept, log_p.double(), log_q.double(), _of_no_row(scored, plate).double()

        share = len(block) / rows
        chunk = max(1, min(count, int(chunk_size(arguments, space) / share)))
        with torch.no_grad():
            *of_rows, rest = each_tensor(Tensor.cpu, map_draws(at, {}, chunk, count))
        blocks.append(tuple(of_rows))
    sites, log_p, log_q = each_tensor(lambda *each: torch.cat(each, 1), *blocks)
    return WeightedDraws(
        sites, log_p.numpy(), log_q.numpy(), rest.numpy(), axes, discrete=not space.sites
    )


def _of_no_row(trace: Any, plate: Plate) -> Tensor:
    """The log density of the sites of a trace that belong to no row, ()."""
    nodes = [node for node in trace.nodes.values() if node["type"] == "sample"]
    outside = [
        node["log_prob_sum"]
        for node in nodes
        if plate.name not in {frame.name for frame in node["cond_indep_stack"]}
        and not isinstance(node["fn"], _Subsample)
    ]
    return torch.as_tensor(sum(outside, 0.0))


def plate_of_rows(
    guide: Callable[..., Any], arguments: Mapping[str, Any], space: LatentSpace
) -> Plate:
    """The plate of the rows, as many as the arguments hold."""
    with torch.no_grad():
        nodes = dict(sample_sites(poutine.trace(guide).get_trace(**arguments))).values()
    plates = {plate for node in nodes for plate in plates_of(node)}
    assert space.subsampled is not None
    name = space.subsampled.name
    return next(plate for plate in plates if plate.name == name)
