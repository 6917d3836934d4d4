"""A function of each draw: recorded, batched, and one by one give the same."""

from typing import Any

import pytest
import torch
from torch import Tensor

from elbowroom.problem import mapping
from elbowroom.problem.mapping import each_tensor, map_draws_recorded

DRAWS = {
    "scale": torch.linspace(0.5, 2.0, 60, dtype=torch.float64),
    "z": torch.linspace(-1.0, 1.0, 180, dtype=torch.float64).reshape(60, 3),
}


def of_one(values: dict[str, Tensor]) -> Any:
    effect = values["scale"] * values["z"]
    densities = torch.distributions.Normal(effect, 1.0, validate_args=False).log_prob(
        torch.ones(3).double()
    )
    return densities.sum(), {
        "effect": effect,
        "sign": effect > 0,
        "same": values["z"][1],
        "fixed": torch.arange(2),
    }


def expected(function: Any) -> Any:
    each = [function({name: value[i] for name, value in DRAWS.items()}) for i in range(60)]
    return each_tensor(lambda *values: torch.stack(values), *each)


def test_a_recorded_function_gives_what_it_gives_draw_by_draw(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mapping, "map_draws", None)  # it is not called
    found = map_draws_recorded(of_one, DRAWS, 8)
    each_tensor(torch.testing.assert_close, found, expected(of_one))


def test_a_function_that_follows_values_is_not_recorded() -> None:
    def branches(values: dict[str, Tensor]) -> Tensor:
        return values["z"] if values["scale"] > 1 else -values["z"]

    assert torch.equal(map_draws_recorded(branches, DRAWS, 8), expected(branches))


def test_random_numbers_are_drawn_anew_for_each_draw() -> None:
    found = map_draws_recorded(lambda values: values["z"] + torch.randn(3), DRAWS, 8)
    noise = found - DRAWS["z"]
    assert len(noise.unique()) == noise.numel()


def test_a_recording_that_gives_other_numbers_is_not_used() -> None:
    """What a model keeps from one run to the next follows how often it has run."""
    calls = [0]

    def counting(values: dict[str, Tensor]) -> Tensor:
        calls[0] += 1
        return values["z"] + min(calls[0] // 3, 1)

    found = map_draws_recorded(counting, DRAWS, 8)
    assert torch.equal(found[8:], DRAWS["z"][8:] + 1)
