"""Every command that writes: refused before any work, and never at the cost of a result."""

import errno
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import elbowroom as er
from elbowroom import api, cli, comparison, loading, model_comparison
from elbowroom.comparison import Comparison
from elbowroom.pipeline import reference
from elbowroom.report import demo, outcomes, pictures
from elbowroom.result import Fit
from elbowroom.run.output import MANIFEST, UNFINISHED, own_files, writing
from elbowroom.run.unfinished import Request, unfinished

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "fit": ("bayesian_regression",), "compare": ("bayesian_regression",),
    "estimators": ("bayesian_regression",), "generate": ("run",), "reconstruct": ("run",),
    "interpolate": ("run", "--from", "1", "--to", "2"), "manifold": ("run",),
    "impute": ("run", "--data", "iris"), "score": ("run",), "embed": ("run",), "demo": (),
    "effects": ("run",), "priors": ("bayesian_regression",), "sensitivity": ("run",),
    "check": ("run",),
    "compare-models": ("run", "other"),
}  # fmt: skip
"""The commands that write a folder, with what else they need."""
MARKERS = {
    "fit": "config.json", "compare": "comparison.json", "estimators": "estimators.csv",
    "generate": "rows.csv", "reconstruct": "rows.csv", "interpolate": "steps.csv",
    "manifold": "grid.csv", "impute": "completed.csv", "score": "scores.csv",
    "embed": "latents.csv", "demo": "config.json", "effects": "effects.csv",
    "priors": "priors.csv", "sensitivity": "sensitivity.csv", "check": "checks.csv",
    "compare-models": "models.csv",
}  # fmt: skip


def call(*arguments: str) -> int:
    before, sys.argv = sys.argv, ["elbowroom", *arguments]
    try:
        cli.main()
    except SystemExit as leaving:
        return int(leaving.code or 0)
    finally:
        sys.argv = before
    raise AssertionError("main leaves by an exit code")


