/* activation.c - SiLU, SwiGLU and GELU of arrays and their gradients, each in one pass over memory. */
#include "internal.h"

#include "exp.h"

#include <math.h>

/* The unit that threads share, in elements: whether one is computed in a loop's vectors or among the few at its end does
 * then not depend on the number of threads. */
enum { GRAIN = 1024 };

typedef struct {
    float *y, *grad_x, *grad_up;
    const float *grad, *x, *up;         /* SwiGLU's gate is x */
    ptrdiff_t n;
} elements;

static ptrdiff_t start_of(ptrdiff_t n, int part, int parts)
{
    return smaller(n, GRAIN * part_start(ceil_div(n, GRAIN), part, parts));
}

/* In multiply-adds: as many as a float of memory takes, and an exponential and a division for each element. */
static double cost(ptrdiff_t n, int arrays) { return (8.0 * arrays + 24.0) * (double)n; }

static inline float sigmoid(float x) { return 1.0f / (1.0f + minilora_exp(-x)); }

/* d silu / dx */
static inline float silu_slope(float x, float s) { return ((1.0f - s) * x + 1.0f) * s; }

static void silu_forward_part(const void *job, int part, int parts)
{
    const elements *const p = job;
    const float *restrict const x = p->x;
    float *restrict const y = p->y;
    const ptrdiff_t end = start_of(p->n, part + 1, parts);
#pragma omp simd
    for (ptrdiff_t i = start_of(p->n, part, parts); i < end; i++)
        y[i] = x[i] * sigmoid(x[i]);
}

void minilora_silu_forward_f32(float *restrict y, const float *restrict x, ptrdiff_t n, int n_threads)
{
    const elements job = {.y = y, .x = x, .n = n};
    minilora_team(silu_forward_part, &job, cost(n, 2), n_threads);
}

static void silu_backward_part(const void *job, int part, int parts)
{
    const elements *const p = job;
    const float *restrict const x = p->x, *restrict const grad = p->grad;
    float *restrict const grad_x = p->grad_x;
    const ptrdiff_t end = start_of(p->n, part + 1, parts);
#pragma omp simd
    for (ptrdiff_t i = start_of(p->n, part, parts); i < end; i++)
        grad_x[i] = grad[i] * silu_slope(x[i], sigmoid(x[i]));
}

void minilora_silu_backward_f32(float *restrict grad_x, const float *restrict grad, const float *restrict x,
                                ptrdiff_t n, int n_threads)
{
    const elements job = {.grad_x = grad_x, .grad = grad, .x = x, .n = n};
    minilora_team(silu_backward_part, &job, cost(n, 3), n_threads);
}

static void swiglu_forward_part(const void *job, int part, int parts)
{
    const elements *const p = job;
    const float *restrict const gate = p->x, *restrict const up = p->up;
    float *restrict const y = p->y;
    const ptrdiff_t end = start_of(p->n, part + 1, parts);
#pragma omp simd
    for (ptrdiff_t i = start_of(p->n, part, parts); i < end; i++)
        y[i] = sigmoid(gate[i]) * gate[i] * up[i];
}

void minilora_swiglu_forward_f32(float *restrict y, const float *restrict gate, const float *restrict up, ptrdiff_t n,
                                 int n_threads)
{
    const elements job = {.y = y, .x = gate, .up = up, .n = n};
    minilora_team(swiglu_forward_part, &job, cost(n, 3), n_threads);
}

static void swiglu_backward_part(const void *job, int part, int parts)
{
    const elements *const p = job;
    const float *restrict const grad = p->grad, *restrict const gate = p->x, *restrict const up = p->up;
    float *restrict const grad_gate = p->grad_x, *restrict const grad_up = p->grad_up;
    const ptrdiff_t start = start_of(p->n, part, parts), end = start_of(p->n, part + 1, parts);
    if (grad_gate && grad_up)
#pragma omp simd
        for (ptrdiff_t i = start; i < end; i++) {
            const float s = sigmoid(gate[i]);
            grad_gate[i] = silu_slope(gate[i], s) * up[i] * grad[i];
            grad_up[i] = grad[i] * gate[i] * s;
        }
    else if (grad_gate)
#pragma omp simd
        for (ptrdiff_t i = start; i < end; i++)
            grad_gate[i] = silu_slope(gate[i], sigmoid(gate[i])) * up[i] * grad[i];
    else if (grad_up)
#pragma omp simd
        for (ptrdiff_t i = start; i < end; i++)
            grad_up[i] = grad[i] * gate[i] * sigmoid(gate[i]);
}

void minilora_swiglu_backward_f32(float *restrict grad_gate, float *restrict grad_up, const float *restrict grad,
                                  const float *restrict gate, const float *restrict up, ptrdiff_t n, int n_threads)
{
    const elements job = {.grad_x = grad_gate, .grad_up = grad_up, .grad = grad, .x = gate, .up = up, .n = n};
    minilora_team(swiglu_backward_part, &job, cost(n, 5), n_threads);
}

/* |x|, at most `limit`: by its bits, whose order as integers is that of the numbers.  NaN comes out as the limit, so the
 * caller multiplies by x once more. */
