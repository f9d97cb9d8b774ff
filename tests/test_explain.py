"""explain, kernels, show_config and the settings in the environment."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

import fastconv as fc
from cases import CONV_CASES
from helpers import (
    ISA_LEVELS,
    conv_data,
    cpu_conv_kernels,
    explain_conv,
    integers,
    kernel_id,
    max_isa,
    missing_level,
    run_python,
)

PLAN_KEYS = {"op", "algorithm", "ukernel", "isa", "packed_bytes", "workspace_bytes", "conversions", "refused"}
OPS = ["conv2d", "linear", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "relu", "softmax", "batch_norm"]

RUN_ONE = """
import numpy as np, fastconv as fc
x, w = np.ones((1, 3, 12, 13), np.float32), np.ones((5, 3, 3, 3), np.float32)
fc.conv2d(x, w, padding=1)
"""


OTHER_KERNELS = [row for row in fc.kernels() if row["op"] != "conv2d" and row["device"] == "cpu"]

# --- kernels ----------------------------------------------------------------------------------------------------------


def test_kernels_rows() -> None:
    rows = fc.kernels()
    assert {row["op"] for row in rows} >= set(OPS)
    for row in rows:
        assert {"op", "name", "device", "algorithm", "dtype", "isa", "supported", "reason"} <= set(row)
        assert isinstance(row["supported"], bool)
        assert row["supported"] or row["reason"], "what is not supported says why"
        if row["device"] == "cpu":
            assert row["dtype"] == "float32"
        else:
            assert row["device"] == "cuda" and row["isa"].startswith("sm_")
    distinct = {(row["op"], row["name"], row["device"], row["dtype"], row["isa"]) for row in rows}
    assert len(distinct) == len(rows), "a row is named by op, name, device, dtype and isa"


@pytest.mark.parametrize("op", OPS)
def test_kernels_of_one_op(op: str) -> None:
    rows = fc.kernels(op)
    assert rows
    assert rows == [row for row in fc.kernels() if row["op"] == op]


def test_kernels_of_an_unknown_op() -> None:
    with pytest.raises(ValueError, match="conv3d") as caught:
        fc.kernels("conv3d")
    assert "conv2d" in str(caught.value) and "linear" in str(caught.value), "the message lists what is known"


def test_rows_are_the_callers_own() -> None:
    fc.kernels("conv2d")[0]["supported"] = "spoiled"
    assert fc.kernels("conv2d")[0]["supported"] in (True, False)


def test_capping_the_level_withdraws_kernels() -> None:
    if missing_level("avx2"):
        pytest.skip(str(missing_level("avx2")))
    with max_isa("scalar"):
        for row in [row for row in fc.kernels() if row["device"] == "cpu"]:
            assert row["supported"] == (row["isa"] == "scalar"), row
            assert row["supported"] or "scalar" in row["reason"] or row["isa"] in row["reason"], row
    assert any(row["isa"] == "avx2" and row["supported"] for row in fc.kernels())


# --- explain ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [row for row in cpu_conv_kernels() if row["supported"]], ids=kernel_id)
def test_explain_names_what_runs(kernel: dict[str, Any], layout: str) -> None:
    with max_isa(kernel["isa"]):
        try:
            plan = explain_conv(conv_data(CONV_CASES[0]), layout, kernel["algorithm"])
        except NotImplementedError:
            return
    assert set(plan) >= PLAN_KEYS
    assert (plan["op"], plan["algorithm"], plan["isa"]) == ("conv2d", kernel["algorithm"], kernel["isa"])
    assert isinstance(plan["ukernel"], str) and plan["ukernel"]
    assert isinstance(plan["packed_bytes"], int) and plan["packed_bytes"] >= 0
    assert isinstance(plan["workspace_bytes"], int) and plan["workspace_bytes"] >= 0
    assert not plan["conversions"], "an op computes in the layout it was given"


def test_explain_says_why_others_refused(layout: str) -> None:
    plan = explain_conv(conv_data(CONV_CASES[0]), layout, ["im2col", "direct"])
    assert plan["refused"] == {}, "nothing was asked before the first that accepts"
    assert isinstance(explain_conv(conv_data(CONV_CASES[0]), layout)["refused"], dict)


def test_explain_follows_the_cap(isa: str, layout: str) -> None:
    assert explain_conv(conv_data(CONV_CASES[0]), layout)["isa"] == isa


def test_explain_other_ops(layout: str, rng: np.random.Generator) -> None:
    x = integers(rng, 2, 6, 6, 6)
    one = np.ones(6, np.float32)
    plans = {
        "max_pool2d": fc.explain("max_pool2d", x, 3, 2, 1, layout=layout),
        "avg_pool2d": fc.explain("avg_pool2d", x, 2, layout=layout),
        "adaptive_avg_pool2d": fc.explain("adaptive_avg_pool2d", x, 1, layout=layout),
        "relu": fc.explain("relu", x),
        "softmax": fc.explain("softmax", x, 1),
        "batch_norm": fc.explain("batch_norm", x, one, one, layout=layout),
    }
    for op, plan in plans.items():
        assert plan["op"] == op
        assert {"algorithm", "isa"} <= set(plan)
    assert fc.explain("linear", np.ones((2, 5), np.float32), np.ones((3, 5), np.float32))["op"] == "linear"


def test_explain_raises_as_the_call_would() -> None:
    x, w = np.zeros((1, 3, 8, 8), np.float32), np.zeros((4, 5, 3, 3), np.float32)
    with pytest.raises(ValueError, match=r"3.*5|5.*3"):
        fc.explain("conv2d", x, w)
    with pytest.raises(ValueError, match="algorithm"):
        fc.explain("conv2d", x, w[:, :3], algorithm="fft")
    with pytest.raises(ValueError, match="conv3d"):
        fc.explain("conv3d", x, w)


BAD_CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
    ("conv2d", ((1, 3, 8, 8), (4, 3, 3, 3), (5,)), {}, ValueError, "bias.*4.*5"),
    ("conv2d", ((1, 3, 8, 8), (4, 3, 3, 3), (4, 1)), {}, ValueError, "bias"),
    ("conv2d", ((1, 3, 8, 8), (4, 3, 3, 3)), {"residual": (1, 4, 8, 8)}, ValueError, "residual.*6, 6.*8, 8"),
    ("conv2d", ((1, 3, 0, 8), (4, 3, 3, 3)), {}, ValueError, "input.*height 0"),
    ("conv2d", ((1, 3, 8, 8), (4, 3, 3, 0)), {}, ValueError, "weight"),
    ("conv2d", ((1, 3, 8, 8), (4, 3, 3, 3)), {"padding": np.ones((3, 2), int)}, ValueError, "padding"),
    ("conv2d", ((1, 3, 8, 8), (4, 3, 3, 3)), {"stride": np.ones((2, 2), int)}, TypeError, "stride"),
    ("max_pool2d", ((1, 3, 0, 8), 2), {}, ValueError, "input"),
    ("max_pool2d", ((1, 3, 8, 8), 2), {"return_indices": 1}, TypeError, "return_indices"),
    ("avg_pool2d", ((1, 3, 8, 8), 2), {"divisor_override": 0}, ValueError, "divisor_override"),
    ("avg_pool2d", ((1, 3, 8, 8), 2), {"count_include_pad": 1}, TypeError, "count_include_pad"),
    ("adaptive_avg_pool2d", ((1, 3, 8, 8), 0), {}, ValueError, "output_size"),
    ("batch_norm", ((1, 3, 8, 8), (3,), (4,)), {}, ValueError, "running_var.*3.*4"),
    ("batch_norm", ((1, 3, 8, 8), (3,), (3,)), {"weight": (3, 1)}, ValueError, "weight"),
    ("batch_norm", ((1, 3, 8, 8), (3,), (3,)), {"eps": "small"}, TypeError, "eps"),
    ("softmax", ((),), {}, ValueError, "dimension"),
    ("softmax", ((3, 4), 2), {}, ValueError, "dim"),
    ("softmax", ((3, 0),), {}, ValueError, "input"),
    ("relu", ((3, 0),), {}, ValueError, "input"),
    ("linear", ((), (3, 4)), {}, ValueError, "input"),
    ("linear", ((2, 5), (3, 4)), {}, ValueError, "5.*4"),
    ("linear", ((2, 4), (3, 4), (4,)), {}, ValueError, "bias.*3.*4"),
    ("linear", ((2, 4), ()), {}, ValueError, "weight"),
    ("convert_layout", ((1, 3, 8, 8), "NCHW", "CHWN"), {}, ValueError, "target.*CHWN"),
]


@pytest.mark.parametrize(("op", "shapes", "options", "error", "words"), BAD_CALLS)
def test_explain_refuses_what_the_call_refuses(
    op: str, shapes: tuple[Any, ...], options: dict[str, Any], error: type[Exception], words: str
) -> None:
    def array(value: Any) -> Any:
        return np.zeros(value, np.float32) if isinstance(value, tuple) else value

    messages = []
    arrays = [array(v) for v in shapes], {name: array(v) for name, v in options.items()}
    for call in (
        lambda: fc.explain(op, *shapes, **options),
        lambda: fc.explain(op, *arrays[0], **arrays[1]),
        lambda: getattr(fc, op)(*arrays[0], **arrays[1]),
    ):
        with pytest.raises(error, match=words) as caught:
            call()
        messages.append(str(caught.value))
    assert len(set(messages)) == 1


@pytest.mark.parametrize("op", [*OPS, "convert_layout"])
@pytest.mark.parametrize("how", ["missing", "extra", "unknown", "twice"])
def test_explain_binds_arguments_as_the_function(op: str, how: str) -> None:
    given: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
        "missing": ((), {}),
        "extra": ((np.ones((1, 2, 4, 4), np.float32),) * 12, {}),
        "unknown": ((np.ones((1, 2, 4, 4), np.float32), 2, 2), {"strides": 1}),
        "twice": ((np.ones((1, 2, 4, 4), np.float32),), {"input": 1}),
    }
    args, kwargs = given[how]
    with pytest.raises(TypeError):
        getattr(fc, op)(*args, **kwargs)
    with pytest.raises(TypeError, match=f"^{op}: "):
        fc.explain(op, *args, **kwargs)


@pytest.mark.parametrize("dtype", ["float64", "float16", "int64", ">f4"])
def test_explain_names_the_dtype(dtype: str) -> None:
    x, w, b = np.zeros((1, 3, 8, 8), np.float32), np.zeros((4, 3, 3, 3), np.float32), np.zeros(4, np.float32)
    for name in ("input", "weight", "bias", "residual", "out"):
        given: dict[str, Any] = {"input": x, "weight": w, "bias": b, "residual": None, "out": None}
        given[name] = (np.zeros((1, 4, 6, 6), np.float32) if given[name] is None else given[name]).astype(dtype)
        for call in (fc.conv2d, lambda **options: fc.explain("conv2d", **options)):
            with pytest.raises(TypeError, match=f"{name} must be float32, got {dtype}"):
                call(**given)
    with pytest.raises(TypeError, match="input"):
        fc.explain("relu", np.float32(3))
    with pytest.raises(TypeError, match="input"):
        fc.explain("relu", 3)
    with pytest.raises(ValueError, match="input"):
        fc.explain("relu", (3, -1))


def test_explain_takes_what_the_call_takes() -> None:
    """Forms that only the functions knew: None for an extent, `out`, an array as padding, a batch of none."""
    x = np.zeros((2, 3, 8, 6), np.float32)
    assert fc.explain("adaptive_avg_pool2d", x, None)["output_shape"] == (2, 3, 8, 6)
    assert fc.explain("adaptive_avg_pool2d", x, (None, 2))["output_shape"] == (2, 3, 8, 2)
    w = np.zeros((4, 3, 3, 3), np.float32)
    padding = np.array([[1, 0], [2, 3]])
    plan = fc.explain("conv2d", x, w, padding=padding, out=np.zeros((2, 4, 7, 9), np.float32))
    assert plan["output_shape"] == (2, 4, 7, 9) == fc.conv2d(x, w, padding=padding).shape
    assert plan["output_shape"] == fc.explain("conv2d", x, w, padding=padding.tolist())["output_shape"]
    with pytest.raises(ValueError, match="out must have shape"):
        fc.explain("conv2d", x, w, padding=padding, out=x)
    assert fc.explain("conv2d", (0, 3, 8, 8), w)["output_shape"] == (0, 4, 6, 6)
    assert fc.explain("avg_pool2d", x, 2, divisor_override=3)["op"] == "avg_pool2d"
    assert fc.explain("linear", (4, 2, 5), (3, 5))["algorithm"] in ("direct", "im2col")


def test_explain_takes_torch_tensors(torch: Any) -> None:
    assert fc.explain("relu", torch.zeros(3))["op"] == "relu"
    with pytest.raises(TypeError, match="input must be float32, got bfloat16"):
        fc.explain("relu", torch.zeros(3, dtype=torch.bfloat16))


def test_explain_computes_nothing() -> None:
    """Arrays of zero strides stand for 17 GB; the plan needs only their shapes."""
    x = np.broadcast_to(np.float32(0), (64, 64, 1024, 1024))
    plan = fc.explain("conv2d", x, np.zeros((64, 64, 3, 3), np.float32), padding=1)
    assert plan["packed_bytes"] < 1 << 20 and plan["workspace_bytes"] < 64 << 20


# --- configuration ----------------------------------------------------------------------------------------------------


def test_show_config(capsys: pytest.CaptureFixture[str]) -> None:
    returned = fc.show_config()
    text = capsys.readouterr().out + (str(returned) if returned is not None else "")
    assert fc.__version__ in text
    assert str(fc._core.machine()["isa"]) in text
    assert str(fc.get_num_threads()) in text


def test_version() -> None:
    assert re.fullmatch(r"\d+\.\d+.*", fc.__version__)
    assert fc._core.__version__ == fc.__version__


# --- every row of the other ops ---

FORCED = """
import itertools, numpy as np, fastconv as fc, reference as ref
from helpers import integers, normal
rng = np.random.default_rng(5)
op, driver = {op!r}, {driver!r}
for layout, channels, size in itertools.product(("NCHW", "NHWC"), (1, 7, 16, 37), ((5, 6), (9, 33), (1, 1))):
    x = np.ascontiguousarray(ref.from_nchw(integers(rng, 2, channels, *size), layout))
    more = {{"layout": layout}}
    if op == "max_pool2d":
        arguments = (3, 2, 1)
        x[rng.random(x.shape) < 0.05] = np.nan
        values, indices = ref.max_pool2d(x, *arguments, **more)
        got = fc.max_pool2d(x, *arguments, return_indices=True, **more)
        ref.assert_exact(fc.max_pool2d(x, *arguments, **more), values)
        ref.assert_exact(got[0], values)
        assert np.array_equal(got[1], indices)
    elif op == "avg_pool2d":
        arguments = (3, 2, 1, True)
        actual = fc.avg_pool2d(x, *arguments, **more)
        ref.assert_avg_pool_close(actual, ref.avg_pool2d(x, *arguments, **more), integers=True)
    elif op == "adaptive_avg_pool2d":
        arguments = ((2, 3),)
        actual = fc.adaptive_avg_pool2d(x, *arguments, **more)
        ref.assert_avg_pool_close(actual, ref.adaptive_avg_pool2d(x, *arguments, **more), integers=True)
    elif op == "batch_norm":
        mean, var, weight, bias = (abs(normal(rng, channels)) for _ in range(4))
        arguments = (mean, var, weight, bias)
        actual = fc.batch_norm(x, *arguments, **more)
        ref.assert_batch_norm_close(actual, x, *arguments, 1e-5, layout)
    elif op == "convert_layout":
        arguments, more = (layout, "NHWC" if layout == "NCHW" else "NCHW"), {{}}
        ref.assert_exact(fc.convert_layout(x, *arguments), ref.convert_layout(x, *arguments))
    elif op == "relu":
        arguments, more = (), {{}}
        x.ravel()[0] = np.nan
        ref.assert_exact(fc.relu(x), ref.relu(x))
    elif op == "softmax":
        arguments, more = (1,), {{}}
        ref.assert_softmax_close(fc.softmax(x, 1), x, 1)
        ref.assert_softmax_close(fc.softmax(x, -1), x, -1)
    elif op == "linear":
        weight, bias = integers(rng, 19, x.shape[-1]), integers(rng, 19)
        arguments, more = (weight, bias), {{}}
        ref.assert_exact(fc.linear(x, *arguments), ref.linear(x, *arguments))
    plan = fc.explain(op, x, *arguments, **more)
    assert (plan["kernel"], plan["isa"]) == (driver, {isa!r}), plan
