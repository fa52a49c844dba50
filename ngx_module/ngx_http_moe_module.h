/*
 * ngx_http_moe_module.h - the types that the files of the module share.
 *
 * The mental model.  A request is a context (ctx).  Its body is parsed by one
 * of two dialects (api) into a payload, which a channel carries to the engine
 * in a slot.  Events come back by slot, are rendered by the same dialect into
 * the context's `out`, and leave through output.c; stream.c is the only place
 * where a request is finalised once it was submitted.
 *
 *      handler --> api --> channel == ring ==> engine
 *      client <-- output <-- stream, api <-- channel <== ring ==
 *
 * A slot outlives its context: when the client has left, the slot waits for
 * the engine's terminal event, without a context.  And a context outlives its
 * slot: when the engine is lost, it waits for another one (resume).  A group of
 * engines that serve the same model is a moe_engine; each is a peer of it, with
 * a channel of its own in each worker.
 */
#ifndef _NGX_HTTP_MOE_MODULE_H_INCLUDED_
#define _NGX_HTTP_MOE_MODULE_H_INCLUDED_


#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_http.h>

#include <jansson.h>

#include "../engine/ring.h"


/* Events that the engine may be ahead of a client, in cells, mostly a token
 * each: at most, and less where that spares half of a ring. */
#define NGX_HTTP_MOE_WINDOW_MAX   128

/* Nesting of a request's JSON; the engine reads up to 64. */
#define NGX_HTTP_MOE_DEPTH        48

/* Bytes of a whole answer that is not streamed; only a broken engine makes
 * more. */
#define NGX_HTTP_MOE_ANSWER_MAX   (64 * 1024 * 1024)

#define NGX_HTTP_MOE_BODY_MAX     (32 * 1024 * 1024)


/* Engines of one group: bits of ctx->tried. */
#define NGX_HTTP_MOE_PEERS_MAX    64


typedef struct ngx_http_moe_channel_s  ngx_http_moe_channel_t;
typedef struct ngx_http_moe_engine_s   ngx_http_moe_engine_t;
typedef struct ngx_http_moe_ctx_s      ngx_http_moe_ctx_t;
typedef struct ngx_http_moe_api_s      ngx_http_moe_api_t;
typedef struct ngx_http_moe_journal_s  ngx_http_moe_journal_t;
typedef struct ngx_http_moe_view_s     ngx_http_moe_view_t;


/* What all workers count of a group, in shared memory. */

#define NGX_HTTP_MOE_EDGES        18
#define NGX_HTTP_MOE_POWERS       14

typedef struct {
    ngx_atomic_t               count[NGX_HTTP_MOE_EDGES + 1];
    ngx_atomic_t               sum;             /* ms, or what is counted */
} ngx_http_moe_histogram_t;

/* Requests that are told apart: by what was asked for, and at their end by
 * whether that was an error. */

enum {
    NGX_HTTP_MOE_CHATS = 0,
    NGX_HTTP_MOE_TEXTS,
    NGX_HTTP_MOE_FAILED,                        /* beside either */
    NGX_HTTP_MOE_KINDS = 4
};

typedef struct {
    ngx_http_moe_histogram_t   first_token;     /* ms: */
    ngx_http_moe_histogram_t   inter_token;
    ngx_http_moe_histogram_t   duration;
    ngx_http_moe_histogram_t   queued;
    ngx_http_moe_histogram_t   prefill;
    ngx_http_moe_histogram_t   decode;
    ngx_http_moe_histogram_t   inference;       /* both */
    ngx_http_moe_histogram_t   prompt;          /* tokens: */
    ngx_http_moe_histogram_t   output;
    ngx_http_moe_histogram_t   max_tokens;
    ngx_http_moe_histogram_t   input_usage;     /* the same by powers of 4 */
    ngx_http_moe_histogram_t   output_usage;
    ngx_http_moe_histogram_t   choices;
} ngx_http_moe_kind_t;

enum {
    NGX_HTTP_MOE_END_STOP = 0,
    NGX_HTTP_MOE_END_LENGTH,
    NGX_HTTP_MOE_END_ERROR,
    NGX_HTTP_MOE_END_CANCELLED,
    NGX_HTTP_MOE_ENDS
};

typedef struct {
    ngx_queue_t                queue;
    ngx_atomic_t               n_ends[NGX_HTTP_MOE_ENDS];
    ngx_atomic_t               n_prompt;        /* tokens: */
    ngx_atomic_t               n_cached;
    ngx_atomic_t               n_output;
    ngx_atomic_t               n_reasoning;
    ngx_atomic_t               n_delivered;
    ngx_atomic_t               n_resumed;
    ngx_atomic_t               n_attached;
    ngx_atomic_t               n_wakeups;
    ngx_atomic_t               n_frames;
    ngx_atomic_t               n_missed;
    ngx_atomic_t               n_late;
    ngx_http_moe_kind_t        kinds[NGX_HTTP_MOE_KINDS];
    size_t                     len;
    u_char                     name[];
} ngx_http_moe_stat_t;


