"""Users' own models and guides: what goes wrong silently elsewhere is right here, or refused."""

import threading
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib import gp
from pyro.distributions.constraints import unit_interval
from pyro.infer.autoguide import AutoDelta, AutoNormal
from pyro.nn import PyroModule, PyroSample
from torch import Tensor

import elbowroom as er
from elbowroom.density.density import Density
from elbowroom.draws.predictive import predict_sites
from elbowroom.errors import DataError, ElbowroomError, GuideError, ModelError, OptionError
from elbowroom.guides import Start
from elbowroom.models._own import own_model
from elbowroom.pipeline.fitting import resolve_guide
from elbowroom.problem.bound import bind
from elbowroom.problem.isolation import isolated
from elbowroom.problem.score import score
from elbowroom.problem.validation import invalid_draws
from elbowroom.result import Fit

Y = torch.linspace(-1.0, 2.0, 20)


KEEP: Any = torch.arange(20) > 2


def line(x: Tensor, y: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


def network_model() -> Any:
    """A model whose decoder is a network that lives outside of it."""
    torch.manual_seed(0)
    decoder = torch.nn.Linear(1, 1).double()

    def model(y: Tensor) -> None:
        pyro.module("decoder", decoder)
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(decoder(z)[0] * 3, 1.0), obs=y)

    return model, decoder


def test_a_network_of_the_users_is_not_shared_between_fits() -> None:
    model, decoder = network_model()
    before = decoder.weight.detach().clone()
    options: dict[str, Any] = {"steps": 200, "seed": 1, "draws": 200}
    first = er.fit(model, {"y": Y}, "mean_field", **options)
    bound = first.elbo(seed=5)
    second = er.fit(model, {"y": Y}, "mean_field", **options)
    torch.testing.assert_close(decoder.weight, before)
    assert first.elbo(seed=5) == bound == second.elbo(seed=5)
    np.testing.assert_array_equal(first.elbo_history, second.elbo_history)


def test_a_guide_object_fitted_twice_keeps_both_fits() -> None:
    guide = AutoNormal(line)
    x = torch.linspace(0, 1, 20)
    up = er.fit(line, {"x": x, "y": 5 * x}, guide, seed=1, steps=600, draws=200)
    slope = float(up.sample(200)["slope"].mean())
    er.fit(line, {"x": x, "y": -5 * x}, guide, seed=1, steps=600, draws=200)
    assert float(up.sample(200)["slope"].mean()) == slope
    assert slope > 1


