"""Byte flips in every file that a run folder holds: a sentence, or what is there, and nothing else.

The suite takes a few hundred flips. `make fuzz` runs this file for as long as it is told, with
atheris where that is installed (`pip install -e '.[fuzz]'`), which looks for bytes that reach new
lines of the code; otherwise by chance.
"""

import importlib.util
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:  # what is fuzzed must not be imported before it is instrumented
    from elbowroom.result import Fit

NAMES = (
    "config.json", "run.json", "diagnostics.json", "request.json", "history.csv",
    "params.safetensors", "posterior.nc", "data.parquet", "data.npz", "manifest.json",
    "checkpoint",
)  # fmt: skip
"""The files; what reads them is imported later, so that it can be instrumented before."""
FLIPS = 25
"""Of each file in the suite."""
SECONDS = 5.0
"""That one file may take."""


def loaders() -> dict[str, Callable[[Path], Any]]:
    """What reads each file."""
    from elbowroom.run import files, formats, output, schema

    return {
        "config.json": lambda path: files.read_json(path, schema.Config),
        "run.json": lambda path: files.read_json(path, schema.Outcome),
        "diagnostics.json": lambda path: files.read_json(path, schema.Measures),
        "request.json": lambda path: files.read_json(path, schema.Asked),
        "history.csv": formats.read_history,
        "params.safetensors": formats.read_parameters,
        "posterior.nc": formats.read_posterior,
        "data.parquet": formats.read_table,
        "data.npz": formats.read_arrays,
        "manifest.json": lambda path: output.read_manifest(path.parent),
        "checkpoint": checkpoint,
    }


def checkpoint(path: Path) -> Any:
    """The state of the optimiser in a checkpoint, under the name that its content has."""
    import hashlib

    from elbowroom.engines.svi.checkpoint import Checkpoints

    folder = path.with_name("checkpoints")
    folder.mkdir(exist_ok=True)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    named = path.replace(folder / f"run0-step0000000001-{digest}.safetensors")
    try:
        return Checkpoints(folder).latest(0)
    finally:
        named.unlink()


def contents(folder: Path, fit: Any = None) -> dict[str, bytes]:
    """Each file as a run writes it, small."""
    import torch
    import xarray

    import elbowroom as er
    from elbowroom.engines.svi.checkpoint import packed
    from elbowroom.run.folder import save
    from elbowroom.run.unfinished import Request, unfinished

    fit = fit or er.fit("bayesian_regression", formula="progression ~ bmi + bp", seed=1)
    table = fit.problem.data.head(20)
    draws = fit.posterior["posterior"].to_dataset().isel(draw=slice(0, 5))
    run = replace(
        fit._run(), posterior=xarray.DataTree.from_dict({"/posterior": draws}), data=table
    )
    save(run, folder / "run")
    arrays = {"x": np.arange(5.0), "y": np.ones((2, 3), dtype=np.int32), "n": 3}
    save(replace(run, data=arrays), folder / "arrays")
    asked = {
        "model": "m", "registered_model": True, "guide": "g", "engine": "svi", "seed": 1,
        "draws": 9, "keep_local": False, "reference": False, "fallback": None,
        "options": {"formula": "y ~ x", "hidden": [3, 4]}, "start": {"x": [1.0]},
    }  # fmt: skip
    with unfinished(folder / "unfinished", Request(asked, table)) as checkpoints:
        request = checkpoints.with_name("request.json").read_bytes()
    found = {path.name: path.read_bytes() for path in (folder / "run").iterdir()}
    found["data.npz"] = (folder / "arrays" / "data.npz").read_bytes()
    state = {"step": 3, "rates": [0.1, float("inf")], "vector": torch.ones(3)}
    return {**found, "request.json": request, "checkpoint": packed(state)}


def flipped(content: bytes, number: int) -> bytes:
    """Some bytes changed, put in, taken out or doubled; the same for the same number."""
    chance = random.Random(number)
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 4, 16))):
        place = chance.randrange(len(changed) or 1)
        what = chance.randrange(6)
        if what < 3:
            value = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
            changed[place : place + 1] = bytes([value])
        elif what == 3:
            changed[place:place] = chance.randbytes(chance.randrange(1, 9))
        elif what == 4:
            del changed[place : place + chance.choice((1, 8, 64, len(changed)))]
        else:
            changed[place:place] = changed[place : place + chance.randrange(64)]
    return bytes(changed)


def attempt(load: Callable[[Path], Any], path: Path, content: bytes) -> bool:
    """Whether a file with this content is refused; any other exception is a fault."""
    from elbowroom.errors import RunFolderError

    path.write_bytes(content)
    began = time.process_time()
    try:
        load(path)
    except RunFolderError as error:
        message = str(error)
        assert path.name in message, message
        assert len(message) < 2000
        assert not set(message) & {"\x1b", "\x9b", "\u202e"}
        return True
    finally:
        assert time.process_time() - began < SECONDS
    return False


@pytest.fixture(scope="module")
def written(regression: "Fit", tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, bytes]:
    return contents(tmp_path_factory.mktemp("written"), regression)


@pytest.mark.filterwarnings("ignore")  # of numbers that a file cannot mean
@pytest.mark.parametrize("name", NAMES)
def test_flipped_bytes_are_refused_or_harmless(
    name: str, written: Mapping[str, bytes], tmp_path: Path
) -> None:
    load, content, path = loaders()[name], written[name], tmp_path / name
    assert not attempt(load, path, content)
    refused = sum(attempt(load, path, flipped(content, number)) for number in range(FLIPS))
    cut = [content[: len(content) * k // 4] for k in range(4)]
    refused += sum(attempt(load, path, each) for each in cut)
    assert refused > 0 or name == "checkpoint"  # the one before it is used


def fuzz(name: str, seconds: float) -> None:
    """Looks for a fault in one loader: raises at the first; what was tried is left in the file."""
    folder = Path(tempfile.mkdtemp(prefix="elbowroom-fuzz-"))
    guided = importlib.util.find_spec("atheris") is not None
    if guided:
        import atheris

        with atheris.instrument_imports(include=["elbowroom", "h5netcdf"]):
            loaders()
            import elbowroom.engines.svi.checkpoint  # noqa: F401
    load, path = loaders()[name], folder / name
    content = contents(folder)[name]
    if guided:
        seeds = folder / "seeds"
        seeds.mkdir()
        for number in range(100):
            (seeds / str(number)).write_bytes(flipped(content, number) if number else content)
        limit = ["-max_len=200000", f"-max_total_time={int(seconds)}", "-rss_limit_mb=1100"]
        atheris.Setup(
            [sys.argv[0], *limit, "-timeout=30", f"-artifact_prefix={folder}/", str(seeds)],
            lambda tried: attempt(load, path, tried),
        )
        atheris.Fuzz()  # which ends the process
    end, count = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        attempt(load, path, flipped(content, count))
        count += 1
    print(f"{name}: {count:,} tried, nothing found")


if __name__ == "__main__":
    import warnings

    warnings.simplefilter("ignore")
    fuzz(sys.argv[1], float(sys.argv[2]))
