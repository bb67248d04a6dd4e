/* The workload's process: what RUN says about it, and the child that becomes it. */
#define _GNU_SOURCE
#include "frames.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

bool number(const char *text, int base, uint64_t max, uint64_t *out) {
    char *end;
    if (!isxdigit((unsigned char)*text)) /* strtoull would take a sign or spaces */
        return false;
    errno = 0;
    unsigned long long value = strtoull(text, &end, base);
    if (errno || *end || value > max)
        return false;
    *out = value;
    return true;
}

static bool parse_rlimit(struct run *run, char *value) {
    char *soft = strchr(value, ':');
    char *hard = soft ? strchr(soft + 1, ':') : NULL;
    if (!hard || run->rlimit_count == RLIM_NLIMITS)
        return false;
    *soft++ = *hard++ = 0;
    struct limit *limit = &run->rlimits[run->rlimit_count++];
    limit->resource = -1;
    for (int i = 0; i < RLIM_NLIMITS; i++)
        if (rlimit_names[i] && !strcmp(rlimit_names[i], value))
            limit->resource = i;
    uint64_t low = RLIM_INFINITY, high = RLIM_INFINITY;
    bool valid = (!strcmp(soft, "unlimited") || number(soft, 10, UINT64_MAX, &low)) &&
                 (!strcmp(hard, "unlimited") || number(hard, 10, UINT64_MAX, &high));
    limit->value = (struct rlimit){low, high};
    return valid && limit->resource >= 0;
}

static bool parse_seccomp(struct run *run, const char *value) {
    size_t digits = strlen(value);
    if (run->seccomp || digits == 0 || digits % 16 || digits / 16 > 4096)
        return false;
    unsigned char *program = run->seccomp = malloc(digits / 2);
    if (!program)
        return false;
    for (size_t i = 0; i < digits / 2; i++) {
        char pair[3] = {value[2 * i], value[2 * i + 1], 0};
        uint64_t byte;
        if (!number(pair, 16, 255, &byte))
            return false;
        program[i] = (unsigned char)byte;
    }
    run->seccomp_bytes = digits / 2;
    return true;
}

