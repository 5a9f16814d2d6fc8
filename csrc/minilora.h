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
 *               W alone may have either memory order, named by w_layout, and another storage,
 *               named by w_storage; it is read where it lies and never copied as a whole.
 *   arguments   Outputs, inputs, workspace, sizes, scalars: in this order.
 *   aliasing    Outputs and workspace overlap nothing.  (The definitions are restrict-qualified; the
 *               declarations are not, because C++ has no such word.)
 *   sizes       ptrdiff_t, never negative; every one may be zero.  A pointer to an array without
 *               elements may be NULL.  An empty sum is zero (or the bias).
 *   ownership   Nothing allocates, prints or exits.  The only state is the chosen instruction set
 *               (end of this file).  The caller owns the workspace and may reuse it for any call
 *               that it is large enough for; two calls at the same time need two of them.
 *   threads     OpenMP, at most n_threads of them (>= 1), fewer where the work is too small to share;
 *               without OpenMP one.  Compiled with MINILORA_PTHREADS, a call starts POSIX threads instead
 *               (256 at most) and joins them: no OpenMP is needed, but each takes some 20 microseconds to
 *               start.  The work is cut into pieces, and every sum is ordered, by the sizes alone, so the
 *               bits of a result do not depend on n_threads.  They may depend on the instruction set,
 *               which decides the width of a vector.
 *   fork        The OpenMP runtime keeps its threads for the next call.  They do not follow a fork(), and
 *               waiting for them never ends: a child whose parent had used more than one thread must
 *               pass n_threads = 1, until it calls exec.  Where a library cannot know who forks, it
 *               passes the smaller of n_threads and a limit that a handler lowers in the child:
 *                   static int limit = INT_MAX;
 *                   static void in_child(void) { limit = 1; }
 *                   pthread_atfork(NULL, NULL, in_child);           (once)
 *               The Python package does just this.  With MINILORA_PTHREADS nothing outlives a call,
 *               and a child may use as many threads as its parent.
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
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Memory order of W, whose shape is (k, n). */
enum {
    MINILORA_W_KN = 0,          /* row-major (k, n) */
    MINILORA_W_NK = 1           /* row-major (n, k): how most files store a linear layer */
};

/* How an element of W is stored.  The last three are GGUF's blocks of 32 neighbours in a row of what is stored, with
 * the scales (half precision) that they share; such a row is a multiple of 32 elements long.  W is decoded
 * piece by piece on its way into the registers, to exactly the numbers that the format defines. */
enum {
    MINILORA_F32 = 0,           /* aligned to 4 bytes; the others need no alignment */
    MINILORA_BF16 = 1,          /* the upper half of a float32 */
    MINILORA_F16 = 2,
    MINILORA_Q8_0 = 3,          /* 34 bytes: d, 32 int8 q;     d q */
    MINILORA_Q4_0 = 4,          /* 18 bytes: d, 16 x 2 q;      d (q - 8) */
    MINILORA_Q4_1 = 5           /* 20 bytes: d, m, 16 x 2 q;   d q + m */
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
 * w          in   (k, n)  frozen weight in the memory order w_layout, stored as w_storage says
 * a          in   (k, r)  NULL when r = 0
 * b          in   (r, n)  NULL when r = 0
 * bias       in   (n)     or NULL
 * workspace       minilora_lora_workspace_f32(m, n, k, r, n_threads) bytes, any alignment
 * scale           lora_alpha / r, or lora_alpha / sqrt(r) with rsLoRA
 *
 * Work: 2 * m * (k * n + r * (k + n)) flops; W is read once for small m. */
void minilora_lora_forward_f32(float *y, float *hidden,
                               const float *x, const void *w, const float *a, const float *b,
                               const float *bias, void *workspace,
                               ptrdiff_t m, ptrdiff_t n, ptrdiff_t k, ptrdiff_t r,
                               float scale, int w_layout, int w_storage, int n_threads);

/* Rows [first, first + count) of a batch whose rows use several adapters, and the adapter that these use. */
typedef struct {
    ptrdiff_t first, count;
    ptrdiff_t r;
    const float *a;             /* (k, r) */
    const float *b;             /* (r, n) */
    float *hidden;              /* out (count, r): x . a of these rows */
    float scale;
} minilora_span;

/* y = x . W + bias, plus each span's scale * (x . a) . b in its own rows: W is read once for all of them.
 *
 * spans      in   n_spans of them, disjoint; rows in none of them use no adapter
 * max_r           the largest r among them
 * workspace       minilora_lora_workspace_f32(m, n, k, max_r, n_threads) bytes
 *
 * The rest as in minilora_lora_forward_f32. */
void minilora_mixed_lora_forward_f32(float *y, const float *x, const void *w, const float *bias,
                                     const minilora_span *spans, void *workspace,
                                     ptrdiff_t m, ptrdiff_t n, ptrdiff_t k, ptrdiff_t n_spans, ptrdiff_t max_r,
                                     int w_layout, int w_storage, int n_threads);

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
                                const void *w, const float *a, const float *b, void *workspace,
                                ptrdiff_t m, ptrdiff_t n, ptrdiff_t k, ptrdiff_t r,
                                float scale, int accumulate, int w_layout, int w_storage, int n_threads);

