"""The ladder of `auto`: which rungs are climbed, where it ends, and what it returns."""

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from elbowroom import budget
from elbowroom.assess.evidence import Evidence, Modes, Optimum, Weights
from elbowroom.assess.verdict import Verdict, judge
from elbowroom.engines.settings import Settings, make_settings
from elbowroom.engines.task import Task
from elbowroom.errors import GuideError, OutOfTimeError
from elbowroom.pipeline import ladder
from elbowroom.pipeline.ladder import RUNGS, Ladder, climb_ladder


@dataclass(frozen=True)
class Rung:
    """As much of a fit as a ladder looks at."""

    evidence: Evidence
    measures: dict[str, Any]
    remarks: tuple[str, ...]

    @property
    def guide(self) -> Any:
        return SimpleNamespace(name="flow")

    @property
    def problem(self) -> Any:
        return SimpleNamespace(reparameterised=())

    @property
    def verdict(self) -> Verdict:
        return judge(self.evidence)

    @property
    def converged(self) -> bool:
        return self.evidence.optimum.converged


def rung(
    k_hat: float = 0.1,
    log_evidence: float = -10.0,
    converged: bool = True,
    draws: int | None = 4000,
    remarks: tuple[str, ...] = (),
    missing: float = 0.0,
) -> Rung:
    """A fit by stochastic gradients, whose k-hat is that of 4,000 draws: the limit is 0.7.

    Args:
        k_hat: Of its weights.
        log_evidence: Of the draws, with a standard error of 0.01.
        converged: Whether the optimum was reached.
        draws: As far as they are known.
        remarks: Of the fit.
        missing: Nats by which a place climbed to exceeds the draws, which is not trusted from 5 on.
    """
    evidence = Evidence(
        Optimum(converged, "stopped early.", stochastic=True),
        Weights(k_hat, 4000, 3000.0, True),
        Modes(missing=missing),
    )
    measures: dict[str, Any] = {"log_evidence": log_evidence, "log_evidence_se": 0.01}
    measures.update(corrected_k_hat=k_hat, weighted_draws=draws)
    return Rung(evidence, measures, remarks)


@dataclass(frozen=True)
class Problem:
    """As much of a problem as a ladder looks at."""

    dimension: int = 3
    points: int = 0
    location_scale: tuple[str, ...] = ()
    discrete: tuple[str, ...] = ()
    model_name: str | None = None
    reparameterised: tuple[str, ...] = ()
    long: bool = False
    own_scales: bool = False

    @property
    def space(self) -> Any:
        return SimpleNamespace(
            dimension=self.dimension, location_scale=self.location_scale,
            discrete=self.discrete, parameters=SimpleNamespace(size=self.points), sites=("mean",),
        )  # fmt: skip

    @property
    def model(self) -> Any:
        return SimpleNamespace(suggested={})

    def reparameterise(self, sites: tuple[str, ...]) -> "Problem":
        return replace(self, reparameterised=sites)


BAD = rung(k_hat=0.9)
NO_MODE: Any = GuideError("there is no mode.")


