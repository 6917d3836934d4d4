"""A run that goes on from a checkpoint is, bit for bit, the run that never stopped."""

import errno
import functools
import math
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from elbowroom.engines.settings import Settings
from elbowroom.engines.svi import checkpoint
from elbowroom.engines.svi.checkpoint import KEPT, Checkpoints, packed, unpacked
from elbowroom.engines.svi.compiled import _repeat
from elbowroom.engines.svi.loop import Optimisation, Trained
from elbowroom.guides.space import LatentSpace
from elbowroom.objectives.elbo import make_objective
from elbowroom.options import make_options
from elbowroom.problem.isolation import isolated


class Stopped(BaseException):
    """What ends a run at once, as a signal would."""


class StoppingAt(Checkpoints):
    """Writes a checkpoint at one step; a run that is not resumed ends there."""

    def __init__(self, folder: Path, at: int, resumed: bool = False) -> None:
        super().__init__(folder, math.inf)
        self.at, self.resumed, self.steps = at, resumed, 0

    @property
    def due(self) -> bool:
        self.steps += 1
        return not self.resumed and self.steps == self.at

    def write(self, step: int, state: Any) -> None:
        super().write(step, state)
        if not self.resumed:
            raise Stopped


def regression(x: Tensor, y: Tensor, batch_size: int | None = None) -> None:
    slopes = pyro.sample("slopes", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("rows", len(x), subsample_size=batch_size):
        rows, seen = pyro.subsample(x, event_dim=1), pyro.subsample(y, event_dim=0)
        pyro.sample("y", dist.Normal(rows @ slopes, 1.0), obs=seen)


def regression_guide(x: Tensor, y: Tensor, batch_size: int | None = None) -> None:
    location = pyro.param("location", torch.zeros(2))
    scale = pyro.param("log_scale", torch.zeros(2)).exp()
    pyro.sample("slopes", dist.Normal(location, scale).to_event(1))


def bits(y: Tensor) -> None:
    on = pyro.sample("on", dist.Bernoulli(torch.tensor(0.3)))
    pyro.sample("y", dist.Normal(3 * on, 1.0), obs=y)


def bits_guide(y: Tensor) -> None:
    logit = pyro.param("logit", torch.zeros(()))
    baseline: Any = {"baseline": {"use_decaying_avg_baseline": True}}
    pyro.sample("on", dist.Bernoulli(logits=logit), infer=baseline)


def factor(x: Tensor, batch_size: int | None = None) -> None:
    weights = pyro.param("weights", torch.ones(1, 2))
    with pyro.plate("rows", len(x), subsample_size=batch_size):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        seen = pyro.subsample(x, event_dim=1)
        pyro.sample("x", dist.Normal(z @ weights, 1.0).to_event(1), obs=seen)


def factor_guide(x: Tensor, batch_size: int | None = None) -> None:
    first = pyro.param("first", torch.zeros(2, 1))
    with pyro.plate("rows", len(x), subsample_size=batch_size):
        seen = pyro.subsample(x, event_dim=1)
        pyro.sample("z", dist.Normal(seen @ first, 0.5).to_event(1))


def branching_guide(x: Tensor, y: Tensor, batch_size: int | None = None) -> None:
    regression_guide(x, y, batch_size)
    if torch.rand(()) < 0.3:
        pyro.sample("more", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})


