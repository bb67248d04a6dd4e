/* The first process of the floor: what our agent asks of the kernel from its first instruction to
 * the workload's exec, in its order (as strace shows it), without a protocol.
 *
 *     floor_first PROGRAM     prints the stamp of the exec, then PROGRAM prints its own
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define TRY(call)                                                                                  \
    if ((call) < 0) {                                                                              \
        perror(#call);                                                                             \
        _exit(9);                                                                                  \
    }

static void read_file(const char *path) {
    char text[4096];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    while (fd >= 0 && read(fd, text, sizeof text) > 0)
        ;
    close(fd);
}

/* What a receipt is gathered from. */
static void look(const char *program) {
    gid_t groups[64];
    cpu_set_t cpus;
    struct utsname name;
    struct stat info;
    struct statfs system;
    struct rlimit limit;
    struct sysinfo memory;
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct half[2];
    char path[4096];
    stat(program, &info);
    TRY(getgroups(64, groups));
    umask(umask(0));
    TRY(getcwd(path, sizeof path) ? 0 : -1);
    prctl(PR_GET_SECUREBITS, 0, 0, 0, 0);
    prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0);
    getpriority(PRIO_PROCESS, 0);
    prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0);
    TRY(syscall(SYS_capget, &header, half));
    for (int cap = 0; prctl(PR_CAPBSET_READ, cap, 0, 0, 0) >= 0; cap++)
        ;
    for (int i = 0; i < RLIM_NLIMITS; i++)
        getrlimit(i, &limit);
    sched_getaffinity(0, sizeof cpus, &cpus);
    read_file("/sys/devices/system/cpu/online");
    sysinfo(&memory);
    uname(&name);
    statfs("/", &system);
    statfs("/dev/shm", &system);
    prctl(PR_GET_SECCOMP, 0, 0, 0, 0);
}

static _Noreturn void workload(const char *program, const int *ends, char *receipt) {
    char *const argv[] = {"stamp", NULL}, *const env[] = {NULL};
    sigset_t none;
    struct timespec now;
    setsid();
    TRY(dup2(ends[0], 0));
    TRY(dup2(ends[2], 3)); /* 1 stays what it is: the program prints into it */
    TRY(dup2(ends[4], 2));
    TRY(fchown(3, 0, 0));
    TRY(fchown(2, 0, 0));
    sigemptyset(&none);
    for (int number = 1; number < 32; number++)
        signal(number, SIG_DFL);
    sigprocmask(SIG_SETMASK, &none, NULL);
    TRY(syscall(SYS_close_range, 4u, ~0u, 1u << 2 /* CLOSE_RANGE_CLOEXEC */));
    for (int i = 0; i < RLIM_NLIMITS; i++) {
        struct rlimit limit;
        TRY(getrlimit(i, &limit));
        TRY(setrlimit(i, &limit));
    }
    umask(022);
    TRY(chdir("/"));
    TRY(setgroups(0, NULL));
    TRY(setresgid(0, 0, 0));
    TRY(setresuid(0, 0, 0));
    look(program);
    clock_gettime(CLOCK_MONOTONIC, &now);
    snprintf(receipt, 64, "%lld\n", now.tv_sec * 1000000000LL + now.tv_nsec);
    TRY(write(1, receipt, strlen(receipt)));
    execve(program, argv, env);
    _exit(9);
}

int main(int argc, char **argv) {
    int ends[6], report[2], status = 0;
    sigset_t set;
    if (argc != 2)
        return 2;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    TRY(signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC));
    char *receipt = mmap(NULL, 2 << 20, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    TRY(pipe2(report, O_CLOEXEC));
    TRY(ends[0] = open("/dev/null", O_RDONLY | O_CLOEXEC));
    for (int i = 1; i < 5; i += 2) {
        int pair[2];
        TRY(pipe2(pair, O_CLOEXEC));
        TRY(fcntl(pair[1], F_SETPIPE_SZ, 1 << 18));
        TRY(memfd_create("spool", MFD_CLOEXEC));
        ends[i] = pair[0];
        ends[i + 1] = pair[1];
    }
    pid_t pid = fork();
    TRY(pid);
    if (pid == 0)
        workload(argv[1], ends, receipt);
    TRY(waitpid(pid, &status, 0));
    return WEXITSTATUS(status);
}
