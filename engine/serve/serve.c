/*
 * serve.c - the loop: see serve.h.
 */
#include "serve/serve.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#define TICK_MS         100     /* abi_page.heartbeat's promise */
#define HELLO_US        5000000 /* a connection has to say HELLO in */
#define EVENTS_MAX      64

/* Where an event comes from, if not from a channel. */
static char from_listener, from_signals, from_prep;


struct loop {
    int         epoll;
    int         signals;
    uint64_t    tick_us;        /* of the last look at the clock */
    uint64_t    drain_until_us; /* 0: not draining */
    int         deaf;           /* the listener is not watched: no room */
    int         busy;           /* there is more to do: no sleep */
    int         over;
};


static int
watch(struct loop *l, int fd, void *source)
{
    struct epoll_event ev = { .events = EPOLLIN, .data.ptr = source };

    return epoll_ctl(l->epoll, EPOLL_CTL_ADD, fd, &ev);
}


static int
loop_begin(struct loop *l, struct serve *s, struct err *e)
{
    sigset_t mask;

    sigemptyset(&mask);
    sigaddset(&mask, SIGTERM);
    sigaddset(&mask, SIGQUIT);
    sigprocmask(SIG_BLOCK, &mask, NULL);

    l->epoll = epoll_create1(EPOLL_CLOEXEC);
    l->signals = signalfd(-1, &mask, SFD_NONBLOCK | SFD_CLOEXEC);
    l->tick_us = clock_us();

    if (l->epoll < 0 || l->signals < 0
        || watch(l, l->signals, &from_signals) != 0
        || watch(l, s->prep.event, &from_prep) != 0
        || watch(l, s->o->listen_fd, &from_listener) != 0)
    {
        return err_set(e, "epoll: %s", strerror(errno));
    }

    return 0;
}


static void
loop_end(struct loop *l)
{
    if (l->epoll >= 0) {
        close(l->epoll);
    }

    if (l->signals >= 0) {
        close(l->signals);
    }
}


static void
take_signal(struct loop *l, struct serve *s)
{
    struct signalfd_siginfo info;

    if (read(l->signals, &info, sizeof(info)) != sizeof(info)) {
        return;
    }

    if (info.ssi_signo == SIGQUIT) {
        l->over = 1;
    } else if (!s->draining) {
        s->draining = 1;
        l->drain_until_us = clock_us() + s->o->drain_us;
        log_line(LOG_LEVEL_NOTICE, "shutting down: %u requests are open",
                 s->n_running + s->n_waiting + s->n_preparing);
    }
}


/* A worker at the door.  Without descriptors it would stay there and wake us
 * again at once: so nobody looks until the next tick. */
static void
take_worker(struct loop *l, struct serve *s)
{
    if (serve_channel_accept(s, l->epoll) == 0) {
        return;
    }

    log_line(LOG_LEVEL_ERROR, "a worker cannot be taken: %s", strerror(errno));
    epoll_ctl(l->epoll, EPOLL_CTL_DEL, s->o->listen_fd, NULL);
    l->deaf = 1;
}


static void
take_prepared(struct serve *s)
{
    struct serve_prep_item *item;

    while ((item = serve_prep_take(&s->prep)) != NULL) {
        serve_job_prepared(s, (struct job *) (void *) item);
    }
}


static void
wait_for_events(struct loop *l, struct serve *s)
{
    struct epoll_event events[EVENTS_MAX];
    int                n = epoll_wait(l->epoll, events, EVENTS_MAX,
                                      l->busy ? 0 : TICK_MS);

    for (int i = 0; i < n; i++) {
        void *source = events[i].data.ptr;

        if (source == &from_listener) {
            take_worker(l, s);
        } else if (source == &from_signals) {
            take_signal(l, s);
        } else if (source == &from_prep) {
            take_prepared(s);
        } else {
            serve_channel_socket(s, source, l->epoll);
        }
    }
}


static void
take_frames(struct serve *s)
{
    for (struct channel *c = s->channels; c != NULL; c = c->next) {
        if (!c->dead && c->slots != NULL) {
            serve_channel_read(s, c);
        }
    }
}


static void
reap(struct serve *s)
{
    for (struct channel **p = &s->channels; *p != NULL;) {
        struct channel *c = *p;

        if (!c->dead) {
            p = &c->next;
            continue;
        }

        *p = c->next;
        serve_channel_free(s, c);
    }
}


