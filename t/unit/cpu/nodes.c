/*
 * The CPU backend on machines of several nodes, which are made up: matrices are
 * split where the nodes' threads are, every tile once and a node's in one
 * piece, and the logits are those of one node (D6), from an image as well.
 */
#include "engine/cpu/threads.h"

/* What cpu.c gets its threads from. */
#define pool_create     make_pool
static struct pool *make_pool(int n, int pin, struct err *e);
#include "engine/cpu/cpu.c"
#undef pool_create

#include <setjmp.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <cmocka.h>

#include "engine/model/model.h"

#define N_TOK       250     /* that all threads compute */
#define N_VOCAB     128

static const char *machine;     /* a letter a thread: its node */
static char        packs[] = "/tmp/moe-nodes-XXXXXX";


/* The CPUs are none that this machine has: threads stay where they are. */
static struct pool *
make_pool(int n, int pin, struct err *e)
{
    struct place_machine m = { .n_cpus = 0 };
    struct place         p;

    for (const char *s = machine; *s != '\0'; s++, m.n_cpus++) {
        int cpu = PLACE_CPUS_MAX - 100 + m.n_cpus;

        m.cpus[m.n_cpus] = (struct place_cpu) { cpu, *s - 'a', cpu };
    }

    (void) pin;
    place_make(&p, &m, n, 1);

    return pool_create_at(&p, e);
}


static int
run(const char *on, const char *quant, const char *pack_dir, int n_tok,
    float *out)
{
    static uint32_t       tokens[N_TOK];
    static const uint32_t pages[] = { 0, 1, 2, 3 };
    struct err            e = { "" };
    struct model_options  o = {
        .dir = "t/data/model/f16", .quant = quant, .pack_dir = pack_dir,
        .max_batch_tok = N_TOK, .max_batch_rows = N_TOK, .random_seed = -1,
        .max_seqs = 1, .kv_bytes = 1 << 20
    };

    machine = on;

    for (uint32_t i = 0; i < N_TOK; i++) {
        tokens[i] = i * 37 % N_VOCAB;
    }

    struct model        *m = model_load(&o, &e);
    struct model_segment seg = { tokens, pages, n_tok, 0, n_tok, 0 };
    float               *logits;

    if (m == NULL) {
        fail_msg("%s", e.text);
    }

    int n_nodes = strstr(model_info(m)->plan, "2 nodes") != NULL ? 2
                  : strstr(model_info(m)->plan, "3 nodes") != NULL ? 3
                  : strstr(model_info(m)->plan, "4 nodes") != NULL ? 4 : 1;

    model_forward(m, &seg, 1, &logits);
    memcpy(out, logits, sizeof(float) * (size_t) n_tok * N_VOCAB);
    model_free(m);

    return n_nodes;
}


static const struct {
    const char *name;
    int         n_nodes;
} machines[] = {
    { "aa", 1 }, { "ab", 2 }, { "aabb", 2 }, { "aaab", 2 }, { "abcd", 4 },
    { "abbc", 3 }
};


static void
test_logits(void **state)
{
    static float want[N_TOK * N_VOCAB], got[N_TOK * N_VOCAB];
    static const char *const quants[] = { "f32", "bf16", "int8", "int4" };

    (void) state;

    for (size_t q = 0; q < BASE_COUNT(quants); q++) {
        for (int n_tok = 1; n_tok <= N_TOK; n_tok += N_TOK - 1) {
            run("a", quants[q], NULL, n_tok, want);

            for (size_t i = 0; i < BASE_COUNT(machines); i++) {
                assert_int_equal(run(machines[i].name, quants[q], NULL, n_tok,
                                     got), machines[i].n_nodes);
                assert_memory_equal(want, got, sizeof(float) * N_VOCAB
                                               * (size_t) n_tok);
            }
        }
    }
}


/* An image of another split is made anew, one of the same is not. */
static void
test_images(void **state)
{
    static float want[N_TOK * N_VOCAB], got[N_TOK * N_VOCAB];
    static const char *const on[] = { "aa", "aabb", "aaab", "aaab", "a", "aa" };
    static const int anew[] = { 1, 1, 1, 0, 1, 0 };
    struct stat before = { 0 }, after;
    char        image[256];

    (void) state;
    snprintf(image, sizeof(image), "%s/f16-int8.pack", packs);
    run("a", "int8", NULL, N_TOK, want);

    for (size_t i = 0; i < BASE_COUNT(on); i++) {
        run(on[i], "int8", packs, N_TOK, got);
        assert_memory_equal(want, got, sizeof(want));
        assert_int_equal(stat(image, &after), 0);
        assert_int_equal(before.st_ino != after.st_ino, anew[i]);
        before = after;
    }
}


static void
test_tiles(void **state)
{
    (void) state;

    for (size_t i = 0; i < BASE_COUNT(machines); i++) {
        struct err      e = { "" };
        uint8_t         memory[1];
        struct weight   w = { memory, DTYPE_BF16, 5, 7 * TILE - 3, 6 };
        size_t          one = tile_bytes(w.dtype, w.n_in);
        uint8_t         seen[5 * 7] = { 0 };
        size_t          next = 0;

        machine = machines[i].name;

        struct backend *b = cpu_open("cpu:ref", 0, 1, &e);

        assert_non_null(b);

        for (int node = 0; node < machines[i].n_nodes; node++) {
            for (uint32_t m = 0; m < w.n; m++) {
                uint32_t from, to;

                place_part(pool_place(cpu_of(b)->pool), 7, node, &from, &to);

                /* One after the other, and so in one piece. */
                for (uint32_t t = from; t < to; t++) {
                    size_t at = (size_t) (cpu_tiles(cpu_of(b), &w, m, node)
                                          + t * one - memory);

                    assert_int_equal(at, next);
                    next += one;
                    seen[m * 7 + t]++;
                }
            }
        }

        for (size_t k = 0; k < sizeof(seen); k++) {
            assert_int_equal(seen[k], 1);
        }

        b->ops->close(b);
    }
}


static int
setup(void **state)
{
    (void) state;

    return mkdtemp(packs) != NULL ? 0 : -1;
}


static int
teardown(void **state)
{
    char command[256];

    (void) state;
    snprintf(command, sizeof(command), "rm -r '%s'", packs);

    return system(command);
}


int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tiles), cmocka_unit_test(test_logits),
        cmocka_unit_test(test_images)
    };

    log_max = LOG_LEVEL_ERROR;
    cmocka_set_message_output(CM_OUTPUT_TAP);

    return cmocka_run_group_tests(tests, setup, teardown);
}
