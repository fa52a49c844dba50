/*
 * mock_engine.c - an engine without a model, which does what it is told.
 *
 *      mock_engine --socket PATH [--script "WORDS"] [--attach MODE[:N]]
 *                  [--model NAME] [--limit JOBS] [--batch JOBS]
 *                  [--queue JOBS] [--queue-tokens N] [--quiet]
 *
 * It speaks the real rings, for tests of the module alone and for benchmarks.
 * What it does with a request stands in the request's own text behind the last
 * "mock ", up to a quote, a backslash or the end of line, else in --script:
 * mock_script.h lists the words.
 *
 * With --batch the others wait, those of a worker in order of arrival, unless
 * --queue of them do already: then they get an ERROR.
 *
 * --attach MODE does the handshake wrongly, the first N times: attach_names[].
 * SIGUSR1 changes between READY and DRAINING, SIGTERM ends it.  Each attach,
 * request, cancel, end and detach is one line on stderr, unless --quiet.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "mock_job.h"

#define N_WORKERS   256
#define N_PASS      256         /* frames of a worker handled in one pass */

enum {
    ATTACH_REFUSE = 1, ATTACH_SILENT, ATTACH_CLOSE, ATTACH_SHORT,
    ATTACH_LONG, ATTACH_NO_FD, ATTACH_SURPLUS, ATTACH_MAGIC, ATTACH_MAJOR,
    ATTACH_NAME, ATTACH_GENERATION, ATTACH_SIZE, ATTACH_UNSEALED, ATTACH_PIPE,
    ATTACH_CRC
};

static const char *const attach_names[] = {
    "none", "refuse", "silent", "close", "short",
    "long", "no_fd", "surplus", "magic", "major",
    "name", "generation", "size", "unsealed", "pipe",
    "crc", NULL
};

static struct worker *workers[N_WORKERS];
static const char *model_name = "mock";
static unsigned attach_mode, attach_left;
static uint32_t limit = UINT32_MAX, batch = UINT32_MAX, queue, queue_tokens;
static int poller, listener;
static unsigned n_attached;
static volatile sig_atomic_t draining, stopping;


/* Jobs of all workers that run; of the others how many wait, and tokens. */
static uint32_t
count_jobs(uint32_t *n_queued, uint32_t *n_queued_tok)
{
    uint32_t n_running = 0;

    *n_queued = *n_queued_tok = 0;
    for (unsigned i = 0; i < N_WORKERS; i++) {
        struct worker *w = workers[i];
        for (uint32_t k = 0; w != NULL && k < w->n_open; k++) {
            const struct job *j = &w->job[w->open[k]];
            n_running += j->admitted;
            if (j->joined && !j->admitted) {
                (*n_queued)++;
                *n_queued_tok += j->rq.n_body / 4 + 1;
            }
        }
    }
    return n_running;
}


static void
job_admit(struct job *j, uint64_t now)
{
    j->admitted = 1;
    j->due_us = j->s.silent ? NEVER : now + j->s.prefill_ms * 1000ull;
}


static void
job_start(struct worker *w, struct job *j)
{
    memcpy(&j->rq, j->request, j->n_request < sizeof(j->rq) ? j->n_request
                                                            : sizeof(j->rq));
    j->born_us = clock_us();
    j->joined = 1;
    if (j->n_request < sizeof(j->rq) || request_check(j) != 0) {
        say("worker %u: bad request", w->id);
        w->gone = 1;
        return;
    }

    const char *text = (const char *) j->request + sizeof(j->rq);

    script_find(&j->s, text, j->rq.n_body);
    if (j->s.echo) {
        buf_add(&j->reply, text, j->rq.n_body);
        j->s.tokens = 0;
    }
    if (j->s.dump) {
        request_dump(j, &j->reply);
        j->s.tokens = 0;
    }
    if (request_resume(j) != 0) {
        say("worker %u: resumes with other tokens", w->id);
        w->gone = 1;
        return;
    }
    say("request slot=%u gen=%llu bytes=%zu from=%u", (unsigned) (j - w->job),
        (unsigned long long) j->gen, j->n_request, j->n_tok);
    free(j->request);
    j->request = NULL;
    if (batch == UINT32_MAX) {
        job_admit(j, j->born_us);
    }

    uint32_t n_queued = 0, n_queued_tok;

    if (queue > 0) {
        count_jobs(&n_queued, &n_queued_tok);
    }
    if (w->n_open > limit || draining || n_queued > queue) {
        job_end(w, j, ABI_ERROR, draining ? ABI_E_UNAVAILABLE : ABI_E_BUSY);
    }
}


