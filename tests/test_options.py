"""An option belongs to what reads it: each other one refuses it, and help and lists follow."""

import re
from typing import Annotated, Any

import pytest
from pydantic import Field
from pydantic.dataclasses import dataclass

import elbowroom as er
from elbowroom import cli
from elbowroom.engines.options import ENGINES, NumberOptions
from elbowroom.engines.settings import Way, check_read, make_settings, setting_kinds, setting_names
from elbowroom.errors import OptionError
from elbowroom.guides import Guide, guides_for
from elbowroom.guides.options import CorrelatedOptions, FixedDrawsOptions, HeldOutOptions
from elbowroom.models import model_summaries
from elbowroom.objectives import get_objective, objective_options, objectives, register
from elbowroom.objectives.estimators import Sampled
from elbowroom.options import declared, flag, option_names
from elbowroom.report.listing import show_objectives

OTHER: dict[str, Any] = {
    "device": "cpu", "dtype": "float32", "time": 7.0, "restarts": 2, "steps": 7, "epochs": 7,
    "batch_size": 20, "learning_rate": 0.5, "optimizer": "SGD", "schedule": "cosine",
    "tolerance": 0.3,
    "held_out": 0.2, "patience": 3, "clip_norm": 5.0, "particles": 4, "elbo": "trace",
    "kl_warm_up": 5, "compile": True, "autocast": True, "fixed_draws": 64, "correlated": "a",
    "free_bits": 0.3, "alpha": 0.3, "baseline": "none", "insomnia": 0.5,
    "mutual_information": 0.3,
}  # fmt: skip
"""A value of each option that is not its default."""
MODEL: tuple[str, str, dict[str, Any]] = (
    "bayesian_regression", "diabetes", {"formula": "progression ~ bmi", "seed": 1}
)  # fmt: skip
GUIDES = {
    "fixed_draws": ("linear_response", "mean_field", "laplace"), "svi": ("mean_field", "structured")
}  # fmt: skip
USUAL: dict[str, Any] = {
    option.name: option.default
    for kind in setting_kinds()
    for option in declared(kind)
    if option.default is not None
}
"""The default of each option that has one."""


def refused(name: str, value: Any, **asked: Any) -> str:
    """What a fit says to an option, which it has to refuse."""
    model, data, options = MODEL
    # Of few latents all covariances are taken, which is said first.
    says = "this model has" if name == "correlated" else "would have no effect"
    with pytest.raises(OptionError, match=f"{flag(name)}.*{says}") as seen:
        er.fit(model, data, **{name: value}, **options, **asked)
    return str(seen.value)


def of_guides(guide: Guide) -> set[str]:
    """What a guide does not read of that which some guides read."""
    kinds = {FixedDrawsOptions, CorrelatedOptions, HeldOutOptions}
    return {name for kind in kinds - set(guide.reads) for name in option_names(kind)}


def every_way() -> list[Way]:
    """Every pairing of an engine, a guide that it fits, and for stochastic gradients an ELBO."""
    guides = {
        (g.model, g.name): g for model in model_summaries() for g in guides_for(model).values()
    }
    return [
        Way(engine, objective, guide)
        for guide in guides.values()
        for engine in guide.engines
        for objective in (objectives() if engine == "svi" else [None])
    ]


def test_every_option_has_another_value_here() -> None:
    assert set(OTHER) == set(setting_names())


@pytest.mark.parametrize("values", [OTHER, USUAL], ids=["another", "default"])
def test_every_pairing_refuses_what_it_does_not_read(values: dict[str, Any]) -> None:
    """Of engine, guide and objective, be the value the default or not; who reads it is said."""
    ways = every_way()
    assert len(ways) > 200
    every = {name: make_settings({name: value}) for name, value in values.items()}
    for way in ways:
        assert way.guide is not None
        own = {*option_names(ENGINES[way.engine]), *option_names(NumberOptions)}
        own -= of_guides(way.guide)
        if way.objective is not None:
            own |= set(option_names(get_objective(way.objective).options_kind))
        for name, settings in every.items():
            if name in own:
                check_read(settings, [way])
                continue
            with pytest.raises(
                OptionError, match=f"^{flag(name)} would have no effect.*it is for "
            ) as no:
                check_read(settings, [way])
            named = str(no.value).partition("it is for ")[2].partition(";")[0]
            assert re.match("--engine|--guide|--elbo|an amortised guide$", named)


@pytest.mark.parametrize(
    ("engine", "guide"), [(engine, guide) for engine in GUIDES for guide in GUIDES[engine]]
)
def test_an_engine_refuses_what_others_read(engine: str, guide: str) -> None:
    of_objectives = [name for kind in objective_options() for name in option_names(kind)]
    read = {*option_names(ENGINES[engine]), *option_names(NumberOptions)}
    if engine == "svi":
        read |= {"free_bits", "mutual_information"}  # they choose their objectives
    for name in setting_names():
        if name not in read:
            said = refused(name, OTHER[name], engine=engine, guide=guide)
            owner = "--elbo" if name in of_objectives else "--engine"
            assert f"it is for {owner}" in said or name == "correlated"


@pytest.mark.parametrize(
    ("name", "asked", "owner"),
    [
        ("fixed_draws", {"guide": "laplace"}, "--guide mean_field"),
        ("fixed_draws", {"guide": "pathfinder"}, "--guide mean_field"),
        ("held_out", {"guide": "mean_field"}, "an amortised guide"),
        ("patience", {"guide": "structured"}, "an amortised guide"),
    ],
)
def test_a_guide_refuses_what_others_read(name: str, asked: dict[str, Any], owner: str) -> None:
    assert f"it is for {owner}" in refused(name, OTHER[name], **asked)


