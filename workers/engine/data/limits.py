"""What a dataset file may hold. Every refusal names one of these."""

from __future__ import annotations

MIB = 1 << 20
GIB = 1 << 30

CHUNK_BYTES = MIB
"""How much of a member is in memory at once."""

MAX_MEMBERS = 100_000
MAX_DIRECTORY_BYTES = 64 * MIB
MAX_NAME_CHARS = 260
MAX_INFLATED_BYTES = 64 * GIB
"""All members of one archive together, inflated."""
MAX_RATIO = 100
RATIO_FREE_BYTES = 16 * MIB
"""Members below this size may compress by any ratio."""

MAX_ARRAYS = 64
MAX_HEADER_BYTES = 10_000
MAX_RANK = 8
MAX_DIM = 1 << 31
MAX_CLASSES = 100_000

MAX_IMAGE_BYTES = 64 * MIB
MAX_IMAGE_PIXELS = 64_000_000
