"""The verdict over each piece of its evidence."""

import json
from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from elbowroom.assess import verdict as verdicts
from elbowroom.assess.evidence import Evidence, Mixing, Optimum, Weights
from elbowroom.assess.verdict import (
    CHECKS,
    CORRECTED,
    LIMITS,
    NOT_TRUSTED,
    TRUSTED,
    Severity,
    Verdict,
    judge,
)
from elbowroom.density.importance import ERRORS, k_hat_threshold
from elbowroom.draws.weighted import WEIGHING

GOOD = Evidence(
    Optimum(converged=True, status="the gradient vanishes."),
    Weights(k_hat=0.1, draws=4000, effective=3500.0, usable=True),
)


def evidence(**changed: Any) -> Evidence:
    """Good evidence with some values changed, each by its own name."""
    found = GOOD
    for name, value in changed.items():
        part = next(
            (each.name for each in fields(Evidence) if hasattr(getattr(GOOD, each.name), name)), ""
        )
        whole = replace(getattr(found, part), **{name: value}) if part else value
        found = replace(found, **{part or name: whole})
    return found


def verdict(**changed: Any) -> Verdict:
    """The verdict of such evidence."""
    return judge(evidence(**changed))


def test_good_evidence_is_trusted_and_nothing_is_advised() -> None:
    found = verdict()
    assert found.level == TRUSTED
    assert found.trusted
    assert found
    assert found.advice == ""
    assert found.reasons == (
        "k-hat of the importance weights 0.10 (90% interval -0.03 to 0.23, limit 0.70), 3,500 "
        "effective draws.",
    )
    assert str(found) == f"trusted: {found.reasons[0]}"


def test_each_check_can_be_asked_by_its_name() -> None:
    for check in CHECKS:
        assert getattr(verdicts, check.name)(GOOD) is None
        assert getattr(verdicts, check.name) is check.reason


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"point": True, "k_hat": np.inf}, "The guide is one point", "--guide auto"),
    ({"converged": False, "status": "stopped early."}, "Stopped early.", "non-centred"),
    (
        {"converged": False, "status": "ran out.", "stochastic": True},
        "Ran out.",
        "more --steps",
    ),
    ({"k_hat": 0.9}, "cannot correct the guide: k-hat of the importance weights 0.90", "NUTS"),
    (
        {"k_hat": 0.9, "stochastic": True},
        "cannot correct the guide: k-hat of the importance weights 0.90",
        "--guide auto",
    ),
    (
        {"k_hat": 0.65},
        "might be unable to correct the guide: k-hat of the importance weights 0.65",
        "NUTS",
    ),
    ({"k_hat": np.inf}, "cannot correct the guide: k-hat of the importance weights inf", "NUTS"),
    ({"k_hat": np.nan}, "k-hat of the importance weights nan", "NUTS"),
    ({"effective": WEIGHING.resolved - 1}, "Fewer than 400 effective draws", "more --draws"),
    ({"effective": np.nan}, "Fewer than 400 effective draws", "more --draws"),
    ({"starts": (1, 8)}, "Only 1 of 8 climbs ended at the best mode", "more --restarts"),
    ({"slope": 0.5}, "gradient of the model's log density", "fix the operation"),
    ({"other_guide": (0.1, 0.02)}, "a log evidence that is 0.1 nats higher", "NUTS"),
    ({"missing": LIMITS.missing_evidence + 1}, "is 6 nats below", "another --seed"),
    ({"missing": np.inf}, "is inf nats below", "another --seed"),
    ({"unresolved": ("The sd of x cannot be estimated well.",)}, "The sd of x", "quantiles"),
    ({"reference": ("NUTS differs in x.", False)}, "NUTS differs in x.", "draws of NUTS"),
]


