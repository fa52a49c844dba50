/*
 * mock_job.h - one request of mock_engine: reads its fields, and writes its
 * events step by step, within its credits or as wrongly as its script demands.
 */
#ifndef MOCK_JOB_H
#define MOCK_JOB_H

#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#include "mock_script.h"
#include "ring.h"

#define NEVER       UINT64_MAX

struct job {
    struct script       s;
    struct abi_request  rq;
    uint8_t            *request;    /* joined fragments */
    size_t              n_request;
    struct buf          reply;      /* of echo and dump */
    size_t              n_replied;
    uint64_t            gen;
    uint64_t            due_us;
    uint64_t            now_us;     /* of this step */
    uint64_t            born_us;
    uint32_t            credit;     /* cells */
    unsigned            i_step;     /* DELTAs sent to each choice */
    unsigned            i_choice;   /* next in this step */
    unsigned            n_tok;      /* of content and reasoning, a choice */
    unsigned            is_open:1, joined:1, started:1, done_bad:1, blocked:1;
    unsigned            resumed:1;      /* has had its fate elsewhere */
    unsigned            admitted:1;     /* runs; the others wait */
};

struct worker {
    int                 sock, bell;     /* bell: -1 until attached */
    unsigned            id;
    struct ring_memory  own;
    struct ring_view    peer;
    struct ring_tx      tx;
    struct ring_rx      rx;
    uint32_t            n_slots, window;
    struct job         *job;            /* [n_slots] */
    uint16_t           *open;           /* [n_open] slots */
    uint32_t            n_open;
    uint64_t            generation;
    unsigned            mute:1, gone:1;
};

static int quiet;


static void
say(const char *fmt, ...)
{
    char line[256];
    va_list ap;

    if (quiet) {
        return;
    }
    va_start(ap, fmt);
    int n = vsnprintf(line, sizeof(line) - 1, fmt, ap);
    va_end(ap);
    if (n > (int) sizeof(line) - 2) {
        n = (int) sizeof(line) - 2;
    }
    line[n++] = '\n';
    (void) !write(2, line, (size_t) n);
}


static void
request_dump(const struct job *j, struct buf *b)
{
    const struct abi_request *r = &j->rq;
    const uint8_t *p = j->request + sizeof(*r) + ((r->n_body + 7) & ~7u);

    buf_addf(b, "kind=%u n_choices=%u given=%#x flags=%#x max_tokens=%u "
             "temperature=%g top_p=%g min_p=%g top_k=%d presence=%g "
             "frequency=%g repetition=%g n_top_logprobs=%u seed=%llu "
             "priority=%d deadline_ms=%u n_body=%u",
             r->kind, r->n_choices, r->given, r->flags, r->max_tokens,
             (double) r->temperature, (double) r->top_p, (double) r->min_p,
             r->top_k, (double) r->presence, (double) r->frequency,
             (double) r->repetition, r->n_top_logprobs,
             (unsigned long long) r->seed, r->priority, r->deadline_ms,
             r->n_body);
    for (uint32_t i = 0; i < r->n_biases; i++, p += sizeof(struct abi_bias)) {
        struct abi_bias bias;
        memcpy(&bias, p, sizeof(bias));
        buf_addf(b, " bias=%u:%g", bias.token, (double) bias.bias);
    }
    for (uint32_t i = 0; i < r->n_stops; i++) {
        uint32_t n;
        memcpy(&n, p, 4);
        buf_addf(b, " stop=<%.*s>", (int) n, (const char *) p + 4);
        p += 4 + ((n + 3) & ~3u);
    }
    buf_addf(b, " id=");
    for (size_t i = 0; i < sizeof(r->id); i++) {
        buf_addf(b, "%02x", r->id[i]);
    }
    buf_addf(b, " trace=");
    for (size_t i = 0; i < sizeof(r->trace_id); i++) {
        buf_addf(b, "%02x", r->trace_id[i]);
    }
    buf_addf(b, "-");
    for (size_t i = 0; i < sizeof(r->span_id); i++) {
        buf_addf(b, "%02x", r->span_id[i]);
    }
    buf_addf(b, "-%02x", r->trace_flags);
    if (r->n_salt > 0) {
        buf_addf(b, " salt=<%.*s>", (int) r->n_salt, (const char *) p);
    }
}


