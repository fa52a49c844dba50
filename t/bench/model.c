/*
 * model.c - tokens a second of the model alone, without server or sampler:
 * reading prompts of 512 and 2048 tokens, decoding 1, 4 and 16 sequences
 * together, each behind 256 to 511 tokens, and one behind 3840 to 4095.  Of
 * MODEL (the demo model, if not given), and of published shapes with random
 * weights, which cost the same as true ones.
 *
 * Each is set beside what the machine can do at most, probed next to the run:
 * for decoding, the bytes of the weights and keys of a token over the read
 * bandwidth; for a prompt, the products with weights (attention is not counted)
 * over the peak of the best multiply-add.
 *
 * A figure is the best of five runs, which together take SECONDS: a neighbour
 * on the machine can only take away.  THREADS, PIN, QUANT and BACKEND are the
 * engine's options, PACK_CACHE is its directory of packed weights; SHAPE runs
 * only the shape of that name.  With ASK it reads names of figures from its
 * input and measures each once, when asked: peer.pl runs another engine
 * between.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/model/model.h"
#include "bench/probe.h"

#define MAX_SEQS    16
#define PROMPT      512
#define LONG        4096
#define SEQ_PAGES   (LONG / MODEL_PAGE_TOK)
#define RUNS        5

static uint32_t pages[MAX_SEQS][SEQ_PAGES];
static uint32_t tokens[MAX_SEQS][PROMPT];
static double   seconds = 3;
static int      n_threads, pin = 1;
static struct probe probe;


static void
line(const char *shape, const char *name, double value, const char *unit)
{
    printf("bench %s.%s %.5g %s\n", shape, name, value, unit);
    fflush(stdout);
}


/* n sequences, each with `pos` tokens already, a token a step. */
static double
decode_once(struct model *m, int n, int pos)
{
    struct model_segment segs[MAX_SEQS];
    float               *logits;
    uint64_t             start = clock_us(), now;
    int                  steps = 0;

    do {
        for (int i = 0; i < n; i++) {
            segs[i] = (struct model_segment) {
                &tokens[i][steps % PROMPT], pages[i], 1, pos + steps % 256, 1, 0
            };
        }

        model_forward(m, segs, n, &logits);
        steps++;
        now = clock_us();
    } while ((double) (now - start) < seconds * 1e6 / RUNS);

    return (double) n * steps / ((double) (now - start) / 1e6);
}


static double
decode(struct model *m, int n, int pos)
{
    double best = 0;

    for (int i = 0; i < RUNS; i++) {
        double rate = decode_once(m, n, pos);

        best = rate > best ? rate : best;
    }

    return best;
}


/* Tokens [0, n), PROMPT at a time, as the engine reads them. */
static double
prefill_once(struct model *m, int n)
{
    uint64_t start = clock_us();

    for (int pos = 0; pos < n; pos += PROMPT) {
        struct model_segment seg = {
            tokens[pos / PROMPT % MAX_SEQS], pages[0],
            n - pos < PROMPT ? n - pos : PROMPT, pos, 1, 0
        };
        float               *logits;

        model_forward(m, &seg, 1, &logits);
    }

    return n / ((double) (clock_us() - start) / 1e6);
}


static double
prefill(struct model *m, int n)
{
    uint64_t start = clock_us();
    double   best = 0;

    do {
        double rate = prefill_once(m, n);

        best = rate > best ? rate : best;
    } while ((double) (clock_us() - start) < seconds * 1e6);

    return best;
}


/* A directory without weights gets random ones. */
static struct model *
load(const char *shape, const char *dir)
{
    struct err  e = { "" };
    char        one[4096], many[4096];

    snprintf(one, sizeof(one), "%s/model.safetensors", dir);
    snprintf(many, sizeof(many), "%s/model.safetensors.index.json", dir);

    struct model_options o = {
        .dir = dir, .quant = getenv("QUANT"), .backend = getenv("BACKEND"),
        .n_threads = n_threads, .pin = pin,
        .max_batch_tok = PROMPT, .max_batch_rows = MAX_SEQS,
        .random_seed = access(one, R_OK) == 0 || access(many, R_OK) == 0
                       ? -1 : 1,
        .max_seqs = MAX_SEQS, .pack_dir = getenv("PACK_CACHE")
    };
    uint64_t      start = clock_us();
    struct model *m = model_load(&o, &e);

    if (m == NULL) {
        fprintf(stderr, "# SKIP %s: %s\n", dir, e.text);
        return NULL;
    }

    fprintf(stderr, "# %s: %s\n", dir, model_info(m)->plan);
    line(shape, "load", (double) (clock_us() - start) / 1e6, "s");

    return m;
}


/* Bytes that decoding a token behind `pos` others reads. */
static double
token_bytes(const struct model_info *info, uint32_t pos)
{
    return (double) info->active_weight_bytes
           + (double) info->page_bytes / MODEL_PAGE_TOK * pos;
}


