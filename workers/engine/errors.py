"""What the engine raises.

EngineError
  BadModel         the file is no model we can trust, or breaks a limit
  BadData          the dataset does not fit the model, or its labels or values are wrong
  Unsupported      correct, but beyond what the engine can do
  NothingChanged   a step that would have been a silent no-op
  Diverged         training gave NaN, infinity or nonsense, or a step's result answers NaN
  OutOfMemory      memory of the machine or the device ran out
  ExportMismatch   the exported file does not compute what the graph does
"""

from __future__ import annotations

from typing import ClassVar

from modelpress.spec.state import Failure, FailureClass


class EngineError(Exception):
    """Base of all; `layer` names the node, weight or array concerned, `hint` the way out."""

    class_: ClassVar[FailureClass] = FailureClass.INTERNAL
    code: ClassVar[str] = "engine"

    def __init__(self, message: str, *, layer: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message, self.layer, self.hint = message, layer, hint

    def failure(self, stage: str) -> Failure:
        """The same as a record for the job."""
        return Failure(
            **{"class": self.class_},
            code=self.code,
            stage=stage,
            layer=self.layer[:512],
            message=self.message[:4000],
            hint=self.hint[:2000],
        )


class BadModel(EngineError):
    """The file is no model we can trust, or breaks a limit."""

    class_, code = FailureClass.USER_INPUT, "bad_model"


class BadData(EngineError):
    """The dataset does not fit the model, or its labels or values are wrong."""

    class_, code = FailureClass.USER_INPUT, "bad_data"


class Unsupported(EngineError):
    """Correct, but beyond what the engine can do; the message names the operators or layers."""

    class_, code = FailureClass.UNSUPPORTED, "unsupported"


class NothingChanged(EngineError):
    """A step that would have been a silent no-op."""

    class_, code = FailureClass.USER_INPUT, "nothing_changed"


class Diverged(EngineError):
    """Training gave NaN, infinity or nonsense, or a step's result answers NaN."""

    class_, code = FailureClass.USER_INPUT, "diverged"


class OutOfMemory(EngineError):
    """Memory of the machine or the device ran out."""

    class_, code = FailureClass.RESOURCE, "out_of_memory"


class ExportMismatch(EngineError):
    """The exported file does not compute what the graph does."""

    class_, code = FailureClass.INTERNAL, "export_mismatch"