/* Are the lengths inside what came?  Values are not judged here. */
static int
request_check(const struct job *j)
{
    const struct abi_request *r = &j->rq;
    uint64_t at = sizeof(*r) + (((uint64_t) r->n_body + 7) & ~7ull)
                  + (uint64_t) r->n_biases * sizeof(struct abi_bias);

    if (r->n_bytes != j->n_request || r->n_stops > ABI_STOPS_MAX
        || r->n_salt > ABI_SALT_MAX || r->n_prompt_top > ABI_TOP_LOGPROBS_MAX
        || r->n_choices < 1 || r->n_choices > ABI_CHOICES_MAX)
    {
        return -1;
    }
    for (uint32_t i = 0; i < r->n_stops; i++) {
        uint32_t n;
        if (at + 4 > j->n_request) {
            return -1;
        }
        memcpy(&n, j->request + at, 4);
        at += 4 + (((uint64_t) n + 3) & ~3ull);
    }
    at += (r->n_salt + 3) & ~3u;
    for (uint32_t i = 0; i < r->n_resumes; i++) {
        struct abi_resume q;
        if (at + sizeof(q) > j->n_request) {
            return -1;
        }
        memcpy(&q, j->request + at, sizeof(q));
        at += sizeof(q) + (uint64_t) q.n_tok * 4;
    }

    return at == j->n_request ? 0 : -1;
}


/* A request that another engine has begun: goes on behind the first choice's
 * tokens, which have to be those that this one would have said. */
static int
request_resume(struct job *j)
{
    const struct abi_request *r = &j->rq;

    if (r->n_resumes == 0) {
        return 0;
    }

    const uint8_t *p = j->request + sizeof(*r) + ((r->n_body + 7) & ~7u)
                       + r->n_biases * sizeof(struct abi_bias);
    for (uint32_t i = 0; i < r->n_stops; i++) {
        uint32_t k;
        memcpy(&k, p, 4);
        p += 4 + ((k + 3) & ~3u);
    }
    p += (r->n_salt + 3) & ~3u;

    struct abi_resume q;
    memcpy(&q, p, sizeof(q));
    for (uint32_t i = 0; i < q.n_tok; i++) {
        uint32_t id;
        memcpy(&id, p + sizeof(q) + i * 4, 4);
        if (id != 100 + i) {
            return -1;
        }
    }
    j->resumed = 1;
    j->n_tok = q.n_tok;
    j->i_step = q.n_tok / j->s.chunk;

    return 0;
}


/* 1: put; 0: no credit left for it. */
static int
job_put(struct worker *w, struct job *j, uint8_t type, const void *a,
        size_t n_a, const void *b, size_t n_b)
{
    struct abi_frame f = { .n_bytes = (uint32_t) (n_a + n_b), .type = type,
                           .slot = (uint16_t) (j - w->job), .gen = j->gen };
    uint32_t n = type >= ABI_DONE ? 0 : ring_cells(f.n_bytes);
    int flooding = j->s.flood && j->i_step >= j->s.at;

    if (n > j->credit && !flooding) {
        j->blocked = 1;
        return 0;
    }

    switch (ring_put(&w->tx, &f, a, n_a, b, n_b, 0)) {
    case RING_OK:
        j->credit -= n < j->credit ? n : j->credit;
        return 1;
    case RING_AGAIN:
        if (!flooding) {
            say("worker %u: event ring is full", w->id);
            w->gone = 1;
        }
        j->blocked = 1;
        return 0;
    default:
        say("worker %u: impossible head", w->id);
        w->gone = 1;
        return 0;
    }
}


static void
job_close(struct worker *w, struct job *j)
{
    uint16_t slot = (uint16_t) (j - w->job);

    free(j->request);
    buf_free(&j->reply);
    memset(j, 0, sizeof(*j));
    for (uint32_t i = 0; i < w->n_open; i++) {
        if (w->open[i] == slot) {
            memmove(&w->open[i], &w->open[i + 1],
                    (--w->n_open - i) * sizeof(*w->open));
            return;
        }
    }
}


