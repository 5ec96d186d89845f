"""Bytes on their way in, hashed in a thread while the next ones come."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest

from app import intake

MIB = 1 << 20
BLOCKS = [bytes([number]) * MIB for number in range(3)]


async def _chunks() -> AsyncIterator[bytes]:
    for block in BLOCKS:
        yield block


def test_blocks_are_hashed_in_order_also_where_one_takes_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hashed = intake._Flow._hash

    def slow_at_first(flow: intake._Flow, block: bytes) -> None:
        time.sleep(0.2 if block[0] == 0 else 0)
        hashed(flow, block)

    async def scenario() -> intake._Flow:
        writing = SimpleNamespace(room_bytes=8 * MIB, upload_id="upl_1")
        flow = intake._Flow(writing, intake.Body(_chunks(), declared_bytes=None))
        assert [block async for block in flow.blocks()] == BLOCKS
        return flow

    monkeypatch.setattr(intake._Flow, "_hash", slow_at_first)
    flow = asyncio.run(scenario())

    assert flow.seen_bytes == 3 * MIB
    assert flow.sha256.hexdigest() == hashlib.sha256(b"".join(BLOCKS)).hexdigest()
