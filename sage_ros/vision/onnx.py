"""Networks for onnxruntime: exported once, quantised once, kept by the hash of their content."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from sage_ros.paths import cache_folder
from sage_ros.vision.runtime import COSINE, EncoderError, Runtime, cosine, too_coarse

OPSET = 17
log = logging.getLogger(__name__)


class OnnxRunner:
    """A model file in onnxruntime, on the CPU."""

    def __init__(self, model: Path, threads: int, about: str = "onnxruntime fp32 on cpu") -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        # A thread that spins for its next piece of work takes the processor from the other nodes.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.about = about

    def __call__(self, pixels: Tensor) -> np.ndarray:
        (tokens,) = self._session.run(None, {"pixels": pixels.numpy()})
        return np.asarray(tokens, dtype=np.float32)


def make_onnx_runner(
    network: nn.Module, size: int, sha256: str, runtime: Runtime, samples: Callable[[], Tensor]
) -> OnnxRunner:
    """As :func:`~sage_ros.vision.runtime.make_runner`. Models lie in ``onnx`` of the cache folder."""
    key = f"{sha256} {type(network).__name__} {size} {OPSET} {torch.__version__} {onnxruntime.__version__}"
    plain = cache_folder() / "onnx" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.onnx"
    _once(plain, lambda path: export(network, size, path))
    exact = OnnxRunner(plain, runtime.threads)
    if runtime.precision == "fp32":
        return exact
    found, path = _quick(plain, exact, samples)
    about = f"int8 on cpu, cosine to fp32 {found['cosine']:.5f}"
    if found["products"] and found["cosine"] >= COSINE:
        return OnnxRunner(path, runtime.threads, f"onnxruntime {about}")
    problem = "int8 speeds matrix products up, of which it has none: use fp32 or auto"
    problem = too_coarse("int8", found["cosine"]) if found["products"] else problem
    if runtime.precision == "int8":
        raise EncoderError(problem)
    exact.about += f" ({problem})"
    return exact


def _quick(plain: Path, exact: OnnxRunner, samples: Callable[[], Tensor]) -> tuple[dict[str, float], Path]:
    """The model in int8 and what was measured of it: with signed weights, or unsigned ones where those are closer.

    Without AVX-512 VNNI, the sum of two products of unsigned and signed bytes may overflow, which the check shows.
    """
    for kind in ("s8", "u8"):
        path, verdict = (plain.with_suffix(f".{kind}.{end}") for end in ("onnx", "json"))
        if not path.exists() or not verdict.exists():
            _once(path, functools.partial(quantise, plain, signed=kind == "s8"))
            pixels = samples()
            tokens = [np.concatenate([run(one[None]) for one in pixels]) for run in (OnnxRunner(path, 1), exact)]
            measured = {"cosine": cosine(*tokens), "frames": len(pixels), "products": count_products(path)}
            _once(verdict, functools.partial(Path.write_text, data=json.dumps(measured)))
        found: dict[str, float] = json.loads(verdict.read_text())
        if found["cosine"] >= COSINE:
            break
    return found, path


def export(network: nn.Module, size: int, path: Path) -> None:
    """Write ``network`` for pixels (B, 3, size, size), B any number."""
    device = next(network.parameters()).device
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of a tracer that every size is taken for a constant, as is meant here
        torch.onnx.export(
            network, (torch.zeros(1, 3, size, size, device=device),), path, dynamo=False, opset_version=OPSET,
            input_names=["pixels"], output_names=["tokens"],
            dynamic_axes={"pixels": {0: "frames"}, "tokens": {0: "frames"}},
        )  # fmt: skip


def quantise(plain: Path, path: Path, signed: bool) -> None:
    """Weights of matrix products in int8, activations as they come: what pays in transformers without calibration."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # it advises a preprocessing that changes nothing here
    try:
        quantize_dynamic(plain, path, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True,
                         weight_type=QuantType.QInt8 if signed else QuantType.QUInt8)  # fmt: skip
    finally:
        logging.root.setLevel(level)


def count_products(model: Path) -> int:
    """How many matrix products of a model are in int8."""
    import onnx

    return sum(node.op_type == "MatMulInteger" for node in onnx.load(model).graph.node)


def _once(path: Path, make: Callable[[Path], object]) -> None:
    """Make a file whole or not at all, where it is not there yet. Raises EncoderError where it cannot be kept."""
    if path.exists():
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{os.getpid()}.") as folder:
            make(Path(folder) / path.name)
            (Path(folder) / path.name).replace(path)
    except OSError as error:
        remedy = "make room there, or set XDG_CACHE_HOME"
        raise EncoderError(f"{path.parent} cannot keep an exported model ({error}): {remedy}") from error
    log.info("kept %s", path)
