/*
 * worker.h - an engine and its one worker in one process, with real rings
 * between them.  The model is the test's.
 *
 * A test has a static world of its own: where it fails, the thread that makes
 * prompts still waits in it, and would take what is meant for the next one's.
 */
#ifndef MOE_T_WORKER_H
#define MOE_T_WORKER_H

#include <time.h>
#include <unistd.h>

#include "serve/serve.h"

struct world {
    struct serve    s;
    struct channel *c;
    struct ring_memory memory;  /* the worker's */
    struct ring_view   view;
    struct ring_rx     rx;
};


static void
world_open(struct world *w, const struct serve_options *o,
           const struct serve_model *model, uint32_t n_slots)
{
    char     text[RING_TEXT];
    uint64_t n = ring_event_bytes(n_slots, ABI_WINDOW_MIN);

    memset(w, 0, sizeof(*w));
    w->s.o = o;
    w->s.model = model;
    assert_int_equal(serve_step_begin(&w->s, NULL), 0);
    assert_int_equal(serve_prep_start(&w->s.prep, model, NULL), 0);

    w->c = calloc(1, sizeof(*w->c));
    w->c->sock = w->c->bell = -1;
    w->c->slots = calloc(n_slots, sizeof(*w->c->slots));
    w->c->n_slots = n_slots;
    w->c->window_cells = ABI_WINDOW_MIN;
    w->s.channels = w->c;
    w->s.n_channels = 1;

    assert_int_equal(ring_memory_create(&w->memory, 65536, 1, text), 0);
    assert_int_equal(ring_memory_create(&w->c->memory, n, 2, text), 0);
    assert_int_equal(ring_view_open(&w->view, w->c->memory.fd, n, 2, text), 0);
    assert_int_equal(ring_view_open(&w->c->view, w->memory.fd, 65536, 1, text),
                     0);
    ring_tx_init(&w->c->tx, &w->c->memory, &w->c->view);
    ring_rx_init(&w->c->rx, &w->c->memory, &w->c->view, ABI_FRAME_MAX);
    ring_rx_init(&w->rx, &w->memory, &w->view, ABI_EVENT_MAX);
}


/* Nothing is left over. */
static void
world_end(struct world *w)
{
    assert_int_equal(w->c->dead, 0);
    assert_int_equal(kv_pages_free(w->s.kv), kv_pages(w->s.kv));
    assert_int_equal(w->s.n_jobs + w->s.n_preparing, 0);
    assert_int_equal(w->s.n_running + w->s.n_waiting, 0);
    assert_int_equal(w->c->n_in_bytes, 0);

    serve_prep_stop(&w->s.prep);
    close(w->s.prep.event);
    w->s.channels = NULL;
    serve_channel_free(&w->s, w->c);
    serve_step_end(&w->s);
    ring_view_close(&w->view);
    ring_memory_close(&w->memory);
}


/* A request as it came through the ring; what prepares it is not waited for. */
static struct job *
world_ask(struct world *w, uint16_t slot, uint64_t gen, const char *bytes,
          uint32_t n_bytes)
{
    struct job *j = serve_job_begin(&w->s, w->c, slot, gen);

    w->c->slots[slot].gen = gen;
    w->c->slots[slot].job = j;
    serve_job_fragment(&w->s, j, bytes, n_bytes, 0);

    return j;
}


static void
prepare_all(struct world *w)
{
    while (w->s.n_preparing > 0) {
        struct serve_prep_item *item = serve_prep_take(&w->s.prep);

        if (item == NULL) {
            nanosleep(&(struct timespec) { 0, 100000 }, NULL);
            continue;
        }

        serve_job_prepared(&w->s, (struct job *) (void *) item);
    }
}

#endif /* MOE_T_WORKER_H */
