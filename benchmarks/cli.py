"""`fastconv bench`: run (also without the word), list, crossover, compare, report."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import problem, schema
from .arguments import UsageError, numbers, seconds, words
from .progress import Progress, ended_like_interrupted

_DEFAULT_SUITE = "resnet50"
_LAYOUTS = ("nchw", "nhwc")
_RUN_DEFAULTS: dict[str, Any] = {
    "suite": None,
    "match": None,
    "isa": None,
    "cache": None,
    "no_pin": False,
    "rows": "compact",
    "layouts": "nchw,nhwc",
    "algorithms": None,
    "threads": "max",
    "batch": "1",
    "device": "cpu",
    "dtypes": None,
    "peers": None,
    "problem": None,
    "json": None,
    "max_time": None,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Gives `parser` the options of `bench` and its four words. `run` does what they say."""
    parser.description = "Which layout and which algorithm to use on this machine: every result checked, then timed."
    _add_run_options(parser)
    parser.set_defaults(**_RUN_DEFAULTS)
    commands = parser.add_subparsers(dest="bench_command", metavar="run|list|crossover|compare|report")

    run_parser = commands.add_parser("run", help="check and time layers and networks (the default)", allow_abbrev=False)
    _add_run_options(run_parser)

    crossover_parser = commands.add_parser(
        "crossover", help="from which batch, width or channel count on the winner changes", allow_abbrev=False
    )
    crossover_parser.add_argument("layer", metavar="STRING", help="a layer, like 'ic64 ih56 oc64 kh3 ph1'")
    crossover_parser.add_argument(
        "--vary", default="batch", metavar="WHAT", help="batch, width, in-channels or out-channels (batch)"
    )
    crossover_parser.add_argument("--from", dest="low", default="1", metavar="N", help="the smallest value (1)")
    crossover_parser.add_argument(
        "--to", dest="high", default=None, metavar="N", help="the largest value (by what varies)"
    )
    _add_run_options(crossover_parser, without=("--suite", "--match", "--batch", "--problem"))

    list_parser = commands.add_parser("list", help="suites, algorithms and peers", allow_abbrev=False)
    list_parser.add_argument("--suite", default=argparse.SUPPRESS, metavar="NAME", help="the layers of this suite")
    list_parser.add_argument("--json", dest="list_json", action="store_true", help="print JSON")

    compare_parser = commands.add_parser("compare", help="two results, row by row", allow_abbrev=False)
    compare_parser.add_argument("a", metavar="A.json")
    compare_parser.add_argument("b", metavar="B.json")
    compare_parser.add_argument(
        "--fail-if", metavar="STATISTIC:LIMIT", help="exit status 1 if a row got slower by more, as median:5%%"
    )
    compare_parser.add_argument(
        "--margin", default="5%", metavar="LIMIT", help="changes below this count as the SAME (5%%)"
    )
    compare_parser.add_argument("--raw", action="store_true", help="do not set the two runs to one clock")
    compare_parser.add_argument("--json", dest="compare_json", action="store_true", help="print JSON")

    report_parser = commands.add_parser("report", help="a result as one HTML file", allow_abbrev=False)
    report_parser.add_argument("a", metavar="A.json")
    report_parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="where to write it: .html, .md, or .png or .svg for one picture; without, the table is printed",
    )
    report_parser.add_argument(
        "--rows", default="compact", metavar="WHICH", help="compact or all, for the printed table"
    )


def _add_run_options(parser: argparse.ArgumentParser, without: tuple[str, ...] = ()) -> None:
    # SUPPRESS: options given before the word `run` hold, whatever comes after it.
    options: tuple[tuple[str, str, str], ...] = (
        ("--suite", "NAME", f"a list of layers, see `bench list` ({_DEFAULT_SUITE})"),
        ("--match", "REGEX", "only layers whose name or op it finds"),
        ("--layouts", "LIST", "nchw, nhwc or both (both)"),
        ("--algorithms", "LIST", "names as in `fastconv info` (all but the reference)"),
        ("--isa", "LIST", "ISA levels: scalar, avx2, avx512 (the highest)"),
        ("--threads", "LIST", "numbers of threads, or max (max)"),
        ("--batch", "LIST", "batch sizes (1)"),
        ("--device", "NAME", "cpu or cuda (cpu)"),
        ("--dtypes", "LIST", "on a GPU: float32, 3xtf32, tf32, float16, bfloat16 (float32,bfloat16)"),
        ("--peers", "LIST", "compare with these (names: bench list) or all; what is not installed is left out"),
        ("--cache", "WHICH", "warm, or both: also with evicted weights (both; suites under a minute: warm)"),
        ("--rows", "WHICH", "compact, or all: every row of the result (compact)"),
        ("--json", "FILE", "write the result with all samples; - prints it"),
        ("--max-time", "S", "seconds for the whole run (the suite's own)"),
    )
    parser.add_argument("--no-pin", action="store_true", default=argparse.SUPPRESS, help="let the system place threads")
    for flag, metavar, text in options:
        if flag in without:
            continue
        parser.add_argument(flag, default=argparse.SUPPRESS, metavar=metavar, help=text)
    if "--problem" in without:
        return
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
        "crossover": _crossover,
        "compare": _compare,
        "report": _report,
    }
    try:
        return commands[args.bench_command or "run"](args)
    except UsageError as error:
        _complain(str(error))
        return 2


