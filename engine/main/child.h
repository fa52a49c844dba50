/*
 * child.h - the process that loads the model and serves it.
 */
#ifndef MOE_MAIN_CHILD_H
#define MOE_MAIN_CHILD_H

#include "main/options.h"

/* Exit statuses of the child, which the parent acts on. */
enum {
    MAIN_CHILD_OK = 0,
    MAIN_CHILD_FAILED = 1,
    MAIN_CHILD_REFUSED = 2      /* the model or the options: no use to retry */
};

/* Serves on listen_fd and writes a byte to ready_fd when it does.  Returns the
 * exit status. */
int main_child_run(const struct main_options *o, int listen_fd, int ready_fd);

#endif /* MOE_MAIN_CHILD_H */