/* Scaled dot-product attention: for batch entry b, query t and head h of group g = h * G / H
 *
 *   score[s] = scale * q[b,t,h,:] . k[b,s,g,:]               over the keys s that the query sees
 *   y[b,t,h] = sum over s of w[s] * v[b,s,g,:]               w = softmax(score)
 *
 * Axes: b batch entries, t queries, s keys, h heads, g groups (h is a multiple), d components.
 *
 * Query i stands at position s - t + i, so the last query at that of the last key.
 *   causal      0: it sees keys on both sides; otherwise none after its own position.
 *   window      w > 0: it sees w positions back, its own included (and as many ahead, if not causal); 0: all.
 *   mask        (b, s) bytes, zero for keys that no query may see; or NULL.
 * A query that sees no key gives zeros and passes no gradient.  Keys that no query of a block sees are skipped, so
 * a causal call costs half.
 *
 *   memory      No array grows with t * s: the weights exist for some rows and a block of keys at a time, 256 in the
 *               forward pass and 128 in the backward.
 *   k_step      Floats from one batch entry of k to the next, at least s * g * d, so that k may be the used part of
 *   v_step      a longer cache; likewise v.  Inside an entry k and v are (s, g, d), densely packed.
 *   first, last The call computes pairs [first, last) of the b * g pairs of entry and group, counted g fastest, and
 *               writes nothing else.  A caller keeps calls short by that; the bits do not depend on it.
 *   accuracy    With u = 2^-24, Z the largest sum over d of |scale * q * k| for a query, and R the range of its scores:
 *               y is off by at most u (2 (d + 3) Z + 4 R + 14 n + 340) times the sum of w * |v|, where n is the number
 *               of blocks of 128 keys, plus one; a relative error t of an exponent is e^t - 1 once t is not small.
 *               The gradients: see csrc/tests/test_attention.c, which derives all of them.
 *   Weights below e^-87.7 of the largest so far count as zero.  A score of NaN or +inf makes its query's y NaN. */

/* Bytes of workspace that a call over `pairs` pairs needs: of the forward or of the backward pass.
 *
 * Forward at most 0.4 MB a thread at d = 64; backward 0.7 MB, and where b * g is below 8, 8 * s * d bytes for each of
 * the 8 to 14 cuts of the queries, whose grad_k and grad_v are added up at the end. */
size_t minilora_attention_workspace_f32(ptrdiff_t b, ptrdiff_t t, ptrdiff_t s, ptrdiff_t h, ptrdiff_t g, ptrdiff_t d,
                                        ptrdiff_t pairs, int backward, int n_threads);

/* y, and what the backward pass needs of the softmax.
 *
 * y          out  (b, t, h, d)
 * stats      out  (b, t, h, 2)  the largest score of each query, and 1 / the sum of e^(score - largest), or 0 where
 *                               it sees no key; or NULL
 * q          in   (b, t, h, d)
 * k, v       in   (b, s, g, d)  k_step and v_step apart
 * mask       in   (b, s)        or NULL
 * workspace       minilora_attention_workspace_f32(b, t, s, h, g, d, last - first, 0, n_threads) bytes
 *
 * Work: 4 * b * t * s * h * d flops, half of it if causal. */
void minilora_attention_forward_f32(float *y, float *stats, const float *q, const float *k, const float *v,
                                    const unsigned char *mask, void *workspace,
                                    ptrdiff_t b, ptrdiff_t t, ptrdiff_t s, ptrdiff_t h, ptrdiff_t g, ptrdiff_t d,
                                    ptrdiff_t k_step, ptrdiff_t v_step, ptrdiff_t first, ptrdiff_t last,
                                    ptrdiff_t window, int causal, float scale, int n_threads);

