"""Small networks of timm with random weights, saved as their owners would."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import safetensors.torch
import torch
from torch import nn

from workers.engine.formats import architectures


def network(name: str, **options: int) -> nn.Module:
    """A network whose running statistics are not those of a new one."""
    timm = architectures.load_timm()
    torch.manual_seed(1)
    made = timm.create_model(name, **options)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return made.eval()


def save(module: nn.Module, path: Path) -> Path:
    """The state_dict of a network in a file."""
    safetensors.torch.save_file(module.state_dict(), path)
    return path


def images(count: int, channels: int = 3) -> torch.Tensor:
    """Noise of 160 pixels, [count, channels, 160, 160]."""
    return torch.randn(
        count, channels, 160, 160, generator=torch.Generator().manual_seed(count + 10)
    )


def differ(path: Path, module: nn.Module, inputs: torch.Tensor) -> float:
    """By how much ONNX Runtime's answers differ from torch's, relative to the largest."""
    session = onnxruntime.InferenceSession(path)
    [found] = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
    with torch.no_grad():
        wanted = module(inputs).numpy()
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())
