/*
 * The ring over plain memory, in which AddressSanitizer sees each byte out of
 * place.  Small rings are enumerated whole: every position, every fill, every
 * length, against an oracle that counts cells; positions also around 2^64.
 */
#include "engine/ring.c"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#define CELL    ((uint64_t) ABI_CELL_BYTES)

struct pair {
    struct ring_memory  a, b;       /* a's ring is used, b consumes */
    struct ring_view    view_a, view_b;
    struct ring_tx      tx;
    struct ring_rx      rx;
};


/* Exactly the bytes of a memfd: one more is an error under ASan. */
static void
memory_init(struct ring_memory *m, struct ring_view *v, uint64_t n_bytes)
{
    m->n_bytes = ABI_PAGE_BYTES + n_bytes;
    m->page = aligned_alloc(64, m->n_bytes);
    assert_non_null(m->page);
    memset(m->page, 0, m->n_bytes);
    m->fd = -1;
    v->page = m->page;
    v->n_bytes = m->n_bytes;
}


static void
pair_init(struct pair *p, uint64_t n_bytes, uint32_t frame_max)
{
    memory_init(&p->a, &p->view_a, n_bytes);
    memory_init(&p->b, &p->view_b, n_bytes);
    ring_tx_init(&p->tx, &p->a, &p->view_b);
    ring_rx_init(&p->rx, &p->b, &p->view_a, frame_max);
}


static void
pair_free(struct pair *p)
{
    free(p->a.page);
    free(p->b.page);
}


/* As if all before `head` were given back, and all before `tail` taken. */
static void
pair_set(struct pair *p, uint64_t head, uint64_t tail)
{
    p->tx.head = head;
    p->tx.tail = p->tx.published = tail;
    p->rx.head = p->rx.tail = tail;
    p->a.page->tail = tail;
    p->b.page->head = head;
    p->b.page->wake_at = head - CELL;
}


static void
fill(uint8_t *p, size_t n, unsigned seed)
{
    for (size_t i = 0; i < n; i++) {
        p[i] = (uint8_t) (seed + i * 7 + (i >> 8));
    }
}


/* Puts one frame at tail and demands what counting says. */
static void
check_put_get(struct pair *p, uint64_t head, uint64_t tail, uint32_t n,
              uint32_t keep)
{
    static uint8_t payload[1024];
    uint64_t size = p->tx.n_bytes;
    uint64_t cells = (n + sizeof(struct abi_frame) + CELL - 1) / CELL;
    uint64_t to_end = (size - tail % size) / CELL;
    uint64_t pad = cells > to_end ? to_end : 0;
    uint64_t room = (size - (tail - head)) / CELL;
    struct abi_frame f = { .n_bytes = n, .type = ABI_DELTA,
                           .slot = (uint16_t) n, .gen = tail + 1 };
    struct abi_frame got;
    uint8_t *buf = malloc(p->rx.frame_max);

    pair_set(p, head, tail);
    fill(payload, n, (unsigned) tail + n);

    int rc = ring_put(&p->tx, &f, payload, n / 3, payload + n / 3, n - n / 3,
                      keep);

    if (pad + cells + keep > room) {
        assert_int_equal(rc, RING_AGAIN);
        assert_true(p->tx.tail == tail);
        assert_int_equal(ring_publish(&p->tx), 0);
        assert_int_equal(ring_get(&p->rx, &got, buf), RING_AGAIN);
    } else {
        assert_int_equal(rc, RING_OK);
        assert_true(p->tx.tail == tail + (pad + cells) * CELL);
        assert_int_equal(ring_get(&p->rx, &got, buf), RING_AGAIN);
        ring_publish(&p->tx);
        assert_int_equal(ring_get(&p->rx, &got, buf), RING_OK);
        assert_memory_equal(&got, &f, sizeof(f));
        assert_memory_equal(buf, payload, n);
        assert_true(p->rx.head == p->tx.tail);
        assert_int_equal(ring_get(&p->rx, &got, buf), RING_AGAIN);
        ring_release(&p->rx);
        assert_true(p->b.page->head == p->tx.tail);
    }
    free(buf);
}