def test_a_default_that_is_given_counts_as_given() -> None:
    assert "--engine svi" in refused("learning_rate", 0.02, engine="fixed_draws")
    assert "--elbo renyi" in refused("alpha", 0.5)
    model, data, options = MODEL
    fit = er.fit(model, data, "mean_field", schedule="plateau", steps=20, draws=100, **options)
    assert fit.engine == "svi"
    assert fit.settings.given == {"schedule", "steps"}


@pytest.mark.parametrize("objective", objectives())
def test_an_objective_refuses_what_others_read(objective: str) -> None:
    own = option_names(get_objective(objective).options_kind)
    several: dict[str, Any] = {"particles": 4} if get_objective(objective).several else {}
    for kind in objective_options():
        for name in option_names(kind):
            if name in own:
                continue
            model, data, options = MODEL
            asked: dict[str, Any] = {name: OTHER[name], **several, **options}
            with pytest.raises(OptionError):
                er.fit(model, data, "mean_field", elbo=objective, **asked)


def test_an_option_can_ask_for_its_objective() -> None:
    model, data, options = MODEL
    fit = er.fit(model, data, "mean_field", free_bits=0.1, steps=20, draws=100, **options)
    assert fit.objective == ("trace_mean_field", "as asked")
    assert fit.settings.flat()["free_bits"] == 0.1


@pytest.fixture
def tempered(monkeypatch: pytest.MonkeyPatch) -> None:
    """An objective of a user's own, registered as a file in its folder is."""

    @dataclass(frozen=True)
    class Options:
        temper: Annotated[float, Field(gt=0, le=9, description="power of the density")] = 1.0

    class Tempered(Sampled):
        """The ELBO times a number: `tempered`."""

        options_kind = Options

        def estimate(self, model_trace: Any, guide_trace: Any) -> Any:
            elbo, surrogate = super().estimate(model_trace, guide_trace)
            return self.options.temper * elbo, surrogate

    monkeypatch.setattr("elbowroom.objectives._registered", dict(objectives()))
    register("tempered")(Tempered)


def test_an_objective_is_listed_fitted_and_refused_from_its_declaration_alone(
    tempered: None, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data, options = MODEL
    show_objectives()
    assert re.search(
        r"--temper +tempered +1.0 +above 0 to 9 +power of the density", capsys.readouterr().out
    )
    asked: dict[str, Any] = {"elbo": "tempered", "steps": 20, "draws": 100, **options}
    whole = er.fit(model, data, "mean_field", **asked)
    half = er.fit(model, data, "mean_field", temper=0.5, **asked)
    assert half.trained.elbo_history[0] == pytest.approx(whole.trained.elbo_history[0] / 2)
    wrongs: list[tuple[dict[str, Any], str]] = [
        ({"temper": -1.0}, "--temper -1.0"),
        (
            {"temper": 0.5, "elbo": "trace"},
            "--temper would have no effect.*it is for --elbo tempered",
        ),
        ({"tempre": 0.5}, "did you mean '--temper'"),
        ({"elbo": "tempred"}, "did you mean 'tempered'"),
    ]
    for wrong, said in wrongs:
        with pytest.raises(OptionError, match=said):
            er.fit(model, data, "mean_field", **{**asked, **wrong})


def test_auto_refuses_what_it_would_not_read() -> None:
    assert "--elbo renyi" in refused("alpha", 0.3)
    assert "--elbo score_function" in refused("baseline", "none")
    assert "--engine svi and --engine em" in refused("steps", 7, engine="fixed_draws")


def test_a_comparison_takes_what_one_of_its_guides_reads() -> None:
    model, data, options = MODEL
    found = er.compare(
        model, data, ["linear_response", "mean_field"], steps=20, draws=100, **options
    )
    assert found.fits["linear_response"].engine == "fixed_draws"
    assert len(found.fits["mean_field"].elbo_history) == 20
    with pytest.raises(OptionError, match="--steps would have no effect"):
        er.compare(model, data, ["linear_response"], steps=20, **options)
    with pytest.raises(OptionError, match="--alpha would have no effect"):
        er.compare(model, data, ["mean_field:trace"], alpha=0.3, **options)


def test_the_command_line_has_every_option_of_an_engine_and_lists_those_of_objectives(
    capsys: pytest.CaptureFixture[str],
) -> None:
    engines = {name for kind in (*ENGINES.values(), NumberOptions) for name in option_names(kind)}
    assert set(cli.SETTINGS) == engines
    show_objectives()
    listed = capsys.readouterr().out
    assert set(objectives()) <= set(re.findall(r"\w+", listed))
    for kind in objective_options():
        for option in declared(kind):
            assert option.flag in listed
            assert option.description


@pytest.mark.parametrize(
    "name", [option.name for kind in setting_kinds() for option in declared(kind) if option.needs]
)
def test_an_option_that_another_one_switches_off_is_refused(name: str) -> None:
    """A run whose learning rate follows a fixed schedule takes all its steps: no rule stops it."""
    settings = make_settings({name: OTHER[name], "schedule": "cosine"})
    guides = [guide for guide in guides_for("vae").values() if guide.amortised]
    ways = [Way("svi", guide=guide) for guide in guides]
    with pytest.raises(OptionError, match=f"^{flag(name)} .* it is for --schedule plateau"):
        check_read(settings, ways)
    check_read(make_settings({name: OTHER[name], "schedule": "plateau"}), ways)


def test_what_the_stopping_rule_reads_needs_the_schedule_that_stops() -> None:
    needing = {option.name for kind in setting_kinds() for option in declared(kind) if option.needs}
    assert needing == {"tolerance", "held_out", "patience"}
