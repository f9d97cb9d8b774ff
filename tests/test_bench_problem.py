"""The benchmark's layers: as strings, what they count, and in suites."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
from fastconv.benchmarks import networks, ops, problem

pytest.importorskip("hypothesis", reason="hypothesis is not installed")
from hypothesis import given, settings
from hypothesis import strategies as st

RNG_SEED = 20
ONE_OF_EACH = [
    "c ic6 ih9 iw8 oc8 kh3 kw2 sh2 sw1 ph1 pw0 dh1 dw2 g2 n5",
    "dw ic6 ih9 oc6 kh3 ph1 g6 n2",
    "pixel ic20 ih1 oc12 kh1 n3",
    "fc linear ic33 oc7 n6",
    "m max_pool2d ic5 ih9 iw11 kh3 kw2 sh2 sw1 ph1 pw1 dh2 dw1 n5",
    "a avg_pool2d ic5 ih9 iw11 kh3 kw2 sh2 sw1 ph1 pw1 n5",
    "gap global_avg_pool2d ic19 ih7 iw5 n5",
    "r relu ic5 ih7 iw3 n5",
    "rpixel relu ic5 ih1",
    "b batch_norm ic19 ih5 iw4 n5",
    "s softmax ic21 ih5 iw4 n5",
    "row softmax ic100 n6",
]


def parse(text: str) -> problem.Problem:
    return problem.parse_problem(text)


# --- layers as strings ------------------------------------------------------------------------------------------------


def test_problem_reads_every_letter() -> None:
    p = parse("stem ic4 ih20 iw30 oc8 kh5 kw3 sh2 sw1 ph2 pw1 dh2 dw3 g2 n7 x9")
    assert (p.name, p.op, p.ic, p.ih, p.iw, p.oc, p.kh, p.kw) == ("stem", "conv2d", 4, 20, 30, 8, 5, 3)
    assert (p.sh, p.sw, p.ph, p.pw, p.dh, p.dw, p.g, p.n, p.x) == (2, 1, 2, 1, 2, 3, 2, 7, 9)
    assert parse(problem.format_problem(p)) == p


def test_problem_fills_in_partners() -> None:
    p = parse("ic64,ih56,oc64,kh3,ph1,sh2")
    assert (p.iw, p.kw, p.pw, p.sw, p.dh, p.dw, p.g, p.x, p.n) == (56, 3, 1, 2, 1, 1, 1, 1, 0)
    assert p.name == "problem"
    assert (p.oh, p.ow) == (28, 28)
    assert p.macs == 64 * 28 * 28 * 64 * 9


@pytest.mark.parametrize(
    ("text", "strides", "output"),
    [
        ("max_pool2d ic4 ih8 kh2", (2, 2), (4, 4)),
        ("max_pool2d ic4 ih8 iw9 kh2 kw3", (2, 3), (4, 3)),
        ("avg_pool2d ic4 ih8 kh3 sh1", (1, 1), (6, 6)),
        ("avg_pool2d ic4 ih8 kh3 kw2 sw1", (3, 1), (2, 7)),
        ("conv2d ic4 ih8 oc3 kh3", (1, 1), (6, 6)),
    ],
)
def test_stride_of_a_pool_defaults_to_its_kernel(text: str, strides: tuple[int, int], output: tuple[int, int]) -> None:
    p = parse(text)
    assert ((p.sh, p.sw), (p.oh, p.ow)) == (strides, output)


def test_each_op_fills_in_what_it_has_not() -> None:
    p = parse("top linear ic2048 oc1000 x2")
    assert (p.op, p.ih, p.iw, p.kh, p.oh, p.ow, p.x) == ("linear", 1, 1, 1, 1, 1, 2)
    assert (p.input_shape, p.output_shape) == ((1, 2048), (1, 1000))
    p = parse("global_avg_pool2d ic64 ih7 iw5 n3")
    assert (p.kh, p.kw, p.oh, p.ow, p.oc) == (7, 5, 1, 1, 64)
    assert (p.input_shape, p.output_shape) == ((3, 64, 7, 5), (3, 64, 1, 1))
    assert parse("softmax ic1000").input_shape == (1, 1000)
    assert parse("softmax ic21 ih5").output_shape == (1, 21, 5, 5)
    assert parse("relu ic64 ih1").input_shape == (1, 64, 1, 1)


def test_written_strings_are_these() -> None:
    written = [problem.format_problem(parse(text)) for text in ONE_OF_EACH]
    assert written[0] == "c ic6 ih9 iw8 oc8 kh3 kw2 sh2 sw1 ph1 pw0 dh1 dw2 g2 n5 x1"
    assert written[3] == "fc linear ic33 oc7 n6 x1"
    assert written[4] == "m max_pool2d ic5 ih9 iw11 kh3 kw2 sh2 sw1 ph1 pw1 dh2 dw1 n5 x1"
    assert written[6] == "gap global_avg_pool2d ic19 ih7 iw5 n5 x1"
    assert written[-1] == "row softmax ic100 n6 x1"


@st.composite
def problems(draw: Any) -> problem.Problem:
    """Any layer there can be, its letters in any order, some left out."""
    size = st.integers(1, 9)
    op = draw(st.sampled_from(problem.OPS))
    words = [f"ic{draw(size) * 12}"]
    if op in ("conv2d", "linear"):
        words.append(f"oc{draw(size) * 12}")
    if op != "linear":
        words += [f"ih{draw(st.integers(20, 40))}", f"iw{draw(st.integers(20, 40))}"][: draw(st.integers(1, 2))]
    if op in ("conv2d", "max_pool2d", "avg_pool2d"):
        kernels = [draw(st.integers(2, 5)), draw(st.integers(2, 5))]
        words += [f"kh{kernels[0]}", f"kw{kernels[1]}"]
        words += [f"{key}{draw(st.integers(1, 3))}" for key in draw(st.sets(st.sampled_from(["sh", "sw"])))]
        words += [f"{key}{draw(st.integers(0, 1))}" for key in draw(st.sets(st.sampled_from(["ph", "pw"])))]
        if op != "avg_pool2d":
            words += [f"{key}{draw(st.integers(1, 3))}" for key in draw(st.sets(st.sampled_from(["dh", "dw"])))]
    if op == "conv2d":
        words += [f"g{draw(st.sampled_from([1, 2, 3, 4, 6, 12]))}"]
    words += [f"{key}{draw(st.integers(1, 999))}" for key in draw(st.sets(st.sampled_from(["n", "x"])))]
    name = draw(st.sampled_from([[], ["l1.x+ds"], ["conv1"], ["ic"], ["relu_"]]))
    said = [] if op == "conv2d" and draw(st.booleans()) else [op]
    return parse(" ".join([*name, *said, *draw(st.permutations(words))]))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(problems())
def test_strings_go_round_trip(p: problem.Problem) -> None:
    text = problem.format_problem(p)
    assert parse(text) == p and problem.format_problem(parse(text)) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("ic64 ih56 oc64", "kh missing"),
        ("ic64 ih56 oc64 kh3 zz4", "'zz4'"),
        ("ic64 ih56 oc64 kh-3", "'kh-3'"),
        ("ic64 ih56 oc64 kh3 ic32", "twice (64 and 32)"),
        ("ic64 ih56 oc64 kh0", "kh must be at least 1, got 0"),
        ("ic64 ih56 oc64 kh3 g3", "ic64 is not a multiple of g3"),
        ("ic64 ih2 oc64 kh5", "does not fit the padded input (2 x 2)"),
        ("ic6400000000 ih2 oc64 kh5", "'ic6400000000'"),
        ("p maxpool ic64 ih56 kh3", "'maxpool'; letters of conv2d"),
        ("p ic64 max_pool2d ih56 kh3", "'max_pool2d'"),
        ("max_pool2d ic64 ih56 kh3 oc64", "max_pool2d has no oc, got 'oc64'; its letters: ic ih"),
        ("avg_pool2d ic64 ih56 kh3 dh2", "avg_pool2d has no dh, got 'dh2'"),
        ("relu ic64 ih56 kh3", "relu has no kh"),
        ("linear ic64 ih56 oc3", "linear has no ih"),
        ("linear ic64", "oc missing in 'linear ic64', which is a linear"),
        ("softmax ih56", "ic missing"),
        ("max_pool2d ic64 ih56", "kh missing"),
        ("max_pool2d ic64 ih56 kh3 ph2", "at most half the kernel: ph2 with kh3"),
        ("avg_pool2d ic64 ih56 kh5 kw2 ph2 pw2", "at most half the kernel: pw2 with kw2"),
        ("max_pool2d ic64 ih56 kh2 ph2 dh2", "ph2 with kh2 and dh2"),
        ("max_pool2d ic64 ih2 kh3", "does not fit"),
    ],
)
def test_problem_says_what_is_wrong(text: str, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(text)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_padding_of_a_pool_may_be_half_of_what_the_dilation_spans() -> None:
    p = parse("max_pool2d ic4 ih9 kh3 sh1 ph2 dh2")
    assert (p.oh, p.ow) == (9, 9)
    result = ops.prepare(p, ops.operands(p), "nchw", "auto")
    assert result.out.shape == (1, 4, 9, 9)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"op": "gelu"}, "unknown op 'gelu'; known: conv2d"),
        ({"op": "max_pool2d", "oc": 3}, "max_pool2d has oc4 here, got oc3"),
        ({"op": "relu", "kh": 1, "kw": 3}, "relu has kw1 here, got kw3"),
        ({"op": "avg_pool2d", "dh": 2}, "avg_pool2d has dh1 here"),
        ({"name": "two words"}, "a name is one word"),
        ({"name": "relu"}, "a name is one word"),
        ({"name": "ih3"}, "a name is one word"),
        ({"ph": -1}, "ph must be at least 0, got -1"),
        ({"n": -1}, "n must be at least 0, got -1"),
    ],
)
def test_fields_must_make_a_layer_that_a_string_can_say(changes: dict[str, Any], words: str) -> None:
    fields = {"name": "p", "ic": 4, "ih": 9, "iw": 9, "oc": 4, "kh": 3, "kw": 3}
    with pytest.raises(ValueError) as caught:
        problem.Problem(**{**fields, **changes})
    assert words in str(caught.value)


# --- what a layer does and moves --------------------------------------------------------------------------------------


def test_layout_matters_where_there_is_a_picture() -> None:
    found = {text.split()[0]: parse(text).has_layout for text in ONE_OF_EACH}
    assert {name for name, has in found.items() if not has} == {"pixel", "fc", "rpixel", "row"}
    assert parse("ic8 ih1 oc8 kh1 ph1").has_layout, "an output of 3 x 3"
    assert parse("global_avg_pool2d ic8 ih2").has_layout, "an input of 2 x 2"
    assert not parse("ic8 ih3 oc8 kh1 n5").replace_size("ih", 1).has_layout


@pytest.mark.parametrize(
    ("text", "macs", "flops", "bytes_of_two"),
    [
        ("ic3 ih4 oc5 kh3", 5 * 4 * 3 * 9, 2 * 540, 4 * (2 * (3 * 16 + 5 * 4) + 5 * 27 + 5)),
        ("ic4 ih4 oc4 kh3 ph1 g4", 4 * 16 * 9, 2 * 576, 4 * (2 * (64 + 64) + 4 * 9 + 4)),
        ("ic2 ih4 oc3 kh1 sh2", 3 * 4 * 2, 48, 4 * (2 * (2 * 4 + 3 * 4) + 3 * 2 + 3)),
        ("linear ic10 oc3", 30, 60, 4 * (2 * 13 + 33)),
        ("max_pool2d ic2 ih4 kh2", 0, 2 * 4 * 3, 4 * 2 * (32 + 8)),
        ("avg_pool2d ic2 ih5 kh2", 0, 2 * 4 * 4, 4 * 2 * (32 + 8)),
        ("global_avg_pool2d ic2 ih5", 0, 50, 4 * 2 * (50 + 2)),
        ("relu ic2 ih5", 0, 50, 4 * 2 * 100),
        ("batch_norm ic2 ih5", 0, 100, 4 * (2 * 100 + 8)),
        ("softmax ic10", 0, 50, 4 * 2 * 20),
    ],
)
def test_counts_by_hand(text: str, macs: int, flops: int, bytes_of_two: int) -> None:
    p = parse(text)
    assert (p.macs, p.flops, p.traffic(2)) == (macs, flops, bytes_of_two)
    assert p.with_batch(2).bytes == bytes_of_two and p.bytes == p.traffic(1)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(problems())
def test_traffic_is_what_the_windows_reach(p: problem.Problem) -> None:
    seen = np.zeros((p.ih + 2 * p.ph, p.iw + 2 * p.pw), bool)
    for i, j in itertools.product(range(p.oh), range(p.ow)):
        top, left = i * p.sh, j * p.sw
        seen[top : top + p.dh * (p.kh - 1) + 1 : p.dh, left : left + p.dw * (p.kw - 1) + 1 : p.dw] = True
    reached = int(seen[p.ph : p.ph + p.ih, p.pw : p.pw + p.iw].sum())
    operands = ops.operands(dataclasses.replace(p, n=1))
    parameters = sum(
        a.size for a in (operands.weight, operands.bias, operands.mean, operands.variance) if a is not None
    )
    assert p.parameters == parameters
    assert p.traffic(1) == 4 * (p.ic * reached + parameters + p.oc * p.oh * p.ow)


def test_batch_of_the_string_wins() -> None:
    assert parse("relu ic3 ih4").with_batch(8).n == 8
    assert parse("relu ic3 ih4 n2").with_batch(8).n == 2


def test_one_size_can_change() -> None:
    p = parse("c ic16 ih20 iw10 oc8 kh3 x4")
    assert p.replace_size("n", 7) == dataclasses.replace(p, n=7)
    assert p.replace_size("ic", 48) == dataclasses.replace(p, ic=48)
    assert p.replace_size("oc", 1) == dataclasses.replace(p, oc=1)
    assert p.replace_size("ih", 30) == dataclasses.replace(p, ih=30, iw=15)
    square = parse("ic16 ih20 oc8 kh3").replace_size("ih", 7)
    assert (square.ih, square.iw) == (7, 7)
    for letter in ("ic", "oc"):
        wide = parse("dw ic16 ih20 oc16 kh3 g16").replace_size(letter, 24)
        assert (wide.ic, wide.oc, wide.g) == (24, 24, 24)
    pool = parse("max_pool2d ic16 ih20 kh3").replace_size("ic", 5)
    assert (pool.ic, pool.oc) == (5, 5)
    whole = parse("global_avg_pool2d ic16 ih7 iw14").replace_size("ih", 9)
    assert (whole.kh, whole.kw, whole.oh, whole.ow) == (9, 18, 1, 1)
    assert parse("linear ic5 oc6").replace_size("oc", 9).output_shape == (1, 9)
    single = parse("ic1 ih5 oc1 kh1").replace_size("oc", 3)
    assert (single.ic, single.oc, single.g) == (1, 3, 1), "one group is not depthwise"


@pytest.mark.parametrize(
    ("text", "letter", "value", "words"),
    [
        ("ic16 ih20 oc8 kh3 g2", "ic", 15, "ic15 is not a multiple of g2"),
        ("ic16 ih20 oc32 kh3 g16", "oc", 24, "oc24 is not a multiple of g16"),
        ("ic16 ih20 oc8 kh3", "kh", 5, "cannot vary 'kh' of conv2d; can: n, ic, oc, ih"),
        ("relu ic16 ih20", "oc", 5, "cannot vary 'oc' of relu; can: n, ic, ih"),
        ("linear ic16 oc20", "ih", 5, "cannot vary 'ih' of linear; can: n, ic, oc"),
        ("ic16 ih20 oc8 kh3", "n", 0, "n must be at least 1, got 0"),
        ("ic16 ih20 oc8 kh3", "ih", 2, "does not fit"),
    ],
)
def test_a_size_that_does_not_fit_is_said(text: str, letter: str, value: int, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(text).replace_size(letter, value)
    assert words in str(caught.value)


# --- suites -----------------------------------------------------------------------------------------------------------


def total(name: str, prefix: str = "", what: str = "macs") -> int:
    return sum(getattr(p, what) * p.x for p in problem.load_suite(name).problems if p.name.startswith(prefix))


def test_resnet50_suite_is_the_network() -> None:
    suite = problem.load_suite("resnet50")
    assert (len(suite.problems), sum(p.x for p in suite.problems)) == (23, 53)
    classifier = 2048 * 1000
    assert total("resnet50") + classifier == 4_089_184_256  # torchvision: 4.089 G
    assert suite.network == "resnet50"


def test_the_other_networks_have_their_published_sizes() -> None:
    """Multiply-adds as torchvision's documentation or the paper states them; parameters as Keras and TensorFlow do."""
    assert (total("resnet18") + 512 * 1000, problem.load_suite("resnet18").network) == (1_814_073_344, "resnet18")
    dense = 25088 * 4096 + 4096 * 4096 + 4096 * 1000
    assert total("vgg16") == 15_346_630_656 and round((total("vgg16") + dense) / 1e9, 2) == 15.47
    assert total("mobilenet_v2") + 1280 * 1000 == 300_774_272  # the paper's 300 M
    assert problem.load_suite("mobilenet_v2").network == "mobilenet_v2"
    assert round(total("small_cnn", "r20") / 1e6, 1) == 40.6
    assert total("small_cnn", "mnist.", "parameters") == 34_826
    assert total("small_cnn", "cifar.", "parameters") == 122_570
    first = {p.name: p.parameters for p in problem.load_suite("small_cnn").problems}
    assert (first["mnist.conv1"], first["cifar.conv1"], first["cifar.conv2"]) == (320, 896, 18_496)


