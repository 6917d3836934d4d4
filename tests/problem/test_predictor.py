"""What is linear in a standard Normal vector: found, and the same posterior written by it."""

from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from elbowroom.density.landscape import density_of
from elbowroom.problem.bound import Problem, bind, resolve_model
from elbowroom.problem.informed import Form, Information, Predicted, restored, stored
from elbowroom.problem.isolation import isolated
from elbowroom.problem.predictor import Predictor, predictors

SIZE = 10


@pytest.fixture(autouse=True)
def _in_double() -> Iterator[None]:
    with isolated(0, dtype=torch.float64):
        yield


def factor(length: Tensor) -> Tensor:
    x = torch.arange(float(SIZE))
    near = torch.exp(-((x[:, None] - x) ** 2) / (2 * length**2))
    return torch.linalg.cholesky(near + 0.1 * torch.eye(SIZE))


def process(y: Tensor) -> None:
    """A level, and a vector that is scaled by a factor of unknown length."""
    length = pyro.sample("length", dist.LogNormal(0.0, 0.5))
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    z = pyro.sample("z", dist.Normal(torch.zeros(SIZE), 1.0).to_event(1))
    f = level + length * (factor(length) @ z)
    pyro.sample("y", dist.Poisson(torch.exp(f)).to_event(1), obs=y)


def level_later(y: Tensor) -> None:
    """The same, whose level is not known where the vector is sampled."""
    length = pyro.sample("length", dist.LogNormal(0.0, 0.5))
    z = pyro.sample("z", dist.Normal(torch.zeros(SIZE), 1.0).to_event(1))
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    f = level + length * (factor(length) @ z)
    pyro.sample("y", dist.Poisson(torch.exp(f)).to_event(1), obs=y)


def at_odd_places(y: Tensor) -> None:
    """The vector is seen at half of its places."""
    length = pyro.sample("length", dist.LogNormal(0.0, 0.5))
    z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([20]).to_event(1))
    x = torch.arange(20.0)
    f = (z @ torch.exp(-((x[:, None] - x) ** 2) / length).T)[..., ::2]
    pyro.sample("y", dist.Normal(f, 0.5).to_event(1), obs=y)


def bound(model: Callable[..., Any]) -> Problem:
    y = torch.arange(float(SIZE))
    return bind(resolve_model(model), {"y": y}, None, torch.float64, torch.device("cpu"))


def found(problem: Problem) -> tuple[Predictor, ...]:
    return predictors(problem.function, problem.arguments, problem.space)


@pytest.mark.parametrize("model", [process, level_later, at_odd_places])
def test_the_last_linear_result_is_found(model: Any) -> None:
    problem = bound(model)
    (predictor,) = found(problem)
    assert (predictor.site, predictor.shape) == ("z", torch.Size([SIZE]))
    length, level = torch.tensor(1.5), torch.tensor(-0.3)
    size = {site.name: site.shape for site in problem.space.sites}["z"]
    values = {"length": length, "level": level, "z": torch.zeros(size)}
    constant, columns = predictor.at(problem.function, problem.arguments, values)
    if model is not at_odd_places:
        known = level if model is process else torch.zeros(())
        torch.testing.assert_close(constant, known.expand(SIZE))
        torch.testing.assert_close(columns, length * factor(length))
    else:
        x = torch.arange(20.0)
        expected = torch.exp(-((x[:, None] - x) ** 2) / length)[::2]
        torch.testing.assert_close(constant, torch.zeros(SIZE))
        torch.testing.assert_close(columns, expected)


def fixed_matrix(y: Tensor) -> None:
    size = pyro.sample("size", dist.LogNormal(0.0, 0.5))
    z = pyro.sample("z", dist.Normal(torch.zeros(SIZE), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(size * z.cumsum(-1), 1.0).to_event(1), obs=y)


def not_standard(y: Tensor) -> None:
    length = pyro.sample("length", dist.LogNormal(0.0, 0.5))
    z = pyro.sample("z", dist.Normal(torch.zeros(SIZE), 2.0).to_event(1))
    pyro.sample("y", dist.Normal(factor(length) @ z, 1.0).to_event(1), obs=y)


def not_linear(y: Tensor) -> None:
    length = pyro.sample("length", dist.LogNormal(0.0, 0.5))
    z = pyro.sample("z", dist.Normal(torch.zeros(SIZE), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(factor(length) @ z.exp(), 1.0).to_event(1), obs=y)


@pytest.mark.parametrize("model", [fixed_matrix, not_standard, not_linear])
def test_what_gains_nothing_is_left(model: Any) -> None:
    assert found(bound(model)) == ()


@pytest.mark.parametrize("model", [process, level_later, at_odd_places])
def test_the_density_changes_by_the_jacobian_alone(model: Any) -> None:
    problem = bound(model)
    (predictor,) = found(problem)
    root = torch.diag(torch.rand(SIZE)) if model is not at_odd_places else torch.randn(SIZE, SIZE)
    forms: dict[str, Form] = {
        "z": Predicted(predictor, Information(root, torch.randn(SIZE))),
    }
    changed = problem.reparameterise(["z"], forms)
    before, after = density_of(problem), density_of(changed)
    assert after.how == "recorded"
    u = 0.5 * torch.randn(after.dimension)
    values = changed.space.constrain(u)

    def of(moved: Tensor) -> Tensor:
        given = poutine.condition(changed.function, values | {"z_decentered": moved})
        trace: Any = poutine.trace(given).get_trace(**changed.arguments)
        return trace.nodes["z"]["value"]

    moved = values["z_decentered"]
    own = {name: values[name] for name in values if name != "z_decentered"} | {"z": of(moved)}
    jacobian: Any = torch.autograd.functional.jacobian(of, moved)
    expected = before.at(problem.space.unconstrain(own).numpy())[0]
    expected += float(torch.linalg.slogdet(jacobian)[1])
    assert after.at(u.numpy())[0] == pytest.approx(expected, abs=1e-8)
    again = problem.restated(["z"], forms, own)
    torch.testing.assert_close(again["z_decentered"], moved, rtol=1e-9, atol=1e-9)
    (form,) = restored(dict(stored(forms))).values()
    assert isinstance(form, Predicted)
    assert form.predictor == predictor


def test_what_is_added_to_the_result_is_seen_by_the_rest_alone() -> None:
    """The gradient in it is that of the likelihood in f."""
    problem = bound(process)
    (predictor,) = found(problem)
    moved = problem.without(["z"]).with_added(predictor)
    assert [site.name for site in moved.space.sites] == ["z_added", "length", "level", "z"]
    density = density_of(moved)
    u = 0.3 * torch.randn(density.dimension)
    values = moved.space.constrain(u)
    length = values["length"]
    f = values["level"] + length * (factor(length) @ values["z"]) + values["z_added"]
    gradient = torch.as_tensor(density.at(u.numpy())[1])
    torch.testing.assert_close(gradient[:SIZE], problem.arguments["y"] - f.exp())
