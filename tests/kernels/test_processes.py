"""The compiled kernel among processes and threads: forked children, threads of Python, the GIL, arrays of any kind.

A child that waits for OpenMP threads that it does not have waits for ever: every child here has a limit.
"""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from kernels.test_backend import printed

import minilora as ml
from minilora import kernels

# Python 3.12 warns of every fork beside threads; that it works is what is tested here.
pytestmark = [pytest.mark.native, pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")]


LIMIT = 30  # seconds, for what takes milliseconds
NEED = (True, True, True)


def operands(seed=0, m=200, k=300, n=400, r=8):
    """x, W, A, B and the gradient of y: enough work to be shared among threads."""
    rng = np.random.default_rng(seed)
    x, a, b, grad = (rng.standard_normal(shape, np.float32) for shape in ((m, k), (k, r), (r, n), (m, n)))
    return x, rng.standard_normal((n, k), np.float32).T, a, b, grad


def products(threads, arrays=None):
    """The bytes of y, hidden and all gradients, computed by this many threads at most."""
    from minilora.kernels import native

    x, w, a, b, grad = arrays or operands()
    y, hidden = native.lora_forward(x, w, a, b, None, 0.5, threads)
    grads = native.lora_backward(grad, x, hidden, w, a, b, 0.5, NEED, threads)
    return b"".join(array.tobytes() for array in (y, hidden, *grads))


def through_tensors(arrays=None):
    """The bytes of y and the gradients of x, A and B, by the operator and backward()."""
    x, w, a, b, grad = arrays or operands()
    leaves = [ml.tensor(array, requires_grad=True) for array in (x, a, b)]
    y = ml.lora_matmul(leaves[0], ml.FrozenWeight(w), *leaves[1:], 0.5)
    y.backward(grad)
    return b"".join(array.tobytes() for array in (y.data, *(leaf.grad for leaf in leaves)))


def answer(function):
    """What a forked child does: it dies by itself where it hangs, lest it outlive a parent that was killed."""
    signal.alarm(2 * LIMIT)
    return function()


def by_os_fork(function):
    """Run ``function`` in a child of os.fork, and return the bytes that it returns."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with os.fdopen(writer, "wb") as pipe:
                pipe.write(answer(function))
        finally:
            os._exit(0)
    os.close(writer)
    try:
        with os.fdopen(reader, "rb") as pipe:
            assert select.select([pipe], [], [], LIMIT)[0], f"the forked child has not answered in {LIMIT} s: it hangs"
            return pipe.read()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def by_multiprocessing(function):
    """Run ``function`` in a child of multiprocessing's fork context, and return what it returns."""
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    child = context.Process(target=lambda: writer.send(answer(function)))
    child.start()
    writer.close()
    try:
        assert reader.poll(LIMIT), f"the forked child has not answered in {LIMIT} s: it hangs"
        return reader.recv()
    finally:
        child.kill()
        child.join()


forks = pytest.mark.parametrize("fork", [by_os_fork, by_multiprocessing])


@forks
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_child_forked_after_use_gets_the_same_bits_whatever_threads_it_asks_for(fork, threads):
    want = products(3)  # now there are threads that a child will not have
    assert fork(lambda: products(threads)) == want
    assert products(3) == want  # and the parent still has them


@forks
def test_a_forked_child_may_set_its_number_of_threads_and_train(fork):
    def child():
        kernels.set_num_threads(3)
        return through_tensors()

    products(3)
    before = kernels.threads()
    assert fork(child) == through_tensors()
    assert kernels.threads() == before


@forks
def test_a_fork_from_a_thread_of_python_gets_the_same_bits(fork):
    want = products(3)

    def use_and_fork():
        assert products(2) == want
        return fork(lambda: products(3))

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(use_and_fork).result() == want
    assert fork(lambda: products(3)) == want


@forks
def test_the_child_of_a_forked_child_gets_the_same_bits(fork):
    want = products(3)
    assert fork(lambda: fork(lambda: products(3))) == want


@forks
def test_a_fork_while_another_thread_is_inside_the_kernel(fork):
    want, stop = products(3), threading.Event()

    def keep_busy():
        while not stop.is_set():
            products(2)

    busy = threading.Thread(target=keep_busy)
    busy.start()
    try:
        for _ in range(5):
            assert fork(lambda: products(3)) == want
    finally:
        stop.set()
        busy.join()


def test_a_thread_pool_of_a_forked_child_gets_the_same_bits():
    want = products(3)

    def child():
        with ThreadPoolExecutor(4) as pool:
            return b"".join({run.result() for run in [pool.submit(products, 3) for _ in range(8)]})

    assert by_os_fork(child) == want


def test_a_spawned_child_gets_the_same_bits_with_threads_of_its_own():
    from minilora.kernels import native

    x, w, a, b, _ = operands()
    want, _ = native.lora_forward(x, w, a, b, None, 0.5, 3)
    pool = multiprocessing.get_context("spawn").Pool(1)
    try:
        # Nothing but functions of the package, which a new interpreter finds by their names.
        pool.apply_async(kernels.set_num_threads, (3,)).get(LIMIT)
        info = pool.apply_async(kernels.info).get(LIMIT)
        got = [pool.apply_async(native.lora_forward, (x, w, a, b, None, 0.5, n)).get(LIMIT)[0] for n in (1, 2, 3)]
    finally:
        pool.terminate()
        pool.join()
    assert info.threads == (3 if info.openmp else 1)
    assert {y.tobytes() for y in got} == {want.tobytes()}


@pytest.mark.parametrize("threads", ["1", "2", "3"])
def test_a_forked_child_of_a_process_told_its_threads_by_the_environment(threads):
    code = f"""
import os, signal
import numpy as np
import minilora as ml
x, w = np.ones((200, 300), np.float32), np.ones((300, 400), np.float32)
a, b = np.ones((300, 8), np.float32), np.ones((8, 400), np.float32)
want = ml.lora_matmul(x, w, a, b, 0.5).tobytes()
child = os.fork()
if child == 0:
    signal.alarm({LIMIT})
    os._exit(3 if ml.lora_matmul(x, w, a, b, 0.5).tobytes() == want else 4)
status = os.waitpid(child, 0)[1]
print("hangs" if os.WIFSIGNALED(status) else {{3: "same", 4: "differs"}}[os.WEXITSTATUS(status)])
"""
    assert printed(code, MINILORA_THREADS=threads) == "same"


def test_a_child_forked_before_the_kernel_is_loaded_may_use_threads():
    code = """
import os
from minilora import kernels
if os.fork() == 0:
    info = kernels.info()
    print(info.threads if info.openmp else 3, flush=True)
    os._exit(0)
os.wait()
"""
    assert printed(code, MINILORA_THREADS="3") == "3"


@pytest.mark.parametrize("compute", [lambda arrays: products(2, arrays), through_tensors], ids=["kernel", "tensors"])
def test_eight_threads_of_python_at_once_get_the_bits_of_one_after_another(compute):
    # Of different sizes, so that no thread could use another's workspace and not be noticed.
    problems = [operands(seed, 40 + 37 * seed, 300 - 11 * seed, 200 + 29 * seed, 1 + 3 * seed) for seed in range(8)]
    want = [compute(arrays) for arrays in problems]
    together = threading.Barrier(8)

    def several(arrays):
        together.wait(LIMIT)
        return {compute(arrays) for _ in range(5)}

    with ThreadPoolExecutor(8) as pool:
        runs = [pool.submit(several, arrays) for arrays in problems]
    assert [run.result() for run in runs] == [{bits} for bits in want]


@pytest.fixture
def ticks_during():
    """Count how often another thread of Python gets its turn while a function runs.

    Nobody is made to give up the GIL during the test, so that the other thread has it only if the function releases it.
    """
    ticks, stop = [0], threading.Event()

    def tick():
        while not stop.is_set():
            ticks[0] += 1
            time.sleep(1e-4)

    def during(function):
        before = ticks[0]
        function()
        return ticks[0] - before

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    ticker = threading.Thread(target=tick)
    ticker.start()
    yield during
    sys.setswitchinterval(interval)
    stop.set()
    ticker.join()


def test_another_thread_of_python_goes_on_while_a_long_product_runs(ticks_during, monkeypatch):
    from minilora.kernels import native

    arrays = operands(m=1300, k=1000, n=1500)
    seen = {}

    def counting(name):
        original = getattr(native._kernels, name)

        def call(*arguments):
            seen[name] = max(seen.get(name, 0), ticks_during(lambda: original(*arguments)))

        monkeypatch.setattr(native._kernels, name, call)

    counting("lora_forward")
    counting("lora_backward")
    products(1, arrays)
    assert set(seen) == {"lora_forward", "lora_backward"}
    assert min(seen.values()) > 3, f"turns of the other thread during a call: {seen}"
    # The count tells: a long call of C that keeps the GIL lets nobody else have a turn.
    assert ticks_during(lambda: sum(range(10_000_000))) == 0


def strided(array):
    """The same numbers, every second one of a larger array's."""
    wide = np.full((array.shape[0], 2 * array.shape[1]), np.nan, np.float32)
    wide[:, ::2] = array
    return wide[:, ::2]


def read_only(array):
    array = array.copy(order="K")
    array.flags.writeable = False
    return array


def reversed_rows(array):
    return np.ascontiguousarray(array[::-1])[::-1]


@pytest.mark.parametrize("kind", [strided, read_only, reversed_rows, np.asfortranarray])
def test_operands_of_every_kind_give_the_bits_of_packed_ones_and_stay_as_they_are(kind):
    packed = operands()
    arrays = [kind(array) for array in packed]
    assert through_tensors(arrays) == through_tensors(packed)
    for array, want in zip(arrays, packed, strict=True):
        np.testing.assert_array_equal(array, want)


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_weight_mapped_from_a_file_that_may_only_be_read(tmp_path, order):
    x, w, a, b, grad = operands()
    stored = np.array(w if order == "C" else w.T, order="C")
    stored.tofile(tmp_path / "w")
    mapped = np.memmap(tmp_path / "w", np.float32, mode="r", shape=stored.shape)
    assert through_tensors((x, mapped if order == "C" else mapped.T, a, b, grad)) == through_tensors(
        (x, np.array(w, order=order), a, b, grad)
    )