static void
job_end(struct worker *w, struct job *j, uint8_t type, unsigned error)
{
    struct abi_error e = { .code = error, .retry_after_s = 3 };
    struct abi_usage *u = &e.usage;
    unsigned n_reasoning = j->n_tok < j->s.reasoning ? j->n_tok
                                                     : j->s.reasoning;

    u->n_prompt_tok = j->rq.n_body / 4 + 1;
    u->n_cached_tok = u->n_prompt_tok / 2;
    u->n_output_tok = j->n_tok * j->rq.n_choices;
    u->n_reasoning_tok = n_reasoning * j->rq.n_choices;
    u->decode_us = clock_us() - j->born_us;

    say("%s slot=%u gen=%llu tokens=%u",
        type == ABI_DONE ? "done" : type == ABI_ERROR ? "error" : "cancelled",
        (unsigned) (j - w->job), (unsigned long long) j->gen, j->n_tok);

    if (type == ABI_ERROR) {
        const char *text = error_names[error];
        e.n_text = (uint16_t) strlen(text);
        job_put(w, j, type, &e, sizeof(e), text, e.n_text);
    } else {
        job_put(w, j, type, u, sizeof(*u), NULL, 0);
    }
    job_close(w, j);
}


/* Appends the text of token i; returns how many bytes of it are the token's
 * own where that differs (half a character). */
static void
token_text(const struct job *j, unsigned i, struct buf *text, struct buf *own)
{
    static const char euro[] = "\xe2\x82\xac";
    char word[32];
    int is_reasoning = i < j->s.reasoning;

    if (j->s.split_utf8) {
        if (i % 2 == 0) {
            buf_add(own, euro, 2);
        } else {
            buf_add(own, euro + 2, 1);
            buf_add(text, euro, 3);
        }
        return;
    }

    if (j->s.stamp && !is_reasoning) {
        snprintf(word, sizeof(word), "t%016llu ",
                 (unsigned long long) j->now_us);
    } else {
        snprintf(word, sizeof(word), "%c%u ", is_reasoning ? 'r' : 'w',
                 is_reasoning ? i : i - j->s.reasoning);
    }
    buf_adds(own, word);
    while (own->n < j->s.bytes && own->n < 1024) {
        buf_addc(own, 'x');
    }
    buf_add(text, own->p, own->n);
}


static void
add_logprob(struct buf *b, uint32_t token, float logprob, unsigned n_top,
            const char *text, size_t n)
{
    struct abi_logprob lp = { .token = token, .logprob = logprob,
                              .n_text = (uint16_t) n,
                              .n_top = (uint16_t) n_top };

    buf_add(b, &lp, sizeof(lp));
    buf_add(b, text, n);
    buf_add(b, "\0\0\0", (4 - n % 4) % 4);
}


/* One DELTA: the next chunk of tokens, or of the reply. */
static int
job_delta(struct worker *w, struct job *j, unsigned total)
{
    static struct buf body, text, own, probs;
    struct abi_delta d = { .choice = (uint8_t) j->i_choice };
    int want = j->s.logprobs || (j->rq.flags & ABI_FLAG_LOGPROBS);
    unsigned n_top = j->rq.n_top_logprobs < 3 ? j->rq.n_top_logprobs : 3;

    buf_reset(&body);
    buf_reset(&text);
    buf_reset(&probs);
    d.channel = j->n_tok < j->s.reasoning ? ABI_REASONING : ABI_CONTENT;
    unsigned end = d.channel == ABI_REASONING ? j->s.reasoning : total;

    for (unsigned i = j->n_tok; i < end && d.n_tok < j->s.chunk; i++) {
        uint32_t id = 100 + i;
        buf_reset(&own);
        token_text(j, i, &text, &own);
        if (text.n > 3000) {
            break;
        }
        buf_add(&body, &id, 4);
        d.n_tok++;
        if (want) {
            static const char alternative[] = "abc";
            add_logprob(&probs, id, -0.25f, n_top, own.p, own.n);
            for (unsigned k = 0; k < n_top; k++) {
                add_logprob(&probs, k, -1.5f - (float) k, 0, alternative + k,
                            1);
            }
            d.n_logprobs++;
        }
    }

    if (j->reply.n) {
        size_t n = j->reply.n - j->n_replied;
        if (n > 512) {
            n = 512;
            while (n > 0 && ((uint8_t) j->reply.p[j->n_replied + n] & 0xc0)
                            == 0x80)
            {
                n--;
            }
        }
        buf_reset(&text);
        buf_add(&text, j->reply.p + j->n_replied, n);
        if (j->i_choice + 1 == j->rq.n_choices) {
            j->n_replied += n;
        }
    }

    d.n_text = (uint16_t) text.n;
    buf_add(&body, text.p, text.n);
    buf_add(&body, "\0\0\0", (4 - text.n % 4) % 4);
    buf_add(&body, probs.p, probs.n);
    if (body.n + sizeof(d) + sizeof(struct abi_frame) > ABI_EVENT_MAX) {
        say("delta of %zu bytes: too long", body.n);
        return 0;
    }
    if (!job_put(w, j, ABI_DELTA, &d, sizeof(d), body.p, body.n)) {
        return 0;
    }
    if (++j->i_choice == j->rq.n_choices) {
        j->i_choice = 0;
        j->i_step++;
        j->n_tok += d.n_tok;
    }
    return 1;
}


