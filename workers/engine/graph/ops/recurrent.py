"""Recurrent networks, unrolled over time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import zip_longest

import torch
from torch.nn import functional

from workers.engine.errors import Unsupported
from workers.engine.graph.ops._operator import Operand, operator

Tensor = torch.Tensor
Activation = Callable[[Tensor], Tensor]
Cell = Callable[[Tensor, tuple[Tensor, ...]], tuple[Tensor, ...]]
"""From one time step and the states before it to the states after it, the output first."""

_DEFAULTS: dict[str, tuple[float, float]] = {
    "LeakyRelu": (0.01, 0.0),
    "ThresholdedRelu": (1.0, 0.0),
    "HardSigmoid": (0.2, 0.5),
    "Elu": (1.0, 0.0),
    "Affine": (1.0, 0.0),
    "ScaledTanh": (1.0, 1.0),
}


def _macs(operands: Sequence[Operand], results: Sequence[Tensor]) -> int:
    x, w, r = operands[:3]
    assert x is not None
    assert w is not None
    assert r is not None
    return (x.numel() // int(x.shape[-1])) * math.prod((w.numel() + r.numel(),))


def _activation(name: str, alpha: float | None, beta: float | None) -> Activation:
    default = _DEFAULTS.get(name, (0.0, 0.0))
    a, b = default[0] if alpha is None else alpha, default[1] if beta is None else beta
    known: dict[str, Activation] = {
        "Sigmoid": torch.sigmoid,
        "Tanh": torch.tanh,
        "Relu": functional.relu,
        "Softplus": functional.softplus,
        "Softsign": functional.softsign,
        "LeakyRelu": lambda x: functional.leaky_relu(x, a),
        "ThresholdedRelu": lambda x: torch.where(x > a, x, torch.zeros_like(x)),
        "HardSigmoid": lambda x: torch.clamp(a * x + b, 0, 1),
        "Elu": lambda x: functional.elu(x, a),
        "Affine": lambda x: a * x + b,
        "ScaledTanh": lambda x: a * torch.tanh(b * x),
    }
    if name not in known:
        raise Unsupported(f"activation '{name}' of a recurrent layer")
    return known[name]


def _activations(
    names: Sequence[str],
    alpha: Sequence[float] | None,
    beta: Sequence[float] | None,
    clip: float | None,
) -> list[Activation]:
    made = [
        _activation(name, a, b)
        for name, a, b in zip_longest(names, alpha or [], beta or [])
        if name is not None
    ]
    return made if clip is None else [_clipped(f, clip) for f in made]


def _clipped(function: Activation, clip: float) -> Activation:
    return lambda x: function(torch.clamp(x, -clip, clip))


def _unroll(
    x: Tensor,
    lengths: Tensor | None,
    initial: Sequence[Tensor | None],
    cells: Sequence[Cell],
    hidden: int,
    direction: str,
    layout: int,
) -> tuple[Tensor, ...]:
    """All outputs, then the last states: [T, D, N, H] and [D, N, H], batch first with layout 1."""
    x = x.transpose(0, 1) if layout else x
    if x.is_meta:
        return _unrolled_shapes(x, len(cells), hidden, len(initial), layout)
    zeros = x.new_zeros(x.shape[1], hidden)
    outputs, finals = [], []
    for at, cell in enumerate(cells):
        backwards = direction == "reverse" or at == 1
        state = tuple(_first(given, at, layout, zeros) for given in initial)
        steps, last = _run(x, lengths, state, cell, backwards)
        outputs.append(torch.stack(steps) if steps else x.new_zeros(0, x.shape[1], hidden))
        finals.append(last)
    y = torch.stack(outputs, 1)
    states = [torch.stack([final[i] for final in finals]) for i in range(len(initial))]
    if layout:
        y, states = y.permute(2, 0, 1, 3), [state.transpose(0, 1) for state in states]
    return (y, *states)


def _unrolled_shapes(
    x: Tensor, directions: int, hidden: int, states: int, layout: int
) -> tuple[Tensor, ...]:
    """What `_unroll` answers without elements, at once however long the sequence is."""
    y = x.new_empty(x.shape[0], directions, x.shape[1], hidden)
    last = [x.new_empty(directions, x.shape[1], hidden) for _ in range(states)]
    if layout:
        return (y.permute(2, 0, 1, 3), *(state.transpose(0, 1) for state in last))
    return (y, *last)


def _first(given: Tensor | None, at: int, layout: int, zeros: Tensor) -> Tensor:
    if given is None:
        return zeros
    return given[:, at] if layout else given[at]


def _run(
    x: Tensor, lengths: Tensor | None, state: tuple[Tensor, ...], cell: Cell, backwards: bool
) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    steps = list(range(x.shape[0]))
    outputs: list[Tensor] = []
    for t in reversed(steps) if backwards else steps:
        after = cell(x[t], state)
        shown = after[0]
        if lengths is not None:
            alive = (lengths > t).unsqueeze(-1)
            after = tuple(torch.where(alive, a, b) for a, b in zip(after, state, strict=True))
            shown = torch.where(alive, shown, torch.zeros_like(shown))
        state = after
        outputs.append(shown)
    return outputs[::-1] if backwards else outputs, state


def _directions(direction: str) -> int:
    return 2 if direction == "bidirectional" else 1


@operator(weights=(1, 2, 3), macs=_macs)
def RNN(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
) -> tuple[Tensor, ...]:
    count = _directions(direction)
    acts = _activations(activations or ["Tanh"] * count, activation_alpha, activation_beta, clip)

    def cell(at: int) -> Cell:
        def step(now: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            total = now @ w[at].t() + state[0] @ r[at].t()
            return (acts[at](total if b is None else total + b[at].reshape(2, -1).sum(0)),)

        return step

    cells = [cell(at) for at in range(count)]
    return _unroll(x, sequence_lens, [initial_h], cells, r.shape[-1], direction, layout)


@operator(weights=(1, 2, 3), macs=_macs)
def GRU(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    linear_before_reset: int = 0,
) -> tuple[Tensor, ...]:
    count, size = _directions(direction), r.shape[-1]
    names = activations or ["Sigmoid", "Tanh"] * count
    acts = _activations(names, activation_alpha, activation_beta, clip)
    bias = x.new_zeros(count, 6 * size) if b is None else b

    def cell(at: int) -> Cell:
        f, g = acts[2 * at : 2 * at + 2]
        wb, rb = bias[at].chunk(2)

        def step(now: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            (h,) = state
            xz, xr, xh = (now @ w[at].t() + wb).chunk(3, -1)
            rz, rr, rh = r[at].chunk(3)
            bz, br, bh = rb.chunk(3)
            update, reset = f(xz + h @ rz.t() + bz), f(xr + h @ rr.t() + br)
            if linear_before_reset:
                new = g(xh + reset * (h @ rh.t() + bh))
            else:
                new = g(xh + (reset * h) @ rh.t() + bh)
            return ((1 - update) * new + update * h,)

        return step

    cells = [cell(at) for at in range(count)]
    return _unroll(x, sequence_lens, [initial_h], cells, size, direction, layout)


@operator(weights=(1, 2, 3, 7), macs=_macs)
def LSTM(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    initial_c: Tensor | None = None,
    p: Tensor | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
    layout: int = 0,
) -> tuple[Tensor, ...]:
    count, size = _directions(direction), r.shape[-1]
    names = activations or ["Sigmoid", "Tanh", "Tanh"] * count
    acts = _activations(names, activation_alpha, activation_beta, clip)
    bias = x.new_zeros(count, 8 * size) if b is None else b
    peepholes = x.new_zeros(count, 3 * size) if p is None else p

    def cell(at: int) -> Cell:
        f, g, h = acts[3 * at : 3 * at + 3]
        pi, po, pf = peepholes[at].chunk(3)
        both = bias[at].reshape(2, -1).sum(0)

        def step(now: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            hidden, memory = state
            i, o, forget, c = (now @ w[at].t() + hidden @ r[at].t() + both).chunk(4, -1)
            i = f(i + pi * memory)
            forget = 1 - i if input_forget else f(forget + pf * memory)
            memory = forget * memory + i * g(c)
            return f(o + po * memory) * h(memory), memory

        return step

    cells = [cell(at) for at in range(count)]
    return _unroll(x, sequence_lens, [initial_h, initial_c], cells, size, direction, layout)