@pytest.fixture(scope="module")
def fit() -> Fit:
    return er.fit(
        "bayesian_regression", guide="laplace", formula="progression ~ bmi", seed=1, draws=100
    )


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Any work is an error."""

    def begun(*_: Any, **__: Any) -> None:
        raise AssertionError("the work has begun")

    monkeypatch.chdir(tmp_path)
    for module, name in (
        (api, "bind_model"), (comparison, "compare"), (api, "estimators"), (loading, "load"),
        (demo, "trusted_fit"), (reference, "add_reference"), (loading, "read_request"),
        (model_comparison, "compare_models"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, begun)


def test_no_command_that_writes_is_forgotten() -> None:
    commands = [each.callback for each in cli.app.registered_commands if each.callback]
    writing_commands = {
        each.__name__.replace("_", "-") for each in commands
        if "output" in each.__annotations__ or each.__name__ == "reference"
    }  # fmt: skip
    assert writing_commands == {*FOLDERS, "predict", "reference"}
    assert set(MARKERS) == set(FOLDERS)


def folder_of_ours(path: Path, marker: str) -> Path:
    with writing(path, False, marker, ()) as folder:
        (folder / marker).write_text("ours")
    return path


@pytest.mark.parametrize("command", FOLDERS)
@pytest.mark.parametrize("case", ["a stranger's", "ours", "changed", "in the way", "a file"])
def test_a_command_is_refused_before_any_work(
    command: str, case: str, no_work: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, marker = tmp_path / "out", MARKERS[command]
    inner = out / "trusted" if command == "demo" else out
    again = [] if command == "demo" else ["--overwrite"]
    if case == "a file":
        out.write_text("mine")
    elif case == "a stranger's":
        inner.mkdir(parents=True)
        (inner / marker).write_text("mine")
    else:
        folder_of_ours(inner, marker)
        if case == "changed":
            (inner / marker).write_text("mine")
        elif case == "in the way":
            name = {"config.json": "history.csv", "estimators.csv": "evidence.csv",
                    "comparison.json": "laplace"}.get(marker, "picture.png")  # fmt: skip
            (inner / name).write_text("mine")
        elif command == "demo":
            return  # has replaced its own at all times
        else:
            again = []
    before = {each: each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()}
    assert call(command, *FOLDERS[command], "--output", str(out), *again) == 1
    assert "error: '" in capsys.readouterr().err
    assert {each: each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()} == before


@pytest.mark.parametrize("name", ["config.json", "run.json", "new/p.csv", "link", "data.parquet"])
def test_predictions_replace_no_file(
    name: str, no_work: None, fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit.save(tmp_path / "run")
    (tmp_path / "run" / "link").symlink_to(tmp_path / "run" / "config.json")
    before = {each: each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()}
    assert call("predict", "run", "--data", "diabetes", "--output", f"run/{name}") == 1
    assert f"error: 'run/{name}' " in capsys.readouterr().err
    assert {each: each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()} == before


def test_a_run_with_a_changed_file_is_neither_replaced_nor_sampled_nor_continued(
    no_work: None, fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = fit.save(tmp_path / "run")
    (path / "config.json").write_text("mine")
    for arguments in (
        ("reference", "run"), ("fit", "bayesian_regression", "--output", "run", "--overwrite"),
    ):  # fmt: skip
        assert call(*arguments) == 1
        assert (
            "config.json' was not written by Elbowroom, or was changed" in capsys.readouterr().err
        )
    assert (path / "config.json").read_text() == "mine"


def test_data_that_would_be_replaced_are_refused(
    no_work: None, fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit.save(tmp_path / "run")
    made_comparison(fit).save(tmp_path / "c")
    for command, folder, file in (
        ("fit", "run", "data.parquet"), ("compare", "c", "comparison.csv"),
        ("compare", "c", "laplace/data.parquet"),
    ):  # fmt: skip
        assert call(
            command, "bayesian_regression", "--data", f"{folder}/{file}", "--output", folder,
            "--overwrite",
        ) == 1  # fmt: skip
        assert f"{file}' is read, and would be replaced" in capsys.readouterr().err


def test_what_is_somebodys_stays_in_a_run_that_is_fitted_and_sampled_again(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fit.save(tmp_path / "run")
    er.load_dataset("diabetes").to_csv(path / "data.csv", index=False)
    (path / "note.txt").write_text("mine")
    (path / "run-scored").mkdir()
    (path / "run-scored" / "scores.csv").write_text("mine")
    arguments = ["--formula", "progression ~ bmi", "--guide", "laplace", "--draws", "100"]
    data = ["--data", f"{path}/data.csv", "--output", str(path), "--overwrite"]
    assert call("fit", "bayesian_regression", *arguments, *data, "--seed", "7") == 0
    assert er.load(path).seed == 7
    monkeypatch.setattr(reference, "add_reference", compared)
    assert call("reference", str(path)) == 0
    theirs = {each.relative_to(path).as_posix() for each in path.rglob("*") if each.is_file()}
    theirs -= {each.relative_to(path).as_posix() for each in own_files(path)}
    assert theirs == {"data.csv", "note.txt", "run-scored/scores.csv"}
    assert (path / "note.txt").read_text() == "mine"
    assert len(pd.read_csv(path / "data.csv")) == 442


def compared(fit: Fit, **_: Any) -> Fit:
    """As if NUTS had been run."""
    numbers = {"mean_shift": [0.0], "sd_ratio": [1.0], "coverage": [0.9], "wasserstein": [0.0]}
    measures = {**fit.diagnostics, "reference": {"quantity": ["x"], **numbers}}
    return replace(fit, measures=measures)


def made_comparison(fit: Fit) -> Comparison:
    row = {
        "guide": "laplace", "best": True, "objective": "★", "elbo": -10.1, "elbo_se": 0.01,
        "log_likelihood": float("nan"), "k_hat": 0.4, "elpd_loo": -9.8, "elpd_loo_se": 1.2,
        "seconds": 1.2, "parameters": 3.0, "converged": True, "verdict": "trusted", "error": "",
    }  # fmt: skip
    return Comparison(pd.DataFrame([row]), pd.DataFrame({"guide": []}), {"laplace": fit}, 1)


ESTIMATORS = pd.DataFrame(
    {"stage": ["s"], "step": 1, "estimator": "e", "signal": 1.0, "cost": 1.0, "noise": 1.0,
     "bias": 1.0, "biased": False, "ms": 1.0, "recorded": True}
)  # fmt: skip
ESTIMATORS.attrs["evidence"] = [
    {"drawn_from": "prior", "draws": 4000, "log_evidence": -12.3, "log_evidence_se": 0.4,
     "effective_draws": 5.6, "wasted": 0.99, "k_hat": 0.8}
]  # fmt: skip


@pytest.fixture
def quick(fit: Fit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The commands' work is done already; what they print and write is theirs."""

    def fitted(*_: Any, report: Callable[[str], None], **__: Any) -> Fit:
        report("a rung ★")
        return fit

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(api, "fit", fitted)
    monkeypatch.setattr(comparison, "compare", lambda *_, **__: made_comparison(fit))
    monkeypatch.setattr(api, "estimators", lambda *_, **__: ESTIMATORS)
    monkeypatch.setattr(loading, "load", lambda *_, **__: fit)