static void
test_every_state(void **state)
{
    (void) state;

    for (uint64_t n_cells = 2; n_cells <= 8; n_cells *= 2) {
        struct pair p;
        uint64_t size = n_cells * CELL;
        uint32_t max = (uint32_t) (size / 2 - sizeof(struct abi_frame));

        pair_init(&p, size, (uint32_t) size / 2);
        for (uint64_t i = 0; i < 4 * n_cells; i++) {
            uint64_t head = (i - 2 * n_cells) * CELL;   /* across 2^64 */
            for (uint64_t used = 0; used <= n_cells; used++) {
                for (uint32_t n = 0; n <= max; n++) {
                    for (uint32_t keep = 0; keep < 3; keep++) {
                        check_put_get(&p, head, head + used * CELL, n, keep);
                    }
                }
            }
        }
        pair_free(&p);
    }
}


/* What ring_get() must say of a header at cell i_pos with n_avail cells
 * published, in a ring of n_cells. */
static int
oracle(const struct abi_frame *f, uint64_t i_pos, uint64_t n_avail,
       uint64_t n_cells, uint32_t frame_max)
{
    uint64_t need = (sizeof(*f) + f->n_bytes + CELL - 1) / CELL;

    if (sizeof(*f) + (uint64_t) f->n_bytes > frame_max || need > n_avail
        || i_pos + need > n_cells)
    {
        return RING_FAULT;
    }
    if (f->type != ABI_PAD) {
        return RING_OK;
    }
    if (f->flags || f->slot || f->gen || i_pos == 0 || i_pos + need != n_cells)
    {
        return RING_FAULT;
    }
    /* Then the zeroed cell behind it is read: a frame of type 0. */
    return n_avail > need ? RING_OK : RING_AGAIN;
}


static void
check_header(struct pair *p, const struct abi_frame *f, uint64_t pos,
             uint64_t n_avail)
{
    uint64_t n_cells = p->rx.n_bytes / CELL;
    struct abi_frame got;
    uint8_t *buf = malloc(p->rx.frame_max);

    memset((uint8_t *) p->a.page + ABI_PAGE_BYTES, 0, p->rx.n_bytes);
    memcpy((uint8_t *) p->a.page + ABI_PAGE_BYTES + pos % n_cells * CELL, f,
           sizeof(*f));
    pair_set(p, pos * CELL, pos * CELL);
    p->a.page->tail = (pos + n_avail) * CELL;

    int want = oracle(f, pos % n_cells, n_avail, n_cells, p->rx.frame_max);

    assert_int_equal(ring_get(&p->rx, &got, buf), want);
    if (want == RING_FAULT) {
        assert_true(p->rx.head == pos * CELL);
    } else if (want == RING_OK && f->type != ABI_PAD) {
        assert_memory_equal(&got, f, sizeof(got));
    }
    free(buf);
}


static void
test_every_header(void **state)
{
    static const uint32_t frame_max[] = { 64, 128, 256 };
    static const uint32_t huge[] = {
        ABI_EVENT_MAX, ABI_FRAME_MAX, 0x7fffffff, 0x80000000, 0xffffffc0,
        0xffffffef, 0xfffffff0, 0xfffffff1, 0xffffffff
    };
    static const uint8_t types[] = { 0, ABI_PAD, 2, ABI_DELTA, 255 };

    (void) state;
    for (size_t m = 0; m < 3; m++) {
        struct pair p;

        pair_init(&p, 4 * CELL, frame_max[m]);
        for (uint32_t i = 0; i < 300 + 9; i++) {
            for (unsigned k = 0; k < 5 * 16; k++) {
                struct abi_frame f = {
                    .n_bytes = i < 300 ? i : huge[i - 300],
                    .type = types[k % 5], .flags = k / 5 & 1 ? ABI_MORE : 0,
                    .slot = k / 5 & 2 ? 65535 : 0,
                    .gen = k / 5 & 4 ? UINT64_MAX : 0
                };
                uint64_t pos = k / 5 & 8 ? UINT64_MAX / CELL - 3 : 0;

                for (uint64_t at = 0; at < 4; at++) {
                    for (uint64_t avail = 1; avail <= 4; avail++) {
                        check_header(&p, &f, pos + at, avail);
                    }
                }
            }
        }
        pair_free(&p);
    }
}