/* The gradients, each only where its pointer is not NULL.
 *
 * grad_q         out  (b, t, h, d)  or NULL
 * grad_k, grad_v out  (b, s, g, d)  or NULL; densely packed
 * grad           in   (b, t, h, d)  gradient with respect to y
 * q, k, mask     in                 as in the forward pass
 * v, y           in                 as in the forward pass, y as it left it; needed for grad_q and grad_k only,
 *                                   otherwise NULL
 * stats          in   (b, t, h, 2)  as the forward pass left them
 * workspace           minilora_attention_workspace_f32(b, t, s, h, g, d, last - first, 1, n_threads) bytes
 *
 * Work: 10 * b * t * s * h * d flops for all three, half of it if causal. */
void minilora_attention_backward_f32(float *grad_q, float *grad_k, float *grad_v, const float *grad, const float *q,
                                     const float *k, const float *v, const float *y, const float *stats,
                                     const unsigned char *mask, void *workspace,
                                     ptrdiff_t b, ptrdiff_t t, ptrdiff_t s, ptrdiff_t h, ptrdiff_t g, ptrdiff_t d,
                                     ptrdiff_t k_step, ptrdiff_t v_step, ptrdiff_t first, ptrdiff_t last,
                                     ptrdiff_t window, int causal, float scale, int n_threads);

/* The functions below work on rows or single elements.  They take about as long as their memory traffic, in which they
 * read each input and write each output once; every output array may be large, so let a caller that wants to be
 * interrupted cut the rows.  u = 2^-24 in the bounds; they hold for results that are normal numbers.
 *
 * Bytes of workspace that the backward pass of a norm of these sizes needs. */
size_t minilora_norm_workspace_f32(ptrdiff_t rows, ptrdiff_t d);

/* y = x inv_rms weight, where inv_rms = 1 / sqrt(mean(x²) + eps) of each row.
 *
 * y          out  (rows, d)  within (d + 8) u of itself
 * inv_rms    out  (rows)     for the backward pass
 * x          in   (rows, d)
 * weight     in   (d) */
void minilora_rms_norm_forward_f32(float *y, float *inv_rms, const float *x, const float *weight,
                                   ptrdiff_t rows, ptrdiff_t d, float eps, int n_threads);

/* The gradients of rms_norm, each only where its pointer is not NULL.
 *
 * grad_x       out  (rows, d)  or NULL
 * grad_weight  out  (d)        or NULL
 * grad         in   (rows, d)  gradient with respect to y
 * x            in   (rows, d)
 * inv_rms      in   (rows)     as forward left it
 * weight       in   (d)        needed for grad_x only, otherwise NULL
 * workspace                    minilora_norm_workspace_f32(rows, d) bytes, any alignment; NULL without grad_weight
 * accumulate                   0: grad_weight is overwritten; 1: it is added to */
void minilora_rms_norm_backward_f32(float *grad_x, float *grad_weight,
                                    const float *grad, const float *x, const float *inv_rms, const float *weight,
                                    void *workspace, ptrdiff_t rows, ptrdiff_t d, int accumulate, int n_threads);

/* y = (x - m) inv_std weight + bias, where m is the mean of a row and inv_std = 1 / sqrt(mean((x - m)²) + eps).
 *
 * y              out  (rows, d)
 * mean, inv_std  out  (rows)     for the backward pass; mean is that of x less the row's first element, so that rows
 *                                whose elements differ little keep their digits
 * x              in   (rows, d)
 * weight, bias   in   (d)        ones and zeros where there are none */
void minilora_layer_norm_forward_f32(float *y, float *mean, float *inv_std,
                                     const float *x, const float *weight, const float *bias,
                                     ptrdiff_t rows, ptrdiff_t d, float eps, int n_threads);

/* The gradients of layer_norm, each only where its pointer is not NULL.
 *
 * grad_x              out  (rows, d)  or NULL
 * grad_weight         out  (d)        or NULL
 * grad_bias           out  (d)        or NULL
 * grad                in   (rows, d)  gradient with respect to y
 * x, mean, inv_std    in              as forward took and left them; NULL where only grad_bias is wanted
 * weight              in   (d)        needed for grad_x only, otherwise NULL
 * workspace                           as above; NULL without grad_weight and grad_bias
 * accumulate                          as above */
void minilora_layer_norm_backward_f32(float *grad_x, float *grad_weight, float *grad_bias,
                                      const float *grad, const float *x, const float *mean, const float *inv_std,
                                      const float *weight, void *workspace,
                                      ptrdiff_t rows, ptrdiff_t d, int accumulate, int n_threads);

