"""A test of trust by families: is a fit that says it can be trusted right?

Run `python benchmarks/trust.py --output trust.json`; about ten minutes on one core. `--families
banana,ring` takes some families, `--per-family N` that many posteriors of each, `--jobs N` as many
processes, of one thread each.

A family (see `trust_families.py` and `trust_models.py`; `--list` names them) makes posteriors of
one kind at random strengths, in models as users write them or as bare densities. The truth is exact
draws or a quadrature, never Elbowroom's own.
Each is fitted by `er.fit(model, data, seed=...)` with all defaults.

The error is the worst over all scalars of |mean - truth| / sd and |log(sd / truth)|; of scalars
whose sd 4,000 exact draws would not give to 10%, of the 5, 50 and 95% quantiles, in units of the
distance between the outer ones. Two standard errors of 4,000 exact draws are taken off first, so
that their chance alone decides nothing: 0.03 of a mean, 0.02 of a Normal's sd. A fit is `right`
below 0.1 and `usable` below 0.3. The columns count posteriors:

- `right`, `usable` (right ones too): of all fits, trusted or not;
- `flagged`: not trusted;
- `SILENT`: trusted and not usable;
- `0.1-0.3`: trusted, usable, and not right: a warning sign;
- `alarms`: right, not trusted, and of scalars with sds that draws can give alone: false alarms;
- `refused`: an error of Elbowroom's; `crash`: any other; `endless`: longer than `--limit` seconds;
- `s`: the median of a fit's seconds, of the processor, as are those of `--limit`.

Then follow each SILENT and each false alarm, with what was drawn at random about it.
"""

import argparse
import json
import signal
import sys
import time
import traceback
import zlib
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed

# The checkout that the benchmark lies in, whether or not it is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import elbowroom as er
from benchmarks.trust_models import FAMILIES
from benchmarks.trust_truths import Case, Sites
from elbowroom.errors import ElbowroomError

RIGHT, USABLE = 0.1, 0.3
HEAD = ("family", "count", "right", "usable", "flagged", "SILENT", "0.1-0.3", "alarms", "refused",
        "crash", "endless", "s")  # fmt: skip
FAILED = ("refused", "crash", "endless")


class Endless(BaseException):
    """A fit took too long; not an Exception, which the fit might take for a failure of its own."""


def _stop(*_: Any) -> None:
    raise Endless


def make(family: str, number: int, seed: int) -> Case:
    """One posterior, the same whatever others are made."""
    return FAMILIES[family](np.random.default_rng([zlib.crc32(family.encode()), number, seed]))


def sites_of(fit: Any) -> Sites:
    variables = fit.posterior["posterior"].data_vars
    return {str(k): v.values.reshape(-1, *v.shape[2:]) for k, v in variables.items()}


def measure(family: str, number: int, seed: int, limit: int) -> dict[str, Any]:
    """Fits one posterior and compares it with its truth."""
    torch.set_num_threads(1)
    case = make(family, number, seed)
    truths = case.truths()
    row: dict[str, Any] = {
        "family": family, "number": number, "seed": seed, "strength": case.strength,
        "finite": all(truth.resolved for truth in truths.values()),
    }  # fmt: skip
    rungs: list[str] = []
    # The processor's time, which does not depend on what else runs on the machine.
    signal.signal(signal.SIGPROF, _stop)
    signal.setitimer(signal.ITIMER_PROF, limit)
    began = time.process_time()
    try:
        fit = er.fit(case.model, case.data, seed=seed + number, report=rungs.append)
    except Endless:
        row["outcome"] = "endless"
        row["message"] = "; ".join([f"longer than {limit} s", *rungs])
    except ElbowroomError as raised:
        row["outcome"], row["message"] = "refused", str(raised)
    except Exception as raised:
        row["outcome"] = "crash"
        row["message"] = traceback.format_exception_only(raised)[-1].strip()
    else:
        found = case.named(sites_of(fit))
        errors = {name: truth.error(found[name]) for name, truth in truths.items()}
        name, (error, noise) = max(errors.items(), key=lambda item: item[1][0] - item[1][1])
        row |= {
            "outcome": "fit",
            "trusted": fit.verdict.trusted,
            "verdict": str(fit.verdict),
            "scalar": name,
            "error": error,
            "judged": max(0.0, error - noise),
            "mean": [float(np.mean(found[name])), truths[name].mean],
            "sd": [float(np.std(found[name])), truths[name].sd],
            "k_hat": fit.measures.get("corrected_k_hat", fit.measures.get("k_hat")),
            "guide": fit.posterior["posterior"].attrs["guide"],
        }
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    row["seconds"] = time.process_time() - began
    return row


