/* test_lora.c - every compiled instruction set against a plain double-precision loop, under the bound of minilora.h.
 *
 * Outputs and workspace start as NaN, every array is its own allocation of the exact size (so that AddressSanitizer sees
 * one float too many), and each case runs with 1, 2 and 3 threads, which must agree bit by bit.
 *
 *   test_lora        every case
 *   test_lora few    each path, tail and limit once
 */
#include "check.h"

typedef struct {
    ptrdiff_t m, n, k, r;
    int layout, with_bias, accumulate;
    ptrdiff_t offset;           /* floats by which every array is moved off its allocation's alignment */
    int storage;
} problem;

static array copy_of(array from, ptrdiff_t offset)
{
    array made = filled(from.size, offset, 0);
    if (from.size)
        memcpy(made.at, from.at, (size_t)from.size * sizeof(float));
    return made;
}

/* value = sum of scale * a[i] * b[j] over pairs `terms` apart, size = the sum of absolute values. */
typedef struct {
    double value, size;
} sum;

static sum dot(const float *a, ptrdiff_t a_step, const float *b, ptrdiff_t b_step, ptrdiff_t terms, double scale)
{
    sum s = {0, 0};
    for (ptrdiff_t t = 0; t < terms; t++) {
        const double term = scale * (double)a[t * a_step] * (double)b[t * b_step];
        s.value += term;
        s.size += fabs(term);
    }
    return s;
}

static void expect(const problem *p, const char *what, ptrdiff_t i, ptrdiff_t j, float got, sum want, double allowed)
{
    if (is_off((double)got, want.value, allowed))
        printf("%s[%td,%td] = %.9g, want %.9g +- %.3g  (m %td n %td k %td r %td layout %d bias %d accumulate %d "
               "offset %td storage %d)\n", what, i, j, (double)got, want.value, allowed, p->m, p->n, p->k, p->r,
               p->layout, p->with_bias, p->accumulate, p->offset, p->storage);
}

static void expect_same_bits(const problem *p, const char *what, array one, array other, int threads)
{
    if (differ(one.at, other.at, one.size))
        printf("%s differs between 1 and %d threads  (m %td n %td k %td r %td layout %d)\n", what, threads, p->m, p->n,
               p->k, p->r, p->layout);
}

typedef struct {
    array x, w, a, b, bias, grad, old_a, old_b;
    unsigned char *stored;      /* what w stands for, as the problem's storage has it */
} inputs;

typedef struct {
    array y, hidden, grad_x, grad_a, grad_b;
} outputs;

static outputs run(const problem *p, const inputs *in, int threads)
{
    const float scale = 0.75f;
    const size_t bytes = minilora_lora_workspace_f32(p->m, p->n, p->k, p->r, threads);
    void *workspace = malloc(bytes);
    outputs out = {
        .y = filled(p->m * p->n, p->offset, NAN),
        .hidden = filled(p->m * p->r, p->offset, NAN),
        .grad_x = filled(p->m * p->k, p->offset, NAN),
        .grad_a = p->accumulate ? copy_of(in->old_a, p->offset) : filled(p->k * p->r, p->offset, NAN),
        .grad_b = p->accumulate ? copy_of(in->old_b, p->offset) : filled(p->r * p->n, p->offset, NAN),
    };
    if (!workspace)
        abort();
    memset(workspace, 0xff, bytes);
    minilora_lora_forward_f32(out.y.at, out.hidden.at, in->x.at, in->stored, in->a.at, in->b.at,
                              p->with_bias ? in->bias.at : NULL, workspace, p->m, p->n, p->k, p->r, scale,
                              p->layout, p->storage, threads);
    memset(workspace, 0xff, bytes);
    minilora_lora_backward_f32(out.grad_x.at, out.grad_a.at, out.grad_b.at, in->grad.at, in->x.at, out.hidden.at,
                               in->stored, in->a.at, in->b.at, workspace, p->m, p->n, p->k, p->r, scale,
                               p->accumulate, p->layout, p->storage, threads);
    free(workspace);
    return out;
}