/* y = x s(x) for n elements, with s(x) = 1 / (1 + e^-x): within 8 u of itself; 0 where e^-x overflows, below -88.7. */
void minilora_silu_forward_f32(float *y, const float *x, ptrdiff_t n, int n_threads);

/* grad_x = grad s(x) (1 + x (1 - s(x))), within 16 u |grad| s(x) (1 + |x|). */
void minilora_silu_backward_f32(float *grad_x, const float *grad, const float *x, ptrdiff_t n, int n_threads);

/* y = gate s(gate) up for n elements; accuracy as above. */
void minilora_swiglu_forward_f32(float *y, const float *gate, const float *up, ptrdiff_t n, int n_threads);

/* The gradients of swiglu, each only where its pointer is not NULL.
 *
 * grad_gate  out  (n)  or NULL
 * grad_up    out  (n)  or NULL
 * grad       in   (n)  gradient with respect to y
 * gate       in   (n)
 * up         in   (n)  needed for grad_gate only, otherwise NULL */
void minilora_swiglu_backward_f32(float *grad_gate, float *grad_up,
                                  const float *grad, const float *gate, const float *up, ptrdiff_t n, int n_threads);

/* y = x P(x) for n elements, P(x) the share of a standard normal variable below x: within 32 u of itself also far below
 * 0; by_tanh, the approximation y = x s(2 sqrt(2 / pi) (x + 0.044715 x³)), in which the exponential multiplies the
 * rounding of its argument. */
void minilora_gelu_forward_f32(float *y, const float *x, ptrdiff_t n, int by_tanh, int n_threads);

/* grad_x = grad dy/dx, for the same choice. */
void minilora_gelu_backward_f32(float *grad_x, const float *grad, const float *x, ptrdiff_t n, int by_tanh,
                                int n_threads);

/* y = [x1 cos - x2 sin | x2 cos + x1 sin], x1 and x2 the halves of each head: rotary position embedding.
 *
 * y         out  (positions, heads, 2 half)
 * x         in   (positions, heads, 2 half)
 * cos, sin  in   (positions, half)
 * back           1: turn by the opposite angle, with -sin, which takes the gradient of y to that of x; 0: as above */
void minilora_rotary_f32(float *y, const float *x, const float *cos, const float *sin,
                         ptrdiff_t positions, ptrdiff_t heads, ptrdiff_t half, int back, int n_threads);

/* y[i] = weight[ids[i]]: rows of a table.
 *
 * y       out  (n, d)
 * weight  in   (v, d)
 * ids     in   (n)     each from 0 to v - 1, which is not checked */
void minilora_embedding_forward_f32(float *y, const float *weight, const int64_t *ids, ptrdiff_t n, ptrdiff_t d,
                                    int n_threads);

/* grad_weight[ids[i]] += grad[i] for each i in turn; ids may repeat.
 *
 * grad_weight  in, out  (v, d)  zeros, or what is to be added to
 * grad         in       (n, d)
 * ids          in       (n)     as above */
void minilora_embedding_backward_f32(float *grad_weight, const float *grad, const int64_t *ids,
                                     ptrdiff_t n, ptrdiff_t d, int n_threads);

/* The loss of a classifier: softmax cross-entropy of rows of logits, -log softmax(logits)[label].
 *
 *   loss         = log sum exp(logits) - logits[label]
 *   grad_logits  = factor * (softmax(logits) - onehot(label))
 *
 * n is the number of classes.  Where the logits of a row are at most R apart, loss and gradient are right to a relative
 * gamma(2 * R + 2060), also where softmax at the label is almost 1 (single sums have up to 1024 terms).
 * A row with NaN or +Inf, or with -Inf alone, has the loss NaN.
 *
 * Of rows of logits: what forward leaves in peaks and others, backward takes.
 *
 * losses       out  (m)     0 where the label is negative: a row that is not counted
 * peaks        out  (m)     the largest logit
 * others       out  (m)     sum exp(logits - peak), without the label's
 * grad_logits  out  (m, n)  0 in rows that are not counted
 * logits       in   (m, n)
 * labels       in   (m)     below n
 * factors      in   (m)     what each loss's gradient is multiplied by
 *
 * Work: one exponential an element in each. */
void minilora_cross_entropy_forward_f32(float *losses, float *peaks, float *others,
                                        const float *logits, const int64_t *labels,
                                        ptrdiff_t m, ptrdiff_t n, int n_threads);
