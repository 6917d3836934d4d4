"""Whether each value of a site counts once: shapes of values, distributions, masks and plates."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.hmm import HiddenMarkovModel
from pyro.util import check_site_shape
from torch import Tensor

from elbowroom.errors import ModelError
from elbowroom.guides.space import plates_of, sample_sites
from elbowroom.problem.faults import WRAPPERS, Fault


def faults_of_shapes(
    trace: Any, arguments: Mapping[str, Any], latents: set[str] | None = None
) -> tuple[Fault, ...]:
    """Each site's log probability fits its plates, and has one term for each value.

    Args:
        trace: Of the model.
        arguments: Its keyword arguments.
        latents: Latent sites that were given values.

    Returns:
        Latent vectors whose elements are in no plate: all rows have all of them.

    Raises:
        ModelError: If not.
    """
    loose_latents = []
    sites = list(sample_sites(trace))
    nesting = max((-plate.dim for _, node in sites for plate in plates_of(node)), default=0)
    for name, node in sites:
        if node["infer"].get("_deterministic"):
            continue
        shape = _one_term_each(name, node, arguments)
        if isinstance(node["fn"], dist.Unit):
            _no_pairs(name, node, shape, arguments)
        try:
            # Of the log probability only the shape is read.
            check_site_shape({**node, "log_prob": torch.empty(shape, device="meta")}, nesting)
        except ValueError as error:
            plates = {plate.dim: plate for plate in plates_of(node)}
            loose = [
                dim for dim in range(-min(len(shape), nesting), 0)
                if dim not in plates and shape[dim] > 1
            ]  # fmt: skip
            edit = shape_edit(arguments)
            if loose and (not node["is_observed"] or name in (latents or ())):
                edit = (
                    f"Dim {loose[0]} of the log probability is in no plate: make it part of the "
                    f"event by .to_event({-loose[0]}), or put the site into a pyro.plate of that "
                    "dim."
                )
                if not node["fn"].support.is_discrete and _fits(node, shape, loose, nesting):
                    text = f"site '{name}': {edit[0].lower()}{edit[1:]}"
                    loose_latents.append(Fault((name, "plate"), text, None))
                    continue
            inside = ", ".join(f"'{p.name}' ({p.size}, dim {p.dim})" for p in plates.values())
            first = str(error).split("\n")[1].strip() if "\n" in str(error) else str(error)
            raise ModelError(
                f"site '{name}': its log probability has shape {list(shape)}, which does not "
                f"match its plates: {inside or 'it has none'}. {first}. {edit}"
            ) from error
    return tuple(loose_latents)


def _fits(node: Any, shape: torch.Size, loose: Sequence[int], nesting: int) -> bool:
    """Whether a site's log probability fits its plates, some of its dims aside."""
    rest = list(shape)
    for dim in loose:
        rest[dim] = 1
    try:
        check_site_shape({**node, "log_prob": torch.empty(rest, device="meta")}, nesting)
    except ValueError:
        return False
    return True


def _one_term_each(name: str, node: Any, arguments: Mapping[str, Any]) -> torch.Size:
    """The shape of a site's log probability, which has one term for each event of its value."""
    fn, value = node["fn"], node["value"]
    value = torch.as_tensor(value)
    events = value.dim() - fn.event_dim
    batch = value.shape[: max(events, 0)]
    edit = shape_edit(arguments)
    for plate in plates_of(node):
        if plate.size in batch and plate.dim < -len(batch):
            there = batch.index(plate.size) - len(batch)
            edit = f"The plate '{plate.name}' has dim {plate.dim}, but its rows are in dim {there} "
            edit += f"of the value: write dim={there}."
    if isinstance(fn, dist.Unit):
        edit = "Give the factor one number for each row, or move it out of the plate."
    elif node["is_observed"]:
        edit += f" If the value is meant to count several times, write obs={name}.expand(...)."
    try:
        scored = torch.broadcast_shapes(batch, fn.batch_shape)
    except RuntimeError as error:
        raise ModelError(
            f"site '{name}': the value has batch shape {list(batch)} and its distribution "
            f"{list(fn.batch_shape)}, which do not match. {edit}"
        ) from error
    if events < 0 or value.shape[events:] != _event_shape(fn, value):
        raise ModelError(
            f"site '{name}': the value has shape {list(value.shape)}, but an event of its "
            f"distribution has shape {list(fn.event_shape)}. The value would be repeated, and "
            f"count more than once. {edit}"
        )
    if math.prod(scored) != math.prod(batch):
        raise ModelError(
            f"site '{name}': the value has batch shape {list(batch)} and its distribution "
            f"{list(fn.batch_shape)}, so each value would count {_times(scored, batch)} times. "
            f"{edit}"
        )
    return _widened(name, node, scored)


