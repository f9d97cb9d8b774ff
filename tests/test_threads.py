"""The same bits for any number of threads, batch, position and run; many Python threads at once; settings; fork."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import fastconv as fc
import reference as ref
from cases import ConvCase, case_id
from helpers import LAYOUTS, Array, conv_data, cpu_conv_kernels, forced_name, kernel_id, max_isa, normal, run_python
from test_conv2d import skip_if_unsupported

has_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

# Work enough for several threads; extents that no tile, vector or number of threads divides.
BITS_CASES = [
    ConvCase("bits_3x3", 5, 35, 15, 17, 50, 3, 3, (1, 1), 1, bias=True),
    ConvCase("bits_1x1", 5, 130, 7, 9, 70, 1, 1),
    ConvCase("bits_stem", 3, 3, 37, 41, 40, 7, 7, (2, 2), 3),
    ConvCase("bits_deep", 3, 520, 5, 5, 33, 3, 3, (1, 1), 1),
    ConvCase("bits_depthwise", 5, 37, 19, 21, 37, 3, 3, (1, 1), 1, groups=37),
    ConvCase("bits_grouped", 3, 36, 13, 15, 60, 3, 3, (2, 2), 1, groups=3),
    ConvCase("bits_pixels", 29, 300, 1, 1, 100, 1, 1),
    ConvCase("bits_planes", 3, 130, 28, 28, 40, 1, 1, bias=True),
    ConvCase("bits_strided", 5, 60, 13, 13, 70, 1, 1, (2, 2), residual=True),
    ConvCase("bits_at_once", 3, 1200, 15, 15, 33, 1, 1),
    ConvCase("bits_epilogue", 4, 20, 14, 14, 66, 3, 3, (1, 1), 1, bias=True, residual=True, activation="relu"),
]


def same_bits(a: Array, b: Array) -> bool:
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()
    )


@pytest.fixture(autouse=True)
def settings_restored() -> Iterator[None]:
    before = fc.get_num_threads()
    yield
    fc.set_num_threads(before)


# --- same bits --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", BITS_CASES, ids=case_id)
@pytest.mark.parametrize("kernel", cpu_conv_kernels(), ids=kernel_id)
def test_conv_bits(kernel: dict[str, Any], case: ConvCase, layout: str) -> None:
    """Random input, so that another order of a sum would show."""
    skip_if_unsupported(kernel)
    data = conv_data(case, "normal")
    x, w = data.operands(layout)
    options = data.options(layout)
    residual = options.pop("residual")
    name = forced_name(kernel)

    def run(batch: slice | np.ndarray) -> Array:
        more = {} if residual is None else {"residual": residual[batch]}
        return np.asarray(fc.conv2d(x[batch], w, algorithm=name, **options, **more))

    whole = slice(None)
    with max_isa(kernel["isa"]):
        try:
            with fc.threads(1):
                expected = run(whole)
        except NotImplementedError as refusal:
            assert name in str(refusal)
            return
        for n in (2, 3, 5, 16):
            with fc.threads(n):
                assert same_bits(run(whole), expected), f"{n} threads"
        with fc.threads(3):
            for i in range(case.n):
                assert same_bits(run(slice(i, i + 1)), expected[i : i + 1]), f"image {i} alone"
            assert same_bits(run(slice(1, case.n)), expected[1:]), "without the first"
            assert same_bits(run(np.arange(case.n)[::-1]), expected[::-1]), "in reverse order"
            repeated = np.repeat(np.arange(case.n), 3)
            assert same_bits(run(repeated), expected[repeated]), "three of each"
        for repeat in range(10):
            assert same_bits(run(whole), expected), f"repeat {repeat}"


def _other_ops() -> dict[str, tuple[Callable[..., Any], int]]:
    """Calls on a batch, and the batch's size."""
    rng = np.random.default_rng(3)
    channels = 37
    mean, weight, bias = (normal(rng, channels) for _ in range(3))
    var = normal(rng, channels) ** 2
    matrix, vector = normal(rng, 101, 700), normal(rng, 101)
    images = {
        layout: np.ascontiguousarray(ref.from_nchw(normal(rng, 6, channels, 33, 35), layout)) for layout in LAYOUTS
    }
    rows, tall = normal(rng, 301, 1000), normal(rng, 6, 50, 300)
    features = normal(rng, 45, 700)
    calls: dict[str, tuple[Callable[..., Any], int]] = {
        "relu": (lambda b: fc.relu(rows[b]), 301),
        "softmax_rows": (lambda b: fc.softmax(rows[b]), 301),
        "softmax_columns": (lambda b: fc.softmax(tall[b], 1), 6),
        "linear": (lambda b: fc.linear(features[b], matrix, vector), 45),
    }
    for layout, x in images.items():
        calls[f"max_pool2d-{layout}"] = (lambda b, x=x, k=layout: fc.max_pool2d(x[b], 3, 2, 1, layout=k), 6)
        calls[f"avg_pool2d-{layout}"] = (lambda b, x=x, k=layout: fc.avg_pool2d(x[b], 3, 2, 1, layout=k), 6)
        calls[f"global-{layout}"] = (lambda b, x=x, k=layout: fc.adaptive_avg_pool2d(x[b], 1, layout=k), 6)
        calls[f"adaptive-{layout}"] = (lambda b, x=x, k=layout: fc.adaptive_avg_pool2d(x[b], (4, 9), layout=k), 6)
        calls[f"batch_norm-{layout}"] = (
            lambda b, x=x, k=layout: fc.batch_norm(x[b], mean, var, weight, bias, layout=k),
            6,
        )
    return calls


