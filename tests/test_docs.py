"""The documents: their quotations, links, commands and pictures are true of the code."""

import importlib.util
import re
import shlex
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

import elbowroom as er
from elbowroom import cli
from elbowroom.engines.settings import make_settings, setting_names, split_settings
from elbowroom.errors import ElbowroomError, OptionError
from elbowroom.guides import get_guide
from elbowroom.models import get_model, model_summaries
from elbowroom.models._families import FAMILIES
from elbowroom.objectives import objectives
from elbowroom.options import make_options, option_names

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
DOCUMENTS = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
MODELS = list(model_summaries())
QUOTATION = re.compile(r"In \[`([^`\n]+)`\]\(([^)\n]+)\):\n\n```python\n(.*?)```\n", flags=re.S)
MOST = 120_000
"""Bytes of a picture."""


def of_root(path: Path) -> str:
    return str(path.relative_to(ROOT))


def misquoted(page: Path, text: str) -> list[str]:
    """What is wrong with the quotations of a page, which stands in the file that is named."""
    wrong = []
    for label, link, quotation in QUOTATION.findall(text):
        path = (page.parent / link).resolve()
        if path != ROOT / label or not path.is_file():
            wrong.append(f"{label}: the link leads to {link}")
            continue
        quoted = quotation.splitlines()
        lines = path.read_text(encoding="utf-8").splitlines()
        for first in range(len(lines) - len(quoted) + 1):
            here = lines[first : first + len(quoted)]
            margin = len(here[0]) - len(here[0].lstrip())
            if [line[margin:] for line in here] == quoted and not any(
                line[:margin].strip() for line in here
            ):
                break
        else:
            wrong.append(f"{label}: no lines are\n{quotation}")
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=of_root)
def test_quotations_stand_in_their_files(page: Path) -> None:
    assert misquoted(page, page.read_text(encoding="utf-8")) == []


def test_all_code_of_the_theory_is_quoted() -> None:
    text = (DOCS / "theory.md").read_text(encoding="utf-8")
    assert text.count("```") == 2 * len(QUOTATION.findall(text)) > 80
    for section in re.split(r"^### ", text, flags=re.M)[1:]:
        title, _, body = section.partition("\n")
        assert "$" in body, title
        assert QUOTATION.search(body), title


@pytest.mark.parametrize(
    ("label", "link", "code"),
    [
        ("guides/families.py", "../guides/families.py", "return start.precision.diagonal().sqrt()"),
        ("guides/families.py", "../guides/families.py", "return start.precision.diagonal()"),
        ("guides/families.py", "../guides/vae.py", "return start.precision.diagonal().rsqrt()"),
        ("guides/none.py", "../guides/none.py", "return start.precision.diagonal().rsqrt()"),
        (
            "guides/families.py",
            "../guides/families.py",
            "if start.scale is not None:\nreturn start.scale",
        ),
    ],
)
def test_a_false_quotation_is_seen(label: str, link: str, code: str) -> None:
    text = f"In [`{label}`]({link}):\n\n```python\n{code}\n```\n"
    assert len(misquoted(DOCS / "theory.md", text)) == 1
    right = text.replace(label, "guides/families.py").replace(link, "../guides/families.py")
    right = right.replace(code, "if start.scale is not None:\n    return start.scale")
    assert misquoted(DOCS / "theory.md", right) == []


def broken_links(document: Path, text: str) -> list[str]:
    """Relative links that lead to no file, or to no heading of it."""
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, heading = link.partition("#")
        there = (document.parent / path).resolve() if path else document
        if not there.exists() or (heading and heading not in headings(there)):
            broken.append(link)
    return broken


