"""Runtimes on a small network: every one gives the tokens of torch in fp32, or says why it cannot."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sage_ros.vision import runtime as runtime_module
from sage_ros.vision.runtime import COSINE, EncoderError, Runtime, TorchRunner, cosine, eager, make_runner

CPU = torch.device("cpu")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
pytest.importorskip("onnx", reason="onnx is not installed")


class Patches(nn.Module):
    """Pixels to tokens by patches of 8 and a hidden layer; ``spike`` makes int8 fail."""

    def __init__(self, spike: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch = nn.Conv2d(3, 32, 8, 8)
        self.think = nn.Linear(32, 16)
        with torch.no_grad():
            self.patch.bias[0] += spike  # one channel far larger than the others leaves them few of the 256 levels
            self.think.weight[:, 0] *= 0.0 if spike else 1.0
            self.think.bias *= 0.0 if spike else 1.0
        self.requires_grad_(False)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.think(self.patch(pixels).flatten(2).transpose(1, 2))


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "sage_ros" / "onnx"


def pixels(count: int = 3) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def refuse() -> Tensor:
    raise AssertionError("no precision had to be checked")


def test_engines_agree_on_one_frame_and_on_many() -> None:
    network = Patches()
    plain = make_runner(network, 32, "a", CPU, Runtime(), refuse)
    exported = make_runner(network, 32, "a", CPU, Runtime("onnxruntime"), refuse)
    for count in (1, 3):
        np.testing.assert_allclose(exported(pixels(count)), plain(pixels(count)), atol=1e-5)
    assert (plain.about, exported.about) == ("torch fp32 on cpu", "onnxruntime fp32 on cpu")


def test_int8_is_taken_where_it_is_close_and_its_closeness_said() -> None:
    network = Patches()
    for precision in ("int8", "auto"):
        quick = make_runner(network, 32, "b", CPU, Runtime("auto", precision), pixels)
        assert quick.about.startswith("onnxruntime int8 on cpu, cosine to fp32 0.999")
        reached = cosine(np.concatenate([quick(one[None]) for one in pixels()]), eager(network, pixels()))
        assert COSINE <= reached < 1.0  # it really is in int8


def test_int8_that_is_too_coarse_is_refused_or_left() -> None:
    network = Patches(spike=1000.0)
    with pytest.raises(EncoderError, match=r"int8 reaches a cosine to fp32 of only 0\..* use fp32 or auto"):
        make_runner(network, 32, "c", CPU, Runtime("onnxruntime", "int8"), pixels)
    left = make_runner(network, 32, "c", CPU, Runtime("onnxruntime", "auto"), refuse)  # known by now
    np.testing.assert_allclose(left(pixels()), eager(network, pixels()), rtol=1e-3, atol=1e-3)
    assert left.about.startswith("onnxruntime fp32 on cpu (int8 reaches")


def test_int8_is_not_claimed_of_a_network_without_matrix_products() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.Flatten(2)).requires_grad_(False)
    assert "of which it has none" in make_runner(network, 32, "d", CPU, Runtime("auto", "auto"), pixels).about
    with pytest.raises(EncoderError, match="of which it has none"):
        make_runner(network, 32, "d", CPU, Runtime("auto", "int8"), pixels)


def test_an_exported_model_is_kept_by_what_it_is(cache: Path) -> None:
    network, asked = Patches(), Runtime("onnxruntime")
    make_runner(network, 32, "e", CPU, asked, refuse)
    (kept,) = cache.glob("*.onnx")
    before = kept.stat().st_mtime_ns
    make_runner(network, 32, "e", CPU, asked, refuse)
    assert [path.stat().st_mtime_ns for path in cache.glob("*.onnx")] == [before]
    make_runner(network, 32, "other weights", CPU, asked, refuse)
    assert len(list(cache.glob("*.onnx"))) == 2 and not list(cache.glob(".*"))  # whole files only


def test_the_check_of_int8_is_kept_with_the_model(cache: Path) -> None:
    make_runner(Patches(), 32, "f", CPU, Runtime("auto", "int8"), pixels)
    found = max((json.loads(path.read_text()) for path in cache.glob("*.json")), key=lambda kept: kept["cosine"])
    assert found["cosine"] >= COSINE and found["frames"] == 3 and found["products"] == 1


@pytest.mark.parametrize(
    ("asked", "what"),
    [(Runtime("torch", "int8"), "torch on cpu has fp32, not int8"),
     (Runtime("torch", "fp16"), "torch on cpu has fp32, not fp16"),
     (Runtime("onnxruntime", "bf16"), "onnxruntime on cpu has fp32, int8, not bf16")],
)  # fmt: skip
def test_a_precision_that_the_engine_lacks_is_loud(asked: Runtime, what: str) -> None:
    with pytest.raises(EncoderError, match=what):
        make_runner(Patches(), 32, "g", CPU, asked, refuse)


def test_onnxruntime_that_is_asked_for_but_not_there_is_loud_and_auto_does_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runtime_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EncoderError, match="onnxruntime is not installed: `pip install"):
        Runtime("onnxruntime").on(CPU)
    assert Runtime("auto", "auto").on(CPU).engine == "torch"


def test_onnxruntime_is_not_taken_for_a_gpu() -> None:
    cuda = torch.device("cuda")
    with pytest.raises(EncoderError, match="onnxruntime is for the CPU here, not for cuda"):
        Runtime("onnxruntime").on(cuda)
    assert Runtime("auto", "auto").on(cuda) == Runtime("torch", "auto")


def test_a_cache_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(EncoderError, match=r"cannot keep an exported model .* XDG_CACHE_HOME"):
        make_runner(Patches(), 32, "h", CPU, Runtime("onnxruntime"), refuse)


def test_cosine_is_that_of_the_worst_frame() -> None:
    exact = np.array([[[1.0, 0.0]], [[0.0, 2.0]]])
    assert cosine(exact, exact) == pytest.approx(1.0)
    assert cosine(np.array([[[3.0, 0.0]], [[1.0, 1.0]]]), exact) == pytest.approx(np.sqrt(0.5))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA")
def test_a_gpu_gives_the_tokens_of_the_cpu_and_keeps_its_budget() -> None:
    cuda, network = torch.device("cuda"), Patches()
    exact = eager(network, pixels())
    for asked in (Runtime("auto", "fp32"), Runtime("auto", "auto", gpu_memory=1.0)):
        run = make_runner(copy.deepcopy(network), 32, "i", cuda, asked, pixels)  # which it moves to the GPU
        assert isinstance(run, TorchRunner)
        for _ in range(2):  # the second time out of the graph
            assert cosine(np.concatenate([run(one[None].to(cuda)) for one in pixels()]), exact) > COSINE
    with pytest.raises(torch.cuda.OutOfMemoryError):
        torch.empty(2 * 10**9, dtype=torch.uint8, device=cuda)
    torch.cuda.set_per_process_memory_fraction(1.0)
