"""A regression in Bambi, from the shell to its summary: what `regression.py` runs beside a fit.

Run `PYTHON benchmarks/regression_bambi.py SPEC.json`, where PYTHON has `pip install bambi`. The
file names the table, the formula, the family, the priors and the numbers of draws; the moments of
all quantities, with their effective draws, are written to the path that it gives.
"""

import json
import sys
from pathlib import Path
from typing import Any

import arviz as az
import bambi as bmb
import numpy as np
import pandas as pd


def prior(given: dict[str, Any]) -> Any:
    """A prior of Bambi; its numbers may be one for each column, or priors themselves."""
    numbers = {
        name: prior(value) if isinstance(value, dict) else np.array(value) if isinstance(
            value, list) else value
        for name, value in given.items() if name != "name"
    }  # fmt: skip
    return bmb.Prior(given["name"], auto_scale=False, **numbers)


def uniform_shares(levels: int) -> Any:
    """The prior of thresholds with which the shares of levels are uniform where eta is zero."""
    import pymc

    def thresholds(name: str, **_: Any) -> Any:
        shares = pymc.Dirichlet(f"{name}_shares", np.ones(levels))
        below = pymc.math.cumsum(shares)[:-1]
        return pymc.Deterministic(name, pymc.math.log(below / (1 - below)))

    return bmb.Prior("UniformShares", auto_scale=False, dist=thresholds)


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    data = pd.read_csv(spec["data"])
    if spec["levels"]:
        data[spec["response"]] = pd.Categorical(data[spec["response"]], ordered=True)
    priors = {name: prior(each) for name, each in spec["priors"].items()}
    if spec["levels"]:
        priors["threshold"] = uniform_shares(spec["levels"])
    link = None if spec["family"] == "categorical" else spec["link"]
    model = bmb.Model(spec["formula"], data, family=spec["family"], link=link, priors=priors)
    fit = model.fit(
        draws=spec["draws"], tune=spec["tune"], chains=4, cores=1, random_seed=spec["seed"],
        target_accept=spec["target_accept"], progressbar=False,
    )  # fmt: skip
    print(az.summary(fit))
    if "overdispersion" in spec["invert"]:
        fit.posterior["overdispersion"] = 1 / fit.posterior["alpha"]
    moments = {}
    for name, values in fit.posterior.data_vars.items():
        one = fit.posterior[[name]]
        numbers = {
            "mean": values.mean(("chain", "draw")), "sd": values.std(("chain", "draw")),
            "mcse_mean": az.mcse(one, method="mean")[name],
            "mcse_sd": az.mcse(one, method="sd")[name], "r_hat": az.rhat(one)[name],
        }  # fmt: skip
        moments[name] = {key: np.ravel(value).tolist() for key, value in numbers.items()}
    divergences = int(fit.sample_stats["diverging"].sum())
    found = {"divergences": divergences, "moments": moments}
    Path(spec["output"]).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
