/*
 * serve.h - the engine's loop: workers come and go, their requests become
 * tokens, one step after the other.
 *
 * The mental model.  One thread runs everything but the making of prompts
 * (serve_prep), the inside of a forward call, and what its rows become
 * (serve_answer).  Each turn of the loop:
 *
 *   sockets and bells -> frames of all workers -> one step of all jobs
 *     -> per worker: one publication, at most one bell -> sleep, if idle
 *
 * Where the device chooses tokens by itself it is given the next step before
 * those of the last are read: see serve/step.c.
 *
 * A job is in exactly one of these states, and every one ends in one terminal
 * event, or in the death of its worker:
 *
 *   ASSEMBLING -> PREPARING -> WAITING <-> RUNNING -> FLUSHING
 *
 * serve/channel.c knows workers, serve/job.c the life of a job,
 * serve/choices.c what its answers begin with, serve/step.c the model,
 * serve/answer.c what is said, serve/pages.c where in the model the keys of a
 * job are.  What is here is shared by these files and by no others.
 */
#ifndef MOE_SERVE_H
#define MOE_SERVE_H

#include "abi.h"
#include "kv.h"
#include "ring.h"
#include "sampler.h"
#include "sched.h"
#include "serve/cost.h"
#include "serve/output.h"
#include "serve/prep.h"

struct serve_options {
    int         listen_fd;
    int         ready_fd;       /* one byte goes there when requests may come;
                                   -1: nobody waits */
    const char *name;           /* served model name */
    int64_t     allow_uid;      /* -1: whoever may connect */
    uint32_t    max_seqs;
    uint32_t    max_queue;
    uint64_t    max_queue_tok;  /* of prompts that wait */
    uint32_t    max_batch_tok;
    uint64_t    step_us;        /* that a prompt may add to a step */
    int         prefix_cache;
    uint64_t    drain_us;       /* what runs may still take after SIGTERM */
};

enum job_state {
    JOB_ASSEMBLING,             /* fragments of the request come in */
    JOB_PREPARING,              /* serve_prep has it */
    JOB_WAITING,                /* for the scheduler, perhaps once more */
    JOB_RUNNING,
    JOB_FLUSHING                /* over, but for events without credit */
};

struct choice {
    uint32_t       *tokens;     /* (n_prompt + n_new) prompt and output */
    uint32_t       *pages;      /* (longest) common ones first */
    struct kv_name *names;      /* (n_names) of the first of them */
    uint32_t        n_names;
    uint32_t       *seen;       /* (n_text) see sampler.h; or NULL */
    uint32_t        n_output;   /* tokens said */
    uint32_t        n_resume;   /* tokens that another engine has said */
    uint32_t        reason;     /* ... and why it then ended; or 0 */
    uint32_t        chosen;     /* its last token is what row chosen - 1 of the
                                   step under way will have; or 0 */
    uint8_t         over;       /* in this step: enum abi_reason; or 0 */
    uint8_t         stopped;    /* ... by a stop string */
    struct sampler_params sampler;
    struct serve_output output;
};

struct job {
    struct serve_prep_item prep;        /* first: what serve_prep_take gives */
    struct sched_job    sched;          /* what the scheduler sees */
    struct channel     *channel;        /* NULL: nobody waits for it any more */
    uint16_t            slot;
    uint8_t             state;          /* enum job_state */
    uint64_t            gen;
    uint32_t            credits;        /* cells */

    struct buf          in;             /* the request, until it is prepared */
    struct arena        arena;          /* from admission to the end */
    struct choice      *choices;        /* (sched.n_seqs) */
    struct buf          outbox;         /* frames; see serve/output.h */
    size_t              n_out;          /* bytes of it in the ring already */

    int64_t             rank;           /* lower goes first; see job.c */
    struct kv_name      root;           /* of its tenant's pages */
    uint32_t            n_cached;       /* tokens of the prompt */

    uint64_t            came_us;
    uint64_t            deadline_us;    /* for the first token; 0: none */
    uint64_t            admitted_us;
    uint64_t            first_us;       /* of the first token */
    uint32_t            n_new;          /* tokens that it may say */
    uint32_t            n_top;          /* logprobs of a token; 0: none */
    uint32_t            n_prompt_top;   /* and of one of the prompt */
    uint32_t            n_told;         /* tokens of the prompt, of these */
    uint32_t            n_output;       /* of all choices */
    uint32_t            n_drawn;        /* of them in this step */
    const char         *failed;         /* in this step, why; or NULL */
    uint8_t             ignore_eos;
};

