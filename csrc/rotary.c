/* rotary.c - turn pairs of components of each head by the angles of its position. */
#include "internal.h"

typedef struct {
    float *y;
    const float *x, *cos, *sin;
    ptrdiff_t positions, heads, half;
    float direction;            /* 1, or -1 to turn back */
} turn;

static void rotary_part(const void *job, int part, int parts)
{
    const turn *const p = job;
    const ptrdiff_t half = p->half, end = part_start(p->positions, part + 1, parts);
    for (ptrdiff_t i = part_start(p->positions, part, parts); i < end; i++) {
        const float *restrict const cos = p->cos + i * half, *restrict const sin = p->sin + i * half;
        for (ptrdiff_t h = i * p->heads; h < (i + 1) * p->heads; h++) {
            const float *restrict const first = p->x + 2 * h * half, *restrict const second = first + half;
            float *restrict const y = p->y + 2 * h * half, *restrict const y_second = y + half;
#pragma omp simd
            for (ptrdiff_t j = 0; j < half; j++) {
                const float s = p->direction * sin[j], c = cos[j];
                y[j] = first[j] * c - second[j] * s;
                y_second[j] = second[j] * c + first[j] * s;
            }
        }
    }
}

void minilora_rotary_f32(float *restrict y, const float *restrict x, const float *restrict cos,
                         const float *restrict sin, ptrdiff_t positions, ptrdiff_t heads, ptrdiff_t half, int back,
                         int n_threads)
{
    const turn job = {y, x, cos, sin, positions, heads, half, back ? -1.0f : 1.0f};
    minilora_team(rotary_part, &job, 32.0 * (double)positions * (double)heads * (double)half, n_threads);
}
