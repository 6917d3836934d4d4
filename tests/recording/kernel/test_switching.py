"""When a recording becomes a kernel, and when it never does."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

import elbowroom.recording.kernel.kernel
import elbowroom.recording.kernel.switching
from elbowroom.recording.kernel.switching import COMPILING, SwitchingReplay
from elbowroom.recording.record import record


def density(u: Tensor) -> Tensor:
    return -(u.exp() - u).sum() * 1.5


def switching() -> tuple[SwitchingReplay, Tensor]:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    replay = record(vmap(grad_and_value(density)), points[:5])
    return SwitchingReplay(replay, points[:2]), points


def calls_until_compiled(found: SwitchingReplay, points: Tensor) -> int:
    for count in range(1, 10_000):
        found(points)
        if found.kernel is not None:
            return count
    raise AssertionError("it is never compiled")


def test_it_is_compiled_after_the_same_calls_each_time() -> None:
    counts = [calls_until_compiled(*switching()) for _ in range(3)]
    assert len(set(counts)) == 1
    found, points = switching()
    operations = len(found.replay.needed(found.replay.results))
    numbers = found.replay.numbers
    price = operations * COMPILING.operation + numbers * COMPILING.number
    assert counts[0] == -(-price // (operations * COMPILING.call + numbers * len(points)))


def test_calls_that_are_sure_to_come_count_as_made() -> None:
    found, points = switching()
    needed = calls_until_compiled(*switching())
    found.expect(needed - 1, len(points))
    assert calls_until_compiled(found, points) == 1
    other, points = switching()
    other.expect(needed - 2, len(points))
    assert calls_until_compiled(other, points) == 2


def test_before_and_after_it_gives_the_same_numbers() -> None:
    found, points = switching()
    before = found(points)
    calls_until_compiled(found, points)
    for one, two in zip(before, found(points), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-14, atol=1e-14)
    (value,) = found(points, outputs=(1,))
    assert torch.equal(value, found(points)[1])


@pytest.mark.parametrize("fault", ["wrong", "infinite", "raises"])
def test_a_kernel_with_other_numbers_is_not_taken(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiled(replay: Any, points: Tensor) -> Any:
        if fault == "raises":
            raise RuntimeError("LLVM says no")
        if fault == "wrong":
            return lambda u: [each * (1 + 1e-7) for each in replay(u)]
        return lambda u: [each * torch.inf for each in replay(u)]

    monkeypatch.setattr(elbowroom.recording.kernel.kernel, "compiled", compiled)
    found, points = switching()
    expected = found(points)
    for _ in range(3000):
        found(points)
    assert found.kernel is None
    assert all(map(torch.equal, found(points), expected))


@pytest.mark.parametrize("limit", ["numbers", "operations"])
def test_a_large_recording_is_replayed(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: Any = {limit: 5}
    monkeypatch.setattr(
        elbowroom.recording.kernel.switching, "COMPILING", replace(COMPILING, **limits)
    )
    found, points = switching()
    for _ in range(3000):
        found(points)
    assert found.kernel is None


def test_without_the_compiler_it_is_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found, points = switching()
    for _ in range(3000):
        found(points)
    assert found.kernel is None
