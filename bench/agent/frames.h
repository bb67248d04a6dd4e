/* What the agent's files share: frames and records (docs/protocol.md), the RUN record as a struct,
 * and how a failure is reported. */
#ifndef HVCT_FRAMES_H
#define HVCT_FRAMES_H

#include <poll.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/types.h>
#include <time.h>

#define AGENT_VERSION "1"

enum {
    HEADER_BYTES = 8,
    FRAME_MAX = 1 << 20,    /* largest payload */
    CHUNK = 1 << 16,        /* payload of one STDOUT, STDERR or FILE frame */
    STDIN_WINDOW = 1 << 16, /* STDIN bytes the host may have under way (see CREDIT) */
    GROUPS_MAX = 64,
    ENTROPY_BYTES = 64,     /* of WAKE */
    DEVICE_WAIT_MS = 10000, /* for a device whose driver is still at it */
};

enum frame_type {
    RUN = 1,
    SIGNAL,
    STDIN,
    PING,
    FETCH,
    QUIT,
    WINDOW,
    EXEC,
    EXEC_KILL,
    PREPARE,
    WAKE,
    HELLO = 65,
    EVENT,
    STDOUT,
    STDERR,
    EXIT,
    RECEIPT,
    PONG,
    ERROR,
    FILE_PART,
    FILE_END,
    CREDIT,
    EXEC_DONE,
};

/* The one agent there is. */
extern struct agent {
    int channel;
    bool pid1, virtual_machine;
    bool ended; /* the channel is over, or QUIT came */
} agent;

/* A record under construction in a fixed buffer; what does not fit sets `full`. */
struct record {
    char *data;
    size_t length, capacity;
    bool full;
};

void record_add(struct record *record, const char *key, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
bool record_valid(const char *data, size_t length);
const char *record_get(const char *data, size_t length, const char *key);

#define RECORD(name, size)                                                                         \
    char name##_text[size];                                                                        \
    struct record name = {name##_text, 0, sizeof name##_text, false}

/* The channel (channel.c). Whoever sends bulk asks for room first. */
bool channel_room(void);
bool channel_unsent(void);
void channel_flush(void);
void channel_read(void (*dispatch)(int type, const char *data, size_t length));
void frame(enum frame_type type, const void *data, size_t length);
ssize_t frame_from(enum frame_type type, int fd, uint64_t most);
void send_record(enum frame_type type, const struct record *record);
void send_event(const char *name, uint64_t stamp_ns);
void send_failure(void);
void violation(const char *what);

struct limit {
    int resource;
    struct rlimit value;
};

/* The RUN record. Strings point into the payload it was parsed from. */
struct run {
    char **argv, **env;
    const char *cwd, *hostname, *machine_id;
    uid_t uid;
    gid_t gid, groups[GROUPS_MAX];
    size_t group_count;
    mode_t umask;
    bool stream, stdin_stream, tty, digest;
    bool bare;             /* not the workload, but beside it: without a receipt */
    uint64_t output_limit; /* UINT64_MAX: none */
    unsigned listen_port;
    struct limit rlimits[RLIM_NLIMITS];
    size_t rlimit_count;
    bool no_new_privs, has_caps;
    uint64_t caps;
    void *seccomp;
    size_t seccomp_bytes;
    struct guest {
        bool wanted;
        char **modules, **masked, **read_only;
        const char *root, *scratch, *address, *mac, *neighbour, *thp;
        uint64_t writable_bytes, writable_inodes, shm_bytes, pids;
    } guest;
};

bool number(const char *text, int base, uint64_t max, uint64_t *out);
bool hex(const char *text, unsigned char *bytes, size_t size);
const char *run_parse(struct run *run, char *data, size_t length, bool guest_only);

/* A failure that ends the launch: fail() notes errno, a step and a subject, returns -1. */
extern struct failure {
    const char *step;
    int error;
    char message[256];
} failure;
int fail(const char *step, const char *subject);

/* What the child leaves in memory it shares with the agent: its receipt, its last stamp, or why it
 * failed. */
struct shared {
    uint64_t started_ns;
    struct failure failure;
    size_t length;
    char receipt[2 * FRAME_MAX];
};

/* The descriptors a workload gets. */
struct stdio {
    int in, out, err;
};

_Noreturn void child(const struct run *run, struct stdio stdio, struct shared *shared);

/* The workload from RUN to EXIT (workload.c). */
enum { WORKLOAD_FDS = 4 };

void workload_prepare(const char *data, size_t length);
bool workload_wake(const char *realtime, const char *entropy);
void workload_run(const char *data, size_t length);
void workload_signal(int number);
void workload_stdin(const char *data, size_t length);
void workload_window(unsigned short rows, unsigned short columns);
void workload_reap(void);
void workload_fds(struct pollfd fds[WORKLOAD_FDS]);
void workload_turn(const struct pollfd fds[WORKLOAD_FDS]);
int workload_timeout(void);
void workload_exec(const char *data, size_t length);
void close_fd(int *fd);

/* A second command beside the workload (check.c). */
void check_run(const struct run *workload, const char *data, size_t length);
void check_kill(void);
void check_reap(pid_t pid, int status);
struct pollfd check_fd(void);
void check_turn(const struct pollfd *fd);

/* Whether the workload's port is open (port.c). */
void port_watch(void);
int port_timeout(void);
bool port_check(unsigned port, uint64_t *now, uint64_t *closed);

void kill_children(void);

extern const char *const rlimit_names[RLIM_NLIMITS];
void receipt_gather(struct record *out, const struct run *run, const char *program);
bool read_text(const char *path, char *buffer, size_t size);

/* Virtual machine only: what every guest has (guest.c), what is its own (identity.c), its processes
 * (birth.c). */
extern int guest_cgroup; /* the workload's, for guest.pids; -1: none */
int guest_open_channel(void);
int guest_prepare(const struct guest *guest);
int guest_create(const char *path);
pid_t guest_fork(void);
pid_t guest_vfork(void (*run)(void));
_Noreturn void guest_power_off(void);
int guest_loopback(void);
int guest_own(const struct run *run);
int guest_open_names(void);
int guest_wake(uint64_t realtime_ns, const unsigned char *seed, size_t size);

static inline uint64_t stamp(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

#endif
