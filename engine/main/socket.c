/*
 * socket.c - see main/socket.h.
 */
#include "main/socket.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define SYSTEMD_FIRST_FD    3       /* sd_listen_fds(3) */
#define BACKLOG             256     /* old and new workers of a reload */


static int
set_address(struct sockaddr_un *a, const char *path, struct err *e)
{
    memset(a, 0, sizeof(*a));
    a->sun_family = AF_UNIX;

    if (strlen(path) >= sizeof(a->sun_path)) {
        return err_set(e, "--socket: expected at most %zu bytes, got %zu",
                       sizeof(a->sun_path) - 1, strlen(path));
    }

    memcpy(a->sun_path, path, strlen(path));

    return 0;
}


/* 1: systemd has passed the socket; 0: it has not; -1: e. */
static int
systemd_socket(struct main_socket *s, struct err *e)
{
    const char *pid = getenv("LISTEN_PID");
    const char *fds = getenv("LISTEN_FDS");
    int         type = 0, domain = 0, listening = 0;
    socklen_t   n = sizeof(int);
    int         fd = SYSTEMD_FIRST_FD;

    if (pid == NULL || fds == NULL || strtol(pid, NULL, 10) != getpid()) {
        return 0;
    }

    if (strcmp(fds, "1") != 0
        || getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &n) != 0
        || getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &n) != 0
        || getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &n) != 0
        || type != SOCK_SEQPACKET || domain != AF_UNIX || !listening
        || fcntl(fd, F_SETFD, FD_CLOEXEC) != 0
        || fcntl(fd, F_SETFL, O_NONBLOCK) != 0)
    {
        return err_set(e, "LISTEN_FDS: expected one unix socket of "
                       "ListenSequentialPacket=");
    }

    s->fd = fd;
    s->path = NULL;

    return 1;
}


/* Unlinks a socket that nobody listens on; anything else stays. */
static int
remove_stale(const struct sockaddr_un *a, struct err *e)
{
    struct stat st;

    if (lstat(a->sun_path, &st) != 0) {
        return errno == ENOENT ? 0
               : err_set(e, "%s: %s", a->sun_path, strerror(errno));
    }

    if (!S_ISSOCK(st.st_mode)) {
        return err_set(e, "%s: it exists and is not a socket", a->sun_path);
    }

    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int dead = fd >= 0 && connect(fd, (const struct sockaddr *) a, sizeof(*a))
                          != 0 && errno == ECONNREFUSED;

    if (fd >= 0) {
        close(fd);
    }

    if (!dead) {
        return err_set(e, "%s: somebody else listens there", a->sun_path);
    }

    if (unlink(a->sun_path) != 0 && errno != ENOENT) {
        return err_set(e, "%s: cannot remove the old socket: %s", a->sun_path,
                       strerror(errno));
    }

    return 0;
}


static int
set_group(const char *path, const char *name, struct err *e)
{
    const struct group *g = getgrnam(name);

    if (g == NULL) {
        return err_set(e, "--socket-group: there is no group \"%s\"", name);
    }

    if (chown(path, (uid_t) -1, g->gr_gid) != 0) {
        return err_set(e, "%s: cannot give it to group \"%s\": %s", path, name,
                       strerror(errno));
    }

    return 0;
}


/* A socket at the address, which is `path` to others as well.  0; -1: e. */
static int
listen_at(struct main_socket *s, const struct sockaddr_un *a,
          const char *path, const struct main_options *o, struct err *e)
{
    struct stat st;

    s->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (s->fd < 0) {
        return err_set(e, "socket: %s", strerror(errno));
    }

    /* Nobody but us until permissions are as asked for. */
    mode_t old = umask(0177);
    int    rc = bind(s->fd, (const struct sockaddr *) a, sizeof(*a));

    umask(old);

    if (rc != 0 || lstat(path, &st) != 0) {
        return err_set(e, "%s: cannot bind: %s", path, strerror(errno));
    }

    s->path = path;
    s->dev = st.st_dev;
    s->ino = st.st_ino;

    if (o->socket_group != NULL && set_group(path, o->socket_group, e) != 0) {
        return -1;
    }

    if (chmod(path, (mode_t) o->socket_mode) != 0
        || listen(s->fd, BACKLOG) != 0)
    {
        return err_set(e, "%s: %s", path, strerror(errno));
    }

    return 0;
}


