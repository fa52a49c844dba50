/*
 * request.c - see serve/request.h.
 */
#include "serve/request.h"

#include <string.h>

#include "unicode/unicode.h"


struct err *
serve_refusal_set(struct serve_refusal *why, uint32_t code, const char *param)
{
    why->code = code;
    why->retry_after_s = 0;
    why->param = param;

    return &why->err;
}


/* What a parameter may be.  A number that was not given is not looked at. */
struct range {
    const char *name;
    uint32_t    given;          /* ABI_GIVEN_*; 0: always there */
    size_t      offset;
    double      min;
    double      max;
    enum { RANGE_FLOAT, RANGE_INT, RANGE_UINT } type;
};

#define OFF(field)  offsetof(struct abi_request, field)

/* The least float above 0: repetition and top_p exclude it. */
#define ABOVE_0     1.401298464324817e-45

static const struct range ranges[] = {
    { "n", 0, OFF(n_choices), 1, ABI_CHOICES_MAX, RANGE_UINT },
    { "max_tokens", ABI_GIVEN_MAX_TOKENS, OFF(max_tokens), 0, UINT32_MAX,
      RANGE_UINT },
    { "temperature", ABI_GIVEN_TEMPERATURE, OFF(temperature), 0, 2,
      RANGE_FLOAT },
    { "top_p", ABI_GIVEN_TOP_P, OFF(top_p), ABOVE_0, 1, RANGE_FLOAT },
    { "min_p", ABI_GIVEN_MIN_P, OFF(min_p), 0, 1, RANGE_FLOAT },
    { "top_k", ABI_GIVEN_TOP_K, OFF(top_k), -1, INT32_MAX, RANGE_INT },
    { "repetition_penalty", ABI_GIVEN_REPETITION, OFF(repetition), ABOVE_0,
      1e9, RANGE_FLOAT },
    { "presence_penalty", 0, OFF(presence), -2, 2, RANGE_FLOAT },
    { "frequency_penalty", 0, OFF(frequency), -2, 2, RANGE_FLOAT },
    { "top_logprobs", 0, OFF(n_top_logprobs), 0, ABI_TOP_LOGPROBS_MAX,
      RANGE_UINT },
    { "prompt_logprobs", 0, OFF(n_prompt_top), 0, ABI_TOP_LOGPROBS_MAX,
      RANGE_UINT },
    { "logit_bias", 0, OFF(n_biases), 0, ABI_BIASES_MAX, RANGE_UINT },
    { "stop", 0, OFF(n_stops), 0, ABI_STOPS_MAX, RANGE_UINT },
    { "cache_salt", 0, OFF(n_salt), 0, ABI_SALT_MAX, RANGE_UINT },
};


static double
range_value(const struct range *g, const struct abi_request *r)
{
    const char *p = (const char *) r + g->offset;
    float       f;
    int32_t     i;
    uint32_t    u;

    switch (g->type) {
    case RANGE_FLOAT:
        memcpy(&f, p, sizeof(f));
        return (double) f;
    case RANGE_INT:
        memcpy(&i, p, sizeof(i));
        return i;
    default:
        memcpy(&u, p, sizeof(u));
        return u;
    }
}


static int
check_ranges(const struct abi_request *r, struct serve_refusal *why)
{
    for (size_t i = 0; i < BASE_COUNT(ranges); i++) {
        const struct range *g = &ranges[i];
        double              v = range_value(g, r);

        if (g->given != 0 && (r->given & g->given) == 0) {
            continue;
        }

        /* Written so that NaN is out of range. */
        if (!(v >= g->min && v <= g->max)) {
            return err_set(serve_refusal_set(why, ABI_E_INVALID, g->name),
                           "%s: expected %g .. %g, got %g", g->name,
                           g->min == ABOVE_0 ? 0 : g->min, g->max, v);
        }
    }

    return 0;
}


/* Takes n bytes and their padding off the front; NULL: not that many. */
static const char *
take(struct slice *s, size_t n, size_t align)
{
    const char *p = s->p;
    size_t      padded;

    if (size_add(n, align - 1, &padded) != 0) {
        return NULL;
    }

    padded &= ~(align - 1);

    if (padded > s->n) {
        return NULL;
    }

    s->p += padded;
    s->n -= padded;

    return p;
}


static int
broken(struct serve_refusal *why, const char *what)
{
    return err_set(serve_refusal_set(why, ABI_E_INVALID, ""),
                   "malformed request: %s", what);
}


struct abi_bias
serve_request_bias(const struct serve_request *r, uint32_t i)
{
    struct abi_bias b;

    memcpy(&b, r->biases + i * sizeof(b), sizeof(b));

    return b;
}


static int
check_biases(const struct serve_request *r, uint32_t n_vocab,
             struct serve_refusal *why)
{
    for (uint32_t i = 0; i < r->abi.n_biases; i++) {
        struct abi_bias b = serve_request_bias(r, i);

        if (b.token >= n_vocab) {
            return err_set(serve_refusal_set(why, ABI_E_INVALID, "logit_bias"),
                           "logit_bias: token %u is not in the vocabulary of "
                           "%u", b.token, n_vocab);
        }

        if (!(b.bias >= -100 && b.bias <= 100)) {
            return err_set(serve_refusal_set(why, ABI_E_INVALID, "logit_bias"),
                           "logit_bias: expected -100 .. 100, got %g",
                           (double) b.bias);
        }
    }

