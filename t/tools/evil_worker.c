/*
 * evil_worker.c - a compromised worker.
 *
 *      evil_worker --socket PATH [--pid PID] [--prompt TEXT] [GROUP ..]
 *
 * It attacks a live engine in every way that the contract leaves to a worker,
 * as TAP, one line an attack with what the engine did.  Groups: handshake,
 * frame, request, flood; all of them if none is named.  An attack passes when
 * the engine did one of what it may do AND serves an honest worker afterwards.
 * With --pid the engine's descriptors are counted at the end.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

#include "channel.h"

/* What may happen. */
#define REFUSED     0x01        /* REFUSE, or the socket was closed */
#define ERROR       0x02        /* an ERROR event */
#define ANSWERED    0x04        /* DONE, or CANCELLED */
#define QUIET       0x08        /* nothing, within half a second */
#define WELCOMED    0x10

#define N_SLOTS     8
#define WINDOW      256

static const char *path, *prompt = "mock tokens=3";
static char said[RING_TEXT];    /* the engine's last words */


static const char *
outcome_name(int outcome)
{
    return outcome == REFUSED ? "detached" : outcome == ERROR ? "error event"
           : outcome == ANSWERED ? "answered" : outcome == QUIET ? "quiet"
           : "welcomed";
}


/* Takes events until one ends slot 0's request. */
static int
outcome_of(struct channel *w, int ms)
{
    static uint8_t payload[ABI_EVENT_MAX];
    struct abi_frame f;
    struct abi_error e;

    for ( ;; ) {
        switch (channel_event(w, &f, payload, ms)) {
        case RING_FAULT:
            return REFUSED;
        case RING_AGAIN:
            return QUIET;
        }
        if (f.type == ABI_DONE || f.type == ABI_CANCELLED) {
            return ANSWERED;
        }
        if (f.type == ABI_ERROR && f.n_bytes >= sizeof(e)) {
            memcpy(&e, payload, sizeof(e));
            snprintf(said, sizeof(said), "%u: %.*s", e.code,
                     e.n_text < 120 ? e.n_text : 120, payload + sizeof(e));
            return ERROR;
        }
    }
}


static int
attach(struct channel *w)
{
    struct abi_hello h = channel_hello(N_SLOTS, WINDOW);

    return channel_attach(w, path, &h, said);
}


/* An honest worker still gets its answer. */
static int
is_alive(void)
{
    struct channel w;

    if (attach(&w) != 0) {
        return 0;
    }
    channel_chat(&w, 0, 1, prompt, 3);
    int outcome = outcome_of(&w, 20000);
    channel_close(&w);

    return outcome == ANSWERED;
}


/* Handshake. */

enum {
    H_NOTHING, H_EMPTY, H_SHORT, H_LONG, H_NO_FDS, H_ONE_FD, H_SURPLUS,
    H_SWAPPED, H_MAGIC, H_MESSAGE, H_MAJOR, H_SLOTS_0, H_SLOTS_MAX, H_WINDOW_0,
    H_WINDOW_MAX, H_RING_ODD, H_RING_SMALL, H_RING_HUGE, H_EVENT,
    H_UNSEALED, H_HALF_SEALED, H_SPARSE, H_SMALL, H_PIPE, H_DISK, H_DEVICE,
    H_NONCE, H_CRC, H_BELL_PIPE, H_BELL_EVENTFD, H_BELL_FILE, H_BELL_SELF,
    H_MINOR, H_FEATURES, H_TWICE
};

