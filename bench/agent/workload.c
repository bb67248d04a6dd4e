/* The workload from RUN to EXIT: its process, its input, its two outputs on their way out. A few
 * lines over 400: PREPARE and WAKE belong to the same state. */
#define _GNU_SOURCE
#include "frames.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

/* One of the workload's two output streams on its way to the host. */
struct stream {
    int fd, spool; /* -1: closed, none */
    enum frame_type type;
    uint64_t kept, dropped;
};

/* The workload's child has it in common with us until its exec. */
static struct shared shared;

static struct {
    enum { NONE, RUNNING, DRAINING, SHIPPING, OVER } state;
    struct run run;
    pid_t pid;
    struct stdio stdio;
    int report; /* until the exec: the child's report pipe */
    struct stream streams[2];
    int input; /* -1: closed */
    uint8_t pending[STDIN_WINDOW];
    size_t pending_bytes;
    bool input_ends, started, listening, childless, prepared;
    int status;
    struct rusage usage;
    uint64_t exited_ns;
    size_t receipt_sent;
} work = {.report = -1, .streams = {{-1, -1, STDOUT, 0, 0}, {-1, -1, STDERR, 0, 0}}, .input = -1};

void close_fd(int *fd) {
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

void workload_reap(void) {
    int status;
    struct rusage usage;
    pid_t pid;
    while ((pid = wait4(-1, &status, WNOHANG, &usage)) > 0) {
        if (pid != work.pid) {
            check_reap(pid, status);
            continue;
        }
        work.exited_ns = stamp(CLOCK_MONOTONIC);
        work.pid = 0;
        work.status = status;
        work.usage = usage;
    }
    work.childless = pid < 0;
    if (work.state == RUNNING && work.pid == 0 && work.report < 0) {
        work.state = DRAINING;
        send_event("ended", work.exited_ns);
        channel_flush(); /* the host reads its counters now, before we ship the output */
    }
    if (work.state == DRAINING && !work.childless)
        kill_children();
}

static int open_stream(struct stream *stream) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC))
        return -1;
    fcntl(ends[1], F_SETPIPE_SZ, 4 * CHUNK); /* fewer wake-ups; the default does as well */
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    stream->fd = ends[0];
    if (!work.run.stream && (stream->spool = memfd_create("spool", MFD_CLOEXEC)) < 0)
        return -1;
    return ends[1];
}

static int open_terminal(struct stdio *stdio) {
    int unlock = 0, master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
    if (master < 0 || ioctl(master, TIOCSPTLCK, &unlock))
        return fail("tty", "/dev/ptmx");
    int slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (slave < 0)
        return fail("tty", "TIOCGPTPEER");
    stdio->in = stdio->out = stdio->err = slave;
    work.streams[0].fd = master;
    work.input = fcntl(master, F_DUPFD_CLOEXEC, 0);
    return work.input < 0 ? fail("tty", "dup") : 0;
}

static int open_stdio(struct stdio *stdio) {
    int ends[2];
    if (work.run.tty)
        return open_terminal(stdio);
    if (work.run.stdin_stream) {
        if (pipe2(ends, O_CLOEXEC))
            return fail("stdio", "pipe");
        stdio->in = ends[0];
        work.input = ends[1];
        fcntl(work.input, F_SETFL, O_NONBLOCK);
    } else if ((stdio->in = open("/dev/null", O_RDONLY | O_CLOEXEC)) < 0) {
        return fail("stdio", "/dev/null");
    }
    stdio->out = open_stream(&work.streams[0]);
    stdio->err = open_stream(&work.streams[1]);
    return stdio->out < 0 || stdio->err < 0 ? fail("stdio", "pipe") : 0;
}

static void become_workload(void) { child(&work.run, work.stdio, &shared); }

/* vfork: no page table is copied and none of our pages is touched twice, a tenth of a millisecond.
 * The child writes nothing of ours but `failure` and `shared`, and we have nothing to do until its
 * exec. A guest's is born in a control group. */
static pid_t start_child(void) {
    if (agent.virtual_machine)
        return guest_vfork(become_workload);
    pid_t pid = vfork();
    if (pid == 0)
        become_workload();
    return pid;
}

static int start(void) {
    struct stdio stdio = {-1, -1, -1};
    int ends[2];
    if (agent.virtual_machine) {
        if (!work.prepared && (guest_prepare(&work.run.guest) || guest_open_names()))
            return -1;
        if (guest_own(&work.run))
            return -1;
        send_event("mounted", stamp(CLOCK_MONOTONIC));
    }
    if (pipe2(ends, O_CLOEXEC))
        return fail("fork", "");
    if (open_stdio(&stdio))
        return -1;
    work.stdio = stdio;
    if ((work.pid = start_child()) < 0)
        return fail("fork", "");
    work.report = ends[0];
    work.state = RUNNING;
    close(ends[1]);
    close(stdio.in);
    if (!work.run.tty) {
        close(stdio.out);
        close(stdio.err);
    }
    return 0;
}

