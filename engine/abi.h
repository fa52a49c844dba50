/*
 * abi.h - the contract between an NGINX worker and an engine: everything that
 * crosses the process boundary, and nothing else.
 *
 * The mental model.  A worker and an engine that meet share one SEQPACKET
 * socket (the handshake; its EOF is the other's death), one bell (a socket
 * pair that carries bytes without meaning) and two memfds.  Each memfd has ONE
 * writer, enforced by the kernel: the worker writes its memory (requests), the
 * engine writes its own (events), each reads the other's.  A memfd is a header
 * page and a ring of frames.  No pointers, locks, pids or sizes live there;
 * geometry comes from the handshake and is kept privately by both sides.
 *
 *      worker memory:  [ struct abi_page | ring of REQUEST CANCEL CREDIT ]
 *      engine memory:  [ struct abi_page | ring of START DELTA FINISH DONE .. ]
 *
 * A request lives in a slot of its worker.  A slot is used again and again, so
 * each use has a generation; a frame for another generation is late, is
 * dropped and counted.  Every accepted request ends in exactly one of DONE,
 * ERROR, CANCELLED.
 *
 * Credits.  An event frame costs its length in cells.  A new request owns
 * `window_cells` of them; the worker gives cells back with CREDIT when the
 * client has taken the bytes.  A terminal frame costs none and is at most
 * ABI_TERMINAL_CELLS long, so that a stalled stream can always be ended.
 * Since the event ring holds n_slots windows and terminals, it cannot fill; a
 * client that does not read stops its own stream alone.  Two rules make that
 * so (t/spin/credit.pml): a slot is used again only after its terminal frame
 * was taken, and the worker releases events before it publishes credits and
 * requests that they paid for.
 *
 * All integers are little-endian as the machine has them (x86-64), all structs
 * are without padding, and their sizes are asserted below.  This header must
 * not know NGINX, JSON, models or threads.
 */
#ifndef MOE_ABI_H
#define MOE_ABI_H

#include <assert.h>
#include <stdint.h>

#define ABI_MAGIC           0x31454f4d78676eULL     /* "ngxMOE1" */
#define ABI_MAJOR           4       /* differs: refused */
#define ABI_MINOR           0       /* the smaller of both is spoken */

/* Feature bits: both sides send theirs, the AND of them is used. */
#define ABI_FEATURE_RESUME  0x1ULL  /* engine: honours n_resumes */
#define ABI_FEATURES        ABI_FEATURE_RESUME

#define ABI_PAGE_BYTES      4096    /* header page; the ring starts behind it */
#define ABI_CELL_BYTES      64      /* frames start on and fill whole cells */
#define ABI_FRAME_MAX       16384   /* bytes of one frame with its header */
#define ABI_EVENT_MAX       4096    /* the same for engine -> worker frames */
#define ABI_REQUEST_MAX     (32u << 20)     /* bytes of an assembled request */
#define ABI_RING_MAX        (256u << 20)    /* bytes of a ring, either way */
#define ABI_SLOTS_MAX       16384
#define ABI_WINDOW_MIN      (ABI_EVENT_MAX / ABI_CELL_BYTES)
#define ABI_WINDOW_MAX      65536
#define ABI_TERMINAL_CELLS  16      /* DONE, ERROR, CANCELLED: no longer */
#define ABI_CHOICES_MAX     8       /* OpenAI's n */
#define ABI_STOPS_MAX       16
#define ABI_BIASES_MAX      1024
#define ABI_TOP_LOGPROBS_MAX 20
#define ABI_NAME_MAX        128
#define ABI_SALT_MAX        1024    /* bytes */


/*
 * Header page.  Each word that moves has one writer (the owner of the memfd)
 * and two cache lines of its own.  `head` and `wake_at` are about the OTHER
 * memfd's ring, of which the owner of this page is the consumer.
 */
struct abi_page {
    uint64_t    magic;
    uint32_t    major;
    uint32_t    minor;
    uint64_t    n_bytes;        /* of the whole memfd */
    uint64_t    generation;     /* engine: of this attach; worker: the same */
    uint32_t    crc;            /* CRC-32 of the 32 bytes before it */
    uint32_t    pad0[23];

    uint64_t    tail;           /* bytes ever produced into this ring */
    uint64_t    pad1[15];
    uint64_t    head;           /* bytes ever consumed from the other ring */
    uint64_t    pad2[15];
    uint64_t    wake_at;        /* "ring me when your tail passes this" */
    uint64_t    pad3[15];
    uint64_t    heartbeat;      /* moves at least every 100 ms */
    uint64_t    pad4[15];

