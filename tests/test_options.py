"""An option belongs to what reads it: each other one refuses it, and help and lists follow."""

import re
from typing import Any

import pytest

import elbowroom as er
from elbowroom import cli
from elbowroom.engines.options import ENGINES, NumberOptions
from elbowroom.engines.settings import Settings
from elbowroom.errors import OptionError
from elbowroom.objectives.elbo import OBJECTIVES, objective_options
from elbowroom.options import declared, flag, option_names
from elbowroom.report.listing import show_objectives

OTHER: dict[str, Any] = {
    "device": "cpu", "dtype": "float32", "restarts": 2, "steps": 7, "epochs": 7, "batch_size": 20,
    "learning_rate": 0.5, "optimizer": "SGD", "schedule": "cosine", "tolerance": 0.3,
    "held_out": 0.2, "patience": 3, "clip_norm": 5.0, "particles": 4, "elbo": "trace",
    "kl_warm_up": 5, "compile": True, "autocast": True, "fixed_draws": 64, "correlated": "a",
    "free_bits": 0.3, "alpha": 0.3, "baseline": "none", "insomnia": 0.5,
}  # fmt: skip
"""A value of each option that is not its default."""
MODEL: tuple[str, str, dict[str, Any]] = (
    "bayesian_regression", "diabetes", {"formula": "progression ~ bmi", "seed": 1}
)  # fmt: skip
GUIDES = {"fixed_draws": ("linear_response", "mean_field"), "svi": ("mean_field", "structured")}


def refused(name: str, **asked: Any) -> str:
    """What a fit says to an option, which it has to refuse."""
    model, data, options = MODEL
    # Of few latents all covariances are taken, which is said first.
    says = "this model has" if name == "correlated" else "has no meaning"
    with pytest.raises(OptionError, match=f"{flag(name)}.*{says}") as seen:
        er.fit(model, data, **{name: OTHER[name]}, **options, **asked)
    return str(seen.value)


def test_every_option_has_another_value_here() -> None:
    assert set(OTHER) == set(option_names(Settings))


@pytest.mark.parametrize(
    ("engine", "guide"), [(engine, guide) for engine in GUIDES for guide in GUIDES[engine]]
)
def test_an_engine_refuses_what_others_read(engine: str, guide: str) -> None:
    of_objectives = [name for kind in objective_options() for name in option_names(kind)]
    read = {*option_names(ENGINES[engine]), *option_names(NumberOptions)}
    if engine == "svi":
        read.add("free_bits")  # it chooses its objective
    for name in option_names(Settings):
        if name not in read:
            said = refused(name, engine=engine, guide=guide)
            owner = "--elbo" if name in of_objectives else "--engine"
            assert f"it is of {owner}" in said or name == "correlated"


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_an_objective_refuses_what_others_read(objective: str) -> None:
    own = option_names(OBJECTIVES[objective].options_kind)
    several: dict[str, Any] = {"particles": 4} if OBJECTIVES[objective].several else {}
    for kind in objective_options():
        for name in option_names(kind):
            if name in own:
                continue
            model, data, options = MODEL
            asked: dict[str, Any] = {name: OTHER[name], **several, **options}
            with pytest.raises(OptionError):
                er.fit(model, data, "mean_field", elbo=objective, **asked)


def test_auto_refuses_what_it_would_not_read() -> None:
    assert "--elbo renyi" in refused("alpha")
    assert "--elbo score_function" in refused("baseline")
    assert "--engine svi and --engine em" in refused("steps", engine="fixed_draws")


def test_a_comparison_takes_what_one_of_its_guides_reads() -> None:
    model, data, options = MODEL
    found = er.compare(
        model, data, ["linear_response", "mean_field"], steps=20, draws=100, **options
    )
    assert found.fits["linear_response"].engine == "fixed_draws"
    assert len(found.fits["mean_field"].elbo_history) == 20
    with pytest.raises(OptionError, match="--steps has no meaning here"):
        er.compare(model, data, ["linear_response"], steps=20, **options)
    with pytest.raises(OptionError, match="--alpha has no meaning here"):
        er.compare(model, data, ["mean_field:trace"], alpha=0.3, **options)


def test_the_command_line_has_every_option_of_an_engine_and_lists_those_of_objectives(
    capsys: pytest.CaptureFixture[str],
) -> None:
    engines = {name for kind in (*ENGINES.values(), NumberOptions) for name in option_names(kind)}
    assert set(cli.SETTINGS) == engines
    show_objectives()
    listed = capsys.readouterr().out
    assert set(OBJECTIVES) <= set(re.findall(r"\w+", listed))
    for kind in objective_options():
        for option in declared(kind):
            assert option.flag in listed
            assert option.description