/* Breaking the contract. */

/* A frame whose header says f, followed by whatever n cells hold. */
static void
put_raw(struct worker *w, const struct abi_frame *f, unsigned n_cells)
{
    for (unsigned i = 0; i < n_cells; i++) {
        uint8_t *p = w->tx.data + (w->tx.tail & (w->tx.n_bytes - 1));
        for (int k = 0; k < ABI_CELL_BYTES; k++) {
            p[k] = (uint8_t) random();
        }
        if (f && i == 0) {
            memcpy(p, f, sizeof(*f));
        }
        w->tx.tail += ABI_CELL_BYTES;
    }
}


/* A frame that is well-formed for the ring, and wrong in its meaning. */
static void
put_wrong(struct worker *w, struct job *j)
{
    struct abi_frame f = { .n_bytes = 16, .type = ABI_DELTA,
                           .slot = (uint16_t) (j - w->job), .gen = j->gen };
    struct { struct abi_delta d; uint32_t id; char text[4]; } p =
        { { 0, ABI_CONTENT, 1, 4, 0 }, 7, "bad!" };

    switch (j->s.bad) {
    case BAD_GEN:       f.gen += 1; break;
    case BAD_SLOT:      f.slot = (uint16_t) w->n_slots; break;
    case BAD_TYPE:      f.type = 99; break;
    case BAD_FLAGS:     f.flags = 0xfe; break;
    case BAD_SHORT:     f.n_bytes = 3; break;
    case BAD_CHOICE:    p.d.choice = ABI_CHOICES_MAX; break;
    case BAD_CHANNEL:   p.d.channel = 9; break;
    case BAD_TEXT:      p.d.n_text = 5000; break;
    case BAD_TOKENS:    p.d.n_tok = 4000; break;
    case BAD_LOGPROBS:  p.d.n_logprobs = 77; break;
    case BAD_UTF8:      memcpy(p.text, "\xc3(\xff\xed", 4); break;
    case BAD_START:     f.type = ABI_START; break;
    case BAD_FINISH:    f.type = ABI_FINISH; f.n_bytes = 8;
                        p.d.channel = 77; break;
    case BAD_TWICE:     f.type = ABI_DONE; f.n_bytes = 0; break;
    default:            break;
    }
    if (j->s.bad == BAD_TWICE) {
        static const struct abi_usage none;
        f.n_bytes = sizeof(none);
        ring_put(&w->tx, &f, &none, sizeof(none), NULL, 0, 0);
        ring_put(&w->tx, &f, &none, sizeof(none), NULL, 0, 0);
    } else {
        ring_put(&w->tx, &f, &p, f.n_bytes, NULL, 0, 0);
    }
}


