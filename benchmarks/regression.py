"""Regressions beside Bambi: the same formula, table and priors, by whole commands.

Run `python benchmarks/regression.py --bambi PYTHON --folder FOLDER`, where PYTHON is the
interpreter of an environment of its own with `pip install bambi`; about an hour on one core, nearly
all of it for Bambi. `--only sleep,fair` takes some of the formulas, `--list` names them.

The tables are statsmodels' and scikit-learn's own copies. Each formula is fitted by the command
`elbowroom fit bayesian_regression` with all defaults and `--seed 1`. Bambi has the priors that
`er.priors` states, which are ours by default. It runs as a script of its own
(`regression_bambi.py`), in one process:

- as its users do, with 4 chains of 1,000 + 1,000 draws, one after the other. This is timed twice:
  the first time, when what is new in the formula is compiled, and again, when all of it is kept;
- in between as the reference, with 4 chains of 1,000 + 2,500 draws and a higher `target_accept`,
  and again with four times as many until the Monte Carlo errors of all means and sds are at most
  0.02 sds and 2 %. `--folder` keeps these, and what Bambi compiles.

Both commands have one thread, and are timed from the shell to the numbers, with all imports; ours
`--repeats` times, of which the median counts. The columns:

- `mean`: the largest |mean - reference| / sd over all quantities, effects of groups included;
- `sd`: the largest of sd / reference and its inverse;
- `s`: seconds of the wall clock, and of the processor with all children; of Bambi the first time
  and again;
- `ratio`: Bambi's seconds of the processor divided by ours, the first time and again.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd

# The checkout that the benchmark lies in, whether or not it is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import elbowroom as er
from elbowroom.models._families import FAMILIES
from elbowroom.models._priors import read_prior

ROOT = Path(__file__).resolve().parents[1]
PEER = Path(__file__).with_name("regression_bambi.py")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
MEANS, SDS = 0.1, 1.1
"""What a fit may be off by."""
MONTE_CARLO = 0.02
"""Largest Monte Carlo error of the reference, in sds."""
CHAINS = {"draws": 1000, "tune": 1000, "target_accept": 0.8}
LONG = {"draws": 2500, "tune": 1000, "target_accept": 0.95}
LONGEST = 40_000
"""Draws of a chain of the reference, at most."""

FAMILY = {
    "normal": "gaussian", "student_t": "t", "negative_binomial": "negativebinomial",
    "ordinal": "cumulative",
}  # fmt: skip
"""Bambi's names of families, where they differ."""
PARAMETERS = {"shape": "alpha", "precision": "kappa", "overdispersion": "alpha"}
"""Bambi's names of parameters, where they differ; its alpha of counts is 1 / overdispersion."""
KINDS = {
    "normal": ("Normal", ("mu", "sigma")),
    "student_t": ("StudentT", ("nu", "mu", "sigma")),
    "half_student_t": ("HalfStudentT", ("nu", "sigma")),
    "exponential": ("Exponential", ("lam",)),
    "gamma": ("Gamma", ("alpha", "beta")),
    "inverse_gamma": ("InverseGamma", ("alpha", "beta")),
}
"""PyMC's names of priors and of their numbers."""


@dataclass(frozen=True)
class Case:
    """A regression.

    Attributes:
        formula: As both take it, but for `||`, which Bambi's `|` means.
        family: Ours.
        table: The data.
        link: Of both.
    """

    formula: str
    family: str
    table: Callable[[], pd.DataFrame]
    link: str


def of(name: str, rows: int | None = None, **more: Callable[[pd.DataFrame], Any]) -> Any:
    """A table of statsmodels, or some of its rows, with more columns."""

    def load() -> pd.DataFrame:
        import statsmodels.api as sm

        data = getattr(sm.datasets, name).load_pandas().data
        if rows is not None:
            data = data.sample(rows, random_state=0).sort_index().reset_index(drop=True)
        return data.assign(**more)

    return load


