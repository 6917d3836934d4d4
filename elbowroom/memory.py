"""The memory that work would take, beside what is free, asked before it is begun.

What is free is the least of three: what the machine says is available, what is left of the control
group's limit (that of a container or a batch job), and what is left of the process's own limit. No
package in use looks at the second one.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from pathlib import Path

from elbowroom.errors import DataError, OptionError

GROUPS = Path("/sys/fs/cgroup")
"""Where Linux shows control groups."""
PROCESS = Path("/proc")
"""Where Linux shows processes and their memory."""


@dataclass(frozen=True)
class Allowance:
    """How much of the memory that is free work may ask for."""

    share: float = 0.9
    """Of what is free: the rest is for what the estimates leave out."""
    ignored: int = 256 * 1024**2
    """Bytes below which nothing is asked: what is free need not be read for small work."""


ALLOWANCE = Allowance()


def free() -> float:
    """Bytes that this process may still take; infinity where nothing tells.

    Example:
        >>> free() > 0
        True
    """
    return min((_available(), *_left_in_groups(), _left_of_limit()), default=inf)


def check_memory(
    what: str, size: float, edit: str, kind: type[DataError] | type[OptionError]
) -> None:
    """Refuses work that would not fit into memory.

    Args:
        what: Names the option or the file.
        size: Bytes that it would take.
        edit: What to change.
        kind: Of the error.

    Raises:
        DataError, OptionError: With both numbers.

    Example:
        >>> check_memory("--draws 100", 1e6, "give fewer", OptionError)
        >>> check_memory("--draws 100", 1e15, "give fewer", OptionError)
        Traceback (most recent call last):
        elbowroom.errors.OptionError: --draws 100 would take about 1,000,000 GB of memory, and ...
    """
    if size <= ALLOWANCE.ignored:
        return
    there = free()
    if size > ALLOWANCE.share * there:
        raise kind(
            f"{what} would take about {_gigabytes(size)} of memory, and {_gigabytes(there)} are "
            f"free: {edit}."
        )


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:,.0f} GB" if size >= 1e11 else f"{size / 1e9:.3g} GB"


def _available() -> float:
    """What the machine says is available."""
    try:
        for line in (PROCESS / "meminfo").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name == "MemAvailable":
                return 1024.0 * int(rest.split()[0])
    except (OSError, ValueError):
        pass  # not on Linux
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (OSError, ValueError, AttributeError):
        return inf


def _left_in_groups() -> Iterator[float]:
    """What is left in the control group of the process, and in those that hold it."""
    try:
        lines = (PROCESS / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, place = line.split(":", 2)
        if number == "0":
            root, most, used = GROUPS, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            root, most = GROUPS / "memory", "memory.limit_in_bytes"
            used = "memory.usage_in_bytes"
        else:
            continue
        # In a container, the group's own folder may be shown as the root.
        path = root / place.lstrip("/")
        for folder in (path, *path.parents):
            if folder == root.parent:
                break
            limit, taken = _read(folder / most), _read(folder / used)
            if limit is not None and taken is not None:
                yield max(0.0, limit - (taken - _cached(folder)))


def _cached(folder: Path) -> float:
    """Bytes of files that a group keeps and gives back when they are needed."""
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
    except OSError:
        return 0.0
    found = dict(line.split()[:2] for line in lines)
    return float(found.get("inactive_file", 0))


def _read(path: Path) -> float | None:
    try:
        return float(path.read_text())  # "max" where there is no limit
    except (OSError, ValueError):
        return None


def _left_of_limit() -> float:
    """What is left of the address space that the process may have (ulimit -v)."""
    try:
        from resource import RLIM_INFINITY, RLIMIT_AS, getrlimit
    except ImportError:  # on Windows
        return inf
    limit = getrlimit(RLIMIT_AS)[0]
    if limit == RLIM_INFINITY:
        return inf
    try:
        pages = int((PROCESS / "self" / "statm").read_text().split()[0])
    except (OSError, ValueError):
        return float(limit)
    return max(0.0, limit - float(pages * os.sysconf("SC_PAGE_SIZE")))
