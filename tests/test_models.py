"""Networks: shapes, counts, options, errors, predictions, pickles, caches, threads."""

from __future__ import annotations

import copy
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import fastconv as fc
from fastconv import models
from fastconv.models import _net
from helpers import LAYOUTS, max_isa, usable_levels

Array = NDArray[Any]
MAKERS = {name: getattr(models, f"resnet{name}") for name in (18, 34, 50, 101, 152)}
# torchvision's own counts and multiply-adds (its documentation: 1.814, 3.664, 4.089, 7.801, 11.514 GFLOPS).
PARAMETERS = {18: 11_689_512, 34: 21_797_672, 50: 25_557_032, 101: 44_549_160, 152: 60_192_808}
MMACS = {18: 1814, 34: 3664, 50: 4089, 101: 7801, 152: 11514}


def batch(n: int, layout: str, size: tuple[int, int] = (48, 64), seed: int = 0) -> Array:
    x = np.random.default_rng(seed).standard_normal((n, *size, 3), dtype=np.float32)
    return x if layout == "NHWC" else np.ascontiguousarray(x.transpose(0, 3, 1, 2))


@pytest.fixture(scope="module")
def state() -> dict[str, Array]:
    """ResNet-18 with ten classes and weights of every kind away from their defaults."""
    rng = np.random.default_rng(3)
    made: dict[str, Array] = {}
    for key, value in models.init_state(18, 10, seed=7).items():
        if key.endswith("running_var") or (value.ndim == 1 and key.endswith(".weight")):
            made[key] = (value * rng.uniform(0.6, 1.4, value.shape)).astype(np.float32)
        elif value.ndim == 1:
            made[key] = rng.normal(0, 0.1, value.shape).astype(np.float32)
        else:
            made[key] = value
    return made


@pytest.fixture(scope="module")
def nets(state: dict[str, Array]) -> dict[str, models.Net]:
    return {layout: models.resnet18(state, num_classes=10, layout=layout) for layout in LAYOUTS}


# --- counts and shapes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", MAKERS)
def test_spec_has_torchvisions_parameters(depth: int) -> None:
    spec = models.state_spec(depth)
    learnt = sum(int(np.prod(shape)) for key, shape in spec.items() if "running_" not in key)
    assert learnt == PARAMETERS[depth]
    if depth == 50:
        assert len(spec) == 267
        assert spec["layer2.0.conv2.weight"] == (128, 128, 3, 3)
        assert spec["layer2.0.downsample.0.weight"] == (512, 256, 1, 1)


@pytest.mark.parametrize("depth", MAKERS)
def test_summary_counts(depth: int) -> None:
    table = MAKERS[depth]().summary()
    assert table.parameters == PARAMETERS[depth]
    assert round(table.macs / 1e6) == MMACS[depth]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_summary_of_resnet50(layout: str) -> None:
    net = models.resnet50(layout=layout)
    table = net.summary(batch=2)
    assert table.macs == 2 * 4_089_184_256
    data = json.loads(json.dumps(table.as_dict()))
    assert data["parameters"] == 25_557_032
    assert data["macs"] == table.macs
    rows = {row["layer"]: row for row in data["layers"]}
    assert len(rows) == 53 + 1 + 2  # convolutions, classifier, pools
    wide = [2, 56, 56, 256] if layout == "NHWC" else [2, 256, 56, 56]
    assert rows["layer1.0.conv3"]["output_shape"] == wide
    assert rows["layer1.0.conv3"]["parameters"] == 64 * 256 + 2 * 256
    assert rows["fc"] == {**rows["fc"], "output_shape": [2, 1000], "parameters": 2_049_000, "macs": 2 * 2_048_000}
    assert all(row["kernel"] for row in rows.values() if row["kind"] == "conv")
    # v1.5: the 3x3 has the stride, the 1x1 before it still sees the large picture.
    small, large = (rows[f"layer2.0.conv{k}"]["output_shape"][1 if layout == "NHWC" else 2] for k in (2, 1))
    assert (small, large) == (28, 56)
    text = str(table)
    assert "25 557 032" in text
    assert str(round(table.macs / 1e6, 2)) in text
    assert all(name in text for name in rows)


