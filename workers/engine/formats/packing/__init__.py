"""Writes packed models, `.mpk`, which modelpress.packed reads. The format is in docs/packed.md.

pack(model, path)    container.py: skeleton, directory, checksums
  cuts.py            which bytes of an ONNX file are contents of tensors
  choice.py          the codec of each tensor: the one that gives the fewest bytes
  plans.py           encoders, one for each codec
  relative.py huffman.py layouts.py     Deep Compression's index, canonical Huffman codes, contexts
"""

from __future__ import annotations

from workers.engine.formats.packing.container import Packed, pack
from workers.engine.formats.packing.plans import Coded, Method

__all__ = ["Coded", "Method", "Packed", "pack"]
