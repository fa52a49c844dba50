/*
 * sandbox.h - what the child gives up, since it reads model files that
 * it did not write and talks to workers that it does not trust (D11).
 *
 * The mental model.  Two steps, neither of which can be taken back:
 *
 *   sandbox_files   while there is one thread: it and those that it starts
 *                   gain no privileges, and change files nowhere but in one
 *                   directory (Landlock)
 *   sandbox_calls   when the model is there: all threads, those of libraries
 *                   too, may use what they have, and get nothing new: no file,
 *                   no socket, no program, no code (seccomp)
 *
 * With a GPU that is less: its driver opens its devices again and again while
 * it computes.  So sandbox_files() bounds what is read, too, to the model, the
 * system's libraries, /proc and /sys, and sandbox_calls() leaves open() to
 * that.  Whether a driver does with it nobody can say but the driver: a trial
 * run in a process of its own is sandbox_probe().
 *
 * Workers that come later still can be served: their socket is there, their
 * memory is brought by them or has no name.
 */
#ifndef MOE_MAIN_SANDBOX_H
#define MOE_MAIN_SANDBOX_H

#include "base.h"

#define SANDBOX_PROBE_MS    60000   /* a driver may compile its kernels */

struct sandbox {
    const char *write_dir;      /* NULL: nothing is written */
    const char *devices;        /* of the GPU, a glob; NULL: there is none */
    const char *model_dir;      /* with a GPU, or NULL */
};

/* No new privileges, and files are written below write_dir alone; with a GPU
 * these and its devices, and none is read but as said above.  0; 1: no Landlock
 * in this kernel, files are not guarded; -1: e, with a GPU that too. */
int sandbox_files(const struct sandbox *s, struct err *e);

/* No new privileges, and the filter of system calls, for every thread of the
 * process; needs no sandbox_files() before it, but with a GPU.  0; 1: not in a
 * build whose sanitizer needs more calls; -1: e. */
int sandbox_calls(int gpu, struct err *e);

/* In a forked process: run(ctx, 0) behind the first step, run(ctx, 1) behind
 * the second.  0; -1: e, why one of the four failed, or how the process ended.
 * To be called while there is one thread, and before a GPU is used: that does
 * not survive a fork. */
typedef int sandbox_run(void *ctx, int calls, struct err *e);

int sandbox_probe(const struct sandbox *s, sandbox_run *run, void *ctx,
                  struct err *e);

#endif /* MOE_MAIN_SANDBOX_H */
