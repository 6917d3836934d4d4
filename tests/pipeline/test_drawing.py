"""How many draws are made and weighed, of which kind, and what corrects them."""

import time
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from elbowroom import budget
from elbowroom.density.importance import k_hat_threshold
from elbowroom.draws.weighted import WeightedDraws
from elbowroom.engines.protocol import Gaussian
from elbowroom.errors import OutOfTimeError
from elbowroom.pipeline import drawing
from elbowroom.problem.isolation import isolated
from elbowroom.sizes import SIZES


@dataclass(frozen=True)
class Draws:
    """Draws whose weights are as good as a test has them.

    Attributes:
        log_p: Of as many draws.
        share: Effective draws for each.
        k_hat: Of the weights; None for the most that so many draws may have.
        was: What was done with them.
    """

    log_p: np.ndarray
    share: float
    k_hat_or_limit: float | None
    was: str = "drawn"

    @property
    def unsmoothed_effective_sample_size(self) -> float:
        return self.share * len(self.log_p)

    @property
    def k_hat(self) -> float:
        limit = k_hat_threshold(len(self.log_p))
        return limit if self.k_hat_or_limit is None else self.k_hat_or_limit

    def followed_by(self, more: "Draws") -> "Draws":
        return replace(self, log_p=np.concatenate([self.log_p, more.log_p]))

    def first(self, count: int) -> "Draws":
        return replace(self, log_p=self.log_p[:count], was="first")

    def resample(self, count: int, random: np.random.Generator) -> Any:
        return SimpleNamespace(count=count, source=self, number=random.random())


class Problem:
    """As much of a problem as draws need, and the seeds of its sessions."""

    def __init__(self, space: Any) -> None:
        self.function, self.arguments, self.space = "model", {"y": 1.0}, space
        self.seeds: list[tuple[int, Any]] = []

    def session(self, seed: int, parameters: Any) -> Any:
        self.seeds.append((seed, parameters))
        return isolated(seed)


def fitted(point: bool = False, of_guide: Any = (), **space: Any) -> Any:
    """A guide at its optimum that is no Normal, and the discrete sites that it draws."""
    usual: dict[str, Any] = {
        "rows_only": False, "discrete": {}, "dimension": 2, "local": ("x",),
        "subsampled": SimpleNamespace(size=10_000),
    }  # fmt: skip
    return SimpleNamespace(
        problem=Problem(SimpleNamespace(**{**usual, **space})), point=point, gaussian=None,
        adapts=False,
        parameters="parameters", callable="guide", sites=SimpleNamespace(discrete=set(of_guide)),
        guide=SimpleNamespace(amortised="as declared"),
        trained=SimpleNamespace(elbo_history=np.zeros(10)),
    )  # fmt: skip


TASK: Any = SimpleNamespace(
    seed=3, problem=SimpleNamespace(threads=1),
    settings=SimpleNamespace(batch_size=128, particles=2),
)  # fmt: skip
NOWHERE: Any = SimpleNamespace(density=None, curvature=None)
FIRST = np.random.default_rng([3, 1]).random()
"""The first random number of draws by seed 3, which are others than those of the fit."""


# Draws of a guide.


def of_guide(
    monkeypatch: pytest.MonkeyPatch, share: float, k_hat: float | None, **given: Any
) -> tuple[Any, list[int]]:
    """Draws of a guide, 250 asked for, and how many were drawn at a time."""
    asked: list[int] = []

    def draw(function: Any, called: Any, arguments: Any, space: Any, count: int) -> Draws:
        assert (function, called, arguments) == ("model", "guide", {"y": 1.0})
        asked.append(count)
        return Draws(np.zeros(count), share, k_hat)

    monkeypatch.setattr(drawing, "draw", draw)
    found = fitted(**given)
    result = drawing.draw_posterior(TASK, found, NOWHERE, 250)
    assert found.problem.seeds == [(4, "parameters")]
    return result, asked


