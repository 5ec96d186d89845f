"""Decoder of packed models, `.mpk`: numpy and constriction are all it needs. The format is in docs/packed.md.

unpack(packed, onnx)     container.py: header, checksums, skeleton and sections
  a section              codecs.py: one tensor, in slabs of a bounded size
    symbols and values   maps.py
    canonical Huffman    huffman.py
    entropy coding       entropy.py, with the contexts of contexts.py
"""

from __future__ import annotations

from modelpress.packed.container import MAX_BYTES, Unpacked, unpack
from modelpress.packed.reading import PackedError

__all__ = ["MAX_BYTES", "PackedError", "Unpacked", "unpack"]
