/*
 * ring_client.c - a worker at the command line: one request and its events as
 * lines, or a load of many with random cancels.
 *
 *      ring_client --socket PATH --chat TEXT [--max-tokens N] ...
 *      ring_client --socket PATH --load REQUESTS --slots N --cancel PERCENT
 *      ring_client --socket PATH --status
 *
 * options[] lists the rest.  Exit status: 0 where every request came to exactly
 * one terminal event (whichever), 1 where the engine broke the contract, 2 for
 * a wrong command line or no engine.
 */
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>

#include "channel.h"
#include "rng.h"

#define WAIT_MS     60000

static struct {
    const char *socket, *chat, *complete, *body, *ids;
    const char *stop[ABI_STOPS_MAX];
    uint32_t    n_stops;
    struct abi_bias bias[ABI_BIASES_MAX];
    uint32_t    n_biases;
    struct abi_request r;
    long        load, slots, window, cancel_percent, cancel_after, stall_after;
    long        die_after, seed;
    int         status, text, wait_s;
} o;


/* Parameters of the request. */

static void
set_float(const char *v, uint32_t given, float *f)
{
    *f = strtof(v, NULL);
    o.r.given |= given;
}


static int
set_parameter(const char *name, const char *v)
{
    struct { const char *name; uint32_t given; float *f; } floats[] = {
        { "--temperature", ABI_GIVEN_TEMPERATURE, &o.r.temperature },
        { "--top-p", ABI_GIVEN_TOP_P, &o.r.top_p },
        { "--min-p", ABI_GIVEN_MIN_P, &o.r.min_p },
        { "--repetition", ABI_GIVEN_REPETITION, &o.r.repetition },
        { "--presence", 0, &o.r.presence },
        { "--frequency", 0, &o.r.frequency }
    };

    for (size_t i = 0; i < BASE_COUNT(floats); i++) {
        if (strcmp(name, floats[i].name) == 0) {
            set_float(v, floats[i].given, floats[i].f);
            return 1;
        }
    }

    if (strcmp(name, "--max-tokens") == 0) {
        o.r.max_tokens = (uint32_t) strtoul(v, NULL, 10);
        o.r.given |= ABI_GIVEN_MAX_TOKENS;
    } else if (strcmp(name, "--seed") == 0) {
        o.r.seed = strtoull(v, NULL, 10);
        o.r.given |= ABI_GIVEN_SEED;
        o.seed = (long) o.r.seed;
    } else if (strcmp(name, "--top-k") == 0) {
        o.r.top_k = (int32_t) strtol(v, NULL, 10);
        o.r.given |= ABI_GIVEN_TOP_K;
    } else if (strcmp(name, "--n") == 0) {
        o.r.n_choices = (uint32_t) strtoul(v, NULL, 10);
    } else if (strcmp(name, "--logprobs") == 0) {
        o.r.n_top_logprobs = (uint32_t) strtoul(v, NULL, 10);
        o.r.flags |= ABI_FLAG_LOGPROBS;
    } else if (strcmp(name, "--flags") == 0) {
        o.r.flags |= (uint32_t) strtoul(v, NULL, 0);
    } else if (strcmp(name, "--stop") == 0 && o.n_stops < ABI_STOPS_MAX) {
        o.stop[o.n_stops++] = v;
    } else if (strcmp(name, "--bias") == 0 && o.n_biases < ABI_BIASES_MAX) {
        char *end;

        o.bias[o.n_biases].token = (uint32_t) strtoul(v, &end, 10);
        o.bias[o.n_biases++].bias = *end ? strtof(end + 1, NULL) : 0;
    } else {
        return 0;
    }

    return 1;
}


