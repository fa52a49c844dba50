/*
 * child.c: what becomes of the sandbox where a GPU works in it, and where it
 * does not.  The trial itself runs on the CPU here, within a GPU's bounds.
 */
#include "engine/main/child.c"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>

static char log_text[1024];


static int
works(void *ctx, int calls, struct err *e)
{
    (void) calls;
    (void) e;

    return strcmp(ctx, "cuda");
}


static int
fails(void *ctx, int calls, struct err *e)
{
    (void) ctx;

    return calls ? err_set(e, "the driver wants a pony") : 0;
}


/* plan_guard(), with what it logged in log_text. */
static int
plan(const char *backend, const char *sandbox, const char *devices,
     sandbox_run *trial, struct sandbox *s, struct err *e)
{
    struct main_options o = {
        .backend = backend, .sandbox = sandbox, .model = "/usr",
        .pack_cache = "/tmp"
    };
    int fds[2], stderr_fd = dup(2);

    assert_int_equal(pipe(fds), 0);
    dup2(fds[1], 2);
    close(fds[1]);
    *s = (struct sandbox) { NULL, NULL, NULL };
    e->text[0] = '\0';

    int rc = plan_guard(&o, devices, trial, s, e);

    dup2(stderr_fd, 2);
    close(stderr_fd);

    ssize_t n = read(fds[0], log_text, sizeof(log_text) - 1);

    close(fds[0]);
    log_text[n > 0 ? n : 0] = '\0';

    return rc;
}


static int
has_landlock(void)
{
    struct sandbox s = { NULL, "/dev/full", "/usr" };
    struct err     e = { "" };

    if (sandbox_probe(&s, works, (void *) "cuda", &e) == 0) {
        return 1;
    }

    assert_non_null(strstr(e.text, "no Landlock"));
    print_message("# SKIP: this kernel has no Landlock\n");

    return 0;
}


static void
test_plan(void **state)
{
    static const char gpu[] = "/dev/ful[l]", none[] = "/nonexistent/x*";
    struct sandbox    s;
    struct err        e;

    (void) state;
    assert_int_equal(plan("cpu", "auto", gpu, fails, &s, &e), 0);
    assert_null(s.devices);
    assert_string_equal(s.write_dir, "/tmp");
    assert_string_equal(s.model_dir, "/usr");
    assert_int_equal(plan("cuda", "off", gpu, fails, &s, &e), 0);
    assert_null(s.model_dir);
    assert_int_equal(plan("auto", "on", none, fails, &s, &e), 0);
    assert_null(s.model_dir);
    assert_string_equal(log_text, "");

    if (!has_landlock()) {
        return;
    }

    assert_int_equal(plan("cuda", "auto", gpu, works, &s, &e), 0);
    assert_string_equal(s.devices, gpu);
    assert_null(s.write_dir);
    assert_string_equal(s.model_dir, "/usr");
    assert_string_equal(log_text, "");
    assert_int_equal(plan("auto", "on", gpu, works, &s, &e), 0);
    assert_string_equal(s.devices, gpu);
}


static void
test_fallback(void **state)
{
    static const char gpu[] = "/dev/ful[l]";
    struct sandbox    s;
    struct err        e;

    (void) state;

    if (!has_landlock()) {
        return;
    }

    assert_int_equal(plan("cuda", "auto", gpu, fails, &s, &e), 0);
    assert_null(s.model_dir);
    assert_null(s.devices);
    assert_non_null(strstr(log_text, "sandbox: none with a GPU, a trial in it "
                           "failed: the driver wants a pony\n"));
    assert_int_equal(plan("cuda", "on", gpu, fails, &s, &e), -1);
    assert_string_equal(e.text, "--sandbox on: a trial of the GPU in it "
                        "failed: the driver wants a pony");
    assert_string_equal(log_text, "");
}


/* The second step, of a GPU that nobody has tried. */
static void
test_untried(void **state)
{
    struct sandbox      s = { NULL, NULL, NULL };
    struct main_options o = { .backend = "auto", .sandbox = "on" };
    struct err          e = { "" };

    (void) state;
    assert_int_equal(guard_calls(&o, &s, 0, &e), -1);
    assert_non_null(strstr(e.text, "--sandbox on: expected a GPU of"));
    o.sandbox = "auto";
    assert_int_equal(guard_calls(&o, &s, 0, &e), 0);
}


static void
test_trial(void **state)
{
    struct sandbox s = { NULL, "/dev/full", "/usr" };
    struct err     e = { "" };

    (void) state;

    if (!has_landlock()) {
        return;
    }

    sandbox_probe(&s, gpu_trial, (void *) "cpu", &e);
    assert_string_equal(e.text, "");
    assert_int_equal(sandbox_probe(&s, gpu_trial, (void *) "cpu:x", &e), -1);
    assert_non_null(strstr(e.text, "backend \"cpu:x\""));
}


int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plan),
        cmocka_unit_test(test_fallback),
        cmocka_unit_test(test_untried),
        cmocka_unit_test(test_trial),
    };

    log_max = LOG_LEVEL_WARN;       /* that there is no sandbox is noticed */
    cmocka_set_message_output(CM_OUTPUT_TAP);

    return cmocka_run_group_tests(tests, NULL, NULL);
}
