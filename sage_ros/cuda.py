"""One frame at a time on a GPU: what a network costs there is the launches of its kernels, and a CUDA graph has one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

WARM_UPS = 3  # as torch's recipe has it


class Graphed:
    """``work`` on tensors (B, ...): one at a time as a CUDA graph where ``device`` is one, else as it is.

    A graph is recorded for the shapes and types that were last given, and anew where they change; tensors may be
    given on the CPU. What a graph found is overwritten by the next call.
    """

    def __init__(self, work: Callable[..., Any], device: torch.device) -> None:
        self.work, self.device = work, device
        self._graph: torch.cuda.CUDAGraph | None = None
        self._given: tuple[Tensor, ...] = ()
        self._found: Any = None

    @torch.inference_mode()
    def __call__(self, *given: Tensor) -> Any:
        """What ``work`` gives for them: a tensor, or a tuple of some."""
        if self.device.type != "cuda" or len(given[0]) != 1:
            return self.work(*(x.to(self.device) for x in given))
        if [(x.shape, x.dtype) for x in given] != [(x.shape, x.dtype) for x in self._given]:
            self._capture(given)
        for there, new in zip(self._given, given, strict=True):
            there.copy_(new)
        assert self._graph is not None
        self._graph.replay()
        return self._found

    def _capture(self, given: tuple[Tensor, ...]) -> None:
        """Warm up on a stream of its own, then record. Other threads may use the GPU meanwhile."""
        self._given = tuple(x.to(self.device, copy=True) for x in given)
        stream, current = torch.cuda.Stream(self.device), torch.cuda.current_stream(self.device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self.work(*self._given)
        current.wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._found = self.work(*self._given)
