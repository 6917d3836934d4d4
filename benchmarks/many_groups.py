"""A logistic regression with correlated slopes of thousands of groups, beside NUTS.

Run `python benchmarks/many_groups.py --nuts`, with nutpie installed: a quarter of an hour on one
core, and half a minute without `--nuts`.

`--rows` rows in `--groups` groups of the same size are drawn from

    y ~ Bernoulli(logit = -0.3 + 0.7 x - 0.4 z + u1[g] + u2[g] x)

with sds of 0.8 and 0.5 and a correlation of 0.5 between groups, and fitted as
`y ~ x + z + (x | g)`. The line of the fit has its wall-clock and processor seconds, from the table
to its summary, and the process's peak memory. NUTS (nutpie) samples the same density with
standardised effects: four chains of 500 + 800 draws. Of each quantity that groups share, and of
the effects of all groups, the difference of the two means in sds of NUTS and the ratio of the two
sds are printed. Both sets of draws have a Monte Carlo error: with 1,000 effective draws 0.03 sds of
a mean and 2% of an sd, and three to four times as much for the worst of thousands.
"""

import argparse
import resource
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd

# The checkout that the benchmark lies in, whether or not it is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import elbowroom as er
from benchmarks.hierarchies import run_nuts
from elbowroom.result import Fit

DRAWS, TUNE = 800, 500


def table(rows: int, groups: int, seed: int) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    group = np.repeat(np.arange(groups), rows // groups)
    x, z = random.normal(size=(2, len(group)))
    own = random.multivariate_normal([0, 0], [[0.64, 0.2], [0.2, 0.25]], groups)[group]
    logit = -0.3 + 0.7 * x - 0.4 * z + own[:, 0] + own[:, 1] * x
    y = (random.random(len(group)) < 1 / (1 + np.exp(-logit))).astype(int)
    return pd.DataFrame({"y": y, "x": x, "z": z, "g": [f"g{k}" for k in group]})


def beside_nuts(fit: Fit, seed: int) -> None:
    written = fit.problem.original or fit.problem
    problem = written.reparameterise(written.space.location_scale)
    draws, nuts, cost = run_nuts(problem, DRAWS, seed, tune=TUNE)
    print(
        f"NUTS: {cost.seconds:.0f} s of the processor, R-hat {nuts.worst_r_hat:.3f}, "
        f"{nuts.fewest_effective:.0f} effective draws, {nuts.divergences} divergences"
    )
    rows = []
    tree = fit.posterior["posterior"]
    for site in tree.data_vars:
        values = tree[site].to_numpy()[0].reshape(tree.sizes["draw"], -1)
        for k, own in enumerate(values.T):
            nuts_own = draws[f"{site}[{k}]"]
            sd = nuts_own.std()
            rows.append((str(site), (own.mean() - nuts_own.mean()) / sd, own.std() / sd))
    found = pd.DataFrame(rows, columns=["site", "mean", "sd"])
    effects = found["site"].isin(["1|g", "x|g"])
    print(found[~effects].round(3).to_string(index=False))
    many = found[effects]
    print(
        f"{len(many):,} effects of groups: means off by {many['mean'].std():.3f} sds (root mean "
        f"square), {many['mean'].abs().max():.2f} at most; ratios of sds {many['sd'].min():.2f} to "
        f"{many['sd'].max():.2f}, root mean square of their logarithm "
        f"{np.log(many['sd']).std():.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--groups", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--nuts", action="store_true", help="sample by NUTS, too")
    arguments = parser.parse_args()
    data = table(arguments.rows, arguments.groups, arguments.seed)
    began, wall = time.process_time(), time.perf_counter()
    fit = er.fit(
        "bayesian_regression", data, formula="y ~ x + z + (x | g)", family="bernoulli",
        seed=arguments.seed,
    )  # fmt: skip
    fit.summary()
    seconds, wall = time.process_time() - began, time.perf_counter() - wall
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{arguments.rows:,} rows, {arguments.groups:,} groups: {wall:.1f} s, {seconds:.1f} s of "
        f"the processor, {memory:.1f} GB; {fit.verdict}"
    )
    if arguments.nuts:
        beside_nuts(fit, arguments.seed)


if __name__ == "__main__":
    main()