def opened(kind: str) -> Iterator[Any]:
    """A standard output of some kind."""
    if kind == "none":
        yield None
    elif kind == "closed pipe":
        read, write = os.pipe()
        os.close(read)
        with open(write, "w", encoding="utf-8") as stream:
            yield stream
    elif kind == "full":
        with open("/dev/full", "w", encoding="utf-8") as stream:
            yield stream
    else:
        yield io.TextIOWrapper(io.BytesIO(), encoding=kind)


KEPT = {
    "fit": ("fit", "bayesian_regression", "--output", "out"),
    "compare": ("compare", "bayesian_regression", "--output", "out"),
    "estimators": ("estimators", "bayesian_regression", "--output", "out"),
    "score": ("score", "run", "--output", "out"),
    "predict": ("predict", "run", "--data", "diabetes", "--output", "out"),
    "effects": ("effects", "run", "--output", "out"),
    "check": ("check", "run", "--output", "out"),
}
SHOWN = {
    "summary": ("summary", "run"), "models": ("models", "vae"), "objectives": ("objectives",),
    "predict": ("predict", "run", "--data", "diabetes"), "effects": ("effects", "run"),
    "wrong": ("predict", "run", "--data", "x", "--output", "run/ü★\udcff/p.csv"),
}  # fmt: skip


