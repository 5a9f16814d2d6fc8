/* test_attention.c - every compiled instruction set against attention in double, under a derived bound.
 *
 * With u = 2^-24 and, for a row, Z the largest sum over d of |scale * q * k| and R the range of its scores:
 *
 *   score     a product of q * scale rounds once, a chain of d sums and one sum a piece of 256:    (d + 3) u Z
 *   weight    the difference to the peak rounds, and e^x errs by two units in the last place:      u (R + 4)
 *             The peak that is subtracted is the same for all keys, so its own error cancels.
 *   total, y  each block of keys may multiply what came before by such an e^x, whose exponents add up to R at most, and
 *             adds its own: u (6 blocks + R).  Inside a block, total sums 64 lanes' terms and a tree: 70 u; y a chain
 *             of 256.  Then a quotient and a product: 2 u.
 *
 * So y is off by `of_y` = 2 (d + 3) Z + 4 R + 14 blocks + 340 times u times the sum of w * |v|, and a weight that
 * backward makes again by `of_w` = 2 (d + 3) Z + 3 R + 6 blocks + 85.  change = w * (grad . v - delta) inherits both,
 * and two more sums of d terms.  The sums over keys and rows are chains of 128 in each block, one sum a block, and one a cut (16).
 * A relative error t of an exponent becomes e^t - 1.
 */
#include "check.h"

typedef struct {
    ptrdiff_t b, t, s, h, g, d;
    int causal;
    ptrdiff_t window;
    int masked;                 /* 0: no mask, 1: some keys, 2: every key of the first entry */
    double size;                /* of q: the size of scores */
    ptrdiff_t offset;           /* floats by which every array is moved off its allocation's alignment */
    ptrdiff_t room;             /* positions that k and v have beyond s, as in a cache */
} problem;

static void expect(const problem *p, const char *what, ptrdiff_t i, float got, double want, double allowed)
{
    if (is_off((double)got, want, allowed))
        printf("%s[%td] = %.9g, want %.9g +- %.3g  (b %td t %td s %td h %td g %td d %td causal %d window %td masked %d "
               "size %g)\n", what, i, (double)got, want, allowed, p->b, p->t, p->s, p->h, p->g, p->d, p->causal,
               p->window, p->masked, p->size);
}

static void expect_same_bits(const problem *p, const char *what, array one, array other)
{
    if (differ(one.at, other.at, one.size))
        printf("%s  (b %td t %td s %td h %td g %td d %td causal %d window %td)\n", what, p->b, p->t, p->s, p->h, p->g,
               p->d, p->causal, p->window);
}

typedef struct {
    array q, k, v, grad;
    unsigned char *mask;
    ptrdiff_t step;             /* of k and v */
    float scale;
} inputs;

enum { Y, STATS, GRAD_Q, GRAD_K, GRAD_V, OUTPUTS };
typedef struct {
    array of[OUTPUTS];
} outputs;

static inputs new_inputs(const problem *p)
{
    const ptrdiff_t step = (p->s + p->room) * p->g * p->d;
    const ptrdiff_t held = p->b ? (p->b - 1) * step + p->s * p->g * p->d : 0;   /* no float beyond the last used */
    inputs in = {.q = drawn(p->b * p->t * p->h * p->d, p->offset, p->size), .k = drawn(held, p->offset, 1),
                 .v = drawn(held, p->offset, 1), .grad = drawn(p->b * p->t * p->h * p->d, p->offset, 1),
                 .step = step, .scale = 0.4f};
    if (p->masked) {
        in.mask = malloc((size_t)(p->b * p->s) + 1);
        if (!in.mask)
            abort();
        for (ptrdiff_t i = 0; i < p->b * p->s; i++)
            in.mask[i] = uniform() > -0.5f && !(p->masked == 2 && i < p->s);
    }
    return in;
}

static void free_inputs(inputs *in)
{
    free(in->q.memory);
    free(in->k.memory);
    free(in->v.memory);
    free(in->grad.memory);
    free(in->mask);
}

