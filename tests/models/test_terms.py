"""Every kind of term of a formula against its exact posterior.

With Normal noise the rows are one Normal vector, given the noise and the standard deviations of
groups: coefficients and effects are integrated out by formulas, and the rest over a grid. The
columns of each term are made by hand.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.interpolate import BSpline, CubicSpline
from scipy.special import logsumexp

import elbowroom as er

Columns = Callable[[pd.DataFrame], dict[str, Any]]


@dataclass(frozen=True)
class Sizes:
    rows: int = 48
    first: int = 8
    second: int = 8
    noise: tuple[float, float, int] = (-2.2, 0.6, 24)
    spread: tuple[float, float, int] = (-6.0, 2.5, 29)
    """Grids of logarithms of standardised standard deviations: from, to, points."""
    width: float = 2.5
    """Of the priors of standardised coefficients, and of standard deviations of groups."""
    tolerance: float = 0.1
    """In posterior standard deviations, or relative."""


SIZES = Sizes()


def table() -> pd.DataFrame:
    random, rows = np.random.default_rng(5), np.arange(SIZES.rows)
    x, z = 3 + 2 * random.normal(size=SIZES.rows), random.normal(size=SIZES.rows)
    kind, school, room = rows % 3, rows % SIZES.first, rows * SIZES.second // SIZES.rows
    data = pd.DataFrame({"x": x, "z": z, "kind": [*np.array(list("abc"))[kind]]})
    data["school"] = [f"s{k}" for k in school]
    data["room"] = [f"r{k}" for k in room]
    y = 20 + 1.5 * x + z + 0.8 * x * z + 0.2 * (x - 3) ** 2 + np.array([0, 2, -1])[kind]
    y += 6 * random.normal(size=SIZES.first)[school] + 8 * random.normal(size=SIZES.second)[room]
    y += 0.7 * random.normal(size=SIZES.first)[school] * x
    return data.assign(y=y + 2 * random.normal(size=SIZES.rows))


@dataclass(frozen=True)
class Term:
    """A formula and what it means.

    Attributes:
        right: The right side.
        columns: Of the design without its intercept, by name.
        groups: What the effects of each kind are multiplied by, (rows, groups), by name.
        intercept: Whether there is one.
    """

    right: str
    columns: Columns = field(default=lambda data: {})
    groups: Columns = field(default=lambda data: {})
    intercept: bool = True


def one(name: str, level: str) -> Callable[[pd.DataFrame], np.ndarray]:
    return lambda data: (data[name] == level).to_numpy(float)


def members(*names: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Which rows belong to each group that there is."""
    return lambda data: pd.get_dummies(data[list(names)].agg(":".join, axis=1), dtype=float)


def polynomials(data: pd.DataFrame) -> dict[str, Any]:
    """Orthonormal, and each rising in the end."""
    q, r = np.linalg.qr(np.vander(data["x"], 3, increasing=True))
    return {f"poly(x, 2)[{k}]": q[:, k + 1] * np.sign(r[k + 1, k + 1]) for k in (0, 1)}


def centred(name: str, basis: np.ndarray) -> dict[str, Any]:
    """A basis without the direction that the intercept has, by a reflection."""
    rotation = np.linalg.qr(basis.mean(0)[:, None], mode="complete")[0][:, 1:]
    return {f"{name}[{k}]": column for k, column in enumerate((basis @ rotation).T)}


def b_splines(data: pd.DataFrame) -> dict[str, Any]:
    """Cubic, six of them, with inner knots at thirds."""
    x = data["x"].to_numpy()
    ends = [x.min()] * 4, [x.max()] * 4
    knots = np.concatenate([ends[0], np.quantile(x, [1 / 3, 2 / 3]), ends[1]])
    return centred("bs(x, df=5)", BSpline.design_matrix(x, knots, 3).toarray())


def natural_splines(data: pd.DataFrame) -> dict[str, Any]:
    """Cubic, of the values at five knots."""
    x = data["x"].to_numpy()
    knots = np.quantile(x, np.linspace(0, 1, 5))
    return centred("cr(x, df=4)", CubicSpline(knots, np.eye(5), bc_type="natural")(x))


