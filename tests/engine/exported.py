"""Small PyTorch networks, exported to .pt2 as their authors would, and archives changed as an attacker would."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from workers.engine.formats import quiet

BATCH = {0: torch.export.Dim("batch")}
PROGRAM = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"


class Convolutional(nn.Module):
    """Has BatchNormalization, an activation in place and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.1)
        self.fc = nn.Linear(8, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.fc(self.drop(self.act(self.bn(self.conv(image))).mean((2, 3))))


class Tied(nn.Module):
    """Its last layer's weight is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.embedding(tokens)))


class Attending(nn.Module):
    """Reads sizes, runs a part without gradients, answers a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.fc = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            y = self.fc(x.view(x.shape[0], -1, 8))
        attended = self.attention(y, y, y, need_weights=False)[0]
        return {"attended": attended, "mean": attended.mean(1)}


class Recurrent(nn.Module):
    """An LSTM that makes its own first state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 6, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lstm(x)[0][:, -1]


NETS: Mapping[str, tuple[Callable[[], nn.Module], Callable[[int], torch.Tensor]]] = {
    "convolutional": (Convolutional, lambda n: torch.randn(n, 1, 8, 8)),
    "tied": (Tied, lambda n: torch.randint(0, 20, (n, 5))),
    "attending": (Attending, lambda n: torch.randn(n, 5, 8)),
    "recurrent": (Recurrent, lambda n: torch.randn(n, 5, 4)),
}


def network(name: str) -> nn.Module:
    """A network with running statistics that are not those of a new one."""
    torch.manual_seed(0)
    made = NETS[name][0]()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return made.eval()


def sample(name: str, batch: int) -> torch.Tensor:
    """Inputs for a network."""
    torch.manual_seed(batch)
    return NETS[name][1](batch)


def save(module: nn.Module, inputs: torch.Tensor, path: Path, *, free: bool = True) -> Path:
    """Exports a network; with `free` any batch is possible."""
    with quiet.quiet():
        program = torch.export.export(module, (inputs,), dynamic_shapes=(BATCH,) if free else None)
        torch.export.save(program, path)
    return path


def run_torch(path: Path, *inputs: torch.Tensor) -> list[torch.Tensor]:
    """The outputs of a file that is ours, by torch's own reader."""
    with quiet.quiet(), torch.no_grad():
        found = torch.export.load(path).module()(*inputs)
    if isinstance(found, dict):
        return list(found.values())
    return list(found) if isinstance(found, tuple) else [found]


def changed(
    source: Path,
    target: Path,
    change: Callable[[dict[str, Any]], object] = lambda content: None,
    *,
    record: str = PROGRAM,
    more: Mapping[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """A copy of an archive whose JSON `record` went through `change`, with `more` records put in or replaced."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        top = old.namelist()[0].partition("/")[0]
        for name in old.namelist():
            inner, content = name.partition("/")[2], old.read(name)
            if inner == record:
                parsed = json.loads(content)
                change(parsed)
                content = json.dumps(parsed).encode()
            if inner not in (more or {}):
                new.writestr(name, content)
        for inner, content in (more or {}).items():
            new.writestr(f"{top}/{inner}", content)
    return target
