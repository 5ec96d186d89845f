"""Steps that change no number: they write the finished model in fewer bytes."""

from __future__ import annotations

from typing import ClassVar, Literal

from modelpress.spec.step import Step


class _Coding(Step):
    """Lossless: the model stays as it is."""

    leaves_trainable: ClassVar[bool] = False
    changes_model: ClassVar[bool] = False


class CodeHuffman(_Coding):
    """Also writes the model as a packed file: canonical Huffman codes, with Deep Compression's relative index where most weights are zero."""

    paper: ClassVar[str] = (
        "Han, Mao, Dally: Deep Compression (arXiv 1510.00149), sections 2 and 4; "
        "Larmore, Hirschberg: A fast algorithm for optimal length-limited Huffman codes (J. ACM 37)"
    )

    kind: Literal["code.huffman"] = "code.huffman"


class CodeEntropy(_Coding):
    """Also writes the model as a packed file at its entropy: asymmetric numeral systems, frequencies that adapt, contexts where they help."""

    paper: ClassVar[str] = (
        "Duda: Asymmetric numeral systems (arXiv 1311.2540); "
        "Bamler: Understanding Entropy Coding With Asymmetric Numeral Systems (arXiv 2201.01741)"
    )

    kind: Literal["code.entropy"] = "code.entropy"
