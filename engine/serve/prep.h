/*
 * prep.h - one thread beside the engine's loop that makes prompts, so
 * that a long one to be rendered and tokenised does not hold up the streams
 * that run.  Jobs come back in the order in which they went.
 *
 * While a job is here its request, prompt and refusal are this thread's, the
 * rest of it the loop's.
 */
#ifndef MOE_SERVE_PREP_H
#define MOE_SERVE_PREP_H

#include <pthread.h>

#include "serve/prompt.h"

struct serve_prep_item {
    struct serve_prep_item *next;
    struct serve_request    request;
    struct serve_prompt     prompt;     /* out */
    struct serve_refusal    refusal;    /* out */
};

struct serve_prep_list {
    struct serve_prep_item  *first;
    struct serve_prep_item **last;
};

struct serve_prep {
    const struct serve_model *model;
    pthread_t       thread;
    pthread_mutex_t lock;       /* over what follows */
    pthread_cond_t  more;
    struct serve_prep_list todo;
    struct serve_prep_list done;
    int             stop;
    int             event;      /* eventfd: something is done; ours alone */
};

int serve_prep_start(struct serve_prep *p, const struct serve_model *m,
                     struct err *e);
/* What is under way is finished, what waits is not; take() has both. */
void serve_prep_stop(struct serve_prep *p);

void serve_prep_submit(struct serve_prep *p, struct serve_prep_item *item);

/* The next item that is done; NULL: none. */
struct serve_prep_item *serve_prep_take(struct serve_prep *p);

#endif /* MOE_SERVE_PREP_H */