@pytest.mark.parametrize(("changed", "reason", "advice"), REFUSED)
def test_each_piece_of_evidence_alone_is_enough_to_refuse(
    changed: dict[str, Any], reason: str, advice: str
) -> None:
    found = verdict(**changed)
    assert found.level == NOT_TRUSTED
    assert not found.trusted
    assert not found
    assert reason in " ".join(found.reasons)
    assert len(found.reasons) == 1
    assert advice in found.advice
    assert str(found).endswith(f"\nnext: {found.advice}")


@pytest.mark.parametrize(
    "changed",
    [
        {"k_hat": 0.5},
        {"k_hat": -np.inf},
        {"effective": WEIGHING.resolved},
        {"starts": (1, 3)},
        {"starts": (2, 8)},
        {"starts": (1, 1)},
        {"missing": LIMITS.missing_evidence},
        {"other_guide": (0.1, 0.04)},
        {"other_guide": (0.01, 0.0)},
        {"missing": -50.0},
        {"shift": LIMITS.shift, "ratio": LIMITS.shift},
        {"shares": (1.0,)},
        {"reference": ("NUTS agrees.", True)},
        {"predictive": ("The model does not reproduce the sd of 'y': compare them.",)},
        {"relabelled": True},
        {"usable": False},
    ],
)
def test_what_is_just_good_enough_is_trusted(changed: dict[str, Any]) -> None:
    found = verdict(**changed)
    assert found.level == TRUSTED
    assert found.advice == ""


def test_the_limit_of_k_hat_is_that_of_the_interval_s_upper_end() -> None:
    """Few draws have a lower limit and a wider interval."""
    for draws in (200, 1000, 4000, 30_000):
        limit = k_hat_threshold(draws)
        error = 1.645 * (1 + limit) / min(0.2 * draws, 3 * draws**0.5) ** 0.5
        assert not verdict(k_hat=limit - 0.5 * error, draws=draws)
        assert verdict(k_hat=limit - 1.1 * error, draws=draws)


@pytest.mark.parametrize("changed", [{"shift": 0.5}, {"ratio": 0.7}, {"shift": np.inf}])
def test_a_guide_that_the_weights_mended_is_trusted_after_correction(
    changed: dict[str, float],
) -> None:
    found = verdict(**changed)
    assert found.level == CORRECTED
    assert found.trusted
    assert "The posterior consists of the corrected draws" in found.reasons[-1]
    assert f"up to {changed.get('shift', 0.0):.2g} sd in a mean" in found.reasons[-1]
    assert f"a factor of {np.exp(changed.get('ratio', 0.0)):.2g} in an sd" in found.reasons[-1]


def test_starts_and_modes_are_told_as_they_are() -> None:
    found = verdict(starts=(5, 8), shares=(0.7, 0.3))
    assert "5 of 8 climbs ended at the best mode." in found.reasons
    assert "1 of 2 climbs ended at the best mode." in verdict(starts=(1, 2)).reasons
    assert "2 modes have these shares of the mass: 70%, 30%." in found.reasons
    assert not any("climbs" in reason for reason in verdict(starts=None).reasons)
    assert not any("climbs" in reason for reason in verdict(starts=(1, 1)).reasons)


@pytest.mark.parametrize("refused", [{}, {"k_hat": 0.9}])
def test_remarks_change_no_level_and_come_last(refused: dict[str, float]) -> None:
    sentence = "The model does not reproduce the sd of 'y': compare them."
    plain = verdict(**refused)
    found = verdict(predictive=(sentence,), relabelled=True, **refused)
    assert found.level == plain.level
    assert found.advice == plain.advice
    assert found.reasons[: len(plain.reasons)] == plain.reasons
    labels, missed = found.reasons[len(plain.reasons) :]
    assert "relabelling" in labels
    assert missed == sentence


def test_a_reference_that_agrees_speaks_for_the_optimum_and_the_draws() -> None:
    agrees = ("NUTS agrees.", True)
    found = verdict(reference=agrees, k_hat=0.9, effective=3.0, converged=False)
    assert (found.level, found.reasons, found.advice) == (TRUSTED, ("NUTS agrees.",), "")


