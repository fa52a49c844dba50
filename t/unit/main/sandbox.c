/*
 * sandbox.c against the kernel: in a process that has locked itself up, each
 * way out is tried from the thread that did it and from one that was there
 * before, and what serving needs still works.
 */
#include "engine/main/sandbox.c"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <cmocka.h>

static char dir[] = "/tmp/moe-sandbox-XXXXXX";
static char inside[64], outside[64];


struct probe {
    const char *what;
    long      (*try)(void);
    int         want;           /* errno; 0: it works */
};

static long t_read_file(void) { return open("/etc/passwd", O_RDONLY); }
static long t_environ(void) { return open("/proc/1/environ", O_RDONLY); }
static long t_stat(void) { return access("/etc/passwd", R_OK); }
static long t_inet(void) { return socket(AF_INET, SOCK_STREAM, 0); }
static long t_unix(void) { return socket(AF_UNIX, SOCK_STREAM, 0); }
static long t_netlink(void) { return socket(AF_NETLINK, SOCK_RAW, 0); }
static long t_fork(void) { return syscall(SYS_fork); }
static long t_vfork(void) { return syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0); }
static long t_ptrace(void) { return ptrace(PTRACE_TRACEME, 0, NULL, NULL); }
static long t_uring(void) { return syscall(SYS_io_uring_setup, 1, NULL); }
static long t_bpf(void) { return syscall(SYS_bpf, 0, NULL, 0); }
static long t_userns(void) { return unshare(CLONE_NEWUSER); }
static long t_unlink(void) { return unlink(outside); }
static long t_kill(void) { return kill(getppid(), 0); }
static long t_clone3(void) { return syscall(SYS_clone3, NULL, 0); }

static long
t_write_file(void)
{
    return open(inside, O_WRONLY | O_CREAT, 0600);
}

static long
t_exec(void)
{
    char *const argv[] = { "true", NULL };

    return execv("/bin/true", argv);
}