static void free_outputs(outputs *out)
{
    for (int i = 0; i < OUTPUTS; i++)
        free(out->of[i].memory);
}

/* Workspaces are full of NaN, so that whatever is read before it is written shows. */
static void *nan_workspace(const problem *p, ptrdiff_t pairs, int backward, int threads)
{
    const size_t size = minilora_attention_workspace_f32(p->b, p->t, p->s, p->h, p->g, p->d, pairs, backward, threads);
    void *made = malloc(size);
    if (!made)
        abort();
    memset(made, 0xff, size);
    return made;
}

/* In calls of so many pairs; only the wanted gradients, with NULL for all that they do not need. */
static outputs run(const problem *p, const inputs *in, int threads, ptrdiff_t pairs, int need)
{
    const ptrdiff_t rows = p->b * p->t * p->h, keys = p->b * p->s * p->g;
    const int softmax = need & 3;
    outputs out = {{filled(rows * p->d, p->offset, NAN), filled(rows * 2, p->offset, NAN),
                    filled(rows * p->d, p->offset, NAN), filled(keys * p->d, p->offset, NAN),
                    filled(keys * p->d, p->offset, NAN)}};
    void *forward = nan_workspace(p, pairs, 0, threads), *backward = nan_workspace(p, pairs, 1, threads);
    for (ptrdiff_t i = 0; i < p->b * p->g; i += pairs) {
        const ptrdiff_t end = i + pairs < p->b * p->g ? i + pairs : p->b * p->g;
        minilora_attention_forward_f32(out.of[Y].at, out.of[STATS].at, in->q.at, in->k.at, in->v.at, in->mask, forward,
                                       p->b, p->t, p->s, p->h, p->g, p->d, in->step, in->step, i, end, p->window,
                                       p->causal, in->scale, threads);
        minilora_attention_backward_f32(need & 1 ? out.of[GRAD_Q].at : NULL, need & 2 ? out.of[GRAD_K].at : NULL,
                                        need & 4 ? out.of[GRAD_V].at : NULL, in->grad.at, in->q.at, in->k.at,
                                        softmax ? in->v.at : NULL, softmax ? out.of[Y].at : NULL, out.of[STATS].at,
                                        in->mask, backward, p->b, p->t, p->s, p->h, p->g, p->d, in->step, in->step,
                                        i, end, p->window, p->causal, in->scale, threads);
    }
    free(forward);
    free(backward);
    return out;
}

static double product(const float *a, const float *b, ptrdiff_t d, double *size)
{
    double sum = 0;
    for (ptrdiff_t e = 0; e < d; e++) {
        sum += (double)a[e] * (double)b[e];
        *size += fabs((double)a[e] * (double)b[e]);
    }
    return sum;
}

static int is_seen(const problem *p, const inputs *in, ptrdiff_t entry, ptrdiff_t t, ptrdiff_t s)
{
    const ptrdiff_t ahead = s - (p->s - p->t + t);
    return !(p->causal && ahead > 0) && !(p->window && (ahead >= p->window || ahead <= -p->window))
        && (!in->mask || in->mask[entry * p->s + s]);
}

static double growth(double t) { return expm1(t * U < 40 ? t * U : 40) * 1.01; }

/* Sums in double and, for each, the error it may have: (sums, allowed) of grad_k, grad_v. */
typedef struct {
    double *value, *allowed;
} sums;

static sums new_sums(ptrdiff_t size)
{
    sums made = {calloc((size_t)size + 1, sizeof(double)), calloc((size_t)size + 1, sizeof(double))};
    if (!made.value || !made.allowed)
        abort();
    return made;
}

