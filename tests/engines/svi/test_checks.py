"""Each check before a run is seen to say no, and to say nothing of what is right."""

import re
from collections.abc import Callable
from typing import Any

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from torch import Tensor

import elbowroom as er
from elbowroom import budget
from elbowroom.engines.svi import checks
from elbowroom.engines.svi.checks import CHECKING
from elbowroom.errors import ElbowroomError, GuideError
from elbowroom.guides import get_guide, guides_for

Y = torch.linspace(-1, 1, 60)
DATA = {"y": Y}


def good(y: Tensor, batch_size: int | None = None) -> None:
    mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 1.0))
    scale = pyro.sample("scale", dist.HalfNormal(torch.ones(())))
    with pyro.plate("rows", len(y), subsample_size=batch_size):
        batch = pyro.subsample(y, event_dim=0)
        pyro.sample("y", dist.Normal(mean, scale), obs=batch)


def good_guide(y: Tensor, batch_size: int | None = None) -> None:
    pyro.sample("mean", dist.Normal(pyro.param("mean_", torch.zeros(())), 0.1))
    pyro.sample("scale", dist.LogNormal(pyro.param("scale_", torch.zeros(())), 0.1))


def guide_with(site: str, fn: dist.TorchDistribution) -> Callable[..., Any]:
    """The good guide with another distribution for one site."""

    def guide(y: Tensor, batch_size: int | None = None) -> None:
        if site == "mean":
            pyro.sample("scale", dist.LogNormal(0.0, 0.1))
        else:
            pyro.sample("mean", dist.Normal(0.0, 0.1))
        pyro.sample(site, fn)

    return guide


def levels(model: Any, guide: Any, data: Any = DATA, **options: Any) -> dict[str, str]:
    return {each.check: each.level for each in er.check(model, data, guide, seed=1, **options)}


def text(model: Any, guide: Any, check: str, data: Any = DATA, **options: Any) -> str:
    found = er.check(model, data, guide, seed=1, **options)
    return " ".join(f"{each.level}: {each.text}" for each in found if each.check == check)


def test_nothing_is_said_of_what_is_right() -> None:
    assert set(levels(good, good_guide).values()) == {"ok"}
    assert set(levels(good, "full_rank").values()) == {"ok"}


PAIRS = [
    (model, guide)
    for model in ("bayesian_regression", "gaussian_mixture", "vae")
    for guide in guides_for(model, model == "vae")
    if guide not in ("flow", "laplace", "pathfinder", "low_rank", "linear_response")
]


@pytest.mark.parametrize(("model", "guide"), PAIRS)
def test_nothing_is_said_of_any_model_and_guide_of_ours(model: str, guide: str) -> None:
    data = er.load_dataset("digits").head(100) if model == "vae" else None
    needs = get_guide(guide, model).needs
    options = {} if needs is None else {needs.option: needs.value}
    assert set(levels(model, guide, data, **options).values()) == {"ok"}


def test_sites_that_are_missing_or_extra_are_named() -> None:
    def lacking(y: Tensor, batch_size: int | None = None) -> None:
        pyro.sample("mean", dist.Normal(0.0, 1.0))

    def more(y: Tensor, batch_size: int | None = None) -> None:
        good_guide(y)
        pyro.sample("other", dist.Normal(0.0, 1.0))

    assert re.match(
        r"error: the guide does not sample the model's site 'scale'", text(good, lacking, "sites")
    )
    assert re.match(r"error: .*samples 'other'", text(good, more, "sites"))


def test_a_site_that_cannot_be_reparameterised_is_named() -> None:
    class Rough(dist.Normal):
        has_rsample = False

    found = text(good, guide_with("mean", Rough(torch.zeros(()), 1.0)), "sites")
    assert re.match(r"warning: site 'mean': the guide's distribution cannot be", found)


def test_draws_outside_the_models_support_are_an_error() -> None:
    found = text(good, guide_with("scale", dist.Normal(torch.ones(()), 1.0)), "supports")
    assert re.match(
        r"error: site 'scale': the guide's distribution \(Normal\) gives values outside", found
    )
    assert "LogNormal" in found
    with pytest.raises(
        GuideError, match=r"'scale': the guide's distribution \(Normal\) gives values"
    ):
        er.fit(good, DATA, guide_with("scale", dist.Normal(torch.ones(()), 1.0)), seed=1, steps=9)


def test_a_support_that_the_guide_cannot_reach_is_a_warning_and_a_note() -> None:
    guide = guide_with("mean", dist.HalfNormal(torch.ones(())))
    found = text(good, guide, "supports")
    assert re.match(r"warning: site 'mean': the guide's distribution \(HalfNormal\) cannot", found)

    def fitted(y: Tensor, batch_size: int | None = None) -> None:
        pyro.sample("scale", dist.LogNormal(0.0, 0.1))
        spread = pyro.param("spread", torch.ones(()), constraint=constraints.positive)
        pyro.sample("mean", dist.HalfNormal(spread))

    fit = er.fit(good, DATA, fitted, seed=1, steps=20, draws=100)
    assert any("cannot reach all of the model's support" in note for note in fit.notes)


