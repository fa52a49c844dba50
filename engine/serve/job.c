/*
 * job.c - the life of a job, from its first fragment to its one terminal
 * event: see the states in serve.h.
 *
 * Comes in: fragments, cancels, prepared prompts, ends of choices.  Goes out:
 * frames.  Must not know the model's inside, nor sockets.
 */
#include <stdlib.h>
#include <string.h>

#include "serve/serve.h"

static_assert(SCHED_SEQS_MAX == ABI_CHOICES_MAX, "a choice is a sequence");

/* What a full queue asks for, in seconds. */
#define RETRY_AFTER_S       1
#define RETRY_AFTER_MAX_S   60

/* A job is ranked as if it had come this much later for each step of priority;
 * which is why nobody waits for ever.  Beyond 1,000 all steps are one. */
#define PRIORITY_STEP_US    1000000
#define PRIORITY_MAX        1000

/* What a terminal ERROR has room for besides its head. */
#define ERROR_TEXT_MAX  (ABI_TERMINAL_CELLS * ABI_CELL_BYTES \
                         - sizeof(struct abi_frame) - sizeof(struct abi_error))


struct job *
serve_job_begin(struct serve *s, struct channel *c, uint16_t slot,
                uint64_t gen)
{
    struct job *j = calloc(1, sizeof(*j));

    if (j == NULL) {
        serve_channel_fault(c, "no memory for its jobs");
        return NULL;
    }

    j->channel = c;
    j->slot = slot;
    j->gen = gen;
    j->credits = c->window_cells;
    j->came_us = clock_us();
    s->counts.accepted++;

    return j;
}


/* The bytes of the request are not needed any more. */
static void
free_in(struct job *j)
{
    if (j->channel != NULL) {
        j->channel->n_in_bytes -= j->in.n;
    }

    buf_free(&j->in);
}


static void
drop_pages(struct serve *s, struct job *j, uint32_t i_choice)
{
    serve_pages_drop(s, j, i_choice);
    sched_seq_end(&j->sched, i_choice);
}


/* Everything that only a running job needs. */
static void
free_running(struct serve *s, struct job *j)
{
    for (uint32_t i = 0; i < j->sched.n_seqs; i++) {
        if (j->sched.seqs[i].state != SCHED_OVER) {
            drop_pages(s, j, i);
        }

        if (j->choices != NULL) {
            serve_output_free(&j->choices[i].output);
        }
    }

    j->choices = NULL;
    arena_free(&j->arena);
    serve_prompt_free(&j->prep.prompt);
}


void
serve_job_count(struct serve *s)
{
    s->n_running = s->n_waiting = 0;
    s->n_waiting_tok = 0;

    for (uint32_t i = 0; i < s->n_jobs; i++) {
        if (s->plan[i]->running) {
            s->n_running++;
        } else {
            s->n_waiting++;
            s->n_waiting_tok += s->plan[i]->n_prompt;
        }
    }
}


/* Behind all of its rank. */
static void
enlist(struct serve *s, struct job *j)
{
    uint32_t i = s->n_jobs++;

    for (; i > 0 && s->jobs[i - 1]->rank > j->rank; i--) {
        s->jobs[i] = s->jobs[i - 1];
        s->plan[i] = s->plan[i - 1];
    }

    s->jobs[i] = j;
    s->plan[i] = &j->sched;
    serve_job_count(s);
}


/* Takes it off the list of those that wait or run. */
static void
unlist(struct serve *s, struct job *j)
{
    uint32_t i = 0;

    while (i < s->n_jobs && s->jobs[i] != j) {
        i++;
    }

    if (i == s->n_jobs) {
        return;
    }

    for (s->n_jobs--; i < s->n_jobs; i++) {
        s->jobs[i] = s->jobs[i + 1];
        s->plan[i] = s->plan[i + 1];
    }

    serve_job_count(s);
}


/* The job is gone; but one that is with serve_prep goes when it comes back. */
static void
job_free(struct serve *s, struct job *j)
{
    if (j->channel != NULL) {
        struct slot *slot = &j->channel->slots[j->slot];

        if (j->state == JOB_PREPARING) {
            j->channel->n_in_bytes -= j->in.n;
        } else {
            free_in(j);
        }

        slot->job = NULL;
        j->channel = NULL;
    }

    if (j->state == JOB_PREPARING) {
        return;
    }

    serve_step_without(s, j);
    unlist(s, j);
    free_running(s, j);
    buf_free(&j->in);
    buf_free(&j->outbox);
    free(j);
}


