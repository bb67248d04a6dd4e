/* Whether a TCP port is open, asked so that the workload does not pay for it.
 *
 * Reading /proc/net/tcp walks the kernel's whole table of connections, which grows with the host's
 * memory and not with the instance (1 ms for each file on 24 GB); and what the agent uses, a
 * workload on the same CPU loses. Socket diagnosis lists listening sockets alone, in 15 µs. */
#define _GNU_SOURCE
#include "frames.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    PERIOD_NS = 5000000,
    PERIOD_MOST_NS = 250000000,
    SHARE = 100,    /* at most one part in so many of the CPU time */
    LISTENING = 10, /* TCP_LISTEN: the state's number in the kernel */
};

static uint64_t next_ns, closed_ns;

/* 1: a socket of this family listens; 0: none; -1: this kernel has no socket diagnosis. */
static int listens(int family, unsigned port) {
    struct {
        struct nlmsghdr header;
        struct inet_diag_req_v2 request;
    } ask = {{.nlmsg_len = sizeof ask,
              .nlmsg_type = SOCK_DIAG_BY_FAMILY,
              .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP},
             {.sdiag_family = (uint8_t)family,
              .sdiag_protocol = IPPROTO_TCP,
              .idiag_states = 1u << LISTENING,
              .id = {.idiag_sport = htons((uint16_t)port)}}};
    union {
        struct nlmsghdr header;
        char space[8192];
    } answer;
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
    if (fd < 0)
        return -1;
    ssize_t got = send(fd, &ask, sizeof ask, 0);
    if (got > 0) /* what there is to say was put together while we sent */
        got = recv(fd, &answer, sizeof answer, MSG_DONTWAIT);
    close(fd);
    if (got < (ssize_t)sizeof answer.header || answer.header.nlmsg_type == NLMSG_ERROR)
        return -1;
    return answer.header.nlmsg_type == SOCK_DIAG_BY_FAMILY;
}

static bool in_table(const char *path, unsigned port) {
    FILE *table = fopen(path, "re");
    char line[256];
    bool open = false;
    while (table && !open && fgets(line, sizeof line, table)) {
        unsigned local, state;
        open = sscanf(line, " %*d: %*[0-9A-Fa-f]:%x %*[0-9A-Fa-f]:%*x %x", &local, &state) == 2 &&
               local == port && state == LISTENING;
    }
    if (table)
        fclose(table);
    return open;
}

static bool is_open(unsigned port) {
    int open = listens(AF_INET, port);
    if (open < 0)
        return in_table("/proc/net/tcp", port) || in_table("/proc/net/tcp6", port);
    return open || listens(AF_INET6, port) > 0;
}

/* From now on it may open. */
void port_watch(void) {
    closed_ns = stamp(CLOCK_MONOTONIC);
    next_ns = closed_ns + PERIOD_NS;
}

/* Milliseconds until the next look. */
int port_timeout(void) {
    uint64_t now = stamp(CLOCK_MONOTONIC);
    return now >= next_ns ? 0 : (int)((next_ns - now) / 1000000) + 1;
}

/* Look, when it is time; true when it is open, and was not at `*closed`. */
bool port_check(unsigned port, uint64_t *now, uint64_t *closed) {
    *now = stamp(CLOCK_MONOTONIC);
    if (*now < next_ns)
        return false;
    uint64_t used = stamp(CLOCK_PROCESS_CPUTIME_ID);
    bool open = is_open(port);
    used = (stamp(CLOCK_PROCESS_CPUTIME_ID) - used) * SHARE;
    *closed = closed_ns;
    closed_ns = *now;
    *now = stamp(CLOCK_MONOTONIC);
    if (used < PERIOD_NS)
        used = PERIOD_NS;
    next_ns = *now + (used < PERIOD_MOST_NS ? used : PERIOD_MOST_NS);
    return open;
}
