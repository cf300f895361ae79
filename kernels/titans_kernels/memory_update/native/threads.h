/* Rows and heads in whatever order threads come to them; what one gives does not depend on it. */

#include <pthread.h>
#include <stdatomic.h>

typedef void Run(const void *call, char *workspace, atomic_long *next);

typedef struct {
    Run *run;
    const void *call;
    char *workspace;
    int64_t each; /* bytes of workspace of one thread */
    atomic_long threads, next;
} Share;

static void take_part(void *given)
{
    Share *share = given;
    char *workspace = share->workspace + atomic_fetch_add(&share->threads, 1) * share->each;
    share->run(share->call, workspace, &share->next);
}

static void *take_part_alone(void *given)
{
    take_part(given);
    return NULL;
}

#ifdef __linux__
/* Torch's own threads, where they are GNU's: still awake from the call before. */
extern void GOMP_parallel(void (*)(void *), void *, unsigned, unsigned) __attribute__((weak));
#define TEAM GOMP_parallel
#else
#define TEAM ((void (*)(void (*)(void *), void *, unsigned, unsigned))NULL)
#endif

/* A long run starts threads of its own, which sleep where they wait; where one cannot be started, the others
do its part. A brief one is over before new threads could begin. */
static void over_rows(const void *call, int64_t rows, int64_t wanted, int brief, Run *run, char *workspace,
    int64_t each)
{
    Share share = {run, call, workspace, each, 0, 0};
    pthread_t threads[64];
    long started = 0, most = least(least(wanted, 64), rows);
    if (brief && TEAM && most > 1) {
        TEAM(take_part, &share, (unsigned)most, 0);
        return;
    }
    while (started < most - 1 && pthread_create(&threads[started], NULL, take_part_alone, &share) == 0)
        started++;
    take_part(&share);
    while (started > 0)
        pthread_join(threads[--started], NULL);
}
