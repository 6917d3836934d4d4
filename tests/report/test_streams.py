"""Standard output and standard error that end no command, whatever they can show or take."""

import errno
import io
import os
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from rich.table import Table

from elbowroom.report import streams
from elbowroom.report.listing import add, table
from elbowroom.report.streams import GONE, Guarded, guarded, legible

TEXT = "σ² ≥ 0.5 ± 0.1 … Übung ★ 数 \udcff e\N{COMBINING ACUTE ACCENT}"


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("utf-8", TEXT.replace("\udcff", "?")),
        ("ascii", "sigma2 >= 0.5 +/- 0.1 ... Ubung * ? ? e"),
        ("latin-1", "sigma² >= 0.5 ± 0.1 ... Übung * ? ? e"),
        ("cp1252", "sigma² >= 0.5 ± 0.1 … Übung * ? ? e"),
        ("cp437", "σ² ≥ 0.5 ± 0.1 ... Übung * ? ? e"),
    ],
)
def test_a_text_is_shown_in_the_signs_that_there_are(encoding: str, shown: str) -> None:
    assert legible(TEXT, encoding) == shown
    legible(TEXT, encoding).encode(encoding)
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding=encoding)
    Guarded(out).write(TEXT)
    out.flush()
    assert raw.getvalue().decode(encoding) == shown
    assert legible("plain\n", encoding) == "plain\n"


def test_every_sign_that_the_package_prints_has_a_plain_form() -> None:
    """In its source, comments and documentation included."""
    root = Path(streams.__file__).resolve().parents[2]
    files = [root / "cli.py", *(f for d in ("elbowroom", "models", "guides", "data")
                                for f in (root / d).rglob("*.py"))]  # fmt: skip
    signs = {sign for file in files for sign in file.read_text(encoding="utf-8")}
    shown = {sign: legible(sign, "ascii") for sign in signs if not sign.isascii()}
    assert len(shown) > 20
    assert {sign for sign, plain in shown.items() if "?" in plain} <= {"数"}  # of an example


class Broken(io.StringIO):
    """A stream that takes a little, and then raises."""

    def __init__(self, error: Exception, takes: int) -> None:
        super().__init__()
        self.error, self.takes = error, takes

    def write(self, text: str) -> int:
        self.takes -= 1
        if self.takes < 0:
            raise self.error
        return super().write(text)

    def flush(self) -> None:
        if self.takes < 0:
            raise self.error


ERRORS = [
    OSError(errno.ENOSPC, "No space left on device"), BrokenPipeError(errno.EPIPE, "Broken pipe"),
    OSError(errno.EIO, "Input/output error"), ValueError("I/O operation on closed file"),
]  # fmt: skip


@pytest.mark.parametrize("takes", [0, 1])
@pytest.mark.parametrize("error", ERRORS, ids=str)
def test_whatever_prints_goes_on_where_nothing_can_be_printed(
    error: Exception, takes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, err = Broken(error, takes), Broken(error, takes)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    made = Table("a", "b")
    with guarded():
        for _ in range(3):
            print("line")
            print("line", file=sys.stderr)
            typer.echo("line")
            typer.echo("line", err=True)
            Console().print(made)
            Console(stderr=True).print(made)
            sys.stdout.writelines(["a", "b"])
        assert not streams.shown()
        gone = getattr(error, "errno", None) in GONE
        assert streams.failure() == (None if gone else getattr(error, "strerror", "") or str(error))
        streams.say("line")
    assert (sys.stdout, sys.stderr) == (out, err)
    assert "line" in out.getvalue() or takes == 0


def test_without_streams_nothing_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with guarded():
        assert (sys.stdout, sys.stderr) == (None, None)
        print("line")
        typer.echo("line", err=True)
        Console(stderr=True).print("line")
        streams.say("line")
        assert not streams.shown()
        assert streams.failure() is None


def test_a_stream_is_otherwise_what_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    with guarded():
        out: Any = sys.stdout
        assert out.isatty() is False
        assert not hasattr(out, "buffer")  # past which bytes of another encoding would go
        assert weakref.ref(out)() is out
        print("a line")
        assert streams.shown()
        streams.say("another")
    assert capsys.readouterr() == ("a line\n", "another\n")


def test_what_a_full_disk_did_not_take_is_not_tried_again_at_the_end() -> None:
    """Python would say so, and end with another exit code."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "w", encoding="utf-8") as stream:
        guard = Guarded(stream)
        guard.write("text")
        guard.flush()
        assert isinstance(guard.failure, BrokenPipeError)
        stream.write("more")
        stream.flush()  # nowhere


def test_a_table_is_laid_out_for_what_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    with guarded():
        made = table("a", "b", right=("a", "b"))
        add(made, "1.00 ± 0.25", "0.5…1")
        add(made, "12.00", "1")
        Console(width=60).print(made)
    lines = raw.getvalue().decode("ascii").splitlines()
    assert [line.rstrip() for line in lines[1:]] == [
        "1.00 +/- 0.25  0.5...1",
        "        12.00        1",
    ]


@pytest.mark.parametrize(
    ("given", "width"),
    [("1", 40), ("0", 80), ("-4", 80), ("2000000000", 1000), ("²", 80), ("9" * 5000, 80),
     ("many", 80), ("120", 120), (None, 80)],
)  # fmt: skip
def test_a_terminal_has_a_width_that_can_be_read(
    given: str | None, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
        if given is not None:
            monkeypatch.setenv(name, given)
    with guarded():
        made = Console(file=io.StringIO(), force_terminal=True)
        assert made.width == width
        assert 10 <= made.height <= 1000
    assert os.environ.get("COLUMNS") == given