def scaled(columns: str) -> str:
    """Terms of columns whose units defeat the sampler's start, as its users divide them."""
    return " + ".join(f"scale({column})" for column in columns.split())


def standardised(name: str, columns: list[str]) -> Callable[[], pd.DataFrame]:
    """With columns whose means are zero: Bambi's thresholds are where the predictors are zero."""

    def load() -> pd.DataFrame:
        data = of(name)()
        return data.assign(**{c: (data[c] - data[c].mean()) / data[c].std() for c in columns})

    return load


ANES = ["logpopul", "selfLR", "age", "educ", "income"]
CASES: dict[str, Case] = {
    "longley": Case(
        f"TOTEMP ~ {scaled('GNPDEFL GNP UNEMP ARMED POP YEAR')}", "normal", of("longley"),
        "identity",
    ),
    "diabetes": Case(
        "progression ~ bs(bmi, df=5) + bp + s5 + sex", "normal",
        lambda: er.load_dataset("diabetes"), "identity",
    ),
    "stackloss": Case(
        "STACKLOSS ~ AIRFLOW + WATERTEMP + ACIDCONC", "student_t", of("stackloss"), "identity"
    ),
    "spector": Case("GRADE ~ GPA + TUCE + PSI", "bernoulli", of("spector"), "logit"),
    "fair": Case(
        "affair ~ age * religious + yrs_married + rate_marriage + C(occupation)", "bernoulli",
        of("fair", affair=lambda data: (data["affairs"] > 0).astype(int)), "logit",
    ),
    "anes96": Case(f"PID ~ {' + '.join(ANES)}", "ordinal", standardised("anes96", ANES), "logit"),
    "iris": Case(
        "species ~ petal_length + sepal_width", "categorical",
        lambda: er.load_dataset("iris"), "softmax",
    ),
    "star98": Case(
        f"p(NABOVE, all) ~ {scaled('LOWINC PERASIAN PERBLACK PERHISP PCTCHRT')}", "binomial",
        of("star98", all=lambda data: data["NABOVE"] + data["NBELOW"]), "logit",
    ),
    "cpunish": Case(
        "EXECUTIONS ~ scale(INCOME) + PERPOVERTY + PERBLACK + SOUTH + offset(log(VC100k96))",
        "poisson", of("cpunish"), "log",
    ),
    "randhie": Case(
        "mdvis ~ lncoins * idp + lpi + fmde + physlm + disea + hlthg + hlthf + hlthp",
        "negative_binomial", of("randhie", rows=4000), "log",
    ),
    "scotland": Case(
        "YES ~ scale(COUTAX) + UNEMPF + MOR + ACT + scale(GDP) + AGE", "gamma", of("scotland"),
        "log",
    ),
    "statecrime": Case(
        f"share ~ {scaled('hs_grad poverty single urban')}", "beta",
        of("statecrime", share=lambda data: data["white"] / 100), "logit",
    ),
    "grunfeld": Case("invest ~ value + capital + (1 | firm)", "normal", of("grunfeld"), "identity"),
    "grunfeld slopes": Case(
        "invest ~ value + capital + (capital || firm)", "normal", of("grunfeld"), "identity"
    ),
}  # fmt: skip


def term_of(column: str) -> str:
    """The term of a column, such as clinic of clinic[south]."""
    return re.sub(r"\[[^\]]*\]", "", column)


def peer_prior(words: str, name: str) -> dict[str, Any]:
    """A prior as PyMC has it."""
    own = read_prior(words.removesuffix(" where all predictors are at their means"), name)
    kind, numbers = KINDS[own.kind]
    return {"name": kind, **dict(zip(numbers, own.numbers, strict=True))}


