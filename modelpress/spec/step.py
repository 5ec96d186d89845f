"""What every step has: the part of a recipe that says what is asked, never how it is done."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Role = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
"""What another model is to a job: 'initial' has the weights that the model had before it was trained."""


class Step(BaseModel):
    """One step of a recipe. Subclasses fix `kind`, which is also the path of the pass that performs it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    paper: ClassVar[str]
    """Where the method comes from: authors, title, arXiv id."""
    leaves_trainable: ClassVar[bool] = True
    """Whether a later step may still train or prune the result."""
    changes_model: ClassVar[bool] = True
    """Whether the model becomes another; a step that only writes it differently may follow any other, and is the last."""
    analyzes: ClassVar[bool] = False
    """Whether the step measures and leaves the model as it is, so that any step may follow."""

    kind: str
    exclude: tuple[str, ...] = Field(
        default=(),
        max_length=256,
        description="Names of weights or nodes to leave alone; * and ? match as in file names.",
    )

    @property
    def needs_data(self) -> bool:
        """Whether the step reads samples."""
        return False

    @property
    def needs_labels(self) -> bool:
        """Whether the step reads labels."""
        return False

    @property
    def needs_models(self) -> tuple[str, ...]:
        """Roles of other models that the step can't do without: 'initial'."""
        return ()

    @property
    def uses_models(self) -> tuple[str, ...]:
        """Roles of other models that the step makes use of where the job has them, the needed ones among them."""
        return self.needs_models

    @property
    def uses_sensitivity(self) -> bool:
        """Whether the step makes use of measured sensitivities where the job has them."""
        return False

    def excludes(self, *names: str) -> bool:
        """Whether any of the names matches a pattern of `exclude`."""
        return any(fnmatchcase(name, pattern) for name in names for pattern in self.exclude)


class FineTune(BaseModel):
    """How to train between or after changes. Needs labels."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(
        default=3, ge=1, le=1000, description="Passes over the train split, in each round."
    )
    learning_rate: float = Field(
        default=1e-3,
        gt=0,
        le=10,
        description="Peak learning rate; decays to zero by a cosine over the round.",
    )
    batch_size: int = Field(
        default=64, ge=1, le=65536, description="Samples in each optimizer step."
    )
    optimizer: Literal["adam", "sgd"] = Field(
        default="adam", description="Adam, or SGD with momentum 0.9."
    )
    weight_decay: float = Field(
        default=0.0, ge=0, le=1, description="L2 penalty (decoupled with adam: AdamW)."
    )