/* Workers. */

static void
worker_request(struct worker *w, const struct abi_frame *f, const uint8_t *p)
{
    struct job *j = &w->job[f->slot];

    if (!j->is_open) {
        j->is_open = 1;
        j->gen = f->gen;
        j->credit = w->window;
        w->open[w->n_open++] = f->slot;
    }
    if (j->gen != f->gen || j->joined
        || j->n_request + f->n_bytes > ABI_REQUEST_MAX)
    {
        say("worker %u: slot %u is in use", w->id, f->slot);
        w->gone = 1;
        return;
    }
    j->request = realloc(j->request, j->n_request + f->n_bytes + 1);
    memcpy(j->request + j->n_request, p, f->n_bytes);
    j->n_request += f->n_bytes;
    if (!(f->flags & ABI_MORE)) {
        job_start(w, j);
    }
}


static void
worker_frame(struct worker *w, const struct abi_frame *f, const uint8_t *p)
{
    struct abi_credit credit;

    size_t n = f->type == ABI_CREDIT ? sizeof(credit) : 0;
    int is_request = f->type == ABI_REQUEST;

    if (f->slot >= w->n_slots || f->gen == 0
        || f->type < ABI_REQUEST || f->type > ABI_CREDIT
        || (f->flags & ~ABI_MORE) || (!is_request && (f->flags
                                                      || f->n_bytes != n)))
    {
        say("worker %u: bad frame type=%u flags=%u slot=%u gen=%llu bytes=%u",
            w->id, f->type, f->flags, f->slot, (unsigned long long) f->gen,
            f->n_bytes);
        w->gone = 1;
        return;
    }
    if (is_request) {
        worker_request(w, f, p);
        return;
    }

    struct job *j = &w->job[f->slot];

    if (!j->is_open || j->gen != f->gen) {
        return;                     /* late, which is normal */
    }
    if (f->type == ABI_CANCEL) {
        say("cancel slot=%u gen=%llu", f->slot, (unsigned long long) f->gen);
        if (!j->s.silent && !j->s.deaf) {
            job_end(w, j, ABI_CANCELLED, 0);
        }
        return;
    }
    memcpy(&credit, p, sizeof(credit));
    if (credit.n_cells > w->window - j->credit || credit.zero != 0) {
        say("worker %u: credit of %u cells over the window", w->id,
            credit.n_cells);
        w->gone = 1;
        return;
    }
    j->credit += credit.n_cells;
    j->blocked = 0;
}


static void
worker_close(unsigned i)
{
    struct worker *w = workers[i];

    say("detach %u open=%u", w->id, w->n_open);
    while (w->n_open > 0) {
        job_close(w, &w->job[w->open[0]]);
    }
    close(w->sock);
    if (w->bell != -1) {
        close(w->bell);
    }
    ring_memory_close(&w->own);
    ring_view_close(&w->peer);
    free(w->job);
    free(w->open);
    free(w);
    workers[i] = NULL;
}


/* Jobs that wait take the places of those that have ended.  Returns when to
 * look again. */
static uint64_t
worker_admit(struct worker *w, uint64_t now)
{
    struct abi_page *page = w->own.page;
    uint32_t n_queued, n_queued_tok;

    if (batch == UINT32_MAX) {
        ring_word_set(&page->n_running, w->n_open);
        return NEVER;
    }

    uint32_t n_running = count_jobs(&n_queued, &n_queued_tok);

    for (uint32_t i = 0; i < w->n_open && n_running < batch; i++) {
        struct job *j = &w->job[w->open[i]];
        if (j->joined && !j->admitted) {
            job_admit(j, now);
            n_running++;
        }
    }
    n_running = count_jobs(&n_queued, &n_queued_tok);
    ring_word_set(&page->n_running, n_running);
    ring_word_set(&page->n_queued, n_queued);
    ring_word_set(&page->n_queued_tok, n_queued_tok);
    return n_queued > 0 ? now + 1000 : NEVER;
}


