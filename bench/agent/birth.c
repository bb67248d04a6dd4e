/* How a guest's processes come to be: as children that are born in the workload's control group,
 * where there is one. Moving one there would wait for an RCU grace period. */
#define _GNU_SOURCE
#include "frames.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

struct clone_arguments {
    uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid,
        set_tid_size, cgroup;
};
#define INTO_CGROUP (1ull << 33) /* CLONE_INTO_CGROUP */

int guest_cgroup = -1;

pid_t guest_fork(void) {
    struct clone_arguments args = {
        .flags = INTO_CGROUP, .exit_signal = SIGCHLD, .cgroup = (uint64_t)guest_cgroup};
    return guest_cgroup < 0 ? fork() : (pid_t)syscall(SYS_clone3, &args, sizeof args);
}

/* clone3 whose child runs on its own stack. In assembly, because one that shares memory must not
 * return through its parent's frame. */
static long clone3_onto(const struct clone_arguments *args, void (*run)(void)) {
#if defined(__x86_64__)
    long result = SYS_clone3;
    register void (*target)(void) __asm__("r8") = run;
    __asm__ volatile("syscall\n\t"
                     "test %%rax, %%rax\n\t"
                     "jnz 1f\n\t"
                     "xor %%ebp, %%ebp\n\t"
                     "call *%%r8\n\t"
                     "hlt\n"
                     "1:"
                     : "+a"(result)
                     : "D"(args), "S"(sizeof *args), "r"(target)
                     : "rcx", "r11", "memory");
    return result;
#elif defined(__aarch64__)
    register long x8 __asm__("x8") = SYS_clone3;
    register long x0 __asm__("x0") = (long)args;
    register long x1 __asm__("x1") = sizeof *args;
    register long x9 __asm__("x9") = (long)run;
    __asm__ volatile("svc #0\n\t"
                     "cbnz x0, 1f\n\t"
                     "blr x9\n\t"
                     "brk #0\n"
                     "1:"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x9)
                     : "memory");
    return x0;
#else
#error "clone3_onto is not written for this architecture"
#endif
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
    long pid = clone3_onto(&args, run);
    if (pid < 0)
        errno = (int)-pid;
    return pid < 0 ? -1 : (pid_t)pid;
}
