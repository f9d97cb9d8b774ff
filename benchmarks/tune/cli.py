"""`fastconv tune`: measures which driver each convolution wants on this machine, and stores it for later processes."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from ..arguments import UsageError, numbers, seconds, words

_LAYOUTS = ("nchw", "nhwc")
_DEFAULT_MODEL = "resnet50"
_MODELS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "mobilenet_v2")
#: Seconds for a network, whose steps are all timed at once.
_MODEL_SECONDS = 180.0
#: Options that say what to measure, with what they are unless told.
_MEASURING: dict[str, Any] = {
    "suite": None,
    "problem": None,
    "model": None,
    "match": None,
    "layouts": None,
    "threads": None,
    "batch": None,
    "isa": None,
    "max_time": None,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Gives `parser` the options of `tune`. `run` does what they say."""
    parser.description = (
        "Measures which algorithm each convolution wants on this machine and stores what is clearly faster than the "
        'default; later processes take it with algorithm="auto".'
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--suite", metavar="NAME", help="the layers of a list, each alone; see `bench list`")
    what.add_argument(
        "--problem",
        action="append",
        metavar="STRING",
        help="a layer like 'ic64 ih56 oc64 kh3 ph1', alone; may be repeated",
    )
    what.add_argument(
        "--model", metavar="NAME", help=f"a network, its layers timed inside it: {', '.join(_MODELS)} (resnet50)"
    )
    for flag, metavar, text in (
        ("--match", "REGEX", "of a suite only layers whose name or op it finds"),
        ("--layouts", "LIST", "nchw, nhwc or both (both)"),
        ("--threads", "LIST", "numbers of threads, or max (1,max)"),
        ("--batch", "LIST", "batch sizes (1,8)"),
        ("--isa", "LIST", "ISA levels: scalar, avx2, avx512 (the highest)"),
        ("--max-time", "S", "seconds for the whole run (the suite's own; of a model 180)"),
    ):
        parser.add_argument(flag, metavar=metavar, help=text)
    parser.add_argument("--json", metavar="FILE", help="write what was found as JSON; - prints it")
    does = parser.add_mutually_exclusive_group()
    does.add_argument("--dry-run", action="store_true", help="measure and say, but store nothing")
    does.add_argument("--show", action="store_true", help="what is stored for this machine")
    does.add_argument("--clear", action="store_true", help="forget what is stored for this machine")


def run(args: argparse.Namespace) -> int:
    """Does what the arguments say. 0: done; 2: bad arguments; 1: anything else.

    An interrupted run stores what was clear by then and returns 1, too.
    """
    try:
        if args.show or args.clear:
            for name in _MEASURING:
                if getattr(args, name) is not None:
                    word = "--show" if args.show else "--clear"
                    raise UsageError(f"{word} measures nothing: it has no use for --{name.replace('_', '-')}")
            return _show(args) if args.show else _clear(args)
        return _tune(args)
    except UsageError as error:
        _complain(str(error))
        return 2


def _show(args: argparse.Namespace) -> int:
    from fastconv import _tuning

    from . import choices

    state = _tuning.load()
    if args.json is not None:
        _write_json(args.json, {**state.as_dict(), "stored": state.here})
        return 0
    if state.here:
        print("\n".join([*choices.stored_table(state.here), ""]))
    print(state.describe())
    return 0


def _clear(args: argparse.Namespace) -> int:
    from fastconv import _tuning

    from . import store

    file = store.path()
    count = store.clear(file)
    _tuning.reload()
    if args.json is not None:
        _write_json(args.json, {"file": os.fspath(file), "cleared": count})
    else:
        print(f"{count} choices of this machine are forgotten ({os.fspath(file)!r})")
    return 0


def _tune(args: argparse.Namespace) -> int:
    from fastconv import _tuning

    from .. import runner
    from ..progress import Progress, ended_like_interrupted
    from . import choices, store
    from .measure import TuneRun

    settings, model = _settings(args)
    if args.json not in (None, "-") and not os.access(Path(args.json).parent, os.W_OK):
        raise UsageError(f"--json: the folder of {args.json!r} is missing or not writable")
    for name in ("FASTCONV_KERNEL", "FASTCONV_WINOGRAD"):
        if os.environ.get(name, "1") not in ("", "1"):
            raise UsageError(f"{name}={os.environ[name]} forbids what is to be measured: unset it")
    file = None
    if not args.dry_run:
        file = store.path()
        store.require_writable(file)
    status, why = 0, ""
    with Progress() as progress, ended_like_interrupted():
        tuner = TuneRun(settings, progress.step, model=model)
        try:
            tuner.execute()
        except KeyboardInterrupt:
            status, why = 1, "interrupted: what was clear by then is kept"
        except runner.WrongResultError as error:
            status, why = 1, f"{error}; nothing is stored"
            file = None
    if file is not None:
        store.merge(file, tuner.decisions)
        _tuning.reload()
    out = sys.stderr if args.json == "-" else sys.stdout
    for note in tuner.notes:
        print(f"note: {note}", file=out)
    if tuner.decisions:
        print("\n".join(choices.table(tuner.decisions)), file=out)
    for line in _sentences(tuner, file, args.dry_run):
        print(line, file=out)
    if args.json is not None:
        _write_json(args.json, _document(tuner, file))
    sys.stdout.flush()
    if status:
        _complain(why)
    return status


def _settings(args: argparse.Namespace) -> tuple[Any, str | None]:
    """What to measure. UsageError names the argument that is wrong."""
    import fastconv

    from .. import roofline, runner
    from ..cli import chosen_suite
    from ..problem import Suite

    alone = args.suite is not None or args.problem is not None
    if args.match is not None and args.suite is None:
        raise UsageError("--match is for the layers of a --suite")
    model = None if alone else args.model or _DEFAULT_MODEL
    if model is not None:
        if model not in _MODELS:
            raise UsageError(f"--model: unknown name {model!r}; known: {', '.join(_MODELS)}")
        suite = Suite(model, (), network=model, max_time=_MODEL_SECONDS)
    else:
        chosen, problems, _ = chosen_suite(args)
        suite = Suite(chosen.name, tuple(p for p in problems if p.op == "conv2d"), max_time=chosen.max_time)
        if not suite.problems:
            raise UsageError(f"there is no convolution in {'what --match finds' if args.match else 'these layers'}")
    layouts = words((args.layouts or "nchw,nhwc").lower(), "--layouts", list(_LAYOUTS))
    if not layouts:
        raise UsageError("--layouts: empty; known: nchw, nhwc")
    isas = words(args.isa or "", "--isa", roofline.levels())
    settings = runner.Settings(
        suite,
        layouts=layouts,
        isas=isas,
        threads=numbers(args.threads or "1,max", "--threads", fastconv.get_num_threads()),
        batches=numbers(args.batch or "1,8", "--batch", None),
        cold=alone,
        max_time=suite.max_time * max(1, len(isas)) if args.max_time is None else seconds(args.max_time),
    )
    return settings, model


def _sentences(tuner: Any, file: Path | None, dry: bool) -> list[str]:
    """What came of it, in words."""
    decisions, lines = tuner.decisions, []
    for found in _networks(tuner):
        ms, ratio = found["median_ms"], found["ratio"]
        lines.append(
            f"{found['model']} {found['layout']}, {found['threads']} thread{'s' * (found['threads'] > 1)}, batch "
            f"{found['batch']}: {ms[0]:.2f} ms untuned, {ms[1]:.2f} ms tuned" + (f": {ratio}" if ratio else "")
        )
    changed, unsure = sum(d.changed for d in decisions), sum(not d.sure for d in decisions)
    lines.append(
        f"{changed} of {len(decisions)} layers take another driver than the default"
        + (f"; {unsure} were not judged in full, for want of samples (--max-time)" if unsure else "")
    )
    if dry:
        lines.append("nothing was stored (--dry-run)")
    elif file is not None:
        from fastconv import _tuning

        lines.append(_tuning.load().describe())
    return lines


def _networks(tuner: Any) -> list[dict[str, Any]]:
    """The network as a whole, untuned and tuned, in each setting and layout."""
    from . import choices

    same = ("isa", "layout", "threads", "batch")
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in tuner.rows:
        if row["kind"] == "network":
            found.setdefault(tuple(row[name] for name in same), {})[row["algorithm"]] = row
    networks = []
    for key, pair in found.items():
        if len(pair) == 2:
            _, ratio = choices.setting_ratio(pair["tuned"], pair["untuned"])
            ms = [pair[name]["median_ms"] for name in ("untuned", "tuned")]
            networks.append({"model": tuner.model, **dict(zip(same, key)), "median_ms": ms, "ratio": ratio})
    return networks


def _document(tuner: Any, file: Path | None) -> dict[str, Any]:
    from fastconv import _tuning

    s = tuner.settings
    settings = {name: list(getattr(s, name)) for name in ("layouts", "threads", "batches", "isas")}
    nothing = {"ratio": None, "interval": None}
    return {
        "schema": _tuning.SCHEMA,
        "tool": _tuning.TOOL,
        "complete": tuner.complete,
        "stored": None if file is None else os.fspath(file),
        "environment": tuner.environment,
        "settings": {"suite": s.suite.name, "model": tuner.model, **settings, "max_time": s.max_time},
        "notes": list(tuner.notes),
        "layers": [d.as_json() for d in tuner.decisions],
        "networks": [{**n, **(n["ratio"].as_json() if n["ratio"] else nothing)} for n in _networks(tuner)],
    }


def _write_json(target: str, data: dict[str, Any]) -> None:
    from ..schema import write_atomically

    text = json.dumps(data, indent=2, allow_nan=False) + "\n"
    if target == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        write_atomically(target, text)


def _complain(text: str) -> None:
    print(" ".join(f"fastconv tune: {text}".split()), file=sys.stderr, flush=True)