/* One pass: what came, one step of what runs, one publication, one bell.
 * Returns when the next pass is due. */
static uint64_t
worker_pass(struct worker *w)
{
    static uint8_t payload[ABI_FRAME_MAX];
    struct abi_frame f;
    int rc = RING_OK;

    for (int i = 0; i < N_PASS && !w->gone; i++) {
        rc = ring_get(&w->rx, &f, payload);
        if (rc != RING_OK) {
            break;
        }
        worker_frame(w, &f, payload);
    }
    if (rc == RING_FAULT) {
        say("worker %u: ring fault", w->id);
        w->gone = 1;
    }
    ring_release(&w->rx);

    uint64_t now = clock_us(), due = rc == RING_AGAIN ? NEVER : 0;

    worker_admit(w, now);

    for (uint32_t i = w->n_open; i-- > 0 && !w->gone; ) {
        struct job *j = &w->job[w->open[i]];
        if (j->admitted && !j->blocked && j->due_us <= now) {
            job_step(w, j, now);
        }
        if (j->is_open && j->admitted && !j->blocked && j->due_us < due) {
            due = j->due_us;
        }
    }

    struct abi_page *page = w->own.page;

    ring_word_set(&page->heartbeat, now);
    ring_word_set(&page->state, draining ? ABI_STATE_DRAINING
                                         : ABI_STATE_READY);
    uint64_t again = worker_admit(w, now);

    if (again < due) {
        due = again;
    }
    if (ring_publish(&w->tx) && !w->mute) {
        ring_bell_ring(w->bell);
    }
    return due;
}


/* The handshake. */

static void
watch(int fd, uint32_t events, uint64_t what)
{
    struct epoll_event e = { .events = events, .data.u64 = what };

    if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e) == -1) {
        perror("epoll_ctl");
        exit(1);
    }
}


static void
send_welcome(struct worker *w, const struct abi_hello *h, unsigned mode)
{
    struct { struct abi_welcome w; char more[8]; } m;
    int fds[3] = { w->own.fd, w->own.fd, w->own.fd };
    int n_fds = mode == ATTACH_NO_FD ? 0 : mode == ATTACH_SURPLUS ? 3 : 1;
    size_t n = sizeof(m.w);
    int other[2] = { -1, -1 };

    memset(&m, 0, sizeof(m));
    m.w.magic = mode == ATTACH_MAGIC ? 1 : ABI_MAGIC;
    m.w.message = ABI_WELCOME;
    m.w.n_bytes = sizeof(m.w);
    m.w.major = mode == ATTACH_MAJOR ? ABI_MAJOR + 1 : ABI_MAJOR;
    m.w.minor = ABI_MINOR;
    m.w.features = ABI_FEATURES & h->features;
    m.w.generation = w->generation + (mode == ATTACH_GENERATION);
    m.w.created = 1700000000;
    m.w.n_ctx_tok = 4096;
    m.w.n_vocab = 1000;
    snprintf(m.w.model, sizeof(m.w.model), "%s", model_name);
    snprintf(m.w.owner, sizeof(m.w.owner), "mock");
    if (mode == ATTACH_NAME) {
        memset(m.w.model, 'A', sizeof(m.w.model));
    }
    if (mode == ATTACH_PIPE && pipe2(other, O_CLOEXEC) == 0) {
        fds[0] = other[0];
    }
    if (mode == ATTACH_UNSEALED) {
        fds[0] = other[0] = memfd_create("unsealed", MFD_CLOEXEC
                                                     | MFD_ALLOW_SEALING);
        (void) !ftruncate(other[0], (off_t) w->own.n_bytes);
    }
    n = mode == ATTACH_SHORT ? 100 : mode == ATTACH_LONG ? sizeof(m) : n;

    if (ring_send(w->sock, &m, n, fds, n_fds) != RING_OK) {
        w->gone = 1;
    }
    for (int i = 0; i < 2; i++) {
        if (other[i] != -1) {
            close(other[i]);
        }
    }
}


