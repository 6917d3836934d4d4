"""What is refused before a model is recorded: where the rows are found, and what is let pass."""

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
from elbowroom.density.landscape import density_of
from elbowroom.errors import DataError, ElbowroomError, ModelError
from elbowroom.models._own import own_model
from elbowroom.problem.bound import Problem, bind
from elbowroom.problem.isolation import isolated
from elbowroom.problem.validation import invalid_draws, validate

X = torch.linspace(-2.0, 2.0, 50, dtype=torch.float64)
ANSWER = (X > 0.3).double()


def logistic(x: Tensor, y: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=slope * x), obs=y)


def bound(model: Callable[..., Any], **data: Any) -> Problem:
    return bind(own_model(model), data, None, torch.float64, torch.device("cpu"))


COLUMN = {"x": X[:, None], "y": ANSWER}
ROUTES: dict[str, Callable[[], Any]] = {
    "fixed draws": lambda: er.fit(logistic, COLUMN, "laplace", seed=1),
    "svi": lambda: er.fit(logistic, COLUMN, "mean_field", engine="svi", seed=1, steps=9),
    "check": lambda: er.check(logistic, COLUMN, seed=1),
    "compare": lambda: er.compare(logistic, COLUMN, ["laplace"], seed=1),
    "estimators": lambda: er.estimators(logistic, COLUMN, "mean_field", seed=1),
}


@pytest.mark.parametrize("route", ROUTES)
def test_every_way_to_a_model_sees_a_wrong_shape(route: str) -> None:
    with pytest.raises(ModelError, match=r"site 'y'.*50 times.*x\[:, 0\]"):
        ROUTES[route]()


def test_new_rows_are_seen_too() -> None:
    fit = er.fit(logistic, {"x": X, "y": ANSWER}, "laplace", seed=1, draws=100)
    with pytest.raises(DataError, match=r"row 2 .counted from 1. has 2"):
        fit.score({"x": X[:3], "y": torch.tensor([0.0, 2.0, 1.0])})
    with pytest.raises(ModelError, match=r"x\[:, 0\]"):
        fit.predict({"x": X[:3, None], "y": ANSWER[:3]})
    assert len(fit.predict(pd.DataFrame({"x": [1.0, 2.0]}))) == 2


def test_a_column_of_a_million_rows_is_refused_before_pairs_are_made() -> None:
    x = torch.ones(1_000_000, 1)
    with pytest.raises(ModelError, match="1,000,000 times"):
        bound(logistic, x=x, y=torch.ones(1_000_000))


@pytest.mark.parametrize("row", [0, 16, 49])
def test_the_first_row_outside_of_what_a_transform_is_made_of_is_found(row: int) -> None:
    def model(y: Tensor) -> None:
        shape = pyro.sample("shape", dist.Gamma(2.0, 1.0))
        stretch = dist.transforms.AffineTransform(0.0, 10.0)
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.TransformedDistribution(dist.Beta(shape, 2.0), [stretch]), obs=y)

    y = torch.linspace(1.0, 9.0, 50, dtype=torch.float64)
    y[row:] = torch.where(torch.arange(row, 50) % 3 == row % 3, 11.0, y[row:])
    with pytest.raises(
        DataError,
        match=rf"site 'y': the first value outside the support of its Transformed: row {row + 1} "
        r".counted from 1. has 11\. Give values inside its support",
    ):
        bound(model, y=y)


@pytest.mark.parametrize("inner", [True, False])
def test_what_a_mask_hides_may_be_any_number(inner: bool) -> None:
    def model(y: Tensor, seen: Any) -> None:
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        counts = dist.Poisson(rate)
        outer: Any = torch.tensor(True) if inner else seen
        with pyro.plate("rows", len(y)), poutine.mask(mask=outer):
            pyro.sample("y", counts.mask(seen) if inner else counts, obs=y)

    seen, points = X > -1, torch.randn(4, 1, dtype=torch.float64).numpy()
    values = []
    for hidden in (0.0, -7.5):
        problem = bound(model, y=torch.where(seen, 3.0, hidden), seen=seen)
        assert problem.doubts == ()
        with problem.session(0):
            values.append(density_of(problem).value(points).tolist())
    assert values[0] == pytest.approx(values[1], rel=1e-12)
    with pytest.raises(DataError, match=r"row 20 .counted from 1. has -7"):
        bound(model, y=torch.where(torch.arange(50) == 19, -7.5, 3.0), seen=seen)