void minilora_cross_entropy_backward_f32(float *grad_logits,
                                         const float *logits, const float *peaks, const float *others,
                                         const float *factors, const int64_t *labels,
                                         ptrdiff_t m, ptrdiff_t n, int n_threads);

/* Bytes of workspace that one call of minilora_linear_cross_entropy_f32 needs: room for the logits of some hundred
 * rows, at most 64 MiB as long as n is below a million, and 0.8 MB a thread.  It never shrinks as m grows. */
size_t minilora_linear_cross_entropy_workspace_f32(ptrdiff_t m, ptrdiff_t n, ptrdiff_t k, int n_threads);

/* The losses of logits = x . W and their gradients, each only where its pointer is not NULL.
 *
 * The (m, n) logits never exist all at once: rows are taken in chunks, by the sizes alone, and the gradient of a
 * chunk's logits replaces them in the workspace.  Rows that are not counted are best left out of x.
 *
 * losses     out  (m)
 * grad_x     out  (m, k)  factor * (softmax - onehot) . W^T, or NULL
 * grad_w     out  (k, n)  x^T . (factor * (softmax - onehot)), row-major whatever w_layout; or NULL
 * x          in   (m, k)
 * w          in   (k, n)  in the memory order w_layout
 * factors    in   (m)     may be NULL where no gradient is wanted
 * labels     in   (m)     in [0, n)
 * workspace               minilora_linear_cross_entropy_workspace_f32(m, n, k, n_threads) bytes, any alignment
 * accumulate              0: grad_w is overwritten; 1: it is added to (grad_x never is)
 *
 * The logits are off by the bound of a product, which the loss inherits.
 * Work: 2 * m * n * k flops, as many again for each gradient, and one exponential for each logit. */
void minilora_linear_cross_entropy_f32(float *losses, float *grad_x, float *grad_w,
                                       const float *x, const void *w, const float *factors, const int64_t *labels,
                                       void *workspace, ptrdiff_t m, ptrdiff_t n, ptrdiff_t k,
                                       int accumulate, int w_layout, int w_storage, int n_threads);

/* What an optimiser does, to `count` arrays in one call: array a has sizes[a] elements.  No array overlaps one that is
 * written, but for those of one parameter's that are read only.
 *
 * One step of AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2), element by element:
 *
 *   mean    = mean + (grad - mean) * mean_share
 *   square  = square * square_keep + grad * grad * square_share
 *   weight  = weight * keep - rate * (mean / (sqrt(square) / root + eps))
 *
 * weights, means, squares  in and out
 * grads                    in
 * rates         in  (count)  lr / (1 - beta1^step); steps may differ between parameters
 * roots         in  (count)  sqrt(1 - beta2^step)
 * keep          1 - lr * weight_decay
 * mean_share    1 - beta1
 * square_keep   beta2
 * square_share  1 - beta2
 *
 * A line is computed as it stands, each operation rounded once or fused with the next. */
void minilora_adamw_f32(float *const *weights, float *const *means, float *const *squares, const float *const *grads,
                        const float *rates, const float *roots, const ptrdiff_t *sizes, ptrdiff_t count,
                        float keep, float mean_share, float square_keep, float square_share, float eps,
                        int n_threads);

/* The sum of the squares of all elements, in double precision; workspace: minilora_square_sum_workspace_f32 bytes. */
size_t minilora_square_sum_workspace_f32(const ptrdiff_t *sizes, ptrdiff_t count);
double minilora_square_sum_f32(const float *const *arrays, double *workspace, const ptrdiff_t *sizes, ptrdiff_t count,
                               int n_threads);

/* Multiply every element by scale, in place. */
void minilora_scale_f32(float *const *arrays, const ptrdiff_t *sizes, ptrdiff_t count, float scale, int n_threads);

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
 * that compiles the sources itself for one machine leaves dispatch.c out and has none of these; build.mk
 * beside this file compiles them for all.
 * Choosing is not safe while another thread is inside a function of this library. */
int minilora_isa_count(void);
const char *minilora_isa_name(int index);       /* "baseline", "x86-64-v3", ...; NULL out of range */
int minilora_isa_runs_here(int index);          /* 1 where this processor and its system support it */
int minilora_isa_choose(int index);             /* 1, or 0 and no change where it does not run here */
int minilora_isa_chosen(void);                  /* before any choice: 0 */

const char *minilora_compiler(void);            /* name and version of the compiler of this library */
int minilora_has_openmp(void);                  /* 0: one thread a call, but for MINILORA_PTHREADS */

#ifdef __cplusplus
}
#endif
#endif /* MINILORA_H */