/* The adapter's inner sums may be off by their own bound, which the outer sum multiplies. */
static double inner_error(const double *allowed, const float *outer, ptrdiff_t step, ptrdiff_t r, double scale)
{
    double total = 0;
    for (ptrdiff_t q = 0; q < r; q++)
        total += allowed[q] * fabs(scale * (double)outer[q * step]);
    return total;
}

static void check_values(const problem *p, const inputs *in, const outputs *out)
{
    const ptrdiff_t m = p->m, n = p->n, k = p->k, r = p->r;
    const double scale = 0.75;
    const ptrdiff_t w_k = p->layout == MINILORA_W_KN ? n : 1, w_n = p->layout == MINILORA_W_KN ? 1 : k;
    double *allowed = malloc((size_t)(m * r + r + 1) * sizeof *allowed);
    float *grad_h = malloc((size_t)(m * r + 1) * sizeof *grad_h);
    if (!allowed || !grad_h)
        abort();

    for (ptrdiff_t i = 0; i < m; i++) {
        double *const row = allowed + i * r;
        for (ptrdiff_t q = 0; q < r; q++) {
            const sum s = dot(in->x.at + i * k, 1, in->a.at + q, r, k, 1);
            row[q] = gamma_of((double)(k + 2)) * s.size;
            expect(p, "hidden", i, q, out->hidden.at[i * r + q], s, row[q]);
        }
        for (ptrdiff_t j = 0; j < n; j++) {
            const double bias = p->with_bias ? (double)in->bias.at[j] : 0;
            const sum s = dot(in->x.at + i * k, 1, in->w.at + j * w_n, w_k, k, 1);
            const sum t = dot(out->hidden.at + i * r, 1, in->b.at + j, n, r, scale);
            const sum all = {bias + s.value + t.value, fabs(bias) + s.size + t.size};
            expect(p, "y", i, j, out->y.at[i * n + j], all, gamma_of((double)(k + r + 2)) * all.size);
        }
    }
    for (ptrdiff_t i = 0; i < m; i++) {
        for (ptrdiff_t q = 0; q < r; q++) {
            const sum s = dot(in->grad.at + i * n, 1, in->b.at + q * n, 1, n, 1);
            grad_h[i * r + q] = (float)s.value;
            allowed[i * r + q] = gamma_of((double)(n + 3)) * s.size;
        }
        for (ptrdiff_t j = 0; j < k; j++) {
            const sum s = dot(in->grad.at + i * n, 1, in->w.at + j * w_k, w_n, n, 1);
            const sum t = dot(grad_h + i * r, 1, in->a.at + j * r, 1, r, scale);
            const sum all = {s.value + t.value, s.size + t.size};
            expect(p, "grad_x", i, j, out->grad_x.at[i * k + j], all, gamma_of((double)(n + r + 2)) * all.size
                   + inner_error(allowed + i * r, in->a.at + j * r, 1, r, scale) * (1 + gamma_of((double)(r + 2))));
        }
    }
    for (ptrdiff_t q = 0; q < r; q++) {
        for (ptrdiff_t j = 0; j < k; j++) {
            const double old = p->accumulate ? (double)in->old_a.at[j * r + q] : 0;
            const sum s = dot(grad_h + q, r, in->x.at + j, k, m, scale);
            const sum all = {old + s.value, fabs(old) + s.size};
            double inner = 0;
            for (ptrdiff_t i = 0; i < m; i++)
                inner += allowed[i * r + q] * fabs(scale * (double)in->x.at[i * k + j]);
            expect(p, "grad_a", j, q, out->grad_a.at[j * r + q], all,
                   gamma_of((double)(m + 2)) * all.size + inner * (1 + gamma_of((double)(m + 2))));
        }
        for (ptrdiff_t j = 0; j < n; j++) {
            const double old = p->accumulate ? (double)in->old_b.at[q * n + j] : 0;
            const sum s = dot(out->hidden.at + q, r, in->grad.at + j, n, m, scale);
            const sum all = {old + s.value, fabs(old) + s.size};
            expect(p, "grad_b", q, j, out->grad_b.at[q * n + j], all, gamma_of((double)(m + 2)) * all.size);
        }
    }
    free(allowed);
    free(grad_h);
}