    /* Engine's page only: what admission and /health read without asking. */
    uint64_t    state;          /* enum abi_state */
    uint64_t    n_running;      /* jobs in the batch */
    uint64_t    n_queued;       /* jobs that wait */
    uint64_t    max_running;
    uint64_t    max_queued;
    uint64_t    kv_pages;       /* in all */
    uint64_t    kv_pages_used;
    uint64_t    n_prompt_tok;   /* ever read */
    uint64_t    n_output_tok;   /* ever generated */
    uint64_t    n_steps;        /* forward passes ever */
    uint64_t    n_queued_tok;   /* prompt tokens of the jobs that wait */
    uint64_t    max_queued_tok;
    uint64_t    n_prefix_queries_tok;   /* ever looked up in the cache ... */
    uint64_t    n_prefix_hits_tok;      /* ... and found there */
    uint64_t    n_preemptions;  /* jobs that had to give their pages back */
    uint64_t    pad5;

    uint8_t     rest[ABI_PAGE_BYTES - 6 * 128];
};

enum abi_state {
    ABI_STATE_READY = 1,
    ABI_STATE_DRAINING = 2      /* finishes what it has, takes nothing new */
};


/*
 * Handshake, one SEQPACKET message each.
 *   worker -> engine  HELLO    2 fds: worker memfd, engine's end of the bell
 *   engine -> worker  WELCOME  1 fd:  engine memfd
 *                 or  REFUSE   0 fds, then EOF
 * After that the socket is silent; EOF on it is the death of the peer.
 */
enum abi_message {
    ABI_HELLO = 1,
    ABI_WELCOME = 2,
    ABI_REFUSE = 3
};

struct abi_hello {
    uint64_t    magic;
    uint32_t    message;        /* ABI_HELLO */
    uint32_t    n_bytes;        /* sizeof(struct abi_hello) */
    uint32_t    major;
    uint32_t    minor;
    uint64_t    features;
    uint32_t    n_slots;        /* 1 .. ABI_SLOTS_MAX */
    uint32_t    window_cells;   /* ABI_WINDOW_MIN .. _MAX, per slot */
    uint64_t    request_ring_bytes;     /* 2 * ABI_FRAME_MAX .. _RING_MAX */
    uint64_t    event_ring_bytes;       /* ring_event_bytes(n_slots, window) */
    uint64_t    nonce;          /* goes into the worker page's generation */
};

struct abi_welcome {
    uint64_t    magic;
    uint32_t    message;        /* ABI_WELCOME */
    uint32_t    n_bytes;        /* sizeof(struct abi_welcome) */
    uint32_t    major;
    uint32_t    minor;
    uint64_t    features;
    uint64_t    generation;     /* of this attach, never 0, never used before */
    uint64_t    created;        /* model files' time, seconds since 1970 */
    uint32_t    n_ctx_tok;      /* longest prompt + answer */
    uint32_t    n_vocab;
    char        model[ABI_NAME_MAX];    /* NUL-terminated served name */
    char        owner[ABI_NAME_MAX];    /* "owned_by" of /v1/models */
};

struct abi_refuse {
    uint64_t    magic;
    uint32_t    message;        /* ABI_REFUSE */
    uint32_t    n_bytes;
    char        text[248];      /* NUL-terminated reason */
};


/* Frames.  A frame is this header, `n_bytes` of payload, and padding up to the
 * next cell.  A frame never wraps: what is left before the end of the ring is
 * filled with one PAD frame. */
struct abi_frame {
    uint32_t    n_bytes;        /* of payload */
    uint8_t     type;           /* enum abi_type */
    uint8_t     flags;          /* ABI_MORE, or 0 */
    uint16_t    slot;
    uint64_t    gen;            /* of the slot's use; 0 in PAD */
};

#define ABI_MORE            0x01    /* REQUEST: another fragment follows */

enum abi_type {
    ABI_PAD = 1,

    /* worker -> engine */
    ABI_REQUEST = 16,           /* a fragment of struct abi_request + tail */
    ABI_CANCEL = 17,            /* no payload */
    ABI_CREDIT = 18,            /* struct abi_credit */

    /* engine -> worker */
    ABI_START = 32,             /* struct abi_start: prompt is tokenised */
    ABI_DELTA = 33,             /* struct abi_delta + ids + text + logprobs */
    ABI_FINISH = 34,            /* struct abi_finish: one per choice */
    ABI_DONE = 35,              /* struct abi_usage: terminal */
    ABI_ERROR = 36,             /* struct abi_error + text: terminal */
    ABI_CANCELLED = 37,         /* struct abi_usage: terminal */
    ABI_PROMPT = 38             /* logprobs of one token of the prompt */
};

