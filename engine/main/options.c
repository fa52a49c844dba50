/*
 * options.c - see main/options.h.
 */
#include "main/options.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>


enum option_type {
    OPTION_STRING,
    OPTION_CHOICE,              /* one of `words` */
    OPTION_INT,
    OPTION_SIZE,                /* bytes, with a suffix k m g t */
    OPTION_OCTAL,
    OPTION_FLAG                 /* takes no value */
};

struct option {
    const char *name;
    const char *value;          /* its name in --help; NULL: takes none */
    enum option_type type;
    size_t      offset;         /* in struct main_options */
    const char *initial;        /* as on the command line; NULL: none */
    int64_t     min;
    int64_t     max;
    const char *words;          /* OPTION_CHOICE: "a|b|c" */
    const char *help;
};

#define OFF(field)  offsetof(struct main_options, field)

static const struct option table[] = {
    { "model", "DIR", OPTION_STRING, OFF(model), NULL, 0, 0, NULL,
      "model in Hugging Face's layout" },
    { "socket", "PATH", OPTION_STRING, OFF(socket), NULL, 0, 0, NULL,
      "unix socket for NGINX's workers; not needed under\n"
      "systemd's socket activation" },
    { "replace", NULL, OPTION_FLAG, OFF(replace), NULL, 0, 0, NULL,
      "take the socket over from the engine that listens there\n"
      "now, once this one is ready, and ask that one to leave" },
    { "socket-mode", "MODE", OPTION_OCTAL, OFF(socket_mode), "0660", 0, 0777,
      NULL, "permissions of the socket: who may connect" },
    { "socket-group", "NAME", OPTION_STRING, OFF(socket_group), NULL, 0, 0,
      NULL, "group of the socket, such as www-data" },
    { "allow-uid", "UID", OPTION_INT, OFF(allow_uid), "-1", -1, UINT32_MAX,
      NULL, "the one user, besides root and the engine's own,\n"
      "whose workers are served; -1: whoever may connect" },
    { "name", "NAME", OPTION_STRING, OFF(name), NULL, 0, 0, NULL,
      "served model name; else the directory's" },
    { "backend", "NAME", OPTION_CHOICE, OFF(backend), "cpu", 0, 0,
      "cpu|cuda|auto", "where the model runs; auto: cuda where there is one" },
    { "deterministic", NULL, OPTION_FLAG, OFF(deterministic), NULL, 0, 0, NULL,
      "cuda: the same answer in any company, at some cost;\n"
      "the CPU's always is" },
    { "threads", "N", OPTION_INT, OFF(threads), "0", 0, 1024, NULL,
      "compute threads; 0: one per core, but no more than the\n"
      "control group gets time for" },
    { "pin", "WORD", OPTION_CHOICE, OFF(pin), "on", 0, 0, "on|off",
      "where all cores compute, each thread stays on its own" },
    { "quant", "TYPE", OPTION_CHOICE, OFF(quant), "bf16", 0, 0,
      "f32|bf16|int8|int4|fp8",
      "how weights are kept; int4: attention and the head have 6 bits" },
    { "pack-cache", "DIR", OPTION_STRING, OFF(pack_cache), NULL, 0, 0, NULL,
      "where packed weights are kept for the next start" },
    { "max-seqs", "N", OPTION_INT, OFF(max_seqs), "64", 1, 1024, NULL,
      "sequences that run at once" },
    { "max-queue", "N", OPTION_INT, OFF(max_queue), "256", 1, 65536, NULL,
      "requests that wait; more are told to come back" },
    { "max-queue-tokens", "N", OPTION_INT, OFF(max_queue_tok), "262144", 1,
      INT64_MAX, NULL, "tokens of prompts that wait; more are told to come\n"
      "back, but for one that would wait alone" },
    { "no-prefix-cache", NULL, OPTION_FLAG, OFF(no_prefix_cache), NULL, 0, 0,
      NULL, "read each prompt from its beginning" },
    { "max-batch-tokens", "N", OPTION_INT, OFF(max_batch_tok), "512", 1, 65536,
      NULL, "tokens of one step; at least --max-seqs" },
    { "step-ms", "MS", OPTION_INT, OFF(step_ms), "100", 1, 60000, NULL,
      "how much longer a step may get for a prompt while\n"
      "streams run: it is read in chunks of that" },
    { "kv-bytes", "SIZE", OPTION_SIZE, OFF(kv_bytes), "0", 0, INT64_MAX, NULL,
      "memory for the KV cache, as 512m or 8g; 0: room for\n"
      "--max-seqs sequences of 4096 tokens" },
    { "ctx", "N", OPTION_INT, OFF(n_ctx_tok), "0", 0, INT32_MAX, NULL,
      "longest prompt and answer in tokens; 0: the model's" },
    { "random-weights", "SEED", OPTION_INT, OFF(random_seed), "-1", -1,
      INT64_MAX, NULL,
      "random weights for config.json, for benchmarks" },
    { "drain", "SECONDS", OPTION_INT, OFF(drain_s), "30", 0, 86400, NULL,
      "time that open requests have after SIGTERM" },
    { "sandbox", "WORD", OPTION_CHOICE, OFF(sandbox), "auto", 0, 0,
      "auto|on|off",
      "no file, program or socket once it serves; with a GPU\n"
      "no files but the model, the GPU's devices, libraries,\n"
      "/proc and /sys, where a trial of the GPU in it works.\n"
      "Where it fails, auto warns and goes on without a\n"
      "sandbox, on does not start" },
    { "log-level", "LEVEL", OPTION_CHOICE, OFF(log_level), "notice", 0, 0,
      "error|warn|notice|info|debug", "what goes to standard error" },
    { "help", NULL, OPTION_FLAG, OFF(help), NULL, 0, 0, NULL, "this text" },
    { "version", NULL, OPTION_FLAG, OFF(version), NULL, 0, 0, NULL,
      "the version" },
};


