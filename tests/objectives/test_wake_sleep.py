"""Estimators for binary latents, beside sums over all of their values."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

import elbowroom as er
from elbowroom.engines.settings import make_settings
from elbowroom.errors import GuideError, ModelError, OptionError
from elbowroom.guides import Start, get_guide
from elbowroom.guides.space import FixedRows, of_each_row, trace_model
from elbowroom.models._fresh import Fresh
from elbowroom.objectives.elbo import make_objective
from elbowroom.objectives.estimators import LeaveOneOut
from elbowroom.objectives.wake_sleep import log_density_of_dreams
from elbowroom.pipeline.fitting import bind_model
from elbowroom.problem.bound import Problem
from elbowroom.problem.isolation import isolated

COPIES = 1500
"""Of each row: one gradient is then the mean of as many."""
GRADIENTS = 40
ERRORS = 5.0
"""Standard errors that the worst of some 60 means may be off by."""
ROWS = ((0.0, 1.0, 1.0), (1.0, 0.0, 0.0))
UNITS = (2, 1)


def machine(**options: Any) -> tuple[Problem, Callable[..., Any]]:
    """A machine of three columns and three binary latents, and its recognition."""
    table = pd.DataFrame([*ROWS] * COPIES, columns=list("abc"))
    given = {"units": UNITS, "dtype": "float64", "batch_size": None, **options}
    problem, *_ = bind_model("helmholtz_machine", table, given)
    guide = get_guide("recognition", "helmholtz_machine").build(
        problem.space, Start(torch.zeros(0))
    )
    return problem, guide


def begin(problem: Problem, guide: Callable[..., Any]) -> list[Tensor]:
    """Parameters at random, in the order of their names: the model's, then the guide's."""
    trace_model(problem.function, problem.arguments)
    guide(**problem.arguments)
    store = dict(pyro.get_param_store().named_parameters())
    with torch.no_grad():
        for name in sorted(store):
            store[name].copy_(torch.randn(store[name].shape))
    return [store[name] for name in sorted(store)]


def every_density(problem: Problem, guide: Callable[..., Any], x: Tensor) -> tuple[Tensor, Tensor]:
    """Log p(x, h) and log q(h | x) of each value h of the latents and each row of x."""
    arguments = {**problem.arguments, "x": x, "shares": None, "rows": len(x)}
    p: list[Tensor] = []
    q: list[Tensor] = []
    for bits in itertools.product((0.0, 1.0), repeat=sum(UNITS)):
        h = torch.tensor(bits).expand(len(x), -1).split(UNITS, -1)
        values = {f"h_{i}": value for i, value in enumerate(h, start=1)}
        for function, found in ((problem.function, p), (guide, q)):
            model = poutine.condition(function, data=values)
            trace = poutine.trace(model).get_trace(**arguments)
            plate = problem.space.subsampled
            assert plate is not None
            found.append(of_each_row(trace, type(plate)(plate.name, plate.dim, len(x))))
    return torch.stack(p), torch.stack(q)  # (values of h, rows)


def check(found: list[Tensor], exact: Tensor) -> None:
    """That gradients have a mean, up to the error that their own spread tells."""
    stacked = torch.stack(found)
    error = stacked.std(0) / len(stacked) ** 0.5
    off = (stacked.mean(0) - exact).abs()
    assert (off <= ERRORS * error + 1e-9).all(), float((off / error).max())
    assert (error < 0.05 * exact.abs().max()).all()  # the comparison tells something


def flat(total: Tensor, parameters: list[Tensor]) -> Tensor:
    found = torch.autograd.grad(total, parameters, retain_graph=True, materialize_grads=True)
    return torch.cat([each.reshape(-1) for each in found])


def exact_gradient(
    name: str, insomnia: float, problem: Problem, guide: Callable[..., Any], on: list[Tensor]
) -> Tensor:
    """Of minus the surrogate, by sums over all latents, and over all rows that can be dreamt."""
    p, q = every_density(problem, guide, torch.tensor(ROWS))
    dreams = torch.tensor(list(itertools.product((0.0, 1.0), repeat=3)))
    dreamt_p, dreamt_q = every_density(problem, guide, dreams)
    asleep = len(ROWS) * (dreamt_p.exp().detach() * dreamt_q).sum()
    if name == "wake_sleep":
        total = (q.exp().detach() * p).sum() + asleep
    else:
        both = q.exp().unsqueeze(1) * q.exp().unsqueeze(0)  # (one, the other, rows)
        weights = torch.stack(torch.broadcast_tensors((p - q).unsqueeze(1), (p - q).unsqueeze(0)))
        if name == "vimco":
            total = (both * (weights.logsumexp(0) - math.log(2))).sum()
        else:
            shares, each = weights.softmax(0).detach(), both.detach()
            taught = p + insomnia * q
            terms = shares[0] * taught.unsqueeze(1) + shares[1] * taught.unsqueeze(0)
            total = (each * terms).sum() + (1 - insomnia) * asleep
    return COPIES * flat(total, on)


@pytest.mark.parametrize(
    ("name", "insomnia"),
    [("wake_sleep", 1.0), ("vimco", 1.0), ("reweighted_wake_sleep", 1.0),
     ("reweighted_wake_sleep", 0.3)],
)  # fmt: skip
@pytest.mark.parametrize("batch_size", [None, 600])
def test_gradients_are_those_of_sums_over_all_latents(
    name: str, insomnia: float, batch_size: int | None
) -> None:
    problem, guide = machine()
    particles = 1 if name == "wake_sleep" else 2
    objective = make_objective(
        name, particles, problem.space, make_settings({"insomnia": insomnia}).of_objective(name)
    )
    with isolated(3):
        parameters = begin(problem, guide)
        exact = exact_gradient(name, insomnia, problem, guide, parameters)
        given = {**problem.arguments, "batch_size": batch_size}
        found = [
            -flat(objective.loss_and_surrogate(problem.function, guide, given)[1], parameters)
            for _ in range(GRADIENTS if batch_size is None else 3 * GRADIENTS)
        ]
    check(found, exact)


def test_the_loss_of_vimco_is_that_of_iwae_and_its_baselines_take_noise_away() -> None:
    problem, guide = machine()
    with isolated(3):
        parameters = begin(problem, guide)
        p, q = every_density(problem, guide, torch.tensor(ROWS))
        weights = (p - q).detach()
        pairs = torch.logaddexp(weights.unsqueeze(1), weights.unsqueeze(0)) - math.log(2)
        both = (q.unsqueeze(1) + q.unsqueeze(0)).exp().detach()
        exact = float((both * pairs).sum())
        objective = make_objective("vimco", 2, problem.space)
        assert isinstance(objective, LeaveOneOut)
        losses, found = [], []
        for _ in range(GRADIENTS):
            loss, surrogate = objective.loss_and_surrogate(
                problem.function, guide, problem.arguments
            )
            losses.append(float(-loss) / COPIES)
            found.append(flat(surrogate, parameters))
        spread = float(torch.tensor(losses).std())
        assert abs(sum(losses) / GRADIENTS - exact) < ERRORS * spread / GRADIENTS**0.5
        # The same without baselines: the bound itself weighs the scores.
        plain = []
        for _ in range(GRADIENTS):
            terms = [objective.terms(problem.function, guide, problem.arguments) for _ in range(2)]
            log_w = torch.stack([each["p"] - each["q"] for each in terms])
            bound = log_w.logsumexp(0) - math.log(2)
            scores = sum(each["q"] for each in terms)
            plain.append(flat((bound.detach() * scores + bound).sum(), parameters))
    quiet, loud = torch.stack(found).var(0).sum(), torch.stack(plain).var(0).sum()
    assert quiet < 0.5 * loud


def test_dreams_are_shown_as_they_are_where_data_are_drawn_anew() -> None:
    problem, guide = machine(binarise="dynamic")
    with isolated(3):
        parameters = begin(problem, guide)
        dreams = torch.tensor(list(itertools.product((0.0, 1.0), repeat=3)))
        p, q = every_density(problem, guide, dreams)
        exact = len(ROWS) * COPIES * flat((p.exp().detach() * q).sum(), parameters)
        rows = {"rows": torch.arange(0, len(ROWS) * COPIES, 2)}  # of one kind
        objective = make_objective("wake_sleep", 1, problem.space)
        given = {**problem.arguments, "batch_size": COPIES}
        found = []
        for _ in range(3 * GRADIENTS):
            with Fresh():
                with FixedRows(rows):
                    guide(**given)  # which draws data anew
                total = log_density_of_dreams(objective, problem.function, guide, given, rows)
            found.append(flat(total, parameters))
    check(found, exact)


@pytest.mark.parametrize("name", ["wake_sleep", "reweighted_wake_sleep", "vimco", "score_function"])
def test_each_is_recorded_and_learns(name: str) -> None:
    digits = er.load_dataset("digits").head(200)
    share: dict[str, Any] = {"insomnia": 0.5} if name == "reweighted_wake_sleep" else {}
    found = er.fit(
        "helmholtz_machine", digits, elbo=name, **share, units=(6, 3), epochs=60,
        batch_size=50, seed=1, draws=100, schedule="constant", learning_rate=0.02, particles=4,
    )  # fmt: skip
    assert found.trained.eager is None
    history = found.elbo_history / len(digits)
    assert history[-20:].mean() > history[:20].mean() + 5


def test_the_rest_of_a_model_is_learned_awake() -> None:
    """What belongs to no row is in the bound, once."""

    def model(x: Tensor, batch_size: int | None = None) -> None:
        chance = pyro.param("chance", torch.tensor(0.3).double())
        pyro.factor("penalty", -3 * chance)
        with pyro.plate("rows", len(x), subsample_size=batch_size):
            on = pyro.sample("on", dist.Bernoulli(torch.tensor(0.5).double()))
            seen = pyro.subsample(x, event_dim=0)
            pyro.sample("x", dist.Bernoulli(chance * on), obs=seen)

    def guide(x: Tensor, batch_size: int | None = None) -> None:
        with pyro.plate("rows", len(x), subsample_size=batch_size):
            pyro.sample("on", dist.Bernoulli(pyro.param("q", torch.tensor(1.0).double())))

    x = torch.ones(4).double()
    problem, *_ = bind_model(model, {"x": x}, {})
    for name, particles in (("wake_sleep", 1), ("reweighted_wake_sleep", 2), ("vimco", 2)):
        with isolated(0):
            objective = make_objective(name, particles, problem.space)
            loss, surrogate = objective.loss_and_surrogate(model, guide, {"x": x})
            (slope,) = torch.autograd.grad(
                surrogate, [dict(pyro.get_param_store().named_parameters())["chance"]]
            )
        assert float(loss) == pytest.approx(-4 * math.log(0.15) + 0.9)
        assert float(slope) == pytest.approx(-4 / 0.3 + 3)


def rows_model(data: Tensor, batch_size: int | None = None) -> None:
    chance = pyro.param("chance", torch.tensor(0.4).double())
    with pyro.plate("rows", len(data), subsample_size=batch_size):
        on = pyro.sample("on", dist.Bernoulli(chance))
        seen = pyro.subsample(data, event_dim=0)
        pyro.sample("y", dist.Normal(on, 1.0), obs=seen)


def amortised(data: Tensor, batch_size: int | None = None) -> None:
    slope = pyro.param("slope", torch.tensor(0.1).double())
    with pyro.plate("rows", len(data), subsample_size=batch_size):
        seen = pyro.subsample(data, event_dim=0)
        pyro.sample("on", dist.Bernoulli(logits=slope * seen))


amortised.amortised = True  # type: ignore[attr-defined]


def by_row(data: Tensor, batch_size: int | None = None) -> None:
    with pyro.plate("rows", len(data), subsample_size=batch_size):
        logits = pyro.param("logits", torch.zeros(len(data)).double(), event_dim=0)
        pyro.sample("on", dist.Bernoulli(logits=logits))


DATA = {"data": torch.linspace(-2, 2, 30).double()}


@pytest.mark.parametrize(
    ("guide", "options", "error", "said"),
    [
        (
            amortised, {"elbo": "wake_sleep"}, (ModelError, GuideError),
            "rows of 'y' that the model draws: the",
        ),
        (by_row, {"elbo": "wake_sleep"}, OptionError, "'by_row' is not declared to be one"),
        (amortised, {"elbo": "vimco"}, OptionError, "needs several draws"),
        (
            amortised, {"elbo": "wake_sleep", "kl_warm_up": 10}, OptionError,
            "--kl-warm-up changes the weight of the KL term",
        ),
    ],
)  # fmt: skip
def test_what_cannot_dream_is_said(
    guide: Any, options: dict[str, Any], error: Any, said: str
) -> None:
    with pytest.raises(error, match=said):
        er.fit(rows_model, DATA, guide, seed=1, steps=20, **options)


@pytest.mark.parametrize("batch_size", [None, 10])
def test_a_dream_is_shown_as_it_would_be_observed_or_not_at_all(batch_size: int | None) -> None:
    """Where the model scales its argument, a dream of the site is no value of the argument."""

    def scaled(y: Tensor, batch_size: int | None = None) -> None:
        chance = pyro.param("chance", torch.tensor(0.4).double())
        with pyro.plate("rows", len(y), subsample_size=batch_size):
            on = pyro.sample("on", dist.Bernoulli(chance))
            pyro.sample("y", dist.Normal(on, 1.0), obs=pyro.subsample(y, event_dim=0) / 10)

    def guide(y: Tensor, batch_size: int | None = None) -> None:
        amortised(y, batch_size)

    guide.amortised = True  # type: ignore[attr-defined]
    with pytest.raises(
        ModelError, match="must observe the model's argument of the same name, unchanged"
    ):
        er.fit(scaled, {"y": DATA["data"]}, guide, elbo="wake_sleep", seed=1, steps=20,
               batch_size=batch_size)  # fmt: skip


def test_rows_may_lie_in_a_plate_to_the_left() -> None:
    """Rows at -2, the columns of each at -1: one latent a cell."""

    def cells(x: Tensor, batch_size: int | None = None) -> None:
        chance = pyro.param("chance", torch.tensor(0.4).double())
        rows = pyro.plate("rows", len(x), subsample_size=batch_size, dim=-2)
        with rows, pyro.plate("columns", x.shape[1], dim=-1):
            on = pyro.sample("on", dist.Bernoulli(chance))
            pyro.sample("x", dist.Normal(4 * on, 1.0), obs=pyro.subsample(x, event_dim=0))

    def guide(x: Tensor, batch_size: int | None = None) -> None:
        level, slope = (pyro.param(n, torch.tensor(0.1).double()) for n in ("level", "slope"))
        rows = pyro.plate("rows", len(x), subsample_size=batch_size, dim=-2)
        with rows, pyro.plate("columns", x.shape[1], dim=-1):
            seen = pyro.subsample(x, event_dim=0)
            pyro.sample("on", dist.Bernoulli(logits=level + slope * seen))

    guide.amortised = True  # type: ignore[attr-defined]
    random = torch.Generator().manual_seed(0)
    on = (torch.rand(60, 3, generator=random) < 0.3).double()
    x = 4 * on + torch.randn(60, 3, generator=random, dtype=torch.float64)
    for name, particles in (("wake_sleep", 1), ("vimco", 4), ("reweighted_wake_sleep", 4)):
        found = er.fit(
            cells, {"x": x}, guide, elbo=name, particles=particles, batch_size=20, steps=600,
            learning_rate=0.05, seed=1, draws=200, held_out=0.0,
        )  # fmt: skip
        assert abs(found.point_parameters["chance"] - float(on.mean())) < 0.06
        assert len(found.score(draws=100)) == 60


@pytest.mark.parametrize("guide", ["map", "mean_field"])
def test_models_with_other_latents_than_the_rows_are_refused(guide: str) -> None:
    said = "has no score" if guide == "map" else "whose latents all belong to rows"
    with pytest.raises(OptionError, match=said):
        er.fit("bayesian_regression", guide=guide, elbo="wake_sleep", seed=1, steps=20)
