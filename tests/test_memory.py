"""Memory that work would take, beside what is free: read, compared, and said with both numbers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pyro import poutine

import elbowroom as er
from elbowroom import memory
from elbowroom.errors import DataError, OptionError
from elbowroom.memory import Allowance, check_memory
from elbowroom.models import get_model, model_summaries
from elbowroom.options import make_options, option_names
from elbowroom.pipeline.fitting import bind_model
from elbowroom.problem import footprint as footprints
from elbowroom.problem.footprint import footprint
from elbowroom.problem.isolation import isolated
from elbowroom.result import Fit


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8 GB available, in whose folders control groups can be made."""
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:  8000000 kB\n")
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/\n")
    monkeypatch.setattr(memory, "PROCESS", tmp_path / "proc")
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(memory, "_left_of_limit", lambda: float("inf"))
    return tmp_path


def written(folder: Path, **files: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(str(content))


def test_what_is_free_is_the_least_that_anything_allows(machine: Path) -> None:
    groups, own = machine / "groups", machine / "proc" / "self" / "cgroup"
    assert memory.free() == 8_000_000 * 1024
    written(groups, memory__max="max", memory__current=5)
    assert memory.free() == 8_000_000 * 1024
    own.write_text("0::/job/step\n")
    step = groups / "job" / "step"
    written(step, memory__max=3_000_000, memory__current=1_000_000)
    assert memory.free() == 2_000_000
    # Files that are kept in memory are given back.
    written(step, memory__stat="anon 5\ninactive_file 400000\n")
    assert memory.free() == 2_400_000
    written(groups / "job", memory__max=1_500_000, memory__current=1_000_000)  # of a group above
    assert memory.free() == 500_000
    written(groups / "job", memory__max=1_000, memory__current=1_000_000)
    assert memory.free() == 0


def test_control_groups_of_the_first_version_are_read(machine: Path) -> None:
    (machine / "proc" / "self" / "cgroup").write_text("5:cpu:/\n4:cpuset,memory:/job\n0::/\n")
    folder = machine / "groups" / "memory" / "job"
    written(folder, memory__limit_in_bytes=900, memory__usage_in_bytes=100)
    assert memory.free() == 800


def test_the_limit_of_the_process_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda which: (10**15, 10**15))
    left = memory._left_of_limit()
    assert 0.99e15 < left < 10**15
    monkeypatch.setattr(resource, "getrlimit", lambda which: (1, 1))
    assert memory.free() == 0


def test_where_nothing_is_told_nothing_is_refused(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (machine / "proc" / "meminfo", machine / "proc" / "self" / "cgroup"):
        path.unlink()
    monkeypatch.delattr(memory.os, "sysconf")
    check_memory("all", 1e30, "give less", OptionError)


def test_both_numbers_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free", lambda: 2e9)
    check_memory("this", 1.7e9, "give less", OptionError)
    with pytest.raises(DataError) as caught:
        check_memory("this", 1.9e9, "give less", DataError)
    said = "this would take about 1.9 GB of memory, and 2 GB are free: give less."
    assert str(caught.value) == said
    monkeypatch.setattr(memory, "free", lambda: 0.0)
    check_memory("this", 1e6, "give less", OptionError)  # too little to ask for


class Sized(torch.utils._python_dispatch.TorchDispatchMode):
    """The bytes of the storages that operations make, each with its address."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in torch.utils._pytree.tree_leaves(made):
            if isinstance(each, torch.Tensor):
                self.kept[each.untyped_storage().data_ptr()] = each.untyped_storage()
        return made


@pytest.mark.parametrize("name", model_summaries())
def test_what_is_counted_is_what_a_run_makes(name: str) -> None:
    """Of every model: counted without storage, and in the storages of a true run."""
    model = get_model(name)
    assert model.recipe is not None
    known = option_names(model.options)
    given = {key: value for key, value in model.recipe.options.items() if key in known}
    assert model.options is not None
    options = make_options(model.options, given)
    with isolated(0, dtype=torch.float64):
        arguments = model.prepare(model.recipe.table(), options, None).arguments
        parameters, everything = footprint(model.function, arguments)
    with isolated(0, dtype=torch.float64), Sized() as sized, torch.no_grad():
        trace = poutine.trace(model.function).get_trace(**arguments)
        own: list[Any] = [node["value"] for node in trace.nodes.values() if node["type"] == "param"]
    true = sum(storage.nbytes() for storage in sized.kept.values())
    assert everything == pytest.approx(true, rel=0.02, abs=64)
    assert parameters == sum(value.numel() * value.element_size() for value in own)


def test_sizes_that_do_not_fit_are_refused_before_they_are_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "free", lambda: 4e9)
    for name, options, said in (
        ("vae", {"hidden": (10_000,) * 20}, "--hidden 10000,10000"),
        ("bayesian_neural_network", {"hidden": (10_000,) * 20}, "--hidden"),
        ("vae", {"particles": 10_000, "hidden": (300,)}, "a fit with --particles 10000"),
    ):
        with pytest.raises(OptionError, match=rf"{said}.* GB of memory, and 4 GB are free"):
            bind_model(name, None, options)


def test_a_fit_of_the_usual_size_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*given: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(footprints, "footprint", never)
    bind_model("vae", None, {"hidden": (999,)})


def test_draws_that_do_not_fit_are_refused_before_a_fit_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "free", lambda: 4e9)
    network: dict[str, Any] = {"hidden": (900, 900), "guide": "mean_field", "seed": 1}
    latents = 10 * 900 + 900 + 900 * 900 + 900 + 900 + 1 + 1  # weights, biases, and sigma
    with pytest.raises(OptionError) as caught:
        er.fit("bayesian_neural_network", **network)
    assert str(caught.value) == (
        f"the usual 2,000 draws of {latents:,} latent numbers would take about 39.4 GB of memory, "
        "and 4 GB are free: give fewer --draws, or a smaller model."
    )
    monkeypatch.setattr(memory, "free", lambda: 1e7)
    monkeypatch.setattr(memory, "ALLOWANCE", Allowance(ignored=0))
    with pytest.raises(OptionError, match=r"^--draws 900,000 of 4 latent numbers would take about"):
        er.fit("bayesian_regression", formula="progression ~ bmi + bp", draws=900_000)


VERBS: dict[str, tuple[dict[str, Any], str]] = {
    "generate": ({"n": 100_000}, "--count 100,000 of 4 numbers would"),
    "embed": ({"draws": 100_000}, "--draws 100,000 of 150 rows would"),
    "score": ({"draws": 100_000}, "--draws 100,000 of 150 rows would"),
    "interpolate": ({"begin": 1, "end": 2, "steps": 90_000}, "--steps 90,000 of 4 numbers would"),
    "impute": ({"draws": 90_000}, "--draws 90,000 of 8 cells would"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_that_does_not_fit_is_refused_before_it_begins(
    verb: str, factors: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, said = VERBS[verb]
    if verb == "impute":
        rows = er.load_dataset("iris").head(2)
        given = {**given, "data": rows.assign(petal_width=float("nan"))}
    monkeypatch.setattr(memory, "free", lambda: 1e6)
    monkeypatch.setattr(memory, "ALLOWANCE", Allowance(ignored=0))
    with pytest.raises(OptionError, match=f"^{said} take about .* of memory, and 0.001 GB are"):
        getattr(factors, verb)(**given)


@pytest.fixture(scope="module")
def factors() -> Fit:
    return er.fit("factor_analysis", "iris", engine="em", seed=1, draws=100)
