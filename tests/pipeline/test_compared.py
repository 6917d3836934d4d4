"""What guides of a ladder say of each other, and a place that promises more than the draws hold."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import elbowroom as er
from elbowroom.assess.verdict import Evidence, judge
from elbowroom.density import landscape
from elbowroom.density.modes import Mode
from elbowroom.pipeline import ladder

GOOD = Evidence(True, "converged.", False, False, 0.1, 4000, 3000.0, True)


@dataclass
class Rung:
    """As much of a fit as is compared."""

    measures: dict[str, float]
    evidence: Evidence = GOOD


def rung(log_evidence: float, error: float) -> Any:
    return Rung({"log_evidence": log_evidence, "log_evidence_se": error})


@pytest.mark.parametrize(
    ("more", "errors", "lacking"),
    [
        (1.0, (0.0, 0.0), True),
        (0.019, (0.0, 0.0), False),
        (1.0, (0.4, 0.0), False),
        (1.0, (0.0, 0.4), False),
        (1.0, (0.3, 0.2), False),  # 0.36 together
        (1.0, (0.2, 0.2), True),  # 0.28 together
    ],
)
def test_evidence_is_lacking_beyond_three_standard_errors_of_both(
    more: float, errors: tuple[float, float], lacking: bool
) -> None:
    one, other = rung(-10.0, errors[0]), rung(-10.0 + more, errors[1])
    found = ladder._compared(one, [one, other]).evidence
    assert found.less == pytest.approx((more, np.hypot(*errors)))
    assert found.lacking is lacking
    assert judge(found).trusted is not lacking
    assert not ladder._compared(other, [one, other]).evidence.lacking


def test_of_several_guides_the_surest_gain_counts() -> None:
    """A larger one that may be by chance does not hide it."""
    one = rung(-10.0, 0.0)
    others = [rung(-9.0, 0.01), rung(-8.0, 1.0)]
    found = ladder._compared(one, [one, *others]).evidence
    assert found.less == pytest.approx((1.0, 0.01))
    assert found.lacking


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
    assert fit.evidence.missing == pytest.approx(nats, abs=0.05)
    # What else there is to say of a guide does not count here.
    verdict = judge(replace(GOOD, missing=fit.evidence.missing))
    assert verdict.trusted is trusted
    assert fit.verdict.trusted is trusted
    said = f"hold {nats:.0f} nats less evidence than the best place climbed to"
    assert (said in str(fit.verdict)) is not trusted
