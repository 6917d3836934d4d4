"""The collected evidence: each number from draws, modes and chains whose answer is known."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from elbowroom.assess.evidence import Chains, Optimum, Target, Weights
from elbowroom.density.modes import Mode
from elbowroom.draws.weighted import WeightedDraws
from elbowroom.pipeline import collecting
from elbowroom.pipeline.drawing import Drawn
from elbowroom.problem.isolation import isolated


def mode(log_density: float, starts: int = 1, relabelled: bool = False) -> Mode:
    """A standard Normal in one dimension of some height."""
    found = Mode(np.zeros(1), log_density, np.eye(1), True)
    return replace(found, starts=starts, relabelled=relabelled)


def landscape(*modes: Mode, **given: Any) -> Any:
    usual = {
        "best": modes[0] if modes else None, "modes": list(modes), "proper": list(modes),
        "tried": 8, "rows": None, "own_starts": False, "unfinished": False, "density": None,
        "climbed": None, "cut": False,
    }  # fmt: skip
    return SimpleNamespace(**{**usual, **given})


def drawn(log_evidence: float | None, **importance: Any) -> Any:
    together = None
    if log_evidence is not None:
        together = SimpleNamespace(log_evidence=(log_evidence, 0.01))
    found = SimpleNamespace(**{"labels": None, **importance}) if importance else None
    return SimpleNamespace(together=together, importance=found, chains=None)


FITTED: Any = SimpleNamespace(starts=(2, 3))
HALF_LOG_2PI = 0.5 * float(np.log(2 * np.pi))


def test_starts_are_those_of_the_best_mode_or_the_engine_s_own() -> None:
    modes = collecting._modes(FITTED, drawn(HALF_LOG_2PI), landscape(mode(0.0, starts=5)))
    assert modes.starts == (5, 8)
    assert modes.missing == pytest.approx(0.0, abs=1e-12)
    assert collecting._modes(FITTED, drawn(0.0), landscape()).starts == (2, 3)


@pytest.mark.parametrize(("lower", "spike"), [(4.5, False), (5.0, False), (5.5, True)])
def test_a_spike_says_nothing_of_starts(lower: float, spike: bool) -> None:
    """Its Laplace evidence is more than 5 nats below that of the draws."""
    best: Any = SimpleNamespace(log_evidence=0.0, promise=0.0, starts=5, relabelled=False)
    modes = collecting._modes(FITTED, drawn(lower), landscape(best))
    assert modes.starts == (None if spike else (5, 8))
    assert modes.missing == -lower


def test_a_climb_that_was_stopped_higher_up_counts_as_missing() -> None:
    stopped = Mode(np.zeros(1), 3.0, np.eye(1), reached=False)
    found = landscape(mode(0.0), modes=[mode(0.0), stopped])
    missing = collecting._modes(FITTED, drawn(HALF_LOG_2PI + 1.0), found).missing
    assert missing == pytest.approx(2.0)


def test_a_mode_has_one_of_the_labellings_that_weights_count() -> None:
    labels = SimpleNamespace(log_orders=np.log(6.0))
    missing = collecting._modes(
        FITTED, drawn(HALF_LOG_2PI - 1.0, labels=labels, shares=tuple), landscape(mode(0.0))
    ).missing
    assert missing == pytest.approx(1.0 + np.log(6.0))


def test_evidence_of_some_of_the_rows_is_none_of_all() -> None:
    few = landscape(mode(0.0, starts=5), rows=1000)
    modes = collecting._modes(FITTED, drawn(-100.0), few)
    assert (modes.starts, modes.missing) == ((5, 8), 0.0)
    assert collecting._modes(FITTED, drawn(None), landscape(mode(0.0))).missing == 0.0


def test_shares_of_modes_next_to_nothing_are_not_told() -> None:
    shares = drawn(HALF_LOG_2PI, shares=lambda: (0.7, 0.2975, 0.0015, 0.0010))
    assert collecting._modes(FITTED, shares, landscape(mode(0.0))).shares == (0.7, 0.2975, 0.0015)
    flags = landscape(mode(0.0, relabelled=True), own_starts=True, unfinished=True)
    modes = collecting._modes(FITTED, drawn(HALF_LOG_2PI), flags)
    assert (modes.relabelled, modes.own_starts, modes.unfinished) == (True, True, True)


@pytest.mark.parametrize(
    ("climbed", "whole", "covered"),
    [
        (np.zeros((1, 1)), True, True),
        (np.zeros((3, 1)), False, False),
        (np.zeros((0, 1)), True, False),
        (None, True, False),
    ],
)
def test_draws_cover_what_was_looked_at_alone(climbed: Any, whole: bool, covered: bool) -> None:
    coverage = SimpleNamespace(share=0.02, chains=4, lasting=True, whole=whole)
    chains = collecting._chains(drawn(0.0, coverage=coverage), landscape(climbed=climbed))
    assert (chains.outside, chains.count, chains.lasting) == (0.02, 4, True)
    assert chains.covered == covered
    assert collecting._chains(drawn(0.0), landscape()).count == 0


def moved(raw: list[float], values: list[float], weights: list[float]) -> tuple[float, float]:
    own = {"x": torch.tensor(raw, dtype=torch.float64)[:, None]}
    return collecting._moved(own, {"x": np.array(values)}, np.array(weights))


def test_a_shift_is_in_weighted_sds_and_a_ratio_either_way() -> None:
    """Weighted: mean 1, sd 1. The raw draws: mean 3, sd 0.5; and mean 1, sd 2."""
    shift, ratio = moved([2.5, 3.5], [0.0, 2.0], [0.5, 0.5])
    assert (shift, ratio) == (pytest.approx(2.0), pytest.approx(np.log(2.0)))
    shift, ratio = moved([-1.0, 3.0], [0.0, 2.0], [0.5, 0.5])
    assert (shift, ratio) == (pytest.approx(0.0), pytest.approx(np.log(2.0)))
    shift, _ = moved([0.0, 2.0], [0.0, 2.0], [0.9, 0.1])  # mean 0.2, sd 0.6
    assert shift == pytest.approx(0.8 / 0.6)


def test_the_worst_quantity_decides_and_constants_are_none() -> None:
    raw = torch.tensor([[0.0, 5.0], [2.0, 5.0]], dtype=torch.float64)
    weighted = np.array([[0.0, 5.0], [2.0, 5.0]])
    assert collecting._moved({"x": raw}, {"x": weighted}, np.full(2, 0.5)) == (0.0, 0.0)
    both = {"x": raw, "y": torch.tensor([3.0, 5.0], dtype=torch.float64)}
    found = collecting._moved(both, {"x": weighted, "y": np.array([0.0, 2.0])}, np.full(2, 0.5))
    assert found == (pytest.approx(3.0), 0.0)
    assert moved([5.0, 5.0], [0.0, 2.0], [0.5, 0.5])[1] > 1e6
    assert moved([0.0, 2.0], [5.0, 5.0], [0.5, 0.5])[0] > 1e6


@pytest.mark.parametrize("wild", [np.inf, -np.inf, np.nan])
def test_a_raw_draw_that_is_no_number_is_infinitely_far_off(wild: float) -> None:
    assert min(moved([0.0, wild], [0.0, 2.0], [0.5, 0.5])) > 1e6


def test_rounding_is_no_spread() -> None:
    """Sds below a millionth of a millionth of the mean, or of one, are those of constants."""
    assert moved([1e6 - 1e-7, 1e6 + 1e-7], [1e6 - 3e-7, 1e6 + 3e-7], [0.5, 0.5]) == (0.0, 0.0)
    assert moved([-2e-13, 2e-13], [-1e-13, 1e-13], [0.5, 0.5]) == (0.0, 0.0)
    shift, ratio = moved([-3e-12, 3e-12], [-1.5e-12, 1.5e-12], [0.5, 0.5])
    assert (shift, ratio) == (0.0, pytest.approx(np.log(2.0)))


# Weights as evidence.


def weighted(log_p: Any, log_q: Any = 0.0, **sites: Any) -> WeightedDraws:
    log_p = np.asarray(log_p, dtype=float)
    values = {name: torch.as_tensor(each, dtype=torch.float64) for name, each in sites.items()}
    return WeightedDraws(values, log_p, np.broadcast_to(log_q, log_p.shape))


def test_without_weights_there_is_no_correction() -> None:
    found = collecting._weighed(
        FITTED, Drawn(weighted(np.zeros(7))), landscape(), collecting.Shown({}, {}, {})
    )
    assert found.weights == Weights(np.inf, 7, 0.0, usable=False)
    assert (found.measures, found.unresolved, found.remarks) == ({}, [], [])


ALTERNATING: Any = np.tile([-1.0, 1.0], 200)
EVEN = weighted(np.log(1 + 0.5 * ALTERNATING) - 3.0, x=ALTERNATING)
"""400 draws of mean 0 and sd 1, whose weights are 1.5 and 0.5 of e⁻³: mean 0.5, variance 0.75."""


def weigh(importance: Any = None, shown: Any = None) -> collecting._Weighed:
    raw = weighted(np.full(100, -3.5))
    own = {"x": EVEN.sites["x"]}
    shown = {"x": EVEN.sites["x"].numpy()} if shown is None else shown
    resampled = EVEN.resample(400, np.random.default_rng(0))
    given = Drawn(raw, resampled, importance)
    return collecting._weighed(
        FITTED, given, landscape(), collecting.Shown(own, shown, given.raw.sites)
    )


def test_numbers_of_the_weights_are_closed_forms() -> None:
    found = weigh()
    shift, ratio = 0.5 / 0.75**0.5, 0.5 * np.log(1 / 0.75)
    weights = found.weights
    # The tail of equal weights has no shape.
    assert (weights.k_hat, weights.draws, weights.usable) == (np.inf, 400, False)
    assert weights.rows is None
    assert weights.effective == pytest.approx(400 / 1.25)  # (Σw)² / Σw²
    assert (weights.shift, weights.ratio) == (pytest.approx(shift), pytest.approx(ratio))
    error = 0.5 / 400**0.5  # the weights have mean 1 and sd 0.5
    assert found.measures == {
        "corrected_k_hat": np.inf,
        "corrected_effective_sample_size": pytest.approx(320.0),
        "weighted_draws": 400,
        "log_evidence": pytest.approx(-3.0),
        "log_evidence_se": pytest.approx(error),
        "kl_to_posterior": pytest.approx(0.5),  # the bound is -3.5
        "kl_to_posterior_se": pytest.approx(error),  # the bound itself has no error here
        "raw_mean_shift": pytest.approx(shift),
        "raw_sd_log_ratio": pytest.approx(ratio),
        "heaviest_tail": pytest.approx(np.nan, nan_ok=True),
    }
    assert (found.unresolved, found.remarks) == ([], [])


def test_the_divergence_from_the_posterior_has_both_errors() -> None:
    raw = weighted(np.tile([-4.0, -2.0], 50))
    bound_error = (100 / 99) ** 0.5 / 10  # of the mean of a hundred that are one off
    none = Weights(0.1, 100, 50.0, True)
    found = collecting._measured(none, (-2.5, 0.3), raw)
    assert found["kl_to_posterior"] == pytest.approx(0.5)
    assert found["kl_to_posterior_se"] == pytest.approx(np.hypot(0.3, bound_error))


def test_the_heaviest_tail_is_that_of_the_worst_quantity(monkeypatch: pytest.MonkeyPatch) -> None:
    told = ({"a": 0.2, "b": 0.7}, ["The sd of b is not resolved."])
    monkeypatch.setattr(collecting, "unresolved_quantities", lambda *_: told)
    found = weigh()
    assert found.measures["heaviest_tail"] == 0.7
    assert found.unresolved == ["The sd of b is not resolved."]


@pytest.mark.parametrize("adaptive", [True, False])
def test_the_evidence_told_is_that_of_all_labellings(
    monkeypatch: pytest.MonkeyPatch, adaptive: bool
) -> None:
    def all_labellings(_: Any, log_evidence: Any, *proposal: Any) -> Any:
        assert proposal == (("points", "log_p", "log_proposal", True) if adaptive else ())
        return (log_evidence[0] + 0.25, 0.01), "Two labellings."

    monkeypatch.setattr(collecting, "of_all_labellings", all_labellings)
    importance = SimpleNamespace(
        points="points", log_p="log_p", log_proposal="log_proposal", labels="labels"
    )
    found = weigh(importance if adaptive else None)
    assert found.measures["log_evidence"] == pytest.approx(-2.75)
    assert found.measures["log_evidence_se"] == 0.01
    assert found.remarks == ["Two labellings."]


def test_of_rows_the_middle_one_tells_how_far_a_guide_is_off() -> None:
    """Of three rows, one has equal weights, which move nothing."""
    log_p = np.stack([EVEN.log_p, np.zeros(400), EVEN.log_p], axis=1)
    sites = {"z": torch.as_tensor(np.tile(ALTERNATING[:, None], (1, 3)))}
    rows = WeightedDraws(sites, log_p, np.zeros_like(log_p), axes={"z": 0})
    given = Drawn(rows.together.first(100), rows.resample(100, np.random.default_rng(0)))
    found = collecting._weighed(FITTED, given, landscape(), collecting.Shown({}, {}, {}))
    assert (found.weights.draws, found.weights.usable) == (400, False)
    assert found.weights.shift == pytest.approx(0.5 / 0.75**0.5)
    assert found.weights.ratio == pytest.approx(0.5 * np.log(400 / 399 / 0.75))
    assert found.weights.rows == (3, pytest.approx(2 / 3))
    assert found.measures["unreliable_rows"] == pytest.approx(2 / 3)
    assert found.measures["log_evidence"] == pytest.approx(-6.0)
    assert (found.unresolved, found.remarks) == ([], [])


# Whether a likelihood has a maximum.


def maximum(
    monkeypatch: pytest.MonkeyPatch, dimension: int = 2, steps: Any = None, **given: Any
) -> tuple[tuple[str, list[str]], list[Any]]:
    """What is said of it, and the points that were looked at."""
    looked: list[Any] = []

    def why(_: Any, point: Any, start: Any) -> str:
        looked.append((point["x"].item(), start))
        return "It has none."

    monkeypatch.setattr(collecting, "why_no_maximum", why)
    space = SimpleNamespace(dimension=dimension, sites=[SimpleNamespace(name="x")])
    problem = SimpleNamespace(**{"posterior": "with priors", "space": space, **given})
    fitted: Any = SimpleNamespace(
        problem=problem, guide=SimpleNamespace(steps=steps), start="start",
        seeks_maximum=given.get("seeks_maximum", True),
    )  # fmt: skip
    raw = weighted(np.zeros(2), x=[[4.0], [5.0]])
    return collecting._maximum(fitted, Drawn(raw)), looked


def test_a_maximum_is_looked_for_where_priors_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, looked = maximum(monkeypatch)
    assert (found, looked) == (("It has none.", []), [(4.0, "start")])
    assert maximum(monkeypatch, posterior=None) == (("", []), [])
    assert maximum(monkeypatch, seeks_maximum=False) == (("", []), [])
    assert maximum(monkeypatch, dimension=300)[0][1] == []
    (_, said), _ = maximum(monkeypatch, dimension=301)
    (sentence,) = said
    assert sentence.endswith("has a maximum: 301 dimensions are too many for the check.")
    assert maximum(monkeypatch, dimension=301, steps="its own")[0][1] == []


# Modes that the draws may have left out.


class Density:
    """As much of a density as is passed on."""

    slope_error = 0.03


def test_too_few_draws_at_a_mode_are_counted_where_labels_do_not_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def deserted(density: Any, modes: Any, points: Any, weights: Any, value: Any, _: Any) -> float:
        assert (density, points, weights, value) == (DENSITY, "points", "weights", -3.0)
        return 0.1 * len(modes)

    monkeypatch.setattr(collecting, "deserted", deserted)
    draws = drawn(-3.0, points="points", weights="weights")
    two = [mode(0.0), mode(-1.0)]
    assert collecting._left_out(draws, landscape(*two, density=DENSITY)) == 0.2
    assert collecting._left_out(draws, landscape(*two)) == 0.0
    assert collecting._left_out(drawn(-3.0), landscape(*two, density=DENSITY)) == 0.0
    one_labelling = drawn(None, points="points", weights="weights")
    assert collecting._left_out(one_labelling, landscape(*two, density=DENSITY)) == 0.0
    alike = [mode(0.0), mode(-1.0, relabelled=True)]
    assert collecting._left_out(draws, landscape(*alike, density=DENSITY)) == 0.0
    any_order = drawn(-3.0, points="points", weights="weights", labels="labels")
    assert collecting._left_out(any_order, landscape(*two, density=DENSITY)) == 0.0


DENSITY: Any = Density()


def all_modes(
    monkeypatch: pytest.MonkeyPatch, log_evidence: float | None, found: Any, gaussian: Any = None
) -> tuple[float, float]:
    monkeypatch.setattr(collecting, "_about_all_modes", lambda *_: found)
    task: Any = None
    fitted: Any = SimpleNamespace(gaussian=gaussian)
    return collecting._of_all_modes(task, fitted, drawn(log_evidence), landscape())


def test_evidence_of_all_modes_is_what_draws_about_them_have_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Weights 0.5 and 1.5 have mean 1 and sd 0.5; the error of the guide's evidence is 0.01."""
    log_weights = np.log(np.tile([0.5, 1.5], 2000))
    good = SimpleNamespace(k_hat=0.7, log_weights=log_weights)  # the limit for 4,000 draws
    value, error = all_modes(monkeypatch, -2.0, good)
    assert value == pytest.approx(2.0)
    assert error == pytest.approx(np.hypot(0.5 / 4000**0.5, 0.01))
    poor = SimpleNamespace(k_hat=0.71, log_weights=log_weights)
    unknown = SimpleNamespace(k_hat=np.nan, log_weights=log_weights)
    for none in (poor, unknown, None):
        assert all_modes(monkeypatch, -2.0, none) == (0.0, 0.0)
    assert all_modes(monkeypatch, None, good) == (0.0, 0.0)
    assert all_modes(monkeypatch, -2.0, good, gaussian="normal") == (0.0, 0.0)


