"""Shapes that the tests walk. Plain data; `case_id` names a case in pytest's output.

CONV_CASES     small shapes at the edges of register tiles, vectors, padding, strides, dilation and groups
DEPTHWISE_CASES, GROUPED_CASES    the shapes of the grouped kernels
RESNET50_CONVS the 23 distinct convolutions of ResNet-50 (v1.5, 224x224)
POOL_CASES     pooling windows
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from reference import Sides, conv_output_size, pair, resolve_padding


@dataclass(frozen=True)
class ConvCase:
    """A convolution; letters as everywhere in the project. `padding` in any form of the contract."""

    name: str
    n: int
    ic: int
    ih: int
    iw: int
    oc: int
    kh: int
    kw: int
    stride: tuple[int, int] = (1, 1)
    padding: Any = 0
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    bias: bool = False
    residual: bool = False
    activation: str | None = None

    @property
    def sides(self) -> Sides:
        return resolve_padding(self.padding, (self.ih, self.iw), (self.kh, self.kw), self.stride, self.dilation)

    @property
    def output_size(self) -> tuple[int, int]:
        rows, columns = self.sides
        return (
            conv_output_size(self.ih, self.kh, self.stride[0], rows, self.dilation[0]),
            conv_output_size(self.iw, self.kw, self.stride[1], columns, self.dilation[1]),
        )

    def options(self) -> dict[str, Any]:
        """Keyword arguments of `conv2d`, less the layout and what are arrays."""
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
            "activation": self.activation,
        }


@dataclass(frozen=True)
class PoolCase:
    name: str
    n: int
    c: int
    ih: int
    iw: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: Any = 0
    dilation: tuple[int, int] = (1, 1)

    @property
    def torch_can(self) -> bool:
        """Whether PyTorch accepts it: the same padding before and after, at most half of the kernel without its
        dilation."""
        if isinstance(self.padding, str) or (isinstance(self.padding, tuple) and isinstance(self.padding[0], tuple)):
            return False
        return all(p <= k // 2 for p, k in zip(pair(self.padding), self.kernel, strict=True))


def case_id(case: ConvCase | PoolCase) -> str:
    return case.name


def _square(name: str, ic: int, size: int, oc: int, k: int, s: int = 1, p: int = 0, **more: Any) -> ConvCase:
    return ConvCase(name, 1, ic, size, size, oc, k, k, (s, s), p, **more)


# Output channels and pixels just below, at and above the register tiles 14x32 (AVX-512), 6x16 (AVX2), 4x8 (scalar) and
# the vector widths 16 and 8.
_TILE_CHANNELS = [1, 3, 5, 6, 7, 8, 9, 12, 15, 16, 17, 24, 25, 31, 32, 33, 48, 64, 65]
_TILE_PIXELS = [1, 2, 3, 4, 5, 6, 7, 8, 13, 14, 15, 28, 29]
_INPUT_CHANNELS = [1, 3, 5, 16, 31, 32, 33, 48, 64]

_TILES = [
    *(ConvCase(f"oc{oc}", 1, 5, 3, 5, oc, 3, 3, (1, 1), 1) for oc in _TILE_CHANNELS),
    *(ConvCase(f"ow{ow}", 1, 4, 2, ow, 33, 3, 3, (1, 1), 1) for ow in _TILE_PIXELS),
    *(ConvCase(f"1x1_ow{ow}", 1, 17, 1, ow, 40, 1, 1) for ow in _TILE_PIXELS),
    *(ConvCase(f"ic{ic}", 1, ic, 5, 7, 9, 3, 3, (1, 1), 1) for ic in _INPUT_CHANNELS),
    *(ConvCase(f"1x1_ic{ic}", 2, ic, 3, 5, 33, 1, 1) for ic in _INPUT_CHANNELS),
]

_SHAPES = [
    ConvCase("pixel", 1, 1, 1, 1, 1, 1, 1),
    ConvCase("pixel_3x3_padded", 2, 3, 1, 1, 5, 3, 3, (1, 1), 1),
    ConvCase("kernel_is_image", 2, 6, 5, 4, 7, 5, 4),
    ConvCase("kernel_row", 1, 3, 6, 9, 10, 1, 5, (1, 1), (0, 2)),
    ConvCase("kernel_column", 1, 3, 9, 6, 10, 5, 1, (1, 1), (2, 0)),
    ConvCase("kernel_2x2", 2, 5, 6, 7, 18, 2, 2),
    # One output row or column where a stride of 1 would give more.
    ConvCase("1x1_all_even", 2, 34, 5, 6, 70, 1, 1, bias=True, residual=True, activation="relu"),
    ConvCase("1x1_all_even_stride2", 1, 66, 7, 11, 66, 1, 1, (2, 2)),
    ConvCase("1x1_one_pixel_of_four", 5, 8, 2, 2, 8, 1, 1, (2, 2)),
    ConvCase("1x1_one_column_of_three", 3, 4, 4, 3, 8, 1, 1, (1, 4)),
    ConvCase("3x3_one_window_of_four", 5, 8, 2, 2, 8, 3, 3, (2, 2), 1),
    ConvCase("kernel_4x3", 1, 2, 8, 9, 17, 4, 3, (1, 1), (2, 1)),
    ConvCase("kernel_5x5", 1, 8, 9, 9, 16, 5, 5, (1, 1), 2),
    ConvCase("kernel_11x11_stride4", 1, 3, 35, 35, 20, 11, 11, (4, 4), 2),
    ConvCase("stem", 1, 3, 32, 30, 64, 7, 7, (2, 2), 3),
    ConvCase("stem_same", 2, 3, 30, 32, 20, 7, 7, (2, 2), "same"),
    ConvCase("stride2", 2, 16, 14, 14, 32, 3, 3, (2, 2), 1),
    ConvCase("stride2_1x1", 2, 24, 14, 13, 48, 1, 1, (2, 2)),
    ConvCase("stride_2x1", 1, 4, 9, 10, 12, 3, 3, (2, 1), 1),
    ConvCase("stride_1x3", 1, 4, 9, 10, 12, 3, 3, (1, 3), 1),
    ConvCase("stride_over_kernel", 1, 5, 13, 14, 12, 2, 2, (5, 4)),
    ConvCase("stride_over_kernel_1x1", 1, 9, 13, 14, 12, 1, 1, (4, 3)),
    ConvCase("stride_over_image", 1, 4, 5, 5, 33, 3, 3, (99, 99), 1),
    ConvCase("dilation2", 2, 6, 11, 12, 16, 3, 3, (1, 1), 2, (2, 2)),
    ConvCase("dilation_3x2", 1, 3, 12, 11, 9, 3, 3, (1, 1), (3, 2), (3, 2)),
    ConvCase("dilation_stride", 1, 5, 15, 15, 17, 3, 2, (2, 3), (2, 1), (2, 4)),
    ConvCase("dilation_1x1", 1, 5, 6, 7, 9, 1, 1, (1, 1), 0, (7, 9)),
    ConvCase("pads_asymmetric", 2, 4, 6, 7, 15, 3, 3, (1, 1), ((0, 2), (1, 0))),
    ConvCase("pads_asymmetric_stride2", 1, 4, 8, 9, 34, 3, 3, (2, 2), ((0, 1), (2, 1))),
    ConvCase("pads_over_kernel", 1, 2, 3, 4, 9, 2, 2, (1, 1), ((5, 3), (4, 6))),
    ConvCase("pads_1x1", 1, 6, 4, 5, 17, 1, 1, (1, 1), (1, 2)),
    ConvCase("pads_1x1_stride2", 1, 6, 5, 5, 17, 1, 1, (2, 2), 1),
    ConvCase("same_stride3", 1, 3, 10, 11, 8, 5, 4, (3, 3), "same"),
    ConvCase("same_lower_stride2", 1, 3, 10, 11, 8, 4, 3, (2, 2), "same_lower"),
    ConvCase("same_dilated", 1, 3, 10, 9, 8, 3, 3, (1, 1), "same", (2, 3)),
    ConvCase("full", 1, 3, 5, 6, 8, 3, 4, (1, 1), "full"),
    ConvCase("full_dilated", 1, 2, 5, 6, 8, 3, 2, (1, 1), "full", (2, 3)),
    ConvCase("valid", 2, 3, 8, 9, 16, 3, 3, (1, 1), "valid"),
    ConvCase("width7", 3, 32, 7, 7, 64, 3, 3, (1, 1), 1),
    ConvCase("width14", 1, 32, 14, 14, 32, 3, 3, (1, 1), 1),
    ConvCase("width28", 1, 16, 28, 28, 32, 3, 3, (1, 1), 1),
    ConvCase("width56", 1, 16, 9, 56, 33, 3, 3, (1, 1), 1),
    ConvCase("wide", 1, 3, 2, 300, 17, 3, 3, (1, 1), 1),
    ConvCase("tall", 1, 3, 300, 2, 17, 3, 3, (1, 1), 1),
    ConvCase("row_1x1", 1, 64, 1, 1, 100, 1, 1),
    ConvCase("deep", 1, 700, 3, 3, 20, 3, 3, (1, 1), 1),
    ConvCase("deep_1x1", 2, 1500, 2, 3, 35, 1, 1),
    ConvCase("batch9", 9, 4, 5, 5, 19, 3, 3, (1, 1), 1),
    ConvCase("batch17_1x1", 17, 20, 1, 1, 33, 1, 1),
    # pixels whose values collide in the caches of NHWC
    ConvCase("strided_1024", 1, 1024, 5, 7, 9, 3, 3, (2, 2), 1, bias=True),
    ConvCase("grouped_1024", 1, 2048, 4, 3, 6, 2, 2, (1, 1), 1, groups=2),
    # planes that fill vectors of pixels: whole, with a tail, with more inputs than outputs and the other way round
    ConvCase("planes_whole", 2, 20, 8, 12, 45, 1, 1, bias=True, residual=True, activation="relu"),
    ConvCase("planes_tail", 1, 33, 31, 31, 15, 1, 1, bias=True),
    ConvCase("planes_wide", 3, 7, 16, 16, 33, 1, 1, residual=True),
    ConvCase("planes_odd_half", 1, 9, 28, 28, 30, 1, 1, bias=True),
    # register tiles that are copied from planes: two rows a tile and one left, tiles of unequal height, groups, a
    # stride without a form of its own, and so many channels that a whole image is copied at once
    ConvCase("tiles_pairs", 3, 37, 13, 13, 45, 1, 1, (2, 2), bias=True, residual=True, activation="relu"),
    ConvCase("tiles_unequal", 2, 9, 5, 57, 33, 1, 1, (2, 2)),
    ConvCase("tiles_grouped", 1, 40, 9, 11, 70, 1, 1, (3, 2), groups=2),
    ConvCase("tiles_stride3", 1, 18, 10, 22, 20, 1, 1, (2, 3)),
    ConvCase("tiles_at_once", 2, 1200, 15, 15, 40, 1, 1, bias=True),
]

_EPILOGUES = [
    replace(base, name=f"{base.name}_{tag}", **flags)
    for base in (
        ConvCase("epilogue3x3", 2, 7, 9, 13, 37, 3, 3, (1, 1), 1),
        ConvCase("epilogue1x1", 3, 18, 7, 7, 70, 1, 1),
        ConvCase("epilogue_deep", 1, 600, 3, 5, 33, 3, 3, (1, 1), 1),
    )
    for tag, flags in (
        ("bias", {"bias": True}),
        ("relu", {"activation": "relu"}),
        ("residual", {"residual": True}),
        ("bias_relu", {"bias": True, "activation": "relu"}),
        ("bias_residual_relu", {"bias": True, "residual": True, "activation": "relu"}),
    )
]

CONV_CASES: list[ConvCase] = [*_TILES, *_SHAPES, *_EPILOGUES]

_DEPTHWISE_CHANNELS = [1, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 100]

DEPTHWISE_CASES: list[ConvCase] = [
    *(ConvCase(f"dw_c{c}", 2, c, 6, 9, c, 3, 3, (1, 1), 1, groups=c) for c in _DEPTHWISE_CHANNELS),
    *(
        ConvCase(f"dw_ow{w}", 1, 5, 4, w, 5, 3, 3, (1, 1), 1, groups=5)
        for w in (1, 2, 7, 8, 13, 14, 15, 16, 17, 28, 33)
    ),
    *(
        ConvCase(f"dw_stride2_w{w}", 1, 3, 9, w, 3, 3, 3, (2, 2), 1, groups=3)
        for w in (15, 16, 17, 18, 31, 32, 33, 34, 35, 63, 64, 66)
    ),
    # What a row's first and last pixels read beside it: padding on one side, on none, and more than a vector of it.
    *(
        ConvCase(
            f"dw_stride{s}_w{w}_pads{left}_{right}", 1, 3, 8, w, 3, 3, 3, (s, s), ((1, 1), (left, right)), groups=3
        )
        for s in (1, 2)
        for w, left, right in ((18, 0, 0), (34, 0, 0), (33, 0, 2), (33, 2, 0), (20, 19, 0), (20, 0, 37), (20, 40, 41))
    ),
    ConvCase("dw_stride2", 2, 32, 14, 15, 32, 3, 3, (2, 2), 1, groups=32),
    ConvCase("dw_stride2_same", 1, 24, 14, 14, 24, 3, 3, (2, 2), "same", groups=24),
    ConvCase("dw_stride3", 1, 18, 11, 12, 18, 3, 3, (3, 3), 1, groups=18),
    ConvCase("dw_valid", 1, 20, 7, 7, 20, 3, 3, groups=20),
    ConvCase("dw_5x5", 1, 40, 9, 9, 40, 5, 5, (1, 1), 2, groups=40),
    ConvCase("dw_5x5_stride2", 1, 40, 9, 10, 40, 5, 5, (2, 2), 2, groups=40),
    ConvCase("dw_7x7", 1, 33, 9, 9, 33, 7, 7, (1, 1), 3, groups=33),
    ConvCase("dw_1x1", 2, 19, 5, 6, 19, 1, 1, groups=19),
    ConvCase("dw_2x4", 1, 21, 6, 7, 21, 2, 4, (1, 1), ((1, 0), (2, 1)), groups=21),
    ConvCase("dw_dilated", 1, 17, 11, 12, 17, 3, 3, (1, 1), 2, (2, 2), groups=17),
    ConvCase("dw_pixel", 1, 16, 1, 1, 16, 3, 3, (1, 1), 1, groups=16),
    ConvCase("dw_pads_asymmetric", 1, 16, 6, 5, 16, 3, 3, (1, 1), ((2, 0), (0, 3)), groups=16),
    ConvCase("dw_multiplier2", 2, 9, 6, 7, 18, 3, 3, (1, 1), 1, groups=9),
    ConvCase("dw_multiplier3", 1, 16, 6, 7, 48, 3, 3, (2, 2), 1, groups=16),
    ConvCase("dw_epilogue", 2, 35, 8, 9, 35, 3, 3, (1, 1), 1, groups=35, bias=True, residual=True, activation="relu"),
    ConvCase("dw_bias", 1, 64, 7, 7, 64, 3, 3, (1, 1), 1, groups=64, bias=True),
]

GROUPED_CASES: list[ConvCase] = [
    ConvCase("g2", 2, 6, 7, 8, 8, 3, 3, (1, 1), 1, groups=2),
    ConvCase("g3_oc1_each", 1, 9, 6, 6, 3, 3, 3, (1, 1), 1, groups=3),
    ConvCase("g4_1x1", 2, 32, 5, 7, 68, 1, 1, groups=4),
    ConvCase("g5_stride2", 1, 15, 9, 10, 35, 3, 3, (2, 2), 1, groups=5),
    ConvCase("g7_dilated", 1, 14, 9, 10, 21, 3, 3, (1, 1), 2, (2, 2), groups=7),
    ConvCase("g32_resnext", 1, 128, 7, 7, 128, 3, 3, (1, 1), 1, groups=32),
    ConvCase("g2_wide", 1, 66, 5, 14, 66, 3, 3, (1, 1), 1, groups=2),
    ConvCase("g2_pads", 1, 4, 5, 6, 34, 3, 2, (1, 2), ((0, 2), (1, 0)), groups=2),
    ConvCase("g3_epilogue", 2, 12, 6, 7, 51, 3, 3, (1, 1), 1, groups=3, bias=True, residual=True, activation="relu"),
]

# Square kernels and images: name, input channels, size, output channels, kernel, stride, padding (ResNet,
# arXiv:1512.03385, with the stride on the 3x3).
RESNET50_CONVS: list[ConvCase] = [
    _square("conv1", 3, 224, 64, 7, 2, 3),
    _square("l1.0.conv1", 64, 56, 64, 1),
    _square("l1.x.conv2", 64, 56, 64, 3, 1, 1),
    _square("l1.x.conv3", 64, 56, 256, 1),
    _square("l1.1-2.conv1", 256, 56, 64, 1),
    _square("l2.0.conv1", 256, 56, 128, 1),
    _square("l2.0.conv2", 128, 56, 128, 3, 2, 1),
    _square("l2.x.conv3", 128, 28, 512, 1),
    _square("l2.0.ds", 256, 56, 512, 1, 2),
    _square("l2.1-3.conv1", 512, 28, 128, 1),
    _square("l2.1-3.conv2", 128, 28, 128, 3, 1, 1),
    _square("l3.0.conv1", 512, 28, 256, 1),
    _square("l3.0.conv2", 256, 28, 256, 3, 2, 1),
    _square("l3.x.conv3", 256, 14, 1024, 1),
    _square("l3.0.ds", 512, 28, 1024, 1, 2),
    _square("l3.1-5.conv1", 1024, 14, 256, 1),
    _square("l3.1-5.conv2", 256, 14, 256, 3, 1, 1),
    _square("l4.0.conv1", 1024, 14, 512, 1),
    _square("l4.0.conv2", 512, 14, 512, 3, 2, 1),
    _square("l4.x.conv3", 512, 7, 2048, 1),
    _square("l4.0.ds", 1024, 14, 2048, 1, 2),
    _square("l4.1-2.conv1", 2048, 7, 512, 1),
    _square("l4.1-2.conv2", 512, 7, 512, 3, 1, 1),
]


def thin(case: ConvCase) -> ConvCase:
    """The same image with an eighth of the channels: a 64th of the work, tails that differ from the full shape's."""
    return replace(case, ic=case.ic if case.ic == 3 else case.ic // 8, oc=case.oc // 8)


POOL_CASES: list[PoolCase] = [
    PoolCase("resnet", 1, 8, 28, 28, (3, 3), (2, 2), 1),
    PoolCase("2x2", 2, 3, 8, 10, (2, 2), (2, 2)),
    PoolCase("2x2_odd", 1, 5, 7, 9, (2, 2), (2, 2)),
    PoolCase("3x3_stride1", 1, 17, 6, 7, (3, 3), (1, 1), 1),
    PoolCase("3x2", 1, 4, 9, 8, (3, 2), (2, 3), (1, 0)),
    PoolCase("3x2_padded", 1, 4, 9, 8, (3, 2), (2, 3), (1, 1)),
    PoolCase("1x1", 1, 7, 3, 4, (1, 1), (1, 1)),
    PoolCase("1x1_stride2", 1, 7, 5, 4, (1, 1), (2, 2)),
    PoolCase("global", 2, 33, 7, 7, (7, 7), (7, 7)),
    PoolCase("5x5_ceil_matters", 1, 16, 9, 11, (5, 5), (3, 4), 2),
    PoolCase("stride_over_kernel", 1, 9, 11, 12, (2, 2), (4, 5)),
    PoolCase("ceil_window_in_padding", 1, 3, 3, 3, (2, 2), (2, 2), 1),
    PoolCase("ceil_clipped", 1, 1, 4, 4, (3, 3), (2, 2), 1),
    PoolCase("dilated", 1, 6, 9, 10, (3, 3), (1, 1), 1, (2, 2)),
    PoolCase("dilated_padded", 1, 6, 9, 10, (3, 2), (2, 2), (2, 1), (2, 3)),
    PoolCase("window_in_padding", 1, 2, 1, 1, (2, 2), (1, 1), 1, (2, 2)),
    PoolCase("asymmetric", 1, 6, 7, 8, (3, 3), (2, 2), ((1, 0), (0, 1))),
    PoolCase("same", 1, 6, 7, 8, (3, 3), (2, 2), "same"),
    PoolCase("same_lower", 1, 6, 7, 8, (2, 3), (2, 2), "same_lower"),
    PoolCase("valid", 1, 6, 7, 8, (3, 3), (2, 2), "valid"),
    *(PoolCase(f"c{c}", 1, c, 5, 6, (3, 3), (2, 2), 1) for c in (1, 8, 15, 16, 31, 32, 33, 64)),
    *(PoolCase(f"iw{w}", 1, 2, 4, w, (3, 3), (1, 1), 1) for w in (1, 2, 15, 16, 17, 31, 33)),
]