@pytest.mark.parametrize(
    ("share", "k_hat", "asked"),
    [
        (1.0, 0.1, [250, 250, 500]),  # 1,000 effective draws are enough
        (0.999, 0.1, [250, 250, 500, 1000]),
        (0.1, None, [250, 250, 500, 1000]),  # eight times as many are the most
        (0.1, 0.9, [250]),  # no more draws mend such weights
        (0.1, np.nan, [250]),
    ],
)
def test_more_draws_are_weighed_where_that_helps(
    monkeypatch: pytest.MonkeyPatch, share: float, k_hat: float | None, asked: list[int]
) -> None:
    found, drawn = of_guide(monkeypatch, share, k_hat)
    assert drawn == asked
    assert (found.raw.was, len(found.raw.log_p)) == ("first", 250)
    assert (found.corrected.count, found.corrected.number) == (250, FIRST)
    assert len(found.weighted.log_p) == sum(asked)
    assert (found.importance, found.health, found.said) == (None, {}, ())


def test_a_point_is_drawn_and_not_weighed(monkeypatch: pytest.MonkeyPatch) -> None:
    for rows_only in (False, True):
        found, drawn = of_guide(monkeypatch, 0.1, 0.1, point=True, rows_only=rows_only)
        assert drawn == [250]
        assert (found.raw.was, found.corrected) == ("drawn", None)
        assert found.weighted is None
        assert found.together is None


def test_weights_of_rows_are_none_of_all_latents_together() -> None:
    rows = WeightedDraws({}, np.zeros((200, 3)), np.zeros((200, 3)))
    random = np.random.default_rng(0)
    of_rows = drawing.Drawn(rows.together, rows.resample(10, random))
    assert of_rows.weighted is rows
    assert of_rows.together is None
    whole = rows.together
    of_all = drawing.Drawn(whole, whole.resample(10, random))
    assert of_all.together is of_all.weighted is whole


# Draws of rows.


@pytest.mark.parametrize(
    ("dimension", "weighed"),
    [
        (50, 1000),  # four times as many
        (25_000, 800),  # 20 million numbers
        (50_000, 400),
        (1_000_000, 250),  # at least as many as are asked for
        (0, 1000),  # discrete latents alone
    ],
)
def test_rows_are_weighed_each_with_a_few_times_as_many_draws(
    monkeypatch: pytest.MonkeyPatch, dimension: int, weighed: int
) -> None:
    together = SimpleNamespace(first=lambda count: ("first", count))

    def weigh_rows(*given: Any) -> Any:
        function, called, arguments, space, count, keep = given
        assert (function, called, arguments, keep) == ("model", "guide", {"y": 1.0}, ("x",))
        assert space is found.problem.space
        resample = lambda count, random: ("resampled", count, random.random())  # noqa: E731
        return SimpleNamespace(together=together, resample=resample, count=count)

    def health(*given: Any, amortised: Any) -> Any:
        assert given[:3] == ("model", "guide", {"y": 1.0})
        assert amortised == "as declared"
        return {"weighed": given[4].count}, ["2 of 2 latents are active."]

    monkeypatch.setattr(drawing, "weigh_rows", weigh_rows)
    monkeypatch.setattr(drawing, "latent_health", health)
    found = fitted(of_guide=["k"], rows_only=True, dimension=dimension, discrete={"k": ()})
    result: Any = drawing.draw_posterior(TASK, found, NOWHERE, 250)
    assert result.raw == ("first", 250)
    assert result.corrected == ("resampled", 250, FIRST)
    assert result.health == {"weighed": weighed}
    assert result.said == ("2 of 2 latents are active.",)


@pytest.mark.parametrize(
    ("columns", "steps", "weighed"),
    [
        (7, 10, 1000),  # 70 million numbers are nothing
        (100, 10, 300),  # 300 million of 10,000 rows of 100 columns
        (784, 10, 250),  # at least as many as are asked for
        (784, 59_000, 453),  # a tenth of what 59,000 steps of two draws of 128 rows have run
        (784, 500_000, 1000),
    ],
)
def test_rows_of_images_are_weighed_in_a_tenth_of_the_time_that_training_took(
    columns: int, steps: int, weighed: int
) -> None:
    found = fitted(rows_only=True)
    found.problem.arguments = {"x": torch.empty(10_000, columns, device="meta")}
    found.trained.elbo_history = np.zeros(steps)
    assert drawing._weighed(TASK, found, 250) == weighed