/* Configuration. */

typedef struct {
    ngx_http_moe_engine_t     *engine;
    ngx_uint_t                 index;
    struct sockaddr_un         sockaddr;
    socklen_t                  socklen;
    ngx_str_t                  socket;          /* as written */
    ngx_http_moe_channel_t    *channel;         /* of this process */

    uint64_t                   n_accepted;      /* == done + error */
    uint64_t                   n_done;          /*    + cancelled + open */
    uint64_t                   n_error;
    uint64_t                   n_cancelled;
    uint64_t                   n_open;
    uint64_t                   n_late;          /* frames of old uses */
    uint64_t                   n_missed;        /* wake-ups */
    uint64_t                   n_attached;      /* times */
    uint64_t                   n_resumed;       /* requests that it took over */
} ngx_http_moe_peer_t;

struct ngx_http_moe_engine_s {
    ngx_str_t                  name;
    ngx_array_t                peers;           /* ngx_http_moe_peer_t */
    ngx_array_t                aliases;         /* ngx_str_t */
    ngx_uint_t                 by_prefix;
    ngx_http_moe_stat_t       *stat;
    ngx_uint_t                 queue;
    ngx_uint_t                 queue_tokens;    /* 0: what the engine says */
    ngx_uint_t                 streams;
    ngx_msec_t                 connect_timeout;
    ngx_msec_t                 queue_timeout;
    ngx_msec_t                 first_token_timeout;
    ngx_msec_t                 token_timeout;
    ngx_msec_t                 request_timeout; /* 0: none */
    ngx_msec_t                 ping;            /* 0: none */
    ngx_msec_t                 heartbeat;
    ngx_msec_t                 resume_timeout;  /* 0: not resumed */

    /* Of this process. */
    ngx_queue_t                pending;         /* ctx: until one is there */
    ngx_queue_t                touched;         /* ctx: have bytes to send */
    ngx_queue_t                retired;         /* channels: until they end */
};

typedef struct {
    ngx_array_t                engines;         /* ngx_http_moe_engine_t * */
    ngx_array_t                token_zones;     /* ngx_shm_zone_t * */
    unsigned                   resume:1;        /* somewhere, moe_resume is */
} ngx_http_moe_main_conf_t;

typedef struct {
    ngx_str_t                  name;            /* as written */
    u_char                    *file;
    ngx_uint_t                 line;
    unsigned                   health:1;
    ngx_http_moe_engine_t     *engine;          /* NULL: not ours */
    ngx_msec_t                 header_delay;    /* until it is committed */
    ngx_array_t               *cors;            /* origins; NULL: off */
    ngx_array_t               *limits;          /* see limit.c; NULL: none */
    ngx_msec_t                 resume;          /* 0: streams are not kept */
    size_t                     resume_buffer;
    ngx_http_complex_value_t  *resume_key;      /* NULL: Authorization */
    ngx_http_complex_value_t  *priority;        /* NULL: 0 */
    ngx_http_complex_value_t  *cache_salt;      /* NULL: none */
} ngx_http_moe_loc_conf_t;


/* Token budgets: the nodes of a zone are its keys'. */

#define NGX_HTTP_MOE_KEY_MAX      1024

typedef struct {
    u_char                     color;
    u_char                     dummy;
    u_short                    len;
    ngx_queue_t                queue;           /* most recent first */
    ngx_msec_t                 last;            /* of `left` */
    int64_t                    left;            /* in the bucket */
    int64_t                    used;            /* of the quota */
    ngx_uint_t                 window;          /* which `used` is about */
    u_char                     data[1];
} ngx_http_moe_limit_node_t;

typedef struct {
    ngx_rbtree_t               rbtree;
    ngx_rbtree_node_t          sentinel;
    ngx_queue_t                queue;
} ngx_http_moe_limit_sh_t;

typedef struct {
    ngx_http_moe_limit_sh_t   *sh;
    ngx_slab_pool_t           *shpool;
    ngx_http_complex_value_t   key;
    ngx_str_t                  state;           /* path; empty: none */
} ngx_http_moe_limit_zone_t;

enum {
    NGX_HTTP_MOE_HOUR = 1,
    NGX_HTTP_MOE_DAY,
    NGX_HTTP_MOE_MONTH
};

typedef struct {
    ngx_shm_zone_t            *zone;
    int64_t                    rate;            /* in `per` ms; 0: none */
    int64_t                    per;
    int64_t                    burst;
    int64_t                    quota;           /* 0: none */
    ngx_uint_t                 period;
    int64_t                    prompt;          /* weights */
    int64_t                    cached;
    int64_t                    completion;
    ngx_uint_t                 dry_run;
} ngx_http_moe_limit_t;


