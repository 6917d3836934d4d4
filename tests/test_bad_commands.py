"""Bad commands, made from the declarations: each is refused with its range before data are read.

An option that is added without a range, or that a command does not check, fails here.
"""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from inspect import Parameter, signature
from io import StringIO
from math import inf, nan
from pathlib import Path
from typing import Any, Literal, get_origin
from unittest.mock import Mock

import pytest
import typer

import elbowroom as er
from elbowroom import cli, commands, comparison
from elbowroom.commands import COMMANDS
from elbowroom.engines.options import ENGINES, NumberOptions
from elbowroom.engines.settings import setting_kinds
from elbowroom.errors import DataError, OptionError
from elbowroom.models import get_model, model_summaries
from elbowroom.objectives import get_objective, objectives
from elbowroom.options import Option, _parts, declared, make_options
from elbowroom.pipeline import fitting
from elbowroom.pipeline.reference import add_reference
from elbowroom.result import Fit
from elbowroom.run import folder

BASES: dict[str, list[str]] = {
    "fit": ["bayesian_regression"],
    "compare": ["bayesian_regression"],
    "check": ["bayesian_regression"],
    "estimators": ["bayesian_regression"],
    "predict": ["run", "--data", "diabetes"],
    "interpolate": ["run", "--from", "1", "--to", "2"],
    "impute": ["run", "--data", "iris"],
    "models": [],
    "guides": [],
}
"""What a command needs beside the option that is tried; a run, where it is not said."""
TITLE = "\x1b]0;"
"""Sets the title of a terminal, which no output of ours does."""
TEXTS = ("", "x" * 5000, "a\nb", "\u202eabc", f"{TITLE}owned\x07", "a\0b")
"""No name, no path and no address."""
TREE = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
KINDS = {
    *COMMANDS.values(), *setting_kinds(), commands.ElboOptions,
    *(kind for name in model_summaries() if (kind := get_model(name).options) is not None),
}  # fmt: skip
"""Every dataclass of options."""


class Reached(BaseException):
    """Raised where data or a run would be read."""


