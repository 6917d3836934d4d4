"""A model's latent sites, and the change between their values and the unconstrained vector."""

from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro.distributions import constraints
from torch import Tensor

from elbowroom.errors import ModelError
from elbowroom.guides.space import LatentSpace, Plate, Site
from elbowroom.problem.isolation import isolated

ROUND_TRIP = 1e-6
"""Relative error of a transform and back in float64, where logits reach 3."""
SUPPORTS: dict[str, tuple[Any, int]] = {
    "simplex": (constraints.simplex, 4),
    "positive": (constraints.positive, 2),
    "interval": (constraints.interval(-2.0, 5.0), 2),
    "correlation": (constraints.corr_cholesky, 3),
    "ordered": (constraints.ordered_vector, 4),
    "greater_than": (constraints.greater_than(3.0), 1),
}


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with isolated(0, validate=True):
        yield


def every_support(y: Tensor) -> None:
    for name, (support, size) in SUPPORTS.items():
        shape = (size, size) if name == "correlation" else (size,)
        events = max(support.event_dim, 1)
        pyro.sample(name, dist.ImproperUniform(support, (), shape).to_event(events - len(shape)))
    pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


def space_of(model: Callable[..., Any], y: Tensor | None = None, **more: Any) -> LatentSpace:
    return LatentSpace.of(model, {"y": torch.zeros(()) if y is None else y, **more})


def free_coordinates(name: str, value: Tensor) -> Tensor:
    """As many coordinates of a value as its unconstrained vector has."""
    if name == "simplex":
        return value[:-1]
    if name == "correlation":
        row, column = torch.tril_indices(len(value), len(value), -1)
        return value[row, column]
    return value


with isolated(0):
    SPACE = space_of(every_support)
SITES = {site.name: site for site in SPACE.sites}
points = st.lists(
    st.floats(-3.0, 3.0, width=32), min_size=SPACE.dimension, max_size=SPACE.dimension
).map(lambda values: torch.tensor(values, dtype=torch.float64))


@settings(max_examples=60)
@given(points)
def test_values_lie_in_their_supports_and_lead_back(u: Tensor) -> None:
    values = SPACE.constrain(u)
    for name, (support, _) in SUPPORTS.items():
        assert support.check(values[name]).all(), name
    torch.testing.assert_close(SPACE.unconstrain(values), u, rtol=ROUND_TRIP, atol=ROUND_TRIP)


@settings(max_examples=20)
@given(points)
def test_log_jacobian_is_autograds(u: Tensor) -> None:
    for name, part in SPACE.split(u).items():
        site = SITES[name]

        def free(v: Tensor, site: Site = site) -> Tensor:
            return free_coordinates(site.name, site.transform(v))

        jacobian = torch.autograd.functional.jacobian(free, part)
        log_determinant = torch.linalg.slogdet(jacobian).logabsdet
        found = site.log_abs_det_jacobian(part, site.transform(part)).sum()
        torch.testing.assert_close(found, log_determinant, rtol=1e-8, atol=1e-8, msg=name)


def test_an_improper_prior_is_traced_in_a_plate() -> None:
    def model(y: Tensor) -> None:
        with pyro.plate("groups", 3):
            pyro.sample("scale", dist.ImproperUniform(constraints.positive, (), ()))
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    (site,) = space_of(model).sites
    assert site.shape == (3,)
    assert site.plates == (Plate("groups", -1, 3),)
    assert not site.real


def uniform_below(y: Tensor) -> None:
    share = pyro.sample("share", dist.Beta(torch.tensor(2.0), 2.0))
    pyro.sample("rest", dist.Uniform(0.0, 1 - share))
    pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


def uniform_about_zero(y: Tensor) -> None:
    """The midpoint of the support is fixed; its width is not."""
    bound = pyro.sample("bound", dist.HalfNormal(torch.tensor(1.0)))
    pyro.sample("rest", dist.Uniform(-bound, bound))
    pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


def sometimes_there(y: Tensor) -> None:
    if pyro.sample("first", dist.Normal(torch.zeros(()), 1.0)) > 0:
        pyro.sample("rest", dist.Normal(torch.zeros(()), 1.0))
    pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


@pytest.mark.parametrize("model", [uniform_below, uniform_about_zero, sometimes_there])
def test_a_support_that_depends_on_another_latent_is_refused(model: Callable[..., Any]) -> None:
    with pytest.raises(ModelError, match=r"'rest'.* depends on another latent site"):
        space_of(model)


def test_a_support_without_coordinates_is_refused_by_name() -> None:
    def model(y: Tensor) -> None:
        pyro.sample("direction", dist.ImproperUniform(constraints.sphere, (), (2,)))
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    with pytest.raises(ModelError, match="site 'direction'"):
        space_of(model)


def test_a_factor_is_no_observed_site() -> None:
    def model(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 1.0))
        pyro.factor("constraint", -mean.square())
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    assert space_of(model).observed == ("y",)


def test_a_model_that_raises_keeps_its_reason() -> None:
    def model(y: Tensor) -> None:
        raise ValueError("the widget is missing")

    with pytest.raises(ModelError, match="cannot be run: ValueError: the widget is missing"):
        space_of(model)


def test_the_plate_that_batch_size_subsamples_is_found_among_others() -> None:
    def model(y: Tensor, batch_size: int | None = None) -> None:
        columns = pyro.plate("columns", 2, dim=-1)
        with columns:
            scale = pyro.sample("scale", dist.HalfNormal(torch.tensor(1.0)))
        with pyro.plate("sites", len(y), subsample_size=batch_size, dim=-2):
            pyro.sample("shift", dist.Normal(torch.zeros(1), 1.0))
            with columns:
                batch = pyro.subsample(y, event_dim=0)
                kind = pyro.sample("kind", dist.Bernoulli(torch.tensor(0.5)))
                pyro.sample("y", dist.Normal(kind, scale), obs=batch)

    space = space_of(model, torch.zeros(5, 2))
    assert space.subsampled == Plate("sites", -2, 5)
    assert space.local == ("shift", "kind")
    assert space.local_continuous
    assert space.max_plate_nesting == 2
    assert space.observed_plates["y"] == (Plate("sites", -2, 5), Plate("columns", -1, 2))


def test_reading_a_model_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    space_of(uniform_free)
    assert torch.equal(torch.get_rng_state(), before)


def uniform_free(y: Tensor) -> None:
    pyro.sample("share", dist.Uniform(torch.zeros(()), 1.0))
    pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


def test_the_values_of_discrete_sites_are_counted_where_they_can_be_listed() -> None:
    """Counts of several sizes, vectors and counts without an end have no list."""

    def model() -> None:
        pyro.sample("kind", dist.Categorical(torch.ones(3)))
        pyro.sample(
            "several", dist.Binomial(torch.tensor([2.0, 5.0]), torch.tensor(0.5)).to_event(1)
        )
        pyro.sample("both", dist.Bernoulli(torch.full((2,), 0.5)).to_event(1))
        with pyro.plate("trials", 2):
            pyro.sample("counts", dist.Binomial(torch.tensor([2.0, 5.0]), torch.tensor(0.5)))
        pyro.sample("endless", dist.Poisson(2.0))
        pyro.sample("level", dist.Normal(0.0, 1.0))

    assert LatentSpace.of(model, {}).states == {3}