/* The launch failed, or is over: nothing of it stays open. */
static void close_workload(void) {
    for (int i = 0; i < 2; i++) {
        close_fd(&work.streams[i].fd);
        close_fd(&work.streams[i].spool);
    }
    close_fd(&work.input);
    work.state = OVER;
}

/* The pipe closed: at the exec, or because there was none. */
static void exec_result(void) {
    close_fd(&work.report);
    if (!shared.failure.step && shared.started_ns) {
        work.started = true;
        send_event("started", shared.started_ns);
        port_watch();
    } else {
        errno = ECHILD;
        fail("exec", "killed before its exec");
        if (shared.failure.step)
            failure = shared.failure;
        send_failure();
        close_workload();
    }
    workload_reap(); /* it may have ended already */
}

/* Take up what is in one stream; false when there is nothing more for now. */
static bool drain(struct stream *stream) {
    static uint8_t scratch[CHUNK];
    uint64_t room = work.run.output_limit - stream->kept;
    ssize_t n;
    if (stream->fd < 0 || !channel_room())
        return false;
    if (work.run.stream && room) {
        n = frame_from(stream->type, stream->fd, room);
        stream->kept += n > 0 ? (uint64_t)n : 0;
    } else {
        n = read(stream->fd, scratch, sizeof scratch);
        uint64_t keep = n > 0 && !work.run.stream ? (uint64_t)n : 0;
        keep = keep < room ? keep : room;
        ssize_t kept = keep ? write(stream->spool, scratch, (size_t)keep) : 0;
        stream->kept += kept > 0 ? (uint64_t)kept : 0;
        stream->dropped += (n > 0 ? (uint64_t)n : 0) - (kept > 0 ? (uint64_t)kept : 0);
    }
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) /* a terminal ends with EIO */
        close_fd(&stream->fd);
    return n > 0;
}

static void send_exit(void) {
    RECORD(record, 512);
    struct rusage *usage = &work.usage;
    if (WIFSIGNALED(work.status))
        record_add(&record, "signal", "%d", WTERMSIG(work.status));
    else
        record_add(&record, "code", "%d", WEXITSTATUS(work.status));
    record_add(&record, "user_us", "%lld",
               usage->ru_utime.tv_sec * 1000000LL + usage->ru_utime.tv_usec);
    record_add(&record, "system_us", "%lld",
               usage->ru_stime.tv_sec * 1000000LL + usage->ru_stime.tv_usec);
    record_add(&record, "max_rss_kib", "%ld", usage->ru_maxrss);
    record_add(&record, "monotonic_ns", "%llu", (unsigned long long)work.exited_ns);
    send_record(EXIT, &record);
}

/* The receipt in pieces cut between its strings; true when all of it is on its way. */
static bool send_receipt(void) {
    const char *text = shared.receipt;
    while (work.receipt_sent < shared.length && channel_room()) {
        size_t size = 0, left = shared.length - work.receipt_sent;
        while (size < left && size < CHUNK)
            size += strlen(text + work.receipt_sent + size) + 1;
        frame(RECEIPT, text + work.receipt_sent, size);
        work.receipt_sent += size;
    }
    return work.receipt_sent == shared.length;
}

static void send_counts(void) {
    RECORD(record, 256);
    for (int i = 0; i < 2; i++) {
        const char *keys[2][2] = {{"stdout_bytes", "stdout_dropped"},
                                  {"stderr_bytes", "stderr_dropped"}};
        record_add(&record, keys[i][0], "%llu", (unsigned long long)work.streams[i].kept);
        record_add(&record, keys[i][1], "%llu", (unsigned long long)work.streams[i].dropped);
    }
    send_record(RECEIPT, &record);
}

/* After the exit: the rest of the output, the spooled output, the receipt, the exit. */
static void ship(void) {
    if (work.state == DRAINING && work.childless) {
        for (int i = 0; i < 2; i++)
            while (drain(&work.streams[i]))
                ;
        if (!channel_room())
            return;
        for (int i = 0; i < 2; i++) {
            close_fd(&work.streams[i].fd);
            if (work.streams[i].spool >= 0)
                lseek(work.streams[i].spool, 0, SEEK_SET);
        }
        work.state = SHIPPING;
    }
    if (work.state != SHIPPING)
        return;
    for (int i = 0; i < 2; i++)
        while (work.streams[i].spool >= 0) {
            if (!channel_room())
                return;
            if (frame_from(work.streams[i].type, work.streams[i].spool, CHUNK) <= 0)
                close_fd(&work.streams[i].spool);
        }
    if (!send_receipt())
        return;
    send_counts();
    send_exit();
    close_workload();
}

static void feed_input(void) {
    ssize_t n = work.pending_bytes ? write(work.input, work.pending, work.pending_bytes) : 0;
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    /* When nobody reads any more, what comes is taken and forgotten, as by a closed pipe. */
    size_t taken = n < 0 ? work.pending_bytes : (size_t)n;
    if (n < 0)
        close_fd(&work.input);
    if (taken) {
        RECORD(record, 64);
        work.pending_bytes -= taken;
        memmove(work.pending, work.pending + taken, work.pending_bytes);
        record_add(&record, "bytes", "%zu", taken);
        send_record(CREDIT, &record);
    }
    if (work.input_ends && !work.pending_bytes) {
        if (work.run.tty && work.input >= 0 && write(work.input, "\4", 1) < 0 && errno == EAGAIN)
            return; /* a full terminal: its end of file waits for the next turn */
        close_fd(&work.input);
    }
}

