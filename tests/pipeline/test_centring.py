"""How far groups are centred: as the data tell, and the same posterior in either form."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import elbowroom as er
from elbowroom.density import landscape
from elbowroom.density.density import Density
from elbowroom.density.landscape import density_of
from elbowroom.draws.many_chains import run_many_chains
from elbowroom.pipeline.centring import _narrowed, partly_centred
from elbowroom.problem.bound import Problem, bind, resolve_model
from elbowroom.problem.informed import Information
from elbowroom.problem.isolation import isolated

READINGS = torch.tensor([0.25, 100.0] * 35, dtype=torch.float64)
"""Of each of 70 groups: every other one is known well."""


def hierarchy(readings: Tensor, y: Tensor) -> None:
    spread = pyro.sample("spread", dist.LogNormal(np.log(2.0), 0.02))
    with pyro.plate("groups", len(y)):
        level = pyro.sample("level", dist.Normal(1.0, spread))
        pyro.sample("y", dist.Normal(level, 2 / readings.sqrt()), obs=y)


def bound() -> Problem:
    random = np.random.default_rng(0)
    level = 1 + 2 * random.normal(size=70)
    y = torch.tensor(level + 2 / READINGS.numpy() ** 0.5 * random.normal(size=70))
    data = {"readings": READINGS, "y": y}
    return bind(resolve_model(hierarchy), data, None, torch.float64, torch.device("cpu"))


def test_groups_that_the_data_know_stay_as_they_are() -> None:
    """With a spread of two, the data's information is that of the readings: 0.25 and 100."""
    problem = bound()
    centred, found = partly_centred(problem, 0)
    assert found.starts is not None
    with isolated(0, dtype=torch.float64):
        points = torch.as_tensor(found.starts)
        values = [centred.space.constrain(point) for point in points]
        density = density_of(centred)
        before = density_of(problem)
        # The same places in the model as it is written: the density there and its Jacobian.
        share = _shares(centred)
        for u, known in zip(found.starts, values, strict=True):
            spread, moved = known["spread"], known["level_decentered"]
            level = 1.0 + spread.pow(1 - share) * (moved - share)
            own = problem.space.unconstrain({"spread": spread, "level": level})
            jacobian = float(((1 - share) * spread.log()).sum())
            (value,) = before.value(own.double().numpy()[None])
            assert density.at(u)[0] == pytest.approx(value + jacobian, abs=1e-8)
            # They are draws of the posterior, about: known groups are where their data are.
            y = problem.arguments["y"]
            assert float((level - y)[1::2].abs().max()) < 0.9  # 4.5 of their sds
    assert float(share[0::2].max()) < 0.3
    assert float((share[1::2] - (100 - 1) / (100 + 1)).abs().max()) < 0.008


def crossed(y: Tensor) -> None:
    """Readings of the first ten rows and of some of the columns are many."""
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    centre = pyro.sample("centre", dist.Normal(0.0, 5 * scale))
    with pyro.plate("of_rows", 15):
        row = pyro.sample("row", dist.Normal(centre, scale))
    with pyro.plate("of_columns", 8):
        column = pyro.sample("column", dist.Normal(0.0, 2 * scale))
    noise = torch.where(torch.arange(15) < 10, 0.05, 10.0)[:, None] * torch.arange(1, 9)
    with pyro.plate("rows", 15, dim=-2), pyro.plate("columns", 8, dim=-1):
        pyro.sample("y", dist.Normal(row[:, None] + column, noise), obs=y)


