"""Thin wrappers of csrc/minilora.h: check the sizes, release the GIL, call. minilora/kernels/native.py calls them."""

from minilora.errors import ShapeError

from minilora.kernels.minilora cimport (
    MINILORA_W_KN,
    MINILORA_W_NK,
    minilora_compiler,
    minilora_has_openmp,
    minilora_isa_choose,
    minilora_isa_chosen,
    minilora_isa_count,
    minilora_isa_name,
    minilora_isa_runs_here,
    minilora_lora_backward_f32,
    minilora_lora_forward_f32,
    minilora_lora_workspace_f32,
    MINILORA_READ_CHUNK,
    minilora_peak_fma_f32,
    minilora_read_f32,
)

cdef extern from "pthread.h" nogil:
    int pthread_atfork(void (*prepare)() noexcept nogil, void (*parent)() noexcept nogil, void (*child)() noexcept nogil)

# A forked child does not have the OpenMP threads of its parent, and waiting for them never ends.
cdef int thread_limit = 2147483647


cdef void use_one_thread() noexcept nogil:
    global thread_limit
    thread_limit = 1


pthread_atfork(NULL, NULL, use_one_thread)


def allowed_threads(int n_threads) -> int:
    """Return n_threads, or 1 in a forked child."""
    return min(n_threads, thread_limit)


def compiler() -> str:
    return minilora_compiler().decode()


def has_openmp() -> bool:
    return minilora_has_openmp() != 0


def instruction_sets() -> list:
    """Return the names of the compiled instruction sets that this processor runs, slowest first."""
    return [minilora_isa_name(i).decode() for i in range(minilora_isa_count()) if minilora_isa_runs_here(i)]


def choose(str name):
    """Use the named instruction set from now on; raise ValueError where it is not one that runs here."""
    for i in range(minilora_isa_count()):
        if minilora_isa_name(i).decode() == name and minilora_isa_choose(i):
            return
    raise ValueError(f"instruction set {name} does not run here; have {', '.join(instruction_sets())}")


def chosen() -> str:
    return minilora_isa_name(minilora_isa_chosen()).decode()


def lora_workspace(ptrdiff_t m, ptrdiff_t n, ptrdiff_t k, ptrdiff_t r, int n_threads) -> int:
    return minilora_lora_workspace_f32(m, n, k, r, n_threads)


cdef inline const float *start(const float[:, ::1] array) noexcept:
    """The first element's address; NULL for None and for an empty array, whose &array[0, 0] is not valid."""
    return NULL if array is None or array.shape[0] == 0 or array.shape[1] == 0 else &array[0, 0]


cdef inline float *start_of_output(float[:, ::1] array) noexcept:
    return NULL if array is None or array.shape[0] == 0 or array.shape[1] == 0 else &array[0, 0]


cdef inline int expect(str op, str name, ptrdiff_t rows, ptrdiff_t cols, ptrdiff_t need_rows, ptrdiff_t need_cols,
                       str axes) except -1:
    if rows != need_rows or cols != need_cols:
        raise ShapeError(f"{op}: {name} is ({rows}, {cols}), need {axes} = ({need_rows}, {need_cols})")
    return 0


cdef int expect_workspace(str op, unsigned char[::1] workspace, size_t needed, int n_threads) except -1:
    if n_threads < 1:
        raise ValueError(f"{op}: n_threads must be at least 1, got {n_threads}")
    if <size_t>workspace.shape[0] < needed:
        raise ValueError(f"{op}: workspace has {workspace.shape[0]} bytes, need {needed}")
    return 0


def lora_forward(float[:, ::1] y not None, float[:, ::1] hidden, const float[:, ::1] x not None,
                 const float[:, ::1] w not None, const float[:, ::1] a, const float[:, ::1] b,
                 const float[::1] bias, unsigned char[::1] workspace not None,
                 float scale, bint w_is_nk, int n_threads):
    """y = x . W + bias + scale * hidden . B with hidden = x . A; w is (N, K) where w_is_nk, else (K, N)."""
    cdef ptrdiff_t m = x.shape[0], k = x.shape[1]
    cdef ptrdiff_t n = w.shape[0] if w_is_nk else w.shape[1], r = 0
    if (a is None) != (b is None) or (a is None) != (hidden is None):
        raise ShapeError("lora_forward: a, b and hidden go together: give all of them or none")
    if a is not None:
        r = a.shape[1]
    if w_is_nk:
        expect("lora_forward", "w", w.shape[0], w.shape[1], n, k, "(N, K)")
    else:
        expect("lora_forward", "w", w.shape[0], w.shape[1], k, n, "(K, N)")
    if a is not None:
        expect("lora_forward", "a", a.shape[0], a.shape[1], k, r, "(K, R)")
    if b is not None:
        expect("lora_forward", "b", b.shape[0], b.shape[1], r, n, "(R, N)")
    expect("lora_forward", "y", y.shape[0], y.shape[1], m, n, "(M, N)")
    if hidden is not None:
        expect("lora_forward", "hidden", hidden.shape[0], hidden.shape[1], m, r, "(M, R)")
    if bias is not None and bias.shape[0] != n:
        raise ShapeError(f"lora_forward: bias is ({bias.shape[0]},), need (N,) = ({n},)")
    expect_workspace("lora_forward", workspace, minilora_lora_workspace_f32(m, n, k, r, n_threads), n_threads)
    if m == 0 or n == 0 and r == 0:
        return
    cdef float *y0 = start_of_output(y)
    cdef float *hidden0 = start_of_output(hidden)
    cdef const float *x0 = start(x)
    cdef const float *w0 = start(w)
    cdef const float *a0 = start(a)
    cdef const float *b0 = start(b)
    cdef const float *bias0 = &bias[0] if bias is not None and n > 0 else NULL
    cdef int layout = MINILORA_W_NK if w_is_nk else MINILORA_W_KN
    if (<size_t>x0 | <size_t>w0 | <size_t>a0 | <size_t>b0 | <size_t>bias0) % sizeof(float):
        raise ShapeError("lora_forward: an operand is not aligned to 4 bytes")
    n_threads = min(n_threads, thread_limit)
    with nogil:
        minilora_lora_forward_f32(y0, hidden0, x0, w0, a0, b0, bias0, &workspace[0], m, n, k, r, scale, layout,
                                  n_threads)


