"""`fastconv bench`: run (also without the word), list, compare, report."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from . import problem, schema

_DEFAULT_SUITE = "resnet50"
_LAYOUTS = ("nchw", "nhwc")
_RUN_DEFAULTS: dict[str, Any] = {
    "suite": None,
    "match": None,
    "layouts": "nchw,nhwc",
    "algorithms": None,
    "threads": "max",
    "batch": "1",
    "device": "cpu",
    "peers": None,
    "problem": None,
    "json": None,
    "max_time": None,
}


class _UsageError(ValueError):
    """An argument that means nothing: one line and exit status 2."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Gives `parser` the options of `bench` and its four words. `run` does what they say."""
    parser.description = "Which layout and which algorithm to use on this machine: every result checked, then timed."
    _add_run_options(parser)
    parser.set_defaults(**_RUN_DEFAULTS)
    words = parser.add_subparsers(dest="bench_command", metavar="run|list|compare|report")

    run_parser = words.add_parser("run", help="check and time layers and networks (the default)", allow_abbrev=False)
    _add_run_options(run_parser)

    list_parser = words.add_parser("list", help="suites, algorithms and peers", allow_abbrev=False)
    list_parser.add_argument("--suite", default=argparse.SUPPRESS, metavar="NAME", help="the layers of this suite")
    list_parser.add_argument("--json", dest="list_json", action="store_true", help="print JSON")

    compare_parser = words.add_parser("compare", help="two results, row by row", allow_abbrev=False)
    compare_parser.add_argument("a", metavar="A.json")
    compare_parser.add_argument("b", metavar="B.json")
    compare_parser.add_argument(
        "--fail-if", metavar="STATISTIC:LIMIT", help="exit status 1 if a row got slower by more, as median:5%%"
    )
    compare_parser.add_argument(
        "--margin", default="4%", metavar="LIMIT", help="changes below this count as the SAME (4%%)"
    )
    compare_parser.add_argument("--json", dest="compare_json", action="store_true", help="print JSON")

    report_parser = words.add_parser("report", help="a result as one HTML file", allow_abbrev=False)
    report_parser.add_argument("a", metavar="A.json")
    report_parser.add_argument(
        "-o", "--output", metavar="FILE.html", help="where to write it; without, the table is printed"
    )


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    # SUPPRESS: options given before the word `run` hold, whatever comes after it.
    options: tuple[tuple[str, str, str], ...] = (
        ("--suite", "NAME", f"a list of layers, see `bench list` ({_DEFAULT_SUITE})"),
        ("--match", "REGEX", "only layers whose name it finds"),
        ("--layouts", "LIST", "nchw, nhwc or both (both)"),
        ("--algorithms", "LIST", "names as in `fastconv info` (all but the reference)"),
        ("--threads", "LIST", "numbers of threads, or max (max)"),
        ("--batch", "LIST", "batch sizes (1)"),
        ("--device", "NAME", "cpu"),
        ("--peers", "LIST", "compare with pytorch, onnxruntime, openvino, or all; what is not installed is left out"),
        ("--json", "FILE", "write the result with all samples; - prints it"),
        ("--max-time", "S", "seconds for the whole run (the suite's own)"),
    )
    for flag, metavar, text in options:
        parser.add_argument(flag, default=argparse.SUPPRESS, metavar=metavar, help=text)
    parser.add_argument(
        "--problem",
        action="append",
        default=argparse.SUPPRESS,
        metavar="STRING",
        help="a layer of your own instead of a suite, like 'ic64 ih56 oc64 kh3 ph1'; may be repeated",
    )


def run(args: argparse.Namespace) -> int:
    """Does what the arguments say. 0: done; 2: bad arguments; 1: anything else.

    An interrupted run keeps what was measured and returns 1, too.
    """
    commands: dict[str, Callable[[argparse.Namespace], int]] = {
        "run": _run,
        "list": _list,
        "compare": _compare,
        "report": _report,
    }
    try:
        return commands[args.bench_command or "run"](args)
    except _UsageError as error:
        _complain(str(error))
        return 2


# --- run --------------------------------------------------------------------------------------------------------------


