/*
 * sandbox.c against the kernel: in a process that has locked itself up, each
 * way out is tried from the thread that did it and from one that was there
 * before, and what serving needs still works.  With a GPU, whose driver may
 * have more, there is none here: a device that every machine has stands in.
 */
#include "engine/main/sandbox.c"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <cmocka.h>

static char dir[] = "/tmp/moe-sandbox-XXXXXX";
static char inside[64], outside[64], model[64];
static struct sandbox writes = { .write_dir = dir };
static struct sandbox gpu = { .devices = "/dev/ful[l]", .model_dir = model };


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

/* A file of the model's directory, "" or what is behind it. */
static long
open_model(const char *name, int flags)
{
    char path[128];

    snprintf(path, sizeof(path), "%s%s", model, name);

    return open(path, flags, 0600);
}

static long t_model(void) { return open_model("/config.json", O_RDONLY); }
static long t_model_dir(void) { return open_model("", O_RDONLY); }
static long t_model_link(void) { return open_model("/link", O_RDONLY); }
static long t_model_write(void) { return open_model("/link", O_WRONLY); }
static long t_model_new(void) { return open_model("/x", O_RDWR | O_CREAT); }
static long t_beside(void) { return open("/tmp", O_RDONLY | O_DIRECTORY); }
static long t_truncate(void) { return truncate(outside, 0); }
static long t_library(void) { return open("/usr/lib", O_RDONLY); }
static long t_maps(void) { return open("/proc/self/maps", O_RDONLY); }
static long t_device(void) { return open("/dev/full", O_RDWR); }
static long t_others(void) { return open("/dev/random", O_RDONLY); }
static long t_tty(void) { return ioctl(0, TIOCSTI, "x"); }
static long t_prctl(void) { return prctl(PR_GET_DUMPABLE); }
static long t_name(void) { return prctl(PR_SET_NAME, "gpu"); }

/* The device knows none of them; but is asked. */
static long
ask(const char *device, unsigned long request)
{
    int  fd = open(device, O_RDONLY);
    long rc = fd < 0 ? -1 : ioctl(fd, request, NULL);
    int  why = errno;

    close(fd);
    errno = why;

    return rc;
}

static long t_ask(void) { return ask("/dev/full", _IOWR('F', 42, long[4])); }
static long t_ask_uvm(void) { return ask("/dev/full", 0x30000001); }
static long t_ask_plain(void) { return ask("/dev/full", 37); }
static long t_ask_size(void) { return ask("/dev/full", FIONREAD); }

/* Of a device that is not the GPU's; 0 where this Landlock can refuse it. */
static long
t_ask_other(void)
{
    long version = syscall(SYS_landlock_create_ruleset, NULL, 0, 1);

    errno = 0;

    return ask("/dev/null", _IOWR('F', 42, long[4])) < 0
           && errno == (version < 5 && version > 0 ? ENOTTY : EACCES) ? 0 : -1;
}

/* As the driver does it, of a thread that came after. */
static void *
name_thread(void *p)
{
    char path[64];

    snprintf(path, sizeof(path), "/proc/self/task/%d/comm",
             (int) syscall(SYS_gettid));

    int fd = open(path, O_WRONLY);

    *(int *) p = fd < 0 || write(fd, "gpu", 3) != 3 ? errno : close(fd);

    return NULL;
}

static long
t_name_thread(void)
{
    pthread_t t;
    int       why = EINVAL;

    if (pthread_create(&t, NULL, name_thread, &why) == 0) {
        pthread_join(t, NULL);
    }

    errno = why;

    return why == 0 ? 0 : -1;
}


/* To what cannot be written, by the file that a thread's memory is. */
static long
t_patch(void)
{
    static const char same[] = "same";
    int               fd = open("/proc/thread-self/mem", O_RDWR);
    long              rc = fd < 0 ? -1 : lseek(fd, (off_t) (uintptr_t) same,
                                               SEEK_SET);

    rc = rc < 0 ? -1 : write(fd, same, sizeof(same));

    int why = errno;

    close(fd);
    errno = why;

    return rc;
}