static struct abi_usage
usage_of(const struct job *j)
{
    uint64_t         now = clock_us();
    uint64_t         admitted = j->admitted_us != 0 ? j->admitted_us : now;
    uint64_t         first = j->first_us != 0 ? j->first_us : now;
    struct abi_usage u = {
        .n_prompt_tok = j->sched.n_prompt,
        .n_cached_tok = j->n_cached,
        .n_output_tok = j->n_output,
        .queue_us = admitted - j->came_us,
        .prefill_us = j->admitted_us != 0 ? first - admitted : 0,
        .decode_us = j->first_us != 0 ? now - first : 0
    };

    for (uint32_t i = 0; j->choices != NULL && i < j->sched.n_seqs; i++) {
        u.n_reasoning_tok += j->choices[i].output.n_reasoning;
    }

    return u;
}


/* n bytes at `to`, as 2 n digits and a NUL. */
static void
hex(char *to, const uint8_t *p, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        snprintf(to + 2 * i, 3, "%02x", p[i]);
    }
}


/* One line about its end, by the names that the worker's log has for it. */
static void
log_end(enum log_level level, const struct job *j, const char *how)
{
    const struct abi_request *r = &j->prep.request.abi;
    const struct abi_usage    u = usage_of(j);
    char                      id[33], trace[33], span[17];

    if (level > log_max) {
        return;
    }

    if (j->state == JOB_PREPARING || r->n_bytes == 0) {
        log_line(level, "job %u.%llu of worker %d: %s", j->slot,
                 (unsigned long long) j->gen, j->channel->pid, how);
        return;
    }

    hex(id, r->id, sizeof(r->id));
    hex(trace, r->trace_id, sizeof(r->trace_id));
    hex(span, r->span_id, sizeof(r->span_id));

    log_line(level, "request %s of worker %d, trace %s-%s: %s; %u tokens of "
             "prompt, %u cached, %u said; %.3f s queued, %.3f s prefill, "
             "%.3f s decode", id, j->channel->pid, trace, span, how,
             u.n_prompt_tok, u.n_cached_tok, u.n_output_tok,
             (double) u.queue_us / 1e6, (double) u.prefill_us / 1e6,
             (double) u.decode_us / 1e6);
}


/* A terminal event that overtakes what waits for credit, and the end. */
static void
end_at_once(struct serve *s, struct job *j, uint8_t type, const void *a,
            size_t n_a, const void *b, size_t n_b)
{
    struct abi_frame f = serve_job_frame(j);

    f.type = type;
    f.n_bytes = (uint32_t) (n_a + n_b);
    serve_channel_put(j->channel, &f, a, n_a, b, n_b);
    job_free(s, j);
}


void
serve_job_cancel(struct serve *s, struct job *j)
{
    struct abi_usage u = usage_of(j);

    log_end(LOG_LEVEL_INFO, j, "cancelled");
    s->counts.cancelled++;
    end_at_once(s, j, ABI_CANCELLED, &u, sizeof(u), NULL, 0);
}


void
serve_job_lost(struct serve *s, struct job *j)
{
    log_end(LOG_LEVEL_INFO, j, "its worker left");
    s->counts.lost++;
    job_free(s, j);
}


void
serve_job_error(struct serve *s, struct job *j,
                const struct serve_refusal *why)
{
    char             text[ERROR_TEXT_MAX];
    size_t           n_param = strlen(why->param);
    size_t           n = strnlen(why->err.text, sizeof(text) - n_param);
    struct abi_error e = {
        .code = why->code,
        .n_text = (uint16_t) n,
        .n_param = (uint16_t) n_param,
        .retry_after_s = why->retry_after_s,
        .usage = usage_of(j)
    };

    /* Cut, if at all, in front of a character. */
    while (n > 0 && n < strlen(why->err.text)
           && ((uint8_t) why->err.text[n] & 0xc0) == 0x80)
    {
        n--;
    }

    e.n_text = (uint16_t) n;
    memcpy(text, why->err.text, n);
    memcpy(text + n, why->param, n_param);

    log_end(why->code == ABI_E_INTERNAL ? LOG_LEVEL_ERROR : LOG_LEVEL_INFO, j,
            why->err.text);

    s->counts.error++;
    end_at_once(s, j, ABI_ERROR, &e, sizeof(e), text, n + n_param);
}


static void
refuse(struct serve *s, struct job *j, uint32_t code, uint32_t retry_after_s,
       const char *text)
{
    struct serve_refusal why = { .code = 0 };

    err_set(serve_refusal_set(&why, code, ""), "%s", text);
    why.retry_after_s = retry_after_s;
    serve_job_error(s, j, &why);
}


