"""What the service adds to a job: the same order through the embedded service and by the engine alone, in turn.

By the service: from the client's submission until it sees the job's end. Alone: the engine's two processes
(compress, then verify) on a job directory that lies ready, without fence, queue, database or store.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import _record
from demo import digits
from modelpress import embedded, resources
from modelpress.client import Client
from modelpress.spec import named, order

RECIPE = "int8"
PARTS = {
    "service": "through the service",
    "engine": "the engine alone",
    "added": "the service adds",
    "waiting": "  of it, before a worker began",
    "notice": "  of it, until the client knew",
}


def main() -> None:
    """Measures, prints the table, writes bench-output/job_overhead.json."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.job_overhead", description=__doc__)
    parser.add_argument("--repeats", type=int, default=10, help="pairs of runs (default: 10)")
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory(prefix="modelpress-bench-") as directory:
        runs = measure(Path(directory), repeats)
    spreads = {part: _record.spread([run[part] for run in runs]) for part in PARTS}
    print(f"{'seconds':32} {'median':>8} {'q1':>8} {'q3':>8}    ({repeats} pairs, recipe {RECIPE})")
    for part, of in spreads.items():
        print(f"{PARTS[part]:32} {of['median']:8.2f} {of['q1']:8.2f} {of['q3']:8.2f}")
    path = _record.write("job_overhead", {"recipe": RECIPE, "seconds": spreads, "runs": runs})
    print(f"written to {path}")


def measure(directory: Path, repeats: int) -> list[dict[str, float]]:
    """The seconds of each pair, without the first, which warms the caches up."""
    data, _ = digits.save_data(directory)
    model = directory / "digits.onnx"
    digits.export(digits.train(data), model)
    with embedded.server(directory / "home") as client:
        sent = client.upload_model(model), client.upload_dataset(data)
        pairs = []
        for number in range(repeats + 1):
            service = _by_service(client, *sent)
            pairs.append(_pair(service, _alone(directory / "job", model, data)))
            print(
                f"pair {number}: {pairs[-1]['service']:.2f} s, {pairs[-1]['engine']:.2f} s",
                flush=True,
            )
    return pairs[1:]


def _pair(service: dict[str, float], engine: float) -> dict[str, float]:
    return {**service, "engine": engine, "added": service["service"] - engine}


def _by_service(
    client: Client, model: resources.Model, data: resources.Dataset
) -> dict[str, float]:
    begin = time.perf_counter()
    job = client.wait(client.submit(model, RECIPE, data=data))
    seconds = time.perf_counter() - begin
    created, started, finished = job.created_at, job.started_at, job.finished_at
    if job.state != "succeeded" or created is None or started is None or finished is None:
        raise SystemExit(f"job {job.id} {job.state}: {job.failure}")
    return {
        "service": seconds,
        "waiting": (started - created).total_seconds(),
        "notice": seconds - (finished - created).total_seconds(),
    }


def _alone(jobdir: Path, model: Path, data: Path) -> float:
    """Seconds of the engine's processes on a fresh job directory."""
    shutil.rmtree(jobdir, ignore_errors=True)
    for name in (order.INPUT, order.WORK, order.OUTPUT):
        (jobdir / name).mkdir(parents=True)
    shutil.copy(model, jobdir / order.INPUT / "model.onnx")
    shutil.copy(data, jobdir / order.INPUT / "train.npz")
    wanted = order.CompressOrder(
        model=order.FileRef(path="input/model.onnx"),
        data=order.OrderData(train=order.FileRef(path="input/train.npz")),
        recipe=named.NAMED[RECIPE],
    )
    (jobdir / order.ORDER).write_text(wanted.model_dump_json(by_alias=True))
    begin = time.perf_counter()
    for task in ("compress", "verify"):
        command = [sys.executable, "-m", "workers.engine", task, str(jobdir)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
