"""What guides of a ladder say of each other, and a place that promises more than the draws hold."""

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import elbowroom as er
from elbowroom.assess.evidence import Evidence, Optimum, Weights
from elbowroom.assess.verdict import found_more, judge
from elbowroom.density import landscape
from elbowroom.density.modes import Mode
from elbowroom.errors import GuideError
from elbowroom.pipeline import ladder

GOOD = Evidence(Optimum(True, "converged."), Weights(0.1, 4000, 3000.0, True))


@dataclass
class Rung:
    """As much of a fit as is compared."""

    measures: dict[str, float]
    guide: SimpleNamespace
    problem: SimpleNamespace
    evidence: Evidence = GOOD


def rung(log_evidence: float, error: float, name: str = "flow", sites: Any = ()) -> Any:
    measures = {"log_evidence": log_evidence, "log_evidence_se": error}
    return Rung(measures, SimpleNamespace(name=name), SimpleNamespace(reparameterised=sites))


@pytest.mark.parametrize(
    ("more", "errors", "more_than_chance"),
    [
        (1.0, (0.0, 0.0), True),
        (0.019, (0.0, 0.0), False),
        (1.0, (0.4, 0.0), False),
        (1.0, (0.0, 0.4), False),
        (1.0, (0.3, 0.2), False),  # 0.36 together
        (1.0, (0.2, 0.2), True),  # 0.28 together
    ],
)
def test_another_guide_found_more_beyond_three_standard_errors_of_both(
    more: float, errors: tuple[float, float], more_than_chance: bool
) -> None:
    one, other = rung(-10.0, errors[0]), rung(-10.0 + more, errors[1])
    found = ladder._compared(one, [one, other]).evidence
    assert found.gaps.other_guide == pytest.approx((more, np.hypot(*errors)))
    assert found_more(found) is more_than_chance
    assert judge(found).trusted is not more_than_chance
    assert not found_more(ladder._compared(other, [one, other]).evidence)


def test_of_several_guides_the_surest_gain_counts() -> None:
    """A larger one that may be by chance does not hide it."""
    one = rung(-10.0, 0.0)
    others = [rung(-9.0, 0.01), rung(-8.0, 1.0)]
    found = ladder._compared(one, [one, *others]).evidence
    assert found.gaps.other_guide == pytest.approx((1.0, 0.01))
    assert found_more(found)


def one_mean(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(torch.zeros((), dtype=y.dtype), 2.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


@pytest.mark.parametrize(("nats", "trusted"), [(4.0, True), (6.0, False)])
def test_a_place_where_a_climb_was_stopped_speaks_against_draws_that_hold_less(
    monkeypatch: pytest.MonkeyPatch, nats: float, trusted: bool
) -> None:
    """It is no mode, and its Laplace evidence is above that of the draws all the same."""
    y = torch.linspace(-1.0, 1.5, 8, dtype=torch.float64)
    exact = dist.MultivariateNormal(torch.zeros(8), torch.eye(8) + 4 * torch.ones(8, 8))
    log_evidence = float(exact.log_prob(y.float()))
    find = landscape.find_modes

    def also_stopped(*given: Any) -> list[Mode]:
        height = log_evidence + nats - 0.5 * np.log(2 * np.pi)
        stopped = Mode(np.array([50.0]), height, np.eye(1), reached=False)
        return [*find(*given), stopped]

    monkeypatch.setattr(landscape, "find_modes", also_stopped)
    fit = er.fit(one_mean, {"y": y}, "full_rank", engine="svi", seed=1)
    assert fit.evidence.modes.missing == pytest.approx(nats, abs=0.05)
    assert fit.verdict.trusted is trusted
    said = f"of the draws is {nats:.0f} nats below Laplace's estimate at the best point"
    assert (said in str(fit.verdict)) is not trusted


def test_of_several_guides_the_one_that_found_most_beyond_chance_counts() -> None:
    one, little = rung(-10.0, 0.0), rung(-9.9, 0.01)
    much = rung(-9.0, 0.01, "full_rank", ("effect",))
    for others in ([little, much], [much, little]):
        found = ladder._compared(one, [one, *others]).evidence
        assert found.gaps.other_guide == (pytest.approx(1.0), pytest.approx(0.01))
        (reason,) = judge(found).reasons
        assert reason.startswith("The guide full_rank (non-centred sites) found a log ")
    (reason,) = judge(ladder._compared(one, [one, little]).evidence).reasons
    assert reason.startswith("The guide flow found a log evidence that is 0.1 nats higher")


def test_an_option_of_one_rung_is_not_read_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any) -> None:
        raise GuideError("no optimum.")

    def model(y: torch.Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    monkeypatch.setattr("elbowroom.engines.fixed_draws.engine.approximate", none)
    monkeypatch.setattr("elbowroom.engines.fixed_draws.engine.by_chains", none)
    monkeypatch.setattr(ladder, "RUNGS", replace(ladder.RUNGS, flow_steps=20))
    found = er.fit(model, {"y": torch.zeros(5)}, seed=1, fixed_draws=64)
    assert (found.guide.name, found.engine) == ("flow", "svi")
    assert "auto: linear_response: no optimum." in found.notes
