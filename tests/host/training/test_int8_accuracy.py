"""What quantisation alone costs: LeNet-5 on all 10,000 test images of Fashion-MNIST."""

from __future__ import annotations

import pytest
import torch

import redline
from host.datasets import data
from tests.host.test_cli import needs_data

POINTS = 0.5
"""Percentage points that int8 may differ from float."""


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize("per_channel", [False, True], ids=["per-tensor", "per-channel"])
def test_int8_accuracy_is_that_of_float(per_channel: bool) -> None:
    test = data.load("fashion-mnist", "test")
    net = redline.models.lenet5(pretrained=True).eval()
    calibrate, _ = data.load("fashion-mnist", "train").batch(torch.arange(512))
    twin = redline.attach(net, redline.device("reference"), calibrate=calibrate, per_channel=per_channel)
    with torch.no_grad():
        float_right = sum(int((net(x).argmax(1) == y).sum()) for x, y in test.batches(500))
    int8 = redline.evaluate(twin, test).accuracy
    assert len(test) == 10_000
    print(f"float {100 * float_right / len(test):.2f} %, int8 {100 * int8:.2f} %")
    assert abs(int8 - float_right / len(test)) <= POINTS / 100