@pytest.mark.parametrize(
    "changed",
    [
        {"point": True, "k_hat": np.inf},
        {"starts": (1, 8)},
        {"missing": 9.0},
        {"other_guide": (0.1, 0.02)},
        {"direction": "x +1.00"},
        {"slope": 0.1},
        {"unresolved": ("The sd of x cannot be estimated well.",)},
    ],
)
def test_it_does_not_for_what_its_chains_may_have_missed_as_well(changed: dict[str, Any]) -> None:
    assert verdict(reference=("NUTS agrees.", True), **changed).level == NOT_TRUSTED


def test_of_several_reasons_the_first_decides_what_to_do() -> None:
    found = verdict(
        converged=False,
        status="stopped.",
        k_hat=0.9,
        starts=(1, 8),
        missing=9.0,
        unresolved=("The sd of x cannot be estimated well.",),
        reference=("NUTS differs.", False),
    )
    assert "draws of NUTS" in found.advice
    assert [reason.split()[0] for reason in found.reasons] == [
        "NUTS", "Stopped.", "The", "Only", "The",
    ]  # fmt: skip
    # What rests on bad weights is not looked into.
    assert not any("sd of x" in reason for reason in found.reasons)


def test_of_many_unresolved_quantities_the_first_are_named_and_the_rest_counted() -> None:
    names = tuple(f"The sd of x[{i}] cannot be estimated well." for i in range(LIMITS.named + 4))
    found = verdict(unresolved=names)
    assert found.reasons == (
        " ".join([*names[: LIMITS.named], "The same holds for 4 more quantities."]),
    )
    one_more = verdict(unresolved=names[: LIMITS.named + 1]).reasons[0]
    assert one_more.endswith("The same holds for 1 more quantity.")
    assert verdict(unresolved=names[: LIMITS.named]).reasons == (" ".join(names[: LIMITS.named]),)


def test_one_point_has_no_weights_to_speak_of() -> None:
    found = verdict(point=True, k_hat=np.inf, effective=0.0)
    assert found.reasons == ("The guide is one point, which has no spread.",)


def mixing(r_hat: float = 1.003, diverged: float = 0.0, stuck: int = 0) -> Mixing:
    """Of 64 chains from 8 places."""
    return Mixing(64, 8, r_hat, diverged, stuck)


# Every check at its limit: the last value that passes and the first that does not.

