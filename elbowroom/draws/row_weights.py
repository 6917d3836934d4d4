"""Draws of each row's latents from a fitted guide, where all latents belong to rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from elbowroom.draws.row_runs import RowRuns
from elbowroom.draws.weighted import WeightedDraws
from elbowroom.guides.space import (
    LatentSpace,
    Plate,
    of_each_row,
    plates_of,
    sample_sites,
)
from elbowroom.problem.row_batches import some_rows
from elbowroom.recording.record import alike

LOG_P, LOG_Q, REST = "/log_p", "/log_q", "/rest"
"""Names beside those of sites."""


class _Held(Messenger):
    """Gives sites their values, as if they had been drawn."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values:
            msg["value"], msg["done"] = self.values[msg["name"]], True


def given(guide: Callable[..., Any], shared: Mapping[str, Tensor]) -> Callable[..., Any]:
    """A guide of rows whose runs each take one of some draws of the sites that rows share.

    Args:
        guide: That draws both.
        shared: Draws of the posterior, each (draws, ...).
    """
    if not shared:
        return guide
    count = len(next(iter(shared.values())))

    def held(**arguments: Any) -> Any:
        picked = torch.randint(count, ())
        return _Held({name: values[picked] for name, values in shared.items()})(guide)(**arguments)

    return held


Placed = Callable[[dict[str, Tensor]], dict[str, Tensor]]
"""Puts draws in the model's canonical form."""


@dataclass(frozen=True)
class Shared:
    """The sites that rows share, beside latents of their own.

    Attributes:
        names: Of them.
        placed: Puts draws of both in the form in which they are reported, such as with other signs.
    """

    names: Sequence[str] = ()
    placed: Placed = dict

    def beside(self, drawn: Any) -> dict[str, Tensor]:
        """Their values in a trace of the guide."""
        return {name: drawn.nodes[name]["value"] for name in self.names}

    def taken(self, values: dict[str, Tensor], rows: Sequence[str]) -> dict[str, Tensor]:
        """What was found of some draws of some rows, their sites as reported.

        Args:
            values: By name; those of sites of rows (draws, rows, ...).
            rows: The sites of rows among them.
        """
        if not self.names:
            return values
        found = self.placed({name: values[name] for name in (*self.names, *rows)})
        others = {name: value for name, value in values.items() if name not in self.names}
        return {**others, **{name: found[name] for name in rows}}


def weigh_rows(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    arguments: Mapping[str, Any],
    space: LatentSpace,
    count: int,
    keep: Sequence[str] = (),
    shared: Shared | None = None,
) -> WeightedDraws:
    """Draws every row's latents from a guide whose parameters are in the active store.

    Args:
        model: The Pyro model.
        guide: The fitted guide.
        arguments: Keyword arguments of both.
        space: The model's latent space.
        count: How many draws of each row.
        keep: Latent sites whose draws are kept.
        shared: The sites that rows share, if there are any; a row's weights are then those of its
            latents, given draws of the shared ones.
    """
    plate, shared = plate_of_rows(guide, arguments, space), shared or Shared()
    axes: dict[str, int] = {}

    def of_draw(drawn: Any, given: Mapping[str, Any]) -> dict[str, Tensor]:
        scored = poutine.trace(poutine.replay(model, trace=drawn)).get_trace(**given)
        found = {
            LOG_P: of_each_row(scored, plate),
            LOG_Q: of_each_row(drawn, plate),
            REST: _of_no_row(scored, plate),
            **shared.beside(drawn),
        }
        for name, node in sample_sites(drawn):
            if name in keep:
                axes[name] = len(node["fn"].batch_shape) + plate.dim
                found[name] = node["value"].movedim(axes[name], 0)
        return found

    whole: dict[str, Tensor] = {}
    for part in RowRuns(model, guide, arguments, space, plate).parts(of_draw, count):
        for name, value in shared.taken(part.values, keep).items():
            of_rows = name != REST
            if name not in whole:
                kind = value.dtype if name in keep else torch.float64
                shape = (count, plate.size, *value.shape[2:]) if of_rows else (count,)
                whole[name] = torch.empty(shape, dtype=kind)
            place = (part.draws, part.rows) if of_rows else (part.draws,)
            whole[name][place] = value.cpu()
    log_p, log_q, rest = (whole.pop(name).numpy() for name in (LOG_P, LOG_Q, REST))
    return WeightedDraws(whole, log_p, log_q, rest, axes, discrete=not space.sites)


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


