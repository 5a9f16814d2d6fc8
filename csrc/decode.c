/* decode.c - pieces of a stored weight as float32. */
#include "storage.h"

/* One element past the last whole block; only storages without blocks have such. */
INLINE float element(const unsigned char *line, ptrdiff_t k, const int storage)
{
    uint16_t bits;
    memcpy(&bits, line + 2 * k, sizeof bits);
    if (storage == MINILORA_F16)
        return half_to_float(bits);
    const uint32_t whole = (uint32_t)bits << 16;
    return (union { uint32_t whole; float number; }){.whole = whole}.number;
}

INLINE void decode(float *restrict out, const unsigned char *restrict line, ptrdiff_t first, ptrdiff_t count,
                   const int storage)
{
    const ptrdiff_t end = first + count;
    if (storage == MINILORA_BF16 || storage == MINILORA_F16) {
#pragma omp simd
        for (ptrdiff_t k = first; k < end; k++)
            out[k - first] = element(line, k, storage);
        return;
    }
    while (first < end) {
        const ptrdiff_t skipped = first % BLOCK, taken = smaller(BLOCK - skipped, end - first);
        const block b = block_at(line, first - skipped, storage);
        float whole[BLOCK];
        float *const to = taken == BLOCK ? out : whole;
#pragma GCC unroll 8
        for (int lanes = 0; lanes < BLOCK; lanes += LANES)
            store_lanes(to + lanes, decode_lanes(b, lanes, storage));
        if (taken < BLOCK)
            memcpy(out, whole + skipped, (size_t)taken * sizeof *out);
        out += taken;
        first += taken;
    }
}

ptrdiff_t minilora_line_bytes(int storage, ptrdiff_t elements)
{
    if (storage == MINILORA_BF16 || storage == MINILORA_F16)
        return 2 * elements;
    return storage == MINILORA_F32 ? 4 * elements : elements / BLOCK * block_bytes(storage);
}

void minilora_decode(float *restrict out, view from, ptrdiff_t line, ptrdiff_t first, ptrdiff_t count)
{
    const unsigned char *const in = (const unsigned char *)from.at + line * minilora_line_bytes(from.storage, from.stride);
    switch (from.storage) {
    case MINILORA_BF16:
        decode(out, in, first, count, MINILORA_BF16);
        return;
    case MINILORA_F16:
        decode(out, in, first, count, MINILORA_F16);
        return;
    case MINILORA_Q8_0:
        decode(out, in, first, count, MINILORA_Q8_0);
        return;
    case MINILORA_Q4_0:
        decode(out, in, first, count, MINILORA_Q4_0);
        return;
    case MINILORA_Q4_1:
        decode(out, in, first, count, MINILORA_Q4_1);
        return;
    default:
        if (count > 0)
            memcpy(out, in + 4 * first, (size_t)count * sizeof *out);
    }
}
