/* dispatch.c - which instruction sets were compiled, which of them run here, and the one that is used.
 *
 * Compiled once, for the baseline.  The build defines MINILORA_HAVE_V3 and MINILORA_HAVE_V4 where it also
 * compiled the other sources with the suffixes _v3 and _v4; _V4 implies _V3.
 */
#include "minilora.h"

#ifdef MINILORA_HAVE_V3
#include <cpuid.h>
#endif

/* Every function that is compiled once per instruction set: its type, name, parameters, and these again as arguments. */
#define KERNELS(K)                                                                                                    \
    K(size_t, lora_workspace_f32, (ptrdiff_t m, ptrdiff_t n, ptrdiff_t k, ptrdiff_t r, int n_threads),                 \
      (m, n, k, r, n_threads))                                                                                        \
    K(void, lora_forward_f32,                                                                                         \
      (float *y, float *hidden, const float *x, const void *w, const float *a, const float *b, const float *bias,     \
       void *workspace, ptrdiff_t m, ptrdiff_t n, ptrdiff_t k, ptrdiff_t r, float scale, int w_layout, int w_storage,  \
       int n_threads),                                                                                                \
      (y, hidden, x, w, a, b, bias, workspace, m, n, k, r, scale, w_layout, w_storage, n_threads))                    \
    K(void, mixed_lora_forward_f32,                                                                                   \
      (float *y, const float *x, const void *w, const float *bias, const minilora_span *spans, void *workspace,       \
       ptrdiff_t m, ptrdiff_t n, ptrdiff_t k, ptrdiff_t n_spans, ptrdiff_t max_r, int w_layout, int w_storage,        \
       int n_threads),                                                                                                \
      (y, x, w, bias, spans, workspace, m, n, k, n_spans, max_r, w_layout, w_storage, n_threads))                     \
    K(void, lora_backward_f32,                                                                                        \
      (float *grad_x, float *grad_a, float *grad_b, const float *grad, const float *x, const float *hidden,           \
       const void *w, const float *a, const float *b, void *workspace, ptrdiff_t m, ptrdiff_t n, ptrdiff_t k,         \
       ptrdiff_t r, float scale, int accumulate, int w_layout, int w_storage, int n_threads),                         \
      (grad_x, grad_a, grad_b, grad, x, hidden, w, a, b, workspace, m, n, k, r, scale, accumulate, w_layout,          \
       w_storage, n_threads))                                                                                         \
    K(size_t, attention_workspace_f32,                                                                                \
      (ptrdiff_t b, ptrdiff_t t, ptrdiff_t s, ptrdiff_t h, ptrdiff_t g, ptrdiff_t d, ptrdiff_t pairs, int backward,   \
       int n_threads), (b, t, s, h, g, d, pairs, backward, n_threads))                                                \
    K(void, attention_forward_f32,                                                                                    \
      (float *y, float *stats, const float *q, const float *k, const float *v, const unsigned char *mask,             \
       void *workspace, ptrdiff_t b, ptrdiff_t t, ptrdiff_t s, ptrdiff_t h, ptrdiff_t g, ptrdiff_t d,                 \
       ptrdiff_t k_step, ptrdiff_t v_step, ptrdiff_t first, ptrdiff_t last, ptrdiff_t window, int causal,             \
       float scale, int n_threads),                                                                                   \
      (y, stats, q, k, v, mask, workspace, b, t, s, h, g, d, k_step, v_step, first, last, window, causal, scale,      \
       n_threads))                                                                                                    \
    K(void, attention_backward_f32,                                                                                   \
      (float *grad_q, float *grad_k, float *grad_v, const float *grad, const float *q, const float *k,                \
       const float *v, const float *y, const float *stats, const unsigned char *mask, void *workspace, ptrdiff_t b,   \
       ptrdiff_t t, ptrdiff_t s, ptrdiff_t h, ptrdiff_t g, ptrdiff_t d, ptrdiff_t k_step, ptrdiff_t v_step,           \
       ptrdiff_t first, ptrdiff_t last, ptrdiff_t window, int causal, float scale, int n_threads),                    \
      (grad_q, grad_k, grad_v, grad, q, k, v, y, stats, mask, workspace, b, t, s, h, g, d, k_step, v_step, first,     \
       last, window, causal, scale, n_threads))                                                                       \
    K(size_t, norm_workspace_f32, (ptrdiff_t rows, ptrdiff_t d), (rows, d))                                           \
    K(void, rms_norm_forward_f32,                                                                                     \
      (float *y, float *inv_rms, const float *x, const float *weight, ptrdiff_t rows, ptrdiff_t d, float eps,         \
       int n_threads),                                                                                                \
      (y, inv_rms, x, weight, rows, d, eps, n_threads))                                                               \
    K(void, rms_norm_backward_f32,                                                                                    \
      (float *grad_x, float *grad_weight, const float *grad, const float *x, const float *inv_rms,                    \
       const float *weight, void *workspace, ptrdiff_t rows, ptrdiff_t d, int accumulate, int n_threads),             \
      (grad_x, grad_weight, grad, x, inv_rms, weight, workspace, rows, d, accumulate, n_threads))                     \
    K(void, layer_norm_forward_f32,                                                                                   \
      (float *y, float *mean, float *inv_std, const float *x, const float *weight, const float *bias, ptrdiff_t rows, \
       ptrdiff_t d, float eps, int n_threads),                                                                        \
      (y, mean, inv_std, x, weight, bias, rows, d, eps, n_threads))                                                   \
    K(void, layer_norm_backward_f32,                                                                                  \
      (float *grad_x, float *grad_weight, float *grad_bias, const float *grad, const float *x, const float *mean,     \
       const float *inv_std, const float *weight, void *workspace, ptrdiff_t rows, ptrdiff_t d, int accumulate,       \
       int n_threads),                                                                                                \
      (grad_x, grad_weight, grad_bias, grad, x, mean, inv_std, weight, workspace, rows, d, accumulate, n_threads))    \
    K(void, silu_forward_f32, (float *y, const float *x, ptrdiff_t n, int n_threads), (y, x, n, n_threads))           \
    K(void, silu_backward_f32, (float *grad_x, const float *grad, const float *x, ptrdiff_t n, int n_threads),        \
      (grad_x, grad, x, n, n_threads))                                                                                \
    K(void, swiglu_forward_f32, (float *y, const float *gate, const float *up, ptrdiff_t n, int n_threads),           \
      (y, gate, up, n, n_threads))                                                                                    \
    K(void, swiglu_backward_f32,                                                                                      \
      (float *grad_gate, float *grad_up, const float *grad, const float *gate, const float *up, ptrdiff_t n,          \
       int n_threads),                                                                                                \
      (grad_gate, grad_up, grad, gate, up, n, n_threads))                                                             \
    K(void, gelu_forward_f32, (float *y, const float *x, ptrdiff_t n, int by_tanh, int n_threads),                    \
      (y, x, n, by_tanh, n_threads))                                                                                  \
    K(void, gelu_backward_f32,                                                                                        \
      (float *grad_x, const float *grad, const float *x, ptrdiff_t n, int by_tanh, int n_threads),                    \
      (grad_x, grad, x, n, by_tanh, n_threads))                                                                       \
    K(void, rotary_f32,                                                                                               \
      (float *y, const float *x, const float *cos, const float *sin, ptrdiff_t positions, ptrdiff_t heads,            \
       ptrdiff_t half, int back, int n_threads),                                                                      \
      (y, x, cos, sin, positions, heads, half, back, n_threads))                                                      \
    K(void, embedding_forward_f32,                                                                                    \
      (float *y, const float *weight, const int64_t *ids, ptrdiff_t n, ptrdiff_t d, int n_threads),                   \
      (y, weight, ids, n, d, n_threads))                                                                              \
    K(void, embedding_backward_f32,                                                                                   \
      (float *grad_weight, const float *grad, const int64_t *ids, ptrdiff_t n, ptrdiff_t d, int n_threads),           \
      (grad_weight, grad, ids, n, d, n_threads))                                                                      \
    K(void, cross_entropy_forward_f32,                                                                                \
      (float *losses, float *peaks, float *others, const float *logits, const int64_t *labels, ptrdiff_t m,           \
       ptrdiff_t n, int n_threads),                                                                                   \
      (losses, peaks, others, logits, labels, m, n, n_threads))                                                       \
    K(void, cross_entropy_backward_f32,                                                                               \
      (float *grad_logits, const float *logits, const float *peaks, const float *others, const float *factors,        \
       const int64_t *labels, ptrdiff_t m, ptrdiff_t n, int n_threads),                                               \
      (grad_logits, logits, peaks, others, factors, labels, m, n, n_threads))                                         \
    K(size_t, linear_cross_entropy_workspace_f32, (ptrdiff_t m, ptrdiff_t n, ptrdiff_t k, int n_threads),             \
      (m, n, k, n_threads))                                                                                           \
    K(void, linear_cross_entropy_f32,                                                                                 \
      (float *losses, float *grad_x, float *grad_w, const float *x, const void *w, const float *factors,              \
       const int64_t *labels, void *workspace, ptrdiff_t m, ptrdiff_t n, ptrdiff_t k, int accumulate, int w_layout,   \
       int w_storage, int n_threads),                                                                                 \
      (losses, grad_x, grad_w, x, w, factors, labels, workspace, m, n, k, accumulate, w_layout, w_storage,            \
       n_threads))                                                                                                    \
    K(void, adamw_f32,                                                                                                \
      (float *const *weights, float *const *means, float *const *squares, const float *const *grads,                  \
       const float *rates, const float *roots, const ptrdiff_t *sizes, ptrdiff_t count, float keep, float mean_share, \
       float square_keep, float square_share, float eps, int n_threads),                                              \
      (weights, means, squares, grads, rates, roots, sizes, count, keep, mean_share, square_keep, square_share, eps,  \
       n_threads))                                                                                                    \
    K(size_t, square_sum_workspace_f32, (const ptrdiff_t *sizes, ptrdiff_t count), (sizes, count))                    \
    K(double, square_sum_f32,                                                                                         \
      (const float *const *arrays, double *workspace, const ptrdiff_t *sizes, ptrdiff_t count, int n_threads),        \
      (arrays, workspace, sizes, count, n_threads))                                                                   \
    K(void, scale_f32, (float *const *arrays, const ptrdiff_t *sizes, ptrdiff_t count, float scale, int n_threads),   \
      (arrays, sizes, count, scale, n_threads))                                                                       \
    K(double, peak_fma_f32, (float *out, ptrdiff_t blocks, int n_threads), (out, blocks, n_threads))                  \
    K(void, read_f32, (float *sums, const float *x, ptrdiff_t n, int n_threads), (sums, x, n, n_threads))

