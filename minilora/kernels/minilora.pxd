"""The functions of csrc/minilora.h, which is their manual."""

from libc.stdint cimport int64_t

cdef extern from "minilora.h" nogil:
    int MINILORA_W_KN
    int MINILORA_W_NK

    int MINILORA_F32
    int MINILORA_BF16
    int MINILORA_F16
    int MINILORA_Q8_0
    int MINILORA_Q4_0
    int MINILORA_Q4_1

    size_t minilora_lora_workspace_f32(ptrdiff_t m, ptrdiff_t n, ptrdiff_t k, ptrdiff_t r, int n_threads)

    void minilora_lora_forward_f32(float *y, float *hidden,
                                   const float *x, const void *w, const float *a, const float *b,
                                   const float *bias, void *workspace,
                                   ptrdiff_t m, ptrdiff_t n, ptrdiff_t k, ptrdiff_t r,
                                   float scale, int w_layout, int w_storage, int n_threads)

    ctypedef struct minilora_span:
        ptrdiff_t first, count, r
        const float *a
        const float *b
        float *hidden
        float scale

    void minilora_mixed_lora_forward_f32(float *y, const float *x, const void *w, const float *bias,
                                         const minilora_span *spans, void *workspace,
                                         ptrdiff_t m, ptrdiff_t n, ptrdiff_t k, ptrdiff_t n_spans, ptrdiff_t max_r,
                                         int w_layout, int w_storage, int n_threads)

    void minilora_lora_backward_f32(float *grad_x, float *grad_a, float *grad_b,
                                    const float *grad, const float *x, const float *hidden,
                                    const void *w, const float *a, const float *b, void *workspace,
                                    ptrdiff_t m, ptrdiff_t n, ptrdiff_t k, ptrdiff_t r,
                                    float scale, int accumulate, int w_layout, int w_storage, int n_threads)

    size_t minilora_attention_workspace_f32(ptrdiff_t b, ptrdiff_t t, ptrdiff_t s, ptrdiff_t h, ptrdiff_t g,
                                            ptrdiff_t d, ptrdiff_t pairs, int backward, int n_threads)

    void minilora_attention_forward_f32(float *y, float *stats, const float *q, const float *k, const float *v,
                                        const unsigned char *mask, void *workspace,
                                        ptrdiff_t b, ptrdiff_t t, ptrdiff_t s, ptrdiff_t h, ptrdiff_t g, ptrdiff_t d,
                                        ptrdiff_t k_step, ptrdiff_t v_step, ptrdiff_t first, ptrdiff_t last,
                                        ptrdiff_t window, int causal, float scale, int n_threads)

    void minilora_attention_backward_f32(float *grad_q, float *grad_k, float *grad_v, const float *grad,
                                         const float *q, const float *k, const float *v, const float *y,
                                         const float *stats, const unsigned char *mask, void *workspace,
                                         ptrdiff_t b, ptrdiff_t t, ptrdiff_t s, ptrdiff_t h, ptrdiff_t g, ptrdiff_t d,
                                         ptrdiff_t k_step, ptrdiff_t v_step, ptrdiff_t first, ptrdiff_t last,
                                         ptrdiff_t window, int causal, float scale, int n_threads)

    size_t minilora_norm_workspace_f32(ptrdiff_t rows, ptrdiff_t d)

    void minilora_rms_norm_forward_f32(float *y, float *inv_rms, const float *x, const float *weight,
                                       ptrdiff_t rows, ptrdiff_t d, float eps, int n_threads)

    void minilora_rms_norm_backward_f32(float *grad_x, float *grad_weight,
                                        const float *grad, const float *x, const float *inv_rms, const float *weight,
                                        void *workspace, ptrdiff_t rows, ptrdiff_t d, int accumulate, int n_threads)

    void minilora_layer_norm_forward_f32(float *y, float *mean, float *inv_std,
                                         const float *x, const float *weight, const float *bias,
                                         ptrdiff_t rows, ptrdiff_t d, float eps, int n_threads)

    void minilora_layer_norm_backward_f32(float *grad_x, float *grad_weight, float *grad_bias,
                                          const float *grad, const float *x, const float *mean, const float *inv_std,
                                          const float *weight, void *workspace,
                                          ptrdiff_t rows, ptrdiff_t d, int accumulate, int n_threads)

    void minilora_silu_forward_f32(float *y, const float *x, ptrdiff_t n, int n_threads)
    void minilora_silu_backward_f32(float *grad_x, const float *grad, const float *x, ptrdiff_t n, int n_threads)

    void minilora_swiglu_forward_f32(float *y, const float *gate, const float *up, ptrdiff_t n, int n_threads)
    void minilora_swiglu_backward_f32(float *grad_gate, float *grad_up,
                                      const float *grad, const float *gate, const float *up, ptrdiff_t n,
                                      int n_threads)

    void minilora_gelu_forward_f32(float *y, const float *x, ptrdiff_t n, int by_tanh, int n_threads)
    void minilora_gelu_backward_f32(float *grad_x, const float *grad, const float *x, ptrdiff_t n, int by_tanh,
                                    int n_threads)

    void minilora_rotary_f32(float *y, const float *x, const float *cos, const float *sin,
                             ptrdiff_t positions, ptrdiff_t heads, ptrdiff_t half, int back, int n_threads)

    void minilora_embedding_forward_f32(float *y, const float *weight, const int64_t *ids, ptrdiff_t n, ptrdiff_t d,
                                        int n_threads)
    void minilora_embedding_backward_f32(float *grad_weight, const float *grad, const int64_t *ids,
                                         ptrdiff_t n, ptrdiff_t d, int n_threads)

    void minilora_cross_entropy_forward_f32(float *losses, float *peaks, float *others,
                                            const float *logits, const int64_t *labels,
                                            ptrdiff_t m, ptrdiff_t n, int n_threads)

    void minilora_cross_entropy_backward_f32(float *grad_logits,
                                             const float *logits, const float *peaks, const float *others,
                                             const float *factors, const int64_t *labels,
                                             ptrdiff_t m, ptrdiff_t n, int n_threads)

    size_t minilora_linear_cross_entropy_workspace_f32(ptrdiff_t m, ptrdiff_t n, ptrdiff_t k, int n_threads)

    void minilora_linear_cross_entropy_f32(float *losses, float *grad_x, float *grad_w,
                                           const float *x, const void *w, const float *factors,
                                           const int64_t *labels, void *workspace,
                                           ptrdiff_t m, ptrdiff_t n, ptrdiff_t k,
                                           int accumulate, int w_layout, int w_storage, int n_threads)

    void minilora_adamw_f32(float **weights, float **means, float **squares, const float **grads,
                            const float *rates, const float *roots, const ptrdiff_t *sizes, ptrdiff_t count,
                            float keep, float mean_share, float square_keep, float square_share, float eps,
                            int n_threads)

    size_t minilora_square_sum_workspace_f32(const ptrdiff_t *sizes, ptrdiff_t count)
    double minilora_square_sum_f32(const float **arrays, double *workspace, const ptrdiff_t *sizes,
                                   ptrdiff_t count, int n_threads)

    void minilora_scale_f32(float **arrays, const ptrdiff_t *sizes, ptrdiff_t count, float scale, int n_threads)

    int MINILORA_READ_CHUNK

    double minilora_peak_fma_f32(float *out, ptrdiff_t blocks, int n_threads)
    void minilora_read_f32(float *sums, const float *x, ptrdiff_t n, int n_threads)

    int minilora_isa_count()
    const char *minilora_isa_name(int index)
    int minilora_isa_runs_here(int index)
    int minilora_isa_choose(int index)
    int minilora_isa_chosen()

    const char *minilora_compiler()
    int minilora_has_openmp()
