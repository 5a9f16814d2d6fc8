/* pack.c - copy pieces of a matrix into the order in which the micro-kernel reads them. */
#include "internal.h"

#include <string.h>

#ifdef __has_builtin
#if __has_builtin(__builtin_shufflevector)
#define MINILORA_HAS_SHUFFLE 1
#endif
#endif

#ifdef MINILORA_HAS_SHUFFLE
typedef float quad __attribute__((vector_size(16), aligned(4), may_alias));

/* Four rows of four, transposed in registers: element by element this is bound by one store a cycle
 * and takes four times as long. */
static inline void transpose_quads(float *dst, ptrdiff_t dst_stride, const float *src, ptrdiff_t src_stride)
{
    const quad r0 = *(const quad *)src;
    const quad r1 = *(const quad *)(src + src_stride);
    const quad r2 = *(const quad *)(src + 2 * src_stride);
    const quad r3 = *(const quad *)(src + 3 * src_stride);
    const quad low01 = __builtin_shufflevector(r0, r1, 0, 4, 1, 5);
    const quad high01 = __builtin_shufflevector(r0, r1, 2, 6, 3, 7);
    const quad low23 = __builtin_shufflevector(r2, r3, 0, 4, 1, 5);
    const quad high23 = __builtin_shufflevector(r2, r3, 2, 6, 3, 7);
    *(quad *)dst = __builtin_shufflevector(low01, low23, 0, 1, 4, 5);
    *(quad *)(dst + dst_stride) = __builtin_shufflevector(low01, low23, 2, 3, 6, 7);
    *(quad *)(dst + 2 * dst_stride) = __builtin_shufflevector(high01, high23, 0, 1, 4, 5);
    *(quad *)(dst + 3 * dst_stride) = __builtin_shufflevector(high01, high23, 2, 3, 6, 7);
}
#else
static inline void transpose_quads(float *dst, ptrdiff_t dst_stride, const float *src, ptrdiff_t src_stride)
{
    for (ptrdiff_t i = 0; i < 4; i++)
        for (ptrdiff_t j = 0; j < 4; j++)
            dst[j * dst_stride + i] = src[i * src_stride + j];
}
#endif

/* Columns walked together: their destination rows, at most 128 floats apart, stay in the first-level cache. */
enum { STEP = 64 };

void minilora_transpose(float *restrict dst, ptrdiff_t dst_stride, const float *restrict src,
                        ptrdiff_t src_stride, ptrdiff_t rows, ptrdiff_t cols)
{
    const ptrdiff_t whole_rows = rows - rows % 4, whole_cols = cols - cols % 4;
    for (ptrdiff_t start = 0; start < whole_cols; start += STEP)
        for (ptrdiff_t i = 0; i < whole_rows; i += 4)
            for (ptrdiff_t j = start; j < smaller(start + STEP, whole_cols); j += 4)
                transpose_quads(dst + j * dst_stride + i, dst_stride, src + i * src_stride + j, src_stride);
    for (ptrdiff_t i = 0; i < rows; i++)
        for (ptrdiff_t j = i < whole_rows ? whole_cols : 0; j < cols; j++)
            dst[j * dst_stride + i] = src[i * src_stride + j];
}

/* Rows [k0, k1) of one matrix into a panel. */
static void pack_rows(float *restrict panel, view b, ptrdiff_t k0, ptrdiff_t k1, ptrdiff_t j, ptrdiff_t cols)
{
    if (cols < TILE_COLS)       /* the padding must be finite: it is multiplied, though never stored */
        memset(panel, 0, (size_t)((k1 - k0) * TILE_COLS) * sizeof *panel);
    if (b.transposed) {
        minilora_transpose(panel, TILE_COLS, b.at + j * b.stride + k0, b.stride, cols, k1 - k0);
    } else if (cols == TILE_COLS) {
        for (ptrdiff_t k = k0; k < k1; k++)
            memcpy(panel + (k - k0) * TILE_COLS, b.at + k * b.stride + j, TILE_COLS * sizeof *panel);
    } else {
        for (ptrdiff_t k = k0; k < k1; k++)
            memcpy(panel + (k - k0) * TILE_COLS, b.at + k * b.stride + j, (size_t)cols * sizeof *panel);
    }
}

void minilora_pack_panel(float *panel, const product *p, ptrdiff_t k0, ptrdiff_t k1, ptrdiff_t j, ptrdiff_t cols)
{
    const ptrdiff_t first = smaller(k0, p->first.k), middle = smaller(k1, p->first.k);
    if (first < middle)
        pack_rows(panel, p->first.b, first, middle, j, cols);
    if (k1 > p->first.k)
        pack_rows(panel + (middle - first) * TILE_COLS, p->second.b, k0 + middle - first - p->first.k,
                  k1 - p->first.k, j, cols);
}
