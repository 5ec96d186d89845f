"""Lossless coding of fixed symbol maps (D1): our two coders beside constriction's plain ANS, lzma, zstd and, where it is installed, nncodec.

Every size counts all that a decoder needs, tables too; only our container's header is left out, as the peers have none. What it must give
is float32: a symbol is an index into a table of values. Speeds are of one thread, in megabytes of float32, by the processor's clock, so
that other work on the machine counts less; the best of several runs.

nncodec pins an older numpy and builds from source: give the python of an environment that has it with --nncodec.
"""

from __future__ import annotations

import argparse
import io
import lzma
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import constriction
import numpy as np
import onnx_ir as ir
import zstandard

from benchmarks import _mnist, _record
from modelpress.packed import container
from modelpress.packed.reading import Reader
from modelpress.spec.prune import PruneMagnitude
from modelpress.spec.quantize import QuantizeCluster
from modelpress.spec.step import FineTune
from workers.engine import context, formats, passes
from workers.engine.formats.packing import choice
from workers.engine.formats.packing import container as packing

RUNS = 5
NNCODEC = """
import sys, time, numpy as np, nncodec.nn
w = np.load(sys.argv[1])
begin = time.process_time()
stream = nncodec.nn.encode({"w": w}, {"qp": 0, "use_dq": False})
middle = time.process_time()
back = nncodec.nn.decode(stream)
end = time.process_time()
print(len(stream), middle - begin, end - middle, int((back["w"] == w).all()))
"""


class Coded(NamedTuple):
    """What a coder made of a map; seconds of encoding and decoding."""

    size_bytes: int
    encode_s: float
    decode_s: float


def main() -> None:
    """Measures, prints the table and writes bench-output/coding.json."""
    asked = _arguments()
    context.prepare_torch("cpu", 1)
    rows = []
    for name, symbols in maps(asked.quick):
        bound = entropy_bits(symbols)
        print(f"\n{name}: {symbols.size:,} symbols, {bound / symbols.size:.4f} bit each at order 0")
        print(
            f"{'coder':22}{'bytes':>10}{'bit each':>10}{'of n H0':>10}{'enc MB/s':>10}{'dec MB/s':>10}"
        )
        for coder, coded in measured(symbols, asked.nncodec):
            rows.append(_row(name, coder, coded, symbols.size, bound))
            _show(rows[-1])
    others = list(alphabets(asked.quick))
    print(f"\nwritten to {_record.write('coding', {'rows': rows, 'alphabets': others})}")


def alphabets(quick: bool) -> Iterator[dict[str, Any]]:
    """`code.entropy` on independent symbols of alphabets of any size, even and uneven."""
    print("\n| symbols | bits each | of n H0 | enc MB/s | dec MB/s |")
    print("|---|---:|---:|---:|---:|")
    for count in (100_000,) if quick else (100_000, 1_000_000):
        for name, symbols in independent(count):
            bound = entropy_bits(symbols)
            row = _row(name, "ours, entropy", ours(symbols, "entropy"), count, bound)
            row |= {"count": count}
            print(
                f"| {count:,}, {name} | {bound / count:.3f} | {row['of_bound']:.4f} | "
                f"{row['encode_mb_s']:.1f} | {row['decode_mb_s']:.0f} |",
                flush=True,
            )
            yield row


