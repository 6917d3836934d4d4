"""The demonstration: what comes first, what it says of each coefficient, and how long it takes."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from typer.testing import CliRunner

from elbowroom.assess.verdict import NOT_TRUSTED, TRUSTED, Verdict
from elbowroom.cli import app
from elbowroom.report import demo, terminal
from elbowroom.run import folder as run_folder


def made(level: str, advice: str = "", **intervals: tuple[float, float]) -> Any:
    """A fit with a summary of an intercept and of some coefficients."""
    whole = {"intercept": (-1.0, 1.0)} | {
        f"coefficients[{name}]": each for name, each in intervals.items()
    }
    summary = pd.DataFrame(
        {
            "mean": [0.0] * len(whole), "sd": [upper - lower for lower, upper in whole.values()],
            "eti90_lb": [lower for lower, _ in whole.values()],
            "eti90_ub": [upper for _, upper in whole.values()],
        },
        index=list(whole),
    )  # fmt: skip
    return SimpleNamespace(summary=lambda: summary, verdict=Verdict(level, ("Why.",), advice))


RIGHT = made(TRUSTED, a=(-1.0, 3.0), b=(1.0, 3.0), c=(-4.0, -2.0), d=(-1.0, 1.0))
WRONG = made(NOT_TRUSTED, "do this.", a=(0.5, 1.5), b=(-0.5, 2.5), c=(-3.5, -2.5), d=(-0.5, 0.5))


def test_an_answer_has_changed_where_one_is_sure_of_the_sign_and_the_other_is_not() -> None:
    found: Any = demo.answers(RIGHT, WRONG)
    assert found.index.tolist() == ["a", "b", "c", "d"]
    assert found["changed"].tolist() == [True, True, False, False]
    assert found["sd_ratio"].tolist() == [0.25, 1.5, 0.5, 0.5]
    ends = ["trusted_lower", "trusted_upper", "lower", "upper"]
    assert found.loc["a", ends].tolist() == [-1.0, 3.0, 0.5, 1.5]


def test_the_order_is_a_trusted_fit_then_the_other_then_what_it_changes_then_commands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(demo, "trusted_fit", lambda folder: RIGHT)
    monkeypatch.setattr(demo, "doubtful_fit", lambda folder, progress: WRONG)
    shown = CliRunner().invoke(app, ["demo", "-o", str(tmp_path)])
    assert shown.exit_code == 0
    said = [
        "1. A fit that is trusted", "\ntrusted: Why.", "2. A guide that is not",
        "not trusted: Why.", "next: do this.", "3. What it would have done to the answer",
        "is sure of the sign of a: zero is outside its interval.", f"results: {tmp_path}",
        "Go on with", *demo.COMMANDS,
    ]  # fmt: skip
    places = [shown.output.index(each) for each in said]
    assert places == sorted(places)
    assert shown.output.rstrip().endswith(demo.COMMANDS[-1])
    assert len(demo.COMMANDS) == 3


def test_where_nothing_changes_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.show_answers(demo.answers(RIGHT, RIGHT), "flow")
    assert "flow is sure of no sign that the posterior does not" in capsys.readouterr().out
    several = made(NOT_TRUSTED, a=(0.5, 1.5), b=(1.0, 3.0), c=(-4.0, -2.0), d=(0.2, 0.4))
    terminal.show_answers(demo.answers(RIGHT, several), "flow")
    said = " ".join(capsys.readouterr().out.split())
    assert "flow is sure of the signs of a and d: zero is outside its intervals." in said
    assert "as small as 0.10 of the right ones" in said


@pytest.mark.slow
def test_the_demonstration_shows_what_it_promises_within_a_minute(tmp_path: Path) -> None:
    begun = time.process_time()
    right, wrong = demo.trusted_fit(tmp_path), demo.doubtful_fit(tmp_path)
    spent = time.process_time() - begun
    assert spent < 60.0  # of one core's time, whatever else the machine does
    assert right.verdict.level == TRUSTED
    assert wrong.verdict.level == NOT_TRUSTED
    found = demo.answers(right, wrong)
    assert found.index[found["changed"]].tolist() == ["s2", "s3", "s4"]
    assert found["sd_ratio"].min() < 0.2
    assert {run_folder.load(tmp_path / name).run.origin for name in ("trusted", "doubtful")}