/* The largest of the rates at which this machine can multiply. */
static double
peak(void)
{
    const char *quant = getenv("QUANT");
    double      f32 = probe_f32(&probe), bf16 = probe_bf16(&probe);

    if (quant != NULL && strncmp(quant, "int", 3) == 0) {
        double int8 = probe_int8(&probe);

        return int8 > f32 ? int8 : f32;
    }

    return bf16 > f32 && (quant == NULL || strcmp(quant, "f32") != 0) ? bf16
                                                                      : f32;
}


static void
measure_prefill(const char *shape, struct model *m)
{
    const struct model_info *info = model_info(m);
    double                   most = peak(), rate = prefill(m, PROMPT);
    double                   per_tok = (double) info->n_products * 2
                                       + (double) info->n_head_products * 2
                                         / PROMPT;

    line(shape, "prefill_512", rate, "tok/s");
    line(shape, "prefill_512.share", rate * per_tok / most, "of_peak");
    line(shape, "prefill_2048", prefill(m, 2048), "tok/s");
}


/* The read rate flips within minutes: probed before and after. */
static void
measure_decode(const char *shape, struct model *m)
{
    double before = probe_read(&probe), one = decode(m, 1, 256);
    double after = probe_read(&probe);

    line(shape, "decode_1", one, "tok/s");
    line(shape, "decode_1.share",
         one * token_bytes(model_info(m), 384)
         / (before > after ? before : after), "of_read");
    line(shape, "decode_4", decode(m, 4, 256), "tok/s");
    line(shape, "decode_16", decode(m, 16, 256), "tok/s");

    prefill_once(m, LONG - 256);        /* so that there are keys to read */
    line(shape, "decode_1_at_4k", decode(m, 1, LONG - 256), "tok/s");
}


/* One figure that peer.pl asks for; a word that is none ends the program. */
static double
measure_asked(struct model *m, const char *name, int *has_keys)
{
    if (strcmp(name, "prefill_512") == 0) {
        return prefill_once(m, PROMPT);
    }

    if (strcmp(name, "prefill_2048") == 0) {
        return prefill_once(m, 2048);
    }

    if (strcmp(name, "decode_1") == 0) {
        return decode_once(m, 1, 256);
    }

    if (strcmp(name, "decode_16") == 0) {
        return decode_once(m, 16, 256);
    }

    if (strcmp(name, "decode_1_at_4k") != 0) {
        fprintf(stderr, "bench: no figure \"%s\"\n", name);
        exit(1);
    }

    if (!*has_keys) {
        prefill_once(m, LONG - 256);
        *has_keys = 1;
    }

    return decode_once(m, 1, LONG - 256);
}


static void
answer(const char *shape, struct model *m)
{
    char name[64];
    int  has_keys = 0;

    prefill_once(m, PROMPT);            /* the first touches all memory */

    while (fgets(name, sizeof(name), stdin) != NULL) {
        name[strcspn(name, "\n")] = '\0';
        line(shape, name, measure_asked(m, name, &has_keys), "tok/s");
    }
}


static void
measure(const char *shape, const char *dir)
{
    struct model *m = load(shape, dir);

    if (m == NULL) {
        return;
    }

    const struct model_info *info = model_info(m);

    for (uint32_t i = 0; i < MAX_SEQS; i++) {
        for (uint32_t p = 0; p < SEQ_PAGES; p++) {
            pages[i][p] = i * SEQ_PAGES + p;
        }

        for (uint32_t t = 0; t < PROMPT; t++) {
            tokens[i][t] = (t * 2654435761u + i * 40503u) % info->n_vocab;
        }
    }

    if (getenv("ASK") != NULL) {
        answer(shape, m);

    } else {
        measure_prefill(shape, m);
        measure_decode(shape, m);
    }

    model_free(m);
}


int
main(void)
{
    const char *only = getenv("SHAPE"), *demo = getenv("MODEL");
    const struct {
        const char *name;
        const char *dir;
    } shapes[] = {
        { "model", demo && *demo ? demo : "conf/demo/model" },
        { "openseek_small", "t/data/configs/openseek-small" },
        { "v2_lite_9", "t/data/configs/v2-lite-9" }
    };

    if (getenv("SECONDS") != NULL) {
        seconds = strtod(getenv("SECONDS"), NULL);
    }

    if (getenv("THREADS") != NULL) {
        n_threads = (int) strtol(getenv("THREADS"), NULL, 10);
    }

    if (getenv("PIN") != NULL) {
        pin = strcmp(getenv("PIN"), "off") != 0;
    }

    struct err   e = { "" };
    struct pool *pool = pool_create(n_threads, 0, &e);

    if (pool == NULL) {
        fprintf(stderr, "bench: %s\n", e.text);
        return 1;
    }

    probe_open(&probe, pool);

    for (size_t i = 0; i < BASE_COUNT(shapes); i++) {
        if (only == NULL || strcmp(only, shapes[i].name) == 0) {
            measure(shapes[i].name, shapes[i].dir);
        }
    }

    probe_close(&probe);
    pool_free(pool);

    return 0;
}
