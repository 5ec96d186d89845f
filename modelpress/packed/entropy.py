"""Entropy coding: asymmetric numeral systems as constriction has them, driven by the walk of contexts.py.

The coder is constriction's AnsCoder: a state of 64 bits, words of 32 bits, frequencies of 24 bits. It is a stack; encoders push the symbols
in the reverse order of the walk.
"""

from __future__ import annotations

from typing import Any

import constriction
import numpy as np

from modelpress.packed import contexts
from modelpress.packed.contexts import Ints, Layer, Layout, Symbols
from modelpress.packed.reading import PackedError

WORD_BYTES = 4


def model(frequencies: Ints) -> Any:
    """Constriction's model with exactly these frequencies.

    It gives each symbol 1 of 2^24 and shares out the rest in proportion; what is asked for here adds up to that rest, so nothing is
    rounded.
    """
    rest = (frequencies - 1).astype(np.float64)
    return constriction.stream.model.Categorical(rest, lazy=False, perfect=False)


def decode(code: bytes, size: int, alphabet: int, layout: Layout) -> Symbols:
    """The `size` symbols of a map.

    Raises:
        PackedError: the code is not one that an encoder leaves.
    """
    words = np.frombuffer(code + bytes(-len(code) % WORD_BYTES), "<u4").astype(np.uint32)
    if code and not code[-1]:
        raise PackedError("an entropy code ends in a zero byte")
    decoder = _Decoder(constriction.stream.stack.AnsCoder(words))
    found = contexts.walk(size, alphabet, layout, decoder)
    if not decoder.coder.is_empty():
        raise PackedError("an entropy code is longer than its symbols")
    return found


class _Decoder:
    """Takes symbols off the stack."""

    def __init__(self, coder: Any) -> None:
        self.coder = coder

    def begin(self, layer: Layer, rows: slice, columns: slice) -> None:
        """The walk knows where they go."""

    def take(self, at: slice | Ints, count: int, frequencies: Ints) -> Symbols:
        """The next symbols."""
        found: Symbols = self.coder.decode(model(frequencies), count)
        return found
