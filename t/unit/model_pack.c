/*
 * model_pack.c - images of packed weights: the same logits from them, one made
 * anew when the model has changed, another kind is asked for, or the file is
 * cut off or damaged; and a model that loads where none can be written.
 */
#include <fcntl.h>
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
        cmocka_unit_test(test_nowhere_to_write)
    };

    log_max = LOG_LEVEL_ERROR;      /* what is made anew is logged */
    cmocka_set_message_output(CM_OUTPUT_TAP);

    return cmocka_run_group_tests(tests, setup, teardown);
}
