/* clone3(2), which libc does not wrap. */
#ifndef CLONE3_H
#define CLONE3_H

#include <stdint.h>
#include <sys/syscall.h>

#ifndef SYS_clone3
#define SYS_clone3 435
#endif
#define INTO_CGROUP 0x200000000ULL

struct clone_arguments { /* struct clone_args, which not every libc's headers have */
    uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid,
        set_tid_size, cgroup;
};

/* clone3 whose child calls `run` on its own stack where one is given. In assembly, because
 * a child that shares memory must not return through the parent's frame. */
static long clone3_call(struct clone_arguments *arguments, void (*run)(void)) {
#if defined(__x86_64__)
    long result = SYS_clone3;
    register void (*target)(void) __asm__("r8") = run;
    __asm__ volatile("syscall\n\t"
                     "test %%rax, %%rax\n\t"
                     "jnz 1f\n\t"
                     "xor %%ebp, %%ebp\n\t"
                     "and $-16, %%rsp\n\t"
                     "call *%%r8\n\t"
                     "hlt\n"
                     "1:"
                     : "+a"(result)
                     : "D"(arguments), "S"(sizeof *arguments), "r"(target)
                     : "rcx", "r11", "memory");
    return result;
#elif defined(__aarch64__)
    register long x8 __asm__("x8") = SYS_clone3;
    register long x0 __asm__("x0") = (long)arguments;
    register long x1 __asm__("x1") = sizeof *arguments;
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
#error "clone3_call is not written for this architecture"
#endif
}

#endif
