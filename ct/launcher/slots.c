/* Slots: helpers that wait, where a launch would have to, before it is asked for. */
#define _GNU_SOURCE
#include "../../bench/agent/clone3.h"
#include "launcher.h"

#include <linux/netlink.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

struct slot *slots;
int slot_count;
struct slot *own_slot;

/* A copy of the launcher, with its own of all that a launch works with. */
static void helper(void) {
    int mine = request.slot;
    close(sock); /* or nobody would see that the launcher is gone */
    close(children);
    sock = request.fds[mine];
    /* What it shares with the launcher else: the answers of one, the results in the other. */
    close(host_route);
    host_route = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    outcome =
        mmap(NULL, sizeof *outcome, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (host_route < 0 || outcome == MAP_FAILED)
        _exit(1);
    outcome->failed = FAILED_NOTHING;
    run_steps();
    for (int i = 0; i < request.fd_count; i++)
        if (i != mine)
            close(request.fds[i]);
    begin(outcome->failed == FAILED_NOTHING ? "parked" : "failed");
    put("id", "%s", request.id);
    put("pid", "%d", getpid());
    if (outcome->failed != FAILED_NOTHING)
        put_failure();
    for (int i = 0; i < request.step_count; i++)
        put("step_ns", "%llu", (unsigned long long)outcome->step_ns[i]);
    send_reply(-1);
    if (outcome->failed != FAILED_NOTHING)
        _exit(1);

    uint64_t accepted_ns;
    ssize_t size;
    do {
        memset(&request, 0, sizeof request);
        size = receive(&accepted_ns);
    } while (size < 0);
    if (size == 0)
        _exit(0);
    if (strcmp(request.kind, "launch") != 0)
        request.bad = "a slot only launches";
    launch(accepted_ns);
    _exit(0);
}

static pid_t launcher_pid;

static void helper_main(void) {
    prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    if (getppid() == launcher_pid) /* else it died before that */
        helper();
    _exit(1);
}

void park(void) {
    struct clone_arguments arguments = {.exit_signal = SIGCHLD};
    int free_slot = 0, main_sock = sock;
    while (free_slot < slot_count && slots[free_slot].used)
        free_slot++;
    if (request.slot < 0)
        request.bad = "no socket for the slot";
    else
        sock = request.fds[request.slot];
    if (free_slot == SLOTS_MAX)
        request.bad = "too many slots";
    if (request.bad) {
        refuse();
        sock = main_sock;
        return;
    }
    sock = main_sock;
    struct slot *slot = &slots[free_slot];
    if (free_slot == slot_count)
        slot_count++;
    slot->used = 1;
    slot->child = 0;
    strcpy(slot->id, request.id);
    own_slot = slot; /* in the copy */
    launcher_pid = getpid();
    long pid = clone3_call(&arguments, helper_main);
    own_slot = NULL;
    slot->helper = pid > 0 ? (pid_t)pid : 0;
    if (pid < 0) {
        slot->used = 0;
        outcome->failed = FAILED_CLONE;
        outcome->error = (int)-pid;
        sock = request.fds[request.slot];
        begin("failed");
        put("id", "%s", request.id);
        put_failure();
        send_reply(-1);
        sock = main_sock;
    }
}
