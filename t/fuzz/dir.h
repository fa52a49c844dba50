/*
 * dir.h - a directory of this process, for parsers that read files; in memory
 * where there is such a place.
 */
#ifndef MOE_FUZZ_DIR_H
#define MOE_FUZZ_DIR_H

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>


static const char *
dir_name(void)
{
    static char dir[64];

    if (dir[0] == '\0') {
        snprintf(dir, sizeof(dir), "%s/moe-fuzz-XXXXXX",
                 access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");

        if (mkdtemp(dir) == NULL) {
            abort();
        }
    }

    return dir;
}


/* A file of both parts; a = NULL: no such file. */
static void
dir_put(const char *name, const void *a, size_t n_a, const void *b, size_t n_b)
{
    char path[128];

    snprintf(path, sizeof(path), "%s/%s", dir_name(), name);
    unlink(path);

    if (a == NULL) {
        return;
    }

    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0600);

    if (fd < 0 || write(fd, a, n_a) != (ssize_t) n_a
        || write(fd, b, n_b) != (ssize_t) n_b || close(fd) != 0)
    {
        abort();
    }
}

#endif /* MOE_FUZZ_DIR_H */