/* A peer's tail: forward, by whole cells, not over what we still hold. */
static void
test_every_tail(void **state)
{
    struct pair p;
    struct abi_frame f;
    uint8_t buf[256];
    uint64_t size = 4 * CELL;

    (void) state;
    pair_init(&p, size, 64);
    for (uint64_t held = 0; held <= 4; held++) {
        for (uint64_t i = 0; i < 3000; i++) {
            uint64_t released = (i & 1 ? 1000 : UINT64_MAX / CELL - 5) * CELL;
            uint64_t tail = released + i / 2 - 700;
            uint64_t far = i < 2990 ? tail : 1ull << (54 + i % 10);

            pair_set(&p, released, released + held * CELL);
            p.a.page->tail = far;

            int ok = far % CELL == 0 && far - released <= size
                     && far - released >= held * CELL;
            int more = far - released > held * CELL;

            assert_int_equal(ring_get(&p.rx, &f, buf),
                             !ok ? RING_FAULT : more ? RING_OK : RING_AGAIN);

            pair_set(&p, released, released + held * CELL);
            p.a.page->tail = far;
            assert_int_equal(ring_sleep(&p.rx),
                             !ok ? RING_FAULT : more ? RING_AGAIN : RING_OK);
            assert_true(p.b.page->wake_at == released + held * CELL);
        }
    }

    /* Frames not taken yet: no reason to sleep, and nothing is stored. */
    pair_set(&p, 0, 0);
    p.rx.tail = CELL;
    assert_int_equal(ring_sleep(&p.rx), RING_AGAIN);
    assert_true(p.b.page->wake_at == 0 - CELL);
    pair_free(&p);
}


/* A peer's head: forward, by whole cells, not past what was published.  It is
 * looked at only when room is short. */
static void
test_every_head(void **state)
{
    struct pair p;
    struct abi_frame f = { .n_bytes = 40, .type = ABI_CANCEL, .gen = 1 };
    uint8_t payload[40] = { 0 };
    uint64_t size = 4 * CELL;

    (void) state;
    pair_init(&p, size, 64);
    for (uint64_t published = 0; published <= 4; published++) {
        for (uint64_t i = 0; i < 3000; i++) {
            uint64_t seen = (i & 1 ? 1000 : UINT64_MAX / CELL - 5) * CELL;
            uint64_t head = i < 2990 ? seen + i / 2 - 700
                                     : 1ull << (54 + i % 10);

            pair_set(&p, seen, seen + published * CELL);
            p.tx.tail = seen + 4 * CELL;        /* full, in part unpublished */
            p.b.page->head = head;

            int ok = head % CELL == 0 && head - seen <= published * CELL;
            int want = !ok ? RING_FAULT : head == seen ? RING_AGAIN : RING_OK;

            assert_int_equal(ring_put(&p.tx, &f, payload, 40, NULL, 0, 0),
                             want);
        }
    }
    pair_free(&p);
}


/* The bell rings if and only if wake_at lies in what was just published. */
static void
test_every_wake(void **state)
{
    struct pair p;

    (void) state;
    pair_init(&p, 8 * CELL, 64);
    for (int where = 0; where < 2; where++) {
        uint64_t base = where ? UINT64_MAX - 4 * CELL + 1 : 0;
        for (uint64_t n = 0; n <= 8; n++) {
            for (uint64_t i = 0; i < 20 * CELL; i++) {
                uint64_t wake_at = base + i - 6 * CELL;
                pair_set(&p, base, base);
                p.tx.tail = base + n * CELL;
                p.b.page->wake_at = wake_at;

                int want = i >= 6 * CELL && i < (6 + n) * CELL;

                assert_int_equal(ring_publish(&p.tx), want);
                assert_true(p.a.page->tail == base + n * CELL);
                assert_int_equal(ring_publish(&p.tx), 0);
            }
        }
    }
    pair_free(&p);
}


/* A new pair rings at its first publication; a sleeper is rung once. */
static void
test_first_bell(void **state)
{
    struct pair p;
    struct abi_frame f = { .type = ABI_CANCEL, .gen = 1 }, got;
    uint8_t buf[64];

    (void) state;
    pair_init(&p, 8 * CELL, 64);
    assert_int_equal(ring_put(&p.tx, &f, NULL, 0, NULL, 0, 0), RING_OK);
    assert_int_equal(ring_publish(&p.tx), 1);
    assert_int_equal(ring_put(&p.tx, &f, NULL, 0, NULL, 0, 0), RING_OK);
    assert_int_equal(ring_publish(&p.tx), 0);
    assert_int_equal(ring_get(&p.rx, &got, buf), RING_OK);
    assert_int_equal(ring_get(&p.rx, &got, buf), RING_OK);
    ring_release(&p.rx);
    assert_int_equal(ring_sleep(&p.rx), RING_OK);
    assert_int_equal(ring_sleep(&p.rx), RING_OK);
    assert_int_equal(ring_put(&p.tx, &f, NULL, 0, NULL, 0, 0), RING_OK);
    assert_int_equal(ring_publish(&p.tx), 1);
    assert_int_equal(ring_sleep(&p.rx), RING_AGAIN);
    pair_free(&p);
}


