/*
 * main.c - moe-engine: a small parent that keeps a child serving (D11).
 *
 * The parent holds the listening socket and nothing else; the child loads the
 * model and talks to workers.  When the child dies the parent starts another
 * one on the same socket, so workers only see one engine go and one come.
 *
 * SIGTERM or SIGINT lets the child finish what is open; a second one ends it at
 * once.  Under systemd Restart= does the same for the parent.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "main/child.h"
#include "main/socket.h"

#define FAILURES_MAX    3       /* in a row, before the child was ready */
#define BACKOFF_MS      100     /* after the first failure; doubles */
#define BACKOFF_MAX_MS  5000
#define STEADY_US       60000000    /* a life that resets the delay */
#define KILL_AFTER_US   10000000    /* beyond the time to drain */


struct parent {
    const struct main_options *o;
    struct main_socket socket;
    sigset_t    before;         /* signals that were blocked at start */
    int         signals;        /* signalfd of those that we wait for */
    pid_t       child;          /* -1: none */
    int         ready_fd;       /* the child writes there; -1: closed */
    int         ready;          /* the child did */
    uint64_t    started_us;
    uint64_t    kill_us;        /* when a child that does not end is killed */
    int         n_failures;     /* in a row, of children never ready */
    int         delay_ms;       /* before the next child */
    int         was_ready;      /* some child once was */
    int         n_stops;        /* SIGTERM and SIGINT so far */
    int         failed;         /* it stops because something did not work */
};


