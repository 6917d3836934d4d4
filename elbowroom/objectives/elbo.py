"""The objectives by name, and which of them is right for a model and a guide."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import config_enumerate

from elbowroom.errors import GuideError, ModelError, OptionError, users_code
from elbowroom.guides.space import LatentSpace, base_of, sample_sites, trace_model
from elbowroom.objectives.estimators import (
    Analytic,
    DoublyReparameterised,
    Graph,
    ImportanceWeighted,
    Landing,
    LeaveOneOut,
    Objective,
    Renyi,
    Sampled,
    Summed,
)
from elbowroom.objectives.local_reparameterisation import LocalReparameterisation
from elbowroom.objectives.score_function import ScoreFunction
from elbowroom.objectives.wake_sleep import ReweightedWakeSleep, WakeSleep
from elbowroom.options import option_names

OBJECTIVES: dict[str, type[Objective]] = {
    "trace": Sampled,
    "trace_graph": Graph,
    "trace_enum": Summed,
    "trace_mean_field": Analytic,
    "local_reparameterisation": LocalReparameterisation,
    "sticking_the_landing": Landing,
    "score_function": ScoreFunction,
    "iwae": ImportanceWeighted,
    "dreg": DoublyReparameterised,
    "renyi": Renyi,
    "vimco": LeaveOneOut,
    "wake_sleep": WakeSleep,
    "reweighted_wake_sleep": ReweightedWakeSleep,
}
"""Every objective by its name."""
CLOSED = ("trace_mean_field", "local_reparameterisation")
"""Those that take divergences in closed form, site by site."""
PATHWISE = (*CLOSED, "sticking_the_landing", "iwae", "dreg", "renyi")
"""Those that need draws that can be differentiated by the guide's parameters."""
SCORED = ("sticking_the_landing", "dreg")
"""Those that leave the score of the guide out."""
AS_DRAWN = ("score_function", "vimco", "wake_sleep", "reweighted_wake_sleep")
"""Those that take draws as they are, without the paths that lead to them."""


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
        GuideError: If the guide raises, samples a site that the model lacks, or lacks a
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
            f"the guide lacks the model's site '{missing[0]}'; without it the site would keep its "
            f"prior unnoticed. Add pyro.sample('{missing[0]}', ...) to the guide."
        )
    for name, shape in wanted.items():
        if nodes[name]["value"].shape != shape:
            raise GuideError(
                f"site '{name}': the guide gives a value of shape "
                f"{tuple(nodes[name]['value'].shape)}, the model one of {tuple(shape)}."
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


def choose_objective(
    requested: str | None,
    suited: str | None,
    space: LatentSpace,
    sites: GuideSites,
    free_bits: float = 0.0,
) -> tuple[str, str]:
    """The objective for a model and a guide, and why.

    Args:
        requested: The user's choice, or None.
        suited: The guide's own, or None.
        space: The model's latent space.
        sites: The guide's sites.
        free_bits: Nats of each latent that cost nothing.

    Raises:
        OptionError: If the objective is wrong for the pair.
    """
    if free_bits:
        if requested not in (None, "trace_mean_field"):
            raise OptionError(
                f"--free-bits needs each latent's divergence in closed form, which --elbo "
                f"{requested} has not; give --elbo trace_mean_field."
            )
        requested = "trace_mean_field"
    left = sorted(set(space.discrete) - sites.discrete)
    if left and requested not in (None, "trace_enum"):
        raise OptionError(
            f"--elbo {requested} needs every latent site in the guide, and '{left[0]}' is not; "
            "give --elbo trace_enum, which sums over it, or a guide that samples it."
        )
    if requested == "trace_enum" and not (left or sites.enumerable):
        raise OptionError(
            "--elbo trace_enum: there is no discrete site to enumerate; leave it out."
        )
    if requested in PATHWISE and sites.discrete:
        raise OptionError(
            f"--elbo {requested} needs reparameterised sites, and '{min(sites.discrete)}' is "
            "discrete; give --elbo trace_graph, or of several draws vimco."
        )
    if requested in PATHWISE and sites.rough:
        raise OptionError(
            f"--elbo {requested} needs reparameterised sites, and '{min(sites.rough)}' has a "
            "distribution that cannot be; give --elbo trace_graph, or another distribution."
        )
    still = sites.moved | sites.weighed if requested in AS_DRAWN else sites.weighed
    if still and not sites.point and requested in (*AS_DRAWN, *SCORED):
        raise OptionError(
            f"--elbo {requested} takes the guide's densities apart, and '{min(still)}' is a Delta "
            "that depends on a parameter; give --elbo trace."
        )
    if requested in AS_DRAWN and sites.point:
        raise OptionError(
            f"--elbo {requested}: the guide is a point, which has no score; leave it out."
        )
    if requested is not None and OBJECTIVES[requested].of_rows:
        if not space.rows_only:
            raise OptionError(
                f"--elbo {requested} is for models whose latents all belong to rows, of which a "
                "guide can be shown others than the data; give --elbo trace_graph."
            )
        if sites.auxiliary:
            raise OptionError(
                f"--elbo {requested}: the guide draws '{min(sites.auxiliary)}', which is no site "
                "of the model, and no dream tells of it; give --elbo trace."
            )
    if requested == "local_reparameterisation":
        weights = [f"{layer}.{part}" for layer in space.layers for part in ("weight", "bias")]
        if not weights:
            raise OptionError(
                "--elbo local_reparameterisation: the model has no layer whose weights are latent; "
                "leave it out."
            )
        other = next((name for name in weights if name not in sites.normal), None)
        if other is not None:
            raise OptionError(
                f"--elbo local_reparameterisation needs weights in independent Normals, and the "
                f"guide's '{other}' is not; leave it out, or fit with another guide."
            )
    if requested in CLOSED and sites.auxiliary:
        raise OptionError(
            f"--elbo {requested} takes divergences site by site, and the guide draws "
            f"'{min(sites.auxiliary)}', which is no site of the model; give --elbo trace."
        )
    if requested is not None:
        return requested, "as asked"
    if left:
        return "trace_enum", f"it sums over '{left[0]}', which the guide leaves out"
    if sites.enumerable:
        return "trace_enum", f"the guide's '{min(sites.enumerable)}' can be summed over"
    if sites.discrete and suited not in AS_DRAWN:
        return "trace_graph", f"the guide's '{min(sites.discrete)}' is discrete: score function"
    if suited is not None:
        return suited, "it suits the guide"
    return "trace", "every site is reparameterised"


def make_objective(name: str, particles: int, space: LatentSpace, **options: Any) -> Objective:
    """The objective.

    Args:
        name: Of `OBJECTIVES`.
        particles: Draws for each estimate.
        space: The model's latent space.
        **options: Of objectives; those that this one does not read are left aside.
    """
    kind = OBJECTIVES[name]
    rows = space.subsampled if space.rows_only else None
    own = {each: options[each] for each in option_names(kind.options_kind) if each in options}
    chosen = None if kind.options_kind is None else kind.options_kind(**own)
    return kind(particles, space.max_plate_nesting, rows, space.observed, chosen)


def objective_options() -> list[type]:
    """The options that objectives read, each dataclass once."""
    found = (kind.options_kind for kind in OBJECTIVES.values())
    return list(dict.fromkeys(kind for kind in found if kind is not None))


def given_to_objectives(settings: Any) -> dict[str, Any]:
    """The options of objectives among all of a fit's."""
    names = [name for kind in objective_options() for name in option_names(kind)]
    return {name: getattr(settings, name) for name in names}


def marked(
    name: str, model: Callable[..., Any], guide: Callable[..., Any]
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Model and guide as the objective needs them.

    For `trace_enum` the model's discrete sites are marked for enumeration; for the others the
    guide's marks are taken off, since Pyro warns of marks that its objective does not read.
    """
    if name == "trace_enum":
        return config_enumerate(model, "parallel"), guide
    unmarked: Any = {"enumerate": None}
    return model, poutine.infer_config(guide, config_fn=lambda site: unmarked)


def check_enumerable(
    model: Callable[..., Any], arguments: Mapping[str, Any], space: LatentSpace, sites: GuideSites
) -> None:
    """Sees that the discrete sites left to the objective have finitely many values.

    Raises:
        ModelError: If one has not; the site is named.
    """
    left = set(space.discrete) - sites.discrete
    if not left:
        return
    nodes = dict(sample_sites(trace_model(model, arguments)))
    for name in sorted(left):
        if not nodes[name]["fn"].has_enumerate_support:
            raise ModelError(
                f"site '{name}' is discrete with infinitely many values, so that it cannot be "
                "summed over; sample it in a hand-written guide."
            )