def test_the_density_of_the_shares_that_are_found_is_recorded_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = []

    def counted(*arguments: Any, **options: Any) -> Density:
        made.append(Density(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(landscape, "Density", counted)
    y = torch.randn(15, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    centred, found = partly_centred(own(crossed, {"y": y}), 0)
    assert found.density is not None
    assert len(made) == 1
    assert found.density.how == "recorded"
    assert set(centred.forms) == {"centre", "row", "column"}
    with isolated(0, dtype=torch.float64):
        points = np.random.default_rng(0).normal(size=(3, found.density.dimension))
        expected = density_of(centred).value_and_gradient(points)
        for calls in range(2):  # replayed, and compiled
            for one, two in zip(found.density.value_and_gradient(points), expected, strict=True):
                np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-9, err_msg=str(calls))
            found.density.expect(10_000, 100)
        value, gradient = found.density.at(points[0])
        u = torch.as_tensor(points[0]).requires_grad_()
        by_the_model = found.density(u)
        (slope,) = torch.autograd.grad(by_the_model, u)
    assert float(by_the_model.detach()) == pytest.approx(value, rel=1e-9)
    np.testing.assert_allclose(gradient, slope.numpy(), rtol=1e-8, atol=1e-8)


def _shares(problem: Problem) -> Tensor:
    """Of each group, by how its prior changes with the spread: its sd is spread^share."""
    with problem.session(0):
        model = pyro.poutine.condition(problem.function, {"spread": torch.tensor(2.0)})
        trace = pyro.poutine.trace(model).get_trace(**problem.arguments)
    fn: Any = trace.nodes["level_decentered"]["fn"]
    sd = fn.of_value(fn.loc + fn.scale) - fn.of_value(fn.loc)
    return torch.as_tensor(sd.log() / np.log(2.0)).expand(fn.shape())


def test_less_is_known_of_a_group_where_the_spread_is_small() -> None:
    """At spreads of 1, 2 and 4 it goes with 1, 4 and 16: the smallest is a seventh of the mean."""
    standardised = bound().reparameterise(["level"])
    assert standardised.space.sites[0].name == "spread"
    points = np.zeros((3, standardised.space.dimension))
    points[:, 0] = np.log([1.0, 2.0, 4.0])
    (found,) = _narrowed(standardised, ["level"], points, 0).values()
    np.testing.assert_allclose(found, np.full(found.shape, 1 / 7))


def test_groups_of_which_little_is_known_are_standardised() -> None:
    problem = bound()
    few = {**problem.arguments, "readings": torch.full((70,), 0.25, dtype=torch.float64)}
    model = resolve_model(hierarchy)
    centred, _ = partly_centred(bind(model, few, None, torch.float64, torch.device("cpu")), 0)
    assert float(_shares(centred).abs().max()) == 0.0


def test_a_wide_hierarchy_is_trusted_and_right() -> None:
    """Given the spread, which its prior holds at two, every group's posterior is known."""
    problem = bound()
    fit = er.fit(hierarchy, dict(problem.arguments), seed=1)
    assert fit.verdict.trusted, str(fit.verdict)
    assert (fit.guide.name, fit.origin) == ("markov", "chains")
    assert fit.evidence.mixing is not None
    assert "Markov chains from 8 places" in fit.verdict.reasons[0]
    found = fit.posterior["posterior"]["level"].values[0]
    precision = (1 + READINGS.numpy()) / 4
    mean = (1 / 4 + problem.arguments["y"].numpy() * READINGS.numpy() / 4) / precision
    noise = 4 / fit.measures["corrected_effective_sample_size"] ** 0.5
    assert np.abs((found.mean(0) - mean) * precision**0.5).max() < noise + 0.02
    assert np.abs(np.log(found.std(0) * precision**0.5)).max() < noise + 0.02
    again = fit.sample(200, seed=3)["level"].values[0]
    assert again.shape == (200, 70)
    same = np.isclose(again[:, :1], found[:, 0], rtol=1e-12, atol=0.0)
    assert same.any(1).all()  # draws of the chains, taken anew


# --- multivariate Normal sites

PLACES = torch.linspace(0.0, 4.0, 12, dtype=torch.float64)


def process(x: Tensor, y: Tensor, noise: Tensor) -> None:
    size = pyro.sample("size", dist.LogNormal(0.0, 0.5))
    length = pyro.sample("length", dist.LogNormal(0.0, 0.5))
    f = pyro.sample("f", dist.MultivariateNormal(torch.zeros(len(x)), _kernel(x, size, length)))
    with pyro.plate("places", len(x)):
        pyro.sample("y", dist.Normal(f, noise), obs=y)


def _kernel(x: Tensor, size: Tensor, length: Tensor) -> Tensor:
    near = torch.exp(-((x[:, None] - x) ** 2) / (2 * length**2))
    return size**2 * near + 1e-4 * torch.eye(len(x), dtype=x.dtype)


def places(noise: float) -> dict[str, Tensor]:
    random = np.random.default_rng(0)
    y = np.sin(2 * PLACES.numpy()) + noise * random.normal(size=len(PLACES))
    return {"x": PLACES, "y": torch.tensor(y), "noise": torch.tensor(noise, dtype=torch.float64)}


def own(model: Any, data: dict[str, Tensor]) -> Problem:
    return bind(resolve_model(model), data, None, torch.float64, torch.device("cpu"))


def test_sites_that_a_model_puts_in_order_stay_as_they_are_written() -> None:
    """A component of 65 numbers, whose posterior is Normal-Wishart; it ended in a KeyError."""
    rows, columns = 20, 10
    x = np.random.default_rng(0).normal(size=(rows, columns))
    data = pd.DataFrame(x, columns=[f"x{j}" for j in range(columns)])
    fit = er.fit("gaussian_mixture", data, components=1, priors="conjugate", seed=1)
    assert fit.verdict.trusted
    spread = x.std(0, ddof=1)
    z = (x - x.mean(0)) / spread
    expected = (0.1 * np.eye(columns) + z.T @ z) / rows * np.outer(spread, spread)
    drawn = fit.posterior["posterior"]["covariances"].values[0, :, 0]  # (draws, columns, columns)
    assert fit.posterior["posterior"].attrs["effective_draws"] > 1000
    error = drawn.std(0) / np.sqrt(1000)
    assert np.all(np.abs(drawn.mean(0) - expected) < 5 * error)
    means = fit.posterior["posterior"]["means"].values[0, :, 0]  # (draws, columns)
    assert np.all(np.abs(means.mean(0) - x.mean(0)) < 5 * means.std(0) / np.sqrt(1000))


@pytest.mark.parametrize("noise", [0.02, 3.0])
def test_what_normal_data_tell_of_a_vector_is_found(noise: float) -> None:
    """Their precision, and that times themselves."""
    data = places(noise)
    centred, begun = partly_centred(own(process, data), 0)
    form = centred.forms["f"]
    assert isinstance(form, Information)
    expected = torch.eye(12, dtype=torch.float64) / noise
    torch.testing.assert_close(form.root, expected, rtol=1e-4, atol=0.0)
    torch.testing.assert_close(form.slope, data["y"] / noise**2, rtol=1e-4, atol=1e-3 / noise)
    assert begun.starts is not None
    with centred.session(0):
        values = centred.space.constrain(torch.as_tensor(begun.starts[0]))
    # They are independent of the size and length, and standard Normal.
    assert float(values["f_decentered"].square().mean()) < 3.0


def _exact(data: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and sd of (size, length) and of f, the vector integrated out and these on a grid."""
    x, y, noise = data.values()
    grid = torch.linspace(-2.5, 2.5, 61, dtype=torch.float64)
    sizes, lengths = (each.reshape(-1) for each in torch.meshgrid(grid, grid, indexing="ij"))
    log_p, f, second = -0.5 * (sizes**2 + lengths**2) / 0.25, [], []
    log_p = log_p.clone()
    for i, (size, length) in enumerate(zip(sizes.exp(), lengths.exp(), strict=True)):
        covariance = _kernel(x, size, length)
        total = covariance + noise**2 * torch.eye(len(x), dtype=x.dtype)
        log_p[i] += dist.MultivariateNormal(torch.zeros_like(y), total).log_prob(y)
        gain = torch.linalg.solve(total, covariance).T
        f.append(gain @ y)
        second.append((covariance - gain @ covariance).diagonal() + f[-1] ** 2)
    weights = log_p.softmax(0)
    values = torch.cat([torch.stack([sizes.exp(), lengths.exp()], 1), torch.stack(f)], 1)
    squares = torch.cat([values[:, :2] ** 2, torch.stack(second)], 1)
    mean = weights @ values
    return mean, (weights @ squares - mean**2).sqrt(), weights


@pytest.mark.parametrize("noise", [0.02, pytest.param(1.0, marks=pytest.mark.slow)])
def test_a_gaussian_process_is_trusted_and_right(noise: float, tmp_path: Path) -> None:
    """Data that tell all of it, and data that tell little; its posterior by quadrature."""
    data = places(noise)
    fit = er.fit(process, data, seed=1)
    assert fit.verdict.trusted, str(fit.verdict)
    assert fit.guide.name == "markov"
    group = fit.posterior["posterior"]
    found = np.column_stack([group[name].values[0] for name in ("size", "length", "f")])
    mean, sd, _ = (each.numpy() for each in _exact(data))
    noise_of_draws = 4 / fit.measures["corrected_effective_sample_size"] ** 0.5
    assert np.abs((found.mean(0) - mean) / sd).max() < noise_of_draws
    # The sd of a log-normal tail varies by its kurtosis.
    standard = (found - found.mean(0)) / found.std(0)
    spread = ((standard**4).mean(0) - 1) ** 0.5 / 2
    assert (np.abs(np.log(found.std(0) / sd)) / spread).max() < noise_of_draws
    assert "f_decentered" not in group
    # As the model is written, its values do not follow the places; nor does what is saved.
    elsewhere = data | {"x": PLACES / 2}
    predicted = fit.predict(elsewhere)["mean"].to_numpy()
    assert np.abs((predicted - found[:, 2:].mean(0)) / sd[2:]).max() < 0.3
    again = er.load(fit.save(tmp_path / "run"), model=process)
    form, kept = fit.problem.forms["f"], again.problem.forms["f"]
    assert isinstance(form, Information)
    assert isinstance(kept, Information)
    assert torch.equal(kept.root, form.root)
    assert torch.equal(kept.slope, form.slope)
    np.testing.assert_array_equal(again.predict(elsewhere)["mean"], predicted)


def pairs(readings: Tensor, y: Tensor) -> None:
    spread = pyro.sample("spread", dist.LogNormal(torch.zeros(2), 0.3).to_event(1))
    factor = pyro.sample("factor", dist.LKJCholesky(2, torch.tensor(50.0, dtype=y.dtype)))
    with pyro.plate("groups", len(y)):
        scale_tril = spread[:, None] * factor
        level = pyro.sample("level", dist.MultivariateNormal(torch.zeros(2), scale_tril=scale_tril))
        pyro.sample("y", dist.Normal(level, readings[:, None].rsqrt()).to_event(1), obs=y)


@pytest.mark.parametrize(("readings", "changed"), [(0.2, ("level",)), (20.0, ())])
def test_short_vectors_of_groups_are_standardised_or_stay(
    readings: float, changed: tuple[str, ...]
) -> None:
    torch.manual_seed(0)
    y = torch.randn(30, 2, dtype=torch.float64)
    data = {"readings": torch.full((30,), readings, dtype=torch.float64), "y": y}
    centred, _ = partly_centred(own(pairs, data), 0)
    assert centred.reparameterised == changed
    assert not centred.forms


def readings_of_groups(x: Tensor, group: Tensor, y: Tensor, noise: Any = dist.Normal) -> None:
    spread = pyro.sample("spread", dist.LogNormal(torch.zeros(2, dtype=y.dtype), 0.3).to_event(1))
    mean = pyro.sample("mean", dist.Normal(torch.zeros(3, dtype=y.dtype), 1.0).to_event(1))
    with pyro.plate("groups", 40):
        zero, factor = torch.zeros(2, dtype=y.dtype), torch.diag_embed(spread)
        own = pyro.sample("own", dist.MultivariateNormal(zero, scale_tril=factor))
    with pyro.plate("rows", len(y)):
        level = x @ mean + (x[:, :2] * own[group]).sum(-1)
        pyro.sample("y", noise(level, 0.7), obs=y)


def of_groups() -> dict[str, Tensor]:
    random = np.random.default_rng(0)
    group = np.repeat(np.arange(40), 50)
    x = random.normal(size=(len(group), 3)) + 2
    y = x.sum(1) + random.normal(size=40)[group] + 0.7 * random.normal(size=len(group))
    return {"x": torch.tensor(x), "group": torch.tensor(group), "y": torch.tensor(y)}


def test_what_kinks_tell_of_vectors_is_about_their_information() -> None:
    """Of Laplace's distribution, whose second derivative is zero: that of Fisher, 1 / scale²."""
    data = of_groups()
    changed, _ = partly_centred(own(partial(readings_of_groups, noise=dist.Laplace), data), 0)
    known = changed.forms["own"]
    assert isinstance(known, Information)
    rows = data["x"][:, :2].reshape(40, 50, 2)
    expected = (rows.mT @ rows / 0.7**2).diagonal(dim1=-2, dim2=-1)
    found = (known.root.mT @ known.root).diagonal(dim1=-2, dim2=-1)
    assert float((found / expected).log().mean()) == pytest.approx(0.0, abs=0.3)


def test_vectors_of_many_rows_do_not_follow_what_groups_share() -> None:
    """Given Normal rows they are standard Normal a posteriori, whatever the means and spreads."""
    data = of_groups()
    changed, begun = partly_centred(own(readings_of_groups, data), 0)
    known = changed.forms["own"]
    assert isinstance(known, Information)
    rows = data["x"].reshape(40, 50, 3)
    crossed = rows[..., :2].mT @ rows / 0.7**2
    torch.testing.assert_close(known.moves["mean"], crossed, rtol=1e-5, atol=1e-5)
    density = begun.density
    assert density is not None
    assert begun.starts is not None
    point = begun.starts[0]
    length = changed.space.dimension
    ahead = np.repeat(point[None], 2 * length, axis=0)
    ahead[np.arange(length), np.arange(length)] += 1e-4
    ahead[length + np.arange(length), np.arange(length)] -= 1e-4
    with isolated(0, dtype=torch.float64):
        _, gradients = density.value_and_gradient(ahead)
    hessian = (gradients[length:] - gradients[:length]) / 2e-4
    names = np.repeat([site.name for site in changed.space.sites], changed.space.sizes)
    vectors = names == "own_decentered"
    np.testing.assert_allclose(hessian[np.ix_(vectors, vectors)], np.eye(80), atol=1e-4)
    np.testing.assert_allclose(hessian[np.ix_(vectors, ~vectors)], 0.0, atol=1e-3)


@pytest.mark.slow
def test_chains_of_a_process_that_have_not_mixed_say_so() -> None:
    """Two lengths far apart, which the prior alone tells: no chain comes from one to the other."""

    def model(x: Tensor, y: Tensor, noise: Tensor) -> None:
        place = pyro.sample("place", dist.Normal(0.0, 10.0).mask(False))
        pyro.factor("two", torch.logaddexp(-50 * (place - 1) ** 2, -50 * (place + 1) ** 2))
        covariance = _kernel(x, torch.ones_like(noise), torch.exp(place))
        f = pyro.sample("f", dist.MultivariateNormal(torch.zeros(len(x)), covariance))
        with pyro.plate("places", len(x)):
            pyro.sample("y", dist.Normal(f, noise), obs=y)

    _, begun = partly_centred(own(model, places(30.0)), 0)
    density, random = begun.density, np.random.default_rng(0)
    assert density is not None
    with isolated(0, dtype=torch.float64):
        found = run_many_chains(density, begun.spread(8, random), random, arrived=True)
    assert not found.mixed
