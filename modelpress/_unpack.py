"""`modelpress unpack`: the decoder, which is an extra, behind the command line."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

from modelpress import errors

NEEDED = ("numpy", "constriction")


def run(file: Path, out: Path, max_bytes: int | None) -> Any:
    """Writes the model that a packed file holds; answers its size and digest.

    Raises:
        ModelPressError: the decoder is not installed, or the file is damaged, hostile or no packed model.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise errors.ModelPressError(
            f"`unpack` needs {' and '.join(missing)}: pip install 'modelpress[packed]'"
        )
    packed = importlib.import_module("modelpress.packed")
    try:
        return packed.unpack(file, out, max_bytes=max_bytes or packed.MAX_BYTES)
    except packed.PackedError as e:
        raise errors.ModelPressError(f"{file}: {e}") from e
