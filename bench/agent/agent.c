/* hvct-agent: runs one workload and reports on it over one byte stream.
 *
 * The same program in every arm: on an inherited socket (--channel=3) in a container or
 * a bare process, as /init on a virtio-serial port in a virtual machine. What crosses the
 * channel is in docs/protocol.md. One poll loop without a timer (but for listen_port), so
 * that an idle instance costs nothing; no buffer grows with what the workload prints.
 */
#define _GNU_SOURCE
#include "frames.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    BULK_BELOW = 4 * CHUNK, /* output is taken up only while less than this is unsent */
    LISTEN_PERIOD_MS = 5,
    FRAMES_A_TURN = 16,
};

static struct {
    int channel, signals;
    bool pid1, virtual_machine, ended;
    uint64_t born_ns, born_boottime_ns;
    struct {
        uint8_t header[HEADER_BYTES];
        char payload[FRAME_MAX + 1];
        size_t have;
    } in;
    struct {
        uint8_t data[BULK_BELOW + 2 * FRAME_MAX];
        size_t start, end;
    } out;
} agent;

/* One of the workload's two output streams on its way to the host. */
struct stream {
    int fd, spool; /* -1: closed, none */
    enum frame_type type;
    uint64_t kept, dropped, shipped;
};

static struct {
    enum { NONE, RUNNING, DRAINING, SHIPPING, OVER } state;
    struct run run;
    pid_t pid;
    struct shared *shared;
    int report; /* until the exec: the child's report pipe */
    struct stream streams[2];
    int input; /* -1: closed */
    uint8_t pending[STDIN_WINDOW];
    size_t pending_bytes;
    bool input_ends, started, listening, childless;
    int status;
    struct rusage usage;
    uint64_t exited_ns;
    size_t receipt_sent;
} work = {
    .report = -1, .streams = {{-1, -1, STDOUT, 0, 0, 0}, {-1, -1, STDERR, 0, 0, 0}}, .input = -1};

static struct {
    int fd;
    uint64_t bytes;
} fetching = {-1, 0};

struct failure failure;

int fail(const char *step, const char *subject) {
    failure.error = errno;
    failure.step = step;
    snprintf(failure.message, sizeof failure.message, "%s", subject);
    return -1;
}

/* ---- records and frames ---- */

void record_add(struct record *record, const char *key, const char *format, ...) {
    char *at = record->data + record->length;
    size_t room = record->capacity - record->length;
    int prefix = snprintf(at, room, "%s=", key);
    if ((size_t)prefix >= room) {
        record->full = true;
        return;
    }
    va_list values;
    va_start(values, format);
    int size = vsnprintf(at + prefix, room - (size_t)prefix, format, values);
    va_end(values);
    if (size < 0 || (size_t)prefix + (size_t)size >= room)
        record->full = true;
    else
        record->length += (size_t)prefix + (size_t)size + 1;
}

/* Every string has a key and ends: what the other functions rely on. */
bool record_valid(const char *data, size_t length) {
    if (length && data[length - 1])
        return false;
    for (size_t at = 0; at < length; at += strlen(data + at) + 1)
        if (!strchr(data + at, '='))
            return false;
    return true;
}

const char *record_get(const char *data, size_t length, const char *key) {
    size_t size = strlen(key);
    for (size_t at = 0; at < length; at += strlen(data + at) + 1)
        if (!strncmp(data + at, key, size) && data[at + size] == '=')
            return data + at + size + 1;
    return NULL;
}

void failure_record(struct record *out) {
    record_add(out, "step", "%s", failure.step);
    record_add(out, "errno", "%d", failure.error);
    record_add(out, "message", "%s", failure.message);
}

static size_t unsent(void) {
    return agent.out.end - agent.out.start;
}

/* Room for one frame of this payload, always there: bulk frames are begun only below
 * BULK_BELOW, and nothing is read from the channel above it. */
static uint8_t *frame_begin(size_t length) {
    if (agent.out.end + HEADER_BYTES + length > sizeof agent.out.data) {
        memmove(agent.out.data, agent.out.data + agent.out.start, unsent());
        agent.out.end = unsent();
        agent.out.start = 0;
    }
    return agent.out.data + agent.out.end + HEADER_BYTES;
}

static void frame_end(enum frame_type type, size_t length) {
    uint8_t *header = agent.out.data + agent.out.end;
    memset(header, 0, HEADER_BYTES);
    header[0] = (uint8_t)type;
    for (int i = 0; i < 4; i++)
        header[4 + i] = (uint8_t)(length >> 8 * i);
    agent.out.end += HEADER_BYTES + length;
}

