"""Run folders that someone has changed: each is refused in one sentence, or is read as it is.

What is changed has a hash that is right, as whoever changes a file can have it.
"""

# ruff: noqa: E501 - one case a line

import io
import json
import os
import re
import shutil
import struct
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
import xarray
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load as tensors_of
from safetensors.torch import save as serialised
from typer.testing import CliRunner

import elbowroom as er
from elbowroom.cli import app
from elbowroom.errors import ElbowroomError, RunFolderError
from elbowroom.result import Fit
from elbowroom.run import folder as run_folder
from elbowroom.run.files import digest_of
from elbowroom.run.output import FILES, MANIFEST, read_manifest, write_manifest
from elbowroom.run.unfinished import Request, unfinished

ESCAPES = "a\x1b[31mb\x9bc\u202ed\x07"
"""Text that would colour a terminal, and turn its direction."""
WRITTEN_OUT = r"a\x1b[31mb\x9bc\u202ed\x07"
HIDDEN = {"\x1b", "\x9b", "\u202e", "\x07"}
SECONDS = 5.0
JSON_FILES = ("config.json", "run.json", "diagnostics.json")
Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def small(regression: Fit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the smallest posterior there can be."""
    groups = {
        f"/{name}": regression.posterior[name].to_dataset().isel(draw=slice(0, 3))
        for name in ("posterior", "sample_stats")
    }
    groups["/reference_posterior"] = groups["/posterior"]  # which NUTS adds
    run = replace(
        regression._run(), posterior=xarray.DataTree.from_dict(groups),
        data=regression.problem.data.head(20),
    )  # fmt: skip
    path = tmp_path_factory.mktemp("small") / "run"
    run_folder.save(run, path)
    return path


@pytest.fixture(scope="module")
def arrays(own: Fit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a user's own model, whose data are arrays."""
    data = {"effect": np.arange(8.0), "standard_error": np.ones(8)}
    tree = xarray.DataTree.from_dict(
        {"/posterior": own.posterior["posterior"].to_dataset().isel(draw=slice(0, 3))}
    )
    path = tmp_path_factory.mktemp("arrays") / "run"
    run_folder.save(replace(own._run(), data=data, posterior=tree), path)
    return path


def copy(source: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(source, target, copy_function=os.link))


def write(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def rehash(folder: Path, *names: str) -> None:
    """Gives changed files the hashes that they have."""
    changed = {name: [digest_of(folder / name)] for name in names}
    write_manifest(folder, {**read_manifest(folder), **changed})


def refused(folder: Path, act: Callable[[], Any], name: str = "") -> str | None:
    """The sentence by which something is refused; None where it is not."""
    began = time.process_time()
    try:
        act()
    except RunFolderError as error:
        message = str(error)
        assert not HIDDEN & set(message)
        assert len(message) < 1500
        assert "\n" not in message.strip()
        assert str(folder) in message
        if name:
            assert name in message, message
        return message
    finally:
        assert time.process_time() - began < SECONDS
    return None


def places(tree: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where values stand in JSON."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree[:2])
    for key, value in inner:
        yield (*above, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*above, key))


def put(tree: Any, place: tuple[Any, ...], *value: Any) -> None:
    """Puts a value in a place; without one, takes it out."""
    for key in place[:-1]:
        tree = tree[key]
    if value:
        tree[place[-1]] = value[0]
    else:
        del tree[place[-1]]


VALUES: tuple[Any, ...] = (
    None, True, -1, 10**30, 1e308, float("nan"), "text", ESCAPES, [], {}, [[["x"]]], {"a": {"b": 1}},
    0.5, "@deep", "@digits",
)  # fmt: skip


def as_json(tree: Any) -> bytes:
    text = json.dumps(tree)
    text = text.replace('"@deep"', "[" * 5000 + "]" * 5000).replace('"@digits"', "9" * 5000)
    return text.encode()


@pytest.mark.filterwarnings("ignore")
def test_json_of_other_types_and_without_a_key_is_refused_or_harmless(
    small: Path, tmp_path: Path
) -> None:
    tried = harmful = 0
    folder = copy(small, tmp_path / "run")
    for name in JSON_FILES:
        content = (small / name).read_bytes()
        for k, place in enumerate(places(json.loads(content))):
            for value in ((), (VALUES[k % len(VALUES)],)):
                tree = json.loads(content)
                put(tree, place, *value)
                write(folder / name, as_json(tree))
                rehash(folder, name)
                said = refused(folder, lambda: read_json_files(folder))
                tried, harmful = tried + 1, harmful + (said is not None)
                required = not value and place[0] not in ("scalars", "reparameterised", "format")
                if name == "config.json" and len(place) == 1 and required:
                    assert said is not None
                    assert f"{name}', {place[0]}: field required" in said
        write(folder / name, content)
        rehash(folder, name)
    assert tried > 350
    assert harmful > tried / 2


def read_json_files(folder: Path) -> None:
    """As a run is read, up to the files that are not JSON."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("read_history", "read_posterior"):
            patch.setattr(run_folder.formats, name, lambda *_: None)
        run_folder.load(folder, data=False)


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_json_of_any_value_is_refused_or_harmless(
    small: Path, tmp_path: Path, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(JSON_FILES))
    tree = json.loads((small / name).read_text())
    put(tree, data.draw(st.sampled_from(list(places(tree)))), data.draw(ANY_JSON))
    folder = copy(small, tmp_path / "run")
    write(folder / name, json.dumps(tree).encode())
    rehash(folder, name)
    refused(folder, lambda: read_json_files(folder))


RAW: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "half": lambda c: c[: len(c) // 2],
    "an array": lambda _: b"[1, 2]",
    "a number": lambda _: b"3",
    "null": lambda _: b"null",
    "not UTF-8": lambda c: c.replace(b"e", b"\xff", 1),
    "UTF-16": lambda c: c.decode().encode("utf-16"),
    "zeros": lambda c: c + bytes(100),
    "deep lists": lambda _: b"[" * 100_000,
    "deep objects": lambda _: b'{"a":' * 100_000,
    "deep and closed": lambda c: c.rstrip()[:-1] + b', "z": ' + b"[" * 900 + b"]" * 900 + b"}",
    "every key twice": lambda c: c.rstrip()[:-1] + b"," + c.lstrip()[1:],
    "half a character": lambda c: c.replace(b'": "', b'": "\\ud800', 1),
    "many digits": lambda c: c.rstrip()[:-1] + b', "z": ' + b"9" * 5000 + b"}",
    "many keys": lambda c: c.rstrip()[:-1] + b"," + b",".join(b'"k%d":{}' % k for k in range(10**4)) + b"}",
    "large": lambda c: c + b" " * 17_000_000,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", JSON_FILES)
def test_json_that_is_damaged_is_refused(name: str, small: Path, tmp_path: Path) -> None:
    for what, change in RAW.items():
        folder = copy(small, tmp_path / "run")
        content = (small / name).read_bytes()
        if change(content) == content:  # measures have no text
            continue
        write(folder / name, change(content))
        rehash(folder, name)
        said = refused(folder, lambda folder=folder: read_json_files(folder), name)  # type: ignore[misc]
        known = name == "diagnostics.json" and what == "many keys"  # measures have any name
        assert (said is None) == known, what


def not_plain(path: Path, outside: Path) -> Iterator[tuple[str, Change]]:
    """What a file may be instead of a file."""
    yield "missing", lambda path: None
    yield "a folder", lambda path: path.mkdir()
    yield "a pipe", lambda path: os.mkfifo(path)
    yield "a link to a device", lambda path: path.symlink_to("/dev/zero")
    yield "a link to itself", lambda path: path.symlink_to(path.name)
    yield "a link outside", lambda path: path.symlink_to(outside)
    yield "empty", lambda path: path.touch()
    yield "of no end", lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 2**36)
    yield "cut short", lambda path: write(path, outside.read_bytes()[:-20])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes have no names here")
@pytest.mark.parametrize("name", [*FILES, "data.parquet", MANIFEST])
def test_what_is_no_plain_file_is_refused(name: str, small: Path, tmp_path: Path) -> None:
    for what, change in not_plain(small / name, small / name):
        folder = copy(small, tmp_path / "run")
        (folder / name).unlink()
        change(folder / name)
        if what in ("empty", "cut short") and name != MANIFEST:
            rehash(folder, name)
        said = refused(folder, lambda folder=folder: run_folder.load(folder), name)  # type: ignore[misc]
        assert said is not None or (name, what) == ("history.csv", "cut short"), what


ZEROS = ["0" * 64]
LISTS: dict[str, tuple[dict[str, Any], str]] = {
    "above": ({"../../../etc/passwd": ZEROS}, "files: '../../../etc/passwd' does not belong"),
    "a device": ({"/dev/zero": ZEROS}, "files: '/dev/zero' does not belong"),
    "itself": ({".": ZEROS}, "files: '.' does not belong"),
    "no path": ({"a\0b": ZEROS}, r"files: 'a\x00b' does not belong"),
    "no name": ({"": ZEROS}, "files..[key]: string should have"),
    "escapes": ({ESCAPES: ZEROS}, f"files: '{WRITTEN_OUT}' does not belong"),
    "no hash": ({"config.json": ["text"]}, "files.config.json.0: string should match"),
    "a hash alone": ({"config.json": "0" * 64}, "files.config.json: input should be a valid array"),
    "no hashes": ({"config.json": []}, "files.config.json: list should have"),
    "many hashes": ({"config.json": ZEROS * 3}, "files.config.json: list should have"),
    "another hash": ({"run.json": ZEROS}, "run.json' was changed or damaged"),
    "a file that is left out": ({"posterior.nc": None}, "files: posterior.nc is missing"),
    "no data": ({"data.parquet": None}, "files: data.parquet or data.npz is missing"),
    "data twice": ({"data.npz": ZEROS}, "files: 'data.npz' does not belong"),
    "many": ({f"file{k}": ZEROS for k in range(1000)}, "files: 'file0' does not belong"),
    "a long name": ({"x" * 5000: ZEROS}, f"files: '{'x' * 100}' does not belong"),
}  # fmt: skip


@pytest.mark.parametrize("what", LISTS)
def test_a_list_is_of_the_files_of_a_run_alone(what: str, small: Path, tmp_path: Path) -> None:
    changes, expected = LISTS[what]
    folder = copy(small, tmp_path / "run")
    listed = {**read_manifest(folder), **changes}
    write_manifest(folder, {name: each for name, each in listed.items() if each is not None})
    if isinstance(changes.get("config.json"), str):  # write_manifest makes a list of letters of it
        text = (folder / MANIFEST).read_text()
        write(
            folder / MANIFEST,
            re.sub(r'("config.json": )\[[^]]*\]', rf'\1"{ZEROS[0]}"', text).encode(),
        )
    said = refused(folder, lambda: run_folder.load(folder))
    assert expected in (said or "")


def test_of_two_hashes_a_file_may_have_either(small: Path, tmp_path: Path) -> None:
    """It is about to be changed, or was, when the process was killed."""
    folder = copy(small, tmp_path / "run")
    listed = read_manifest(folder)
    for both in ([*listed["run.json"], *ZEROS], [*ZEROS, *listed["run.json"]]):
        write_manifest(folder, {**listed, "run.json": both})
        assert run_folder.load(folder).run == run_folder.load(small).run


def test_data_beside_those_that_are_listed_are_not_read(
    small: Path, arrays: Path, tmp_path: Path
) -> None:
    folder, other = copy(small, tmp_path / "table"), copy(arrays, tmp_path / "arrays")
    for source, target in ((other / "data.npz", folder), (folder / "data.parquet", other)):
        write(target / source.name, source.read_bytes())
    data: Any = run_folder.load(folder).data
    pd.testing.assert_frame_equal(data, pd.read_parquet(small / "data.parquet"))
    assert set(run_folder.load(other).data) == {"effect", "standard_error"}


def nested(file: h5py.File) -> None:
    group = file
    for _ in range(1000):
        group = group.create_group("g")


def of_draws(values: Any, **given: Any) -> Callable[[h5py.File], None]:
    """A variable of the posterior beside the others, along chains and draws."""

    def add(file: h5py.File) -> None:
        made = file["posterior"].create_dataset("more", data=values, **given)
        for dim, name in zip(made.dims, ("chain", "draw"), strict=False):
            dim.attach_scale(file[f"posterior/{name}"])

    return add


def attribute(name: str, value: Any, of: str = "posterior/sigma") -> Callable[[h5py.File], None]:
    return lambda file: file[of].attrs.__setitem__(name, value)


def instead(name: str, made: Callable[[h5py.File], Any]) -> Callable[[h5py.File], None]:
    def act(file: h5py.File) -> None:
        del file[name]
        made(file)

    return act


def many_groups(file: h5py.File) -> None:
    for k in range(300):
        file.create_group(f"g{k}")


def many_variables(file: h5py.File) -> None:
    for k in range(1200):
        file["posterior"].create_dataset(f"v{k}", data=1.0)


TEXT = h5py.string_dtype()
OUTSIDE = "outside.nc"
GROUPS: dict[str, Callable[[h5py.File], Any]] = {
    "a soft link to the root": lambda f: f.__setitem__("prior", h5py.SoftLink("/")),
    "a soft link to itself": lambda f: f.__setitem__("prior", h5py.SoftLink("/prior")),
    "a soft link of a variable": lambda f: f.__setitem__("posterior/s", h5py.SoftLink("/posterior/sigma")),
    "a hard link to the root": lambda f: f.__setitem__("posterior/loop", f["/"]),
    "a hard link to its group": lambda f: f.__setitem__("posterior/loop", f["posterior"]),
    "a hard link of a group": lambda f: f.__setitem__("prior", f["posterior"]),
    "a hard link of a variable": lambda f: f.__setitem__("posterior/s", f["posterior/sigma"]),
    "a group of another file": lambda f: f.__setitem__("prior", h5py.ExternalLink(OUTSIDE, "/posterior")),
    "a variable of another file": lambda f: f.__setitem__("posterior/s", h5py.ExternalLink(OUTSIDE, "/x")),
    "a device": lambda f: f.__setitem__("prior", h5py.ExternalLink("/dev/zero", "/")),
    "values in another file": lambda f: f.create_dataset("posterior/s", shape=(9,), dtype="u1", external=[("/etc/passwd", 0, 9)]),
    "nested groups": nested,
    "many groups": many_groups,
    "many variables": many_variables,
    "an unknown group": lambda f: f.create_group("\x1b[31mevil"),
    "a group in a group": lambda f: f.create_group("posterior/inner"),
    "a huge shape": lambda f: f["posterior"].create_dataset("h", shape=(10**6, 10**6), chunks=(10, 10)),
    "a shape beyond all": lambda f: f["posterior"].create_dataset("h", shape=(2**40, 2**22), chunks=(10, 10)),
    "values that are not there": lambda f: f["posterior"].create_dataset("h", shape=(1, 3)),
    "packed values": lambda f: f["posterior"].create_dataset("h", data=np.zeros(10**6), compression="gzip"),
    "a huge chunk": lambda f: f["posterior"].create_dataset("h", shape=(9,), maxshape=(None,), chunks=(2**27,)),
    "nothing along a huge dim": lambda f: f["posterior"].create_dataset("h", shape=(0, 2**40)),
    "no posterior": lambda f: f.__delitem__("posterior"),
    "a posterior that is an array": instead("posterior", lambda f: f.create_dataset("posterior", data=1.0)),
    "one number": lambda f: f["posterior"].create_dataset("x", data=1.0),
    "records": lambda f: f["posterior"].create_dataset("x", data=np.zeros(3, dtype=[("a", "i4")])),
    "references": lambda f: f["posterior"].create_dataset("x", shape=(1,), dtype=h5py.ref_dtype),
    "ragged lists": lambda f: f["posterior"].create_dataset("x", shape=(2,), dtype=h5py.vlen_dtype("f8")),
    "opaque bytes": lambda f: f["posterior"].create_dataset("x", data=np.array([b"abc"], dtype="V3")),
    "a named type": lambda f: f.__setitem__("posterior/x", np.dtype("f8")),
    "complex numbers": of_draws(np.ones((1, 3), dtype="c16")),
    "dims that are no numbers": attribute("_Netcdf4Coordinates", "chain draw"),
    "dims that are not there": attribute("_Netcdf4Coordinates", np.array([77, 78])),
    "dims of others": attribute("_Netcdf4Coordinates", np.array([1, 0])),
    "too few dims": attribute("_Netcdf4Coordinates", np.array([0])),
    "no dims": lambda f: f["posterior/sigma"].attrs.__delitem__("_Netcdf4Coordinates"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", range(4))
def test_a_posterior_that_is_not_as_a_run_writes_it_is_refused(
    part: int, small: Path, tmp_path: Path
) -> None:
    path = tmp_path / "posterior.nc"
    for what, change in list(GROUPS.items())[part::4]:
        write(path, (small / "posterior.nc").read_bytes())
        with h5py.File(path, "r+") as file:
            change(file)
        said = refused(tmp_path, lambda: run_folder.formats.read_posterior(path), path.name)
        assert said is not None, what


def numbers_as_text(file: h5py.File) -> None:
    """Draws that are characters, as many of each as there are predictors."""
    made = file["posterior"].create_dataset("more", data=np.array([[[b"q"] * 2] * 3]))
    made.attrs["_Encoding"] = np.bytes_(b"utf-8")
    made.attrs["_Netcdf4Coordinates"] = [
        file[f"posterior/{name}"].attrs["_Netcdf4Dimid"] for name in ("chain", "draw", "predictor")
    ]


def dataset(*shape: int, **given: Any) -> Callable[[h5py.File], Any]:
    """An array beside the others, by default of characters that are not there."""
    given = {"dtype": "S1", **given}
    return lambda file: file["posterior"].create_dataset("more", shape=shape, **given)


LABELS = "posterior/predictor"
RAGGED = h5py.vlen_dtype("f8")
FIXED, NOT_THERE = "of a fixed length", "does not hold all of its values"
TEXTS: dict[str, tuple[Callable[[h5py.File], Any], str]] = {
    "an attribute of variable length": (attribute("unit", "m"), FIXED),
    "an attribute of the root of variable length": (attribute("unit", "m", "/"), FIXED),
    "an attribute of a group of variable length": (attribute("unit", "", "posterior"), FIXED),
    "a dim's number of variable length": (attribute("_Netcdf4Dimid", "0"), FIXED),
    "dims of variable length": (attribute("_Netcdf4Coordinates", "0"), FIXED),
    "a name of variable length": (attribute("NAME", "sigma"), FIXED),
    "many texts of variable length": (attribute("x", np.array(["x"] * 3, dtype=object)), FIXED),
    "a ragged attribute": (lambda f: f["posterior"].attrs.create("x", np.array([np.ones(2), np.ones(3)], dtype=object), dtype=RAGGED), FIXED),
    "an attribute of records": (attribute("x", np.array([("a",)], dtype=[("a", TEXT)])), FIXED),
    "an attribute of references": (lambda f: f["posterior"].attrs.create("x", f.ref, dtype=h5py.ref_dtype), FIXED),
    "an attribute of nothing": (attribute("x", h5py.Empty("f8")), FIXED),
    "an attribute of many texts": (attribute("x", np.array([b"xy"] * 3)), "is a list of texts"),
    "an attribute that is no UTF-8": (attribute("x", np.bytes_(b"\xff\xfe")), "can't decode"),
    "labels of variable length": (instead(LABELS, lambda f: f.create_dataset(LABELS, data=["a", "b"], dtype=TEXT)), FIXED),
    "no labels, of variable length": (dataset(0, dtype=TEXT), FIXED),
    "ragged draws": (dataset(2, dtype=RAGGED), FIXED),
    "labels of more than a character each": (dataset(2, dtype="S2"), FIXED),
    "a character along no dim": (dataset(), FIXED),
    "characters of nothing": (lambda f: f["posterior"].create_dataset("more", data=h5py.Empty("S1")), FIXED),
    "characters of a huge shape": (dataset(2**40, 2**20), NOT_THERE),
    "characters in parts of a huge shape": (dataset(2**40, 2**20, chunks=(10, 10)), "is packed"),
    "characters that are not there": (dataset(3, 3), NOT_THERE),
    "no characters along a huge dim": (dataset(2**40, 0), "huge dims"),
    "many texts of no characters": (dataset(2**28, 0), "bytes of memory"),
    "characters that are no UTF-8": (lambda f: f[LABELS].__setitem__((0, 0), b"\xff"), "can't decode"),
    "characters of another encoding": (attribute("_Encoding", np.bytes_(b"utf-16"), LABELS), "not 'utf-8'"),
    "characters of many encodings": (attribute("_Encoding", [1, 2], LABELS), LABELS),
    "an encoding that is a number": (attribute("_Encoding", 8, LABELS), "not 'utf-8'"),
    "characters of no encoding": (lambda f: f[LABELS].attrs.__delitem__("_Encoding"), "not 'utf-8'"),
    "draws of text": (numbers_as_text, "has no numbers"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", range(2))
def test_texts_that_are_not_as_a_run_writes_them_are_refused(
    part: int, small: Path, tmp_path: Path
) -> None:
    path = tmp_path / "posterior.nc"
    for what, (change, expected) in list(TEXTS.items())[part::2]:
        write(path, (small / "posterior.nc").read_bytes())
        with h5py.File(path, "r+") as file:
            change(file)
        said = refused(tmp_path, lambda: run_folder.formats.read_posterior(path), path.name)
        assert expected in (said or ""), (what, said)


def test_heaps_of_texts_are_not_read(small: Path, tmp_path: Path) -> None:
    """HDF5 believes the lengths in a heap, and goes on for ever at a free place of no length."""
    content = (small / "posterior.nc").read_bytes()
    begin = content.index(b"GCOL\x01")  # of lists of dims
    size = int.from_bytes(content[begin + 8 : begin + 16], "little")
    path = tmp_path / "posterior.nc"
    write(path, content)
    expected = run_folder.formats.read_posterior(path)
    for heap in (bytes(size), b"\xff" * size, content[begin : begin + 16] + bytes(size - 16)):
        write(path, content[:begin] + heap + content[begin + size :])
        xarray.testing.assert_identical(run_folder.formats.read_posterior(path), expected)


def test_an_attribute_is_not_longer_than_its_file(small: Path) -> None:
    """HDF5 refuses one itself since 1.14; before, it believed the shape."""
    path = small / "posterior.nc"
    with h5py.File(path) as file:
        longest = max(
            file["posterior"].attrs.get_id(name).dtype.itemsize for name in file["posterior"].attrs
        )
        run_folder.formats._check_attributes(path, "posterior", file["posterior"], longest)
        with pytest.raises(RunFolderError, match=r"attribute '\w+' is longer than the file"):
            run_folder.formats._check_attributes(path, "posterior", file["posterior"], longest - 1)


def test_what_a_posterior_takes_in_memory_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts take more than their characters, and arrays of one file may be the same place of it."""
    labels = {"k": [f"{k:04}" for k in range(1000)]}
    sums = {
        "of texts": xarray.Dataset({"x": (("chain", "draw"), [[0.5]])}, labels),
        "of arrays": xarray.Dataset({f"x{k}": (("chain", "draw"), np.ones((1, 1000))) for k in range(10)}),
        "of attributes": xarray.Dataset({f"x{k}": (("chain", "draw"), [[0.5]], {"t": "x" * 9999}) for k in range(9)}),
    }  # fmt: skip
    for what, dataset in sums.items():
        path = tmp_path / f"{what}.nc"
        tree = xarray.DataTree.from_dict({"/posterior": dataset})
        write(path, run_folder.formats.packed_posterior(tree))
        read = partial(run_folder.formats.read_posterior, path)
        with monkeypatch.context() as patch:
            patch.setattr(run_folder.formats, "check_file", lambda *_: None)
            said = refused(tmp_path, partial(read, 70_000), path.name)
        assert "bytes of memory" in (said or ""), what
        assert "--trust" in (said or "")
        xarray.testing.assert_identical(read(None), tree)


def npy(values: Any, **header: Any) -> bytes:
    """A member of an archive, with a header that may lie."""
    values, out = np.asarray(values), io.BytesIO()
    told = {"descr": values.dtype.str, "fortran_order": False, "shape": values.shape, **header}
    np.lib.format.write_array_header_1_0(out, told)
    return out.getvalue() + values.tobytes()


def objects() -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return out.getvalue()


X = np.arange(8.0)
MEMBERS: dict[str, tuple[str, bytes]] = {
    "pickled": ("x.npy", objects()),
    "no array": ("x.npy", b"hello"),
    "text": ("x.txt", b"hello"),
    "no kind": ("x", b"hello"),
    "more than there is": ("x.npy", npy(X, shape=(10**12,))),
    "less than there is": ("x.npy", npy(X, shape=(3,))),
    "a negative length": ("x.npy", npy(X, shape=(-1,))),
    "lengths that overflow": ("x.npy", npy(X, shape=(2**32, 2**32))),
    "nothing along a huge dim": ("x.npy", npy(X, shape=(0, 2**62))),
    "numbers of no bytes": ("x.npy", npy(X, shape=(10**9,), descr="|V0")),
    "texts of no bytes": ("x.npy", npy(X, shape=(10**9,), descr="<U0")),
    "objects": ("x.npy", npy(X, descr="|O")),
    "records": ("x.npy", npy(X, descr=[("a", "<f8")])),
    "a long header": ("x.npy", b"\x93NUMPY\x02\x00" + struct.pack("<I", 10**6) + b"(" * 10**6),
    "a header that is code": ("x.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", 60) + b"__import__('os')".ljust(59) + b"\n"),
    "a deep header": ("x.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", 9001) + b"(" * 9000 + b"\n"),
    "of another version": ("x.npy", b"\x93NUMPY\x09\x00" + bytes(100)),
    "a bomb": ("x.npy", npy(np.zeros(0), shape=(75 * 2**20,)) + bytes(600 * 2**20)),
}  # fmt: skip


