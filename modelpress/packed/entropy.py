"""Entropy coding: asymmetric numeral systems as constriction has them, driven by the walk of contexts.py.

The coder is constriction's AnsCoder: a state of 64 bits, words of 32 bits, frequencies of 24 bits. It is a stack; encoders push the symbols
in the reverse order of the walk. Symbols of a small alphabet are coded several at a time, as one symbol of a larger alphabet: a step of the
coder takes as long for eight bits as for one.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import constriction
import numpy as np

from modelpress.packed import contexts
from modelpress.packed.contexts import PRECISION, Ints, Layer, Layout, Place, Symbols
from modelpress.packed.reading import PackedError

WORD_BYTES = 4
JOINED_FROM = 4096
"""Fewer symbols are coded one at a time."""
MAX_JOINED = 1024
"""Symbols of an alphabet of several symbols."""


def model(frequencies: Ints) -> Any:
    """Constriction's model with exactly these frequencies.

    It gives each symbol 1 of 2^24 and shares out the rest in proportion; what is asked for here adds up to that rest, so nothing is
    rounded.
    """
    rest = (frequencies - 1).astype(np.float64)
    return constriction.stream.model.Categorical(rest, lazy=False, perfect=False)


def joined(alphabet: int, count: int) -> int:
    """How many symbols are coded at a time: 8, 4, 2 or 1."""
    several = 1
    while count >= JOINED_FROM and alphabet ** (2 * several) <= MAX_JOINED:
        several *= 2
    return several


def of_several(frequencies: Ints, several: int) -> Ints:
    """Frequencies of so many symbols at a time; the first of them counts highest."""
    while several > 1:
        products = frequencies[:, None] * frequencies >> PRECISION - 4
        frequencies = contexts.share_out(products.reshape(-1))
        several //= 2
    return frequencies


@lru_cache(maxsize=16)
def digits(alphabet: int, several: int) -> Symbols:
    """The symbols that each symbol for several stands for: [alphabet ** several, several]."""
    shape = (alphabet,) * several
    found = np.indices(shape, np.int32).reshape(several, -1).T.copy()
    found.flags.writeable = False
    return found


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

    def take(self, place: Place, count: int, frequencies: Ints) -> Symbols:
        """The next symbols."""
        several = joined(len(frequencies), count)
        if several == 1:
            alone: Symbols = self.coder.decode(model(frequencies), count)
            return alone
        whole, rest = divmod(count, several)
        found = np.empty(count, np.int32)
        of_all = self.coder.decode(model(of_several(frequencies, several)), whole)
        table = digits(len(frequencies), several)
        np.take(table, of_all, 0, found[: count - rest].reshape(whole, several), "clip")
        found[count - rest :] = self.coder.decode(model(frequencies), rest)
        return found