/* JSON text that grows; a failed allocation is remembered, not reported. */

typedef struct {
    u_char                    *start;
    u_char                    *last;
    u_char                    *end;
    ngx_pool_t                *pool;
    ngx_uint_t                 failed;
} ngx_http_moe_text_t;


/* What went wrong, for the client. */

typedef struct {
    ngx_uint_t                 status;
    const char                *type;            /* NULL: that of the status */
    const char                *code;            /* NULL: null */
    ngx_str_t                  param;           /* empty: null */
    ngx_str_t                  message;
    const char                *allow;           /* Allow, of a 405 */
    ngx_uint_t                 retry_after;     /* seconds; 0: no header */
} ngx_http_moe_error_t;


/* A request's parameters, typed. */

typedef struct {
    struct abi_request         abi;
    ngx_str_t                  stops[ABI_STOPS_MAX];
    struct abi_bias           *biases;
    ngx_str_t                  model;           /* empty: any */
    ngx_str_t                  salt;
    uint32_t                   best_of;
    uint32_t                   prompt_logprobs; /* and one; 0: not asked for */
    uint32_t                   stream;
    uint32_t                   include_usage;
} ngx_http_moe_params_t;


/* A request's place in a trace: see trace.c. */

#define NGX_HTTP_MOE_SPAN_LEN         8
#define NGX_HTTP_MOE_TRACEPARENT_LEN  55

typedef struct {
    u_char                     id[16];
    u_char                     span[NGX_HTTP_MOE_SPAN_LEN];     /* ours */
    u_char                     flags;
    u_char                     parent[NGX_HTTP_MOE_TRACEPARENT_LEN];
    ngx_str_t                  state;           /* empty: none */
} ngx_http_moe_trace_t;


/* An event that has been checked. */

typedef struct {
    ngx_uint_t                 choice;
    ngx_uint_t                 channel;         /* enum abi_channel */
    ngx_uint_t                 n_tok;
    const u_char              *ids;             /* n_tok * uint32_t */
    ngx_str_t                  text;
    const u_char              *logprobs;        /* for _logprob_next() */
    ngx_uint_t                 n_logprobs;
} ngx_http_moe_delta_t;

typedef struct {
    uint32_t                   id;
    uint32_t                   rank;
    float                      logprob;         /* NaN: there is none */
    ngx_uint_t                 n_top;           /* that follow */
    ngx_str_t                  token;           /* maybe not whole UTF-8 */
} ngx_http_moe_logprob_t;


/* One of the n answers to a request. */

typedef struct {
    ngx_http_moe_text_t        content;         /* escaped; not streamed */
    ngx_http_moe_text_t        reasoning;
    ngx_http_moe_text_t        logprobs;        /* elements of an array */
    ngx_http_moe_text_t        values;          /* completions: its arrays */
    ngx_http_moe_text_t        tops;
    ngx_http_moe_text_t        offsets;
    ngx_http_moe_text_t        ids;             /* uint32_t of each token */
    size_t                     n_text;          /* bytes of text so far */
    ngx_uint_t                 n_chars;         /* of the text so far */
    ngx_uint_t                 reason;          /* enum abi_reason; 0: open */
    unsigned                   opened:1;        /* its first chunk was made */
} ngx_http_moe_choice_t;


typedef enum {
    NGX_HTTP_MOE_SLOT_FREE = 0,
    NGX_HTTP_MOE_SLOT_WAITING,                  /* nothing is sent yet */
    NGX_HTTP_MOE_SLOT_SENDING,                  /* some fragments are */
    NGX_HTTP_MOE_SLOT_OPEN                      /* a terminal event is due */
} ngx_http_moe_slot_state_e;

typedef struct {
    uint64_t                   gen;
    ngx_http_moe_ctx_t        *ctx;             /* NULL: the client left */
    ngx_msec_t                 cancelled;       /* when CANCEL was asked for */
    uint32_t                   window;          /* cells the engine has left */
    uint32_t                   credit;          /* cells to hand back */
    uint32_t                   next;            /* of the free list */
    uint8_t                    state;
    unsigned                   cancel:1;        /* CANCEL was asked for */
    unsigned                   unsent:1;        /* ... and has yet to go */
    unsigned                   queued:1;        /* no START came */
} ngx_http_moe_slot_t;


typedef enum {
    NGX_HTTP_MOE_DOWN = 0,
    NGX_HTTP_MOE_ATTACHING,
    NGX_HTTP_MOE_ATTACHED
} ngx_http_moe_channel_state_e;