def test_two_threads_fit_at_once_and_leave_no_trace() -> None:
    results: list[Any] = []

    def work(sign: float) -> None:
        x = torch.linspace(0, 1, 20)
        data = {"x": x, "y": sign * 5 * x}
        results.append((sign, er.fit(line, data, "laplace", seed=1, draws=200)))

    pyro.get_param_store().setdefault("mine", torch.tensor(1.0))
    threads = [threading.Thread(target=work, args=(sign,)) for sign in (1.0, -1.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(pyro.get_param_store().keys()) == ["mine"]
    pyro.clear_param_store()
    assert torch.get_default_dtype() == torch.float32
    assert len(results) == 2
    for sign, fit in results:
        assert np.sign(float(fit.posterior["posterior"]["slope"].mean())) == sign


@pytest.mark.parametrize("guide", [AutoDelta, "map"])
def test_a_guide_without_density_has_no_bound(guide: Any) -> None:
    fit = er.fit(line, {"x": Y, "y": Y}, guide, seed=1, steps=50, draws=200)
    assert np.isnan(fit.diagnostics["elbo"])
    assert np.isnan(fit.diagnostics["k_hat"])


def test_nested_plates_are_named_by_their_dims() -> None:
    def model(y: Tensor) -> None:
        with pyro.plate("outer", 3):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            with pyro.plate("inner", 4):
                b = pyro.sample("b", dist.Normal(a, 1.0))
                pyro.deterministic("twice", 2 * b)
                pyro.sample("y", dist.Normal(b, 1.0), obs=y)

    fit = er.fit(model, {"y": torch.zeros(4, 3)}, "laplace", seed=1, draws=200)
    posterior = fit.posterior["posterior"]
    assert posterior["a"].sizes == {"chain": 1, "draw": 200, "outer": 3}
    assert posterior["b"].sizes == {"chain": 1, "draw": 200, "inner": 4, "outer": 3}
    assert posterior["twice"].dims == posterior["b"].dims
    assert not fit.summary()["mean"].isna().any()


def test_new_rows_without_the_response_have_no_density() -> None:
    x = torch.linspace(0, 1, 20)
    fit = er.fit(line, {"x": x, "y": 3 * x}, "laplace", seed=1)
    new = pd.DataFrame({"x": [10.0, 20.0]})
    table = fit.predict(new)
    assert "log_density" not in table
    slope = float(fit.posterior["posterior"]["slope"].mean())
    np.testing.assert_allclose(table["mean"], slope * new["x"], atol=4 * table["sd"].max() / 40)
    with pytest.raises(DataError, match="observed"):
        fit.log_density(new)
    assert "log_density" in fit.predict(pd.DataFrame({"x": [0.5], "y": [1.5]}))


def test_new_units_of_a_local_latent_are_refused(own: Fit) -> None:
    with pytest.raises(GuideError, match="only the fitted rows"):
        own.predict(pd.DataFrame({"effect": [100.0] * 8, "standard_error": [0.1] * 8}))


def test_a_bound_on_new_rows_needs_an_amortised_guide(mixture: Fit, regression: Fit) -> None:
    for fit, name in ((mixture, "iris"), (regression, "diabetes")):
        with pytest.raises(GuideError, match="only the fitted rows"):
            fit.elbo(er.load_dataset(name).head(10))


def test_a_discrete_site_shared_by_observations_is_not_predicted_from_its_prior() -> None:
    def model(y: Tensor) -> None:
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        z = pyro.sample("z", dist.Bernoulli(0.5))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(10 * z, scale), obs=y)

    fit = er.fit(model, {"y": 10 + 0.1 * Y}, "laplace", seed=1, draws=200)
    assert "posterior_predictive" not in fit.posterior.children
    assert any("'z'" in note for note in fit.notes)
    with pytest.raises(ModelError, match="'z'"):
        fit.predict()


def test_a_mask_of_a_discrete_site_too_changes_nothing_where_what_depends_on_it_is_masked() -> None:
    def model(y: Tensor, whole: bool) -> None:
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        with pyro.plate("rows", len(y)):
            with pyro.poutine.mask(mask=KEEP if whole else True):
                z = pyro.sample("z", dist.Bernoulli(0.5))
            with pyro.poutine.mask(mask=KEEP):
                pyro.sample("y", dist.Normal(z, scale), obs=y)

    options: dict[str, Any] = {"seed": 1, "draws": 200}
    bounds = {
        er.fit(model, {"y": Y, "whole": whole}, "laplace", **options).diagnostics["elbo"]
        for whole in (False, True)
    }
    assert len(bounds) == 1


def test_rows_whose_likelihood_is_constant_do_not_lose_the_fit() -> None:
    def model(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(y)), pyro.poutine.mask(mask=KEEP):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    fit = er.fit(model, {"y": Y}, "laplace", seed=1, draws=200)
    assert np.isfinite(fit.diagnostics["elbo"])
    assert np.isnan(fit.diagnostics["elpd_loo"])


def test_a_guide_that_raises_in_the_middle_is_a_line_of_the_comparison() -> None:
    calls = []

    def fragile(x: Tensor, y: Tensor) -> None:
        calls.append(1)
        if len(calls) > 30:
            raise RuntimeError("worn out")
        location = pyro.param("location", torch.zeros(()))
        pyro.sample("slope", dist.Normal(location, 1.0))

    found = er.compare(
        line, {"x": Y, "y": Y}, [fragile, "laplace"], seed=1, steps=99
    )  # not recorded
    assert found.best == "laplace"
    assert "worn out" in str(found.table.set_index("guide").at["fragile", "error"])


def test_pixels_are_predicted_on_their_own_scale(autoencoder: Fit) -> None:
    digits = er.load_dataset("digits").head(20)
    means = autoencoder.predict(digits).filter(like=".mean").to_numpy()
    assert means.max() > 4
    assert means.max() <= 16
    with pytest.raises(OptionError, match="--image-shape 8,9"):
        er.fit("vae", digits, image_shape=(8, 9))


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"seed": -1}, "--seed"),
        ({"seed": 2**33}, "--seed"),
        ({"draws": 0}, "--draws"),
        ({"optimizer": "Muon", "guide": "mean_field"}, "Muon"),
        ({"device": "cpu:x"}, "cpu:x"),
        ({"data": {"x": [[1.0], [1.0, 2.0]], "y": [1.0, 2.0]}}, "different lengths"),
        ({"guide": 3}, "3 is not a guide"),
    ],
)
def test_odd_arguments_are_said_plainly(arguments: dict[str, Any], word: str) -> None:
    given: dict[str, Any] = {"data": {"x": Y, "y": Y}, "guide": "laplace", **arguments}
    with pytest.raises(ElbowroomError, match=word):
        er.fit(line, **given)


