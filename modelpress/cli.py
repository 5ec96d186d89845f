"""`modelpress`: the service from a shell.

Results go to standard output, everything else to standard error; with --json standard output is one JSON value.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
import typer.core
from pydantic import TypeAdapter
from rich.markup import escape
from rich.table import Table

from modelpress import (
    __version__,
    _connection,
    _inputs,
    _local,
    _options,
    _report,
    _send,
    _sensitivity,
    _serve,
    _show,
    _unpack,
    _watch,
    errors,
)
from modelpress import client as clients
from modelpress._ended import Ended, Exit
from modelpress._options import ApiKey, JobId, Json, ModelFile, Out, Url
from modelpress.spec import recipe as recipes
from modelpress.spec.sensitivity import Sensitivity
from modelpress.spec.state import JobState

EPILOG = (
    "Exit status: 0 done, 1 the job failed or the service did not run, 2 wrong usage, 3 no server, "
    "4 refused by the server, 5 a constraint does not hold, 130 interrupted."
)


class Group(typer.core.TyperGroup):
    """Turns what the client raises into a message and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except errors.Unreachable as e:
            _fail(Exit.UNREACHABLE, e)
        except (errors.Rejected, errors.InspectionFailed) as e:
            _fail(Exit.REFUSED, e)
        except (errors.ModelPressError, _serve.ServeFailed) as e:
            _fail(Exit.FAILED, e)
        except (OSError, ValueError) as e:
            _fail(Exit.USAGE, e)
        except KeyboardInterrupt:
            raise typer.Exit(Exit.INTERRUPTED) from None


app = typer.Typer(
    cls=Group,
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Make neural networks small and fast, and prove every number.",
)
keys = typer.Typer(no_args_is_help=True, help="API keys of the project.")
app.add_typer(keys, name="keys")


@app.command(epilog=EPILOG)
@_options.request
def compress(
    asked: _inputs.Asked,
    local: Annotated[bool, typer.Option("--local", help="Run here, with no server.")] = False,
    out: Out = None,
    as_json: Json = False,
    url: Url = None,
    key: ApiKey = None,
) -> None:
    """Compress a model: upload it, run a recipe, print the report, fetch the result.

    The result goes to --out, by default MODEL-compressed in the current directory.
    """
    out = out or Path(f"{Path(asked.model).stem}-compressed")
    if local:
        _finish(_run_here(asked, out), as_json)
    with clients.Client(url, key) as client:
        job = _watch.to_the_end(client, _send.job(client, asked))
        _finish(_watch.collect(client, job, out), as_json)


@app.command(epilog=EPILOG)
@_options.request
def submit(
    asked: _inputs.Asked, as_json: Json = False, url: Url = None, key: ApiKey = None
) -> None:
    """Like compress, but only submit the job and print its id."""
    with clients.Client(url, key) as client:
        job = _send.job(client, asked)
    _show.say(f"see it with: modelpress watch {job.id}")
    typer.echo(job.model_dump_json(by_alias=True) if as_json else job.id)


@app.command()
def inspect(
    model: ModelFile,
    architecture: Annotated[
        str | None,
        typer.Option(help="Of weights in .safetensors: what timm calls the network."),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Look anew: a newer service may know more steps.")
    ] = False,
    as_json: Json = False,
    url: Url = None,
    key: ApiKey = None,
) -> None:
    """Tell what is in a model and which steps could do what to it; a file is uploaded first."""
    with clients.Client(url, key) as client:
        found = _send.model(client, model, architecture)
        if again:
            found = client.inspect_again(found)
    _print(found, as_json, plain=_show.model(found))


@app.command(epilog=EPILOG)
def watch(job: JobId, as_json: Json = False, url: Url = None, key: ApiKey = None) -> None:
    """Follow a job to its end and print its report. Ctrl-C asks whether to cancel it."""
    with clients.Client(url, key) as client:
        ended = _watch.to_the_end(client, client.job(job))
        _finish(_watch.collect(client, ended, None), as_json)


