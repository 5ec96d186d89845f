"""Writes one network with random weights as ONNX; runs in the environment of the architectures.

python export.py ARCHITECTURE PIXELS FILE
"""

from __future__ import annotations

import os
import sys

import timm
import torch


def main(name: str, pixels: int, path: str) -> None:
    """The batch stays open; nothing is folded. Attention is one operator, unless torch can't export that."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    try:
        program = exported(name, pixels)
    except torch.onnx.OnnxExporterError:
        timm.layers.set_fused_attn(False)
        program = exported(name, pixels)
    program.save(f"{path}.part", external_data=False)
    os.replace(f"{path}.part", path)


def exported(name: str, pixels: int) -> torch.onnx.ONNXProgram:
    """The network as torch's exporter writes it."""
    program = torch.onnx.export(
        timm.create_model(name).eval(),
        (torch.randn(2, 3, pixels, pixels),),
        dynamo=True,
        optimize=False,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=["image"],
        output_names=["logits"],
        verbose=False,
    )
    assert program is not None
    return program


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
