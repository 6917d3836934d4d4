"""The autoencoders: likelihoods against their definitions, data that cannot be used, networks."""

import math
from typing import Any

import numpy as np
import pandas as pd
import pyro.distributions as dist
import pytest
import torch

import elbowroom as er
from elbowroom.errors import DataError, OptionError
from elbowroom.models._fresh import Fresh, binarised
from elbowroom.models._likelihoods import Dequantised, DiscretisedLogistic
from elbowroom.models._networks import convolutional_decoder, convolutional_encoder
from elbowroom.problem.isolation import isolated

QUICK: dict[str, Any] = {"seed": 1, "steps": 30, "draws": 100, "hidden": (5,), "latent": 2}


@pytest.mark.parametrize(
    ("location", "scale"), [(1.3, 0.4), (-50.0, 0.5), (9.0, 30.0), (2.5, 1e-3)]
)
def test_a_discretised_logistic_is_a_distribution_of_whole_numbers(
    location: float, scale: float
) -> None:
    numbers = torch.arange(-3, 6, dtype=torch.float64)
    found = DiscretisedLogistic(
        torch.tensor(location, dtype=torch.float64), torch.tensor(scale, dtype=torch.float64), -3, 5
    )
    probabilities = found.log_prob(numbers).exp()
    assert abs(float(probabilities.sum()) - 1) < 1e-12
    assert float((probabilities * numbers).sum()) == pytest.approx(float(found.mean), abs=1e-9)
    torch.manual_seed(0)
    drawn = found.sample((40_000,))
    assert set(drawn.tolist()) <= set(numbers.tolist())
    shares = torch.stack([(drawn == number).double().mean() for number in numbers])
    errors = (probabilities * (1 - probabilities) / 40_000).sqrt()
    assert ((shares - probabilities).abs() < 5 * errors + 1e-12).all()


def test_a_discretised_logistic_far_from_its_location_keeps_its_digits() -> None:
    location = torch.tensor(400.0, dtype=torch.float64, requires_grad=True)
    found = DiscretisedLogistic(location, torch.tensor(0.5, dtype=torch.float64), 0, 500)
    log_probability = found.log_prob(torch.tensor(20.0, dtype=torch.float64))
    # Far below, P(x) = exp((x - μ) / s) (exp(1 / 2s) - exp(-1 / 2s)).
    expected = (20 - 400) / 0.5 + math.log(2 * math.sinh(1.0))
    assert float(log_probability.detach()) == pytest.approx(expected, rel=1e-12)
    (slope,) = torch.autograd.grad(log_probability, location)
    assert float(slope) == pytest.approx(-2.0, rel=1e-9)


def test_noise_makes_a_density_a_bound_on_whole_numbers() -> None:
    """The mean over the noise of the density of x + u is the probability of x."""
    base = dist.Normal(torch.tensor(1.7, dtype=torch.float64), 1.1)
    noise = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    for x in (-1.0, 0.0, 2.0, 6.0):
        density = Dequantised(base.expand([20_000]), noise).log_prob(torch.full((20_000,), x))
        exact = base.cdf(torch.tensor(x + 1)) - base.cdf(torch.tensor(x))
        assert float(density.exp().mean()) == pytest.approx(float(exact), rel=1e-6)
        assert float(density.mean()) < math.log(float(exact))


def test_the_bound_of_a_learned_dequantisation_is_one_of_the_log_probability() -> None:
    """A decoder that makes nothing of its latents: the probability of a row is a product."""
    rng = np.random.default_rng(0)
    counts = rng.binomial(6, 0.4, size=(60, 3)).astype(float)
    table = pd.DataFrame(counts, columns=list("abc"))
    table.attrs["value_range"] = [0, 6]
    found = er.fit(
        "vae", table, likelihood="normal", dequantise="learned", latent=1, hidden=(4,), seed=1,
        steps=300, draws=100,
    )  # fmt: skip
    values = found.parameters.values
    with torch.no_grad():  # the decoder gives its last bias, whatever z
        values["decoder.1.weight"].zero_()
    spread = found.problem.arguments["spread"]
    noise = found.model_parameters["decoder.noise"].to(spread)
    location = found.problem.arguments["centre"] + spread * values["decoder.1.bias"].detach()
    normal = torch.distributions.Normal(location.double(), (spread * noise).double())
    x = torch.as_tensor(counts)
    exact = (normal.cdf(x + 1) - normal.cdf(x)).log().sum(1).numpy()
    scored = found.score(draws=4000)
    assert (np.abs(scored["log_density"] - exact) < 6 * scored["standard_error"] + 0.01).all()
    bound, error = found.elbo(draws=500)
    assert bound < exact.sum() + 3 * error


def test_data_are_drawn_anew_for_steps_alone_and_the_same_for_model_and_guide() -> None:
    x, shares = torch.zeros(2, 500), torch.full((2, 500), 0.3)
    assert binarised(x, shares, name="x") is x
    with Fresh():
        first, second = binarised(x, shares, name="x"), binarised(x, shares, name="x")
    assert torch.equal(first, second)
    assert set(first.unique().tolist()) == {0.0, 1.0}
    assert abs(float(first.mean()) - 0.3) < 5 * math.sqrt(0.21 / 1000)
    with Fresh():
        assert not torch.equal(first, binarised(x, shares, name="x"))