def test_reversed_tables_are_read() -> None:
    table = er.load_dataset("diabetes").iloc[::-1]
    fit = er.fit("bayesian_regression", table, "laplace", seed=1, draws=200)
    assert fit.converged


def test_values_are_in_the_store_only_while_a_block_runs() -> None:
    model, decoder = network_model()
    fit = er.fit(model, {"y": Y}, "mean_field", steps=50, seed=1, draws=200)
    started = decoder.weight.detach().clone()
    with isolated(0, fit.parameters):
        assert not torch.equal(decoder.weight, started)
    torch.testing.assert_close(decoder.weight, started)
    weight = fit.point_parameters["decoder$$$weight"]
    np.testing.assert_array_equal(weight, fit.parameters.values["decoder$$$weight"].numpy())
    assert not np.array_equal(weight, started.detach().numpy())


@pytest.mark.parametrize("seed", [1, 3])
def test_a_start_from_some_of_the_rows_says_nothing_of_the_evidence_of_all(seed: int) -> None:
    """The evidence of 20,000 of 40,000 rows is hundreds of nats off, either way."""
    rows = 40_000

    def model(y: Tensor, batch_size: int | None = None) -> None:
        mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 10.0))
        with pyro.plate("rows", len(y), subsample_size=batch_size):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=pyro.subsample(y, event_dim=0))

    y = 3 + torch.randn(rows, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    fit = er.fit(model, {"y": y}, "mean_field", seed=seed, batch_size=1000, steps=600, draws=400)
    assert "evidence" not in str(fit.verdict)


def mixture_of_points(x: Tensor, batch_size: int | None = None) -> None:
    share = pyro.param("share", torch.tensor(0.4).double(), constraint=unit_interval)
    means = pyro.param("means", torch.tensor([-1.0, 1.0]).double())
    with pyro.plate("rows", len(x), subsample_size=batch_size):
        second = pyro.sample("second", dist.Bernoulli(share))
        seen = pyro.subsample(x, event_dim=0)
        pyro.sample("x", dist.Normal(means[second.long()], 1.0), obs=seen)


def nothing(x: Tensor, batch_size: int | None = None) -> None:
    """All latents are summed over."""


def amortised(x: Tensor, batch_size: int | None = None) -> None:
    level, slope = (pyro.param(name, torch.tensor(0.1).double()) for name in ("level", "slope"))
    with pyro.plate("rows", len(x), subsample_size=batch_size):
        seen = pyro.subsample(x, event_dim=0)
        pyro.sample("second", dist.Bernoulli(logits=level + slope * seen))


amortised.amortised = True  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "guide",
    ["auto", *(pytest.param(each, marks=pytest.mark.slow) for each in (nothing, amortised))],
)
def test_a_mixture_of_points_is_at_its_maximum_likelihood(guide: Any) -> None:
    """Its guide has no site, or draws the components, whose posterior is a logistic function."""
    random = np.random.default_rng(0)
    x = np.concatenate([random.normal(-1.5, size=80), random.normal(1.5, size=120)])
    options: dict[str, Any] = {"steps": 2000, "seed": 1, "draws": 400}
    if guide == amortised:
        options["held_out"] = 0.0
    fit = er.fit(mixture_of_points, {"x": torch.tensor(x)}, guide, **options)
    share, means = 0.5, np.array([-1.0, 1.0])
    for _ in range(500):  # expectation-maximisation by hand
        joint = np.array([1 - share, share]) * np.exp(-0.5 * (x[:, None] - means) ** 2)
        on = joint / joint.sum(1, keepdims=True)
        share, means = on[:, 1].mean(), (on * x[:, None]).sum(0) / on.sum(0)
    density = np.log(joint.sum(1) / np.sqrt(2 * np.pi))
    tolerance = 0.1 / len(x) ** 0.5 if guide != amortised else 0.1
    np.testing.assert_allclose(fit.point_parameters["means"], means, atol=tolerance)
    scored = fit.score(draws=1000)
    assert (np.abs(scored["log_density"] - density) < 5 * scored["standard_error"] + 0.05).all()
    assert fit.score(draws=1000)["log_density"].sum() == pytest.approx(density.sum(), abs=0.3)
    new = {"x": torch.tensor([-1.5, 0.0, 1.5])}
    held = fit.score(new)
    joint = np.array([1 - share, share]) * np.exp(-0.5 * (new["x"].numpy()[:, None] - means) ** 2)
    expected = np.log(joint.sum(1) / np.sqrt(2 * np.pi))
    assert (np.abs(held["log_density"] - expected) < 5 * held["standard_error"] + 0.05).all()
    if guide != amortised:
        assert len(fit.predict(new)) == 3
        assert "give them priors" in fit.verdict.advice
        assert fit.posterior["posterior_predictive"]["x"].shape == (1, 400, 200)
        predicted = fit.predict()
        assert abs(predicted["sd"].mean() - x.std()) < 0.1
        np.testing.assert_allclose(predicted["log_density"], density, atol=0.01)


