/*
 * sandbox.c - see main/sandbox.h.
 *
 * The filter is a list of what a serving engine calls: the loop, memory,
 * threads, time.  What is not on it answers EPERM, so that a library that only
 * tries goes on without.  Measured with strace -f over a whole run of the
 * tests, glibc 2.36.
 *
 * With a GPU the driver goes on asking: each piece of its memory that the host
 * maps is a device file opened anew, and what it is asked for are ioctls.  A
 * filter sees no names, so it lets files be opened, and Landlock says which;
 * of ioctls it lets through the driver's numbers.  These are in the open parts
 * of NVIDIA's driver (nv-ioctl-numbers.h, uvm_ioctl.h); that cuInit() names
 * its threads through /proc, fails without it, and opens nvidia-uvm-tools was
 * found by others who sandbox it.
 */
#include "main/sandbox.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/landlock.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED   1
#else
#define SANITIZED   0
#endif

#ifndef LANDLOCK_ACCESS_FS_REFER
#define LANDLOCK_ACCESS_FS_REFER    (1ULL << 13)    /* ABI 2 */
#endif
#ifndef LANDLOCK_ACCESS_FS_TRUNCATE
#define LANDLOCK_ACCESS_FS_TRUNCATE (1ULL << 14)    /* ABI 3 */
#endif
#ifndef LANDLOCK_ACCESS_FS_IOCTL_DEV
#define LANDLOCK_ACCESS_FS_IOCTL_DEV (1ULL << 15)   /* ABI 5 */
#endif

/* All that changes files or runs them, in the first version of Landlock. */
#define CHANGES (LANDLOCK_ACCESS_FS_EXECUTE | LANDLOCK_ACCESS_FS_WRITE_FILE \
                 | LANDLOCK_ACCESS_FS_REMOVE_DIR \
                 | LANDLOCK_ACCESS_FS_REMOVE_FILE \
                 | LANDLOCK_ACCESS_FS_MAKE_CHAR | LANDLOCK_ACCESS_FS_MAKE_DIR \
                 | LANDLOCK_ACCESS_FS_MAKE_REG | LANDLOCK_ACCESS_FS_MAKE_SOCK \
                 | LANDLOCK_ACCESS_FS_MAKE_FIFO \
                 | LANDLOCK_ACCESS_FS_MAKE_BLOCK \
                 | LANDLOCK_ACCESS_FS_MAKE_SYM)

/* What the pack cache needs: a file under a passing name, then renamed. */
#define PACKS   (LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_MAKE_REG \
                 | LANDLOCK_ACCESS_FS_REMOVE_FILE)


#define LOOK    (LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_READ_DIR)
#define WRITE   LANDLOCK_ACCESS_FS_WRITE_FILE
#define DEVICE  (LANDLOCK_ACCESS_FS_READ_FILE | WRITE \
                 | LANDLOCK_ACCESS_FS_IOCTL_DEV)

/* What means something for a file; the rest is for directories alone. */
#define OF_FILE (LANDLOCK_ACCESS_FS_EXECUTE | DEVICE \
                 | LANDLOCK_ACCESS_FS_TRUNCATE)

/* What is looked at where there is a GPU, beside the model: libraries, and
 * what the system says of itself.  The names of threads are written. */
static const struct {
    const char *path;
    uint64_t    access;
} system_files[] = {
    { "/usr", LOOK }, { "/lib", LOOK }, { "/lib64", LOOK }, { "/opt", LOOK },
    { "/etc/ld.so.cache", LOOK }, { "/etc/localtime", LOOK },
    { "/etc/nvidia", LOOK }, { "/proc", LOOK }, { "/sys", LOOK },
    { "/proc/self/task", WRITE }, { "/dev/null", LOOK | WRITE },
    { "/dev/zero", LOOK }, { "/dev/urandom", LOOK }
};

struct rules {
    int         fd;
    uint64_t    handled;        /* what this kernel can refuse */
};


