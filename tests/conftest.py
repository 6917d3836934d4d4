"""Fits that several tests read, made once; and the processes that tests start."""

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import matplotlib

matplotlib.use("Agg")
with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # arviz announces its 1.0 on import
    import arviz  # noqa: F401
import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import HealthCheck, settings

import elbowroom as er
from elbowroom.result import Fit

ROOT = Path(__file__).resolve().parents[1]
WAIT = 600.0
"""Seconds that a child may take: many times what it needs, since the machine may be busy."""

PRCTL = getattr(ctypes.CDLL(None), "prctl", None)
"""Of Linux; None elsewhere."""
PR_SET_PDEATHSIG = 1
"""Of `prctl`: the signal that a process gets when the one that started it has ended."""

# The same examples in every run, however long they take on a busy machine.
settings.register_profile(
    "elbowroom", deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip
settings.load_profile("elbowroom")


def _prepared() -> None:
    """What a child does before anything else."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # which a background job's children ignore
    if PRCTL is not None:  # it ends with the tests, also where these are killed
        PRCTL(PR_SET_PDEATHSIG, signal.SIGKILL)


class Children:
    """Processes that a test starts, each the first of a group of its own."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[Any]] = []

    def start(self, command: Any, **options: Any) -> subprocess.Popen[Any]:
        """A process as `subprocess.Popen` starts it."""
        process: subprocess.Popen[Any] = subprocess.Popen(
            command, start_new_session=True, preexec_fn=_prepared, **options
        )
        self._started.append(process)
        return process

    def run(self, command: Any, **options: Any) -> subprocess.CompletedProcess[Any]:
        """A process that has come to its end, as of `subprocess.run`."""
        if options.pop("capture_output", False):
            options.update(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process = self.start(command, **options)
        out, err = self.finish(process)
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def finish(self, process: subprocess.Popen[Any]) -> tuple[Any, Any]:
        """What a process has written when it has come to its end."""
        return process.communicate(timeout=WAIT)

    def wait_until(self, process: subprocess.Popen[Any], seen: Callable[[], object]) -> None:
        """Waits until something is seen, or the process has come to its end."""
        limit = time.monotonic() + WAIT
        while not seen() and process.poll() is None:
            assert time.monotonic() < limit, "the process does not do what is waited for"
            time.sleep(0.02)

    def end(self) -> None:
        """Kills each that still runs, with what it has started, and waits for it."""
        for process in self._started:
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()


@pytest.fixture
def children() -> Iterator[Children]:
    """What a test starts processes with; none outlives the test, however that ends."""
    started = Children()
    try:
        yield started
    finally:
        started.end()


def blocks_of(document: Path) -> list[tuple[str, str]]:
    """The fenced blocks of a document that can be run: `bash` or `python`, and the text."""
    text = document.read_text(encoding="utf-8")
    return re.findall(r"```(bash|python)\n(.*?)```", text, flags=re.S)


def run_blocks(
    document: Path, folder: Path, children: Children, ends_with_3: Callable[[str], bool]
) -> int:
    """Runs every `elbowroom` line and every Python block of a document, as printed, in a folder.

    Args:
        document: A Markdown file.
        folder: Where to.
        children: What starts the processes.
        ends_with_3: Whether a command ends with the exit code of a posterior that is not trusted.

    Returns:
        How many there were.
    """
    count = 0
    for language, block in blocks_of(document):
        if language == "python":
            done = _run(children, [sys.executable, "-c", block], folder)
            assert done.returncode == 0, block
            count += 1
            continue
        for line in _commands(block):
            done = _run(children, line, folder)
            assert done.returncode == (3 if ends_with_3(line) else 0), line
            count += 1
    return count


def output_of(language: str, block: str, folder: Path, children: Children) -> str:
    """What a block prints to standard output when it is run in a folder."""
    lines = [[sys.executable, "-c", block]] if language == "python" else _commands(block)
    runs = [_run(children, line, folder, capture_output=True, text=True) for line in lines]
    return "".join(run.stdout for run in runs)


def _commands(block: str) -> list[str]:
    """The `elbowroom` lines of a block, but for the demonstration, which has a test of its own."""
    lines = block.splitlines()
    return [line for line in lines if line.startswith("elbowroom ") and "demo" not in line]


def _run(
    children: Children, line: str | list[str], folder: Path, **options: Any
) -> subprocess.CompletedProcess[Any]:
    """Runs a program, or an `elbowroom` line by the shell, on the code of this checkout."""
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    shell = isinstance(line, str)
    if isinstance(line, str):
        line = line.replace("elbowroom", f"{sys.executable} -m elbowroom.cli", 1)
    return children.run(line, shell=shell, cwd=folder, env=environment, **options)


@pytest.fixture(scope="session")
def documents() -> Any:
    """What runs the blocks of a document, what lists them, and what one prints."""
    return SimpleNamespace(run=run_blocks, blocks=blocks_of, output=output_of)


def schools(effect: torch.Tensor, standard_error: torch.Tensor) -> None:
    """The non-centred eight schools: a user's own model."""
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    spread = pyro.sample("spread", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(effect)):
        offset = pyro.sample("offset", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mean + spread * offset)
        pyro.sample("effect", dist.Normal(theta, standard_error), obs=effect)


@pytest.fixture(scope="session")
def regression() -> Fit:
    return er.fit("bayesian_regression", formula="progression ~ bmi + bp", seed=1, steps=400)


@pytest.fixture(scope="session")
def mixture() -> Fit:
    return er.fit("gaussian_mixture", seed=1, steps=600, restarts=2, draws=200)


@pytest.fixture(scope="session")
def autoencoder() -> Fit:
    digits = er.load_dataset("digits").head(200)
    return er.fit("vae", digits, seed=1, epochs=20, batch_size=50, hidden=(20,), draws=100)


@pytest.fixture(scope="session")
def own() -> Fit:
    data = er.load_dataset("eight_schools")[["effect", "standard_error"]]
    return er.fit(schools, data, guide="full_rank", seed=1, steps=500)


@pytest.fixture(scope="session")
def run(regression: Fit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return regression.save(tmp_path_factory.mktemp("runs") / "regression")