def test_draws_about_all_modes_begin_at_a_normal_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Any] = []

    def sampled(density: Any, curvature: Any, first: Any, random: Any, places: Any) -> str:
        assert (density, curvature, places) == (DENSITY, "curvature", "places")
        assert torch.get_default_dtype() == torch.float64
        assert torch.get_num_threads() == 1
        assert set(np.geterr().values()) == {"ignore"}
        begun.append((first, random.random()))
        return "draws"

    monkeypatch.setattr(collecting, "sampled", sampled)
    wide = Mode(np.array([1.0, 2.0]), 0.0, np.array([[4.0, 0.0], [0.0, 0.25]]), True)
    lower = replace(wide, location=np.array([5.0, 6.0]), log_density=-1.0)
    hardly = replace(wide, location=np.array([7.0, 8.0]), log_density=-9.0)
    given = {"density": DENSITY, "curvature": "curvature", "places": "places"}
    task: Any = SimpleNamespace(seed=3, problem=SimpleNamespace(threads=1))
    before, threads = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with isolated(0, dtype=torch.float32):
            found = collecting._about_all_modes(task, landscape(wide, lower, hardly, **given))
    finally:
        torch.set_num_threads(threads)
    assert torch.get_default_dtype() == before
    assert found == "draws"
    ((first, number),) = begun
    assert number == np.random.default_rng(3).random()
    shares = np.array([1.0, np.exp(-1.0), 0.05])  # none is next to nothing
    np.testing.assert_allclose(first.shares, shares / shares.sum())
    np.testing.assert_array_equal(first.means, [[1.0, 2.0], [5.0, 6.0], [7.0, 8.0]])
    # Of one shape: sds of 1/2 and 2, but for the scale of t tails.
    for factor in first.factors:
        assert factor[1, 1] / factor[0, 0] == pytest.approx(4.0)
        assert np.diag(factor) / [0.5, 2.0] == pytest.approx([1.0, 1.0], rel=0.2)
    lacking: list[dict[str, Any]] = [
        {"density": None},
        {"curvature": None},
        {"rows": 1000},
        {"proper": []},
    ]
    for changed in lacking:
        assert collecting._about_all_modes(task, landscape(wide, **{**given, **changed})) is None
    assert len(begun) == 1


