"""Which objective a model and a guide are given, and what every wrong pair is told."""

from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import elbowroom as er
from elbowroom.errors import GuideError, ModelError, OptionError
from elbowroom.guides import Start, get_guide
from elbowroom.guides.sites import read_guide
from elbowroom.guides.space import LatentSpace
from elbowroom.objectives import objectives
from elbowroom.objectives.elbo import (
    check_enumerable,
    choose_objective,
    make_objective,
    marked,
)
from elbowroom.pipeline.fitting import bind_model
from elbowroom.problem.isolation import isolated

DATA = {"y": torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)}


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with isolated(0):
        yield


def plain(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 1.0))
    scale = pyro.sample("scale", dist.HalfNormal(torch.ones(())))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, scale), obs=y)


def mixed(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 1.0))
    with pyro.plate("rows", len(y)):
        kind = pyro.sample("kind", dist.Bernoulli(torch.tensor(0.3)))
        pyro.sample("y", dist.Normal(mean + kind, 1.0), obs=y)


def counted(y: Tensor) -> None:
    count = pyro.sample("count", dist.Poisson(torch.tensor(2.0)))
    mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean + count, 1.0), obs=y)


def guide_of(*sites: str, marked_kind: bool = False) -> Callable[..., Any]:
    """A guide with the sites named."""

    def guide(y: Tensor) -> None:
        if "mean" in sites:
            pyro.sample("mean", dist.Normal(pyro.param("mean.location", torch.zeros(())), 1.0))
        if "scale" in sites:
            pyro.sample("scale", dist.LogNormal(torch.zeros(()), 1.0))
        if "kind" in sites:
            infer: Any = {"enumerate": "parallel"} if marked_kind else {}
            with pyro.plate("rows", len(y)):
                pyro.sample("kind", dist.Bernoulli(torch.tensor(0.4)), infer=infer)
        if "count" in sites:
            pyro.sample("count", dist.Poisson(torch.tensor(3.0)))
        if "stray" in sites:
            pyro.sample("stray", dist.Normal(torch.zeros(()), 1.0))

    return guide


def read(model: Callable[..., Any], guide: Callable[..., Any]) -> Any:
    return read_guide(guide, DATA, LatentSpace.of(model, DATA))


def chosen(model: Callable[..., Any], guide: Callable[..., Any], elbo: str | None = None) -> str:
    space = LatentSpace.of(model, DATA)
    return choose_objective(elbo, None, space, read_guide(guide, DATA, space))[0]


def test_a_guide_that_lacks_a_site_is_refused_by_name() -> None:
    with pytest.raises(GuideError, match="the guide does not sample the model's site 'scale'"):
        read(plain, guide_of("mean"))


def test_a_guide_with_a_site_too_many_is_refused_by_name() -> None:
    with pytest.raises(GuideError, match=r"samples 'stray', which the model does not"):
        read(plain, guide_of("mean", "scale", "stray"))


def test_an_auxiliary_site_is_allowed() -> None:
    def guide(y: Tensor) -> None:
        both = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        first, second = pyro.sample("both", both, infer={"is_auxiliary": True})
        pyro.sample("mean", dist.Delta(first))
        pyro.sample("scale", dist.Delta(second.exp(), log_density=-second))

    found = read(plain, guide)
    assert found.names == {"mean", "scale"}
    assert found.auxiliary == {"both"}
    assert not found.discrete