@app.command(epilog=EPILOG)
def fetch(
    what: Annotated[str, typer.Argument(metavar="JOB|MODEL", help="Id of a job, or of a model.")],
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Of a model: the ONNX file that jobs use.")
    ] = False,
    out: Out = None,
    as_json: Json = False,
    url: Url = None,
    key: ApiKey = None,
) -> None:
    """Download the artifacts of a job and its report, or the file of a model.

    They go to --out, by default a directory named as the job or model is.
    """
    with clients.Client(url, key) as client:
        if what.startswith(_send.MODEL_ID):
            files = _watch.fetch_model(client, what, out or Path(what), onnx=onnx)
        elif onnx:
            raise typer.BadParameter(f"--onnx is for a model, {what!r} is none")
        else:
            files = _watch.fetch(client, client.job(what), out or Path(what))
    _print([str(file) for file in files], as_json, plain="\n".join(map(str, files)))


@app.command()
def jobs(
    state: Annotated[str | None, typer.Option(help="Only jobs in this state.")] = None,
    limit: Annotated[int, typer.Option(help="How many, newest first.", min=1)] = 20,
    as_json: Json = False,
    url: Url = None,
    key: ApiKey = None,
) -> None:
    """List the compressions of the project, newest first."""
    with clients.Client(url, key) as client:
        found = list(islice(client.jobs(state=state, kind="compress"), limit))
    _print(found, as_json, plain=_show.jobs(found))


@app.command(epilog=EPILOG)
def sensitivity(
    what: Annotated[
        str,
        typer.Argument(
            metavar="FILE|ID",
            help="A sensitivity.json, or the id of sensitivities, or of a model or a job whose sensitivities to list.",
        ),
    ],
    svg: Annotated[
        Path | None,
        typer.Option("--svg", help="Also write the curves as a picture here.", dir_okay=False),
    ] = None,
    remove: Annotated[
        bool, typer.Option("--remove", help="Remove the sensitivities of this id from the server.")
    ] = False,
    as_json: Json = False,
    url: Url = None,
    key: ApiKey = None,
) -> None:
    """Show what compressing each layer alone costs a model; measure it with `compress --recipe sensitivity`."""
    if remove:
        _remove_sensitivity(what, url, key)
        return
    if Path(what).is_file():
        _print_table(_sensitivity.read(Path(what)), svg, as_json)
        return
    with clients.Client(url, key) as client:
        if what.startswith(_sensitivity.ID):
            found = client.sensitivity(what)
            assert found.table is not None, "one that is asked for alone has its table"
            _print_table(found.table, svg, as_json)
            return
        if svg is not None:
            raise typer.BadParameter(f"--svg is for one table, {what!r} may have several")
        is_job = what.startswith(_sensitivity.JOB_ID)
        known = _sensitivity.of_job(client, what) if is_job else list(client.sensitivities(what))
    _print(known, as_json, plain=_show.sensitivities(known))


@app.command()
def cancel(job: JobId, as_json: Json = False, url: Url = None, key: ApiKey = None) -> None:
    """Ask a job to stop."""
    with clients.Client(url, key) as client:
        now = client.cancel(job)
    _print(now, as_json, plain=f"{now.id} {now.state}")


@app.command()
def steps(
    kind: Annotated[str | None, typer.Argument(help="Show the fields of this step.")] = None,
    as_json: Json = False,
) -> None:
    """List the steps a recipe may have and the recipes that have a name; needs no server."""
    if kind is not None and kind not in recipes.STEPS:
        raise typer.BadParameter(f"there is no step {kind!r}; see `modelpress steps`")
    chosen = recipes.STEPS if kind is None else {kind: recipes.STEPS[kind]}
    schemas = {name: step.model_json_schema() for name, step in chosen.items()}
    plain = _show.steps() if kind is None else _show.step(kind)
    _print(schemas, as_json, plain=plain)


@keys.command("list")
def list_keys(as_json: Json = False, url: Url = None, key: ApiKey = None) -> None:
    """List the keys; their secrets are not kept."""
    with clients.Client(url, key) as client:
        found = list(client.keys())
    _print(found, as_json, plain=_show.keys(found))


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="What the key is for.")],
    admin: Annotated[bool, typer.Option(help="May also make projects.")] = False,
    as_json: Json = False,
    url: Url = None,
    key: ApiKey = None,
) -> None:
    """Make a key and print its secret, once."""
    with clients.Client(url, key) as client:
        made = client.create_key(name, admin=admin)
    _show.say("this is the only time the secret is shown")
    _print(made, as_json, plain=made.secret or "")


