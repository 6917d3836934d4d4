"""Options that several models have."""

from typing import Annotated

from pydantic import Field

from elbowroom.options import Name, Width

Columns = Annotated[tuple[Name, ...] | None, Field(description="columns to use, all by default")]
Exclude = Annotated[tuple[Name, ...], Field(description="columns to leave out")]
Layers = Annotated[tuple[Width, ...], Field(min_length=1, max_length=20)]
ImageShape = Annotated[
    tuple[Width, ...] | None,
    Field(description="height,width[,colours] of the images whose pixels are the columns"),
]
