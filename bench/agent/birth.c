/* How a guest's processes come to be: as children that are born in the workload's control group,
 * where there is one. Moving one there would wait for an RCU grace period. */
#define _GNU_SOURCE
#include "clone3.h"
#include "frames.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <unistd.h>

int guest_cgroup = -1;

pid_t guest_fork(void) {
    struct clone_arguments args = {
        .flags = INTO_CGROUP, .exit_signal = SIGCHLD, .cgroup = (uint64_t)guest_cgroup};
    return guest_cgroup < 0 ? fork() : (pid_t)syscall(SYS_clone3, &args, sizeof args);
}

/* The same by vfork: `run` does not return, and its parent goes on at its exec. */
pid_t guest_vfork(void (*run)(void)) {
    static _Alignas(16) char stack[1 << 17];
    struct clone_arguments args = {.flags = INTO_CGROUP | CLONE_VM | CLONE_VFORK,
                                   .exit_signal = SIGCHLD,
                                   .stack = (uintptr_t)stack,
                                   .stack_size = sizeof stack,
                                   .cgroup = (uint64_t)guest_cgroup};
    if (guest_cgroup < 0) {
        pid_t pid = vfork();
        if (pid == 0)
            run();
        return pid;
    }
    long pid = clone3_call(&args, run);
    if (pid < 0)
        errno = (int)-pid;
    return pid < 0 ? -1 : (pid_t)pid;
}
