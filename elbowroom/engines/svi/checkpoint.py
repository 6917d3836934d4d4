"""The state of a run on disk, from which it goes on as if it had never stopped."""

import contextlib
import hashlib
import json
import os
import random
import re
import signal
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from elbowroom.problem.process import SIGNALS

SECONDS = 30.0
"""Between two checkpoints."""
KEPT = 2
"""Checkpoints of a run that are kept: where the last is damaged, the one before it is used."""
CHECKPOINT = re.compile(r"run(\d+)-step(\d+)-([0-9a-f]{64})\.safetensors")
"""The name of a checkpoint, with the hash of its content."""
PARTIAL = ".elbowroom-"
"""How the name of what is not yet written whole begins."""
LARGEST = 2**32
"""Bytes of a checkpoint that is read: a network of 100 million parameters with its optimiser."""


def random_states(devices: list[torch.device]) -> dict[str, Any]:
    """The states of torch's, numpy's and Python's random numbers."""
    kind, keys, *rest = np.random.get_state()
    version, words, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state(device) for device in devices],
        "numpy": [kind, torch.as_tensor(np.asarray(keys, dtype=np.int64)), *rest],
        "python": [version, list(words), gauss],
    }


def set_random_states(states: dict[str, Any], devices: list[torch.device]) -> None:
    """Puts them back."""
    torch.set_rng_state(states["torch"])
    for device, state in zip(devices, states["cuda"], strict=True):
        torch.cuda.set_rng_state(state, device)
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))


def placed_tensors(state: Any, device: torch.device) -> Any:
    """A state with its tensors on a device."""
    if isinstance(state, Tensor):
        return state.to(device)
    if isinstance(state, dict):
        return {key: placed_tensors(value, device) for key, value in state.items()}
    return [placed_tensors(each, device) for each in state] if isinstance(state, list) else state


def packed(state: Any) -> bytes:
    """Nested dicts and lists of tensors, numbers and strings as bytes that hold no code.

    Example:
        >>> unpacked(packed({"step": 3, "rates": [0.1, float("inf")]}))
        {'step': 3, 'rates': [0.1, inf]}
    """
    tensors: dict[str, Tensor] = {}

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            name = str(len(tensors))
            tensors[name] = value.detach().cpu().clone().contiguous()
            return {"tensor": name}
        if isinstance(value, dict):
            return {"dict": [[key, plain(each)] for key, each in value.items()]}
        if isinstance(value, (list, tuple)):
            return [plain(each) for each in value]
        return value

    structure = json.dumps(plain(state))
    return save(tensors, {"state": structure})


def unpacked(content: bytes) -> Any:
    """What `packed` was given, lists in the place of tuples, tensors on the CPU."""
    header = int.from_bytes(content[:8], "little")  # its length, as the format has it
    structure = json.loads(json.loads(content[8 : 8 + header])["__metadata__"]["state"])
    tensors = load(content)

    def read(value: Any) -> Any:
        if isinstance(value, dict):
            if "tensor" in value:
                return tensors[value["tensor"]]
            return {key: read(each) for key, each in value["dict"]}
        return [read(each) for each in value] if isinstance(value, list) else value

    return read(structure)


class Checkpoints:
    """The checkpoints of a fit in a folder, which is made when the first is written.

    The name of a checkpoint holds the hash of its content, so that one that is cut short or damaged
    is known, and the one before it is used. Nothing in it is run when it is read.

    Attributes:
        failure: Why the last one could not be written; the fit goes on without.

    Args:
        folder: Where they lie.
        seconds: Between two of them.
        say: Called with a line when one cannot be written.
    """

    def __init__(
        self, folder: Path, seconds: float = SECONDS, say: Callable[[str], None] | None = None
    ) -> None:
        self.folder, self.seconds, self.say = folder, seconds, say
        self.failure: str | None = None
        self._last = time.monotonic()
        self._signal: int | None = None
        self._run = -1
        self._optimising = False

    def begin(self) -> Any:
        """To be called when a run of the optimiser begins: its latest state, if it has one.

        The runs of a fit are counted, since one that is resumed does them in the same order.
        """
        self._run += 1
        self._optimising = True
        return self.latest(self._run)

    def end(self) -> None:
        """To be called when a run of the optimiser ends; obeys a signal that came at its end."""
        self._optimising = False
        asked, self._signal = self._signal, None
        if asked is not None:
            _obey(asked)

    @property
    def due(self) -> bool:
        """Whether it is time for one, or a signal has asked for it."""
        return self._signal is not None or time.monotonic() - self._last >= self.seconds

    def write(self, step: int, state: Any) -> None:
        """Writes one, whole or not at all; a disk that is full is remembered, and no error.

        Raises:
            SystemExit: After a signal that ends the process.
            KeyboardInterrupt: After Ctrl-C.
        """
        content = packed(state)
        digest = hashlib.sha256(content).hexdigest()
        path = self.folder / f"run{self._run}-step{step:010d}-{digest}.safetensors"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            atomically(path, content)
        except OSError as error:
            if self.failure is None and self.say is not None:
                self.say(f"no checkpoint could be written: {error.strerror or error}.")
            self.failure = error.strerror or str(error)
        else:
            self.failure = None
            for _, old in self._found(self._run)[KEPT:]:
                with contextlib.suppress(OSError):
                    if _whole(old) is not None:  # another's file stays
                        old.unlink()
        self._last = time.monotonic()
        asked, self._signal = self._signal, None
        if asked is not None:
            _obey(asked)

    def _found(self, run: int) -> list[tuple[int, Path]]:
        """Steps and paths of a run's checkpoints, the last first."""
        found = []
        for path in self.folder.glob(f"run{run}-step*"):
            parts = CHECKPOINT.fullmatch(path.name)
            if parts is not None:
                found.append((int(parts[2]), path))
        return sorted(found, reverse=True)

    def latest(self, run: int) -> Any:
        """The state in a run's last whole checkpoint; None if there is none."""
        for _, path in self._found(run):
            with contextlib.suppress(Exception):  # a damaged one makes libraries raise any kind
                content = _whole(path)
                if content is not None:
                    return unpacked(content)
        return None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Writes a checkpoint on SIGUSR1; on SIGTERM, SIGHUP and Ctrl-C too, before these end it.

        A second signal does not wait for the step to end.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def heard(number: int, frame: FrameType | None) -> None:
            again, self._signal = self._signal == number, None
            if again or not self._optimising:
                _obey(number)
            self._signal = number

        before = {number: signal.signal(number, heard) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _whole(path: Path) -> bytes | None:
    """The content of a checkpoint; None if it is not what was written."""
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode) or found.st_size > LARGEST:
        return None  # a pipe or a device may have no end
    content = path.read_bytes()
    return content if hashlib.sha256(content).hexdigest() in path.name else None


def _obey(number: int) -> None:
    """Ends the process as the signal asks; SIGUSR1 does not."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    if number != getattr(signal, "SIGUSR1", None):
        raise SystemExit(128 + number)


def permissions() -> int:
    """Of a new file, as everybody's programs give them; those of temporary files are narrower."""
    now = os.umask(0)
    os.umask(now)
    return 0o666 & ~now


def atomically(path: Path, content: bytes) -> None:
    """Writes a file that is there whole after a crash, or not at all."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=PARTIAL, delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.chmod(file.name, permissions())
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
    if hasattr(os, "O_DIRECTORY"):  # the name is as durable as the content
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