def test_rows_are_weighed_as_often_as_the_time_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three runs take 0.3 s; 60 s are left."""
    found = fitted(rows_only=True)
    found.problem.arguments = {"x": torch.empty(100, 7)}
    found.trained.elbo_history = np.zeros(10)
    found.callable = found.problem.function = lambda x: None
    monkeypatch.setattr(drawing.time, "monotonic", iter([0.0, 0.3]).__next__)
    monkeypatch.setattr(drawing.budget, "left", lambda: 60.0)
    assert drawing._weighed(TASK, found, 250) == 360


@pytest.mark.parametrize(
    "given", [{"rows_only": False}, {"rows_only": True, "discrete": {"summed_out": ()}}]
)
def test_rows_with_latents_in_common_are_weighed_together(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, Any]
) -> None:
    _, drawn = of_guide(monkeypatch, 1.0, 0.1, of_guide=["k"], **given)
    assert drawn == [250, 250, 500]


# Draws of one Normal.


class Density:
    """An unnormalised standard Normal in some dimensions, of which so many values are affordable.

    Attributes:
        least: The fewest that were asked for.
        seeds: Of what a model might draw for itself.
        at_once: Values that are taken at once.
    """

    at_once = 300

    def __init__(self, dimension: int, most: int) -> None:
        self.dimension, self.most, self.least = dimension, most, 0
        self.seeds: set[int] = set()

    def affordable(self, wanted: int, least: int) -> int:
        self.least = least
        return min(wanted, self.most)

    def value(self, points: np.ndarray) -> np.ndarray:
        assert torch.get_default_dtype() == torch.float64
        assert torch.get_num_threads() == 1
        assert set(np.geterr().values()) == {"ignore"}
        self.seeds.add(int(np.random.get_state(legacy=False)["state"]["key"][0]))
        return -0.5 * np.square(points).sum(1)

    def constrained(self, points: np.ndarray) -> dict[str, Any]:
        return {"x": torch.as_tensor(points)}


def of_gaussian(
    monkeypatch: pytest.MonkeyPatch, gaussian: Any, density: Any, count: int, nested: bool = True
) -> drawing.Drawn:
    def sampled(*given: Any) -> Any:
        assert given[:3] == (density, "curvature", "proposal")
        assert given[4] == "places"
        return SimpleNamespace(resample=lambda count: SimpleNamespace(count=count), which="sampled")

    def sampled_nested(*given: Any) -> Any:
        assert given[:3] == (density, "curvature", "low rank")
        resample = lambda count: SimpleNamespace(count=count)  # noqa: E731
        return SimpleNamespace(resample=resample, which="nested") if nested else None

    monkeypatch.setattr(drawing, "sampled", sampled)
    monkeypatch.setattr(drawing, "sampled_nested", sampled_nested)
    landscape: Any = SimpleNamespace(density=density, curvature="curvature", places="places")
    found: Any = SimpleNamespace(gaussian=gaussian)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with isolated(0, dtype=torch.float32):
            return drawing.draw_posterior(TASK, found, landscape, count)
    finally:
        torch.set_num_threads(threads)


def normal(sd: float, dimension: int = 2) -> Any:
    return MultivariateNormal(
        torch.zeros(dimension, dtype=torch.float64),
        sd**2 * torch.eye(dimension, dtype=torch.float64),
    )


@pytest.mark.parametrize(("most", "few"), [(10_000, 250), (301, 150)])
def test_a_normal_is_corrected_by_adaptive_draws(
    monkeypatch: pytest.MonkeyPatch, most: int, few: int
) -> None:
    """Its own draws cost as much: half of what is affordable are enough of them."""
    gaussian: Any = Gaussian(normal(1.0), proposal="proposal")  # type: ignore[arg-type]
    density = Density(2, most)
    found: Any = of_gaussian(monkeypatch, gaussian, density, 250)
    assert (density.least, density.seeds) == (1000, {TASK.seed + 1})
    assert (found.importance.which, found.corrected.count) == ("sampled", 250)
    assert len(found.raw.log_p) == few
    # Of a standard Normal: log p is 0.5 x'x, log q has its constant too.
    np.testing.assert_allclose(found.raw.log_p - found.raw.log_q, np.log(2 * np.pi))
    points = found.raw.sites["x"].numpy()
    np.testing.assert_allclose(found.raw.log_p, -0.5 * np.square(points).sum(1))
    again: Any = of_gaussian(monkeypatch, gaussian, Density(2, most), 250)
    np.testing.assert_array_equal(again.raw.log_p, found.raw.log_p)


class Slow(Density):
    """A density of which ten values take 0.02 s."""

    at_once = 10

    def value(self, points: np.ndarray) -> np.ndarray:
        time.sleep(0.02)
        return super().value(points)


def test_draws_end_with_half_of_the_time_and_are_weighed_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All 4,000 would take 8 s. A hundred are drawn in any case."""

    def late(*_: Any) -> Any:
        raise OutOfTimeError("over")

    monkeypatch.setattr(drawing, "sampled", late)
    proposal: Any = "proposal"
    of_normal: Any = SimpleNamespace(gaussian=Gaussian(normal(1.0), proposal))
    for seconds, least, most in ((1.0, 110, 250), (0.01, 100, 100)):
        slow: Any = SimpleNamespace(density=Slow(2, 4000), curvature="curved", places=())
        with budget.limited(seconds):
            found = drawing.draw_posterior(TASK, of_normal, slow, 2000)
        assert least <= len(found.raw.log_p) <= most
        points = found.raw.sites["x"].numpy()
        np.testing.assert_allclose(found.raw.log_p, -0.5 * np.square(points).sum(1))
        np.testing.assert_allclose(found.raw.log_p - found.raw.log_q, np.log(2 * np.pi))
        assert found.importance is None
        assert found.corrected is not None
        assert len(found.corrected.log_p) == 2000


