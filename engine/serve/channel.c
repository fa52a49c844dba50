/*
 * channel.c - one worker: its handshake, its pair of rings, its slots.
 *
 * Comes in: a connection of somebody who may be hostile.  Goes out: fragments,
 * cancels and credits of jobs; event frames.  Whoever breaks the contract is
 * detached, and nobody else notices.  Must not know models or text.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

#include "serve/serve.h"

#define CHANNELS_MAX    512
#define FRAMES_PER_PASS 256     /* so that one worker cannot starve others */
#define IN_BYTES_MAX    (64u << 20)     /* unprepared requests of a worker */


void
serve_channel_fault(struct channel *c, const char *why)
{
    if (!c->dead) {
        c->dead = 1;
        log_line(c->slots == NULL ? LOG_LEVEL_INFO : LOG_LEVEL_WARN,
                 "worker %d detached: %s", c->pid, why);
    }
}


static void
refuse(struct channel *c, const char *why)
{
    struct abi_refuse r = {
        .magic = ABI_MAGIC, .message = ABI_REFUSE, .n_bytes = sizeof(r)
    };

    snprintf(r.text, sizeof(r.text), "%s", why);

    /* If it cannot be sent, EOF says nearly as much. */
    (void) ring_send(c->sock, &r, sizeof(r), NULL, 0);

    log_line(LOG_LEVEL_WARN, "worker %d (uid %u) refused: %s", c->pid, c->uid,
             why);
    c->dead = 1;
}


static void
identify(struct channel *c)
{
    struct ucred peer = { 0 };
    socklen_t    n = sizeof(peer);

    if (getsockopt(c->sock, SOL_SOCKET, SO_PEERCRED, &peer, &n) == 0) {
        c->pid = peer.pid;
        c->uid = peer.uid;
    }
}


static int
allowed(const struct serve *s, uint32_t uid)
{
    return s->o->allow_uid < 0 || uid == 0 || uid == geteuid()
           || uid == s->o->allow_uid;
}


int
serve_channel_accept(struct serve *s, int epoll)
{
    int sock = accept4(s->o->listen_fd, NULL, NULL,
                       SOCK_NONBLOCK | SOCK_CLOEXEC);

    if (sock < 0) {
        return errno == EAGAIN || errno == ECONNABORTED || errno == EINTR
               ? 0 : -1;
    }

    struct channel    *c = calloc(1, sizeof(*c));
    struct epoll_event ev = { .events = EPOLLIN, .data.ptr = c };

    if (c == NULL || epoll_ctl(epoll, EPOLL_CTL_ADD, sock, &ev) != 0) {
        free(c);
        close(sock);
        return -1;
    }

    c->sock = sock;
    c->bell = -1;
    c->memory.fd = -1;
    c->since_us = clock_us();
    c->next = s->channels;
    s->channels = c;
    s->n_channels++;
    identify(c);

    if (s->n_channels > CHANNELS_MAX) {
        serve_channel_fault(c, "too many workers");
    }

    return 0;
}


/* Why nobody like that is let in now; NULL: come in. */
static const char *
objection(const struct serve *s, const struct channel *c)
{
    return !allowed(s, c->uid) ? "this user may not use the engine"
           : s->draining ? "the engine is shutting down" : NULL;
}


/* Both memories and the rings over them. */
static int
map(struct channel *c, const struct abi_hello *h, int memory_fd,
    uint64_t generation, char *text)
{
    if (ring_view_open(&c->view, memory_fd, h->request_ring_bytes, h->nonce,
                       text) != 0
        || ring_memory_create(&c->memory, h->event_ring_bytes, generation,
                              text) != 0)
    {
        return -1;
    }

    ring_tx_init(&c->tx, &c->memory, &c->view);
    ring_rx_init(&c->rx, &c->memory, &c->view, ABI_FRAME_MAX);

    c->slots = calloc(h->n_slots, sizeof(*c->slots));

    if (c->slots == NULL) {
        snprintf(text, RING_TEXT, "no memory for %u slots", h->n_slots);
        return -1;
    }

    c->n_slots = h->n_slots;
    c->window_cells = h->window_cells;

    return 0;
}


static int
welcome(struct serve *s, struct channel *c, const struct abi_hello *h,
        uint64_t generation)
{
    const struct model_info *info = model_info(s->model->model);
    struct abi_welcome       w = {
        .magic = ABI_MAGIC,
        .message = ABI_WELCOME,
        .n_bytes = sizeof(w),
        .major = ABI_MAJOR,
        .minor = ABI_MINOR,
        .features = h->features & ABI_FEATURES,
        .generation = generation,
        .created = (uint64_t) info->created,
        .n_ctx_tok = s->model->n_ctx_tok,
        .n_vocab = s->model->n_text,
        .owner = "ngx_moe"
    };

    snprintf(w.model, sizeof(w.model), "%s", s->o->name);
    serve_channel_publish(s, c);

    return ring_send(c->sock, &w, sizeof(w), &c->memory.fd, 1) == RING_OK
           ? 0 : -1;
}