def test_an_elbo_that_is_not_finite_or_far_away_is_seen_at_the_start() -> None:
    def far(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 1.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=1e4 * y + 1e4)

    def never(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 1.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        pyro.factor("bad", torch.tensor(-torch.inf))

    def guide(y: Tensor) -> None:
        pyro.sample("mean", dist.Normal(pyro.param("m", torch.zeros(())), 0.1))

    assert re.match(r"warning: the ELBO begins at -.*nats per row", text(far, guide, "start"))
    found = er.check(never, DATA, guide, seed=1)
    assert "error" in {each.level for each in found}
    assert any("'bad'" in each.text for each in found)


def outside(y: Tensor, batch_size: int | None = None) -> None:
    """The rows' likelihood lies in the plate, and a penalty of each of them does not."""
    mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 1.0))
    with pyro.plate("rows", len(y), subsample_size=batch_size):
        batch = pyro.subsample(y, event_dim=0)
        pyro.sample("y", dist.Normal(mean, 1.0), obs=batch)
    pyro.factor("penalty", -(batch - mean).abs().sum())


def scaled_twice(y: Tensor, batch_size: int | None = None) -> None:
    mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 1.0))
    by = len(y) / (batch_size or len(y))
    with pyro.plate("rows", len(y), subsample_size=batch_size), poutine.scale(scale=by):
        batch = pyro.subsample(y, event_dim=0)
        pyro.sample("y", dist.Normal(mean, 1.0), obs=batch)


def a_little_off(y: Tensor, batch_size: int | None = None) -> None:
    """A scale that is wrong by a tenth, in minibatches alone."""
    mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 1.0))
    by = 1.0 if batch_size is None else 1.1
    with pyro.plate("rows", len(y), subsample_size=batch_size), poutine.scale(scale=by):
        batch = pyro.subsample(y, event_dim=0)
        pyro.sample("y", dist.Normal(mean, 1.0), obs=batch)


@pytest.mark.parametrize(
    ("model", "site"), [(outside, "penalty"), (scaled_twice, "y"), (a_little_off, "y")]
)
def test_a_wrong_scale_of_minibatches_is_seen_and_its_site_named(
    model: Callable[..., Any], site: str
) -> None:
    def guide(y: Tensor, batch_size: int | None = None) -> None:
        pyro.sample("mean", dist.Normal(pyro.param("m", torch.zeros(())), 0.1))

    found = text(model, guide, "minibatches", batch_size=6)
    assert re.match(rf"error: .*site '{site}': ", found)
    assert "subsample_size=batch_size" in found
    with pytest.raises(ElbowroomError, match=f"the model's site '{site}'"):
        er.fit(model, DATA, guide, seed=1, steps=10, batch_size=6)


@pytest.mark.parametrize("seed", range(4))
def test_a_row_that_outweighs_all_others_is_no_error(seed: int) -> None:
    """Minibatches that miss it have another mean, and the model is right all the same."""
    y = torch.zeros(500)
    y[3] = 1000.0
    found = er.check(good, {"y": y}, good_guide, seed=seed, batch_size=10)
    assert "error" not in {each.level for each in found}


def test_minibatches_that_no_plate_takes_are_seen() -> None:
    def model(y: Tensor, batch_size: int | None = None) -> None:
        mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 1.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    found = text(model, "mean_field", "minibatches")
    assert re.match(r"warning: the model takes batch_size, but no plate", found)


def test_columns_of_other_scales_and_constant_ones_are_named() -> None:
    def model(x: Tensor, z: Tensor, c: Tensor, y: Tensor) -> None:
        slopes = pyro.sample("slopes", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(torch.stack([x, z, c], -1) @ slopes, 1.0), obs=y)

    columns = {"x": Y, "z": 1e6 * Y.cos(), "c": torch.ones(60), "y": Y}
    table = pd.DataFrame({name: values.numpy() for name, values in columns.items()})
    found = text(model, "mean_field", "columns", table)
    assert "column 'c' is constant" in found
    assert re.search(r"column 'x' has a standard deviation of 0.\d+ and column 'z' one of", found)
    assert (
        levels(model, "mean_field", table.assign(z=Y.cos().numpy(), c=-Y.numpy()))["columns"]
        == "ok"
    )


def test_minibatches_that_seem_to_differ_are_run_more_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ten pairs of runs where nothing differs, forty where something may."""
    runs: list[int] = []
    terms = checks._terms

    def counted(subject: Any, seed: int, *given: Any) -> Any:
        runs.append(seed)
        return terms(subject, seed, *given)

    monkeypatch.setattr(checks, "_terms", counted)
    assert levels(good, good_guide)["minibatches"] == "ok"
    assert len(runs) == 2 * checks.CHECKING.few_runs
    runs.clear()

    def outside(y: Tensor, batch_size: int | None = None) -> None:
        good(y, batch_size)
        rows = y if batch_size is None else y[:batch_size]
        pyro.factor("penalty", -rows.square().sum())

    assert "penalty" in text(outside, good_guide, "minibatches")
    assert len(runs) == 2 * checks.CHECKING.runs


@pytest.mark.parametrize(("errors", "differs"), [(4.9, False), (5.1, True)])
def test_minibatches_differ_from_all_rows_by_more_than_five_standard_errors(
    errors: float, differs: bool
) -> None:
    noise = torch.randn(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    standard_error = float(noise.std()) / 40**0.5
    gaps = noise - noise.mean() + errors * standard_error

    def runs(values: Tensor) -> list[dict[str, checks._Term]]:
        return [{"y": checks._Term(float(value), True, 1.0)} for value in values]

    # Of a term near zero, of which a hundredth of a per cent of one nat does not count.
    found = checks._differs(runs(gaps), runs(torch.zeros(40)), "y", checks.CHECKING.errors)
    assert found is differs


def test_runs_of_a_check_take_a_share_of_the_time_but_some_are_made() -> None:
    for seconds, least, expected in ((0.0, 1, 1), (0.0, 10, 10), (1e6, 1, CHECKING.runs)):
        with budget.limited(seconds):
            assert len(list(checks._runs(least))) == expected
