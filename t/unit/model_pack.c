/*
 * model_pack.c - images of packed weights: the same logits from them, one made
 * anew when the model has changed, another kind is asked for, or the file is
 * cut off or damaged; a model that loads where none can be written; and weights
 * whose exponents are too far apart to be kept tight, which are BF16.
 */
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/backend.h"
#include "engine/model/model.h"

#define N_TOK       9
#define N_VOCAB     128
#define FILE_MOST   (4 << 20)
#define HEAD        (2L << 20)      /* of an image */

static char model_dir[] = "/tmp/moe-pack-model-XXXXXX";
static char pack_dir[] = "/tmp/moe-pack-XXXXXX";
static char image[256];         /* of bf16 */

static const uint32_t tokens[N_TOK] = { 3, 1, 4, 1, 5, 9, 2, 6, 5 };


/* A file as it is, one byte changed at `at` (or none: -1), n bytes of it. */
static void
copy(const char *from, const char *to, long at, long n)
{
    FILE *in = fopen(from, "rb");
    char *bytes = malloc(FILE_MOST);

    assert_non_null(in);
    assert_non_null(bytes);

    long all = (long) fread(bytes, 1, FILE_MOST, in);

    fclose(in);
    assert_true(all < FILE_MOST && at < all);

    if (at >= 0) {
        bytes[at] ^= 0x10;
    }

    FILE *out = fopen(to, "wb");

    assert_non_null(out);
    n = n < 0 ? all : n;
    assert_int_equal(fwrite(bytes, 1, (size_t) n, out), n);
    assert_int_equal(fclose(out), 0);
    free(bytes);
}


static void
copy_model(long at)
{
    char from[256], to[256];

    snprintf(to, sizeof(to), "%s/config.json", model_dir);
    copy("t/data/model/f16/config.json", to, -1, -1);
    snprintf(from, sizeof(from), "t/data/model/f16/model.safetensors");
    snprintf(to, sizeof(to), "%s/model.safetensors", model_dir);
    copy(from, to, at, -1);
}


/* Numbers of exponents from -14 to 4 from byte `at` of the model on. */
static void
spread_exponents(long at, int n)
{
    char  path[256];
    FILE *f;

    snprintf(path, sizeof(path), "%s/model.safetensors", model_dir);
    f = fopen(path, "r+b");
    assert_non_null(f);
    assert_int_equal(fseek(f, at, SEEK_SET), 0);

    for (int i = 0; i < n; i++) {
        uint16_t h = (uint16_t) ((i * 7 % 20) << 10 | (i * 37 % 128) << 3
                                 | (i % 2) << 15);

        assert_int_equal(fwrite(&h, sizeof(h), 1, f), 1);
    }

    assert_int_equal(fclose(f), 0);
}


/* Bytes of its weights, and of those that a token reads. */
static uint64_t weight_bytes, active_bytes;


static void
run(const char *quant, const char *packs, float *out)
{
    static const uint32_t pages[1] = { 0 };
    struct err            e = { "" };
    struct model_options  o = {
        .dir = model_dir, .quant = quant, .n_threads = 2, .pack_dir = packs,
        .max_batch_tok = N_TOK, .max_batch_rows = N_TOK, .random_seed = -1,
        .max_seqs = 1
    };
    struct model_segment  seg = { tokens, pages, N_TOK, 0, N_TOK, 0 };
    struct model         *m = model_load(&o, &e);
    float                *logits;

    if (m == NULL) {
        fail_msg("%s", e.text);
    }

    weight_bytes = model_info(m)->weight_bytes;
    active_bytes = model_info(m)->active_weight_bytes;
    assert_int_equal(model_info(m)->n_vocab, N_VOCAB);
    model_forward(m, &seg, 1, &logits);
    memcpy(out, logits, sizeof(float) * N_TOK * N_VOCAB);
    model_free(m);
}


/* The same logits with images as without; whether the image was made anew. */
static int
check(const char *quant, const char *path)
{
    static float want[N_TOK * N_VOCAB], got[N_TOK * N_VOCAB];
    struct stat  before = { 0 }, after;
    int          was = stat(path, &before) == 0;

    run(quant, NULL, want);
    run(quant, pack_dir, got);
    assert_memory_equal(want, got, sizeof(want));
    assert_int_equal(stat(path, &after), 0);
    assert_int_equal(after.st_mode & 0777, 0600);

    return !was || before.st_ino != after.st_ino;
}


static void
test_kept(void **state)
{
    (void) state;
    assert_true(check("bf16", image));
    assert_false(check("bf16", image));
    assert_false(check("bf16", image));
}


static void
test_another_kind(void **state)
{
    char path[256];

    (void) state;
    snprintf(path, sizeof(path), "%.*s-int8.pack",
             (int) (strlen(image) - strlen("-bf16.pack")), image);
    assert_true(check("int8", path));
    assert_false(check("int8", path));
    assert_false(check("bf16", image));
}


static void
test_changed_model(void **state)
{
    (void) state;
    assert_false(check("bf16", image));
    copy_model(100000);
    assert_true(check("bf16", image));
    assert_false(check("bf16", image));
}


/* As long and as old as the other: what `cp -p` and archives make. */
static void
test_changed_model_of_same_age(void **state)
{
    char            path[256];
    struct stat     st;
    struct timespec times[2];

    (void) state;
    snprintf(path, sizeof(path), "%s/model.safetensors", model_dir);
    assert_int_equal(stat(path, &st), 0);
    times[0] = st.st_atim;
    times[1] = st.st_mtim;
    check("bf16", image);
    copy_model(100002);
    assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
    assert_true(check("bf16", image));
    assert_false(check("bf16", image));
}