def independent(count: int) -> Iterator[tuple[str, np.ndarray]]:
    """Names and symbols [rows, 100]."""
    rng = np.random.default_rng(1)
    for size in (2, 17, 64, 256, 1024, 4096):
        falling = rng.permutation(1 / np.arange(1, size + 1))
        yield f"{size} alike", rng.integers(0, size, count).reshape(-1, 100)
        yield f"{size} by Zipf", rng.choice(size, (count // 100, 100), p=falling / falling.sum())
    for share in (20, 100, 1000):
        yield f"one of {share}", (rng.random((count // 100, 100)) < 1 / share).astype(np.uint8)


def maps(quick: bool) -> Iterator[tuple[str, np.ndarray]]:
    """Names and symbols [rows, columns] uint8."""
    rng = np.random.default_rng(0)
    shape = (300, 784) if quick else (1000, 1000)
    values = np.clip(np.rint(rng.normal(0, 3, shape)), -8, 8) + 8
    yield "pruned, 17 values", np.where(rng.random(shape) < 0.088, values, 8).astype(np.uint8)
    normal = np.clip(np.rint(rng.normal(7.5, 2.5, shape)), 0, 15)
    yield "4 bits, normal", normal.astype(np.uint8)
    yield "1 bit, one of ten", (rng.random(shape) < 0.1).astype(np.uint8)
    density = rng.choice([0.01, 0.05, 0.3], shape[1])
    yield "1 bit, columns differ", (rng.random(shape) < density).astype(np.uint8)
    yield "8 bits, normal", np.clip(np.rint(rng.normal(127.5, 32, shape)), 0, 255).astype(np.uint8)
    yield "LeNet-300-100, layer 1", lenet(quick)


def lenet(quick: bool) -> np.ndarray:
    """The first layer of LeNet-300-100, trained on MNIST, pruned to 8 % and clustered to 5 bits by our own steps."""
    prune = PruneMagnitude(
        sparsity=0.92, rounds=2 if quick else 5, fine_tune=FineTune(epochs=1 if quick else 3)
    )
    with tempfile.TemporaryDirectory(prefix="modelpress-bench-") as folder:
        path = Path(folder) / "lenet.onnx"
        found = _mnist.splits()
        _mnist.save(found, Path(folder))
        network = _mnist.lenet(0)
        _mnist.fit(network, found["train"], 2 if quick else 10)
        _mnist.export(network, path)
        graph = formats.load(path)
        for index, step in enumerate((prune, QuantizeCluster(bits=5))):
            graph = passes.apply(graph, step, _mnist.surroundings(path, seed=0, step=index))
    codes = max(
        (
            v.const_value.numpy()
            for v in graph.initializers.values()
            if v.dtype is ir.DataType.UINT8
        ),
        key=lambda array: array.size,
    )
    return codes.reshape(-1, 784) if codes.size % 784 == 0 else codes.reshape(1, -1)


def measured(symbols: np.ndarray, nncodec: str | None) -> Iterator[tuple[str, Coded]]:
    """Every coder there is, by name."""
    yield "ours, Huffman", ours(symbols, "huffman")
    yield "ours, entropy", ours(symbols, "entropy")
    yield "constriction ANS", plain_ans(symbols)
    flat = symbols.tobytes()
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
    raw = {"format": lzma.FORMAT_RAW, "filters": filters}
    yield (
        "lzma",
        whole(flat, lambda x: lzma.compress(x, **raw), lambda x: lzma.decompress(x, **raw)),
    )
    strong, reader = zstandard.ZstdCompressor(level=19), zstandard.ZstdDecompressor()
    yield "zstd 19", whole(flat, strong.compress, reader.decompress)
    if nncodec is not None:
        yield "nncodec", with_nncodec(symbols, nncodec)


def ours(symbols: np.ndarray, method: Any) -> Coded:
    """A section as the container has it, of float32 values whose table is in it."""
    values = np.linspace(-1, 1, int(symbols.max()) + 1, dtype=np.float32)
    content = values[symbols].tobytes()
    began = time.process_time()
    plan, columns = choice.plan(content, ir.DataType.FLOAT, symbols.shape, method)
    code = packing.section(content, plan, columns)
    encode_s = time.process_time() - began

    def decode() -> bytes:
        return b"".join(container.tensor(Reader(io.BytesIO(code), len(code)), len(content)))

    assert decode() == content
    return Coded(len(code), encode_s, _fastest(decode))


def plain_ans(symbols: np.ndarray) -> Coded:
    """One table of counts, one ANS stream; the table at 4 bytes for each symbol."""
    flat = symbols.reshape(-1).astype(np.int32)
    counts = np.bincount(flat).astype(np.float64)
    model = constriction.stream.model.Categorical(counts, perfect=False)

    def encode() -> np.ndarray:
        coder = constriction.stream.stack.AnsCoder()
        coder.encode_reverse(flat, model)
        return coder.get_compressed()

    words = encode()
    decode = lambda: constriction.stream.stack.AnsCoder(words).decode(model, flat.size)  # noqa: E731
    assert (decode() == flat).all()
    return Coded(words.nbytes + 4 * len(counts), _fastest(encode), _fastest(decode))


def whole(
    content: bytes, compress: Callable[[bytes], bytes], decompress: Callable[[bytes], bytes]
) -> Coded:
    """A compressor of bytes, given one symbol to a byte."""
    began = time.process_time()
    code = compress(content)
    encode_s = time.process_time() - began
    assert decompress(code) == content
    return Coded(len(code), encode_s, _fastest(lambda: decompress(code)))


def with_nncodec(symbols: np.ndarray, python: str) -> Coded:
    """The ISO codec on whole numbers with a step of 1; its dependent quantization, which would change them, is off."""
    with tempfile.TemporaryDirectory(prefix="modelpress-bench-") as folder:
        path = Path(folder) / "w.npy"
        np.save(path, symbols.astype(np.float32) - float(np.bincount(symbols.ravel()).argmax()))
        argv = [python, "-c", NNCODEC, str(path)]
        done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=True)
    size_bytes, encode_s, decode_s, same = done.stdout.split()[-4:]
    assert same == "1", "nncodec gives the numbers back"
    return Coded(int(size_bytes), float(encode_s), float(decode_s))


def entropy_bits(symbols: np.ndarray) -> float:
    """N H0."""
    counts = np.bincount(symbols.reshape(-1))
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / counts.sum())).sum())


def _fastest(call: Callable[[], Any]) -> float:
    """Processor seconds of the fastest of several runs."""
    taken = []
    for _ in range(RUNS):
        began = time.process_time()
        call()
        taken.append(time.process_time() - began)
    return min(taken)


def _row(name: str, coder: str, coded: Coded, count: int, bound: float) -> dict[str, Any]:
    megabytes = 4e-6 * count
    return {
        "map": name,
        "coder": coder,
        "bytes": coded.size_bytes,
        "bits_each": round(8 * coded.size_bytes / count, 4),
        "of_bound": round(8 * coded.size_bytes / bound, 4),
        "encode_mb_s": round(megabytes / max(coded.encode_s, 1e-6), 1),
        "decode_mb_s": round(megabytes / max(coded.decode_s, 1e-6), 1),
    }


def _show(row: dict[str, Any]) -> None:
    print(
        f"{row['coder']:22}{row['bytes']:>10,}{row['bits_each']:>10.4f}{row['of_bound']:>10.4f}"
        f"{row['encode_mb_s']:>10.1f}{row['decode_mb_s']:>10.1f}",
        flush=True,
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coding", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller maps, less training")
    parser.add_argument("--nncodec", help="python of an environment that has nncodec")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