def test_dynamic_binarisation_keeps_the_data_of_all_else() -> None:
    digits = er.load_dataset("digits").head(60)
    one = er.fit("vae", digits, binarise="dynamic", **QUICK)
    two = er.fit("vae", digits, binarise="once", **QUICK)
    x = one.problem.arguments["x"]
    assert set(x.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(x, two.problem.arguments["x"])
    assert one.trained.eager is None  # drawing them is recorded
    assert not np.array_equal(one.elbo_history, two.elbo_history)


@pytest.mark.parametrize("shape", [(8, 8), (7, 9), (5, 4, 3)])
def test_convolutions_give_back_every_pixel_of_images_of_any_shape(shape: tuple[int, ...]) -> None:
    pixels = math.prod(shape)
    with isolated(0):
        x = torch.randn(6, pixels)
        encoded = convolutional_encoder("e", x, shape, (3, 5), 4, "softplus")
        assert encoded.shape == (6, 4)
        decoded = convolutional_decoder("d", encoded, shape, (5, 3), "softplus")
        assert decoded.shape == (6, pixels)
        assert (decoded.std(0) > 0).all()  # the latents reach each pixel
        # Each row is its own: another one changes nothing.
        again = convolutional_encoder("e", x[2:3], shape, (3, 5), 4, "softplus")
        assert torch.allclose(again, encoded[2:3], atol=1e-5)


@pytest.mark.slow
def test_a_convolutional_autoencoder_is_recorded_and_learns() -> None:
    digits = er.load_dataset("digits").head(200)
    found = er.fit(
        "vae", digits, network="convolutional", hidden=(8, 4), activation="relu", seed=1, epochs=40,
        draws=100,
    )  # fmt: skip
    assert found.trained.eager is None
    history = found.elbo_history / len(digits)
    assert history[-10:].mean() > history[:5].mean() + 8


def test_a_condition_is_what_tells_rows_apart() -> None:
    """With no latent that matters, what is made of a label is that label's mean."""
    rng = np.random.default_rng(0)
    label = np.repeat(["low", "high"], 60)
    x = np.where(label == "low", -3.0, 3.0)[:, None] + 0.3 * rng.normal(size=(120, 2))
    table = pd.DataFrame(x, columns=["a", "b"]).assign(kind=label)
    found = er.fit(
        "conditional_vae", table, condition="kind", likelihood="normal", latent=1, hidden=(8,),
        seed=1, steps=1500, draws=100,
    )  # fmt: skip
    for kind, mean in (("low", -3.0), ("high", 3.0)):
        made = found.generate(400, given={"kind": kind})
        assert (made["kind"] == kind).all()
        assert abs(made["a"].mean() - mean) < 0.2
    new = table.head(3).assign(kind=["low", "middle", "high"])
    with pytest.raises(DataError, match=r"'kind', row 2: the label 'middle' did not occur"):
        found.score(new)
    with pytest.raises(
        OptionError, match="'colour' is not a known column; the known columns are kind"
    ):
        found.generate(2, given={"colour": "red"})


def one_row(**options: Any) -> Any:
    table = pd.DataFrame({"a": [0.0, 1, 2, 3], "b": [0.0, 2, 1, 2.5], "c": [1.0, 0, 3, 1]})
    return er.fit("vae", table, **{**QUICK, **options})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"likelihood": "discretised_logistic"}, "'b', row 4: 2.5 is not a whole number"),
        ({"likelihood": "normal", "dequantise": "uniform"}, "uniform needs whole numbers"),
        ({"likelihood": "normal", "binarise": "once"}, "needs --likelihood bernoulli"),
        ({"dequantise": "learned"}, "needs --likelihood normal"),
        ({"network": "convolutional"}, "give their --image-shape"),
        ({"image_shape": (2, 2)}, "give a shape with 3 pixels"),
        ({"image_shape": (3,)}, "give height,width or height,width,colours"),
        ({"latent": 4}, "--latent 4 is more than the 3 columns"),
        ({"free_bits": 0.1, "elbo": "trace"}, "give --elbo trace_mean_field"),
    ],
)
def test_what_cannot_be_is_said_with_its_fix(options: dict[str, Any], said: str) -> None:
    with pytest.raises((DataError, OptionError), match=said):
        one_row(**options)


@pytest.mark.parametrize("model", ["vae", "helmholtz_machine"])
@pytest.mark.parametrize("likelihood", ["bernoulli", "normal"])
def test_numbers_that_single_precision_has_not_are_refused(model: str, likelihood: str) -> None:
    table = pd.DataFrame({"a": [0.0, 1, 2, 3e50], "b": [0.0, 2, 1, 2.5]})
    given = {"likelihood": likelihood} if model == "vae" else {"units": (2,)}
    with pytest.raises(DataError, match=r"size 3e\+50, and networks .* give them in other units"):
        er.check(model, table, **given)


def test_a_cell_outside_the_range_is_named() -> None:
    digits = er.load_dataset("digits").head(30).copy()
    digits.loc[4, "pixel_11"] = 17
    with pytest.raises(DataError, match=r"'pixel_11', row 5: 17 is outside \[0, 16\]"):
        er.fit("vae", digits, **QUICK)
