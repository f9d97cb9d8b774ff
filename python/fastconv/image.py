"""From a picture to a network's input: decode, resize, crop, normalise.

The steps and their rounding are those of torchvision's evaluation preset for its ImageNet weights
(`torchvision/transforms/_presets.py`, class `ImageClassification`, on PIL images): shorter side to 256, bilinear with
antialiasing, the longer side to `int(256 * long / short)`; the central 224 x 224; `(value / 255 - mean) / std` in
float32. Decoding and resizing take Pillow (`pip install fastconv[cli]`), which is imported on first use.
"""

from __future__ import annotations

import os
import stat
import sys
import threading
import warnings
from collections.abc import Iterable
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastconv._arguments import integer, layout_name

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "MAX_PIXELS",
    "ImageError",
    "as_list",
    "decode",
    "preprocess",
    "sample_path",
]

# Per channel, red green blue, of pictures scaled to [0, 1]; torchvision/transforms/_presets.py.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# A larger picture is refused before its pixels are decoded: a few bytes of file can claim any size. 256 MiB of RGB,
# as Pillow's own limit for a warning.
MAX_PIXELS = 1024 * 1024 * 1024 // 4 // 3

# Formats that are pictures and nothing else. Pillow also opens formats that start other programs (EPS) or fetch other
# files.
_COMMON = ("JPEG", "MPO", "PNG", "GIF", "BMP", "PPM")
_OTHER = ("WEBP", "TIFF", "AVIF", "JPEG2000", "TGA")

# Of `warnings.catch_warnings`, which swaps process-wide state.
_OPEN_LOCK = threading.Lock()


def _after_fork_in_child() -> None:
    # Another thread may have held it at the moment of the fork; in the child nobody would ever release it.
    global _OPEN_LOCK
    _OPEN_LOCK = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


class ImageError(OSError, ValueError):
    """A file or picture that cannot be used; the message names it and says why."""


def sample_path() -> str:
    """Path of the photograph that ships with the package, a cat; origin and licence in `data/README.md`."""
    return str(files("fastconv") / "data" / "cat.jpg")


def decode(source: str | os.PathLike[str]) -> Image:
    """A picture file as an RGB `PIL.Image`, turned upright as its EXIF orientation says.

    Alpha is dropped, grey is repeated, 16-bit grey keeps its upper 8 bits; of an animation, the first frame.
    `FileNotFoundError`, `IsADirectoryError` and other `OSError` for what the file system says; `ImageError` (an
    `OSError` and a `ValueError`) for a file that is not a picture, is truncated or damaged, or has more than
    `MAX_PIXELS` pixels; `ImportError` without Pillow."""
    path = os.fsdecode(source)
    pil = _pillow()
    if "\0" in path:
        raise ImageError(f"image path {path!r} holds a null character")
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise FileNotFoundError(f"image file not found: {path!r}") from None
    except OSError as error:
        raise type(error)(f"image file {path!r}: {error.strerror or error}") from None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"image path is a directory: {path!r}")
    if not stat.S_ISREG(mode):  # a pipe could block for ever, a device never ends
        raise ImageError(f"image path is not a regular file: {path!r}")
    try:
        stream = open(path, "rb")  # noqa: SIM115 - closed below; the error is ours to word
    except OSError as error:
        raise type(error)(f"image file {path!r}: {error.strerror or error}") from None
    with stream:
        picture = _open(pil, stream, repr(path))
        return _upright_rgb(picture, repr(path))


def as_list(images: Any) -> list[Any]:
    """One picture or many as a list of pictures; a uint8 array with four axes is a batch."""
    if isinstance(images, str | os.PathLike) or _is_pil(images):
        return [images]
    if isinstance(images, bytes | bytearray):
        raise TypeError("images must be paths, PIL images or uint8 arrays, got bytes")
    if _is_array(images):
        array = np.asarray(images)
        return list(array) if array.ndim == 4 else [array]
    if isinstance(images, Iterable):
        return list(images)
    raise TypeError(
        f"images must be paths, PIL images or uint8 arrays, or a sequence of them, got {type(images).__name__}"
    )


def preprocess(
    images: Any, layout: str = "NHWC", resize: int = 256, crop: int = 224, *, first: int = 0
) -> NDArray[np.float32]:
    """A float32 batch, C-contiguous: (n, crop, crop, 3) for layout "NHWC", (n, 3, crop, crop) for "NCHW".

    images: one or a sequence of paths (see `decode`), PIL images, or uint8 arrays: (H, W, 3), (H, W, 4) whose alpha
    is dropped, (H, W, 1) or (H, W) grey; or one uint8 batch with four axes. Each is resized so that its shorter side
    is `resize` pixels, and cut to the central `crop` x `crop`; where that is larger than the picture, black is added
    on both sides, as torchvision does. `first` is added to the positions that errors name. `TypeError` names a wrong
    kind or dtype, `ValueError` a wrong value."""
    for what, value in (("resize", resize), ("crop", crop)):
        if integer(value, what, 1) > 16384:
            raise ValueError(f"{what} must be at most 16384 pixels, got {value}")
    items = as_list(images)
    nhwc = layout_name(layout) == "NHWC"
    batch = np.empty((len(items), crop, crop, 3) if nhwc else (len(items), 3, crop, crop), np.float32)
    mean, std = (np.array(values, np.float32) for values in (IMAGENET_MEAN, IMAGENET_STD))
    for index, item in enumerate(items):
        what = f"images[{index + first}]"
        picture = _to_pil(item, what)
        if isinstance(item, str | os.PathLike):
            what = repr(os.fspath(item))
        pixels = np.asarray(_centre_crop(_resize_shorter(picture, int(resize), what), int(crop)))
        values = (pixels.astype(np.float32) / np.float32(255) - mean) / std
        batch[index] = values if nhwc else values.transpose(2, 0, 1)
    return batch