/* fd is of what `path` names. */
static int
allow_fd(const struct rules *r, int fd, const char *path, uint64_t access,
         struct err *e)
{
    struct stat st;

    if (fstat(fd, &st) != 0) {
        return err_set(e, "%s: %s", path, strerror(errno));
    }

    struct landlock_path_beneath_attr below = {
        .allowed_access = access & r->handled
                          & (S_ISDIR(st.st_mode) ? ~0ULL : OF_FILE),
        .parent_fd = fd
    };

    return below.allowed_access == 0
           || syscall(SYS_landlock_add_rule, r->fd, LANDLOCK_RULE_PATH_BENEATH,
                      &below, 0) == 0 ? 0
           : err_set(e, "landlock_add_rule(%s): %s", path, strerror(errno));
}


/* A file, or what is below a directory. */
static int
allow(const struct rules *r, const char *path, uint64_t access, struct err *e)
{
    int fd = open(path, O_PATH | O_CLOEXEC);

    if (fd < 0) {
        return err_set(e, "%s: %s", path, strerror(errno));
    }

    int rc = allow_fd(r, fd, path, access, e);

    close(fd);

    return rc;
}


/* The model's directory, and where links in it lead: in Hugging Face's cache
 * each file is one. */
static int
allow_model(const struct rules *r, const char *path, struct err *e)
{
    DIR *dir = opendir(path);
    int  rc = 0;

    if (dir == NULL) {
        return err_set(e, "%s: %s", path, strerror(errno));
    }

    for (struct dirent *d; rc == 0 && (d = readdir(dir)) != NULL; ) {
        int fd = strcmp(d->d_name, "..") == 0 ? -1
                 : openat(dirfd(dir), d->d_name, O_PATH | O_CLOEXEC);

        if (fd >= 0) {
            rc = allow_fd(r, fd, d->d_name, LOOK, e);
            close(fd);
        }
    }

    closedir(dir);

    return rc;
}


/* What is not there needs no rule. */
static int
allow_system(const struct rules *r, const char *devices, struct err *e)
{
    glob_t found;
    int    rc = 0;

    for (size_t i = 0; rc == 0 && i < BASE_COUNT(system_files); i++) {
        rc = access(system_files[i].path, F_OK) != 0 ? 0
             : allow(r, system_files[i].path, system_files[i].access, e);
    }

    if (rc != 0 || glob(devices, GLOB_NOSORT, NULL, &found) != 0) {
        return rc;
    }

    for (size_t i = 0; rc == 0 && i < found.gl_pathc; i++) {
        rc = allow(r, found.gl_pathv[i], DEVICE, e);
    }

    globfree(&found);

    return rc;
}


static int
allow_all(const struct rules *r, const struct sandbox *s, struct err *e)
{
    uint64_t look = s->devices != NULL ? LOOK : 0;

    if (s->write_dir != NULL
        && allow(r, s->write_dir,
                 PACKS | LANDLOCK_ACCESS_FS_TRUNCATE | look, e) != 0)
    {
        return -1;
    }

    return s->devices == NULL ? 0
           : allow_model(r, s->model_dir, e) != 0
             || allow_system(r, s->devices, e) != 0 ? -1
           /* A rule is about an inode, which /proc makes anew whenever it has
            * forgotten one: it does not while this is open. */
           : open("/proc/self/task", O_PATH | O_CLOEXEC) >= 0 ? 0
           : err_set(e, "/proc/self/task: %s", strerror(errno));
}