/* When what waits will have been read, as far as one can tell. */
static uint32_t
retry_after_s(const struct serve *s)
{
    double n = cost_tok_us(&s->cost) * (double) s->n_waiting_tok / 1e6;

    return n < RETRY_AFTER_S ? RETRY_AFTER_S
           : n > RETRY_AFTER_MAX_S ? RETRY_AFTER_MAX_S : (uint32_t) n;
}


/* Jobs that have run, and had to give way, wait beside the queue's own. */
static int
queue_is_full(const struct serve *s)
{
    return s->n_waiting + s->n_preparing >= s->o->max_queue
           || s->n_jobs + s->n_preparing >= s->o->max_queue + s->o->max_seqs;
}


void
serve_job_fragment(struct serve *s, struct job *j, const void *p, size_t n,
                   int more)
{
    if (buf_add(&j->in, p, n) != 0) {
        refuse(s, j, ABI_E_BUSY, RETRY_AFTER_S, "no memory for the request");
        return;
    }

    j->channel->n_in_bytes += n;

    if (more) {
        return;
    }

    if (s->draining) {
        refuse(s, j, ABI_E_UNAVAILABLE, RETRY_AFTER_S,
               "the engine is shutting down");
        return;
    }

    if (serve_request_parse(j->in.p, j->in.n, s->model->n_text,
                            &j->prep.request, &j->prep.refusal) != 0)
    {
        struct serve_refusal why = j->prep.refusal;

        serve_job_error(s, j, &why);
        return;
    }

    if (queue_is_full(s)) {
        refuse(s, j, ABI_E_BUSY, retry_after_s(s),
               "the engine is busy and its queue is full");
        return;
    }

    j->state = JOB_PREPARING;
    s->n_preparing++;
    serve_prep_submit(&s->prep, &j->prep);
}


/* Its place among the jobs, and the memory for all that it may say. */
static int
enqueue(struct serve *s, struct job *j)
{
    const struct abi_request *r = &j->prep.request.abi;
    uint32_t n_prompt = (uint32_t) j->prep.prompt.ids.n;
    uint32_t room = s->model->n_ctx_tok - n_prompt;

    j->n_new = r->given & ABI_GIVEN_MAX_TOKENS && r->max_tokens < room
               ? r->max_tokens : room;

    for (uint32_t i = 0; i < r->n_resumes; i++) {
        if (j->prep.request.resumes[i].abi.n_tok > j->n_new) {
            return err_set(serve_refusal_set(&j->prep.refusal, ABI_E_CONTEXT,
                                             ""),
                           "%u tokens to go on from, but %u are the most",
                           j->prep.request.resumes[i].abi.n_tok, j->n_new);
        }
    }

    /* To say nothing takes as much as to say the first token. */
    uint64_t n_pages = sched_job_begin(&j->sched, &s->limits, n_prompt,
                                       j->n_new > 0 ? j->n_new : 1,
                                       r->n_choices);

    if (n_pages > kv_pages(s->kv) || r->n_choices > s->limits.n_seqs) {
        struct serve_refusal *why = &j->prep.refusal;

        return err_set(serve_refusal_set(why, ABI_E_CONTEXT, "n"),
                       "%u choices of %u tokens do not fit: they need %llu "
                       "pages of the %u there are, and %u of %u sequences",
                       r->n_choices, n_prompt + j->n_new,
                       (unsigned long long) n_pages, kv_pages(s->kv),
                       r->n_choices, s->limits.n_seqs);
    }

    if (serve_choices_begin(s, j) != 0) {
        struct serve_refusal *why = &j->prep.refusal;

        err_set(serve_refusal_set(why, ABI_E_BUSY, ""),
                "no memory for the request");
        why->retry_after_s = RETRY_AFTER_S;
        return -1;
    }

    return 0;
}


static void
set_rank(struct job *j)
{
    const struct serve_request *r = &j->prep.request;
    int32_t p = r->abi.priority;

    p = p < -PRIORITY_MAX ? -PRIORITY_MAX : p > PRIORITY_MAX ? PRIORITY_MAX : p;
    j->rank = (int64_t) j->came_us + (int64_t) p * PRIORITY_STEP_US;
    j->deadline_us = r->abi.deadline_ms == 0 ? 0
                     : j->came_us + r->abi.deadline_ms * 1000ULL;
    j->root = kv_root(r->salt.p, r->salt.n);
}


void
serve_job_deadlines(struct serve *s)
{
    uint64_t now = clock_us();

    for (uint32_t i = s->n_jobs; i-- > 0;) {
        struct job *j = s->jobs[i];

        if (j->deadline_us != 0 && j->first_us == 0 && now >= j->deadline_us) {
            refuse(s, j, ABI_E_DEADLINE, 0,
                   "no token came before the request's deadline");
        }
    }
}


