/* team.c - share a job among threads: one team a job, made only where that pays.
 *
 * The team is an OpenMP parallel region; with MINILORA_PTHREADS it is POSIX threads that live as long as the job.
 * A race detector understands these, which it does not the waiting of gcc's OpenMP runtime.
 */
#include "internal.h"

#if defined(MINILORA_PTHREADS)
#include <pthread.h>
#elif defined(_OPENMP)
#include <omp.h>
#endif

/* Below this cost a team is not worth calling together: some 10 microseconds can be won, and on a machine that
 * others use too, milliseconds lost. */
#ifndef MINILORA_SERIAL_WORK
#define MINILORA_SERIAL_WORK 4e6
#endif

#if defined(MINILORA_PTHREADS)

enum { LARGEST_TEAM = 256 };

typedef struct {
    part_function *work;
    const void *job;
    pthread_mutex_t lock;       /* of what follows; held at first until the number of parts is known */
    pthread_cond_t all_met;
    int parts, waiting, meetings;
} team;

typedef struct {
    team *all;
    int part;
    pthread_t thread;
} member;

static _Thread_local team *mine;

static void *run_member(void *argument)
{
    const member *const self = argument;
    mine = self->all;
    pthread_mutex_lock(&mine->lock);
    pthread_mutex_unlock(&mine->lock);
    mine->work(mine->job, self->part, mine->parts);
    return NULL;
}

/* Fewer threads than asked for where the system gives no more. */
static void run_team(part_function *work, const void *job, int n_threads)
{
    team all = {.work = work, .job = job, .lock = PTHREAD_MUTEX_INITIALIZER, .all_met = PTHREAD_COND_INITIALIZER};
    member members[LARGEST_TEAM];
    pthread_mutex_lock(&all.lock);
    for (all.parts = 1; all.parts < smaller(n_threads, LARGEST_TEAM); all.parts++) {
        member *const next = members + all.parts;
        next->all = &all;
        next->part = all.parts;
        if (pthread_create(&next->thread, NULL, run_member, next))
            break;
    }
    pthread_mutex_unlock(&all.lock);
    mine = &all;
    work(job, 0, all.parts);
    for (int part = 1; part < all.parts; part++)
        pthread_join(members[part].thread, NULL);
    pthread_cond_destroy(&all.all_met);
    pthread_mutex_destroy(&all.lock);
}

static void meet_team(void)
{
    pthread_mutex_lock(&mine->lock);
    const int meeting = mine->meetings;
    if (++mine->waiting == mine->parts) {
        mine->waiting = 0;
        mine->meetings++;
        pthread_cond_broadcast(&mine->all_met);
    }
    while (meeting == mine->meetings)
        pthread_cond_wait(&mine->all_met, &mine->lock);
    pthread_mutex_unlock(&mine->lock);
}

#elif defined(_OPENMP)

static void run_team(part_function *work, const void *job, int n_threads)
{
#pragma omp parallel num_threads(n_threads)
    work(job, omp_get_thread_num(), omp_get_num_threads());
}

static void meet_team(void)
{
#pragma omp barrier
}

#else

static void run_team(part_function *work, const void *job, int n_threads)
{
    (void)n_threads;
    work(job, 0, 1);
}

static void meet_team(void) {}

#endif

void minilora_team(part_function *work, const void *job, double cost, int n_threads)
{
    if (n_threads > 1 && cost >= MINILORA_SERIAL_WORK)
        run_team(work, job, n_threads);
    else
        work(job, 0, 1);
}

void minilora_meet(int parts)
{
    if (parts > 1)
        meet_team();
}
