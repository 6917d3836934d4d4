"""The pictures of the model pages: `python docs/pictures.py [NAME ...]`.

Writes `docs/models/NAME.png` for each model, or for those that are named. A model's `picture` fits
it with a fixed seed and gives the figure. About three minutes in all on one core.
"""

import argparse
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image

import elbowroom as er
from elbowroom.models import get_model, model_summaries

FOLDER = Path(__file__).parent / "models"
DPI = 120
COLOURS = 128
"""In a file."""


def draw(name: str) -> Path:
    """Draws the picture of a model, and gives its file.

    Raises:
        ValueError: If the model has no picture.
    """
    picture = get_model(name).picture
    if picture is None:
        raise ValueError(f"models/{name}.py: give Model(...) a function `picture`.")
    path, drawn = FOLDER / f"{name}.png", BytesIO()
    picture(er.fit).savefig(drawn, dpi=DPI)
    # A palette makes the file a third as large.
    Image.open(drawn).convert("RGB").quantize(COLOURS).save(path, optimize=True)
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    """Draws the pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "names", nargs="*", metavar="NAME", choices=[[], *model_summaries()],
        help="models; all by default",
    )  # fmt: skip
    for name in parser.parse_args(arguments).names or model_summaries():
        path = draw(name)
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
