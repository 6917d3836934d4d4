"""The lists of models, guides, objectives and datasets."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from elbowroom.data.bundled import dataset_names
from elbowroom.models import get_model, model_summaries
from elbowroom.objectives import objectives
from elbowroom.report import listing
from elbowroom.report.listing import add, console, table


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_a_line_in_a_pipe_is_not_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    assert not console().is_terminal
    console().print("x " * 90)
    assert len(printed(capsys)) == 1
    made = table("name", "number", "n", right=("number",))
    add(made, "long [name]", 1, 2)
    add(made, "a", 100, 20, style="bold")
    console().print(made)
    assert printed(capsys) == [
        "name         number  n",
        "long [name]       1  2",  # plain text, whatever is in brackets
        "a               100  20",
    ]
    assert [row.style for row in made.rows] == ["", "bold"]


def test_a_terminal_has_its_own_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "77")
    assert console().is_terminal
    assert console().width == 77
    with console().capture() as captured:
        pass
    assert captured.get() == ""
    out = console()
    with out.capture() as captured:
        out.print("a number 12.5")
    assert captured.get() == "a number 12.5\n"  # numbers are not coloured
    with out.capture() as captured:
        out.print(table("name"))
    assert captured.get().startswith("\x1b[1mname")  # headers are bold


def test_explanations_do_not_stand_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    listing.show_models()
    listing.show_objectives()
    dim = [line for line in capsys.readouterr().out.splitlines() if line.startswith("\x1b[2m")]
    assert [line.removeprefix("\x1b[2m").split()[:2] for line in dim] == [
        ["'elbowroom", "models"], ["To", "use"],
    ]  # fmt: skip


def test_models_are_listed_with_their_summaries(capsys: pytest.CaptureFixture[str]) -> None:
    listing.show_models()
    lines = printed(capsys)
    assert cells(lines[0]) == ["model", "description"]
    count = len(model_summaries())
    assert dict(cells(line) for line in lines[1 : count + 1]) == model_summaries()
    assert lines[-1].startswith("'elbowroom models MODEL'")


def test_a_model_has_a_page_options_guides_commands_and_a_dataset(
    capsys: pytest.CaptureFixture[str],
) -> None:
    listing.show_model("vae")
    lines = printed(capsys)
    assert lines[0] == "vae"
    page = sys.modules[get_model("vae").function.__module__].__doc__ or ""
    assert page.splitlines()[0] in lines
    begin = next(i for i, line in enumerate(lines) if cells(line)[:2] == ["option", "default"])
    options = {line.split()[0]: cells(line)[1:] for line in lines[begin + 1 :] if line[:2] == "--"}
    assert options["--latent"][0] == "2"
    assert options["--hidden"][0] == ",".join(map(str, get_model("vae").options().hidden))  # type: ignore[misc]
    assert options["--image-shape"][0] != "None"  # an option without a default shows none
    guides = [line for line in lines if "any model" in line or cells(line)[1:2] == ["vae"]]
    assert [cells(line)[0] for line in guides] == ["encoder", "local", "map"]
    commands = next(line for line in lines if line.startswith("commands: "))
    assert commands == f"commands: predict, {', '.join(get_model('vae').verbs)}"
    assert lines[-1] == "dataset: digits"


@pytest.mark.parametrize(
    ("value", "text"), [(None, ""), ((1, 2), "1,2"), ((), ""), (0.5, "0.5"), (False, "False")]
)
def test_a_default_is_shown_as_it_is_typed(value: Any, text: str) -> None:
    assert listing._shown(value) == text


def test_guides_of_a_model_and_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    listing.show_guides("bayesian_regression")
    lines = printed(capsys)
    assert cells(lines[0]) == ["guide", "for", "description"]
    found = {cells(line)[0]: cells(line)[1] for line in lines[1:]}
    assert found["structured"] == "bayesian_regression"
    assert found["full_rank"] == "any model"
    assert set(found.values()) == {"bayesian_regression", "any model"}
    listing.show_guides(None)
    every = [cells(line)[:2] for line in printed(capsys)[1:]]
    assert set(found.items()) <= {(name, model) for name, model in every}
    models = [model for _, model in every]
    assert len({(name, model) for name, model in every}) == len(every)
    # Those of one model first, the models in order; those for any model last.
    order = [*model_summaries(), "any model"]
    assert models == sorted(models, key=order.index)
    assert {"gaussian_mixture", "vae", "any model"} < set(models)


@pytest.mark.parametrize(("dataset", "local"), [("digits", True), (None, False)])
def test_a_models_guides_are_those_for_its_dataset(
    dataset: Any, local: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which of those for any model fit, its data tell: whether rows have latents."""
    from elbowroom.pipeline import fitting

    space = SimpleNamespace(local_continuous=True)
    monkeypatch.setattr(fitting, "bind_model", lambda *_: (SimpleNamespace(space=space),))
    monkeypatch.setattr(listing, "get_model", lambda name: SimpleNamespace(dataset=dataset))
    monkeypatch.setattr(listing, "guides_for", lambda *given: given)
    assert listing.fitting_guides("m") == ("m", local)


def test_objectives_have_a_sentence_and_their_options(capsys: pytest.CaptureFixture[str]) -> None:
    listing.show_objectives()
    lines = printed(capsys)
    count = len(objectives())
    for line, name in zip(lines[1 : count + 1], objectives(), strict=True):
        shown, text = cells(line)
        assert shown == name
        assert text.endswith(".")
        assert not text.endswith("..")
        assert f"`{name}`" not in text
    assert lines[count + 1] == ""
    assert cells(lines[count + 2]) == ["option", "objective", "default", "range", "description"]
    options = [cells(line) for line in lines[count + 3 :] if line[:2] == "--"]
    assert ["--alpha", "renyi"] in [each[:2] for each in options]
    assert {each[1] for each in options} <= set(objectives())


def test_datasets_are_listed_with_their_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    listing.show_datasets()
    lines = printed(capsys)
    assert cells(lines[0]) == ["dataset", "rows", "columns", "title", "source", "licence"]
    found = {cells(line)[0]: cells(line) for line in lines[1:] if line and line[0] != " "}
    assert set(dataset_names()) <= set(found)
    assert found["iris"][1:3] == ["150", "5"]
    assert found["diabetes"][1:3] == ["442", "11"]
    ends = {name: line.index(f" {rows} ") + len(rows) for name, rows, line in (
        ("iris", "150", next(line for line in lines if line.startswith("iris"))),
        ("eight_schools", "8", next(line for line in lines if line.startswith("eight_schools"))),
    )}  # fmt: skip
    assert len(set(ends.values())) == 1  # flush right
