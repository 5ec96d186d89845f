"""Steps that store numbers in fewer bits."""

from modelpress.spec.quantize.int8 import QuantizeInt8

__all__ = ["QuantizeInt8"]
