"""The process of whoever calls is as it was, however a call ends, and calls take turns."""

import inspect
import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.poutine import runtime
from torch.distributions import Distribution, constraints

import elbowroom as er
from elbowroom import budget
from elbowroom.comparison import Comparison
from elbowroom.engines.svi.checkpoint import Checkpoints
from elbowroom.engines.svi.compiled import _silent
from elbowroom.errors import ModelError
from elbowroom.problem.isolation import Parameters, isolated
from elbowroom.problem.process import KERNELS, TURN, alone
from elbowroom.result import Fit

PURE = {
    "callable", "converged", "elbo_history", "engine", "guide", "objective", "parameters",
    "problem", "row_latents", "rows_apart", "start", "trained", "verdict", "with_remarks",
}  # fmt: skip
"""What a fit tells of itself without running anything."""
BLOCKS = {"active", "guide_of_rows"}
"""Which keep the process until they are left."""


def process() -> dict[str, Any]:
    """What belongs to the process, so that two of these can be compared."""
    kind, keys, *rest = np.random.get_state()
    store = pyro.get_param_store()
    return {
        "torch's seed": torch.get_rng_state().tolist(),
        "numpy's seed": (kind, np.asarray(keys).tolist(), *rest),
        "Python's seed": random.getstate(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "gradients": torch.is_grad_enabled(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "modes": (
            torch._C._len_torch_function_stack(),
            torch._C._len_torch_dispatch_stack(),
            torch._C._functorch.get_dynamic_layer_stack_depth(),
        ),
        "store": {name: (id(each), each.tolist()) for name, each in store.named_parameters()},
        "unconstrained": [hasattr(each, "unconstrained") for _, each in store.named_parameters()],
        "constraints": {name: str(store._constraints[name]) for name in store},
        "handlers": list(runtime._PYRO_STACK),
        "plates": list(runtime._DIM_ALLOCATOR._stack),
        "enumerated": str(vars(runtime._ENUM_ALLOCATOR)),
        "settings": pyro.settings.get(),
        "validation": Distribution._validate_args,
        "warnings": (id(warnings.filters), list(warnings.filters), warnings.showwarning),
        "logging": (logging.root.level, list(logging.root.handlers), logging.root.manager.disable),
        "numpy's errors": np.geterr(),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "signals": [signal.getsignal(each) for each in signal.valid_signals()],
        "hooks": (sys.excepthook, threading.excepthook, sys.stdout, sys.stderr),
        "matplotlib": dict(dict.items(matplotlib.rcParams)),
        "pandas": pd.describe_option("", _print_desc=False),
        "time": budget.current().deadline,
        "turn": (TURN.before, list(TURN.unfinished)),
    }


@pytest.fixture
def unusual() -> Iterator[None]:
    """A process in which little is as usual."""
    with (
        isolated(11, dtype=torch.float16, validate=True),
        np.errstate(divide="ignore", over="raise"),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "nothing in particular")
        pyro.param("mine", torch.tensor(2.0), constraint=constraints.positive)
        pyro.param("guide.location", torch.ones(2))
        yield


def same(before: dict[str, Any]) -> None:
    after = process()
    assert [name for name in before if before[name] != after[name]] == []


def line(x: torch.Tensor, y: torch.Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


DATA = {"x": torch.linspace(-1, 1, 20), "y": torch.linspace(-2, 1, 20)}


def quick(**options: Any) -> Fit:
    return er.fit(line, DATA, draws=100, seed=3, **options)


def posterior(fit: Fit) -> bytes:
    return bytes(fit.posterior["posterior"]["slope"].to_numpy().tobytes())


WAYS: dict[str, dict[str, Any]] = {
    "fixed_draws": {"guide": "mean_field", "engine": "fixed_draws"},
    "svi": {"guide": "mean_field", "engine": "svi", "steps": 20},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_fit_leaves_the_process_as_it_was(way: str, unusual: None, tmp_path: Path) -> None:
    before = process()
    fit = quick(**WAYS[way])
    same(before)
    fit.predict({"x": DATA["x"]})
    same(before)
    fit.save(tmp_path / "run")
    er.load(tmp_path / "run", model=line).summary()
    same(before)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, SystemExit])
def test_so_does_one_that_fails(way: str, error: type[BaseException], unusual: None) -> None:
    runs = [0]

    def failing(x: torch.Tensor, y: torch.Tensor) -> None:
        runs[0] += 1
        if runs[0] == 15:
            raise error
        line(x, y)

    before = process()
    with pytest.raises((error, ModelError)):
        er.fit(failing, DATA, draws=100, seed=3, **WAYS[way])
    assert runs[0] >= 15
    same(before)


def eventful(parameters: Parameters, checkpoints: Checkpoints) -> None:
    """Enters and leaves all kinds of blocks that a fit enters."""
    with (
        budget.limited(0.0),
        budget.stage("searching"),
        isolated(5, parameters, torch.float32, threads=1),
        checkpoints.listening(),
        _silent(),
        torch.random.fork_rng(devices=[]),
    ):
        torch.rand(3), np.random.rand(3), random.random()
        os.environ["LEFT_BY_A_LIBRARY"] = "1"
        pyro.param("guide.scale", torch.tensor(1.0), constraint=constraints.positive)
        with (
            poutine.trace() as trace,
            pyro.plate("rows", 3),
            isolated(6, validate=True),
            torch.no_grad(),
            np.errstate(all="ignore"),
            pyro.settings.context(cholesky_relative_jitter=1.0),
            warnings.catch_warnings(),
            pyro.get_param_store().scope(),
        ):
            warnings.simplefilter("ignore")
            pyro.sample("z", dist.Normal(0.0, 1.0))
            torch.vmap(lambda u: torch.func.grad(lambda v: v**2)(u))(torch.ones(2))
        assert set(trace.trace.nodes) == {"rows", "z"}


@contextmanager
def interrupted(at: int, counted: list[int]) -> Iterator[None]:
    """Raises KeyboardInterrupt where Python calls a function, or comes back from one in C.

    That is where it is raised by Ctrl-C: `at` tells how many of these places are passed over.
    """

    def seen(frame: Any, event: str, argument: Any) -> None:
        if event in ("call", "c_return") and frame.f_code.co_name not in ("_replace", "restore"):
            counted[0] += 1
            if counted[0] == at:
                sys.setprofile(None)
                raise KeyboardInterrupt

    sys.setprofile(seen)
    try:
        yield
    finally:
        sys.setprofile(None)


# torch's own blocks say so where they are left in the wrong order.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("apart", [43, pytest.param(7, marks=pytest.mark.slow)])
def test_ctrl_c_at_any_place_of_any_block_leaves_the_process_as_it_was(
    apart: int, unusual: None, tmp_path: Path
) -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    state = {"params": {"weight": weight}, "constraints": {"weight": constraints.real}}
    parameters = Parameters(state, {"weight": torch.zeros(2)})
    checkpoints = Checkpoints(tmp_path)
    call = alone(eventful)
    call(parameters, checkpoints)
    before, counted = process(), [0]
    with interrupted(-1, counted):
        call(parameters, checkpoints)
    total = counted[0]
    assert total > 500
    reached = 0
    for at in range(1, total, apart):
        counted[0] = 0
        try:
            with interrupted(at, counted):
                call(parameters, checkpoints)
        except KeyboardInterrupt:
            reached += 1
        same(before)
        assert weight.tolist() == [1.0, 1.0]
    assert reached > 0.9 * total / apart
    call(parameters, checkpoints)
    same(before)


def test_an_empty_folder_of_torchs_does_not_stay(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(KERNELS, raising=False)

    @alone
    def work(name: str) -> None:
        (tmp_path / name).mkdir()
        os.environ[KERNELS] = str(tmp_path / name)

    work("empty")
    assert not list(tmp_path.iterdir())
    assert KERNELS not in os.environ


def test_ctrl_c_within_the_lock_of_logging_leaves_it_to_other_threads() -> None:
    lock: Any = logging._lock  # type: ignore[attr-defined]

    @alone
    def call() -> None:
        lock.acquire()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call()
    assert not lock._is_owned()


def test_ctrl_c_is_no_error_of_the_model(unusual: None) -> None:
    """It may meet a block whose end fails for it."""

    @alone
    def call() -> None:
        try:
            raise KeyboardInterrupt
        finally:
            try:
                raise RuntimeError("the stack is empty")
            except RuntimeError as error:
                raise ModelError("the model cannot be run") from error

    with pytest.raises(KeyboardInterrupt):
        call()


def test_four_threads_get_what_one_gets(unusual: None) -> None:
    before = process()
    wanted = {way: posterior(quick(**options)) for way, options in WAYS.items()}
    found: list[tuple[str, bytes]] = []

    def work(way: str) -> None:
        found.append((way, posterior(quick(**WAYS[way]))))

    threads = [threading.Thread(target=work, args=(way,)) for way in [*WAYS, *WAYS]]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(TURN, "lock", threading.RLock())
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=300)
    assert len(found) == 4
    assert all(bits == wanted[way] for way, bits in found)
    same(before)


def _forked(child: Callable[[], bool], seconds: int = 120) -> bool:
    """What a child that is forked here finds."""
    number = os.fork()
    if number == 0:
        code = 1
        try:
            signal.alarm(seconds)
            code = 0 if child() else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="of systems that fork")
def test_a_child_that_is_forked_in_the_middle_of_anothers_fit_can_fit() -> None:
    wanted = posterior(quick(**WAYS["svi"]))
    before = process()
    begun, end = threading.Event(), threading.Event()

    def wait(*_: Any) -> None:
        begun.set()
        end.wait(60)

    other = threading.Thread(target=lambda: quick(**WAYS["svi"], announce=wait))
    other.start()
    assert begun.wait(60)

    def child() -> bool:
        after = process()
        kept = [name for name in before if before[name] != after[name]]
        return kept == [] and posterior(quick(**WAYS["svi"])) == wanted

    try:
        assert _forked(child)
    finally:
        end.set()
        other.join(60)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="of systems that fork")
def test_a_child_does_not_wait_for_the_threads_of_its_parent(unusual: None) -> None:
    @alone
    def work() -> bool:
        return bool(torch.ones(300_000).exp().sum() > 0)

    torch.set_num_threads(2)
    assert work()
    assert _forked(work, seconds=20)


def test_what_runs_a_model_has_the_process_to_itself() -> None:
    guarded = {alone(lambda: None).__code__}
    functions = [getattr(er, name) for name in ("fit", "check", "estimators", "compare", "load")]
    functions += [er.compare_models, er.priors, er.resume]
    for function in [*functions, Comparison.save]:
        assert function.__code__ in guarded, function
    for name, value in vars(Fit).items():
        public = not name.startswith("_") and name not in PURE | BLOCKS | set(
            inspect.signature(Fit).parameters
        )
        if public and (callable(value) or isinstance(value, property)):
            function = value.fget if isinstance(value, property) else value
            assert function is not None
            assert function.__code__ in guarded, name
        # Its lock and the turn would be taken in either order.
        assert name.startswith("_") or not hasattr(value, "attrname"), name
