/* test_optim.c - the optimiser's kernels of every compiled instruction set against double precision.
 *
 * The bound of AdamW counts the roundings of the lines in minilora.h: three for the mean, four for the square, which has
 * no difference in it; the root halves these and adds one, its two neighbours one each, quotient, product and
 * difference the rest.  1, 2 and 3 threads must agree bit by bit, and what lies beside an array stay as it is.
 */
#include "check.h"

enum { COUNT = 9, WEIGHT = 0, MEAN = 1, SQUARE = 2, GRAD = 3, KINDS = 4 };

static const ptrdiff_t sizes[COUNT] = {0, 1, 7, 8191, 0, 8192, 8193, 40000, 33};
static const float keep = 0.9985f, mean_share = 0.1f, square_keep = 0.999f, square_share = 0.001f, tiny = 1e-8f;

static void expect(const char *what, ptrdiff_t a, ptrdiff_t j, double got, double want, double allowed)
{
    if (is_off(got, want, allowed + 1e-44))     /* 1e-44: some units of the smallest number there is */
        printf("%s of element %td of array %td = %.9g, want %.9g +- %.3g\n", what, j, a, got, want, allowed);
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
                if (differ(after[kind][a], other[kind][a], sizes[a]))
                    printf("array %td of kind %d differs between 1 and %d threads\n", a, kind, threads);
        release(other);
    }
    release(before);
    release(after);
    cases += COUNT;
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
        if (sum != first && fails())
            printf("the sum of squares differs between 1 and %d threads\n", threads);
    }
    if (minilora_square_sum_f32(NULL, NULL, NULL, 0, 2) != 0.0 && fails())
        puts("the sum of nothing is not zero");
    minilora_scale_f32(all[MEAN], sizes, COUNT, 0.37f, 2);
    float *same[KINDS][COUNT];
    draw(same);
    for (ptrdiff_t a = 0; a < COUNT; a++)
        for (ptrdiff_t j = 0; j < sizes[a]; j++)
            expect("scaled", a, j, (double)all[MEAN][a][j], (double)(same[MEAN][a][j] * 0.37f), 0.0);
    release(all);
    release(same);
    cases += 2;
}

static void check_isa(void)
{
    check_adamw();
    check_square_sum_and_scale();
}

int main(void) { return check_every_isa("the optimiser", check_isa); }