struct abi_credit {
    uint32_t    n_cells;        /* handed back */
    uint32_t    zero;
};


/*
 * REQUEST, after its fragments are joined:
 *
 *   struct abi_request
 *   body            n_body bytes, padded to 8
 *   biases          n_biases  * struct abi_bias
 *   stops           n_stops   * (uint32_t n; bytes, padded to 4)
 *   salt            n_salt bytes, padded to 4
 *   resumes         n_resumes * (struct abi_resume; n_tok * uint32_t)
 *
 * `body` of a CHAT is a JSON object of the template's variables: "messages"
 * (content always a string or null) and, where the request had them, "tools",
 * "documents" and the members of "chat_template_kwargs", flattened; of a
 * COMPLETION it is the prompt as UTF-8 text, of a COMPLETION_IDS the prompt as
 * uint32_t token ids.
 *
 * A request that another engine has answered in part goes on where that one
 * was lost (D5): each choice says which tokens it had and how many bytes of
 * text.  Those are read like a prompt, and events tell only what follows them.
 * A seed is given then, lest the rest be of another mind.
 *
 * Two requests share what the prefix cache has of their prompts if their salts
 * are the same: it names the tenant, who cannot find out by the clock what
 * another one has asked.
 *
 * A parameter whose bit is not in `given` takes the model's default
 * (generation_config.json), then OpenAI's.
 */
enum abi_kind {
    ABI_CHAT = 1,
    ABI_COMPLETION = 2,
    ABI_COMPLETION_IDS = 3
};

#define ABI_GIVEN_TEMPERATURE   0x001
#define ABI_GIVEN_TOP_P         0x002
#define ABI_GIVEN_TOP_K         0x004
#define ABI_GIVEN_MIN_P         0x008
#define ABI_GIVEN_REPETITION    0x010
#define ABI_GIVEN_SEED          0x020
#define ABI_GIVEN_MAX_TOKENS    0x040
#define ABI_GIVEN_ALL           0x07f

#define ABI_FLAG_LOGPROBS       0x01    /* of each token, and n_top_logprobs */
#define ABI_FLAG_ECHO           0x02    /* completions: the prompt as well */
#define ABI_FLAG_IGNORE_EOS     0x04
#define ABI_FLAG_RAW_REASONING  0x08    /* leave <think> text in content */
#define ABI_FLAG_PROMPT_LOGPROBS 0x10   /* of the prompt, and n_prompt_top */
#define ABI_FLAG_ALL            0x1f

struct abi_request {
    uint32_t    n_bytes;        /* of everything, this struct included */
    uint32_t    kind;           /* enum abi_kind */
    uint32_t    n_choices;      /* 1 .. ABI_CHOICES_MAX */
    uint32_t    given;          /* ABI_GIVEN_* */
    uint32_t    flags;          /* ABI_FLAG_* */
    uint32_t    max_tokens;     /* unless given: up to n_ctx_tok */
    float       temperature;    /* 0 .. 2; 0 = greedy */
    float       top_p;          /* (0 .. 1] */
    float       min_p;          /* [0 .. 1] */
    int32_t     top_k;          /* >= 1; -1 or 0 = all */
    float       presence;       /* -2 .. 2 */
    float       frequency;      /* -2 .. 2 */
    float       repetition;     /* > 0; 1 = none */
    uint32_t    n_top_logprobs; /* 0 .. ABI_TOP_LOGPROBS_MAX */
    uint64_t    seed;
    uint32_t    n_body;         /* bytes */
    uint32_t    n_biases;
    uint32_t    n_stops;
    uint32_t    n_resumes;      /* 0 or n_choices */
    uint32_t    n_salt;         /* bytes, 0 .. ABI_SALT_MAX */
    int32_t     priority;       /* lower goes first; 0 unless somebody cares */
    uint32_t    deadline_ms;    /* from arrival to the first token, else it
                                   ends in an error; 0: none */
    uint32_t    n_prompt_top;   /* 0 .. ABI_TOP_LOGPROBS_MAX */
    uint8_t     id[16];         /* its name in logs; random */
    uint8_t     trace_id[16];   /* W3C trace context ... */
    uint8_t     span_id[8];     /* ... in which this is its parent */
    uint32_t    trace_flags;    /* 0 .. 255 */
    uint32_t    zero;
};

