/* roofline.c - what this machine can do at most: multiply-adds in registers, and reading a buffer. */
#include "internal.h"

/* Independent sums, so that the latency of a multiply-add hides behind the others: two units with a latency of four
 * or five cycles need ten; the baseline's 16 registers also hold a product and two constants. */
enum { CHAINS = 12 };

/* Floats of the buffer that add up to one result: enough for a thread to stream, few enough to share evenly. */
enum { READ_CHUNK = MINILORA_READ_CHUNK };

typedef struct {
    float *out;
    const float *x;
    ptrdiff_t count;
} job;

static void fma_part(const void *given, int part, int parts)
{
    const job *j = given;
    const ptrdiff_t end = part_start(j->count, part + 1, parts);
    for (ptrdiff_t block = part_start(j->count, part, parts); block < end; block++) {
        float acc[CHAINS][LANES], factor[LANES], term[LANES];
        for (int lane = 0; lane < LANES; lane++) {
            factor[lane] = 0.5f + j->out[block] * 0x1p-30f; /* not known to the compiler, and no subnormal ever */
            term[lane] = 1.0f;
        }
#pragma GCC unroll 16
        for (int c = 0; c < CHAINS; c++)
#pragma omp simd
            for (int lane = 0; lane < LANES; lane++)
                acc[c][lane] = (float)c;
        for (int i = 0; i < MINILORA_FMA_STEPS; i++) {
#pragma GCC unroll 16
            for (int c = 0; c < CHAINS; c++)
#pragma omp simd
                for (int lane = 0; lane < LANES; lane++)
                    acc[c][lane] = acc[c][lane] * factor[lane] + term[lane];
        }
        float sum = 0;
        for (int c = 0; c < CHAINS; c++)
            for (int lane = 0; lane < LANES; lane++)
                sum += acc[c][lane];
        j->out[block] = sum;
    }
}

double minilora_peak_fma_f32(float *out, ptrdiff_t blocks, int n_threads)
{
    const double work = (double)blocks * MINILORA_FMA_STEPS * CHAINS * LANES;
    const job j = {out, NULL, blocks};
    minilora_team(fma_part, &j, work, n_threads);
    return 2 * work;
}

static void read_part(const void *given, int part, int parts)
{
    const job *j = given;
    const ptrdiff_t chunks = ceil_div(j->count, READ_CHUNK), end = part_start(chunks, part + 1, parts);
    for (ptrdiff_t chunk = part_start(chunks, part, parts); chunk < end; chunk++) {
        const float *restrict x = j->x + chunk * READ_CHUNK;
        const ptrdiff_t n = smaller(READ_CHUNK, j->count - chunk * READ_CHUNK);
        float acc[8 * LANES] = {0}; /* eight sums, so that loads need not wait for additions */
        ptrdiff_t i = 0;
        for (; i + 8 * LANES <= n; i += 8 * LANES)
#pragma GCC unroll 8
            for (int c = 0; c < 8; c++)
#pragma omp simd
                for (int lane = 0; lane < LANES; lane++)
                    acc[c * LANES + lane] += x[i + c * LANES + lane];
        float sum = 0;
        for (int lane = 0; lane < 8 * LANES; lane++)
            sum += acc[lane];
        for (; i < n; i++)
            sum += x[i];
        j->out[chunk] = sum;
    }
}

void minilora_read_f32(float *sums, const float *x, ptrdiff_t n, int n_threads)
{
    const job j = {sums, x, n};
    minilora_team(read_part, &j, 8 * (double)n, n_threads); /* from memory a float takes as long as some multiply-adds */
}