static void free_outputs(outputs *out)
{
    free(out->y.memory);
    free(out->hidden.memory);
    free(out->grad_x.memory);
    free(out->grad_a.memory);
    free(out->grad_b.memory);
}

/* A half-precision number by its definition. */
static float half(unsigned bits)
{
    const int exponent = (int)(bits >> 10 & 31), sign = bits & 0x8000 ? -1 : 1;
    const double fraction = (double)(bits & 1023) / 1024;
    return (float)(sign * (exponent ? ldexp(1 + fraction, exponent - 15) : ldexp(fraction, -14)));
}

/* Random bytes of a storage, and what each element stands for, element by element from the format's definition. */
static unsigned char *store(int storage, array w)
{
    static const ptrdiff_t bytes[] = {4 * 32, 2 * 32, 2 * 32, 34, 18, 20};
    const ptrdiff_t size = storage < MINILORA_Q8_0 ? w.size * bytes[storage] / 32 : w.size / 32 * bytes[storage];
    unsigned char *const made = malloc((size_t)size + 1);
    if (!made)
        abort();
    for (ptrdiff_t i = 0; i < size; i++)
        made[i] = (unsigned char)(128 + 128 * uniform());
    if (storage == MINILORA_F32 && size)
        memcpy(made, w.at, (size_t)size);
    for (ptrdiff_t i = 0; i < w.size && storage != MINILORA_F32; i++) {
        unsigned char *const block = made + (storage < MINILORA_Q8_0 ? i * 2 : i / 32 * bytes[storage]);
        const ptrdiff_t at = i % 32;
        if (storage == MINILORA_BF16) {
            const float value = uniform();
            memcpy(block, (const char *)&value + 2, 2);         /* little-endian, as files are */
            const uint32_t bits = (uint32_t)(block[0] | block[1] << 8) << 16;
            memcpy(w.at + i, &bits, sizeof bits);
            continue;
        }
        /* Scales from subnormal to 2, of either sign. */
        for (int scale = 0; scale < (storage == MINILORA_Q4_1 ? 2 : 1); scale++)
            if (at == 0 || storage == MINILORA_F16)
                block[2 * scale + 1] = (unsigned char)(block[2 * scale + 1] & 0xbf);
        const float d = half((unsigned)(block[0] | block[1] << 8));
        const float m = storage == MINILORA_Q4_1 ? half((unsigned)(block[2] | block[3] << 8)) : 0.0f;
        const unsigned char *const q = block + (storage == MINILORA_Q4_1 ? 4 : 2);
        const int nibble = storage < MINILORA_Q4_0 ? 0 : at < 16 ? q[at % 16] & 15 : q[at % 16] >> 4;
        w.at[i] = storage == MINILORA_F16 ? d
            : storage == MINILORA_Q8_0 ? d * (float)(signed char)q[at]
            : storage == MINILORA_Q4_0 ? d * (float)(nibble - 8) : (float)((double)d * nibble + (double)m);
    }
    return made;
}

static inputs new_inputs(const problem *p)
{
    inputs made = {
        .x = drawn(p->m * p->k, p->offset, 1), .w = drawn(p->k * p->n, p->offset, 1),
        .a = drawn(p->k * p->r, p->offset, 1), .b = drawn(p->r * p->n, p->offset, 1),
        .bias = drawn(p->n, p->offset, 1), .grad = drawn(p->m * p->n, p->offset, 1),
        .old_a = drawn(p->k * p->r, p->offset, 1), .old_b = drawn(p->r * p->n, p->offset, 1),
    };
    made.stored = store(p->storage, made.w);
    return made;
}

static void free_inputs(inputs *in)
{
    free(in->stored);
    free(in->x.memory);
    free(in->w.memory);
    free(in->a.memory);
    free(in->b.memory);
    free(in->bias.memory);
    free(in->grad.memory);
    free(in->old_a.memory);
    free(in->old_b.memory);
}

