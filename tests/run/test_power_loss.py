"""A loss of power at any moment of writing: what is left loads, or says what is missing.

The writes of a run are recorded as the states of a small file system, in the manner of ALICE
(Pillai et al., 2014, "All file systems are not created equal") and CrashMonkey. Names of files are
journaled: they are lost from some moment on, none of them after the last folder that was
synchronised. The content of a file that was not synchronised since it was written may be lost as
well, whatever its name is by now.
"""

import os
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import elbowroom as er
from elbowroom.engines.svi.checkpoint import Checkpoints
from elbowroom.run import output
from elbowroom.run.folder import load
from elbowroom.run.output import CHECKPOINTS, UNFINISHED, holds_unfinished
from elbowroom.run.unfinished import read_request

Names = dict[str, int]
"""The inode of each path; a folder has none."""
FOLDER = 0


@dataclass
class Disk:
    """What was written below a folder, moment by moment.

    Attributes:
        root: The folder.
        names: Of each moment.
        content: Of each inode at each moment.
        synchronised: The moment at which each inode was, last; as of each moment.
        journaled: The last moment whose names cannot be lost any more; as of each moment.
    """

    root: Path
    names: list[Names] = field(default_factory=list)
    content: list[dict[int, bytes]] = field(default_factory=list)
    synchronised: list[dict[int, bytes]] = field(default_factory=list)
    journaled: list[int] = field(default_factory=list)

    def look(self) -> None:
        """One more moment, if anything has changed since the last one."""
        names, content = {}, {}
        for each in sorted(self.root.rglob("*")):
            inode = FOLDER if each.is_dir() else each.stat().st_ino
            names[each.relative_to(self.root).as_posix()] = inode
            if inode != FOLDER:
                content[inode] = each.read_bytes()
        if self.names and names == self.names[-1] and content == self.content[-1]:
            return
        self.names.append(names)
        self.content.append(content)
        self.synchronised.append(dict(self.synchronised[-1]) if self.synchronised else content)
        self.journaled.append(self.journaled[-1] if self.journaled else 0)

    def synchronise(self, descriptor: int) -> None:
        """A file's content, or all names so far, cannot be lost any more."""
        self.look()
        now = os.fstat(descriptor)
        if now.st_ino in self.content[-1]:
            self.synchronised[-1][now.st_ino] = self.content[-1][now.st_ino]
        else:
            self.journaled[-1] = len(self.names) - 1

    def after_a_loss(
        self, moment: int, names: int, kept: Callable[[], bool]
    ) -> tuple[tuple[str, bytes | None], ...]:
        """What is left: each path, with a file's content.

        Args:
            moment: Of the loss of power.
            names: The moment whose names are left.
            kept: Whether the content of the next file that was not synchronised is.
        """
        left: list[tuple[str, bytes | None]] = []
        for name, inode in self.names[names].items():
            content = None
            if inode != FOLDER:
                latest = self.content[moment].get(inode, self.content[names][inode])
                safe = self.synchronised[moment].get(inode, b"")
                content = latest if latest == safe or kept() else safe
            left.append((name, content))
        return tuple(left)


@contextmanager
def watched(root: Path) -> Iterator[Disk]:
    """Records what a block writes below a folder."""
    disk = Disk(root)
    disk.look()
    with pytest.MonkeyPatch.context() as patch:

        def around(function: Callable[..., Any]) -> Callable[..., Any]:
            def called(*args: Any, **kwargs: Any) -> Any:
                disk.look()
                try:
                    return function(*args, **kwargs)
                finally:
                    disk.look()

            return called

        for name in ("rename", "replace", "link", "unlink", "remove", "mkdir", "rmdir"):
            patch.setattr(os, name, around(getattr(os, name)))
        patch.setattr(output, "_exchanged", around(output._exchanged))
        fsync = os.fsync

        def synchronised(descriptor: int) -> None:
            fsync(descriptor)
            disk.synchronise(descriptor)

        patch.setattr(os, "fsync", synchronised)
        yield disk
    disk.look()


def losses(disk: Disk, chance: random.Random) -> Iterator[Path]:
    """What may be left after a loss of power at each moment, one folder after the other."""
    seen = set()
    for moment, first in enumerate(disk.journaled):
        for names in {first, moment, *(chance.randint(first, moment) for _ in range(2))}:
            for kept in (lambda: False, lambda: True, lambda: chance.random() < 0.5):
                seen.add(disk.after_a_loss(moment, names, kept))
    for left in seen:
        with tempfile.TemporaryDirectory() as name:
            for path, content in left:
                place = Path(name, path)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.mkdir(exist_ok=True) if content is None else place.write_bytes(content)
            yield Path(name)


OPTIONS: dict[str, Any] = {
    "data": pd.DataFrame({"y": np.arange(20.0) % 7, "x": np.arange(20.0)}),
    "guide": "mean_field", "engine": "svi", "steps": 10, "draws": 100, "formula": "y ~ x",
}  # fmt: skip


def content(folder: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in folder.iterdir() if each.is_file()}


@pytest.mark.parametrize("before", [False, True])
def test_a_run_is_whole_or_the_one_before_it_is(before: bool, tmp_path: Path) -> None:
    root = tmp_path / "disk"
    root.mkdir()
    old, new = (er.fit("bayesian_regression", seed=seed, **OPTIONS) for seed in (1, 2))
    known: list[dict[str, bytes]] = [{}]
    if before:
        old.save(root / "run")
        (root / "run" / "note.txt").write_text("mine")
        known = [content(root / "run")]
    with watched(root) as disk:
        new.save(root / "run", overwrite=before)
    known.append(content(root / "run"))
    assert load(root / "run").config.seed == 2
    assert len(disk.names) > 10
    seen = []
    for left in losses(disk, random.Random(0)):
        assert not before or (left / "run").exists()
        seen.append(known.index(content(left / "run") if (left / "run").exists() else {}))
    assert set(seen) == {0, 1}


def test_a_fit_goes_on_or_is_to_be_given_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of checkpoints that are written as often as it looks, in a folder that holds results."""
    monkeypatch.setattr(Checkpoints.__init__, "__defaults__", (0.0, None))
    root = tmp_path / "disk"
    root.mkdir()
    er.fit("bayesian_regression", seed=1, **OPTIONS).save(root / "run")
    assert load(root / "run").config.seed == 1
    with watched(root) as disk:
        er.fit("bayesian_regression", seed=2, checkpoints=root / "run", overwrite=True, **OPTIONS)
    resumed, results = 0, set()
    for left in losses(disk, random.Random(0)):
        files = [each for each in sorted((left / "run").iterdir()) if each.is_file()]
        results.add(tuple((each.name, each.read_bytes()) for each in files))
        if holds_unfinished(left / "run"):
            assert read_request(left / "run").asked["seed"] == 2
            states = Checkpoints(left / "run" / UNFINISHED / CHECKPOINTS)
            resumed += states.begin() is not None
    assert len(results) == 1  # that were there stay as they are
    assert resumed > 3