def _event_shape(fn: Any, value: Tensor) -> torch.Size:
    """The shape of an event of a distribution.

    A hidden Markov model whose steps are all alike takes as many of them as the value has.
    """
    own = fn
    while isinstance(own, WRAPPERS):
        own = own.base_dist
    alike = isinstance(own, HiddenMarkovModel) and own.duration is None
    if not alike and not (hasattr(own, "transition_logits") and own.event_shape[0] == 1):
        return fn.event_shape
    shape = list(fn.event_shape)
    shape[-own.event_dim] = value.shape[-own.event_dim]
    return torch.Size(shape)


def _widened(name: str, node: Any, scored: torch.Size) -> torch.Size:
    """The shape of a site's log probability once its mask and scale are applied."""
    for what in ("mask", "scale"):
        if isinstance(node[what], Tensor):
            try:
                widened = torch.broadcast_shapes(scored, node[what].shape)
            except RuntimeError as error:
                raise ModelError(
                    f"site '{name}': its {what} has shape {list(node[what].shape)} and its batch "
                    f"{list(scored)}, which do not match; give the {what} the shape of the "
                    "batch."
                ) from error
            if math.prod(widened) != math.prod(scored):
                raise ModelError(
                    f"site '{name}': its {what} has shape {list(node[what].shape)} and its batch "
                    f"{list(scored)}, so each value would count {_times(widened, scored)} times; "
                    f"give the {what} the shape of the batch."
                )
            scored = widened
    return scored


def _no_pairs(name: str, node: Any, shape: torch.Size, arguments: Mapping[str, Any]) -> None:
    """A factor has no value to count by, but a number for each pair of rows is reported."""
    outside = shape[: len(shape) + min((plate.dim for plate in plates_of(node)), default=-99)]
    for plate in plates_of(node):
        if plate.size > 1 and plate.size in outside:
            raise ModelError(
                f"site '{name}': the factor has shape {list(shape)}, one number for each pair of "
                f"rows of the plate '{plate.name}'. {shape_edit(arguments)} If you intend this, "
                "sum it over the other dim."
            )


def _times(many: torch.Size, one: torch.Size) -> str:
    return f"{math.prod(many) / max(1, math.prod(one)):,.0f}"


def shape_edit(arguments: Mapping[str, Any]) -> str:
    """How to fix the usual cause: a column where vectors are expected."""
    tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
    columns = [n for n, v in tensors.items() if v.dim() == 2 and v.shape[1] == 1 < v.shape[0]]
    if columns:
        name = columns[0]
        return (
            f"'{name}' has shape {list(tensors[name].shape)}, a single column: write {name}[:, "
            f"0], or {name}.squeeze(-1), where it is combined with vectors."
        )
    shapes = ", ".join(f"'{name}' {list(value.shape)}" for name, value in tensors.items())
    return (
        "Give the value, the arguments of its distribution and its plates the same batch shape; "
        f"the arguments of the model have {shapes}. Set the dim of each plate to its place in the "
        "batch shape, counted from the right (-1 is the last)."
    )


# Arguments of distributions