static void check(problem p)
{
    inputs in = new_inputs(&p);
    outputs one = run(&p, &in, 1);
    check_values(&p, &in, &one);
    for (int threads = 2; threads <= 3; threads++) {
        outputs other = run(&p, &in, threads);
        expect_same_bits(&p, "y", one.y, other.y, threads);
        expect_same_bits(&p, "hidden", one.hidden, other.hidden, threads);
        expect_same_bits(&p, "grad_x", one.grad_x, other.grad_x, threads);
        expect_same_bits(&p, "grad_a", one.grad_a, other.grad_a, threads);
        expect_same_bits(&p, "grad_b", one.grad_b, other.grad_b, threads);
        free_outputs(&other);
    }
    free_outputs(&one);
    free_inputs(&in);
    cases++;
}

/* Each gradient alone, with NULL for everything that it does not read, equals the one computed with the rest. */
static void check_needs(problem p)
{
    inputs in = new_inputs(&p);
    outputs all = run(&p, &in, 1), some = run(&p, &in, 1);
    const size_t bytes = minilora_lora_workspace_f32(p.m, p.n, p.k, p.r, 1);
    void *workspace = malloc(bytes);
    if (!workspace)
        abort();
    memset(workspace, 0xff, bytes);
    memset(some.grad_x.at, 0, (size_t)some.grad_x.size * sizeof(float));
    memset(some.grad_a.at, 0, (size_t)some.grad_a.size * sizeof(float));
    memset(some.grad_b.at, 0, (size_t)some.grad_b.size * sizeof(float));
    minilora_lora_backward_f32(some.grad_x.at, NULL, NULL, in.grad.at, NULL, NULL, in.stored, in.a.at, in.b.at,
                               workspace, p.m, p.n, p.k, p.r, 0.75f, 0, p.layout, p.storage, 1);
    minilora_lora_backward_f32(NULL, some.grad_a.at, NULL, in.grad.at, in.x.at, NULL, NULL, NULL, in.b.at,
                               workspace, p.m, p.n, p.k, p.r, 0.75f, 0, p.layout, p.storage, 1);
    minilora_lora_backward_f32(NULL, NULL, some.grad_b.at, in.grad.at, NULL, all.hidden.at, NULL, NULL, NULL,
                               workspace, p.m, p.n, p.k, p.r, 0.75f, 0, p.layout, p.storage, 1);
    expect_same_bits(&p, "grad_x alone", all.grad_x, some.grad_x, 1);
    expect_same_bits(&p, "grad_a alone", all.grad_a, some.grad_a, 1);
    expect_same_bits(&p, "grad_b alone", all.grad_b, some.grad_b, 1);
    free(workspace);
    free_outputs(&all);
    free_outputs(&some);
    free_inputs(&in);
    cases++;
}

/* An infinity in one column of W reaches that column of y and no other. */
static void check_infinity_stays_in_its_column(problem p)
{
    const ptrdiff_t column = p.n - 1;
    inputs in = new_inputs(&p);
    ((float *)(void *)in.stored)[p.layout == MINILORA_W_KN ? column : column * p.k] = INFINITY;
    outputs out = run(&p, &in, 2);
    for (ptrdiff_t i = 0; i < p.m; i++)
        for (ptrdiff_t j = 0; j < p.n; j++)
            if (isfinite(out.y.at[i * p.n + j]) == (j == column) && fails())
                printf("infinity: y[%td,%td] = %g\n", i, j, (double)out.y.at[i * p.n + j]);
    free_outputs(&out);
    free_inputs(&in);
    cases++;
}

static void check_all_of(ptrdiff_t m, ptrdiff_t n, ptrdiff_t k, ptrdiff_t r)
{
    for (int layout = 0; layout < 2; layout++) {
        const int odd = (int)((m + n + k + r) % 2);
        check((problem){m, n, k, r, layout, odd, !odd, (m + k) % 3, MINILORA_F32});
    }
}

/* Every storage through every path: one row and few, tiles with tails, sums of several blocks. */
static void check_storages(void)
{
    static const struct {
        ptrdiff_t m, n, k, r;
    } sizes[] = {{1, 64, 96, 0}, {1, 70, 32, 4}, {2, 33, 64, 4}, {5, 37, 64, 3}, {17, 96, 32, 4}, {50, 67, 416, 8},
                 {300, 12, 64, 2}, {60, 480, 800, 0}, {0, 32, 32, 1}, {3, 0, 32, 1}, {3, 32, 0, 1}};
    for (int storage = MINILORA_BF16; storage <= MINILORA_Q4_1; storage++)
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
            for (int layout = 0; layout < 2; layout++) {
                problem p = {sizes[i].m, sizes[i].n, sizes[i].k, sizes[i].r, layout, i % 2 == 0, 0, 0, storage};
                if (layout == MINILORA_W_KN) {          /* the other way round, so that lines are whole blocks */
                    p.n = sizes[i].k;
                    p.k = sizes[i].n;
                } else if (storage < MINILORA_Q8_0) {
                    p.k += (ptrdiff_t)i;                /* a line may end anywhere */
                }
                check(p);
            }
}