# --- run --------------------------------------------------------------------------------------------------------------


def _run(args: argparse.Namespace) -> int:
    from . import runner

    if args.device == "cuda":
        return _run_cuda(args, runner)
    settings = _settings(args, runner)
    return _measure(args, lambda step, save: _Work(run := runner.Run(settings, step, save), run.execute))


def _run_cuda(args: argparse.Namespace, runner: Any) -> int:
    from fastconv.cuda import why_unavailable

    from . import device_cuda

    suite, problems, network = chosen_suite(args)
    reason = why_unavailable()
    if reason:
        _complain(f"--device cuda: {reason}")
        return 1
    known = list(dict.fromkeys(["auto", *(str(k["algorithm"]) for k in _kernels("conv2d") if k["device"] == "cuda")]))
    settings = device_cuda.Settings(
        suite,
        problems,
        network,
        words(args.layouts.lower(), "--layouts", list(_LAYOUTS)) or _LAYOUTS,
        words(args.dtypes or "float32,bfloat16", "--dtypes", list(device_cuda.FORMS)),
        words(args.algorithms or "", "--algorithms", known),
        numbers(args.batch, "--batch", None),
        tuple(_peer_names("cuda")) if args.peers == "all" else words(args.peers or "", "--peers", _peer_names("cuda")),
        suite.max_time if args.max_time is None else seconds(args.max_time),
        args.match,
    )
    make: Callable[[_Step, _Save], _Work] = lambda step, save: _Work(  # noqa: E731
        run := device_cuda.Run(settings, step, save), run.execute
    )
    return _measure(args, make, lambda data: device_cuda.text(data))


def _kernels(op: str) -> list[dict[str, Any]]:
    import fastconv

    return fastconv.kernels(op)


def _crossover(args: argparse.Namespace) -> int:
    from . import crossover, runner

    if args.vary not in crossover.LETTERS:
        raise UsageError(f"--vary: unknown name {args.vary!r}; known: {', '.join(crossover.LETTERS)}")
    args.problem, args.suite, args.match, args.batch = [args.layer], None, None, "1"
    settings = _settings(args, runner)
    (layer,) = settings.suite.problems
    (low,) = numbers(args.low, "--from", None)
    (high,) = numbers(args.high or str(crossover.LETTERS[args.vary][1]), "--to", None)

    def work(step: _Step, save: _Save) -> _Work:
        try:
            search = crossover.Search(layer, args.vary, low, high, settings, step, save)
        except ValueError as error:
            raise UsageError(str(error)) from None
        return _Work(search.run, search.execute)

    return _measure(args, work)


@dataclass
class _Work:
    """A run that is about to start, and what starts it."""

    run: Any
    execute: Callable[[], None]


_Step = Callable[[int, int, str], None]
_Save = Callable[[dict[str, Any]], None]


def _measure(
    args: argparse.Namespace,
    make: Callable[[_Step, _Save], _Work],
    shown: Callable[[dict[str, Any]], str] | None = None,
) -> int:
    """Runs it with progress, an interruption or a wrong result kept in the file, and prints what came out."""
    from . import report, runner

    target: str | None = args.json
    if target not in (None, "-") and not (Path(target).parent.is_dir() and os.access(Path(target).parent, os.W_OK)):
        raise UsageError(f"--json: the folder of {target!r} is missing or not writable")
    if args.rows not in ("compact", "all"):
        raise UsageError(f"--rows: {args.rows!r} is neither compact nor all")
    saved = False

    def save(data: dict[str, Any]) -> None:
        nonlocal saved
        if target not in (None, "-"):
            schema.save(data, target)
            saved = True

    out = sys.stderr if target == "-" else sys.stdout
    status, why = 0, ""
    with Progress() as progress, ended_like_interrupted():
        work = make(progress.step, save)
        try:
            work.execute()
        except KeyboardInterrupt:
            status, why = 1, "interrupted"
            work.run.notes.append("the run was interrupted: this is what had been measured")
        except runner.WrongResultError as error:
            status, why = 1, str(error)
            work.run.notes.append(why)
    data = work.run.data()
    if status:
        save(data)
    if status == 0 or data["rows"]:
        print(report.terminal(data, args.rows) if shown is None else shown(data), file=out)
    if target == "-":
        sys.stdout.write(schema.dumps(data))
    sys.stdout.flush()
    if status:
        _complain(f"{why}; {len(data['rows'])} rows are kept" + (f" in {target}" if saved else ""))
    return status


