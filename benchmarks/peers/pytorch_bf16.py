"""Eager PyTorch in bfloat16: input, weights and output, as after `model.to(torch.bfloat16)`."""

from __future__ import annotations

from .pytorch import PyTorch


class PyTorchBf16(PyTorch):
    """The answer is converted to float32 by `result`, outside the time."""

    name: str = "pytorch-bf16"
    dtype: str = "bfloat16"

    def __init__(self) -> None:
        super().__init__()
        has_amx = getattr(self.torch.cpu, "_is_amx_tile_supported", lambda: False)()
        self.detail += ", bfloat16" + (" (the processor has AMX)" if has_amx else "")
