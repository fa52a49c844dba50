/*
 * sandbox.c - see main/sandbox.h.
 *
 * The filter is a list of what a serving engine calls: the loop, memory,
 * threads, time.  What is not on it answers EPERM, so that a library that only
 * tries goes on without.  Measured with strace -f over a whole run of the
 * tests, glibc 2.36.
 */
#include "main/sandbox.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/landlock.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
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


static int
allow_below(int rules, const char *dir, uint64_t access, struct err *e)
{
    struct landlock_path_beneath_attr below = {
        .allowed_access = access,
        .parent_fd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC)
    };

    if (below.parent_fd < 0) {
        return err_set(e, "%s: %s", dir, strerror(errno));
    }

    int rc = syscall(SYS_landlock_add_rule, rules, LANDLOCK_RULE_PATH_BENEATH,
                     &below, 0) == 0 ? 0
             : err_set(e, "landlock_add_rule(%s): %s", dir, strerror(errno));

    close(below.parent_fd);

    return rc;
}


int
sandbox_files(const char *write_dir, struct err *e)
{
    struct landlock_ruleset_attr attr = { .handled_access_fs = CHANGES };
    long version = syscall(SYS_landlock_create_ruleset, NULL, 0,
                           LANDLOCK_CREATE_RULESET_VERSION);

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) {
        return err_set(e, "PR_SET_NO_NEW_PRIVS: %s", strerror(errno));
    }

    if (version < 1) {
        return 1;
    }

    attr.handled_access_fs |= (version >= 2 ? LANDLOCK_ACCESS_FS_REFER : 0)
                           | (version >= 3 ? LANDLOCK_ACCESS_FS_TRUNCATE : 0);

    int rules = (int) syscall(SYS_landlock_create_ruleset, &attr, sizeof(attr),
                              0);

    if (rules < 0) {
        return err_set(e, "landlock_create_ruleset: %s", strerror(errno));
    }

    uint64_t packs = PACKS | (attr.handled_access_fs
                              & LANDLOCK_ACCESS_FS_TRUNCATE);
    int      rc = write_dir == NULL ? 0
                  : allow_below(rules, write_dir, packs, e);

    if (rc == 0 && syscall(SYS_landlock_restrict_self, rules, 0) != 0) {
        rc = err_set(e, "landlock_restrict_self: %s", strerror(errno));
    }

    close(rules);

    return rc;
}


/* What a serving engine calls, whatever the arguments. */
static const uint16_t allowed[] = {
    /* the loop, its sockets, bells and the log */
    SYS_epoll_wait, SYS_epoll_pwait, SYS_epoll_ctl, SYS_read, SYS_write,
    SYS_writev, SYS_close, SYS_accept4, SYS_recvmsg, SYS_sendmsg,
    SYS_recvfrom, SYS_sendto, SYS_getsockopt, SYS_setsockopt,
    SYS_getsockname, SYS_shutdown,
    SYS_poll, SYS_ppoll, SYS_fcntl, SYS_fstat, SYS_lseek,
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


static void
write_filter(struct filter *f)
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
sandbox_calls(struct err *e)
{
    static struct filter f;

    if (SANITIZED) {
        return 1;
    }

    /* The kernel asks for it, and --backend auto has not come by the files. */
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) {
        return err_set(e, "PR_SET_NO_NEW_PRIVS: %s", strerror(errno));
    }

    write_filter(&f);

    struct sock_fprog program = { .len = f.n, .filter = f.code };
    long rc = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER,
                      SECCOMP_FILTER_FLAG_TSYNC, &program);

    return rc == 0 ? 0
           : rc > 0 ? err_set(e, "seccomp: thread %ld cannot take the filter",
                              rc)
           : err_set(e, "seccomp: %s", strerror(errno));
}
