/* team.c - share a job among OpenMP threads: one parallel region a job, entered only where that pays. */
#include "internal.h"

#ifdef _OPENMP
#include <omp.h>
#endif

/* Below this cost a parallel region is not worth entering: some 10 microseconds can be won, and on a machine that
 * others use too, milliseconds lost. */
#ifndef MINILORA_SERIAL_WORK
#define MINILORA_SERIAL_WORK 4e6
#endif

void minilora_team(part_function *work, const void *job, double cost, int n_threads)
{
#ifdef _OPENMP
    if (n_threads > 1 && cost >= MINILORA_SERIAL_WORK) {
#pragma omp parallel num_threads(n_threads)
        work(job, omp_get_thread_num(), omp_get_num_threads());
        return;
    }
#endif
    (void)cost;
    (void)n_threads;
    work(job, 0, 1);
}

void minilora_meet(int parts)
{
    (void)parts;
#ifdef _OPENMP
    if (parts > 1) {
#pragma omp barrier
    }
#endif
}