TERMS = [
    Term("x * z", lambda d: {"x": d["x"], "z": d["z"], "x:z": d["x"] * d["z"]}),
    Term("x:z", lambda d: {"x:z": d["x"] * d["z"]}),
    Term(
        "x * kind",
        lambda d: {
            "x": d["x"], "kind[b]": one("kind", "b")(d), "kind[c]": one("kind", "c")(d),
            "x:kind[b]": d["x"] * one("kind", "b")(d), "x:kind[c]": d["x"] * one("kind", "c")(d),
        },
    ),
    Term(
        "C(kind, Sum)",
        lambda d: {
            f"C(kind, Sum)[{k}]": one("kind", k)(d) - one("kind", "c")(d) for k in "ab"
        },
    ),
    Term("poly(x, 2)", polynomials),
    Term("bs(x, df=5)", b_splines),
    Term("cr(x, df=4)", natural_splines),
    Term("0 + x + kind", lambda d: {
        "x": d["x"], **{f"kind[{k}]": one("kind", k)(d) for k in "abc"}}, intercept=False),
    Term("scale(x) + I(z ** 2) + np.exp(z)", lambda d: {
        "scale(x)": (d["x"] - d["x"].mean()) / d["x"].std(ddof=0), "I(z ** 2)": d["z"] ** 2,
        "np.exp(z)": np.exp(d["z"])}),
    Term("x + (1 | school)", lambda d: {"x": d["x"]},
         lambda d: {"1|school": members("school")(d)}),
    Term("x + (x || school)", lambda d: {"x": d["x"]},
         lambda d: {"1|school": members("school")(d),
                    "x|school": members("school")(d).mul(d["x"], axis=0)}),
    Term("(0 + x | school)", groups=lambda d: {
        "x|school": members("school")(d).mul(d["x"], axis=0)}),
    Term("x + (1 | school) + (1 | room)", lambda d: {"x": d["x"]},
         lambda d: {"1|school": members("school")(d), "1|room": members("room")(d)}),
    Term("x + (1 | room / kind)", lambda d: {"x": d["x"]},
         lambda d: {"1|room": members("room")(d), "1|room:kind": members("room", "kind")(d)}),
]  # fmt: skip


def exact(term: Term, data: pd.DataFrame) -> pd.DataFrame:
    """The mean and the sd of all that is reported."""
    m, s = (data["y"].mean() if term.intercept else 0.0), data["y"].std()
    y, own = (
        ((data["y"] - m) / s).to_numpy(),
        pd.DataFrame(term.columns(data), data.index, dtype=float),
    )
    centre = own.mean() if term.intercept else 0.0 * own.mean()
    parts = [np.ones((len(y), int(term.intercept))), ((own - centre) / own.std()).to_numpy()]
    factors = {"1": s, "x": s / data["x"].std()}  # of standardised effects
    groups = term.groups(data)
    units = {name: factors[name.partition("|")[0]] for name in groups}
    parts += [each.to_numpy() * units[name] / s for name, each in groups.items()]
    sizes = [each.shape[1] for each in parts]
    design, fixed = np.column_stack(parts), sum(sizes[:2])

    axes = [np.linspace(*SIZES.noise), *[np.linspace(*SIZES.spread)] * len(groups)]
    at = np.exp(np.stack(np.meshgrid(*axes), -1).reshape(-1, len(axes)))  # (n, noise and sds)
    noise = at[:, :1]
    precision = np.repeat(at[:, 1:] ** -2, sizes[2:], axis=1)
    precision = np.column_stack([np.full((len(at), fixed), SIZES.width**-2), precision])
    covariance = np.linalg.inv(
        design.T @ design / noise[..., None] ** 2 + precision[:, None] * np.eye(design.shape[1])
    )
    means = (covariance @ (design.T @ y)) / noise**2
    log_p = 0.5 * np.linalg.slogdet(covariance)[1] + 0.5 * np.log(precision).sum(1)
    log_p += 0.5 * (means @ design.T @ y - y @ y) / noise[:, 0] ** 2 - len(y) * np.log(noise[:, 0])
    log_p += stats.expon.logpdf(noise[:, 0]) + np.log(at).sum(1)  # the grid is even in logs
    log_p += stats.t(3, scale=SIZES.width).logpdf(at[:, 1:]).sum(1)
    weights = np.exp(log_p - logsumexp(log_p))

    mean = weights @ means
    covariance = np.einsum("n,nij->ij", weights, covariance)
    covariance += np.einsum("n,ni,nj->ij", weights, means - mean, means - mean)
    scales = np.repeat(list(units.values()), sizes[2:])
    change = np.diag(np.concatenate([np.full(sizes[0], s), s / own.std(), scales]))
    if term.intercept:
        change[0, 1:fixed] = -s * centre / own.std()
    names = ["intercept"] * term.intercept + [f"coefficients[{name}]" for name in own]
    names += [f"{name}[{level}]" for name, each in groups.items() for level in each]
    found = pd.DataFrame(
        {"mean": change @ mean, "sd": np.sqrt(np.diag(change @ covariance @ change.T))}, names
    )
    found["mean"] += m * (found.index == "intercept")
    sds = at * [s, *units.values()]
    for name, values in zip(["sigma", *(f"{each}_sigma" for each in groups)], sds.T, strict=True):
        middle = weights @ values
        found.loc[name] = middle, np.sqrt(weights @ (values - middle) ** 2)
    return found


@pytest.mark.parametrize("term", TERMS, ids=[term.right for term in TERMS])
def test_a_term_has_its_exact_posterior(term: Term) -> None:
    data = table()
    wanted = exact(term, data)
    fit = er.fit("bayesian_regression", data, formula=f"y ~ {term.right}", seed=1)
    assert fit.verdict.trusted, str(fit.verdict)
    found = fit.summary()
    assert set(found.index) == set(wanted.index)
    found = found.loc[wanted.index]
    shift = (found["mean"] - wanted["mean"]).abs() / wanted["sd"]
    assert (shift < SIZES.tolerance).all(), shift
    ratio = found["sd"] / wanted["sd"]
    assert ((ratio - 1).abs() < SIZES.tolerance).all(), ratio