def test_every_seed_has_its_own_draws() -> None:
    density: Any = Density(2, 1)
    firsts = set()
    with isolated(0, threads=1), np.errstate(all="ignore"):
        for seed in range(40):
            found = drawing._raw(density, normal(1.0), 1, np.random.default_rng(seed))
            firsts.add(found.sites["x"][0, 0].item())
    assert len(firsts) == 40


WIDE: Any = "low rank"


@pytest.mark.parametrize(("dimension", "few"), [(2, 3000), (8000, 2500), (40_000, 1000)])
def test_draws_of_a_wide_posterior_hold_twenty_million_numbers(
    monkeypatch: pytest.MonkeyPatch, dimension: int, few: int
) -> None:
    class Narrow(Normal):
        """Draws of the first coordinate alone, for the memory's sake."""

        def log_prob(self, value: Any) -> Any:
            return super().log_prob(value).sum(-1)

    distribution = Narrow(torch.zeros(1, dtype=torch.float64), 1.0)
    density = Density(dimension, 3000)
    found = of_gaussian(monkeypatch, Gaussian(distribution, low_rank=WIDE), density, 4000)
    assert density.least == 1000
    assert len(found.raw.log_p) == few
    # Its weights are even: no other draws are sought.
    assert found.importance is None
    assert found.weighted is found.raw
    assert found.corrected is not None
    assert len(found.corrected.log_p) == few


