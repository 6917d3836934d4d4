"""What requires a gradient is fitted and what does not is data, however a model is written."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.nn import PyroModule, PyroParam, PyroSample
from pyro.nn.module import to_pyro_module_
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from torch import Tensor, nn, tensor

import elbowroom as er
from elbowroom.density.point_parameters import MARGINAL

ROWS = 40
RANDOM = np.random.default_rng(0)
X, Z = RANDOM.normal(size=ROWS), RANDOM.normal(size=ROWS)
Y = 0.3 + 0.9 * X - 0.6 * Z + 0.87 * RANDOM.normal(size=ROWS)
DATA = {"x": tensor(X), "z": tensor(Z), "y": tensor(Y)}
FROZEN = 0.5
"""Where the weight of z begins, and stays where it is data."""
POSITIVE = constraints.positive
PYRO_LINEAR: Any = PyroModule[nn.Linear]


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def log_marginal(weight: float, bias: float, log_scale: float) -> float:
    covariance = np.exp(2 * log_scale) * np.eye(ROWS) + np.outer(X, X)
    return float(multivariate_normal(bias + weight * Z, covariance).logpdf(Y))


def truth(frozen: bool) -> tuple[np.ndarray, float]:
    """Weight, bias and scale at the maximum of the marginal likelihood, and its logarithm."""
    head: list[Any] = [FROZEN] if frozen else []
    best = minimize(
        lambda at: -log_marginal(*head, *at), np.zeros(3 - len(head)), method="BFGS", tol=1e-9
    )
    weight, bias, log_scale = head + list(best.x)
    return np.array([weight, bias, np.exp(log_scale)]), -float(best.fun)


def likelihood(mean: Tensor, scale: Any, x: Tensor, y: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(tensor(0.0), 1.0))
    with pyro.plate("row", len(x)):
        pyro.sample("y", dist.Normal(mean + slope * x, scale), obs=y)


def begun(layer: Any) -> Any:
    with torch.no_grad():
        layer.weight.fill_(FROZEN)
        layer.bias.fill_(0.0)
    return layer


class Free(PyroModule):
    """Parameters of its own."""

    def __init__(self, frozen: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(tensor(FROZEN), requires_grad=not frozen)
        self.bias = nn.Parameter(tensor(0.0))
        self.scale: Any = PyroParam(tensor(2.0), POSITIVE)

    def forward(self, x: Tensor, z: Tensor, y: Tensor) -> None:
        likelihood(self.weight * z + self.bias, self.scale, x, y)


class Layered(PyroModule):
    """A network, and a scale that a method makes."""

    def __init__(self, network: Any, frozen: bool) -> None:
        super().__init__()
        self.network = network
        for name, value in network.named_parameters():
            value.requires_grad_(not (frozen and name.endswith("weight")))

    @PyroParam(constraint=POSITIVE)  # type: ignore[arg-type]
    def scale(self) -> Tensor:
        return tensor(2.0)

    def forward(self, x: Tensor, z: Tensor, y: Tensor) -> None:
        likelihood(self.network(z[:, None])[:, 0], self.scale, x, y)


def registered(frozen: bool) -> Callable[..., None]:
    layer = begun(nn.Linear(1, 1))
    layer.weight.requires_grad_(not frozen)

    def model(x: Tensor, z: Tensor, y: Tensor) -> None:
        pyro.module("layer", layer)
        scale = pyro.param("scale", tensor(2.0), constraint=POSITIVE)
        likelihood(layer(z[:, None])[:, 0], scale, x, y)

    return model


def converted(frozen: bool) -> Layered:
    layer = begun(nn.Linear(1, 1))
    to_pyro_module_(layer)
    return Layered(layer, frozen)


SPELLINGS: dict[str, Callable[[bool], Any]] = {
    "pyro.module": registered,
    "nn.Parameter": Free,
    "nn.Linear": lambda frozen: Layered(begun(nn.Linear(1, 1)), frozen),
    "nn.Sequential": lambda frozen: Layered(nn.Sequential(begun(nn.Linear(1, 1))), frozen),
    "PyroModule[nn.Linear]": lambda frozen: Layered(begun(PYRO_LINEAR(1, 1)), frozen),
    "to_pyro_module_": converted,
}


@pytest.mark.parametrize("frozen", [False, True], ids=["free", "frozen"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_fixed_draws_maximise_the_closed_form(spelling: str, frozen: bool) -> None:
    expected, log_evidence = truth(frozen)
    model = SPELLINGS[spelling](frozen)
    before = _state(model)
    fit = er.fit(model, DATA, guide="linear_response", engine="fixed_draws", seed=1)
    assert fit.verdict.trusted, str(fit.verdict)
    _agrees(fit, expected, log_evidence, frozen, rest=4 * MARGINAL.near_enough, error=0.01)
    assert _state(model) == before


@pytest.mark.parametrize(
    ("spelling", "frozen"),
    [
        ("nn.Linear", False),
        ("nn.Parameter", True),
        pytest.param("nn.Linear", True, marks=pytest.mark.slow),
    ],
)
def test_stochastic_gradients_maximise_the_closed_form(spelling: str, frozen: bool) -> None:
    expected, log_evidence = truth(frozen)
    model = SPELLINGS[spelling](frozen)
    before = _state(model)
    fit = er.fit(
        model, DATA, guide="full_rank", engine="svi", seed=1, steps=1500, schedule="cosine",
        learning_rate=0.03, particles=4,
    )  # fmt: skip
    _agrees(fit, expected, log_evidence, frozen, rest=0.02, error=0.03)
    assert fit.trained.parameters == (2 if frozen else 3) + 2  # of the model, and of the guide
    assert _state(model) == before


def _state(model: Any) -> list[Any]:
    """Values and flags of a module's parameters; those that the first run makes are left out."""
    if not isinstance(model, nn.Module):
        return []
    named = {k: v for k, v in model.named_parameters() if k != "scale_unconstrained"}
    return [(name, value.tolist(), value.requires_grad) for name, value in named.items()]


