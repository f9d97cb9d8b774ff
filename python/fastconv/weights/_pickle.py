"""A pickle reader for state dicts that imports nothing, calls nothing and builds nothing but plain data.

It knows the opcodes that PyTorch's files use (protocols 2 to 5) and a few names, each mapped to an inert marker of
this module; what PyTorch would do on a call is done here by code of our own, on checked arguments. Every other opcode
or name ends the reading with a ValueError. Opcodes: CPython's `pickletools`. Calls and persistent ids:
`torch/_utils.py` and `torch/serialization.py` of PyTorch.

Nothing here recurses over the data, compares it or formats it, so deep or self-referring data costs only what its
opcodes cost.
"""

import enum
import struct
from collections.abc import Callable
from dataclasses import dataclass

from ._file import MAX_ELEMENTS, WeightFile, shown

MAX_PICKLE_BYTES = 4 << 20
MAX_OPCODES = 1 << 20
"""Limits of all pickles of one file together. A tensor takes some 70 bytes and 40 opcodes: ResNet-152 is under 100 kB
and 40 000. One opcode can make an object of some 100 bytes, so a file at the limit costs about 100 MB and a
second."""

MAX_MARKS = 64
"""Marks that are open at once, that is, nesting. A wrapped state dict needs six."""

MAX_LONG_BYTES = 10
"""Bytes of an integer: the older stream's magic number has ten, everything else fits in eight."""


class Marker(enum.Enum):
    """Names that may be called. The values are what PyTorch calls them."""

    ORDERED_DICT = "collections.OrderedDict"
    TENSOR = "torch._utils._rebuild_tensor"
    TENSOR_V2 = "torch._utils._rebuild_tensor_v2"
    PARAMETER = "torch._utils._rebuild_parameter"
    PARAMETER_CLASS = "torch.nn.parameter.Parameter"  # early PyTorch called the class itself


class Kind(enum.Enum):
    """Storage types that may be named: the NumPy dtype of their elements."""

    DoubleStorage = "<f8"
    FloatStorage = "<f4"
    HalfStorage = "<f2"
    BFloat16Storage = "bfloat16"
    LongStorage = "<i8"
    IntStorage = "<i4"
    ShortStorage = "<i2"
    CharStorage = "|i1"
    ByteStorage = "|u1"
    BoolStorage = "|b1"

    @property
    def itemsize(self) -> int:
        return 2 if self is Kind.BFloat16Storage else int(self.value[2:])


_ALLOWED: dict[str, Marker | Kind] = {marker.value: marker for marker in Marker}
_ALLOWED.update({f"torch.{kind.name}": kind for kind in Kind})


@dataclass(frozen=True, eq=False)
class Storage:
    """Elements `start` to `start + length` of the stored block `key`, which has `numel` elements in all."""

    kind: Kind
    key: str
    numel: int
    start: int
    length: int


