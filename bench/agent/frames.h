/* What the agent's files share: frames and records (docs/protocol.md), the RUN
 * record as a struct, and how a failure is reported. */
#ifndef HVCT_FRAMES_H
#define HVCT_FRAMES_H

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
};

enum frame_type {
    RUN = 1,
    SIGNAL,
    STDIN,
    PING,
    FETCH,
    QUIT,
    WINDOW,
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
};

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

struct limit {
    int resource;
    struct rlimit value;
};

/* The RUN record. Strings point into the payload it was parsed from. */
struct run {
    char **argv, **env;
    const char *cwd, *hostname;
    uid_t uid;
    gid_t gid, groups[GROUPS_MAX];
    size_t group_count;
    mode_t umask;
    bool stream, stdin_stream, tty, digest;
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
        const char **modules, *root, *scratch, *address, *neighbour;
        uint64_t writable_bytes, writable_inodes, shm_bytes, pids;
    } guest;
};

bool number(const char *text, int base, uint64_t max, uint64_t *out);
const char *run_parse(struct run *run, char *data, size_t length);

/* What the child leaves for the agent in shared memory: its receipt and its last stamp. */
struct shared {
    uint64_t started_ns;
    size_t length;
    char receipt[2 * FRAME_MAX];
};

/* The descriptors a workload gets, and those that only matter until its exec. */
struct stdio {
    int in, out, err;
    int cgroup_procs; /* -1, or where to write "0" to be counted by guest.pids */
    int report;       /* close-on-exec; an ERROR record when the exec did not happen */
};

_Noreturn void workload_exec(const struct run *run, struct stdio stdio, struct shared *shared);

extern const char *const rlimit_names[RLIM_NLIMITS];
void receipt_gather(struct record *out, const struct run *run, const char *program);
bool read_text(const char *path, char *buffer, size_t size);

/* Virtual machine only (guest.c). */
int guest_open_channel(void);
int guest_set_up(const struct run *run, int *cgroup_procs);
_Noreturn void guest_power_off(void);

/* The failure that ends the launch: fail() notes errno, a step and a subject, returns -1. */
struct failure {
    const char *step;
    int error;
    char message[256];
};
extern struct failure failure;
int fail(const char *step, const char *subject);
void failure_record(struct record *out);

static inline uint64_t stamp(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

#endif