CASES: list[tuple[str, str, dict[str, Any], Any, Any]] = [
    ("wrong_gradient", "slope", {}, LIMITS.slope_error, 1.001 * LIMITS.slope_error),
    ("few_effective_draws", "effective", {}, WEIGHING.resolved, 0.999 * WEIGHING.resolved),
    ("one_start_alone", "starts", {}, (1, LIMITS.few_starts), (1, LIMITS.few_starts + 1)),
    ("one_start_alone", "starts", {}, (2, 100), (1, 100)),
    ("one_start_alone", "covered", {"starts": (1, 8)}, True, False),
    ("search_unfinished", "unfinished", {}, False, True),
    ("search_unfinished", "covered", {"unfinished": True}, True, False),
    ("higher_place_missed", "missing", {}, LIMITS.missing_evidence, LIMITS.missing_evidence + 0.01),
    ("higher_place_missed", "covered", {"missing": 9.0}, True, False),
    ("mode_left_out", "left_out", {}, 0.0, 0.03),
    (
        "other_guide_found_more", "other_guide", {},
        (LIMITS.other_guide, 0.0), (LIMITS.other_guide + 1e-6, 0.0),
    ),
    ("other_guide_found_more", "other_guide", {}, (1.0, 1 / ERRORS), (1.0, 0.999 / ERRORS)),
    (
        "other_modes_have_more", "all_modes", {},
        (LIMITS.all_modes, 0.0), (LIMITS.all_modes + 1e-6, 0.0),
    ),
    ("other_modes_have_more", "all_modes", {}, (1.0, 1 / ERRORS), (1.0, 0.999 / ERRORS)),
    (
        "chains_leave_the_draws", "outside", {"count": LIMITS.fewest_chains},
        LIMITS.outside, 1.001 * LIMITS.outside,
    ),
    (
        "chains_leave_the_draws", "count", {"outside": 0.5},
        LIMITS.fewest_chains - 1, LIMITS.fewest_chains,
    ),
    (
        "chains_leave_the_draws", "outside", {"count": 9, "lasting": True},
        LIMITS.lasting, 1.001 * LIMITS.lasting,
    ),
    ("chains_leave_the_draws", "lasting", {"count": 9, "outside": 0.006}, False, True),
    ("chains_not_mixed", "mixing", {}, mixing(LIMITS.r_hat), mixing(LIMITS.r_hat + 1e-6)),
    ("chains_not_mixed", "mixing", {}, mixing(stuck=0), mixing(stuck=1)),
    (
        "chains_not_mixed", "mixing", {},
        mixing(diverged=LIMITS.diverged), mixing(diverged=1.001 * LIMITS.diverged),
    ),
    (
        "chains_not_mixed", "effective", {"mixing": mixing()},
        WEIGHING.resolved, 0.999 * WEIGHING.resolved,
    ),
    ("weights_of_rows", "usable", {"rows": (10, 0.2)}, True, False),
    ("improper_posterior", "direction", {}, None, "b +1.00"),
    ("invalid_model", "invalid", {}, "", "the scale of 'y' is negative at 3 draws."),
    ("no_maximum", "no_maximum", {}, "", "The likelihood grows without end."),
    ("out_of_time", "out_of_time", {}, "", "The time of the fit, 9 s, was over."),
    ("unresolved", "unresolved", {}, (), ("The sd of x cannot be estimated well.",)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "field", "others", "passes", "fails"), CASES)
def test_each_check_has_one_limit(
    name: str, field: str, others: dict[str, Any], passes: Any, fails: Any
) -> None:
    (check,) = [each for each in CHECKS if each.name == name]
    assert check.reason(evidence(**others, **{field: passes})) is None
    against = evidence(**others, **{field: fails})
    reason = check.reason(against)
    assert reason is not None
    found = judge(against)
    assert found.reasons[0] == reason
    assert found.advice == check.remedy(against) != ""


def test_every_check_is_seen_to_say_no() -> None:
    elsewhere = {"one_point", "reference_differs", "optimum_not_reached", "heavy_weights"}
    assert {check.name for check in CHECKS} == {each[0] for each in CASES} | elsewhere


ALL_BAD: dict[str, Any] = {
    "no_maximum": "The likelihood has no maximum.", "point": False, "slope": 0.5,
    "direction": "b +1.00", "invalid": "The scale is negative.",
    "reference": ("NUTS differs.", False), "converged": False, "k_hat": 0.9, "starts": (1, 8),
    "unfinished": True, "missing": 9.0, "left_out": 0.1, "other_guide": (1.0, 0.0),
    "all_modes": (1.0, 0.0), "outside": 0.5, "count": 9, "unresolved": ("The sd of x.",),
}  # fmt: skip


def test_reasons_come_by_severity_and_the_least_only_where_nothing_else_is_wrong() -> None:
    whole = evidence(**ALL_BAD)
    against = [
        (check.severity, check.reason(whole))
        for check in CHECKS
        if check.severity < Severity.UNRESOLVED and check.reason(whole) is not None
    ]
    expected = [reason for _, reason in sorted(against, key=lambda pair: pair[0])]
    assert list(verdict(**ALL_BAD).reasons) == expected
    assert len(expected) == 14
    assert len({severity for severity, _ in against}) == Severity.UNRESOLVED