struct ngx_http_moe_channel_s {
    ngx_http_moe_engine_t     *engine;
    ngx_http_moe_peer_t       *link;            /* the engine's address */
    ngx_queue_t                queue;           /* retired */
    ngx_log_t                 *log;
    ngx_http_moe_channel_state_e  state;

    ngx_connection_t          *sock;
    ngx_connection_t          *bell;
    struct ring_memory         own;
    struct ring_view           peer;
    struct ring_tx             tx;
    struct ring_rx             rx;
    struct abi_hello           hello;
    struct abi_welcome         welcome;

    ngx_http_moe_slot_t       *slots;
    uint32_t                   window;          /* cells of a slot */
    uint32_t                   refill;          /* handed back at once */
    uint32_t                   free;            /* first; n_slots: none */
    uint64_t                   gen;             /* last one given */
    uint64_t                   n_used;          /* slots */
    uint64_t                   n_queued;        /* of them, without START */
    uint64_t                   n_used_then;     /* when the page said: */
    uint64_t                   load;
    ngx_uint_t                 n_sleeps;        /* since bells were read */

    ngx_queue_t                sending;         /* ctx: until in the ring */

    ngx_event_t                retry;           /* connect again, or give up */
    ngx_event_t                tick;            /* each second */
    ngx_event_t                room;            /* the ring was full */
    ngx_event_t                next;            /* posted: go on draining */
    ngx_event_t                fault;           /* posted: detach */

    ngx_msec_t                 backoff;
    ngx_msec_t                 hurried;         /* when it did not wait */
    uint64_t                   heartbeat;       /* the engine's, last seen */
    ngx_msec_t                 heartbeat_seen;
    uint64_t                   late_head;       /* of rx, when it was late */
    const char                *reason;          /* of the posted fault */

    unsigned                   draining:1;      /* in drain(): publish later */
    unsigned                   late:1;          /* a bell may be lost */
    unsigned                   quiet:1;         /* said that it is absent */
    unsigned                   retire:1;        /* its engine takes no more */
    unsigned                   retired:1;       /* ends what it has */
};


struct ngx_http_moe_api_s {
    /* "object" of an answer, and of a chunk of a stream. */
    const char                *object;
    const char                *chunk;

    /* Body to payload: NGX_OK, or a status and ctx->error. */
    ngx_int_t                (*parse)(ngx_http_moe_ctx_t *ctx, json_t *body);

    /* Events to ctx->out (or into the choices). */
    void                     (*delta)(ngx_http_moe_ctx_t *ctx,
                                 const ngx_http_moe_delta_t *delta);
    void                     (*finish)(ngx_http_moe_ctx_t *ctx,
                                 ngx_uint_t choice);

    /* Of no stream: the choices, and what follows them. */
    void                     (*whole)(ngx_http_moe_ctx_t *ctx);

    /* The worth of one token of the prompt; may be NULL. */
    void                     (*prompt)(ngx_http_moe_ctx_t *ctx,
                                 const u_char *logprobs);

    ngx_uint_t                 kind;            /* for metrics */
};


/*
 * A stream's journal: what it has said, for a client that comes back.  Events
 * have the ids 1, 2, ...; blocks hold whole ones.
 */

#define NGX_HTTP_MOE_SECRET_LEN   16            /* random bytes of a stream */
#define NGX_HTTP_MOE_OWNER_LEN    20            /* SHA-1 of its credentials */
#define NGX_HTTP_MOE_TAG_LEN      8             /* of the worker that has it */

typedef struct {
    ngx_queue_t                queue;
    uint64_t                   first;           /* id */
    uint64_t                   n;               /* events */
    u_char                    *last;
    u_char                    *end;
    u_char                     data[];
} ngx_http_moe_block_t;

struct ngx_http_moe_view_s {
    ngx_http_moe_journal_t    *journal;         /* NULL: none yet */
    ngx_connection_t          *connection;      /* to the client's worker */
    ngx_http_moe_block_t      *block;           /* NULL: before the first */
    u_char                    *pos;             /* in it, to go next */
    unsigned                   asked:1;
};

struct ngx_http_moe_journal_s {
    ngx_str_node_t             sn;              /* by secret; first */
    ngx_queue_t                blocks;
    ngx_queue_t                queue;           /* kept */
    ngx_http_moe_engine_t     *engine;
    ngx_http_moe_ctx_t        *ctx;             /* NULL: the stream is over */
    ngx_http_moe_view_t       *view;            /* NULL: nobody reads it */
    ngx_event_t                timer;           /* when it is over */
    ngx_msec_t                 timeout;
    size_t                     limit;
    size_t                     n_bytes;
    uint64_t                   next;            /* id of the event to come */
    uint64_t                   sent;            /* up to it a client has had */
    ngx_uint_t                 n_tok;           /* that nobody was given */
    u_char                     secret[NGX_HTTP_MOE_SECRET_LEN];
    u_char                     owner[NGX_HTTP_MOE_OWNER_LEN];
    unsigned                   ended:1;
    unsigned                   kept:1;
};

