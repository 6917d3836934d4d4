"""A run that is stopped at any moment goes on from its folder, which one process at a time has."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import elbowroom as er
from elbowroom.engines.svi.checkpoint import Checkpoints
from elbowroom.errors import ElbowroomError, ModelError, OptionError, RunFolderError
from elbowroom.run.folder import FORMAT, load
from elbowroom.run.output import REQUEST, UNFINISHED
from elbowroom.run.unfinished import Request, read_request, unfinished

TABLE = pd.DataFrame({"x": [1.0, 2.0, np.pi], "group": ["a", "b", "a"]})
ASKED = {
    "model": "m", "registered_model": False, "guide": None, "engine": "svi", "seed": 1,
    "draws": 100, "keep_local": False, "reference": False, "fallback": None,
    "options": {"steps": 3}, "start": {},
}  # fmt: skip


class Stopped(BaseException):
    """What ends a process at once."""


def left_behind(path: Path, **given: Any) -> None:
    """A folder as a process leaves it that is killed when its first checkpoint is written."""

    def kill(step: int, *_: Any) -> None:
        if step == 250:
            raise Stopped

    options = {"guide": "mean_field", "engine": "svi", "seed": 1, "steps": 600, "draws": 200}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "due", property(lambda each: True))
        with pytest.raises(Stopped):
            er.fit("bayesian_regression", checkpoints=path, progress=kill, **{**options, **given})


@pytest.mark.parametrize("data", [TABLE, {"x": torch.arange(3.0), "name": "a", "n": 3, "no": None}])
def test_what_was_asked_comes_back(data: Any, tmp_path: Path) -> None:
    if isinstance(data, pd.DataFrame):
        data.attrs["value_range"] = [0, 16]
    path = tmp_path / "run"
    with unfinished(path, Request(ASKED, data)):
        found = read_request(path)
    assert found.asked == ASKED
    if isinstance(data, pd.DataFrame):
        pd.testing.assert_frame_equal(found.data, data)
        assert found.data.attrs == data.attrs
    else:
        np.testing.assert_array_equal(found.data.pop("x"), data["x"].numpy())
        assert found.data == {"name": "a", "n": 3, "no": None}


def test_two_runs_cannot_write_into_one_folder(tmp_path: Path) -> None:
    path = tmp_path / "run"
    request = Request(ASKED, TABLE)
    with unfinished(path, request):
        for again, overwrite in ((None, False), (request, False), (request, True)):
            with (
                pytest.raises(RunFolderError, match=r"another run is writing to"),
                unfinished(path, again, overwrite),
            ):
                pass
    with unfinished(path, None):  # the first has ended
        pass


def test_a_dead_process_holds_no_lock(tmp_path: Path, children: Any) -> None:
    code = f"""
import pathlib, time
from elbowroom.run.unfinished import Request, unfinished
with unfinished(pathlib.Path({str(tmp_path / "run")!r}), Request({{}}, {{"x": 1}})):
    print("held", flush=True)
    time.sleep(3600)
