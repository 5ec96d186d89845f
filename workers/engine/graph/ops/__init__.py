"""The operators: one function for each, named as in ONNX, at the newest version we accept.

Older versions are rewritten to this one at load (formats/upgrade.py), so a function has one meaning.
"""

from workers.engine.graph.ops import (
    activation,
    attention,
    constant,
    control,
    conversion,
    convolution,
    deformable,
    elementwise,
    linear,
    linear_attention,
    loss,
    movement,
    normalization,
    pooling,
    quantization,
    random,
    recurrent,
    reduction,
    resize,
    sampling,
    signal,
    tokens,
)
from workers.engine.graph.ops._operator import TABLE, Call, Operator, key

__all__ = [
    "TABLE",
    "Call",
    "Operator",
    "activation",
    "attention",
    "constant",
    "control",
    "conversion",
    "convolution",
    "deformable",
    "elementwise",
    "key",
    "linear",
    "linear_attention",
    "loss",
    "movement",
    "normalization",
    "pooling",
    "quantization",
    "random",
    "recurrent",
    "reduction",
    "resize",
    "sampling",
    "signal",
    "tokens",
]
