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

/* Lines decoded before they are transposed together. */
enum { LINES_AT_ONCE = 4 };

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

/* One panel of a matrix whose lines are the columns of the panel. */
static void pack_columns(float *restrict panel, view b, ptrdiff_t k0, ptrdiff_t k1, ptrdiff_t j, ptrdiff_t cols)
{
    float lines[LINES_AT_ONCE * BLOCK_K];
    if (b.storage == MINILORA_F32) {
        minilora_transpose(panel, TILE_COLS, line_of(b, j) + k0, b.stride, cols, k1 - k0);
        return;
    }
    for (ptrdiff_t i = 0; i < cols; i += LINES_AT_ONCE) {
        const ptrdiff_t count = smaller(LINES_AT_ONCE, cols - i);
        for (ptrdiff_t line = 0; line < count; line++)
            minilora_decode(lines + line * BLOCK_K, b, j + i + line, k0, k1 - k0);
        minilora_transpose(panel + i, TILE_COLS, lines, BLOCK_K, count, k1 - k0);
    }
}

/* One line of a matrix, which is a row of every panel. */
static void pack_line(float *restrict panels, ptrdiff_t panel_size, view b, ptrdiff_t k, ptrdiff_t j0, ptrdiff_t j1)
{
    float decoded[BLOCK_N];
    const float *line = decoded;
    if (b.storage == MINILORA_F32)
        line = line_of(b, k) + j0;
    else
        minilora_decode(decoded, b, k, j0, j1 - j0);
    for (; j1 - j0 >= TILE_COLS; j0 += TILE_COLS, panels += panel_size, line += TILE_COLS)
        memcpy(panels, line, TILE_COLS * sizeof *panels);
    if (j0 < j1)
        memcpy(panels, line, (size_t)(j1 - j0) * sizeof *panels);
}

/* Terms [k0, k1) of one matrix; its lines are read from end to end, as memory likes it. */
static void pack_matrix(float *panels, ptrdiff_t panel_size, view b, ptrdiff_t k0, ptrdiff_t k1, ptrdiff_t j0,
                        ptrdiff_t j1)
{
    if (b.transposed) {
        for (ptrdiff_t j = j0; j < j1; j += TILE_COLS, panels += panel_size)
            pack_columns(panels, b, k0, k1, j, smaller(TILE_COLS, j1 - j));
    } else {
        for (ptrdiff_t k = k0; k < k1; k++)
            pack_line(panels + (k - k0) * TILE_COLS, panel_size, b, k, j0, j1);
    }
}

void minilora_pack(float *panels, const product *p, ptrdiff_t k0, ptrdiff_t k1, ptrdiff_t j0, ptrdiff_t j1)
{
    const ptrdiff_t first = smaller(k0, p->first.k), middle = smaller(k1, p->first.k);
    const ptrdiff_t size = (k1 - k0) * TILE_COLS, cut = (j1 - j0) % TILE_COLS;
    if (cut)            /* the padding is multiplied, though never stored: subnormal numbers in it would be slow */
        memset(panels + (j1 - j0) / TILE_COLS * size, 0, (size_t)size * sizeof *panels);
    if (first < middle)
        pack_matrix(panels, size, p->first.b, first, middle, j0, j1);
    if (k1 > p->first.k)
        pack_matrix(panels + (middle - first) * TILE_COLS, size, p->second.b, k0 + middle - first - p->first.k,
                    k1 - p->first.k, j0, j1);
}