struct abi_resume {
    uint32_t    n_tok;          /* ids that DELTAs have brought */
    uint32_t    n_text;         /* bytes of text, of both channels */
    uint32_t    reason;         /* enum abi_reason; 0: not finished */
    uint32_t    zero;
};

struct abi_bias {
    uint32_t    token;
    float       bias;           /* -100 .. 100, added to the logit */
};


/* Events. */

struct abi_start {
    uint32_t    n_prompt_tok;
    uint32_t    n_cached_tok;   /* of them found in the prefix cache */
    uint64_t    queue_us;       /* from REQUEST to admission */
};

enum abi_channel {
    ABI_CONTENT = 0,
    ABI_REASONING = 1
};

/*
 * DELTA:
 *   struct abi_delta
 *   ids             n_tok * uint32_t
 *   text            n_text bytes of whole UTF-8 characters, padded to 4
 *   logprobs        n_logprobs * (struct abi_logprob; its n_text bytes, padded
 *                   to 4; then n_top times the same with n_top = 0)
 * n_tok may be 0 (text that was held back) and n_text may be 0 (a token that
 * ends inside a character while logprobs are wanted).
 */
struct abi_delta {
    uint8_t     choice;
    uint8_t     channel;        /* enum abi_channel */
    uint16_t    n_tok;
    uint16_t    n_text;         /* bytes */
    uint16_t    n_logprobs;
};

struct abi_logprob {
    uint32_t    token;
    float       logprob;        /* NaN: the first of a prompt */
    uint32_t    rank;           /* 1: none was likelier; 0: as above */
    uint16_t    n_text;         /* bytes of the token, not always whole UTF-8 */
    uint16_t    n_top;
};

/*
 * PROMPT, one for each token of the prompt, in order, in front of all that a
 * choice says but an echo; a request that goes on from another engine's answer
 * has all of them again:
 *   logprobs        as those of a DELTA, of one token
 */

enum abi_reason {
    ABI_STOP = 1,               /* end of turn, or a stop string */
    ABI_LENGTH = 2              /* max_tokens, or the context is full */
};

struct abi_finish {
    uint8_t     choice;
    uint8_t     reason;         /* enum abi_reason */
    uint8_t     zero[6];
};

struct abi_usage {
    uint32_t    n_prompt_tok;
    uint32_t    n_cached_tok;
    uint32_t    n_output_tok;   /* of all choices */
    uint32_t    n_reasoning_tok;
    uint64_t    queue_us;
    uint64_t    prefill_us;
    uint64_t    decode_us;
};

enum abi_error_code {
    ABI_E_INVALID = 1,          /* 400 invalid_request_error */
    ABI_E_CONTEXT = 2,          /* 400 context_length_exceeded */
    ABI_E_BUSY = 3,             /* 429, Retry-After */
    ABI_E_UNAVAILABLE = 4,      /* 503, Retry-After: draining, lost */
    ABI_E_INTERNAL = 5,         /* 500 server_error */
    ABI_E_DEADLINE = 6          /* 504: deadline_ms went by */
};

struct abi_error {
    uint32_t    code;           /* enum abi_error_code */
    uint16_t    n_text;         /* bytes of the message that follow */
    uint16_t    n_param;        /* then bytes of the parameter's name */
    uint32_t    retry_after_s;
    uint32_t    zero;
    struct abi_usage    usage;
};


static_assert(sizeof(struct abi_page) == ABI_PAGE_BYTES, "abi_page");
static_assert(sizeof(struct abi_hello) == 64, "abi_hello");
static_assert(sizeof(struct abi_welcome) == 312, "abi_welcome");
static_assert(sizeof(struct abi_refuse) == 264, "abi_refuse");
static_assert(sizeof(struct abi_frame) == 16, "abi_frame");
static_assert(sizeof(struct abi_credit) == 8, "abi_credit");
static_assert(sizeof(struct abi_request) == 144, "abi_request");
static_assert(sizeof(struct abi_bias) == 8, "abi_bias");
static_assert(sizeof(struct abi_resume) == 16, "abi_resume");
static_assert(sizeof(struct abi_start) == 16, "abi_start");
static_assert(sizeof(struct abi_delta) == 8, "abi_delta");
static_assert(sizeof(struct abi_logprob) == 16, "abi_logprob");
static_assert(sizeof(struct abi_finish) == 8, "abi_finish");
static_assert(sizeof(struct abi_usage) == 40, "abi_usage");
static_assert(sizeof(struct abi_error) == 56, "abi_error");

#endif /* MOE_ABI_H */