@dataclass(frozen=True, eq=False)
class Tensor:
    """A view of a storage, known to lie within it: offset, shape and strides in elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    count: int


class OrderedDict(dict[object, object]):
    """What a call of `collections.OrderedDict` gives here. A class of its own, because only it may take a BUILD."""

    __slots__ = ()


class Parameter:
    """A tensor wrapped by the old Parameter class, until BUILD has given its (ignored) state."""

    __slots__ = ("tensor",)

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


# Names for the message only: opcodes that would call, build or look up something in a real unpickler, or grow large.
_REFUSED = {
    "i": "INST",
    "o": "OBJ",
    "\x81": "NEWOBJ",
    "\x92": "NEWOBJ_EX",
    "\x82": "EXT1",
    "\x83": "EXT2",
    "\x84": "EXT4",
    "P": "PERSID",
    "L": "LONG",
    "\x8b": "LONG4",
}


class Reader:
    """Reads consecutive pickles from `data`. `storages` collects the blocks that their persistent ids name."""

    def __init__(self, file: WeightFile, data: bytes, what: str) -> None:
        self._file = file
        self._data = data
        self._what = what
        self._opcodes = 0
        self.position = 0
        self.storages: dict[str, Storage] = {}
        self._handlers = self._table()

    def error(self, text: str) -> ValueError:
        return self._file.error(f"{self._what}: {text}; nothing of it was executed")

    def load(self) -> object:
        """The next pickle's value: plain data, `Tensor`s and markers. ValueError for everything that is not
        allowed."""
        self._stack: list[object] = []
        self._marks: list[int] = []
        self._memo: dict[int, object] = {}
        while True:
            self._opcodes += 1
            if self._opcodes > MAX_OPCODES:
                raise self.error(f"more than {MAX_OPCODES} opcodes")
            code = self._take(1)[0]
            if code == 0x2E:  # STOP
                value = self._pop()
                if self._stack or self._marks:
                    raise self.error(f"{len(self._stack)} values are left over at STOP")
                return value
            handler = self._handlers.get(code)
            if handler is None:
                name = _REFUSED.get(chr(code), "")
                raise self.error(
                    f"opcode {name}{' ' if name else ''}{code:#04x} at byte {self.position - 1} is not allowed"
                )
            handler()

    # --- bytes and stack

    def _take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self._data):
            raise self.error(
                f"ends at byte {len(self._data)} where {count} more bytes are needed (truncated, or over the limit?)"
            )
        piece = self._data[self.position : end]
        self.position = end
        return piece

    def _unsigned(self, width: int) -> int:
        return int.from_bytes(self._take(width), "little")

    def _text(self, count: int) -> str:
        raw = self._take(count)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.error(f"the text {shown(raw)} is not UTF-8") from None

    def _line(self) -> str:
        end = self._data.find(b"\n", self.position)
        if end < 0:
            raise self.error("ends inside a name (truncated?)")
        text = self._text(end - self.position)
        self.position = end + 1
        return text

    def _push(self, value: object) -> None:
        self._stack.append(value)

    def _pop(self) -> object:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise self.error(f"an opcode before byte {self.position} takes a value from an empty stack")
        return self._stack.pop()

    def _top(self) -> object:
        value = self._pop()
        self._stack.append(value)
        return value

    def _pop_mark(self) -> list[object]:
        if not self._marks:
            raise self.error(f"an opcode before byte {self.position} needs a mark, none is open")
        at = self._marks.pop()
        values = self._stack[at:]
        del self._stack[at:]
        return values

    def _mark(self) -> None:
        if len(self._marks) >= MAX_MARKS:
            raise self.error(f"nested deeper than {MAX_MARKS} marks")
        self._marks.append(len(self._stack))

    def _tuple(self, count: int) -> None:
        values = [self._pop() for _ in range(count)]
        self._push(tuple(reversed(values)))

    # --- memo

    def _put(self, index: int) -> None:
        self._memo[index] = self._top()

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise self.error(f"memo entry {index} was never stored")
        self._push(self._memo[index])

    # --- containers

    def _set(self, pairs: list[object]) -> None:
        target = self._top()
        if not isinstance(target, dict):
            raise self.error(f"SETITEM on {shown(target)}, allowed on a dict only")
        if len(pairs) % 2:
            raise self.error(f"SETITEMS with {len(pairs)} values, expected pairs")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            # Only plain keys: the hash of a nested tuple recurses.
            if not isinstance(key, str) and (type(key) is not int or not -(1 << 63) <= key < 1 << 64):
                raise self.error(f"{shown(key)} as a key, expected text or a 64-bit integer")
            if key in target:
                raise self.error(f"the key {shown(key)} occurs twice")
            target[key] = value

    def _append(self, values: list[object]) -> None:
        target = self._top()
        if not isinstance(target, list):
            raise self.error(f"APPEND on {shown(target)}, allowed on a list only")
        target.extend(values)

    def _setitem(self) -> None:
        value, key = self._pop(), self._pop()
        self._set([key, value])

    # --- the opcodes that would run code in a real unpickler

    def _find(self, module: str, name: str) -> None:
        full = f"{module}.{name}"
        if full not in _ALLOWED:
            raise self.error(f"the name {shown(full)} before byte {self.position} is not on the list of allowed names")
        self._push(_ALLOWED[full])

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise self.error("STACK_GLOBAL without two texts")
        self._find(module, name)

    def _reduce(self) -> None:
        args, what = self._pop(), self._pop()
        if not isinstance(args, tuple):
            raise self.error(f"REDUCE with {shown(args)}, expected a tuple")
        if what is Marker.ORDERED_DICT:
            self._push(self._ordered_dict(args))
        elif what is Marker.TENSOR_V2 and len(args) in (6, 7):
            if type(args[4]) is not bool or not self._no_hooks(args[5]) or not self._empty(args[6:]):
                raise self.error("a tensor with hooks or metadata")
            self._push(self._tensor(args[:4]))
        elif what is Marker.TENSOR and len(args) == 4:
            self._push(self._tensor(args))
        elif what is Marker.PARAMETER and len(args) == 3 and isinstance(args[0], Tensor):
            if type(args[1]) is not bool or not self._no_hooks(args[2]):
                raise self.error("a parameter with hooks")
            self._push(args[0])
        elif what is Marker.PARAMETER_CLASS and len(args) in (1, 2) and isinstance(args[0], Tensor):
            self._push(Parameter(args[0]))
        else:
            called = what.value if isinstance(what, Marker) else shown(what)
            raise self.error(f"a call of {called} with {len(args)} arguments is not allowed")

    def _ordered_dict(self, args: tuple[object, ...]) -> OrderedDict:
        made = OrderedDict()
        if not args:
            return made
        # Python 2 wrote the items as a list of two-element lists.
        if len(args) != 1 or not isinstance(args[0], list):
            raise self.error(f"OrderedDict with {len(args)} arguments, expected none or one list")
        pairs: list[object] = []
        for item in args[0]:
            if not isinstance(item, list | tuple) or len(item) != 2:
                raise self.error(f"OrderedDict from {shown(item)}, expected pairs")
            pairs.extend(item)
        self._push(made)
        self._set(pairs)
        self._pop()
        return made

    @staticmethod
    def _empty(metadata: tuple[object, ...]) -> bool:
        return not metadata or metadata[0] is None or (isinstance(metadata[0], dict) and not metadata[0])

    @staticmethod
    def _no_hooks(value: object) -> bool:
        return value is None or (isinstance(value, OrderedDict) and not value)

    def _build(self) -> None:
        state, target = self._pop(), self._top()
        if isinstance(target, OrderedDict):
            # The versions of the modules that a state dict came from; of no use here.
            if not isinstance(state, dict) or set(state) - {"_metadata"}:
                raise self.error("BUILD on an OrderedDict with more than _metadata")
        elif isinstance(target, Parameter):
            if not isinstance(state, tuple) or len(state) != 3 or not self._no_hooks(state[2]):
                raise self.error("BUILD on a Parameter with hooks or unknown state")
        else:
            raise self.error(f"BUILD on {shown(target)}, allowed on an OrderedDict only")

    def _persistent(self) -> None:
        ident = self._pop()
        tag = ident[0] if isinstance(ident, tuple) and ident else None
        if tag == "module":
            raise self.error("holds a whole module; save its state_dict() instead")
        if not isinstance(ident, tuple) or tag != "storage":
            raise self.error("a persistent id that is no storage")
        if len(ident) not in (5, 6):
            raise self.error(f"a storage id of {len(ident)} parts, expected 5 or 6")
        _, kind, key, location, numel = ident[:5]
        if not isinstance(kind, Kind) or not isinstance(key, str) or not isinstance(location, str):
            raise self.error("a storage id with parts of the wrong type")
        if not (key.isascii() and key.isdigit() and len(key) <= 20):
            raise self.error(f"the storage key {shown(key)} is not a number")
        if type(numel) is not int or not 0 <= numel <= MAX_ELEMENTS:
            raise self.error(f"storage {key} has {shown(numel)} elements, expected 0 to {MAX_ELEMENTS}")
        whole = self.storages.setdefault(key, Storage(kind, key, numel, 0, numel))
        if whole.kind is not kind or whole.numel != numel:
            raise self.error(f"storage {key} is first {whole.numel} of {whole.kind.name}, then {numel} of {kind.name}")
        view = ident[5] if len(ident) == 6 else None
        if view is None:
            self._push(whole)
            return
        if not isinstance(view, tuple) or len(view) != 3 or any(type(v) is not int or v < 0 for v in view[1:]):
            raise self.error(f"storage {key} has damaged view metadata")
        if view[1] + view[2] > numel:
            raise self.error(f"storage {key} is viewed up to element {view[1] + view[2]}, it has {numel}")
        self._push(Storage(kind, key, numel, view[1], view[2]))

    def _tensor(self, args: tuple[object, ...]) -> Tensor:
        storage, offset, size, stride = args
        if not isinstance(storage, Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
            raise self.error("a tensor with parts of the wrong type")
        what = f"a tensor in storage {storage.key}"
        shape, count = self._file.check_shape(size, what)
        if type(offset) is not int or offset < 0 or len(stride) != len(shape):
            raise self.error(f"{what} has offset {shown(offset)}, shape {shape} and strides {shown(stride)}")
        if any(type(step) is not int or not 0 <= step <= MAX_ELEMENTS for step in stride):
            raise self.error(f"{what} has the strides {shown(stride)}, each must be from 0 to {MAX_ELEMENTS}")
        strides = tuple(step for step in stride if isinstance(step, int))
        end = offset + (sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) + 1 if count else 0)
        if end > storage.length:
            raise self.error(
                f"{what} with offset {offset}, shape {shape} and strides {strides} "
                f"reaches element {end}, the storage has {storage.length}"
            )
        # A view with more elements than its storage repeats some (stride 0): a few bytes would grow without bound.
        if count > storage.length:
            raise self.error(f"{what} has {count} elements, more than the {storage.length} that are stored")
        return Tensor(storage, offset, shape, strides, count)

    # --- the opcodes

    def _proto(self) -> None:
        version = self._unsigned(1)
        if not 2 <= version <= 5:
            raise self.error(f"pickle protocol {version}, accepted are 2 to 5")

    def _frame(self) -> None:
        size = self._unsigned(8)
        if self.position + size > len(self._data):
            raise self.error(
                f"a frame of {size} bytes at byte {self.position}, {len(self._data)} are there (truncated?)"
            )

    def _long1(self) -> None:
        size = self._unsigned(1)
        if size > MAX_LONG_BYTES:
            raise self.error(f"an integer of {size} bytes, at most {MAX_LONG_BYTES} are accepted")
        self._push(int.from_bytes(self._take(size), "little", signed=True))

    def _table(self) -> dict[int, Callable[[], None]]:
        push, unsigned, text = self._push, self._unsigned, self._text
        named: dict[str, Callable[[], None]] = {
            "\x80": self._proto,
            "\x95": self._frame,
            "(": self._mark,
            "N": lambda: push(None),
            "\x88": lambda: push(True),
            "\x89": lambda: push(False),
            "K": lambda: push(unsigned(1)),
            "M": lambda: push(unsigned(2)),
            "J": lambda: push(int.from_bytes(self._take(4), "little", signed=True)),
            "\x8a": self._long1,
            "G": lambda: push(struct.unpack(">d", self._take(8))[0]),
            "X": lambda: push(text(unsigned(4))),
            "\x8c": lambda: push(text(unsigned(1))),
            "\x8d": lambda: push(text(unsigned(8))),
            "U": lambda: push(text(unsigned(1))),  # Python 2 wrote str so
            "T": lambda: push(text(unsigned(4))),
            ")": lambda: push(()),
            "\x85": lambda: self._tuple(1),
            "\x86": lambda: self._tuple(2),
            "\x87": lambda: self._tuple(3),
            "t": lambda: push(tuple(self._pop_mark())),
            "]": lambda: push([]),
            "}": lambda: push({}),
            "a": lambda: self._append([self._pop()]),
            "e": lambda: self._append(self._pop_mark()),
            "s": self._setitem,
            "u": lambda: self._set(self._pop_mark()),
            "q": lambda: self._put(unsigned(1)),
            "r": lambda: self._put(unsigned(4)),
            "\x94": lambda: self._put(len(self._memo)),
            "h": lambda: self._get(unsigned(1)),
            "j": lambda: self._get(unsigned(4)),
            "c": lambda: self._find(self._line(), self._line()),
            "\x93": self._stack_global,
            "R": self._reduce,
            "b": self._build,
            "Q": self._persistent,
        }
        return {ord(code): handler for code, handler in named.items()}