static void frame(enum frame_type type, const void *data, size_t length) {
    memcpy(frame_begin(length), data, length);
    frame_end(type, length);
}

/* Read up to a chunk from `fd` straight into a frame; the result is read's. */
static ssize_t frame_from(enum frame_type type, int fd, uint64_t most) {
    uint8_t *payload = frame_begin(CHUNK);
    ssize_t n = read(fd, payload, most < CHUNK ? (size_t)most : (size_t)CHUNK);
    if (n > 0)
        frame_end(type, (size_t)n);
    return n;
}

static void send_record(enum frame_type type, const struct record *record) {
    frame(type, record->data, record->length);
}

#define RECORD(name, size)                                                                         \
    char name##_text[size];                                                                        \
    struct record name = {name##_text, 0, sizeof name##_text, false}

static void send_failure(void) {
    RECORD(record, 512);
    failure_record(&record);
    send_record(ERROR, &record);
}

static void send_event(const char *name, uint64_t stamp_ns) {
    RECORD(record, 128);
    record_add(&record, "name", "%s", name);
    record_add(&record, "monotonic_ns", "%llu", (unsigned long long)stamp_ns);
    send_record(EVENT, &record);
}

static void flush(void) {
    while (unsent()) {
        ssize_t n = write(agent.channel, agent.out.data + agent.out.start, unsent());
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno != EAGAIN)
            agent.ended = true;
        if (n <= 0)
            return;
        agent.out.start += (size_t)n;
    }
    agent.out.start = agent.out.end = 0;
}

/* The host broke the protocol: say so and end. */
static void violation(const char *what) {
    errno = EPROTO;
    fail("protocol", what);
    send_failure();
    flush();
    agent.ended = true;
}

/* ---- ending ---- */

/* Kill our direct children; what they leave becomes our children. Only direct ones, since
 * no other pid is sure to be still the process it was. */