void workload_stdin(const char *data, size_t length) {
    if (length > sizeof work.pending - work.pending_bytes) {
        violation("STDIN beyond its credit");
        return;
    }
    if (length == 0)
        work.input_ends = true;
    memcpy(work.pending + work.pending_bytes, data, length);
    work.pending_bytes += length;
    feed_input();
}

/* A RUN or PREPARE as a struct; false where it is none, which has been said. */
static bool parse(struct run *run, const char *kind, const char *data, size_t length) {
    static char copy[FRAME_MAX]; /* what the struct points into */
    bool prepare = !strcmp(kind, "PREPARE");
    char what[128];
    memcpy(copy, data, length);
    const char *wrong = run_parse(run, copy, length, prepare);
    if (!wrong && run->guest.wanted > agent.virtual_machine)
        wrong = "guest keys outside a VM";
    if (!wrong && !prepare && work.prepared && run->guest.root)
        wrong = "guest.root once more";
    if (!wrong)
        return true;
    snprintf(what, sizeof what, "%s: %.100s", kind, wrong);
    violation(what);
    return false;
}

/* All that guests of one kind have in common: the machine may then be saved. */
void workload_prepare(const char *data, size_t length) {
    static struct run run;
    if (!agent.virtual_machine || work.state != NONE || work.prepared) {
        violation("PREPARE outside a VM, or not the first");
        return;
    }
    if (!parse(&run, "PREPARE", data, length))
        return;
    if (guest_prepare(&run.guest) || guest_open_names()) {
        send_failure();
        close_workload();
        return;
    }
    work.prepared = true;
    send_event("prepared", stamp(CLOCK_MONOTONIC));
}

/* The machine has been restored: false where it cannot be. */
bool workload_wake(const char *realtime, const char *entropy) {
    unsigned char seed[ENTROPY_BYTES];
    uint64_t now;
    if (!agent.virtual_machine || work.state != NONE || !number(realtime, 10, INT64_MAX, &now) ||
        strlen(entropy) != 2 * sizeof seed || !hex(entropy, seed, sizeof seed))
        return false;
    if (guest_wake(now, seed, sizeof seed)) {
        send_failure();
        close_workload();
    }
    return true;
}

void workload_run(const char *data, size_t length) {
    if (work.state != NONE) {
        violation("a second RUN");
        return;
    }
    if (parse(&work.run, "RUN", data, length) && start()) {
        send_failure();
        close_workload();
    }
}

void workload_exec(const char *data, size_t length) {
    bool runs = work.state == RUNNING && work.started && work.pid > 0;
    check_run(runs ? &work.run : NULL, data, length);
}

static bool awaits_port(void) {
    return work.run.listen_port && work.started && !work.listening && work.pid > 0;
}

/* By the clock, not by the turn: a workload that prints much has many of those. */
static void check_port(void) {
    uint64_t now, closed;
    if (!port_check(work.run.listen_port, &now, &closed))
        return;
    work.listening = true;
    RECORD(record, 128);
    record_add(&record, "name", "listening");
    record_add(&record, "monotonic_ns", "%llu", (unsigned long long)now);
    record_add(&record, "since_ns", "%llu", (unsigned long long)closed);
    send_record(EVENT, &record);
}

void workload_signal(int number) {
    if (work.pid > 0 && work.started)
        kill(work.pid, number);
}

void workload_window(unsigned short rows, unsigned short columns) {
    struct winsize size = {rows, columns, 0, 0};
    if (work.run.tty && work.streams[0].fd >= 0)
        ioctl(work.streams[0].fd, TIOCSWINSZ, &size);
}

void workload_fds(struct pollfd fds[WORKLOAD_FDS]) {
    bool room = channel_room();
    fds[0] = (struct pollfd){work.report, POLLIN, 0};
    fds[1] = (struct pollfd){room ? work.streams[0].fd : -1, POLLIN, 0};
    fds[2] = (struct pollfd){room ? work.streams[1].fd : -1, POLLIN, 0};
    bool feeds = work.pending_bytes || work.input_ends;
    fds[3] = (struct pollfd){feeds ? work.input : -1, POLLOUT, 0};
}

/* Milliseconds until there is something to do without an event; -1: never. */
int workload_timeout(void) {
    bool ships = work.state == SHIPPING || (work.state == DRAINING && work.childless);
    return ships && channel_room() ? 0 : awaits_port() ? port_timeout() : -1;
}

void workload_turn(const struct pollfd fds[WORKLOAD_FDS]) {
    if (fds[0].revents && work.report >= 0)
        exec_result();
    for (int i = 0; i < 2; i++)
        if (fds[1 + i].revents)
            drain(&work.streams[i]);
    if (fds[3].revents && work.input >= 0)
        feed_input();
    if (awaits_port())
        check_port();
    ship();
}