static int
parse_options(int argc, char **argv)
{
    struct { const char *name; const char **s; } strings[] = {
        { "--socket", &o.socket }, { "--chat", &o.chat },
        { "--complete", &o.complete }, { "--body", &o.body },
        { "--ids", &o.ids }
    };
    struct { const char *name; long *n; } numbers[] = {
        { "--load", &o.load }, { "--slots", &o.slots },
        { "--window", &o.window }, { "--cancel", &o.cancel_percent },
        { "--cancel-after", &o.cancel_after },
        { "--stall-after", &o.stall_after }, { "--die-after", &o.die_after }
    };

    o.r.n_choices = 1;
    o.slots = 8;
    o.window = 256;
    o.cancel_after = o.stall_after = o.die_after = -1;

    for (int i = 1; i < argc; i++) {
        int found = 0;

        if (strcmp(argv[i], "--status") == 0) {
            o.status = found = 1;
        } else if (strcmp(argv[i], "--text") == 0) {
            o.text = found = 1;
        } else if (i + 1 == argc) {
            return -1;
        }

        for (size_t k = 0; !found && k < BASE_COUNT(strings); k++) {
            if (strcmp(argv[i], strings[k].name) == 0) {
                *strings[k].s = argv[++i];
                found = 1;
            }
        }

        for (size_t k = 0; !found && k < BASE_COUNT(numbers); k++) {
            if (strcmp(argv[i], numbers[k].name) == 0) {
                *numbers[k].n = strtol(argv[++i], NULL, 10);
                found = 1;
            }
        }

        if (!found && !set_parameter(argv[i], argv[i + 1])) {
            return -1;
        }

        i += !found;
    }

    return o.socket != NULL ? 0 : -1;
}


/* The bytes of the request. */

static void
add_padded(struct buf *b, const void *p, size_t n, size_t align)
{
    static const char zeros[8];

    if (buf_add(b, p, n) != 0 || buf_add(b, zeros, -n & (align - 1)) != 0) {
        abort();
    }
}


static void
add_body(struct buf *body)
{
    if (o.complete != NULL) {
        o.r.kind = ABI_COMPLETION;
        buf_adds(body, o.complete);
    } else if (o.ids != NULL) {
        o.r.kind = ABI_COMPLETION_IDS;

        for (char *p = (char *) (uintptr_t) o.ids; *p != '\0';) {
            uint32_t id = (uint32_t) strtoul(p, &p, 10);

            buf_add(body, &id, sizeof(id));
            p += *p == ',';
        }
    } else {
        json_t *vars = o.body != NULL
                       ? json_loads(o.body, 0, NULL)
                       : json_pack("{s:[{s:s,s:s}]}", "messages", "role",
                                   "user", "content",
                                   o.chat != NULL ? o.chat : "What is 2 + 2?");
        char   *text = vars == NULL ? NULL : json_dumps(vars, 0);

        /* What is no JSON is sent as it is: the engine has to refuse it. */
        o.r.kind = ABI_CHAT;
        buf_adds(body, text != NULL ? text : o.body);
        free(text);
        json_decref(vars);
    }
}


static struct buf
make_request(void)
{
    struct buf body = { NULL, 0, 0, 0 }, all = { NULL, 0, 0, 0 };

    add_body(&body);
    o.r.n_body = (uint32_t) body.n;
    o.r.n_biases = o.n_biases;
    o.r.n_stops = o.n_stops;
    add_padded(&all, &o.r, sizeof(o.r), 8);
    add_padded(&all, body.p, body.n, 8);
    add_padded(&all, o.bias, o.n_biases * sizeof(o.bias[0]), 8);

    for (uint32_t i = 0; i < o.n_stops; i++) {
        uint32_t n = (uint32_t) strlen(o.stop[i]);

        add_padded(&all, &n, sizeof(n), 4);
        add_padded(&all, o.stop[i], n, 4);
    }

    o.r.n_bytes = (uint32_t) all.n;
    memcpy(all.p, &o.r, sizeof(o.r));
    buf_free(&body);

    return all;
}


/* Events. */

static int
is_terminal(uint8_t type)
{
    return type == ABI_DONE || type == ABI_ERROR || type == ABI_CANCELLED;
}


static void
print_text(const char *p, size_t n)
{
    json_t *s = json_stringn(p, n);

    if (s == NULL) {
        printf("NOT-UTF-8");
    } else {
        json_dumpf(s, stdout, JSON_ENCODE_ANY);
        json_decref(s);
    }
}