X = torch.linspace(-1, 1, 40, dtype=torch.float64)
ROWS = {"x": torch.stack([X, X.cos()], 1), "y": 2 * X}
CASES: dict[str, tuple[Callable[..., Any], Callable[..., Any], dict[str, Any], str, Any]] = {
    "all rows": (regression, regression_guide, ROWS, "trace", {"steps": 700}),
    "minibatches": (
        regression, regression_guide, ROWS, "trace", {"steps": 700, "batch_size": 7},
    ),
    "cosine SGD": (
        regression, regression_guide, ROWS, "trace",
        {"steps": 500, "schedule": "cosine", "optimizer": "SGD", "learning_rate": 1e-3},
    ),
    "branches": (regression, branching_guide, ROWS, "trace", {"steps": 500}),
    "baselines": (
        bits, bits_guide, {"y": torch.tensor(2.0, dtype=torch.float64)}, "trace_graph",
        {"steps": 500},
    ),
    "compiled": (
        regression, branching_guide, ROWS, "trace", {"steps": 3000, "compile": True},
    ),
    "held-out rows": (
        factor, factor_guide, {"x": ROWS["x"]}, "trace", {"steps": 900, "batch_size": 6},
    ),
}  # fmt: skip


def run(case: str, checkpoints: Checkpoints | None = None) -> tuple[Trained, dict[str, Tensor]]:
    model, guide, arguments, objective, options = CASES[case]
    with isolated(1):
        space = LatentSpace.of(model, arguments)
        found = Optimisation(
            model, guide, arguments, make_objective(objective, 1, space),
            make_options(Settings, options), space.subsampled, space.local_continuous,
        ).run(checkpoints=checkpoints)  # fmt: skip
        return found, {k: v.detach().clone() for k, v in pyro.get_param_store().items()}


whole_run = functools.cache(run)


STOPS = [
    pytest.param(case, at, marks=[pytest.mark.slow] * (i % 3 != j), id=f"{case}-{at}")
    for i, case in enumerate(CASES)
    for j, at in enumerate((1, 23, 431))
]


