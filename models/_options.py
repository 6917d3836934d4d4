"""Options that several models have."""

from typing import Annotated

from pydantic import Field

Columns = Annotated[tuple[str, ...] | None, Field(description="columns to use, all by default")]
Exclude = Annotated[tuple[str, ...], Field(description="columns to leave out")]
