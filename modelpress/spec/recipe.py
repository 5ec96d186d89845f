"""A recipe: ordered steps, checked for order and for the data they need before anything runs."""

from __future__ import annotations

from collections.abc import Collection
from itertools import pairwise
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from modelpress.spec.analyze import AnalyzeSensitivity
from modelpress.spec.code import CodeEntropy, CodeHuffman
from modelpress.spec.distill import DistillFeatures, DistillLogits
from modelpress.spec.problem import Problem, Refused, from_validation
from modelpress.spec.prune import PruneChannels, PruneLottery, PruneMagnitude, PruneSupermask
from modelpress.spec.quantize import (
    QuantizeBinary,
    QuantizeBits,
    QuantizeCluster,
    QuantizeFloat16,
    QuantizeInt8,
    QuantizeQat,
)
from modelpress.spec.rewrite import RewriteBlocks, RewriteClean, RewriteDepthwise, RewriteLowRank
from modelpress.spec.step import Step

MAX_STEPS = 32
MAX_ANALYSES = 8

AnyStep = Annotated[
    AnalyzeSensitivity  #
    | PruneMagnitude
    | PruneChannels
    | PruneLottery
    | PruneSupermask
    | DistillLogits
    | DistillFeatures
    | RewriteLowRank
    | RewriteDepthwise
    | RewriteBlocks
    | RewriteClean
    | QuantizeInt8
    | QuantizeQat
    | QuantizeBits
    | QuantizeFloat16
    | QuantizeCluster
    | QuantizeBinary
    | CodeHuffman
    | CodeEntropy,
    Field(discriminator="kind"),
]

STEPS: dict[str, type[Step]] = {
    cls.model_fields["kind"].default: cls for cls in get_args(get_args(AnyStep)[0])
}


class Recipe(BaseModel):
    """Steps in the order they are applied."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(default="", max_length=100, description="A name for people; has no effect.")
    steps: tuple[AnyStep, ...] = Field(
        min_length=1,
        max_length=MAX_STEPS,
        description=f"From 1 to {MAX_STEPS} steps, applied in this order.",
    )

    @property
    def needs_data(self) -> bool:
        """Whether any step reads samples."""
        return any(step.needs_data for step in self.steps)

    @property
    def needs_labels(self) -> bool:
        """Whether any step reads labels."""
        return any(step.needs_labels for step in self.steps)

    @property
    def packs(self) -> bool:
        """Whether the last step leaves a packed file beside the model."""
        return not self.steps[-1].changes_model and not self.steps[-1].analyzes

    @property
    def only_analyzes(self) -> bool:
        """Whether no step changes the model or writes it differently."""
        return all(step.analyzes for step in self.steps)

    @property
    def uses_sensitivity(self) -> bool:
        """Whether a step uses the sensitivities of the model as it was uploaded: one that no other changes before it."""
        for step in self.steps:
            if step.uses_sensitivity:
                return True
            if step.changes_model:
                return False
        return False

    def problems(
        self, *, has_data: bool, has_labels: bool, models: Collection[str] = ()
    ) -> list[Problem]:
        """Every reason why this recipe can't run with such data and other models of these roles; empty when it can."""
        return [
            *_order_problems(self.steps),
            *_analysis_problems(self.steps),
            *_data_problems(self.steps, has_data, has_labels),
            *_model_problems(self.steps, models),
        ]

    def unused_models(self, roles: Collection[str]) -> list[Problem]:
        """Roles that no step makes use of: a mistake of whoever gave them. Pointers are those of a job's request."""
        used = {role for step in self.steps for role in step.uses_models}
        return [
            Problem(
                pointer=f"/models/{role}",
                code="unused_model",
                reason=f"no step of the recipe uses a model in the role '{role}'; those in use are: {', '.join(sorted(used)) or 'none'}",
                hint="leave the model out, or choose options of a step that use it",
            )
            for role in roles
            if role not in used
        ]


def parse(body: Any) -> Recipe:
    """Reads a recipe from decoded JSON.

    Raises:
        Refused: the body is not a recipe; one problem for each defect, with its pointer.
    """
    try:
        return Recipe.model_validate(body)
    except ValidationError as e:
        raise Refused(from_validation(e)) from e


def _order_problems(steps: tuple[Step, ...]) -> list[Problem]:
    problems = []
    for index, (earlier, later) in enumerate(pairwise(steps), start=1):
        if not earlier.leaves_trainable and (
            later.changes_model or later.analyzes or not earlier.changes_model
        ):
            result = "which stores weights in a form that no step can change"
            hint = f"put {earlier.kind} last"
            if not earlier.changes_model:
                result = "which writes the finished model"
            if not later.leaves_trainable and earlier.changes_model == later.changes_model:
                hint = "leave one of the two out: neither can follow the other"
            problems.append(
                Problem(
                    pointer=f"/steps/{index}/kind",
                    code="wrong_order",
                    reason=f"{later.kind} can't follow {earlier.kind}, {result}",
                    hint=hint,
                )
            )
    return problems


def _analysis_problems(steps: tuple[Step, ...]) -> list[Problem]:
    analyses = [index for index, step in enumerate(steps) if step.analyzes]
    return [
        Problem(
            pointer=f"/steps/{index}/kind",
            code="too_many_analyses",
            reason=f"the recipe has {len(analyses)} steps that only measure; at most {MAX_ANALYSES} are allowed",
            hint="leave some out, or measure in jobs of their own",
        )
        for index in analyses[MAX_ANALYSES:]
    ]


def _data_problems(steps: tuple[Step, ...], has_data: bool, has_labels: bool) -> list[Problem]:
    problems = []
    for index, step in enumerate(steps):
        if step.needs_data and not has_data:
            problems.append(
                _missing(index, step, "missing_data", "samples, but the job has no dataset")
            )
        elif step.needs_labels and not has_labels:
            problems.append(
                _missing(index, step, "missing_labels", "labels, but the dataset has none")
            )
    return problems


def _model_problems(steps: tuple[Step, ...], models: Collection[str]) -> list[Problem]:
    return [
        Problem(
            pointer=f"/steps/{index}",
            code="missing_model",
            reason=f"{step.kind} with these options needs a model in the role '{role}', but the job has none",
            hint=f"add it as models.{role} (--with {role}=FILE), or choose options of the step that need none",
        )
        for index, step in enumerate(steps)
        for role in step.needs_models
        if role not in models
    ]


def _missing(index: int, step: Step, code: str, what: str) -> Problem:
    dataset = "a dataset" if code == "missing_data" else "a labelled dataset"
    hint = (
        f"add {dataset} as data.train (--data FILE), or choose options of the step that need none"
    )
    return Problem(
        pointer=f"/steps/{index}",
        code=code,
        reason=f"{step.kind} with these options needs {what}",
        hint=hint,
    )