/* From one worker to another, or to itself; the answer is a status, and after
 * 200 the stream's bytes. */

#define NGX_HTTP_MOE_ASK_MAGIC    0x31454f4d6b7361
#define NGX_HTTP_MOE_GONE         410

typedef struct {
    uint64_t                   magic;
    uint64_t                   cancel;
    uint64_t                   last;            /* id of the event it has */
    u_char                     secret[NGX_HTTP_MOE_SECRET_LEN];
    u_char                     owner[NGX_HTTP_MOE_OWNER_LEN];
    u_char                     zero[4];
} ngx_http_moe_ask_t;


typedef enum {
    NGX_HTTP_MOE_NO_END = 0,
    NGX_HTTP_MOE_DONE,
    NGX_HTTP_MOE_ERROR
} ngx_http_moe_end_e;

struct ngx_http_moe_ctx_s {
    ngx_http_request_t        *request;
    ngx_http_moe_engine_t     *engine;
    const ngx_http_moe_api_t  *api;

    ngx_http_moe_channel_t    *channel;         /* while in a slot */
    ngx_http_moe_slot_t       *slot;
    ngx_queue_t                queue;           /* pending or sending */
    ngx_queue_t                touch;           /* touched */
    ngx_event_t                timer;

    ngx_http_moe_params_t      params;
    u_char                    *payload;         /* kept, to be sent again */
    size_t                     n_payload;
    size_t                     n_base;          /* without resumes */
    size_t                     n_sent;

    ngx_str_t                  id;
    ngx_str_t                  model;
    time_t                     created;
    ngx_str_t                  prefix;          /* of each SSE event */
    ngx_str_t                  suffix;
    ngx_http_moe_choice_t     *choices;
    ngx_http_moe_text_t        prompt;          /* its logprobs, as JSON */
    ngx_uint_t                 n_prompt_told;   /* tokens of it, in PROMPTs */
    ngx_uint_t                 n_prompt_again;  /* ... that are known */

    ngx_http_moe_text_t        out;
    ngx_chain_t               *free;
    ngx_chain_t               *busy;
    uint32_t                   n_cells;         /* whose bytes have not left */
    ngx_uint_t                 n_tok_unsent;    /* tokens in them */

    ngx_array_t               *limits;          /* see limit.c; NULL: none */
    ngx_str_t                 *keys;            /* whom they charge */

    ngx_http_moe_journal_t    *journal;         /* NULL: is not kept */
    void                      *rejoin;          /* see rejoin.c */

    uint64_t                   tried;           /* peers that refused it */
    ngx_uint_t                 n_losses;        /* without a token between */

    ngx_msec_t                 header_delay;
    ngx_msec_t                 lost_at;
    ngx_msec_t                 left_at;         /* by the client */
    ngx_msec_t                 submitted;
    ngx_msec_t                 started;
    ngx_msec_t                 first_token;
    ngx_msec_t                 last_token;
    ngx_msec_t                 last_event;
    ngx_msec_t                 last_byte;

    uint64_t                   n_events;        /* whose ids were given */
    ngx_uint_t                 n_prompt;
    ngx_uint_t                 n_cached;
    ngx_uint_t                 n_output;
    ngx_uint_t                 n_reasoning;
    ngx_uint_t                 n_delivered;
    uint64_t                   queue_us;

    ngx_http_moe_error_t       error;
    ngx_str_t                  page;            /* the error's JSON */
    ngx_http_moe_end_e         end;

    unsigned                   submit:1;        /* was accepted at all */
    unsigned                   start:1;         /* START was seen */
    unsigned                   begun:1;         /* ... in this slot, no token */
    unsigned                   token:1;         /* seen in this slot */
    unsigned                   lost:1;          /* waits for another engine */
    unsigned                   resumed:1;       /* has had another one */
    unsigned                   header_sent:1;
    unsigned                   in_touched:1;
    unsigned                   in_queue:1;
    unsigned                   closed:1;        /* detached for good */
    unsigned                   unseen:1;        /* the client has left it */
    unsigned                   keepalive:1;     /* what the client asked */
    unsigned                   page_sent:1;
    unsigned                   budget:1;        /* ended by a limit */
};


/* json.c */
u_char *ngx_http_moe_text_reserve(ngx_http_moe_text_t *text, size_t n);
void ngx_http_moe_text_add(ngx_http_moe_text_t *text, const void *data,
    size_t n);
void ngx_http_moe_text_json(ngx_http_moe_text_t *text, const u_char *data,
    size_t n);