def headings(document: Path) -> set[str]:
    """The anchors that GitHub gives to a document's headings."""
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.S)
    found = re.findall(r"^#+ (.+)$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in found}


@pytest.mark.parametrize("document", DOCUMENTS, ids=of_root)
def test_relative_links_lead_somewhere(document: Path) -> None:
    assert broken_links(document, document.read_text(encoding="utf-8")) == []


def test_broken_links_are_seen() -> None:
    text = "[a](theory.md) [b](theory.md#nowhere) ![c](models/none.png) [d](https://pyro.ai)"
    assert broken_links(DOCS / "README.md", text) == ["theory.md#nowhere", "models/none.png"]


def broken_formulas(text: str) -> list[str]:
    """Displayed formulas that Markdown would break, or whose braces do not match."""
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    broken = [] if text.count("$$") % 2 == 0 else ["a formula has no end"]
    for formula in re.findall(r"\$\$(.*?)\$\$", text, flags=re.S):
        listed = re.search(r"^\s*([-+*>#=|]|\d+[.)])", formula, flags=re.M)
        pairs = [("{", "}"), (r"\bigl", r"\bigr"), (r"\Bigl", r"\Bigr")]
        even = all(formula.count(one) == formula.count(two) for one, two in pairs)
        if listed or "\n\n" in formula or not even:
            broken.append(formula)
    inline = re.sub(r"\$\$.*?\$\$", "", text, flags=re.S)
    paragraphs = re.sub(r"`[^`]*`", "", inline).split("\n\n")
    return broken + [each for each in paragraphs if each.count("$") % 2]


@pytest.mark.parametrize("page", PAGES, ids=of_root)
def test_formulas_are_whole(page: Path) -> None:
    assert broken_formulas(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "text", ["$$a\n  + b$$", "$$\\frac{a}{b$$", "of $a and b", "$$a", "$$a\n\nb$$"]
)
def test_a_broken_formula_is_seen(text: str) -> None:
    assert broken_formulas(text) != []


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_a_page_and_a_picture(name: str) -> None:
    page, picture = DOCS / "models" / f"{name}.md", DOCS / "models" / f"{name}.png"
    text = page.read_text(encoding="utf-8")
    assert text.splitlines()[0] == f"# `{name}`"
    assert f"]({picture.name})" in text
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert 5_000 < picture.stat().st_size <= MOST
    for heading in ("When to use it", "The model", "Guides", "What the verdict says", "Limits"):
        assert f"## {heading}" in text
    for guide in re.findall(r"`([a-z_]+)`", text.partition("## Guides")[2].partition("\n## ")[0]):
        assert guide in _known(name), guide


@cache
def _known(model: str) -> set[str]:
    """What a page may name among the guides: guides, models, objectives and options."""
    from elbowroom.guides import guides_for

    found = {*guides_for(model), *MODELS, *objectives(), "auto"}
    return found | {field for each in MODELS for field in _options_of(each)}


def _options_of(model: str) -> set[str]:
    return set(option_names(get_model(model).options) or setting_names())


def test_no_page_is_of_a_model_that_is_gone() -> None:
    for suffix in ("md", "png"):
        assert {path.stem for path in (DOCS / "models").glob(f"*.{suffix}")} == set(MODELS)
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    assert all(f"]({of_docs})" in index for of_docs in ("theory.md", "stopping.md"))


def script(name: str) -> ModuleType:
    """A script of the folder docs, as a module."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_lists_of_models_are_as_make_docs_writes_them() -> None:
    index = script("index")
    families = "docs/models/bayesian_regression.md"
    names = {"README.md": MODELS, "docs/README.md": MODELS, families: FAMILIES}
    assert {of_root(path) for path in index.LISTS} == set(names)
    for path, table in index.LISTS.items():
        text = path.read_text(encoding="utf-8")
        assert index.with_list(text, table()) == text, f"{of_root(path)}: run `make docs`"
        assert all(f"`{name}`" in table() for name in names[of_root(path)])


def test_a_list_of_models_is_replaced_and_the_rest_kept() -> None:
    index = script("index")
    table = "| model | x |\n| --- | --- |\n| `b` | \\1 |\n"
    text = "before\n\n| model | x |\n| --- | --- |\n| `a` | y |\n\nafter\n"
    assert index.with_list(text, table) == f"before\n\n{table}\nafter\n"
    for wrong in ("no table\n", text + text):
        with pytest.raises(ValueError, match="there must be one"):
            index.with_list(wrong, table)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_declares_its_picture(name: str) -> None:
    assert get_model(name).picture is not None, f"models/{name}.py: give Model(...) a `picture`"


def test_importing_the_models_does_not_import_matplotlib(children: Any) -> None:
    code = (
        "import sys; from elbowroom.models import get_model, model_summaries; "
        "[get_model(name) for name in model_summaries()]; assert 'matplotlib' not in sys.modules"
    )
    assert children.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_picture_of_no_model_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        script("pictures").main(["conjugat"])
    assert "invalid choice: 'conjugat'" in capsys.readouterr().err


def test_a_picture_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = script("pictures")
    monkeypatch.setattr(pictures, "FOLDER", tmp_path)
    pictures.main(["conjugate"])
    assert (tmp_path / "conjugate.png").stat().st_size <= MOST


def parse(line: str) -> None:
    """Parses a command as the command line does, its model, guides and options too."""
    words = shlex.split(line, comments=True)[1:]
    group: Any = typer.main.get_command(cli.app)
    command = group.commands[words[0]]
    context = command.make_context(words[0], words[1:])
    given = context.params
    if command.context_settings.get("ignore_unknown_options"):
        if given["model"] is None or ":" in given["model"]:
            return
        model = get_model(given["model"])
        settings = {name: given[name] for name in cli.SETTINGS if given[name] is not None}
        own, settings = split_settings(
            {**cli._model_options(context.args), **settings}, model.options
        )
        if model.options is not None:
            make_options(model.options, own)
        make_settings(settings)
        guides = given.get("guide") or []
        for guide in [guides] if isinstance(guides, str) else guides:
            name, _, objective = guide.partition(":")
            assert name == "auto" or get_guide(name, model.name)
            if objective and objective not in objectives():
                raise OptionError(f"there is no objective {objective}.")
    elif context.args:
        raise OptionError(f"{context.args[0]} stands alone.")
    if given.get("data") is not None and "." not in given["data"]:
        er.load_dataset(given["data"])
    if words[0] in ("models", "guides") and len(words) > 1:
        get_model(words[1])


@pytest.mark.parametrize("document", DOCUMENTS, ids=of_root)
def test_commands_parse_and_python_compiles(document: Path, documents: Any) -> None:
    for language, block in documents.blocks(document):
        if document.name == "theory.md":
            continue  # quotations
        if language == "python":
            compile(block, str(document), "exec")
            continue
        for line in block.splitlines():
            if line.startswith("elbowroom "):
                parse(line)


@pytest.mark.parametrize(
    "line",
    [
        "elbowroom fti vae",
        "elbowroom fit vea",
        "elbowroom fit vae --data digit",
        "elbowroom fit vae --laten 2",
        "elbowroom fit vae --latent two",
        "elbowroom fit vae --guide collapsed",
        "elbowroom fit vae --learning-rate fast",
        "elbowroom compare vae --guide encoder:elbo",
        "elbowroom predict runs/digits",
        "elbowroom generate runs/digits --number 3",
        "elbowroom guides vea",
    ],
)
def test_a_false_command_is_seen(line: str) -> None:
    usage: Any = typer.BadParameter.__base__
    with pytest.raises((ElbowroomError, usage, KeyError)):
        parse(line)


@pytest.mark.parametrize("name", MODELS)
def test_a_page_shows_a_command_and_python(name: str, documents: Any) -> None:
    page = DOCS / "models" / f"{name}.md"
    languages = [language for language, _ in documents.blocks(page)]
    assert {"bash", "python"} <= set(languages)
    assert f"elbowroom fit {name} --data " in page.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_what_a_page_shows_runs(name: str, tmp_path: Path, documents: Any, children: Any) -> None:
    page = DOCS / "models" / f"{name}.md"
    assert documents.run(page, tmp_path, children, lambda line: line.endswith("# exit code 3")) >= 2