static void kill_children(void) {
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
    /* As PID 1 of a namespace, the kernel kills the rest; but not before our exit, and a
     * bare process has nobody else. Bounded: an unkillable process must not keep us. */
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

static void reap(void) {
    int status;
    struct rusage usage;
    pid_t pid;
    while ((pid = wait4(-1, &status, WNOHANG, &usage)) > 0) {
        if (pid != work.pid)
            continue;
        work.exited_ns = stamp(CLOCK_MONOTONIC);
        work.pid = 0;
        work.status = status;
        work.usage = usage;
    }
    work.childless = pid < 0;
    if (work.state == RUNNING && work.pid == 0 && work.report < 0)
        work.state = DRAINING;
    if (work.state == DRAINING && !work.childless)
        kill_children();
}

/* ---- the workload ---- */

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

static int start(void) {
    struct stdio stdio = {-1, -1, -1, -1, -1};
    int ends[2];
    if (work.run.guest.wanted) {
        if (guest_set_up(&work.run, &stdio.cgroup_procs))
            return -1;
        send_event("mounted", stamp(CLOCK_MONOTONIC));
    }
    work.shared =
        mmap(NULL, sizeof *work.shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (work.shared == MAP_FAILED || pipe2(ends, O_CLOEXEC))
        return fail("fork", "");
    if (open_stdio(&stdio))
        return -1;
    flush(); /* what the child inherits is then only its copy */
    stdio.report = ends[1];
    if ((work.pid = fork()) == 0)
        workload_exec(&work.run, stdio, work.shared);
    if (work.pid < 0)
        return fail("fork", "");
    work.report = ends[0];
    work.state = RUNNING;
    close(ends[1]);
    if (stdio.cgroup_procs >= 0)
        close(stdio.cgroup_procs);
    close(stdio.in);
    if (!work.run.tty) {
        close(stdio.out);
        close(stdio.err);
    }
    return 0;
}

static void close_fd(int *fd) {
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
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

/* The report pipe closed at the exec, or holds the record of why there was none. */
static void exec_result(void) {
    char text[512];
    ssize_t n = read(work.report, text, sizeof text);
    close_fd(&work.report);
    if (n > 0) {
        frame(ERROR, text, (size_t)n);
        close_workload();
    } else if (work.shared->started_ns) {
        work.started = true;
        send_event("started", work.shared->started_ns);
    } else {
        errno = ECHILD;
        fail("exec", "killed before its exec");
        send_failure();
        close_workload();
    }
    reap(); /* it may have ended already */
}

/* Take up what is in one stream; false when there is nothing more for now. */
static bool drain(struct stream *stream) {
    static uint8_t scratch[CHUNK];
    uint64_t room = work.run.output_limit - stream->kept;
    ssize_t n;
    if (stream->fd < 0 || unsent() >= BULK_BELOW)
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
    const char *text = work.shared->receipt;
    while (work.receipt_sent < work.shared->length && unsent() < BULK_BELOW) {
        size_t size = 0, left = work.shared->length - work.receipt_sent;
        while (size < left && size < CHUNK)
            size += strlen(text + work.receipt_sent + size) + 1;
        frame(RECEIPT, text + work.receipt_sent, size);
        work.receipt_sent += size;
    }
    return work.receipt_sent == work.shared->length;
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
        if (unsent() >= BULK_BELOW)
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
            if (unsent() >= BULK_BELOW)
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

/* ---- what the host asks for ---- */

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
        if (work.run.tty && work.input >= 0 && write(work.input, "\4", 1) != 1)
            return; /* a full terminal: its end of file waits for the next turn */
        close_fd(&work.input);
    }
}

static void on_stdin(const char *data, size_t length) {
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

static void continue_fetch(void) {
    while (fetching.fd >= 0 && unsent() < BULK_BELOW) {
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

static void on_run(const char *data, size_t length) {
    char *copy = malloc(length + 1);
    if (work.state != NONE || !copy) {
        violation("a second RUN");
        return;
    }
    memcpy(copy, data, length);
    const char *wrong = run_parse(&work.run, copy, length);
    if (wrong || work.run.guest.wanted > agent.virtual_machine) {
        char what[128];
        snprintf(what, sizeof what, "RUN: %.100s", wrong ? wrong : "guest keys outside a VM");
        violation(what);
        return;
    }
    if (start()) {
        send_failure();
        close_workload();
    }
}

static void on_ping(const char *token) {
    RECORD(record, 512);
    record_add(&record, "token", "%.200s", token);
    record_add(&record, "monotonic_ns", "%llu", (unsigned long long)stamp(CLOCK_MONOTONIC));
    record_add(&record, "boottime_ns", "%llu", (unsigned long long)stamp(CLOCK_BOOTTIME));
    send_record(PONG, &record);
    flush(); /* the host measures this round trip */
}

static void dispatch(int type, const char *data, size_t length) {
    const char *text = NULL;
    uint64_t n = 0, columns = 0;
    if (type != STDIN && type != QUIT && !record_valid(data, length)) {
        violation("a record is malformed");
        return;
    }
    switch (type) {
    case RUN:
        on_run(data, length);
        return;
    case SIGNAL:
        text = record_get(data, length, "number");
        if (!text || !number(text, 10, 64, &n) || n == 0)
            break;
        if (work.pid > 0 && work.report < 0)
            kill(work.pid, (int)n);
        return;
    case STDIN:
        on_stdin(data, length);
        return;
    case PING:
        if (!(text = record_get(data, length, "token")))
            break;
        on_ping(text);
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
        if (work.run.tty && work.streams[0].fd >= 0)
            ioctl(work.streams[0].fd, TIOCSWINSZ,
                  &(struct winsize){(unsigned short)n, (unsigned short)columns, 0, 0});
        return;
    }
    violation("a frame the agent does not know, or without what it needs");
}

/* ---- the loop ---- */

static uint32_t payload_length(void) {
    const uint8_t *header = agent.in.header;
    return (uint32_t)header[4] | (uint32_t)header[5] << 8 | (uint32_t)header[6] << 16 |
           (uint32_t)header[7] << 24;
}

/* Read until one frame is complete; false when there is no more for now. */
static bool read_frame(void) {
    for (;;) {
        uint32_t length = agent.in.have < HEADER_BYTES ? 0 : payload_length();
        const uint8_t *header = agent.in.header;
        if (agent.in.have >= HEADER_BYTES &&
            (length > FRAME_MAX || header[1] | header[2] | header[3]))
            return violation("a frame header is malformed"), false;
        if (agent.in.have >= HEADER_BYTES && agent.in.have == HEADER_BYTES + (size_t)length)
            break;
        bool head = agent.in.have < HEADER_BYTES;
        ssize_t n = head ? read(agent.channel, agent.in.header + agent.in.have,
                                HEADER_BYTES - agent.in.have)
                         : read(agent.channel, agent.in.payload + agent.in.have - HEADER_BYTES,
                                HEADER_BYTES + length - agent.in.have);
        if (n < 0 && errno == EINTR)
            continue;
        if (n == 0 || (n < 0 && errno != EAGAIN))
            agent.ended = true; /* the host has gone */
        if (n <= 0)
            return false;
        agent.in.have += (size_t)n;
    }
    size_t length = agent.in.have - HEADER_BYTES;
    agent.in.have = 0;
    agent.in.payload[length] = 0;
    dispatch(agent.in.header[0], agent.in.payload, length);
    return !agent.ended;
}

static void read_signals(void) {
    struct signalfd_siginfo info;
    while (read(agent.signals, &info, sizeof info) == (ssize_t)sizeof info) {
        if (info.ssi_signo == SIGCHLD)
            reap();
        else
            agent.ended = true;
    }
}

static bool port_open(const char *path, unsigned port) {
    FILE *table = fopen(path, "re");
    char line[256];
    bool open = false;
    while (table && !open && fgets(line, sizeof line, table)) {
        unsigned local, state;
        open = sscanf(line, " %*d: %*[0-9A-Fa-f]:%x %*[0-9A-Fa-f]:%*x %x", &local, &state) == 2 &&
               local == port && state == 0x0A;
    }
    if (table)
        fclose(table);
    return open;
}

static bool awaits_port(void) {
    return work.run.listen_port && work.started && !work.listening && work.pid > 0;
}

static void check_port(void) {
    if (port_open("/proc/net/tcp", work.run.listen_port) ||
        port_open("/proc/net/tcp6", work.run.listen_port)) {
        work.listening = true;
        send_event("listening", stamp(CLOCK_MONOTONIC));
    }
}

static void turn(void) {
    bool room = unsent() < BULK_BELOW;
    bool more =
        work.state == SHIPPING || (work.state == DRAINING && work.childless) || fetching.fd >= 0;
    int timeout = more && room ? 0 : awaits_port() ? LISTEN_PERIOD_MS : -1;
    struct pollfd fds[] = {
        {agent.channel, (short)((room ? POLLIN : 0) | (unsent() ? POLLOUT : 0)), 0},
        {agent.signals, POLLIN, 0},
        {work.report, POLLIN, 0},
        {room ? work.streams[0].fd : -1, POLLIN, 0},
        {room ? work.streams[1].fd : -1, POLLIN, 0},
        {work.pending_bytes || work.input_ends ? work.input : -1, POLLOUT, 0},
    };
    if (poll(fds, sizeof fds / sizeof *fds, timeout) < 0)
        return;
    if (fds[0].revents & POLLIN)
        for (int i = 0; i < FRAMES_A_TURN && unsent() < BULK_BELOW && read_frame(); i++)
            ;
    else if (fds[0].revents & (POLLHUP | POLLERR | POLLNVAL))
        agent.ended = true;
    if (fds[2].revents && work.report >= 0)
        exec_result();
    if (fds[1].revents)
        read_signals();
    for (int i = 0; i < 2; i++)
        if (fds[3 + i].revents)
            drain(&work.streams[i]);
    if (fds[5].revents && work.input >= 0)
        feed_input();
    if (awaits_port())
        check_port();
    flush();
    ship();
    continue_fetch();
    flush();
}

static void hello(void) {
    RECORD(record, 512);
    struct utsname name;
    uname(&name);
    record_add(&record, "pid", "%d", getpid());
    record_add(&record, "monotonic_ns", "%llu", (unsigned long long)agent.born_ns);
    record_add(&record, "boottime_ns", "%llu", (unsigned long long)agent.born_boottime_ns);
    record_add(&record, "channel_ns", "%llu", (unsigned long long)stamp(CLOCK_MONOTONIC));
    record_add(&record, "release", "%s", name.release);
    record_add(&record, "version", "%s", AGENT_VERSION);
    send_record(HELLO, &record);
    flush();
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
    agent.signals = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
}

int main(int argc, char **argv) {
    uint64_t channel = 0;
    agent.born_ns = stamp(CLOCK_MONOTONIC);
    agent.born_boottime_ns = stamp(CLOCK_BOOTTIME);
    agent.pid1 = getpid() == 1;
    take_signals();
    if (argc == 2 && !strncmp(argv[1], "--channel=", 10) &&
        number(argv[1] + 10, 10, 1 << 20, &channel)) {
        agent.channel = (int)channel;
    } else if (agent.pid1 && argc == 1) {
        agent.virtual_machine = true;
        agent.channel = guest_open_channel();
    } else {
        fprintf(stderr, "usage: hvct-agent --channel=FD\n");
        return 2;
    }
    if (fcntl(agent.channel, F_SETFL, O_RDWR | O_NONBLOCK) ||
        fcntl(agent.channel, F_SETFD, FD_CLOEXEC)) {
        fprintf(stderr, "hvct-agent: descriptor %d is not open\n", agent.channel);
        return 2;
    }
    if (!agent.pid1)
        prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    hello();
    while (!agent.ended)
        turn();
    end();
}
