"""The house as it is installed: links, imports that run one way, documents that are true."""

import ast
import doctest
import inspect
import pkgutil
import re
import sys
import tomllib
from collections.abc import Iterable
from dataclasses import is_dataclass
from importlib import import_module
from importlib.metadata import packages_distributions
from itertools import chain
from pathlib import Path
from typing import Any

import pyro
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import elbowroom

ROOT = Path(elbowroom.__file__).resolve().parents[1]
LINKS = ("models", "guides", "data", "cli.py")
FOUND = list(pkgutil.walk_packages(elbowroom.__path__, "elbowroom."))
MODULES = sorted(module.name for module in FOUND if not module.ispkg)
PACKAGES = sorted(module.name for module in FOUND if module.ispkg)
FLOORS = [
    ["errors", "printable", "recording", "sizes", "budget", "memory"],
    ["options"],
    ["commands", "data"],
    ["models"],
    ["guides"],
    ["problem"],
    ["density", "objectives"],
    ["draws"],
    ["engines"],
    ["run", "assess", "rows"],
    ["effects", "sensitivity"],
    ["checked_rows", "model_check"],
    ["result"],
    ["pipeline"],
    ["api", "loading", "held_out", "comparison", "model_comparison", "prior_view"],
    ["report", "sklearn"],
    ["cli"],
    ["__main__"],
]
"""Imports run from a later floor to an earlier one, or within one."""


def _floor(module: str) -> int:
    for level, rooms in enumerate(FLOORS):
        if module.split(".")[1] in rooms:
            return level
    raise AssertionError(f"{module} has no floor")


@pytest.mark.parametrize("name", LINKS)
def test_links_are_the_folders_at_the_root(name: str) -> None:
    assert (ROOT / name).samefile(ROOT / "elbowroom" / name)


def test_nothing_is_imported_by_its_bare_name() -> None:
    assert not {"models", "guides", "data", "cli"} & set(sys.modules)


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module: str) -> None:
    source = Path(import_module(module).__file__ or "").read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("elbowroom."):
            assert _floor(str(node.module)) <= _floor(module), (module, node.module)


@pytest.mark.parametrize("module", MODULES)
def test_numbers_that_tune_an_algorithm_stand_together_each_with_its_reason(module: str) -> None:
    """In one dataclass; a module has three numbers beside it at most."""
    source = Path(import_module(module).__file__ or "").read_text(encoding="utf-8")
    tree = ast.parse(source)
    tuning = {
        type(value).__name__
        for name, value in vars(import_module(module)).items()
        if name.isupper() and is_dataclass(value) and type(value).__module__ == module
    }
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name in tuning:
            after = zip(node.body, [*node.body[1:], None], strict=True)
            described = ast.get_docstring(node, clean=False) or ""
            bare = [
                ast.unparse(field) for field, reason in after
                if isinstance(field, ast.AnnAssign) and not _is_text(reason)
                and f"        {ast.unparse(field.target)}: " not in described
            ]  # fmt: skip
            assert bare == []
    numbers = [
        ast.unparse(node) for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, (int, float))
    ]  # fmt: skip
    assert len(numbers) <= 3


def test_what_one_step_hands_to_the_next_is_frozen() -> None:
    """It is made once, and no later step changes it; a few dataclasses count within one step."""
    kinds = [
        kind
        for module in MODULES
        for kind in vars(import_module(module)).values()
        if is_dataclass(kind) and isinstance(kind, type) and kind.__module__ == module
    ]
    assert len(kinds) > 80
    changing = {kind.__name__ for kind in kinds if not kind.__dataclass_params__.frozen}  # type: ignore[attr-defined]
    assert changing == {"Budget", "Ladder", "Factor", "Operation"}


