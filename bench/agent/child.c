/* The child that becomes the workload: everything between fork and exec. */
#define _GNU_SOURCE
#include "frames.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

static int make_folders(const char *path) {
    char part[PATH_MAX];
    if (snprintf(part, sizeof part, "%s", path) >= (int)sizeof part)
        return errno = ENAMETOOLONG, -1;
    for (char *slash = part + 1; *slash; slash++) {
        if (*slash != '/')
            continue;
        *slash = 0;
        if (mkdir(part, 0755) && errno != EEXIST)
            return -1;
        *slash = '/';
    }
    return mkdir(part, 0755) && errno != EEXIST ? -1 : 0;
}

/* An image's working directory need not exist: it is made, as container engines do. */
static int enter_cwd(const char *path) {
    if (chdir(path) == 0)
        return 0;
    if (errno != ENOENT || make_folders(path) || chdir(path))
        return fail("cwd", path);
    return 0;
}

static int set_stdio(const struct run *run, struct stdio stdio) {
    if (setsid() < 0 || dup2(stdio.in, 0) < 0 || dup2(stdio.out, 1) < 0 || dup2(stdio.err, 2) < 0)
        return fail("stdio", "");
    if (run->tty && ioctl(0, TIOCSCTTY, 0))
        return fail("tty", "TIOCSCTTY");
    /* So that a workload of another user can open /dev/stdout. A descriptor that is not ours to
     * give away (/dev/null) may refuse. */
    for (int fd = run->stdin_stream || run->tty ? 0 : 1; fd < 3; fd++)
        if (fchown(fd, run->uid, run->tty ? (gid_t)-1 : run->gid) && run->uid != geteuid())
            return fail("stdio", "fchown");
    sigset_t none;
    sigemptyset(&none);
    /* Not by signal(): of the 64, libc keeps two to itself, which its posix_spawn ignores. */
    const uint64_t by_default[4] = {0}; /* the kernel's struct sigaction */
    for (int number = 1; number <= 64; number++)
        syscall(SYS_rt_sigaction, number, by_default, NULL, sizeof(uint64_t));
    sigprocmask(SIG_SETMASK, &none, NULL);
    /* Whatever the launcher left open ends at the exec, and so does the agent's pipe that waits for
     * it. */
    syscall(SYS_close_range, 3u, ~0u, 1u << 2 /* CLOSE_RANGE_CLOEXEC */);
    return 0;
}

static int drop_bounding(const struct run *run) {
    for (int cap = 0; run->has_caps && cap < 64; cap++)
        if (!(run->caps >> cap & 1) && prctl(PR_CAPBSET_DROP, cap, 0, 0, 0))
            return errno == EINVAL && cap ? 0 : fail("caps", "bounding set"); /* EINVAL: was last */
    return 0;
}

static int set_user(const struct run *run) {
    if (setgroups(run->group_count, run->groups) && (run->group_count || errno != EPERM))
        return fail("user", "setgroups");
    char text[32];
    snprintf(text, sizeof text, "gid %u", run->gid);
    if (setresgid(run->gid, run->gid, run->gid))
        return fail("user", text);
    snprintf(text, sizeof text, "uid %u", run->uid);
    if (setresuid(run->uid, run->uid, run->uid))
        return fail("user", text);
    return 0;
}

/* What setuid left of the capabilities, cut to the mask. */
static int limit_caps(const struct run *run) {
    struct {
        uint32_t version;
        int pid;
    } header = {0x20080522, 0};
    struct {
        uint32_t effective, permitted, inheritable;
    } sets[2];
    if (!run->has_caps)
        return 0;
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
    if (syscall(SYS_capget, &header, sets))
        return fail("caps", "capget");
    for (int i = 0; i < 2; i++) {
        sets[i].permitted &= (uint32_t)(run->caps >> 32 * i);
        sets[i].effective &= sets[i].permitted;
        sets[i].inheritable = 0;
    }
    return syscall(SYS_capset, &header, sets) ? fail("caps", "capset") : 0;
}

static int find_program(const struct run *run, char path[PATH_MAX]) {
    const char *name = run->argv[0], *search = DEFAULT_PATH;
    int reason = ENOENT;
    for (char **env = run->env; *env; env++)
        if (!strncmp(*env, "PATH=", 5))
            search = *env + 5;
    if (strchr(name, '/')) {
        if (snprintf(path, PATH_MAX, "%s", name) < PATH_MAX)
            return 0; /* execve itself says what is wrong with it */
        return errno = ENAMETOOLONG, fail("exec", name);
    }
    for (const char *end; *name; search = end + 1) {
        struct stat info;
        end = strchrnul(search, ':');
        int size = (int)(end - search);
        int made = snprintf(path, PATH_MAX, "%.*s/%s", size ? size : 1, size ? search : ".", name);
        if (made < PATH_MAX && stat(path, &info) == 0 && S_ISREG(info.st_mode)) {
            if (access(path, X_OK) == 0)
                return 0;
            reason = errno;
        }
        if (!*end)
            break;
    }
    return errno = reason, fail("exec", name);
}

static int load_seccomp(const struct run *run) {
    struct {
        unsigned short length;
        void *filter;
    } program = {(unsigned short)(run->seccomp_bytes / 8), run->seccomp};
    if (run->seccomp && prctl(PR_SET_SECCOMP, 2 /* filter */, &program, 0, 0))
        return fail("seccomp", "");
    return 0;
}

static int become(const struct run *run, struct stdio stdio, struct shared *shared) {
    char program[PATH_MAX];
    struct record receipt = {shared->receipt, 0, sizeof shared->receipt, false};
    if (set_stdio(run, stdio))
        return -1;
    for (size_t i = 0; i < run->rlimit_count; i++)
        if (setrlimit(run->rlimits[i].resource, &run->rlimits[i].value))
            return fail("rlimit", rlimit_names[run->rlimits[i].resource]);
    umask(022);
    if (enter_cwd(run->cwd) || drop_bounding(run) || set_user(run) || limit_caps(run))
        return -1;
    umask(run->umask);
    if (find_program(run, program))
        return -1;
    /* no_new_privs first, so that the receipt shows it; the filter last, so that it need not allow
     * what only the receipt does. */
    if (run->no_new_privs && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        return fail("no_new_privs", "");
    if (!run->bare)
        receipt_gather(&receipt, run, program);
    if (load_seccomp(run))
        return -1;
    record_add(&receipt, "seccomp", "%d", prctl(PR_GET_SECCOMP, 0, 0, 0, 0));
    if (receipt.full)
        return errno = E2BIG, fail("receipt", "");
    shared->length = receipt.length;
    shared->started_ns = stamp(CLOCK_MONOTONIC);
    execve(program, run->argv, run->env);
    return fail("exec", program);
}

_Noreturn void child(const struct run *run, struct stdio stdio, struct shared *shared) {
    become(run, stdio, shared);
    shared->failure = failure;
    _exit(127);
}