/* Each kind of case below once or twice: for runs that are slow, or many. */
static void check_few(void)
{
    check_storages();
    check_all_of(0, 5, 5, 1);
    check_all_of(5, 0, 5, 1);
    check_all_of(5, 5, 0, 1);
    check_all_of(3, 5, 0, 0);
    check_all_of(20, 5, 0, 0);
    for (ptrdiff_t m = 1; m <= 15; m++)
        check_all_of(m, 33 + m, 3 + 4 * m, m % 3 * 9);
    check_all_of(45, 65, 50, 17);
    check_all_of(50, 37, 70, 8);
    check_all_of(61, 7, 129, 16);
    check_all_of(20, 20, 769, 16);
    check_all_of(21, 600, 20, 8);
    check_all_of(3, 470, 70, 40);
    check_all_of(2, 4200, 3, 1);
    check_all_of(18, 19, 20, 400);
    check_all_of(49, 20, 400, 8);
    check_all_of(49, 600, 320, 8);
    check_needs((problem){33, 70, 50, 8, 1, 0, 0, 0, MINILORA_F32});
    check_infinity_stays_in_its_column((problem){40, 37, 50, 8, 0, 1, 0, 0, MINILORA_F32});
}

static void check_isa(void)
{
    check_storages();
    static const ptrdiff_t tiny[] = {0, 1, 2, 5}, ranks[] = {0, 1, 8, 16, 17, 40};
    for (size_t a = 0; a < 4; a++)
        for (size_t b = 0; b < 4; b++)
            for (size_t c = 0; c < 4; c++)
                for (size_t d = 0; d < 3; d++)
                    check_all_of(tiny[a], tiny[b], tiny[c], ranks[d]);
    /* Each row count of a tile, around the limits of every path, with tails in each direction. */
    for (ptrdiff_t m = 1; m <= 46; m++)
        check_all_of(m, 65 + m, 3 + 2 * m, ranks[m % 6]);
    /* Each column count. */
    for (ptrdiff_t n = 1; n <= 66; n++)
        check_all_of(20 + n % 2, n, 19, ranks[n % 6]);
    /* Longer than a block in one direction, then in all; r beyond every tile. */
    check_all_of(30, 40, 769, 16);
    check_all_of(30, 1300, 40, 8);
    check_all_of(9, 1300, 400, 8);
    check_all_of(1, 700, 800, 16);
    check_all_of(2, 4200, 3, 1);
    check_all_of(18, 19, 20, 400);
    check_all_of(131, 330, 390, 8);
    check_all_of(400, 65, 33, 130);
    check_all_of(49, 600, 320, 8);
    check_all_of(50, 620, 700, 17);
    for (int layout = 0; layout < 2; layout++) {
        check_needs((problem){33, 70, 50, 8, layout, 0, 0, 0, MINILORA_F32});
        check_needs((problem){3, 70, 50, 20, layout, 0, 0, 0, MINILORA_F32});
        check_infinity_stays_in_its_column((problem){3, 37, 50, 8, layout, 1, 0, 0, MINILORA_F32});
        check_infinity_stays_in_its_column((problem){40, 37, 50, 8, layout, 1, 0, 0, MINILORA_F32});
    }
}

int main(int argc, char **argv)
{
    const int few = argc > 1 && strcmp(argv[1], "few") == 0;
    if (minilora_isa_choose(-1) || minilora_isa_choose(minilora_isa_count()) || minilora_isa_name(-1)) {
        puts("FAIL: an instruction set out of range was accepted");
        failures++;
    }
    return check_every_isa("lora", few ? check_few : check_isa);
}