/* One entry; *at is moved behind it. */
static void
print_logprob(const char **at)
{
    struct abi_logprob l;

    memcpy(&l, *at, sizeof(l));
    printf(" %u:%.4f", l.token, (double) l.logprob);
    *at += sizeof(l) + ((l.n_text + 3u) & ~3u);

    if (l.n_top > 0) {
        printf(" [");

        for (unsigned i = 0; i < l.n_top; i++) {
            print_logprob(at);
        }

        printf(" ]");
    }
}


static void
print_delta(const char *p)
{
    struct abi_delta d;
    uint32_t         id;
    const char      *ids = p + sizeof(d);

    memcpy(&d, p, sizeof(d));

    const char *text = ids + d.n_tok * sizeof(id);
    const char *logprobs = text + ((d.n_text + 3u) & ~3u);

    if (o.text) {
        if (d.channel == ABI_CONTENT) {
            fwrite(text, 1, d.n_text, stdout);
        }

        return;
    }

    printf("delta %u %s ids=", d.choice,
           d.channel == ABI_REASONING ? "reasoning" : "content");

    for (unsigned i = 0; i < d.n_tok; i++) {
        memcpy(&id, ids + i * sizeof(id), sizeof(id));
        printf("%s%u", i > 0 ? "," : "", id);
    }

    printf(" text=");
    print_text(text, d.n_text);

    for (unsigned i = 0; i < d.n_logprobs; i++) {
        printf(" logprob");
        print_logprob(&logprobs);
    }

    printf("\n");
}


static void
print_usage(const char *name, const struct abi_usage *u)
{
    printf("%s prompt=%u cached=%u output=%u reasoning=%u\n", name,
           u->n_prompt_tok, u->n_cached_tok, u->n_output_tok,
           u->n_reasoning_tok);
}


static void
print_event(const struct abi_frame *f, const char *p)
{
    struct abi_start  start;
    struct abi_finish finish;
    struct abi_usage  usage;
    struct abi_error  error;

    switch (f->type) {
    case ABI_START:
        memcpy(&start, p, sizeof(start));
        printf("start prompt=%u cached=%u\n", start.n_prompt_tok,
               start.n_cached_tok);
        break;
    case ABI_DELTA:
        print_delta(p);
        break;
    case ABI_FINISH:
        memcpy(&finish, p, sizeof(finish));
        printf("finish %u %s\n", finish.choice,
               finish.reason == ABI_STOP ? "stop" : "length");
        break;
    case ABI_DONE:
    case ABI_CANCELLED:
        memcpy(&usage, p, sizeof(usage));
        print_usage(f->type == ABI_DONE ? "done" : "cancelled", &usage);
        break;
    case ABI_ERROR:
        memcpy(&error, p, sizeof(error));
        printf("error code=%u retry=%u param=%.*s text=%.*s\n", error.code,
               error.retry_after_s, error.n_param,
               p + sizeof(error) + error.n_text, error.n_text,
               p + sizeof(error));
        break;
    default:
        printf("unknown type %u\n", f->type);
    }

    fflush(stdout);
}


static int
run_one(struct channel *c)
{
    static char      payload[ABI_EVENT_MAX];
    struct abi_frame f;
    struct buf       request = make_request();
    long             n = 0;

    if (channel_request(c, 0, 1, request.p, request.n) != RING_OK) {
        return 1;
    }

    buf_free(&request);

    for (;;) {
        if (n == o.cancel_after) {
            channel_put(c, ABI_CANCEL, 0, 1, NULL, 0);
        }

        if (n++ == o.die_after) {
            abort();
        }

        if (channel_event(c, &f, payload, WAIT_MS) != RING_OK) {
            printf("lost\n");
            return 1;
        }

        print_event(&f, payload);

        if (is_terminal(f.type)) {
            return 0;
        }

        if (o.stall_after < 0 || n <= o.stall_after) {
            ring_release(&c->rx);
            channel_credit(c, 0, 1, ring_cells(f.n_bytes));
        }
    }
}


