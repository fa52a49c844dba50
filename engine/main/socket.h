/*
 * socket.h - the socket on which workers are awaited, how it goes from one
 * engine to the next, and what systemd wants to hear.
 */
#ifndef MOE_MAIN_SOCKET_H
#define MOE_MAIN_SOCKET_H

#include <sys/types.h>

#include "main/options.h"

struct main_socket {
    int         fd;
    const char *path;           /* ours to unlink; NULL: systemd's */
    dev_t       dev;            /* of it, lest a successor's be unlinked */
    ino_t       ino;
    char        next[108];      /* the name until main_socket_take() */
};

/* Listens: on systemd's socket where there is one, else on --socket, which is
 * taken over only from the dead; or with --replace beside it.  0; -1: e. */
int main_socket_open(struct main_socket *s, const struct main_options *o,
                     struct err *e);

/* With --replace, once this engine is ready: workers that connect from now on
 * come here, and the engine that was there is asked to leave, which ends what
 * it has.  0; -1: e. */
int main_socket_take(struct main_socket *s, const struct main_options *o,
                     struct err *e);
void main_socket_close(struct main_socket *s);

/* "READY=1" or the like, where NOTIFY_SOCKET asks for it. */
void main_socket_notify(const char *state);

#endif /* MOE_MAIN_SOCKET_H */