/* Whose segment it is, and what it has brought. */
struct run {
    struct job     *job;        /* NULL: it has ended since */
    uint32_t        i_choice;
    uint32_t        ends;       /* no token was known behind it */
    const float    *rows;       /* (n_rows, n_vocab); or NULL, where the device
                                   has chosen ... */
    const uint32_t *tokens;     /* (n_rows) these */
};

/* A step that the model was given, until what it brings is answered. */
struct flight {
    struct model_segment *segments;     /* (max_seqs) */
    struct run           *runs;         /* (max_seqs) whose they are */
    int                   n_segs;
    int                   samples;      /* tokens, not logits, are brought */
    uint64_t              start_us;
    struct cost_step      cost;
    int                   has_prompt;
};

struct slot {
    struct job *job;
    uint64_t    gen;            /* of the last use */
};

struct channel {
    struct channel     *next;
    int                 sock;
    int                 bell;           /* -1: HELLO has not come */
    uint8_t             dead;           /* to be reaped */
    uint8_t             more;           /* frames were left in the ring */
    uint32_t            uid;
    int                 pid;
    uint64_t            since_us;
    struct ring_memory  memory;
    struct ring_view    view;
    struct ring_tx      tx;
    struct ring_rx      rx;
    struct slot        *slots;          /* (n_slots) */
    uint32_t            n_slots;
    uint32_t            window_cells;
    size_t              n_in_bytes;     /* of requests not yet prepared */
    uint64_t            n_late;         /* frames of uses that are over */
};

/* Requests: accepted = done + error + cancelled + lost + open. */
struct serve_counts {
    uint64_t    accepted;
    uint64_t    done;
    uint64_t    error;
    uint64_t    cancelled;
    uint64_t    lost;           /* their worker went away */
    uint64_t    prompt_tok;
    uint64_t    output_tok;
    uint64_t    steps;
    uint64_t    prefix_queries_tok;
    uint64_t    prefix_hits_tok;
    uint64_t    preemptions;
};

struct serve {
    const struct serve_options *o;
    const struct serve_model   *model;
    struct serve_prep   prep;
    struct kv          *kv;
    struct sched_limits limits;
    struct cost         cost;           /* of late steps */

    struct job        **jobs;           /* WAITING and RUNNING, by rank */
    struct sched_job  **plan;           /* the same, as the scheduler has it */
    uint32_t            n_jobs;
    uint32_t            n_running;      /* this and the next: of them */
    uint32_t            n_waiting;
    uint64_t            n_waiting_tok;  /* of their prompts */
    uint32_t            n_preparing;

    struct flight       flights[2];     /* the next one is n_launched % 2 */
    uint32_t            n_launched;
    uint32_t            n_answered;     /* of them; all, but one at most between
                                           two turns of the loop */
    uint64_t            answered_us;    /* the last of them */
    struct sample      *how;            /* (max_seqs) a token is chosen */
    int                *firsts;         /* (max_seqs + 1) of each job's */
    struct sampler     *samplers;       /* (n_samplers) one a thread */
    uint32_t            n_samplers;

    struct channel     *channels;
    uint32_t            n_channels;
    uint8_t             draining;
    struct serve_counts counts;
};

/* Serves until SIGTERM, then ends what it has; SIGQUIT: at once.  Returns 0, or
 * -1 and e. */
int serve_run(const struct serve_options *o, const struct serve_model *m,
              struct err *e);

/* serve/channel.c */

/* Takes a connection; it is a channel when its HELLO is good.  -1 and errno:
 * no descriptors or no memory, and the connection waits on. */
int serve_channel_accept(struct serve *s, int epoll);
/* Its socket has something: HELLO, EOF, or what must not be. */
void serve_channel_socket(struct serve *s, struct channel *c, int epoll);
/* Takes frames, within a bound. */
void serve_channel_read(struct serve *s, struct channel *c);
/* Shows the worker what was written, and how the engine is. */
void serve_channel_publish(const struct serve *s, struct channel *c);
/* 1: may sleep, the bell will ring. */
int serve_channel_sleep(struct channel *c);
/* Its peer is gone or has broken the contract; reaped by the loop. */
void serve_channel_fault(struct channel *c, const char *why);
void serve_channel_free(struct serve *s, struct channel *c);
/* One frame; what cannot be written is the worker's fault. */
void serve_channel_put(struct channel *c, const struct abi_frame *f,
                       const void *a, size_t n_a, const void *b, size_t n_b);