OTHER_OPS = _other_ops()


@pytest.mark.parametrize("name", OTHER_OPS)
def test_bits_of_other_ops(name: str, isa: str) -> None:
    run, n = OTHER_OPS[name]
    with fc.threads(1):
        expected = run(slice(None))
    for threads in (2, 3, 7):
        with fc.threads(threads):
            assert same_bits(run(slice(None)), expected), f"{threads} threads"
    with fc.threads(2):
        for i in {0, 1, n // 2, n - 1}:
            assert same_bits(run(slice(i, i + 1)), expected[i : i + 1]), f"{i} alone"
        assert same_bits(run(slice(1, n - 1)), expected[1 : n - 1])
        assert same_bits(run(np.arange(n)[::-1]), expected[::-1])
    for _ in range(10):
        assert same_bits(run(slice(None)), expected)


def test_bits_do_not_depend_on_alignment(isa: str, layout: str) -> None:
    """Where NumPy's allocator put an array is not part of the problem."""
    data = conv_data(BITS_CASES[0], "normal")
    x, w = data.operands(layout)
    expected = fc.conv2d(x, w, padding=1, layout=layout)
    for offset in range(1, 17, 3):
        buffer = np.empty(x.size + 32, np.float32)
        moved = buffer[offset : offset + x.size].reshape(x.shape)
        moved[...] = x
        out = np.empty(expected.size + 32, np.float32)[offset : offset + expected.size].reshape(expected.shape)
        assert same_bits(fc.conv2d(moved, w, padding=1, layout=layout, out=out), expected)


# --- Python threads ---------------------------------------------------------------------------------------------------


def _together(count: int, work: Callable[[int], Any]) -> list[Any]:
    """Runs work(i) on `count` threads that start at the same moment."""
    barrier = threading.Barrier(count)

    def start(i: int) -> Any:
        barrier.wait(30)
        return work(i)

    with ThreadPoolExecutor(count) as pool:
        return [future.result(timeout=120) for future in [pool.submit(start, i) for i in range(count)]]


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_eight_threads_call_one_layer(threads: int, layout: str) -> None:
    data = conv_data(BITS_CASES[0], "normal")
    x, w = data.operands(layout)
    layer = fc.Conv2d(w, data.bias, padding=1, layout=layout)
    inputs = [np.ascontiguousarray(np.roll(x, i)) for i in range(8)]
    expected = [layer(one) for one in inputs]

    def work(i: int) -> bool:
        with fc.threads(threads):
            return all(same_bits(layer(inputs[i]), expected[i]) for _ in range(25))

    assert all(_together(8, work))


def test_eight_threads_call_different_ops() -> None:
    names = list(OTHER_OPS)
    expected = {name: run(slice(None)) for name, (run, _) in OTHER_OPS.items()}

    def work(i: int) -> bool:
        order = names[i:] + names[:i]
        return all(same_bits(OTHER_OPS[name][0](slice(None)), expected[name]) for name in order * 2)

    assert all(_together(8, work))


def test_eight_threads_plan_the_same_and_new_problems() -> None:
    """Every thread meets each shape for the first time while others plan it; layers are made at the same time too."""
    shapes = [(1, 6, h, w) for h in range(3, 15) for w in range(3, 9)]
    rng = np.random.default_rng(1)
    w = rng.integers(-4, 5, (10, 6, 3, 3)).astype(np.float32)
    inputs = [rng.integers(-4, 5, shape).astype(np.float32) for shape in shapes]
    expected = [ref.conv2d(x, w).astype(np.float32) for x in inputs]

    def work(i: int) -> bool:
        good = True
        for k in range(len(shapes)):
            at = (k * 5 + i) % len(shapes)
            run = fc.Conv2d(w) if k % 3 == 0 else lambda x: fc.conv2d(x, w)
            good &= same_bits(run(inputs[at]), expected[at])
        return good

    assert all(_together(8, work))


def test_the_number_of_threads_may_change_during_calls() -> None:
    data = conv_data(BITS_CASES[0], "normal")
    expected = fc.conv2d(*data.operands("NHWC"), data.bias, padding=1, layout="NHWC")

    def work(i: int) -> bool:
        good = True
        for k in range(30):
            if i < 2:
                fc.set_num_threads(1 + (k + i) % 5)
            good &= same_bits(fc.conv2d(*data.operands("NHWC"), data.bias, padding=1, layout="NHWC"), expected)
        return good

    assert all(_together(8, work))


def test_the_gil_is_released() -> None:
    """While one call computes, another Python thread runs."""
    x, w = np.ones((4, 128, 56, 56), np.float32), np.ones((128, 128, 3, 3), np.float32)
    fc.conv2d(x[:1], w, padding=1)
    done = threading.Event()
    ticks = 0

    def compute() -> None:
        with fc.threads(1):
            fc.conv2d(x, w, padding=1)
        done.set()

    worker = threading.Thread(target=compute)
    worker.start()
    while not done.is_set():
        ticks += 1
        time.sleep(0.0005)
    worker.join()
    # A call that held the lock would let the loop run at its ends only.
    assert ticks > 5


# --- settings ---------------------------------------------------------------------------------------------------------


def test_set_num_threads() -> None:
    for n in (1, 2, 3, 8):
        fc.set_num_threads(n)
        assert fc.get_num_threads() == n
    fc.set_num_threads(np.int64(2))
    assert fc.get_num_threads() == 2


def test_threads_is_a_context() -> None:
    fc.set_num_threads(3)
    with fc.threads(2):
        assert fc.get_num_threads() == 2
        with fc.threads(5):
            assert fc.get_num_threads() == 5
        assert fc.get_num_threads() == 2
    assert fc.get_num_threads() == 3
    with pytest.raises(KeyError), fc.threads(2):
        raise KeyError
    assert fc.get_num_threads() == 3


def test_threads_concerns_the_calling_thread_only() -> None:
    fc.set_num_threads(3)
    with fc.threads(2), ThreadPoolExecutor(1) as pool:
        assert pool.submit(fc.get_num_threads).result() == 3
        assert fc.get_num_threads() == 2


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"FASTCONV_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "5"}, 5),
        ({"OMP_NUM_THREADS": "4,2"}, 4),
        ({"FASTCONV_NUM_THREADS": "3", "OMP_NUM_THREADS": "5"}, 3),
    ],
    ids=str,
)
def test_threads_from_the_environment(env: dict[str, str], expected: int) -> None:
    code = "import fastconv as fc; print(fc.get_num_threads()); fc.set_num_threads(7); print(fc.get_num_threads())"
    done = run_python(code, env=env)
    assert done.stdout.split() == [str(expected), "7"], done.stderr


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity masks")
def test_threads_follow_the_affinity_mask() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})"
    code += "; import fastconv as fc; print(fc.get_num_threads())"
    done = run_python(code)
    assert done.stdout.split() == ["1"], done.stderr
    free = run_python("import os, fastconv as fc; print(fc.get_num_threads(), len(os.sched_getaffinity(0)))")
    threads, cpus = map(int, free.stdout.split())
    assert 1 <= threads <= cpus, "at most the mask; less where a container's quota is smaller"