def moments_of_rows(
    model: Callable[..., Any],
    guide: Callable[..., Any],
    arguments: Mapping[str, Any],
    space: LatentSpace,
    names: Sequence[str],
    count: int,
    shared: Shared | None = None,
) -> dict[str, tuple[Tensor, Tensor]]:
    """The guide's own means and sds of rows' latents, as its distributions have them.

    Where these have none, or depend on what is drawn of other sites, they are those of draws.

    Args:
        model: The Pyro model.
        guide: The fitted guide, with its parameters in the active store.
        arguments: Keyword arguments of both.
        space: The model's latent space.
        names: Of the sites.
        count: How many draws, where they are needed.
        shared: The sites that rows share, if there are any: draws are needed then.

    Returns:
        By site, each (rows, ...), on the CPU.
    """
    plate, shared = plate_of_rows(guide, arguments, space), shared or Shared()
    with torch.no_grad():
        runs = [dict(sample_sites(poutine.trace(guide).get_trace(**arguments))) for _ in range(2)]
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for name in names:
        if shared.names:
            break
        first, second = (_moments(run[name]["fn"]) for run in runs)
        if first is None or second is None or not all(map(torch.equal, first, second)):
            break
        place = len(runs[0][name]["fn"].batch_shape) + plate.dim
        mean, sd = (each.movedim(place, 0).cpu() for each in first)
        found[name] = mean, sd
    else:
        return found

    def of_draw(drawn: Any, given: Mapping[str, Any]) -> dict[str, Tensor]:
        nodes = dict(sample_sites(drawn))
        own = {
            name: nodes[name]["value"].movedim(
                len(nodes[name]["fn"].batch_shape) + plate.dim, 0
            )
            for name in names
        }  # fmt: skip
        return {**own, **shared.beside(drawn)}

    blocks: dict[int, list[dict[str, Tensor]]] = {}
    for part in RowRuns(model, guide, arguments, space, plate).parts(of_draw, count):
        blocks.setdefault(part.rows.start, []).append(shared.taken(part.values, names))
    whole = {
        name: torch.cat(
            [torch.cat([each[name].cpu() for each in block]) for block in blocks.values()], 1
        ).double()
        for name in names
    }
    return {name: (values.mean(0), values.std(0)) for name, values in whole.items()}


def serves_few_rows(
    guide: Callable[..., Any], arguments: Mapping[str, Any], space: LatentSpace
) -> bool:
    """Whether a guide gives some rows alone the distributions that they have among all rows.

    One that has parameters of each row cannot be run for others, in one way or another.

    Args:
        guide: The fitted guide, with its parameters in the active store.
        arguments: Its keyword arguments.
        space: The model's latent space.
    """
    whole = dict(arguments)
    try:
        plate = plate_of_rows(guide, whole, space)
        index = torch.arange(plate.size)[-3:-1]
        with torch.no_grad():
            drawn = poutine.trace(guide).get_trace(**whole)
            own = {
                name: node["value"].index_select(
                    len(node["fn"].batch_shape) + plate.dim, index.to(node["value"].device)
                )
                for name, node in sample_sites(drawn)
            }
            conditioned = poutine.condition(guide, data=own)
            alone = poutine.trace(conditioned).get_trace(**some_rows(whole, plate.size, index))
            few = of_each_row(alone, replace(plate, size=len(index)))
            expected = of_each_row(drawn, plate)[index]
    # A guide of the fitted rows fails with others in as many ways as there are guides.
    except Exception:
        return False
    return few.shape == expected.shape and len(index) > 0 and alike(few, expected)


def _moments(fn: Any) -> tuple[Tensor, Tensor] | None:
    """The mean and sd of a distribution; None if they are not known."""
    try:
        mean, variance = fn.mean, fn.variance
    except (NotImplementedError, AttributeError):
        return None
    known = bool(torch.isfinite(mean).all() and torch.isfinite(variance).all())
    return (mean, variance.sqrt()) if known else None


def draws_of_rows(arguments: Mapping[str, Any], wanted: int, least: int, budget: int) -> int:
    """As many draws of each row as a budget allows of those wanted, but some.

    Args:
        arguments: Of the model.
        wanted: How many at most.
        least: How many at least.
        budget: Numbers of the data, once for each draw.

    Example:
        >>> draws_of_rows({"x": torch.zeros(100, 10)}, wanted=1000, least=100, budget=500_000)
        500
    """
    numbers = sum(value.numel() for value in arguments.values() if isinstance(value, Tensor))
    return min(wanted, max(least, budget // max(1, numbers)))
