"""fastconv: convolution, pooling, ReLU and softmax for NumPy arrays, native in NHWC and NCHW.

import fastconv as fc
y = fc.conv2d(x, weight, bias, padding=1, activation="relu")        # drop-in for torch.nn.functional
conv = fc.Conv2d(weight, bias, padding=1, layout="NHWC")            # planned and packed once
net = fc.models.resnet50(weights="resnet50.safetensors")            # logits = net(x)
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any


def _on_command_line() -> bool:
    """Whether this process is the command `fastconv` or `python -m fastconv`, and not a user's own program."""
    argv = sys.argv
    if not argv:
        return False
    if argv[0] == "-m":  # so Python says while it looks for the module; its arguments follow the module's name
        return sys.orig_argv[-len(argv)] in ("fastconv", "-mfastconv")
    return os.path.basename(argv[0]) in ("fastconv", "fastconv.exe")


#: How long an idle worker waits for the next call before it sleeps. Between two calls of a layer lie 10 to 35
#: microseconds of Python, whose code the layer's data have pushed out of the caches, and a worker that sleeps is 30 to
#: 50 late. The promise is that it sleeps within 50.
_IDLE_NANOSECONDS = 45_000


def _spin_count() -> int:
    """Turns of GNU's runtime that take about that long: a PAUSE is 40 cycles on one processor and 140 on another."""
    try:
        spin = importlib.import_module(f"{__name__}._spin")
    except ImportError:  # a core that was built by itself, for a test
        return 900  # short enough on any processor
    return max(1, int(_IDLE_NANOSECONDS / spin.nanoseconds()))


def _require_known_kernel() -> None:
    """ImportError for a FASTCONV_KERNEL that no backend of this build has.

    The CUDA module is loaded for a name that the CPU does not know, and for no other; no driver is started.
    """
    asked = os.environ.get("FASTCONV_KERNEL", "")
    if not asked:
        return
    core = importlib.import_module(f"{__name__}._core")
    known = {str(row[key]) for row in core.kernels() for key in ("algorithm", "driver")}
    if asked in known:
        return
    try:
        known |= importlib.import_module(f"{__name__}._cuda").kernel_names()
        cuda = ""
    except ModuleNotFoundError:
        cuda = "; this build has no CUDA backend"
    except ImportError as error:
        cuda = f"; the CUDA backend cannot be loaded: {error}"
    if asked not in known:
        names = ", ".join(sorted(known))
        raise ImportError(
            f"FASTCONV_KERNEL must be an algorithm's or a driver's name, one of {names}; got {asked!r}{cuda}"
        )


def _load_core() -> None:
    """Load the compiled core with an OpenMP runtime whose idle threads go to sleep soon.

    The runtimes read their environment once, when they start, and by default keep idle threads spinning: GNU's for
    milliseconds, LLVM's for 200, which takes the processor from whoever computes next. A caller who has set a policy
    keeps it; the environment is left as it was found.
    """
    short = {
        "GOMP_SPINCOUNT": str(_spin_count()),  # GNU
        "KMP_BLOCKTIME": "0",  # LLVM, in milliseconds
    }
    if "OMP_WAIT_POLICY" in os.environ:
        short = {}
    short = {name: value for name, value in short.items() if name not in os.environ}
    os.environ.update(short)
    try:
        importlib.import_module(f"{__name__}._core")
        _require_known_kernel()
    except ImportError as error:
        if _on_command_line():  # one line there, not a traceback: most likely a bad FASTCONV_ variable
            sys.exit(f"fastconv: {error}")
        raise
    finally:
        for name in short:
            os.environ.pop(name, None)


_load_core()

from . import _core, _tuning  # noqa: E402
from ._core import __version__  # noqa: E402
from ._explain import explain, kernels  # noqa: E402
from .layers import AvgPool2d, Conv2d, Linear, MaxPool2d  # noqa: E402
from .ops import (  # noqa: E402
    PerformanceWarning,
    adaptive_avg_pool2d,
    avg_pool2d,
    batch_norm,
    conv2d,
    convert_layout,
    linear,
    max_pool2d,
    relu,
    softmax,
)
from .settings import get_num_threads, set_num_threads, show_config, threads  # noqa: E402

if TYPE_CHECKING:
    from . import cuda, image, models, weights

__all__ = [
    "AvgPool2d",
    "Conv2d",
    "Linear",
    "MaxPool2d",
    "PerformanceWarning",
    "__version__",
    "adaptive_avg_pool2d",
    "avg_pool2d",
    "batch_norm",
    "conv2d",
    "convert_layout",
    "cuda",
    "explain",
    "get_num_threads",
    "image",
    "kernels",
    "linear",
    "max_pool2d",
    "models",
    "relu",
    "set_num_threads",
    "show_config",
    "softmax",
    "threads",
    "weights",
]


# What `fastconv tune` stored is read before the first plan of a convolution and not before that. The module is imported
# here and not then: a child that is forked while another thread imports would wait for ever for that import.
_core.set_tuned_source(_tuning.load)

_LAZY = ("models", "weights", "image", "cuda")  # loaded at first use: an import of the ops alone stays quick


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