def test_idle_workers_wait_as_long_on_any_processor() -> None:
    """A PAUSE takes 10 to 60 ns; the spin count that is set makes 45 us of it, less than the 50 that the contract
    allows."""
    spin = pytest.importorskip("fastconv._spin")
    turn = min(spin.nanoseconds() for _ in range(20))
    assert 0.1 < turn < 1000
    assert 10_000 < max(fc._spin_count() for _ in range(20)) * turn < 60_000


def test_idle_workers_sleep() -> None:
    """CPU time of the thread other than the caller's, for each call with a pause after it, less that of calls without.

    The contract allows 50 us of waiting. The limit leaves twenty times that for wake-ups and a busy machine; a thread
    that spun through the pause would use all of its 10 ms. (Two threads: with more than processors, runtimes hardly
    spin at all.)
    """
    if fc._core.machine()["cpus_affinity"] < 2:
        pytest.skip("needs two processors")
    code = """
import time, numpy as np, fastconv as fc
fc.set_num_threads(2)
x, w = np.ones((1, 64, 28, 28), np.float32), np.ones((64, 64, 3, 3), np.float32)
def others(rounds, pause):
    process, own = time.process_time(), time.thread_time()
    for _ in range(rounds):
        fc.conv2d(x, w)
        time.sleep(pause)
    return ((time.process_time() - process) - (time.thread_time() - own)) / rounds * 1e6
others(20, 0)
busy = others(100, 0)
assert busy > 0, "no other thread had a share; the call is too small to test"
print(others(100, 0.01) - busy)
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1000, f"{float(done.stdout):.0f} us for each call"


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or platform.machine() != "x86_64",
    reason="knows the constants of Linux on x86-64",
)
def test_floating_point_state_is_not_touched() -> None:
    """Neither the rounding mode nor the treatment of subnormals changes in the caller's thread."""
    libm = ctypes.CDLL("libm.so.6")
    upward = 0x800  # x86's FE_UPWARD
    x, w = normal(np.random.default_rng(0), 1, 16, 20, 20), normal(np.random.default_rng(1), 16, 16, 3, 3)
    tiny = np.array([1e-40], np.float32)
    for threads in (1, 3):
        with fc.threads(threads):
            libm.fesetround(upward)
            try:
                for run in (
                    lambda: fc.conv2d(x, w),
                    lambda: fc.softmax(x),
                    lambda: fc.relu(x),
                    lambda: fc.max_pool2d(x, 2),
                ):
                    run()
                    assert libm.fegetround() == upward
            finally:
                libm.fesetround(0)
    assert (tiny * np.float32(1))[0] != 0


