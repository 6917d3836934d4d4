"""A user's own autoencoder has the verbs on rows, found from its plates and its guide."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import Tensor

import elbowroom as er
from elbowroom.errors import DataError, GuideError, ModelError, OptionError
from elbowroom.result import Fit

LOADINGS = np.array([[1.0, 0.9, -0.5], [0.3, -1.0, 0.8]])
NOISE = 0.5
ROWS = 60
TABLE = pd.DataFrame(
    np.random.default_rng(0).normal(size=(ROWS, 2)) @ LOADINGS
    + NOISE * np.random.default_rng(1).normal(size=(ROWS, 3)),
    columns=["a", "b", "c"],
)
GAIN = np.linalg.solve(LOADINGS @ LOADINGS.T + NOISE**2 * np.eye(2), LOADINGS)
"""The posterior means of a row's latents, of its cells."""
COVARIANCE = NOISE**2 * np.linalg.inv(LOADINGS @ LOADINGS.T + NOISE**2 * np.eye(2))


def linear(weight: np.ndarray) -> torch.nn.Linear:
    layer = torch.nn.utils.skip_init(torch.nn.Linear, *weight.shape[::-1], bias=False)
    layer = layer.double()
    layer.weight = torch.nn.Parameter(torch.tensor(weight).contiguous())
    return layer


def autoencoder() -> tuple[Callable[..., None], Callable[..., None], torch.nn.Linear]:
    """One whose posterior is known: it begins at its optimum, and hardly moves."""
    decoder, encoder = linear(LOADINGS.T), linear(GAIN)
    lower = torch.tensor(np.linalg.cholesky(COVARIANCE))

    def model(x: Tensor, batch_size: int | None = None) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("images", len(x), subsample_size=batch_size):
            z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
            seen = pyro.subsample(x, event_dim=1)
            pyro.sample("pixels", dist.Normal(decoder(z), NOISE).to_event(1), obs=seen)

    def guide(x: Tensor, batch_size: int | None = None) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("images", len(x), subsample_size=batch_size):
            seen = pyro.subsample(x, event_dim=1)
            pyro.sample("z", dist.MultivariateNormal(encoder(seen), scale_tril=lower))

    return model, guide, decoder


@pytest.fixture(scope="module")
def own() -> Fit:
    model, guide, _ = autoencoder()
    return er.fit(model, TABLE, guide, seed=1, steps=20, learning_rate=1e-5, draws=200)


def test_latents_are_those_of_the_posterior(own: Fit) -> None:
    expected = TABLE.to_numpy() @ GAIN.T
    for rows, want in (
        (None, expected),
        (TABLE.head(7), expected[:7]),
        (TABLE.to_numpy(), expected),
    ):
        found = own.embed(rows, draws=2000)
        assert list(found) == ["z[0].mean", "z[0].sd", "z[1].mean", "z[1].sd", "k_hat"]
        for k in range(2):
            sd = COVARIANCE[k, k] ** 0.5
            np.testing.assert_allclose(found[f"z[{k}].mean"], want[:, k], atol=5 * sd / 2000**0.5)
            np.testing.assert_allclose(found[f"z[{k}].sd"], sd, rtol=5 / 4000**0.5)


def test_rows_are_scored_and_reconstructed(own: Fit) -> None:
    covariance = LOADINGS.T @ LOADINGS + NOISE**2 * np.eye(3)
    x = TABLE.head(9).to_numpy()
    density = -0.5 * (
        np.einsum("ri,ij,rj->r", x, np.linalg.inv(covariance), x)
        + np.linalg.slogdet(2 * np.pi * covariance)[1]
    )
    found = own.score({"x": x})
    np.testing.assert_allclose(found["log_density"], density, atol=0.01)
    back = own.reconstruct(TABLE.head(9), draws=4000)
    assert list(back) == ["a", "b", "c"]
    spread = np.sqrt(np.diag(LOADINGS.T @ COVARIANCE @ LOADINGS).max() / 4000)
    np.testing.assert_allclose(back, x @ GAIN.T @ LOADINGS, atol=5 * spread)