def test_channels_follow_on_in_the_suites_of_a_network() -> None:
    """Each layer's input is the picture or what some other layer gives; so a typing error in a size is found."""
    for name in ("resnet18", "resnet50", "vgg16", "mobilenet_v2"):
        layers = problem.load_suite(name).problems
        made = {(3, 224)} | {(p.oc, p.oh) for p in layers}
        after_pool = {(c, (h - 1) // 2 + 1) for c, h in made}
        known = made | (after_pool if name in ("resnet18", "resnet50", "vgg16") else set())
        assert not [p.name for p in layers if (p.ic, p.ih) not in known]


def test_counts_of_the_element_ops_are_those_of_resnet50() -> None:
    layers = problem.load_suite("elementwise").problems
    counts = {op: sum(p.x for p in layers if p.op == op) for op in ("relu", "batch_norm")}
    assert counts == {"relu": 49, "batch_norm": 53}
    made: dict[tuple[int, int], int] = {}
    for p in problem.load_suite("resnet50").problems:
        made[p.oc, p.oh] = made.get((p.oc, p.oh), 0) + p.x
    assert {(p.ic, p.ih): p.x for p in layers if p.op == "batch_norm"} == made


@pytest.mark.parametrize("name", problem.suite_names())
def test_every_suite_says_what_it_is(name: str) -> None:
    suite = problem.load_suite(name)
    assert suite.problems and suite.about and suite.max_time > 0
    assert suite.network in (None, *networks.MACS)
    same = [dataclasses.replace(p, name="p", x=1) for p in suite.problems]
    assert len(set(same)) == len(same), "one line a distinct layer"


def test_suites_that_ship() -> None:
    assert set(problem.suite_names()) == {
        "elementwise", "mobilenet_v2", "pooling", "quick", "resnet18", "resnet50", "small_cnn", "vgg16",
    }  # fmt: skip
    assert not problem.load_suite("quick").peers
    layers = problem.load_suite("mobilenet_v2").problems
    depthwise = [p for p in layers if "dw" in p.name]
    assert depthwise == [p for p in layers if p.g == p.ic == p.oc]
    assert (sum(p.x for p in depthwise), sum(p.x for p in layers)) == (17, 52)
    assert {p.op for p in problem.load_suite("pooling").problems} == {"max_pool2d", "avg_pool2d", "global_avg_pool2d"}


def test_unknown_suite_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"'resnet5'; known: .*quick.*resnet50"):
        problem.load_suite("resnet5")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("@speed 3", "line 1: unknown setting @speed"),
        ("a ic1 ih1 oc1 kh1\na ic2 ih1 oc1 kh1", "two layers are named 'a'"),
        ("# only words\nb ic1", "line 2"),
        ("@about x\n@about y", "line 2: @about is given twice"),
        ("@max-time soon", "line 1: @max-time is a number of seconds above 0, got 'soon'"),
        ("@max-time -3", "got '-3'"),
        ("@max-time nan", "got 'nan'"),
        ("@peers maybe", "@peers is yes or no, got 'maybe'"),
        ("a relu ic1 ih1 kh3", "line 1: problem 'a': relu has no kh"),
    ],
)
def test_bad_suite_names_the_line(text: str, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        problem.parse_suite("mine", text)
    assert words in str(caught.value)


def test_a_suite_holds_any_op_and_its_settings() -> None:
    text = (
        "@about all sorts\n@max-time 7.5\n@peers no\n@network resnet18\n" + "\n".join(ONE_OF_EACH) + "\nic1 ih1 oc1 kh1"
    )
    suite = problem.parse_suite("mine", text)
    assert (suite.about, suite.max_time, suite.peers, suite.network) == ("all sorts", 7.5, False, "resnet18")
    assert [p.op for p in suite.problems] == [parse(text).op for text in ONE_OF_EACH] + ["conv2d"]
    assert suite.problems[-1].name == f"line{5 + len(ONE_OF_EACH)}"
