/* hvct-agent: runs one workload and reports on it over one byte stream.
 *
 * The same program in every arm: on an inherited socket (--channel=3) in a container or a bare
 * process, on one it connects to (--socket=PATH) below a container engine, on a virtio-serial port
 * in a virtual machine: as /init, or (--port) started by that of a distribution. What crosses the
 * channel is in docs/protocol.md. One poll loop without a timer (but for listen_port), so that an
 * idle instance costs nothing; no buffer grows with what the workload prints.
 */
#define _GNU_SOURCE
#include "frames.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

struct agent agent;

static int signals = -1;

static struct {
    int fd;
    uint64_t bytes;
} fetching = {-1, 0};

/* Kill our direct children; what they leave becomes our children. Only direct ones, since no other
 * pid is sure to be still the process it was. */
void kill_children(void) {
    if (agent.pid1) {
        kill(-1, SIGKILL);
        return;
    }
    DIR *proc = opendir("/proc");
    for (struct dirent *entry; proc && (entry = readdir(proc));) {
        char path[300], text[512];
        int parent;
        if (!isdigit((unsigned char)entry->d_name[0]))
            continue;
        snprintf(path, sizeof path, "/proc/%s/stat", entry->d_name);
        const char *after = read_text(path, text, sizeof text) ? strrchr(text, ')') : NULL;
        if (after && sscanf(after, ") %*c %d", &parent) == 1 && parent == getpid())
            kill(atoi(entry->d_name), SIGKILL);
    }
    if (proc)
        closedir(proc);
}

static _Noreturn void end(void) {
    if (agent.virtual_machine)
        guest_power_off();
    /* As PID 1 of a namespace, the kernel kills the rest; but not before our exit, and a bare
     * process has nobody else. Bounded: an unkillable process must not keep us. */
    for (int tries = 0; tries < 2000; tries++) {
        pid_t pid;
        while ((pid = waitpid(-1, NULL, WNOHANG)) > 0)
            ;
        if (pid < 0)
            break;
        kill_children();
        usleep(1000);
    }
    _exit(0);
}

static void continue_fetch(void) {
    while (fetching.fd >= 0 && channel_room()) {
        ssize_t n = frame_from(FILE_PART, fetching.fd, CHUNK);
        if (n > 0) {
            fetching.bytes += (uint64_t)n;
            continue;
        }
        RECORD(record, 64);
        record_add(&record, "errno", "%d", n < 0 ? errno : 0);
        record_add(&record, "size", "%llu", (unsigned long long)fetching.bytes);
        send_record(FILE_END, &record);
        close_fd(&fetching.fd);
    }
}

static void on_fetch(const char *path) {
    struct stat info;
    if (fetching.fd >= 0) {
        violation("a second FETCH before FILE_END");
        return;
    }
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    int error = fd < 0 || fstat(fd, &info) ? errno : S_ISREG(info.st_mode) ? 0 : EISDIR;
    if (error == 0) {
        fetching.fd = fd;
        fetching.bytes = 0;
        return;
    }
    RECORD(record, 64);
    record_add(&record, "errno", "%d", error);
    record_add(&record, "size", "0");
    send_record(FILE_END, &record);
    close_fd(&fd);
}

static void on_ping(const char *token) {
    RECORD(record, 512);
    record_add(&record, "token", "%.200s", token);
    record_add(&record, "monotonic_ns", "%llu", (unsigned long long)stamp(CLOCK_MONOTONIC));
    record_add(&record, "boottime_ns", "%llu", (unsigned long long)stamp(CLOCK_BOOTTIME));
    send_record(PONG, &record);
    channel_flush(); /* the host measures this round trip */
}

static void hello(uint64_t born_ns, uint64_t born_boottime_ns, bool woken) {
    RECORD(record, 512);
    struct utsname name;
    uname(&name);
    record_add(&record, "pid", "%d", getpid());
    record_add(&record, "monotonic_ns", "%llu", (unsigned long long)born_ns);
    record_add(&record, "boottime_ns", "%llu", (unsigned long long)born_boottime_ns);
    record_add(&record, "channel_ns", "%llu", (unsigned long long)stamp(CLOCK_MONOTONIC));
    record_add(&record, "release", "%s", name.release);
    record_add(&record, "version", "%s", AGENT_VERSION);
    if (woken)
        record_add(&record, "woken", "1");
    send_record(HELLO, &record);
    /* Where RUN is here already nobody waits for it: it goes with the next frame, and does not wake
     * the harness in the midst of the start. RUN comes with WAKE. */
    struct pollfd run = {agent.channel, POLLIN, 0};
    if (!woken && (agent.virtual_machine || poll(&run, 1, 0) <= 0))
        channel_flush();
}

