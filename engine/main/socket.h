/*
 * socket.h - the socket on which workers are awaited, and what systemd
 * wants to hear.
 */
#ifndef MOE_MAIN_SOCKET_H
#define MOE_MAIN_SOCKET_H

#include "main/options.h"

struct main_socket {
    int         fd;
    const char *path;           /* ours to unlink; NULL: systemd's */
};

/* Listens: on systemd's socket where there is one, else on --socket, which is
 * taken over only from the dead.  0; -1: e. */
int main_socket_open(struct main_socket *s, const struct main_options *o,
                     struct err *e);
void main_socket_close(struct main_socket *s);

/* "READY=1" or the like, where NOTIFY_SOCKET asks for it. */
void main_socket_notify(const char *state);

#endif /* MOE_MAIN_SOCKET_H */
