"""The command line: exit codes, messages, files; and never a traceback for what a user did."""

import contextlib
import errno
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import elbowroom as er
from elbowroom import cli
from elbowroom.errors import ModelError
from elbowroom.pipeline import reference
from elbowroom.report import terminal
from elbowroom.result import Fit
from elbowroom.run import files
from elbowroom.run import folder as run_folder

ROOT = Path(__file__).resolve().parents[1]
QUICK = ["--formula", "progression ~ bmi", "--guide", "laplace", "--seed", "1", "--draws", "200"]


def call(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of `elbowroom ...`, in this process."""
    before = sys.argv
    sys.argv = ["elbowroom", *arguments]
    try:
        cli.main()
        code = 0
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    finally:
        sys.argv = before
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_fit_summary_and_predict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "run")
    code, out, err = call("fit", "bayesian_regression", *QUICK, "--output", run, capsys=capsys)
    assert (code, err) == (0, "")
    assert out.splitlines()[0].split() == [
        "model", "bayesian_regression", "formula=progression", "~", "bmi", "family=normal",
        "link=identity", "priors=weak",
    ]  # fmt: skip
    assert "seed 1" in out
    assert "coefficients[bmi]" in out
    assert f"results: {run}" in out
    code, summary, _ = call("summary", run, capsys=capsys)
    assert code == 0
    assert summary.split("ELBO", 1)[1] in out.replace(f"results: {run}\n\n", "")
    code, table, _ = call("predict", run, "--data", "diabetes", capsys=capsys)
    assert code == 0
    lines = table.splitlines()
    assert lines[0] == "mean,sd,lower,upper,log_density"
    assert len(lines) == 443
    written = tmp_path / "predictions.csv"
    call("predict", run, "--data", "diabetes", "--output", str(written), capsys=capsys)
    assert written.read_text() == table


def test_lists_name_everything(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call("models", capsys=capsys)
    assert code == 0
    assert {"bayesian_regression", "gaussian_mixture", "vae"} <= set(out.split())
    _, out, _ = call("models", "gaussian_mixture", capsys=capsys)
    assert "--covariance-type" in out
    assert "Dirichlet(1, ..., 1)" in out
    assert "collapsed" in out
    _, out, _ = call("guides", "vae", capsys=capsys)
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["encoder", "local", "map"]
    _, out, _ = call("datasets", capsys=capsys)
    assert {line.split()[0] for line in out.splitlines()} >= set(er.dataset_names())


def test_compare_writes_and_ranks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "comparison"
    code, out, err = call(
        "compare", "bayesian_regression", "--formula", "progression ~ bmi", "--guide", "laplace",
        "--guide", "mean_field", "--guide", "map", "--seed", "1", "--steps", "400",
        "--draws", "200", "--output", str(folder), capsys=capsys,
    )  # fmt: skip
    assert code == 0, err
    table = pd.read_csv(folder / "comparison.csv")
    assert table["guide"].iloc[2] == "map"
    assert table["elbo"].iloc[:2].is_monotonic_decreasing
    assert table["best"].tolist() == [True, False, False]
    assert (folder / "comparison.json").exists()
    assert set(pd.read_csv(folder / "differences.csv")["guide"]) == {"laplace", "mean_field", "map"}
    assert er.load(folder / "laplace").converged
    assert "★" in out


@pytest.mark.slow
def test_a_model_without_global_quantities_is_compared_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(
        "compare", "vae", "--epochs", "1", "--hidden", "5", "--draws", "100", "--seed", "1",
        "--output", str(tmp_path / "comparison"), capsys=capsys,
    )  # fmt: skip
    assert code == cli.NOT_TRUSTED, err
    for guide in ("encoder", "local", "map"):
        assert re.search(rf"^{guide} .*!", out, re.M)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["fit", "gausian_mixture"], 2, ["gausian_mixture", "did you mean 'gaussian_mixture'"]),
        (["fit", "vae", "--guide", "encodr"], 2, ["did you mean 'encoder'"]),
        (["fit", "vae", "--batchsize", "9"], 2, ["'--batchsize'; did you mean '--batch-size'?"]),
        (["fit", "vae", "--guide", "collapsed"], 2, ["gaussian_mixture", "encoder, local, map"]),
        (["fit", "vae", "--guide", "full_rank"], 2, ["latents for each row", "encoder"]),
        (["fit", "gaussian_mixture", "--component", "2"], 2, ["'--component'", "'--components'"]),
        (["fit", "gaussian_mixture", "--components", "0"], 2, ["--components"]),
        (["fit", "gaussian_mixture", "--components", "x"], 2, ["--components"]),
        (["fit", "gaussian_mixture", "--components", "151"], 2, ["--components 151", "150 rows"]),
        (["fit", "gaussian_mixture", "--covariance-type", "tied"], 2, ["--covariance-type"]),
        (["fit", "gaussian_mixture", "--columns", "petal_width,petal_width"], 2, ["petal_width"]),
        (["fit", "gaussian_mixture", "--columns", "petal_with"], 1, ["petal_width"]),
        (["fit", "gaussian_mixture", "--columns", "species"], 1, ["species"]),
        (["fit", "gaussian_mixture", "--elbo", "trace_graph"], 2, ["assignments", "trace_enum"]),
        (["fit", "gaussian_mixture", "--elbo", "tracee"], 2, ["'trace'"]),
        (["fit", "vae", "--learning-rate", "-1"], 2, ["--learning-rate"]),
        (["fit", "vae", "--learning-rate", "nan"], 2, ["--learning-rate"]),
        (["fit", "vae", "--steps", "0"], 2, ["--steps"]),
        (["fit", "vae", "--steps", "5", "--epochs", "5"], 2, ["--steps", "--epochs"]),
        (["fit", "vae", "--batch-size", "5000"], 2, ["--batch-size 5000", "1,797 rows"]),
        (["fit", "vae", "--optimizer", "Adm"], 2, ["'Adam'"]),
        (["fit", "vae", "--device", "cuda:9"], 2, ["--device"]),
        (["fit", "vae", "--hidden", "0"], 2, ["--hidden"]),
        (["fit", "vae", "--engine", "mcmc"], 2, ["engine"]),
        (["fit", "vae", "--draws", "3"], 2, ["--draws"]),
        (["fit", "vae", "stray"], 2, ["stray"]),
        (["fit", "vae", "--latent"], 2, ["--latent needs a value"]),
        (["fit", "bayesian_regression", "--data", "iris"], 2, ["--response"]),
        (["fit", "bayesian_regression", "--formula", "progression ~ bmy"], 1, ["bmy"]),
        (["fit", "bayesian_regression", "--formula", "y ~ 1|g"], 2, ["group effects"]),
        (["fit", "bayesian_regression", "--formula", "bmi"], 2, ["response"]),
        (["fit", "bayesian_regression", "--data", "nowhere.csv"], 1, ["nowhere.csv"]),
        (["fit", "nowhere.py:model", "--data", "iris"], 2, ["nowhere.py"]),
        (["compare", "vae", "--guide", "local", "--guide", "local"], 2, ["twice"]),
        (["compare", "vae", "--guide", "local:trac"], 2, ["trace_graph"]),
        (["compare", "vae", "--start", "no.json"], 2, ["--start no.json: it cannot be read as"]),
        (["summary", "nowhere"], 1, ["nowhere", "config.json"]),
        (["models", "vea"], 2, ["'vae'"]),
        (["frobnicate"], 2, ["frobnicate"]),
    ],
)
def test_what_a_user_did_wrong_is_said_plainly(
    arguments: list[str],
    code: int,
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    found, _, err = call(*arguments, capsys=capsys)
    assert found == code, err
    for word in words:
        assert word in err
    assert "Traceback" not in err
    assert not list(tmp_path.glob("runs/*"))


CELLS = {
    "empty": ("", "empty"),
    "header": ("a,b\n", "rows"),
    "one row": ("a,b\n1,2\n", "2 rows"),
    "text": ("a,b\n1,x\n2,y\n3,z\n", "'b'"),
    "missing": ("a,b\n1,2\n2,\n3,4\n", "'b'"),
    "infinite": ("a,b\n1,2\n2,inf\n3,4\n", "'b'"),
    "duplicate": ("a,a\n1,2\n2,3\n3,4\n", "'a'"),
}


@pytest.mark.parametrize("case", sorted(CELLS))
def test_bad_tables_name_the_column(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, word = CELLS[case]
    (tmp_path / "table.csv").write_text(text)
    code, _, err = call(
        "fit", "gaussian_mixture", "--data", str(tmp_path / "table.csv"), "--components", "1",
        capsys=capsys,
    )  # fmt: skip
    assert code == 1
    assert word in err
    assert "Traceback" not in err


def test_a_fit_that_is_not_done_exits_with_3_and_keeps_its_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = call(
        "fit", "bayesian_regression", "--guide", "mean_field", "--steps", "20", "--seed", "1",
        "--draws", "200", "--output", str(tmp_path / "run"), capsys=capsys,
    )  # fmt: skip
    assert code == cli.NOT_TRUSTED
    assert "not trusted" in out
    assert not er.load(tmp_path / "run").converged


def test_results_are_kept_where_the_disk_fills_up_under_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = run_folder.serialised
    full = iter([OSError(errno.ENOSPC, "No space left on device")])

    def once(parameters: Any) -> bytes:
        for error in full:
            raise error
        return real(parameters)

    monkeypatch.setattr(run_folder, "serialised", once)
    target = tmp_path / "run"
    code, _, err = call(
        "fit", "bayesian_regression", *QUICK, "--output", str(target), capsys=capsys
    )  # fmt: skip
    assert code == 1
    assert "disk is full" in err
    spare = Path(str(re.search(r"saved in '(.*)'", err).group(1)))  # type: ignore[union-attr]
    assert er.load(spare).converged
    assert not target.exists()


def test_own_model_from_a_file(
    own: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "schools.py").write_text(
        "import pyro, pyro.distributions as dist\n"
        "def schools(effect, standard_error):\n"
        "    mean = pyro.sample('mean', dist.Normal(0.0, 5.0))\n"
        "    with pyro.plate('school', len(effect)):\n"
        "        pyro.sample('effect', dist.Normal(mean, standard_error), obs=effect)\n"
    )
    model, run = f"{tmp_path / 'schools.py'}:schools", str(tmp_path / "run")
    arguments = ["--data", "eight_schools", "--guide", "laplace", "--seed", "1", "--output", run]
    code, out, err = call("fit", model, *arguments, capsys=capsys)
    assert code == 0, err
    precision = 1 / er.load_dataset("eight_schools")["standard_error"].to_numpy() ** 2
    effects = er.load_dataset("eight_schools")["effect"].to_numpy()
    exact = (precision @ effects) / (precision.sum() + 1 / 25)
    error = 4 * (precision.sum() + 1 / 25) ** -0.5 / np.sqrt(2000)
    found = float(re.search(r"^mean +(\S+)", out, re.M).group(1))  # type: ignore[union-attr]
    assert abs(found - exact) < error + 0.01
    code, _, err = call("predict", run, "--data", "eight_schools", capsys=capsys)
    assert (code, "--model" in err) == (1, True)
    code, out, _ = call(
        "predict", run, "--data", "eight_schools", "--model", model, capsys=capsys
    )  # fmt: skip
    assert code == 0
    assert len(out.splitlines()) == 9


def test_a_name_that_turns_writing_is_written_out(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = str(tmp_path / "a\u202eb.csv")
    code, out, _ = call(
        "predict", str(run), "--data", "diabetes", "--output", written, capsys=capsys
    )  # fmt: skip
    assert code == 0
    assert out.endswith("a\\u202eb.csv\n")


ON_RUNS = sorted(
    each.callback.__name__
    for each in cli.app.registered_commands
    if each.callback and "run" in each.callback.__annotations__
)


def test_every_command_on_a_run_is_found() -> None:
    assert {"summary", "predict", "reference"} < set(ON_RUNS)
    assert len(ON_RUNS) >= 10


@pytest.mark.parametrize("command", ON_RUNS)
def test_every_command_reads_a_large_run_if_it_is_trusted(
    command: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    reached = "the run was read"

    def read(*_: Any, **__: Any) -> None:
        raise ModelError(reached)

    monkeypatch.setattr(files, "LIMITS", replace(files.LIMITS, arrays=1000))
    for verb in (command, "add_reference", "show_run"):
        for module in (Fit, reference, terminal):
            if callable(getattr(module, verb, None)):
                monkeypatch.setattr(module, verb, read)
    given = {
        "predict": ["--data", "diabetes"], "impute": ["--data", "diabetes"],
        "interpolate": ["--from", "1", "--to", "2"],
    }.get(command, [])  # fmt: skip
    folder = shutil.copytree(run, tmp_path / "run")
    code, _, err = call(command, str(folder), *given, capsys=capsys)
    assert (code, "1,000 are allowed; if you trust the run, give --trust" in err) == (1, True), err
    code, _, err = call(command, str(folder), *given, "--trust", capsys=capsys)
    assert (code, reached in err) == (1, True), err


BROKEN = """
import pyro, torch
import pyro.distributions as dist

def model(x, y):
    scale = pyro.sample("scale", dist.HalfNormal(torch.tensor(1.0)))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(1e5 * x, scale), obs=y)
