"""`make demo`: train a small network, compress it through the service, print the measured report.

Everything happens on this machine: the service lives in a temporary directory, listens on a free port of 127.0.0.1 and
is stopped at the end, also after Ctrl-C. What it made stays in demo-output/.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from demo import digits
from modelpress import _report, _show, embedded, errors
from modelpress.client import Client
from modelpress.spec.constraint import Constraint, Goal, Metric
from modelpress.spec.report import Report

OUTPUT = Path(__file__).resolve().parents[1] / "demo-output"
RECIPE = "prune-int8"
ASKED = (
    Constraint(metric=Metric.ACCURACY, goal=Goal.MAX_DROP, value=0.02),
    Constraint(metric=Metric.SIZE_BYTES, goal=Goal.MAX_RATIO, value=0.4),
)

console = Console()


def main() -> None:
    """The entry point."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=OUTPUT, help="where the results go")
    out = parser.parse_args().out
    started = time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run(out)
    except KeyboardInterrupt:
        sys.exit("interrupted; everything that was started is stopped")
    except errors.ModelPressError as e:
        sys.exit(f"the demo failed: {e}")
    _say(f"done in {time.monotonic() - started:.0f} s; the results are in {_relative(out)}")


def run(out: Path) -> Report:
    """The whole story; answers the report."""
    with tempfile.TemporaryDirectory(prefix="modelpress-demo-") as directory:
        model, train, evaluation = prepare(Path(directory))
        _say("starting the service: SQLite, a local directory, an API and two workers")
        with embedded.server(Path(directory) / "home") as client:
            _say(f"listening on {client.url}; uploading the network and its data")
            return compress(client, model, train, evaluation, out)


def prepare(directory: Path) -> tuple[Path, Path, Path]:
    """A trained network and its data, as files that a user would have."""
    _say("training a small convolutional network on scikit-learn's 8x8 digits")
    train, evaluation = digits.save_data(directory)
    network = digits.train(train)
    model = directory / "digits.onnx"
    digits.export(network, model)
    _say(f"exported {model.name}: {model.stat().st_size:,} bytes")
    return model, train, evaluation


def compress(client: Client, model: Path, train: Path, evaluation: Path, out: Path) -> Report:
    """Uploads, submits, watches, prints and fetches."""
    job = client.submit(
        client.upload_model(model),
        RECIPE,
        data=client.upload_dataset(train),
        eval_data=client.upload_dataset(evaluation),
        constraints=ASKED,
        name="digits",
    )
    _say(f"recipe {RECIPE}: prune to 80 % zeros with fine-tuning, then static int8")
    with _show.job("digits") as tell:
        client.wait(job, on_progress=tell)
    report = client.report(job)
    console.print(_report.render(report))
    _keep(client, job.id, report, out)
    return report


def _keep(client: Client, job: str, report: Report, out: Path) -> None:
    """Leaves the artifacts, the report and its table."""
    client.fetch(job, out)
    (out / "report.txt").write_text(_report.as_text(report), "utf-8")
    (out / "report.svg").write_text(_report.as_svg(report, title="make demo"), "utf-8")


def _relative(path: Path) -> str:
    return os.path.relpath(path)


def _say(text: str) -> None:
    console.print(f"[bold cyan]demo[/] {text}", highlight=False)


if __name__ == "__main__":
    main()