int
sandbox_files(const struct sandbox *s, struct err *e)
{
    long version = syscall(SYS_landlock_create_ruleset, NULL, 0,
                           LANDLOCK_CREATE_RULESET_VERSION);

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) {
        return err_set(e, "PR_SET_NO_NEW_PRIVS: %s", strerror(errno));
    }

    if (version < 1) {
        return s->devices == NULL ? 1
               : err_set(e, "this kernel has no Landlock");
    }

    struct landlock_ruleset_attr attr = {
        .handled_access_fs = CHANGES
            | (version >= 2 ? LANDLOCK_ACCESS_FS_REFER : 0)
            | (version >= 3 ? LANDLOCK_ACCESS_FS_TRUNCATE : 0)
            | (s->devices == NULL ? 0 : LOOK)
            | (s->devices == NULL || version < 5 ? 0
               : LANDLOCK_ACCESS_FS_IOCTL_DEV)
    };
    struct rules r = {
        (int) syscall(SYS_landlock_create_ruleset, &attr, sizeof(attr), 0),
        attr.handled_access_fs
    };

    if (r.fd < 0) {
        return err_set(e, "landlock_create_ruleset: %s", strerror(errno));
    }

    int rc = allow_all(&r, s, e);

    if (rc == 0 && syscall(SYS_landlock_restrict_self, r.fd, 0) != 0) {
        rc = err_set(e, "landlock_restrict_self: %s", strerror(errno));
    }

    close(r.fd);

    return rc;
}


/* What a serving engine calls, whatever the arguments. */
static const uint16_t allowed[] = {
    /* the loop, its sockets, bells and the log */
    SYS_epoll_wait, SYS_epoll_pwait, SYS_epoll_ctl, SYS_read, SYS_write,
    SYS_writev, SYS_close, SYS_accept4, SYS_recvmsg, SYS_sendmsg,
    SYS_recvfrom, SYS_sendto, SYS_getsockopt, SYS_setsockopt,
    SYS_getsockname, SYS_shutdown,
    SYS_poll, SYS_ppoll, SYS_fcntl, SYS_fstat,
    SYS_epoll_create1, SYS_signalfd4, SYS_eventfd2,

    /* memory of the rings and of the heap */
    SYS_memfd_create, SYS_ftruncate, SYS_fallocate, SYS_fstatfs, SYS_munmap,
    SYS_mremap, SYS_brk, SYS_madvise,

    /* threads and time */
    SYS_futex, SYS_set_robust_list, SYS_rseq, SYS_sched_yield,
    SYS_sched_getaffinity, SYS_clock_gettime, SYS_clock_nanosleep,
    SYS_nanosleep, SYS_gettimeofday, SYS_restart_syscall, SYS_getrandom,
    SYS_membarrier,

    /* signals and the end */
    SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_sigaltstack,
    SYS_getpid, SYS_gettid, SYS_tgkill, SYS_exit, SYS_exit_group
};

/* What asks for a file, and is told that it may not have it. */
static const uint16_t files[] = {
    SYS_open, SYS_openat, SYS_openat2, SYS_creat, SYS_stat, SYS_lstat,
    SYS_statx, SYS_access, SYS_faccessat, SYS_faccessat2,
    SYS_readlink, SYS_readlinkat
};

/* What a driver of a GPU calls beside these: its ioctls are below. */
static const uint16_t driver[] = {
    SYS_pread64, SYS_getdents64, SYS_pipe2, SYS_uname, SYS_sysinfo,
    SYS_getuid, SYS_geteuid, SYS_getgid, SYS_getegid, SYS_getcpu,
    SYS_mbind, SYS_get_mempolicy, SYS_set_mempolicy, SYS_mlock, SYS_munlock
};

#define DATA(field)     ((uint32_t) offsetof(struct seccomp_data, field))
#define ERRNO(n)        (SECCOMP_RET_ERRNO | (uint32_t) (n))
#define X32_BIT         0x40000000u
#define CALLS_MAX       128


/* A program that is written down from its first instruction to its last. */
struct filter {
    struct sock_filter  code[4 * CALLS_MAX];
    unsigned short      n;
};


static void
put(struct filter *f, uint16_t code, uint32_t k, uint8_t yes, uint8_t no)
{
    assert(f->n < BASE_COUNT(f->code));
    f->code[f->n++] = (struct sock_filter) { code, yes, no, k };
}


static void
answer(struct filter *f, uint32_t action)
{
    put(f, BPF_RET | BPF_K, action, 0, 0);
}


/* This call: that answer.  The call's number is what is loaded. */
static void
on_call(struct filter *f, uint32_t call, uint32_t action)
{
    put(f, BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1);
    answer(f, action);
}