static int
bad_memory(int how, size_t n)
{
    int fds[2];
    int all = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL;

    switch (how) {
    case H_PIPE:
        if (pipe2(fds, O_CLOEXEC) == -1) {
            return -1;
        }
        close(fds[1]);
        return fds[0];
    case H_DISK:
        return open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    case H_DEVICE:
        return open("/dev/zero", O_RDWR | O_CLOEXEC);
    }

    int fd = memfd_create("evil", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (fd == -1 || ftruncate(fd, (off_t) n) == -1) {
        return fd;
    }
    if (how != H_SPARSE) {
        (void) !fallocate(fd, 0, 0, (off_t) n);
    }
    if (how == H_HALF_SEALED) {
        fcntl(fd, F_ADD_SEALS, all & ~F_SEAL_FUTURE_WRITE);
    } else if (how != H_UNSEALED) {
        fcntl(fd, F_ADD_SEALS, all);
    }
    return fd;
}


static int
bad_bell(int how)
{
    int fds[2];

    switch (how) {
    case H_BELL_EVENTFD:
        return eventfd(0, EFD_CLOEXEC);
    case H_BELL_FILE:
        return open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    case H_BELL_SELF:
        return socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    default:
        if (pipe2(fds, O_CLOEXEC) == -1) {
            return -1;
        }
        close(fds[1]);
        return fds[0];
    }
}


static void
bad_hello(int how, struct abi_hello *h)
{
    switch (how) {
    case H_MAGIC:       h->magic ^= 1; break;
    case H_MESSAGE:     h->message = ABI_WELCOME; break;
    case H_MAJOR:       h->major++; break;
    case H_MINOR:       h->minor = UINT32_MAX; break;
    case H_FEATURES:    h->features = UINT64_MAX; break;
    case H_SLOTS_0:     h->n_slots = 0; break;
    case H_SLOTS_MAX:   h->n_slots = ABI_SLOTS_MAX + 1; break;
    case H_WINDOW_0:    h->window_cells = ABI_WINDOW_MIN - 1; break;
    case H_WINDOW_MAX:  h->window_cells = UINT32_MAX; break;
    case H_RING_ODD:    h->request_ring_bytes -= ABI_CELL_BYTES; break;
    case H_RING_SMALL:  h->request_ring_bytes = ABI_FRAME_MAX; break;
    case H_RING_HUGE:   h->request_ring_bytes = 1ull << 63; break;
    case H_EVENT:       h->event_ring_bytes *= 2; break;
    case H_NONCE:       h->nonce++; break;
    default:            break;
    }
    if (how == H_SLOTS_0 || how == H_SLOTS_MAX || how == H_WINDOW_0) {
        h->event_ring_bytes = ring_event_bytes(h->n_slots, h->window_cells);
    }
}


static int
attack_handshake(int how)
{
    struct abi_hello h = channel_hello(N_SLOTS, WINDOW);
    struct { struct abi_hello h; char more[64]; } msg = { .h = h };
    struct ring_memory own = { .fd = -1 };
    struct abi_welcome welcome;
    int bell[2], outcome = QUIET;
    int sock = channel_dial(path, said);

    if (sock == -1 || ring_bell_pair(bell) == -1
        || ring_memory_create(&own, h.request_ring_bytes, h.nonce, said) != 0)
    {
        return -1;
    }

    int fds[4] = { own.fd, bell[1], own.fd, own.fd };
    int n_fds = how == H_NO_FDS ? 0 : how == H_ONE_FD ? 1
                : how == H_SURPLUS ? 4 : 2;
    size_t n = how == H_EMPTY ? 0 : how == H_SHORT ? 20
               : how == H_LONG ? sizeof(msg) : sizeof(h);
    int bad = -1, fd = -1;

    bad_hello(how, &msg.h);
    own.page->crc ^= how == H_CRC;
    if ((how >= H_UNSEALED && how <= H_DEVICE)) {
        bad = bad_memory(how, how == H_SMALL ? own.n_bytes / 2 : own.n_bytes);
        fds[0] = bad;
    } else if (how >= H_BELL_PIPE && how <= H_BELL_SELF) {
        bad = bad_bell(how);
        fds[1] = bad;
    } else if (how == H_SWAPPED) {
        fds[0] = bell[1];
        fds[1] = own.fd;
    }

    if (how != H_NOTHING) {
        ring_send(sock, &msg, n, fds, n_fds);
    }
    if (channel_wait(sock, 500)) {
        int rc = ring_recv(sock, &welcome, sizeof(welcome), &fd, 1, said);
        outcome = rc > 0 ? WELCOMED : REFUSED;
    }
    if (how == H_TWICE && outcome == WELCOMED) {
        ring_send(sock, &msg, n, fds, n_fds);
        outcome = channel_wait(sock, 500) ? REFUSED : WELCOMED;
    }

    close(sock);
    close(bell[0]);
    close(bell[1]);
    close(bad);
    close(fd);
    ring_memory_close(&own);
    return outcome;
}


/* Frames and indexes. */

enum {
    F_TYPE, F_EVENT_TYPE, F_SLOT, F_GEN_0, F_FLAGS, F_LENGTH, F_HUGE, F_PAD,
    F_ZERO, F_TAIL_BACK, F_TAIL_FAR, F_TAIL_ODD, F_HEAD_FAR, F_HEAD_ODD,
    F_CANCEL_LONG, F_CREDIT_SHORT, F_CREDIT_OVER, F_CREDIT_MAX, F_REUSED,
    F_MIXED_GEN, F_TOO_LONG, F_CANCEL_PART, F_CREDIT_PART, F_CANCEL_NONE,
    F_CREDIT_NONE, F_CREDIT_ZERO, F_MORE_CANCEL, F_EMPTY_REQUEST
};

/* A frame that ring_put() would never write. */
static void
put_raw(struct channel *w, struct abi_frame f)
{
    memcpy(w->tx.data + (w->tx.tail & (w->tx.n_bytes - 1)), &f, sizeof(f));
    w->tx.tail += ABI_CELL_BYTES;
    channel_publish(w);
}


static void
put_indexes(struct channel *w, int how)
{
    uint64_t *tail = &w->own.page->tail, *head = &w->own.page->head;

    channel_put(w, ABI_CANCEL, 0, 1, NULL, 0);
    usleep(20000);
    switch (how) {
    case F_TAIL_BACK:   ring_word_set(tail, 0); break;
    case F_TAIL_FAR:    ring_word_set(tail, w->tx.n_bytes * 4); break;
    case F_TAIL_ODD:    ring_word_set(tail, w->tx.tail + 7); break;
    case F_HEAD_FAR:    ring_word_set(head, 1ull << 40); break;
    default:            ring_word_set(head, 1); break;
    }
    ring_bell_ring(w->bell);
    if (how >= F_HEAD_FAR) {
        /* The engine looks at head only when its ring seems full. */
        for (uint16_t i = 0; i < N_SLOTS; i++) {
            channel_chat(w, i, 1, "mock tokens=2000", 2000);
        }
    }
}


static int
attack_frame(int how)
{
    static char big[ABI_FRAME_MAX];
    struct abi_frame f = { .n_bytes = 8, .type = ABI_CANCEL, .gen = 1 };
    struct channel w;
    int ms = 500;

    if (attach(&w) != 0) {
        return -1;
    }

    switch (how) {
    case F_TYPE:        f.type = 77; put_raw(&w, f); break;
    case F_EVENT_TYPE:  f.type = ABI_DONE; put_raw(&w, f); break;
    case F_SLOT:        f.slot = N_SLOTS; f.n_bytes = 0; put_raw(&w, f); break;
    case F_GEN_0:       f.gen = 0; f.type = ABI_REQUEST; put_raw(&w, f); break;
    case F_FLAGS:       f.flags = 0xfe; f.type = ABI_REQUEST;
                        put_raw(&w, f); break;
    case F_LENGTH:      f.n_bytes = 100; put_raw(&w, f); break;
    case F_HUGE:        f.n_bytes = UINT32_MAX; put_raw(&w, f); break;
    case F_PAD:         f.type = ABI_PAD; put_raw(&w, f); break;
    case F_ZERO:        memset(&f, 0, sizeof(f)); put_raw(&w, f); break;
    case F_CANCEL_LONG: put_raw(&w, f); break;
    case F_CREDIT_NONE: channel_credit(&w, 3, 9, 5); break;
    case F_CANCEL_NONE: channel_put(&w, ABI_CANCEL, 3, 9, NULL, 0); break;
    case F_CREDIT_SHORT:
        channel_chat(&w, 0, 1, "mock silent", 2000);
        channel_put(&w, ABI_CREDIT, 0, 1, "1234", 4);
        break;
    case F_CREDIT_OVER:
        channel_chat(&w, 0, 1, "mock silent", 2000);
        channel_credit(&w, 0, 1, WINDOW + 1);
        break;
    case F_CREDIT_MAX:
        channel_chat(&w, 0, 1, "mock silent", 2000);
        channel_credit(&w, 0, 1, UINT32_MAX);
        break;
    case F_CREDIT_ZERO:
        channel_chat(&w, 0, 1, prompt, 3);
        channel_credit(&w, 0, 1, 0);
        ms = 5000;
        break;
    case F_REUSED:
        channel_chat(&w, 0, 1, "mock silent", 4000);
        channel_chat(&w, 0, 2, "mock silent", 4000);
        break;
    case F_MIXED_GEN:
        f = (struct abi_frame) { .n_bytes = 8, .type = ABI_REQUEST,
                                 .flags = ABI_MORE, .gen = 1 };
        put_raw(&w, f);
        f.gen = 2;
        put_raw(&w, f);
        break;
    case F_TOO_LONG:
        f = (struct abi_frame) {
            .n_bytes = ABI_FRAME_MAX - sizeof(f), .type = ABI_REQUEST,
            .flags = ABI_MORE, .gen = 1
        };
        for (uint32_t n = 0; n < 2 * ABI_REQUEST_MAX; n += f.n_bytes) {
            while (ring_put(&w.tx, &f, big, f.n_bytes, NULL, 0, 0)
                   == RING_AGAIN && !channel_wait(w.sock, 1))
            {
                channel_publish(&w);
            }
        }
        break;
    case F_CANCEL_PART:
        f = (struct abi_frame) { .n_bytes = 8, .type = ABI_REQUEST,
                                 .flags = ABI_MORE, .gen = 1 };
        put_raw(&w, f);
        channel_put(&w, ABI_CANCEL, 0, 1, NULL, 0);
        break;
    case F_CREDIT_PART:
        f = (struct abi_frame) { .n_bytes = 8, .type = ABI_REQUEST,
                                 .flags = ABI_MORE, .gen = 1 };
        put_raw(&w, f);
        channel_credit(&w, 0, 1, 1);
        break;
    case F_MORE_CANCEL:
        f.n_bytes = 0;
        f.flags = ABI_MORE;
        put_raw(&w, f);
        break;
    case F_EMPTY_REQUEST:
        channel_put(&w, ABI_REQUEST, 0, 1, NULL, 0);
        break;
    default:
        put_indexes(&w, how);
        break;
    }

    int outcome = outcome_of(&w, ms);

    channel_close(&w);
    return outcome;
}


/* Requests: one field of an honest one is changed. */

#define FIELD(f, type, ...) \
    { #f "=" #__VA_ARGS__, offsetof(struct abi_request, f), sizeof(type), \
      &(type) { __VA_ARGS__ } }

static const struct field {
    const char *name;
    size_t      offset;
    size_t      n;
    const void *value;
} fields[] = {
    FIELD(n_bytes, uint32_t, 0), FIELD(n_bytes, uint32_t, UINT32_MAX),
    FIELD(n_bytes, uint32_t, 96), FIELD(kind, uint32_t, 0),
    FIELD(kind, uint32_t, 4), FIELD(kind, uint32_t, UINT32_MAX),
    FIELD(n_choices, uint32_t, 0), FIELD(n_choices, uint32_t, 9),
    FIELD(n_choices, uint32_t, UINT32_MAX), FIELD(given, uint32_t, 0x80),
    FIELD(given, uint32_t, UINT32_MAX), FIELD(flags, uint32_t, 0x20),
    FIELD(flags, uint32_t, UINT32_MAX),
    FIELD(temperature, float, -1), FIELD(temperature, float, 2.5f),
    FIELD(temperature, float, NAN), FIELD(temperature, float, INFINITY),
    FIELD(top_p, float, 0), FIELD(top_p, float, 1.5f),
    FIELD(top_p, float, NAN), FIELD(min_p, float, -0.5f),
    FIELD(min_p, float, 1.5f), FIELD(min_p, float, NAN),
    FIELD(top_k, int32_t, -2), FIELD(top_k, int32_t, INT32_MIN),
    FIELD(presence, float, 2.5f), FIELD(presence, float, NAN),
    FIELD(frequency, float, -2.5f), FIELD(frequency, float, NAN),
    FIELD(repetition, float, 0), FIELD(repetition, float, -1),
    FIELD(repetition, float, NAN), FIELD(repetition, float, INFINITY),
    FIELD(n_top_logprobs, uint32_t, 21),
    FIELD(n_top_logprobs, uint32_t, UINT32_MAX),
    FIELD(n_body, uint32_t, 0), FIELD(n_body, uint32_t, UINT32_MAX),
    FIELD(n_body, uint32_t, UINT32_MAX - 7), FIELD(n_body, uint32_t, 4096),
    FIELD(n_biases, uint32_t, 1), FIELD(n_biases, uint32_t, UINT32_MAX),
    FIELD(n_biases, uint32_t, 0x20000000), FIELD(n_stops, uint32_t, 1),
    FIELD(n_stops, uint32_t, 17), FIELD(n_stops, uint32_t, UINT32_MAX),
    FIELD(n_resumes, uint32_t, 1), FIELD(n_resumes, uint32_t, 2),
    FIELD(n_resumes, uint32_t, UINT32_MAX), FIELD(n_salt, uint32_t, 1),
    FIELD(n_salt, uint32_t, ABI_SALT_MAX + 1),
    FIELD(n_salt, uint32_t, UINT32_MAX), FIELD(n_prompt_top, uint32_t, 21),
    FIELD(trace_flags, uint32_t, 256), FIELD(zero, uint32_t, 1)
};

static const struct body {
    const char *name;
    uint32_t    kind;
    const char *text;
    uint32_t    n;              /* or 0: strlen */
} bodies[] = {
    { "body is no JSON", ABI_CHAT, "{]", 0 },
    { "body is an array", ABI_CHAT, "[]", 0 },
    { "body has no messages", ABI_CHAT, "{}", 0 },
    { "messages is a number", ABI_CHAT, "{\"messages\":5}", 0 },
    { "a message is a number", ABI_CHAT, "{\"messages\":[5]}", 0 },
    { "content is an object", ABI_CHAT,
      "{\"messages\":[{\"role\":\"user\",\"content\":{}}]}", 0 },
    { "role is missing", ABI_CHAT, "{\"messages\":[{\"content\":\"x\"}]}", 0 },
    { "body is not UTF-8", ABI_CHAT,
      "{\"messages\":[{\"role\":\"user\",\"content\":\"\xff\xfe\"}]}", 0 },
    { "body has NUL", ABI_CHAT, "{\"messages\0\":[]}", 16 },
    { "prompt is not UTF-8", ABI_COMPLETION, "\xff\xc0\x80", 0 },
    { "ids outside the vocabulary", ABI_COMPLETION_IDS, "\xff\xff\xff\x7f", 0 },
    { "half an id", ABI_COMPLETION_IDS, "\1\0\0", 3 },
};

#define N_REQUESTS  (int) (BASE_COUNT(fields) + BASE_COUNT(bodies) + 4)


static int
attack_request(int how)
{
    static uint8_t msg[65536];
    struct channel w;
    struct abi_request r;
    static char deep[60000];
    const char *text = "{\"messages\":[{\"role\":\"user\","
                       "\"content\":\"hi\"}]}";
    uint32_t n = (uint32_t) strlen(text);
    int k = how - (int) BASE_COUNT(fields);
    int extra = k - (int) BASE_COUNT(bodies);
    uint32_t kind = ABI_CHAT;

    if (attach(&w) != 0) {
        return -1;
    }
    if (k >= 0 && extra < 0) {
        kind = bodies[k].kind;
        text = bodies[k].text;
        n = bodies[k].n ? bodies[k].n : (uint32_t) strlen(text);
    } else if (extra == 0) {
        memset(deep, '[', sizeof(deep));
        text = deep;
        n = sizeof(deep);
    }

    memset(msg, 0, sizeof(msg));
    r = channel_defaults(kind, n, 4);
    r.given = ABI_GIVEN_ALL;
    uint8_t *p = msg + sizeof(r);

    memcpy(p, text, n);
    p += (n + 7) & ~7u;
    if (extra == 1 || extra == 2) {
        struct abi_bias bias = { extra == 1 ? UINT32_MAX : 5,
                                 extra == 1 ? 1 : NAN };
        memcpy(p, &bias, sizeof(bias));
        r.n_biases = 1;
        r.n_bytes += (uint32_t) sizeof(bias);
    } else if (extra == 3) {
        memset(p, 0xff, 4);                 /* a stop of 4 GiB */
        r.n_stops = 1;
        r.n_bytes += 4;
    }
    n = r.n_bytes;
    memcpy(msg, &r, sizeof(r));
    if (k < 0) {
        memcpy(msg + fields[how].offset, fields[how].value, fields[how].n);
    }

    channel_request(&w, 0, 1, msg, n);
    int outcome = outcome_of(&w, 5000);

    channel_close(&w);
    return outcome;
}


static const char *
request_name(int how)
{
    static const char *const extras[] = {
        "body nests 60,000 deep", "bias for no token", "bias is NaN",
        "stop longer than the request"
    };
    int k = how - (int) BASE_COUNT(fields);

    if (k < 0) {
        return fields[how].name;
    }
    return k < (int) BASE_COUNT(bodies)
           ? bodies[k].name : extras[k - (int) BASE_COUNT(bodies)];
}


/* Floods. */

enum {
    S_CANCELS, S_BELLS, S_DEAF_BELL, S_NO_BELL, S_NO_HEAD, S_WAKE_AT,
    S_RANDOM, S_MUTATE, S_CONNECTS, S_OPEN_CLOSE, S_STALLED
};

/* Random bytes everywhere, and a tail that is possible. */
static void
flood_random(struct channel *w)
{
    uint32_t *p = (uint32_t *) (void *) w->tx.data;

    for (size_t i = 0; i < w->tx.n_bytes / 4; i++) {
        p[i] = (uint32_t) random();
        if (i % 16 == 0) {
            p[i] &= 0x3fff;
        } else if (i % 16 == 1) {           /* type, flags, slot */
            p[i] = (p[i] & 0x00070100) | (16 + p[i] % 3);
        } else if (i % 16 == 2 || i % 16 == 3) {
            p[i] = i % 16 == 2;
        }
    }
    w->tx.tail = w->tx.n_bytes;
    channel_publish(w);
}


/* Frames that change while they are read. */
static void
flood_mutate(struct channel *w)
{
    uint64_t end = clock_us() + 500000;

    channel_chat(w, 0, 1, "mock tokens=10000", 4000);
    while (clock_us() < end) {
        struct abi_frame f = { .type = ABI_CREDIT, .n_bytes = 8, .gen = 1 };
        uint8_t *p = w->tx.data + (w->tx.tail & (w->tx.n_bytes - 1));

        if (channel_put(w, ABI_CREDIT, 0, 1, "\0\0\0\0\0\0\0", 8) != RING_OK) {
            break;
        }
        for (int i = 0; i < 100; i++) {
            f.n_bytes = i & 1 ? 8 : UINT32_MAX - 8;
            memcpy(p, &f, sizeof(f));
            __atomic_signal_fence(__ATOMIC_SEQ_CST);
        }
    }
}


static int
attack_flood(int how)
{
    struct channel w;
    int ms = 1000;

    if (how == S_CONNECTS || how == S_OPEN_CLOSE) {
        int socks[100];
        for (int i = 0; i < 100; i++) {
            socks[i] = channel_dial(path, said);
            if (how == S_OPEN_CLOSE) {
                close(socks[i]);
            }
        }
        for (int i = 0; how == S_CONNECTS && i < 100; i++) {
            close(socks[i]);
        }
        return QUIET;
    }
    if (attach(&w) != 0) {
        return -1;
    }

    switch (how) {
    case S_CANCELS:
        channel_chat(&w, 0, 1, "mock tokens=5000", 5000);
        for (int i = 0; i < 100000; i++) {
            if (channel_put(&w, ABI_CANCEL, (uint16_t) (i % N_SLOTS),
                           (uint64_t) i + 1, NULL, 0) != RING_OK)
            {
                usleep(100);
            }
        }
        break;
    case S_BELLS:
        for (int i = 0; i < 100000; i++) {
            ring_bell_ring(w.bell);
        }
        channel_chat(&w, 0, 1, prompt, 3);
        ms = 10000;
        break;
    case S_DEAF_BELL:                       /* ask for every bell, hear none */
        for (uint16_t i = 0; i < N_SLOTS; i++) {
            channel_chat(&w, i, 1, "mock tokens=200", 200);
        }
        for (int i = 0; i < 1000; i++) {
            ring_word_set(&w.own.page->wake_at,
                          ring_word_get(&w.peer.page->tail));
            usleep(300);
        }
        break;
    case S_NO_BELL:
        shutdown(w.bell, SHUT_RDWR);
        close(w.bell);
        w.bell = -1;
        usleep(100000);
        break;
    case S_NO_HEAD:                         /* credits run ahead of room */
        for (uint16_t i = 0; i < N_SLOTS; i++) {
            channel_chat(&w, i, 1, "mock tokens=100000", 100000);
        }
        for (int i = 0; i < 3000 && !channel_wait(w.sock, 0); i++) {
            channel_credit(&w, (uint16_t) (i % N_SLOTS), 1, 1);
            usleep(100);
        }
        break;
    case S_WAKE_AT:
        channel_chat(&w, 0, 1, "mock tokens=500", 500);
        for (int i = 0; i < 1000; i++) {
            ring_word_set(&w.own.page->wake_at, (uint64_t) random() << 33);
            usleep(100);
        }
        break;
    case S_RANDOM:
        flood_random(&w);
        break;
    case S_MUTATE:
        flood_mutate(&w);
        break;
    default:                                /* takes and returns nothing */
        for (uint16_t i = 0; i < N_SLOTS; i++) {
            channel_chat(&w, i, 1, "mock tokens=100000", 100000);
        }
        usleep(200000);
        break;
    }

    int outcome = outcome_of(&w, ms);

    channel_close(&w);
    return outcome;
}


#define ANY     (REFUSED | ERROR | ANSWERED | QUIET)

static const struct attack {
    const char *group, *name;
    int       (*run)(int how);
    int         how, allowed;
} attacks[] = {
#define H(h, allowed)   { "handshake", #h, attack_handshake, h, allowed }
    H(H_NOTHING, REFUSED | QUIET), H(H_EMPTY, REFUSED), H(H_SHORT, REFUSED),
    H(H_LONG, REFUSED), H(H_NO_FDS, REFUSED), H(H_ONE_FD, REFUSED),
    H(H_SURPLUS, REFUSED), H(H_SWAPPED, REFUSED), H(H_MAGIC, REFUSED),
    H(H_MESSAGE, REFUSED), H(H_MAJOR, REFUSED), H(H_SLOTS_0, REFUSED),
    H(H_SLOTS_MAX, REFUSED), H(H_WINDOW_0, REFUSED), H(H_WINDOW_MAX, REFUSED),
    H(H_RING_ODD, REFUSED), H(H_RING_SMALL, REFUSED), H(H_RING_HUGE, REFUSED),
    H(H_EVENT, REFUSED), H(H_UNSEALED, REFUSED), H(H_HALF_SEALED, REFUSED),
    H(H_SPARSE, REFUSED), H(H_SMALL, REFUSED), H(H_PIPE, REFUSED),
    H(H_DISK, REFUSED), H(H_DEVICE, REFUSED), H(H_NONCE, REFUSED),
    H(H_CRC, REFUSED), H(H_BELL_PIPE, REFUSED), H(H_BELL_EVENTFD, REFUSED),
    H(H_BELL_FILE, REFUSED), H(H_BELL_SELF, REFUSED), H(H_MINOR, WELCOMED),
    H(H_FEATURES, WELCOMED), H(H_TWICE, REFUSED),
#define F(f, allowed)   { "frame", #f, attack_frame, f, allowed }
    F(F_TYPE, REFUSED), F(F_EVENT_TYPE, REFUSED), F(F_SLOT, REFUSED),
    F(F_GEN_0, REFUSED), F(F_FLAGS, REFUSED), F(F_LENGTH, REFUSED),
    F(F_HUGE, REFUSED), F(F_PAD, REFUSED), F(F_ZERO, REFUSED),
    F(F_TAIL_BACK, REFUSED), F(F_TAIL_FAR, REFUSED), F(F_TAIL_ODD, REFUSED),
    F(F_HEAD_FAR, ANY), F(F_HEAD_ODD, ANY), F(F_CANCEL_LONG, REFUSED),
    F(F_CREDIT_SHORT, REFUSED), F(F_CREDIT_OVER, REFUSED),
    F(F_CREDIT_MAX, REFUSED), F(F_REUSED, REFUSED), F(F_MIXED_GEN, REFUSED),
    F(F_TOO_LONG, REFUSED), F(F_CANCEL_PART, REFUSED | ANSWERED),
    F(F_CREDIT_PART, REFUSED | QUIET), F(F_CANCEL_NONE, QUIET),
    F(F_CREDIT_NONE, QUIET), F(F_CREDIT_ZERO, REFUSED | ANSWERED),
    F(F_MORE_CANCEL, REFUSED), F(F_EMPTY_REQUEST, REFUSED | ERROR),
#define S(s, allowed)   { "flood", #s, attack_flood, s, allowed }
    S(S_CANCELS, ANY), S(S_BELLS, ANSWERED), S(S_DEAF_BELL, ANY),
    S(S_NO_BELL, REFUSED), S(S_NO_HEAD, ANY), S(S_WAKE_AT, ANY),
    S(S_RANDOM, REFUSED), S(S_MUTATE, ANY), S(S_CONNECTS, QUIET),
    S(S_OPEN_CLOSE, QUIET), S(S_STALLED, ANY)
};


static int
count_fds(const char *pid)
{
    char name[64];
    int n = 0;

    snprintf(name, sizeof(name), "/proc/%s/fd", pid);
    DIR *dir = opendir(name);

    while (dir && readdir(dir)) {
        n++;
    }
    if (dir) {
        closedir(dir);
    }
    return n;
}


static void
report(const char *group, const char *name, int outcome, int allowed)
{
    static int n;
    char text[RING_TEXT];

    memcpy(text, said, sizeof(text));
    int alive = is_alive();
    int ok = alive && outcome > 0 && (outcome & allowed);

    printf("%sok %d - %s %s: %s%s%s%s\n", ok ? "" : "not ", ++n, group, name,
           outcome < 0 ? "could not attach" : outcome_name(outcome),
           text[0] ? ", " : "", text, alive ? "" : ", serves no more");
    fflush(stdout);
    said[0] = '\0';
}


static int
wanted(const char *group, char **groups, int n)
{
    for (int i = 0; i < n; i++) {
        if (strcmp(group, groups[i]) == 0) {
            return 1;
        }
    }
    return n == 0;
}


int
main(int argc, char **argv)
{
    const char *pid = NULL;
    int i = 1, n = 0;

    for ( ; i + 1 < argc && argv[i][0] == '-'; i += 2) {
        if (strcmp(argv[i], "--socket") == 0) {
            path = argv[i + 1];
        } else if (strcmp(argv[i], "--pid") == 0) {
            pid = argv[i + 1];
        } else if (strcmp(argv[i], "--prompt") == 0) {
            prompt = argv[i + 1];
        }
    }
    if (path == NULL || !is_alive()) {
        fprintf(stderr, "evil_worker: --socket %s: %s\n", path ? path : "?",
                said);
        return 1;
    }
    said[0] = '\0';
    int n_fds = pid ? count_fds(pid) : 0;

    for (size_t k = 0; k < BASE_COUNT(attacks); k++) {
        const struct attack *a = &attacks[k];
        if (wanted(a->group, argv + i, argc - i)) {
            int outcome = a->run(a->how);
            report(a->group, a->name, outcome, a->allowed);
            n++;
        }
    }
    for (int k = 0; k < N_REQUESTS; k++) {
        if (wanted("request", argv + i, argc - i)) {
            int outcome = attack_request(k);
            report("request", request_name(k), outcome, REFUSED | ERROR);
            n++;
        }
    }
    if (pid) {
        int now = n_fds;
        /* Of is_alive()'s channel some may have been left when they were
         * counted before. */
        for (int k = 0; k < 50 && (now = count_fds(pid)) > n_fds; k++) {
            usleep(100000);
        }
        printf("%sok %d - descriptors: %d before, %d after\n",
               now <= n_fds ? "" : "not ", ++n, n_fds, now);
    }
    printf("1..%d\n", n);
    return 0;
}
