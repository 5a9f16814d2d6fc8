/* minilora.h - the product of a linear layer that carries a low-rank adapter, and its gradients.
 *
 *   forward    hidden  = x . A
 *              y       = x . W + bias + scale * hidden . B
 *
 *   backward   grad_h  = scale * grad . B^T                  (never leaves the workspace)
 *              grad_x  = grad . W^T + grad_h . A^T
 *              grad_A  = x^T . grad_h
 *              grad_B  = scale * hidden^T . grad             (W is frozen: grad_W is never formed)
 *
 * Axes: m rows of x, k input features, n output features, r rank.  r = 0 is the plain linear layer.
 *
 * Rules that hold for every function here
 *   layout      Every matrix is row-major and densely packed float32, aligned to 4 bytes (64 is faster).
 *               W alone may have either memory order, named by w_layout; it is read where it lies
 *               and never copied as a whole.
 *   arguments   Outputs, inputs, workspace, sizes, scalars: in this order.
 *   aliasing    Outputs and workspace overlap nothing.  (The definitions are restrict-qualified; the
 *               declarations are not, because C++ has no such word.)
 *   sizes       ptrdiff_t, never negative; every one may be zero.  A pointer to an array without
 *               elements may be NULL.  An empty sum is zero (or the bias).
 *   ownership   Nothing allocates, prints or exits.  The only state is the chosen instruction set
 *               (end of this file).  The caller owns the workspace and may reuse it for any call
 *               that it is large enough for; two calls at the same time need two of them.
 *   threads     OpenMP, at most n_threads of them (>= 1), fewer where the work is too small to share;
 *               without OpenMP one.  The work is cut into pieces, and every sum is ordered, by the
 *               sizes alone, so the bits of a result do not depend on n_threads.  They may depend
 *               on the instruction set, which decides the width of a vector.
 *               After fork() a child of a process that used more than one thread must pass 1: the
 *               OpenMP runtime's threads did not follow it, and waiting for them never ends.
 *   accuracy    Products are summed in float32, with fused multiply-add where the machine has it.
 *               |computed - exact| <= gamma(t + 2) * S, where t is the number of terms of the sum,
 *               S the sum of their absolute values and gamma(t) = t * eps / (1 - t * eps) with
 *               eps = 2^-24.  For y and grad_x, t = k + r and n + r, and the terms of the low-rank
 *               part inherit the error of hidden and grad_h under the same rule.  Long sums are cut
 *               into blocks by k alone (n for grad_x), so a B of zeros leaves y the bits of r = 0.
 *   NaN, Inf    They propagate as in IEEE arithmetic; an element of the result is a function of its
 *               own row and column only.
 */
#ifndef MINILORA_H
#define MINILORA_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Memory order of W, whose shape is (k, n). */
enum {
    MINILORA_W_KN = 0,          /* row-major (k, n) */
    MINILORA_W_NK = 1           /* row-major (n, k): how most files store a linear layer */
};

/* Bytes of workspace that one forward or backward call of these sizes needs.
 *
 * Grows with m * r, k * r and n_threads; 0.8 MB a thread beyond these. */
size_t minilora_lora_workspace_f32(ptrdiff_t m, ptrdiff_t n, ptrdiff_t k, ptrdiff_t r, int n_threads);

/* y = x . W + bias + scale * (x . A) . B, keeping x . A.
 *
 * y          out  (m, n)
 * hidden     out  (m, r)  x . A, unscaled: the backward pass needs it for grad_B; NULL when r = 0
 * x          in   (m, k)  activations
 * w          in   (k, n)  frozen weight in the memory order w_layout
 * a          in   (k, r)  NULL when r = 0
 * b          in   (r, n)  NULL when r = 0
 * bias       in   (n)     or NULL
 * workspace       minilora_lora_workspace_f32(m, n, k, r, n_threads) bytes, any alignment
 * scale           lora_alpha / r, or lora_alpha / sqrt(r) with rsLoRA
 *
 * Work: 2 * m * (k * n + r * (k + n)) flops; W is read once for small m. */
void minilora_lora_forward_f32(float *y, float *hidden,
                               const float *x, const float *w, const float *a, const float *b,
                               const float *bias, void *workspace,
                               ptrdiff_t m, ptrdiff_t n, ptrdiff_t k, ptrdiff_t r,
                               float scale, int w_layout, int n_threads);

/* The gradients of the forward product, each only where its pointer is not NULL.
 *
 * grad_x     out     (m, k)  or NULL
 * grad_a     out     (k, r)  or NULL
 * grad_b     out     (r, n)  or NULL
 * grad       in      (m, n)  gradient with respect to y
 * x          in      (m, k)  needed for grad_a only, otherwise NULL
 * hidden     in      (m, r)  as forward left it; needed for grad_b only, otherwise NULL
 * w          in      (k, n)  needed for grad_x only, otherwise NULL
 * a          in      (k, r)  needed for grad_x only, otherwise NULL
 * b          in      (r, n)  needed for grad_x and grad_a, otherwise NULL
 * workspace          as above
 * accumulate         0: grad_a and grad_b are overwritten; 1: they are added to (grad_x never is).
 *                    Cutting the rows of a call into several calls that accumulate is how a caller
 *                    keeps each one short.
 *
 * Work: 2 * m * (k * n + 2 * r * (k + n)) flops for all three. */
void minilora_lora_backward_f32(float *grad_x, float *grad_a, float *grad_b,
                                const float *grad, const float *x, const float *hidden,
                                const float *w, const float *a, const float *b, void *workspace,
                                ptrdiff_t m, ptrdiff_t n, ptrdiff_t k, ptrdiff_t r,
                                float scale, int accumulate, int w_layout, int n_threads);

/* What this machine can do at most: the two limits that a benchmark measures kernels against.  The caller keeps the
 * time, and repeats a call until it lasts long enough to be timed.
 *
 * peak_fma   multiply-adds whose operands stay in registers; the work is blocks * 12 * 4096 of them a lane of a vector.
 *            Returns how many flops that were, two a multiply-add.
 * out        in, out (blocks)   in: any finite number below 1e6, such as 0; out: a number of no meaning, positive
 *
 * read       reads a buffer, which costs an addition a float: sums[i] adds MINILORA_READ_CHUNK floats in a row.
 * sums       out (ceil(n / MINILORA_READ_CHUNK))
 * x          in  (n) */
enum { MINILORA_FMA_STEPS = 4096, MINILORA_READ_CHUNK = 16384 };
double minilora_peak_fma_f32(float *out, ptrdiff_t blocks, int n_threads);
void minilora_read_f32(float *sums, const float *x, ptrdiff_t n, int n_threads);

/* Instruction sets.  The sources are compiled once for each, and dispatch.c routes the functions above
 * to the chosen one.  Index 0 is the baseline, which always runs; later ones are faster.  A program
 * that compiles the sources itself for one machine leaves dispatch.c out and has none of these.
 * Choosing is not safe while another thread is inside a function of this library. */
int minilora_isa_count(void);
const char *minilora_isa_name(int index);       /* "baseline", "x86-64-v3", ...; NULL out of range */
int minilora_isa_runs_here(int index);          /* 1 where this processor and its system support it */
int minilora_isa_choose(int index);             /* 1, or 0 and no change where it does not run here */
int minilora_isa_chosen(void);                  /* before any choice: 0 */

const char *minilora_compiler(void);            /* name and version of the compiler of this library */
int minilora_has_openmp(void);                  /* 0: every call uses one thread */

#ifdef __cplusplus
}
#endif
#endif /* MINILORA_H */
