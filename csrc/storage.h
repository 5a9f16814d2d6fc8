/* storage.h - one block of a stored weight: 32 neighbours in a line, decoded a vector at a time.
 *
 * The storage is a constant wherever these are inlined.  The bits are those of the format's reference: every product
 * of a scale and a small integer is exact.
 */
#ifndef MINILORA_STORAGE_H
#define MINILORA_STORAGE_H

#include "internal.h"

#ifdef __AVX2__
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))

enum { BLOCK = 32 };

/* A block's bytes behind its scales: value = d q + m. */
typedef struct {
    const unsigned char *q;
    float d, m;
} block;

INLINE ptrdiff_t block_bytes(const int storage)
{
    return storage == MINILORA_Q8_0 ? 34 : storage == MINILORA_Q4_0 ? 18 : storage == MINILORA_Q4_1 ? 20
        : storage == MINILORA_F32 ? 4 * BLOCK : 2 * BLOCK;
}

/* A half-precision number.  Its exponent is moved by a product, which is exact and right for subnormal numbers too. */
INLINE float half_to_float(uint16_t bits)
{
    typedef union {
        float number;
        uint32_t whole;
    } word;
    const uint32_t sign = (uint32_t)(bits & 0x8000) << 16, rest = (uint32_t)(bits & 0x7fff) << 13;
    const word scaled = {.number = (word){.whole = rest}.number * 0x1p112f};
    const uint32_t value = (bits & 0x7c00) == 0x7c00 ? 0x7f800000 | rest : scaled.whole;      /* infinity or NaN */
    return (word){.whole = value | sign}.number;
}

INLINE float half_at(const unsigned char *at)
{
#ifdef __F16C__
    _Float16 value;
    memcpy(&value, at, sizeof value);
    return (float)value;
#else
    uint16_t bits;
    memcpy(&bits, at, sizeof bits);
    return half_to_float(bits);
#endif
}

/* The block that holds element k of a line; k is a multiple of BLOCK. */
INLINE block block_at(const unsigned char *line, ptrdiff_t k, const int storage)
{
    const unsigned char *const at = line + k / BLOCK * block_bytes(storage);
    if (storage == MINILORA_Q8_0 || storage == MINILORA_Q4_0)
        return (block){at + 2, half_at(at), 0.0f};
    if (storage == MINILORA_Q4_1)
        return (block){at + 4, half_at(at), half_at(at + 2)};
    return (block){at, 1.0f, 0.0f};
}

/* LANES small integers as 32-bit ones.  gcc 12 widens bytes one by one unless it is told the instruction. */
INLINE whole_lanes widen_signed(const unsigned char *at)
{
#if defined(__AVX512F__)
    return (whole_lanes)_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)at));
#elif defined(__AVX2__)
    return (whole_lanes)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)at));
#else
    whole_lanes out;
    for (int lane = 0; lane < LANES; lane++)
        out[lane] = ((const signed char *)at)[lane];
    return out;
#endif
}

INLINE whole_lanes widen_bytes(const unsigned char *at)
{
#if defined(__AVX512F__)
    return (whole_lanes)_mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)at));
#elif defined(__AVX2__)
    return (whole_lanes)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)at));
#else
    whole_lanes out;
    for (int lane = 0; lane < LANES; lane++)
        out[lane] = at[lane];
    return out;
#endif
}

INLINE whole_lanes widen_pairs(const unsigned char *at)
{
#if defined(__AVX512F__)
    return (whole_lanes)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)at));
#elif defined(__AVX2__)
    return (whole_lanes)_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)at));
#else
    whole_lanes out;
    for (int lane = 0; lane < LANES; lane++) {
        uint16_t pair;
        memcpy(&pair, at + 2 * lane, sizeof pair);
        out[lane] = pair;
    }
    return out;
#endif
}

INLINE float_lanes half_lanes(const unsigned char *at)
{
#if defined(__AVX512F__)
    return (float_lanes)_mm512_cvtph_ps(_mm256_loadu_si256((const void *)at));
#elif defined(__AVX2__) && defined(__F16C__)
    return (float_lanes)_mm256_cvtph_ps(_mm_loadu_si128((const void *)at));
#else
    float_lanes out;
    for (int lane = 0; lane < LANES; lane++)
        out[lane] = half_at(at + 2 * lane);
    return out;
#endif
}

/* Elements [first, first + LANES) of a block; first is a multiple of LANES and a constant. */
INLINE float_lanes decode_lanes(block b, const int first, const int storage)
{
    if (storage == MINILORA_Q8_0)
        return __builtin_convertvector(widen_signed(b.q + first), float_lanes) * b.d;
    if (storage == MINILORA_BF16)
        return (float_lanes)(widen_pairs(b.q + 2 * first) << 16);
    if (storage == MINILORA_F16)
        return half_lanes(b.q + 2 * first);
    const whole_lanes pairs = widen_bytes(b.q + first % (BLOCK / 2));       /* first all low nibbles, then all high */
    const whole_lanes q = first < BLOCK / 2 ? pairs & 15 : pairs >> 4;
    if (storage == MINILORA_Q4_0)
        return __builtin_convertvector(q - 8, float_lanes) * b.d;
    return __builtin_convertvector(q, float_lanes) * b.d + b.m;
}

#endif /* MINILORA_STORAGE_H */
