"""Tests the lowest versions that are declared, by what a newcomer does: `lowest.py FOLDER [WHEEL]`.

Makes an environment in FOLDER with the lowest version of each direct dependency, which uv chooses,
and the newest of theirs that go with these; and runs `newcomer.py` in it. torch stays the one of
constraints.txt, since PyPI has older ones with gigabytes of CUDA alone.
"""

import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]


def run(*command: str | Path, cwd: Path | None = None) -> None:
    """Runs a command, and ends the script where it fails."""
    print("+", *command, flush=True)
    code = subprocess.run(command, cwd=cwd, check=False).returncode
    if code:
        sys.exit(f"lowest: {command[0]} ended with {code}")


def pinned(name: str) -> str:
    """The line of constraints.txt for a distribution."""
    lines = (TOP / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith(f"{name}=="))


def main(folder: Path, wheel: str) -> None:
    """Makes the environment and runs the newcomer's steps in it."""
    folder.mkdir(parents=True)
    tools, plain = folder / "tools", folder / "lowest"
    for place in (tools, plain):
        run(sys.executable, "-m", "venv", place)
    python, lowest = plain / "bin/python", folder / "lowest.txt"
    run(tools / "bin/pip", "install", "--quiet", "uv")
    (folder / "torch.txt").write_text(pinned("torch") + "\n", encoding="utf-8")
    run(
        tools / "bin/uv", "pip", "compile", "--quiet", "--resolution", "lowest-direct",
        "--extra", "reference", "--override", folder / "torch.txt", "--python", python,
        "--cache-dir", folder / "cache", "--no-header", "--no-annotate", "--output-file", lowest,
        TOP / "pyproject.toml",
    )  # fmt: skip
    # torch first: its own build is chosen, and brings what it needs.
    run(python, "-m", "pip", "install", "--quiet", "--requirement", folder / "torch.txt")
    run(python, "-m", "pip", "install", "--quiet", "--constraint", lowest, f"{wheel}[reference]")
    run(python, "-m", "pip", "check")
    (folder / "work").mkdir()
    run(python, TOP / ".ci/newcomer.py", cwd=folder / "work")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2] if len(sys.argv) > 2 else str(TOP))
