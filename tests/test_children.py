"""A busy machine makes no test fail, and no process outlives the test that started it."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

TESTS = Path(__file__).parent

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
print(child.pid, flush=True)
child.wait()
"""


def runs(pid: int) -> bool:
    """Whether a process is there, and not only waits to be waited for."""
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are read in /proc")
def test_a_child_and_what_it_started_end_with_the_test(children: Any) -> None:
    process = children.start([sys.executable, "-c", PARENT], stdout=-1)
    grandchild = int(process.stdout.readline())
    assert runs(grandchild)
    children.end()
    assert process.returncode == -9
    children.wait_until(children.start(["sleep", "3600"]), lambda: not runs(grandchild))
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of Linux alone")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_ends_with_tests_that_are_killed(children: Any) -> None:
    reading, writing = os.pipe()
    killed = os.fork()
    if killed == 0:
        os.write(writing, str(children.start(["sleep", "3600"]).pid).encode())
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(killed, 0)
    child = int(os.read(reading, 20))
    children.wait_until(children.start(["sleep", "3600"]), lambda: not runs(child))
    for end in (reading, writing):
        os.close(end)


def test_waiting_ends_with_the_process(children: Any) -> None:
    process = children.start([sys.executable, "-c", ""])
    children.wait_until(process, lambda: False)
    assert process.returncode == 0


def test_examples_have_no_deadline_and_are_the_same_in_every_run() -> None:
    chosen = settings.default
    assert chosen is not None
    assert (chosen.deadline, chosen.database, chosen.derandomize) == (None, None, True)
    assert HealthCheck.too_slow in chosen.suppress_health_check


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: path.name)
def test_processes_are_started_by_the_fixture_alone(path: Path) -> None:
    """Else nobody ends them where the test fails."""
    text = path.read_text(encoding="utf-8")
    if path.name in ("conftest.py", Path(__file__).name):
        return
    for word in ("subprocess.run", "Popen", "check_call", "check_output", "deadline="):
        assert word not in text
