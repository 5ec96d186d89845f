"""Patterns of networks for sequences and for vectors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.patterns.pattern import CLASSES, Averaged, Pattern

LENGTH = 9
SEQUENCE, VECTOR = (LENGTH, 12), (12,)


class FusedAttention(Averaged):
    """One projection for queries, keys and values (ViT)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)

    def mixed(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, 4, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(y.transpose(1, 2).reshape(n, t, -1))


class FixedViews(Averaged):
    """Attention written out, with sizes written into the views."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(32, 32) for _ in range(3))
        self.out = nn.Linear(32, 32)

    def mixed(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).view(-1, LENGTH, 4, 8).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = (q @ k.transpose(-2, -1) * 8**-0.5).softmax(-1) @ v
        return x + self.out(y.transpose(1, 2).reshape(-1, LENGTH, 32))


class GroupedQueries(Averaged):
    """Two heads of queries for each of keys and values (Llama)."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.out = nn.Linear(32, 32), nn.Linear(32, 32)
        self.k, self.v = nn.Linear(32, 16), nn.Linear(32, 16)

    def mixed(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q = self.q(x).view(n, t, 4, -1).transpose(1, 2)
        k, v = (f(x).view(n, t, 2, -1).transpose(1, 2) for f in (self.k, self.v))
        k, v = (y.repeat_interleave(2, dim=1) for y in (k, v))
        y = functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(y.transpose(1, 2).reshape(n, t, -1))


class CrossAttention(Averaged):
    """Learned queries read the tokens (Perceiver)."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, 4, 32))
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

    def mixed(self, x: Tensor) -> Tensor:
        return self.attention(self.queries.expand(x.shape[0], -1, -1), x, x, need_weights=False)[0]


class ClassToken(nn.Module):
    """torch's own layer of a transformer, learned positions, a token for the class (BERT)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(12, 32), nn.Linear(32, CLASSES)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.token = nn.Parameter(torch.randn(1, 1, 32))
        self.position = nn.Parameter(torch.randn(1, LENGTH + 1, 32))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), self.first(x)], 1) + self.position
        return self.head(self.layer(x)[:, 0])


class Gated(Averaged):
    """A feed-forward block with a gate, after RMS normalization (Llama)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.gate = nn.RMSNorm(32), nn.Linear(32, 48, bias=False)
        self.up, self.down = nn.Linear(32, 48, bias=False), nn.Linear(48, 32, bias=False)

    def mixed(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return x + self.down(functional.silu(self.gate(y)) * self.up(y))


class Windowed(nn.Module):
    """Attention within windows that are rolled (Swin)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv = nn.Conv2d(3, 16, 2, 2), nn.Linear(16, 48)
        self.out, self.head = nn.Linear(16, 16), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        n, h, w, c = x.shape
        y = x.roll((-2, -2), (1, 2)).view(n, h // 4, 4, w // 4, 4, c)
        y = self._attend(y.permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, c))
        y = y.view(-1, h // 4, w // 4, 4, 4, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
        return self.head((x + y.roll((2, 2), (1, 2))).mean((1, 2)))

    def _attend(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(x.shape[0], 16, 3, 2, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).reshape(x.shape[0], 16, -1))


class Mixer(Averaged):
    """Dense layers over tokens and over channels in turn (MLP-Mixer)."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Sequential(nn.Linear(LENGTH, 20), nn.GELU(), nn.Linear(20, LENGTH))
        self.channels = nn.Sequential(nn.Linear(32, 40), nn.GELU(), nn.Linear(40, 32))

    def mixed(self, x: Tensor) -> Tensor:
        x = x + self.tokens(x.transpose(1, 2)).transpose(1, 2)
        return x + self.channels(x)


class Product(nn.Module):
    """Similarities of two projections are classified."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(12, 16), nn.Linear(12, 16)
        self.head = nn.Linear(LENGTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.einsum("btc,bsc->bts", self.one(x), self.two(x)).mean(1))


class Recurrent(Averaged):
    """A recurrent layer after a dense one."""

    def __init__(self, kind: type[nn.RNNBase], *, both_ways: bool = False) -> None:
        super().__init__(16)
        width = 40 if both_ways else 20
        self.cell = kind(16, 20, batch_first=True, bidirectional=both_ways)
        self.head = nn.Linear(width, CLASSES)

    def mixed(self, x: Tensor) -> Tensor:
        return self.cell(x)[0]


class Text(nn.Module):
    """A table of words and a dense layer (fastText)."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.hidden = nn.Embedding(50, 24), nn.Linear(24, 32)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(functional.relu(self.hidden(self.table(x).mean(1))))


class Causal(nn.Module):
    """Gated convolutions over time that are padded on one side (WaveNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.both = nn.Conv1d(12, 16, 1), nn.Conv1d(16, 32, 3, dilation=2)
        self.out, self.head = nn.Conv1d(16, 16, 1), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.transpose(1, 2))
        value, gate = self.both(functional.pad(x, (4, 0))).split(16, dim=1)
        x = x + self.out(value.tanh() * gate.sigmoid())
        return self.head(x.mean(2))


class Dense(nn.Module):
    """Dense layers in a row, normalized."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(12, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 24), nn.Tanh()
        )
        self.head = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Crossed(nn.Module):
    """Two towers, multiplied and joined (recommenders)."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(12, 24), nn.Linear(12, 24)
        self.head = nn.Linear(48, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        one, two = functional.relu(self.one(x)), functional.relu(self.two(x))
        return self.head(torch.cat([one * two, one], 1))


class Tied(nn.Module):
    """What goes in comes out through the same weight (autoencoders)."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.middle = nn.Linear(12, 24), nn.Linear(24, 24)
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.relu(self.middle(functional.relu(self.inside(x))))
        return self.head(functional.relu(functional.linear(hidden, self.inside.weight.T)))


PATTERNS: Mapping[str, Pattern] = {
    "fused attention": Pattern(FusedAttention, SEQUENCE),
    "attention with fixed views": Pattern(FixedViews, SEQUENCE),
    "grouped queries": Pattern(GroupedQueries, SEQUENCE),
    "learned queries": Pattern(CrossAttention, SEQUENCE),
    "windowed attention": Pattern(Windowed),
    "transformer layer": Pattern(ClassToken, SEQUENCE),
    "gated feed-forward": Pattern(Gated, SEQUENCE),
    "tokens and channels mixed": Pattern(Mixer, SEQUENCE),
    "similarities": Pattern(Product, SEQUENCE),
    "LSTM": Pattern(lambda: Recurrent(nn.LSTM), SEQUENCE),
    "GRU, both ways": Pattern(lambda: Recurrent(nn.GRU, both_ways=True), SEQUENCE),
    "embedding": Pattern(Text, (LENGTH,), vocabulary=50),
    "causal convolution": Pattern(Causal, SEQUENCE),
    "dense layers": Pattern(Dense, VECTOR),
    "two towers": Pattern(Crossed, VECTOR),
    "tied weights": Pattern(Tied, VECTOR),
}
