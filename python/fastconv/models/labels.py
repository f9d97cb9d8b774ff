"""Class names that ship with the package."""

from functools import cache
from importlib.resources import files

__all__ = ["imagenet"]


@cache
def imagenet() -> tuple[str, ...]:
    """The 1000 names of ImageNet's classes (ILSVRC 2012), in the order of torchvision's `IMAGENET1K` weights.

    Origin and licence of the list: `data/README.md` in the package."""
    text = (files("fastconv") / "data" / "imagenet_labels.txt").read_text(encoding="utf-8")
    names = tuple(text.splitlines())
    if len(names) != 1000:
        raise OSError(f"the package's imagenet_labels.txt is damaged: it has {len(names)} lines, not 1000")
    return names
