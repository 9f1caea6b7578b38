"""A CUDA graph says what the network itself says; without a GPU the network itself is asked."""

from __future__ import annotations

import pytest
import torch

from sage_ros.cuda import Graphed

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")),
]


@pytest.mark.parametrize("device", DEVICES)
def test_it_gives_what_the_network_gives_for_any_shape_in_turn(device: str) -> None:
    torch.manual_seed(0)
    network = torch.nn.Linear(4, 2).to(device)

    def work(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return network(a + b), a - b

    graphed = Graphed(work, torch.device(device))
    for rows in (1, 1, 3, 1):
        a, b = torch.randn(rows, 4), torch.randn(rows, 4)
        with torch.no_grad():
            expected = work(a.to(device), b.to(device))
        for found, wanted in zip(graphed(a, b), expected, strict=True):
            torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("device", DEVICES)
def test_weights_that_change_in_place_are_those_that_count(device: str) -> None:
    network = torch.nn.Linear(2, 1, bias=False).to(device)
    graphed = Graphed(network, torch.device(device))
    for weight in (1.0, 2.0):
        torch.nn.init.constant_(network.weight, weight)
        assert float(graphed(torch.ones(1, 2))) == pytest.approx(2 * weight)