def kind(row: dict[str, Any]) -> str:
    """What a fit is: "silent", "off", "alarm", or nothing of note."""
    if row["outcome"] != "fit":
        return str(row["outcome"])
    if row["trusted"]:
        if row["judged"] < RIGHT:
            return ""
        return "off" if row["judged"] < USABLE else "silent"
    return "alarm" if row["judged"] < RIGHT and row["finite"] else ""


def counts(name: str, rows: list[dict[str, Any]]) -> list[str]:
    fits = [row for row in rows if row["outcome"] == "fit"]
    kinds = [kind(row) for row in rows]
    numbers = [
        len(rows),
        sum(row["judged"] < RIGHT for row in fits),
        sum(row["judged"] < USABLE for row in fits),
        sum(not row["trusted"] for row in fits),
        *(kinds.count(each) for each in ("silent", "off", "alarm", *FAILED)),
    ]
    return [name, *map(str, numbers), f"{median(row['seconds'] for row in rows):.1f}"]


def described(row: dict[str, Any]) -> str:
    strength = ", ".join(f"{name} {value:.3g}" for name, value in row["strength"].items())
    line = f"{row['family']} {row['number']} (seed {row['seed']}): {strength}"
    if row["outcome"] != "fit":
        return f"{line}\n    {row['outcome']}: {row['message']}"
    return (
        f"{line}\n    {row['scalar']} off by {row['error']:.2f}, {row['judged']:.2f} beyond noise: "
        "mean {:.3g} for {:.3g}, sd {:.3g} for {:.3g}; ".format(*row["mean"], *row["sd"])
        + f"k-hat {row['k_hat']:.2f}, {row['guide']}, {row['seconds']:.1f} s\n    "
        + row["verdict"].replace("\n", "\n    ")
    )


def show(rows: list[dict[str, Any]]) -> None:
    groups = {name: [row for row in rows if row["family"] == name] for name in FAMILIES}
    for line in (HEAD, *(counts(name, group) for name, group in groups.items() if group)):
        print(f"{line[0]:20s}" + "".join(f"{each:>9s}" for each in line[1:]))
    total = counts("all", rows)
    print(f"{total[0]:20s}" + "".join(f"{each:>9s}" for each in total[1:]))
    for title, wanted in (
        ("SILENT", "silent"), ("False alarms", "alarm"), *((each, each) for each in FAILED)
    ):  # fmt: skip
        found = [row for row in rows if kind(row) == wanted]
        if found:
            print(f"\n{title}: {len(found)} of {len(rows)}\n")
            print("\n".join(described(row) for row in found))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--families", help="names, with commas between them; by default all")
    parser.add_argument("--per-family", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--limit", type=int, default=120, help="seconds of the processor for a fit")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--list", action="store_true", help="name the families and end")
    parser.add_argument("--verbose", action="store_true", help="print each fit when it is made")
    arguments = parser.parse_args()
    if arguments.list:
        for name, make_case in FAMILIES.items():
            print(f"{name:20s}{(make_case.__doc__ or '').splitlines()[0]}")
        return
    names = arguments.families.split(",") if arguments.families else list(FAMILIES)
    unknown = [name for name in names if name not in FAMILIES]
    if unknown:
        parser.error(f"--families: there is no family {', '.join(unknown)}; see --list")
    tasks = [
        delayed(measure)(name, number, arguments.seed, arguments.limit)
        for name in names
        for number in range(arguments.per_family)
    ]
    rows = []
    for row in Parallel(n_jobs=arguments.jobs, return_as="generator")(tasks):
        rows.append(row)
        if arguments.verbose:
            print(described(row), file=sys.stderr, flush=True)
        if arguments.output is not None:
            arguments.output.write_text(json.dumps(rows, indent=1) + "\n")
    show(rows)


if __name__ == "__main__":
    main()
