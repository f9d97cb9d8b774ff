"""The command `fastconv`: info, classify, summary, bench, tune.

Exit status: 0 done, 2 bad arguments, 1 anything else (interrupted, too). A failure is one line on standard error, never
a traceback.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

__all__ = ["main"]

_MODELS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
_LAYOUTS = ("NHWC", "NCHW")
_COMMANDS = "info|classify|summary|bench|tune"
# Pictures between two moves of the progress bar.
_CHUNK = 8


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line; argparse prints its usage first. Takes whole words only, as do its commands."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {_one_line(message)} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with the given arguments (default: the process's) and returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            parser = _parser(arguments)
            args = parser.parse_args(arguments)
            if args.command is None:  # judged here: argparse would say so before it says that an option is unknown
                parser.error(f"a command is required: {_COMMANDS}")
            run: Callable[[argparse.Namespace], int] = args.run
            status = run(args)
            sys.stdout.flush()
            return status
        except SystemExit as error:  # from argparse: --help, --version, bad arguments
            sys.stdout.flush()
            return error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except KeyboardInterrupt:
        _complain("interrupted")
        return 1
    except BrokenPipeError:
        # The reader has gone (`fastconv info | head -1`). Python would complain again when it closes standard output.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return 1
    except MemoryError as error:
        _complain(f"out of memory {error}")
        return 1
    except OSError as error:  # in words: without the number that str() begins with
        _complain(
            f"{error.strerror}: {error.filename!r}" if error.strerror and error.filename is not None else str(error)
        )
        return 1
    except Exception as error:
        _complain(str(error) if str(error) else type(error).__name__)
        return 1


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = _Parser(prog="fastconv", description="Fast convolution kernels for CPUs, in NHWC and NCHW.")
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(dest="command", metavar=_COMMANDS)

    info = commands.add_parser("info", help="this machine, the settings, and the kernels that it can run")
    info.add_argument("--json", action="store_true", help="print JSON")
    info.set_defaults(run=_info)

    classify = commands.add_parser("classify", help="name what pictures show")
    classify.add_argument(
        "images",
        nargs="*",
        metavar="IMAGE",
        help="picture files; without any, the photograph that ships with the package",
    )
    classify.add_argument(
        "--weights",
        metavar="FILE",
        help="trained weights: .safetensors, .pth or .npz; without, untrained seeded weights",
    )
    classify.add_argument("--model", choices=_MODELS, default="resnet50")
    classify.add_argument("--layout", type=str.upper, choices=_LAYOUTS, default="NHWC")
    _add_place(classify)
    classify.add_argument("--topk", type=_count, default=5, metavar="K", help="classes to print for each picture (5)")
    classify.add_argument("--json", action="store_true", help="print JSON")
    classify.set_defaults(run=_classify)

    summary = commands.add_parser("summary", help="the layers of a network: shapes, parameters, multiply-adds, kernels")
    summary.add_argument("model", choices=_MODELS, metavar="MODEL", help=", ".join(_MODELS))
    summary.add_argument("--layout", type=str.upper, choices=_LAYOUTS, default="NHWC")
    _add_place(summary)
    summary.add_argument("--batch", type=_count, default=1, metavar="N")
    summary.add_argument("--json", action="store_true", help="print JSON")
    summary.set_defaults(run=_summary)

    bench = commands.add_parser("bench", help="time kernels and networks in both layouts")
    tune = commands.add_parser("tune", help='measure what algorithm="auto" should take on this machine')
    # Only here: the harness takes long to import and the other commands have no use for it.
    command = next((word for word in arguments if not word.startswith("-")), None)
    if command == "bench":
        from fastconv.benchmarks import cli as harness

        harness.add_arguments(bench)
        bench.set_defaults(run=harness.run)
    elif command == "tune":
        from fastconv.benchmarks.tune import cli as tuner

        tuner.add_arguments(tune)
        tune.set_defaults(run=tuner.run)
    return parser


def _add_place(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to compute (cpu)")
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="on a GPU (float32)"
    )
    parser.add_argument(
        "--compute", choices=("float32", "tf32", "3xtf32"), default="float32", help="of float32 on a GPU (float32)"
    )


def _place(args: argparse.Namespace) -> dict[str, str]:
    return {"device": args.device, "dtype": args.dtype, "compute": args.compute}


class _Version(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help="print the version")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        import fastconv

        _say(f"fastconv {fastconv.__version__}")
        parser.exit()


def _count(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"not a whole number: {text!r}") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


# --- info -----------------------------------------------------------------------------------------------------------


def _info(args: argparse.Namespace) -> int:
    import fastconv
    from fastconv import _core, _tuning

    machine = _core.machine()
    kernels = fastconv.kernels()
    if args.json:
        document = {
            "version": fastconv.__version__,
            "machine": machine,
            "threads": _core.get_num_threads(),
            "tuning": _tuning.load().as_dict(),
            "kernels": kernels,
        }
        _say(json.dumps(document, indent=2, default=str))
        return 0
    facts = [("fastconv", fastconv.__version__)]
    facts += [(name.replace("_", " "), _plain(name, value)) for name, value in machine.items()]
    facts.append(("tuning", _tuning.load().describe()))
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        _say(f"{name:<{width}}  {value}")
    _say("")
    columns = ("op", "algorithm", "name", "dtype", "isa", "runs here")
    rows = []
    # One line instead of seventy where the whole backend cannot run.
    on_device = [kernel for kernel in kernels if kernel["device"] == "cuda"]
    unusable = on_device and not any(kernel["supported"] for kernel in on_device)
    for kernel in kernels:
        if unusable and kernel["device"] == "cuda":
            continue
        usable = "yes" if kernel["supported"] else f"no: {kernel['reason']}"
        rows.append((*(str(kernel[column]) for column in columns[:-1]), usable))
    _table(columns, rows)
    if unusable:
        _say(f"\n{len(on_device)} CUDA kernels, none can run here: {on_device[0]['reason']}")
    return 0


def _plain(name: str, value: Any) -> str:
    if name.endswith("_bytes") and isinstance(value, int) and value >= 1024:
        return f"{value // 1024} KiB" if value < 1 << 20 else f"{value / (1 << 20):g} MiB"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(line[i]) for line in (columns, *rows)) for i in range(len(columns))]
    for line in (columns, ["-" * width for width in widths], *rows):
        _say("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


# --- classify and summary -------------------------------------------------------------------------------------------


def _classify(args: argparse.Namespace) -> int:
    from fastconv import image

    if args.topk > 1000:
        _Parser(prog="fastconv classify").error(f"argument --topk: the network has 1000 classes, got {args.topk}")
    paths: list[str] = args.images or [image.sample_path()]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")  # of odd metadata; what matters is an error
        # First the quick checks: a missing file should not wait for the weights.
        for path in paths:
            if not os.path.exists(path):
                raise FileNotFoundError(f"image file not found: {path!r}")
        net = _model(args.model)(args.weights, layout=args.layout, **_place(args))
        found: list[list[tuple[int, str, float]]] = []
        with _progress(len(paths)) as advance:
            for start in range(0, len(paths), _CHUNK):
                chunk = paths[start : start + _CHUNK]
                found += net.predict(chunk, args.topk)
                advance(len(chunk))
    if args.weights is None:
        print(
            "fastconv: warning: no --weights given, so the weights are untrained and the classes mean nothing",
            file=sys.stderr,
        )
    if args.json:
        results = [
            {"image": path, "top": [{"class": i, "label": label, "probability": _finite(p)} for i, label, p in top]}
            for path, top in zip(paths, found, strict=True)
        ]
        document = {
            "model": args.model,
            "layout": args.layout,
            **_place(args),
            "weights": args.weights,
            "results": results,
        }
        _say(json.dumps(document, indent=2))
        return 0
    for number, (path, top) in enumerate(zip(paths, found, strict=True)):
        _say(("\n" if number else "") + path)
        for index, label, probability in top:
            _say(f"  {probability:8.2%}  {label}  ({index})")
    return 0


def _summary(args: argparse.Namespace) -> int:
    table = _model(args.model)(layout=args.layout, **_place(args)).summary(batch=args.batch)
    _say(json.dumps(table.as_dict(), indent=2) if args.json else str(table))
    return 0


def _model(name: str) -> Callable[..., Any]:
    from fastconv import models

    maker: Callable[..., Any] = getattr(models, name)
    return maker


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no NaN


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], Any]]:
    """A bar on a terminal for many pictures, where tqdm is installed."""
    if total > _CHUNK and sys.stderr.isatty():
        try:
            from tqdm import tqdm
        except ImportError:
            pass
        else:
            with tqdm(total=total, unit="picture", leave=False) as bar:
                yield bar.update
            return
    yield lambda _: None


# --- words ----------------------------------------------------------------------------------------------------------


def _say(text: str) -> None:
    """Prints a line on any terminal: what its encoding lacks is written as an escape."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))


def _complain(text: str) -> None:
    line = _one_line(f"fastconv: {text}")
    with suppress(OSError):  # where nobody listens, the exit status still tells
        print(line.encode("ascii", "backslashreplace").decode("ascii"), file=sys.stderr, flush=True)


def _one_line(text: str) -> str:
    return " ".join(text.split())
