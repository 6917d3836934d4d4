"""Priors from a TOML file: the same as in Python, a part of the run, and named in messages."""

from pathlib import Path

import pytest

import elbowroom as er
from elbowroom.errors import OptionError, RunFolderError
from elbowroom.models._prior_files import LARGEST_FILE
from elbowroom.pipeline.fitting import bind_model
from elbowroom.run.unfinished import read_request

FORMULA = "progression ~ bmi + bp"


def written(folder: Path, text: str) -> Path:
    path = folder / "priors.toml"
    path.write_text(text)
    return path


def test_its_text_is_a_part_of_the_run(tmp_path: Path) -> None:
    """A run that was saved, or interrupted, does not need the file, and reads none."""
    path = written(tmp_path, 'bmi = "normal(0, 10)"\n"sigma" = "exponential(0.02)"\n')
    fit = er.fit(
        "bayesian_regression", formula=FORMULA, priors=path, seed=1, guide="laplace", draws=100
    )
    expected = "bmi ~ normal(0, 10), sigma ~ exponential(0.02)"
    assert fit.problem.options.priors == expected
    fit.save(tmp_path / "run")
    path.unlink()
    assert er.load(tmp_path / "run").problem.options.priors == expected
    config = tmp_path / "run" / "config.json"
    config.write_text(config.read_text().replace(expected, str(written(tmp_path, "x = 1"))))
    with pytest.raises(RunFolderError, match=r"config\.json"):
        er.load(tmp_path / "run", trust=True)


def test_what_was_asked_of_an_unfinished_run_holds_the_text(tmp_path: Path) -> None:
    path = written(tmp_path, 'bmi = "normal(0, 10)"')
    seen: list[str] = []

    def progress(*_: object) -> None:
        if not seen:
            seen.append(read_request(tmp_path / "run").asked["options"]["priors"])

    er.fit(
        "bayesian_regression", formula=FORMULA, priors=str(path), seed=1, engine="svi",
        guide="mean_field", steps=200, draws=100, checkpoints=tmp_path / "run", progress=progress,
    )  # fmt: skip
    assert seen == ["bmi ~ normal(0, 10)"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('bmi = "normal(0, -1)"', "priors.toml, bmi: the scale of normal"),
        ('bmi = "normal(0, 1), bp ~ normal(0, 1)"', "priors.toml, bmi: .* more than one prior"),
        ("bmi = 3", "priors.toml, bmi: it is 3, and no text"),
        ('a.b = "normal(0, 1)"', "priors.toml, a: it is a table.*double quotes"),
        ("bmi = normal(0, 1)", "priors.toml: it cannot be read as TOML .*line 1"),
        ("", "priors.toml: the file has no priors"),
        ("a = " + "[" * 5000, "priors.toml: it cannot be read as TOML"),
        ("#" * (LARGEST_FILE + 1), "priors.toml: the file has 100,001 bytes"),
        ('bmj = "normal(0, 1)"', r"priors.toml: 'bmj ~ normal\(0, 1\)'.*did you mean 'bmi'"),
        ('sigma = "normal(0, 1)"', "priors.toml: 'sigma ~ .*takes a prior of numbers above 0"),
    ],
)
def test_what_is_wrong_names_the_file_and_the_name(tmp_path: Path, text: str, says: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(OptionError, match=says):
        bind_model("bayesian_regression", "diabetes", {"formula": FORMULA, "priors": str(path)})


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path, says in ((tmp_path / "no.toml", "no such file"), (tmp_path, "it is no file")):
        with pytest.raises(OptionError, match=says):
            bind_model("bayesian_regression", "diabetes", {"formula": FORMULA, "priors": path})
