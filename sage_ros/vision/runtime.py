"""Where a frozen network runs: torch or onnxruntime, on which device, in which precision, with how many threads.

A faster precision is taken only where its tokens keep the direction of those in fp32 on recorded frames.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from sage_ros.core.options import check, option
from sage_ros.cuda import Graphed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ENGINES = ("auto", "torch", "onnxruntime")
PRECISIONS = ("auto", "fp32", "fp16", "bf16", "int8")
HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
COSINE = 0.999  # least cosine between a frame's token map and that in fp32


class EncoderError(RuntimeError):
    """An encoder that cannot be had: names what is missing or wrong, where, and what to do."""


@dataclass(frozen=True)
class Runtime:
    """How an encoder is run. The default is what a student is trained with; a node's is ``auto``."""

    engine: str = option("torch", "what runs the encoder: torch, onnxruntime (CPU), or the faster one there is",
                         choices=ENGINES)  # fmt: skip
    precision: str = option("fp32", "fp32; fp16 or bf16 (GPU); int8 (onnxruntime); or the fastest whose cosine to fp32 "
                            "is at least 0.999", choices=PRECISIONS)  # fmt: skip
    threads: int = option(1, "CPU threads of the encoder", low=1, high=64)
    gpu_memory: float = option(0.0, "most GPU memory that this process may allocate (GB); 0: all", low=0.0, high=1024.0)

    def __post_init__(self) -> None:
        check(self)

    def on(self, device: torch.device) -> Runtime:
        """With engine and precision settled as far as the device does it.

        Raises EncoderError where it has no such engine or precision.
        """
        there, gpu = importlib.util.find_spec("onnxruntime") is not None, device.type != "cpu"
        if self.engine == "onnxruntime" and not there:
            raise EncoderError("onnxruntime is not installed: `pip install onnxruntime onnx`, or runtime torch")
        if self.engine == "onnxruntime" and gpu:
            raise EncoderError(f"onnxruntime is for the CPU here, not for {device}: take runtime torch or device cpu")
        engine = ("onnxruntime" if there and not gpu else "torch") if self.engine == "auto" else self.engine
        able = {"onnxruntime": ("fp32", "int8"), "torch": ("fp32", "fp16", "bf16") if gpu else ("fp32",)}[engine]
        if self.precision not in ("auto", *able):
            raise EncoderError(f"{engine} on {device} has {', '.join(able)}, not {self.precision}: choose one of those")
        return Runtime(engine, self.precision, self.threads, self.gpu_memory)


EXACT = Runtime()


class Runner(Protocol):
    """A network that is ready: pixels (B, 3, S, S) float32 on its device -> tokens (B, N, F) float32."""

    @property
    def about(self) -> str:
        """Engine, precision and what was measured of it, for people."""

    def __call__(self, pixels: Tensor) -> np.ndarray: ...


class TorchRunner:
    """Eager, but for one frame at a time on a GPU."""

    def __init__(self, network: nn.Module, device: torch.device, precision: str = "fp32", about: str = "") -> None:
        self._dtype = HALVES.get(precision, torch.float32)
        self._run = Graphed(network.to(device, self._dtype), device)
        self.about = about or f"torch {precision} on {device}"

    def __call__(self, pixels: Tensor) -> np.ndarray:
        found: np.ndarray = self._run(pixels.to(self._dtype)).float().cpu().numpy()
        return found


def make_runner(
    network: nn.Module, size: int, sha256: str, device: torch.device, runtime: Runtime, samples: Callable[[], Tensor]
) -> Runner:
    """Make ``network`` ready to take pixels (B, 3, size, size).

    ``sha256`` is that of its weights: exported models are kept under it. ``samples`` gives pixels of recorded frames,
    asked for only where a precision is to be checked. Raises EncoderError as :meth:`Runtime.on` does, where a precision
    that was asked for is not good enough, and where the GPU's memory budget does not suffice.
    """
    runtime = runtime.on(device)
    with _budget(device, runtime.gpu_memory):
        if runtime.engine == "onnxruntime":
            from sage_ros.vision.onnx import make_onnx_runner

            return make_onnx_runner(network, size, sha256, runtime, samples)
        if runtime.precision == "fp32" or device.type == "cpu":
            return TorchRunner(network, device)
        precision = "fp16" if runtime.precision == "auto" else runtime.precision
        pixels = samples()
        exact = eager(network, pixels.cpu())  # on the GPU the weights in fp32 would take twice the room of the others
        quick = copy.deepcopy(network).to(device, HALVES[precision])
        found = cosine(eager(quick, pixels.to(device, HALVES[precision])), exact)
        if found >= COSINE:
            return TorchRunner(quick, device, precision, f"torch {precision} on {device}, cosine to fp32 {found:.5f}")
        if runtime.precision != "auto":
            raise EncoderError(too_coarse(precision, found))
        return TorchRunner(network, device, about=f"torch fp32 on {device} ({too_coarse(precision, found)})")


@torch.inference_mode()
def eager(network: nn.Module, pixels: Tensor) -> np.ndarray:
    """Token maps (B, N, F) float32, one frame at a time, as they come live."""
    return np.concatenate([network(one[None]).float().cpu().numpy() for one in pixels])


def cosine(tokens: np.ndarray, exact: np.ndarray) -> float:
    """The least cosine between any frame's token map (of (B, N, F)) and the exact one."""
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (tokens, exact))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(axis=1) / np.maximum(norms, 1e-30)).min())


def too_coarse(precision: str, found: float) -> str:
    return f"{precision} reaches a cosine to fp32 of only {found:.5f}, less than {COSINE}: use fp32 or auto"


@contextlib.contextmanager
def _budget(device: torch.device, gigabytes: float) -> Iterator[None]:
    """Keep torch's allocations on ``device`` within a budget. Raises EncoderError where it is too small.

    The CUDA context, some hundred MB that every process has, comes on top.
    """
    if device.type != "cuda":
        yield
        return
    if gigabytes:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, gigabytes * 1e9 / total), device.index)
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        limit = f"the gpu_memory of {gigabytes:g} GB" if gigabytes else f"the memory of {device}"
        raise EncoderError(f"{limit} does not suffice: allow more, or take a smaller encoder") from error