/* Is `word` one of "a|b|c"? */
static int
is_word(const char *words, const char *word)
{
    size_t n = strlen(word);

    for (const char *p = words; n > 0 && p != NULL; p = strchr(p, '|')) {
        p += *p == '|';

        if (strncmp(p, word, n) == 0 && (p[n] == '|' || p[n] == '\0')) {
            return 1;
        }
    }

    return 0;
}


static int
set_number(const struct option *t, int64_t *at, const char *value,
           struct err *e)
{
    char    *end;
    uint64_t bytes;
    int      ok;

    errno = 0;

    if (t->type == OPTION_SIZE) {
        ok = size_parse(value, &bytes) == 0 && bytes <= INT64_MAX;
        *at = ok ? (int64_t) bytes : 0;
    } else {
        *at = strtoll(value, &end, t->type == OPTION_OCTAL ? 8 : 10);
        ok = errno == 0 && end != value && *end == '\0'
             && (*value == '-' || (*value >= '0' && *value <= '9'));
    }

    if (ok && *at >= t->min && *at <= t->max) {
        return 0;
    }

    switch (t->type) {
    case OPTION_SIZE:
        return err_set(e, "--%s: expected a size such as 512m or 8g, got "
                       "\"%s\"", t->name, value);
    case OPTION_OCTAL:
        return err_set(e, "--%s: expected an octal number 0 .. %llo, got "
                       "\"%s\"", t->name, (unsigned long long) t->max, value);
    default:
        return err_set(e, "--%s: expected a number %lld .. %lld, got \"%s\"",
                       t->name, (long long) t->min, (long long) t->max, value);
    }
}


static int
set(struct main_options *o, const struct option *t, const char *value,
    struct err *e)
{
    char *at = (char *) o + t->offset;

    switch (t->type) {
    case OPTION_CHOICE:
        if (!is_word(t->words, value)) {
            return err_set(e, "--%s: expected %s, got \"%s\"", t->name,
                           t->words, value);
        }

        memcpy(at, &value, sizeof(value));
        return 0;

    case OPTION_STRING:
        if (*value == '\0') {
            return err_set(e, "--%s: expected %s, got nothing", t->name,
                           t->value);
        }

        memcpy(at, &value, sizeof(value));
        return 0;

    default:
        return set_number(t, (int64_t *) (void *) at, value, e);
    }
}