class Bare(dist.TorchDistribution):
    """A distribution of a user's, without sampler, constraints or support."""

    def __init__(self, at: Tensor) -> None:
        self.at = at
        super().__init__(at.shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Bare":
        return Bare(self.at.expand(batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        return -(value - self.at).square()


def bare(y: Tensor, seen: Any) -> None:
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)), poutine.mask(mask=seen):
        pyro.sample("y", Bare(level.expand(len(y))), obs=y)


def grey(y: Tensor) -> None:
    """Shares under a Bernoulli that is told to take them, as of grey pixels."""
    share = pyro.sample("share", dist.Beta(1.0, 1.0))
    with pyro.plate("rows", len(y)):
        answers = dist.Bernoulli(share.expand(len(y)), validate_args=False)
        pyro.sample("y", answers.mask(y > 0.2), obs=y)


def pairs(y: Tensor) -> None:
    """Two readings of each row, one dim left of the plate."""
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", y.shape[-1]):
        pyro.sample("y", dist.Normal(level, 1.0).expand(y.shape), obs=y)


def written_out(y: Tensor) -> None:
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    with pyro.plate("copies", 3, dim=-2), pyro.plate("rows", len(y), dim=-1):
        pyro.sample("y", dist.Normal(level, 1.0), obs=y.expand(3, -1))


def not_needed(y: Tensor) -> None:
    """A plate that is sequential, within one of a single row."""
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    with pyro.plate("one", 1):
        for i in pyro.plate("rows", len(y)):
            pyro.sample(f"y_{i}", dist.Normal(level, 1.0), obs=y[i : i + 1])


def missing(y: Tensor, seen: Any) -> None:
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(level, 1.0), obs=y, obs_mask=seen)


def rounded(x: Tensor, y: Tensor) -> None:
    """Its rate is rounded to zero, or infinite, at far draws of its wide priors."""
    slope = pyro.sample("slope", dist.Normal(0.0, 100.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Gamma((100 * slope * x).exp(), 1.0), obs=y)


RIGHT: list[tuple[Callable[..., Any], dict[str, Any]]] = [
    (bare, {"y": X, "seen": X > 0}),
    (grey, {"y": torch.sigmoid(X)}),
    (pairs, {"y": torch.stack([X, X + 1])}),
    (written_out, {"y": X}),
    (not_needed, {"y": X[:3]}),
    (missing, {"y": X, "seen": X > 0}),
    (rounded, {"x": X, "y": X.exp()}),
]


@pytest.mark.parametrize(("model", "data"), RIGHT, ids=[each[0].__name__ for each in RIGHT])
def test_what_is_right_is_let_pass(model: Callable[..., Any], data: dict[str, Any]) -> None:
    assert bound(model, **data).doubts == ()


def test_draws_at_which_a_model_is_not_valid_are_told() -> None:
    def model(y: Tensor) -> None:
        share = pyro.sample("share", dist.Normal(0.5, 1.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Bernoulli(share), obs=y)

    inside, outside = torch.linspace(0.2, 0.8, 100), torch.linspace(0.2, 1.2, 100)
    with isolated(0):
        assert invalid_draws(model, {"y": ANSWER}, {"share": inside}) is None
        said = str(invalid_draws(model, {"y": ANSWER}, {"share": outside}))
    assert "At 1 of 5 posterior draws" in said
    assert "site 'y': the probs of its Bernoulli is 1." in said


def test_a_support_that_some_latents_leave_is_no_error_and_an_empty_one_is() -> None:
    def model(y: Tensor) -> None:
        limit = pyro.sample("limit", dist.HalfNormal(1.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Uniform(0.0, 50 * limit), obs=y)

    with isolated(0):
        assert validate(model, {"y": 90 + X}) == validate(model, {"y": 1000 + X}) == ()
        with pytest.raises(DataError, match=r"row 1 .counted from 1. has -"):
            validate(model, {"y": X})


def test_random_numbers_and_parameters_are_left_as_they_were() -> None:
    def model(y: Tensor) -> None:
        pyro.param("start", torch.randn(()))
        pyro.sample("level", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    with isolated(0):
        before = torch.get_rng_state()
        validate(model, {"y": X})
        assert torch.equal(before, torch.get_rng_state())
        assert not torch.distributions.Distribution._validate_args
    first = bound(model, y=X).space.parameters.initial["start"]
    assert torch.equal(first, bound(model, y=X).space.parameters.initial["start"])


def test_a_model_that_cannot_be_run_says_why() -> None:
    def model(y: Tensor) -> None:
        pyro.sample("level", dist.Normal(0.0, 1.0))
        raise KeyError("no such thing")

    with pytest.raises(ElbowroomError, match="the model cannot be run: KeyError: 'no such thing'"):
        bound(model, y=X)


def test_an_error_of_the_model_names_its_own_line_and_a_matrix_the_edit() -> None:
    def process(x: Tensor) -> None:
        covariance = torch.exp(-0.5 * (x[:, None] - x) ** 2)
        pyro.sample("f", dist.MultivariateNormal(torch.zeros(len(x)), covariance))

    with pytest.raises(ModelError) as refused:
        validate(process, {"x": torch.linspace(0.0, 1.0, 30)})
    text = str(refused.value)
    assert "add a small number to its diagonal: K + 1e-6 * torch.eye(n)" in text
    line = process.__code__.co_firstlineno + 2
    assert f"(line {line} of test_validation.py: pyro.sample(" in text
