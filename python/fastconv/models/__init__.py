"""Networks that run on NumPy arrays: `resnet18`, `resnet34`, `resnet50`, `resnet101`, `resnet152`, and the class
names in `labels`."""

from . import labels
from ._net import Net, Summary
from .resnet import init_state, resnet18, resnet34, resnet50, resnet101, resnet152, state_spec

__all__ = [
    "Net",
    "Summary",
    "init_state",
    "labels",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "state_spec",
]