@pytest.mark.parametrize(("case", "at"), STOPS)
def test_a_run_goes_on_bit_for_bit(
    case: str, at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The loops of compiled steps as they stand: to compile them takes long.
    monkeypatch.setattr("torch.compile", lambda steps, **_: partial(steps, repeat=_repeat))
    at = 1 + at % 29 if case == "compiled" else at
    whole, expected = whole_run(case)
    with pytest.raises(Stopped):
        run(case, StoppingAt(tmp_path, at))
    resumed, found = run(case, StoppingAt(tmp_path, at, resumed=True))
    np.testing.assert_array_equal(resumed.elbo_history, whole.elbo_history)
    np.testing.assert_array_equal(resumed.learning_rates, whole.learning_rates)
    assert resumed.reason == whole.reason
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.equal(value, expected[name])


def test_a_run_that_reached_its_budget_goes_on_with_a_larger_one(tmp_path: Path) -> None:
    model, guide, arguments, objective, options = CASES["minibatches"]
    runs = {}
    for name, steps in (("short", 300), ("no more", 300), ("longer", 700)):
        with isolated(1):
            space = LatentSpace.of(model, arguments)
            chosen = make_options(Settings, {**options, "steps": steps})
            runs[name] = Optimisation(
                model, guide, arguments, make_objective(objective, 1, space), chosen,
                space.subsampled,
            ).run(checkpoints=Checkpoints(tmp_path))  # fmt: skip
    assert [runs[name].status for name in ("short", "no more")] == ["budget", "budget"]
    histories = {name: found.elbo_history for name, found in runs.items()}
    np.testing.assert_array_equal(histories["no more"], histories["short"])
    np.testing.assert_array_equal(histories["longer"][:300], histories["short"])
    assert len(histories["longer"]) == 700


finite = st.floats(allow_nan=False)
leaves = st.none() | st.booleans() | st.integers() | finite | st.text()
nested = st.recursive(
    leaves, lambda each: st.lists(each) | st.dictionaries(st.text() | st.integers(), each)
)


@given(nested)
@settings(max_examples=50)
def test_a_state_comes_back_as_it_was(state: Any) -> None:
    tensor = torch.tensor([1.0, math.nan, -0.0, math.inf])
    found, again = unpacked(packed([state, tensor, tensor[:0], {"t": tensor.int()}, math.nan]))[:2]
    assert found == state
    assert again.numpy().tobytes() == tensor.numpy().tobytes()


def written(folder: Path, steps: int) -> list[Path]:
    checkpoints = Checkpoints(folder)
    assert checkpoints.begin() is None
    for step in range(steps):
        checkpoints.write(step, {"step": step, "values": torch.arange(100.0)})
    return sorted(folder.iterdir())


def latest(folder: Path) -> Any:
    return Checkpoints(folder).begin()


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    assert len(written(tmp_path, 5)) == KEPT
    assert latest(tmp_path)["step"] == 4


@pytest.mark.parametrize("kept", [0, 1, 200, -1])
def test_a_checkpoint_cut_short_is_known_and_the_one_before_it_used(
    tmp_path: Path, kept: int
) -> None:
    last = written(tmp_path, 3)[-1]
    last.write_bytes(last.read_bytes()[:kept])
    assert latest(tmp_path)["step"] == 1


@given(place=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
@settings(max_examples=30)
def test_a_checkpoint_with_one_byte_damaged_is_known(place: float, change: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        last = written(folder, 3)[-1]
        content = bytearray(last.read_bytes())
        content[int(place * len(content))] ^= change
        last.write_bytes(content)
        assert latest(folder)["step"] == 1


def test_what_a_dead_process_left_half_written_is_no_checkpoint(tmp_path: Path) -> None:
    written(tmp_path, 2)
    (tmp_path / ".tmpabc").write_bytes(b"half")
    (tmp_path / "run0-step0000000009-abc.safetensors").write_bytes(b"not by name")
    assert latest(tmp_path)["step"] == 1


def test_without_a_whole_checkpoint_a_run_begins_anew(tmp_path: Path) -> None:
    for path in written(tmp_path, 2):
        path.write_bytes(b"")
    assert latest(tmp_path) is None


def test_a_full_disk_is_said_once_and_leaves_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, 2)
    said: list[str] = []
    checkpoints = Checkpoints(tmp_path, say=said.append)
    assert checkpoints.begin()["step"] == 1

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "atomically", full)
    checkpoints.write(2, {"step": 2})
    checkpoints.write(3, {"step": 3})
    assert said == ["no checkpoint could be written: No space left on device."]
    assert checkpoints.failure == "No space left on device"
    assert latest(tmp_path)["step"] == 1
    monkeypatch.undo()
    checkpoints.write(4, {"step": 4})
    assert checkpoints.failure is None
    assert latest(tmp_path)["step"] == 4


def test_runs_of_one_fit_have_checkpoints_of_their_own(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for number in range(2):
        checkpoints.begin()
        checkpoints.write(10 * number, {"run": number})
    again = Checkpoints(tmp_path)
    assert [again.begin()["run"], again.begin()["run"], again.begin()] == [0, 1, None]


@pytest.fixture
def heard(tmp_path: Path) -> Iterator[Checkpoints]:
    checkpoints = Checkpoints(tmp_path, math.inf)
    with checkpoints.listening():
        yield checkpoints


def test_a_signal_asks_for_a_checkpoint(heard: Checkpoints) -> None:
    heard.begin()
    assert not heard.due
    signal.raise_signal(signal.SIGUSR1)
    assert heard.due
    heard.write(1, {})
    assert not heard.due


@pytest.mark.parametrize(
    ("number", "end"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_signal_that_ends_the_process_waits_for_a_checkpoint(
    heard: Checkpoints, number: signal.Signals, end: type[BaseException]
) -> None:
    heard.begin()
    signal.raise_signal(number)
    with pytest.raises(end):
        heard.write(1, {"step": 1})
    assert latest(heard.folder)["step"] == 1
    signal.raise_signal(number)
    with pytest.raises(end):  # the second does not wait
        signal.raise_signal(number)
    heard.end()
    with pytest.raises(end):  # nor does one while nothing is optimised
        signal.raise_signal(number)


def test_handlers_are_put_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Checkpoints(tmp_path).listening():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
