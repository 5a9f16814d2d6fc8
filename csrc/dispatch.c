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
      (float *y, float *hidden, const float *x, const float *w, const float *a, const float *b, const float *bias,    \
       void *workspace, ptrdiff_t m, ptrdiff_t n, ptrdiff_t k, ptrdiff_t r, float scale, int w_layout, int n_threads), \
      (y, hidden, x, w, a, b, bias, workspace, m, n, k, r, scale, w_layout, n_threads))                               \
    K(void, lora_backward_f32,                                                                                        \
      (float *grad_x, float *grad_a, float *grad_b, const float *grad, const float *x, const float *hidden,           \
       const float *w, const float *a, const float *b, void *workspace, ptrdiff_t m, ptrdiff_t n, ptrdiff_t k,        \
       ptrdiff_t r, float scale, int accumulate, int w_layout, int n_threads),                                        \
      (grad_x, grad_a, grad_b, grad, x, hidden, w, a, b, workspace, m, n, k, r, scale, accumulate, w_layout,          \
       n_threads))                                                                                                    \
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
