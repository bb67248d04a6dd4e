/* The launcher: a small server that makes each instance's process. It decides nothing.
 *
 *     launcher SOCKET [CLEANUP ARGV...]
 *
 * SOCKET is a connected AF_UNIX SOCK_SEQPACKET descriptor. Requests and replies are records
 * (NUL-ended key=value strings, see bench/record.py), descriptors travel with them. A request
 * carries a list of steps, `do=NAME` followed by its `arg=`s, that are executed in order:
 *
 *   request=setup   the steps run in the launcher's own mount namespace (image mounts), or make
 *                   a network namespace that goes out with the reply (keep_netns), and a
 *                   descriptor `program=INDEX` to run in every later launch may come along
 *   request=launch  clone3 with `flags`, the steps in the child, then the program
 *   request=park    fork a helper that runs the steps (it joins control groups) and then waits
 *                   on `slot=INDEX`, a socket of its own, for exactly one `launch`. What it
 *                   clones is the launcher's child. All answers come on that socket but the end
 *                   of the instance, which the launcher reports under the id of the slot
 *   request=end     kill and reap every instance, exit
 *
 * The child shares the launcher's memory until it executes (CLONE_VM | CLONE_VFORK): no page
 * tables are copied, and stamps and errors need no pipe. It runs on its own stack, makes
 * system calls only and never allocates. When SOCKET ends without `end` the harness is dead:
 * everything is killed and reaped, then CLEANUP is executed in the original mount namespace.
 *
 * One thread, six files: record.c takes requests apart and puts replies together, steps.c has the
 * steps, network.c those of a network, spawn.c makes an instance, slots.c the helpers that wait for
 * one, and here is the loop.
 */
#define _GNU_SOURCE
#include "launcher.h"

#include <fcntl.h>
#include <linux/netlink.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

int children = -1;
static int home_ns = -1, home_net = -1; /* where we began: mounts and network */

static void setup(void) {
    if (!request.bad && request.program >= 0) {
        if (program_fd >= 0)
            close(program_fd);
        program_fd = fcntl(request.fds[request.program], F_DUPFD_CLOEXEC, FIRST_FREE);
    }
    if (!request.bad)
        run_steps();
    if (outcome->away && setns(home_net, CLONE_NEWNET) < 0)
        _exit(1); /* all that follows would be made in the wrong place */
    begin(request.bad ? "bad" : outcome->failed == FAILED_NOTHING ? "done" : "failed");
    put("id", "%s", request.id);
    put("message", "%s", request.bad ? request.bad : "");
    put("loop", "%d", outcome->loop);
    if (outcome->failed != FAILED_NOTHING)
        put_failure();
    send_reply(outcome->failed == FAILED_NOTHING ? outcome->kept : -1);
    if (outcome->kept >= 0)
        close(outcome->kept);
}

/* ---- ending -------------------------------------------------------------------------- */

static void report(const char *id, int status, const struct rusage *usage) {
    begin("exited");
    put("id", "%s", id);
    put("status", "%d", status);
    put("monotonic_ns", "%llu", (unsigned long long)now_ns());
    put("user_us", "%lld", (long long)usage->ru_utime.tv_sec * 1000000 + usage->ru_utime.tv_usec);
    put("system_us", "%lld", (long long)usage->ru_stime.tv_sec * 1000000 + usage->ru_stime.tv_usec);
    put("max_rss_kib", "%ld", usage->ru_maxrss);
    send_reply(-1);
}

static void report_exit(pid_t pid, int status, const struct rusage *usage) {
    for (int i = 0; i < instance_count; i++)
        if (instances[i].pid == pid) {
            report(instances[i].id, status, usage);
            instances[i] = instances[--instance_count];
            return;
        }
    for (struct slot *slot = slots; slot < slots + slot_count; slot++) {
        if (!slot->used || (slot->helper != pid && slot->child != pid))
            continue;
        if (slot->helper == pid) {
            slot->helper = 0;
        } else {
            slot->child = -1;
            report(slot->id, status, usage);
        }
        slot->used = slot->helper != 0 || slot->child > 0;
        return;
    }
}