def peer_priors(case: Case, words: Mapping[str, str]) -> dict[str, Any]:
    """The priors of a regression as Bambi takes them, from ours in words."""
    found: dict[str, Any] = {}
    for name, each in words.items():
        if not each or name.startswith("thresholds"):
            continue
        prior = peer_prior(each, name)
        if name.startswith("coefficients["):
            column = name.removeprefix("coefficients[").removesuffix("]")
            term = found.setdefault(term_of(column), [])
            if prior not in term or column != term_of(column):
                term.append(prior)
        elif name.endswith("_sigma"):
            effect = {"name": "Normal", "mu": 0.0, "sigma": prior}
            found[name.removesuffix("_sigma")] = effect
        elif name == "overdispersion":  # exponential(rate), so that 1 / it is inverse Gamma
            found["alpha"] = {"name": "InverseGamma", "alpha": 1.0, "beta": prior["lam"]}
        else:
            found[{"intercept": "Intercept"}.get(name, PARAMETERS.get(name, name))] = prior
    return {name: joined(each) if isinstance(each, list) else each for name, each in found.items()}


def joined(priors: list[dict[str, Any]]) -> dict[str, Any]:
    """The prior of a term, from those of its columns."""
    if len(priors) == 1:
        return priors[0]
    keys = [key for key in priors[0] if key != "name"]
    return {"name": priors[0]["name"]} | {key: [each[key] for each in priors] for key in keys}


def own_priors(case: Case, data: pd.DataFrame) -> dict[str, str]:
    """In words, in the order of the columns; a column of several classes once."""
    view = er.priors(
        "bayesian_regression", data, formula=case.formula, family=case.family, link=case.link,
        seed=1,
    )  # fmt: skip
    found: dict[str, str] = {}
    for name, words in view.table["prior"].items():
        named = str(name)
        if FAMILIES[case.family].classes:  # coefficients[b, x], intercept[b]
            named = re.sub(r"^coefficients\[[^,]*, ", "coefficients[", named)
            named = "intercept" if named.startswith("intercept[") else named
        found.setdefault(named, str(words))
    return found


@dataclass(frozen=True)
class Taken:
    """Seconds of a command: of the wall clock, and of the processor with all children."""

    wall: float
    processor: float