@pytest.mark.parametrize(
    ("changed", "remark"),
    [
        (
            {"starts": (1, 1)},
            "The search for modes had only one start: other modes would be missed.",
        ),
        (
            {"own_starts": True, "starts": (3, 8)},
            "The search for modes used the model's own starts only: other modes would be missed.",
        ),
        ({"converged": False, "covered": True}, "The gradient vanishes."),
        ({"doubts": ("A column is constant.",)}, "A column is constant."),
        ({"health": ("Latent 1 carries nothing.",)}, "Latent 1 carries nothing."),
    ],
)
def test_remarks_are_told_beside_trust(changed: dict[str, Any], remark: str) -> None:
    found = verdict(**changed)
    assert found.level == TRUSTED
    assert found.reasons[-1] == remark
    other = verdict(**{**changed, "starts": (2, 8), "own_starts": False, "converged": True,
                       "doubts": (), "health": ()})  # fmt: skip
    assert remark not in other.reasons


def test_an_optimum_that_was_not_reached_matters_unless_draws_are_everywhere() -> None:
    stopped = {"converged": False, "status": "stopped."}
    assert verdict(**stopped).reasons[0] == "Stopped."
    assert verdict(**stopped, covered=True).trusted
    assert not verdict(**stopped, covered=True, usable=False).trusted
    assert not verdict(**stopped, covered=True, stochastic=True).trusted
    assert verdict(**stopped, remedy="do this.").advice == "do this."
    assert verdict(point=True, remedy="do that.").advice == "do that."


ROWS = (200, 0.03)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (
            {"k_hat": 0.31, "effective": 812.0},
            "In 95% of the 200 rows, k-hat is at most 0.31 (limit 0.70), and at least 812 of 4,000 "
            "draws are effective. In 6 rows the weights are unreliable; there the posterior has "
            "the guide's own draws.",
        ),
        (
            {"k_hat": 0.31, "effective": 812.0, "rows": (200, 0.0)},
            "In 95% of the 200 rows, k-hat is at most 0.31 (limit 0.70), and at least 812 of 4,000 "
            "draws are effective.",
        ),
        (
            {"k_hat": -np.inf, "effective": 4000.0},
            "In each of the 200 rows all importance weights are equal.",
        ),
        (
            {"k_hat": -np.inf, "effective": 3995.0},
            "In 95% of the 200 rows, k-hat does not apply, since the draws repeat a few discrete "
            "values. In these rows at least 3,995 of 4,000 draws are effective.",
        ),
    ],
)
def test_weights_of_rows_are_told(changed: dict[str, Any], sentence: str) -> None:
    assert verdict(**{"rows": ROWS, **changed}).reasons == (sentence,)


def test_equal_weights_are_told() -> None:
    found = verdict(k_hat=-np.inf, effective=4000.0)
    assert found.reasons == ("All importance weights are equal: 4,000 effective draws.",)


@pytest.mark.parametrize(
    ("ratio", "said"),
    [(np.log(2.0), "a factor of 2 "), (7.0, "a factor of more than 1,000"), (6.8, "9e+02")],
)
def test_how_far_the_guide_s_own_draws_are_off(ratio: float, said: str) -> None:
    assert said in verdict(ratio=ratio).reasons[-1]
    assert verdict(ratio=ratio, usable=False).level == CORRECTED


def test_what_to_do_about_weights_depends_on_what_there_is_to_try() -> None:
    bad = {"k_hat": 0.9}
    assert "elbowroom reference RUN" in verdict(**bad).advice
    assert verdict(**bad, stochastic=True).advice == "fit with --guide auto."
    assert "--test-size" in verdict(**bad, stochastic=True, ladder=False).advice
    more = {"all_modes": (1.0, 0.0)}
    assert "which draws around all modes" in verdict(**more).advice
    assert verdict(other_guide=(1.0, 0.0), guide="flow").reasons[0].startswith("The guide flow ")
    assert verdict(**more, ladder=False).advice == "compare with NUTS ('elbowroom reference RUN')."
    assert verdict(**more, reference=("NUTS agrees.", True)).trusted
    assert verdict(starts=(1, 8)).advice == "give more --restarts, such as four times as many."


