"""Steps that store numbers in fewer bits."""

from modelpress.spec.quantize.binary import BinaryTraining, QuantizeBinary
from modelpress.spec.quantize.bits import MixedBits, QuantizeBits
from modelpress.spec.quantize.cluster import CentroidTraining, LayerBits, QuantizeCluster
from modelpress.spec.quantize.float16 import QuantizeFloat16
from modelpress.spec.quantize.int8 import AdaRound, QuantizeInt8
from modelpress.spec.quantize.qat import QatTraining, QuantizeQat

__all__ = [
    "AdaRound",
    "BinaryTraining",
    "CentroidTraining",
    "LayerBits",
    "MixedBits",
    "QatTraining",
    "QuantizeBinary",
    "QuantizeBits",
    "QuantizeCluster",
    "QuantizeFloat16",
    "QuantizeInt8",
    "QuantizeQat",
]