"""


def test_check_says_what_is_wrong_before_anything_is_fitted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call("check", "bayesian_regression", "--seed", "1", capsys=capsys)
    assert (code, err) == (0, "")
    checks = [line.split()[:2] for line in out.splitlines()[1:] if line.strip()]
    names = ("validity", "sites", "supports", "start", "minibatches", "columns")
    assert checks == [[name, "ok"] for name in names]
    (tmp_path / "broken.py").write_text(BROKEN)
    x = np.linspace(0, 1, 20)
    pd.DataFrame({"x": x, "y": 1e6 * x}).to_csv(tmp_path / "t.csv", index=False)
    model = f"{tmp_path / 'broken.py'}:model"
    code, out, err = call("check", model, "--data", str(tmp_path / "t.csv"), capsys=capsys)
    assert code == 0  # warnings
    assert "warning" in out
    assert "standardise the columns" in " ".join(out.split())
    assert not list(tmp_path.glob("run*"))


@pytest.mark.slow
def test_estimators_writes_a_table_and_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "measured"
    arguments = [
        "estimators", "bayesian_regression", "--formula", "progression ~ bmi", "--guide",
        "full_rank", "--steps", "20", "--gradients", "50", "--seed", "1", "--output", str(folder),
    ]  # fmt: skip
    code, out, err = call(*arguments, capsys=capsys)
    assert (code, err) == (0, "")
    assert "sticking_the_landing" in out
    assert len(pd.read_csv(folder / "estimators.csv")) == 30
    assert (folder / "estimators.png").read_bytes().startswith(b"\x89PNG")
    assert pd.read_csv(folder / "evidence.csv")["drawn_from"].tolist() == ["prior", "guide"]
    code, _, err = call(*arguments, capsys=capsys)
    assert code == 1
    assert "--overwrite" in err


def _spawned(children: Any, *arguments: str, folder: Path, **options: Any) -> Any:
    root = Path(er.__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "TERM": "xterm"}
    command = [sys.executable, "-m", "elbowroom.cli", *arguments]
    return children.start(command, cwd=folder, env=environment, **options)


def test_ctrl_c_keeps_what_was_fitted_and_progress_shows_on_a_terminal(
    tmp_path: Path, children: Any
) -> None:
    """A real process on a real terminal, interrupted in the middle of its steps."""
    er.load_dataset("digits").head(200).to_csv(tmp_path / "some.csv", index=False)
    main, worker = pty.openpty()
    process = _spawned(
        children, "fit", "vae", "--data", "some.csv", "--epochs", "1000000", "--draws", "100",
        "--output", "run", "--seed", "1",
        folder=tmp_path, stderr=worker, stdout=subprocess.PIPE,
    )  # fmt: skip
    os.close(worker)
    shown = bytearray()

    def read() -> None:  # to the end, or the process waits for its terminal for ever
        with contextlib.suppress(OSError):
            while chunk := os.read(main, 4096):
                shown.extend(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    children.wait_until(process, lambda: re.search(rb"ELBO -\d", shown))
    process.send_signal(signal.SIGINT)
    out, _ = children.finish(process)
    reader.join()
    os.close(main)
    assert b"rate" in shown
    assert b"steps/s" in shown
    assert process.returncode == cli.NOT_TRUSTED
    assert b"nterrupted after" in out
    run = er.load(tmp_path / "run")
    assert run.trained.status == "interrupted"
    assert len(run.elbo_history) >= 1


def test_the_package_is_run_as_the_command_is(children: Any) -> None:
    found = children.run([sys.executable, "-m", "elbowroom", "datasets"], cwd=ROOT)
    assert found.returncode == 0


def test_a_point_has_no_sd(capsys: pytest.CaptureFixture[str]) -> None:
    summary = pd.DataFrame(
        {"mean": [-300.0, 2.0], "sd": [2e-10, 1e-10], "eti90_lb": [-300.0, 1.0]}, index=["a", "b"]
    )
    terminal.show_summary(summary)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["quantity", "mean", "sd", "5%"], ["a", "-300", "-", "-300"], ["b", "2", "1e-10", "1"],
    ]  # fmt: skip


@pytest.mark.slow  # tests/report/test_terminal.py has no bars in a pipe either
def test_nothing_of_the_progress_is_in_a_pipe(tmp_path: Path, children: Any) -> None:
    process = _spawned(
        children, "fit", "bayesian_regression", *QUICK, "--output", "run",
        folder=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, err = children.finish(process)
    assert process.returncode == 0
    assert err == b""
    assert b"\x1b" not in out


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused_before_the_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path.chmod(0o500)
    code, _, err = call("fit", "vae", "--output", str(tmp_path / "run"), capsys=capsys)
    tmp_path.chmod(0o700)
    assert code == 1
    assert "cannot be written" in err
