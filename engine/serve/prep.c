/*
 * prep.c - see serve/prep.h.
 */
#include "serve/prep.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>


static void
list_init(struct serve_prep_list *l)
{
    l->first = NULL;
    l->last = &l->first;
}


static void
list_put(struct serve_prep_list *l, struct serve_prep_item *item)
{
    item->next = NULL;
    *l->last = item;
    l->last = &item->next;
}


static struct serve_prep_item *
list_take(struct serve_prep_list *l)
{
    struct serve_prep_item *item = l->first;

    if (item != NULL) {
        l->first = item->next;

        if (l->first == NULL) {
            l->last = &l->first;
        }
    }

    return item;
}


static void *
prep_main(void *arg)
{
    struct serve_prep *p = arg;

    pthread_mutex_lock(&p->lock);

    while (!p->stop) {
        struct serve_prep_item *item = list_take(&p->todo);

        if (item == NULL) {
            pthread_cond_wait(&p->more, &p->lock);
            continue;
        }

        pthread_mutex_unlock(&p->lock);

        (void) serve_prompt_make(p->model, &item->request, &item->prompt,
                                 &item->refusal);

        pthread_mutex_lock(&p->lock);
        list_put(&p->done, item);

        /* The counter cannot fill: the loop reads it. */
        (void) eventfd_write(p->event, 1);
    }

    pthread_mutex_unlock(&p->lock);

    return NULL;
}


int
serve_prep_start(struct serve_prep *p, const struct serve_model *m,
                 struct err *e)
{
    sigset_t all, old;

    memset(p, 0, sizeof(*p));
    p->model = m;
    list_init(&p->todo);
    list_init(&p->done);
    p->event = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);

    if (p->event < 0) {
        return err_set(e, "eventfd: %s", strerror(errno));
    }

    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->more, NULL);

    /* Signals are the loop's. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int rc = pthread_create(&p->thread, NULL, prep_main, p);
    pthread_sigmask(SIG_SETMASK, &old, NULL);

    if (rc != 0) {
        close(p->event);
        return err_set(e, "prompt thread: %s", strerror(rc));
    }

    return 0;
}


void
serve_prep_stop(struct serve_prep *p)
{
    pthread_mutex_lock(&p->lock);
    p->stop = 1;
    pthread_cond_signal(&p->more);
    pthread_mutex_unlock(&p->lock);
    pthread_join(p->thread, NULL);

    struct serve_prep_item *item;

    while ((item = list_take(&p->todo)) != NULL) {
        list_put(&p->done, item);
    }
}


void
serve_prep_submit(struct serve_prep *p, struct serve_prep_item *item)
{
    pthread_mutex_lock(&p->lock);
    list_put(&p->todo, item);
    pthread_cond_signal(&p->more);
    pthread_mutex_unlock(&p->lock);
}


struct serve_prep_item *
serve_prep_take(struct serve_prep *p)
{
    eventfd_t ignored;

    (void) eventfd_read(p->event, &ignored);

    pthread_mutex_lock(&p->lock);
    struct serve_prep_item *item = list_take(&p->done);
    pthread_mutex_unlock(&p->lock);

    return item;
}
