"""Steps that store numbers in fewer bits."""

from modelpress.spec.quantize.binary import BinaryTraining, QuantizeBinary
from modelpress.spec.quantize.cluster import CentroidTraining, LayerBits, QuantizeCluster
from modelpress.spec.quantize.int8 import QuantizeInt8

__all__ = [
    "BinaryTraining",
    "CentroidTraining",
    "LayerBits",
    "QuantizeBinary",
    "QuantizeCluster",
    "QuantizeInt8",
]
