"""What people type on the command line, made into what the client takes. Everything wrong is a usage error."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import typer
from pydantic import BaseModel, ConfigDict, ValidationError

from modelpress.spec import named, recipe
from modelpress.spec.constraint import Constraint
from modelpress.spec.job import Format, Images
from modelpress.spec.problem import Problem, Refused, from_validation

MAX_RECIPE_BYTES = 1 << 20
WEIGHTS = ".safetensors"


class Asked(BaseModel):
    """A compression as the command line describes it; models and data are files, or ids on the server."""

    model_config = ConfigDict(frozen=True)

    model: str
    models: dict[str, str]
    architecture: str | None
    architectures: dict[str, str]
    data: str | None
    eval_data: str | None
    sensitivity: str | None = None
    recipe: recipe.Recipe
    images: Images
    formats: tuple[Format, ...]
    constraints: tuple[Constraint, ...]
    seed: int
    name: str


def asked(
    model: str,
    data: str | None,
    eval_data: str | None,
    recipe_: str,
    constraints: list[str] | None,
    *,
    others: list[str] | None,
    sensitivity: str | None = None,
    architectures: list[str] | None,
    formats: list[str] | None,
    mean: str,
    std: str,
    seed: int,
    name: str,
) -> Asked:
    """Reads the options of `compress` and `submit`.

    Raises:
        typer.BadParameter: one of them is wrong; the message says what is.
    """
    wanted = read_recipe(recipe_)
    models = dict(map(role, others or ()))
    own, of_others = architectures_of(models, architectures)
    _require_runnable(wanted, models, has_data=data is not None)
    if sensitivity is not None and not wanted.uses_sensitivity:
        raise typer.BadParameter(
            f"no step of the recipe uses --sensitivity {sensitivity!r}: quantize.bits with mixed and prune.channels with scope "
            "'sensitivity' do, where no step before them changes the model"
        )
    return Asked(
        model=model,
        models=models,
        architecture=own,
        architectures=of_others,
        data=data,
        eval_data=eval_data,
        sensitivity=sensitivity,
        recipe=wanted,
        images=images(mean, std),
        formats=tuple(map(format_, formats or ())),
        constraints=tuple(constraint(text) for text in constraints or ()),
        seed=seed,
        name=name or Path(model).stem,
    )


def read_recipe(text: str) -> recipe.Recipe:
    """A recipe by name, or from a file of JSON or TOML."""
    if text in named.NAMED:
        return named.NAMED[text]
    path = Path(text)
    if not path.is_file():
        raise typer.BadParameter(
            f"{text!r} is neither a file nor one of the recipes {', '.join(sorted(named.NAMED))}"
        )
    try:
        return recipe.parse(_decode(path))
    except Refused as e:
        raise typer.BadParameter(f"{path} is no recipe\n{_lines(e.problems)}") from e


def _require_runnable(wanted: recipe.Recipe, models: Mapping[str, str], *, has_data: bool) -> None:
    """Refuses, before anything is sent, a recipe that needs data or models which are not given, or not those that are."""
    problems = wanted.problems(has_data=has_data, has_labels=has_data, models=models)
    if problems := [*problems, *wanted.unused_models(models)]:
        raise typer.BadParameter(f"the recipe can't run\n{_lines(problems)}")


def role(text: str) -> tuple[str, str]:
    """Another model written as role=file or role=id, such as initial=untrained.onnx."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise typer.BadParameter(f"{text!r} is not ROLE=MODEL, such as initial=untrained.onnx")
    return name, value


def architectures_of(
    models: Mapping[str, str], given: list[str] | None
) -> tuple[str | None, dict[str, str]]:
    """What timm calls the network of the model, and those of other models by role, from NAME and ROLE=NAME.

    Another model that is weights alone, and whose role is not named, is taken for the same network.
    """
    split = [text.rpartition("=") for text in given or ()]
    named = {role_: name for role_, _, name in split if name}
    if len(named) != len(split) or not named.keys() <= {"", *models}:
        raise typer.BadParameter(
            f"{' '.join(given or ())!r} is not NAME once, such as resnet18, nor ROLE=NAME of a model of --with"
        )
    own = named.pop("", None)
    if own is not None:
        same = {role_: own for role_, file in models.items() if Path(file).suffix == WEIGHTS}
        named = {**same, **named}
    return own, named


def format_(text: str) -> Format:
    """A format that the result can be written as."""
    for known in get_args(Format):
        if text == known:
            return known  # type: ignore[no-any-return]
    raise typer.BadParameter(
        f"there is no format {text!r}; there are {', '.join(get_args(Format))}"
    )


def constraint(text: str) -> Constraint:
    """A constraint written as metric:goal:value, such as accuracy:max_drop:0.01."""
    parts = text.split(":")
    if len(parts) != 3:
        raise typer.BadParameter(
            f"{text!r} is not metric:goal:value, such as accuracy:max_drop:0.01"
        )
    try:
        return Constraint.model_validate(dict(zip(("metric", "goal", "value"), parts, strict=True)))
    except ValidationError as e:
        raise typer.BadParameter(f"{text!r}\n{_lines(from_validation(e))}") from e


def images(mean: str, std: str) -> Images:
    """How images become arrays, from comma-separated numbers for each channel."""
    try:
        return Images(mean=_numbers(mean), std=_numbers(std))
    except (ValidationError, ValueError) as e:
        raise typer.BadParameter(f"mean {mean!r} and std {std!r}: {e}") from e


def file(text: str) -> Path:
    """A file that exists."""
    path = Path(text)
    if not path.is_file():
        raise typer.BadParameter(f"there is no file {text!r}")
    return path


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _decode(path: Path) -> Any:
    size_bytes = path.stat().st_size
    if size_bytes > MAX_RECIPE_BYTES:
        raise typer.BadParameter(
            f"{path} has {size_bytes} bytes, a recipe at most {MAX_RECIPE_BYTES}"
        )
    try:
        text = path.read_text("utf-8")
        return tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (OSError, ValueError, RecursionError) as e:
        raise typer.BadParameter(f"{path} can't be read: {e}") from e


def _lines(problems: list[Problem]) -> str:
    return "\n".join(
        f"  {p.pointer or '/'}: {p.reason}{f' ({p.hint})' if p.hint else ''}" for p in problems
    )