def test_new_rows_have_the_models_covariance_and_near_ones_their_own(own: Fit) -> None:
    made = own.generate(4000, seed=3)
    assert list(made) == ["a", "b", "c"]
    covariance = LOADINGS.T @ LOADINGS + NOISE**2 * np.eye(3)
    np.testing.assert_allclose(np.cov(made.T), covariance, atol=5 * covariance.max() * 0.03)
    near = own.generate(4000, TABLE.head(2), expected=True, seed=3).to_numpy()
    means = TABLE.head(2).to_numpy() @ GAIN.T @ LOADINGS
    np.testing.assert_allclose(near.reshape(2000, 2, 3).mean(0), means, atol=0.05)


def test_a_line_runs_from_one_row_to_another(own: Fit) -> None:
    found = own.interpolate(2, 5, 3)
    ends = TABLE.iloc[[1, 4]].to_numpy() @ GAIN.T
    z = np.stack([ends[0], ends.mean(0), ends[1]])
    np.testing.assert_allclose(found[["z[0]", "z[1]"]], z, atol=1e-3)
    np.testing.assert_allclose(found[["a", "b", "c"]], z @ LOADINGS, atol=1e-3)
    with pytest.raises(OptionError, match="rows are numbered from 1 to 60"):
        own.interpolate(1, 61)


def test_trained_modules_are_copies_with_the_fits_parameters() -> None:
    model, guide, decoder = autoencoder()
    before = decoder.weight.detach().clone()
    fit = er.fit(model, TABLE, guide, seed=1, steps=20, learning_rate=0.01, draws=200)
    trained: Any = fit.module("decoder")
    assert not torch.equal(trained.weight, before)
    expected = fit.model_parameters["decoder$$$weight"]
    torch.testing.assert_close(trained.weight.detach(), expected, check_dtype=False)
    assert torch.equal(decoder.weight, before)
    assert fit.module("encoder").weight.shape == (2, 3)
    with pytest.raises(OptionError, match="'decoder'"):
        fit.module("decodr")
    plain = er.fit("bayesian_regression", "diabetes", formula="progression ~ bmi", guide="laplace",
                   seed=1, draws=200)  # fmt: skip
    with pytest.raises(ModelError, match="has modules of its own"):
        plain.module("decoder")


def test_a_guide_of_the_fitted_rows_has_latents_of_no_others() -> None:
    model, _, _ = autoencoder()
    fit = er.fit(model, TABLE, "mean_field", seed=1, steps=30, draws=200)
    assert len(fit.embed(draws=200)) == ROWS
    with pytest.raises(GuideError, match="knows only the fitted rows"):
        fit.embed(TABLE.head(7))


def test_images_keep_their_places_and_a_model_without_rows_latents_says_what_is_missing() -> None:
    def images(x: Tensor, batch_size: int | None = None) -> None:
        with pyro.plate("rows", len(x), subsample_size=batch_size):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            mean = z[:, None, None] * torch.ones(2, 2)
            seen = pyro.subsample(x, event_dim=2)
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(2), obs=seen)

    def guide(x: Tensor, batch_size: int | None = None) -> None:
        scale = pyro.param("scale", torch.tensor(0.5), constraint=dist.constraints.positive)
        with pyro.plate("rows", len(x), subsample_size=batch_size):
            pyro.sample("z", dist.Normal(pyro.subsample(x, event_dim=2).mean((1, 2)), scale))

    x = np.random.default_rng(0).normal(size=(20, 2, 2))
    fit = er.fit(images, {"x": x}, guide, seed=1, steps=20, draws=200)
    assert list(fit.generate(3)) == ["x[0,0]", "x[0,1]", "x[1,0]", "x[1,1]"]
    assert list(fit.reconstruct({"x": x[:4]})) == ["x[0,0]", "x[0,1]", "x[1,0]", "x[1,1]"]
    assert list(fit.embed(draws=200)) == ["z.mean", "z.sd", "k_hat"]

    def line(x: Tensor, y: Tensor) -> None:
        slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)

    shared = er.fit(line, {"x": x[:, 0, 0], "y": x[:, 1, 1]}, "laplace", seed=1, draws=200)
    for call in (shared.embed, shared.generate, shared.reconstruct):
        with pytest.raises(ModelError, match=re.escape("in one plate of the rows")):
            call()
    with pytest.raises(ModelError, match="has no command 'manifold'"):
        shared.manifold()


