"""The functions of csrc/minilora.h, which is their manual."""

from libc.stdint cimport int64_t

cdef extern from "minilora.h" nogil:
    int MINILORA_W_KN
    int MINILORA_W_NK

    size_t minilora_lora_workspace_f32(ptrdiff_t m, ptrdiff_t n, ptrdiff_t k, ptrdiff_t r, int n_threads)

    void minilora_lora_forward_f32(float *y, float *hidden,
                                   const float *x, const float *w, const float *a, const float *b,
                                   const float *bias, void *workspace,
                                   ptrdiff_t m, ptrdiff_t n, ptrdiff_t k, ptrdiff_t r,
                                   float scale, int w_layout, int n_threads)

    void minilora_lora_backward_f32(float *grad_x, float *grad_a, float *grad_b,
                                    const float *grad, const float *x, const float *hidden,
                                    const float *w, const float *a, const float *b, void *workspace,
                                    ptrdiff_t m, ptrdiff_t n, ptrdiff_t k, ptrdiff_t r,
                                    float scale, int accumulate, int w_layout, int n_threads)

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

    int minilora_isa_count()
    const char *minilora_isa_name(int index)
    int minilora_isa_runs_here(int index)
    int minilora_isa_choose(int index)
    int minilora_isa_chosen()

    const char *minilora_compiler()
    int minilora_has_openmp()
