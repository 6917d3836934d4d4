"""Fits that several tests read, made once."""

import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
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

import elbowroom as er
from elbowroom.result import Fit

ROOT = Path(__file__).resolve().parents[1]


def blocks_of(document: Path) -> list[tuple[str, str]]:
    """The fenced blocks of a document that can be run: `bash` or `python`, and the text."""
    text = document.read_text(encoding="utf-8")
    return re.findall(r"```(bash|python)\n(.*?)```", text, flags=re.S)


def run_blocks(document: Path, folder: Path, ends_with_3: Callable[[str], bool]) -> int:
    """Runs every `elbowroom` line and every Python block of a document, as printed, in a folder.

    Args:
        document: A Markdown file.
        folder: Where to.
        ends_with_3: Whether a command ends with the exit code of a posterior that is not trusted.

    Returns:
        How many there were.
    """
    count = 0
    for language, block in blocks_of(document):
        if language == "python":
            done = _run([sys.executable, "-c", block], folder)
            assert done.returncode == 0, block
            count += 1
            continue
        for line in _commands(block):
            done = _run(line, folder)
            assert done.returncode == (3 if ends_with_3(line) else 0), line
            count += 1
    return count


def output_of(language: str, block: str, folder: Path) -> str:
    """What a block prints to standard output when it is run in a folder."""
    lines = [[sys.executable, "-c", block]] if language == "python" else _commands(block)
    return "".join(_run(line, folder, capture_output=True, text=True).stdout for line in lines)


def _commands(block: str) -> list[str]:
    """The `elbowroom` lines of a block, but for the demonstration, which takes minutes."""
    lines = block.splitlines()
    return [line for line in lines if line.startswith("elbowroom ") and "demo" not in line]


def _run(line: str | list[str], folder: Path, **options: Any) -> subprocess.CompletedProcess[Any]:
    """Runs a program, or an `elbowroom` line by the shell, on the code of this checkout."""
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    shell = isinstance(line, str)
    if isinstance(line, str):
        line = line.replace("elbowroom", f"{sys.executable} -m elbowroom.cli", 1)
    return subprocess.run(line, shell=shell, cwd=folder, env=environment, **options)


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
    return er.fit("gaussian_mixture", seed=1, steps=600, restarts=2, draws=500)


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