def _agrees(
    fit: Any, expected: np.ndarray, log_evidence: float, frozen: bool, rest: float, error: float
) -> None:
    assert fit.measures["log_evidence"] == pytest.approx(log_evidence, abs=rest + error)
    found = {name.split(".")[-1].split("$")[-1]: v for name, v in fit.model_parameters.items()}
    assert set(found) == ({"bias", "scale"} if frozen else {"weight", "bias", "scale"})
    assert set(fit.point_parameters) == set(fit.model_parameters)
    weight = FROZEN if frozen else float(found["weight"])
    reached = log_marginal(weight, float(found["bias"]), float(found["scale"].log()))
    assert log_evidence - reached < rest
    drawn = fit.posterior["posterior"]["slope"].values
    precision = 1 + (X**2).sum() / expected[2] ** 2
    assert drawn.std() == pytest.approx(precision**-0.5, rel=0.1)


def test_one_tensor_of_several_names_is_one_parameter() -> None:
    layer = begun(nn.Linear(1, 1))

    def model(x: Tensor, z: Tensor, y: Tensor) -> None:
        pyro.module("one", layer)
        pyro.module("two", layer)
        scale = pyro.param("scale", tensor(2.0), constraint=POSITIVE)
        likelihood(layer(z[:, None])[:, 0], scale, x, y)

    expected, log_evidence = truth(False)
    fit = er.fit(model, DATA, guide="linear_response", engine="fixed_draws", seed=1)
    _agrees(fit, expected, log_evidence, False, rest=4 * MARGINAL.near_enough, error=0.01)


def test_a_weight_with_a_prior_is_a_latent_and_the_bias_a_parameter() -> None:
    layer = PYRO_LINEAR(1, 1)
    layer.weight = PyroSample(dist.Normal(tensor(0.0), 1.0).expand([1, 1]).to_event(2))
    fit = er.fit(Layered(layer, False), DATA, guide="linear_response", engine="fixed_draws", seed=1)

    def loss(at: np.ndarray) -> float:
        covariance = np.exp(2 * at[1]) * np.eye(ROWS) + np.outer(X, X) + np.outer(Z, Z)
        return -float(multivariate_normal(np.full(ROWS, at[0]), covariance).logpdf(Y))

    best = minimize(loss, np.zeros(2), tol=1e-9)
    found = [float(fit.model_parameters["network.bias"]), float(fit.model_parameters["scale"])]
    assert loss(np.array([found[0], np.log(found[1])])) - best.fun < 4 * MARGINAL.near_enough
    assert fit.measures["log_evidence"] == pytest.approx(-best.fun, abs=0.03)


def test_a_start_that_is_also_a_constant_stays_one() -> None:
    centre = tensor(FROZEN)

    def model(x: Tensor, z: Tensor, y: Tensor) -> None:
        weight = pyro.param("weight", centre)
        pyro.factor("near", -0.5 * ((weight - centre) / 0.01) ** 2)
        scale = pyro.param("scale", tensor(2.0), constraint=POSITIVE)
        likelihood(weight * z + pyro.param("bias", tensor(0.0)), scale, x, y)

    for engine in ("fixed_draws", "svi"):
        fit = er.fit(model, DATA, engine=engine, seed=1, guide="full_rank")
        assert abs(float(fit.model_parameters["weight"]) - FROZEN) < 0.01
    assert centre == FROZEN
    assert not centre.requires_grad


