/* What the kernel takes for each part of a container, alone: nothing else is done in between.
 *
 *     floor_parts ROUNDS IDLE_US LOWER STAMP [CGROUP DIRECTORY...]
 *
 * Prints `part nanoseconds` lines. LOWER is a directory for overlay, STAMP a static program that
 * prints CLOCK_MONOTONIC, each CGROUP DIRECTORY one to make, join and remove. Children share our
 * memory (CLONE_VM | CLONE_VFORK), as the launcher's do, and stamp into it. Before each there is an
 * idle spell: a start is seldom asked for while caches are warm.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define TRY(call)                                                                                  \
    if ((call) < 0) {                                                                              \
        perror(#call);                                                                             \
        _exit(9);                                                                                  \
    }

enum {
    GROUPS_MOST = 16,
    SIX = CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP
};
static char stack[65536] __attribute__((aligned(16)));
static int64_t stamps[8];
static int groups[GROUPS_MOST], group_count;
static const char *lower, *program;
static int output[2];

static int64_t now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec * 1000000000LL + at.tv_nsec;
}

static void say(const char *part, int64_t from, int64_t to) {
    printf("%s %lld\n", part, (long long)(to - from));
}

static int born(void *unused) {
    (void)unused;
    stamps[0] = now();
    _exit(0);
}

static int joins(void *unused) {
    (void)unused;
    stamps[0] = now();
    for (int i = 0; i < group_count; i++)
        TRY(write(groups[i], "0", 1));
    stamps[1] = now();
    _exit(0);
}

/* In namespaces of its own: each part between two stamps. */
static int builds(void *unused) {
    (void)unused;
    char options[1024];
    struct ifreq lo = {.ifr_name = "lo"};
    TRY(mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
    stamps[0] = now();
    TRY(mount("tmpfs", "/mnt", "tmpfs", MS_NODEV, "mode=755"));
    TRY(mkdir("/mnt/upper", 0755));
    TRY(mkdir("/mnt/work", 0755));
    TRY(mkdir("/mnt/root", 0755));
    snprintf(options, sizeof options, "lowerdir=%s,upperdir=/mnt/upper,workdir=/mnt/work,xino=off",
             lower);
    TRY(mount("overlay", "/mnt/root", "overlay", MS_NODEV, options));
    stamps[1] = now();
    int old = open("/", O_PATH | O_CLOEXEC);
    TRY(chdir("/mnt/root"));
    TRY(syscall(SYS_pivot_root, ".", "."));
    TRY(fchdir(old));
    TRY(umount2(".", MNT_DETACH));
    TRY(chdir("/"));
    stamps[2] = now();
    TRY(mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL));
    stamps[3] = now();
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    TRY(ioctl(fd, SIOCGIFFLAGS, &lo));
    lo.ifr_flags |= IFF_UP | IFF_RUNNING;
    TRY(ioctl(fd, SIOCSIFFLAGS, &lo));
    stamps[4] = now();
    _exit(0);
}

static int executes(void *unused) {
    (void)unused;
    char *const argv[] = {"stamp", NULL};
    dup2(output[1], 1);
    stamps[0] = now();
    execv(program, argv);
    _exit(9);
}

static void child(int (*run)(void *), int flags, unsigned idle_us) {
    int status;
    usleep(idle_us);
    pid_t pid = clone(run, stack + sizeof stack, flags | CLONE_VM | CLONE_VFORK | SIGCHLD, NULL);
    TRY(pid);
    TRY(waitpid(pid, &status, 0));
    if (status)
        _exit(9);
}

static void namespaces(unsigned idle_us) {
    static const struct {
        const char *name;
        int flags;
    } kinds[] = {{"clone3", 0},
                 {"clone3+pid", CLONE_NEWPID},
                 {"clone3+mnt", CLONE_NEWNS},
                 {"clone3+net", CLONE_NEWNET},
                 {"clone3+ipc", CLONE_NEWIPC},
                 {"clone3+uts", CLONE_NEWUTS},
                 {"clone3+cgroup", CLONE_NEWCGROUP},
                 {"clone3+six", SIX}};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        usleep(idle_us);
        int64_t before = now();
        child(born, kinds[i].flags, 0);
        say(kinds[i].name, before, stamps[0]);
    }
}

/* `file`: the one of a group that a process joins by. */
static void control_groups(char **directories, unsigned idle_us, const char *file,
                           const char *join) {
    char path[600];
    int64_t before = now();
    for (int i = 0; directories[i]; i++)
        TRY(mkdir(directories[i], 0755));
    say("cgroup-mkdir", before, now());
    group_count = 0;
    for (int i = 0; directories[i] && i < GROUPS_MOST; i++) {
        snprintf(path, sizeof path, "%s/%s", directories[i], file);
        int fd = open(path, O_WRONLY | O_CLOEXEC);
        if (fd >= 0) /* the unified hierarchy has none: there a child is born in its group */
            groups[group_count++] = fd;
    }
    usleep(idle_us);
    child(joins, 0, 0);
    say(join, stamps[0], stamps[1]);
    before = now();
    for (int i = 0; i < group_count; i++)
        close(groups[i]);
    for (int i = 0; directories[i]; i++)
        for (int tries = 0; rmdir(directories[i]) && tries < 1000; tries++)
            usleep(100);
    say("cgroup-rmdir", before, now());
}

int main(int argc, char **argv) {
    if (argc < 5)
        return 2;
    int rounds = atoi(argv[1]);
    unsigned idle_us = (unsigned)atoi(argv[2]);
    lower = argv[3];
    program = argv[4];
    TRY(pipe2(output, O_CLOEXEC));
    for (int round = 0; round < rounds; round++) {
        char text[64] = {0};
        namespaces(idle_us);
        child(builds, SIX, idle_us);
        say("overlay", stamps[0], stamps[1]);
        say("pivot", stamps[1], stamps[2]);
        say("proc", stamps[2], stamps[3]);
        say("lo-up", stamps[3], stamps[4]);
        child(executes, 0, idle_us);
        TRY(read(output[0], text, sizeof text - 1));
        say("exec", stamps[0], atoll(text));
        if (argc > 6) {
            control_groups(argv + 6, idle_us, argv[5], "cgroup-join");
            control_groups(argv + 6, idle_us, "cgroup.procs", "cgroup-procs");
        }
        fflush(stdout);
    }
    return 0;
}
