"""The CUDA backend: whether it can be used, device arrays for those who have no other library, and streams.

import fastconv as fc
if fc.cuda.is_available():
    x = fc.cuda.asarray(image)                        # from NumPy; torch, CuPy and JAX arrays are taken as they are
    y = fc.conv2d(x, fc.cuda.asarray(weight))         # enqueued; y is a fc.cuda.Array
    print(y.numpy())                                  # waits for the result
"""

from __future__ import annotations

from ._array import Array, asarray, empty, from_dlpack
from ._backend import device_count, devices, is_available, synchronize, why_unavailable
from ._streams import Stream

__all__ = [
    "Array",
    "Stream",
    "asarray",
    "device_count",
    "devices",
    "empty",
    "from_dlpack",
    "is_available",
    "synchronize",
    "why_unavailable",
]