    return 0;
}


/* Stop strings of whole characters cannot cut one in two. */
static int
take_stops(struct serve_request *r, struct slice *s, struct serve_refusal *why)
{
    for (uint32_t i = 0; i < r->abi.n_stops; i++) {
        const char *p = take(s, sizeof(uint32_t), 4);
        uint32_t    n;

        if (p == NULL) {
            return broken(why, "stops are cut off");
        }

        memcpy(&n, p, sizeof(n));
        r->stops[i].n = n;
        r->stops[i].p = take(s, n, 4);

        if (r->stops[i].p == NULL) {
            return broken(why, "stops are cut off");
        }

        if (n < 1 || n > SERVE_STOP_BYTES
            || unicode_valid(r->stops[i].p, n) != n)
        {
            return err_set(serve_refusal_set(why, ABI_E_INVALID, "stop"),
                           "stop: expected 1 .. %d bytes of UTF-8, got %u",
                           SERVE_STOP_BYTES, n);
        }
    }

    return 0;
}


static int
check_ids(const char *p, size_t n, uint32_t n_vocab, struct serve_refusal *why)
{
    for (size_t i = 0; i < n; i += sizeof(uint32_t)) {
        uint32_t id;

        memcpy(&id, p + i, sizeof(id));

        if (id >= n_vocab) {
            return err_set(serve_refusal_set(why, ABI_E_INVALID, "prompt"),
                           "prompt: token %u is not in the vocabulary of %u",
                           id, n_vocab);
        }
    }

    return 0;
}


static int
take_resumes(struct serve_request *r, struct slice *s, uint32_t n_vocab,
             struct serve_refusal *why)
{
    if (r->abi.n_resumes != 0 && r->abi.n_resumes != r->abi.n_choices) {
        return broken(why, "resumes");
    }

    for (uint32_t i = 0; i < r->abi.n_resumes; i++) {
        struct serve_resume *q = &r->resumes[i];
        const char          *p = take(s, sizeof(q->abi), 4);

        if (p == NULL) {
            return broken(why, "resumes are cut off");
        }

        memcpy(&q->abi, p, sizeof(q->abi));

        size_t n = (size_t) q->abi.n_tok * sizeof(uint32_t);

        q->ids = take(s, n, 4);

        if (q->ids == NULL || q->abi.reason > ABI_LENGTH || q->abi.zero != 0) {
            return broken(why, "resumes");
        }

        if (check_ids(q->ids, n, n_vocab, why) != 0) {
            return -1;
        }
    }

    return 0;
}


static int
check_kind(const struct serve_request *r, uint32_t n_vocab,
           struct serve_refusal *why)
{
    switch (r->abi.kind) {
    case ABI_CHAT:
        return (r->abi.flags & ABI_FLAG_ECHO) == 0
               ? 0 : broken(why, "a chat cannot be echoed");

    case ABI_COMPLETION:
        return unicode_valid(r->body.p, r->body.n) == r->body.n ? 0
               : err_set(serve_refusal_set(why, ABI_E_INVALID, "prompt"),
                         "prompt: not UTF-8");

    case ABI_COMPLETION_IDS:
        if (r->body.n % sizeof(uint32_t) != 0) {
            return broken(why, "ids are cut off");
        }

        return check_ids(r->body.p, r->body.n, n_vocab, why);

    default:
        return broken(why, "unknown kind");
    }
}


/* Everything behind the head. */
static int
take_tail(struct serve_request *r, struct slice *s, uint32_t n_vocab,
          struct serve_refusal *why)
{
    r->body.n = r->abi.n_body;
    r->body.p = take(s, r->body.n, 8);
    r->biases = r->body.p == NULL ? NULL
                : take(s, r->abi.n_biases * sizeof(struct abi_bias), 8);

    if (r->biases == NULL) {
        return broken(why, "body is cut off");
    }

    if (check_biases(r, n_vocab, why) != 0 || take_stops(r, s, why) != 0) {
        return -1;
    }

    r->salt.n = r->abi.n_salt;
    r->salt.p = take(s, r->salt.n, 4);

    if (r->salt.p == NULL) {
        return broken(why, "salt is cut off");
    }

    if (take_resumes(r, s, n_vocab, why) != 0) {
        return -1;
    }

    return s->n == 0 ? 0 : broken(why, "surplus bytes");
}


int
serve_request_parse(const char *p, size_t n, uint32_t n_vocab,
                    struct serve_request *r, struct serve_refusal *why)
{
    struct slice s = { p, n };

    memset(r, 0, sizeof(*r));
    memset(why, 0, sizeof(*why));

    if (n < sizeof(r->abi)) {
        return broken(why, "shorter than its head");
    }

    memcpy(&r->abi, take(&s, sizeof(r->abi), 8), sizeof(r->abi));

    if (r->abi.n_bytes != n
        || (r->abi.given & ~(uint32_t) ABI_GIVEN_ALL) != 0
        || (r->abi.flags & ~(uint32_t) ABI_FLAG_ALL) != 0
        || r->abi.trace_flags > UINT8_MAX || r->abi.zero != 0)
    {
        return broken(why, "head");
    }

    if (check_ranges(&r->abi, why) != 0
        || take_tail(r, &s, n_vocab, why) != 0)
    {
        return -1;
    }

    return check_kind(r, n_vocab, why);
}
