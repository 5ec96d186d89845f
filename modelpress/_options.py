"""The options of the commands; those that describe a compression are the same wherever one is asked for."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from modelpress import _inputs

Url = Annotated[
    str | None,
    typer.Option(
        "--url", help="Server; else MODELPRESS_URL, else the one `modelpress serve` runs here."
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option("--key", help="API key; else MODELPRESS_API_KEY, else the one `serve` left here."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON value on standard output.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id of a job.")]
ModelFile = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A file of ONNX, .pt2 or .safetensors, or the id of an uploaded model.",
    ),
]
RecipeName = Annotated[
    str,
    typer.Option("--recipe", help="A file of JSON or TOML, or the name of a recipe; see `steps`."),
]
DataFile = Annotated[
    str | None,
    typer.Option("--data", help="Samples to learn from: .npz, a zip of image folders, or an id."),
]
EvalFile = Annotated[
    str | None,
    typer.Option("--eval-data", help="Samples to measure on; else a share of --data is kept."),
]
Architectures = Annotated[
    list[str] | None,
    typer.Option(
        "--architecture",
        metavar="NAME",
        help="Of weights in .safetensors: what timm calls the network, such as resnet18; of another model ROLE=NAME; repeatable.",
    ),
]
Others = Annotated[
    list[str] | None,
    typer.Option(
        "--with",
        metavar="ROLE=MODEL",
        help="Another model that a step uses, as a file or an id: initial=untrained.onnx; repeatable.",
    ),
]
Known = Annotated[
    str | None,
    typer.Option(
        "--sensitivity",
        metavar="ID",
        help="Sensitivities of the model, which steps then use instead of measuring them; with --local a file that a job left.",
    ),
]
Constraints = Annotated[
    list[str] | None,
    typer.Option(
        "--constraint",
        metavar="METRIC:GOAL:VALUE",
        help="What must hold, such as accuracy:max_drop:0.01 or size_bytes:max_ratio:0.3; repeatable.",
    ),
]
Formats = Annotated[
    list[str] | None,
    typer.Option(
        "--format",
        metavar="FORMAT",
        help="Also write the result as this: 'pt2' to run and train it in PyTorch; repeatable.",
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of every random choice.", min=0)]
Name = Annotated[str, typer.Option(help="A name for people; else that of the model.")]
Mean = Annotated[str, typer.Option("--mean", help="Of images: mean of each channel, or of all.")]
Std = Annotated[str, typer.Option("--std", help="Of images: standard deviation, likewise.")]
Out = Annotated[
    Path | None, typer.Option("--out", help="Directory of the results.", file_okay=False)
]


def request(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command whose first parameter is an `Asked` the options of a compression in its place."""
    options = inspect.signature(_asked, eval_str=True).parameters
    [_, *own] = inspect.signature(command, eval_str=True).parameters.values()

    def run(**given: Any) -> None:
        asked = _asked(**{name: given.pop(name) for name in options})
        command(asked, **given)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature([*options.values(), *own])  # type: ignore[attr-defined]
    return run


def _asked(
    model: ModelFile,
    recipe: RecipeName,
    data: DataFile = None,
    eval_data: EvalFile = None,
    others: Others = None,
    sensitivity: Known = None,
    architecture: Architectures = None,
    constraint: Constraints = None,
    format_: Formats = None,
    seed: Seed = 0,
    name: Name = "",
    mean: Mean = "0",
    std: Std = "1",
) -> _inputs.Asked:
    """What these options describe."""
    return _inputs.asked(
        model,
        data,
        eval_data,
        recipe,
        constraint,
        others=others,
        sensitivity=sensitivity,
        architectures=architecture,
        formats=format_,
        mean=mean,
        std=std,
        seed=seed,
        name=name,
    )