void ngx_http_moe_text_uint(ngx_http_moe_text_t *text, uint64_t n);
void ngx_http_moe_text_float(ngx_http_moe_text_t *text, float f);
ngx_int_t ngx_http_moe_hex(u_char *dst, u_char *src, size_t n);
ngx_uint_t ngx_http_moe_json_depth(const u_char *p, size_t n);

#define ngx_http_moe_text_lit(text, lit)                                      \
    ngx_http_moe_text_add(text, lit, sizeof(lit) - 1)

#define ngx_http_moe_text_len(text)  ((size_t) ((text)->last - (text)->start))

/* prompt.c */
void ngx_http_moe_prompt(ngx_http_moe_ctx_t *ctx, const u_char *logprobs);
void ngx_http_moe_prompt_json(ngx_http_moe_ctx_t *ctx);

/* error.c */
ngx_int_t ngx_http_moe_error(ngx_http_moe_ctx_t *ctx, ngx_uint_t status,
    const char *code, const char *param, const char *fmt, ...);
void ngx_http_moe_error_json(ngx_http_moe_text_t *text,
    const ngx_http_moe_error_t *e);
ngx_int_t ngx_http_moe_error_init(ngx_conf_t *cf);

/* headers.c */
ngx_int_t ngx_http_moe_header_add(ngx_http_request_t *r, const char *key,
    ngx_str_t *value);
ngx_int_t ngx_http_moe_header_lit(ngx_http_request_t *r, const char *key,
    const char *value);
ngx_str_t *ngx_http_moe_header_nth(ngx_http_request_t *r, const char *key,
    ngx_uint_t n);
ngx_str_t *ngx_http_moe_request_id(ngx_http_request_t *r);
ngx_int_t ngx_http_moe_headers(ngx_http_request_t *r);
char *ngx_http_moe_cors(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);
ngx_int_t ngx_http_moe_headers_init(ngx_conf_t *cf);

#define ngx_http_moe_header_in(r, key)  ngx_http_moe_header_nth(r, key, 0)

/* trace.c */
ngx_http_moe_trace_t *ngx_http_moe_trace(ngx_http_request_t *r);

/* params.c */
#define NGX_HTTP_MOE_CHAT         0x01
#define NGX_HTTP_MOE_COMPLETIONS  0x02

ngx_int_t ngx_http_moe_params_parse(ngx_http_moe_ctx_t *ctx, json_t *body,
    ngx_uint_t api);
ngx_int_t ngx_http_moe_params_payload(ngx_http_moe_ctx_t *ctx,
    ngx_uint_t kind, const void *text, json_t *json, size_t n);
const char *ngx_http_moe_type_name(const json_t *v);

/* api_chat.c, api_completions.c */
extern const ngx_http_moe_api_t  ngx_http_moe_api_chat;
extern const ngx_http_moe_api_t  ngx_http_moe_api_completions;

/* handler.c */
ngx_int_t ngx_http_moe_handler(ngx_http_request_t *r);
ngx_http_moe_ctx_t *ngx_http_moe_ctx_create(ngx_http_request_t *r);
ngx_http_moe_ctx_t *ngx_http_moe_ctx_find(ngx_http_request_t *r);
ngx_int_t ngx_http_moe_admit(ngx_http_moe_ctx_t *ctx);
ngx_int_t ngx_http_moe_unavailable(ngx_http_moe_ctx_t *ctx,
    const char *message);

/* stream.c */
ngx_int_t ngx_http_moe_stream_init(ngx_http_moe_ctx_t *ctx);
void ngx_http_moe_stream_start(ngx_http_moe_ctx_t *ctx,
    const struct abi_start *start);
void ngx_http_moe_stream_prompt(ngx_http_moe_ctx_t *ctx,
    const u_char *logprobs);
void ngx_http_moe_stream_delta(ngx_http_moe_ctx_t *ctx,
    const ngx_http_moe_delta_t *delta);
void ngx_http_moe_stream_finish(ngx_http_moe_ctx_t *ctx, ngx_uint_t choice,
    ngx_uint_t reason);
void ngx_http_moe_stream_done(ngx_http_moe_ctx_t *ctx,
    const struct abi_usage *usage);
void ngx_http_moe_stream_error(ngx_http_moe_ctx_t *ctx);
void ngx_http_moe_stream_usage(ngx_http_moe_ctx_t *ctx);
void ngx_http_moe_stream_close(ngx_http_moe_ctx_t *ctx);
void ngx_http_moe_stream_event(ngx_http_moe_ctx_t *ctx);
ngx_int_t ngx_http_moe_stream_watch(ngx_http_request_t *r,
    ngx_http_event_handler_pt handler);
void ngx_http_moe_stream_finalize(ngx_http_moe_ctx_t *ctx, ngx_int_t rc);