/* serve/job.c */

static inline struct abi_frame
serve_job_frame(const struct job *j)
{
    return (struct abi_frame) { .slot = j->slot, .gen = j->gen };
}

struct job *serve_job_begin(struct serve *s, struct channel *c, uint16_t slot,
                            uint64_t gen);
/* A fragment of the request; the last one starts it. */
void serve_job_fragment(struct serve *s, struct job *j, const void *p,
                        size_t n, int more);
/* serve_prep is done with it: it waits, or is refused. */
void serve_job_prepared(struct serve *s, struct job *j);
/* Who waits, and who runs, has changed. */
void serve_job_count(struct serve *s);
/* Ends those whose first token is late. */
void serve_job_deadlines(struct serve *s);
/* Its next step comes, after a time without.  0; -1: no memory, it has
 * ended. */
int serve_job_admitted(struct serve *s, struct job *j);
/* Moves the outbox into the ring as far as credit goes. */
void serve_job_flush(struct serve *s, struct job *j);
/* One choice is over; with the last one the job is FLUSHING.  0; -1: no memory,
 * it has ended. */
int serve_job_choice_end(struct serve *s, struct job *j, uint32_t i_choice,
                         enum abi_reason reason, int stopped);
void serve_job_cancel(struct serve *s, struct job *j);
void serve_job_error(struct serve *s, struct job *j,
                     const struct serve_refusal *why);
/* Nobody is there to be told. */
void serve_job_lost(struct serve *s, struct job *j);

/* serve/choices.c */

/* All the memory that the job's choices will need; 0, or -1: there is none. */
int serve_choices_begin(const struct serve *s, struct job *j);
/* A completion's prompt in front of its answer, of every choice; 0, or -1: no
 * memory. */
int serve_choices_echo(const struct serve *s, struct job *j);

/* serve/pages.c */

/* What has the cache for a waiting job? */
void serve_pages_ask(const struct serve *s, struct job *j);
/* A running job loses its pages. */
void serve_pages_preempt(struct serve *s, struct job *j);
/* Hands out pages as planned. */
void serve_pages_follow(struct serve *s);
/* The choices that have not begun do. */
void serve_pages_fork(struct serve *s, struct job *j);
/* Tokens [from, to) have come into the pages, and are known. */
void serve_pages_filled(struct serve *s, struct job *j, uint32_t k,
                        uint32_t from, uint32_t to);
/* A choice is about to end. */
void serve_pages_drop(struct serve *s, struct job *j, uint32_t k);

/* serve/score.c */

/* Rows of logits of one step for that, beside one a sequence. */
#define SERVE_SCORE_ROWS    64

/* Are there tokens of its prompt whose worth is still to be told?  Then every
 * row of the prompt is wanted, and none may come out of a cache. */
int serve_score_wanted(const struct job *j);
/* Bytes that a step can add to the outbox. */
size_t serve_score_bytes(const struct job *j);
/* Tells what the rows of a segment say of it.  0; -1: no memory, or a row that
 * is not finite. */
int serve_score_tell(const struct serve *s, struct sampler *sampler,
                     struct job *j, uint32_t i_choice,
                     const struct model_segment *g, const float *logits);

/* serve/answer.c */

int serve_answer_begin(struct serve *s);        /* -1: no memory */
void serve_answer_end(struct serve *s);
/* What a step has computed: what is said, and what ends. */
void serve_answer(struct serve *s, struct flight *f,
                  const struct model_result *got);

/* serve/step.c */

/* Pages, scratch and lists for max_seqs and max_queue. */
int serve_step_begin(struct serve *s, struct err *e);
void serve_step_end(struct serve *s);
/* Gives the model a step, or takes what one has brought, or both.  1: something
 * ran; 0: nothing could. */
int serve_step(struct serve *s);
/* The job ends: what a step under way will bring it is for nobody. */
void serve_step_without(struct serve *s, const struct job *j);

#endif /* MOE_SERVE_H */