"""
    root = Path(er.__file__).resolve().parents[1]
    process = children.start(
        [sys.executable, "-c", code], stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(RunFolderError, match="another run"), unfinished(tmp_path / "run", None):
        pass
    process.kill()
    children.finish(process)
    with unfinished(tmp_path / "run", None):
        pass


def test_a_fit_that_cannot_be_leaves_no_folder(tmp_path: Path) -> None:
    def model(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    with pytest.raises(ElbowroomError, match="no guide"):
        er.fit(model, {"y": torch.tensor(1.0)}, "mean_feild", checkpoints=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_there_is_not_taken(tmp_path: Path) -> None:
    left_behind(tmp_path / "run")
    with pytest.raises(RunFolderError, match=r"has not ended; continue it with --resume"):
        er.fit("bayesian_regression", seed=1, checkpoints=tmp_path / "run")
    with pytest.raises(
        RunFolderError, match=r"has not ended; continue it with 'elbowroom fit --resume"
    ):
        er.load(tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "note.txt").touch()
    with pytest.raises(RunFolderError, match="was not written by Elbowroom"):
        er.fit("bayesian_regression", checkpoints=tmp_path / "other", overwrite=True)


def test_a_folder_in_which_a_run_had_barely_begun_is_taken(tmp_path: Path) -> None:
    """Killed before it had written what was asked."""
    inner = tmp_path / "run" / UNFINISHED
    inner.mkdir(parents=True)
    options: Any = {"seed": 1, "steps": 20, "guide": "map"}
    with unfinished(tmp_path / "run", Request(ASKED, TABLE)), pytest.raises(RunFolderError):
        er.fit("bayesian_regression", checkpoints=tmp_path / "run", **options)  # it is locked
    (inner / REQUEST).unlink()  # which it writes last
    fit = er.fit("bayesian_regression", checkpoints=tmp_path / "run", **options)
    fit.save(tmp_path / "run")
    assert er.load(tmp_path / "run").seed == 1
    inner = tmp_path / "other" / UNFINISHED
    inner.mkdir(parents=True)
    (tmp_path / "other" / "thesis.txt").write_text("all of it")
    with pytest.raises(RunFolderError, match="exists"):
        er.fit("bayesian_regression", checkpoints=tmp_path / "other", **options)


def test_results_stay_until_there_are_new_ones(tmp_path: Path) -> None:
    """A run that is to replace another's results, and fails or is killed, leaves them."""
    path = tmp_path / "run"
    old = er.fit("bayesian_regression", guide="laplace", seed=1, draws=200)
    old.save(path)
    before = numbers(path)
    with pytest.raises(ElbowroomError, match="no guide"):
        er.fit("bayesian_regression", None, "laplac", checkpoints=path, overwrite=True)
    assert sorted(each.name for each in path.iterdir()) == sorted(
        ["config.json", "data.parquet", "diagnostics.json", "history.csv", "manifest.json",
         "params.safetensors", "posterior.nc", "run.json"]
    )  # fmt: skip
    left_behind(path, overwrite=True)
    assert numbers(path) == before
    new = er.resume(path)
    new.save(path)
    np.testing.assert_array_equal(er.load(path).elbo_history, new.elbo_history)