def _is_text(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _imported(sources: Iterable[Path]) -> set[str]:
    """The top-level names that source files import, the standard library's left out."""
    found = set()
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(str(node.module).split(".")[0])
    return found - set(sys.stdlib_module_names) - {"elbowroom"}


def _names(lines: Iterable[str]) -> set[str]:
    """The names of some distributions that are required."""
    return {canonicalize_name(Requirement(line).name) for line in lines}


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_what_is_imported_is_declared_and_what_is_declared_is_used() -> None:
    extras = PROJECT["optional-dependencies"]
    modules = ["elbowroom", *PACKAGES, *MODULES]
    owners = packages_distributions()
    imported = {
        canonicalize_name(owners[name][0])
        for name in _imported(Path(import_module(module).__file__ or "") for module in modules)
    }
    # xarray is told to use h5netcdf, by its name, and h5netcdf uses h5py.
    assert imported | {"h5netcdf", "h5py"} == _names(
        [*PROJECT["dependencies"], *extras["reference"]]
    )


@pytest.mark.parametrize("folder", ["tests", "docs", "benchmarks", ".ci"])
def test_what_is_imported_beside_the_package_is_declared_too(folder: str) -> None:
    sources = sorted((ROOT / folder).rglob("*.py"))
    assert sources
    lines = [*PROJECT["dependencies"], *chain(*PROJECT["optional-dependencies"].values())]
    owners = packages_distributions()
    own = {source.stem for source in sources} | {folder}
    # What is not installed here has the name of its distribution.
    used = {
        canonicalize_name(owners[name][0] if name in owners else name)
        for name in _imported(sources) - own - {"benchmarks"}
    }
    assert used - _names(lines) == set()


@pytest.mark.parametrize("name", ["README.md", "Makefile"])
def test_torch_is_installed_first_and_in_the_tested_version(name: str) -> None:
    """So that nothing else asks for another, with gigabytes for devices that are not there."""
    text = (ROOT / name).read_text(encoding="utf-8")
    installs = re.findall(r"pip install .*?(?:-c|--constraint) constraints.txt (.*)", text)
    torch = next(i for i, what in enumerate(installs) if what.startswith("torch"))
    assert installs[torch + 1].startswith((".", "--editable '.[dev]'"))


class _Examples(doctest.DocTestFinder):
    """Finds the examples of decorated functions too, whose code is in another module."""

    def _from_module(self, module: Any, found: Any) -> bool:
        return super()._from_module(module, inspect.unwrap(found) if callable(found) else found)  # type: ignore[misc]


@pytest.mark.parametrize("module", ["elbowroom", *PACKAGES, *MODULES])
def test_examples_in_docstrings_run(module: str) -> None:
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    with pyro.get_param_store().scope():
        for example in _Examples().find(import_module(module), module):
            runner.run(example)
    assert runner.summarize().failed == 0


@pytest.mark.parametrize(
    "code", ["import elbowroom", "import elbowroom.cli", "import elbowroom.report.listing"]
)
def test_light_imports_leave_torch_and_pandas_alone(code: str, children: Any) -> None:
    check = f"{code}; import sys; assert not {{'torch', 'pandas', 'pyro'}} & set(sys.modules)"
    assert children.run([sys.executable, "-c", check], cwd=ROOT).returncode == 0


def test_public_names_are_all_there() -> None:
    for name in elbowroom.__all__:
        assert getattr(elbowroom, name) is not None
    assert set(elbowroom.__all__) <= set(dir(elbowroom))
    with pytest.raises(AttributeError, match="no attribute 'fti'"):
        elbowroom.fti  # noqa: B018


@pytest.mark.slow
@pytest.mark.parametrize("name", ["README.md", "docs/usage.md"])
def test_commands_run(name: str, tmp_path: Path, documents: Any, children: Any) -> None:
    """Every `elbowroom` line and every Python block, as printed."""
    documents.run(ROOT / name, tmp_path, children, lambda line: line.endswith("# exit code 3"))


def _words(text: str) -> set[str]:
    """The words of an output; its numbers depend on the machine."""
    return set(re.findall(r"[A-Za-z_\[\]'-]{2,}", text))


@pytest.mark.slow
def test_the_readme_shows_what_is_printed(tmp_path: Path, documents: Any, children: Any) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"```(bash|python)\n([^`]*)```\n[^`]*```text\n(.*?)```", readme, flags=re.S)
    assert len(shown) == 3
    for language, block, output in shown:
        printed = documents.output(language, block, tmp_path, children)
        assert _words(output) - _words(printed) == set(), block


def test_the_readme_shows_output_on_two_screens() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    before_the_links, _, links = readme.partition("## Documentation")
    assert before_the_links.count("\n") <= 110
    assert before_the_links.count("```text") == 3
    assert "](docs/README.md)" in links
