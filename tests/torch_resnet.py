"""ResNet v1.5 in plain PyTorch, from the paper (arXiv:1512.03385) and torchvision names, for test_models_torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


class Block(nn.Module):
    """A residual block: 3x3, 3x3 or, with a bottleneck, 1x1, 3x3, 1x1. A stride sits on the first 3x3."""

    def __init__(self, ic: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        oc = width * 4 if bottleneck else width
        plan = [(ic, width, 1, 1), (width, width, 3, stride), (width, oc, 1, 1)]
        if not bottleneck:
            plan = [(ic, width, 3, stride), (width, oc, 3, 1)]
        self.count = len(plan)
        for k, (i, o, size, step) in enumerate(plan, 1):
            setattr(self, f"conv{k}", nn.Conv2d(i, o, size, step, size // 2, bias=False))
            setattr(self, f"bn{k}", nn.BatchNorm2d(o))
        self.downsample: nn.Module | None = None
        if stride != 1 or ic != oc:
            self.downsample = nn.Sequential(nn.Conv2d(ic, oc, 1, stride, bias=False), nn.BatchNorm2d(oc))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for k in range(1, self.count + 1):
            y = getattr(self, f"bn{k}")(getattr(self, f"conv{k}")(y))
            if k < self.count:
                y = torch.relu(y)
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self, depth: int, num_classes: int = 1000) -> None:
        super().__init__()
        bottleneck = depth >= 50
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        ic = 64
        for stage, blocks in enumerate(_STAGES[depth]):
            width = 64 << stage
            layers = []
            for block in range(blocks):
                layers.append(Block(ic, width, 2 if stage and not block else 1, bottleneck))
                ic = width * 4 if bottleneck else width
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.fc = nn.Linear(ic, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for stage in (1, 2, 3, 4):
            x = getattr(self, f"layer{stage}")(x)
        return self.fc(x.mean((2, 3)))


def calibrate(net: ResNet, pictures: Tensor) -> None:
    """Sets each batch norm's statistics to those of `pictures` (n, 3, h, w), all layers in one pass."""
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over the batches seen
    net.train()
    with torch.no_grad():
        net(pictures)
    net.eval()