static void
job_bad(struct worker *w, struct job *j)
{
    struct abi_frame f = { .type = ABI_DELTA, .slot = (uint16_t) (j - w->job),
                           .gen = j->gen };
    uint64_t tail = w->tx.tail;

    say("bad=%s slot=%u", bad_names[j->s.bad], f.slot);
    j->done_bad = 1;

    switch (j->s.bad) {
    case BAD_TAIL_BACK: w->tx.tail = tail - ABI_CELL_BYTES; break;
    case BAD_TAIL_FAR:  w->tx.tail = tail + 2 * w->tx.n_bytes; break;
    case BAD_TAIL_ODD:  w->tx.tail = tail + 1; break;
    case BAD_HEAD_FAR:
        ring_word_set(&w->own.page->head, UINT64_MAX / 2);
        return;
    case BAD_LENGTH:    f.n_bytes = ABI_EVENT_MAX; put_raw(w, &f, 1); break;
    case BAD_HUGE:      f.n_bytes = UINT32_MAX; put_raw(w, &f, 1); break;
    case BAD_PAD:       f.type = ABI_PAD; put_raw(w, &f, 1); break;
    case BAD_ZERO:
        memset(&f, 0, sizeof(f));
        put_raw(w, &f, 1);
        break;
    default:
        put_wrong(w, j);
        return;
    }

    /* The index is stored even where it went back or stands still. */
    ring_word_set(&w->own.page->tail, w->tx.tail);
    ring_bell_ring(w->bell);
}


/* 1: the job has its fate and shall not go on now. */
static int
job_fate(struct worker *w, struct job *j)
{
    if (j->i_step < j->s.at || j->i_choice != 0 || j->resumed) {
        return 0;
    }
    if (j->s.die) {
        _exit(9);
    }
    if (j->s.close) {
        w->gone = 1;
        return 1;
    }
    if (j->s.freeze_ms) {
        usleep(j->s.freeze_ms * 1000);
        j->s.freeze_ms = 0;
    }
    if (j->s.mute) {
        w->mute = 1;
    }
    if (j->s.bad && !j->done_bad) {
        job_bad(w, j);
    }
    if (j->s.garbage) {
        put_raw(w, NULL, j->s.garbage % (unsigned) (w->tx.n_bytes / 128));
        j->s.garbage = 0;
    }
    if (j->s.error) {
        job_end(w, j, ABI_ERROR, j->s.error);
        return 1;
    }
    if (j->s.stall) {
        j->due_us = NEVER;
        return 1;
    }
    return 0;
}


/* When the next token is due: a delay after this one, or after this step; or
 * `spread`, a delay after this one was due, and the second token after a share
 * of it that each request has for itself (multiples of the golden ratio). */
static uint64_t
job_due(const struct job *j)
{
    static uint32_t phase;
    uint64_t delay_us = j->s.delay_ms * 1000ull, now = j->now_us;

    if (j->s.spread) {
        if (j->i_step == 1) {
            phase += 2654435769u;
            return j->due_us + (delay_us * phase >> 32);
        }
        return j->due_us + delay_us > now ? j->due_us + delay_us : now;
    }

    uint64_t step_us = j->s.step_ms * 1000ull;

    return (step_us ? now / step_us * step_us : now) + delay_us;
}


/* One step: START, or a DELTA of each choice, or the end. */
static void
job_step(struct worker *w, struct job *j, uint64_t now)
{
    j->now_us = now;
    if (!j->started) {
        struct abi_start start = { j->rq.n_body / 4 + 1, j->rq.n_body / 8, 5 };
        j->started = 1;
        if (!(j->s.error && j->s.at == 0)) {
            job_put(w, j, ABI_START, &start, sizeof(start), NULL, 0);
        }
    }

    unsigned total = j->s.reasoning + j->s.tokens;
    unsigned reason = j->s.finish ? j->s.finish : ABI_STOP;

    if ((j->rq.given & ABI_GIVEN_MAX_TOKENS) && total > j->rq.max_tokens) {
        total = j->rq.max_tokens;
        reason = ABI_LENGTH;
    }
    if (j->s.flood) {
        total = UINT32_MAX;
    }

    if (job_fate(w, j)) {
        return;
    }
    while (j->n_tok < total || j->n_replied < j->reply.n) {
        if (!job_delta(w, j, total)) {
            return;
        }
        if (j->i_choice == 0) {
            j->due_us = job_due(j);
            return;
        }
    }
    while (j->i_choice < j->rq.n_choices) {
        struct abi_finish end = { (uint8_t) j->i_choice, (uint8_t) reason,
                                  { 0 } };
        if (!job_put(w, j, ABI_FINISH, &end, sizeof(end), NULL, 0)) {
            return;
        }
        j->i_choice++;
    }
    job_end(w, j, ABI_DONE, 0);
}

#endif /* MOCK_JOB_H */
