"""What nothing would fit is refused by name, and what cannot be fitted is let alone."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import Tensor, nn, tensor

import elbowroom as er
from elbowroom.errors import DataError, GuideError, ModelError
from elbowroom.pipeline.fitting import bind_model
from elbowroom.problem.isolation import isolated

DATA = {"x": torch.arange(6.0).double(), "y": torch.arange(6.0).double() / 3}
outside = nn.Linear(1, 1).double()
number = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)


def likelihood(mean: Tensor, y: Tensor) -> None:
    noise = pyro.sample("noise", dist.LogNormal(tensor(0.0), 1.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(mean, noise), obs=y)


def by_global(x: Tensor, y: Tensor) -> None:
    likelihood(outside(x[:, None])[:, 0], y)


def by_number(x: Tensor, y: Tensor) -> None:
    likelihood(number * x, y)


def by_argument(x: Tensor, y: Tensor, network: Any = None) -> None:
    likelihood(network(x[:, None])[:, 0], y)


class Unregistered(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Linear(1, 1).double()]

    def forward(self, x: Tensor, y: Tensor) -> None:
        likelihood(self.layers[0](x[:, None])[:, 0], y)


class Method:
    def __init__(self) -> None:
        self.network = nn.Linear(1, 1).double()

    def model(self, x: Tensor, y: Tensor) -> None:
        likelihood(self.network(x[:, None])[:, 0], y)


def in_closure() -> Callable[..., None]:
    network = nn.Sequential(nn.Linear(1, 1)).double()

    def model(x: Tensor, y: Tensor) -> None:
        likelihood(network(x[:, None])[:, 0], y)

    return model


@pytest.mark.parametrize(
    ("model", "shown", "edit"),
    [
        (
            by_global,
            "'outside.weight' of shape (1, 1), and 1 more tensor, which",
            "pyro.module('outside'",
        ),
        (by_number, "'number' of shape ()", "pyro.param('number', number)"),
        (partial(by_argument, network=nn.Linear(1, 1).double()), "'network.weight'", "pyro.module"),
        (Unregistered(), "'self.layers[0].weight'", "pyro.module"),
        (Method().model, "'self.network.weight'", "pyro.module('self.network'"),
        (in_closure(), "'network.0.weight'", "network.requires_grad_(False)"),
    ],
)
def test_what_is_registered_nowhere_is_refused(model: Any, shown: str, edit: str) -> None:
    with pytest.raises(ModelError) as caught:
        bind_model(model, DATA, {})
    assert shown in str(caught.value)
    assert edit in str(caught.value)


def test_the_same_network_without_gradients_is_data() -> None:
    frozen = partial(by_argument, network=nn.Linear(1, 1).double().requires_grad_(False))
    assert bind_model(frozen, DATA, {})[0].space.parameters.size == 0


def test_a_guide_is_held_to_it_too() -> None:
    def model(x: Tensor, y: Tensor) -> None:
        likelihood(torch.zeros_like(x), y)

    def guide(x: Tensor, y: Tensor) -> None:
        pyro.sample("noise", dist.LogNormal(number, pyro.param("spread", tensor(0.3))))

    with pytest.raises(ModelError, match="the guide uses 'number'"):
        er.fit(model, DATA, guide=guide, seed=1, steps=20)


def test_a_gradient_that_is_cut_off_is_refused() -> None:
    def model(x: Tensor, y: Tensor) -> None:
        likelihood(pyro.param("slope", tensor(0.96)).detach() * x, y)

    with pytest.raises(
        ModelError, match="the parameter 'slope' but has no gradient with respect to it"
    ):
        bind_model(model, DATA, {})


def frozen_part(x: Tensor, y: Tensor, network: Any) -> None:
    """A mean beside a network that was fitted before, which is run without gradients."""
    pyro.module("network", network)
    with torch.no_grad():
        known = network(x[:, None])[:, 0]
    mean = pyro.sample("mean", dist.Normal(tensor(0.0), 1.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(known + mean, 1.0), obs=y)


def mean_of(rest: Tensor) -> dist.Normal:
    """The posterior of a mean with a standard Normal prior, by the closed form."""
    count = len(rest) + 1
    return dist.Normal(rest.sum() / count, tensor(count**-0.5))


@pytest.mark.parametrize("engine", ["fixed_draws", "svi"])
def test_a_part_of_the_model_that_is_run_without_gradients_is_data_and_told(engine: str) -> None:
    torch.manual_seed(0)
    network = nn.Linear(1, 1).double()
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    options: dict[str, Any] = {"steps": 100, "optimizer": "AdamW"} if engine == "svi" else {}
    model = partial(frozen_part, network=network)
    fit = er.fit(model, DATA, guide="mean_field", engine=engine, seed=1, **options)
    assert "'network$$$weight', 'network$$$bias', which stay as they are" in str(fit.verdict)
    assert fit.model_parameters == {}
    for name, value in network.named_parameters():
        assert torch.equal(value, before[name])
        assert value.requires_grad
    with torch.no_grad():
        exact = mean_of(DATA["y"] - network(DATA["x"][:, None])[:, 0])
    draws = fit.posterior["posterior"]["mean"].to_numpy()
    error = float(exact.scale) * (1 / fit.posterior.attrs["effective_draws"]) ** 0.5
    assert float(draws.mean()) == pytest.approx(float(exact.loc), abs=5 * error)
    assert float(draws.std()) == pytest.approx(float(exact.scale), abs=5 * error)


@pytest.mark.parametrize(("engine", "near"), [("fixed_draws", 0.05), ("svi", 0.1)])
def test_beside_others_a_parameter_whose_gradient_is_cut_off_is_kept_and_told(
    engine: str, near: float
) -> None:
    """The other one is at its maximum likelihood given that, the mean of what is left."""

    def model(x: Tensor, y: Tensor) -> None:
        slope = pyro.param("slope", lambda: torch.rand(()))
        mean = pyro.param("base", tensor(0.0)) + pyro.sample("mean", dist.Normal(tensor(0.0), 1.0))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(slope.detach() * x + mean, 1.0), obs=y)

    options: dict[str, Any] = {"steps": 1000, "learning_rate": 0.05} if engine == "svi" else {}
    problem = bind_model(model, DATA, {})[0]
    assert list(problem.space.parameters.initial) == ["base"]
    fit = er.fit(model, DATA, engine=engine, seed=1, **options)
    assert "no gradient reaches the parameter 'slope', which stays" in str(fit.verdict)
    with isolated(0):
        slope = torch.rand(())  # as the model draws it
    expected = float((DATA["y"] - slope * DATA["x"]).mean())
    assert float(fit.model_parameters["base"]) == pytest.approx(expected, abs=near)


def guided(x: Tensor, y: Tensor, network: Any, extra: bool = False, cut: bool = True) -> None:
    """A guide with a network that is run without gradients, or is not run."""
    pyro.module("network", network)
    with torch.no_grad():
        location = network(x[:, None]).mean() if cut else tensor(0.2)
    scale = pyro.param("scale", tensor(1.0), constraint=dist.constraints.positive)
    pyro.sample("mean", dist.Normal(location, scale.detach() if extra else scale))


def standard(x: Tensor, y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(tensor(0.0), 1.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


@pytest.mark.parametrize(("cut", "optimizer"), [(True, "Adam"), (True, "AdamW"), (False, "Adam")])
def test_what_a_guide_has_no_gradient_by_is_kept_and_told(cut: bool, optimizer: str) -> None:
    """Whatever its location, the best scale is the posterior's: 1 / sqrt(rows + 1)."""
    torch.manual_seed(0)
    network = nn.Linear(1, 1).double()
    before = [value.detach().clone() for value in network.parameters()]
    fit = er.fit(
        standard, DATA, partial(guided, network=network, cut=cut), seed=1, steps=2000,
        learning_rate=0.05, optimizer=optimizer,
    )  # fmt: skip
    values = fit.parameters.values
    assert float(values["scale"].exp()) == pytest.approx((len(DATA["y"]) + 1) ** -0.5, rel=0.1)
    told = "No gradient reaches the parameters 'network$$$weight', 'network$$$bias', which stay"
    assert any(note.startswith(told) for note in fit.notes)
    assert torch.equal(values["network$$$weight"], before[0])
    assert torch.equal(values["network$$$bias"], before[1])
    assert fit.trained.parameters == (1 if cut else 3)


