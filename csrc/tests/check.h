/* check.h - what the kernels' tests share: random numbers, arrays, comparison under a bound, and the instruction sets. */
#ifndef MINILORA_CHECK_H
#define MINILORA_CHECK_H

#include "minilora.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double U = 0x1p-24;        /* half of the distance from 1 to the next float */

static int failures, cases;
static double largest_share;            /* error as a share of what is allowed, of an instruction set */
static uint64_t random_state = 1;

/* A uniform number in [-1, 1): splitmix64. */
static inline float uniform(void)
{
    uint64_t z = (random_state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (float)((z ^ (z >> 31)) >> 40) / 8388608.0f - 1.0f;
}

/* How far so many roundings in a row may move a number, as a share of it (Higham 2002, lemma 3.1). */
static inline double gamma_of(double roundings) { return roundings * U / (1.0 - roundings * U); }

/* Memory of exactly this size, but for one byte that makes 0 legal. */
static inline void *new_bytes(size_t size)
{
    void *const made = malloc(size + 1);
    if (!made)
        abort();
    return made;
}

/* Floats that end where their memory ends; `memory` is what free takes, and is `at` itself without an offset. */
typedef struct {
    void *memory;
    float *at;
    ptrdiff_t size;
} array;

static inline array filled(ptrdiff_t size, ptrdiff_t offset, float with)
{
    array made = {new_bytes((size_t)(size + offset) * sizeof(float)), NULL, size};
    made.at = (float *)made.memory + offset;
    for (ptrdiff_t i = 0; i < size; i++)
        made.at[i] = with;
    return made;
}

static inline array drawn(ptrdiff_t size, ptrdiff_t offset, double scale)
{
    array made = filled(size, offset, 0);
    for (ptrdiff_t i = 0; i < size; i++)
        made.at[i] = (float)scale * uniform();
    return made;
}

/* Count a failure; the caller prints what was wrong where this returns 1, after "FAIL" and the instruction set. */
static inline int fails(void)
{
    if (failures++ >= 20)
        return 0;
    printf("FAIL %s: ", minilora_isa_name(minilora_isa_chosen()));
    return 1;
}

/* As fails(), where `got` is further from `want` than `allowed`. */
static inline int is_off(double got, double want, double allowed)
{
    const double off = fabs(got - want);
    if (!(off <= allowed))      /* written so that NaN fails */
        return fails();
    if (off > 0)
        largest_share = fmax(largest_share, off / allowed);
    return 0;
}

/* As fails(), where arrays differ in any bit. */
static inline int differ(const float *one, const float *other, ptrdiff_t size)
{
    return size > 0 && memcmp(one, other, (size_t)size * sizeof *one) != 0 ? fails() : 0;
}

/* Run a check with every compiled instruction set; returns what main() does. */
static inline int check_every_isa(const char *what, void (*check)(void))
{
    for (int isa = 0; isa < minilora_isa_count(); isa++) {
        const int before = cases;
        if (!minilora_isa_choose(isa)) {
            printf("%-10s does not run here, skipped\n", minilora_isa_name(isa));
            continue;
        }
        largest_share = 0;
        check();
        printf("%-10s %d cases of %s, the largest error %.3f of what is allowed\n", minilora_isa_name(isa),
               cases - before, what, largest_share);
    }
    printf("%s, OpenMP %s, %s: %d failures\n", minilora_compiler(), minilora_has_openmp() ? "on" : "off", what, failures);
    return failures != 0;
}

#endif /* MINILORA_CHECK_H */