def test_summary_agrees_with_the_programs_own_shapes() -> None:
    net = models.resnet50()
    steps = net.program((1, 224, 224, 3)).steps()
    rows = net.summary().rows
    assert sum(int(step.get("macs", 0)) for step in steps if step["op"] in ("conv2d", "linear")) == sum(
        row["macs"] for row in rows
    )
    assert net.layer_names == tuple(row["layer"] for row in rows)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [(224, 224), (64, 48), (33, 65), (1, 1), (7, 300)])
def test_any_picture_size(nets: dict[str, models.Net], layout: str, size: tuple[int, int]) -> None:
    logits = nets[layout](batch(2, layout, size))
    assert logits.shape == (2, 10)
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_empty_batch(nets: dict[str, models.Net], layout: str) -> None:
    logits = nets[layout](batch(0, layout))
    assert logits.shape == (0, 10)
    assert logits.dtype == np.float32


def test_layouts_agree(nets: dict[str, models.Net]) -> None:
    x = batch(3, "NHWC")
    a, b = nets["NHWC"](x), nets["NCHW"](np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
    # Two orders of summation through 18 layers: each is some 1e-6 from the exact answer.
    assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(a)
    assert np.linalg.norm(a[0] - a[1]) > 1e-2 * np.linalg.norm(a[0])


def test_strided_input_gives_the_same_bits(nets: dict[str, models.Net]) -> None:
    x = batch(2, "NHWC")
    wide = np.full((4, 48, 64, 6), np.nan, np.float32)
    wide[::2, :, :, ::2] = x
    assert np.array_equal(nets["NHWC"](wide[::2, :, :, ::2]), nets["NHWC"](x))
    assert np.array_equal(nets["NCHW"](x.transpose(0, 3, 1, 2)), nets["NCHW"](batch(2, "NCHW")))


def test_folded_batch_norm_is_batch_norm(state: dict[str, Array]) -> None:
    """The first layer, by the definition of batch norm in float64, through a network whose other layers do nothing."""
    x = batch(1, "NCHW", (32, 32))
    net = models.resnet18(state, num_classes=10, layout="NCHW")
    weight, bias = net._folded["conv1"]
    exact = {key: value.astype(np.float64) for key, value in state.items() if key.startswith(("conv1", "bn1"))}
    padded = np.pad(x, ((0, 0), (0, 0), (3, 3), (3, 3))).astype(np.float64)
    window = padded[0, :, 8:15, 10:17]
    plain = (exact["conv1.weight"] * window).sum((1, 2, 3))
    normal = (plain - exact["bn1.running_mean"]) / np.sqrt(exact["bn1.running_var"] + 1e-5)
    expected = normal * exact["bn1.weight"] + exact["bn1.bias"]
    folded = (weight.astype(np.float64) * window).sum((1, 2, 3)) + bias
    np.testing.assert_allclose(folded, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


# --- seeded weights -------------------------------------------------------------------------------------------------


def test_seeded_weights_repeat() -> None:
    first, again, other = (models.init_state(18, 10, seed) for seed in (0, 0, 1))
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert not np.array_equal(first["conv1.weight"], other["conv1.weight"])
    assert {key: value.shape for key, value in first.items()} == models.state_spec(18, 10)
    x = batch(1, "NHWC")
    assert np.array_equal(models.resnet18(num_classes=10)(x), models.resnet18(first, num_classes=10)(x))


@pytest.mark.parametrize("depth", [18, 50, 152])
def test_seeded_activations_stay_in_range(depth: int) -> None:
    x = batch(2, "NHWC", (64, 64))
    logits = MAKERS[depth](num_classes=50)(x)
    assert 1e-3 < logits.std() < 10
    assert np.linalg.norm(logits[0] - logits[1]) > 1e-2 * np.linalg.norm(logits[0])


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "shape", "words"),
    [
        ("NHWC", (48, 64, 3), ["4 axes", "(48, 64, 3)", "NHWC"]),
        ("NHWC", (1, 1, 48, 64, 3), ["4 axes"]),
        ("NHWC", (1, 3, 48, 64), ["3 channels", "64", "layout='NCHW'"]),
        ("NCHW", (1, 48, 64, 3), ["3 channels", "48", "layout='NHWC'"]),
        ("NHWC", (1, 48, 64, 4), ["3 channels", "got 4"]),
        ("NHWC", (1, 0, 64, 3), ["height", "(1, 0, 64, 3)"]),
        ("NCHW", (0, 3, 5, 0), ["width", "(0, 3, 5, 0)"]),
    ],
)
def test_wrong_shapes(nets: dict[str, models.Net], layout: str, shape: tuple[int, ...], words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        nets[layout](np.zeros(shape, np.float32))
    assert "input" in str(caught.value)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("dtype", ["float64", "float16", "uint8", "int64", "complex64"])
def test_wrong_dtype(nets: dict[str, models.Net], dtype: str) -> None:
    with pytest.raises(TypeError, match=f"input.*{dtype}"):
        nets["NHWC"](np.zeros((1, 32, 32, 3), dtype))


@pytest.mark.parametrize("thing", [None, [[1.0]], "cat.jpg", 3])
def test_not_an_array(nets: dict[str, models.Net], thing: Any) -> None:
    with pytest.raises(TypeError, match="input"):
        nets["NHWC"](thing)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"layout": "nhwc"}, ValueError, "layout"),
        ({"layout": None}, TypeError, "layout"),
        ({"algorithm": "fastest"}, ValueError, "fastest"),
        ({"algorithm": ()}, ValueError, "algorithm"),
        ({"algorithm": 3}, TypeError, "algorithm"),
        ({"num_classes": 0}, ValueError, "num_classes"),
        ({"num_classes": 2.0}, TypeError, "num_classes"),
        ({"weights": 5}, TypeError, "weights"),
        ({"weights": [1, 2]}, TypeError, "weights"),
        ({"weights": {}}, ValueError, "conv1.weight"),
    ],
)
def test_wrong_options(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        models.resnet18(**options)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        models.resnet18(tmp_path / "none.pth")


KEY_FAULTS: dict[str, tuple[str, Any]] = {
    "missing": ("layer3.1.bn2.running_var", None),
    "extra": ("layer3.1.conv3.weight", np.zeros((1, 1, 1, 1), np.float32)),
    "misshapen": ("layer2.0.downsample.0.weight", np.zeros((128, 64, 3, 3), np.float32)),
    "transposed": ("fc.weight", np.zeros((512, 10), np.float32)),
    "scalar": ("bn1.bias", np.float32(0)),
}


@pytest.mark.parametrize("fault", KEY_FAULTS)
def test_wrong_keys_are_named(state: dict[str, Array], fault: str, tmp_path: Path) -> None:
    key, value = KEY_FAULTS[fault]
    bad = {k: v for k, v in state.items() if k != key}
    if value is not None:
        bad[key] = value
    with pytest.raises(ValueError) as caught:
        models.resnet18(bad, num_classes=10)
    assert key in str(caught.value)
    path = tmp_path / "bad.npz"
    np.savez(path, **bad)
    with pytest.raises(ValueError) as caught:
        models.resnet18(path, num_classes=10)
    assert key in str(caught.value)
    assert "bad.npz" in str(caught.value)


def test_wrong_number_of_classes_names_the_classifier(state: dict[str, Array]) -> None:
    with pytest.raises(ValueError, match=r"fc\.weight"):
        models.resnet18(state, num_classes=11)


def test_weights_of_another_depth(state: dict[str, Array]) -> None:
    with pytest.raises(ValueError, match=r"layer1\.2\.conv1\.weight"):
        models.resnet34(state, num_classes=10)


def test_integer_weights_and_negative_variance(state: dict[str, Array]) -> None:
    with pytest.raises(TypeError, match=r"layer1\.0\.conv1\.weight.*int32"):
        models.resnet18({**state, "layer1.0.conv1.weight": np.zeros((64, 64, 3, 3), np.int32)}, num_classes=10)
    with pytest.raises(ValueError, match=r"layer4\.1\.bn2\.running_var"):
        models.resnet18({**state, "layer4.1.bn2.running_var": np.full(512, -1, np.float32)}, num_classes=10)
    with pytest.raises(TypeError, match=r"bn1\.bias"):
        models.resnet18({**state, "bn1.bias": object()}, num_classes=10)
    with pytest.raises(TypeError, match="7"):
        models.resnet18({**state, 7: state["bn1.bias"]}, num_classes=10)


def test_counters_are_ignored_and_dtypes_widened(state: dict[str, Array]) -> None:
    x = batch(1, "NHWC")
    plain = models.resnet18(state, num_classes=10)(x)
    counted = {**state, "bn1.num_batches_tracked": np.int64(3)}
    assert np.array_equal(models.resnet18(counted, num_classes=10)(x), plain)
    wide = {key: value.astype(np.float64) for key, value in state.items()}
    assert np.array_equal(models.resnet18(wide, num_classes=10)(x), plain)
    half = {key: value.astype(np.float16) for key, value in state.items()}
    widened = {key: value.astype(np.float32) for key, value in half.items()}
    assert np.array_equal(models.resnet18(half, num_classes=10)(x), models.resnet18(widened, num_classes=10)(x))


def test_the_callers_arrays_are_not_kept(state: dict[str, Array]) -> None:
    mine = {key: value.copy() for key, value in state.items()}
    net = models.resnet18(mine, num_classes=10)
    x = batch(1, "NHWC")
    before = net(x)
    for value in mine.values():
        value.fill(np.nan)
    assert np.array_equal(net(batch(1, "NHWC")), before)
    assert np.array_equal(
        net(batch(1, "NHWC", (32, 32))), models.resnet18(state, num_classes=10)(batch(1, "NHWC", (32, 32)))
    )


# --- predict --------------------------------------------------------------------------------------------------------


def test_predict() -> None:
    pytest.importorskip("PIL", reason="Pillow is not installed")
    net = models.resnet18(layout="NCHW")
    path = fc.image.sample_path()
    pixels = np.random.default_rng(0).integers(0, 256, (300, 260, 3), dtype=np.uint8)
    found = net.predict([path, pixels, Path(path)], topk=7)
    assert [len(top) for top in found] == [7, 7, 7]
    assert found[0] == found[2] != found[1]
    logits = net(fc.image.preprocess([path], "NCHW"))[0].astype(np.float64)
    exact = np.exp(logits - logits.max())
    exact /= exact.sum()
    order = np.argsort(-exact)[:7]
    assert [index for index, _, _ in found[0]] == list(order)
    np.testing.assert_allclose([p for _, _, p in found[0]], exact[order], rtol=1e-5)
    assert [label for _, label, _ in found[0]] == [models.labels.imagenet()[i] for i in order]
    assert net.predict(path) == net.predict(np.asarray(fc.image.decode(path)))
    assert net.predict([]) == []


def test_predict_in_pieces_equals_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("PIL", reason="Pillow is not installed")
    monkeypatch.setattr(_net, "PREDICT_BATCH", 2)
    net = models.resnet18(num_classes=12)
    pixels = list(np.random.default_rng(1).integers(0, 256, (5, 80, 90, 3), dtype=np.uint8))
    together = net.predict(pixels, topk=12, resize=64, crop=48)
    assert together == [net.predict(one, topk=12, resize=64, crop=48)[0] for one in pixels]
    assert together[0][0][1] == f"class {together[0][0][0]}"
    with pytest.raises(TypeError, match=r"images\[4\]"):
        net.predict([*pixels[:4], pixels[4].astype(np.float32)])


@pytest.mark.parametrize(("topk", "error"), [(0, ValueError), (1001, ValueError), (2.5, TypeError), (True, TypeError)])
def test_predict_topk(topk: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="topk"):
        models.resnet18().predict([], topk=topk)


def test_predict_topk_of_few_classes() -> None:
    pytest.importorskip("PIL", reason="Pillow is not installed")
    net = models.resnet18(num_classes=3)
    picture = np.zeros((40, 40, 3), np.uint8)
    assert len(net.predict(picture)[0]) == 3
    assert len(net.predict(picture, 2)[0]) == 2
    with pytest.raises(ValueError, match=r"topk.*5.*3"):
        net.predict(picture, 5)
    with pytest.raises(ValueError, match=r"topk.*5.*3"):
        net.predict(picture, topk=5)


def test_summary_prints_as_the_table() -> None:
    table = models.resnet18(num_classes=3).summary(height=32, width=32)
    assert repr(table) == str(table)
    assert "layer4.1.conv2" in repr(table)


def test_labels() -> None:
    names = models.labels.imagenet()
    assert len(names) == len(set(names)) == 1000
    # Well-known places in the list, e.g. in torchvision's documentation of IMAGENET1K_V1.
    assert (names[0], names[281], names[285], names[999]) == ("tench", "tabby", "Egyptian cat", "toilet tissue")


# --- pickles, copies, caches, threads -------------------------------------------------------------------------------


def test_pickle_and_copies(nets: dict[str, models.Net]) -> None:
    net = nets["NCHW"]
    x = batch(2, "NCHW")
    expected = net(x)
    data = pickle.dumps(net)
    assert len(data) < 4 * net.parameters + 200_000  # weights and options, no packed forms, no programs
    for twin in (pickle.loads(data), copy.copy(net), copy.deepcopy(net)):
        assert np.array_equal(twin(x), expected)
        assert (twin.layout, twin.num_classes, twin.algorithm) == ("NCHW", 10, "auto")
        assert repr(twin) == repr(net)
    chosen = models.resnet18(num_classes=3, algorithm=["im2col", "direct"])
    assert pickle.loads(pickle.dumps(chosen)).algorithm == ("im2col", "direct")


def test_program_cache_is_bounded(nets: dict[str, models.Net]) -> None:
    net = copy.copy(nets["NHWC"])
    first = net(batch(1, "NHWC", (20, 20)))
    program = net.program((1, 20, 20, 3))
    assert net.program((1, 20, 20, 3)) is program
    for size in range(21, 21 + 2 * _net.MAX_PROGRAMS):
        net(batch(1, "NHWC", (size, 20)))
    assert len(net._programs) == _net.MAX_PROGRAMS
    assert net.program((1, 20, 20, 3)) is not program
    assert np.array_equal(net(batch(1, "NHWC", (20, 20))), first)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_plain_array_of_the_last_shape_is_answered_at_once(nets: dict[str, models.Net], layout: str) -> None:
    net = copy.copy(nets[layout])
    x = batch(1, layout)
    expected = net(x)
    program, epoch = net.program(x.shape), fc._core.plan_epoch()
    answer = program.answer(x)
    assert answer is not None and answer is not program.answer(x)
    assert (answer.dtype, answer.flags.c_contiguous, answer.flags.writeable) == (np.float32, True, True)
    assert np.array_equal(answer, expected)
    # Everything else is left to the whole call, which judges, converts or complains.
    wide = np.zeros((*x.shape[:3], 2 * x.shape[3]), np.float32)
    wide[..., ::2] = x
    shifted = np.frombuffer(b"." + x.tobytes(), np.float32, offset=1).reshape(x.shape)  # not aligned
    for other in (wide[..., ::2], shifted, np.ma.array(x)):
        assert program.answer(other) is None
        assert np.array_equal(net(other), expected)
    for wrong in (
        x[0],
        x[:, :2].copy(),
        np.concatenate([x, x]),
        x.astype(np.float64),
        x.astype(">f4"),
        x.tolist(),
        None,
    ):
        assert program.answer(wrong) is None
    with pytest.raises(TypeError, match="float64"):
        net(x.astype(np.float64))
    assert np.array_equal(net(np.concatenate([x, x])), np.concatenate([expected, expected]))
    assert np.array_equal(net(x), expected)
    for level in usable_levels():
        with max_isa(level):
            assert (program.answer(x) is None) == (fc._core.plan_epoch() != epoch)


def test_a_program_of_two_inputs_answers_none() -> None:
    program = fc._core.Program()
    a, b = program.input((1, 2, 2, 3)), program.input((1, 2, 2, 3))
    program.output(program.relu(a))
    program.output(program.relu(b))
    program.finalize()
    assert program.answer(np.ones((1, 2, 2, 3), np.float32)) is None


def test_packed_weights_are_shared_by_programs(nets: dict[str, models.Net]) -> None:
    net = copy.deepcopy(nets["NHWC"])
    net(batch(1, "NHWC"))
    packed = sum(weights.packed_bytes for weights in net._weights.values())
    assert packed > 0
    net(batch(2, "NHWC"))
    assert sum(weights.packed_bytes for weights in net._weights.values()) == packed


def test_isa_cap_makes_a_new_program(nets: dict[str, models.Net]) -> None:
    net = copy.copy(nets["NHWC"])
    x = batch(1, "NHWC")
    expected = net(x)
    seen = set()
    for level in usable_levels():
        with max_isa(level):
            logits = net(x)
            program = net.program(x.shape)
        seen.add(id(program))
        assert {step["isa"] for step in program.steps() if step["op"] == "conv2d"} <= {level, "scalar"}
        assert np.linalg.norm(logits - expected) <= 1e-5 * np.linalg.norm(expected)
    assert len(seen) == len(usable_levels())


@pytest.mark.parametrize("algorithm", ["direct", "im2col"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_algorithm_is_used(nets: dict[str, models.Net], state: dict[str, Array], layout: str, algorithm: str) -> None:
    net = models.resnet18(state, num_classes=10, layout=layout, algorithm=algorithm)
    x = batch(1, layout)
    a, b = net(x), nets[layout](x)
    assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)
    layers = dict(zip(net.layer_names, net.program(x.shape).steps(), strict=True))
    used = {step["algorithm"] for name, step in layers.items() if name not in ("maxpool", "avgpool", "fc")}
    assert used == {algorithm}  # the classifier is no convolution to the caller


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bits_do_not_depend_on_batch_threads_or_callers(nets: dict[str, models.Net], layout: str) -> None:
    net = nets[layout]
    x = batch(5, layout)
    expected = np.concatenate([net(x[i : i + 1]) for i in range(5)])
    assert np.array_equal(net(x), expected)
    assert np.array_equal(net(x[::-1])[::-1], expected)
    with fc.threads(1):
        assert np.array_equal(net(x), expected)
    with ThreadPoolExecutor(8) as pool:
        for logits in pool.map(net, [x] * 24):
            assert np.array_equal(logits, expected)


def test_first_calls_from_many_threads(state: dict[str, Array]) -> None:
    net = models.resnet18(state, num_classes=10)
    inputs = [batch(1 + i % 3, "NHWC", (32 + 8 * (i % 2), 32), seed=i) for i in range(16)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(net, inputs))
    assert len(net._programs) == 6
    assert all(np.array_equal(logits, net(x)) for logits, x in zip(together, inputs, strict=True))
