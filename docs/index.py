"""The lists of models in README.md and docs/README.md: `make docs` writes them.

The first comes from the models and guides. The second has the first paragraph of each model's page.
"""

import re
from collections.abc import Callable
from pathlib import Path

from elbowroom.guides import guides_for
from elbowroom.models import model_summaries

ROOT = Path(__file__).resolve().parents[1]
TABLE = re.compile(r"^\| model \|.*\n(?:\|.*\n)+", flags=re.M)


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


LISTS: dict[Path, Callable[[], str]] = {
    ROOT / "README.md": described,
    ROOT / "docs" / "README.md": paged,
}
"""The documents with a list, and what makes it."""


def with_list(text: str, table: str) -> str:
    """A document with its list of models replaced.

    Raises:
        ValueError: If it has no list, or several.
    """
    changed, count = TABLE.subn(lambda _: table, text)
    if count != 1:
        raise ValueError(f"{count} tables begin with '| model |'; there must be one.")
    return changed


def main() -> None:
    """Writes the lists."""
    for path, table in LISTS.items():
        path.write_text(with_list(path.read_text(encoding="utf-8"), table()), encoding="utf-8")


if __name__ == "__main__":
    main()
