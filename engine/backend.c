/*
 * backend.c - the choice of a backend by name; see backend.h.
 */
#include "backend.h"

#include <string.h>

/* The CUDA backend is linked into what is built with it. */
#pragma weak cuda_open


static struct backend *
open_cuda(const char *name, int n_threads, struct err *e)
{
    if (cuda_open == NULL) {
        err_set(e, "backend \"%s\": this build has none; build with nvcc",
                name);
        return NULL;
    }

    return cuda_open(name, n_threads, e);
}


struct backend *
backend_open(const char *name, int n_threads, int pin, struct err *e)
{
    struct err why;

    if (strncmp(name, "cuda", 4) == 0) {
        return open_cuda(name, n_threads, e);
    }

    if (strncmp(name, "auto", 4) != 0) {
        return cpu_open(name, n_threads, pin, e);
    }

    struct backend *b = open_cuda(strcmp(name, "auto:deterministic") == 0
                                  ? "cuda:deterministic" : "cuda", n_threads,
                                  &why);

    if (b == NULL) {
        log_line(LOG_LEVEL_NOTICE, "%s; taking the CPU", why.text);
        b = cpu_open("cpu", n_threads, pin, e);
    }

    return b;
}