static void check_row(const problem *p, const inputs *in, const outputs *out, ptrdiff_t entry, ptrdiff_t t, ptrdiff_t h,
                      sums grad_k, sums grad_v)
{
    const ptrdiff_t d = p->d, group = h / (p->h / p->g), at = ((entry * p->t + t) * p->h + h) * d;
    const float *const q = in->q.at + at, *const grad = in->grad.at + at;
    double *const w = calloc((size_t)p->s + 1, sizeof(double)), *const a = calloc((size_t)p->s + 1, sizeof(double));
    double *const a_size = calloc((size_t)p->s + 1, sizeof(double));
    double peak = -INFINITY, low = INFINITY, total = 0, z = 0, delta = 0, delta_size = 0;
    if (!w || !a || !a_size)
        abort();
    for (ptrdiff_t s = 0; s < p->s; s++) {
        const ptrdiff_t key = entry * in->step + (s * p->g + group) * d;
        double size = 0;
        w[s] = -INFINITY;
        if (!is_seen(p, in, entry, t, s))
            continue;
        w[s] = (double)in->scale * product(q, in->k.at + key, d, &size);
        a[s] = product(grad, in->v.at + key, d, &a_size[s]);
        z = fmax(z, (double)in->scale * size);
        peak = fmax(peak, w[s]);
        low = fmin(low, w[s]);
    }
    for (ptrdiff_t s = 0; s < p->s; s++)
        total += w[s] = peak > -INFINITY ? exp(w[s] - peak) : 0;
    for (ptrdiff_t s = 0; s < p->s; s++) {
        w[s] /= total > 0 ? total : 1;
        delta += w[s] * a[s];
        delta_size += w[s] * a_size[s];
    }
    const double range = peak > low ? peak - low : 0, blocks = ceil((double)p->s / 128) + 1, n = (double)d;
    const double of_y = 2 * (n + 3) * z + 4 * range + 14 * blocks + 340;
    const double of_w = 2 * (n + 3) * z + 3 * range + 6 * blocks + 85;
    const double of_change = of_w + of_y + 2 * n + 8, tiny = 1e-35;
    for (ptrdiff_t e = 0; e < d; e++) {
        double y = 0, y_size = 0, grad_q = 0, grad_q_size = 0;
        for (ptrdiff_t s = 0; s < p->s; s++) {
            const ptrdiff_t key = entry * in->step + (s * p->g + group) * d + e;
            const ptrdiff_t out_key = ((entry * p->s + s) * p->g + group) * d + e;
            const double change = (double)in->scale * w[s] * (a[s] - delta);
            const double change_size = (double)in->scale * w[s] * (a_size[s] + delta_size);
            if (w[s] <= 0)
                continue;
            y += w[s] * (double)in->v.at[key];
            y_size += w[s] * fabs((double)in->v.at[key]);
            grad_q += change * (double)in->k.at[key];
            grad_q_size += change_size * fabs((double)in->k.at[key]);
            grad_k.value[out_key] += change * (double)q[e];
            grad_k.allowed[out_key] += growth(of_change + 160 + (double)p->t) * change_size * fabs((double)q[e]) + tiny;
            grad_v.value[out_key] += w[s] * (double)grad[e];
            grad_v.allowed[out_key] += growth(of_w + 160 + (double)p->t) * w[s] * fabs((double)grad[e]) + tiny;
        }
        expect(p, "y", at + e, out->of[Y].at[at + e], y, growth(of_y) * y_size + tiny);
        expect(p, "grad_q", at + e, out->of[GRAD_Q].at[at + e], grad_q,
               growth(of_change + 130 + blocks) * grad_q_size + tiny);
    }
    free(w);
    free(a);
    free(a_size);
}

static void check_values(const problem *p, const inputs *in, const outputs *out)
{
    const ptrdiff_t keys = p->b * p->s * p->g * p->d;
    sums grad_k = new_sums(keys), grad_v = new_sums(keys);
    for (ptrdiff_t entry = 0; entry < p->b; entry++)
        for (ptrdiff_t t = 0; t < p->t; t++)
            for (ptrdiff_t h = 0; h < p->h; h++)
                check_row(p, in, out, entry, t, h, grad_k, grad_v);
    for (ptrdiff_t i = 0; i < keys; i++) {
        expect(p, "grad_k", i, out->of[GRAD_K].at[i], grad_k.value[i], grad_k.allowed[i]);
        expect(p, "grad_v", i, out->of[GRAD_V].at[i], grad_v.value[i], grad_v.allowed[i]);
    }
    free(grad_k.value);
    free(grad_k.allowed);
    free(grad_v.value);
    free(grad_v.allowed);
}