/* A load: every slot has a request, some are cancelled after some events. */

struct stream {
    uint64_t    gen;            /* 0: free */
    long        cancel_at;      /* events; -1: not */
    long        n_events;
};


static int
start_stream(struct channel *c, struct stream *s, uint16_t slot, uint64_t gen)
{
    struct buf request;

    o.r.seed = gen;
    o.r.given |= ABI_GIVEN_SEED;
    request = make_request();
    s->gen = gen;
    s->n_events = 0;
    s->cancel_at = (long) rng(100) < o.cancel_percent ? (long) rng(20) : -1;

    int rc = channel_request(c, slot, gen, request.p, request.n);

    buf_free(&request);

    if (s->cancel_at == 0) {
        channel_put(c, ABI_CANCEL, slot, gen, NULL, 0);
    }

    return rc == RING_OK ? 0 : -1;
}


static int
run_load(struct channel *c)
{
    static char      payload[ABI_EVENT_MAX];
    struct abi_frame f;
    struct stream   *streams = calloc((size_t) o.slots, sizeof(*streams));
    long             ends[3] = { 0, 0, 0 }, n_ends = 0, n_started = 0;

    rng_state = (uint64_t) o.seed * 0x9e3779b97f4a7c15ULL + 1;

    for (; n_started < o.load && n_started < o.slots; n_started++) {
        start_stream(c, &streams[n_started], (uint16_t) n_started, 1);
    }

    while (n_ends < n_started) {
        if (channel_event(c, &f, payload, WAIT_MS) != RING_OK) {
            printf("lost after %ld ends\n", n_ends);
            return 1;
        }

        struct stream *s = &streams[f.slot];

        if (f.slot >= o.slots || f.gen != s->gen) {
            printf("event of slot %u for generation %llu, expected %llu\n",
                   f.slot, (unsigned long long) f.gen,
                   (unsigned long long) s->gen);
            return 1;
        }

        ring_release(&c->rx);

        if (!is_terminal(f.type)) {
            channel_credit(c, f.slot, f.gen, ring_cells(f.n_bytes));

            if (++s->n_events == s->cancel_at) {
                channel_put(c, ABI_CANCEL, f.slot, f.gen, NULL, 0);
            }

            continue;
        }

        ends[f.type - ABI_DONE]++;

        if (++n_ends == o.die_after) {
            abort();
        }

        if (n_started < o.load) {
            start_stream(c, s, f.slot, s->gen + 1);
            n_started++;
        } else {
            s->gen = 0;
        }
    }

    printf("done=%ld error=%ld cancelled=%ld\n", ends[0], ends[1], ends[2]);
    free(streams);

    return 0;
}


static void
print_status(const struct abi_page *p)
{
    printf("state=%llu running=%llu queued=%llu pages=%llu used=%llu\n",
           (unsigned long long) ring_word_get(&p->state),
           (unsigned long long) ring_word_get(&p->n_running),
           (unsigned long long) ring_word_get(&p->n_queued),
           (unsigned long long) ring_word_get(&p->kv_pages),
           (unsigned long long) ring_word_get(&p->kv_pages_used));
}


int
main(int argc, char **argv)
{
    struct channel c;
    char           text[RING_TEXT] = "";

    if (parse_options(argc, argv) != 0) {
        fprintf(stderr, "ring_client: wrong options\n");
        return 2;
    }

    struct abi_hello h = channel_hello((uint32_t) o.slots,
                                       (uint32_t) o.window);

    if (channel_attach(&c, o.socket, &h, text) != 0) {
        fprintf(stderr, "ring_client: %s\n", text);
        return 2;
    }

    if (o.status) {
        printf("model=%s context=%u vocab=%u\n", c.welcome.model,
               c.welcome.n_ctx_tok, c.welcome.n_vocab);
        print_status(c.peer.page);
    }

    int rc = o.load > 0 ? run_load(&c) : o.status ? 0 : run_one(&c);

    channel_close(&c);

    return rc;
}
