"""The measured report of a job: the uploaded model, then every stage, each with what it touched and skipped."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from modelpress.spec.advice import Advice
from modelpress.spec.constraint import ConstraintResult
from modelpress.spec.recipe import Recipe
from modelpress.spec.state import Outcome

SCHEMA_VERSION = 1


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class Quality(_Frozen):
    """How well the stage's exported file predicts, measured by ONNX Runtime on the eval split."""

    samples: int = Field(description="Samples of the eval split.")
    accuracy: float | None = Field(description="Top-1 accuracy, a fraction; null without labels.")
    agreement: float | None = Field(
        description="Fraction of samples where the top class is the uploaded model's; null where the output is no vector of classes."
    )
    max_abs_difference: float = Field(
        description="Largest absolute difference from the uploaded model's outputs."
    )
    relative_l2_difference: float = Field(
        description="L2 norm of that difference over the L2 norm of the outputs."
    )
    class_accuracy: tuple[float | None, ...] = Field(
        default=(),
        description="Accuracy of each class, in label order; null for classes without samples. Up to 1000 classes.",
    )


class SizeParts(_Frozen):
    """What the bytes of a file are for; together they are all of them."""

    weights_bytes: int = Field(description="Weights of layers, or the codes that stand for them.")
    codebooks_bytes: int = Field(
        description="What codes stand for: tables of shared values, scales, zero points."
    )
    tables_bytes: int = Field(
        description="What a coder must know before its codes; 0 in ONNX files."
    )
    biases_bytes: int = Field(description="Biases and other vectors that are trained.")
    norms_bytes: int = Field(description="Gains, offsets and statistics of normalizations.")
    headers_bytes: int = Field(
        description="Nodes, names, small constants; in a packed file also checksums and the directory."
    )


class Size(_Frozen):
    """What the stage's exported file weighs, counted in several ways."""

    file_bytes: int = Field(description="Bytes of the ONNX file.")
    zipped_bytes: int = Field(description="Bytes of that file after DEFLATE at level 6.")
    entropy_bytes: int = Field(
        description="Order-0 entropy bound: each weight tensor's symbols coded at their own Shannon entropy, codebooks and everything else raw."
    )
    theoretical_bytes: int = Field(
        description="Non-zero parameters times their stored bits, nothing else."
    )
    parameters: int = Field(description="Elements of all weight tensors.")
    nonzero_parameters: int = Field(description="Of these, not zero.")
    bits_per_parameter: float = Field(description="Stored bits over parameters, by element type.")
    file_parts: SizeParts | None = Field(
        default=None, description="What the bytes of the ONNX file are for."
    )
    coded_bytes: int | None = Field(
        default=None,
        description="Bytes of the packed file, every one of them; null where no code step wrote one.",
    )
    coded_parts: SizeParts | None = Field(
        default=None, description="What the bytes of the packed file are for."
    )


class Latency(_Frozen):
    """Time of one run in ONNX Runtime, interleaved with the uploaded model's in the same process."""

    p50_ms: float = Field(description="Median, the headline.")
    p90_ms: float = Field(description="90th percentile.")
    p99_ms: float = Field(description="99th percentile.")
    mean_ms: float = Field(description="Mean.")
    std_ms: float = Field(description="Standard deviation.")
    min_ms: float = Field(description="Fastest run.")
    runs: int = Field(description="Timed runs, after the warm-up.")
    warmup: int = Field(description="Untimed runs before them.")
    batch: int = Field(description="Samples in each run.")
    threads: int = Field(description="Intra-op threads of the session.")
    device: str = Field(description="'cpu' or the GPU's name.")
    original_p50_ms: float = Field(
        description="Median of the uploaded model in the same interleaved runs."
    )
    ratio: float = Field(description="p50_ms over original_p50_ms: what holds on a noisy machine.")


class KernelLatency(_Frozen):
    """Time of a second file, whose products of signs run through kernels, taken in turn with the model's own file.

    Times are those that a tenth of the runs does not exceed.
    """

    file: str = Field(description="Name of that file: 'model.xnor.onnx'.")
    p10_ms: float = Field(description="Its time for a run.")
    plain_p10_ms: float = Field(description="The time of the model's file in the same turns.")
    ratio: float = Field(description="p10_ms over plain_p10_ms: what holds on a noisy machine.")
    runs: int = Field(description="Timed runs of each.")
    batch: int = Field(description="Samples in each run.")
    threads: int = Field(description="Intra-op threads of both sessions.")
    samples: int = Field(description="Samples on which their outputs were compared.")
    max_abs_difference: float = Field(description="By how much their outputs differ at most.")


class Cost(_Frozen):
    """Multiply-accumulates of one sample."""

    macs: int = Field(description="Dense multiply-accumulates for a batch of 1; zeros count.")
    macs_by_operator: dict[str, int] = Field(description="The same, by operator type.")


