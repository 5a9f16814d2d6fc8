/* dot.c - products whose terms lie side by side on both sides, read in place: c[i, j] = <a[i, :], b[j, :]>.
 *
 * For few rows (W is streamed once, nothing is packed) and for few columns (x . A, grad . B^T).
 */
#include "internal.h"

/* DOT_ROWS x DOT_COLS sums at once, LANES partial sums each; the number of rows and columns is a constant
 * wherever this is inlined. */
static inline __attribute__((always_inline)) void dots(
    const int rows, const int cols, float *restrict c, ptrdiff_t c_stride, const float *restrict bias,
    const float *restrict a, ptrdiff_t a_stride, const float *restrict b, ptrdiff_t b_stride, ptrdiff_t depth)
{
    float sum[DOT_ROWS][DOT_COLS][LANES];
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < cols; j++)
#pragma omp simd
            for (int lane = 0; lane < LANES; lane++)
                sum[i][j][lane] = 0.0f;

    const ptrdiff_t whole = depth - depth % LANES;
    for (ptrdiff_t k = 0; k < whole; k += LANES) {
#pragma GCC unroll 4
        for (int j = 0; j < cols; j++)
#pragma GCC unroll 4
            for (int i = 0; i < rows; i++)
#pragma omp simd
                for (int lane = 0; lane < LANES; lane++)
                    sum[i][j][lane] += a[i * a_stride + k + lane] * b[j * b_stride + k + lane];
    }
#pragma GCC unroll 4
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
        for (int j = 0; j < cols; j++) {
#pragma GCC unroll 4
            for (int half = LANES / 2; half > 0; half /= 2)
#pragma omp simd
                for (int lane = 0; lane < half; lane++)
                    sum[i][j][lane] += sum[i][j][lane + half];
            float total = sum[i][j][0];
            for (ptrdiff_t k = whole; k < depth; k++)
                total += a[i * a_stride + k] * b[j * b_stride + k];
            c[i * c_stride + j] = bias ? bias[j] + total : total;
        }
}

static void dot_rows(ptrdiff_t rows, ptrdiff_t cols, float *c, ptrdiff_t c_stride, const float *bias,
                     const float *a, ptrdiff_t a_stride, const float *b, ptrdiff_t b_stride, ptrdiff_t depth)
{
    if (cols == DOT_COLS && rows == DOT_ROWS) {
        dots(DOT_ROWS, DOT_COLS, c, c_stride, bias, a, a_stride, b, b_stride, depth);
        return;
    }
    if (cols == DOT_COLS) {
        for (ptrdiff_t i = 0; i < rows; i++)
            dots(1, DOT_COLS, c + i * c_stride, c_stride, bias, a + i * a_stride, a_stride, b, b_stride, depth);
        return;
    }
    for (ptrdiff_t i = 0; i < rows; i++)
        for (ptrdiff_t j = 0; j < cols; j++)
            dots(1, 1, c + i * c_stride + j, c_stride, bias ? bias + j : NULL, a + i * a_stride, a_stride,
                 b + j * b_stride, b_stride, depth);
}

void minilora_dot_product(const product *p, rect where)
{
    const segment *const first = &p->first;
    /* The large side is walked once; the small one stays in the cache. */
    const ptrdiff_t rows_inside = p->m < p->n ? where.i1 - where.i0 : DOT_ROWS;
    for (ptrdiff_t i0 = where.i0; i0 < where.i1; i0 += rows_inside)
        for (ptrdiff_t j = where.j0; j < where.j1; j += DOT_COLS)
            for (ptrdiff_t i = i0; i < smaller(i0 + rows_inside, where.i1); i += DOT_ROWS)
                dot_rows(smaller(DOT_ROWS, where.i1 - i), smaller(DOT_COLS, where.j1 - j),
                         p->c + i * p->n + j, p->n, p->bias ? p->bias + j : NULL,
                         first->a.at + i * first->a.stride, first->a.stride,
                         first->b.at + j * first->b.stride, first->b.stride, first->k);
}
