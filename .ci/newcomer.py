"""What a newcomer does first, with the package as installed: `newcomer.py`, in an empty folder.

Fits, saves, loads, predicts and exports. Ends with the name of the step that fails. A warning
that is caused by a line of the package fails too: later versions will make it an error.
"""

import contextlib
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

warnings.filterwarnings("error", module=r"elbowroom\b")


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    """Ends the script with the step's name where anything in it fails."""
    try:
        yield
    except Exception:
        traceback.print_exc()
        sys.exit(f"newcomer: '{name}' failed on Python {sys.version.split()[0]}")


def command(*words: str) -> str:
    """What the installed command prints; its warnings are errors as well."""
    program = Path(sys.executable).with_name("elbowroom")
    done = subprocess.run([program, *words], capture_output=True, text=True, check=False)
    if done.returncode or "Warning" in done.stderr:
        raise RuntimeError(f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


with step("import"):
    import elbowroom as er

    if "site-packages" not in (er.__file__ or ""):
        raise RuntimeError(f"{er.__file__} is not the installed package")
with step("fit"):
    fit = er.fit("bayesian_regression", "diabetes", seed=1)
with step("save"):
    fit.save("run")
with step("load"):
    loaded = er.load("run")
    if not loaded.summary().equals(fit.summary()):
        raise RuntimeError(f"{loaded.summary()}\nis not\n{fit.summary()}")
with step("predict"):
    loaded.predict(er.load_dataset("diabetes").head())
with step("compare"):
    er.compare("eight_schools" if False else "hierarchical_normal", guides=["mean_field"], seed=1)
with step("to_arviz"), warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of ArviZ's own, on import and of rows with a high Pareto k
    import arviz

    for exported in (fit.to_arviz(), loaded.to_arviz(), arviz.from_netcdf("run/posterior.nc")):
        if len(arviz.summary(exported)) != len(fit.summary()):
            raise RuntimeError(f"{arviz.summary(exported)}\nis not\n{fit.summary()}")
        loo = float(getattr(arviz.loo(exported), "elpd_loo", None) or arviz.loo(exported).elpd)
        if abs(loo - fit.diagnostics["elpd_loo"]) > 0.2:
            raise RuntimeError(f"elpd {loo}, which is {fit.diagnostics['elpd_loo']}")
with step("command line"):
    for words in (
        ["--help"],
        ["fit", "--help"],
        ["models"],
        ["fit", "gaussian_mixture", "--data", "iris", "--seed", "1", "--output", "mixture"],
        ["summary", "mixture"],
        ["predict", "mixture", "--data", "iris", "--output", "predictions.csv"],
    ):
        command(*words)

names = ("torch", "numpy", "pandas", "xarray", "arviz", "h5netcdf", "typer", "pydantic")
print(f"Python {sys.version.split()[0]}:", ", ".join(f"{name} {version(name)}" for name in names))
