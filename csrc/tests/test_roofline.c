/* test_roofline.c - every compiled instruction set: sums are those of a double loop, flops are counted, nothing is written
 * beyond the outputs, and the bits do not depend on the number of threads. */
#include "minilora.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures;

static void expect(int ok, const char *isa, const char *what, ptrdiff_t size)
{
    if (!ok) {
        printf("FAIL: %s: %s, size %td\n", isa, what, size);
        failures++;
    }
}

static float *nans(ptrdiff_t size)
{
    float *made = malloc((size_t)size * sizeof(float) + 1);
    if (!made)
        abort();
    for (ptrdiff_t i = 0; i < size; i++)
        made[i] = NAN;
    return made;
}

static void check_read(const char *isa, ptrdiff_t n)
{
    const ptrdiff_t chunks = (n + MINILORA_READ_CHUNK - 1) / MINILORA_READ_CHUNK;
    float *x = nans(n), *first = nans(chunks), *sums = nans(chunks);
    for (ptrdiff_t i = 0; i < n; i++)
        x[i] = (float)(i * 7919 % 1000 - 500) / 64.0f;
    minilora_read_f32(first, x, n, 1);
    for (ptrdiff_t c = 0; c < chunks; c++) {
        double sum = 0, size = 0;
        for (ptrdiff_t i = c * MINILORA_READ_CHUNK; i < n && i < (c + 1) * MINILORA_READ_CHUNK; i++) {
            sum += x[i];
            size += fabs((double)x[i]);
        }
        /* Each of at most MINILORA_READ_CHUNK additions rounds once. */
        expect(fabs((double)first[c] - sum) <= MINILORA_READ_CHUNK * ldexp(size, -24), isa, "read: a wrong sum", n);
    }
    for (int threads = 2; threads <= 3; threads++) {
        minilora_read_f32(sums, x, n, threads);
        expect(!chunks || !memcmp(first, sums, (size_t)chunks * sizeof(float)), isa, "read: bits depend on threads", n);
    }
    free(x);
    free(first);
    free(sums);
}

static void check_peak(const char *isa, ptrdiff_t blocks)
{
    for (int threads = 1; threads <= 3; threads++) {
        float *out = malloc((size_t)blocks * sizeof(float) + 1);
        if (!out)
            abort();
        memset(out, 0, (size_t)blocks * sizeof(float) + 1);
        const double flops = minilora_peak_fma_f32(out, blocks, threads), step = 2.0 * 12 * MINILORA_FMA_STEPS;
        const double lanes = blocks ? flops / step / (double)blocks : 4;
        expect(lanes == 4 || lanes == 8 || lanes == 16, isa, "peak_fma: the flops are not whole vectors", blocks);
        for (ptrdiff_t i = 0; i < blocks; i++)
            expect(fabs((double)out[i] - 2 * 12 * lanes) < 0.01, isa, "peak_fma: a wrong sum", blocks); /* x = x/2 + 1 ends at 2 */
        free(out);
    }
}

int main(void)
{
    int sets = 0;
    for (int isa = 0; isa < minilora_isa_count(); isa++) {
        if (!minilora_isa_choose(isa))
            continue;
        sets++;
        const ptrdiff_t sizes[] = {0, 1, 127, 128, 129, MINILORA_READ_CHUNK - 1, MINILORA_READ_CHUNK, 3 * MINILORA_READ_CHUNK + 77};
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
            check_read(minilora_isa_name(isa), sizes[i]);
        for (ptrdiff_t blocks = 0; blocks < 6; blocks++)
            check_peak(minilora_isa_name(isa), blocks);
    }
    printf("roofline: %d instruction sets, %d failures\n", sets, failures);
    return failures != 0;
}