static uint64_t
new_generation(void)
{
    uint64_t g = 0;

    /* 64 random bits: not 0, and not used before. */
    while (g == 0) {
        if (getrandom(&g, sizeof(g), 0) != sizeof(g)) {
            g = 0;
        }
    }

    return g;
}


/* HELLO, with the worker's memory and our end of the bell. */
static void
hello(struct serve *s, struct channel *c, int epoll)
{
    struct abi_hello h;
    int              fds[2];
    char             text[RING_TEXT] = "its bell cannot be watched";
    int              n = ring_recv(c->sock, &h, sizeof(h), fds, 2, text);
    const char      *no = objection(s, c);

    if (n == 0) {
        return;
    }

    if (n < 0) {
        serve_channel_fault(c, text);
        return;
    }

    struct epoll_event ev = { .events = EPOLLIN, .data.ptr = c };
    uint64_t           generation = new_generation();

    c->bell = fds[1];

    if (no != NULL) {
        refuse(c, no);
    } else if (ring_hello_check(&h, (size_t) n, text) != 0
               || ring_bell_check(fds[1], text) != 0
               || map(c, &h, fds[0], generation, text) != 0
               || epoll_ctl(epoll, EPOLL_CTL_ADD, fds[1], &ev) != 0)
    {
        refuse(c, text);
    } else if (welcome(s, c, &h, generation) != 0) {
        /* Its queue is empty, so it cannot be full: the worker is gone. */
        c->dead = 1;
        log_line(LOG_LEVEL_INFO, "worker %d left before its WELCOME", c->pid);
    } else {
        log_line(LOG_LEVEL_INFO, "worker %d (uid %u) attached: %u slots of %u "
                 "cells", c->pid, c->uid, c->n_slots, c->window_cells);
    }

    close(fds[0]);
}


void
serve_channel_socket(struct serve *s, struct channel *c, int epoll)
{
    if (c->dead) {
        return;
    }

    if (c->slots == NULL) {
        hello(s, c, epoll);
        return;
    }

    char    byte;
    ssize_t n = recv(c->sock, &byte, 1, MSG_DONTWAIT | MSG_PEEK);

    /* One source for the socket and the bell: which of them it was does not
     * matter, and neither may be believed to be readable. */
    if (n > 0) {
        serve_channel_fault(c, "it spoke after the handshake");
    } else if (n == 0 || (errno != EAGAIN && errno != EINTR)
               || ring_bell_drain(c->bell) != 0)
    {
        /* A process that exits closes both, in any order. */
        c->dead = 1;
        log_line(LOG_LEVEL_INFO, "worker %d left", c->pid);
    }
}


/* A CREDIT's cells for the slot's job. */
static void
credit(struct serve *s, struct channel *c, struct job *j, const void *p)
{
    struct abi_credit credit;

    memcpy(&credit, p, sizeof(credit));

    if (credit.zero != 0 || credit.n_cells == 0
        || credit.n_cells > c->window_cells - j->credits)
    {
        serve_channel_fault(c, "credit for more than its window");
        return;
    }

    j->credits += credit.n_cells;
    serve_job_flush(s, j);
}


/* What is wrong with a frame's head; NULL: nothing. */
static const char *
frame_fault(const struct channel *c, const struct abi_frame *f)
{
    if (f->slot >= c->n_slots) {
        return "frame for a slot that is not there";
    }

    if (f->gen == 0) {
        return "frame without generation";
    }

    if ((f->flags & ~ABI_MORE) != 0
        || (f->flags != 0 && f->type != ABI_REQUEST))
    {
        return "frame with unknown flags";
    }

    switch (f->type) {
    case ABI_REQUEST:
        return f->n_bytes > 0 ? NULL : "empty REQUEST";
    case ABI_CANCEL:
        return f->n_bytes == 0 ? NULL : "CANCEL with a payload";
    case ABI_CREDIT:
        return f->n_bytes == sizeof(struct abi_credit) ? NULL
               : "CREDIT of a wrong size";
    default:
        return "frame of an unknown type";
    }
}


/* A fragment of a request: the first one of a slot's new use makes a job. */
static void
fragment(struct serve *s, struct channel *c, const struct abi_frame *f,
         const void *p)
{
    struct slot *slot = &c->slots[f->slot];

    if (f->gen > slot->gen) {
        if (slot->job != NULL) {
            serve_channel_fault(c, "slot used again before its end");
            return;
        }

        slot->gen = f->gen;
        slot->job = serve_job_begin(s, c, f->slot, f->gen);
    }

    struct job *j = slot->job;

    if (j != NULL && j->in.n > ABI_REQUEST_MAX - f->n_bytes) {
        serve_channel_fault(c, "REQUEST too large");
        return;
    }

    /* The rest of a request that was refused or cancelled. */
    if (j == NULL || f->gen != slot->gen) {
        c->n_late++;
        return;
    }

    if (j->state != JOB_ASSEMBLING) {
        serve_channel_fault(c, "REQUEST goes on after its end");
        return;
    }

    if (f->n_bytes > IN_BYTES_MAX - c->n_in_bytes) {
        struct serve_refusal why = { .code = 0 };

        err_set(serve_refusal_set(&why, ABI_E_BUSY, ""),
                "too many requests at once are being read");
        why.retry_after_s = 1;
        serve_job_error(s, j, &why);
        return;
    }

    serve_job_fragment(s, j, p, f->n_bytes, f->flags & ABI_MORE);
}