class Touched(_Frozen):
    """A layer that a step changed."""

    layer: str = Field(description="Name of the weight or node.")
    change: str = Field(
        description="What was done: '90.1 % of 4,096 weights zero', 'int8 per channel'."
    )


class Skipped(_Frozen):
    """A layer that a step left alone, and why."""

    layer: str = Field(description="Name of the weight or node.")
    reason: str = Field(description="Why it was left alone.")


class Control(_Frozen):
    """A network trained the other way, beside a step's result, so that the step can be seen to matter."""

    name: str = Field(
        description="'scratch_e': the step's shape trained from new weights for as many epochs; 'scratch_b': for as much computation."
    )
    epochs: int = Field(description="Epochs it was trained for.")
    quality: Quality = Field(description="Measured as the stage's own, on an exported file.")
    note: str = Field(default="", description="What a reader should know of it.")


class CurvePoint(_Frozen):
    """One point of a curve, over several seeds."""

    x: float = Field(description="Where.")
    mean: float = Field(description="Mean over the runs.")
    low: float | None = Field(
        default=None, description="Lower end of the 95 % interval of the mean; null for one run."
    )
    high: float | None = Field(default=None, description="Upper end; null for one run.")
    runs: int = Field(default=1, description="Runs, each with a seed of its own.")


class Curve(_Frozen):
    """A figure against another, as a step measured it on the eval split."""

    name: str = Field(description="'ticket', 'random_reinit': which line of the picture.")
    x: str = Field(description="What x is: 'fraction of weights kept'.")
    y: str = Field(description="What y is: 'accuracy'.")
    points: tuple[CurvePoint, ...] = Field(description="In order of x.")


class Effect(_Frozen):
    """What a step did to the network as it was before, on some samples of the eval split."""

    samples: int = Field(description="Samples it was measured on, and each layer alone, too.")
    accuracy_before: float | None = Field(
        default=None, description="Top-1 accuracy before the step; null without labels."
    )
    accuracy: float | None = Field(default=None, description="The same after it.")
    agreement: float | None = Field(
        default=None, description="Fraction of samples whose top class stayed."
    )
    relative_l2_difference: float = Field(
        description="L2 norm of the change of all outputs over that of the outputs before."
    )


class LayerError(_Frozen):
    """What one layer does to the network when it alone is as the step left it, and all others are as before the step."""

    layer: str = Field(
        description="Name of the weight or node; its bias and the BatchNormalization behind it belong to it."
    )
    elements: int = Field(description="Elements of the weight before the step; 0 for a node.")
    relative_l2_difference: float | None = Field(
        default=None,
        description="L2 norm of the change of all outputs over that of the outputs before the step; null where it was not measured.",
    )
    agreement: float | None = Field(
        default=None, description="Fraction of samples whose top class stayed."
    )
    accuracy: float | None = Field(default=None, description="Top-1 accuracy; null without labels.")
    share: float | None = Field(
        default=None,
        description="Of the sum of the squared errors of all measured layers: independent errors add up like that.",
    )
    reason: str = Field(default="", description="Why it was not measured alone.")


class Stage(_Frozen):
    """One row of the report: the baseline or the result of a step, measured on the file it exported."""

    name: str = Field(description="'baseline' or the kind of the step.")
    step: int | None = Field(description="Index of the step in the recipe; null for the baseline.")
    seconds: float = Field(description="Wall time of the step, measurement not counted.")
    quality: Quality | None = Field(description="Null where the job has no data.")
    size: Size = Field(description="What the file weighs.")
    latency: Latency = Field(description="How fast it runs.")
    latency_packed: KernelLatency | None = Field(
        default=None,
        description="How fast the file beside it runs that has kernels for packed weights; null where there is none and packing is storage only.",
    )
    cost: Cost = Field(description="How much it computes.")
    touched: tuple[Touched, ...] = Field(default=(), description="Layers the step changed.")
    skipped: tuple[Skipped, ...] = Field(
        default=(), description="Layers the step left alone, with reasons."
    )
    notes: tuple[str, ...] = Field(
        default=(), description="What a reader should know: choices made, gains that did not come."
    )
    controls: tuple[Control, ...] = Field(
        default=(), description="The same trained otherwise, where the step was asked for it."
    )
    curves: tuple[Curve, ...] = Field(
        default=(), description="What the step measured on its way, for a picture."
    )
    effect: Effect | None = Field(
        default=None,
        description="What the step did to the network before it; null where it changed no layer.",
    )
    layers: tuple[LayerError, ...] = Field(
        default=(),
        description="What each changed layer does alone, the largest first; so many as can be measured in some seconds.",
    )