@pytest.mark.parametrize("guide", ["low_rank", "flow", "full_rank", "mean_field", "laplace"])
def test_guides_for_continuous_latents_want_some(guide: str) -> None:
    data = {"x": torch.linspace(-2, 2, 30).double()}
    with pytest.raises(OptionError, match="the model has none; fit with --guide auto"):
        er.fit(mixture_of_points, data, guide, seed=1, steps=20)


def test_a_comparison_of_points_has_one_guide_and_foretells() -> None:
    random = np.random.default_rng(0)
    table = pd.DataFrame(
        {"x": np.concatenate([random.normal(-2, size=60), random.normal(2, size=60)])}
    )
    found = er.compare(mixture_of_points, table, seed=1, steps=500, test_size=0.25)
    assert found.table["guide"].tolist() == ["map"]
    assert np.isfinite(found.table["test_log_density"]).all()


@pytest.mark.parametrize("kind", ["int64", "bool", "uint8"])
def test_a_response_of_whole_numbers_or_truth_values_is_that_of_real_ones(kind: str) -> None:
    """torch's Bernoulli takes real numbers alone; a CSV gives 0 and 1 as whole ones."""
    x = np.linspace(-2.0, 2.0, 40)
    table = pd.DataFrame({"x": x, "y": (x + np.sin(9 * x) > 0).astype(float)})

    def logistic(x: Tensor, y: Tensor) -> None:
        slope = pyro.sample("slope", dist.Normal(torch.zeros(()), 2.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=slope * x), obs=y)

    real, whole = (er.fit(logistic, each, seed=1) for each in (table, table.astype({"y": kind})))
    pd.testing.assert_frame_equal(whole.summary(), real.summary())
    rows = table.astype({"y": kind}).head(5)
    pd.testing.assert_frame_equal(whole.predict(rows), real.predict(rows))
    assert whole.problem.arguments["y"].dtype == torch.float64


