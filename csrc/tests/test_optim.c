/* test_optim.c - the optimiser's kernels of every compiled instruction set against double precision.
 *
 * The bound of AdamW counts the roundings of the lines in minilora.h: three for the mean, four for the square, which has
 * no difference in it; the root halves these and adds one, its two neighbours one each, quotient, product and
 * difference the rest.  1, 2 and 3 threads must agree bit by bit, and what lies beside an array stay as it is.
 */
#include "minilora.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { COUNT = 9, WEIGHT = 0, MEAN = 1, SQUARE = 2, GRAD = 3, KINDS = 4 };

static const ptrdiff_t sizes[COUNT] = {0, 1, 7, 8191, 0, 8192, 8193, 40000, 33};
static const float keep = 0.9985f, mean_share = 0.1f, square_keep = 0.999f, square_share = 0.001f, tiny = 1e-8f;

static int failures;
static double largest_share;
static uint64_t random_state = 1;

/* A uniform number in [-1, 1): splitmix64. */
static float uniform(void)
{
    uint64_t z = (random_state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (float)((z ^ (z >> 31)) >> 40) / 8388608.0f - 1.0f;
}

static void *new_bytes(size_t size)
{
    void *const made = malloc(size ? size : 1);
    if (!made)
        abort();
    return made;
}

static double gamma_of(double terms)
{
    const double eps = ldexp(1.0, -24);
    return terms * eps / (1.0 - terms * eps);
}

static void expect(const char *what, ptrdiff_t a, ptrdiff_t j, double got, double want, double allowed)
{
    const double share = fabs(got - want) / (allowed + 1e-44);  /* 1e-44: some units of the smallest number there is */
    if (share <= 1.0) {         /* written so that NaN fails */
        largest_share = share > largest_share ? share : largest_share;
        return;
    }
    if (failures++ < 20)
        printf("FAIL %s: %s of element %td of array %td = %.9g, want %.9g +- %.3g\n",
               minilora_isa_name(minilora_isa_chosen()), what, j, a, got, want, allowed);
}

/* Parameters of many sizes, gradients of many magnitudes. */
static void draw(float *all[KINDS][COUNT])
{
    random_state = 7;
    for (int kind = 0; kind < KINDS; kind++)
        for (ptrdiff_t a = 0; a < COUNT; a++) {
            all[kind][a] = new_bytes((size_t)sizes[a] * sizeof(float));
            for (ptrdiff_t j = 0; j < sizes[a]; j++) {
                const float magnitude = kind == WEIGHT ? 1.0f : ldexpf(1.0f, (int)(10.0f * uniform()) - (int)a);
                all[kind][a][j] = (kind == SQUARE ? fabsf(uniform()) : uniform()) * magnitude;
            }
        }
}

static void release(float *all[KINDS][COUNT])
{
    for (int kind = 0; kind < KINDS; kind++)
        for (ptrdiff_t a = 0; a < COUNT; a++)
            free(all[kind][a]);
}

static void step(float *all[KINDS][COUNT], const float *rates, const float *roots, int threads)
{
    minilora_adamw_f32(all[WEIGHT], all[MEAN], all[SQUARE], (const float *const *)all[GRAD], rates, roots, sizes, COUNT,
                       keep, mean_share, square_keep, square_share, tiny, threads);
}

static void check_element(ptrdiff_t a, ptrdiff_t j, float *before[KINDS][COUNT], float *after[KINDS][COUNT], double rate,
                          double root)
{
    const double weight = (double)before[WEIGHT][a][j], mean = (double)before[MEAN][a][j];
    const double square = (double)before[SQUARE][a][j], grad = (double)before[GRAD][a][j];
    const double new_mean = mean + (grad - mean) * (double)mean_share;
    const double mean_off = gamma_of(3) * (fabs(mean) + (fabs(grad) + fabs(mean)) * (double)mean_share);
    const double new_square = square * (double)square_keep + grad * grad * (double)square_share;
    const double under = sqrt(new_square) / root + (double)tiny, quotient = new_mean / under;
    const double kept = weight * (double)keep, moved = rate * quotient;
    const double allowed = gamma_of(2) * fabs(kept) + rate * (mean_off / under) * (1 + gamma_of(9)) + gamma_of(9) * fabs(moved);
    expect("mean", a, j, (double)after[MEAN][a][j], new_mean, mean_off);
    expect("square", a, j, (double)after[SQUARE][a][j], new_square, gamma_of(4) * new_square);
    expect("weight", a, j, (double)after[WEIGHT][a][j], kept - moved, allowed);
}

static void check_adamw(void)
{
    float rates[COUNT], roots[COUNT], *before[KINDS][COUNT], *after[KINDS][COUNT], *other[KINDS][COUNT];
    for (int a = 0; a < COUNT; a++) {       /* as if parameter a had made a + 1 steps */
        rates[a] = (float)(1e-3 / (1.0 - pow(0.9, a + 1)));
        roots[a] = (float)sqrt(1.0 - pow(0.999, a + 1));
    }
    draw(before);
    draw(after);
    step(after, rates, roots, 1);
    for (ptrdiff_t a = 0; a < COUNT; a++)
        for (ptrdiff_t j = 0; j < sizes[a]; j++)
            check_element(a, j, before, after, (double)rates[a], (double)roots[a]);
    for (int threads = 2; threads <= 3; threads++) {
        draw(other);
        step(other, rates, roots, threads);
        for (int kind = 0; kind < KINDS; kind++)
            for (ptrdiff_t a = 0; a < COUNT; a++)
                if (memcmp(after[kind][a], other[kind][a], (size_t)sizes[a] * sizeof(float)) && failures++ < 20)
                    printf("FAIL: array %td of kind %d differs between 1 and %d threads\n", a, kind, threads);
        release(other);
    }
    release(before);
    release(after);
}

static void check_square_sum_and_scale(void)
{
    float *all[KINDS][COUNT];
    double want = 0.0, first = 0.0;
    draw(all);
    for (ptrdiff_t a = 0; a < COUNT; a++)
        for (ptrdiff_t j = 0; j < sizes[a]; j++)
            want += (double)all[GRAD][a][j] * (double)all[GRAD][a][j];
    for (int threads = 1; threads <= 3; threads++) {
        const size_t size = minilora_square_sum_workspace_f32(sizes, COUNT);
        double *const workspace = new_bytes(size);
        memset(workspace, 0xff, size);
        const double sum = minilora_square_sum_f32((const float *const *)all[GRAD], workspace, sizes, COUNT, threads);
        free(workspace);
        /* Squares are exact in double; both sums have as many roundings as elements. */
        expect("sum of squares", 0, threads, sum, want, 2.0 * 64616.0 * ldexp(1.0, -53) * want);
        if (threads == 1)
            first = sum;
        if (sum != first && failures++ < 20)
            printf("FAIL: the sum of squares differs between 1 and %d threads\n", threads);
    }
    if (minilora_square_sum_f32(NULL, NULL, NULL, 0, 2) != 0.0 && failures++ < 20)
        puts("FAIL: the sum of nothing is not zero");
    minilora_scale_f32(all[MEAN], sizes, COUNT, 0.37f, 2);
    float *same[KINDS][COUNT];
    draw(same);
    for (ptrdiff_t a = 0; a < COUNT; a++)
        for (ptrdiff_t j = 0; j < sizes[a]; j++)
            expect("scaled", a, j, (double)all[MEAN][a][j], (double)(same[MEAN][a][j] * 0.37f), 0.0);
    release(all);
    release(same);
}

int main(void)
{
    for (int isa = 0; isa < minilora_isa_count(); isa++) {
        largest_share = 0.0;
        if (!minilora_isa_choose(isa)) {
            printf("%-10s does not run here, skipped\n", minilora_isa_name(isa));
            continue;
        }
        check_adamw();
        check_square_sum_and_scale();
        printf("%-10s optimiser, largest error %.2f of what is allowed\n", minilora_isa_name(isa), largest_share);
    }
    printf("%d failures\n", failures);
    return failures != 0;
}
