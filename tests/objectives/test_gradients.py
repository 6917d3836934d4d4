"""The mean of every gradient estimator is the exact gradient, and its noise what it should be."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import elbowroom as er
from elbowroom.engines.settings import Settings, make_settings
from elbowroom.engines.svi.loop import run_svi
from elbowroom.errors import OptionError
from elbowroom.guides.space import LatentSpace
from elbowroom.objectives.elbo import make_objective
from elbowroom.objectives.estimators import Objective
from elbowroom.objectives.score_function import ScoreFunctionOptions
from elbowroom.options import make_options
from elbowroom.problem.isolation import isolated

SIGMAS = 4.5
"""Standard errors by which a mean may be off; one of 150 comparisons in a thousand runs is."""


@pytest.fixture(autouse=True)
def _alone() -> Iterator[None]:
    with isolated(0):
        yield


def parameters() -> dict[str, Tensor]:
    named = pyro.get_param_store().named_parameters()
    return {name: value for name, value in named if not name.startswith("__baseline")}


def gradients(
    objective: Objective,
    model: Callable[..., Any],
    guide: Callable[..., Any],
    arguments: dict[str, Any],
    names: tuple[str, ...],
    count: int,
    warm: int = 30,
) -> np.ndarray:
    """Of the loss, by the parameters named, (count, P); the first ones are for a baseline."""
    found = []
    for run in range(count + warm):
        _, surrogate = objective.loss_and_surrogate(model, guide, arguments)
        values = [parameters()[name] for name in names]
        parts = torch.autograd.grad(surrogate, values)
        if run >= warm:
            found.append(torch.cat([part.reshape(-1) for part in parts]))
    return torch.stack(found).detach().numpy()


def check_mean(found: np.ndarray, exact: np.ndarray) -> None:
    error = found.std(0, ddof=1) / len(found) ** 0.5
    assert (np.abs(found.mean(0) - exact) < SIGMAS * error + 1e-9).all(), (found.mean(0), exact)
    assert (error < 0.35 * np.abs(exact).max()).all()  # a wrong sign or a factor would be seen


Y = torch.tensor(1.7, dtype=torch.float64)
START = {"location": 0.4, "log_scale": -0.3, "slope": 0.8}


def line(y: Tensor) -> None:
    slope = pyro.param("slope", torch.tensor(START["slope"]))
    z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
    pyro.sample("y", dist.Normal(slope * z, 1.0), obs=y)


def line_guide(y: Tensor) -> None:
    location = pyro.param("location", torch.tensor(START["location"]))
    log_scale = pyro.param("log_scale", torch.tensor(START["log_scale"]))
    pyro.sample("z", dist.Normal(location, log_scale.exp()))


def log_weight(noise: Tensor, location: Tensor, log_scale: Tensor, slope: Tensor) -> Tensor:
    """Log p(y, z) - log q(z) at z = location + scale noise."""
    z = location + log_scale.exp() * noise
    log_p = torch.distributions.Normal(0.0, 1.0).log_prob(z)
    log_p = log_p + torch.distributions.Normal(slope * z, 1.0).log_prob(Y)
    return log_p - torch.distributions.Normal(location, log_scale.exp()).log_prob(z)


def exact_bound(name: str, alpha: float = 0.5) -> np.ndarray:
    """The gradient of minus the bound of two draws (of one for the ELBO), by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    x, w = torch.tensor(nodes), torch.tensor(weights / math.sqrt(2 * math.pi))
    values = [torch.tensor(START[n], requires_grad=True) for n in START]
    single = log_weight(x, *values)
    if name in ("iwae", "dreg", "renyi"):
        power = 1 - alpha if name == "renyi" else 1.0
        both = torch.stack(torch.broadcast_tensors(single[:, None], single))
        bound = ((power * both).logsumexp(0) - math.log(2)) / power
        loss = -(w[:, None] * w * bound).sum()
    else:
        loss = -(w * single).sum()
    return torch.stack(torch.autograd.grad(loss, values)).numpy()