int
main_socket_open(struct main_socket *s, const struct main_options *o,
                 struct err *e)
{
    struct sockaddr_un a;
    const char        *path = o->socket;
    int                rc = systemd_socket(s, e);

    if (rc != 0) {
        return rc < 0 ? -1 : 0;
    }

    if (o->socket == NULL) {
        return err_set(e, "--socket PATH is required; --help lists all "
                       "options");
    }

    s->path = NULL;

    if (o->replace) {
        rc = snprintf(s->next, sizeof(s->next), "%s.%d", path, getpid());

        if (rc < 0 || (size_t) rc >= sizeof(s->next)) {
            return err_set(e, "--socket: %s is too long for --replace", path);
        }

        path = s->next;
    }

    if (set_address(&a, path, e) != 0 || remove_stale(&a, e) != 0) {
        return -1;
    }

    if (listen_at(s, &a, path, o, e) != 0) {
        main_socket_close(s);
        return -1;
    }

    return 0;
}


/* The process that listens at the address, if it is a user's like us; else
 * 0. */
static pid_t
listener_of(const struct sockaddr_un *a)
{
    struct ucred peer = { .pid = 0 };
    socklen_t    n = sizeof(peer);
    int          fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC
                                      | SOCK_NONBLOCK, 0);

    if (fd < 0) {
        return 0;
    }

    if (connect(fd, (const struct sockaddr *) a, sizeof(*a)) != 0
        || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &n) != 0
        || peer.uid != geteuid())
    {
        peer.pid = 0;
    }

    close(fd);

    /* 1 is systemd, who restarts its engines itself. */
    return peer.pid > 1 ? peer.pid : 0;
}


int
main_socket_take(struct main_socket *s, const struct main_options *o,
                 struct err *e)
{
    struct sockaddr_un a;
    struct stat        st;

    if (!o->replace || s->path != s->next) {
        return 0;
    }

    if (set_address(&a, o->socket, e) != 0) {
        return -1;
    }

    if (lstat(o->socket, &st) == 0 && !S_ISSOCK(st.st_mode)) {
        return err_set(e, "%s: it exists and is not a socket", o->socket);
    }

    pid_t old = listener_of(&a);

    if (rename(s->next, o->socket) != 0) {
        return err_set(e, "%s: cannot be replaced: %s", o->socket,
                       strerror(errno));
    }

    s->path = o->socket;

    if (old != 0 && kill(old, SIGTERM) == 0) {
        log_line(LOG_LEVEL_NOTICE, "took %s over from process %d", o->socket,
                 (int) old);
    }

    return 0;
}


void
main_socket_close(struct main_socket *s)
{
    struct stat st;

    if (s->path != NULL) {
        if (lstat(s->path, &st) == 0 && st.st_dev == s->dev
            && st.st_ino == s->ino)
        {
            unlink(s->path);
        }

        s->path = NULL;
    }

    if (s->fd >= 0) {
        close(s->fd);
        s->fd = -1;
    }
}


void
main_socket_notify(const char *state)
{
    const char        *path = getenv("NOTIFY_SOCKET");
    struct sockaddr_un a;

    if (path == NULL || set_address(&a, path, NULL) != 0) {
        return;
    }

    /* A leading @ is an abstract name. */
    a.sun_path[0] = path[0] == '@' ? '\0' : path[0];

    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    if (fd >= 0) {
        socklen_t n = (socklen_t) (offsetof(struct sockaddr_un, sun_path)
                                   + strlen(path));

        (void) sendto(fd, state, strlen(state), MSG_NOSIGNAL | MSG_DONTWAIT,
                      (const struct sockaddr *) &a, n);
        close(fd);
    }
}