def _settings(args: argparse.Namespace, runner: Any) -> Any:
    """The run that the arguments ask for. UsageError names the argument that is wrong."""
    import fastconv

    from . import ops, roofline

    suite, problems, _network = chosen_suite(args)
    if args.device != "cpu":
        raise UsageError(f"--device: {args.device!r} is neither cpu nor cuda")
    if args.dtypes:
        raise UsageError("--dtypes is for --device cuda; the CPU computes in float32")
    found = {k["algorithm"] for op in {p.op for p in problems} | {"conv2d"} for k in ops.kernels(op)}
    algorithms = words(args.algorithms or "", "--algorithms", ["auto", *sorted(found)])
    names = [name for name in _peer_names() if args.peers == "all"] or words(args.peers or "", "--peers", _peer_names())
    isas = words(args.isa or "", "--isa", roofline.levels())
    threads = numbers(args.threads, "--threads", fastconv.get_num_threads())
    batches = numbers(args.batch, "--batch", None)
    layouts = words(args.layouts.lower(), "--layouts", list(_LAYOUTS))
    if not layouts:
        raise UsageError("--layouts: empty; known: nchw, nhwc")
    if args.cache not in (None, "warm", "both"):
        raise UsageError(f"--cache: {args.cache!r} is neither warm nor both")
    cold = args.cache == "both" if args.cache else suite.max_time >= 60
    peers = names if suite.peers else []
    limit = suite.max_time * len(threads) * len(batches) * max(1, len(isas)) * (1 + 0.5 * min(len(peers), 4))
    if args.max_time is not None:
        limit = seconds(args.max_time)
    return runner.Settings(
        suite, args.match, layouts, algorithms, isas, threads, batches, args.device, tuple(names), cold,
        not args.no_pin, limit,
    )  # fmt: skip


def chosen_suite(args: argparse.Namespace) -> tuple[Any, tuple[Any, ...], str | None]:
    """The suite of --suite or --problem, and what of it was asked for: layers and network."""
    from . import runner

    if args.problem and (args.suite or args.match):
        raise UsageError("--problem: give either a problem or a suite with --match, not both")
    try:
        if args.problem:
            problems = [problem.parse_problem(text, f"problem{i}") for i, text in enumerate(args.problem, start=1)]
            for name in {p.name for p in problems}:
                if sum(p.name == name for p in problems) > 1:
                    raise ValueError(f"problem: two are named {name!r}")
            suite = problem.Suite("typed", tuple(problems), max_time=60.0)
        else:
            suite = problem.load_suite(args.suite or _DEFAULT_SUITE)
        return (suite, *runner.selected(suite, args.match))
    except ValueError as error:
        raise UsageError(str(error)) from None


def _peer_names(device: str = "cpu") -> list[str]:
    from .peers import PEERS, PEERS_CUDA

    return list(PEERS if device == "cpu" else PEERS_CUDA)


# --- list, compare, report --------------------------------------------------------------------------------------------


def _list(args: argparse.Namespace) -> int:
    from . import report
    from .peers import PEERS, installed

    try:
        suites = [problem.load_suite(name) for name in ([args.suite] if args.suite else problem.suite_names())]
    except ValueError as error:
        raise UsageError(str(error)) from None
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
    there = {name: installed(name) for name in PEERS}
    print(f"\nalgorithms: {', '.join(names)}")
    print("peers: " + ", ".join(name if found else f"{name} (not installed)" for name, found in there.items()))
    return 0


def _compare(args: argparse.Namespace) -> int:
    from . import compare

    try:
        threshold = compare.parse_threshold(args.fail_if) if args.fail_if else None
    except ValueError as error:
        raise UsageError(str(error)) from None
    try:
        margin = compare.parse_threshold(f"median:{args.margin}").fraction
    except ValueError:
        raise UsageError(f"--margin: {args.margin!r} is not like 4% or 0.04") from None
    a, b = schema.load(args.a), schema.load(args.b)
    changes = compare.compare(a, b, margin, not args.raw)
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
    if args.rows not in ("compact", "all"):
        raise UsageError(f"--rows: {args.rows!r} is neither compact nor all")
    if args.output is None:
        print(report.terminal(data, args.rows))
        return 0
    kind = Path(args.output).suffix.lower()
    if kind in (".png", ".svg"):
        report.picture(data, args.output)
    elif kind in (".html", ".htm", ".md"):
        schema.write_atomically(args.output, report.markdown(data) if kind == ".md" else report.page(data))
    else:
        raise UsageError(f"--output: {args.output!r} ends in none of .html, .md, .png, .svg")
    print(f"written: {args.output}")
    return 0


def _complain(text: str) -> None:
    print(" ".join(f"fastconv bench: {text}".split()), file=sys.stderr, flush=True)
