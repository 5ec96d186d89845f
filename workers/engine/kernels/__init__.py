"""Kernels in C that torch and ONNX Runtime lack, and operators of ONNX Runtime that run them.

They are optional: built where there is a compiler, `xnor.is_available` says whether.
"""