/* Files, without a GPU. */
static const struct probe cpu_probes[] = {
    { "read a file", t_read_file, EACCES },
    { "read another's environment", t_environ, EACCES },
    { "write a file, in the directory too", t_write_file, EACCES },
    { "write to code", t_patch, EACCES },
    { "look for a file", t_stat, EACCES },
    { "ask a device", t_tty, EPERM },
    { "name itself", t_name, EPERM },
    { NULL, NULL, 0 }
};

static const struct probe gpu_probes[] = {
    { "read a file", t_read_file, EACCES },
    { "read another's environment", t_environ, EACCES },
    { "write a file", t_write_file, EACCES },
    { "write to code", t_patch, EPERM },
    { "list where the model's link leads", t_beside, EACCES },
    { "write the model", t_model_write, EACCES },
    { "add to the model", t_model_new, EACCES },
    { "shorten a file", t_truncate, EPERM },
    { "another device", t_others, EACCES },
    { "type for the user", t_tty, EPERM },
    { "an ioctl that is not the driver's", t_ask_size, EPERM },
    { "an ioctl of another device", t_ask_other, 0 },
    { "prctl", t_prctl, EPERM },
    { "read the model", t_model, 0 },
    { "list the model", t_model_dir, 0 },
    { "read the model, by a link", t_model_link, 0 },
    { "read a library", t_library, 0 },
    { "read of itself", t_maps, 0 },
    { "its device", t_device, 0 },
    { "an ioctl of the driver", t_ask, ENOTTY },
    { "an ioctl of nvidia-uvm", t_ask_uvm, ENOTTY },
    { "a plain one", t_ask_plain, ENOTTY },
    { "name itself", t_name, 0 },
    { "name a thread by its file", t_name_thread, 0 },
    { NULL, NULL, 0 }
};

static const struct probe probes[] = {
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
    { NULL, NULL, 0 }
};


/* How many probes went otherwise than they should. */
static long
try_these(const char *who, const struct probe *p)
{
    long n_wrong = 0;

    for ( ; p->what != NULL; p++) {
        errno = 0;

        long rc = p->try();
        int  got = rc < 0 ? errno : 0;

        if (got != p->want) {
            fprintf(stderr, "%s, %s: expected \"%s\", got \"%s\"\n", who,
                    p->what, strerror(p->want), strerror(got));
            n_wrong++;
        }
    }

    return n_wrong;
}


static long
try_all(const char *who, int with_gpu)
{
    return try_these(who, with_gpu ? gpu_probes : cpu_probes)
           + try_these(who, probes);
}


static pthread_barrier_t locked;

struct older {
    int         with_gpu;
    long        n_wrong;
};

static void *
older_thread(void *p)
{
    struct older *o = p;

    pthread_barrier_wait(&locked);
    o->n_wrong = try_all("a thread from before", o->with_gpu);

    return NULL;
}


/* The other thread is there before the calls are filtered; and before files
 * are bounded where that is not all that bounds them. */
static int
run_both(const struct sandbox *s)
{
    struct err   e = { "" };
    struct older o = { s->devices != NULL, 0 };
    pthread_t    t;

    pthread_barrier_init(&locked, NULL, 2);

    if ((o.with_gpu && sandbox_files(s, &e) != 0)
        || pthread_create(&t, NULL, older_thread, &o) != 0
        || (!o.with_gpu && sandbox_files(s, &e) < 0)
        || sandbox_calls(o.with_gpu, &e) != 0)
    {
        fprintf(stderr, "%s\n", e.text);
        return strstr(e.text, "no Landlock") != NULL ? 77 : 100;
    }

    pthread_barrier_wait(&locked);
    pthread_join(t, NULL);

    return (int) (o.n_wrong + try_all("the thread that locked", o.with_gpu));
}

static int run_locked(void) { return run_both(&writes); }
static int run_gpu(void) { return run_both(&gpu); }


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


static void
test_gpu(void **state)
{
    (void) state;

    if (SANITIZED) {
        print_message("# SKIP: a sanitizer needs calls that are refused\n");
        return;
    }

    int status = in_a_child(run_gpu);

    if (WIFEXITED(status) && WEXITSTATUS(status) == 77) {
        print_message("# SKIP: this kernel has no Landlock\n");
        return;
    }

    assert_int_equal(status, 0);
}