def test_plan_caches_are_bounded() -> None:
    """Thousands of shapes through one process: what remains is a bounded number of plans, not an arena for each."""
    code = """
import resource, numpy as np, fastconv as fc
w = np.ones((32, 32, 3, 3), np.float32)
buffer = np.ones(32 * 64 * 64, np.float32)
def sweep(rows):
    for h in rows:
        for k in range(8, 64):
            fc.conv2d(buffer[: 32 * h * k].reshape(1, 32, h, k), w, algorithm="direct")
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
sweep(range(8, 30))
before = resident()
sweep(range(30, 64))
print(resident() - before)
"""
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc")
    done = run_python(code, timeout=120)
    assert done.returncode == 0, done.stderr
    # 1904 new shapes; the outputs alone would be 300 MB if each kept its arena.
    assert int(done.stdout) < 32 << 20


# --- fork -------------------------------------------------------------------------------------------------------------

FORK = textwrap.dedent(
    """
    import os, select, signal, sys, threading, warnings
    import numpy as np, fastconv as fc
    warnings.simplefilter("ignore")
    fc.set_num_threads(4)
    x, w = np.ones((2, 64, 20, 20), np.float32), np.ones((64, 64, 3, 3), np.float32)
    expected = np.full((2, 64, 18, 18), 576, np.float32)

    def compute():
        '''b"ok" for the right answer or a clear error.'''
        try:
            right = np.allclose(fc.conv2d(x, w), expected) and np.array_equal(fc.Conv2d(w)(x), fc.conv2d(x, w))
            right = right and fc.softmax(x).shape == x.shape and fc.max_pool2d(x, 2).max() == 1
            return b"ok" if right else b"wrong"
        except RuntimeError as error:
            return b"ok" if "fork" in str(error) else repr(error).encode()

    def child():
        '''What a forked child reports within 20 s.'''
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.write(write, compute())
            finally:
                os._exit(0)
        ready, _, _ = select.select([read], [], [], 20)
        answer = os.read(read, 1000) if ready else b"hangs"
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(read); os.close(write)
        return answer.decode()
    """
)