static long
map(int prot)
{
    void *p = mmap(NULL, 4096, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    return p == MAP_FAILED ? -1 : munmap(p, 4096);
}

static long t_map_code(void) { return map(PROT_READ | PROT_WRITE | PROT_EXEC); }
static long t_map_data(void) { return map(PROT_READ | PROT_WRITE); }

static long
t_make_code(void)
{
    static char page[8192];
    char *p = page + 4096 - ((uintptr_t) page & 4095);

    return mprotect(p, 4096, PROT_READ | PROT_EXEC);
}

static long
t_memfd(void)
{
    int fd = memfd_create("t", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    return fd < 0 || ftruncate(fd, 4096) != 0
           || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) != 0 ? -1 : close(fd);
}

static long
t_epoll(void)
{
    struct epoll_event ev;
    int                fd = epoll_create1(EPOLL_CLOEXEC);

    return fd < 0 || epoll_wait(fd, &ev, 1, 0) != 0 ? -1 : close(fd);
}

static void *nothing(void *p) { return p; }

static long
t_thread(void)
{
    pthread_t t;

    return pthread_create(&t, NULL, nothing, NULL) != 0
           || pthread_join(t, NULL) != 0 ? -1 : 0;
}

static long
t_heap(void)
{
    void *p = malloc(64 << 20);
    void *q = p == NULL ? NULL : realloc(p, 128 << 20);

    free(q);

    return q == NULL ? -1 : 0;
}

static const struct probe probes[] = {
    { "read a file", t_read_file, EACCES },
    { "read another's environment", t_environ, EACCES },
    { "write a file, in the directory too", t_write_file, EACCES },
    { "look for a file", t_stat, EACCES },
    { "remove a file", t_unlink, EPERM },
    { "an internet socket", t_inet, EPERM },
    { "a unix socket", t_unix, EPERM },
    { "a netlink socket", t_netlink, EPERM },
    { "run a program", t_exec, EPERM },
    { "fork", t_fork, EPERM },
    { "clone a process", t_vfork, EPERM },
    { "clone3", t_clone3, ENOSYS },
    { "trace", t_ptrace, EPERM },
    { "io_uring", t_uring, EPERM },
    { "bpf", t_bpf, EPERM },
    { "a user namespace", t_userns, EPERM },
    { "signal another process", t_kill, EPERM },
    { "map code", t_map_code, EPERM },
    { "make data code", t_make_code, EPERM },
    { "map data", t_map_data, 0 },
    { "sealed memory without a name", t_memfd, 0 },
    { "epoll", t_epoll, 0 },
    { "a thread", t_thread, 0 },
    { "heap that moves", t_heap, 0 },
};


/* All probes; how many went otherwise than they should. */
static long
try_all(const char *who)
{
    long n_wrong = 0;

    for (size_t i = 0; i < BASE_COUNT(probes); i++) {
        errno = 0;

        long rc = probes[i].try();
        int  got = rc < 0 ? errno : 0;

        if (got != probes[i].want) {
            fprintf(stderr, "%s, %s: expected \"%s\", got \"%s\"\n", who,
                    probes[i].what, strerror(probes[i].want), strerror(got));
            n_wrong++;
        }
    }

    return n_wrong;
}


static pthread_barrier_t locked;

static void *
older_thread(void *p)
{
    pthread_barrier_wait(&locked);
    *(long *) p = try_all("a thread from before");

    return NULL;
}


static int
run_locked(void)
{
    struct err e = { "" };
    pthread_t  t;
    long       n_wrong = 0;

    pthread_barrier_init(&locked, NULL, 2);

    if (pthread_create(&t, NULL, older_thread, &n_wrong) != 0
        || sandbox_files(dir, &e) < 0 || sandbox_calls(&e) != 0)
    {
        fprintf(stderr, "%s\n", e.text);
        return 100;
    }

    pthread_barrier_wait(&locked);
    pthread_join(t, NULL);
    n_wrong += try_all("the thread that locked");

    return (int) n_wrong;
}


static int
in_a_child(int (*run)(void))
{
    int   status;
    pid_t pid = fork();

    if (pid == 0) {
        _exit(run());
    }

    assert_int_equal(waitpid(pid, &status, 0), pid);

    return status;
}


static void
test_calls(void **state)
{
    (void) state;

    if (SANITIZED) {
        print_message("# SKIP: a sanitizer needs calls that are refused\n");
        return;
    }

    assert_int_equal(in_a_child(run_locked), 0);
}


/* The second step without the first, of somebody who is not root. */
static int
run_calls_alone(void)
{
    struct err e = { "" };

    if (geteuid() == 0 && setuid(65534) != 0) {
        return 100;
    }

    if (sandbox_calls(&e) != 0) {
        fprintf(stderr, "%s\n", e.text);
        return 101;
    }

    return t_inet() >= 0 || errno != EPERM;
}


static void
test_calls_alone(void **state)
{
    (void) state;

    if (SANITIZED) {
        print_message("# SKIP: a sanitizer needs calls that are refused\n");
        return;
    }

    assert_int_equal(in_a_child(run_calls_alone), 0);
}


/* Landlock alone: what was seen through a directory is as it was. */
static int
run_files(void)
{
    struct err e = { "" };
    int        rc = sandbox_files(dir, &e);

    if (rc != 0) {
        return rc > 0 ? 77 : 100;
    }

    /* One after the other: operands of | have no order. */
    int bad = open(inside, O_WRONLY | O_CREAT | O_EXCL, 0600) < 0;

    bad |= (unlink(inside) != 0) << 1;
    bad |= (open(outside, O_WRONLY) >= 0 || errno != EACCES) << 2;
    bad |= (unlink(outside) == 0 || errno != EACCES) << 3;
    bad |= (open(outside, O_RDONLY) < 0) << 4;
    bad |= (t_exec() == 0 || errno != EACCES) << 5;

    return bad;
}


static void
test_files(void **state)
{
    (void) state;

    int status = in_a_child(run_files);

    if (WIFEXITED(status) && WEXITSTATUS(status) == 77) {
        print_message("# SKIP: this kernel has no Landlock\n");
        return;
    }

    assert_int_equal(status, 0);
}


static void
test_no_directory(void **state)
{
    struct err e = { "" };

    (void) state;

    if (sandbox_files("/nonexistent/x", &e) == 1) {
        print_message("# SKIP: this kernel has no Landlock\n");
        return;
    }

    assert_string_equal(e.text, "/nonexistent/x: No such file or directory");
}


int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_calls),
        cmocka_unit_test(test_calls_alone),
        cmocka_unit_test(test_files),
        cmocka_unit_test(test_no_directory),
    };

    if (mkdtemp(dir) == NULL) {
        return 1;
    }

    snprintf(inside, sizeof(inside), "%s/in", dir);
    snprintf(outside, sizeof(outside), "%s.out", dir);
    close(open(outside, O_WRONLY | O_CREAT, 0600));

    cmocka_set_message_output(CM_OUTPUT_TAP);

    int rc = cmocka_run_group_tests(tests, NULL, NULL);

    unlink(outside);
    rmdir(dir);

    return rc;
}