/* The second step without the first, of somebody who is not root. */
static int
run_calls_alone(void)
{
    struct err e = { "" };

    if (geteuid() == 0 && setuid(65534) != 0) {
        return 100;
    }

    if (sandbox_calls(0, &e) != 0) {
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
    int        rc = sandbox_files(&writes, &e);

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

    if (sandbox_files(&(struct sandbox) { "/nonexistent/x", NULL, NULL }, &e)
        == 1)
    {
        print_message("# SKIP: this kernel has no Landlock\n");
        return;
    }

    assert_string_equal(e.text, "/nonexistent/x: No such file or directory");
}


/* -- the trial ------------------------------------------------------------- */

static int
trial(void *ctx, int calls, struct err *e)
{
    int *step = ctx;

    if (calls != *step) {
        return 0;
    }

    errno = 0;

    return step[1] == 0 ? raise(SIGKILL)
           : step[1] == 1 ? err_set(e, "it does not")
           : step[1] == 2 ? -1
           : calls == 0 ? t_model() < 0 || t_read_file() >= 0
           : t_inet() >= 0 || t_device() < 0;
}


static void
test_trial(void **state)
{
    static const struct {
        int         how;
        int         want;
        const char *text;
    } cases[] = {
        { 0, -1, "it died of signal 9 (Killed)" },
        { 1, -1, "it does not" },
        { 2, -1, "it exited with 1" },
        { 3, 0, "" }
    };

    (void) state;

    if (syscall(SYS_landlock_create_ruleset, NULL, 0, 1) < 1 || SANITIZED) {
        print_message("# SKIP: it needs Landlock, and no sanitizer\n");
        return;
    }

    for (size_t i = 0; i < 2 * BASE_COUNT(cases); i++) {
        int        ctx[2] = { (int) i % 2, cases[i / 2].how };
        struct err e = { "" };

        assert_int_equal(sandbox_probe(&gpu, trial, ctx, &e),
                         cases[i / 2].want);
        assert_string_equal(e.text, cases[i / 2].text);
    }
}


/* The trial comes to no run where the model cannot be read. */
static void
test_trial_files(void **state)
{
    int            ctx[2] = { 0, 1 };
    struct sandbox s = { NULL, "/dev/ful[l]", "/nonexistent/x" };
    struct err     e = { "" };

    (void) state;

    if (syscall(SYS_landlock_create_ruleset, NULL, 0, 1) < 1) {
        print_message("# SKIP: this kernel has no Landlock\n");
        return;
    }

    assert_int_equal(sandbox_probe(&s, trial, ctx, &e), -1);
    assert_string_equal(e.text, "/nonexistent/x: No such file or directory");
}


/* A model whose one file is there and whose other is a link out of it. */
static void
make_model(void)
{
    char path[128];

    snprintf(model, sizeof(model), "%s/model", dir);
    mkdir(model, 0700);
    snprintf(path, sizeof(path), "%s/config.json", model);
    close(open(path, O_WRONLY | O_CREAT, 0600));
    snprintf(path, sizeof(path), "%s/link", model);

    if (symlink(outside, path) != 0) {
        abort();
    }
}


static void
remove_model(void)
{
    char path[128];

    snprintf(path, sizeof(path), "%s/config.json", model);
    unlink(path);
    snprintf(path, sizeof(path), "%s/link", model);
    unlink(path);
    rmdir(model);
}


int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_calls),
        cmocka_unit_test(test_gpu),
        cmocka_unit_test(test_calls_alone),
        cmocka_unit_test(test_files),
        cmocka_unit_test(test_no_directory),
        cmocka_unit_test(test_trial),
        cmocka_unit_test(test_trial_files),
    };

    if (mkdtemp(dir) == NULL) {
        return 1;
    }

    snprintf(inside, sizeof(inside), "%s/in", dir);
    snprintf(outside, sizeof(outside), "%s.out", dir);
    close(open(outside, O_WRONLY | O_CREAT, 0600));
    make_model();

    cmocka_set_message_output(CM_OUTPUT_TAP);

    int rc = cmocka_run_group_tests(tests, NULL, NULL);

    unlink(outside);
    remove_model();
    rmdir(dir);

    return rc;
}