def test_an_index_that_is_observed_too_stays_whole() -> None:
    """As real numbers it could not index, so that the first error is told."""

    def model(y: Tensor) -> None:
        means = pyro.sample("means", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Bernoulli(logits=means[y]), obs=y)

    with pytest.raises(ModelError, match="convert whole numbers"):
        er.fit(model, {"y": torch.tensor([0, 1, 1])}, seed=1)


def schools(school: Tensor, y: Any = None) -> None:
    with pyro.plate("school", 3):
        mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    with pyro.plate("rows", len(school)):
        pyro.sample("y", dist.Normal(mean[school], 1.0), obs=y)


@pytest.mark.parametrize("kind", ["text", "category"])
def test_columns_of_categories_are_coded_and_their_levels_kept(kind: str) -> None:
    codes = np.arange(30) % 3
    y = 2.0 * codes + np.random.default_rng(0).normal(size=30)
    names = np.array(["north", "south", "west"])[codes]
    table = pd.DataFrame({"school": pd.Series(names, dtype=object), "y": y})
    if kind == "category":
        table["school"] = table["school"].astype(pd.CategoricalDtype(["west", "north", "south"]))
    fit = er.fit(schools, table, seed=1)
    mean = fit.posterior["posterior"]["mean"].mean(["chain", "draw"])
    for school in ("north", "south", "west"):  # conjugate: Normal with variance 1 and 25
        own = y[names == school]
        expected = own.sum() / (len(own) + 1 / 25)
        assert float(mean.sel(school=school)) == pytest.approx(expected, abs=0.05)
    assert "Column 'school' has categories" in str(fit.verdict)
    new = pd.DataFrame({"school": ["west", "north"]})
    predicted = fit.predict(new)["mean"]
    assert predicted[0] == pytest.approx(float(mean.sel(school="west")), abs=0.15)
    with pytest.raises(DataError, match="row 1: the label 'east' did not occur"):
        fit.predict(pd.DataFrame({"school": ["east"]}))


def test_groups_that_are_counted_from_one_are_told() -> None:
    with pytest.raises(ModelError, match=r"'school' goes from 1 to 3: count groups from 0"):
        er.fit(schools, {"school": [1, 2, 3], "y": [0.0, 1.0, 2.0]})


def test_text_that_is_no_category_is_refused() -> None:
    for cells in (["1,5", "2,5", "1,5"], ["a", "b", "c"], ["1", "2", "x"]):
        with pytest.raises(DataError, match="column 'school'"):
            er.fit(schools, pd.DataFrame({"school": cells, "y": [0.0, 1.0, 2.0]}))


