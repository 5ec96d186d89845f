"""Kernels in C that torch and ONNX Runtime lack. They are optional: built where there is a compiler, `xnor.is_available` says whether."""
