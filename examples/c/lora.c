/* lora.c - a low-rank linear layer, forward and backward, without Python.
 *
 *   lora [M K N R]       rows, input features, output features, rank: 2 4 3 1 where none are given
 *
 * Computes y = x . W + bias + scale * (x . A) . B and the gradients of x, A and B once with W stored row by row (k, n),
 * and once as most files store it (n, k), and prints them.  Numbers in place of data: small, and exact in binary.
 */
#include "minilora.h"

#include <stdio.h>
#include <stdlib.h>

/* A row-major matrix of numbers between -1 and 1 that look random; each `seed` has its own. */
static float *new_matrix(ptrdiff_t rows, ptrdiff_t cols, unsigned seed)
{
    float *const made = malloc((size_t)(rows * cols) * sizeof *made + 1);
    if (!made) {
        fputs("lora: out of memory\n", stderr);
        exit(1);
    }
    for (ptrdiff_t i = 0; i < rows * cols; i++)
        made[i] = (float)(((unsigned)i * 37 + seed * 11) % 101) / 64 - 0.78125f;
    return made;
}

static void print_matrix(const char *name, const float *matrix, ptrdiff_t rows, ptrdiff_t cols)
{
    printf("%s %td %td\n", name, rows, cols);
    for (ptrdiff_t i = 0; i < rows; i++) {
        for (ptrdiff_t j = 0; j < cols; j++)
            printf(" %.9g", (double)matrix[i * cols + j]);
        putchar('\n');
    }
}

static void run(ptrdiff_t m, ptrdiff_t k, ptrdiff_t n, ptrdiff_t r, int w_layout)
{
    const float scale = 2.0f;           /* lora_alpha / r */
    const int n_threads = 2;
    float *const x = new_matrix(m, k, 1), *const w = new_matrix(k, n, 2), *const bias = new_matrix(1, n, 3);
    float *const a = new_matrix(k, r, 4), *const b = new_matrix(r, n, 5), *const grad = new_matrix(m, n, 6);
    float *const y = new_matrix(m, n, 0), *const hidden = new_matrix(m, r, 0);
    float *const grad_x = new_matrix(m, k, 0), *const grad_a = new_matrix(k, r, 0), *const grad_b = new_matrix(r, n, 0);
    float *const turned_w = new_matrix(n, k, 0);
    for (ptrdiff_t i = 0; i < k; i++)
        for (ptrdiff_t j = 0; j < n; j++)
            turned_w[j * k + i] = w[i * n + j];
    const float *const stored_w = w_layout == MINILORA_W_NK ? turned_w : w;

    /* The library allocates nothing: one workspace, as large as it says, does for any call of these sizes. */
    void *const workspace = malloc(minilora_lora_workspace_f32(m, n, k, r, n_threads));
    if (!workspace) {
        fputs("lora: out of memory\n", stderr);
        exit(1);
    }
    minilora_lora_forward_f32(y, hidden, x, stored_w, a, b, bias, workspace, m, n, k, r, scale, w_layout,
                              MINILORA_F32, n_threads);
    minilora_lora_backward_f32(grad_x, grad_a, grad_b, grad, x, hidden, stored_w, a, b, workspace,
                               m, n, k, r, scale, 0, w_layout, MINILORA_F32, n_threads);

    printf("W is stored as (%s)\n", w_layout == MINILORA_W_NK ? "n, k" : "k, n");
    print_matrix("y", y, m, n);
    print_matrix("grad_x", grad_x, m, k);
    print_matrix("grad_a", grad_a, k, r);
    print_matrix("grad_b", grad_b, r, n);
    float *const all[] = {x, w, bias, a, b, grad, y, hidden, grad_x, grad_a, grad_b, turned_w};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
    free(workspace);
}

int main(int argc, char **argv)
{
    ptrdiff_t sizes[4] = {2, 4, 3, 1};
    if (argc != 1 && argc != 5) {
        fputs("lora [M K N R]\n", stderr);
        return 2;
    }
    for (int i = 1; i < argc; i++)
        sizes[i - 1] = strtol(argv[i], NULL, 10);
    for (int i = 0; i < 4; i++)
        if (sizes[i] < 0 || sizes[i] > 10000) {
            fputs("lora: sizes are 0 to 10000\n", stderr);
            return 2;
        }
#ifndef ONE_INSTRUCTION_SET
    /* The last instruction set that runs here is the fastest; without this, the slowest would be used. */
    for (int isa = minilora_isa_count() - 1; !minilora_isa_choose(isa);)
        isa--;
    printf("%s, %s\n", minilora_isa_name(minilora_isa_chosen()), minilora_has_openmp() ? "OpenMP" : "no OpenMP");
#endif
    run(sizes[0], sizes[1], sizes[2], sizes[3], MINILORA_W_KN);
    run(sizes[0], sizes[1], sizes[2], sizes[3], MINILORA_W_NK);
    return 0;
}
