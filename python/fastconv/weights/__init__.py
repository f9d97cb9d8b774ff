"""Weight files as NumPy arrays: `.safetensors`, PyTorch's `.pth` (zip and older stream), `.npz`.

No reader needs PyTorch, and none executes anything from a file. The format is found from the content; the file's name
does not matter. Arrays keep the stored dtype, except bfloat16, which NumPy lacks: it becomes float32, exactly. A
model takes float32: float16 widens exactly, float64 weights are rounded to float32 when the model is built (the
weights only, once; activations are never rounded).
"""

import os
from typing import Any

from numpy.typing import NDArray

from . import names, npz, pth, safetensors
from ._file import WeightFile
from ._zip import Archive
from ._zip import matches as _is_zip
from .names import check_exact, to_canonical

__all__ = ["check_exact", "load", "names", "to_canonical"]

_ACCEPTED = "accepted are .safetensors, PyTorch .pth (zip or older stream) and .npz"


def load(path: str | os.PathLike[str], *, canonical_names: bool = True) -> dict[str, NDArray[Any]]:
    """All arrays of a weight file by name.

    path: file to read. canonical_names: give torchvision's names (`names.to_canonical`: Hugging Face's are mapped, a
    `module.` before every name is stripped, `num_batches_tracked` is dropped); False keeps the file's own. A PyTorch
    file may wrap its dict as `{"state_dict": ...}` or `{"model": ...}`; what stands beside it is ignored.

    Returns a new dict in the file's order. The arrays are C-contiguous, writable, and each has memory of its own.
    Memory: the tensors' size, and up to twice that for tensors that are stored as bfloat16 or as strided views.

    Raises TypeError where `path` is no path, FileNotFoundError/OSError where the file cannot be read, ValueError
    where it is damaged, hostile or of another format. The message names the file and what is wrong.
    """
    with WeightFile(path) as file:
        if not file.size:
            raise file.error("the file is empty")
        head = file.read(0, min(file.size, 512), "the beginning")
        if _is_zip(head):
            state = _read_archive(file)
        elif safetensors.matches(head):
            state = safetensors.read(file)
        elif pth.matches_stream(head):
            state = pth.read_stream(file)
        elif head[257:262] == b"ustar":
            raise file.error(
                f"a tar archive; PyTorch's oldest container is not read, save it again with a newer one; {_ACCEPTED}"
            )
        elif head[:8] == b"\x89HDF\r\n\x1a\n":
            raise file.error(f"an HDF5 file (Keras); {_ACCEPTED}")
        else:
            raise file.error(f"not a weight file, or damaged at its beginning; {_ACCEPTED}")
        if not canonical_names:
            return state
        try:
            return to_canonical(state)
        except ValueError as reason:
            raise file.error(str(reason)) from None


def _read_archive(file: WeightFile) -> dict[str, NDArray[Any]]:
    archive = Archive(file)
    if pth.pickle_members(archive):
        return pth.read_zip(file, archive)
    if not any(name.endswith(".npy") for name in archive.members):
        raise file.error(
            f"a zip archive of {len(archive.members)} members without data.pkl or .npy arrays; {_ACCEPTED}"
        )
    return npz.read(file, archive)