static void reap(void) {
    struct rusage usage;
    int status;
    pid_t pid;
    while ((pid = wait4(-1, &status, WNOHANG, &usage)) > 0)
        report_exit(pid, status, &usage);
}

/* Kill every child. What a killed one leaves behind becomes ours (child subreaper) and is
 * killed in the next round. */
static void kill_all(void) {
    for (int i = 0; i < instance_count; i++)
        kill(instances[i].pid, SIGKILL);
    do {
        int fd = open("/proc/thread-self/children", O_RDONLY | O_CLOEXEC);
        ssize_t size = fd < 0 ? 0 : read(fd, record, sizeof record - 1);
        if (fd >= 0)
            close(fd);
        record[size > 0 ? size : 0] = '\0';
        for (char *at = record, *end; *at; at = end) {
            long pid = strtol(at, &end, 10);
            if (end == at)
                break;
            if (pid > 1)
                kill((pid_t)pid, SIGKILL);
        }
    } while (waitpid(-1, NULL, 0) > 0 || errno == EINTR);
}

static void start(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, NULL);
    int occupied = fcntl(sock, F_DUPFD_CLOEXEC, FIRST_FREE);
    null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    null_fd = fcntl(null_fd, F_DUPFD_CLOEXEC, FIRST_FREE);
    home_ns = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
    home_ns = fcntl(home_ns, F_DUPFD_CLOEXEC, FIRST_FREE);
    home_net = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    home_net = fcntl(home_net, F_DUPFD_CLOEXEC, FIRST_FREE);
    sock = occupied;
    /* Numbers 3 to 15 stay taken, so that no descriptor passed to us ever has one of them. */
    for (int fd = CHANNEL_FD; fd < FIRST_FREE; fd++)
        dup3(null_fd, fd, O_CLOEXEC);
    host_route = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    outcome =
        mmap(NULL, sizeof *outcome, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    slots = mmap(NULL, SLOTS_MAX * sizeof *slots, PROT_READ | PROT_WRITE,
                 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (sock < 0 || null_fd < 0 || home_ns < 0 || home_net < 0 || outcome == MAP_FAILED ||
        slots == MAP_FAILED)
        return;
    umask(0); /* modes in steps mean what they say */
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    /* Image mounts live and die with this namespace, however we die. */
    if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        return;
    children = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    begin(children < 0 ? "failed" : "ready");
    send_reply(-1);
}

int main(int argc, char **argv) {
    if (argc < 2)
        return 2;
    sock = (int)number(argv[1]);
    start();
    if (children < 0) {
        begin("failed");
        put("name", "start");
        put("errno", "%d", errno);
        send_reply(-1);
        return 1;
    }
    for (;;) {
        struct pollfd polls[] = {{sock, POLLIN, 0}, {children, POLLIN, 0}};
        if (poll(polls, 2, -1) < 0)
            continue;
        if (polls[1].revents) {
            struct signalfd_siginfo info;
            while (read(children, &info, sizeof info) > 0)
                ;
            reap();
        }
        if (!polls[0].revents)
            continue;
        memset(&request, 0, sizeof request);
        outcome->failed = FAILED_NOTHING;
        outcome->loop = outcome->kept = -1;
        outcome->away = 0;
        uint64_t accepted_ns;
        ssize_t size = receive(&accepted_ns);
        if (size < 0)
            continue;
        int end = size > 0 && strcmp(request.kind, "end") == 0;
        if (size > 0 && !end) {
            if (strcmp(request.kind, "launch") == 0)
                launch(accepted_ns);
            else if (strcmp(request.kind, "park") == 0)
                park();
            else
                setup();
            for (int i = 0; i < request.fd_count; i++)
                close(request.fds[i]);
            continue;
        }
        kill_all();
        if (end || argc < 3)
            return 0;
        setns(home_ns, CLONE_NEWNS);
        execv(argv[2], argv + 2);
        return 1;
    }
}