@has_fork
def test_fork_after_a_parallel_call() -> None:
    code = FORK + "assert compute() == b'ok'\nprint(child(), child(), compute().decode())"
    done = run_python(code)
    assert done.stdout.split() == ["ok", "ok", "ok"], done.stdout + done.stderr


@has_fork
def test_fork_before_any_call() -> None:
    done = run_python(FORK + "print(child(), compute().decode(), child())")
    assert done.stdout.split() == ["ok", "ok", "ok"], done.stdout + done.stderr


@has_fork
def test_fork_of_a_fork() -> None:
    code = FORK + textwrap.dedent(
        """
        compute()
        inner, generation = compute, 0
        def compute():
            global generation
            generation += 1
            first = inner()
            return first if first != b"ok" or generation > 1 else child().encode()
        print(child())
        """
    )
    done = run_python(code)
    assert done.stdout.split() == ["ok"], done.stdout + done.stderr


@has_fork
def test_fork_while_other_threads_compute() -> None:
    """A lock that another thread held at the moment of the fork is held for ever in the child."""
    code = FORK + textwrap.dedent(
        """
        stop = False
        def churn(seed):
            k = seed
            while not stop:
                k = (k * 5 + 1) % 997
                fc.conv2d(np.ones((1, 2, 4 + k % 31, 4 + k % 29), np.float32), np.ones((3, 2, 3, 3), np.float32))
                fc.Conv2d(w)(x)
        workers = [threading.Thread(target=churn, args=(i,)) for i in range(4)]
        for worker in workers:
            worker.start()
        answers = {child() for _ in range(25)}
        stop = True
        for worker in workers:
            worker.join()
        print(*answers)
        """
    )
    done = run_python(code, timeout=120)
    assert done.stdout.split() == ["ok"], done.stdout + done.stderr


@has_fork
def test_fork_while_locks_are_held() -> None:
    """Of a layer's programs and of the picture reader, by a thread that the child does not have."""
    code = FORK + textwrap.dedent(
        """
        from fastconv import image
        layer, net = fc.Conv2d(w), fc.models.resnet18(num_classes=3)
        caches = [layer._programs, net._programs]
        before, inner = [cache._building for cache in caches], compute
        try:
            import PIL
        except ImportError:
            PIL = None
        def compute():
            right = np.allclose(layer(x), expected) and net(np.ones((1, 32, 32, 3), np.float32)).shape == (1, 3)
            assert PIL is None or image.decode(image.sample_path()).size
            return inner() if right else b"wrong"
        held, done = threading.Event(), threading.Event()
        def hold():
            with image._OPEN_LOCK, caches[0]._lock, caches[0]._building, caches[1]._lock, caches[1]._building:
                held.set()
                done.wait()
        holder = threading.Thread(target=hold)
        holder.start()
        held.wait()
        print(child())
        done.set()
        holder.join()
        print(compute().decode(), [cache._building for cache in caches] == before)
        """
    )
    done = run_python(code)
    assert done.stdout.split() == ["ok", "ok", "True"], done.stdout + done.stderr


