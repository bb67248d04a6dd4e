/* One instance: clone3, the steps in the child, the program; and what is told of it. */
#define _GNU_SOURCE
#include "../../bench/agent/clone3.h"
#include "launcher.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef SYS_execveat
#error "execveat is needed"
#endif

struct instance instances[INSTANCES_MAX];
int instance_count, null_fd = -1, program_fd = -1;
static _Alignas(16) char child_stack[1 << 17];
static int release_pipe[2] = {-1, -1}; /* user namespaces: the maps are written */

static void fail(int step, int error) {
    outcome->failed = step;
    outcome->error = error;
    _exit(127);
}

static void child(void) {
    outcome->born_ns = now_ns();
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    if (request.uid_map) {
        char byte;
        if (read(release_pipe[0], &byte, 1) != 1)
            fail(FAILED_MAPS, ECANCELED);
    }
    run_steps();
    if (outcome->failed != FAILED_NOTHING)
        _exit(127);
    /* Last, because a change of credentials clears it: the program dies with the launcher. */
    if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) < 0)
        fail(FAILED_EXEC, errno);
    for (int fd = 0; fd < 3; fd++)
        if (dup2(null_fd, fd) < 0)
            fail(FAILED_EXEC, errno);
    if (dup3(request.fds[request.channel], CHANNEL_FD, 0) < 0)
        fail(FAILED_EXEC, errno);
    umask(022);
    outcome->exec_ns = now_ns();
    syscall(SYS_execveat, program_fd, "", request.argv, request.env, AT_EMPTY_PATH);
    fail(FAILED_EXEC, errno);
}

static int write_text(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    ssize_t wrote = write(fd, text, strlen(text));
    int saved = errno;
    close(fd);
    errno = saved;
    return wrote < 0 ? -1 : 0;
}

/* What the parent does for a child in a new user namespace. Returns 0 or an errno. */
static int prepare_user_namespace(pid_t pid, int *failed) {
    char path[64];
    *failed = FAILED_MAPS;
    snprintf(path, sizeof path, "/proc/%d/uid_map", pid);
    if (write_text(path, request.uid_map) < 0)
        return errno;
    snprintf(path, sizeof path, "/proc/%d/gid_map", pid);
    if (write_text(path, request.gid_map ? request.gid_map : request.uid_map) < 0)
        return errno;
    snprintf(path, sizeof path, "/proc/%d/ns/net", pid);
    return link_from_outside(path, failed);
}

/* Returns the pid, or -1 with `outcome` saying why. */
static pid_t spawn(int *pidfd) {
    int gone_pipe[2] = {-1, -1}, cgroup = -1;
    struct clone_arguments arguments = {
        .flags = request.flags | CLONE_PIDFD,
        .pidfd = (uint64_t)(uintptr_t)pidfd,
        .exit_signal = SIGCHLD,
    };
    if (own_slot) { /* with CLONE_PARENT the signal is the helper's own, and must not be given */
        arguments.flags |= CLONE_PARENT | CLONE_PARENT_SETTID;
        arguments.parent_tid = (uint64_t)(uintptr_t)&own_slot->child;
        arguments.exit_signal = 0;
    }
    if (request.cgroup) {
        if ((cgroup = open(request.cgroup, O_PATH | O_DIRECTORY | O_CLOEXEC)) < 0) {
            outcome->failed = FAILED_CLONE;
            outcome->error = errno;
            return -1;
        }
        arguments.flags |= INTO_CGROUP;
        arguments.cgroup = (uint64_t)cgroup;
    }
    if (request.uid_map) {
        /* Its maps must be written by a parent that runs: a copy, not shared memory. */
        if (pipe2(release_pipe, O_CLOEXEC) < 0 || pipe2(gone_pipe, O_CLOEXEC) < 0) {
            outcome->failed = FAILED_MAPS;
            outcome->error = errno;
            if (cgroup >= 0)
                close(cgroup);
            return -1;
        }
    } else {
        arguments.flags |= CLONE_VM | CLONE_VFORK;
        arguments.stack = (uint64_t)(uintptr_t)child_stack;
        arguments.stack_size = sizeof child_stack;
    }
    long pid = clone3_call(&arguments, child);
    if (cgroup >= 0)
        close(cgroup);
    if (pid < 0) {
        outcome->failed = FAILED_CLONE;
        outcome->error = (int)-pid;
    }
    if (request.uid_map) {
        int failed = FAILED_NOTHING, error = 0;
        close(release_pipe[0]);
        close(gone_pipe[1]);
        if (pid > 0)
            error = prepare_user_namespace((pid_t)pid, &failed);
        if (pid > 0 && error == 0 && write(release_pipe[1], "g", 1) != 1)
            error = errno;
        close(release_pipe[1]); /* unwritten, it ends the child */
        char byte;
        while (pid > 0 && read(gone_pipe[0], &byte, 1) < 0 && errno == EINTR)
            ;
        close(gone_pipe[0]);
        if (error) {
            outcome->failed = failed;
            outcome->error = error;
        }
    }
    return pid > 0 ? (pid_t)pid : -1;
}

void put_failure(void) {
    static const char *const names[] = {"exec", "clone3", "user namespace"};
    int failed = outcome->failed;
    put("step", "%d", failed);
    put("name", "%s", failed >= 0 ? request.steps[failed].operation->name : names[-2 - failed]);
    put("errno", "%d", outcome->error);
}

void refuse(void) {
    begin("bad");
    put("id", "%s", request.id);
    put("message", "%s", request.bad);
    send_reply(-1);
}

void launch(uint64_t accepted_ns) {
    int pidfd = -1;
    pid_t pid = -1;
    if (request.channel < 0 || program_fd < 0) {
        request.bad = "no channel or no program";
    } else if (instance_count == INSTANCES_MAX) {
        request.bad = "too many instances";
    } else if (own_slot && request.uid_map) {
        request.bad = "a slot makes no user namespace";
    }
    if (request.bad) {
        refuse();
        return;
    }
    pid = spawn(&pidfd);
    if (outcome->failed != FAILED_NOTHING) {
        if (pid > 0) {
            kill(pid, SIGKILL);
            while (!own_slot && waitpid(pid, NULL, 0) < 0 && errno == EINTR)
                ;
        }
        begin("failed");
        put("id", "%s", request.id);
        put("pid", "%d", own_slot && pid > 0 ? pid : 0); /* whose end is reported, or was */
        put_failure();
        send_reply(-1);
    } else {
        if (!own_slot) {
            instances[instance_count].pid = pid;
            strcpy(instances[instance_count++].id, request.id);
        }
        begin("launched");
        put("id", "%s", request.id);
        put("pid", "%d", pid);
        put("accepted_ns", "%llu", (unsigned long long)accepted_ns);
        put("born_ns", "%llu", (unsigned long long)outcome->born_ns);
        for (int i = 0; i < request.step_count; i++)
            put("step_ns", "%llu", (unsigned long long)outcome->step_ns[i]);
        put("exec_ns", "%llu", (unsigned long long)outcome->exec_ns);
        send_reply(pidfd);
    }
    if (pidfd >= 0)
        close(pidfd);
}
