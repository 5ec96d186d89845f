"""The documentation as tests: what exists is described, what is generated is fresh, what is linked is there."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

import modelpress
from app import main, settings
from benchmarks import __main__ as benchmarks
from modelpress import cli
from modelpress.spec import named, recipe, state
from tests import servers

DOCS = servers.ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *servers.ROOT.glob("*.md")])


def page(name: str) -> str:
    return (DOCS / name).read_text()


def test_generated_parts_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"],
        cwd=servers.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"run `make docs`: {done.stdout}{done.stderr}"


@pytest.mark.parametrize("name", sorted(settings.Settings.model_fields))
def test_setting_is_documented_and_described(name: str) -> None:
    field = settings.Settings.model_fields[name]
    variable = field.validation_alias or f"MODELPRESS_{name.upper()}"
    assert f"`{variable}`" in page("operations.md")
    assert field.description


@pytest.mark.parametrize("kind", sorted(recipe.STEPS))
def test_step_is_documented(kind: str) -> None:
    text = page("recipes.md")
    assert f"### `{kind}`" in text
    assert f"| `{kind}`" in text.partition("## Which data a step needs")[2]


@pytest.mark.parametrize("name", sorted(named.NAMED))
def test_named_recipe_is_documented(name: str) -> None:
    assert f"\n`{name}`\n" in page("recipes.md")


def endpoints() -> list[str]:
    paths = main.create_app().openapi()["paths"]
    return [f"{method.upper()} {path}" for path, methods in paths.items() for method in methods]


@pytest.mark.parametrize("endpoint", endpoints())
def test_endpoint_is_documented(endpoint: str) -> None:
    assert f"`{endpoint}`" in page("api.md")


@pytest.mark.parametrize("value", [*state.JobState, *state.Outcome, *state.FailureClass])
def test_state_outcome_and_class_of_failure_are_documented(value: str) -> None:
    assert f"| `{value}` |" in page("api.md")


MOVES = [(before, after) for before, afters in state.TRANSITIONS.items() for after in afters]


@pytest.mark.parametrize(("before", "after"), sorted(MOVES))
def test_cause_of_a_move_is_documented(before: str, after: str) -> None:
    assert f"| `{before}` to `{after}` |" in page("api.md")


def test_no_move_is_documented_that_a_job_can_not_make() -> None:
    told = re.findall(r"^\| `(\w+)` to `(\w+)` \|", page("api.md"), re.MULTILINE)
    assert sorted(told) == sorted((str(before), str(after)) for before, after in MOVES)


def error_codes() -> set[str]:
    """Every code that the source names: of errors of requests, of problems in a body, of failures of jobs."""
    return {
        code
        for folder in ("app", "workers", "modelpress/spec")
        for path in (servers.ROOT / folder).rglob("*.py")
        for code in _codes(ast.parse(path.read_text()))
    }


def _codes(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            named = [k.value for k in node.keywords if k.arg == "code"]
            function = node.func.id if isinstance(node.func, ast.Name) else ""
            yield from _texts([*named, *(node.args[1:2] if function == "_failure" else [])])
        if isinstance(node, ast.ClassDef):
            yield from _texts(_class_code(node))


def _class_code(node: ast.ClassDef) -> Iterator[ast.expr]:
    """The value of `code = ...` or of `status, code = ...` in a class."""
    for statement in node.body:
        match statement:
            case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Tuple(elts=values)):
                yield from (v for n, v in zip(names, values, strict=True) if _is_code(n))
            case ast.Assign(targets=[target], value=value) if _is_code(target):
                yield value
            case ast.AnnAssign(target=target, value=ast.expr() as value) if _is_code(target):
                yield value


def _is_code(target: ast.expr) -> bool:
    return isinstance(target, ast.Name) and target.id == "code"


def _texts(values: list[ast.expr] | Iterator[ast.expr]) -> Iterator[str]:
    for value in values:
        if isinstance(value, ast.Constant) and isinstance(value.value, str) and value.value:
            yield value.value


def test_codes_are_found_in_every_way_they_are_written() -> None:
    assert {"too_large", "internal", "wrong_order", "worker_lost", "bad_model"} <= error_codes()


@pytest.mark.parametrize("code", sorted(error_codes()))
def test_error_code_is_documented(code: str) -> None:
    assert re.search(rf"^\| .*`{code}`.* \|", page("api.md"), re.MULTILINE)


def _leaves(command: object, name: str) -> Iterator[str]:
    below = getattr(command, "commands", None)
    if below is None:
        yield name
    for child, leaf in (below or {}).items():
        yield from _leaves(leaf, f"{name} {child}")


@pytest.mark.parametrize("name", list(_leaves(typer.main.get_command(cli.app), "modelpress")))
def test_command_is_documented(name: str) -> None:
    assert f"### `{name}`" in page("cli.md")


@pytest.mark.parametrize("status", list(cli.Exit))
def test_exit_status_is_documented(status: cli.Exit) -> None:
    assert f"\n| {status.value} | " in page("cli.md")


def targets_of_make() -> list[str]:
    return re.findall(r"^([a-z]+):.*## ", (servers.ROOT / "Makefile").read_text(), re.MULTILINE)


def test_readme_and_ci_use_the_two_commands() -> None:
    readme = (servers.ROOT / "README.md").read_text()
    assert "make demo" in readme
    assert "make test" in readme
    assert "make test" in (servers.ROOT / ".ci" / "run").read_text()
    assert {"demo", "test"} <= set(targets_of_make())


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(servers.ROOT)))
def test_make_is_called_with_targets_there_are(path: Path) -> None:
    called = re.findall(r"(?:`|^ {4})make ([a-z]+)", path.read_text(), re.MULTILINE)
    assert set(called) <= {*targets_of_make(), "lint"}


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(servers.ROOT)))
def test_link_leads_to_a_page_and_a_heading(path: Path) -> None:
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        linked = (path.parent / name).resolve() if name else path
        assert linked.exists(), target
        assert not anchor or anchor in _anchors(linked.read_text()), target


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda p: p.name)
def test_page_is_in_the_index(path: Path) -> None:
    assert path.name == "index.md" or f"]({path.name})" in page("index.md")


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(servers.ROOT)))
def test_json_is_json_and_a_recipe_is_a_recipe(path: Path) -> None:
    for block in re.findall(r"^```json\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE):
        shown = json.loads(block)
        if "steps" in shown:
            found = recipe.parse(shown).problems(has_data=True, has_labels=True)
            assert found == []


def _anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", benchmarks.names())
def test_benchmark_has_its_table_and_its_command(name: str) -> None:
    section = page("benchmarks.md").partition(f"    .venv/bin/python -m benchmarks.{name}")[2]
    assert re.search(r"^\|( -+:? \|)+$|^\|(-+:?\|)+$", section.partition("\n## ")[0], re.MULTILINE)


def test_decisions_are_numbered_and_listed() -> None:
    records = sorted(p.name for p in (DOCS / "adr").glob("0*.md"))
    assert [name[:4] for name in records] == [f"{n:04}" for n in range(1, len(records) + 1)]
    for name in records:
        assert f"]({name})" in page("adr/README.md")
        for part in ("Context", "Decision", "Consequences", "Alternatives"):
            assert f"\n## {part}\n" in page(f"adr/{name}"), f"{name}: {part}"


def test_version_is_one_and_the_changelog_knows_what_comes() -> None:
    project = tomllib.loads((servers.ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == modelpress.__version__
    changelog = (servers.ROOT / "CHANGELOG.md").read_text()
    assert "## [Unreleased]" in changelog or f"## [{modelpress.__version__}]" in changelog