def timed(command: list[str], environment: Mapping[str, str]) -> Taken:
    """Runs a command to its end; one that fails is shown and ends the benchmark."""
    began, before = time.perf_counter(), os.times()
    run = subprocess.run(
        command, env={**os.environ, **dict.fromkeys(THREADS, "1"), **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    wall, after = time.perf_counter() - began, os.times()
    if run.returncode not in (0, 3):  # 3: not trusted
        sys.exit(f"{' '.join(command)}\n{run.stdout}\n{run.stderr}")
    used = after.children_user - before.children_user
    return Taken(wall, used + after.children_system - before.children_system)


class Peer:
    """Bambi with the priors of a case, in a folder of its own."""

    def __init__(self, python: Path, folder: Path, case: Case, data: pd.DataFrame) -> None:
        response = case.formula.partition("~")[0].strip()
        self.python, self.folder = python, folder
        self.spec: dict[str, Any] = {
            "data": str(folder / "data.csv"), "formula": case.formula.replace("||", "|"),
            "family": FAMILY.get(case.family, case.family), "link": case.link,
            "response": response, "priors": peer_priors(case, own_priors(case, data)),
            "levels": data[response].nunique() if FAMILIES[case.family].levels else 0,
            "invert": ["overdispersion"] if case.family == "negative_binomial" else [],
        }  # fmt: skip

    def run(self, name: str, chains: Mapping[str, Any], seed: int) -> tuple[Taken, dict[str, Any]]:
        """Of so many draws, with what it found."""
        path, output = self.folder / f"{name}-spec.json", self.folder / f"{name}.json"
        spec = {**self.spec, **chains, "seed": seed, "output": str(output)}
        path.write_text(json.dumps(spec, indent=1), encoding="utf-8")
        compiled = f"base_compiledir={self.folder.parent / 'compiled'}"
        taken = timed(
            [str(self.python), str(PEER), str(path)],
            {"PYTHONPATH": "", "PYTENSOR_FLAGS": compiled},
        )
        return taken, json.loads(output.read_text(encoding="utf-8"))

    def usual(self, name: str, again: bool) -> dict[str, Any]:
        """Seconds of the run that users make, kept in the folder."""
        path = self.folder / f"{name}-timed.json"
        if again or not path.exists():
            taken, found = self.run(name, CHAINS, seed=1)
            line = {**asdict(taken), "divergences": found["divergences"]}
            path.write_text(json.dumps(line), encoding="utf-8")
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return kept

    def reference(self) -> dict[str, Any]:
        """Moments whose Monte Carlo errors are small, kept in the folder."""
        path, chains = self.folder / "reference.json", dict(LONG)
        if path.exists():
            kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return kept
        while True:
            _, found = self.run("reference", chains, seed=2)
            found["error"] = monte_carlo_error(found)
            if found["error"] <= MONTE_CARLO or chains["draws"] * 4 > LONGEST:
                path.write_text(json.dumps(found), encoding="utf-8")
                return found
            chains["draws"] *= 4


def monte_carlo_error(found: Mapping[str, Any]) -> float:
    """The largest of a mean or an sd, in sds."""
    worst = 0.0
    for each in found["moments"].values():
        sd = np.array(each["sd"])
        for key in ("mcse_mean", "mcse_sd"):
            worst = max(worst, float(np.max(np.array(each[key]) / sd)))
    return worst


def own_moments(posterior: Any, case: Case) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Means and sds of our posterior under Bambi's names."""
    mean, sd = (getattr(posterior, kind)(("chain", "draw")) for kind in ("mean", "std"))
    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name in map(str, posterior.data_vars):
        values = mean[name].to_numpy(), sd[name].to_numpy()
        if name == "coefficients":
            terms: dict[str, list[int]] = {}
            for place, column in enumerate(posterior["predictor"].to_numpy()):
                terms.setdefault(term_of(str(column)), []).append(place)
            for term, places in terms.items():
                found[term] = tuple(each[..., places].ravel() for each in values)
        else:
            own = {"intercept": "Intercept", "thresholds": "threshold"}.get(name, name)
            if name in PARAMETERS and name != "overdispersion":
                own = PARAMETERS[name]
            found[own] = tuple(np.ravel(each) for each in values)
    return found


def off(
    own: Mapping[str, tuple[np.ndarray, np.ndarray]], theirs: Mapping[str, Any]
) -> tuple[int, float, float, str]:
    """How many numbers there are, the largest distances of a mean and an sd, and of which."""
    count, mean, sd, worst = 0, 0.0, 1.0, ""
    for name, (means, sds) in own.items():
        wanted = theirs[name]
        shift = float(np.max(np.abs(means - wanted["mean"]) / np.array(wanted["sd"])))
        ratio = float(np.exp(np.max(np.abs(np.log(sds / np.array(wanted["sd"]))))))
        assert len(means) == len(wanted["mean"]), name
        worst = name if shift > mean else worst
        count, mean, sd = count + len(means), max(mean, shift), max(sd, ratio)
    return count, mean, sd, worst


def measured(name: str, python: Path, folder: Path, repeats: int, again: bool) -> dict[str, Any]:
    """A line of the table."""
    case, place = CASES[name], folder / name.replace(" ", "_")
    place.mkdir(parents=True, exist_ok=True)
    data = case.table()
    data.to_csv(place / "data.csv", index=False)
    data = pd.read_csv(place / "data.csv")
    peer = Peer(python, place, case, data)
    first = peer.usual("first", again)
    reference = peer.reference()
    later = peer.usual("again", again)
    run = place / "run"
    command = [
        sys.executable, "-m", "elbowroom", "fit", "bayesian_regression",
        "--data", str(place / "data.csv"), "--formula", case.formula, "--family", case.family,
        "--link", case.link, "--seed", "1", "--output", str(run), "--overwrite",
    ]  # fmt: skip
    times = [timed(command, {"PYTHONPATH": str(ROOT)}) for _ in range(repeats)]
    fit = er.load(run, trust=True)
    own = own_moments(fit.posterior["posterior"], case)
    count, mean, sd, worst = off(own, reference["moments"])
    wall, processor = (median(getattr(t, kind) for t in times) for kind in ("wall", "processor"))
    return {
        "name": name, "formula": case.formula, "family": case.family, "rows": len(data),
        "quantities": count, "mean": mean, "sd": sd, "worst": worst,
        "verdict": fit.verdict.level, "trusted": fit.verdict.trusted,
        "wall": wall, "processor": processor, "bambi_first": first, "bambi_again": later,
        "reference_error": reference["error"], "reference_divergences": reference["divergences"],
        "ratio_first": first["processor"] / processor,
        "ratio_again": later["processor"] / processor,
    }  # fmt: skip


def shown(line: Mapping[str, Any]) -> str:
    """A row of the table in Markdown."""
    cells = [
        f"`{line['formula'].replace('|', '&#124;')}`" if "|" not in line["formula"] else
        f"<code>{line['formula'].replace('|', '&#124;')}</code>",
        line["family"], f"{line['rows']:,}", f"{line['quantities']}", f"{line['mean']:.3f}",
        f"{line['sd']:.3f}", line["verdict"], f"{line['wall']:.1f}", f"{line['processor']:.1f}",
        *(f"{line[f'bambi_{time}'][kind]:.1f}" for time in ("first", "again")
          for kind in ("wall", "processor")),
        f"{line['ratio_first']:.1f}", f"{line['ratio_again']:.1f}",
    ]  # fmt: skip
    return f"| {line['name']} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bambi", type=Path, help="the interpreter that has Bambi")
    parser.add_argument("--folder", type=Path, help="keeps tables, references and runs")
    parser.add_argument("--only", help="names, with commas between them; by default all")
    parser.add_argument("--repeats", type=int, default=3, help="runs of our command")
    parser.add_argument("--again", action="store_true", help="time Bambi again where it was timed")
    parser.add_argument("--output", type=Path, help="a JSON file of all numbers")
    parser.add_argument("--list", action="store_true", help="name the formulas and end")
    asked = parser.parse_args()
    if asked.list:
        for name, case in CASES.items():
            print(f"{name:18s}{case.family:20s}{case.formula}")
        return
    if asked.bambi is None or asked.folder is None:
        parser.error("give --bambi PYTHON and --folder FOLDER, or --list")
    names = asked.only.split(",") if asked.only else list(CASES)
    unknown = [name for name in names if name not in CASES]
    if unknown:
        parser.error(f"--only: there is no formula {', '.join(unknown)}; see --list")
    lines = []
    for name in names:
        lines.append(measured(name, asked.bambi, asked.folder, asked.repeats, asked.again))
        print(shown(lines[-1]), flush=True)
        if lines[-1]["reference_error"] > MONTE_CARLO:
            print(f"{name}: the reference has not converged, and this line does not count")
        if asked.output is not None:
            asked.output.write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")
    lines = [line for line in lines if line["reference_error"] <= MONTE_CARLO]
    if not lines:
        sys.exit("no reference has reached its Monte Carlo error")
    right = [line for line in lines if line["mean"] < MEANS and line["sd"] < SDS]
    print(
        f"{sum(line['trusted'] for line in right)} of {len(lines)} trusted and right, "
        f"{sum(line['trusted'] for line in lines if line not in right)} trusted and not right; "
        f"the median ratio is {median(line['ratio_first'] for line in lines):.1f} the first time, "
        f"and {median(line['ratio_again'] for line in lines):.1f} again"
    )


if __name__ == "__main__":
    main()