static void
test_cut_off(void **state)
{
    struct stat st;

    (void) state;
    check("bf16", image);
    assert_int_equal(stat(image, &st), 0);

    const long lengths[] = {
        0, 1, 7, 24, HEAD - 1, HEAD, (long) st.st_size - 1
    };

    for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        copy(image, image, -1, lengths[i]);
        assert_true(check("bf16", image));
        assert_false(check("bf16", image));
    }
}


static void
test_damaged(void **state)
{
    struct stat st;

    (void) state;
    check("bf16", image);
    assert_int_equal(stat(image, &st), 0);

    /* Magic, key, size, checksum, first and last of the image. */
    const long places[] = { 0, 8, 16, 24, HEAD, (long) st.st_size - 1 };

    for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
        copy(image, image, places[i], -1);
        assert_true(check("bf16", image));
        assert_false(check("bf16", image));
    }
}


/* Where some weights are, how many, how many bytes they are as BF16, and how
 * many more a token reads then: a tile of n_in columns has (n_in + 1) / 2 pairs
 * of 64 bytes, or a head of 64 and (n_in + 7) / 8 steps of 192. */
static const struct {
    const char *name;
    long        at;
    int         n;
    int         bytes;
    int         active;
} spreads[] = {
    { "head, 8 of 32", 9824, 128 * 32, 8 * 1024, 8 * (1024 - 832) },
    { "embedding, 8 of 32", 18016, 128 * 32, 8 * 1024, 0 },
    { "kv_b, 4 heads of 2 of 16 and 1 of 24", 39184, 112 * 24,
      4 * (2 * 512 + 768), 4 * (2 * (512 - 448) + 768 - 640) },
    { "experts, 8 of 2 and 2 of 32 and 2 of 20", 52856, 8 * 3 * 32 * 20,
      8 * (2 * 2 * 1024 + 2 * 640), 2 * 2 * 2 * (1024 - 832) }
};


/* Nothing is rounded for want of room: the logits are as near to those of FP32
 * weights as the weights of BF16 are, but for tokens which a router sends
 * elsewhere for a last bit: five of nine with the embedding below. */
static void
check_near_f32(const char *name, const float *got)
{
    static float want[N_TOK * N_VOCAB];
    int          near = 0;

    run("f32", NULL, want);

    for (size_t row = 0; row < N_TOK; row++) {
        float most = 0, apart = 0;

        for (size_t i = row * N_VOCAB; i < (row + 1) * N_VOCAB; i++) {
            most = fmaxf(most, fabsf(want[i]));
            apart = fmaxf(apart, fabsf(got[i] - want[i]));
        }

        near += apart < 0.05f * most;
    }

    if (near < N_TOK / 3) {
        fail_msg("%s: logits of %d of %d tokens are near", name, near, N_TOK);
    }
}


static void
test_apart(void **state)
{
    static float    got[N_TOK * N_VOCAB];
    struct err      e = { "" };
    struct backend *b = backend_open("cpu", 1, 0, &e);
    int             tight = b->tight;

    (void) state;
    b->ops->close(b);

    if (!tight) {
        print_message("# SKIP this machine's kernels have no tight weights\n");
        return;
    }

    copy_model(-1);
    run("bf16", NULL, got);

    uint64_t all = weight_bytes, active = active_bytes;

    check_near_f32("tight", got);

    for (size_t i = 0; i < sizeof(spreads) / sizeof(spreads[0]); i++) {
        copy_model(-1);
        spread_exponents(spreads[i].at, spreads[i].n);
        run("bf16", NULL, got);
        assert_int_equal(weight_bytes, all + (uint64_t) spreads[i].bytes);
        assert_int_equal(active_bytes, active + (uint64_t) spreads[i].active);
        check_near_f32(spreads[i].name, got);

        /* They are not in the image, which is good all the same. */
        assert_true(check("bf16", image));
        assert_false(check("bf16", image));
        assert_int_equal(weight_bytes, all + (uint64_t) spreads[i].bytes);
        assert_int_equal(active_bytes, active + (uint64_t) spreads[i].active);
    }

    copy_model(-1);
}


static void
test_nowhere_to_write(void **state)
{
    static float want[N_TOK * N_VOCAB], got[N_TOK * N_VOCAB];

    (void) state;
    run("bf16", NULL, want);
    run("bf16", "/nonexistent", got);
    assert_memory_equal(want, got, sizeof(want));
}


static int
setup(void **state)
{
    (void) state;

    if (mkdtemp(model_dir) == NULL || mkdtemp(pack_dir) == NULL) {
        return -1;
    }

    snprintf(image, sizeof(image), "%s%s-bf16.pack", pack_dir,
             strrchr(model_dir, '/'));
    copy_model(-1);

    return 0;
}


static int
teardown(void **state)
{
    char command[256];

    (void) state;
    snprintf(command, sizeof(command), "rm -r '%s' '%s'", model_dir, pack_dir);

    return system(command);
}


int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kept), cmocka_unit_test(test_another_kind),
        cmocka_unit_test(test_changed_model),
        cmocka_unit_test(test_changed_model_of_same_age),
        cmocka_unit_test(test_cut_off), cmocka_unit_test(test_damaged),
        cmocka_unit_test(test_apart), cmocka_unit_test(test_nowhere_to_write)
    };

    log_max = LOG_LEVEL_ERROR;      /* what is made anew is logged */
    cmocka_set_message_output(CM_OUTPUT_TAP);

    return cmocka_run_group_tests(tests, setup, teardown);
}