class Climbed:
    """What a ladder did, given what each rung and each start gives."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, problem: Problem, *given: Any,
        best: bool = True, start: Any = None, endless: str | None = None,
        settings: Settings | None = None, modes: int | None = None, unstarted: bool = False,
        unchanged: bool = False,
    ) -> None:  # fmt: skip
        self.tasks: list[tuple[str, str, Any, Task]] = []
        self.said: list[str] = []
        self.seconds: list[float] = []
        left = list(given)
        self.landscape = SimpleNamespace(
            best="mode" if best else None, endless=endless,
            density=None if modes is None else "recorded", proper=["mode"] * (modes or 0),
        )  # fmt: skip

        def begin(task: Task, guide: Any) -> Any:
            assert guide.name == "linear_response"
            if start is not None:
                raise start
            return self.landscape

        def fit_one(task: Task, guide: Any, engine: str, landscape: Any) -> Any:
            self.tasks.append((guide.name, engine, landscape, task))
            self.seconds.append(budget.left())
            found = left.pop(0)
            if isinstance(found, Exception):
                raise found
            return found

        def centred(problem: Problem, seed: int) -> tuple[Problem, Any]:
            changed = replace(problem, reparameterised=problem.location_scale)
            changed = problem if unchanged else changed
            return changed, SimpleNamespace(density="centred")

        def unclimbed(problem: Problem, seed: int, density: Any) -> Any:
            if unstarted:
                raise OutOfTimeError("the time was over.")
            return SimpleNamespace(density=density or "as written")

        monkeypatch.setattr(ladder, "partly_centred", centred)
        monkeypatch.setattr(ladder, "unclimbed", unclimbed)
        monkeypatch.setattr(ladder, "unexplored", lambda problem: "unexplored")
        monkeypatch.setattr(ladder, "has_long_vectors", lambda problem: problem.long)
        monkeypatch.setattr(ladder, "has_own_scales", lambda problem: problem.own_scales)
        monkeypatch.setitem(ladder.ENGINES, "fixed_draws", SimpleNamespace(start=begin))
        whole: Any = problem
        task = Task(whole, settings or make_settings({}), 1, announce=lambda _: None)
        self.fit: Any = climb_ladder(task, fit_one, self.said.append)

    @property
    def rungs(self) -> list[str]:
        return [
            f"{name} {engine}{' standardised' if task.problem.reparameterised else ''}"
            for name, engine, _, task in self.tasks
        ]


@pytest.fixture
def climbed(monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda *given, **more: Climbed(monkeypatch, *given, **more)


def test_a_trusted_first_rung_ends_the_climb(climbed: Any) -> None:
    found = climbed(Problem(), rung())
    ((name, engine, landscape, task),) = found.tasks
    assert (name, engine, landscape) == ("linear_response", "fixed_draws", found.landscape)
    assert task.begins
    assert task.announce is not None
    assert found.said == ["linear_response: trusted"]
    assert found.fit.remarks == ()  # one rung alone needs no list


def test_all_rungs_of_a_small_model_are_climbed_until_one_is_trusted(climbed: Any) -> None:
    hierarchy = Problem(location_scale=("effect",))
    two_reasons = rung(0.9, missing=99.0)
    found = climbed(hierarchy, two_reasons, BAD, BAD, rung(remarks=("its own.",)))
    assert found.rungs == [
        "linear_response fixed_draws", "full_rank fixed_draws",
        "linear_response fixed_draws standardised", "full_rank fixed_draws standardised",
    ]  # fmt: skip
    assert [task.announce is not None for *_, task in found.tasks] == [True, False, False, False]
    assert all(task.begins for *_, task in found.tasks)
    assert [line.partition(":")[0] for line in found.said] == [
        "linear_response", "full_rank", "linear_response (non-centred sites)",
        "full_rank (non-centred sites)",
    ]  # fmt: skip
    first = "linear_response: not trusted. The importance weights cannot correct the guide: "
    assert found.said[0].startswith(f"{first}k-hat of the importance weights 0.90")
    assert found.fit.verdict.trusted
    assert found.fit.remarks == (*(f"auto: {line}" for line in found.said), "its own.")


def test_no_one_normal_is_tried_where_discrete_sites_are_summed_over(climbed: Any) -> None:
    mixture = Problem(discrete=("part",), model_name="mixture")
    assert climbed(mixture, BAD, rung(), modes=2).rungs == [
        "linear_response fixed_draws", "markov fixed_draws",
    ]  # fmt: skip


def test_a_trusted_rung_ends_the_climb_whatever_came_before(climbed: Any) -> None:
    assert len(climbed(Problem(location_scale=("effect",)), BAD, rung()).rungs) == 2


def test_a_model_without_such_sites_is_not_standardised(climbed: Any) -> None:
    found = climbed(Problem(), BAD, BAD)
    assert found.rungs == ["linear_response fixed_draws", "full_rank fixed_draws"]
    assert not found.fit.verdict.trusted


def test_chains_come_first_for_a_wide_hierarchy_of_a_named_model(climbed: Any) -> None:
    hierarchy = Problem(61, location_scale=("effect",), model_name="regression")
    assert climbed(hierarchy, rung()).rungs == ["markov fixed_draws standardised"]


@pytest.mark.parametrize(
    ("dimension", "rungs"),
    [(60, ["linear_response", "full_rank"]), (61, ["markov", "linear_response"])],
)
def test_full_rank_is_for_some_ten_dimensions_and_chains_for_more(
    climbed: Any, dimension: int, rungs: list[str]
) -> None:
    found = climbed(Problem(dimension), BAD, BAD)
    assert found.rungs == [f"{name} fixed_draws" for name in rungs]
    announced = [task.announce is not None for *_, task in found.tasks]
    assert announced == [True, False]
    assert found.tasks[1][3].density == ("as written" if dimension > 60 else None)  # the chains'
    named = climbed(Problem(61, model_name="regression"), BAD)
    assert named.rungs == ["linear_response fixed_draws"]
    assert climbed(Problem(61, points=2), BAD).rungs == ["linear_response fixed_draws"]


def test_the_density_of_chains_is_that_of_the_sites_as_they_are_written(climbed: Any) -> None:
    """Of a hierarchy that is left as it is; the standardised sites have another one."""
    found = climbed(Problem(61, location_scale=("effect",)), BAD, BAD, rung(), unchanged=True)
    densities = [task.density for *_, task in found.tasks]
    assert densities == [None, "centred", None]
    assert found.rungs[2] == "linear_response fixed_draws standardised"


def test_where_the_time_is_over_the_last_steps_leave_some_for_their_draws(climbed: Any) -> None:
    with budget.limited(1000.0) as whole:
        whole.cut.append("searching for modes")
        found = climbed(Problem(), rung(), start=NO_MODE)
        assert found.rungs == ["mean_field svi"]
        assert found.seconds == [pytest.approx(RUNGS.steps * budget.left(), rel=0.01)]
    assert RUNGS.steps < 0.9


def test_chains_without_a_place_to_begin_leave_the_rest_of_the_ladder(climbed: Any) -> None:
    found = climbed(Problem(61), rung(), unstarted=True)
    assert found.said == ["markov: the time was over.", "linear_response: trusted"]


def test_where_chains_had_too_little_time_steps_are_the_last_resort(climbed: Any) -> None:
    found = climbed(Problem(61), NO_MODE, rung(), unstarted=True)
    assert found.rungs == ["linear_response fixed_draws", "mean_field svi"]


def test_chains_come_first_where_a_long_vector_has_an_unknown_covariance(climbed: Any) -> None:
    found = climbed(Problem(30, location_scale=("f",), long=True), rung())
    assert found.rungs == ["markov fixed_draws standardised"]
    assert found.tasks[0][2].density == "centred"
    then = climbed(Problem(30, location_scale=("f",), long=True), BAD, rung())
    assert then.rungs == ["markov fixed_draws standardised", "linear_response fixed_draws"]
    assert then.tasks[1][3].density is None  # the chains' is another one


def test_chains_come_first_where_numbers_have_scales_of_their_own(climbed: Any) -> None:
    found = climbed(Problem(12, location_scale=("f",), own_scales=True), rung())
    assert found.rungs == ["markov fixed_draws standardised"]


def test_chains_come_first_where_a_named_model_has_groups(climbed: Any) -> None:
    few = Problem(12, model_name="regression")
    assert climbed(few, rung()).rungs == ["linear_response fixed_draws"]
    found = climbed(replace(few, location_scale=("f",)), rung())
    assert found.rungs == ["markov fixed_draws standardised"]


def test_chains_of_a_wide_hierarchy_begin_where_it_is_partly_centred(climbed: Any) -> None:
    found = climbed(Problem(61, location_scale=("effect",)), rung())
    assert found.rungs == ["markov fixed_draws standardised"]
    assert found.tasks[0][2].density == "centred"


@pytest.mark.parametrize(("modes", "begins"), [(1, False), (2, True)])
def test_chains_are_the_last_rung_before_there_is_no_trust(
    climbed: Any, modes: int, begins: bool
) -> None:
    """They begin at the modes where there are several, so that it is seen if they stay there."""
    found = climbed(Problem(), BAD, BAD, rung(), modes=modes)
    assert found.rungs[-1] == "markov fixed_draws"
    begun = found.tasks[-1][2]
    assert (begun is found.landscape) == begins
    assert begun.density == "recorded"  # once
    assert found.fit.verdict.trusted


def test_full_rank_needs_a_mode_to_begin_at(climbed: Any) -> None:
    assert climbed(Problem(), BAD, best=False).rungs == ["linear_response fixed_draws"]


@pytest.mark.parametrize(
    ("second", "ends"),
    [
        ({"k_hat": 0.49}, True),
        ({"k_hat": 0.51}, False),
        ({"k_hat": 0.49, "converged": False}, False),
        ({"k_hat": 0.49, "draws": None}, False),
        ({"k_hat": np.nan}, False),
        ({"k_hat": 0.49, "log_evidence": -11.0}, False),  # the first has a nat more
    ],
)
def test_good_weights_end_the_climb_whatever_else_is_wrong(
    climbed: Any, second: dict[str, Any], ends: bool
) -> None:
    """Clearly below the limit of 0.7, that is by 0.2; another guide would not change the rest."""
    hierarchy = Problem(location_scale=("effect",))
    found = climbed(hierarchy, BAD, rung(**second, missing=99.0), BAD, BAD)
    assert not found.fit.verdict.trusted
    assert len(found.rungs) == (2 if ends else 4)


def test_of_rungs_without_trust_the_one_with_the_best_weights_is_returned(climbed: Any) -> None:
    for k_hats in ((0.95, 0.9), (0.9, 0.95)):
        found = climbed(Problem(), *(rung(k_hat) for k_hat in k_hats))
        assert found.fit.measures["corrected_k_hat"] == 0.9


@pytest.mark.parametrize("first", [rung(0.8, -12.0), rung(0.1, -12.0, converged=False)])
def test_a_rung_that_missed_a_part_is_not_the_best_whatever_its_weights(
    climbed: Any, first: Rung
) -> None:
    """It is told so by a rung that came after it."""
    assert climbed(Problem(), first, BAD).fit.measures["log_evidence"] == -10.0
    found = climbed(Problem(), first, rung(0.95, -12.5))
    assert found.fit.measures["log_evidence"] == -12.0


def test_a_rung_that_fails_is_a_line(climbed: Any) -> None:
    found = climbed(Problem(), NO_MODE, rung())
    assert found.said == ["linear_response: there is no mode.", "full_rank: trusted"]
    assert found.fit.remarks == tuple(f"auto: {line}" for line in found.said)
    # A library's error from numbers that it cannot use is one too.
    singular = np.linalg.LinAlgError("Singular matrix")
    found = climbed(Problem(), singular, rung())
    assert found.said[0].startswith("linear_response: ")
    assert found.said[1] == "full_rank: trusted"


def test_where_no_rung_gives_a_fit_all_reasons_are_told(climbed: Any) -> None:
    with pytest.raises(
        GuideError, match=r"^linear_response: there is no mode\. full_rank: .* flow: there is no"
    ):
        climbed(Problem(), NO_MODE, NO_MODE, NO_MODE)


def test_a_density_that_does_not_fall_is_refused_before_any_rung(climbed: Any) -> None:
    with pytest.raises(GuideError, match=r"not fall along b \+1\.00\. Give each site named here a"):
        climbed(Problem(), endless="b +1.00")


def test_a_flow_is_the_last_resort_of_few_dimensions(climbed: Any) -> None:
    found = climbed(Problem(20), NO_MODE, NO_MODE, rung())
    assert found.rungs[-1] == "flow svi"
    _, _, landscape, task = found.tasks[-1]
    assert landscape is None
    assert not task.begins
    assert task.announce is None
    assert task.settings.steps == 5000
    with pytest.raises(GuideError):
        climbed(Problem(21), NO_MODE, NO_MODE)
    standardised = climbed(
        Problem(location_scale=("effect",)), NO_MODE, NO_MODE, NO_MODE, NO_MODE, rung()
    )
    assert standardised.rungs[-1] == "flow svi standardised"
    assert climbed(Problem(), BAD, BAD).rungs == [
        "linear_response fixed_draws", "full_rank fixed_draws",
    ]  # fmt: skip


@pytest.mark.parametrize("given", [{"steps": 7}, {"epochs": 7}])
def test_a_flow_gets_the_steps_that_were_asked_for(climbed: Any, given: dict[str, int]) -> None:
    found = climbed(Problem(), NO_MODE, NO_MODE, rung(), settings=make_settings(given))
    settings = found.tasks[-1][3].settings
    assert (settings.steps, settings.epochs) == (given.get("steps"), given.get("epochs"))


def test_no_start_leaves_the_rungs_that_find_their_own(climbed: Any) -> None:
    found = climbed(Problem(points=2), rung(), start=GuideError("no maximum."))
    assert found.rungs == ["mean_field svi"]
    assert found.fit.remarks[:2] == (
        "auto: search for modes: no maximum.", "auto: mean_field: trusted",
    )  # fmt: skip
    # Without a start the non-centred sites have none either.
    hierarchy = Problem(points=2, location_scale=("effect",))
    assert climbed(hierarchy, rung(), start=NO_MODE).rungs == ["mean_field svi"]
    assert climbed(Problem(points=2), BAD, BAD).rungs[-1] == "full_rank fixed_draws"
    assert climbed(Problem(), rung(), start=NO_MODE).rungs == ["flow svi"]


def test_where_covariances_are_too_large_there_are_independent_normals(climbed: Any) -> None:
    found = climbed(Problem(2001), NO_MODE, NO_MODE, rung())
    assert found.rungs == [
        "markov fixed_draws", "linear_response fixed_draws", "mean_field fixed_draws",
    ]  # fmt: skip
    _, _, landscape, task = found.tasks[-1]
    assert landscape is found.landscape
    assert task.begins
    with pytest.raises(GuideError):
        climbed(Problem(2000), NO_MODE, NO_MODE)
    assert len(climbed(Problem(2001), NO_MODE, BAD).rungs) == 2


def test_options_that_a_rung_does_not_read_are_its_defaults(climbed: Any) -> None:
    settings = make_settings({"steps": 7, "fixed_draws": 64, "restarts": 2})
    found = climbed(Problem(), NO_MODE, NO_MODE, rung(), settings=settings)
    read = [(task.settings.steps, task.settings.fixed_draws) for *_, task in found.tasks]
    assert read[0] == (None, 64)
    assert read[-1] == (7, None)
    assert {task.settings.restarts for *_, task in found.tasks} == {2}


def test_what_failed_before_says_nothing_of_another_rung() -> None:
    def fails(*_: Any) -> Any:
        raise NO_MODE

    problem: Any = Problem()
    tried = Ladder(fails, None)  # nobody listens
    task = Task(problem, make_settings({}), 1)
    assert tried.rung("linear_response", task, "fixed_draws", None) is False
    assert tried.lines == ["linear_response: there is no mode."]
    assert tried.fits == []


def test_evidence_that_is_not_known_is_no_gap() -> None:
    fits: Any = [rung(), rung(log_evidence=np.nan), rung(log_evidence=np.inf)]
    for fit in fits:
        assert ladder._compared(fit, fits).evidence.gaps.other_guide == (0.0, 0.0)
    unmeasured: Any = Rung(BAD.evidence, {}, ())
    assert ladder._compared(unmeasured, fits).evidence.gaps.other_guide == (0.0, 0.0)
