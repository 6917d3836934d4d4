"""What a user's model or guide raises is an error with its line; what is no error passes."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.poutine.runtime import NonlocalExit
from torch import Tensor
from torch.distributions import constraints

import elbowroom as er
from elbowroom.engines.svi.compiled import NotCompilableError
from elbowroom.errors import (
    ElbowroomError,
    GuideError,
    ModelError,
    SignalError,
    as_given,
    users_code,
    users_errors,
    users_function,
)
from elbowroom.problem.process import alone
from elbowroom.recording.kernel.lowering import NotLowerableError
from elbowroom.recording.record import NotRecordableError
from elbowroom.recording.replay import BranchError

DATA = {"y": np.array([-0.3, 0.4, 1.1, 0.2, 0.9])}


class OddError(Exception):
    """Of a kind that no library knows."""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (AssertionError(), "it failed: AssertionError (line"),
        (AssertionError("few rows"), "it failed: AssertionError: few rows (line"),
        (OSError(2, "no such file"), "it failed: FileNotFoundError: [Errno 2] no such file (line"),
        (ImportError("no module"), "it failed: ImportError: no module (line"),
        (StopIteration(), "it failed: StopIteration (line"),
        (EOFError(), "it failed: EOFError (line"),
        (NotImplementedError(), "it failed: NotImplementedError (line"),
        (MemoryError(), "it failed: MemoryError (line"),
        (OddError("odd"), "it failed: OddError: odd (line"),
    ],
)
def test_whatever_a_users_code_raises_is_said(error: Exception, said: str) -> None:
    with pytest.raises(GuideError) as found, users_code("it failed", GuideError):
        raise error
    assert str(found.value).startswith(said)
    assert str(found.value).endswith("test_errors.py: raise error)")
    assert found.value.__cause__ is error


SIGNALS: list[type[BaseException]] = [
    BranchError, NotCompilableError, NotLowerableError, NotRecordableError, SignalError,
    NonlocalExit, KeyboardInterrupt, SystemExit, GeneratorExit,
]  # fmt: skip
"""What leaves a running model for another reason than a fault of it."""


@pytest.mark.parametrize("kind", SIGNALS)
def test_what_is_no_error_of_a_users_code_passes(kind: type[BaseException]) -> None:
    signal = kind.__new__(kind)

    def raising() -> None:
        raise signal

    with pytest.raises(kind) as seen, users_code("it failed", ModelError):
        raising()
    assert seen.value is signal
    known = users_function(raising, "it failed", ModelError)
    with pytest.raises(kind) as seen, users_errors():
        known()
    assert seen.value is signal


def test_what_a_users_function_raises_is_itself_until_it_is_said() -> None:
    def model() -> None:
        raise OddError("odd")

    known = users_function(model, "the model cannot be run", ModelError)
    with pytest.raises(OddError):
        known()
    said = r"^the model cannot be run: OddError: odd \(line \d+ of test_errors\.py: raise OddError"
    for block in (users_errors(), users_code("the model cannot be run", ModelError)):
        with pytest.raises(ModelError, match=said), block:
            known()
    with pytest.raises(ModelError, match=said):
        alone(alone(known))()
    with pytest.raises(OddError), users_errors():  # of nobody's model: a fault of our own
        model()


def test_a_users_function_is_handed_back_as_it_was_given() -> None:
    known = users_function(normal, "the guide cannot be run", GuideError)

    @wraps(known)
    def changed(y: Tensor) -> None:
        known(y)

    assert as_given(known) is normal
    assert as_given(changed) is changed
    assert as_given(normal) is normal
    for guide in (normal, AutoNormal(mean_of)):
        fit = er.fit(mean_of, DATA, guide, seed=0, steps=5)
        assert fit.callable is guide
        with fit.active(0) as active:
            assert as_given(active) is guide


class Failing:
    """A model or guide that raises from one of its runs on.

    Attributes:
        runs: Of them so far.
        first: The run that raises.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.runs, self.first = function, 0, 10**9

    def __call__(self, y: Tensor) -> None:
        self.runs += 1
        if self.runs >= self.first:
            raise OddError("odd")
        self.function(y)


def mean_of(y: Tensor) -> None:
    mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def normal(y: Tensor) -> None:
    location = pyro.param("location", torch.zeros(()))
    scale = pyro.param("scale", torch.ones(()), constraint=constraints.positive)
    pyro.sample("mean", dist.Normal(location, scale))


@pytest.mark.parametrize("own", [False, True])
def test_no_run_of_a_fit_lets_an_error_of_the_models_or_guides_through(own: bool) -> None:
    """Among all runs, not at the first alone: at a third of them, from the beginning to draws."""
    failing = Failing(normal if own else mean_of)
    options: Any = {"guide": failing, "steps": 5, "draws": 100} if own else {"guide": "mean_field"}

    def fitted() -> None:
        failing.runs = 0

        def model(y: Tensor) -> None:
            (mean_of if own else failing)(y)

        er.fit(model, DATA, seed=0, **options)

    fitted()
    said = []
    for first in range(1, failing.runs + 1, 3):
        failing.first = first
        try:
            fitted()
        except ElbowroomError as error:
            said.append(str(error))
    assert len(said) >= 5
    assert all("OddError: odd (line" in each for each in said)


def test_so_it_is_for_what_is_asked_of_a_fit() -> None:
    failing = Failing(mean_of)

    def model(y: Tensor) -> None:
        failing(y)

    fit = er.fit(model, DATA, "mean_field", seed=0)
    failing.first = 0
    for verb in (fit.score, fit.predict):
        with pytest.raises(ElbowroomError, match=r"OddError: odd \(line \d+ of test_errors"):
            verb(DATA)


def test_a_model_that_asserts_the_size_of_its_minibatches_is_refused_with_the_line() -> None:
    """Of Pyro's tutorial on tensor shapes: it cannot be run with all rows."""

    def model(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 1.0))
        plate: Any = pyro.plate("rows", len(y), subsample_size=9)
        with plate as rows:
            assert len(rows) == 9
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y[rows])

    with pytest.raises(ModelError, match=r"(?s)plate 'rows'.*AssertionError.*== 9\)"):
        er.fit(model, {"y": np.linspace(-1.0, 1.0, 40)}, seed=0)
