/* What the files of the launcher share: the request at hand, its outcome, who is alive. */
#ifndef LAUNCHER_H
#define LAUNCHER_H

#include <errno.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/types.h>
#include <time.h>

enum {
    CHANNEL_FD = 3,  /* where the program finds its channel */
    NETNS_FD = 4,    /* the number the netlink message names as the peer's namespace */
    FIRST_FREE = 16, /* descriptors of ours and those passed to us start here */
    RECORD_MAX = 1 << 18,
    STEPS_MAX = 160,
    ARGS_MAX = 6,
    FDS_MAX = 64,
    WORDS_MAX = 64,
    INSTANCES_MAX = 4096,
    SLOTS_MAX = 4096,
    ID_MAX = 64,
};

struct step {
    const struct operation *operation;
    int count;
    char *arg[ARGS_MAX];
};

struct operation {
    const char *name;
    int args;
    int (*run)(const struct step *);
};

struct request {
    const char *kind, *id;
    uint64_t flags;
    int fds[FDS_MAX], fd_count;
    int channel, program, slot; /* indices into fds, -1 where absent */
    const char *cgroup;         /* where it is born, by CLONE_INTO_CGROUP */
    const char *uid_map, *gid_map;
    char *argv[WORDS_MAX + 1], *env[WORDS_MAX + 1];
    struct step steps[STEPS_MAX];
    int step_count;
    const char *bad; /* what is wrong with it */
};

/* In shared memory: written by the child, read by the launcher, with or without CLONE_VM. */
struct outcome {
    uint64_t born_ns, exec_ns, step_ns[STEPS_MAX];
    int failed, error; /* index of the failed step, errno */
    int loop;          /* number of the loop device used, -1 */
    int away;          /* the steps left the network namespace they began in */
    int kept;          /* descriptor of a namespace for the harness, -1 */
};
enum { FAILED_NOTHING = -1, FAILED_EXEC = -2, FAILED_CLONE = -3, FAILED_MAPS = -4 };

struct instance {
    pid_t pid;
    char id[ID_MAX];
};

/* In shared memory. The kernel writes `child` before that runs, so that we know whose end we
 * reap, however soon after the helper's clone3 it comes. */
struct slot {
    int used;
    pid_t helper, child; /* 0: none (any more), not yet; a child that was reaped: -1 */
    char id[ID_MAX];
};

extern struct request request; /* one at a time; a child in shared memory reads it too */
extern struct outcome *outcome;
extern char record[RECORD_MAX];
extern struct instance instances[INSTANCES_MAX];
extern int instance_count;
extern struct slot *slots;
extern int slot_count;        /* those beyond were never used */
extern struct slot *own_slot; /* in a helper */
extern int sock, children, host_route, null_fd, program_fd;

static inline uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000ULL + (uint64_t)now.tv_nsec;
}

/* record.c */
void begin(const char *kind);
void put(const char *key, const char *format, ...);
void send_reply(int fd);
ssize_t receive(uint64_t *received_ns);

/* steps.c */
unsigned long number(const char *text);
const struct operation *operation_named(const char *name);
void run_steps(void);
ssize_t unhex(const char *text, unsigned char *bytes, size_t room);

/* network.c */
int do_keep_netns(const struct step *step);
int do_link(const struct step *step);
int do_interface(const struct step *step);
int do_neighbour(const struct step *step);
int link_from_outside(const char *ns, int *failed);

/* spawn.c */
void put_failure(void);
void refuse(void);
void launch(uint64_t accepted_ns);

/* slots.c */
void park(void);

#endif
