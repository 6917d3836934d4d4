"""What one run of a guide shows, beside its model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine

from elbowroom.errors import GuideError, users_code
from elbowroom.guides.space import LatentSpace, base_of, sample_sites


@dataclass(frozen=True)
class GuideSites:
    """What one run of a guide shows.

    Attributes:
        names: Every latent site it samples, auxiliary ones aside.
        auxiliary: Sites that the model does not have, and is not meant to.
        discrete: Those of `names` with a discrete distribution.
        enumerable: Those of `discrete` that the guide marks for enumeration.
        rough: Continuous sites, auxiliary ones too, that cannot be reparameterised.
        moved: Deltas whose value depends on the parameters when what is drawn does not.
        weighed: Deltas whose log density does.
        point: Whether nothing is drawn: every site is a Delta, so that the guide has no density.
        normal: Sites that are independent Normals.
    """

    names: frozenset[str]
    auxiliary: frozenset[str]
    discrete: frozenset[str]
    enumerable: frozenset[str]
    rough: frozenset[str] = frozenset()
    moved: frozenset[str] = frozenset()
    weighed: frozenset[str] = frozenset()
    point: bool = False
    normal: frozenset[str] = frozenset()


def read_guide(
    guide: Callable[..., Any], arguments: Mapping[str, Any], space: LatentSpace
) -> GuideSites:
    """Runs a guide once, and checks that its sites are the model's.

    Raises:
        GuideError: If the guide raises, samples a site that the model does not have, or omits a
            continuous site that the model has; the site is named.
    """
    with users_code("the guide cannot be run", GuideError):
        trace = poutine.trace(guide).get_trace(**arguments)
    nodes = {name: node for name, node in sample_sites(trace) if not node["is_observed"]}
    auxiliary = {name for name, node in nodes.items() if node["infer"].get("is_auxiliary")}
    names = set(nodes) - auxiliary
    wanted = {site.name: site.shape for site in space.sites}
    extra = sorted(names - set(wanted) - set(space.discrete))
    if extra:
        raise GuideError(
            f"the guide samples '{extra[0]}', which the model does not; the model's latent sites: "
            f"{', '.join([*wanted, *space.discrete])}. Rename it, or mark it with "
            "infer={'is_auxiliary': True}."
        )
    missing = sorted(set(wanted) - names)
    if missing:
        raise GuideError(
            f"the guide does not sample the model's site '{missing[0]}', which would silently keep "
            f"its prior. Add pyro.sample('{missing[0]}', ...) to the guide."
        )
    for name, shape in wanted.items():
        if nodes[name]["value"].shape != shape:
            raise GuideError(
                f"site '{name}': the guide's value has shape "
                f"{tuple(nodes[name]['value'].shape)}, the model's {tuple(shape)}; give both the "
                "same shape."
            )
    # An unmixed Delta has no support to speak of; its site is as continuous as the model's.
    discrete = names & set(space.discrete)
    enumerable = {name for name in discrete if nodes[name]["infer"].get("enumerate") == "parallel"}
    rough = {
        name
        for name, node in nodes.items()
        if name not in discrete and not (node["fn"].has_rsample or is_delta(node["fn"]))
    }
    point = all(is_delta(node["fn"]) for node in nodes.values())
    normal = {name for name in names if isinstance(base_of(nodes[name]["fn"]), dist.Normal)}
    return GuideSites(
        frozenset(names), frozenset(auxiliary), frozenset(discrete), frozenset(enumerable),
        frozenset(rough), *_deltas(guide, arguments, trace), point, frozenset(normal),
    )  # fmt: skip


def _deltas(
    guide: Callable[..., Any], arguments: Mapping[str, Any], trace: Any
) -> tuple[frozenset[str], frozenset[str]]:
    """The Deltas whose values, and whose log densities, follow from parameters by themselves."""
    held = trace.copy()
    for name, node in list(trace.nodes.items()):
        if node["type"] != "sample" or node["is_observed"]:
            continue
        if is_delta(node["fn"]):
            held.remove_node(name)
        else:
            held.nodes[name] = {**node, "value": node["value"].detach()}
    again = poutine.trace(poutine.replay(guide, trace=held)).get_trace(**arguments)
    deltas = {n: d for n, d in sample_sites(again) if is_delta(d["fn"]) and not d["is_observed"]}
    moved = {name for name, node in deltas.items() if node["value"].requires_grad}
    weighed = {
        name
        for name, node in deltas.items()
        if torch.as_tensor(node["fn"].log_prob(node["value"].detach())).requires_grad
    }
    return frozenset(moved), frozenset(weighed)


def is_delta(fn: Any) -> bool:
    """Whether a distribution is one point."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return isinstance(fn, dist.Delta)
