"""Every kernel once on a small problem, each result against float64: what compute-sanitizer is run over.

    compute-sanitizer --tool memcheck python -m fastconv.benchmarks.gpu.small_cases

Each algorithm that takes the problem, in both layouts and every number form.
"""

from __future__ import annotations

import sys

import fastconv

from .. import device_cuda as gpu
from ..problem import parse_problem
from ..unit import as_nchw, worst_error

#: Odd extents, so that every tile has a tail; channels for vectors and not; a strided, a dilated and a depthwise one.
PROBLEMS = (
    "stem ic3 ih19 iw21 oc64 kh7 kw7 sh2 sw2 ph3 pw3 n2",
    "pointwise ic64 ih9 iw7 oc72 n3",
    "square ic64 ih9 iw11 oc64 kh3 ph1 n2",
    "strided ic32 ih13 oc64 kh3 sh2 ph1 n2",
    "odd ic5 ih9 oc7 kh3 ph1 dh2 n2",
    "depthwise ic32 ih11 oc32 kh3 ph1 g32 n2",
    "grouped ic16 ih7 oc24 kh3 ph1 g2 n2",
    "deep ic512 ih4 oc64 kh3 ph1 n1",
    "max max_pool2d ic24 ih15 kh3 sh2 ph1 n2",
    "avg avg_pool2d ic24 ih14 kh2 n2",
    "mean global_avg_pool2d ic40 ih7 n3",
    "rectified relu ic20 ih9 n2",
    "shares softmax ic100 ih3 n2",
    "norm batch_norm ic24 ih9 n2",
    "turned convert_layout ic24 ih9 n2",
    "classifier linear ic512 oc100 n3",
)


def run() -> int:
    failures = ran = 0
    kernels = [k for k in fastconv.kernels("conv2d") if k["device"] == "cuda" and k["supported"]]
    names = list(dict.fromkeys(str(k["driver"]) for k in kernels))
    for text in PROBLEMS:
        problem = parse_problem(text)
        for algorithm in names if problem.op == "conv2d" else ["auto"]:
            for layout in ("nchw", "nhwc"):
                for form in gpu.FORMS:
                    what = f"{problem.name}, {algorithm}, {layout}, {form}"
                    try:
                        call, out, expected = gpu.prepared_layer(problem, layout, form, algorithm)
                        call(0)
                        result = gpu.to_host(out)
                    except NotImplementedError:
                        continue
                    except Exception as error:
                        failures += 1
                        print(f"{what}: {type(error).__name__}: {error}", flush=True)
                        continue
                    ran += 1
                    nchw = as_nchw(result, problem.result_layout(layout))
                    found, limit = worst_error(nchw, expected).relative_l2, gpu.MAX_L2[form]
                    if not found <= limit:
                        failures += 1
                        print(f"{what}: relative L2 {found:.1e}, at most {limit:.0e} is rounding", flush=True)
    print(f"{ran} small cases ran, {failures} failed", flush=True)
    return 1 if failures or not ran else 0


if __name__ == "__main__":
    sys.exit(run())