def test_whole_numbers_are_real_ones_where_the_model_computes_with_them() -> None:
    def model(x: Tensor, y: Tensor) -> None:
        slope = pyro.sample("slope", dist.Normal(0.0, 5.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(slope * (x - x.mean()), 1.0), obs=y)

    table = pd.DataFrame({"x": [0, 1, 2, 3], "y": [0, 1, 3, 3]})
    fit = er.fit(model, table, seed=1)
    centred = np.arange(4) - 1.5
    expected = centred @ table["y"] / (centred @ centred + 1 / 25)
    assert float(fit.posterior["posterior"]["slope"].mean()) == pytest.approx(expected, abs=0.05)


def process(y: Tensor, prior: bool = True) -> Any:
    """A Gaussian process over the places 0, 1, ..., of a known noise."""
    places = torch.arange(len(y), dtype=torch.float64)
    kernel: Any = gp.kernels.RBF(input_dim=1, variance=torch.tensor(2.0).double())
    module = gp.models.GPRegression(places, y, kernel, noise=torch.tensor(0.3).double())
    for part in (kernel, module):
        part.requires_grad_(False)
    if prior:
        kernel.lengthscale = PyroSample(dist.LogNormal(torch.tensor(0.0).double(), 1.0))
    return module


def test_a_gaussian_process_is_fitted_by_its_model_and_its_own_data() -> None:
    y = torch.tensor([0.3, 1.1, -0.4, 0.2], dtype=torch.float64)
    module = process(y)
    problem = bind(own_model(module), None, None, torch.float64, torch.device("cpu"))
    assert set(problem.arguments) == {"X", "y"}
    length = torch.tensor(0.8, dtype=torch.float64)
    (name,) = [site.name for site in problem.space.sites]
    with problem.session(0):
        found = score(problem.function, problem.arguments, {name: length}, problem.space)
    gaps = torch.arange(4.0).double()[:, None] - torch.arange(4.0).double()
    covariance = 2 * torch.exp(-0.5 * (gaps / length) ** 2) + (0.3 + 1e-6) * torch.eye(4)
    by_hand = dist.MultivariateNormal(torch.zeros(4).double(), covariance.double()).log_prob(y)
    prior = dist.LogNormal(0.0, 1.0).log_prob(length)
    torch.testing.assert_close(found.log_joint, by_hand + prior)


def test_a_gaussian_process_takes_other_data_and_keeps_its_own() -> None:
    module = process(torch.zeros(3).double())
    own = module.X, module.y
    other = {"X": torch.arange(2.0).double(), "y": torch.ones(2).double()}
    problem = bind(own_model(module), other, None, torch.float64, torch.device("cpu"))
    guide = resolve_guide(module.guide, problem).build(problem.space, Start(torch.zeros(1)))
    with problem.session(0):
        trace = poutine.trace(guide).get_trace(**problem.arguments)
        assert problem.space.sites[0].name in trace.nodes
    assert module.X is own[0]
    assert module.y is own[1]
    with pytest.raises(ModelError, match="new rows need the old ones"):
        problem.new_arguments(pd.DataFrame({"X": [1.0], "y": [0.0]}))


def test_a_module_without_forward_is_fitted_by_its_model() -> None:
    class Pair(torch.nn.Module):
        def model(self, y: Tensor) -> None:
            level = pyro.sample("level", dist.Normal(0.0, 1.0))
            with pyro.plate("rows", len(y)):
                pyro.sample("y", dist.Normal(level, 1.0), obs=y)

    table = pd.DataFrame({"y": [0.0, 1.0]})
    problem = bind(own_model(Pair()), table, None, torch.float64, torch.device("cpu"))
    assert problem.space.dimension == 1
    assert own_model(Pair()).name == "Pair"


def test_columns_go_to_the_arguments_of_a_modules_forward() -> None:
    class Line(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.slope: Any = PyroSample(dist.Normal(0.0, 1.0))

        def forward(self, x: Tensor, y: Tensor | None = None) -> None:
            mean = self.slope * x
            with pyro.plate("rows", len(x)):
                pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    table = pd.DataFrame({"x": [0.0, 1.0], "y": [0.5, 0.7], "z": [1, 2]})
    problem = bind(own_model(Line()), table, None, torch.float64, torch.device("cpu"))
    assert set(problem.arguments) == {"x", "y"}


def test_a_discrete_site_whose_density_is_masked_as_a_whole_counts_each_value_once() -> None:
    """Its distribution only says which values there are; masks of rows leave it as it is."""

    def model(y: Tensor) -> None:
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        with poutine.mask(mask=False):
            kind = pyro.sample("kind", dist.Bernoulli(0.9))
        pyro.sample("y", dist.Normal(level + kind, 1.0), obs=y)

    y, level = torch.tensor(0.4).double(), torch.tensor(-0.3).double()
    problem = bind(own_model(model), {"y": y}, None, torch.float64, torch.device("cpu"))
    with problem.session(0):
        found = score(problem.function, {"y": y}, {"level": level}, problem.space).log_joint
    kinds = torch.tensor([0.0, 1.0]).double()
    by_hand = dist.Normal(level + kinds, 1.0).log_prob(y).logsumexp(0)
    torch.testing.assert_close(found, by_hand + dist.Normal(0.0, 1.0).log_prob(level))


def test_a_latent_vector_beside_a_plate_is_fitted_with_a_word_of_its_plate() -> None:
    def model(y: Tensor) -> None:
        scales = pyro.sample("scales", dist.HalfNormal(torch.ones(2)))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(0.0, scales).to_event(1), obs=y)

    y = torch.tensor([[0.3, 1.0], [-0.5, 2.0], [0.1, -1.0]])
    problem = bind(own_model(model), {"y": y}, None, torch.float64, torch.device("cpu"))
    (doubt,) = problem.doubts
    assert "site 'scales': dim -1 of the log probability is in no plate" in doubt
    values = {"scales": torch.tensor([0.5, 2.0]).double()}
    draws = {"scales": values["scales"].expand(3, 2)}
    assert invalid_draws(problem.function, problem.arguments, draws) is None
    with problem.session(0):
        found = score(problem.function, problem.arguments, values, problem.space).log_joint
    likelihood = dist.Normal(0.0, values["scales"]).log_prob(y.double()).sum()
    prior = dist.HalfNormal(1.0).log_prob(values["scales"]).sum()
    torch.testing.assert_close(found, likelihood + prior)


def test_sites_that_only_some_minibatches_have_count_zero_in_the_others() -> None:
    """Sequences of unequal lengths: the loop ends at the longest of the minibatch."""
    lengths: Any = torch.tensor([1, 1, 2, 3, 3, 3])

    def model(y: Tensor, batch_size: int | None = None) -> None:
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(y), subsample_size=batch_size) as rows:
            for t in range(int(lengths[rows].max())):
                with poutine.mask(mask=t < lengths[rows]):
                    pyro.sample(f"y_{t}", dist.Normal(level, 1.0), obs=y[rows, t])

    y = torch.linspace(-1.0, 1.0, 18).reshape(6, 3)
    found = er.check(model, {"y": y}, "mean_field", batch_size=2, seed=1)
    assert [each.text for each in found if each.level == "error"] == []