def lora_backward(float[:, ::1] grad_x, float[:, ::1] grad_a, float[:, ::1] grad_b,
                  const float[:, ::1] grad not None, const float[:, ::1] x, const float[:, ::1] hidden,
                  const float[:, ::1] w not None, const float[:, ::1] a, const float[:, ::1] b,
                  unsigned char[::1] workspace not None, float scale, bint accumulate, bint w_is_nk, int n_threads):
    """The gradients that are not None; w is (N, K) where w_is_nk, else (K, N)."""
    cdef ptrdiff_t m = grad.shape[0], n = grad.shape[1]
    cdef ptrdiff_t k = w.shape[1] if w_is_nk else w.shape[0], r = 0
    if (a is None) != (b is None):
        raise ShapeError("lora_backward: a and b go together: give both or neither")
    if a is not None:
        r = a.shape[1]
    if (grad_a is not None and x is None) or (grad_b is not None and hidden is None):
        raise ShapeError("lora_backward: grad_a needs x, and grad_b needs hidden: give it, or do not ask")
    if w_is_nk:
        expect("lora_backward", "w", w.shape[0], w.shape[1], n, k, "(N, K)")
    else:
        expect("lora_backward", "w", w.shape[0], w.shape[1], k, n, "(K, N)")
    if x is not None:
        expect("lora_backward", "x", x.shape[0], x.shape[1], m, k, "(M, K)")
    if hidden is not None:
        expect("lora_backward", "hidden", hidden.shape[0], hidden.shape[1], m, r, "(M, R)")
    if a is not None:
        expect("lora_backward", "a", a.shape[0], a.shape[1], k, r, "(K, R)")
    if b is not None:
        expect("lora_backward", "b", b.shape[0], b.shape[1], r, n, "(R, N)")
    if grad_x is not None:
        expect("lora_backward", "grad_x", grad_x.shape[0], grad_x.shape[1], m, k, "(M, K)")
    if grad_a is not None:
        expect("lora_backward", "grad_a", grad_a.shape[0], grad_a.shape[1], k, r, "(K, R)")
    if grad_b is not None:
        expect("lora_backward", "grad_b", grad_b.shape[0], grad_b.shape[1], r, n, "(R, N)")
    expect_workspace("lora_backward", workspace, minilora_lora_workspace_f32(m, n, k, r, n_threads), n_threads)
    cdef float *grad_x0 = start_of_output(grad_x)
    cdef float *grad_a0 = start_of_output(grad_a)
    cdef float *grad_b0 = start_of_output(grad_b)
    cdef const float *grad0 = start(grad)
    cdef const float *x0 = start(x)
    cdef const float *hidden0 = start(hidden)
    cdef const float *w0 = start(w)
    cdef const float *a0 = start(a)
    cdef const float *b0 = start(b)
    cdef int layout = MINILORA_W_NK if w_is_nk else MINILORA_W_KN
    if (<size_t>grad0 | <size_t>x0 | <size_t>hidden0 | <size_t>w0 | <size_t>a0 | <size_t>b0) % sizeof(float):
        raise ShapeError("lora_backward: an operand is not aligned to 4 bytes")
    n_threads = min(n_threads, thread_limit)
    with nogil:
        minilora_lora_backward_f32(grad_x0, grad_a0, grad_b0, grad0, x0, hidden0, w0, a0, b0, &workspace[0],
                                   m, n, k, r, scale, accumulate, layout, n_threads)


def peak_fma(float[::1] out not None, int n_threads) -> float:
    """Multiply and add in registers, some blocks of work in one call; return how many flops that were."""
    if out.shape[0] == 0:
        return 0.0
    cdef double flops
    n_threads = min(n_threads, thread_limit)
    with nogil:
        flops = minilora_peak_fma_f32(&out[0], out.shape[0], n_threads)
    return flops


def read_chunks(ptrdiff_t n) -> int:
    """Return how many sums read() gives for n floats."""
    return (n + MINILORA_READ_CHUNK - 1) // MINILORA_READ_CHUNK


def read(float[::1] sums not None, const float[::1] x not None, int n_threads):
    """Read x once; sums[i] is the sum of one chunk of it."""
    if sums.shape[0] != read_chunks(x.shape[0]):
        raise ShapeError(f"read: sums is ({sums.shape[0]},), need ({read_chunks(x.shape[0])},)")
    if x.shape[0] == 0:
        return
    n_threads = min(n_threads, thread_limit)
    with nogil:
        minilora_read_f32(&sums[0], &x[0], x.shape[0], n_threads)