/* What the engine will not wait for any longer. */
static void
end_all(struct serve *s, const char *text)
{
    struct serve_refusal why = { .code = 0 };

    err_set(serve_refusal_set(&why, ABI_E_UNAVAILABLE, ""), "%s", text);
    why.retry_after_s = 1;

    for (struct channel *c = s->channels; c != NULL; c = c->next) {
        for (uint32_t i = 0; i < c->n_slots; i++) {
            if (c->slots[i].job != NULL) {
                serve_job_error(s, c->slots[i].job, &why);
            }
        }
    }
}


static uint32_t
n_open_jobs(const struct serve *s)
{
    return (uint32_t) (s->counts.accepted - s->counts.done - s->counts.error
                       - s->counts.cancelled - s->counts.lost);
}


/* What depends on time alone; looked at about ten times a second. */
static void
tick(struct loop *l, struct serve *s)
{
    uint64_t now = clock_us();

    if (l->drain_until_us != 0
        && (now >= l->drain_until_us || n_open_jobs(s) == 0))
    {
        l->over = 1;
    }

    if (now - l->tick_us < TICK_MS * 1000) {
        return;
    }

    l->tick_us = now;

    if (l->deaf && watch(l, s->o->listen_fd, &from_listener) == 0) {
        l->deaf = 0;
    }

    for (struct channel *c = s->channels; c != NULL; c = c->next) {
        if (c->slots == NULL && now - c->since_us > HELLO_US) {
            serve_channel_fault(c, "it did not say HELLO");
        }
    }
}


/* May the loop sleep?  Each ring is looked at once more. */
static int
may_sleep(struct serve *s)
{
    int all = 1;

    for (struct channel *c = s->channels; c != NULL; c = c->next) {
        if (c->dead) {
            all = 0;
        } else if (c->slots != NULL) {
            all &= serve_channel_sleep(c);
        }
    }

    return all;
}


static void
publish(const struct serve *s)
{
    for (struct channel *c = s->channels; c != NULL; c = c->next) {
        if (!c->dead && c->slots != NULL) {
            serve_channel_publish(s, c);
        }
    }
}


static void
loop_run(struct loop *l, struct serve *s)
{
    while (!l->over) {
        wait_for_events(l, s);
        take_frames(s);

        int ran = serve_step(s);

        tick(l, s);
        publish(s);
        reap(s);
        l->busy = ran || !may_sleep(s);
    }

    end_all(s, "the engine is shutting down");
    publish(s);
}


/* All is over: what is left shows a leak. */
static void
check_balance(const struct serve *s)
{
    const struct serve_counts *n = &s->counts;
    int level = n_open_jobs(s) != 0
                || kv_pages_free(s->kv) != kv_pages(s->kv)
                ? LOG_LEVEL_ERROR : LOG_LEVEL_NOTICE;

    log_line((enum log_level) level, "%llu requests: %llu done, %llu errors, "
             "%llu cancelled, %llu lost; %u open, %u of %u pages free",
             (unsigned long long) n->accepted, (unsigned long long) n->done,
             (unsigned long long) n->error, (unsigned long long) n->cancelled,
             (unsigned long long) n->lost, n_open_jobs(s),
             kv_pages_free(s->kv), kv_pages(s->kv));
}


static void
serve_end(struct serve *s)
{
    serve_prep_stop(&s->prep);

    for (struct channel *c = s->channels; c != NULL; c = c->next) {
        c->dead = 1;
    }

    reap(s);
    take_prepared(s);
    close(s->prep.event);
    check_balance(s);
}


int
serve_run(const struct serve_options *o, const struct serve_model *m,
          struct err *e)
{
    struct serve s = { .o = o, .model = m };
    struct loop  l = { .epoll = -1, .signals = -1 };
    int          rc = -1;

    static_assert(offsetof(struct job, prep) == 0, "an item is a job");

    if (serve_step_begin(&s, e) != 0) {
        goto done;
    }

    if (serve_prep_start(&s.prep, m, e) != 0) {
        goto done;
    }

    if (loop_begin(&l, &s, e) == 0) {
        if (o->ready_fd >= 0 && write(o->ready_fd, "", 1) != 1) {
            log_line(LOG_LEVEL_WARN, "nobody heard that the engine is ready");
        }

        loop_run(&l, &s);
        rc = 0;
    }

    serve_end(&s);

done:

    loop_end(&l);
    serve_step_end(&s);

    return rc;
}
