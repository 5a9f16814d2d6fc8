/* test_team.c - a job is cut into parts that are all there, meet where they say so, and leave no thread behind. */
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MINILORA_SUFFIX _baseline
#include "internal.h"

#ifndef _OPENMP
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>
#endif

enum { MOST = 300, ROUNDS = 20 };

typedef struct {
    int *calls;                 /* (parts) how often each part was called */
    int *parts;                 /* (parts) of how many it was told to be one */
    int *rounds;                /* (parts) rounds of meeting that it has finished */
    int *stale;                 /* (parts) how often another part was not where it should be */
} log_of_parts;

/* Each round writes what the next one reads of all others. */
static void meet_often(const void *job, int part, int parts)
{
    const log_of_parts *const log = job;
    log->calls[part]++;
    log->parts[part] = parts;
    for (int round = 1; round <= ROUNDS; round++) {
        log->rounds[part] = round;
        minilora_meet(parts);
        for (int other = 0; other < parts; other++)
            log->stale[part] += log->rounds[other] != round;
        minilora_meet(parts);
    }
}

static int run(double cost, int n_threads, int *team)
{
    int failures = 0;
    int *const memory = calloc(4 * MOST, sizeof *memory);
    if (!memory)
        abort();
    const log_of_parts log = {memory, memory + MOST, memory + 2 * MOST, memory + 3 * MOST};
    minilora_team(meet_often, &log, cost, n_threads);
    *team = log.parts[0];
    for (int part = 0; part < MOST; part++) {
        const int there = part < *team;
        if (log.calls[part] != there || log.parts[part] != there * *team || log.rounds[part] != there * ROUNDS
            || log.stale[part] != 0) {
            printf("FAIL team of %d: part %d was called %d times, met %d times, saw %d stale\n", *team, part,
                   log.calls[part], log.rounds[part], log.stale[part]);
            failures++;
        }
    }
    free(memory);
    return failures;
}

/* Parts cover all items in order, and differ by one at most. */
static int check_part_start(void)
{
    int failures = 0;
    for (ptrdiff_t items = 0; items <= 40; items++)
        for (int parts = 1; parts <= 17; parts++) {
            int wrong = part_start(items, 0, parts) != 0 || part_start(items, parts, parts) != items;
            for (int part = 0; part < parts; part++) {
                const ptrdiff_t size = part_start(items, part + 1, parts) - part_start(items, part, parts);
                wrong |= size < items / parts || size > ceil_div(items, parts);
            }
            if (wrong)
                printf("FAIL part_start: %td items among %d\n", items, parts);
            failures += wrong;
        }
    return failures;
}

#ifndef _OPENMP
/* OpenMP keeps its threads, which a child does not have. Without it there is nothing to wait for. */
static int check_fork(void)
{
    int team, status;
    const pid_t child = fork();
    if (child == 0) {
        alarm(20);
        _exit(run(1e9, 3, &team) != 0);
    }
    if (child < 0 || waitpid(child, &status, 0) != child || status != 0) {
        puts("FAIL: a forked child hangs or computes something else");
        return 1;
    }
    return 0;
}
#endif

int main(void)
{
    int failures = check_part_start(), team, largest = 1;
    for (int n_threads = 1; n_threads <= 5; n_threads++) {
        failures += run(1e9, n_threads, &team);
        largest = team > largest ? team : largest;
        if (team > n_threads && ++failures)
            printf("FAIL: %d threads were allowed, %d came\n", n_threads, team);
        failures += run(-1.0, n_threads, &team);
        if (team != 1 && ++failures)
            printf("FAIL: work too small to share was given to %d threads\n", team);
    }
    failures += run(1e9, MOST, &team);
    if (team > MOST && ++failures)
        printf("FAIL: %d threads were allowed, %d came\n", MOST, team);
#ifndef _OPENMP
    failures += check_fork();
#endif
    printf("team: up to %d of 5 threads, %d failures\n", largest, failures);
    return failures != 0;
}