@pytest.mark.parametrize("command", KEPT)
@pytest.mark.parametrize("kind", ["ascii", "latin-1", "cp437", "none", "closed pipe", "full"])
def test_a_result_is_kept_whatever_standard_output_can_show(
    kind: str, command: str, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for stream in opened(kind):
        monkeypatch.setattr(sys, "stdout", stream)
        code = call(*KEPT[command])
        monkeypatch.undo()
    assert (tmp_path / "out").exists()
    err = capsys.readouterr().err
    if kind in ("none", "closed pipe", "full") and command != "predict":
        assert "results: out" in err
    if kind == "full":
        assert code == 1
        assert "standard output could not be written: No space left on device" in err
    else:
        assert code == 0, err
        text = "" if kind in ("none", "closed pipe") else stream.buffer.getvalue().decode(kind)
        assert ("results: out" in text) == (bool(text) and command != "predict")


@pytest.mark.parametrize("command", SHOWN)
@pytest.mark.parametrize("kind", ["ascii", "latin-1", "cp437", "none", "closed pipe", "full"])
def test_what_is_only_shown_ends_in_no_traceback(
    kind: str, command: str, quick: None, fit: Fit, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    fit.save(tmp_path / "run")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for stream in opened(kind):
        monkeypatch.setattr(sys, "stdout", stream)
        code = call(*SHOWN[command])
        monkeypatch.undo()
    err = capsys.readouterr().err
    if command == "wrong":
        assert (code, "error: " in err) == (1, True)
    elif kind == "full":
        assert code == 1
    elif kind == "none" and command == "predict":
        assert (code, "give --output FILE" in err) == (2, True)
    else:
        assert (code, err) == (0, "")
    spares = list(tmp_path.glob("elbowroom-*/predictions.csv"))
    assert len(spares) == (kind == "full" and command == "predict")  # a result, and nowhere else
    assert all(len(pd.read_csv(each)) == 442 for each in spares)


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("command", KEPT)
def test_a_result_is_kept_elsewhere_where_its_folder_cannot_be_written(
    command: str, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """And shown, also where it can be kept nowhere."""
    place, spares, nowhere = tmp_path / "late", tmp_path / "temporary", False
    spares.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(spares))
    for module, name in (
        (api, "fit"), (comparison, "compare"), (api, "estimators"), (loading, "load"),
    ):  # fmt: skip

        def done(*given: Any, real: Any = getattr(module, name), **named: Any) -> Any:  # noqa: B008
            place.rmdir()  # it goes while the command works, and something else comes
            place.touch()
            if nowhere:
                monkeypatch.setattr("tempfile.mkdtemp", full)
            return real(*given, **named)

        monkeypatch.setattr(module, name, done)
    place.mkdir()
    assert call(*KEPT[command][:-1], "late/out") == 1
    out, err = capsys.readouterr()
    (spare,) = spares.glob("elbowroom-*/out")
    assert f"were saved in '{spare}' instead" in err
    nowhere = True
    place.unlink()
    place.mkdir()
    assert call(*KEPT[command][:-1], "late/out") == 1
    again, err = capsys.readouterr()
    assert "could not be saved anywhere else" in err
    assert again == out.replace(f"\nresults: {spare}\n", "")


def test_a_picture_that_cannot_be_drawn_costs_no_numbers(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise ValueError("no such font")

    monkeypatch.setattr(pictures, "picture_of_estimators", failing)
    monkeypatch.setattr(outcomes, "draw_predictions", failing)
    for command in ("estimators", "compare"):
        assert call(*KEPT[command][:-1], command) == 0
        assert "the picture was not drawn: no such font" in capsys.readouterr().err
        names = {each.name for each in (tmp_path / command).iterdir()}
        assert MANIFEST in names
        assert not {"estimators.png", "predictions.png"} & names


def test_predictions_of_a_comparison_are_in_its_list(quick: None, tmp_path: Path) -> None:
    assert call(*KEPT["compare"]) == 0
    listed = json.loads((tmp_path / "out" / MANIFEST).read_text())["files"]
    assert {"comparison.json", "predictions.png", "laplace/config.json"} <= set(listed)
    assert call(*KEPT["compare"], "--overwrite") == 0


def test_what_it_takes_to_go_on_stays_when_a_run_is_sampled(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with unfinished(fit.save(tmp_path / "run"), Request({}, {"x": 1}), overwrite=True):
        pass
    trained = replace(fit.fitted.trained, status="budget")
    ended = replace(fit, fitted=replace(fit.fitted, trained=trained))
    monkeypatch.setattr(loading, "load", lambda *_, **__: ended)
    monkeypatch.setattr(reference, "add_reference", compared)
    call("reference", str(tmp_path / "run"))
    assert (tmp_path / "run" / UNFINISHED / "request.json").is_file()


ODD = {**os.environ, "PYTHONPATH": str(ROOT), "LC_ALL": "C", "PYTHONUTF8": "0",
       "PYTHONCOERCECLOCALE": "0"}  # fmt: skip


def test_commands_of_an_interpreter_without_docstrings_on_a_terminal_of_ascii(
    tmp_path: Path, children: Any
) -> None:
    (tmp_path / "random.py").write_text("raise SystemExit('it was imported')")
    done = children.run(
        [sys.executable, "-P", "-OO", "-m", "elbowroom", "objectives"], cwd=tmp_path, env=ODD,
        capture_output=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    assert "sticking_the_landing" in done.stdout.decode("ascii")


@pytest.mark.parametrize(
    ("line", "code"), [("{} models >&- 2>&- <&-", 0), ("set -o pipefail; {} datasets | true", 0)]
)
def test_a_real_process_without_anywhere_to_print(
    line: str, code: int, tmp_path: Path, children: Any
) -> None:
    command = line.format(f"{sys.executable} -m elbowroom")
    done = children.run(["bash", "-c", command], cwd=tmp_path, env=ODD, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (code, b"", b"")