#define FIELD(type, name, parameters, arguments) type(*name) parameters;
typedef struct {
    const char *name;
    int (*runs_here)(void);
    KERNELS(FIELD)
} isa;

#define DECLARE_BASELINE(type, name, parameters, arguments) type minilora_##name##_baseline parameters;
#define DECLARE_V3(type, name, parameters, arguments) type minilora_##name##_v3 parameters;
#define DECLARE_V4(type, name, parameters, arguments) type minilora_##name##_v4 parameters;
#define BASELINE(type, name, parameters, arguments) minilora_##name##_baseline,
#define V3(type, name, parameters, arguments) minilora_##name##_v3,
#define V4(type, name, parameters, arguments) minilora_##name##_v4,

static int always(void) { return 1; }
KERNELS(DECLARE_BASELINE)

#ifdef MINILORA_HAVE_V3
/* Everything that -march=x86-64-v3 lets a compiler emit: a hypervisor may mask any bit of it.  Bits by cpuid, since
 * clang before 18 has no names for some; the built-ins also ask whether the system saves the registers. */
static int has_v3(void)
{
    const unsigned basic = bit_SSE3 | bit_SSSE3 | bit_SSE4_1 | bit_SSE4_2 | bit_POPCNT | bit_CMPXCHG16B | bit_FMA
                           | bit_MOVBE | bit_F16C | bit_AVX | bit_XSAVE | bit_OSXSAVE;
    const unsigned extended = bit_LAHF_LM | bit_LZCNT;
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || (ecx & basic) != basic)
        return 0;
    if (!__get_cpuid(0x80000001, &eax, &ebx, &ecx, &edx) || (ecx & extended) != extended)
        return 0;
    return __builtin_cpu_supports("avx") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")
        && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
}
KERNELS(DECLARE_V3)
#endif

