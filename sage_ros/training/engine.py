"""Where a student is trained: in one process as it is, or in several, or in mixed precision, through ``accelerate``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from sage_ros.vision.encoder import pick_device

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}  # ours: accelerate's
LONGEST_WAIT = timedelta(hours=6)  # of a process for the others, while the first one encodes or measures alone
T = TypeVar("T")


class Engine:
    """What runs a training; none of it decides what is learned, but for rounding and for who draws which rows.

    ``precision`` is one of :data:`PRECISIONS`; ``accumulate``: in how many parts a step's rows are computed;
    ``memory`` (bytes; None: as much as it takes) is what the rows of a process may take. Under ``torchrun`` or
    ``accelerate launch`` each process takes its share of every step's rows. Raises ValueError where accelerate is
    needed and missing, or where the precision is none of this device; EncoderError on a missing device.
    """

    def __init__(
        self, device: str = "cpu", precision: str = "fp32", accumulate: int = 1, memory: int | None = None,
        log: Path | None = None, save_every: int = 500,
    ) -> None:  # fmt: skip
        if precision not in PRECISIONS or accumulate < 1 or save_every < 1:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, accumulate and save_every at least 1, "
                             f"but they are {precision}, {accumulate} and {save_every}")  # fmt: skip
        self.device = pick_device(device)
        if precision == "fp16" and self.device.type == "cpu":
            raise ValueError("fp16 needs a GPU: use bf16 or fp32 on a CPU")
        self.precision, self.accumulate, self.memory, self.log = precision, accumulate, memory, log
        self.save_every = save_every
        self.processes, self.rank = (int(os.environ.get(name, default)) for name, default in
                                     (("WORLD_SIZE", "1"), ("RANK", "0")))  # fmt: skip
        self._accelerator = None
        if self.processes > 1 or precision != "fp32":
            self._accelerator = _accelerator(self.device, precision)
            self.device = self._accelerator.device
        if log is not None and self.main:
            _summary_writer()  # what is missing shows before anything is trained

    @property
    def main(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def share(self, batch_size: int) -> int:
        """Rows of one part in this process. Raises ValueError where a step's rows cannot be shared evenly."""
        parts = self.processes * self.accumulate
        if batch_size % parts:
            raise ValueError(f"--batch-size {batch_size} is no multiple of {self.processes} processes x "
                             f"{self.accumulate} parts (--accumulate): choose one that is")  # fmt: skip
        return batch_size // parts

    def prepare(self, net: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """The two as they are trained with; the network that went in shares its weights with the one that comes out."""
        if self._accelerator is None:
            return net, optimizer
        prepared: tuple[nn.Module, torch.optim.Optimizer] = self._accelerator.prepare(net, optimizer)
        return prepared

    def backward(self, model: nn.Module, loss: Tensor, last: bool) -> None:
        """Gradients of one part's ``loss``; the processes add theirs up with the ``last`` part of a step."""
        if self.accumulate > 1:
            loss = loss / self.accumulate
        if self._accelerator is None:
            torch.autograd.backward(loss)
            return
        with nullcontext() if last else self._accelerator.no_sync(model):
            self._accelerator.backward(loss)

    def clip(self, model: nn.Module, most: float) -> None:
        if self._accelerator is None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), most)
        else:
            self._accelerator.clip_grad_norm_(model.parameters(), most)

    def gather(self, mine: Sequence[T]) -> list[T]:
        """Everybody's, in the order of the processes."""
        if self._accelerator is None or self.processes == 1:
            return list(mine)
        from accelerate.utils import gather_object

        return list(gather_object(list(mine)))

    def scaler_state(self) -> dict[str, Any]:
        """How fp16's losses are scaled, to go on with; empty for other precisions."""
        scaler = self._accelerator.scaler if self._accelerator is not None else None
        return dict(scaler.state_dict()) if scaler is not None else {}

    def load_scaler_state(self, state: dict[str, Any]) -> None:
        if state and self._accelerator is not None and self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(state)

    def close(self) -> None:
        """Part from the other processes, once all is done."""
        if self._accelerator is not None:
            self._accelerator.end_training()

    def describe(self) -> str:
        return f"{self.device.type}, {self.processes} process{'es' * (self.processes > 1)}, {self.precision}"

    @contextmanager
    def curves(self, name: str, step: int) -> Iterator[SummaryWriter | None]:
        """TensorBoard's writer for the training called ``name``, that goes on after ``step``; None: nobody looks."""
        if self.log is None or not self.main:
            yield None
            return
        writer = _summary_writer()(str(self.log / name), purge_step=step + 1)
        try:
            yield writer
        finally:
            writer.close()


def default_memory(device: torch.device, processes: int = 1) -> int:
    """Bytes that a process's training rows may take: half of the machine's memory, or of the GPU's where less."""
    half = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // (2 * processes)
    if device.type == "cuda":
        half = min(half, torch.cuda.get_device_properties(device).total_memory // 2)
    return half


def _accelerator(device: torch.device, precision: str) -> Any:
    try:
        from accelerate import Accelerator, InitProcessGroupKwargs
    except ModuleNotFoundError as error:
        raise ValueError(f"several processes and mixed precision need accelerate ({error}): "
                         "pip install 'sage_ros[train]'") from error  # fmt: skip
    return Accelerator(cpu=device.type == "cpu", mixed_precision=PRECISIONS[precision],
                       kwargs_handlers=[InitProcessGroupKwargs(timeout=LONGEST_WAIT)])  # fmt: skip


def _summary_writer() -> type[SummaryWriter]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise ValueError(f"--curves needs TensorBoard ({error}): pip install 'sage_ros[train]'") from error
    return SummaryWriter