/* This call: one answer where its argument, whose low half counts, has one of
 * the bits, another where it has none. */
static void
on_bits(struct filter *f, uint32_t call, uint32_t argument, uint32_t bits,
        uint32_t some, uint32_t none)
{
    put(f, BPF_JMP | BPF_JEQ | BPF_K, call, 0, 4);
    put(f, BPF_LD | BPF_W | BPF_ABS, argument, 0, 0);
    put(f, BPF_JMP | BPF_JSET | BPF_K, bits, 0, 1);
    answer(f, some);
    answer(f, none);
}


/* This call where its second argument, with `mask`, is one of the values. */
static void
on_second(struct filter *f, uint32_t call, uint32_t mask,
          const uint32_t *values, uint8_t n)
{
    put(f, BPF_JMP | BPF_JEQ | BPF_K, call, 0, (uint8_t) (2 + 2 * n + 1));
    put(f, BPF_LD | BPF_W | BPF_ABS, DATA(args[1]), 0, 0);
    put(f, BPF_ALU | BPF_AND | BPF_K, mask, 0, 0);

    for (uint8_t i = 0; i < n; i++) {
        on_call(f, values[i], SECCOMP_RET_ALLOW);
    }

    put(f, BPF_LD | BPF_W | BPF_ABS, DATA(nr), 0, 0);
}


/* The driver's, and files that Landlock leaves it.  Ioctls: of type 'F', and
 * nvidia-uvm's, which are plain numbers and such from 0x30000000 on.  Those of
 * terminals, where one may type for the user, and of sockets have others. */
static void
write_driver(struct filter *f)
{
    static const uint32_t of_nvidia[] = { 'F' << 8 };
    static const uint32_t of_uvm[] = { 0, 0x30000000 };

    for (size_t i = 0; i < BASE_COUNT(driver); i++) {
        on_call(f, driver[i], SECCOMP_RET_ALLOW);
    }

    for (size_t i = 0; i < BASE_COUNT(files); i++) {
        on_call(f, files[i], SECCOMP_RET_ALLOW);
    }

    on_call(f, SYS_newfstatat, SECCOMP_RET_ALLOW);
    on_second(f, SYS_ioctl, 0xff00, of_nvidia, BASE_COUNT(of_nvidia));
    on_second(f, SYS_ioctl, 0xffffff00, of_uvm, BASE_COUNT(of_uvm));

    /* prctl(PR_SET_NAME) */
    put(f, BPF_JMP | BPF_JEQ | BPF_K, SYS_prctl, 0, 4);
    put(f, BPF_LD | BPF_W | BPF_ABS, DATA(args[0]), 0, 0);
    on_call(f, PR_SET_NAME, SECCOMP_RET_ALLOW);
    answer(f, ERRNO(EPERM));
}


static void
write_filter(struct filter *f, int gpu)
{
    f->n = 0;
    put(f, BPF_LD | BPF_W | BPF_ABS, DATA(arch), 0, 0);
    put(f, BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0);
    answer(f, SECCOMP_RET_KILL_PROCESS);
    put(f, BPF_LD | BPF_W | BPF_ABS, DATA(nr), 0, 0);
    put(f, BPF_JMP | BPF_JGE | BPF_K, X32_BIT, 0, 1);
    answer(f, SECCOMP_RET_KILL_PROCESS);

    for (size_t i = 0; i < BASE_COUNT(allowed); i++) {
        on_call(f, allowed[i], SECCOMP_RET_ALLOW);
    }

    /* Who may write names of threads below /proc/self/task may open mem there,
     * which writes to code as well; without this one, only at address 0. */
    on_call(f, SYS_lseek, gpu ? ERRNO(EPERM) : SECCOMP_RET_ALLOW);

    if (gpu) {
        write_driver(f);
    }

    for (size_t i = 0; i < BASE_COUNT(files); i++) {
        on_call(f, files[i], ERRNO(EACCES));
    }

    /* No code but what is there; threads, but no processes.  What clone3 is
     * asked for lies in memory, where a filter cannot look: libc then takes
     * clone, as on a kernel that has no other. */
    on_bits(f, SYS_mmap, DATA(args[2]), PROT_EXEC, ERRNO(EPERM),
            SECCOMP_RET_ALLOW);
    on_bits(f, SYS_mprotect, DATA(args[2]), PROT_EXEC, ERRNO(EPERM),
            SECCOMP_RET_ALLOW);
    on_bits(f, SYS_clone, DATA(args[0]), CLONE_THREAD, SECCOMP_RET_ALLOW,
            ERRNO(EPERM));
    on_call(f, SYS_clone3, ERRNO(ENOSYS));

    /* This is libc's fstat, too. */
    on_bits(f, SYS_newfstatat, DATA(args[3]), AT_EMPTY_PATH,
            SECCOMP_RET_ALLOW, ERRNO(EACCES));
    answer(f, ERRNO(EPERM));
}


