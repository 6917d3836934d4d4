"""Kills real fits at random moments with SIGKILL, resumes them, and compares every bit.

Run `python benchmarks/kills.py`; about an hour beside other work.

A fit is done once without being stopped, in a process of its own. Then again and again, each time
in a new process that is killed after a random share of that time, and resumed in another one, which
is itself killed for one in three; the last one ends. Its parameters, its history of ELBOs and
learning rates and its posterior must then be those of the first fit to the last bit. Checkpoints
are written every 50 ms instead of every 30 s, so that kills fall before, between and into them, and
into the correction and the saving.

Every second fit replaces a run that has ended, in a folder with a note of its user's. Whenever it
is killed, the folder must load as the old run or as the new one, and the note must be there.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import elbowroom as er
from elbowroom.engines.svi import checkpoint
from elbowroom.errors import RunFolderError
from elbowroom.run.folder import load
from elbowroom.run.output import holds_unfinished
from elbowroom.run.unfinished import read_request

SECONDS = 0.05
LONG = 36_000.0
"""Seconds that a fit may take."""


def switches(y: Tensor) -> None:
    on = pyro.sample("on", dist.Bernoulli(torch.tensor(0.3)))
    level = pyro.sample("level", dist.Normal(torch.tensor(0.0), 1.0))
    pyro.sample("y", dist.Normal(level + 3 * on, 1.0), obs=y)


def switches_guide(y: Tensor) -> None:
    logit = pyro.param("logit", torch.zeros(()))
    baseline: Any = {"baseline": {"use_decaying_avg_baseline": True}}
    pyro.sample("on", dist.Bernoulli(logits=logit), infer=baseline)
    mean, spread = pyro.param("mean", torch.zeros(())), pyro.param("spread", torch.zeros(()))
    pyro.sample("level", dist.Normal(mean, spread.exp()))


CASES: dict[str, tuple[Any, Any, Any, dict[str, Any]]] = {
    "regression, all rows": ("bayesian_regression", None, "full_rank", {"engine": "svi"}),
    "regression, minibatches": (
        "bayesian_regression", None, "mean_field", {"steps": 2500, "batch_size": 50},
    ),
    "vae, rows held out": (
        "vae", None, "encoder", {"steps": 600, "hidden": (20,), "draws": 100},
    ),
    "discrete, baselines": (
        switches, {"y": torch.tensor(2.0)}, switches_guide, {"steps": 1200, "draws": 100},
    ),
    "regression, fixed draws": ("bayesian_regression", None, "full_rank", {}),
    "mixture, fixed draws": ("gaussian_mixture", "iris", "auto", {"components": 2}),
    "regression, compiled": (
        "bayesian_regression", None, "mean_field", {"steps": 20_000, "compile": True},
    ),
}  # fmt: skip


def child(work: Callable[[], None]) -> int:
    """A process of its own, with all that is imported here."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            checkpoint.Checkpoints.__init__.__defaults__ = (SECONDS, None)  # type: ignore[misc]
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return pid


OLD = 7
"""The seed of the run that is replaced."""


def fit(case: str, folder: Path, seed: int = 1) -> Callable[[], None]:
    model, data, guide, options = CASES[case]

    def work() -> None:
        # What the clock cuts short on a busy machine is not the same twice.
        kept: dict[str, Any] = {"checkpoints": folder, "overwrite": True, "time": LONG}
        er.fit(model, data, guide, seed=seed, **kept, **options).save(folder, overwrite=True)

    return work


def resume(case: str, folder: Path) -> Callable[[], None]:
    model, _, guide, _ = CASES[case]

    def work() -> None:
        own = {} if isinstance(model, str) else {"model": model, "guide": guide}
        er.resume(folder, **own).save(folder)

    return work


def content(folder: Path) -> dict[str, bytes]:
    """All numbers of a run, as bytes."""
    run = load(folder)
    found = {name: value.numpy().tobytes() for name, value in run.parameters.items()}
    found["history"] = run.history.to_numpy().tobytes()
    for name, values in run.posterior["posterior"].data_vars.items():
        found[f"posterior {name}"] = values.to_numpy().tobytes()
    return found


def broken(folder: Path) -> str:
    """What is wrong with a folder in which a run was being replaced."""
    try:
        seed = load(folder).config.seed
    except RunFolderError as error:
        return str(error)
    note = folder / "note.txt"
    if not note.is_file() or note.read_text() != "mine":
        return "the note is lost"
    return "" if seed in (OLD, 1) else f"the seed is {seed}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill fits at random moments and resume them.")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=20, help="runs between two reports")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    chance = random.Random(options.seed)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        expected, seconds = {}, {}
        for case in CASES:
            began = time.perf_counter()
            _, status = os.waitpid(child(fit(case, root / "whole")), 0)
            assert status == 0, case
            seconds[case] = time.perf_counter() - began
            print(f"{case}: {seconds[case]:.1f} s", flush=True)
            expected[case] = content(root / "whole")
            shutil.rmtree(root / "whole")
        for number in range(options.runs):
            # Of the last one, whose compiler takes long, one in twenty.
            cases = list(CASES)
            case = cases[-1] if number % 20 == 19 else cases[number % (len(cases) - 1)]
            folder = root / f"run{number}"
            replaces = (number // (len(cases) - 1)) % 2 == 1
            if replaces:
                os.waitpid(child(fit(case, folder, seed=OLD)), 0)
                (folder / "note.txt").write_text("mine")
            work, kill, ended, wrong = fit(case, folder), True, -1, ""
            while ended and not wrong:
                pid = child(work)
                if kill:
                    time.sleep(chance.random() * seconds[case])
                    os.kill(pid, signal.SIGKILL)
                ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                if ended not in (0, -signal.SIGKILL):
                    break
                if ended:
                    wrong = broken(folder) if replaces else ""
                    there = any(folder.glob("unfinished/checkpoints/*.safetensors"))
                    counts["killed with a checkpoint" if there else "killed before one"] += 1
                # Killed before the folder was there: the command is given again.
                # What a run that has ended could go on from is another one's.
                begun = holds_unfinished(folder) and read_request(folder).asked["seed"] == 1
                work = (resume if begun else fit)(case, folder)
                kill = chance.random() < 1 / 3
            finished = (folder / "config.json").exists()
            found = content(folder) if finished else {}
            differ = [name for name, values in expected[case].items() if found.get(name) != values]
            same = not (differ or wrong)
            if not same:
                print(f"run {number}, {case}: {wrong} {', '.join(differ)} differ", flush=True)
            counts["same to the last bit" if same else f"NOT THE SAME: {case}"] += 1
            shutil.rmtree(folder, ignore_errors=True)
            if (number + 1) % options.every == 0:
                print(number + 1, dict(counts), flush=True)
    sys.exit(int(counts["same to the last bit"] != options.runs))


if __name__ == "__main__":
    main()