@pytest.mark.parametrize(
    ("changed", "advice"),
    [
        ({"k_hat": 0.9, "stochastic": True}, "compare with NUTS"),
        ({"all_modes": (1.0, 0.0)}, "compare with NUTS"),
        ({"converged": False}, "write the model with a non-centred"),
    ],
)
def test_a_fit_by_auto_is_not_advised_to_try_auto(changed: dict[str, Any], advice: str) -> None:
    assert "--guide auto" in verdict(**changed).advice
    found = verdict(**changed, auto=True).advice
    assert found.startswith(advice)
    assert "--guide auto" not in found


@pytest.mark.parametrize(
    "changed", [ALL_BAD, {"rows": ROWS}, {"shares": (0.7, 0.3)}, {"mixing": mixing(stuck=2)}]
)
@pytest.mark.parametrize("kind", [evidence, verdict])
def test_evidence_and_verdict_are_read_as_they_were_written(kind: Any, changed: Any) -> None:
    whole = kind(**changed)
    written = json.dumps(asdict(whole))
    assert TypeAdapter(type(whole)).validate_json(written, strict=True) == whole


def test_draws_of_chains_are_judged_by_their_mixing_alone() -> None:
    """The weights are then those of the guide beside them."""
    found = verdict(mixing=mixing(), k_hat=2.0, effective=900.0)
    assert found.level == TRUSTED
    assert found.reasons == (
        "64 Markov chains from 8 places: nested R-hat 1.003 (limit 1.01), 900 effective draws.",
    )
    corrected = verdict(mixing=mixing(), k_hat=2.0, shift=0.5)
    assert corrected.level == CORRECTED
    assert "The posterior consists of the draws of the chains" in corrected.reasons[-1]
    stuck = verdict(mixing=mixing(stuck=2))
    assert stuck.reasons[0].startswith("2 of 64 Markov chains are stuck: 64 Markov chains from")
    assert "non-centred" in stuck.advice
    agrees = verdict(mixing=mixing(2.0), reference=("NUTS agrees.", True))
    assert (agrees.level, agrees.reasons) == (TRUSTED, ("NUTS agrees.",))


def test_the_limits_are_as_documented() -> None:
    """A limit that is changed here is changed in docs/trust.md, and measured anew."""
    assert (
        LIMITS.shift,
        WEIGHING.resolved,
        LIMITS.missing_evidence,
        LIMITS.all_modes,
        LIMITS.other_guide,
    ) == (
        0.1,
        400.0,
        5.0,
        0.1,
        0.02,
    )
    assert (
        LIMITS.outside,
        LIMITS.lasting,
        LIMITS.fewest_chains,
        LIMITS.slope_error,
        LIMITS.named,
    ) == (0.01, 0.004, 3, 0.001, 3)
    assert (LIMITS.r_hat, LIMITS.diverged) == (1.01, 0.01)


def test_of_rows_whose_weights_are_bad_the_share_and_the_number_are_told() -> None:
    (reason,) = verdict(rows=(1200, 0.2), usable=False).reasons
    assert reason == (
        "For 20% of the 1,200 rows (limit 5%), the guide misses the posterior, and importance "
        "weights cannot correct it: k-hat is above 0.70, or fewer than 50 draws are effective."
    )


def test_a_simpler_model_is_the_first_advice_where_draws_do_not_follow_the_posterior() -> None:
    heavy = verdict(k_hat=0.9, simpler="--components 2")
    assert heavy.advice.startswith("give --components 2, or ")
    assert heavy.advice.endswith(verdict(k_hat=0.9).advice)
    cut = verdict(out_of_time="The time was over.", simpler="--components 2")
    assert cut.advice.startswith("give --components 2, or give a longer --time")
    for other in ({"slope": 1.0}, {"k_hat": 0.9, "stochastic": True}):
        assert "--components" not in verdict(simpler="--components 2", **other).advice
    assert verdict(simpler="--components 2").advice == ""