"""


@pytest.mark.parametrize("kernel", OTHER_KERNELS, ids=lambda r: kernel_id(r))
def test_every_row_of_the_other_ops(kernel: dict[str, Any]) -> None:
    """Forced by the environment, in a process of its own; conv2d's rows have tests of their own."""
    if not kernel["supported"]:
        pytest.skip(f"{kernel['name']}: {kernel['reason']}")
    code = FORCED.format(op=kernel["op"], driver=kernel["driver"], isa=kernel["isa"])
    done = run_python(code, env={"FASTCONV_KERNEL": kernel["driver"], "FASTCONV_MAX_ISA": kernel["isa"]})
    assert done.returncode == 0, done.stderr


# --- environment ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ISA_LEVELS[:3])
def test_max_isa_from_the_environment(level: str) -> None:
    if missing_level(level):
        pytest.skip(str(missing_level(level)))
    code = RUN_ONE + "print(fc._core.machine()['isa'], fc.explain('conv2d', x, w)['isa'])"
    done = run_python(code, env={"FASTCONV_MAX_ISA": level})
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [level, level]


def test_unknown_max_isa_is_an_error_that_names_it() -> None:
    done = run_python(RUN_ONE, env={"FASTCONV_MAX_ISA": "sse9"})
    assert done.returncode == 1, "an exception, not a crash and not silence"
    assert "FASTCONV_MAX_ISA" in done.stderr and "sse9" in done.stderr and "avx2" in done.stderr


