"""Every model has the prior that its page states; the numbers stand here, and are not imported."""

from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch

from elbowroom.guides.space import sample_sites, trace_model
from elbowroom.pipeline.fitting import bind_model
from elbowroom.problem.isolation import isolated

NUMBERS = pd.DataFrame(
    {"x": [0.5, -1.0, 2.0, 1.5], "z": [2.0, 1.0, 0.0, 4.0], "y": [1.0, 3.0, 4.0, 8.0]}
)
MEAN, SPREAD = float(NUMBERS["y"].mean()), float(NUMBERS["y"].std())
BITS = pd.DataFrame({"y": [1.0, 0.0, 1.0, 1.0]})
PIXELS = pd.DataFrame(np.arange(12).reshape(4, 3) % 2, columns=["a", "b", "c"])


def normal(size: Any, sd: float, mean: float = 0.0) -> Any:
    return dist.Normal(torch.full(size, mean), sd).to_event(len(size))


def layers(sizes: list[int], sd: float, power: float = 0.5) -> dict[str, Any]:
    """Of the weights from each size to the next, `sd` over the root of the inputs, and biases."""
    found = {}
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        found[f"layer_{i}.weight"] = normal((outputs, inputs), sd / inputs**power)
        found[f"layer_{i}.bias"] = normal((outputs,), sd)
    return found


def scales(*size: int) -> Any:
    return dist.LogNormal(torch.full(size, -1.0), 1.0).to_event(1)