/* Credits: a ring of ring_event_bytes() never fills, wherever it starts and
 * whatever the lengths, as long as each slot keeps within its window. */
static void
test_credit(void **state)
{
    enum { N_SLOTS = 3 };
    uint32_t window = ABI_WINDOW_MIN;
    uint64_t size = ring_event_bytes(N_SLOTS, window);
    static uint8_t payload[ABI_EVENT_MAX], buf[ABI_EVENT_MAX];
    struct pair p;

    (void) state;
    assert_int_equal(size, 32768);
    pair_init(&p, size, ABI_EVENT_MAX);
    srandom(1);

    for (int round = 0; round < 2000; round++) {
        uint64_t start = (uint64_t) random() % 1024 * CELL;
        uint32_t credit[N_SLOTS] = { window, window, window };
        unsigned n = 0;

        pair_set(&p, start, start);
        for (int i = 0; i < 200; i++) {
            uint16_t slot = (uint16_t) (random() % N_SLOTS);
            uint32_t max = credit[slot] * ABI_CELL_BYTES;
            int ends = i >= 200 - N_SLOTS;
            struct abi_frame f = { .type = ABI_DELTA, .gen = 1, .slot = slot };

            if (ends) {                 /* each slot's terminal frame */
                f.n_bytes = ABI_TERMINAL_CELLS * ABI_CELL_BYTES - sizeof(f);
            } else if (max == 0) {
                continue;
            } else {
                f.n_bytes = (uint32_t) random() % (max - 15);
                credit[slot] -= ring_cells(f.n_bytes);
            }
            assert_int_equal(ring_put(&p.tx, &f, payload, f.n_bytes, NULL, 0,
                                      0), RING_OK);
            n++;
        }
        ring_publish(&p.tx);
        for (unsigned i = 0; i < n; i++) {
            struct abi_frame f;
            assert_int_equal(ring_get(&p.rx, &f, buf), RING_OK);
        }
    }

    for (uint32_t n_slots = 1; n_slots <= ABI_SLOTS_MAX; n_slots *= 2) {
        uint64_t n = ring_event_bytes(n_slots, ABI_WINDOW_MAX);
        assert_true((n & (n - 1)) == 0);
        assert_true(n >= (uint64_t) n_slots * ABI_WINDOW_MAX * CELL);
    }
    pair_free(&p);
}


/* A long random conversation against a queue of lengths. */
static void
test_random(void **state)
{
    static uint8_t payload[ABI_EVENT_MAX], buf[ABI_EVENT_MAX];
    struct pair p;
    uint32_t n_put = 0, n_got = 0;

    (void) state;
    srandom(2);
    pair_init(&p, 16384, ABI_EVENT_MAX);
    while (n_got < 200000) {
        for (long k = random() % 8; k > 0; k--) {
            uint32_t n = n_put * 2654435761u % (ABI_EVENT_MAX - 15);
            struct abi_frame f = { .n_bytes = n, .type = ABI_DELTA,
                                   .gen = n_put };
            if (n_put % 4) {
                n = f.n_bytes %= 200;
            }
            fill(payload, n, n_put);
            int rc = ring_put(&p.tx, &f, payload, n, NULL, 0, 0);
            assert_int_not_equal(rc, RING_FAULT);
            n_put += rc == RING_OK;
        }
        ring_publish(&p.tx);
        for (long k = random() % 8; k > 0; k--) {
            struct abi_frame f;
            int rc = ring_get(&p.rx, &f, buf);
            if (rc == RING_AGAIN) {
                break;
            }
            assert_int_equal(rc, RING_OK);
            assert_int_equal(f.gen, n_got);
            fill(payload, f.n_bytes, n_got);
            assert_memory_equal(buf, payload, f.n_bytes);
            n_got++;
        }
        if (random() % 2) {
            ring_release(&p.rx);
        }
    }
    pair_free(&p);
}


int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_state),
        cmocka_unit_test(test_every_header),
        cmocka_unit_test(test_every_tail),
        cmocka_unit_test(test_every_head),
        cmocka_unit_test(test_every_wake),
        cmocka_unit_test(test_first_bell),
        cmocka_unit_test(test_credit),
        cmocka_unit_test(test_random),
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
