"""What a newcomer does first, with the package that is installed: run it in an empty folder.

Fits, saves, loads, predicts and exports. The first step that fails is named, and a warning fails
as an error does: it is the newcomer who would read it, and a later version makes it an error.
"""

import contextlib
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

SHOWN = ("torch", "numpy", "pandas", "xarray", "arviz", "h5netcdf", "nutpie", "typer", "pydantic")
TOLERANCE = 0.2
"""Nats between ArviZ's elpd and ours: it smooths fewer weights, taking the draws for a chain's."""


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    """Ends the script with the step's name where anything in it fails or warns."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    except Exception:
        traceback.print_exc()
        sys.exit(f"newcomer: '{name}' failed on Python {sys.version.split()[0]}")


def command(*words: str) -> None:
    """Runs the installed command, as a user's shell does."""
    program = Path(sys.executable).with_name("elbowroom")
    done = subprocess.run([program, *words], capture_output=True, text=True, check=False)
    if done.returncode or "Warning" in done.stderr:
        raise RuntimeError(f"{words}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}")


with contextlib.suppress(ImportError), warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the libraries' own, on import
    import arviz

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
with step("to_arviz"):
    exported = [fit.to_arviz(), loaded.to_arviz()]
with step("ArviZ"):
    for posterior in (*exported, arviz.from_netcdf("run/posterior.nc")):
        if len(arviz.summary(posterior, kind="stats")) != len(fit.summary()):
            raise RuntimeError(f"{arviz.summary(posterior)}\nis not\n{fit.summary()}")
        loo = arviz.loo(posterior)
        elpd = float(loo.elpd if hasattr(loo, "elpd") else loo.elpd_loo)
        if abs(elpd - fit.diagnostics["elpd_loo"]) > TOLERANCE:
            raise RuntimeError(f"elpd {elpd}, where the fit says {fit.diagnostics['elpd_loo']}")
with step("the command line"):
    command("fit", "--help")
    data = ("--data", "diabetes")
    command("fit", "bayesian_regression", *data, "--guide", "laplace", "--output", "again")
    command("reference", "again", "--draws", "200")
    command("predict", "again", *data, "--output", "predictions.csv")

shown = ", ".join(f"{name} {version(name)}" for name in SHOWN)
print(f"Python {sys.version.split()[0]}, {shown}: fitted, saved, loaded, predicted, exported")
