"""The functions of csrc/minilora.h, which is their manual."""

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
