"""The mixture's labels, its starts, and every shape of covariance."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import elbowroom as er
from elbowroom.errors import OptionError
from elbowroom.models.gaussian_mixture import canonical, starts
from elbowroom.pipeline.fitting import bind_model
from elbowroom.problem.bound import Problem
from elbowroom.problem.isolation import isolated
from elbowroom.problem.score import score

SHAPES = ("full", "diagonal", "spherical")
CENTRES = np.array([[-6.0, 1.0], [0.0, -5.0], [7.0, 4.0]])
ROWS_EACH = 30


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with isolated(0):
        yield


def table() -> pd.DataFrame:
    noise = np.random.default_rng(0).normal(size=(3, ROWS_EACH, 2))
    return pd.DataFrame((CENTRES[:, None] + noise).reshape(-1, 2), columns=["a", "b"])


def problem(shape: str = "full", **options: Any) -> Problem:
    found, _, _ = bind_model("gaussian_mixture", table(), {"covariance_type": shape, **options})
    return found


def draws_about_a_start(bound: Problem, count: int) -> dict[str, Tensor]:
    (best,) = starts(bound.arguments, 1, 0)
    u = bound.space.unconstrain(best)
    points = u + 0.05 * torch.randn(count, len(u))
    return torch.func.vmap(bound.space.constrain)(points)


def permuted(sites: Mapping[str, Tensor], orders: Tensor) -> dict[str, Tensor]:
    """Component `orders[d, k]` of a draw becomes its component k."""
    found = {}
    for name, values in sites.items():
        if name == "assignments":
            rows = zip(values, orders, strict=True)
            found[name] = torch.stack([order.argsort()[labels] for labels, order in rows])
        else:
            rows = zip(values, orders, strict=True)
            found[name] = torch.stack([value[order] for value, order in rows])
    return found


@pytest.mark.parametrize("shape", SHAPES)
def test_permuted_draws_are_put_back_exactly_and_keep_their_density(shape: str) -> None:
    bound = problem(shape)
    sites = draws_about_a_start(bound, 20)
    sites["assignments"] = torch.randint(3, (20, 3 * ROWS_EACH))
    reference = {name: value[:5] for name, value in sites.items()}
    orders = torch.stack([torch.randperm(3) for _ in range(20)])
    shuffled = permuted(sites, orders)
    assert not torch.equal(shuffled["weights"], sites["weights"])
    restored = canonical(shuffled, reference)
    assert restored.keys() == sites.keys()
    for name, values in sites.items():
        torch.testing.assert_close(restored[name], values, rtol=0, atol=0, msg=name)
    for i in range(3):
        densities = [
            score(
                bound.function, bound.arguments, {k: v[i] for k, v in each.items()}, bound.space
            ).log_joint
            for each in (sites, shuffled)
        ]
        torch.testing.assert_close(densities[0], densities[1], rtol=1e-12, atol=1e-12)


def test_without_a_reference_components_are_numbered_by_their_first_column() -> None:
    bound = problem()
    sites = draws_about_a_start(bound, 10)
    reverse = torch.tensor([2, 1, 0]).expand(10, 3)
    means = canonical(permuted(sites, reverse), None)["standardised_means"]
    assert (means[:, :, 0].diff(dim=1) > 0).all()


def test_the_same_draws_in_canonical_order_stay() -> None:
    sites = draws_about_a_start(problem(), 10)
    once = canonical(sites, None)
    for name, values in canonical(once, once).items():
        assert torch.equal(values, once[name])


@pytest.mark.parametrize("shape", SHAPES)
def test_starts_are_valid_and_each_group_has_a_component(shape: str) -> None:
    bound = problem(shape)
    found = starts(bound.arguments, 3, 0)
    assert len(found) == 3
    for values in found:
        u = bound.space.unconstrain(values)
        assert torch.isfinite(u).all()
        for name, value in bound.space.constrain(u).items():
            torch.testing.assert_close(value, values[name], msg=name)
        density = score(bound.function, bound.arguments, values, bound.space).log_joint
        assert torch.isfinite(density)
    centre, spread = bound.arguments["centre"], bound.arguments["spread"]
    means = (centre + spread * found[0]["standardised_means"]).numpy()
    # The mean of thirty rows of unit noise, to four standard errors.
    np.testing.assert_allclose(means, CENTRES, atol=4 / ROWS_EACH**0.5)


def test_a_start_with_a_component_of_one_row_is_finite() -> None:
    lonely = pd.concat([table(), pd.DataFrame({"a": [500.0], "b": [500.0]})])
    bound, _, _ = bind_model("gaussian_mixture", lonely, {"components": 4})
    for values in starts(bound.arguments, 2, 0):
        density = score(bound.function, bound.arguments, values, bound.space).log_joint
        assert torch.isfinite(density)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_covariance_finds_the_groups(shape: str) -> None:
    fit = er.fit(
        "gaussian_mixture", table(), "laplace", covariance_type=shape, restarts=1, seed=0, draws=200
    )
    posterior = fit.posterior["posterior"]
    means = posterior["means"].mean(("chain", "draw")).values
    np.testing.assert_allclose(means, CENTRES, atol=4 / ROWS_EACH**0.5)
    deviations = posterior["standard_deviations"].mean(("chain", "draw"))
    # Unit noise from thirty rows: four standard errors of a standard deviation.
    np.testing.assert_allclose(deviations.values, 1.0, atol=4 / (2 * ROWS_EACH) ** 0.5)
    spherical = shape == "spherical"
    assert deviations.dims == (("component",) if spherical else ("component", "column"))
    assert ("covariances" in posterior) == (shape == "full")
    labels = fit.predict(table())["assignments"]
    np.testing.assert_array_equal(labels, np.repeat([0, 1, 2], ROWS_EACH))


def test_one_component_is_a_mixture_too() -> None:
    fit = er.fit(
        "gaussian_mixture", table(), "laplace", components=1, seed=0, draws=100, restarts=1
    )
    mean = fit.posterior["posterior"]["means"].mean(("chain", "draw", "component")).values
    sd = table().std().to_numpy()
    assert (np.abs(mean - table().mean()) < 4 * sd / (3 * ROWS_EACH) ** 0.5).all()


def test_more_components_than_rows_are_refused() -> None:
    with pytest.raises(OptionError, match=r"--components 91 is more than the 90 rows of the table"):
        problem(components=91)