/* One key of RUN. False when the value is none; `known` false when the key is none. */
static bool parse_pair(struct run *run, const char *key, char *value, bool *known) {
    uint64_t n = 0;
    struct guest *guest = &run->guest;
    struct {
        const char *key;
        const char **text;
    } const texts[] = {
        {"cwd", &run->cwd},
        {"hostname", &run->hostname},
        {"guest.root", &guest->root},
        {"guest.scratch", &guest->scratch},
        {"guest.address", &guest->address},
        {"guest.neighbour", &guest->neighbour},
    };
    struct {
        const char *key;
        uint64_t *number;
    } const numbers[] = {
        {"output_limit", &run->output_limit},
        {"guest.writable_bytes", &guest->writable_bytes},
        {"guest.writable_inodes", &guest->writable_inodes},
        {"guest.shm_bytes", &guest->shm_bytes},
        {"guest.pids", &guest->pids},
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        if (!strcmp(key, texts[i].key))
            return (*texts[i].text = value), true;
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (!strcmp(key, numbers[i].key))
            return number(value, 10, UINT64_MAX, numbers[i].number);
#define CHOICE(name, field, no, yes)                                                               \
    if (!strcmp(key, name))                                                                        \
    return run->field = !strcmp(value, yes), run->field || !strcmp(value, no)
    CHOICE("output", stream, "spool", "stream");
    CHOICE("stdin", stdin_stream, "null", "stream");
    CHOICE("receipt", digest, "cheap", "digest");
    CHOICE("tty", tty, "0", "1");
    CHOICE("no_new_privs", no_new_privs, "0", "1");
#undef CHOICE
    if (!strcmp(key, "uid"))
        return number(value, 10, UINT32_MAX - 1, &n) && (run->uid = (uid_t)n, true);
    if (!strcmp(key, "gid"))
        return number(value, 10, UINT32_MAX - 1, &n) && (run->gid = (gid_t)n, true);
    if (!strcmp(key, "group"))
        return number(value, 10, UINT32_MAX - 1, &n) && run->group_count < GROUPS_MAX &&
               (run->groups[run->group_count++] = (gid_t)n, true);
    if (!strcmp(key, "umask"))
        return number(value, 8, 0777, &n) && (run->umask = (mode_t)n, true);
    if (!strcmp(key, "listen_port"))
        return number(value, 10, 65535, &n) && (run->listen_port = (unsigned)n, true);
    if (!strcmp(key, "caps"))
        return run->has_caps = number(value, 16, UINT64_MAX, &run->caps);
    if (!strcmp(key, "rlimit"))
        return parse_rlimit(run, value);
    if (!strcmp(key, "seccomp"))
        return parse_seccomp(run, value);
    *known = false;
    return true;
}

/* Fill `run` from a record that is valid; the result is NULL or what is wrong with it. */
const char *run_parse(struct run *run, char *data, size_t length) {
    size_t parts = 0, args = 0, envs = 0, modules = 0;
    for (size_t i = 0; i < length; i++)
        parts += data[i] == 0;
    *run = (struct run){.cwd = "/", .umask = 022, .output_limit = UINT64_MAX};
    run->argv = calloc(parts + 1, sizeof *run->argv);
    run->env = calloc(parts + 1, sizeof *run->env);
    run->guest.modules = calloc(parts + 1, sizeof *run->guest.modules);
    if (!run->argv || !run->env || !run->guest.modules)
        return "out of memory";
    for (char *key = data; key < data + length;) {
        char *value = strchr(key, '=');
        *value++ = 0;
        char *next = value + strlen(value) + 1;
        bool known = true;
        if (!strncmp(key, "guest.", 6))
            run->guest.wanted = true;
        if (!strcmp(key, "arg"))
            run->argv[args++] = value;
        else if (!strcmp(key, "env"))
            run->env[envs++] = value;
        else if (!strcmp(key, "guest.module"))
            run->guest.modules[modules++] = value;
        else if (!parse_pair(run, key, value, &known) || !known)
            return key;
        key = next;
    }
    run->stream |= run->tty; /* a terminal that answers after the exit is none */
    return args ? NULL : "arg";
}

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
    /* So that a workload of another user can open /dev/stdout. A descriptor that is not ours
     * to give away (/dev/null) may refuse. */
    for (int fd = run->stdin_stream || run->tty ? 0 : 1; fd < 3; fd++)
        if (fchown(fd, run->uid, run->tty ? (gid_t)-1 : run->gid) && run->uid != geteuid())
            return fail("stdio", "fchown");
    sigset_t none;
    sigemptyset(&none);
    for (int number = 1; number < 32; number++)
        signal(number, SIG_DFL);
    sigprocmask(SIG_SETMASK, &none, NULL);
    /* Whatever the launcher left open ends at the exec, and so does our report pipe. */
    syscall(SYS_close_range, 3u, ~0u, 1u << 2 /* CLOSE_RANGE_CLOEXEC */);
    return 0;
}

static int drop_bounding(const struct run *run) {
    for (int cap = 0; run->has_caps && prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++)
        if (!(run->caps >> cap & 1) && prctl(PR_CAPBSET_DROP, cap, 0, 0, 0))
            return fail("caps", "bounding set");
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
    if (stdio.cgroup_procs >= 0 && write(stdio.cgroup_procs, "0", 1) != 1)
        return fail("guest.pids", "cgroup.procs");
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
    /* no_new_privs first, so that the receipt shows it; the filter last, so that it
     * need not allow what only the receipt does. */
    if (run->no_new_privs && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        return fail("no_new_privs", "");
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

_Noreturn void workload_exec(const struct run *run, struct stdio stdio, struct shared *shared) {
    char text[512];
    struct record record = {text, 0, sizeof text, false};
    become(run, stdio, shared);
    failure_record(&record);
    ssize_t sent = write(stdio.report, record.data, record.length);
    _exit(sent == (ssize_t)record.length ? 127 : 126);
}