def _pillow() -> Any:
    try:
        import PIL.Image
    except ImportError as error:
        raise ImportError(f"reading and resizing pictures takes Pillow: pip install fastconv[cli] ({error})") from error
    return PIL


def _is_pil(item: Any) -> bool:
    module = sys.modules.get("PIL.Image")  # whoever holds a PIL image has imported it
    return module is not None and isinstance(item, module.Image)


def _is_array(item: Any) -> bool:
    return isinstance(item, np.ndarray) or hasattr(item, "__array__") or hasattr(item, "__dlpack__")


def _open(pil: Any, stream: Any, what: str) -> Image:
    """Reads the header. The common formats first: the other decoders take long to import."""
    for load, formats in ((pil.Image.preinit, _COMMON), (pil.Image.init, _COMMON + _OTHER)):
        load()
        known = [name for name in formats if name in pil.Image.OPEN]
        stream.seek(0)
        try:
            # Pillow warns of a large picture, and says so once more when it refuses; here it is refused with one
            # sentence.
            with _OPEN_LOCK, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                picture: Image = pil.Image.open(stream, formats=known)
        except pil.UnidentifiedImageError:
            continue
        except pil.Image.DecompressionBombError:
            raise ImageError(f"{what} has more than {MAX_PIXELS} pixels, the largest picture that is decoded") from None
        except MemoryError:
            raise
        except Exception as error:  # decoders raise many kinds on hostile files
            raise ImageError(f"{what} is a damaged picture file: {_line(error)}") from error
        _check_size(picture.size, what)
        return picture
    raise ImageError(f"{what} is not a picture in a known format ({', '.join(_COMMON + _OTHER)})")


def _upright_rgb(picture: Image, what: str) -> Image:
    from PIL.Image import Transpose

    _check_size(picture.size, what)
    try:
        picture.load()
        if picture.mode.startswith("I"):
            # 16 bits of grey; Pillow's own conversion would clip at 255.
            grey = np.clip(np.asarray(picture).astype(np.int64), 0, 65535) >> 8
            upright = _from_array(grey.astype(np.uint8))
        elif picture.mode == "F":
            raise ImageError(f"{what} has floating-point pixels; convert it to 8 bits first")
        else:
            upright = picture.convert("RGB")
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        raise ImageError(f"{what} is a damaged picture file: {_line(error)}") from error
    try:
        orientation = picture.getexif().get(0x0112, 1)
    except Exception:  # the pixels are whole; a damaged EXIF block only means that nobody knows which way is up
        return upright
    # EXIF 2.3, tag 0x0112: where the stored picture's first row and column belong; these turn it back. Pillow rotates
    # counter-clockwise.
    turn = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }.get(orientation)
    return upright if turn is None else upright.transpose(turn)


def _to_pil(item: Any, what: str) -> Image:
    if isinstance(item, str | os.PathLike):
        return decode(item)
    _pillow()
    if _is_pil(item):
        return _upright_rgb(item, what)
    if not _is_array(item):
        raise TypeError(f"{what} must be a path, a PIL image or a uint8 array, got {type(item).__name__}")
    array = np.asarray(item)
    if array.dtype != np.uint8:
        raise TypeError(f"{what} must have dtype uint8, got {array.dtype}")
    if not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))):
        raise ValueError(f"{what} must have shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got {array.shape}")
    _check_size((array.shape[1], array.shape[0]), what)
    return _from_array(array)


def _from_array(array: NDArray[np.uint8]) -> Image:
    from PIL import Image

    if array.ndim == 2:
        array = array[:, :, None]
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(array[:, :, :3], (*array.shape[:2], 3))))


def _check_size(size: tuple[int, int], what: str) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{what} has no pixels: {width} x {height}")
    if width * height > MAX_PIXELS:
        raise ImageError(f"{what} has {width} x {height} pixels, more than the {MAX_PIXELS} that are decoded")


def _resize_shorter(picture: Image, size: int, what: str) -> Image:
    from PIL import Image

    width, height = picture.size
    short, long = min(width, height), max(width, height)
    new_long = int(size * long / short)
    if size * new_long > MAX_PIXELS:
        raise ImageError(f"{what} is too narrow: {width} x {height} would become {size} x {new_long} pixels")
    new = (size, new_long) if width <= height else (new_long, size)
    return picture if new == picture.size else picture.resize(new, Image.Resampling.BILINEAR)


def _centre_crop(picture: Image, size: int) -> Image:
    from PIL import Image

    width, height = picture.size
    if width < size or height < size:
        wide, high = max(width, size), max(height, size)
        padded = Image.new("RGB", (wide, high))
        padded.paste(picture, ((wide - width) // 2, (high - height) // 2))
        picture, width, height = padded, wide, high
    # Python's round, to even: the definition has it so.
    left, top = round((width - size) / 2), round((height - size) / 2)
    return picture.crop((left, top, left + size, top + size))


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