static void
refuse(struct worker *w, const char *why)
{
    struct abi_refuse r = { .magic = ABI_MAGIC, .message = ABI_REFUSE,
                            .n_bytes = sizeof(r) };

    say("refuse %u: %s", w->id, why);
    snprintf(r.text, sizeof(r.text), "%s", why);
    ring_send(w->sock, &r, sizeof(r), NULL, 0);
    w->gone = 1;
}


static void
worker_hello(struct worker *w, unsigned i)
{
    struct abi_hello h;
    char text[RING_TEXT];
    int fds[2];
    int n = ring_recv(w->sock, &h, sizeof(h), fds, 2, text);

    if (n == 0) {
        return;
    }
    if (n == RING_FAULT) {
        say("worker %u: %s", w->id, text);
        w->gone = 1;
        return;
    }

    unsigned mode = attach_left > 0 ? attach_mode : 0;
    attach_left -= attach_left > 0;
    w->bell = fds[1];

    uint64_t n_event = mode == ATTACH_SIZE ? h.event_ring_bytes / 2
                                           : h.event_ring_bytes;

    if (ring_hello_check(&h, (size_t) n, text) != 0
        || ring_bell_check(fds[1], text) != 0
        || ring_view_open(&w->peer, fds[0], h.request_ring_bytes, h.nonce, text)
           != 0
        || ring_memory_create(&w->own, n_event, w->generation, text) != 0)
    {
        close(fds[0]);
        refuse(w, text);
        return;
    }
    close(fds[0]);

    w->n_slots = h.n_slots;
    w->window = h.window_cells;
    w->job = calloc(w->n_slots, sizeof(*w->job));
    w->open = calloc(w->n_slots, sizeof(*w->open));
    ring_tx_init(&w->tx, &w->own, &w->peer);
    ring_rx_init(&w->rx, &w->own, &w->peer, ABI_FRAME_MAX);
    watch(w->bell, EPOLLIN | EPOLLET, (uint64_t) i << 1 | 1);
    ring_word_set(&w->own.page->state, ABI_STATE_READY);
    ring_word_set(&w->own.page->max_running, batch < limit ? batch : limit);
    ring_word_set(&w->own.page->max_queued, queue);
    ring_word_set(&w->own.page->max_queued_tok, queue_tokens);
    if (mode == ATTACH_CRC) {
        w->own.page->crc ^= 1;
    }

    say("attach %u slots=%u window=%u mode=%s", w->id, w->n_slots, w->window,
        attach_names[mode]);
    switch (mode) {
    case ATTACH_REFUSE:     refuse(w, "told to refuse"); break;
    case ATTACH_CLOSE:      w->gone = 1; break;
    case ATTACH_SILENT:     break;
    default:                send_welcome(w, &h, mode); break;
    }
}


static void
accept_worker(void)
{
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

    for (unsigned i = 0; fd != -1 && i < N_WORKERS; i++) {
        if (workers[i] == NULL) {
            struct worker *w = workers[i] = calloc(1, sizeof(*w));
            w->sock = fd;
            w->bell = -1;
            w->own.fd = -1;
            w->id = ++n_attached;
            w->generation = clock_us() << 8 | (w->id & 0xff);
            watch(fd, EPOLLIN | EPOLLRDHUP, (uint64_t) i << 1);
            return;
        }
    }
    if (fd != -1) {
        close(fd);
    }
}


static void
handle(uint64_t what)
{
    char text[RING_TEXT], byte;
    struct worker *w = what == NEVER ? NULL : workers[what >> 1];

    if (what == NEVER) {
        accept_worker();
    } else if (w == NULL) {
        return;
    } else if (what & 1) {
        if (ring_bell_drain(w->bell) != 0) {
            w->gone = 1;
        }
    } else if (w->bell == -1) {
        worker_hello(w, (unsigned) (what >> 1));
    } else if (ring_recv(w->sock, &byte, 1, NULL, 0, text) != 0) {
        w->gone = 1;
    }
}