# All of it together.

DECLARED = ("engine", "simpler", "doubts_of")
"""What is read of a model's declaration."""


def collected(
    monkeypatch: pytest.MonkeyPatch, density: Any = DENSITY, sites: Any = ("x",), **changed: Any
) -> collecting.Collected:
    """The evidence of a guide without weights, of a model that no predictive check fits."""
    monkeypatch.setattr(collecting, "replicated", lambda *_: ("seen", "drawn"))
    checks = ({"y.mean": 0.001}, ["The model does not reproduce the mean of 'y'."])
    monkeypatch.setattr(
        collecting, "predictive_checks", lambda *both: checks if both == ("seen", "drawn") else None
    )
    monkeypatch.setattr(collecting, "invalid_draws", lambda *_: changed.get("invalid"))
    monkeypatch.setattr(
        collecting, "flat_predictions", lambda *both: ["Flat."] if both == ("seen", "drawn") else []
    )
    layers = changed.get("layers", ())
    space = SimpleNamespace(dimension=1, sites=sites, layers=layers)
    problem = SimpleNamespace(
        space=space, function=None, arguments={}, posterior=changed.get("posterior"),
        prepared=SimpleNamespace(doubts=("Few rows.",), own_priors=()), model_name="named",
        model=SimpleNamespace(**{name: changed.get(name) for name in DECLARED}),
    )  # fmt: skip
    trained = SimpleNamespace(converged=True, reason="It has converged.")
    fitted: Any = SimpleNamespace(
        problem=problem, trained=trained, engine=changed.get("by", "svi"), remedy="Try again.",
        point=changed.get("point", False), starts=(2, 3), gaussian=None, seeks_maximum=False,
        guide=SimpleNamespace(steps=None), said=("No bound.",),
    )  # fmt: skip
    raw = WeightedDraws({}, np.array([-7.0, -8.0]), np.zeros(2))
    given = Drawn(raw, health={"active_units": 2}, said=("2 of 2 latents are active.",))
    task: Any = SimpleNamespace(auto=changed.get("auto", False))
    place = landscape(density=density, endless="b +1.00")
    return collecting.collect(task, fitted, given, place, collecting.Shown({}, {}, {}))


