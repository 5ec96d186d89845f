"""The rule of each operator. What is not listed keeps its operands whole."""

from __future__ import annotations

from workers.engine.graph.channels import (
    _attention,
    _contraction,
    _movement,
    _normalization,
    _states,
)
from workers.engine.graph.channels._book import Rule

_ELEMENTWISE = """
    Add Sub Mul Div Mod Pow Sum Mean Max Min Neg Abs Sign Reciprocal Sqrt Exp Log Erf Floor Ceil Round Sin Cos Tan
    Asin Acos Atan Sinh Cosh Asinh Acosh Atanh IsNaN IsInf Equal Less LessOrEqual Greater GreaterOrEqual And Or Xor
    Not BitShift BitwiseAnd BitwiseOr BitwiseXor BitwiseNot Where Clip Relu LeakyRelu PRelu Elu Celu Selu Sigmoid
    HardSigmoid HardSwish Swish Tanh Gelu Mish Softplus Softsign ThresholdedRelu Shrink Cast Identity Dropout
"""
_MOVEMENT = (
    "Reshape Flatten Transpose Squeeze Unsqueeze Tile Concat Split DepthToSpace SpaceToDepth"
)
_REDUCTION = """
    ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare ReduceLogSum ReduceLogSumExp
"""
_CHANNELWISE = """
    MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool Resize GridSample
"""
_NOTHING = "Shape Size Range EyeLike Constant"

RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE.split(), _movement.elementwise),
    **dict.fromkeys(_MOVEMENT.split(), _movement.movement),
    **dict.fromkeys(_REDUCTION.split(), _movement.reduction),
    **dict.fromkeys(_CHANNELWISE.split(), _normalization.channelwise),
    **dict.fromkeys(_NOTHING.split(), _movement.nothing),
    **dict.fromkeys(("ArgMax", "ArgMin", "TopK"), _movement.place),
    **dict.fromkeys(("Conv", "ConvTranspose"), _contraction.conv),
    **dict.fromkeys(("RNN", "GRU", "LSTM"), _contraction.recurrent),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), _normalization.over_axis),
    **dict.fromkeys(("CumSum", "CumProd"), _normalization.over_host_axis),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _normalization.per_layer),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), _normalization.per_channel),
    "GroupNormalization": _normalization.per_group,
    "MeanVarianceNormalization": _normalization.over_axes,
    "LpNormalization": _normalization.per_layer,
    "LRN": _normalization.neighbours,
    "MatMul": _contraction.matmul,
    "Gemm": _contraction.gemm,
    "Einsum": _contraction.einsum,
    "Attention": _attention.attention,
    "RotaryEmbedding": _attention.rotary_embedding,
    "CastLike": _movement.cast_like,
    "Expand": _states.expand,
    "ConstantOfShape": _states.filled,
    "Slice": _movement.cut,
    "Pad": _movement.pad,
    "Gather": _movement.gather,
}