@has_fork
def test_multiprocessing_fork() -> None:
    code = FORK + textwrap.dedent(
        """
        import multiprocessing
        def work(i):
            return compute().decode()
        compute()
        with multiprocessing.get_context("fork").Pool(3) as pool:
            print(*pool.map_async(work, range(6)).get(timeout=40))
        """
    )
    done = run_python(code)
    assert done.stdout.split() == ["ok"] * 6, done.stdout + done.stderr


def test_multiprocessing_spawn(tmp_path: Any) -> None:
    """A layer travels to a fresh process by pickle."""
    script = tmp_path / "spawned.py"
    script.write_text(
        textwrap.dedent(
            """
            import multiprocessing, numpy as np, fastconv as fc
            def work(layer):
                return float(layer(np.ones((1, 8, 9, 9), np.float32)).max())
            if __name__ == "__main__":
                layer = fc.Conv2d(np.ones((4, 8, 3, 3), np.float32))
                layer(np.ones((1, 8, 9, 9), np.float32))
                with multiprocessing.get_context("spawn").Pool(2) as pool:
                    print(*pool.map_async(work, [layer] * 3).get(timeout=50))
            """
        )
    )
    done = run_python(f"import runpy; runpy.run_path({str(script)!r}, run_name='__main__')")
    assert done.stdout.split() == ["72.0"] * 3, done.stdout + done.stderr


@has_fork
def test_fork_after_another_library_used_openmp() -> None:
    """The runtime's threads may be gone in a child although this package had never started any: another library that
    shares the runtime had. (libgomp's entry point is called as compiled code would.)"""
    code = FORK + textwrap.dedent(
        """
        import ctypes
        with open("/proc/self/maps") as maps:
            paths = {line.split()[-1] for line in maps if "libgomp" in line}
        if len(paths) != 1:
            print("skip")
            sys.exit()
        gomp = ctypes.CDLL(paths.pop())
        body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda context: None)
        gomp.GOMP_parallel(body, None, 4, 0)
        print(child())
        """
    )
    done = run_python(code)
    if done.stdout.split() == ["skip"]:
        pytest.skip("the package does not run on a libgomp of its own here")
    assert done.stdout.split() == ["ok"], done.stdout + done.stderr


# --- size -------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="asks sysconf for the free memory")
@pytest.mark.parametrize("shape", [(1, 1, 46400, 46400), (3, 2, 18944, 18944)], ids=str)
def test_more_than_two_to_the_31_elements(shape: tuple[int, ...], layout: str) -> None:
    """Offsets beyond 32 bits in one plane and over planes. Only every 64th pixel of every 64th row is looked at, so
    that most of the memory is never touched."""
    needed = 11 << 30
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if available < needed:
        pytest.skip(f"{available >> 30} GB of memory are free, {needed >> 30} are needed")
    n, c, h, w = shape
    assert n * c * h * w > 2**31
    x = np.zeros(shape if layout == "NCHW" else (n, h, w, c), np.float32)
    planes = ref.to_nchw(x, layout)
    planes[-1, -1, -64, -64], planes[0, 0, 0, 0], planes[-1, 0, -64, 64] = 5, 3, 2
    expected = np.ascontiguousarray(planes[:, :, ::64, ::64])
    y, where = fc.max_pool2d(x, 1, 64, return_indices=True, layout=layout)
    ref.assert_exact(np.ascontiguousarray(ref.to_nchw(y, layout)), expected)
    assert ref.to_nchw(where, layout)[-1, -1, -1, -1] == (h - 64) * w + w - 64
    ref.assert_exact(np.ascontiguousarray(ref.to_nchw(fc.avg_pool2d(x, 1, 64, layout=layout), layout)), expected)
    eye = np.eye(c, dtype=np.float32).reshape(c, c, 1, 1)
    for algorithm in ("direct", "im2col"):
        y = fc.conv2d(x, eye, stride=64, layout=layout, weight_layout="OIHW", algorithm=algorithm)
        ref.assert_exact(np.ascontiguousarray(ref.to_nchw(y, layout)), expected)
