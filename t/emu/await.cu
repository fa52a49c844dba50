/*
 * await.cu - how the host waits for a device's word (cuda/sample.cu): a thread
 * is the device.
 */
extern "C" {
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
}

#include <ctime>
#include <thread>
#include <unistd.h>

#include "common.cuh"

#define LATE_US     100000


static double
seconds(clockid_t clock)
{
    struct timespec t;

    clock_gettime(clock, &t);

    return (double) t.tv_sec + (double) t.tv_nsec * 1e-9;
}


/* The word is seen, not before it is there, and others have the core. */
static void
test_await(void **)
{
    struct cuda       c = {};
    volatile uint32_t word = CUDA_UNREAD;
    double            wall = seconds(CLOCK_MONOTONIC);
    double            core = seconds(CLOCK_THREAD_CPUTIME_ID);

    cudaStreamCreateWithFlags(&c.stream, cudaStreamNonBlocking);

    std::thread device([&] {
        usleep(LATE_US);
        word = 7;
    });

    cuda_await(&c, &word);
    wall = seconds(CLOCK_MONOTONIC) - wall;
    core = seconds(CLOCK_THREAD_CPUTIME_ID) - core;
    device.join();
    cudaStreamDestroy(c.stream);
    assert_int_equal(word, 7);
    assert_true(wall >= LATE_US * 1e-6);
    assert_true(core < wall / 2);
}


int
main()
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_await),
    };

    cmocka_set_message_output(CM_OUTPUT_TAP);

    return cmocka_run_group_tests(tests, NULL, NULL);
}