def test_what_was_observed_may_be_left_out_of_new_rows_whatever_its_site_is_called() -> None:
    class Line(PyroModule):
        def forward(self, x: Tensor, y: Tensor | None = None) -> None:
            slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
            with pyro.plate("rows", len(x)):
                pyro.sample("seen", dist.Normal(slope * x, 0.1), obs=y)

    x = np.linspace(-1, 1, 30)
    fit = er.fit(Line(), {"x": x, "y": 2 * x}, "laplace", seed=1, draws=200)
    found = fit.predict({"x": np.array([1.0, 3.0])})
    np.testing.assert_allclose(found["mean"], [2.0, 6.0], atol=0.2)
    with pytest.raises(DataError, match="'x', an argument of the model, is missing"):
        fit.predict({"y": x})


def test_modules_have_the_names_that_code_gives_them() -> None:
    class Pair(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = torch.nn.Sequential(linear(LOADINGS.T), torch.nn.Tanh())
            self.encoder = torch.nn.ModuleDict({"mean": linear(GAIN)})
            self.unused = linear(GAIN)

        def model(self, x: Tensor, batch_size: int | None = None) -> None:
            pyro.module("generator", self.decoder)
            with pyro.plate("rows", len(x), subsample_size=batch_size) as rows:
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x[rows])

        def guide(self, x: Tensor, batch_size: int | None = None) -> None:
            pyro.module("encoder", self.encoder)
            with pyro.plate("rows", len(x), subsample_size=batch_size) as rows:
                pyro.sample("z", dist.Normal(self.encoder["mean"](x[rows]), 0.5).to_event(1))

    pair = Pair()
    fit = er.fit(pair.model, TABLE, pair.guide, seed=1, steps=20, draws=200)
    assert fit.module("generator") is not pair.decoder
    for name in ("generator", "decoder", "encoder", "encoder.mean"):
        assert not fit.module(name).training
    with pytest.raises(OptionError, match=r"Known: decoder, encoder, encoder\.mean, generator\."):
        fit.module("unused")


def test_a_model_that_takes_no_minibatches_is_weighed_by_row_too(own: Fit, tmp_path: Path) -> None:
    """As Pyro's tutorial writes an autoencoder: all that it has lies in the plate of the rows."""
    model, guide, _ = autoencoder()

    def whole_model(x: Tensor) -> None:
        model(x)

    def whole_guide(x: Tensor) -> None:
        guide(x)

    fit = er.fit(whole_model, TABLE, whole_guide, seed=1, steps=20, learning_rate=1e-5, draws=200)
    assert fit.evidence.weights.rows is not None
    few = TABLE.head(7)
    pd.testing.assert_frame_equal(fit.score(few, 3000), own.score(few, 3000), atol=0.02, rtol=0.2)
    pd.testing.assert_frame_equal(fit.embed(few, 3000), own.embed(few, 3000), atol=0.05, rtol=0.5)
    for one, other in (
        (fit.interpolate(1, 7, 3, few), own.interpolate(1, 7, 3, few)),
        (fit.reconstruct(few, 3000), own.reconstruct(few, 3000)),
    ):
        pd.testing.assert_frame_equal(one, other, atol=0.06, rtol=0)
    assert list(fit.generate(3)) == ["a", "b", "c"]
    assert fit.module("decoder").weight.shape == (3, 2)
    fit.save(tmp_path / "run")
    again = er.load(tmp_path / "run", whole_model, guide=whole_guide)
    pd.testing.assert_frame_equal(again.score(few, 200), fit.score(few, 200))
    pd.testing.assert_frame_equal(again.generate(3), fit.generate(3))


def test_an_argument_called_batch_size_may_mean_something_else() -> None:
    """Pyro's own AIR gives the number of its images so."""

    def model(x: Tensor, batch_size: int) -> None:
        with pyro.plate("rows", batch_size):
            z = pyro.sample("z", dist.Normal(torch.zeros(batch_size), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor, batch_size: int) -> None:
        slope = pyro.param("slope", torch.tensor(0.5))
        with pyro.plate("rows", batch_size):
            pyro.sample("z", dist.Normal(slope * x, 0.5**0.5))

    data = {"x": np.random.default_rng(0).normal(size=20), "batch_size": 20}
    fit = er.fit(model, data, guide, seed=1, steps=50, draws=200)
    assert fit.posterior["posterior"]["z"].shape == (1, 200, 20)