#ifdef MINILORA_HAVE_V4
static int has_v4(void)
{
    return has_v3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
        && __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq")
        && __builtin_cpu_supports("avx512vl");
}
KERNELS(DECLARE_V4)
#endif

static const isa isas[] = {
    {"baseline", always, KERNELS(BASELINE)},
#ifdef MINILORA_HAVE_V3
    {"x86-64-v3", has_v3, KERNELS(V3)},
#endif
#ifdef MINILORA_HAVE_V4
    {"x86-64-v4", has_v4, KERNELS(V4)},
#endif
};

static int chosen;

int minilora_isa_count(void) { return (int)(sizeof isas / sizeof *isas); }

const char *minilora_isa_name(int index)
{
    return index >= 0 && index < minilora_isa_count() ? isas[index].name : NULL;
}

int minilora_isa_runs_here(int index)
{
    return index >= 0 && index < minilora_isa_count() && isas[index].runs_here();
}

int minilora_isa_choose(int index)
{
    if (!minilora_isa_runs_here(index))
        return 0;
    chosen = index;
    return 1;
}

int minilora_isa_chosen(void) { return chosen; }

const char *minilora_compiler(void)
{
#if defined(__clang__)
    return "clang " __clang_version__;
#elif defined(__GNUC__)
    return "gcc " __VERSION__;
#else
    return "unknown compiler";
#endif
}

int minilora_has_openmp(void)
{
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}

/* GNU C lets a function of type void return the call of another. */
#define ROUTE(type, name, parameters, arguments) \
    type minilora_##name parameters { return isas[chosen].name arguments; }
KERNELS(ROUTE)