/* Passes over all workers; how long there is nothing to do, at most until the
 * next heartbeat. */
static int
pass(void)
{
    uint64_t due = NEVER;

    for (unsigned i = 0; i < N_WORKERS; i++) {
        struct worker *w = workers[i];
        if (w != NULL && w->job != NULL && !w->gone) {
            uint64_t next = worker_pass(w);
            due = next < due ? next : due;
        }
        if (w != NULL && w->gone) {
            worker_close(i);
        }
    }

    uint64_t now = clock_us();

    if (due <= now) {
        return 0;
    }
    for (unsigned i = 0; i < N_WORKERS; i++) {
        struct worker *w = workers[i];
        if (w != NULL && w->job != NULL && ring_sleep(&w->rx) != RING_OK) {
            return 0;
        }
    }
    return due - now > 100000 ? 100 : (int) ((due - now + 999) / 1000);
}


static void
on_drain(int signo)
{
    (void) signo;
    draining = !draining;
}


static void
on_stop(int signo)
{
    (void) signo;
    stopping = 1;
}


static int
listen_at(const char *path)
{
    struct sockaddr_un a = { .sun_family = AF_UNIX };

    if (strlen(path) >= sizeof(a.sun_path)) {
        errno = ENAMETOOLONG;
        return -1;
    }
    strcpy(a.sun_path, path);
    unlink(path);

    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd == -1 || bind(fd, (struct sockaddr *) &a, sizeof(a)) == -1
        || listen(fd, 64) == -1)
    {
        return -1;
    }
    return fd;
}


int
main(int argc, char **argv)
{
    const char *path = NULL;

    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";
        if (strcmp(argv[i], "--quiet") == 0) {
            quiet = 1;
            continue;
        } else if (strcmp(argv[i], "--socket") == 0) {
            path = value;
        } else if (strcmp(argv[i], "--script") == 0) {
            script_parse(&defaults, value, strlen(value));
        } else if (strcmp(argv[i], "--model") == 0) {
            model_name = value;
        } else if (strcmp(argv[i], "--limit") == 0) {
            limit = (uint32_t) atoi(value);
        } else if (strcmp(argv[i], "--batch") == 0) {
            batch = (uint32_t) atoi(value);
        } else if (strcmp(argv[i], "--queue") == 0) {
            queue = (uint32_t) atoi(value);
        } else if (strcmp(argv[i], "--queue-tokens") == 0) {
            queue_tokens = (uint32_t) atoi(value);
        } else if (strcmp(argv[i], "--attach") == 0) {
            size_t n = strcspn(value, ":");
            attach_left = value[n] ? (unsigned) atoi(value + n + 1)
                                   : UINT32_MAX;
            for (unsigned k = 1; attach_names[k]; k++) {
                if (strlen(attach_names[k]) == n
                    && memcmp(attach_names[k], value, n) == 0)
                {
                    attach_mode = k;
                }
            }
        } else {
            fprintf(stderr, "mock_engine: unknown %s\n", argv[i]);
            return 2;
        }
        i++;
    }

    signal(SIGPIPE, SIG_IGN);
    signal(SIGUSR1, on_drain);
    signal(SIGTERM, on_stop);
    signal(SIGINT, on_stop);
    poller = epoll_create1(EPOLL_CLOEXEC);
    listener = path ? listen_at(path) : -1;
    if (listener == -1) {
        fprintf(stderr, "mock_engine: --socket %s: %s\n", path ? path : "?",
                strerror(errno));
        return 1;
    }
    watch(listener, EPOLLIN, NEVER);
    say("ready");

    while (!stopping) {
        struct epoll_event events[64];
        int n = epoll_wait(poller, events, 64, pass());

        for (int i = 0; i < n; i++) {
            handle(events[i].data.u64);
        }
    }

    for (unsigned i = 0; i < N_WORKERS; i++) {
        if (workers[i] != NULL) {
            worker_close(i);
        }
    }
    unlink(path);
    return 0;
}
