/* exp.h - e^x in single precision as straight-line code, so that a loop over an array of them becomes vector code. */
#ifndef MINILORA_EXP_H
#define MINILORA_EXP_H

#include <stdint.h>

union bits {
    float number;
    int32_t whole;
};

/* e^x to within 2 units in the last place; 0 below -104, infinity above 88.73, NaN for NaN.
 *
 * x = n ln 2 + r with |r| <= ln 2 / 2, and e^r by its Taylor series to the 7th power, whose rest is below 2^-27.
 * 2^n is multiplied in two halves, so that results below the smallest normal number come out as they should. */
static inline float minilora_exp(float x)
{
    const float shift = 0x1.8p23f;      /* adding it rounds to a whole number, which its low bits then hold */
    float in_range = x < -104.0f ? -104.0f : x;         /* written so that NaN stays */
    in_range = in_range > 89.0f ? 89.0f : in_range;
    const float shifted = in_range * 0x1.715476p+0f + shift, n = shifted - shift;
    const float r = (in_range - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;    /* ln 2 in two parts; n times the first is exact */
    float e = 0x1.a01a02p-13f;
    e = e * r + 0x1.6c16c2p-10f;
    e = e * r + 0x1.111112p-7f;
    e = e * r + 0x1.555556p-5f;
    e = e * r + 0x1.555556p-3f;
    e = e * r + 0.5f;
    e = e * r + 1.0f;
    e = e * r + 1.0f;
    const int32_t power = (union bits){.number = shifted}.whole - 0x4b400000;   /* the bits of shift */
    const int32_t half = power / 2;
    /* Shifted as unsigned numbers, since those that come of NaN overflow. */
    return e * (union bits){.whole = (int32_t)((uint32_t)(half + 127) << 23)}.number
             * (union bits){.whole = (int32_t)((uint32_t)(power - half + 127) << 23)}.number;
}

#endif /* MINILORA_EXP_H */
