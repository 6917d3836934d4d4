"""Fits that several tests read, made once."""

import os
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import matplotlib

matplotlib.use("Agg")
with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # arviz announces its 1.0 on import
    import arviz  # noqa: F401
import pyro
import pyro.distributions as dist
import pytest
import torch

import elbowroom as er
from elbowroom.fitted import Fit


def schools(effect: torch.Tensor, standard_error: torch.Tensor) -> None:
    """The non-centred eight schools: a user's own model."""
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    spread = pyro.sample("spread", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(effect)):
        offset = pyro.sample("offset", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mean + spread * offset)
        pyro.sample("effect", dist.Normal(theta, standard_error), obs=effect)


@pytest.fixture(scope="session")
def regression() -> Fit:
    return er.fit("bayesian_regression", formula="progression ~ bmi + bp", seed=1, steps=400)


@pytest.fixture(scope="session")
def mixture() -> Fit:
    return er.fit("gaussian_mixture", seed=1, steps=600, restarts=2, draws=500)


@pytest.fixture(scope="session")
def autoencoder() -> Fit:
    digits = er.load_dataset("digits").head(200)
    return er.fit("vae", digits, seed=1, epochs=20, batch_size=50, hidden=(20,), draws=100)


@pytest.fixture(scope="session")
def own() -> Fit:
    data = er.load_dataset("eight_schools")[["effect", "standard_error"]]
    return er.fit(schools, data, guide="full_rank", seed=1, steps=500)


@pytest.fixture(scope="session")
def run(regression: Fit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return regression.save(tmp_path_factory.mktemp("runs") / "regression")