MOVES = torch.tensor([[0.8, 0.2], [0.3, 0.7]]).double()


def hidden_states(y: Tensor) -> None:
    """Steps that are all alike, of which the distribution is not told how many there are."""
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    means = torch.stack([level, -level])
    first = torch.tensor([0.6, 0.4]).log()
    states = dist.DiscreteHMM(first, MOVES.log(), dist.Normal(means, 1.0))
    pyro.sample("y", states, obs=y)


def states_one_by_one(y: Tensor) -> None:
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    means = torch.stack([level, -level])
    state: Any = pyro.sample("before", dist.Categorical(torch.tensor([0.6, 0.4])))
    for t in pyro.markov(range(len(y))):
        state = pyro.sample(f"state_{t}", dist.Categorical(MOVES[state]))
        pyro.sample(f"y_{t}", dist.Normal(means[state], 1.0), obs=y[t])


def test_a_hidden_markov_model_of_any_length_is_recorded_and_has_the_sum_over_its_states() -> None:
    y = torch.tensor([0.3, 1.1, -0.4, 0.2, -1.5], dtype=torch.float64)
    found = []
    for model in (hidden_states, states_one_by_one):
        problem = bind(own_model(model), {"y": y}, None, torch.float64, torch.device("cpu"))
        with problem.session(0):
            density = Density(problem.function, problem.arguments, problem.space)
            assert density.how == "recorded"
            found.append(density.value(np.array([[-0.7], [0.2], [1.3]])))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-12)
    with problem.session(0):
        problem = bind(own_model(hidden_states), {"y": y}, None, torch.float64, torch.device("cpu"))
        draws = {"level": torch.zeros(20).double()}
        drawn = predict_sites(problem.function, problem.arguments, draws, problem.space)["y"]
    assert drawn.shape == (20, 5)
    assert len(drawn.unique()) == 100


def test_a_packed_sequence_is_given_to_the_model_as_it_is() -> None:
    lengths = torch.tensor([3, 1])
    packed = torch.nn.utils.rnn.pack_padded_sequence(torch.ones(2, 3), lengths, batch_first=True)
    prepared = own_model(line).prepare({"x": packed, "y": [0.0, 1.0]}, None, None)
    assert prepared.arguments["x"] is packed
