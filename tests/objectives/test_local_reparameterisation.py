"""Noise for each row: the same mean as noise for each weight, and less variance."""

from functools import cache
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch

import elbowroom as er
from elbowroom.errors import OptionError
from elbowroom.models._layers import sample_layers, through
from elbowroom.objectives.estimators import Analytic, Objective
from elbowroom.objectives.local_reparameterisation import LocalReparameterisation

ROWS, NOISE, DRAWS = 12, 0.7, 1500
GENERATOR = torch.Generator().manual_seed(3)
X = torch.randn(ROWS, 2, generator=GENERATOR, dtype=torch.float64)
Y = torch.randn(ROWS, generator=GENERATOR, dtype=torch.float64)
MEANS = {"layer_0.weight": torch.tensor([[0.5, -1.0]]), "layer_0.bias": torch.tensor([0.3])}
DEVIATIONS = {"layer_0.weight": torch.tensor([[0.4, 0.8]]), "layer_0.bias": torch.tensor([0.2])}


def model() -> None:
    layers = sample_layers(2, (), 1, scale=1.0)
    with pyro.plate("rows", ROWS):
        pyro.sample("y", dist.Normal(through(layers, X, "relu")[:, 0], NOISE), obs=Y)


def guide() -> None:
    for name, mean in MEANS.items():
        location = pyro.param(f"{name}.mean", mean.double())
        scale = pyro.param(f"{name}.sd", DEVIATIONS[name].double())
        pyro.sample(name, dist.Normal(location, scale).to_event(mean.dim()))


def closed_form() -> torch.Tensor:
    """Minus the ELBO of the linear network: all its expectations are of squares of Normals."""
    weight, bias = (pyro.param(f"layer_0.{part}.mean") for part in ("weight", "bias"))
    weight_sd, bias_sd = (pyro.param(f"layer_0.{part}.sd") for part in ("weight", "bias"))
    mean = X @ weight[0] + bias
    variance = X.square() @ weight_sd[0].square() + bias_sd.square()
    fit = dist.Normal(mean, NOISE).log_prob(Y) - variance / (2 * NOISE**2)
    prior = [(weight, weight_sd, 2**-0.5), (bias, bias_sd, 1.0)]
    divergence = [
        torch.distributions.kl_divergence(dist.Normal(m, s), dist.Normal(0.0 * m, scale)).sum()
        for m, s, scale in prior
    ]
    return -fit.sum() + sum(divergence)


@cache
def sampled(by_row: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
    """Gradients, (draws, parameters), the exact gradient, losses and the exact loss."""
    pyro.clear_param_store()
    with pyro.validation_enabled(False):
        torch.manual_seed(1)
        guide()
        parameters = [value for _, value in pyro.get_param_store().named_parameters()]

        def flat(value: torch.Tensor) -> torch.Tensor:
            return torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, parameters)])

        objective: Objective = (LocalReparameterisation if by_row else Analytic)(1, 1)
        gradients, losses = [], []
        for _ in range(DRAWS):
            loss, surrogate = objective.loss_and_surrogate(model, guide, {})
            gradients.append(flat(surrogate))
            losses.append(loss)
        exact = closed_form()
        found = torch.stack(gradients), flat(exact), torch.stack(losses), float(exact.detach())
    pyro.clear_param_store()
    return found


@pytest.mark.parametrize("by_row", [False, True])
def test_losses_and_gradients_have_the_mean_of_the_closed_form(by_row: bool) -> None:
    gradients, exact, losses, loss = sampled(by_row)
    error = gradients.std(0) / DRAWS**0.5
    assert ((gradients.mean(0) - exact).abs() < 4 * error).all()
    assert abs(float(losses.mean()) - loss) < 4 * float(losses.std()) / DRAWS**0.5


def test_noise_of_each_row_is_less_noise() -> None:
    by_row, by_weight = sampled(True)[0], sampled(False)[0]
    assert (by_row.var(0) < by_weight.var(0)).all()
    assert by_row.var(0).sum() < 0.5 * by_weight.var(0).sum()


def test_the_same_noise_is_a_draw_of_the_weights_in_distribution() -> None:
    """The variance of a row's output: the marginal is the one that drawn weights would give."""
    pyro.clear_param_store()
    outputs: list[torch.Tensor] = []

    def seen() -> None:
        layers = sample_layers(2, (), 1, scale=1.0)
        outputs.append(through(layers, X, "relu")[:, 0].detach())
        with pyro.plate("rows", ROWS):
            pyro.sample("y", dist.Normal(outputs[-1], NOISE), obs=Y)

    torch.manual_seed(2)
    objective = LocalReparameterisation(1, 1)
    for _ in range(DRAWS):
        objective.loss_and_surrogate(seen, guide, {})
    found = torch.stack(outputs)
    variance = X.square() @ DEVIATIONS["layer_0.weight"][0].double().square() + 0.2**2
    assert ((found.var(0) / variance - 1).abs() < 4 * (2 / DRAWS) ** 0.5).all()
    assert torch.corrcoef(found.T).fill_diagonal_(0).abs().max() < 5 / DRAWS**0.5
    pyro.clear_param_store()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("bayesian_regression", "diabetes", "mean_field"), "no layer whose weights are latent"),
        (
            ("bayesian_neural_network", "diabetes", "full_rank"),
            "another distribution for 'layer_0.weight'",
        ),
    ],
)
def test_it_is_refused_where_it_would_be_wrong(given: tuple[Any, ...], message: str) -> None:
    options: dict[str, Any] = {"columns": ["bmi"]} if "neural" in given[0] else {}
    if options:
        options["hidden"] = (2,)
    with pytest.raises(OptionError, match=message):
        er.fit(*given, seed=1, engine="svi", steps=10, elbo="local_reparameterisation", **options)