def test_what_unpacks_to_much_needs_trust(tmp_path: Path) -> None:
    """However large the file itself is."""
    path, values = tmp_path / "data.npz", np.random.default_rng(0).random(1000)
    np.savez_compressed(path, x=values)
    size = 128 + values.nbytes
    np.testing.assert_array_equal(run_folder.formats.read_arrays(path, size)["x"], values)
    with pytest.raises(RunFolderError, match=rf"unpacks to {size:,} bytes.*trust=True"):
        run_folder.formats.read_arrays(path, size - 1)


def archive(members: Mapping[str, bytes] | list[tuple[str, bytes]]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for name, content in members.items() if isinstance(members, Mapping) else members:
            file.writestr(name, content)
    return out.getvalue()


@pytest.mark.filterwarnings("ignore")
def test_an_archive_of_what_is_no_array_is_refused(tmp_path: Path) -> None:
    path, good = tmp_path / "data.npz", npy(X)
    read = run_folder.formats.read_arrays
    write(path, archive({"y.npy": good}))
    np.testing.assert_array_equal(read(path)["y"], X)
    for what, (name, content) in MEMBERS.items():
        write(path, archive({"y.npy": good, name: content}))
        assert refused(tmp_path, lambda: read(path), path.name) is not None, what
    whole = archive({"y.npy": good})
    bad = whole.replace(X.tobytes()[8:12], b"abcd")
    raw = (
        archive([("y.npy", good), ("y.npy", good)]), archive({f"{k}.npy": good for k in range(10_100)}),
        whole[: len(whole) // 2], bad if bad != whole else b"", b"", b"PK", whole[:6] + b"\x01" + whole[7:-20],
    )  # fmt: skip
    for content in raw:
        write(path, content)
        assert refused(tmp_path, lambda: read(path), path.name) is not None


def column(values: Any) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(2, "bmi", pa.array(values(len(table))))


TABLES: dict[str, Callable[[pa.Table], pa.Table]] = {
    "a billion rows of nothing": lambda t: pa.table({"age": pa.nulls(10**9)}),
    "lists": column(lambda n: [[1.0]] * n),
    "records": column(lambda n: [{"a": 1}] * n),
    "metadata that are no JSON": lambda t: t.replace_schema_metadata({b"pandas": b"{no"}),
    "deep metadata": lambda t: t.replace_schema_metadata({b"pandas": b"[" * 100_000}),
    "odd metadata": lambda t: t.replace_schema_metadata({b"pandas": b'{"index_columns": ["no"], "columns": 3}'}),
}  # fmt: skip
UNSUITED: dict[str, Callable[[pa.Table], pa.Table]] = {
    "a column is missing": lambda t: t.drop(["bmi"]),
    "the response is missing": lambda t: t.drop(["progression"]),
    "no rows": lambda t: t.slice(0, 0),
    "no columns": lambda t: t.select([]),
    "text": column(lambda n: [ESCAPES] * n),
    "nulls": column(lambda n: pa.nulls(n)),
    "not a number": column(lambda n: [float("nan")] * n),
    "infinite": column(lambda n: [float("inf")] * n),
    "bytes": column(lambda n: [b"\xff"] * n),
}


def change_table(folder: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    path = folder / "data.parquet"
    table = change(pyarrow.parquet.read_table(path))
    path.unlink()
    pyarrow.parquet.write_table(table, path)
    rehash(folder, path.name)


@pytest.mark.filterwarnings("ignore")
def test_a_table_that_is_none_is_refused(small: Path, tmp_path: Path) -> None:
    for what, change in TABLES.items():
        folder = copy(small, tmp_path / "run")
        change_table(folder, change)
        path = folder / "data.parquet"
        said = refused(folder, lambda path=path: run_folder.formats.read_table(path), path.name)  # type: ignore[misc]
        assert said is not None, what


def change_config(**changes: Any) -> Change:
    """Changes config.json; a name with a dot is of an inner object."""

    def act(folder: Path) -> None:
        tree = json.loads((folder / "config.json").read_text())
        for name, value in changes.items():
            put(tree, tuple(name.split("__")), value)
        write(folder / "config.json", json.dumps(tree).encode())
        rehash(folder, "config.json")

    return act


def change_tensors(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Change:
    def act(folder: Path) -> None:
        path = folder / "params.safetensors"
        write(path, serialised(change(tensors_of(path.read_bytes()))))
        rehash(folder, path.name)

    return act


COLUMNS = ["age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6"]
FORMULAS = [
    "progression ~ bmi**99999999",
    "progression ~ (bmi + bp)**999999999",
    "progression ~ bmi + np.exp(9**9**9**9)",
    "progression ~ bmi + np.exp((9**9)**9)",
    "progression ~ bmi + np.exp(9**(9**9))",
    "progression ~ np.log(bmi)**(bp**(9**(9**9)))",
    "progression ~ poly(bmi, 100000000)",
    "progression ~ bs(bmi, 100000000)",
    f"progression ~ {'*'.join(COLUMNS * 3)}",
    f"progression ~ ({' + '.join(COLUMNS)})**10",
    f"progression ~ {'(' * 5000}bmi{')' * 5000}",
    f"progression ~ {'-' * 5000}bmi",
    f"progression ~ {' + '.join(['bmi'] * 20000)}",
    "progression ~ C(bmi)*C(bp)*C(s1)*C(s2)*C(s3)*C(s4)*C(s5)*C(s6)",
    "progression ~ __import__('os').system('true')",
    "progression ~ ", "~", ESCAPES, f"progression ~ {ESCAPES}", "progression ~ nothing",
]  # fmt: skip
LOADED: dict[str, Change] = {
    **{f"formula {text[:40]!r}": change_config(options__formula=text) for text in FORMULAS},
    **{f"table: {what}": (lambda folder, change=change: change_table(folder, change)) for what, change in UNSUITED.items()},  # type: ignore[misc]
    "no such model": change_config(model="nothing"),
    "a path for a model": change_config(model="../../x.py:f"),
    "another model": change_config(model="vae"),
    "another option": change_config(options__priors="flat"),
    "an option of another type": change_config(options__columns=3),
    "no such device": change_config(settings__dtype="float128"),
    "a rate of text": change_config(settings__learning_rate="x"),
    "an unknown optimiser": change_config(settings__optimizer="os.system"),
    "no such objective": change_config(settings__elbo=ESCAPES),
    "no such site": change_config(reparameterised=[ESCAPES]),
    "a guide of another model": change_config(guide="encoder"),
    "no parameters": change_tensors(lambda _: {}),
    "no guide's parameters": change_tensors(lambda t: {k: v for k, v in t.items() if "parameter" not in k}),
    "other shapes": change_tensors(lambda t: {k: torch.zeros(3, 5, 7) for k in t}),
    "no values": change_tensors(lambda t: {k: torch.full_like(v, torch.nan) for k, v in t.items()}),
    "empty tensors": change_tensors(lambda t: {k: torch.zeros(0) for k in t}),
    "an unknown start": change_tensors(lambda t: {**t, "start.nothing": torch.zeros(2)}),
    "half a form": change_tensors(lambda t: {**t, "form.x.root": torch.zeros(2)}),
    "half a proposal": change_tensors(lambda t: {**t, "proposal.shares": torch.zeros(2)}),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", range(3))
def test_what_a_run_cannot_be_made_of_is_refused(part: int, small: Path, tmp_path: Path) -> None:
    for what, change in list(LOADED.items())[part::3]:
        folder = copy(small, tmp_path / "run")
        change(folder)
        try:
            said = refused(folder, lambda folder=folder: er.load(folder))  # type: ignore[misc]
        except ElbowroomError as error:
            assert "your own guide" in str(error)  # noqa: PT017  # which must be given
            continue
        assert said is not None, what


@pytest.mark.filterwarnings("ignore")
def test_sizes_are_not_larger_than_what_was_fitted(autoencoder: Fit, tmp_path: Path) -> None:
    """Networks are made before their parameters are read."""
    folder = autoencoder.save(tmp_path / "run")
    sizes: tuple[tuple[dict[str, Any], str], ...] = (
        ({"latent": 10**9}, "give a whole number from"), ({"hidden": [10**9]}, "hidden"),
        ({"latent": 9_999}, "give at most 64"), ({"hidden": "9000,9000"}, "larger than"),
    )  # fmt: skip
    for number, (changes, said) in enumerate(sizes):
        each = copy(folder, tmp_path / f"{number}")
        change_config(**{f"options__{name}": value for name, value in changes.items()})(each)
        assert said in (refused(each, lambda each=each: er.load(each)) or "")  # type: ignore[misc]


HISTORIES = [
    b"", b"step,elbo\n1,2\n", b"step,elbo,learning_rate\n1,abc,3\n",
    b"step,elbo,learning_rate\n1,2,3,4,5\n1,2\n", b"step,elbo,learning_rate\n1,2,\0\0\n",
    b"step,elbo,elbo,learning_rate\n1,2,3,4\n", b'step,elbo,learning_rate\n1,"2,3\n',
    b"step,elbo,learning_rate\n1,\xff,3\n", b"step,elbo,learning_rate\n" + b"1" * 400 + b",2,3\n",
    b"step,elbo,learning_rate\n1," + b"x" * 10**6 + b",3\n",
    b",".join(b"c%d" % k for k in range(10**4)), f"step,elbo,learning_rate\n1,{ESCAPES},3\n".encode(),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_a_history_of_other_columns_or_cells_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    for content in HISTORIES:
        write(path, content)
        said = refused(tmp_path, lambda: run_folder.formats.read_history(path), path.name)
        assert said is not None, content[:80]


ASKED: dict[str, Any] = {
    "model": "bayesian_regression", "registered_model": True, "guide": "mean_field",
    "engine": "svi", "seed": 7, "draws": 300, "keep_local": True, "reference": True,
    "fallback": "nuts", "options": {"formula": "progression ~ bmi", "steps": 30}, "start": {},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_what_is_asked_of_a_run_that_goes_on_is_looked_at(
    regression: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("elbowroom.pipeline.fitting.Work.kept", lambda *_, **__: None)
    data, tried = regression.problem.data.head(20), 0
    folder = tmp_path / "run"
    with unfinished(folder, Request(ASKED, data)) as checkpoints:
        pass
    path = checkpoints.with_name("request.json")
    content = path.read_bytes()
    for k, place in enumerate(places(json.loads(content))):
        for value in ((), (VALUES[k % len(VALUES)],)):
            tree = json.loads(content)
            put(tree, place, *value)
            write(path, as_json(tree))
            rehash(path.parent, path.name)
            with_function = "your own"  # model or guide, which must be given
            try:
                refused(folder, lambda: er.resume(folder))
            except ElbowroomError as error:
                assert with_function in str(error)  # noqa: PT017
            tried += 1
    assert tried > 50
    write(path, content)
    rehash(path.parent, path.name)
    table = checkpoints.with_name("data.parquet")
    whole = table.read_bytes()
    write(table, whole[:-1])
    assert "data.parquet' was changed" in (refused(folder, lambda: er.resume(folder)) or "")
    table.unlink()
    assert "data.parquet' is missing" in (refused(folder, lambda: er.resume(folder)) or "")
    write(table, whole)
    assert refused(folder, lambda: er.resume(folder)) is None
    moved = folder / "unfinished"
    moved.rename(tmp_path / "elsewhere")
    moved.symlink_to(tmp_path / "elsewhere")
    assert "is a link" in (refused(folder, lambda: er.resume(folder)) or "")


@pytest.mark.parametrize(
    "command", ["summary", "reference", "predict", "score", "embed", "manifold"]
)
def test_commands_end_with_a_sentence(command: str, small: Path, tmp_path: Path) -> None:
    folder = copy(small, tmp_path / "run")
    listed = read_manifest(folder)
    change_config(engine=ESCAPES)(folder)
    given = ["--data", "diabetes"] if command == "predict" else []
    for expected in ("engine: ", "' was "):
        found = CliRunner().invoke(app, [command, str(folder), *given])
        assert isinstance(found.exception, RunFolderError)
        assert expected in str(found.exception)
        write_manifest(folder, listed)  # in which the file has another hash
    # What would be replaced is looked at first.
    said = "' was not written by Elbowroom, or was changed since" if command == "reference" else ""
    assert said in str(found.exception)


def test_what_fails_with_the_numbers_of_a_folder_is_a_sentence(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise ValueError(f"scale {ESCAPES}")

    monkeypatch.setattr("elbowroom.report.terminal.show_run", failing)
    found = CliRunner().invoke(app, ["summary", str(run)])
    assert isinstance(found.exception, RunFolderError)
    assert f"cannot be used: scale {WRITTEN_OUT}" in str(found.exception)


@pytest.mark.filterwarnings("ignore")
def test_text_of_a_folder_does_not_steer_a_terminal(small: Path, tmp_path: Path) -> None:
    folder = copy(small, tmp_path / "run")
    path = folder / "posterior.nc"
    tree = run_folder.formats.read_posterior(path)
    tree["posterior"] = tree["posterior"].to_dataset().assign_coords(predictor=["bmi", ESCAPES])
    write(path, run_folder.formats.packed_posterior(tree))
    run = json.loads((folder / "run.json").read_text())
    run.update(notes=[ESCAPES], reason=ESCAPES)
    run["verdict"].update(reasons=[ESCAPES], advice=ESCAPES)
    write(folder / "run.json", json.dumps(run).encode())
    change_config(model=ESCAPES, guide=ESCAPES)(folder)
    rehash(folder, "posterior.nc", "run.json")
    found = CliRunner().invoke(app, ["summary", str(folder)])
    assert found.exit_code == 0, found.output
    bell = r"\x07"  # which rich leaves out
    assert found.output.casefold().count(WRITTEN_OUT.removesuffix(bell)) == 7
    assert not HIDDEN & set(found.output)