static void dispatch(int type, const char *data, size_t length) {
    const char *text = NULL, *entropy = NULL;
    uint64_t n = 0, columns = 0;
    if (type != STDIN && type != QUIT && type != EXEC_KILL && !record_valid(data, length)) {
        violation("a record is malformed");
        return;
    }
    switch (type) {
    case RUN:
        workload_run(data, length);
        return;
    case PREPARE:
        workload_prepare(data, length);
        return;
    case WAKE:
        if (!(text = record_get(data, length, "realtime_ns")) ||
            !(entropy = record_get(data, length, "entropy")) || !workload_wake(text, entropy))
            break;
        hello(stamp(CLOCK_MONOTONIC), stamp(CLOCK_BOOTTIME), true);
        return;
    case SIGNAL:
        text = record_get(data, length, "number");
        if (!text || !number(text, 10, 64, &n) || n == 0)
            break;
        workload_signal((int)n);
        return;
    case STDIN:
        workload_stdin(data, length);
        return;
    case PING:
        if (!(text = record_get(data, length, "token")))
            break;
        on_ping(text);
        return;
    case EXEC:
        workload_exec(data, length);
        return;
    case EXEC_KILL:
        check_kill();
        return;
    case FETCH:
        if (!(text = record_get(data, length, "path")))
            break;
        on_fetch(text);
        return;
    case QUIT:
        agent.ended = true;
        return;
    case WINDOW:
        text = record_get(data, length, "rows");
        if (!text || !number(text, 10, 65535, &n))
            break;
        text = record_get(data, length, "columns");
        if (!text || !number(text, 10, 65535, &columns))
            break;
        workload_window((unsigned short)n, (unsigned short)columns);
        return;
    }
    violation("a frame the agent does not know, or without what it needs");
}

static void read_signals(void) {
    struct signalfd_siginfo info;
    while (read(signals, &info, sizeof info) == (ssize_t)sizeof info) {
        if (info.ssi_signo == SIGCHLD)
            workload_reap();
        else
            agent.ended = true;
    }
}

static void turn(void) {
    enum { CHANNEL, SIGNALS, CHECK, WORKLOAD, ALL = WORKLOAD + WORKLOAD_FDS };
    short wanted = (short)((channel_room() ? POLLIN : 0) | (channel_unsent() ? POLLOUT : 0));
    struct pollfd fds[ALL] = {{agent.channel, wanted, 0}, {signals, POLLIN, 0}, check_fd()};
    workload_fds(fds + WORKLOAD);
    bool ships = fetching.fd >= 0 && channel_room();
    if (poll(fds, ALL, ships ? 0 : workload_timeout()) < 0)
        return;
    if (fds[CHANNEL].revents & POLLIN)
        channel_read(dispatch);
    else if (fds[CHANNEL].revents & ~POLLOUT)
        agent.ended = true; /* the host has gone */
    if (fds[SIGNALS].revents)
        read_signals();
    channel_flush();
    check_turn(fds + CHECK);
    workload_turn(fds + WORKLOAD);
    continue_fetch();
    channel_flush();
}

static void take_signals(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGCHLD, SIG_DFL);
    signals = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
}

/* For a container engine, which passes no descriptors on. */
static int connect_to(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || strlen(path) >= sizeof address.sun_path)
        return -1;
    strcpy(address.sun_path, path);
    return connect(fd, (struct sockaddr *)&address, sizeof address) ? -1 : fd;
}

int main(int argc, char **argv) {
    uint64_t channel = 0;
    uint64_t born_ns = stamp(CLOCK_MONOTONIC);
    uint64_t born_boottime_ns = stamp(CLOCK_BOOTTIME);
    agent.pid1 = getpid() == 1;
    take_signals();
    if (argc == 2 && !strncmp(argv[1], "--channel=", 10) &&
        number(argv[1] + 10, 10, 1 << 20, &channel)) {
        agent.channel = (int)channel;
    } else if (argc == 2 && !strncmp(argv[1], "--socket=", 9)) {
        agent.channel = connect_to(argv[1] + 9);
    } else if (agent.pid1 ? argc == 1 : argc == 2 && !strcmp(argv[1], "--port")) {
        agent.virtual_machine = true;
        agent.channel = guest_open_channel();
    } else {
        fprintf(stderr, "usage: hvct-agent --channel=FD | --socket=PATH | --port\n");
        return 2;
    }
    if (fcntl(agent.channel, F_SETFL, O_RDWR | O_NONBLOCK) ||
        fcntl(agent.channel, F_SETFD, FD_CLOEXEC)) {
        fprintf(stderr, "hvct-agent: descriptor %d is not open\n", agent.channel);
        return 2;
    }
    if (!agent.pid1)
        prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    hello(born_ns, born_boottime_ns, false);
    while (!agent.ended)
        turn();
    end();
}
