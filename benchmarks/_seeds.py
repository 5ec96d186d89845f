"""The same work with several seeds, some of them at once."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Found = TypeVar("Found")


def each(
    work: Callable[[int], Found], seeds: int, processes: int, *, first: int = 0
) -> list[Found]:
    """What `work`, which can be pickled, answers for each seed from `first` on; tells when one is done."""
    began, found = time.perf_counter(), []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        for seed, result in enumerate(pool.map(work, range(first, first + seeds)), start=first):
            found.append(result)
            print(f"seed {seed} after {time.perf_counter() - began:.0f} s", file=sys.stderr)
    return found
