"""A network that learns what others answer."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from modelpress.spec.distill._student import DistillTraining, Student
from modelpress.spec.distill._teaching import Distill
from modelpress.spec.step import Step


class Distilling(Step, Distill):
    """A step in which a student learns from teachers."""

    student: Student | None = Field(
        default=None, description="Who learns; null is the model as earlier steps left it."
    )
    training: DistillTraining = Field(
        default=DistillTraining(), description="How the student is trained."
    )

    @property
    def needs_data(self) -> bool:
        return True

    @property
    def needs_labels(self) -> bool:
        return self.learns_labels

    @property
    def needs_models(self) -> tuple[str, ...]:
        own = self.student.role if self.student is not None else None
        return self.roles if own is None else tuple(dict.fromkeys((own, *self.roles)))


class DistillLogits(Distilling):
    """Trains a student on the class scores of its teachers, and on labels where there are any."""

    paper: ClassVar[str] = (
        "Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network (arXiv 1503.02531); dkd: Zhao, Cui, Song, Qiu, Liang: "
        "Decoupled Knowledge Distillation (arXiv 2203.08679); standardize: Sun, Ren, Li, Wang, Cao: Logit Standardization in Knowledge "
        "Distillation (arXiv 2403.01427); mixup: Zhang, Cisse, Dauphin, Lopez-Paz (arXiv 1710.09412)"
    )

    kind: Literal["distill.logits"] = "distill.logits"