static const char *const names[OUTPUTS] = {"y", "stats", "grad_q", "grad_k", "grad_v"};

static void check(problem p)
{
    const ptrdiff_t all = p.b > 0 ? p.b * p.g : 1;
    inputs in = new_inputs(&p);
    outputs one = run(&p, &in, 1, all, 7);
    check_values(&p, &in, &one);
    for (int variant = 0; variant < 4; variant++) {
        /* 2 and 3 threads, calls of one pair each, and only one gradient, each in its turn. */
        const int need = variant == 3 ? 1 << cases % 3 : 7;
        outputs other = run(&p, &in, variant < 2 ? variant + 2 : 1, variant == 2 ? 1 : all, need);
        for (int i = 0; i < OUTPUTS; i++)
            if (i < GRAD_Q || need & 1 << (i - GRAD_Q))
                expect_same_bits(&p, names[i], one.of[i], other.of[i]);
        free_outputs(&other);
    }
    free_outputs(&one);
    free_inputs(&in);
    cases++;
}

static void check_isa(void)
{
    static const ptrdiff_t few[] = {0, 1, 2, 5}, widths[] = {0, 1, 3, 16, 17, 32, 33, 64};
    for (size_t t = 0; t < 4; t++)
        for (size_t s = 0; s < 4; s++)
            for (size_t d = 0; d < 8; d++)
                for (int causal = 0; causal < 2; causal++)
                    if (!causal || few[s] >= few[t])
                        check((problem){.b = (ptrdiff_t)d % 3, .t = few[t], .s = few[s], .h = 6, .g = d % 2 ? 2 : 6,
                                        .d = widths[d], .causal = causal, .window = (ptrdiff_t)(t + d) % 3,
                                        .masked = (int)(s + d) % 3, .size = 1, .offset = (ptrdiff_t)d % 3,
                                        .room = (ptrdiff_t)s % 2});
    /* Every number of rows and of keys around a tile. */
    for (ptrdiff_t n = 1; n <= 34; n++) {
        check((problem){2, n, n + 3, 3, 1, 20, 1, 0, 0, 1, n % 4, 0});
        check((problem){1, 7, n + 120, 2, 2, 33, 0, n % 2 ? 0 : n, (int)n % 2, 1, n % 4, 2});
    }
    /* Several blocks of keys and of rows, several cuts and splits. */
    for (int causal = 0; causal < 2; causal++)
        for (ptrdiff_t window = 0; window <= 150; window += window ? 149 : 1) {
            check((problem){1, 150, 300, 3, 1, 40, causal, window, 1, 1, 1, 3});
            check((problem){1, 1, 1100, 3, 1, 64, causal, window, 1, 1, 0, 5});
        }
    check((problem){2, 20, 600, 3, 1, 17, 1, 0, 2, 1, 0, 0});
    check((problem){1, 260, 20, 2, 2, 9, 0, 0, 0, 1, 0, 0});
    check((problem){1, 260, 20, 2, 2, 9, 0, 30, 0, 1, 0, 0});
    check((problem){1, 13, 140, 2, 1, 300, 1, 0, 1, 1, 0, 0});
    check((problem){3, 130, 130, 8, 8, 32, 1, 0, 1, 1, 0, 0});
    check((problem){1, 400, 400, 2, 2, 16, 1, 0, 0, 1, 0, 0});
    /* Scores of thousands: one key takes all, and the others' weights vanish. */
    for (int causal = 0; causal < 2; causal++) {
        check((problem){1, 40, 300, 2, 1, 64, causal, 0, 1, 4e3, 0, 0});
        check((problem){1, 1, 600, 2, 1, 64, causal, 0, 0, 1e30, 0, 0});
    }
}

int main(void) { return check_every_isa("attention", check_isa); }