@pytest.mark.parametrize(
    ("effective", "usable", "nested", "kept"),
    [
        (701.0, True, True, "own"),
        (700.0, True, True, "nested"),  # 0.7 of 1,000 draws
        (701.0, False, True, "nested"),
        (700.0, True, False, "own"),  # whose coordinates do not part
    ],
)
@pytest.mark.parametrize("count", [1000, 4000])
def test_uneven_draws_of_a_wide_posterior_are_made_given_some_of_its_coordinates(
    monkeypatch: pytest.MonkeyPatch,
    effective: float,
    usable: bool,
    nested: bool,
    kept: str,
    count: int,
) -> None:
    resample = lambda count, _: SimpleNamespace(count=count)  # noqa: E731
    raw: Any = SimpleNamespace(usable=usable, fewest_effective=effective, resample=resample)
    monkeypatch.setattr(drawing, "_raw", lambda *_: raw)
    gaussian: Any = Gaussian(normal(1.0), low_rank=WIDE)
    found: Any = of_gaussian(monkeypatch, gaussian, Density(2, 1000), count, nested)
    assert found.raw is raw
    assert found.corrected.count == 1000
    assert (found.importance is None) == (kept == "own")
    few: Any = of_gaussian(monkeypatch, gaussian, Density(2, 1000), 400, nested)
    assert few.corrected.count == 400


# Draws of a guide at whose mean adaptive importance sampling begins.


def adapted(monkeypatch: pytest.MonkeyPatch, given: Any, dimension: int = 2) -> Any:
    """What becomes of 300 draws around (1, 2), where sampling gives or raises something."""
    point = torch.tensor([1.0, 2.0], dtype=torch.float64)
    random = torch.Generator().manual_seed(0)
    values = point + 0.1 * torch.randn(300, 2, generator=random, dtype=torch.float64)
    raw = Draws(np.zeros(300), 0.5, 0.1)
    object.__setattr__(raw, "sites", {"x": values, "beside": values})
    begun: list[Any] = []

    def sampled(density: Any, curvature: Any, first: Any, random: Any, places: Any) -> Any:
        assert (density, places) == ("density", "places")
        begun.append(first)
        if isinstance(given, Exception):
            raise given
        return given

    monkeypatch.setattr(drawing, "draw", lambda *_: raw)
    monkeypatch.setattr(drawing, "sampled", sampled)
    site = SimpleNamespace(name="x")
    space: dict[str, Any] = {
        "sites": [site],
        "dimension": dimension,
        "unconstrain": lambda found: found["x"],
    }
    found = fitted(**space)
    found.adapts = True
    curved = lambda points, scales: np.array([[[4.0, 0.0], [0.0, 16.0]]])  # noqa: E731
    where: Any = SimpleNamespace(density="density", curvature=curved, places="places")
    return drawing.draw_posterior(TASK, found, where, 250), begun


def test_adaptive_sampling_begins_at_the_mean_of_the_guide(monkeypatch: pytest.MonkeyPatch) -> None:
    importance = SimpleNamespace(resample=lambda count: ("resampled", count))
    found, (first,) = adapted(monkeypatch, importance)
    assert (found.corrected, found.importance) == (("resampled", 250), importance)
    np.testing.assert_allclose(first.means, [[1.0, 2.0]], atol=0.02)
    np.testing.assert_allclose(first.factors, [[[0.5, 0.0], [0.0, 0.25]]])


def test_without_adaptive_sampling_the_guides_own_draws_are_weighed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where there is no time for it, or there are too many dimensions."""
    late, begun = adapted(monkeypatch, OutOfTimeError("over"))
    assert (len(begun), late.importance, late.corrected.count) == (1, None, 250)
    wide, begun = adapted(monkeypatch, None, SIZES.dense + 1)
    assert (len(begun), wide.importance, wide.corrected.count) == (0, None, 250)


def test_where_there_is_no_curvature_the_covariance_of_the_draws_has_to_do() -> None:
    points = np.random.default_rng(0).normal(size=(50, 2)) * [1.0, 3.0]
    for flat in (np.array([[[1.0, 0.0], [0.0, -1.0]]]), np.full((1, 2, 2), np.nan)):
        first = drawing._about(points, lambda points, scales, flat=flat: flat)  # type: ignore[arg-type]
        covariance = first.factors[0] @ first.factors[0].T
        np.testing.assert_allclose(covariance, np.cov(points.T))