def _run(args: argparse.Namespace) -> int:
    from . import report, runner

    settings = _settings(args, runner)
    target: str | None = args.json
    if target not in (None, "-") and not (Path(target).parent.is_dir() and os.access(Path(target).parent, os.W_OK)):
        raise _UsageError(f"--json: the folder of {target!r} is missing or not writable")
    saved = False

    def save(data: dict[str, Any]) -> None:
        nonlocal saved
        if target not in (None, "-"):
            schema.save(data, target)
            saved = True

    out = sys.stderr if target == "-" else sys.stdout
    status, why = 0, ""
    with _Progress() as progress:
        work = runner.Run(settings, progress.step, save)
        try:
            work.execute()
        except KeyboardInterrupt:
            status, why = 1, "interrupted"
            work.notes.append("the run was interrupted: this is what had been measured")
        except runner.WrongResultError as error:
            status, why = 1, str(error)
            work.notes.append(why)
    if status:
        save(work.data())
    if status == 0 or work.rows:
        print(report.terminal(work.data()), file=out)
    if target == "-":
        sys.stdout.write(schema.dumps(work.data()))
    sys.stdout.flush()
    if status:
        _complain(f"{why}; {len(work.rows)} rows are kept" + (f" in {target}" if saved else ""))
    return status


def _settings(args: argparse.Namespace, runner: Any) -> Any:
    """The run that the arguments ask for. _UsageError names the argument that is wrong."""
    import fastconv

    if args.problem and (args.suite or args.match):
        raise _UsageError("--problem: give either a problem or a suite with --match, not both")
    try:
        if args.problem:
            problems = [problem.parse_problem(text, f"problem{i}") for i, text in enumerate(args.problem, start=1)]
            for name in {p.name for p in problems}:
                if sum(p.name == name for p in problems) > 1:
                    raise ValueError(f"problem: two are named {name!r}")
            suite = problem.Suite("typed", tuple(problems), max_time=60.0)
        else:
            suite = problem.load_suite(args.suite or _DEFAULT_SUITE)
        runner.selected(suite, args.match)
    except ValueError as error:
        raise _UsageError(str(error)) from None
    if args.device != "cpu":
        raise _UsageError(f"--device: {args.device!r} is not there; this version has cpu")
    known = list(dict.fromkeys(k["algorithm"] for k in fastconv.kernels("conv2d")))
    algorithms = _words(args.algorithms or "", "--algorithms", ["auto", *known])
    names = [name for name in _peer_names() if args.peers == "all"] or _words(
        args.peers or "", "--peers", _peer_names()
    )
    threads = _numbers(args.threads, "--threads", fastconv.get_num_threads())
    batches = _numbers(args.batch, "--batch", None)
    layouts = _words(args.layouts.lower(), "--layouts", list(_LAYOUTS))
    if not layouts:
        raise _UsageError("--layouts: empty; known: nchw, nhwc")
    limit = suite.max_time * len(threads) * len(batches)
    if args.max_time is not None:
        limit = _seconds(args.max_time)
    return runner.Settings(suite, args.match, layouts, algorithms, threads, batches, args.device, names, limit)


def _peer_names() -> list[str]:
    from .peers import PEERS

    return list(PEERS)


def _words(text: str, flag: str, known: list[str]) -> tuple[str, ...]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    for word in words:
        if word not in known:
            raise _UsageError(f"{flag}: unknown name {word!r}; known: {', '.join(known)}")
    return tuple(dict.fromkeys(words))


def _numbers(text: str, flag: str, maximum: int | None) -> tuple[int, ...]:
    numbers: list[int] = []
    for word in (part.strip() for part in text.split(",")):
        if word == "max" and maximum is not None:
            numbers.append(maximum)
        elif word.isascii() and word.isdigit() and 1 <= int(word[:10]) <= 1_000_000:
            numbers.append(int(word[:10]))
        else:
            raise _UsageError(f"{flag}: {word!r} is not a whole number of at least 1")
    return tuple(dict.fromkeys(numbers))


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e9:
        raise _UsageError(f"--max-time: {text!r} is not a number of seconds above 0")
    return value


