"""Steps that store numbers in fewer bits."""

from modelpress.spec.quantize.binary import BinaryTraining, QuantizeBinary
from modelpress.spec.quantize.bits import MixedBits, QuantizeBits
from modelpress.spec.quantize.cluster import CentroidTraining, LayerBits, QuantizeCluster
from modelpress.spec.quantize.float16 import QuantizeFloat16
from modelpress.spec.quantize.int8 import QuantizeInt8

__all__ = [
    "BinaryTraining",
    "CentroidTraining",
    "LayerBits",
    "MixedBits",
    "QuantizeBinary",
    "QuantizeBits",
    "QuantizeCluster",
    "QuantizeFloat16",
    "QuantizeInt8",
]
