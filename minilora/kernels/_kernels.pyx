"""Thin wrappers of csrc/minilora.h: check the sizes, release the GIL, call. minilora/kernels/native.py calls them."""

from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t

from minilora.errors import ShapeError

from minilora.kernels.minilora cimport (
    MINILORA_BF16,
    MINILORA_F16,
    MINILORA_F32,
    MINILORA_Q4_0,
    MINILORA_Q4_1,
    MINILORA_Q8_0,
    MINILORA_W_KN,
    MINILORA_W_NK,
    minilora_attention_backward_f32,
    minilora_attention_forward_f32,
    minilora_attention_workspace_f32,
    minilora_adamw_f32,
    minilora_compiler,
    minilora_cross_entropy_backward_f32,
    minilora_cross_entropy_forward_f32,
    minilora_has_openmp,
    minilora_isa_choose,
    minilora_isa_chosen,
    minilora_isa_count,
    minilora_isa_name,
    minilora_isa_runs_here,
    minilora_linear_cross_entropy_f32,
    minilora_linear_cross_entropy_workspace_f32,
    minilora_lora_backward_f32,
    minilora_lora_forward_f32,
    minilora_lora_workspace_f32,
    minilora_mixed_lora_forward_f32,
    minilora_span,
    minilora_norm_workspace_f32,
    minilora_rms_norm_forward_f32,
    minilora_rms_norm_backward_f32,
    minilora_layer_norm_forward_f32,
    minilora_layer_norm_backward_f32,
    minilora_silu_forward_f32,
    minilora_silu_backward_f32,
    minilora_swiglu_forward_f32,
    minilora_swiglu_backward_f32,
    minilora_gelu_forward_f32,
    minilora_gelu_backward_f32,
    minilora_rotary_f32,
    minilora_embedding_forward_f32,
    minilora_embedding_backward_f32,
    minilora_scale_f32,
    minilora_square_sum_f32,
    minilora_square_sum_workspace_f32,
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


STORAGES = {
    "f32": MINILORA_F32, "bf16": MINILORA_BF16, "f16": MINILORA_F16,
    "q8_0": MINILORA_Q8_0, "q4_0": MINILORA_Q4_0, "q4_1": MINILORA_Q4_1,
}


cdef inline ptrdiff_t elements(ptrdiff_t line_bytes, int storage) noexcept:
    """How many elements of W a line of so many bytes holds."""
    if storage == MINILORA_F32:
        return line_bytes // 4
    if storage == MINILORA_BF16 or storage == MINILORA_F16:
        return line_bytes // 2
    return line_bytes // (34 if storage == MINILORA_Q8_0 else 18 if storage == MINILORA_Q4_0 else 20) * 32


cdef inline const unsigned char *start_of_bytes(const unsigned char[:, ::1] array) noexcept:
    return NULL if array.shape[0] == 0 or array.shape[1] == 0 else &array[0, 0]


cdef int expect_workspace(str op, unsigned char[::1] workspace, size_t needed, int n_threads) except -1:
    if n_threads < 1:
        raise ValueError(f"{op}: n_threads must be at least 1, got {n_threads}")
    if <size_t>workspace.shape[0] < needed:
        raise ValueError(f"{op}: workspace has {workspace.shape[0]} bytes, need {needed}")
    return 0


def lora_forward(float[:, ::1] y not None, float[:, ::1] hidden, const float[:, ::1] x not None,
                 const unsigned char[:, ::1] w not None, const float[:, ::1] a, const float[:, ::1] b,
                 const float[::1] bias, unsigned char[::1] workspace not None,
                 float scale, int storage, bint w_is_nk, int n_threads):
    """y = x . W + bias + scale * hidden . B with hidden = x . A; w is the stored lines of W, N of them where w_is_nk."""
    cdef ptrdiff_t m = x.shape[0], k = x.shape[1]
    cdef ptrdiff_t lines = w.shape[0], length = elements(w.shape[1], storage)
    cdef ptrdiff_t n = lines if w_is_nk else length, r = 0
    if (a is None) != (b is None) or (a is None) != (hidden is None):
        raise ShapeError("lora_forward: a, b and hidden go together: give all of them or none")
    if a is not None:
        r = a.shape[1]
    if w_is_nk:
        expect("lora_forward", "w", lines, length, n, k, "(N, K)")
    else:
        expect("lora_forward", "w", lines, length, k, n, "(K, N)")
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
    cdef const unsigned char *w0 = start_of_bytes(w)
    cdef const float *a0 = start(a)
    cdef const float *b0 = start(b)
    cdef const float *bias0 = &bias[0] if bias is not None and n > 0 else NULL
    cdef int layout = MINILORA_W_NK if w_is_nk else MINILORA_W_KN
    if (<size_t>x0 | (<size_t>w0 if storage == MINILORA_F32 else 0) | <size_t>a0 | <size_t>b0 | <size_t>bias0) % sizeof(float):
        raise ShapeError("lora_forward: an operand is not aligned to 4 bytes")
    n_threads = min(n_threads, thread_limit)
    with nogil:
        minilora_lora_forward_f32(y0, hidden0, x0, w0, a0, b0, bias0, &workspace[0], m, n, k, r, scale, layout,
                                  storage, n_threads)


def span_bytes(ptrdiff_t count) -> int:
    """Bytes that so many spans need, at any alignment."""
    return count * sizeof(minilora_span) + 16


def mixed_lora_forward(float[:, ::1] y not None, list hidden, const float[:, ::1] x not None,
                       const unsigned char[:, ::1] w not None, list a, list b, const float[::1] bias,
                       list rows, list scales, unsigned char[::1] space not None, unsigned char[::1] workspace not None,
                       ptrdiff_t max_r, int storage, bint w_is_nk, int n_threads):
    """y = x . W + bias, plus scales[i] * (x . a[i]) . b[i] in the rows rows[i] = (first, count); space holds the spans."""
    cdef ptrdiff_t m = x.shape[0], k = x.shape[1], length = elements(w.shape[1], storage)
    cdef ptrdiff_t n = w.shape[0] if w_is_nk else length, count = len(rows), i, free_from = 0
    cdef const float[:, ::1] a_i, b_i
    cdef float[:, ::1] hidden_i
    if w_is_nk:
        expect("mixed_lora_forward", "w", w.shape[0], length, n, k, "(N, K)")
    else:
        expect("mixed_lora_forward", "w", w.shape[0], length, k, n, "(K, N)")
    expect("mixed_lora_forward", "y", y.shape[0], y.shape[1], m, n, "(M, N)")
    if bias is not None and bias.shape[0] != n:
        raise ShapeError(f"mixed_lora_forward: bias is ({bias.shape[0]},), need (N,) = ({n},)")
    if space.shape[0] < span_bytes(count):
        raise ValueError("mixed_lora_forward: no room for the spans")
    expect_workspace("mixed_lora_forward", workspace, minilora_lora_workspace_f32(m, n, k, max_r, n_threads), n_threads)
    if m == 0 or n == 0:
        return
    cdef minilora_span *spans = <minilora_span *>(<size_t>(&space[0] + 15) // 16 * 16)
    for i in range(count):
        a_i, b_i, hidden_i = a[i], b[i], hidden[i]
        spans[i].first, spans[i].count = rows[i]
        spans[i].r, spans[i].scale = a_i.shape[1], scales[i]
        if spans[i].first < free_from or spans[i].count < 0 or spans[i].first + spans[i].count > m:
            raise ShapeError(f"mixed_lora_forward: span {i} is {rows[i]}, need (first, count) in order, within {m} rows")
        free_from = spans[i].first + spans[i].count
        if spans[i].r > max_r:
            raise ShapeError(f"mixed_lora_forward: adapter {i} has rank {spans[i].r}, need at most {max_r}")
        expect("mixed_lora_forward", "a", a_i.shape[0], a_i.shape[1], k, spans[i].r, "(K, R)")
        expect("mixed_lora_forward", "b", b_i.shape[0], b_i.shape[1], spans[i].r, n, "(R, N)")
        expect("mixed_lora_forward", "hidden", hidden_i.shape[0], hidden_i.shape[1], spans[i].count, spans[i].r, "(M, R)")
        spans[i].a, spans[i].b, spans[i].hidden = start(a_i), start(b_i), start_of_output(hidden_i)
    cdef float *y0 = start_of_output(y)
    cdef const float *x0 = start(x)
    cdef const unsigned char *w0 = start_of_bytes(w)
    cdef const float *bias0 = &bias[0] if bias is not None else NULL
    cdef int layout = MINILORA_W_NK if w_is_nk else MINILORA_W_KN
    n_threads = min(n_threads, thread_limit)
    with nogil:
        minilora_mixed_lora_forward_f32(y0, x0, w0, bias0, spans, &workspace[0], m, n, k, count, max_r, layout, storage,
                                        n_threads)


def lora_backward(float[:, ::1] grad_x, float[:, ::1] grad_a, float[:, ::1] grad_b,
                  const float[:, ::1] grad not None, const float[:, ::1] x, const float[:, ::1] hidden,
                  const unsigned char[:, ::1] w not None, const float[:, ::1] a, const float[:, ::1] b,
                  unsigned char[::1] workspace not None, float scale, bint accumulate, int storage, bint w_is_nk,
                  int n_threads):
    """The gradients that are not None; w is the stored lines of W, N of them where w_is_nk."""
    cdef ptrdiff_t m = grad.shape[0], n = grad.shape[1]
    cdef ptrdiff_t lines = w.shape[0], length = elements(w.shape[1], storage)
    cdef ptrdiff_t k = length if w_is_nk else lines, r = 0
    if (a is None) != (b is None):
        raise ShapeError("lora_backward: a and b go together: give both or neither")
    if a is not None:
        r = a.shape[1]
    if (grad_a is not None and x is None) or (grad_b is not None and hidden is None):
        raise ShapeError("lora_backward: grad_a needs x, and grad_b needs hidden: give it, or do not ask")
    if w_is_nk:
        expect("lora_backward", "w", lines, length, n, k, "(N, K)")
    else:
        expect("lora_backward", "w", lines, length, k, n, "(K, N)")
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
    cdef const unsigned char *w0 = start_of_bytes(w)
    cdef const float *a0 = start(a)
    cdef const float *b0 = start(b)
    cdef int layout = MINILORA_W_NK if w_is_nk else MINILORA_W_KN
    if (<size_t>grad0 | <size_t>x0 | <size_t>hidden0 | (<size_t>w0 if storage == MINILORA_F32 else 0) | <size_t>a0 | <size_t>b0) % sizeof(float):
        raise ShapeError("lora_backward: an operand is not aligned to 4 bytes")
    n_threads = min(n_threads, thread_limit)
    with nogil:
        minilora_lora_backward_f32(grad_x0, grad_a0, grad_b0, grad0, x0, hidden0, w0, a0, b0, &workspace[0],
                                   m, n, k, r, scale, accumulate, layout, storage, n_threads)


def attention_workspace(ptrdiff_t b, ptrdiff_t t, ptrdiff_t s, ptrdiff_t h, ptrdiff_t g, ptrdiff_t d, ptrdiff_t pairs,
                        bint backward, int n_threads) -> int:
    return minilora_attention_workspace_f32(b, t, s, h, g, d, pairs, backward, n_threads)


cdef inline const float *start4(const float[:, :, :, :] array) noexcept:
    """The first element's address; NULL for None and for an empty array."""
    if array is None or array.shape[0] * array.shape[1] * array.shape[2] * array.shape[3] == 0:
        return NULL
    return &array[0, 0, 0, 0]


cdef inline float *start_of_output4(float[:, :, :, ::1] array) noexcept:
    if array is None or array.shape[0] * array.shape[1] * array.shape[2] * array.shape[3] == 0:
        return NULL
    return &array[0, 0, 0, 0]


cdef int expect4(str op, str name, const float[:, :, :, :] array, ptrdiff_t b, ptrdiff_t t, ptrdiff_t h, ptrdiff_t d,
                 str axes, bint dense) except -1:
    """Check the sizes of an array that may be None, and that a batch entry of it (all of it, if dense) is packed."""
    if array is None:
        return 0
    if array.shape[0] != b or array.shape[1] != t or array.shape[2] != h or array.shape[3] != d:
        have = f"({array.shape[0]}, {array.shape[1]}, {array.shape[2]}, {array.shape[3]})"
        raise ShapeError(f"{op}: {name} is {have}, need {axes} = ({b}, {t}, {h}, {d})")
    if b * t * h * d == 0:
        return 0
    cdef ptrdiff_t size = sizeof(float), entry = array.strides[0]
    packed = ((d == 1 or array.strides[3] == size) and (h == 1 or array.strides[2] == d * size)
              and (t == 1 or array.strides[1] == h * d * size)
              and (b == 1 or entry == t * h * d * size or not dense and entry >= t * h * d * size))
    if not packed or entry % size or <size_t>&array[0, 0, 0, 0] % size:
        raise ShapeError(f"{op}: {name} is not packed over its last {4 if dense else 3} axes, or not aligned")
    return 0


cdef int expect_mask(str op, const unsigned char[:, ::1] mask, ptrdiff_t b, ptrdiff_t s) except -1:
    if mask is not None:
        expect(op, "mask", mask.shape[0], mask.shape[1], b, s, "(B, S)")
    return 0


cdef int expect_heads(str op, ptrdiff_t h, ptrdiff_t g, ptrdiff_t first, ptrdiff_t last, ptrdiff_t pairs,
                      ptrdiff_t window) except -1:
    if h % max(g, 1) or (g == 0 and h):
        raise ShapeError(f"{op}: q has H={h} heads and k has G={g}, need H a multiple of G")
    if not 0 <= first <= last <= pairs or window < 0:
        raise ValueError(f"{op}: pairs [{first}, {last}) of {pairs}, or a window of {window}, do not exist")
    return 0


def attention_forward(float[:, :, :, ::1] y not None, float[:, :, :, ::1] stats, const float[:, :, :, :] q not None,
                      const float[:, :, :, :] k not None, const float[:, :, :, :] v not None,
                      const unsigned char[:, ::1] mask, unsigned char[::1] workspace not None,
                      ptrdiff_t first, ptrdiff_t last, ptrdiff_t window, bint causal, float scale, int n_threads):
    """y and stats of pairs [first, last) of batch entry and group; window 0: none."""
    cdef ptrdiff_t b = q.shape[0], t = q.shape[1], h = q.shape[2], d = q.shape[3], s = k.shape[1], g = k.shape[2]
    expect_heads("attention_forward", h, g, first, last, b * g, window)
    expect4("attention_forward", "q", q, b, t, h, d, "(B, T, H, D)", True)
    expect4("attention_forward", "k", k, b, s, g, d, "(B, S, G, D)", False)
    expect4("attention_forward", "v", v, b, s, g, d, "(B, S, G, D)", False)
    expect4("attention_forward", "y", y, b, t, h, d, "(B, T, H, D)", True)
    expect4("attention_forward", "stats", stats, b, t, h, 2, "(B, T, H, 2)", True)
    expect_mask("attention_forward", mask, b, s)
    expect_workspace("attention_forward", workspace,
                     minilora_attention_workspace_f32(b, t, s, h, g, d, last - first, 0, n_threads), n_threads)
    cdef float *y0 = start_of_output4(y)
    cdef float *stats0 = start_of_output4(stats)
    cdef const float *q0 = start4(q)
    cdef const float *k0 = start4(k)
    cdef const float *v0 = start4(v)
    cdef const unsigned char *mask0 = &mask[0, 0] if mask is not None and b * s > 0 else NULL
    cdef ptrdiff_t k_step = k.strides[0] // <ptrdiff_t>sizeof(float), v_step = v.strides[0] // <ptrdiff_t>sizeof(float)
    n_threads = min(n_threads, thread_limit)
    with nogil:
        minilora_attention_forward_f32(y0, stats0, q0, k0, v0, mask0, &workspace[0], b, t, s, h, g, d, k_step, v_step,
                                       first, last, window, causal, scale, n_threads)


def attention_backward(float[:, :, :, ::1] grad_q, float[:, :, :, ::1] grad_k, float[:, :, :, ::1] grad_v,
                       const float[:, :, :, :] grad not None, const float[:, :, :, :] q not None,
                       const float[:, :, :, :] k not None, const float[:, :, :, :] v, const float[:, :, :, :] y,
                       const float[:, :, :, :] stats not None, const unsigned char[:, ::1] mask,
                       unsigned char[::1] workspace not None, ptrdiff_t first, ptrdiff_t last, ptrdiff_t window,
                       bint causal, float scale, int n_threads):
    """The gradients that are not None, of pairs [first, last) of batch entry and group; window 0: none."""
    cdef ptrdiff_t b = q.shape[0], t = q.shape[1], h = q.shape[2], d = q.shape[3], s = k.shape[1], g = k.shape[2]
    expect_heads("attention_backward", h, g, first, last, b * g, window)
    if (grad_q is not None or grad_k is not None) and (v is None or y is None):
        raise ShapeError("attention_backward: grad_q and grad_k need v and y: give them, or do not ask")
    expect4("attention_backward", "q", q, b, t, h, d, "(B, T, H, D)", True)
    expect4("attention_backward", "k", k, b, s, g, d, "(B, S, G, D)", False)
    expect4("attention_backward", "v", v, b, s, g, d, "(B, S, G, D)", False)
    expect4("attention_backward", "y", y, b, t, h, d, "(B, T, H, D)", True)
    expect4("attention_backward", "grad", grad, b, t, h, d, "(B, T, H, D)", True)
    expect4("attention_backward", "stats", stats, b, t, h, 2, "(B, T, H, 2)", True)
    expect4("attention_backward", "grad_q", grad_q, b, t, h, d, "(B, T, H, D)", True)
    expect4("attention_backward", "grad_k", grad_k, b, s, g, d, "(B, S, G, D)", True)
    expect4("attention_backward", "grad_v", grad_v, b, s, g, d, "(B, S, G, D)", True)
    expect_mask("attention_backward", mask, b, s)
    expect_workspace("attention_backward", workspace,
                     minilora_attention_workspace_f32(b, t, s, h, g, d, last - first, 1, n_threads), n_threads)
    cdef float *grad_q0 = start_of_output4(grad_q)
    cdef float *grad_k0 = start_of_output4(grad_k)
    cdef float *grad_v0 = start_of_output4(grad_v)
    cdef const float *grad0 = start4(grad)
    cdef const float *q0 = start4(q)
    cdef const float *k0 = start4(k)
    cdef const float *v0 = start4(v)
    cdef const float *y0 = start4(y)
    cdef const float *stats0 = start4(stats)
    cdef const unsigned char *mask0 = &mask[0, 0] if mask is not None and b * s > 0 else NULL
    cdef ptrdiff_t k_step = k.strides[0] // <ptrdiff_t>sizeof(float)
    cdef ptrdiff_t v_step = 0 if v is None else v.strides[0] // <ptrdiff_t>sizeof(float)
    n_threads = min(n_threads, thread_limit)
    with nogil:
        minilora_attention_backward_f32(grad_q0, grad_k0, grad_v0, grad0, q0, k0, v0, y0, stats0, mask0, &workspace[0],
                                        b, t, s, h, g, d, k_step, v_step, first, last, window, causal, scale, n_threads)


# Below, rows and single elements: every operand is one memoryview of rows (M, D), of a vector (D,), or flat.

cdef inline const float *start_of(const float[::1] array) noexcept:
    return NULL if array is None or array.shape[0] == 0 else &array[0]


cdef inline float *start_of_vector(float[::1] array) noexcept:
    return NULL if array is None or array.shape[0] == 0 else &array[0]


cdef inline int expect_length(str op, str name, ptrdiff_t length, ptrdiff_t need, str axis) except -1:
    if length != need:
        raise ShapeError(f"{op}: {name} is ({length},), need ({axis},) = ({need},)")
    return 0


cdef inline int expect_threads(str op, int n_threads) except -1:
    if n_threads < 1:
        raise ValueError(f"{op}: n_threads must be at least 1, got {n_threads}")
    return 0


cdef inline int expect_aligned(str op, size_t addresses) except -1:
    """addresses  those of all operands, by bitwise or"""
    if addresses % sizeof(float):
        raise ShapeError(f"{op}: an operand is not aligned to 4 bytes")
    return 0


def norm_workspace(ptrdiff_t rows, ptrdiff_t d) -> int:
    return minilora_norm_workspace_f32(rows, d)


def rms_norm_forward(float[:, ::1] y not None, float[::1] inv_rms not None, const float[:, ::1] x not None,
                     const float[::1] weight not None, float eps, int n_threads):
    """y = x inv_rms weight with inv_rms = 1 / sqrt(mean(x^2) + eps) of each row."""
    cdef ptrdiff_t rows = x.shape[0], d = x.shape[1]
    expect("rms_norm", "y", y.shape[0], y.shape[1], rows, d, "(M, D)")
    expect_length("rms_norm", "inv_rms", inv_rms.shape[0], rows, "M")
    expect_length("rms_norm", "weight", weight.shape[0], d, "D")
    expect_threads("rms_norm", n_threads)
    cdef float *y0 = start_of_output(y)
    cdef float *inv_rms0 = start_of_vector(inv_rms)
    cdef const float *x0 = start(x)
    cdef const float *weight0 = start_of(weight)
    expect_aligned("rms_norm", <size_t>x0 | <size_t>weight0)
    n_threads = min(n_threads, thread_limit)
    with nogil:
        minilora_rms_norm_forward_f32(y0, inv_rms0, x0, weight0, rows, d, eps, n_threads)


def rms_norm_backward(float[:, ::1] grad_x, float[::1] grad_weight, const float[:, ::1] grad not None,
                      const float[:, ::1] x not None, const float[::1] inv_rms not None,
                      const float[::1] weight not None, unsigned char[::1] workspace not None, bint accumulate,
                      int n_threads):
    """The gradients that are not None."""
    cdef ptrdiff_t rows = x.shape[0], d = x.shape[1]
    expect("rms_norm", "grad", grad.shape[0], grad.shape[1], rows, d, "(M, D)")
    expect_length("rms_norm", "inv_rms", inv_rms.shape[0], rows, "M")
    expect_length("rms_norm", "weight", weight.shape[0], d, "D")
    if grad_x is not None:
        expect("rms_norm", "grad_x", grad_x.shape[0], grad_x.shape[1], rows, d, "(M, D)")
    if grad_weight is not None:
        expect_length("rms_norm", "grad_weight", grad_weight.shape[0], d, "D")
    expect_workspace("rms_norm", workspace, minilora_norm_workspace_f32(rows, d), n_threads)
    cdef float *grad_x0 = start_of_output(grad_x)
    cdef float *grad_weight0 = start_of_vector(grad_weight)
    cdef const float *grad0 = start(grad)
    cdef const float *x0 = start(x)
    cdef const float *inv_rms0 = start_of(inv_rms)
    cdef const float *weight0 = start_of(weight)
    expect_aligned("rms_norm", <size_t>grad0 | <size_t>x0 | <size_t>inv_rms0 | <size_t>weight0)
    n_threads = min(n_threads, thread_limit)
    with nogil:
        minilora_rms_norm_backward_f32(grad_x0, grad_weight0, grad0, x0, inv_rms0, weight0, &workspace[0], rows, d,
                                       accumulate, n_threads)


def layer_norm_forward(float[:, ::1] y not None, float[::1] mean not None, float[::1] inv_std not None,
                       const float[:, ::1] x not None, const float[::1] weight not None,
                       const float[::1] bias not None, float eps, int n_threads):
    """y = (x - m) inv_std weight + bias, with mean m and inv_std = 1 / sqrt(mean((x - m)^2) + eps) of each row."""
    cdef ptrdiff_t rows = x.shape[0], d = x.shape[1]
    expect("layer_norm", "y", y.shape[0], y.shape[1], rows, d, "(M, D)")
    expect_length("layer_norm", "mean", mean.shape[0], rows, "M")
    expect_length("layer_norm", "inv_std", inv_std.shape[0], rows, "M")
    expect_length("layer_norm", "weight", weight.shape[0], d, "D")
    expect_length("layer_norm", "bias", bias.shape[0], d, "D")
    expect_threads("layer_norm", n_threads)
    cdef float *y0 = start_of_output(y)
    cdef float *mean0 = start_of_vector(mean)
    cdef float *inv_std0 = start_of_vector(inv_std)
    cdef const float *x0 = start(x)
    cdef const float *weight0 = start_of(weight)
    cdef const float *bias0 = start_of(bias)
    expect_aligned("layer_norm", <size_t>x0 | <size_t>weight0 | <size_t>bias0)
    n_threads = min(n_threads, thread_limit)
    with nogil:
        minilora_layer_norm_forward_f32(y0, mean0, inv_std0, x0, weight0, bias0, rows, d, eps, n_threads)


def layer_norm_backward(float[:, ::1] grad_x, float[::1] grad_weight, float[::1] grad_bias,
                        const float[:, ::1] grad not None, const float[:, ::1] x, const float[::1] mean,
                        const float[::1] inv_std, const float[::1] weight, unsigned char[::1] workspace not None,
                        bint accumulate, int n_threads):
    """The gradients that are not None; x, mean, inv_std and weight may be None where only grad_bias is wanted."""
    cdef ptrdiff_t rows = grad.shape[0], d = grad.shape[1]
    if (grad_x is not None or grad_weight is not None) and (x is None or mean is None or inv_std is None):
        raise ShapeError("layer_norm: grad_x and grad_weight need x, mean and inv_std: give them, or do not ask")
    if grad_x is not None:
        if weight is None:
            raise ShapeError("layer_norm: grad_x needs weight: give it, or do not ask")
        expect("layer_norm", "grad_x", grad_x.shape[0], grad_x.shape[1], rows, d, "(M, D)")
    if x is not None:
        expect("layer_norm", "x", x.shape[0], x.shape[1], rows, d, "(M, D)")
    if mean is not None:
        expect_length("layer_norm", "mean", mean.shape[0], rows, "M")
    if inv_std is not None:
        expect_length("layer_norm", "inv_std", inv_std.shape[0], rows, "M")
    if weight is not None:
        expect_length("layer_norm", "weight", weight.shape[0], d, "D")
    if grad_weight is not None:
        expect_length("layer_norm", "grad_weight", grad_weight.shape[0], d, "D")
    if grad_bias is not None:
        expect_length("layer_norm", "grad_bias", grad_bias.shape[0], d, "D")
    expect_workspace("layer_norm", workspace, minilora_norm_workspace_f32(rows, d), n_threads)
    cdef float *grad_x0 = start_of_output(grad_x)
    cdef float *grad_weight0 = start_of_vector(grad_weight)
    cdef float *grad_bias0 = start_of_vector(grad_bias)
    cdef const float *grad0 = start(grad)
    cdef const float *x0 = start(x)
    cdef const float *mean0 = start_of(mean)
    cdef const float *inv_std0 = start_of(inv_std)
    cdef const float *weight0 = start_of(weight)
    expect_aligned("layer_norm", <size_t>grad0 | <size_t>x0 | <size_t>mean0 | <size_t>inv_std0 | <size_t>weight0)
    n_threads = min(n_threads, thread_limit)
    with nogil:
        minilora_layer_norm_backward_f32(grad_x0, grad_weight0, grad_bias0, grad0, x0, mean0, inv_std0, weight0,
                                         &workspace[0], rows, d, accumulate, n_threads)


def silu_forward(float[::1] y not None, const float[::1] x not None, int n_threads):
    cdef ptrdiff_t n = x.shape[0]
    expect_length("silu", "y", y.shape[0], n, "N")
    expect_threads("silu", n_threads)
    cdef float *y0 = start_of_vector(y)
    cdef const float *x0 = start_of(x)
    expect_aligned("silu", <size_t>x0)
    n_threads = min(n_threads, thread_limit)
    with nogil:
        minilora_silu_forward_f32(y0, x0, n, n_threads)


def silu_backward(float[::1] grad_x not None, const float[::1] grad not None, const float[::1] x not None,
                  int n_threads):
    cdef ptrdiff_t n = x.shape[0]
    expect_length("silu", "grad_x", grad_x.shape[0], n, "N")
    expect_length("silu", "grad", grad.shape[0], n, "N")
    expect_threads("silu", n_threads)
    cdef float *grad_x0 = start_of_vector(grad_x)
    cdef const float *grad0 = start_of(grad)
    cdef const float *x0 = start_of(x)
    expect_aligned("silu", <size_t>grad0 | <size_t>x0)
    n_threads = min(n_threads, thread_limit)
    with nogil:
        minilora_silu_backward_f32(grad_x0, grad0, x0, n, n_threads)


def swiglu_forward(float[::1] y not None, const float[::1] gate not None, const float[::1] up not None,
                   int n_threads):
    cdef ptrdiff_t n = gate.shape[0]
    expect_length("swiglu", "up", up.shape[0], n, "N")
    expect_length("swiglu", "y", y.shape[0], n, "N")
    expect_threads("swiglu", n_threads)
    cdef float *y0 = start_of_vector(y)
    cdef const float *gate0 = start_of(gate)
    cdef const float *up0 = start_of(up)
    expect_aligned("swiglu", <size_t>gate0 | <size_t>up0)
    n_threads = min(n_threads, thread_limit)
    with nogil:
        minilora_swiglu_forward_f32(y0, gate0, up0, n, n_threads)


def swiglu_backward(float[::1] grad_gate, float[::1] grad_up, const float[::1] grad not None,
                    const float[::1] gate not None, const float[::1] up not None, int n_threads):
    """The gradients that are not None."""
    cdef ptrdiff_t n = gate.shape[0]
    expect_length("swiglu", "up", up.shape[0], n, "N")
    expect_length("swiglu", "grad", grad.shape[0], n, "N")
    if grad_gate is not None:
        expect_length("swiglu", "grad_gate", grad_gate.shape[0], n, "N")
    if grad_up is not None:
        expect_length("swiglu", "grad_up", grad_up.shape[0], n, "N")
    expect_threads("swiglu", n_threads)
    cdef float *grad_gate0 = start_of_vector(grad_gate)
    cdef float *grad_up0 = start_of_vector(grad_up)
    cdef const float *grad0 = start_of(grad)
    cdef const float *gate0 = start_of(gate)
    cdef const float *up0 = start_of(up)
    expect_aligned("swiglu", <size_t>grad0 | <size_t>gate0 | <size_t>up0)
    n_threads = min(n_threads, thread_limit)
    with nogil:
        minilora_swiglu_backward_f32(grad_gate0, grad_up0, grad0, gate0, up0, n, n_threads)


def gelu_forward(float[::1] y not None, const float[::1] x not None, bint by_tanh, int n_threads):
    cdef ptrdiff_t n = x.shape[0]
    expect_length("gelu", "y", y.shape[0], n, "N")
    expect_threads("gelu", n_threads)
    cdef float *y0 = start_of_vector(y)
    cdef const float *x0 = start_of(x)
    expect_aligned("gelu", <size_t>x0)
    n_threads = min(n_threads, thread_limit)
    with nogil:
        minilora_gelu_forward_f32(y0, x0, n, by_tanh, n_threads)


def gelu_backward(float[::1] grad_x not None, const float[::1] grad not None, const float[::1] x not None,
                  bint by_tanh, int n_threads):
    cdef ptrdiff_t n = x.shape[0]
    expect_length("gelu", "grad_x", grad_x.shape[0], n, "N")
    expect_length("gelu", "grad", grad.shape[0], n, "N")
    expect_threads("gelu", n_threads)
    cdef float *grad_x0 = start_of_vector(grad_x)
    cdef const float *grad0 = start_of(grad)
    cdef const float *x0 = start_of(x)
    expect_aligned("gelu", <size_t>grad0 | <size_t>x0)
    n_threads = min(n_threads, thread_limit)
    with nogil:
        minilora_gelu_backward_f32(grad_x0, grad0, x0, n, by_tanh, n_threads)


def rotary(float[:, :, ::1] y not None, const float[:, :, ::1] x not None, const float[:, ::1] cos not None,
           const float[:, ::1] sin not None, bint back, int n_threads):
    """Turn each head of x (positions, heads, 2 E) by the angles of its position; back: by the opposite ones."""
    cdef ptrdiff_t positions = x.shape[0], heads = x.shape[1], half = cos.shape[1]
    if x.shape[2] != 2 * half:
        raise ShapeError(f"rotary: x has D = {x.shape[2]}, need D = 2 E = {2 * half}")
    if y.shape[0] != positions or y.shape[1] != heads or y.shape[2] != 2 * half:
        raise ShapeError("rotary: y and x differ in shape")
    expect("rotary", "cos", cos.shape[0], cos.shape[1], positions, half, "(P, E)")
    expect("rotary", "sin", sin.shape[0], sin.shape[1], positions, half, "(P, E)")
    expect_threads("rotary", n_threads)
    if positions == 0 or heads == 0 or half == 0:
        return
    cdef float *y0 = &y[0, 0, 0]
    cdef const float *x0 = &x[0, 0, 0]
    cdef const float *cos0 = &cos[0, 0]
    cdef const float *sin0 = &sin[0, 0]
    expect_aligned("rotary", <size_t>x0 | <size_t>cos0 | <size_t>sin0)
    n_threads = min(n_threads, thread_limit)
    with nogil:
        minilora_rotary_f32(y0, x0, cos0, sin0, positions, heads, half, back, n_threads)


cdef int expect_ids(const int64_t[::1] ids, ptrdiff_t count) except -1:
    """A wrong id would read or write outside the table."""
    cdef ptrdiff_t i
    for i in range(ids.shape[0]):
        if not 0 <= ids[i] < count:
            raise ShapeError(f"embedding: ids holds {ids[i]}, but the table has rows 0 to {count - 1}")
    return 0


def embedding_forward(float[:, ::1] y not None, const float[:, ::1] weight not None, const int64_t[::1] ids not None,
                      int n_threads):
    """y[i] = weight[ids[i]]"""
    cdef ptrdiff_t n = ids.shape[0], d = weight.shape[1]
    expect("embedding", "y", y.shape[0], y.shape[1], n, d, "(N, D)")
    expect_ids(ids, weight.shape[0])
    expect_threads("embedding", n_threads)
    if n == 0 or d == 0:
        return
    cdef float *y0 = &y[0, 0]
    cdef const float *weight0 = &weight[0, 0]
    cdef const int64_t *ids0 = &ids[0]
    expect_aligned("embedding", <size_t>weight0)
    n_threads = min(n_threads, thread_limit)
    with nogil:
        minilora_embedding_forward_f32(y0, weight0, ids0, n, d, n_threads)


def embedding_backward(float[:, ::1] grad_weight not None, const float[:, ::1] grad not None,
                       const int64_t[::1] ids not None, int n_threads):
    """grad_weight[ids[i]] += grad[i]"""
    cdef ptrdiff_t n = ids.shape[0], d = grad_weight.shape[1]
    expect("embedding", "grad", grad.shape[0], grad.shape[1], n, d, "(N, D)")
    expect_ids(ids, grad_weight.shape[0])
    expect_threads("embedding", n_threads)
    if n == 0 or d == 0:
        return
    cdef float *grad_weight0 = &grad_weight[0, 0]
    cdef const float *grad0 = &grad[0, 0]
    cdef const int64_t *ids0 = &ids[0]
    expect_aligned("embedding", <size_t>grad0)
    n_threads = min(n_threads, thread_limit)
    with nogil:
        minilora_embedding_backward_f32(grad_weight0, grad0, ids0, n, d, n_threads)


cdef int expect_labels(str op, const int64_t[::1] labels, ptrdiff_t n, bint counted) except -1:
    """A label from n on would be read and written outside the row, and a negative one too where all rows count."""
    cdef ptrdiff_t i
    for i in range(labels.shape[0]):
        if labels[i] >= n or counted and labels[i] < 0:
            raise ShapeError(f"{op}: labels holds {labels[i]}, need labels below N = {n}")
    return 0


def cross_entropy_forward(float[::1] losses not None, float[::1] peaks not None, float[::1] others not None,
                          const float[:, ::1] logits not None, const int64_t[::1] labels not None, int n_threads):
    """losses, peaks and others of rows of logits; a row with a negative label is not counted."""
    cdef ptrdiff_t m = logits.shape[0], n = logits.shape[1]
    cdef str op = "cross_entropy_forward"
    expect_length(op, "losses", losses.shape[0], m, "M")
    expect_length(op, "peaks", peaks.shape[0], m, "M")
    expect_length(op, "others", others.shape[0], m, "M")
    expect_length(op, "labels", labels.shape[0], m, "M")
    expect_labels(op, labels, n, False)
    if m == 0:
        return
    cdef const float *logits0 = start(logits)
    if <size_t>logits0 % sizeof(float):
        raise ShapeError(f"{op}: an operand is not aligned to 4 bytes")
    n_threads = min(n_threads, thread_limit)
    with nogil:
        minilora_cross_entropy_forward_f32(&losses[0], &peaks[0], &others[0], logits0, &labels[0], m, n, n_threads)


def cross_entropy_backward(float[:, ::1] grad_logits not None, const float[:, ::1] logits not None,
                           const float[::1] peaks not None, const float[::1] others not None,
                           const float[::1] factors not None, const int64_t[::1] labels not None, int n_threads):
    """The gradient of the losses, each times its factor, from what forward left."""
    cdef ptrdiff_t m = logits.shape[0], n = logits.shape[1]
    cdef str op = "cross_entropy_backward"
    expect(op, "grad_logits", grad_logits.shape[0], grad_logits.shape[1], m, n, "(M, N)")
    expect_length(op, "peaks", peaks.shape[0], m, "M")
    expect_length(op, "others", others.shape[0], m, "M")
    expect_length(op, "factors", factors.shape[0], m, "M")
    expect_length(op, "labels", labels.shape[0], m, "M")
    expect_labels(op, labels, n, False)
    if m == 0 or n == 0:
        return
    cdef float *grad0 = start_of_output(grad_logits)
    cdef const float *logits0 = start(logits)
    if <size_t>logits0 % sizeof(float):
        raise ShapeError(f"{op}: an operand is not aligned to 4 bytes")
    n_threads = min(n_threads, thread_limit)
    with nogil:
        minilora_cross_entropy_backward_f32(grad0, logits0, &peaks[0], &others[0], &factors[0], &labels[0], m, n,
                                            n_threads)


def linear_cross_entropy_workspace(ptrdiff_t m, ptrdiff_t n, ptrdiff_t k, int n_threads) -> int:
    return minilora_linear_cross_entropy_workspace_f32(m, n, k, n_threads)


def linear_cross_entropy(float[::1] losses not None, float[:, ::1] grad_x, float[:, ::1] grad_w,
                         const float[:, ::1] x not None, const unsigned char[:, ::1] w not None,
                         const float[::1] factors, const int64_t[::1] labels not None,
                         unsigned char[::1] workspace not None, bint accumulate, int storage, bint w_is_nk,
                         int n_threads):
    """The losses of x . w, and the gradients that are not None; w is the stored lines of W, N of them where w_is_nk."""
    cdef ptrdiff_t m = x.shape[0], k = x.shape[1]
    cdef ptrdiff_t lines = w.shape[0], length = elements(w.shape[1], storage)
    cdef ptrdiff_t n = lines if w_is_nk else length
    cdef str op = "linear_cross_entropy"
    if (grad_x is not None or grad_w is not None) and factors is None:
        raise ShapeError(f"{op}: a gradient needs factors: give them, or do not ask")
    if w_is_nk:
        expect(op, "w", lines, length, n, k, "(N, K)")
    else:
        expect(op, "w", lines, length, k, n, "(K, N)")
    if grad_x is not None:
        expect(op, "grad_x", grad_x.shape[0], grad_x.shape[1], m, k, "(M, K)")
    if grad_w is not None:
        expect(op, "grad_w", grad_w.shape[0], grad_w.shape[1], k, n, "(K, N)")
    expect_length(op, "losses", losses.shape[0], m, "M")
    expect_length(op, "labels", labels.shape[0], m, "M")
    if factors is not None:
        expect_length(op, "factors", factors.shape[0], m, "M")
    expect_labels(op, labels, n, True)
    expect_workspace(op, workspace, minilora_linear_cross_entropy_workspace_f32(m, n, k, n_threads), n_threads)
    cdef float *losses0 = &losses[0] if m > 0 else NULL
    cdef float *grad_x0 = start_of_output(grad_x)
    cdef float *grad_w0 = start_of_output(grad_w)
    cdef const float *x0 = start(x)
    cdef const unsigned char *w0 = start_of_bytes(w)
    cdef const float *factors0 = &factors[0] if factors is not None and m > 0 else NULL
    cdef const int64_t *labels0 = &labels[0] if m > 0 else NULL
    cdef int layout = MINILORA_W_NK if w_is_nk else MINILORA_W_KN
    if (<size_t>x0 | (<size_t>w0 if storage == MINILORA_F32 else 0)) % sizeof(float):
        raise ShapeError(f"{op}: an operand is not aligned to 4 bytes")
    n_threads = min(n_threads, thread_limit)
    with nogil:
        minilora_linear_cross_entropy_f32(losses0, grad_x0, grad_w0, x0, w0, factors0, labels0, &workspace[0],
                                          m, n, k, accumulate, layout, storage, n_threads)


def addresses(list arrays not None, size_t[::1] at not None, ptrdiff_t[::1] sizes not None, bint writable) -> None:
    """The address of each array's first element, and how many floats it holds; BufferError where one does not fit.

    The addresses are good for as long as the arrays live.
    """
    cdef Py_buffer buffer
    cdef ptrdiff_t i
    expect_length("addresses", "at", at.shape[0], len(arrays), "arrays")
    expect_length("addresses", "sizes", sizes.shape[0], len(arrays), "arrays")
    for i in range(len(arrays)):
        PyObject_GetBuffer(arrays[i], &buffer, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE if writable else PyBUF_C_CONTIGUOUS)
        at[i] = <size_t>buffer.buf
        sizes[i] = buffer.len // <ptrdiff_t>sizeof(float)
        PyBuffer_Release(&buffer)


def adamw(const size_t[:, ::1] at not None, const float[:, ::1] factors not None,
          const ptrdiff_t[::1] sizes not None, float keep, float mean_share, float square_keep, float square_share,
          float eps, int n_threads):
    """One step; at holds the addresses of weights, means, squares and gradients, factors the rates and the roots."""
    cdef ptrdiff_t count = sizes.shape[0]
    expect("adamw", "at", at.shape[0], at.shape[1], 4, count, "(4, arrays)")
    expect("adamw", "factors", factors.shape[0], factors.shape[1], 2, count, "(2, arrays)")
    if count == 0:
        return
    n_threads = min(n_threads, thread_limit)
    with nogil:
        minilora_adamw_f32(<float **>&at[0, 0], <float **>&at[1, 0], <float **>&at[2, 0], <const float **>&at[3, 0],
                           &factors[0, 0], &factors[1, 0], &sizes[0], count,
                           keep, mean_share, square_keep, square_share, eps, n_threads)


def square_sum_workspace(const ptrdiff_t[::1] sizes not None) -> int:
    return minilora_square_sum_workspace_f32(&sizes[0], sizes.shape[0]) if sizes.shape[0] else 0


def square_sum(const size_t[::1] at not None, double[::1] workspace not None, const ptrdiff_t[::1] sizes not None,
               int n_threads) -> float:
    """The sum of the squares of all elements of the arrays at these addresses."""
    cdef ptrdiff_t count = sizes.shape[0]
    cdef double total
    expect_length("square_sum", "at", at.shape[0], count, "arrays")
    if count == 0:
        return 0.0
    if <size_t>workspace.shape[0] * sizeof(double) < minilora_square_sum_workspace_f32(&sizes[0], count):
        raise ValueError(f"square_sum: workspace has {workspace.shape[0]} numbers, need more")
    cdef double *space = &workspace[0] if workspace.shape[0] > 0 else NULL
    n_threads = min(n_threads, thread_limit)
    with nogil:
        total = minilora_square_sum_f32(<const float **>&at[0], space, &sizes[0], count, n_threads)
    return total


def scale(const size_t[::1] at not None, const ptrdiff_t[::1] sizes not None, float factor, int n_threads):
    """Multiply the arrays at these addresses, in place."""
    cdef ptrdiff_t count = sizes.shape[0]
    expect_length("scale", "at", at.shape[0], count, "arrays")
    if count == 0:
        return
    n_threads = min(n_threads, thread_limit)
    with nogil:
        minilora_scale_f32(<float **>&at[0], &sizes[0], count, factor, n_threads)


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