@pytest.mark.parametrize("algorithm", ["direct", "im2col", "reference"])
def test_kernel_from_the_environment(algorithm: str) -> None:
    done = run_python(
        RUN_ONE + "print(fc.explain('conv2d', x, w, padding=1)['algorithm'])", env={"FASTCONV_KERNEL": algorithm}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == algorithm


def test_verbose_prints_one_csv_line_for_each_plan_and_run() -> None:
    done = run_python(RUN_ONE + "fc.conv2d(x, w, padding=1)", env={"FASTCONV_VERBOSE": "1"})
    assert done.returncode == 0, done.stderr
    lines = [line for line in (done.stdout + done.stderr).splitlines() if "conv2d" in line]
    plans = [line for line in lines if "plan" in line.split(",")]
    runs = [line for line in lines if "run" in line.split(",")]
    assert len(plans) == 1, "the second call finds the plan"
    assert len(runs) == 2
    for line in lines:
        fields = [field.strip() for field in line.split(",")]
        for word in ("cpu", "NCHW"):
            assert word in fields, f"{word} in {line!r}"
        assert any(word in fields for word in ("f32", "float32")), line
        assert any(name in fields for name in ("direct", "im2col")), line
    assert all(float(line.split(",")[-1]) >= 0 for line in runs), "the last field of a run is its time in ms"


def test_quiet_without_verbose() -> None:
    done = run_python(RUN_ONE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
