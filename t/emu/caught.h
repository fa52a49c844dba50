/*
 * caught.h - whether the emulation finds a mistake.
 */
#ifndef MOE_EMU_CAUGHT_H
#define MOE_EMU_CAUGHT_H

extern "C" {
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
}

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <sys/wait.h>
#include <unistd.h>

#include <cuda_runtime.h>
#include <hw.cuh>

#define N   64

/* Whether loads and stores are looked at (access.cc). */
#if defined(__SANITIZE_THREAD__)
#define IS_SEEN     1
#else
#define IS_SEEN     0
#endif


/* Whether fn, under some order of turns, ends the process or says 1. */
static inline bool
is_caught(const std::function<int()> &fn)
{
    bool caught = false;

    for (int order = 0; order < 3; order++) {
        pid_t pid = fork();

        if (pid == 0) {
            /* cmocka's handlers would go on with the next test. */
            signal(SIGSEGV, SIG_DFL);
            signal(SIGABRT, SIG_DFL);
            (void) !freopen("/dev/null", "w", stderr);
            emu_order_set((enum emu_order) order, 7);
            _exit(fn() == 0 ? 0 : 1);
        }

        int status = 0;

        waitpid(pid, &status, 0);
        caught |= status != 0;
    }

    return caught;
}

#endif /* MOE_EMU_CAUGHT_H */