def test_a_site_of_another_shape_is_refused_by_name_with_both_shapes() -> None:
    def guide(y: Tensor) -> None:
        pyro.sample("mean", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("scale", dist.LogNormal(torch.zeros(()), 1.0))

    with pytest.raises(GuideError, match=r"'mean'.*\(3,\), the model's \(\); give both"):
        read(plain, guide)


def test_a_guide_that_raises_or_takes_other_arguments_is_refused() -> None:
    def broken(y: Tensor) -> None:
        raise KeyError("nothing")

    def of_x(x: Tensor) -> None: ...

    for guide in (broken, of_x):
        with pytest.raises(GuideError, match=r"the guide cannot be run: (KeyError|TypeError)"):
            read(plain, guide)


@pytest.mark.parametrize(
    ("model", "guide", "objective"),
    [
        (plain, guide_of("mean", "scale"), "trace"),
        (mixed, guide_of("mean"), "trace_enum"),
        (mixed, guide_of("mean", "kind"), "trace_graph"),
        (mixed, guide_of("mean", "kind", marked_kind=True), "trace_enum"),
        (counted, guide_of("mean", "count"), "trace_graph"),
    ],
)
def test_the_right_objective_is_chosen(
    model: Callable[..., Any], guide: Callable[..., Any], objective: str
) -> None:
    assert chosen(model, guide) == objective


@pytest.mark.parametrize(
    ("model", "guide", "elbo", "message"),
    [
        (mixed, guide_of("mean"), "trace_graph", r"'kind' is not; give --elbo trace_enum"),
        (mixed, guide_of("mean"), "trace", r"'kind' is not"),
        (plain, guide_of("mean", "scale"), "trace_enum", "no discrete site to sum over"),
        (mixed, guide_of("mean", "kind"), "trace_enum", "no discrete site to sum over"),
        (mixed, guide_of("mean", "kind"), "trace_mean_field", r"'kind' is discrete"),
    ],
)
def test_a_wrong_objective_is_refused(
    model: Callable[..., Any], guide: Callable[..., Any], elbo: str, message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        chosen(model, guide, elbo)


def test_an_unknown_objective_is_refused_with_the_nearest() -> None:
    with pytest.raises(OptionError, match="did you mean 'trace_graph'"):
        er.fit(plain, DATA, elbo="trace_grap", seed=0)


def test_the_collapsed_mixture_guide_cannot_take_a_score_function() -> None:
    problem, _, _ = bind_model("gaussian_mixture", "iris", {"columns": ("petal_length",)})
    guide = get_guide("collapsed", "gaussian_mixture")
    called = guide.build(problem.space, Start(torch.zeros(problem.space.dimension)))
    sites = read_guide(called, problem.arguments, problem.space)
    with pytest.raises(OptionError, match=r"'assignments' is not; give --elbo trace_enum"):
        choose_objective("trace_graph", guide.elbo, problem.space, sites)
    assert choose_objective(None, guide.elbo, problem.space, sites)[0] == "trace_enum"


def test_infinitely_many_values_cannot_be_summed_over() -> None:
    space = LatentSpace.of(counted, DATA)
    sites = read_guide(guide_of("mean"), DATA, space)
    with pytest.raises(ModelError, match=r"site 'count'.*infinitely many"):
        check_enumerable(counted, DATA, space, sites)
    check_enumerable(counted, DATA, space, read(counted, guide_of("mean", "count")))
    with pytest.raises(ModelError, match=r"site 'count'.*infinitely many"):
        er.fit(counted, DATA, guide=guide_of("mean"), seed=0)


def exact(y: Tensor) -> None:
    precision = 1.0 + len(y)
    pyro.sample("mean", dist.Normal(y.sum() / precision, precision**-0.5))


def conjugate(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


@pytest.mark.parametrize("name", ["trace", "trace_graph"])
def test_the_loss_of_the_exact_posterior_is_minus_the_log_evidence(name: str) -> None:
    space = LatentSpace.of(conjugate, DATA)
    model, guide = marked(name, conjugate, exact)
    y = DATA["y"]
    covariance = torch.eye(len(y)) + 1.0
    evidence = dist.MultivariateNormal(torch.zeros(len(y)), covariance).log_prob(y)
    loss = make_objective(name, 1, space).loss(model, guide, **DATA)
    assert loss == pytest.approx(-float(evidence), rel=1e-12)


@pytest.mark.parametrize("name", objectives())
def test_a_factor_of_one_moves_every_loss_by_one(name: str) -> None:
    def tilted(y: Tensor) -> None:
        mixed(y)
        pyro.factor("tilt", torch.tensor(1.0))

    kinds = () if name in ("trace_enum", "trace_mean_field") else ("kind",)
    losses = []
    for model in (mixed, tilted):
        if name == "trace_mean_field":
            model = pyro.poutine.condition(model, {"kind": torch.zeros(3)})
        space = LatentSpace.of(model, DATA)
        pair = marked(name, model, guide_of("mean", *kinds))
        pyro.set_rng_seed(0)
        losses.append(make_objective(name, 1, space).loss(pair[0], pair[1], **DATA))
    assert losses[0] - losses[1] == pytest.approx(1.0, abs=1e-12)
