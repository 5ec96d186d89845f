"""What an engine child says while it runs: one JSON object a line on its standard output."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_LINE_BYTES = 16_384


class Progress(BaseModel):
    """Where the job is. `event` 'stage_done' also says that report.json now holds one stage more."""

    model_config = ConfigDict(frozen=True)

    event: Literal["progress", "stage_started", "stage_done"] = Field(
        default="progress", description="'stage_done' follows the report that holds the stage."
    )
    stage: int = Field(
        ge=0,
        description="Index of the stage: 0 is the baseline, then the steps, last the verification.",
    )
    stages: int = Field(ge=1, description="How many stages the job has.")
    name: str = Field(max_length=128, description="'baseline', the kind of the step, or 'verify'.")
    fraction: float = Field(
        ge=0, le=1, description="How much of the whole job is done, as a fraction."
    )
    message: str = Field(default="", max_length=500, description="What is being done, for people.")
