"""Writes the generated parts of the documentation: `python docs/generate.py [--check]`.

A page marks such a part with `<!-- generated: NAME -->` and `<!-- end -->`; `PARTS` says what each name stands for.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from app import main, settings
from modelpress import cli
from modelpress.spec import named, recipe
from modelpress.spec.step import FineTune, Step

DOCS = Path(__file__).parent
_PART = re.compile(r"(<!-- generated: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def steps() -> str:
    """Every step: what it does, its paper, its fields, and the shortest recipe that uses it."""
    return "\n".join(_step(kind, cls) for kind, cls in sorted(recipe.STEPS.items()))


def _step(kind: str, cls: type[Step]) -> str:
    own = {name: f for name, f in cls.model_fields.items() if name not in Step.model_fields}
    own = dict(sorted(own.items(), key=lambda each: each[0] not in cls.__annotations__))
    return "\n".join(
        [
            f"### `{kind}`\n",
            f"{cls.__doc__}\n",
            f"*{cls.paper}*\n",
            _fields(own, cls.model_json_schema()),
            "The last step of a recipe.\n" if not cls.leaves_trainable else "",
        ]
    )


def shared() -> str:
    """What every step has."""
    return _fields({"exclude": Step.model_fields["exclude"]}, Step.model_json_schema())


def fine_tune() -> str:
    """The fields of `fine_tune`."""
    return _fields(FineTune.model_fields, FineTune.model_json_schema())


def named_recipes() -> str:
    """The recipes with a name, as JSON without what is default."""
    return "\n".join(
        f"`{name}`\n\n```json\n{json.dumps(_written(wanted))}\n```\n"
        for name, wanted in sorted(named.NAMED.items())
    )


def _written(wanted: recipe.Recipe) -> dict[str, Any]:
    """A recipe as a person writes it: `kind` is a default to pydantic, but not to a reader."""
    steps = [{"kind": s.kind, **s.model_dump(exclude_defaults=True)} for s in wanted.steps]
    return {"steps": steps}


def settings_table() -> str:
    """Every setting of the service."""
    rows = [
        (f"`{_variable(name, field)}`", _default(field), _cell(field.description))
        for name, field in settings.Settings.model_fields.items()
    ]
    return _table(("Variable", "Default", "Meaning"), rows)


def _variable(name: str, field: FieldInfo) -> str:
    return str(field.validation_alias or f"MODELPRESS_{name.upper()}")


def endpoints() -> str:
    """Every endpoint, in the order of the API."""
    rows = [
        (f"`{method.upper()} {path}`", _first_sentence(operation["description"]))
        for path, operations in main.create_app().openapi()["paths"].items()
        for method, operation in operations.items()
    ]
    return _table(("Endpoint", "What it does"), rows)


def metrics() -> str:
    """Every metric, as its family is made in app/metrics.py."""
    tree = ast.parse((DOCS.parent / "app" / "metrics.py").read_text())
    rows = [
        (f"`{call.args[0].value}`", _cell(str(call.args[1].value)))
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and len(call.args) > 1
        and isinstance(call.args[0], ast.Constant)
        and isinstance(call.args[1], ast.Constant)
        and str(call.args[0].value).startswith("modelpress_")
    ]
    return _table(("Metric", "What it is"), rows)


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=\.)\s+(?=[A-Z])", _cell(text))[0]


def commands() -> str:
    """Every command of the command line, with its arguments and options."""
    return "\n".join(
        _command(name, command)
        for name, command in _leaves(typer.main.get_command(cli.app), "modelpress")
    )


def _leaves(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The commands below a command, with their full names; typer does not export the classes it uses."""
    if not hasattr(command, "commands"):
        yield name, command
        return
    for child, below in command.commands.items():
        yield from _leaves(below, f"{name} {child}")


def _command(name: str, command: Any) -> str:
    words = [_argument(p) for p in command.params if p.param_type_name == "argument"]
    usage = " ".join([name, *words, "[OPTIONS]"])
    rows = [(f"`{_parameter(p)}`", _cell(p.help)) for p in command.params]
    text = inspect.cleandoc(command.help)
    return f"### `{name}`\n\n{text}\n\n    {usage}\n\n{_table(('Argument', 'Meaning'), rows) if rows else ''}"


def _argument(parameter: Any) -> str:
    word = parameter.metavar or parameter.name.upper()
    return word if parameter.required else f"[{word}]"


def _parameter(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return _argument(parameter)
    return ", ".join(parameter.opts)


def _fields(fields: Mapping[str, FieldInfo], schema: Mapping[str, Any]) -> str:
    rows = [
        (f"`{name}`", _type(schema["properties"][name], schema), _default(f), _cell(f.description))
        for name, f in fields.items()
    ]
    return _table(("Field", "Values", "Default", "Meaning"), rows)


def _type(of: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """A JSON Schema in words: 'number, above 0 and below 1'."""
    if "$ref" in of:
        return _object(of["$ref"].rsplit("/", 1)[1], schema)
    if "anyOf" in of:
        return " or ".join(_type(option, schema) for option in of["anyOf"])
    if "enum" in of:
        return ", ".join(f"`{value}`" for value in of["enum"])
    if "prefixItems" in of:
        return f"[{', '.join(_type(item, schema) for item in of['prefixItems'])}]"
    if of.get("type") == "array":
        return f"list of {_type(of['items'], schema)}, at most {of['maxItems']}"
    limits = " and ".join(_limits(of))
    return f"{of['type']}, {limits}" if limits else str(of["type"])


def _object(name: str, schema: Mapping[str, Any]) -> str:
    """An object of a step: a link where it has a section of its own, else its fields."""
    if name == FineTune.__name__:
        return f"[{name}](#fine_tune)"
    fields = schema["$defs"][name]["properties"]
    return f"{{{'; '.join(f'`{field}`: {_type(of, schema)}' for field, of in fields.items())}}}"


def _limits(of: Mapping[str, Any]) -> Iterator[str]:
    words = {
        "exclusiveMinimum": "above",
        "minimum": "from",
        "exclusiveMaximum": "below",
        "maximum": "up to",
    }
    for key, word in words.items():
        if key in of:
            yield f"{word} {of[key]:,}"


def _default(field: FieldInfo) -> str:
    default = field.get_default()
    if default is PydanticUndefined:
        return "required"
    if isinstance(default, Path):
        return f"`{str(default).replace(str(Path.home()), '~')}`"
    if default in ("", (), None):
        return {"": "empty", (): "empty"}.get(default, "null")
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _cell(text: str | None) -> str:
    return (text or "").replace("|", "\\|").replace("\n", " ")


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


PARTS: dict[str, Callable[[], str]] = {
    "steps": steps,
    "shared": shared,
    "fine-tune": fine_tune,
    "named-recipes": named_recipes,
    "settings": settings_table,
    "endpoints": endpoints,
    "commands": commands,
    "metrics": metrics,
}


def fresh(page: str) -> str:
    """The text of a page with its generated parts written anew."""
    return _PART.sub(lambda part: f"{part[1]}\n{PARTS[part[2]]()}\n{part[3]}", page)


def stale() -> list[Path]:
    """The pages whose generated parts are not what they would be now."""
    return [
        path for path in sorted(DOCS.rglob("*.md")) if fresh(path.read_text()) != path.read_text()
    ]


def run(arguments: list[str]) -> int:
    """Rewrites stale pages, or with --check names them and answers 1."""
    pages = stale()
    for path in pages:
        if "--check" not in arguments:
            path.write_text(fresh(path.read_text()))
        sys.stdout.write(f"{path.relative_to(DOCS.parent)}\n")
    return 1 if pages and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
