"""What options may say: lists of names and numbers, times. Each is one clear line where it says something else."""

from __future__ import annotations


class UsageError(ValueError):
    """An argument that means nothing: one line and exit status 2."""


def words(text: str, flag: str, known: list[str]) -> tuple[str, ...]:
    found = [word.strip() for word in text.split(",") if word.strip()]
    for word in found:
        if word not in known:
            raise UsageError(f"{flag}: unknown name {word!r}; known: {', '.join(known)}")
    return tuple(dict.fromkeys(found))


def numbers(text: str, flag: str, maximum: int | None) -> tuple[int, ...]:
    found: list[int] = []
    for word in (part.strip() for part in text.split(",")):
        if word == "max" and maximum is not None:
            found.append(maximum)
        elif word.isascii() and word.isdigit() and 1 <= int(word[:10]) <= 1_000_000:
            found.append(int(word[:10]))
        else:
            raise UsageError(f"{flag}: {word!r} is not a whole number of at least 1")
    return tuple(dict.fromkeys(found))


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e9:
        raise UsageError(f"--max-time: {text!r} is not a number of seconds above 0")
    return value
