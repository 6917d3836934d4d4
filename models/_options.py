"""Options that several models have."""

from typing import Annotated

from pydantic import AfterValidator, Field

from elbowroom.errors import OptionError
from elbowroom.options import Name, Width

Columns = Annotated[tuple[Name, ...] | None, Field(description="columns to use, all by default")]
Exclude = Annotated[tuple[Name, ...], Field(description="columns to leave out")]
Layers = Annotated[tuple[Width, ...], Field(min_length=1, max_length=20)]


def _of_images(shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
    if shape is not None and len(shape) not in (2, 3):
        raise OptionError(
            f"--image-shape {','.join(map(str, shape))}: give height,width or height,width,colours."
        )
    return shape


ImageShape = Annotated[
    tuple[Width, ...] | None,
    AfterValidator(_of_images),
    Field(description="height,width[,colours] of the images whose pixels are the columns"),
]
