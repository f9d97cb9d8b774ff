"""What prepared layers with device="cuda" do: weights on the device, calls by packed weights."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _explain
from .._devices import on_cuda
from . import _ops
from ._backend import backend
from ._ops import Job, Target

Plan = dict[str, Any]


def fetched(array: Any, name: str) -> NDArray[np.float32]:
    """A CUDA array as float32 in host memory."""
    job = Job(array, name=name)
    module, handle = job.module, job.handle
    plain = module.empty(job.shape, "float32", job.device, handle)
    module.copy(job.x, plain, handle)
    host = np.empty(job.shape, np.float32)
    module.copy_host(plain, host, False, handle)
    return host


class Backend:
    """The compiled module for a layer of this dtype. RuntimeError where CUDA cannot be used."""

    def __init__(self, dtype: str, compute: str) -> None:
        self._module = backend()
        self._dtype, self._compute = dtype, compute
        if dtype != "float32" and compute != "float32":
            raise ValueError(f"compute is for dtype='float32'; got compute={compute!r} with dtype={dtype!r}")

    def weights(self, weight: Any, bias: Any, weight_layout: str, groups: int) -> Any:
        return self._module.ConvWeights(weight, bias, weight_layout, groups)

    def require_algorithms(self, names: tuple[str, ...]) -> None:
        """ValueError for a name that no kernel has; whether it can do a problem is for its plan to say."""
        ones = (1, 1)
        with suppress(NotImplementedError):
            self.explain_conv2d(
                (1, 1, 1, 1), ones + ones, False, False, ones, (0,) * 4, ones, 1, "NHWC", "OHWI", names, None
            )

    def job(self, x: Any, stream: Any, **others: Any) -> Job:
        if not on_cuda(None, input=x, **others):
            raise ValueError("input lies on the CPU, but this layer on a CUDA device (it was made with device='cuda')")
        job = Job(x, stream)
        if job.dtype != self._dtype:
            raise TypeError(f"input must be {self._dtype} for this layer, got {job.dtype}")
        return job

    def conv2d(
        self, job: Job, shape: tuple[int, ...], weights: Any, residual: Any, target: Target, options: tuple[Any, ...]
    ) -> None:
        job.module.conv2d_prepared(shape, weights, job.x, residual, target.view, *options, self._compute, job.handle)

    def explain_conv2d(self, *problem: Any) -> Plan:
        return dict(self._module.explain_conv2d(*problem, self._dtype, self._compute))

    def pool2d(self, name: str, x: Any, *window: Any, out: Any, stream: Any, **options: Any) -> tuple[Any, Any]:
        """(the result, the input's shape)."""
        job = self.job(x, stream, out=out)
        if name == "max_pool2d":
            options["return_indices"] = False
        result = getattr(_ops, name)(x, *window, **options, out=out, stream=stream, job=job)
        return result, job.shape

    def explain(self, op: str, *args: Any, **options: Any) -> Plan:
        return _explain.explain(op, *args, device="cuda", dtype=self._dtype, **options)
