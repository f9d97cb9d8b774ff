"""Pictures: what is decoded, the exact resize and crop, normalisation, and files that are hostile or broken."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import fastconv as fc
from fastconv import image

Image: Any = pytest.importorskip("PIL.Image", reason="Pillow is not installed")

Array = NDArray[Any]
MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])


def noise(h: int, w: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


def pixels_of(batch: Array) -> Array:
    """Undoes the normalisation of a batch in NHWC; values of 0 to 255."""
    return (batch.astype(np.float64) * STD + MEAN) * 255


def triangle_matrix(length: int, size: int) -> Array:
    """Antialiased bilinear resampling of one axis, by its definition: a triangle filter, as wide as a step or wider."""
    scale = length / size
    centres = (np.arange(size) + 0.5) * scale
    weights = np.clip(1 - np.abs(np.arange(length) + 0.5 - centres[:, None]) / max(scale, 1.0), 0, None)
    return weights / weights.sum(1, keepdims=True)


# --- the definition -------------------------------------------------------------------------------------------------


# (H, W) -> size after the resize, by torchvision's rule: shorter side 256, longer int(256 * long / short).
SIZES = {
    (300, 451): (256, 384),
    (451, 300): (384, 256),
    (256, 256): (256, 256),
    (500, 375): (341, 256),
    (333, 500): (256, 384),
    (97, 389): (256, 1026),
    (1000, 257): (996, 256),
    (10, 10): (256, 256),
}


@pytest.mark.parametrize("shape", SIZES)
def test_resize_and_crop_follow_the_definition(shape: tuple[int, int]) -> None:
    picture = noise(*shape)
    h, w = SIZES[shape]
    top, left = round((h - 224) / 2), round((w - 224) / 2)
    rows = triangle_matrix(shape[0], h)[top : top + 224]
    columns = triangle_matrix(shape[1], w)[left : left + 224]
    expected = np.stack([rows @ picture[:, :, c].astype(np.float64) @ columns.T for c in range(3)], axis=2)
    found = pixels_of(image.preprocess(picture))[0]
    # Pillow rounds to 8 bits after each of its two passes: half a level each, and its coefficients have 22 bits.
    assert np.abs(found - expected).max() <= 1.01
    assert np.abs(found - expected).mean() <= 0.5


@pytest.mark.parametrize(("h", "w"), [(256, 256), (256, 257), (256, 259), (261, 256), (256, 319)])
def test_crop_is_centred_to_the_pixel(h: int, w: int) -> None:
    """No resampling here, so every pixel says where it came from."""
    picture = noise(h, w)
    # Python's round goes to even: a margin of 16.5 starts at 16, one of 17.5 at 18.
    top, left = round((h - 224) / 2), round((w - 224) / 2)
    found = pixels_of(image.preprocess(picture))[0]
    assert np.array_equal(np.rint(found), picture[top : top + 224, left : left + 224])


def test_normalisation_is_float32_in_the_order_of_the_definition() -> None:
    picture = noise(256, 256)
    found = image.preprocess(picture)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    cut = picture[16:240, 16:240].astype(np.float32) / np.float32(255)
    expected = (cut - MEAN.astype(np.float32)) / STD.astype(np.float32)
    assert np.array_equal(found[0], expected)
    nchw = image.preprocess(picture, "NCHW")
    assert nchw.shape == (1, 3, 224, 224)
    assert nchw.flags.c_contiguous
    assert np.array_equal(nchw.transpose(0, 2, 3, 1), found)


@pytest.mark.parametrize(("resize", "crop"), [(64, 32), (32, 33), (20, 48), (1, 1), (232, 224)])
def test_other_sizes(resize: int, crop: int) -> None:
    picture = noise(resize, 2 * resize)
    found = np.rint(pixels_of(image.preprocess(picture, resize=resize, crop=crop)))[0]
    assert found.shape == (crop, crop, 3)
    if crop > resize:  # black above and below, as torchvision pads
        above = (crop - resize) // 2
        assert not found[:above].any()
        assert not found[above + resize :].any()
        found = found[above : above + resize]
    wide = max(2 * resize, crop)
    assert wide == 2 * resize or crop == 48
    left = round((wide - crop) / 2)
    padded = np.zeros((resize, wide, 3))
    start = (wide - 2 * resize) // 2
    padded[:, start : start + 2 * resize] = picture
    top = max(0, round((resize - crop) / 2))
    assert np.array_equal(found, padded[top : top + found.shape[0], left : left + crop])


# --- what may come in -----------------------------------------------------------------------------------------------


def test_kinds_of_input_agree(tmp_path: Path) -> None:
    picture = noise(280, 300)
    path = tmp_path / "picture.png"
    Image.fromarray(picture).save(path)
    expected = image.preprocess(picture)[0]
    alpha = np.dstack([picture, np.arange(280 * 300, dtype=np.uint8).reshape(280, 300)])
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    items = [str(path), path, Image.open(path), picture, alpha, tmp_path / "alpha.png", picture[:, ::-1][:, ::-1]]
    assert all(np.array_equal(one, expected) for one in image.preprocess(items))
    assert np.array_equal(image.preprocess(np.stack([picture, picture]))[1], expected)
    assert np.array_equal(image.preprocess(item for item in [picture])[0], expected)
    assert image.preprocess([]).shape == (0, 224, 224, 3)


def test_grey_is_repeated(tmp_path: Path) -> None:
    grey = noise(256, 256)[:, :, 0]
    expected = image.preprocess(np.dstack([grey] * 3))
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 256 + 77).save(tmp_path / "grey16.png")
    items = [grey, grey[:, :, None], Image.fromarray(grey), tmp_path / "grey.png", tmp_path / "grey16.png"]
    for found in image.preprocess(items):
        assert np.array_equal(found, expected[0])


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "YCbCr", "LA", "HSV", "LAB"])
def test_modes(mode: str) -> None:
    assert np.isfinite(image.preprocess(Image.fromarray(noise(64, 64)).convert("RGB" if mode == "LAB" else mode))).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_formats(kind: str, tmp_path: Path) -> None:
    picture = Image.open(image.sample_path()).convert("RGB")
    path = tmp_path / "any name"
    try:
        picture.save(path, kind)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow does not write {kind}")
    found, expected = np.asarray(image.decode(path), np.float64), np.asarray(picture, np.float64)
    assert np.abs(found - expected).mean() < 12  # lossy formats and palettes


# EXIF 2.3, tag 0x0112: how the stored picture comes from the upright one.
STORED = {
    1: lambda u: u,
    2: lambda u: u[:, ::-1],
    3: lambda u: u[::-1, ::-1],
    4: lambda u: u[::-1],
    5: lambda u: u.transpose(1, 0, 2),
    6: lambda u: np.rot90(u, 1),  # the camera was held so that the picture must be turned 90 degrees clockwise
    7: lambda u: u[::-1, ::-1].transpose(1, 0, 2),
    8: lambda u: np.rot90(u, -1),
}


@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation(orientation: int, tmp_path: Path) -> None:
    upright = noise(20, 31)
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(np.asarray(image.decode(tmp_path / "turned.png")), upright)
    opened = Image.open(tmp_path / "turned.png")
    before = opened.size
    found = image.preprocess(opened, resize=20, crop=20)
    assert np.array_equal(found, image.preprocess(upright, resize=20, crop=20))
    assert opened.size == before  # the caller's picture stays as it was


def test_damaged_exif_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "odd.jpg"
    Image.fromarray(noise(32, 32)).save(path, exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert image.decode(path).size == (32, 32)


def test_sample() -> None:
    picture = image.decode(image.sample_path())
    assert picture.mode == "RGB"
    assert min(picture.size) >= 224
    assert os.path.getsize(image.sample_path()) < 40_000


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint16", "bool"])
def test_array_dtype(dtype: str) -> None:
    with pytest.raises(TypeError, match=rf"images\[1\].*uint8.*{dtype}"):
        image.preprocess([noise(8, 8), np.zeros((8, 8, 3), dtype)])


@pytest.mark.parametrize("shape", [(), (5,), (5, 5, 2), (5, 5, 5), (2, 5, 5, 7), (1, 1, 5, 5, 3)])
def test_array_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images\[0\] must have shape"):
        image.preprocess(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 0, 3), (0, 0)])
def test_array_without_pixels(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images\[0\] has no pixels"):
        image.preprocess(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("thing", [None, 3, b"cat.jpg", [None], [[1, 2]], [3.5], object()])
def test_wrong_kind(thing: Any) -> None:
    with pytest.raises(TypeError, match="images"):
        image.preprocess(thing)


@pytest.mark.parametrize(
    ("options", "error", "word"),
    [
        ({"layout": "HWC"}, ValueError, "layout"),
        ({"resize": 0}, ValueError, "resize"),
        ({"crop": -1}, ValueError, "crop"),
        ({"resize": 10**6}, ValueError, "resize"),
        ({"crop": 2.0}, TypeError, "crop"),
    ],
)
def test_wrong_options(options: dict[str, Any], error: type[Exception], word: str) -> None:
    with pytest.raises(error, match=word):
        image.preprocess(noise(8, 8), **options)


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG whose header claims a size; RGB."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def jpeg() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(noise(64, 64)).save(stream, "JPEG")
    return stream.getvalue()


HOSTILE = {
    "text": b"this is a text file, not a picture\n" * 50,
    "empty": b"",
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(x) run\n",
    "truncated jpeg": jpeg()[:-400],
    "half a jpeg header": jpeg()[:20],
    "truncated png": png(64, 64, b"\0" * 64 * 193)[:60],
    "png without its pixels": png(64, 64),
    "png of zero width": png(0, 64),
    "png with a broken checksum": png(64, 64, b"\0" * 64 * 193)[:40] + b"x" + png(64, 64, b"\0" * 64 * 193)[41:],
    "bomb of 10 gigapixels": png(100_000, 100_000),
    "bomb of 144 megapixels": png(12_000, 12_000),
    "largest claim": png(2**31 - 1, 2**31 - 1),
    "gif header only": b"GIF89a\x10\x00\x10\x00\x00\x00\x00",
    "tiff with an offset out of range": b"II*\x00\xff\xff\xff\x7f",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_files(what: str, tmp_path: Path) -> None:
    path = tmp_path / "holiday.jpg"
    path.write_bytes(HOSTILE[what])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the error is all that anybody hears
        with pytest.raises((ValueError, OSError)) as caught:
            image.preprocess([path])
    assert isinstance(caught.value, image.ImageError)
    assert "holiday.jpg" in str(caught.value)
    assert "\n" not in str(caught.value)
    if "bomb" in what:
        assert "pixels" in str(caught.value)


def test_every_cut_of_a_file_is_an_error_or_a_picture(tmp_path: Path) -> None:
    data = jpeg()
    path = tmp_path / "cut.jpg"
    refused = 0
    for length in range(0, len(data), 61):
        path.write_bytes(data[:length])
        try:
            assert image.decode(path).size == (64, 64)
        except image.ImageError:
            refused += 1
    assert refused > 10


def test_long_thin_pictures_do_not_explode() -> None:
    with pytest.raises(ValueError, match=r"images\[0\] is too narrow: 1 x 500000"):
        image.preprocess(np.zeros((500_000, 1), np.uint8))


def test_file_system_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.jpg"):
        image.decode(tmp_path / "none.jpg")
    with pytest.raises(IsADirectoryError, match="directory"):
        image.decode(tmp_path)
    with pytest.raises(OSError, match=r"file\.jpg"):
        (tmp_path / "file").write_bytes(b"x")
        image.decode(tmp_path / "file" / "file.jpg")
    with pytest.raises(ValueError, match="null"):
        image.decode("a\0b.jpg")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.jpg")
        with pytest.raises(OSError, match=r"pipe\.jpg"):  # at once, not after a writer has come
            image.decode(tmp_path / "pipe.jpg")
    with pytest.raises(OSError, match="/dev/null"):
        image.decode(os.devnull)


def test_missing_pillow_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['PIL'] = None\n"
        "import fastconv, numpy\n"
        "try: fastconv.image.preprocess(numpy.zeros((4, 4, 3), 'uint8'))\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert "pip install fastconv[cli]" in done.stdout, done.stderr


def test_pillow_is_imported_on_first_use_only() -> None:
    program = (
        "import sys, fastconv, fastconv.image, fastconv.models, fastconv.cli\n"
        "print([name for name in ('PIL', 'tqdm', 'torch', 'urllib.request') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.strip() == "[]", done.stderr
    assert fc.image is image