def test_the_fitted_values_are_those_of_every_verb(tmp_path: Path) -> None:
    def made() -> Layered:
        return Layered(begun(nn.Linear(1, 1)), False)

    model, new = made(), {"x": torch.zeros(3), "z": tensor([0.0, 1.0, 2.0]), "y": torch.zeros(3)}
    fit = er.fit(model, DATA, guide="linear_response", seed=1, reference=True)
    assert fit.evidence.reference is not None
    assert fit.evidence.reference[1], fit.evidence.reference
    (weight, bias, scale), _ = truth(False)
    expected = bias + weight * np.arange(3)
    mean = fit.predict(new, seed=2)["mean"].to_numpy()
    assert np.abs(mean - expected).max() < 6 * scale / 4000**0.5 + 0.02
    fit.save(tmp_path / "run")
    again = er.load(tmp_path / "run", model=made())
    np.testing.assert_array_equal(again.predict(new, seed=2)["mean"], mean)
    assert again.model_parameters == fit.model_parameters


def test_rows_held_out_are_scored_with_the_fitted_network() -> None:
    random = np.random.default_rng(1)
    factor = random.normal(size=60)
    table = pd.DataFrame({"a": 0.8 * factor + 1, "b": -0.5 * factor - 1})
    table += 0.4 * random.normal(size=table.shape)
    weights = tensor([[0.5], [-0.1]])

    def rows(mean: Callable[[Tensor], Tensor], a: Tensor, b: Tensor, size: int | None) -> None:
        scale = pyro.param("scale", tensor(1.0), constraint=POSITIVE)
        with pyro.plate("row", len(a), subsample_size=size) as these:
            z = pyro.sample("z", dist.Normal(tensor(0.0), 1.0))
            of_a, of_b = mean(z[:, None]).unbind(-1)
            pyro.sample("a", dist.Normal(of_a, scale), obs=a[these])
            pyro.sample("b", dist.Normal(of_b, scale), obs=b[these])

    def by_names(a: Tensor, b: Tensor, batch_size: int | None = None) -> None:
        weight = pyro.param("weight", weights)
        bias = pyro.param("bias", torch.zeros(2))
        rows(lambda z: z @ weight.T + bias, a, b, batch_size)

    layer = nn.Linear(1, 2)
    with torch.no_grad():
        layer.weight.copy_(weights)
        layer.bias.zero_()

    def by_module(a: Tensor, b: Tensor, batch_size: int | None = None) -> None:
        rows(pyro.module("layer", layer), a, b, batch_size)

    scores = [
        er.compare(each, table, ["mean_field"], seed=1, test_size=0.3, steps=800).table
        for each in (by_names, by_module)
    ]
    one, two = [each["test_log_density"].iloc[0] for each in scores]
    assert np.isfinite(one)
    assert two == pytest.approx(one, abs=1e-6)


class OwnGuide(PyroModule):
    """Parameters of its own, one of them frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.location = nn.Parameter(tensor(0.0))
        self.shift = nn.Parameter(tensor(0.1), requires_grad=False)
        self.spread: Any = PyroParam(tensor(0.3), POSITIVE)

    def forward(self, x: Tensor, z: Tensor, y: Tensor) -> None:
        pyro.sample("slope", dist.Normal(self.location + self.shift, self.spread))


def test_a_guide_that_is_a_module_keeps_the_same_rule() -> None:
    guide = OwnGuide()
    fit = er.fit(
        Free(True), DATA, guide=guide, seed=1, steps=1500, schedule="cosine", learning_rate=0.03,
        particles=4,
    )  # fmt: skip
    assert set(fit.parameters.values) == {"location", "spread", "bias", "scale"}
    scale = float(fit.model_parameters["scale"])
    bias = float(fit.model_parameters["bias"])
    precision = 1 + (X**2).sum() / scale**2
    mean = (X * (Y - FROZEN * Z - bias)).sum() / scale**2 / precision
    found = float(fit.parameters.values["location"]) + 0.1
    assert found == pytest.approx(mean, abs=0.1 * precision**-0.5)
    assert [value.item() for value in guide.parameters()] == pytest.approx([0.0, 0.1, np.log(0.3)])


@pytest.mark.parametrize("training", [True, False])
def test_what_a_normalisation_layer_keeps_is_put_back(training: bool) -> None:
    network = nn.Sequential(nn.BatchNorm1d(1, affine=False), begun(nn.Linear(1, 1)))
    model = Layered(network.train(training), False)
    fit = er.fit(model, DATA, guide="linear_response", engine="fixed_draws", seed=1)
    _, log_evidence = truth(False)  # of scaled inputs it is the same
    assert fit.measures["log_evidence"] == pytest.approx(log_evidence, abs=0.02)
    for name, value in network.named_buffers():
        assert float(value) == (1.0 if name.endswith("running_var") else 0.0)