int
sandbox_calls(int gpu, struct err *e)
{
    static struct filter f;

    if (SANITIZED) {
        return 1;
    }

    /* The kernel asks for it, and --backend auto has not come by the files. */
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) {
        return err_set(e, "PR_SET_NO_NEW_PRIVS: %s", strerror(errno));
    }

    write_filter(&f, gpu);

    struct sock_fprog program = { .len = f.n, .filter = f.code };
    long rc = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER,
                      SECCOMP_FILTER_FLAG_TSYNC, &program);

    return rc == 0 ? 0
           : rc > 0 ? err_set(e, "seccomp: thread %ld cannot take the filter",
                              rc)
           : err_set(e, "seccomp: %s", strerror(errno));
}


static void
probe_child(const struct sandbox *s, sandbox_run *run, void *ctx, int fd)
{
    struct err e = { "" };
    int        rc = sandbox_files(s, &e) < 0 || run(ctx, 0, &e) != 0
                    || sandbox_calls(s->devices != NULL, &e) < 0
                    || run(ctx, 1, &e) != 0;

    /* A pipe takes this much at once; without it the status tells. */
    _exit(rc && write(fd, e.text, strlen(e.text)) >= 0 ? 1 : rc);
}


/* What the child said before it ended, or was ended. */
static void
probe_read(pid_t pid, int fd, struct err *e)
{
    struct pollfd p = { .fd = fd, .events = POLLIN };
    ssize_t       n = 0;

    if (poll(&p, 1, SANDBOX_PROBE_MS) == 1) {
        n = read(fd, e->text, sizeof(e->text) - 1);

    } else {
        kill(pid, SIGKILL);
        n = snprintf(e->text, sizeof(e->text), "no end after %d ms",
                     SANDBOX_PROBE_MS);
    }

    e->text[n > 0 ? n : 0] = '\0';
}


int
sandbox_probe(const struct sandbox *s, sandbox_run *run, void *ctx,
              struct err *e)
{
    int fds[2], status = 0;

    if (pipe2(fds, O_CLOEXEC) != 0) {
        return err_set(e, "pipe: %s", strerror(errno));
    }

    pid_t parent = getpid();
    pid_t pid = fork();

    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);

        if (getppid() == parent) {
            probe_child(s, run, ctx, fds[1]);
        }

        _exit(1);
    }

    close(fds[1]);

    if (pid < 0) {
        close(fds[0]);
        return err_set(e, "fork: %s", strerror(errno));
    }

    probe_read(pid, fds[0], e);
    close(fds[0]);

    if (waitpid(pid, &status, 0) == pid && WIFEXITED(status)
        && WEXITSTATUS(status) == 0)
    {
        return 0;
    }

    return e->text[0] != '\0' ? -1
           : WIFSIGNALED(status)
           ? err_set(e, "it died of signal %d (%s)", WTERMSIG(status),
                     strsignal(WTERMSIG(status)))
           : err_set(e, "it exited with %d", WEXITSTATUS(status));
}