def test_evidence_is_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    found = collected(monkeypatch, invalid="The scale of 'y' is negative.")
    evidence = found.evidence
    assert evidence.optimum == Optimum(
        True, "It has converged.", stochastic=True, point=False, no_maximum="", remedy="Try again."
    )
    assert evidence.weights == Weights(np.inf, 2, 0.0, usable=False)
    assert evidence.modes.starts == (2, 3)
    assert evidence.chains == Chains()
    assert evidence.target == Target(0.03, "b +1.00", "The scale of 'y' is negative.")
    assert evidence.gaps.all_modes == (0.0, 0.0)
    assert evidence.unresolved == ()
    assert evidence.remarks.doubts == ("Few rows.", "No bound.")
    assert evidence.remarks.health == ("2 of 2 latents are active.",)
    assert evidence.remarks.predictive == ("The model does not reproduce the mean of 'y'.",)
    assert evidence.ladder
    assert found.measures == {"predictive_checks": {"y.mean": 0.001}, "active_units": 2}
    assert found.remarks == []


def test_predictions_of_networks_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = collected(monkeypatch).evidence.remarks.predictive
    found = collected(monkeypatch, layers=("layer_0",)).evidence.remarks.predictive
    assert found == (*plain, "Flat.")
    assert plain == ("The model does not reproduce the mean of 'y'.",)


