/* A second command beside the workload, and as the workload: a health check. One at a time, in a
 * process group of its own, what it prints cut short; the host says when it has taken too long. */
#define _GNU_SOURCE
#include "frames.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { OUTPUT_MAX = 4096 };

static struct {
    pid_t pid;
    int output; /* -1: closed */
    struct shared *shared;
    char text[OUTPUT_MAX + 1];
    size_t size;
} check = {.output = -1};

static void done(int status) {
    RECORD(record, OUTPUT_MAX + 1024);
    const struct failure *why = check.shared ? &check.shared->failure : &failure;
    record_add(&record, "monotonic_ns", "%llu", (unsigned long long)stamp(CLOCK_MONOTONIC));
    if (why->step) {
        record_add(&record, "step", "%s", why->step);
        record_add(&record, "errno", "%d", why->error);
        record_add(&record, "message", "%s", why->message);
    } else if (WIFSIGNALED(status)) {
        record_add(&record, "signal", "%d", WTERMSIG(status));
    } else {
        record_add(&record, "code", "%d", WEXITSTATUS(status));
    }
    record_add(&record, "output", "%s", check.text);
    send_record(EXEC_DONE, &record);
    channel_flush();
}

/* Take what it has printed: the first part is kept, the rest must not stop it. */
static void take_output(void) {
    static char scratch[CHUNK];
    ssize_t n;
    while ((n = read(check.output, scratch, sizeof scratch)) > 0) {
        size_t room = OUTPUT_MAX - check.size;
        size_t kept = (size_t)n < room ? (size_t)n : room;
        for (size_t i = 0; i < kept; i++)
            check.text[check.size++] = scratch[i] ? scratch[i] : ' ';
        check.text[check.size] = 0;
    }
    if (n == 0)
        close_fd(&check.output);
}

/* Its argv, from a record of nothing but `arg`; NULL where it is another. */
static char **arguments(char *data, size_t length) {
    size_t count = 0;
    char **argv = calloc(length + 1, sizeof *argv);
    for (char *at = data; argv && at < data + length; at += strlen(at) + 1) {
        if (strncmp(at, "arg=", 4)) {
            free(argv);
            return NULL;
        }
        argv[count++] = at + 4;
    }
    if (argv && count)
        return argv;
    free(argv);
    return NULL;
}

static int start(const struct run *run) {
    struct stdio stdio = {open("/dev/null", O_RDONLY | O_CLOEXEC), -1, -1};
    int ends[2];
    if (!check.shared)
        check.shared = mmap(NULL, sizeof *check.shared, PROT_READ | PROT_WRITE,
                            MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (check.shared == MAP_FAILED) {
        check.shared = NULL;
        return fail("fork", "");
    }
    check.shared->failure = (struct failure){0};
    check.size = check.text[0] = 0;
    if (stdio.in < 0 || pipe2(ends, O_CLOEXEC))
        return fail("stdio", "");
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    stdio.out = stdio.err = ends[1];
    check.output = ends[0];
    check.pid = agent.virtual_machine ? guest_fork() : fork();
    if (check.pid == 0)
        child(run, stdio, check.shared);
    close(stdio.in);
    close(ends[1]);
    if (check.pid > 0)
        return 0;
    check.pid = 0;
    close_fd(&check.output);
    return fail("fork", "");
}

void check_run(const struct run *workload, const char *data, size_t length) {
    char *copy = malloc(length + 1);
    if (check.pid || !copy) {
        violation("a second EXEC before EXEC_DONE");
        free(copy);
        return;
    }
    memcpy(copy, data, length);
    struct run run = workload ? *workload : (struct run){0};
    run.argv = arguments(copy, length);
    run.tty = run.stdin_stream = false;
    run.bare = true;
    if (!run.argv) {
        violation("EXEC holds something else than arg, or nothing");
    } else if (!workload || start(&run)) {
        if (!workload)
            errno = ESRCH, fail("exec", "nothing runs");
        if (check.shared)
            check.shared->failure = failure;
        done(0);
        failure = (struct failure){0};
    }
    free(run.argv);
    free(copy);
}

void check_kill(void) {
    if (check.pid > 0 && kill(-check.pid, SIGKILL))
        kill(check.pid, SIGKILL); /* it has no group of its own yet */
}

/* Called for every child that ended and is not the workload. */
void check_reap(pid_t pid, int status) {
    if (pid != check.pid)
        return;
    kill(-pid, SIGKILL); /* what it left behind */
    take_output();
    close_fd(&check.output);
    check.pid = 0;
    done(status);
}

struct pollfd check_fd(void) {
    return (struct pollfd){check.output, POLLIN, 0};
}

void check_turn(const struct pollfd *fd) {
    if (fd->revents && check.output >= 0)
        take_output();
}