/* "--name value" and "--name=value". */
static int
parse_one(struct main_options *o, int argc, char **argv, int *i, struct err *e)
{
    const char *arg = argv[*i];
    const char *equals = strchr(arg, '=');
    size_t      n = equals != NULL ? (size_t) (equals - arg) : strlen(arg);

    for (size_t k = 0; k < BASE_COUNT(table); k++) {
        const struct option *t = &table[k];

        if (strncmp(arg, "--", 2) != 0 || strlen(t->name) != n - 2
            || strncmp(arg + 2, t->name, n - 2) != 0)
        {
            continue;
        }

        if (t->type == OPTION_FLAG) {
            int64_t on = 1;

            if (equals != NULL) {
                return err_set(e, "--%s takes no value", t->name);
            }

            memcpy((char *) o + t->offset, &on, sizeof(on));
            return 0;
        }

        if (equals != NULL) {
            return set(o, t, equals + 1, e);
        }

        if (*i + 1 == argc) {
            return err_set(e, "--%s: expected %s, got nothing", t->name,
                           t->value);
        }

        return set(o, t, argv[++*i], e);
    }

    return err_set(e, "unknown option \"%s\"; --help lists them", arg);
}


int
main_options_parse(struct main_options *o, int argc, char **argv,
                   struct err *e)
{
    memset(o, 0, sizeof(*o));

    for (size_t k = 0; k < BASE_COUNT(table); k++) {
        if (table[k].initial != NULL
            && set(o, &table[k], table[k].initial, e) != 0)
        {
            return -1;
        }
    }

    for (int i = 1; i < argc; i++) {
        if (parse_one(o, argc, argv, &i, e) != 0) {
            return -1;
        }
    }

    if (o->help || o->version) {
        return 0;
    }

    if (o->model == NULL) {
        return err_set(e, "--model DIR is required; --help lists all options");
    }

    if (o->max_batch_tok < o->max_seqs) {
        return err_set(e, "--max-batch-tokens: expected at least --max-seqs, "
                       "%lld, got %lld", (long long) o->max_seqs,
                       (long long) o->max_batch_tok);
    }

    return 0;
}


static int
help_line(struct buf *out, const struct option *t)
{
    size_t at = out->n;

    if (buf_addf(out, "  --%s%s%s", t->name, t->value != NULL ? " " : "",
                 t->value != NULL ? t->value : "") != 0)
    {
        return -1;
    }

    for (const char *p = t->help; *p != '\0';) {
        size_t n = strcspn(p, "\n");
        int    pad = out->n - at < 27 ? (int) (27 - (out->n - at)) : 1;

        if (buf_addf(out, "%*s%.*s", pad, "", (int) n, p) != 0) {
            return -1;
        }

        p += n + (p[n] == '\n');

        if (*p != '\0') {
            buf_addc(out, '\n');
            at = out->n;
        }
    }

    if (t->words != NULL && strchr(t->words, '|') != NULL) {
        buf_addf(out, ":\n%*s%s", 27, "", t->words);
    }

    return t->initial != NULL && strcmp(t->initial, "-1") != 0
           && strcmp(t->initial, "0") != 0
           ? buf_addf(out, " (%s)\n", t->initial) : buf_addc(out, '\n');
}


int
main_options_help(struct buf *out)
{
    buf_adds(out, "Usage: moe-engine --model DIR --socket PATH [OPTION ..]\n"
             "\n"
             "Runs a Mixture-of-Experts model for NGINX's moe module.\n"
             "\n");

    for (size_t k = 0; k < BASE_COUNT(table); k++) {
        if (help_line(out, &table[k]) != 0) {
            return -1;
        }
    }

    return buf_adds(out, "\n"
                    "SIGTERM and SIGINT: finish what is open, then exit; a "
                    "second one: exit at once.\n");
}