static void
take(struct serve *s, struct channel *c, const struct abi_frame *f,
     const void *p)
{
    const char *fault = frame_fault(c, f);

    if (fault != NULL) {
        serve_channel_fault(c, fault);
        return;
    }

    if (f->type == ABI_REQUEST) {
        fragment(s, c, f, p);
        return;
    }

    struct slot *slot = &c->slots[f->slot];

    if (slot->job == NULL || f->gen != slot->gen) {
        c->n_late++;
        return;
    }

    if (f->type == ABI_CANCEL) {
        serve_job_cancel(s, slot->job);
    } else {
        credit(s, c, slot->job, p);
    }
}


void
serve_channel_read(struct serve *s, struct channel *c)
{
    char             payload[ABI_FRAME_MAX];
    struct abi_frame f;
    int              rc = RING_OK;

    for (int i = 0; i < FRAMES_PER_PASS && !c->dead; i++) {
        rc = ring_get(&c->rx, &f, payload);

        if (rc != RING_OK) {
            break;
        }

        take(s, c, &f, payload);
    }

    if (rc == RING_FAULT) {
        serve_channel_fault(c, "its ring is broken");
    }

    c->more = rc == RING_OK;
    ring_release(&c->rx);
}


void
serve_channel_put(struct channel *c, const struct abi_frame *f,
                  const void *a, size_t n_a, const void *b, size_t n_b)
{
    if (c->dead) {
        return;
    }

    switch (ring_put(&c->tx, f, a, n_a, b, n_b, 0)) {
    case RING_OK:
        break;
    case RING_AGAIN:
        /* Windows and terminals fit by construction: see abi.h, Credits. */
        serve_channel_fault(c, "it gave credit for events it has not taken");
        break;
    default:
        serve_channel_fault(c, "its ring is broken");
    }
}


void
serve_channel_publish(const struct serve *s, struct channel *c)
{
    struct abi_page *page = c->memory.page;
    uint32_t         n_pages = kv_pages(s->kv);

    ring_word_set(&page->state, s->draining ? ABI_STATE_DRAINING
                                            : ABI_STATE_READY);
    ring_word_set(&page->n_running, s->n_running);
    ring_word_set(&page->n_queued, s->n_waiting + s->n_preparing);
    ring_word_set(&page->max_running, s->o->max_seqs);
    ring_word_set(&page->max_queued, s->o->max_queue);
    ring_word_set(&page->kv_pages, n_pages);
    ring_word_set(&page->kv_pages_used, n_pages - kv_pages_free(s->kv));
    ring_word_set(&page->n_prompt_tok, s->counts.prompt_tok);
    ring_word_set(&page->n_output_tok, s->counts.output_tok);
    ring_word_set(&page->n_steps, s->counts.steps);
    ring_word_set(&page->n_queued_tok, s->n_waiting_tok);
    ring_word_set(&page->max_queued_tok, s->o->max_queue_tok);
    ring_word_set(&page->n_prefix_queries_tok, s->counts.prefix_queries_tok);
    ring_word_set(&page->n_prefix_hits_tok, s->counts.prefix_hits_tok);
    ring_word_set(&page->n_preemptions, s->counts.preemptions);
    ring_word_set(&page->heartbeat, ring_word_get(&page->heartbeat) + 1);

    if (ring_publish(&c->tx)) {
        ring_bell_ring(c->bell);
    }
}


int
serve_channel_sleep(struct channel *c)
{
    if (c->more) {
        return 0;
    }

    switch (ring_sleep(&c->rx)) {
    case RING_OK:
        return 1;
    case RING_AGAIN:
        return 0;
    default:
        serve_channel_fault(c, "its ring is broken");
        return 0;
    }
}


void
serve_channel_free(struct serve *s, struct channel *c)
{
    for (uint32_t i = 0; i < c->n_slots; i++) {
        if (c->slots[i].job != NULL) {
            serve_job_lost(s, c->slots[i].job);
        }
    }

    if (c->n_late > 0) {
        log_line(LOG_LEVEL_INFO, "worker %d: %llu late frames", c->pid,
                 (unsigned long long) c->n_late);
    }

    /* Closing takes both out of the epoll set: no copies of them exist. */
    close(c->sock);

    if (c->bell >= 0) {
        close(c->bell);
    }

    ring_view_close(&c->view);
    ring_memory_close(&c->memory);
    free(c->slots);
    free(c);
    s->n_channels--;
}