GRADIENTS = 500
"""Of which the mean is compared with the exact one."""
ESTIMATORS: list[Any] = [
    ("trace", {}), ("trace_mean_field", {}), ("trace_graph", {}), ("sticking_the_landing", {}),
    ("score_function", {"baseline": "none"}), ("score_function", {"baseline": "running"}),
    ("score_function", {"baseline": "decaying"}), ("score_function", {"baseline": "neural"}),
    ("iwae", {}), ("dreg", {}), ("renyi", {"alpha": 0.5}),
    pytest.param("renyi", {"alpha": 2.0}, marks=pytest.mark.slow),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options"), ESTIMATORS)
def test_the_mean_of_gradients_is_the_exact_one(name: str, options: dict[str, Any]) -> None:
    """A latent, its guide, and a parameter of the model; two draws in each estimate."""
    objective = make_objective(
        name, 2, LatentSpace.of(line, {"y": Y}), make_settings(options).of_objective(name)
    )
    found = gradients(objective, line, line_guide, {"y": Y}, tuple(START), GRADIENTS)
    check_mean(found, exact_bound(name, **{k: v for k, v in options.items() if k == "alpha"}))


def spread(name: str, particles: int = 1, count: int = 400, **options: Any) -> np.ndarray:
    """The standard deviation of the gradients by the guide's parameters."""
    objective = make_objective(
        name, particles, LatentSpace.of(line, {"y": Y}), make_settings(options).of_objective(name)
    )
    names = ("location", "log_scale")
    return gradients(objective, line, line_guide, {"y": Y}, names, count).std(0)


def at_the_posterior() -> None:
    slope = START["slope"]
    precision = 1 + slope**2
    pyro.param("location", torch.tensor(float(slope * Y) / precision))
    pyro.param("log_scale", torch.tensor(-0.5 * math.log(precision)))


def test_sticking_the_landing_has_no_noise_at_the_posterior() -> None:
    at_the_posterior()
    assert (spread("sticking_the_landing") < 1e-12).all()
    assert (spread("trace") > 0.1).all()


def test_sticking_the_landing_loses_its_noise_on_the_way_there() -> None:
    """In proportion to what is left of the way."""
    at_the_posterior()
    store = pyro.get_param_store()
    end = {name: store[name].detach().clone() for name in ("location", "log_scale")}
    noise = []
    for left in (0.1, 0.01):
        for name, value in end.items():
            store[name] = value + left
        noise.append(spread("sticking_the_landing"))
    np.testing.assert_allclose(noise[0] / noise[1], 10, rtol=0.25)


@pytest.mark.slow
def test_the_noise_of_score_functions_is_larger_and_baselines_lower_it() -> None:
    pathwise, plain = spread("trace"), spread("score_function", baseline="none", count=2000)
    assert (plain > 2 * pathwise).all()
    for baseline in ("running", "decaying", "neural"):
        pyro.clear_param_store()
        lowered = spread("score_function", baseline=baseline, count=2000)
        if baseline != "neural":  # a level that no optimiser has moved yet
            assert (lowered < 0.9 * plain).all(), baseline


def test_doubly_reparameterised_gradients_are_not_drowned_by_many_draws() -> None:
    """Rainforth et al., 2018: the signal of IWAE's falls by √K against its noise, DReG's does not.

    With 16 times as many draws the ratio of DReG's noise to IWAE's falls by 4, or nearly so.
    """
    ratios = [(spread("dreg", k, 100) / spread("iwae", k, 100)).max() for k in (2, 32)]
    assert ratios[1] < ratios[0] / 2


@pytest.mark.parametrize("particles", [1, 5])
def test_bounds_meet_where_they_should(particles: int) -> None:
    space = LatentSpace.of(line, {"y": Y})

    def loss(name: str, **options: Any) -> float:
        torch.manual_seed(1)
        objective = make_objective(
            name, particles, space, make_settings(options).of_objective(name)
        )
        return objective.loss(line, line_guide, y=Y)

    assert loss("renyi", alpha=0.0) == pytest.approx(loss("iwae"), rel=1e-12)
    assert loss("dreg") == pytest.approx(loss("iwae"), rel=1e-12)
    assert loss("renyi", alpha=1 - 1e-7) == pytest.approx(loss("trace"), abs=1e-5)
    if particles == 1:
        assert loss("iwae") == pytest.approx(loss("trace"), rel=1e-12)
    else:
        assert loss("iwae") < loss("trace")


def test_many_weighted_draws_come_to_the_log_evidence() -> None:
    objective = make_objective("iwae", 3000, LatentSpace.of(line, {"y": Y}))
    variance = 1 + START["slope"] ** 2
    exact = float(torch.distributions.Normal(0.0, variance**0.5).log_prob(Y))
    torch.manual_seed(0)
    # The weights' relative standard deviation is about one half here.
    assert -objective.loss(line, line_guide, y=Y) == pytest.approx(exact, abs=4 * 0.5 / 3000**0.5)


ROWS = torch.tensor([1.2, -0.4, 2.5, 0.3], dtype=torch.float64)


def local(y: Tensor, batch_size: int | None = None) -> None:
    slope = pyro.param("slope", torch.tensor(0.8))
    with pyro.plate("rows", len(y), subsample_size=batch_size):
        batch = pyro.subsample(y, event_dim=0)
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("y", dist.Normal(slope * z, 1.0), obs=batch)


def local_guide(y: Tensor, batch_size: int | None = None) -> None:
    weight = pyro.param("weight", torch.tensor(0.2))
    log_scale = pyro.param("log_scale", torch.tensor(-0.3))
    with pyro.plate("rows", len(y), subsample_size=batch_size):
        batch = pyro.subsample(y, event_dim=0)
        pyro.sample("z", dist.Normal(weight * batch, log_scale.exp()))


@pytest.mark.parametrize("name", ["iwae", pytest.param("dreg", marks=pytest.mark.slow)])
@pytest.mark.parametrize("size", [pytest.param(None, marks=pytest.mark.slow), 2])
def test_rows_with_latents_have_weights_of_their_own(name: str, size: int | None) -> None:
    """The bound of two draws is the sum of the rows', of a minibatch in the mean."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    x, w = torch.tensor(nodes), torch.tensor(weights / math.sqrt(2 * math.pi))
    values = [torch.tensor(v, requires_grad=True) for v in (0.2, -0.3, 0.8)]
    weight, log_scale, slope = values
    loss: Any = 0.0
    for y in ROWS:
        z = weight * y + log_scale.exp() * x
        normal = torch.distributions.Normal
        single = normal(0.0, 1.0).log_prob(z) + normal(slope * z, 1.0).log_prob(y)
        single = single - normal(weight * y, log_scale.exp()).log_prob(z)
        both = torch.stack(torch.broadcast_tensors(single[:, None], single))
        loss = loss - (w[:, None] * w * (both.logsumexp(0) - math.log(2))).sum()
    exact = torch.stack(torch.autograd.grad(loss, values)).numpy()
    space = LatentSpace.of(local, {"y": ROWS})
    objective = make_objective(name, 2, space)
    assert objective.rows is not None
    arguments = {"y": ROWS, **({} if size is None else {"batch_size": size})}
    names = ("weight", "log_scale", "slope")
    check_mean(gradients(objective, local, local_guide, arguments, names, GRADIENTS), exact)


def switches(y: Tensor, batch_size: int | None = None) -> None:
    with pyro.plate("rows", len(y), subsample_size=batch_size):
        batch = pyro.subsample(y, event_dim=0)
        on = pyro.sample("on", dist.Bernoulli(torch.tensor(0.3)))
        pyro.sample("y", dist.Normal(2 * on, 1.0), obs=batch)


def switches_guide(y: Tensor, batch_size: int | None = None) -> None:
    logits = pyro.param("logits", torch.tensor([0.5, -0.2, 0.1, 0.0]))
    with pyro.plate("rows", len(y), subsample_size=batch_size):
        own = pyro.subsample(logits, event_dim=0)
        pyro.sample("on", dist.Bernoulli(logits=own))


def exact_switches() -> np.ndarray:
    logits = torch.tensor([0.5, -0.2, 0.1, 0.0], dtype=torch.float64, requires_grad=True)
    loss: Any = 0.0
    for value in (0.0, 1.0):
        q = torch.distributions.Bernoulli(logits=logits).log_prob(torch.tensor(value).double())
        prior = math.log(0.3 if value else 0.7)
        likelihood = torch.distributions.Normal(2 * value, 1.0).log_prob(ROWS)
        loss = loss - (q.exp() * (prior + likelihood - q)).sum()
    return torch.autograd.grad(loss, logits)[0].numpy()


@pytest.mark.parametrize("baseline", ["none", "running", "decaying", "neural"])
@pytest.mark.parametrize("size", [pytest.param(None, marks=pytest.mark.slow), 2])
def test_score_functions_of_discrete_sites_are_exact_in_the_mean(
    baseline: str, size: int | None
) -> None:
    space = LatentSpace.of(switches, {"y": ROWS})
    objective = make_objective("score_function", 1, space, ScoreFunctionOptions(baseline))
    arguments = {"y": ROWS, **({} if size is None else {"batch_size": size})}
    found = gradients(objective, switches, switches_guide, arguments, ("logits",), GRADIENTS)
    check_mean(found, exact_switches())


def moving_delta(y: Tensor) -> None:
    pyro.sample("z", dist.Delta(pyro.param("point", torch.tensor(0.3))))
    pyro.sample("w", dist.Normal(pyro.param("location", torch.zeros(())), 1.0))


def weighed_delta(y: Tensor) -> None:
    """A Normal written by hand: its density is the Delta's."""
    scale = pyro.param("log_scale", torch.zeros(())).exp()
    noise = pyro.sample("noise", dist.Normal(torch.zeros(()), 1.0), infer={"is_auxiliary": True})
    fn = dist.Delta(0.5 + scale * noise, log_density=-scale.log())
    pyro.sample("z", fn)
    pyro.sample("w", dist.Normal(pyro.param("location", torch.zeros(())), 1.0))


def two(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
    w = pyro.sample("w", dist.Normal(torch.zeros(()), 1.0))
    pyro.sample("y", dist.Normal(z + w, 1.0), obs=y)


@pytest.mark.parametrize(
    ("guide", "name", "refused"),
    [
        (moving_delta, "score_function", True), (weighed_delta, "score_function", True),
        (weighed_delta, "sticking_the_landing", True), (weighed_delta, "dreg", True),
        (moving_delta, "sticking_the_landing", False), (weighed_delta, "trace", False),
    ],
)  # fmt: skip
def test_a_density_that_cannot_be_taken_apart_is_refused(
    guide: Callable[..., Any], name: str, refused: bool
) -> None:
    options: dict[str, Any] = {"particles": 2, "steps": 9, "draws": 100, "seed": 1}
    if not refused:
        er.fit(two, {"y": Y}, guide, elbo=name, **options)
        return
    with pytest.raises(
        OptionError, match=f"--elbo {name} cannot use a Delta that depends on a parameter"
    ):
        er.fit(two, {"y": Y}, guide, elbo=name, **options)


@pytest.mark.parametrize("baseline", ["none", pytest.param("decaying", marks=pytest.mark.slow)])
def test_score_functions_weigh_what_a_guide_draws_for_itself(baseline: str) -> None:
    """The entropy of an auxiliary site counts: the gradient is that of the same plain guide."""

    def guide(y: Tensor) -> None:
        location = pyro.param("location", torch.tensor(START["location"]))
        log_scale = pyro.param("log_scale", torch.tensor(START["log_scale"]))
        fn = dist.Normal(location, log_scale.exp())
        drawn = pyro.sample("own", fn, infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(drawn))

    objective = make_objective(
        "score_function", 2, LatentSpace.of(line, {"y": Y}), ScoreFunctionOptions(baseline)
    )
    found = gradients(objective, line, guide, {"y": Y}, tuple(START), 3000)
    check_mean(found, exact_bound("trace"))


@pytest.mark.parametrize("name", ["iwae", "dreg"])
def test_terms_outside_the_rows_are_in_the_bound_of_rows(name: str) -> None:
    def penalised(y: Tensor, batch_size: int | None = None) -> None:
        local(y, batch_size)
        pyro.factor("penalty", -3 * pyro.param("slope").square() - 100)

    losses, slopes = [], []
    for model in (local, penalised):
        pyro.clear_param_store()
        local(ROWS)
        objective = make_objective(name, 3, LatentSpace.of(model, {"y": ROWS}))
        assert objective.rows is not None
        torch.manual_seed(0)
        loss, surrogate = objective.loss_and_surrogate(model, local_guide, {"y": ROWS})
        losses.append(float(loss))
        slopes.append(float(torch.autograd.grad(surrogate, parameters()["slope"])[0]))
    assert losses[1] - losses[0] == pytest.approx(100 + 3 * 0.8**2, rel=1e-9)
    assert slopes[1] - slopes[0] == pytest.approx(2 * 3 * 0.8, rel=1e-9)


def test_a_neural_baseline_is_fitted_by_the_run() -> None:
    y = torch.linspace(-4, 4, 30, dtype=torch.float64)

    def guide(y: Tensor) -> None:
        with pyro.plate("rows", len(y)):
            pyro.sample("on", dist.Bernoulli(logits=pyro.param("logits", torch.zeros(30))))

    space = LatentSpace.of(switches, {"y": y})
    objective = make_objective("score_function", 1, space, ScoreFunctionOptions("neural"))
    chosen = make_options(Settings, {"steps": 200, "schedule": "constant"})
    run_svi(switches, guide, {"y": y}, objective, chosen)
    assert float(parameters()["baseline.on.second"].detach().abs().max()) > 0.1


def test_a_neural_baseline_learns_what_the_rows_tell() -> None:
    """Fitted beside the guide, it takes most of the noise away that rows differ by."""
    y = torch.linspace(-8, 8, 30, dtype=torch.float64)

    def guide(y: Tensor) -> None:
        logits = pyro.param("logits", torch.zeros(30))
        with pyro.plate("rows", len(y)):
            pyro.sample("on", dist.Bernoulli(logits=logits))

    space = LatentSpace.of(switches, {"y": y})
    noise = {}
    for baseline in ("none", "neural"):
        pyro.clear_param_store()
        objective = make_objective("score_function", 1, space, ScoreFunctionOptions(baseline))
        objective.loss_and_surrogate(switches, guide, {"y": y})
        fitted = [value for name, value in parameters().items() if name.startswith("baseline")]
        if fitted:
            optimizer = torch.optim.Adam(fitted, lr=0.05)
            for _ in range(800):
                optimizer.zero_grad()
                objective.loss_and_surrogate(switches, guide, {"y": y})[1].backward()
                optimizer.step()
        noise[baseline] = gradients(
            objective, switches, guide, {"y": y}, ("logits",), 300
        ).std(0).mean()  # fmt: skip
    assert noise["neural"] < 0.5 * noise["none"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"elbo": "iwae"}, "--elbo iwae needs several draws; give --particles 2"),
        ({"elbo": "renyi", "particles": 5, "alpha": 1.0}, "--alpha 1 is the ELBO itself"),
        ({"baseline": "decayng"}, "did you mean 'decaying'"),
        ({"alpha": -1.0}, "--alpha"),
    ],
)
def test_wrong_settings_are_refused_by_their_option(given: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make_settings(given)


def test_an_objective_that_a_guide_cannot_have_is_refused() -> None:
    for name in ("iwae", "dreg", "renyi", "sticking_the_landing"):
        with pytest.raises(OptionError, match=rf"--elbo {name} needs reparameterised sites"):
            er.fit(switches, {"y": ROWS}, switches_guide, seed=1, elbo=name, particles=4, steps=9)
    with pytest.raises(OptionError, match="the guide is a point, which has no score"):
        er.fit(line, {"y": Y}, "map", seed=1, elbo="score_function", steps=9)


@pytest.mark.parametrize("name", ["iwae", "dreg", "renyi", "score_function", "trace_mean_field"])
def test_every_objective_fits(name: str) -> None:
    """To the exact posterior, which the guide holds; in 4,000 steps at most."""
    slope = START["slope"]

    def model(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("y", dist.Normal(slope * z, 1.0), obs=y)

    particles = 5 if name in ("iwae", "dreg", "renyi") else 1
    options: dict[str, Any] = {"steps": 4000, "particles": particles}
    fit = er.fit(model, {"y": Y}, line_guide, seed=1, elbo=name, **options)
    precision = 1 + slope**2
    own = fit.draw(3000).sites["z"]
    assert float(own.mean()) == pytest.approx(float(slope * Y) / precision, abs=0.15)
    assert float(own.std()) == pytest.approx(precision**-0.5, rel=0.15)