def test_a_guide_that_no_gradient_reaches_is_refused() -> None:
    network = nn.Linear(1, 1).double()
    guide = partial(guided, network=network, extra=True)
    with pytest.raises(GuideError, match=r"no gradient reaches .* guide \('network\$\$\$weight'\)"):
        er.fit(standard, DATA, guide, seed=1, steps=20)


def test_a_guide_without_parameters_is_let_alone() -> None:
    def guide(x: Tensor, y: Tensor) -> None:
        pyro.sample("mean", dist.Normal(tensor(0.2), 0.5))

    fit = er.fit(standard, DATA, guide, seed=1, steps=20)
    assert not any("no gradient" in note.lower() for note in fit.notes)


def test_a_parameter_that_is_not_used_is_let_alone() -> None:
    network = nn.ModuleDict({"used": nn.Linear(1, 1), "other": nn.Linear(1, 1)}).double()

    def model(x: Tensor, y: Tensor) -> None:
        pyro.module("network", network)
        likelihood(network["used"](x[:, None])[:, 0], y)

    assert bind_model(model, DATA, {})[0].space.parameters.size == 4


def test_derivatives_that_a_model_takes_itself_are_no_parameters() -> None:
    def model(x: Tensor, y: Tensor) -> None:
        with torch.enable_grad():
            at = x.clone().requires_grad_()
            (slope,) = torch.autograd.grad((at**2).sum(), at, create_graph=True)
        likelihood(pyro.param("weight", tensor(0.5)) * slope, y)

    assert bind_model(model, DATA, {})[0].space.parameters.size == 1


