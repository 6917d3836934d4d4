"""A model is fitted in the type of its networks, and types that meet are no error."""

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroSample
from torch import Tensor, nn

import elbowroom as er
from elbowroom.density.landscape import density_of
from elbowroom.pipeline.fitting import bind_model
from elbowroom.problem.isolation import isolated
from elbowroom.problem.precision import Promoted, suited_dtype, unmixed

X = np.random.default_rng(0).normal(size=(40, 3))
MIXING = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))  # float32
UNIT = torch.eye(3)


class Autoencoder:
    """A model and a guide with networks as torch makes them."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.decoder, self.encoder = nn.Linear(2, 3), nn.GRU(3, 2, batch_first=True)

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 0.5).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("rows", len(x)):
            location = self.encoder(x[:, None])[0][:, 0]
            pyro.sample("z", dist.Normal(location, 0.5).to_event(1))


@pytest.mark.parametrize(("asked", "used"), [({}, "float32"), ({"dtype": "float64"}, "float64")])
def test_a_model_is_fitted_in_the_type_of_its_networks(asked: Any, used: str) -> None:
    both = Autoencoder()
    if asked:  # torch's recurrent layers take their own type alone
        both.encoder.double()
    fit = er.fit(both.model, {"x": X}, both.guide, seed=1, steps=20, draws=100, **asked)
    assert fit.settings.dtype == used
    assert fit.posterior["posterior"]["z"].dtype == used


def test_constants_of_another_type_give_the_posterior_of_the_same_numbers() -> None:
    """Against the closed form: y ~ N(W m, I), m ~ N(0, I)."""

    def model(x: Tensor) -> None:
        mean = pyro.sample("mean", dist.MultivariateNormal(torch.zeros(3), UNIT))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.MultivariateNormal(MIXING @ mean, UNIT), obs=x)

    fit = er.fit(model, {"x": X}, seed=1)
    weights = MIXING.double().numpy()
    covariance = np.linalg.inv(np.eye(3) + len(X) * weights.T @ weights)
    drawn = fit.posterior["posterior"]["mean"].values[0]
    assert fit.settings.dtype == "float64"
    assert fit.verdict.trusted
    error = 5 * np.sqrt(np.diag(covariance) / 2000)
    np.testing.assert_array_less(np.abs(drawn.mean(0) - covariance @ weights.T @ X.sum(0)), error)
    np.testing.assert_allclose(drawn.std(0), np.sqrt(np.diag(covariance)), rtol=0.1)


def test_a_network_with_latent_weights_has_a_density_in_float64() -> None:
    torch.manual_seed(0)
    layer = PyroModule[nn.Linear](3, 1)  # type: ignore[call-arg, arg-type]
    layer.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 3]).to_event(2))

    def model(x: Tensor, y: Tensor) -> None:
        mean = layer(x).squeeze(-1)  # with a bias in float32
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    fit = er.fit(model, {"x": X, "y": X.sum(1)}, seed=1)
    assert fit.engine == "fixed_draws"
    assert fit.verdict.trusted


def test_what_torch_refuses_is_done_in_the_larger_type() -> None:
    small, large = torch.ones(2, 2), torch.full((2, 2), 1 / 3, dtype=torch.float64)
    with Promoted():
        assert torch.equal(small @ large, small.double() @ large)
        assert nn.functional.linear(large, small).dtype == torch.float64
        filled = torch.zeros(2)
        filled.index_put_((torch.tensor([0]),), large[0, 0])
        assert filled.dtype == torch.float32
        assert filled[0] == np.float32(1 / 3)
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            torch.ones(2, 3) @ large


def test_a_model_that_mixes_no_types_is_left_as_it_is() -> None:
    def model(x: Tensor) -> None:
        pyro.sample("x", dist.Normal(0.0, 1.0).expand([3]).to_event(1), obs=x)

    with isolated(0):
        assert unmixed(model, {"x": torch.zeros(3)}) is model
    assert suited_dtype(model) == torch.float64
    double = nn.Linear(1, 1).double()
    single = nn.Linear(1, 1)
    assert suited_dtype(lambda: double, lambda: single) == torch.float64


def test_a_density_of_which_a_part_is_in_float32_is_recorded() -> None:
    """Its values agree to the digits of float32 alone."""
    single = torch.tensor([[1.1, 0.3], [0.3, 0.7]], dtype=torch.float32)

    def model(y: Tensor) -> None:
        prior = dist.MultivariateNormal(torch.zeros(2, dtype=torch.float32), single)
        x = pyro.sample("x", prior)
        pyro.sample("y", dist.Normal(x.sum(), 0.5), obs=y)

    problem = bind_model(model, {"y": torch.tensor(1.0).double()}, {})[0]
    with isolated(0, dtype=torch.float64):
        assert density_of(problem).how == "recorded"


class Projected(dist.Normal):
    """A library's distribution, whose density multiplies what it is given by float32 numbers."""

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob((torch.eye(2, dtype=torch.float32) @ value[:, None])[:, 0])


def test_a_density_that_mixes_types_in_its_distribution_is_evaluated() -> None:
    def model(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(torch.tensor(0.0), 1.0))
        with pyro.plate("rows", 2):
            pyro.sample("y", Projected(mean, 1.0), obs=y)

    problem = bind_model(model, {"y": torch.tensor([1.0, 2.0]).double()}, {})[0]
    with isolated(0, dtype=torch.float64):
        density = density_of(problem)
    normal = dist.Normal(0.0, 1.0)
    expected = normal.log_prob(torch.tensor([0.0, 1.0, 2.0]).double()).sum()
    assert density.value(np.zeros((1, 1)))[0] == pytest.approx(float(expected), rel=1e-12)