/* output.c */
void ngx_http_moe_output_flush(ngx_http_moe_ctx_t *ctx);
ngx_uint_t ngx_http_moe_output_hold(ngx_http_moe_ctx_t *ctx);
ngx_int_t ngx_http_moe_output_open(ngx_http_request_t *r);
ngx_int_t ngx_http_moe_output_wait(ngx_http_request_t *r);
void ngx_http_moe_output_write_handler(ngx_http_request_t *r);

/* timeout.c */
void ngx_http_moe_timeout_arm(ngx_http_moe_ctx_t *ctx);
void ngx_http_moe_timeout_handler(ngx_event_t *ev);

/* leave.c */
ngx_int_t ngx_http_moe_leave(ngx_http_moe_ctx_t *ctx);
void ngx_http_moe_leave_handler(ngx_http_request_t *r);
void ngx_http_moe_leave_unseen(ngx_http_moe_ctx_t *ctx);
void ngx_http_moe_leave_room(ngx_http_moe_ctx_t *ctx);
void ngx_http_moe_leave_replaced(ngx_http_moe_ctx_t *ctx);

/* journal.c */
void ngx_http_moe_journal_init(void);
void ngx_http_moe_journal_exit(void);
ngx_int_t ngx_http_moe_journal_owner(ngx_http_request_t *r, u_char *owner);
ngx_int_t ngx_http_moe_journal_create(ngx_http_moe_ctx_t *ctx,
    const u_char *secret);
ngx_http_moe_journal_t *ngx_http_moe_journal_find(const u_char *secret,
    const u_char *owner);
ngx_int_t ngx_http_moe_journal_add(ngx_http_moe_journal_t *j,
    const ngx_http_moe_text_t *text);
ngx_uint_t ngx_http_moe_journal_full(ngx_http_moe_journal_t *j);
ngx_int_t ngx_http_moe_journal_seek(ngx_http_moe_journal_t *j, uint64_t id,
    ngx_http_moe_view_t *view);
size_t ngx_http_moe_journal_read(ngx_http_moe_journal_t *j,
    ngx_http_moe_view_t *view);
void ngx_http_moe_journal_delivered(ngx_http_moe_journal_t *j);
void ngx_http_moe_journal_left(ngx_http_moe_journal_t *j);
void ngx_http_moe_journal_close(ngx_http_moe_ctx_t *ctx);
void ngx_http_moe_journal_destroy(ngx_http_moe_journal_t *j);

/* share.c */
void ngx_http_moe_share_init(ngx_log_t *log);
void ngx_http_moe_share_exit(void);
const u_char *ngx_http_moe_share_tag(void);
socklen_t ngx_http_moe_share_name(struct sockaddr_un *sun, const u_char *tag);
ngx_uint_t ngx_http_moe_share_trusted(ngx_socket_t s);
ngx_connection_t *ngx_http_moe_share_connection(ngx_socket_t s,
    ngx_log_t *log);
void ngx_http_moe_share_send(ngx_http_moe_journal_t *j);
void ngx_http_moe_share_ping(ngx_http_moe_journal_t *j);
void ngx_http_moe_share_close(ngx_http_moe_view_t *view);

/* rejoin.c */
ngx_int_t ngx_http_moe_rejoin_handler(ngx_http_request_t *r, ngx_str_t *id);

/* balance.c */
ngx_int_t ngx_http_moe_balance(ngx_http_moe_ctx_t *ctx,
    ngx_http_moe_channel_t **ch);
ngx_http_moe_channel_t *ngx_http_moe_balance_any(
    ngx_http_moe_engine_t *engine);
ngx_uint_t ngx_http_moe_balance_ready(ngx_http_moe_engine_t *engine);

/* resume.c */
void ngx_http_moe_resume_lost(ngx_http_moe_ctx_t *ctx, const char *message);
ngx_int_t ngx_http_moe_resume_elsewhere(ngx_http_moe_ctx_t *ctx,
    ngx_http_moe_channel_t *ch);
ngx_int_t ngx_http_moe_resume_successor(ngx_http_moe_ctx_t *ctx,
    ngx_http_moe_channel_t *ch);
void ngx_http_moe_resume_pending(ngx_http_moe_engine_t *engine);

/* channel.c */
ngx_int_t ngx_http_moe_channel_init(ngx_http_moe_engine_t *engine,
    ngx_cycle_t *cycle);
void ngx_http_moe_channel_exit(ngx_http_moe_engine_t *engine);
void ngx_http_moe_channel_retire(ngx_http_moe_channel_t *ch);
void ngx_http_moe_channel_fault(ngx_http_moe_channel_t *ch,
    const char *reason);
ngx_uint_t ngx_http_moe_channel_ready(ngx_http_moe_channel_t *ch);

/* slot.c */
void ngx_http_moe_slot_reset(ngx_http_moe_channel_t *ch);
ngx_int_t ngx_http_moe_slot_submit(ngx_http_moe_channel_t *ch,
    ngx_http_moe_ctx_t *ctx);
