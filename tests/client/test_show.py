from __future__ import annotations

import io
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from modelpress import _show, resources
from modelpress.spec.inspection import (
    Capability,
    Layers,
    ModelInspection,
    StepCapability,
    TensorInfo,
)

HOSTILE = "[red]conv[/red] [/]"


def text(tables: Iterable[Table]) -> list[str]:
    console = Console(file=io.StringIO(), width=120, record=True, color_system=None)
    for table in tables:
        console.print(table)
    return [" ".join(line.split()) for line in console.export_text().splitlines()]


def model(**capabilities: Capability) -> resources.Model:
    image = TensorInfo(name="image", dtype="float32", shape=("batch", 1, 8, 8))
    looked = ModelInspection(
        format="onnx",
        opset=17,
        inputs=(image,),
        outputs=(),
        parameters=12_345,
        macs=None,
        operators={"Conv": 2},
        capabilities=capabilities,
    )
    return resources.Model.model_construct(
        id="mdl_1", name="digits", state="ready", inspection=looked
    )


def test_model_is_told_with_what_steps_could_do() -> None:
    channels = StepCapability(
        ok=True,
        can=(Layers(what="64 channels", names=("a", "b", "c", HOSTILE), count=9),),
        cannot=(Layers(what="it is an output", names=(HOSTILE,), count=1),),
    )
    slow = StepCapability(ok=None, reason="not determined within 30 s")
    lines = text(
        _show.model(
            model(
                prune=Capability(ok=True, steps={"prune.channels": channels, "prune.slow": slow}),
                distill=Capability(ok=False, reason="no step yet"),
            )
        )
    )
    assert "inputs image float32 ['batch', 1, 8, 8]" in lines
    assert "parameters 12,345" in lines
    assert "multiply-accumulates unknown" in lines
    assert "prune.channels yes a, b, c and 6 more: 64 channels" in lines
    assert f"not {HOSTILE}: it is an output" in lines
    assert "prune.slow not known not determined within 30 s" in lines
    assert "distill.* no no step yet" in lines


def test_model_from_before_there_were_capabilities_has_none() -> None:
    assert not any("possible" in line for line in text(_show.model(model())))


def test_model_that_is_not_inspected_yet_is_named() -> None:
    waiting = resources.Model.model_construct(
        id="mdl_1", name="digits", state="inspecting", inspection=None
    )
    assert "state inspecting" in text(_show.model(waiting))