PRIORS: list[tuple[str, pd.DataFrame, dict[str, Any], dict[str, Any]]] = [
    (
        "bayesian_regression", NUMBERS, {"response": "y"},
        {
            "standardised_intercept": normal((), 2.5),
            "standardised_coefficients": normal((2,), 2.5),
            "standardised_sigma": dist.Exponential(1.0),
        },
    ),
    (
        "negative_binomial", NUMBERS, {"response": "y"},
        {
            "standardised_intercept": normal((), 2.5),
            "standardised_coefficients": normal((2,), 2.5),
            "root_overdispersion": dist.HalfNormal(torch.ones((), dtype=torch.float64)),
        },
    ),
    (
        "bayesian_neural_network", NUMBERS, {"response": "y", "hidden": (3,)},
        {**layers([2, 3, 1], 1.0), "standardised_sigma": dist.Exponential(1.0)},
    ),
    (
        "mixture_density_network", NUMBERS, {"response": "y", "hidden": (4,), "components": 2},
        layers([2, 4, 6], 1.0),
    ),
    (
        "bayesian_neural_network", NUMBERS,
        {"response": "y", "hidden": (3,), "weight_prior": "unscaled"},
        {**layers([2, 3, 1], 1.0, 0.0), "standardised_sigma": dist.Exponential(1.0)},
    ),
    (
        "mixture_density_network", NUMBERS,
        {"response": "y", "hidden": (4,), "components": 2, "weight_prior": "unscaled",
         "prior_scale": 2.0},
        layers([2, 4, 6], 2.0, 0.0),
    ),
    ("conjugate", NUMBERS, {"response": "y"}, {"mean": dist.Normal(MEAN, 10 * SPREAD)}),
    (
        "conjugate", BITS, {"response": "y", "likelihood": "bernoulli"},
        {"probability": dist.Beta(1.0, 1.0)},
    ),
    (
        "conjugate", NUMBERS, {"response": "y", "likelihood": "poisson"},
        {"rate": dist.Gamma(1.0, 1 / MEAN)},
    ),
    (
        "conjugate", NUMBERS, {"response": "y", "likelihood": "regression"},
        {
            "variance": dist.InverseGamma(1.0, SPREAD**2),
            # Given the variance that was drawn; the intercept lies around the mean.
            "standardised_coefficients": lambda values: dist.Normal(
                torch.tensor([MEAN, 0.0, 0.0], dtype=torch.float64),
                2.5 * values["variance"].sqrt(),
            ).to_event(1),
        },
    ),
    (
        "hierarchical_normal", NUMBERS.assign(g=["a", "b", "a", "b"]),
        {"response": "y", "group": "g"},
        {
            "mean": dist.Normal(MEAN, 2.5 * SPREAD),
            "sd": dist.HalfCauchy(SPREAD),
            "sigma": dist.Exponential(1 / SPREAD),
            "standardised_effects": dist.Normal(torch.zeros(2), 1.0),
        },
    ),
    (
        "gaussian_mixture", NUMBERS, {"components": 2},
        {
            "weights": dist.Dirichlet(torch.ones(2)),
            "standardised_means": dist.Normal(torch.zeros(2, 3), 2.0).to_event(1),
            "standardised_scales": scales(2, 3),
            "correlation_cholesky": dist.LKJCholesky(3, 1.0).expand([2]),
            "assignments": lambda values: dist.Categorical(values["weights"]).expand([4]),
        },
    ),
    (
        "gaussian_mixture", NUMBERS, {"components": 2, "covariance_type": "spherical"},
        {
            "weights": dist.Dirichlet(torch.ones(2)),
            "standardised_means": dist.Normal(torch.zeros(2, 3), 2.0).to_event(1),
            "standardised_scales": scales(2, 1),
            "assignments": lambda values: dist.Categorical(values["weights"]).expand([4]),
        },
    ),
    (
        "bayesian_regression", NUMBERS, {"response": "y", "priors": "conjugate"},
        {
            "standardised_variance": dist.InverseGamma(0.5, 0.01),
            "standardised_intercept": lambda values: normal(
                (), 2.5 * float(values["standardised_variance"]) ** 0.5
            ),
            "standardised_coefficients": lambda values: normal(
                (2,), 2.5 * float(values["standardised_variance"]) ** 0.5
            ),
        },
    ),
    (
        "gaussian_mixture", NUMBERS, {"components": 2, "priors": "conjugate"},
        {
            "weights": dist.Dirichlet(torch.ones(2)),
            "standardised_precisions": dist.Wishart(
                torch.tensor(4.0, dtype=torch.float64), 10 * torch.eye(3, dtype=torch.float64)
            ),
            "standardised_means": lambda values: dist.MultivariateNormal(
                torch.zeros(2, 3), precision_matrix=0.02 * values["standardised_precisions"]
            ),
            "assignments": lambda values: dist.Categorical(values["weights"]).expand([4]),
        },
    ),
    *(
        (
            "gaussian_mixture", NUMBERS,
            {"components": 2, "covariance_type": kind, "priors": "conjugate"},
            {
                "weights": dist.Dirichlet(torch.ones(2)),
                "standardised_precisions": dist.Gamma(torch.ones(2, width), 0.05).to_event(1),
                "standardised_means": lambda values: dist.Normal(
                    torch.zeros(2, 3), (0.02 * values["standardised_precisions"]).rsqrt()
                ).to_event(1),
                "assignments": lambda values: dist.Categorical(values["weights"]).expand([4]),
            },
        )
        for kind, width in (("diagonal", 3), ("spherical", 1))
    ),
    (
        "factor_analysis", NUMBERS, {"latent": 2, "priors": "conjugate"},
        {
            "mean": normal((3,), 2.0),
            "free_loadings": normal((5,), 2.0),  # the second latent has no first column
            "noise_precision": dist.Gamma(torch.full((1,), 0.5), 0.01).to_event(1),
            "z": dist.Normal(torch.zeros(4, 2), 1.0).to_event(1),
        },
    ),
    (
        "factor_analysis", NUMBERS, {"latent": 2},
        {"z": dist.Normal(torch.zeros(4, 2), 1.0).to_event(1)},
    ),
    ("vae", PIXELS, {"latent": 2}, {"z": dist.Normal(torch.zeros(4, 2), 1.0).to_event(1)}),
    (
        "conditional_vae", PIXELS.assign(label=[0, 1, 0, 1]), {"latent": 2, "condition": "label"},
        {"z": dist.Normal(torch.zeros(4, 2), 1.0).to_event(1)},
    ),
    (
        "helmholtz_machine", PIXELS, {"units": (2,)},
        {"h_1": dist.Bernoulli(logits=torch.zeros(4, 2)).to_event(1)},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "table", "options", "priors"), PRIORS)
def test_the_prior_is_as_stated(
    name: str, table: pd.DataFrame, options: dict[str, Any], priors: dict[str, Any]
) -> None:
    problem, _, _ = bind_model(name, table, options)
    with isolated(0, dtype=torch.float64):
        nodes = dict(sample_sites(trace_model(problem.function, problem.arguments)))
    latent = {site: node for site, node in nodes.items() if not node["is_observed"]}
    assert set(latent) == set(priors)
    values = {site: node["value"] for site, node in latent.items()}
    for site, prior in priors.items():
        stated = prior(values) if callable(prior) and not hasattr(prior, "log_prob") else prior
        own = latent[site]["fn"].log_prob(values[site])
        torch.testing.assert_close(
            own.double(), stated.log_prob(values[site]).double(), rtol=1e-5, atol=1e-6
        )
