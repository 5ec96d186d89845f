"""ONNX Runtime sessions, opened one way everywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as states

from workers.engine.errors import BadModel, EngineError
from workers.engine.kernels import xnor

ERRORS: tuple[type[Exception], ...] = (
    RuntimeError,
    *(e for e in vars(states).values() if isinstance(e, type) and issubclass(e, Exception)),
)
"""What a session raises when it is opened or run."""

_ERRORS_ONLY = 3


class Session:
    """A model file in ONNX Runtime, on the CPU."""

    def __init__(self, session: ort.InferenceSession, raising: type[EngineError]) -> None:
        self._session, self._raising = session, raising
        self.inputs = tuple(value.name for value in session.get_inputs())
        self.outputs = tuple(value.name for value in session.get_outputs())

    @property
    def fixed_batch(self) -> int | None:
        """The number of samples that every run must have, where the model fixes it."""
        sizes = {value.shape[0] for value in self._session.get_inputs() if value.shape}
        fixed = [size for size in sizes if isinstance(size, int)]
        return fixed[0] if fixed else None

    def run(self, feeds: Mapping[str, NDArray[np.generic]]) -> Sequence[NDArray[np.generic]]:
        """Answers the outputs in order.

        Raises:
            EngineError: of the class given to `open`, when the model can't be run.
        """
        try:
            outputs: Sequence[NDArray[np.generic]] = self._session.run(None, feeds)
        except ERRORS as e:
            raise _refused("run", e, self._raising) from e
        return outputs

    def run_untimed(self, feeds: Mapping[str, NDArray[np.generic]]) -> None:
        """The same without any check, to be timed."""
        self._session.run(None, feeds)


def open(
    path: Path,
    *,
    threads: int,
    raising: type[EngineError] = BadModel,
    spin: bool = True,
    kernels: bool = False,
) -> Session:
    """Opens a model file.

    With `spin`, idle threads wait busily, which is ONNX Runtime's default and faster, but disturbs other sessions. With `kernels`, the
    file may have our operators for products of signs, which were built.

    Raises:
        EngineError: of class `raising`, when ONNX Runtime refuses the file.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    if kernels:
        options.register_custom_ops_library(str(xnor.LIBRARY))
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except ERRORS as e:
        raise _refused("load", e, raising) from e
    return Session(session, raising)


def _refused(verb: str, error: Exception, raising: type[EngineError]) -> EngineError:
    return raising(
        f"ONNX Runtime can't {verb} the model: {str(error)[:1000]}",
        hint="check that stock ONNX Runtime runs the uploaded file on the same inputs",
    )