static inline float magnitude(float x, float limit)
{
    const int32_t whole = (union bits){.number = x}.whole & 0x7fffffff, most = (union bits){.number = limit}.whole;
    return (union bits){.whole = whole < most ? whole : most}.number;
}

/* The standard normal distribution at x: the share of it below x, and exp(-x² / 2), to which its density is
 * proportional. */
typedef struct {
    float share, bell;
} normal;

/* share(-a) = exp(-a² / 2) R(a) for a >= 0, where R is a ratio of polynomials whose terms are all positive, right to 2^-27
 * of it up to where the share is 0; so small shares keep their digits, too.  Rounding a² would cost a² / 2 units in the
 * last place of the exponential: the square of a's first 12 bits is exact, and the rest of the exponent is small. */
static inline normal normal_at(float x)
{
    const float a = magnitude(x, 14.6f);
    const float head = (union bits){.whole = (union bits){.number = a}.whole & ~0xfff}.number;
    const float rest = 0.5f * (head - a) * (head + a);          /* 0 to -0.11 */
    const float bell = minilora_exp(-0.5f * head * head)
        * ((((1.0f / 24 * rest + 1.0f / 6) * rest + 0.5f) * rest + 1.0f) * rest + 1.0f);
    const float above = (((0.004123854726f * a + 0.04068414937f) * a + 0.1833863084f) * a + 0.4384991568f) * a + 0.5f;
    const float below = ((((0.01033685284f * a + 0.1019864159f) * a + 0.4698696681f) * a + 1.203131306f) * a
                         + 1.674883299f) * a + 1.0f;
    const float tail = bell * (above / below);
    return (normal){x < 0.0f ? tail : 1.0f - tail, bell};
}

static void gelu_forward_part(const void *job, int part, int parts)
{
    const elements *const p = job;
    const float *restrict const x = p->x;
    float *restrict const y = p->y;
    const ptrdiff_t end = start_of(p->n, part + 1, parts);
#pragma omp simd
    for (ptrdiff_t i = start_of(p->n, part, parts); i < end; i++)
        y[i] = x[i] * normal_at(x[i]).share;
}

static void gelu_backward_part(const void *job, int part, int parts)
{
    const elements *const p = job;
    const float *restrict const x = p->x, *restrict const grad = p->grad;
    float *restrict const grad_x = p->grad_x;
    const ptrdiff_t end = start_of(p->n, part + 1, parts);
#pragma omp simd
    for (ptrdiff_t i = start_of(p->n, part, parts); i < end; i++) {
        const normal at = normal_at(x[i]);
        grad_x[i] = grad[i] * (at.share + x[i] * (at.bell * 0.398942280401f));         /* 1 / sqrt(2 pi) */
    }
}

/* The tanh form: y = x σ(u), u = 2 sqrt(2 / pi) (x + 0.044715 x³), with x limited to where σ(u) is 0 or 1 in any case. */
typedef struct {
    float share, slope;         /* σ(u), and its derivative for x */
} logistic;

static inline logistic logistic_at(float x)
{
    const float c = 1.59576912161f;
    const float a = magnitude(x, 30.0f), u = c * (a + 0.044715f * a * a * a);
    const float e = minilora_exp(-u), of_size = 1.0f / (1.0f + e);
    return (logistic){x < 0.0f ? e * of_size : of_size, c * (1.0f + 3 * 0.044715f * a * a) * (e * of_size * of_size)};
}

static void gelu_tanh_forward_part(const void *job, int part, int parts)
{
    const elements *const p = job;
    const float *restrict const x = p->x;
    float *restrict const y = p->y;
    const ptrdiff_t end = start_of(p->n, part + 1, parts);
#pragma omp simd
    for (ptrdiff_t i = start_of(p->n, part, parts); i < end; i++)
        y[i] = x[i] * logistic_at(x[i]).share;
}

static void gelu_tanh_backward_part(const void *job, int part, int parts)
{
    const elements *const p = job;
    const float *restrict const x = p->x, *restrict const grad = p->grad;
    float *restrict const grad_x = p->grad_x;
    const ptrdiff_t end = start_of(p->n, part + 1, parts);
#pragma omp simd
    for (ptrdiff_t i = start_of(p->n, part, parts); i < end; i++) {
        const logistic at = logistic_at(x[i]);
        grad_x[i] = grad[i] * (at.share + x[i] * at.slope);
    }
}

void minilora_gelu_forward_f32(float *restrict y, const float *restrict x, ptrdiff_t n, int by_tanh, int n_threads)
{
    const elements job = {.y = y, .x = x, .n = n};
    minilora_team(by_tanh ? gelu_tanh_forward_part : gelu_forward_part, &job, cost(n, 2) + 24.0 * (double)n, n_threads);
}

void minilora_gelu_backward_f32(float *restrict grad_x, const float *restrict grad, const float *restrict x,
                                ptrdiff_t n, int by_tanh, int n_threads)
{
    const elements job = {.grad_x = grad_x, .grad = grad, .x = x, .n = n};
    minilora_team(by_tanh ? gelu_tanh_backward_part : gelu_backward_part, &job, cost(n, 3) + 24.0 * (double)n,
                  n_threads);
}