void ngx_http_moe_slot_leave(ngx_http_moe_ctx_t *ctx);
void ngx_http_moe_slot_credit(ngx_http_moe_ctx_t *ctx, uint32_t n_cells);
void ngx_http_moe_slot_lost(ngx_http_moe_channel_t *ch);
void ngx_http_moe_slot_push(ngx_http_moe_channel_t *ch);
void ngx_http_moe_slot_room(ngx_event_t *ev);
void ngx_http_moe_slot_drain(ngx_http_moe_channel_t *ch);
void ngx_http_moe_slot_touch(ngx_http_moe_ctx_t *ctx);
void ngx_http_moe_slot_flush(ngx_http_moe_engine_t *engine);
void ngx_http_moe_slot_stuck(ngx_http_moe_channel_t *ch);
void ngx_http_moe_slot_started(ngx_http_moe_channel_t *ch,
    ngx_http_moe_slot_t *slot);
void ngx_http_moe_slot_free(ngx_http_moe_channel_t *ch,
    ngx_http_moe_slot_t *slot);

/* event.c */
const char *ngx_http_moe_event(ngx_http_moe_channel_t *ch,
    const struct abi_frame *f, const u_char *data);
void ngx_http_moe_event_logprob(const u_char **p, ngx_http_moe_logprob_t *lp);

/* status.c */
ngx_int_t ngx_http_moe_models_handler(ngx_http_request_t *r,
    ngx_http_moe_engine_t *engine, ngx_str_t *id);
ngx_int_t ngx_http_moe_health_handler(ngx_http_request_t *r);
uint64_t ngx_http_moe_health_word(ngx_http_moe_engine_t *engine,
    size_t offset);
ngx_int_t ngx_http_moe_text_send(ngx_http_request_t *r, ngx_uint_t status,
    const char *type, ngx_http_moe_text_t *text);

/* limit.c */
ngx_int_t ngx_http_moe_limit_begin(ngx_http_moe_ctx_t *ctx);
ngx_int_t ngx_http_moe_limit_prompt(ngx_http_moe_ctx_t *ctx);
ngx_int_t ngx_http_moe_limit_tokens(ngx_http_moe_ctx_t *ctx, ngx_uint_t n);
ngx_int_t ngx_http_moe_limit_headers(ngx_http_moe_ctx_t *ctx);
ngx_int_t ngx_http_moe_limit_init_zone(ngx_shm_zone_t *shm_zone,
    void *data);
ngx_int_t ngx_http_moe_limit_restore(ngx_shm_zone_t *zone, ngx_str_t *key,
    ngx_uint_t window, int64_t used);

/* limit_conf.c */
char *ngx_http_moe_token_zone(ngx_conf_t *cf, ngx_command_t *cmd, void *conf);
char *ngx_http_moe_limit_tokens_conf(ngx_conf_t *cf, ngx_command_t *cmd,
    void *conf);

/* limit_state.c */
void ngx_http_moe_limit_state_start(ngx_http_moe_main_conf_t *mmcf,
    ngx_log_t *log);
void ngx_http_moe_limit_state_save(ngx_http_moe_main_conf_t *mmcf,
    ngx_log_t *log);
void ngx_http_moe_limit_state_load(ngx_shm_zone_t *zone);

/* metrics.c */
ngx_int_t ngx_http_moe_metrics_init(ngx_conf_t *cf);
void ngx_http_moe_metrics_observe(ngx_http_moe_histogram_t *h, uint64_t n);
void ngx_http_moe_metrics_phases(ngx_http_moe_ctx_t *ctx,
    const struct abi_usage *usage);
void ngx_http_moe_metrics_end(ngx_http_moe_ctx_t *ctx);

#define ngx_http_moe_metrics_kind(ctx)                                        \
    (&(ctx)->engine->stat->kinds[(ctx)->api->kind])

#define ngx_http_moe_metrics_add(engine, counter, n)                          \
    (void) ngx_atomic_fetch_add(&(engine)->stat->counter,                     \
                                (ngx_atomic_int_t) (n))

/* Upper edges, of milliseconds and of numbers: three to a decade; and those
 * that OpenTelemetry wants for its token usage. */

extern const ngx_uint_t  ngx_http_moe_edges[NGX_HTTP_MOE_EDGES];
extern const ngx_uint_t  ngx_http_moe_powers[NGX_HTTP_MOE_POWERS];

/* prometheus.c */
ngx_int_t ngx_http_moe_prometheus_handler(ngx_http_request_t *r);

/* variables.c */
ngx_int_t ngx_http_moe_variables_add(ngx_conf_t *cf);


extern ngx_module_t  ngx_http_moe_module;


#endif /* _NGX_HTTP_MOE_MODULE_H_INCLUDED_ */