def test_a_strangers_folder_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(RunFolderError):
            er.fit(
                "bayesian_regression", guide="laplace", seed=1, checkpoints=tmp_path / "mine",
                overwrite=overwrite,
            )  # fmt: skip
    assert [each.name for each in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_a_resumed_fit_is_the_fit_that_was_not_stopped(tmp_path: Path) -> None:
    options: dict[str, Any] = {"formula": "progression ~ bmi", "batch_size": 50}
    left_behind(tmp_path / "run", **options)
    assert (tmp_path / "run" / UNFINISHED / REQUEST).exists()
    fit = er.resume(tmp_path / "run")
    whole = er.fit(
        "bayesian_regression", guide="mean_field", engine="svi", seed=1, steps=600, draws=200,
        **options,
    )  # fmt: skip
    np.testing.assert_array_equal(fit.elbo_history, whole.elbo_history)
    for name, values in whole.posterior["posterior"].data_vars.items():
        np.testing.assert_array_equal(fit.posterior["posterior"][name], values)
    fit.save(tmp_path / "run")  # in the place of its checkpoints
    np.testing.assert_array_equal(er.load(tmp_path / "run").elbo_history, whole.elbo_history)


def test_a_run_of_default_options_can_go_on(tmp_path: Path) -> None:
    """Whatever is not given has a place in the schema of what was asked, numpy's numbers too."""
    table = pd.DataFrame({"y": np.arange(30.0) % 7, "x": np.arange(30.0)})
    path, rate = tmp_path / "run", np.float32(0.0625)
    options: dict[str, Any] = {"engine": "svi", "guide": "mean_field", "learning_rate": rate}
    er.fit("bayesian_regression", table, response="y", checkpoints=path, steps=40, **options)
    asked = json.loads((path / UNFINISHED / REQUEST).read_text(encoding="utf-8"))
    assert asked["draws"] is None
    assert len(er.resume(path, steps=60).elbo_history) == 60


def test_a_run_at_its_budget_can_be_given_more_steps(tmp_path: Path) -> None:
    path = tmp_path / "run"
    options: dict[str, Any] = {"guide": "mean_field", "engine": "svi", "seed": 1, "draws": 100}
    fit = er.fit("bayesian_regression", checkpoints=path, steps=300, **options)
    assert fit.trained.status == "budget"
    fit.save(path)
    assert er.load(path).trained.status == "budget"  # its results can be read
    longer = er.resume(path, steps=500)
    np.testing.assert_array_equal(longer.elbo_history[:300], fit.elbo_history)
    assert len(longer.elbo_history) == 500
    longer.save(path)


def test_there_must_be_something_to_continue(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="has no unfinished run"):
        er.resume(tmp_path / "none")
    left_behind(tmp_path / "run")
    with pytest.raises(OptionError, match="--seed cannot be changed with --resume"):
        er.resume(tmp_path / "run", seed=3)
    content = (tmp_path / "run" / UNFINISHED / REQUEST).read_text()
    (tmp_path / "run" / UNFINISHED / REQUEST).write_text(
        content.replace(f'"format": {FORMAT}', '"format": 99')
    )
    with pytest.raises(RunFolderError, match="an elbowroom newer than this"):
        er.resume(tmp_path / "run")
    (tmp_path / "run" / UNFINISHED / REQUEST).write_text(content[:50])
    with pytest.raises(RunFolderError, match=r"request\.json' cannot be used"):
        er.resume(tmp_path / "run")


def test_code_in_a_folder_is_not_run(tmp_path: Path) -> None:
    left_behind(tmp_path / "run", formula="progression ~ np.tanh(bmi)")
    with pytest.raises(RunFolderError, match=r"loading .* would run code"):
        er.resume(tmp_path / "run")
    assert er.resume(tmp_path / "run", trust=True).converged in (True, False)


def test_a_users_own_functions_must_be_given_again(tmp_path: Path) -> None:
    def model(y: Tensor) -> None:
        mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    def guide(y: Tensor) -> None:
        pyro.sample("mean", dist.Normal(pyro.param("location", torch.zeros(())), 1.0))

    path = tmp_path / "run"
    er.fit(model, {"y": torch.tensor(1.0)}, guide, seed=1, steps=150, draws=100, checkpoints=path)
    with pytest.raises(ModelError, match=r"your own model 'model'.*elbowroom fit FILE"):
        er.resume(path)
    with pytest.raises(ModelError, match="your own guide"):
        er.resume(path, model)
    assert len(er.resume(path, model, guide).elbo_history) == 150


def spawned(children: Any, *arguments: str, folder: Path) -> Any:
    root = Path(er.__file__).resolve().parents[1]
    code = (
        "import sys; from elbowroom.engines.svi import checkpoint as c; "
        "c.Checkpoints.__init__.__defaults__ = (0.05, None); "
        "from elbowroom.cli import main; sys.argv = ['elbowroom', *sys.argv[1:]]; main()"
    )
    return children.start(
        [sys.executable, "-c", code, *arguments], cwd=folder, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip


COMMAND = (
    "fit", "bayesian_regression", "--engine", "svi", "--guide", "mean_field", "--batch-size", "50",
    "--seed", "1", "--steps", "3000",
)  # fmt: skip
ENDLESS = (*COMMAND[:-1], "100000000", "--schedule", "constant")


def numbers(folder: Path) -> dict[str, bytes]:
    run = load(folder)
    found = {name: value.numpy().tobytes() for name, value in run.parameters.items()}
    return {**found, "history": run.history.to_numpy().tobytes()}


def wait_for_checkpoint(children: Any, process: Any, folder: Path) -> None:
    children.wait_until(process, lambda: list(folder.glob("unfinished/checkpoints/*.safetensors")))


@pytest.mark.slow
def test_processes_killed_at_random_moments_are_resumed_bit_for_bit(
    tmp_path: Path, children: Any
) -> None:
    """As `benchmarks/kills.py`, which does it 200 times."""
    children.finish(spawned(children, *COMMAND, "--output", "whole", folder=tmp_path))
    expected = numbers(tmp_path / "whole")
    chance = random.Random(0)
    for number in range(4):
        name = f"run{number}"
        process = spawned(children, *COMMAND, "--output", name, folder=tmp_path)
        wait_for_checkpoint(children, process, tmp_path / name)
        time.sleep(1.5 * chance.random())
        process.kill()
        children.finish(process)
        if not (tmp_path / name / "config.json").exists():
            process = spawned(children, "fit", "--resume", name, folder=tmp_path)
            out, _ = children.finish(process)
            assert b"results" in out
        assert numbers(tmp_path / name) == expected


@pytest.mark.slow
def test_sigterm_writes_a_checkpoint_and_ends_the_process(tmp_path: Path, children: Any) -> None:
    process = spawned(children, *ENDLESS, "--output", "run", folder=tmp_path)
    wait_for_checkpoint(children, process, tmp_path / "run")
    process.send_signal(signal.SIGTERM)
    out, _ = children.finish(process)
    assert process.returncode == 128 + signal.SIGTERM, out.decode()
    assert b"Traceback" not in out
    process = spawned(children, "fit", "--resume", "run", "--seed", "3", folder=tmp_path)
    out, _ = children.finish(process)
    assert process.returncode == 2
    assert b"--seed cannot be changed with --resume" in out