def test_data_that_require_a_gradient_are_refused() -> None:
    with pytest.raises(DataError, match=r"data\['x'\] requires a gradient"):
        bind_model(by_number, {**DATA, "x": DATA["x"].clone().requires_grad_()}, {})


class Motion(nn.Module):
    """A library's module: its value is given, not drawn; it may keep what it has computed once."""

    def __init__(self, speed: float, keeps: bool) -> None:
        super().__init__()
        self.speed = nn.Parameter(tensor(speed, dtype=torch.float64))
        self.keeps, self.kept = keeps, torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        if not (self.keeps and self.kept.requires_grad):
            self.kept = self.speed * torch.ones(())
        return self.kept * x


@pytest.mark.parametrize("engine", ["fixed_draws", "svi"])
def test_a_value_that_a_module_was_given_is_kept_fixed_and_told(engine: str) -> None:
    motion = Motion(0.3, keeps=engine == "fixed_draws")

    def model(x: Tensor, y: Tensor) -> None:
        likelihood(motion(x), y)

    problem = bind_model(model, DATA, {})[0]
    assert problem.space.parameters.size == 0
    assert any("'motion.speed' requires a gradient" in doubt for doubt in problem.doubts)
    options: dict[str, Any] = {"steps": 20} if engine == "svi" else {}
    fit = er.fit(model, DATA, engine=engine, guide="mean_field", seed=1, **options)
    assert fit.model_parameters == {}
    assert motion.speed.item() == pytest.approx(0.3)
    assert motion.speed.requires_grad
    assert motion.speed.grad is None


class Network(PyroModule):
    """A model or a guide, each with a layer of the same name."""

    def __init__(self, run: Callable[..., None], size: int) -> None:
        super().__init__()
        self.run, self.layer = run, nn.Linear(1, size).double()

    def forward(self, x: Tensor, y: Tensor) -> None:
        self.run(self.layer(x[:, None]), y)


@pytest.mark.parametrize("size", [1, 2])
def test_a_guide_shares_no_layer_with_the_model_by_its_name(size: int) -> None:
    def guiding(found: Tensor, y: Tensor) -> None:
        pyro.sample("noise", dist.LogNormal(found.mean(), pyro.param("spread", tensor(0.3))))

    torch.manual_seed(0)
    model = Network(lambda found, y: likelihood(found[:, 0], y), 1)
    guide = Network(guiding, size)
    fit = er.fit(model, DATA, guide=guide, seed=1, steps=200, learning_rate=0.05)
    values = fit.parameters.values
    assert {"layer$$$weight", "guide.layer$$$weight"} <= set(values)
    residual = values["layer$$$weight"] * DATA["x"] + values["layer$$$bias"] - DATA["y"]
    assert float(residual.detach().std()) < 0.6
    assert not torch.equal(values["guide.layer$$$weight"], guide.layer.weight)
    assert not torch.equal(values["layer$$$weight"], model.layer.weight)