static void
child_main(struct parent *p, int ready_fd, pid_t parent)
{
    /* Dies with its parent, also where that has died just now. */
    prctl(PR_SET_PDEATHSIG, SIGKILL);

    if (getppid() != parent) {
        _exit(MAIN_CHILD_FAILED);
    }

    /* The loop takes SIGTERM and SIGQUIT from a descriptor, and no thread may
     * get them; until there is a loop the parent uses SIGKILL.  Control-C
     * reaches the whole group: the parent passes it on as SIGTERM. */
    sigset_t mask = p->before;

    sigaddset(&mask, SIGTERM);
    sigaddset(&mask, SIGQUIT);
    sigprocmask(SIG_SETMASK, &mask, NULL);
    signal(SIGINT, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    close(p->signals);

    exit(main_child_run(p->o, p->socket.fd, ready_fd));
}


static int
start_child(struct parent *p, struct err *e)
{
    int   fds[2];
    pid_t parent = getpid();

    if (pipe2(fds, O_CLOEXEC) != 0) {
        return err_set(e, "pipe: %s", strerror(errno));
    }

    p->ready = 0;
    p->started_us = clock_us();
    p->child = fork();

    if (p->child == 0) {
        close(fds[0]);
        child_main(p, fds[1], parent);
    }

    close(fds[1]);

    if (p->child < 0) {
        close(fds[0]);
        return err_set(e, "fork: %s", strerror(errno));
    }

    p->ready_fd = fds[0];

    return 0;
}


static void
forget_ready(struct parent *p)
{
    if (p->ready_fd >= 0) {
        close(p->ready_fd);
        p->ready_fd = -1;
    }
}


/* The first asks, the second insists; a child that does not listen is killed,
 * one that still loads at once. */
static void
take_stop(struct parent *p)
{
    p->n_stops++;

    if (p->child < 0) {
        return;
    }

    if (p->n_stops == 1) {
        main_socket_notify("STOPPING=1");
    }

    int sig = !p->ready || p->n_stops > 2 ? SIGKILL
              : p->n_stops == 2 ? SIGQUIT : SIGTERM;

    kill(p->child, sig);

    if (p->n_stops == 1) {
        p->kill_us = clock_us() + (uint64_t) p->o->drain_s * 1000000
                     + KILL_AFTER_US;
    }
}


/* The child serves, or will never. */
static void
take_ready(struct parent *p)
{
    char       byte;
    struct err e = { "" };

    if (read(p->ready_fd, &byte, 1) == 1) {
        log_line(LOG_LEVEL_NOTICE, "ready");
        main_socket_notify("READY=1");
        p->ready = 1;
        p->was_ready = 1;
        p->n_failures = 0;

        if (main_socket_take(&p->socket, p->o, &e) != 0) {
            log_line(LOG_LEVEL_ERROR, "%s", e.text);
            p->failed = 1;
            take_stop(p);
        }
    }

    forget_ready(p);
}


/* What became of the child.  1: start another one; 0: exit 0; -1: exit 1. */
static int
take_death(struct parent *p, int status)
{
    int      code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    uint64_t up_us = clock_us() - p->started_us;

    p->child = -1;
    forget_ready(p);

    if (p->n_stops > 0) {
        return p->failed ? -1 : 0;
    }

    if (code >= 0) {
        log_line(LOG_LEVEL_ERROR, "the engine exited with %d", code);
    } else {
        log_line(LOG_LEVEL_ERROR, "the engine died of signal %d (%s)",
                 WTERMSIG(status), strsignal(WTERMSIG(status)));
    }

    if (!p->ready) {
        p->n_failures++;

        if (p->n_failures == FAILURES_MAX
            || (code == MAIN_CHILD_REFUSED && !p->was_ready))
        {
            return -1;
        }
    }

    p->delay_ms = up_us > STEADY_US || p->delay_ms == 0 ? BACKOFF_MS
                  : 2 * p->delay_ms > BACKOFF_MAX_MS ? BACKOFF_MAX_MS
                  : 2 * p->delay_ms;

    log_line(LOG_LEVEL_NOTICE, "starting it again in %d ms", p->delay_ms);

    return 1;
}


/* Waits at most `ms` (-1: for ever) for a signal or the child's readiness. */
static void
wait_for_events(struct parent *p, int ms)
{
    struct signalfd_siginfo info;
    struct pollfd           fds[2] = {
        { .fd = p->signals, .events = POLLIN },
        { .fd = p->ready_fd, .events = POLLIN }
    };

    if (poll(fds, 2, ms) <= 0) {
        return;
    }

    if (fds[1].revents != 0) {
        take_ready(p);
    }

    while (read(p->signals, &info, sizeof(info)) == sizeof(info)) {
        if (info.ssi_signo != SIGCHLD) {
            take_stop(p);
        }
    }
}


/* Between two children: a pause that SIGTERM ends. */
static void
pause_for(struct parent *p)
{
    uint64_t until = clock_us() + (uint64_t) p->delay_ms * 1000;

    for (uint64_t now = clock_us(); now < until && p->n_stops == 0;
         now = clock_us())
    {
        wait_for_events(p, (int) ((until - now) / 1000) + 1);
    }
}


/* Keeps a child running until it is told to stop.  The exit status. */
static int
supervise(struct parent *p, struct err *e)
{
    int next = 1;

    while (next > 0 && p->n_stops == 0) {
        int status;

        if (start_child(p, e) != 0) {
            log_line(LOG_LEVEL_ERROR, "%s", e->text);
            return 1;
        }

        while (waitpid(p->child, &status, WNOHANG) == 0) {
            wait_for_events(p, p->n_stops > 0 ? 1000 : -1);

            if (p->n_stops > 0 && clock_us() > p->kill_us) {
                kill(p->child, SIGKILL);
            }
        }

        if (p->ready_fd >= 0) {
            /* Ready and dead in one moment: it counts as ready. */
            take_ready(p);
        }

        next = take_death(p, status);

        if (next > 0) {
            pause_for(p);
        }
    }

    return next < 0;
}


static int
take_signals(struct parent *p, struct err *e)
{
    sigset_t mask;

    sigemptyset(&mask);
    sigaddset(&mask, SIGTERM);
    sigaddset(&mask, SIGINT);
    sigaddset(&mask, SIGCHLD);
    sigprocmask(SIG_BLOCK, &mask, &p->before);
    p->signals = signalfd(-1, &mask, SFD_NONBLOCK | SFD_CLOEXEC);

    return p->signals >= 0 ? 0 : err_set(e, "signalfd: %s", strerror(errno));
}


static int
say_help(void)
{
    struct buf text = { NULL, 0, 0, 0 };
    int        rc = main_options_help(&text) != 0
                    || fputs(text.p, stdout) == EOF;

    buf_free(&text);

    return rc;
}


int
main(int argc, char **argv)
{
    static const char *const levels[] = {
        "error", "warn", "notice", "info", "debug"
    };
    struct main_options o;
    struct parent       p = {
        .o = &o, .socket.fd = -1, .child = -1, .ready_fd = -1
    };
    struct err          e = { "" };

    if (main_options_parse(&o, argc, argv, &e) != 0) {
        fprintf(stderr, "moe-engine: %s\n", e.text);
        return 1;
    }

    if (o.help) {
        return say_help();
    }

    if (o.version) {
        puts("moe-engine " MAIN_VERSION);
        return 0;
    }

    for (unsigned i = 0; i < BASE_COUNT(levels); i++) {
        if (strcmp(o.log_level, levels[i]) == 0) {
            log_max = (enum log_level) i;
        }
    }

    if (take_signals(&p, &e) != 0 || main_socket_open(&p.socket, &o, &e) != 0) {
        log_line(LOG_LEVEL_ERROR, "%s", e.text);
        return 1;
    }

    int rc = supervise(&p, &e);

    main_socket_close(&p.socket);

    return rc;
}
