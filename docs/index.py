"""The lists in README.md, docs/README.md and the page of regressions: `make docs` writes them.

The first comes from the models and guides. The second has the first paragraph of each model's page.
The third has the families of `bayesian_regression`.
"""

import re
from collections.abc import Callable
from pathlib import Path

from elbowroom.guides import guides_for
from elbowroom.models import model_summaries
from elbowroom.models._families import FAMILIES, NUMBERS, Parameter

ROOT = Path(__file__).resolve().parents[1]
TABLE = re.compile(r"^\| (model|family) \|.*\n(?:\|.*\n)+", flags=re.M)


def described() -> str:
    """Every model with its summary and the guides written for it."""
    lines = ["| model | description | guides written for it |", "| --- | --- | --- |"]
    for name, summary in model_summaries().items():
        guides = ", ".join(f"`{g.name}`" for g in guides_for(name).values() if g.model == name)
        lines.append(f"| `{name}` | {summary} | {guides} |")
    return "\n".join(lines) + "\n"


def paged() -> str:
    """Every model with a link to its page and the page's first paragraph.

    Raises:
        FileNotFoundError: If a model has no page.
    """
    lines = ["| model | description |", "| --- | --- |"]
    for name in model_summaries():
        page = (ROOT / "docs" / "models" / f"{name}.md").read_text(encoding="utf-8")
        purpose = " ".join(page.split("\n\n")[1].split())
        lines.append(f"| [`{name}`](models/{name}.md) | {purpose} |")
    return "\n".join(lines) + "\n"


def families() -> str:
    """Every family of a regression: what it is, its links and the priors of its parameters."""
    lines = [
        "| family | response | distribution | links | parameters and their default priors |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, family in FAMILIES.items():
        links = ", ".join(f"`{link}`" for link in family.links)
        priors = "; ".join(_prior(each, family.logarithm) for each in family.parameters)
        takes, formula = NUMBERS[family.takes].words, family.formula
        lines.append(f"| `{name}` | {takes} | {formula} | {links} | {priors} |")
    return "\n".join(lines) + "\n"


def _prior(parameter: Parameter, logarithm: bool) -> str:
    """A default prior with the unit of its numbers."""
    of = "log(y)" if logarithm else "y"
    unit = {"spread": f", in units of sd({of})", "mean": ", in units of mean(y)", "": ""}[
        parameter.unit
    ]
    return f"`{parameter.name} ~ {parameter.prior}`{unit}"


LISTS: dict[Path, Callable[[], str]] = {
    ROOT / "README.md": described,
    ROOT / "docs" / "README.md": paged,
    ROOT / "docs" / "models" / "bayesian_regression.md": families,
}
"""The documents with a list, and what makes it."""


def with_list(text: str, table: str) -> str:
    """A document with its list replaced.

    Raises:
        ValueError: If it has no list, or several.
    """
    changed, count = TABLE.subn(lambda _: table, text)
    if count != 1:
        raise ValueError(
            f"{count} tables begin with '| model |' or '| family |'; there must be one."
        )
    return changed


def main() -> None:
    """Writes the lists."""
    for path, table in LISTS.items():
        path.write_text(with_list(path.read_text(encoding="utf-8"), table()), encoding="utf-8")


if __name__ == "__main__":
    main()