def test_evidence_follows_the_model_and_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = collected(monkeypatch, density=None, by="fixed_draws").evidence
    assert (plain.optimum.stochastic, plain.target.slope, plain.target.invalid) == (False, 0.0, "")
    assert not collected(monkeypatch, engine="svi").evidence.ladder
    assert plain.simpler == collected(monkeypatch, simpler=lambda _: None).evidence.simpler == ""
    simpler = collected(monkeypatch, simpler=lambda arguments: f"--parts {len(arguments)}")
    assert simpler.evidence.simpler == "--parts 0"
    doubting = collected(monkeypatch, doubts_of=lambda arguments, draws: [f"{arguments} {draws}"])
    assert doubting.evidence.remarks.doubts == ("Few rows.", "{} {}", "No bound.")
    assert not plain.auto
    assert collected(monkeypatch, auto=True).evidence.auto
    of_a_point = collected(monkeypatch, point=True).evidence.optimum
    assert (of_a_point.point, of_a_point.remedy) == (True, "Try again.")
    # Points alone have no guide that gives them a spread: they want priors.
    alone = collected(monkeypatch, point=True, sites=()).evidence.optimum
    assert "priors, with pyro.sample instead of pyro.param" in alone.remedy
    assert collected(monkeypatch, sites=()).evidence.optimum.remedy == "Try again."
    without_priors = collected(monkeypatch, posterior="with priors")
    assert without_priors.measures["log_likelihood"] == -7.0