void
serve_job_prepared(struct serve *s, struct job *j)
{
    s->n_preparing--;

    j->state = JOB_ASSEMBLING;      /* ours again, and on no list */

    if (j->channel == NULL) {
        job_free(s, j);
        return;
    }

    if (j->prep.refusal.code != 0 || enqueue(s, j) != 0) {
        struct serve_refusal why = j->prep.refusal;

        serve_job_error(s, j, &why);
        return;
    }

    if (s->n_waiting > 0
        && s->n_waiting_tok + j->sched.n_prompt > s->o->max_queue_tok)
    {
        refuse(s, j, ABI_E_BUSY, retry_after_s(s),
               "the engine is busy and its queue is full of tokens");
        return;
    }

    set_rank(j);
    free_in(j);
    j->state = JOB_WAITING;
    enlist(s, j);
}


int
serve_job_admitted(struct serve *s, struct job *j)
{
    j->state = JOB_RUNNING;

    if (j->admitted_us != 0) {
        return 0;               /* it had to give way for a while */
    }

    j->admitted_us = clock_us();
    s->counts.prompt_tok += j->sched.n_prompt;

    struct abi_start start = {
        .n_prompt_tok = j->sched.n_prompt,
        .n_cached_tok = j->n_cached,
        .queue_us = j->admitted_us - j->came_us
    };

    int rc = serve_output_frame(&j->outbox, serve_job_frame(j), ABI_START,
                                &start, sizeof(start), NULL, 0);

    if (rc == 0 && j->prep.request.abi.flags & ABI_FLAG_ECHO) {
        rc = serve_choices_echo(s, j);
    }

    serve_prompt_free(&j->prep.prompt);

    if (rc != 0) {
        refuse(s, j, ABI_E_BUSY, RETRY_AFTER_S, "no memory for the request");
        return -1;
    }

    serve_job_flush(s, j);

    return 0;
}


/* Is the frame a terminal one, which costs no credit? */
static int
terminal(const struct abi_frame *f)
{
    return f->type == ABI_DONE;
}


void
serve_job_flush(struct serve *s, struct job *j)
{
    while (j->n_out < j->outbox.n) {
        const char      *p = j->outbox.p + j->n_out;
        struct abi_frame f;

        memcpy(&f, p, sizeof(f));

        uint32_t cost = terminal(&f) ? 0 : ring_cells(f.n_bytes);

        if (cost > j->credits) {
            j->sched.paused = 1;
            return;
        }

        j->credits -= cost;
        serve_channel_put(j->channel, &f, p + sizeof(f), f.n_bytes, NULL, 0);
        j->n_out += sizeof(f) + f.n_bytes;
    }

    buf_reset(&j->outbox);
    j->n_out = 0;
    j->sched.paused = 0;

    if (j->state == JOB_FLUSHING) {
        s->counts.done++;
        job_free(s, j);
    }
}


/* All choices are over: DONE, behind whatever waits for credit.  Only that is
 * kept until then. */
static int
finish(struct serve *s, struct job *j)
{
    struct abi_usage u = usage_of(j);
    struct buf       rest = { NULL, 0, 0, 0 };

    if (serve_output_frame(&j->outbox, serve_job_frame(j), ABI_DONE, &u,
                           sizeof(u), NULL, 0) != 0
        || buf_add(&rest, j->outbox.p + j->n_out, j->outbox.n - j->n_out) != 0)
    {
        buf_free(&rest);
        return -1;
    }

    log_end(LOG_LEVEL_INFO, j, "done");
    unlist(s, j);
    free_running(s, j);
    buf_free(&j->outbox);
    j->outbox = rest;
    j->n_out = 0;
    j->state = JOB_FLUSHING;

    return 0;
}


int
serve_job_choice_end(struct serve *s, struct job *j, uint32_t i_choice,
                     enum abi_reason reason, int stopped)
{
    struct abi_finish finish_event = {
        .choice = (uint8_t) i_choice, .reason = (uint8_t) reason
    };

    int rc = serve_output_end(&j->choices[i_choice].output, stopped);

    rc = rc != 0 ? rc
         : serve_output_frame(&j->outbox, serve_job_frame(j), ABI_FINISH,
                              &finish_event, sizeof(finish_event), NULL, 0);

    drop_pages(s, j, i_choice);

    if (rc == 0 && sched_job_open(&j->sched) == 0) {
        rc = finish(s, j);
    }

    if (rc != 0) {
        refuse(s, j, ABI_E_INTERNAL, 0, "no memory for the answer");
    }

    return rc;
}