class StepShare(_Frozen):
    """What one step has of everything that the recipe won and lost.

    Of what is divided (bytes, multiply-accumulates, time) shares are those of the logarithm: two steps that halve have one half each.
    """

    step: int = Field(description="Index of the step in the recipe.")
    name: str = Field(description="The kind of the step.")
    accuracy_before: float | None = Field(
        default=None, description="Top-1 accuracy before the step; null without labels."
    )
    accuracy: float | None = Field(default=None, description="The same after it.")
    drop_share: float | None = Field(
        default=None,
        description="Of all the accuracy that was lost; below 0 where the step won some, null where nothing was lost.",
    )
    size_factor: float = Field(
        description="Bytes before it over bytes after it, of the packed file where there is one."
    )
    size_share: float | None = Field(
        default=None, description="Of all bytes won; null where they changed by less than 1 %."
    )
    macs_factor: float = Field(description="Multiply-accumulates before it over those after it.")
    macs_share: float | None = Field(default=None, description="Of all that were won.")
    latency_factor: float = Field(
        description="Time before it over time after it, each beside the uploaded model's."
    )
    latency_share: float | None = Field(default=None, description="Of all the time won.")


class ArtifactInfo(_Frozen):
    """A file the job made."""

    name: str = Field(description="File name, unique in the job.")
    format: Literal["onnx", "pt2", "npz", "mpk", "json"] = Field(
        description="'json': what was measured of the model, as a table. 'onnx': runs in stock ONNX Runtime. 'pt2': runs in stock torch. 'mpk': packed, `modelpress unpack` makes the ONNX file of it. 'npz': seed and mask of a supermask, from which its weights follow."
    )
    size_bytes: int = Field(description="Bytes of the file.")
    sha256: str = Field(description="SHA-256 of the file, in hex.")


class Verification(_Frozen):
    """The artifact, loaded in a fresh process by ONNX Runtime and compared with what the engine measured."""

    ok: bool = Field(description="Whether everything below held.")
    samples: int = Field(description="Samples compared.")
    max_abs_difference: float = Field(description="Largest difference from the engine's outputs.")
    tolerance: float = Field(description="What was allowed.")
    pt2_max_abs_difference: float | None = Field(
        default=None,
        description="Largest difference of model.pt2, run by torch, from model.onnx; null where it was not asked for.",
    )
    unpacked_sha256: str | None = Field(
        default=None,
        description="SHA-256 of what model.mpk gave in a fresh process with nothing but its decoder: model.onnx, byte for byte; null where there is none.",
    )
    unpack_seconds: float | None = Field(
        default=None, description="Wall time of that, writing included."
    )
    message: str = Field(default="", description="What did not hold.")


class Environment(_Frozen):
    """Where the numbers come from."""

    modelpress: str = Field(description="Version of ModelPress.")
    python: str = Field(description="Version of Python.")
    torch: str = Field(description="Version of torch.")
    onnx: str = Field(description="Version of onnx.")
    onnxruntime: str = Field(description="Version of ONNX Runtime.")
    cpu: str = Field(description="Processor name.")
    cpu_flags: tuple[str, ...] = Field(
        description="Instruction sets that decide int8 speed: avx2, avx512f, avx512_vnni, avx_vnni, amx_int8."
    )
    cores: int = Field(description="Cores the child may use.")
    device: str = Field(description="'cpu' or the GPU's name: where training ran.")
    sandbox: str = Field(description="Fence around the child: 'landlock-7+seccomp', 'none'.")


class DataUse(_Frozen):
    """Which samples were used for what."""

    train_samples: int = Field(description="Samples the steps may learn from or calibrate on.")
    eval_samples: int = Field(
        description="Samples every quality figure is measured on; never trained on."
    )
    split: str = Field(description="How the two were told apart.")
    preprocessing: str = Field(
        default="", description="How images became arrays; empty for arrays."
    )


class Report(_Frozen):
    """What a job measured. Written anew after each stage, so that a failed job has one too."""

    schema_version: int = Field(default=SCHEMA_VERSION, description="Version of this layout.")
    model: str = Field(description="File name or id of the uploaded model.")
    model_sha256: str = Field(description="Its SHA-256.")
    recipe: Recipe = Field(description="What was asked.")
    seed: int = Field(description="Seed of every random choice.")
    data: DataUse | None = Field(description="Null where the job has no data.")
    environment: Environment = Field(description="Where it ran.")
    stages: tuple[Stage, ...] = Field(
        description="The baseline, then one stage for each finished step."
    )
    shares: tuple[StepShare, ...] = Field(
        default=(), description="What each step has of what was won and lost."
    )
    advice: tuple[Advice, ...] = Field(
        default=(), description="What to try next, by what was measured."
    )
    constraints: tuple[ConstraintResult, ...] = Field(
        default=(), description="What was asked beside what was measured."
    )
    outcome: Outcome | None = Field(
        default=None, description="Null until the last step is measured."
    )
    artifacts: tuple[ArtifactInfo, ...] = Field(default=(), description="Files the job made.")
    verification: Verification | None = Field(
        default=None, description="Null until the artifact was verified."
    )
    complete: bool = Field(default=False, description="False in a partial report.")
