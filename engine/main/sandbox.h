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
 * Workers that come later still can be served: their socket is there, their
 * memory is brought by them or has no name.
 */
#ifndef MOE_MAIN_SANDBOX_H
#define MOE_MAIN_SANDBOX_H

#include "base.h"

/* No new privileges, and files are written below write_dir alone (NULL:
 * nowhere).  0; 1: no Landlock in this kernel, files are not guarded; -1: e. */
int sandbox_files(const char *write_dir, struct err *e);

/* No new privileges, and the filter of system calls, for every thread of the
 * process; needs no sandbox_files() before it.  0; 1: not in a build whose
 * sanitizer needs more calls; -1: e. */
int sandbox_calls(struct err *e);

#endif /* MOE_MAIN_SANDBOX_H */