@keys.command("revoke")
def revoke_key(
    revoked: Annotated[str, typer.Argument(metavar="ID", help="Id of the key.")],
    url: Url = None,
    key: ApiKey = None,
) -> None:
    """Make a key useless, for good."""
    with clients.Client(url, key) as client:
        client.revoke_key(revoked)


@app.command(epilog=EPILOG)
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.", envvar="MODELPRESS_HOST")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port; 0 takes any.", envvar="MODELPRESS_PORT")] = 8765,
    home: Annotated[
        Path | None, typer.Option(help="Directory of everything; else MODELPRESS_HOME.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Jobs that may run at once.", min=1)] = 1,
    no_worker: Annotated[bool, typer.Option("--no-worker", help="Only the API.")] = False,
) -> None:
    """Run the whole service on this machine until Ctrl-C."""
    count = 0 if no_worker else workers
    if extra := _serve.missing_extra(workers=count):
        _fail(
            Exit.FAILED,
            f"`serve` needs more than the client: pip install 'modelpress[{extra}]'"
            + (", or add --no-worker" if extra == "worker" else ""),
        )
    plan = _serve.Plan(host, port, (home or _connection.home()).absolute(), count)
    _serve.run(plan, lambda text: typer.echo(text, err=True))


@app.command(epilog=EPILOG)
def unpack(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A packed model, .mpk.", dir_okay=False)
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The ONNX file; else FILE with .onnx.", dir_okay=False),
    ] = None,
    max_bytes: Annotated[
        int | None, typer.Option(help="Refuse models of more bytes; else of 2 GiB.", min=1)
    ] = None,
    as_json: Json = False,
) -> None:
    """Make the ONNX file of a packed model, byte for byte; needs no server."""
    out = out or file.with_suffix(".onnx")
    found = _unpack.run(file, out, max_bytes)
    _print(found, as_json, plain=f"wrote {out}: {found.size_bytes:,} bytes, SHA-256 {found.sha256}")


@app.command()
def version() -> None:
    """Print the version of this client."""
    typer.echo(__version__)


def main() -> None:
    """The entry point."""
    app()


def _run_here(asked: _inputs.Asked, out: Path) -> Ended:
    if not _local.is_installed():
        _fail(Exit.FAILED, "--local needs the engine: pip install 'modelpress[worker]'")
    with _show.job(asked.name) as tell:
        return _local.run(asked, out, on_progress=tell)


def _finish(ended: Ended, as_json: bool) -> NoReturn:
    """Prints how a job ended and leaves with the status that says the same."""
    if as_json:
        typer.echo(ended.model_dump_json(by_alias=True))
    elif ended.report is not None:
        _show.out.print(_report.render(ended.report))
        for file in ended.files:
            typer.echo(f"wrote {file}")
    if ended.state is not JobState.SUCCEEDED:
        reason = f": {errors.explain(ended.failure)}" if ended.failure else ""
        _fail(Exit.FAILED, f"{ended.job or 'the job'} {ended.state}{reason}")
    raise typer.Exit(ended.exit)


def _remove_sensitivity(what: str, url: str | None, key: str | None) -> None:
    if not what.startswith(_sensitivity.ID):
        raise typer.BadParameter(
            f"--remove takes the id of sensitivities, {what!r} is none; `modelpress sensitivity MODEL` lists them"
        )
    with clients.Client(url, key) as client:
        client.delete_sensitivity(what)


def _print_table(table: Sensitivity, svg: Path | None, as_json: bool) -> None:
    if svg is not None:
        svg.write_text(_sensitivity.svg(table), "utf-8")
        _show.say(f"wrote {svg}")
    if as_json:
        typer.echo(table.model_dump_json())
    else:
        _show.out.print(_sensitivity.render(table))


def _print(value: Any, as_json: bool, *, plain: str | Table | Iterable[Table]) -> None:
    if as_json:
        typer.echo(TypeAdapter(Any).dump_json(value, by_alias=True).decode())
    elif isinstance(plain, str):
        typer.echo(plain)
    else:
        _show.out.print(*([plain] if isinstance(plain, Table) else plain))


def _fail(status: Exit, message: object) -> NoReturn:
    _show.err.print(f"[bold red]error:[/] {escape(str(message))}", highlight=False, soft_wrap=True)
    raise typer.Exit(status)
