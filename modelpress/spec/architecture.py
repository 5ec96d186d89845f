"""Small architectures that a student can have."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Name = Literal[
    "squeezenet_1_0",
    "squeezenet_1_1",
    "mobilenet_v1",
    "mobilenet_v2",
    "shufflenet_v1",
    "shufflenet_v2",
    "xception",
    "ghostnet",
]


class Architecture(BaseModel):
    """A network of the zoo with new weights, for the inputs and classes of the model that teaches it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name = Field(description="The paper's network.")
    width: float = Field(
        default=1.0,
        gt=0,
        le=4,
        description="Channels of each layer as a share of the paper's, rounded as the paper does.",
    )
    depth: float = Field(
        default=1.0,
        gt=0,
        le=4,
        description="Repetitions of each block as a share of the paper's; at least one.",
    )