class _Progress:
    """A line that shows where the run is, on a terminal only; tqdm's bar where that is installed."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.shown = self.stream.isatty()
        self.bar: Any = None

    def __enter__(self) -> _Progress:
        if self.shown and importlib.util.find_spec("tqdm") is not None:
            import tqdm

            self.bar = tqdm.tqdm(file=self.stream, leave=False, unit="step")
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
        elif self.shown:
            self.stream.write("\r\x1b[K")
            self.stream.flush()

    def step(self, done: int, total: int, name: str) -> None:
        if self.bar is not None:
            self.bar.total = total
            self.bar.set_description_str(name, refresh=False)
            self.bar.update(done - self.bar.n)
            self.bar.refresh()
        elif self.shown:
            self.stream.write(f"\r\x1b[K[{done}/{total}] {name}")
            self.stream.flush()


# --- list, compare, report --------------------------------------------------------------------------------------------


def _list(args: argparse.Namespace) -> int:
    from . import report

    try:
        suites = [problem.load_suite(name) for name in ([args.suite] if args.suite else problem.suite_names())]
    except ValueError as error:
        raise _UsageError(str(error)) from None
    if args.list_json:
        document = [
            {
                "suite": s.name,
                "about": s.about,
                "network": s.network,
                "max_time": s.max_time,
                "layers": [problem.format_problem(p) for p in s.problems],
            }
            for s in suites
        ]
        print(json.dumps({"suites": document, "peers": _peer_names()}, indent=2))
        return 0
    if args.suite:
        for layer in suites[0].problems:
            print(problem.format_problem(layer))
        return 0
    body = [
        (s.name, str(len(s.problems)), str(sum(p.x for p in s.problems)), f"{s.max_time:g}", s.about) for s in suites
    ]
    print("\n".join(report.aligned(("suite", "layers", "convs", "max s", "about"), body, {0, 4})))
    import fastconv

    names = dict.fromkeys(k["algorithm"] for k in fastconv.kernels("conv2d"))
    installed = {name: _importable(name) for name in _peer_names()}
    print(f"\nalgorithms: {', '.join(names)}")
    print("peers: " + ", ".join(name if there else f"{name} (not installed)" for name, there in installed.items()))
    return 0


def _importable(peer: str) -> bool:
    modules = {"pytorch": ("torch",), "onnxruntime": ("onnxruntime", "onnx"), "openvino": ("openvino",)}
    return all(importlib.util.find_spec(module) is not None for module in modules[peer])


def _compare(args: argparse.Namespace) -> int:
    from . import compare

    try:
        threshold = compare.parse_threshold(args.fail_if) if args.fail_if else None
    except ValueError as error:
        raise _UsageError(str(error)) from None
    try:
        margin = compare.parse_threshold(f"median:{args.margin}").fraction
    except ValueError:
        raise _UsageError(f"--margin: {args.margin!r} is not like 4% or 0.04") from None
    a, b = schema.load(args.a), schema.load(args.b)
    changes = compare.compare(a, b, margin)
    notes = compare.differences(a, b)
    failed = compare.failures(changes, threshold) if threshold else []
    if args.compare_json:
        print(json.dumps(compare.as_json(changes, notes, failed), indent=2))
    else:
        for note in notes:
            print(f"note: {note}")
        print("\n".join(compare.table(changes)))
    if failed:
        names = ", ".join(f"{c.row['layer']} {c.row['layout']} {c.row['algorithm']}" for c in failed[:5])
        more = f" and {len(failed) - 5} more" if len(failed) > 5 else ""
        sys.stdout.flush()
        _complain(f"slower by more than {args.fail_if}: {names}{more}")
        return 1
    return 0


def _report(args: argparse.Namespace) -> int:
    from . import report

    data = schema.load(args.a)
    if args.output is None:
        print(report.terminal(data))
        return 0
    schema.write_atomically(args.output, report.page(data))
    print(f"written: {args.output}")
    return 0


def _complain(text: str) -> None:
    print(" ".join(f"fastconv bench: {text}".split()), file=sys.stderr, flush=True)