@pytest.fixture(scope="module", autouse=True)
def unread(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Reading anything ends a command at once: what is out of range must not come so far."""

    def reached(*given: Any, **named: Any) -> Any:
        raise Reached

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("here"))
        for room, name in (
            (fitting, "bind"), (comparison, "read_table"), (cli, "_loaded"), (folder, "load"),
        ):  # fmt: skip
            patch.setattr(room, name, reached)
        yield


class Terminal(StringIO):
    """What a command writes to, which takes it as it is: from a file, escape codes are removed."""

    def isatty(self) -> bool:
        return True


def called(*arguments: str) -> tuple[int | str, str, str]:
    """Exit code, "reached" where data would be read, and what is written."""
    out, err = Terminal(), Terminal()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["elbowroom", *arguments])
        try:
            cli.main()
            code: int | str = 0
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        except Reached:
            code = "reached"
    plain = [re.sub(r"\x1b\[[\d;?]*\w", "", each.getvalue()) for each in (out, err)]  # colours
    return code, plain[0], plain[1]


def outside(option: Option) -> list[Any]:
    """Numbers that an option does not take; none for an option of text."""
    kind, limits = _parts(option.kind)
    if get_origin(kind) is tuple:
        kind, limits = _parts(kind.__args__[0])
    assert kind in (int, float, bool, str) or get_origin(kind) is Literal, option.flag
    if kind not in (int, float):
        return []
    assert limits.range, f"{option.flag} has no range in its declaration"
    step = 1 if kind is int else 1e-9
    least, most = limits.ge or 0.0, limits.le or 0.0
    low = limits.gt if limits.gt is not None else least - abs(least or 1) * step
    high = limits.lt if limits.lt is not None else most + abs(most or 1) * step
    if kind is int:
        low, high = int(low), int(high)
    return [low, high, nan, inf, -inf, 10**5000, "", "abc", "1e400", "nan"]


def every_option() -> list[tuple[type, Option]]:
    found = [(kind, option) for kind in KINDS for option in declared(kind)]
    return sorted(found, key=lambda each: (each[0].__module__, each[0].__name__, each[1].name))


def command_of(command: str, *arguments: str) -> list[str]:
    return [command, *BASES.get(command, ["run"]), *arguments]


@pytest.mark.parametrize(
    ("kind", "option"), every_option(), ids=lambda each: getattr(each, "flag", each.__module__)
)
def test_every_option_refuses_what_is_outside_of_its_range(kind: type, option: Option) -> None:
    """In Python, too, by the same declaration; the message has the option and what it takes."""
    needed = {"begin": 1, "end": 1} if kind is commands.InterpolateOptions else {}
    for value in outside(option):
        with pytest.raises(OptionError) as caught:
            make_options(kind, {**needed, option.name: value})
        assert option.flag in str(caught.value)
        assert option.range in str(caught.value)
        assert len(str(caught.value)) < 300
    plain = _parts(option.kind)[0]
    if plain is str:
        for value in ("", "x" * 20_000, 3.5, b"\xff"):
            with pytest.raises(OptionError, match=option.flag):
                make_options(kind, {**needed, option.name: value})


def numeric() -> list[tuple[str, Option]]:
    """Each option of numbers with a command that reads it; those of engines once, with 'fit'."""
    engines = [o for kind in (*ENGINES.values(), NumberOptions) for o in declared(kind)]
    own = [(name, o) for name, kind in COMMANDS.items() for o in declared(kind)]
    found = {(name, o.name): (name, o) for name, o in [*own, *(("fit", o) for o in engines)]}
    return [each for each in found.values() if outside(each[1])]


@pytest.mark.parametrize(
    ("command", "option"), numeric(), ids=lambda each: getattr(each, "flag", each)
)
def test_a_command_refuses_numbers_before_it_reads_anything(command: str, option: Option) -> None:
    low, high, *_ = outside(option)
    for value in (str(low), str(high), "nan", "", "1e400", f"{TITLE}owned\x07"):
        code, out, err = called(*command_of(command, f"{option.flag}={value}"))
        assert (code, out) == (2, ""), (option.flag, value, err)
        assert option.flag in err
        assert TITLE not in err


@pytest.mark.parametrize("model", model_summaries())
def test_a_model_refuses_numbers_before_its_data_are_read(model: str) -> None:
    for option in declared(get_model(model).options):
        for value in outside(option)[:3]:
            code, out, err = called("fit", model, f"{option.flag}={value}")
            assert (code, out) == (2, ""), (option.flag, value)
            assert option.range in err


@pytest.mark.parametrize("objective", objectives())
def test_an_objective_refuses_numbers_before_data_are_read(objective: str) -> None:
    for option in declared(get_objective(objective).options_kind):
        for value in outside(option)[:3]:
            code, _, err = called("fit", "vae", "--particles=2", f"{option.flag}={value}")
            assert code == 2, (option.flag, value)
            assert option.range in err


def texts() -> list[tuple[str, list[str]]]:
    """Every option and argument of text of every command, with nonsense in its place."""
    found = []
    for name, command in TREE.items():
        for given in command.params:
            if given.param_type_name == "argument":
                found += [(name, [name, text]) for text in TEXTS]
            elif "str" in str(given.type_descriptor.annotation) and given.name not in cli.SETTINGS:
                flag = given.opts[0]
                found += [(name, command_of(name, f"{flag}={text}")) for text in TEXTS]
    for option in cli.SETTINGS:
        flag = f"--{option.replace('_', '-')}"
        if cli.SETTINGS[option].annotation.__args__[0] == str | None:
            found += [("fit", command_of("fit", f"{flag}={text}")) for text in TEXTS]
    return found


@pytest.mark.parametrize("name", sorted(TREE))
def test_nonsense_in_place_of_a_name_or_a_path_is_said_plainly(name: str) -> None:
    """Some is looked at where it is used, by the tests of data and runs."""
    for command, arguments in texts():
        if command == name:
            code, out, err = called(*arguments)
            assert code in (1, 2, "reached"), (arguments, code)
            assert err or code == "reached", arguments
            assert TITLE not in out + err
            assert "Traceback" not in err
            assert len(err) < 20_000


@pytest.mark.parametrize("command", ["fit", "compare", "check", "estimators"])
def test_arguments_of_python_s_functions_are_no_options(command: str) -> None:
    names = {
        "model", "progress", "announce", "report", "checkpoints", "options", "guides", "self",
        "given", "of-objectives", "settings", "context", "asked", "registered-model", "kwargs",
    }  # fmt: skip
    names -= {
        option[2:]
        for given in TREE[command].params
        for option in given.opts
        if option.startswith("--")
    }
    assert "progress" in names
    assert "model" in names or command == "check"  # of a run's own model
    for name in names:
        code, out, err = called(*command_of(command, f"--{name}", "x"))
        assert (code, out) == (2, ""), name
        assert f"there is no option '--{name}'" in err


def test_a_message_hands_no_escape_codes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever raises it: a name from a file may have some."""

    def raising(**given: Any) -> None:
        raise DataError(f"column '{TITLE}owned\x07' of\nthe file")

    monkeypatch.setattr(cli, "app", raising)
    code, _, err = called("datasets")
    assert code == 1
    assert err == "error: column '\\x1b]0;owned\\x07' of\nthe file\n"


def test_what_runs_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for raised, said in (
        (MemoryError(), "the memory is used up"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), "is used up"),
        (OSError(28, "No space left on device", "a.csv"), "a.csv: No space left on device"),
    ):
        monkeypatch.setattr(cli, "app", Mock(side_effect=raised))
        code, out, err = called("datasets")
        assert (code, out) == (1, "")
        assert said in err
    monkeypatch.setattr(cli, "app", Mock(side_effect=RuntimeError("a fault of ours")))
    with pytest.raises(RuntimeError):
        called("datasets")


