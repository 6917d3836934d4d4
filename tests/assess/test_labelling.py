"""The evidence of all labellings, of densities that know their own."""

from itertools import permutations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import gammaln, logsumexp
from scipy.stats import multivariate_normal

from elbowroom.assess.labelling import exchangeable, of_all_labellings

PAIR, NEAR, TRIPLE = np.array([0.0, 30.0]), np.array([0.0, 1.0]), np.array([0.0, 30.0, 60.0])


def log_normals(points: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """The log density of standard Normals about every order of a centre, each as likely, (n,)."""
    every = [multivariate_normal(each).logpdf(points) for each in permutations(centre)]
    return np.asarray(logsumexp(every, axis=0).reshape(-1) - gammaln(len(centre) + 1))


def landscape(*centres: np.ndarray, width: float = 1.0) -> Any:
    """The best mode of a product of such densities, one for each site, in units of their width."""
    ends = np.cumsum([len(centre) for centre in centres])
    parts = [slice(end - len(centre), end) for end, centre in zip(ends, centres, strict=True)]

    def value(points: np.ndarray) -> np.ndarray:
        logs = [
            log_normals(points[:, part] / width, centre / width)
            for part, centre in zip(parts, centres, strict=True)
        ]
        return np.sum(logs, axis=0) - ends[-1] * np.log(width)

    space = SimpleNamespace(
        constrain=lambda u: {f"x{i}": u[part] for i, part in enumerate(parts)},
        unconstrain=lambda values: torch.cat([values[f"x{i}"] for i in range(len(parts))]),
        split=lambda u: {},
        sites=[],
    )
    return SimpleNamespace(
        density=SimpleNamespace(space=space, value=value, dimension=ends[-1]),
        best=SimpleNamespace(
            location=np.concatenate(centres), precision=np.eye(ends[-1]) / width**2
        ),
    )


def without(found: Any, **missing: None) -> Any:
    return SimpleNamespace(**{**vars(found), **missing})


@pytest.mark.parametrize(("apart", "width"), [(0.11, 1.0), (0.09, 1.0), (0.011, 0.1), (0.009, 0.1)])
def test_parts_have_labels_where_they_differ_by_a_tenth_of_an_sd(
    apart: float, width: float
) -> None:
    found = exchangeable(landscape(np.array([0.0, apart]), width=width))
    assert [labels.count for labels in found] == ([2] if apart > 0.1 * width else [])


def test_where_there_are_no_labels_the_evidence_is_that_of_the_draws() -> None:
    known = landscape(NEAR)
    no_curvature = SimpleNamespace(location=NEAR, precision=None)
    found: Any
    for found in (
        landscape(np.zeros(2)),
        without(known, density=None),
        without(known, best=None),
        SimpleNamespace(**{**vars(known), "best": no_curvature}),
    ):
        assert exchangeable(found) == []
        assert of_all_labellings(found, (-3.0, 0.2)) == ((-3.0, 0.2), None)


def test_labellings_that_are_apart_are_counted() -> None:
    """Two parts and three: 2! and 3! labellings, of which the draws have one."""
    evidence, note = of_all_labellings(landscape(PAIR, TRIPLE), (-3.0, 0.2))
    assert evidence == (pytest.approx(-3.0 + np.log(12.0)), 0.2)
    assert note is not None
    assert "all labellings of the 2 and 3 exchangeable parts" in note
    assert "exchangeable parts: 2.485 nats, the log of the number of labellings, were added" in note


@pytest.mark.parametrize("parts", [2, 4])
def test_draws_about_some_labellings_have_the_evidence_of_all(parts: int) -> None:
    """The density is the mean of the proposal over the labellings: each weight is one.

    So it is whatever draws are taken, and whatever evidence the proposal alone has given.
    """
    centre = np.arange(parts, dtype=float)
    found = landscape(centre)
    points = centre + np.random.default_rng(1).normal(size=(50, parts))
    proposal = multivariate_normal(centre)
    evidence, note = of_all_labellings(
        found, (-3.0, 0.2), points, found.density.value(points) - 7.0,
        lambda each: np.asarray(proposal.logpdf(each)).reshape(-1),
    )  # fmt: skip
    assert evidence == (pytest.approx(-7.0), pytest.approx(0.0, abs=1e-9))
    assert note is not None
    assert f"all labellings of the {parts} exchangeable parts, which the data hardly tell" in note


def test_of_many_draws_a_sample_gives_the_evidence() -> None:
    """The mean of weights of known spread, by fewer draws than there are."""
    found, random = landscape(NEAR), np.random.default_rng(1)
    points, noise = NEAR + random.normal(size=(6000, 2)), 0.5 * random.normal(size=6000)
    proposal, seen = multivariate_normal(NEAR), []

    def log_proposal(each: np.ndarray) -> np.ndarray:
        seen.append(len(each))
        return np.asarray(proposal.logpdf(each))

    log_p = found.density.value(points) + noise
    (value, error), _ = of_all_labellings(found, (-3.0, 0.2), points, log_p, log_proposal)
    assert len(set(seen)) == 1
    spread = (np.exp(0.25) - 1) ** 0.5  # of a log Normal, relative to its mean
    assert error == pytest.approx(spread / seen[0] ** 0.5, rel=0.1)
    assert abs(value - 0.125) < 4 * error


@pytest.mark.parametrize(
    ("centres", "given", "counts", "most"),
    [
        ([NEAR], False, "2", "0.6931"),
        ([NEAR, TRIPLE / 30], True, "2 and 3", "2.485"),
        ([np.arange(5.0)], True, "5", "4.787"),
    ],
)
def test_where_that_cannot_be_had_what_may_be_missing_is_told(
    centres: list[np.ndarray], given: bool, counts: str, most: str
) -> None:
    """Without a proposal, of several groups, and of more labellings than can be averaged over."""
    found = landscape(*centres)
    points = found.best.location + np.zeros((10, 1))
    more = (points, np.zeros(10), lambda each: np.zeros(len(each))) if given else ()
    evidence, note = of_all_labellings(found, (-3.0, 0.2), *more)
    assert evidence == (-3.0, 0.2)
    assert note is not None
    assert f"some labellings of the {counts} exchangeable parts" in note
    assert f"larger, by at most {most}" in note


def test_one_group_that_is_not_apart_is_enough_to_not_count_them_all() -> None:
    evidence, note = of_all_labellings(landscape(NEAR, TRIPLE), (-3.0, 0.2))
    assert evidence == (-3.0, 0.2)
    assert note is not None
    assert "some labellings of the 2 and 3" in note


def test_parts_that_labels_of_the_data_name_keep_their_place() -> None:
    """Three parts, of which the last two can be exchanged: two labellings."""
    found = landscape(TRIPLE)

    def value(points: np.ndarray) -> np.ndarray:
        named = multivariate_normal(TRIPLE[:1]).logpdf(points[:, :1])
        return np.asarray(named + log_normals(points[:, 1:], TRIPLE[1:]))

    found.density.value = value
    (labels,) = exchangeable(found)
    assert (labels.first, labels.last, labels.count) == (1, 3, 2)
    evidence, note = of_all_labellings(found, (-3.0, 0.2))
    assert evidence[0] == pytest.approx(-3.0 + np.log(2.0))
    assert note is not None
    assert "all labellings of the 2 exchangeable parts" in note
