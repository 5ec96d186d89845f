"""Token ids counted and thresholds applied: what a classical model does before its first product."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from workers.engine.errors import Unsupported
from workers.engine.graph.ops._operator import operator

Tensor = torch.Tensor


@operator()
def TfIdfVectorizer(
    x: Tensor,
    *,
    max_gram_length: int,
    max_skip_count: int,
    min_gram_length: int,
    mode: str,
    ngram_counts: Sequence[int],
    ngram_indexes: Sequence[int],
    pool_int64s: Sequence[int] | None = None,
    pool_strings: Sequence[str] | None = None,
    weights: Sequence[float] | None = None,
) -> Tensor:
    """x: [T] or [N, T] token ids; answers how often each n-gram of the pool occurs, [.., largest index + 1].

    Raises:
        Unsupported: the tokens are strings.
    """
    if pool_int64s is None:
        raise Unsupported("TfIdfVectorizer over strings")
    rows = x.reshape(1, -1) if x.dim() == 1 else x
    grams = _pool(pool_int64s, ngram_counts)
    counts = [
        torch.stack([_occurrences(rows, gram, max_skip_count) for gram in of_length], -1)
        if min_gram_length <= length <= max_gram_length
        else rows.new_zeros(rows.shape[0], len(of_length))
        for length, of_length in enumerate(grams, start=1)
        if of_length
    ]
    found = torch.cat(counts, -1).float()
    if mode == "IDF":
        found = found.clamp(max=1)
    if mode != "TF" and weights is not None:
        found = found * torch.tensor(weights, device=x.device)
    y = found.new_zeros(rows.shape[0], max(ngram_indexes) + 1)
    y = y.index_add(1, torch.tensor(ngram_indexes, device=x.device), found)
    return y.reshape(-1) if x.dim() == 1 else y


def _pool(tokens: Sequence[int], starts: Sequence[int]) -> list[list[list[int]]]:
    """The n-grams of length 1, of length 2 and so on."""
    pool = []
    ends = [*starts[1:], len(tokens)]
    for length, (start, end) in enumerate(zip(starts, ends, strict=True), start=1):
        pool.append([list(tokens[at : at + length]) for at in range(start, end, length)])
    return pool


def _occurrences(rows: Tensor, gram: list[int], most_skipped: int) -> Tensor:
    """[N]: how often the tokens follow each other at equal distances, with up to so many skipped between."""
    wanted = torch.tensor(gram, dtype=rows.dtype, device=rows.device)
    total = torch.zeros(rows.shape[0], dtype=torch.int64, device=rows.device)
    for distance in range(1, 2 + (most_skipped if len(gram) > 1 else 0)):
        span = (len(gram) - 1) * distance + 1
        if span <= rows.shape[1]:
            windows = rows.unfold(1, span, 1)[..., ::distance]
            total = total + (windows == wanted).all(-1).sum(-1)
    return total


@operator(domain="ai.onnx.ml")
def Binarizer(x: Tensor, *, threshold: float = 0.0) -> Tensor:
    return (x > threshold).to(x.dtype)
