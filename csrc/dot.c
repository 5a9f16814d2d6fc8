/* dot.c - products that read the right-hand side once, from end to end, and pack nothing.
 *
 * minilora_dot_product, where its terms lie side by side: c[i, j] = <a[i, :], b[j, :]>.  For few rows, and for few columns
 * (x . A, grad . B^T).  minilora_line_product, where its columns do: c[i, :] += a[i, k] b[k, :].  For one row or two.
 */
#include "storage.h"

#include <string.h>

/* Lines that are added to a row of c together, so that c is read and written once for all of them. */
enum { LINES_AT_ONCE = 4 };

/* The sum of the lanes, which it overwrites. */
static inline __attribute__((always_inline)) float total_of(float lanes[LANES])
{
#pragma GCC unroll 4
    for (int half = LANES / 2; half > 0; half /= 2)
#pragma omp simd
        for (int lane = 0; lane < half; lane++)
            lanes[lane] += lanes[lane + half];
    return lanes[0];
}

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
            float total = total_of(sum[i][j]);
            for (ptrdiff_t k = whole; k < depth; k++)
                total += a[i * a_stride + k] * b[j * b_stride + k];
            c[i * c_stride + j] = bias ? bias[j] + total : total;
        }
}

/* One row and DOT_COLS lines that are decoded in registers: even the first-level cache would be a detour.  The bits are
 * those that dots() gives after minilora_decode. */
INLINE void stored_dots(float *restrict c, const float *restrict bias, const float *restrict a,
                        const unsigned char *restrict lines, ptrdiff_t line_bytes, ptrdiff_t depth, const int storage)
{
    float_lanes sum[DOT_COLS] = {{0}};
    for (ptrdiff_t k = 0; k + BLOCK <= depth; k += BLOCK)
#pragma GCC unroll 4
        for (int j = 0; j < DOT_COLS; j++) {
            const block b = block_at(lines + j * line_bytes, k, storage);
#pragma GCC unroll 8
            for (int first = 0; first < BLOCK; first += LANES)
                sum[j] += load_lanes(a + k + first) * decode_lanes(b, first, storage);
        }
    for (int j = 0; j < DOT_COLS; j++) {
        float parts[LANES];
        store_lanes(parts, sum[j]);
        const float total = total_of(parts);
        c[j] = bias ? bias[j] + total : total;
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

typedef void stored_function(float *c, const float *bias, const float *a, const unsigned char *lines,
                             ptrdiff_t line_bytes, ptrdiff_t depth);

#define DEFINE_STORED(storage)                                                                                        \
    static void stored_##storage(float *c, const float *bias, const float *a, const unsigned char *lines,             \
                                 ptrdiff_t line_bytes, ptrdiff_t depth)                                               \
    {                                                                                                                 \
        stored_dots(c, bias, a, lines, line_bytes, depth, MINILORA_##storage);                                        \
    }

DEFINE_STORED(BF16) DEFINE_STORED(F16) DEFINE_STORED(Q8_0) DEFINE_STORED(Q4_0) DEFINE_STORED(Q4_1)

static stored_function *const stored[] = {
    [MINILORA_BF16] = stored_BF16, [MINILORA_F16] = stored_F16, [MINILORA_Q8_0] = stored_Q8_0,
    [MINILORA_Q4_0] = stored_Q4_0, [MINILORA_Q4_1] = stored_Q4_1,
};

void minilora_dot_product(const product *p, rect where, float *scratch)
{
    const segment *const first = &p->first;
    const view b = first->b;
    /* The large side is walked once; the small one stays in the cache. */
    const ptrdiff_t rows_inside = p->m < p->n ? where.i1 - where.i0 : DOT_ROWS;
    for (ptrdiff_t i0 = where.i0; i0 < where.i1; i0 += rows_inside)
        for (ptrdiff_t j = where.j0; j < where.j1; j += DOT_COLS) {
            const ptrdiff_t cols = smaller(DOT_COLS, where.j1 - j);
            const float *const bias = p->bias ? p->bias + j : NULL;
            const float *lines = line_of(b, j);
            ptrdiff_t stride = b.stride;
            if (b.storage != MINILORA_F32) {
                if (p->m == 1 && cols == DOT_COLS && first->k % BLOCK == 0) {
                    const ptrdiff_t bytes = minilora_line_bytes(b.storage, stride);
                    stored[b.storage](p->c + j, bias, line_of(first->a, 0), (const unsigned char *)b.at + j * bytes,
                                      bytes, first->k);
                    continue;
                }
                for (ptrdiff_t line = 0; line < cols; line++)
                    minilora_decode(scratch + line * first->k, b, j + line, 0, first->k);
                lines = scratch;
                stride = first->k;
            }
            for (ptrdiff_t i = i0; i < smaller(i0 + rows_inside, where.i1); i += DOT_ROWS)
                dot_rows(smaller(DOT_ROWS, where.i1 - i), cols, p->c + i * p->n + j, p->n, bias, line_of(first->a, i),
                         first->a.stride, lines, stride, first->k);
        }
}

/* c[i, :] += sum over lines of a[i, line] * line; both counts are constants wherever this is inlined. */
static inline __attribute__((always_inline)) void add_lines(
    const int rows, const int count, float *restrict c, ptrdiff_t c_stride, const float *restrict a, ptrdiff_t a_stride,
    const float *restrict lines, ptrdiff_t stride, ptrdiff_t cols)
{
#pragma omp simd
    for (ptrdiff_t j = 0; j < cols; j++) {
#pragma GCC unroll 2
        for (int i = 0; i < rows; i++) {
            float sum = c[i * c_stride + j];
#pragma GCC unroll 4
            for (int line = 0; line < count; line++)
                sum += a[i * a_stride + line] * lines[line * stride + j];
            c[i * c_stride + j] = sum;
        }
    }
}

void minilora_line_product(const product *p, rect where, float *scratch)
{
    const segment *const first = &p->first;
    const ptrdiff_t rows = where.i1 - where.i0, cols = where.j1 - where.j0;
    float *const c = p->c + where.i0 * p->n + where.j0;
    const float *const a = line_of(first->a, where.i0);
    for (ptrdiff_t i = 0; i < rows && !p->accumulate; i++)
        if (p->bias)
            memcpy(c + i * p->n, p->bias + where.j0, (size_t)cols * sizeof *c);
        else
            memset(c + i * p->n, 0, (size_t)cols * sizeof *c);
    for (ptrdiff_t k = 0; k < first->k; k += LINES_AT_ONCE) {
        const ptrdiff_t count = smaller(LINES_AT_ONCE, first->k - k);
        const float *lines = line_of(first->b, k) + where.j0;
        ptrdiff_t stride = first->b.stride;
        if (first->b.storage != MINILORA_F32) {
            for (ptrdiff_t line = 0; line < count; line++)
                minilora_decode(scratch + line * cols, first->b, k + line, where.j0, cols);
            lines = scratch;
            stride = cols;
        }
        if (count < LINES_AT_ONCE)
            for (ptrdiff_t line = 0; line < count; line++)
                for (ptrdiff_t i = 0; i < rows; i++)
                    add_lines(1, 1, c + i * p->n, p->n, a + i * first->a.stride + k + line, 0, lines + line * stride,
                              stride, cols);
        else if (rows == LINE_M)
            add_lines(LINE_M, LINES_AT_ONCE, c, p->n, a + k, first->a.stride, lines, stride, cols);
        else
            for (ptrdiff_t i = 0; i < rows; i++)
                add_lines(1, LINES_AT_ONCE, c + i * p->n, p->n, a + i * first->a.stride + k, 0, lines, stride, cols);
    }
}