def test_there_are_more_than_two_hundred_bad_commands() -> None:
    assert 5 * len(numeric()) + len(texts()) > 300


def test_commands_that_fit_share_the_options_of_engines() -> None:
    for command in ("fit", "compare", "check", "estimators"):
        assert set(cli.SETTINGS) <= {given.name for given in TREE[command].params}
    for command, kind in COMMANDS.items():
        flags = {option for given in TREE[command].params for option in given.opts}
        assert {option.flag for option in declared(kind)} <= flags


def test_python_has_the_defaults_of_the_declarations() -> None:
    functions: dict[str, Any] = {  # 'check' is declared as that of a model
        **{name: getattr(Fit, name) for name in COMMANDS if hasattr(Fit, name)},
        "fit": er.fit, "compare": er.compare, "check": er.check, "estimators": er.estimators,
        "compare-models": er.compare_models,
    }  # fmt: skip
    for name, function in functions.items():
        arguments = signature(function).parameters
        for option in declared(COMMANDS[name]):
            if option.name == "count":  # a call without it makes one row
                continue
            default = arguments[option.name].default
            assert (None if default is Parameter.empty else default) == option.default


def test_in_python_the_same_is_refused_before_data_are_read() -> None:
    regression: dict[str, Any] = {"formula": "progression ~ bmi"}
    for wrong, said in (
        ({"draws": -1}, "--draws -1: give a whole number from 100 to 1,000,000"),
        ({"draws": 10**12}, "--draws"),
        ({"draws": "many"}, "--draws many"),
        ({"seed": 2**64}, "--seed 18446744073709551616: give a whole number from 0 to 4,294"),
        ({"time": -3.0}, "--time -3.0: give a number above 0"),
        ({"engine": "svj"}, "there is no engine 'svj'; did you mean 'svi'?"),
    ):
        with pytest.raises(OptionError, match=said):
            er.fit("bayesian_regression", "nowhere.csv", **regression, **wrong)
        with pytest.raises(OptionError, match=said):
            er.compare("bayesian_regression", "nowhere.csv", **regression, **wrong)
    for size in (0.0, -1.0, 2.5, 1e12, nan):
        with pytest.raises(OptionError, match="--test-size"):
            er.compare("bayesian_regression", "nowhere.csv", test_size=size)


def test_a_fit_s_methods_refuse_the_same_before_anything_else() -> None:
    """Before they look at the fit, which is none here."""
    nothing: Any = None
    methods = {name: (getattr(Fit, name), kind) for name, kind in COMMANDS.items()
               if hasattr(Fit, name)}  # fmt: skip
    methods["elbo"] = (Fit.elbo, commands.ElboOptions)
    methods["reference"] = (add_reference, commands.ReferenceOptions)
    assert len(methods) == 13
    needed = {
        "generate": {}, "interpolate": {"begin": 1, "end": 2}, "impute": {"data": nothing},
    }  # fmt: skip
    for name, (method, kind) in methods.items():
        for option in declared(kind):
            written = "n" if option.name == "count" else option.name
            for value in outside(option)[:3]:
                with pytest.raises(OptionError, match=re.escape(option.range)):
                    method(nothing, **{**needed.get(name, {}), written: value})


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError("No folder can be written; set MPLCONFIGDIR."), "No folder can be written; set"),
        (FileNotFoundError(2, "No such file or directory", "p.csv"), "p.csv: No such file or"),
        (OSError(28, "No space left on device"), "No space left on device."),
    ],
)
def test_an_error_of_the_system_is_a_sentence(
    error: OSError, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as matplotlib's, where neither a home nor a temporary folder can be written."""

    def raising(**given: Any) -> None:
        raise error

    monkeypatch.setattr(cli, "app", raising)
    code, _, err = called("datasets")
    assert code == 1
    assert err.startswith(f"error: {said}")
    assert err.endswith(".\n")
    assert not err.endswith("..\n")


@pytest.mark.skipif(os.name == "nt", reason="a current folder cannot be removed here")
def test_a_current_folder_that_was_removed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MKL ends the process there, in its own words and with exit code 2."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    code, _, err = called("fit", "bayesian_regression")
    assert code == 1
    assert err.startswith("error: the current folder was removed or cannot be read; change to")
