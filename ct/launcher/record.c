/* Records: the requests that come in with their descriptors, and the replies. */
#define _GNU_SOURCE
#include "launcher.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

char record[RECORD_MAX];
struct request request;
int sock = -1;
static char reply[1 << 16];
static size_t reply_size;

void begin(const char *kind) {
    reply_size = (size_t)snprintf(reply, sizeof reply, "reply=%s", kind) + 1;
}

void put(const char *key, const char *format, ...) {
    int head = snprintf(reply + reply_size, sizeof reply - reply_size, "%s=", key);
    if (head < 0 || reply_size + (size_t)head + 256 > sizeof reply)
        return;
    va_list list;
    va_start(list, format);
    int body = vsnprintf(reply + reply_size + head, sizeof reply - reply_size - (size_t)head,
                         format, list);
    va_end(list);
    if (body >= 0)
        reply_size += (size_t)head + (size_t)body + 1;
}

void send_reply(int fd) {
    char control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec part = {reply, reply_size};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (fd >= 0) {
        message.msg_control = control;
        message.msg_controllen = sizeof control;
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(header), &fd, sizeof fd);
    }
    /* A harness that is gone is noticed at the next poll. */
    while (sendmsg(sock, &message, MSG_NOSIGNAL) < 0 && errno == EINTR)
        ;
}

static void add_step(const char *name) {
    if (request.step_count == STEPS_MAX) {
        request.bad = "too many steps";
        return;
    }
    const struct operation *operation = operation_named(name);
    if (operation)
        request.steps[request.step_count++] = (struct step){.operation = operation};
    else
        request.bad = "unknown step";
}

static void add_word(char **words, char *value) {
    int count = 0;
    while (words[count])
        count++;
    if (count == WORDS_MAX)
        request.bad = "too many words";
    else
        words[count] = value;
}

static void take_pair(const char *key, char *value) {
    if (strcmp(key, "do") == 0) {
        add_step(value);
    } else if (strcmp(key, "arg") == 0) {
        struct step *step = request.step_count ? &request.steps[request.step_count - 1] : NULL;
        if (!step || step->count == ARGS_MAX)
            request.bad = "too many arguments";
        else
            step->arg[step->count++] = value;
    } else if (strcmp(key, "request") == 0) {
        request.kind = value;
    } else if (strcmp(key, "id") == 0) {
        request.id = value;
    } else if (strcmp(key, "flags") == 0) {
        request.flags = strtoull(value, NULL, 0);
    } else if (strcmp(key, "channel") == 0) {
        request.channel = (int)number(value);
    } else if (strcmp(key, "program") == 0) {
        request.program = (int)number(value);
    } else if (strcmp(key, "cgroup") == 0) {
        request.cgroup = value;
    } else if (strcmp(key, "slot") == 0) {
        request.slot = (int)number(value);
    } else if (strcmp(key, "uid_map") == 0) {
        request.uid_map = value;
    } else if (strcmp(key, "gid_map") == 0) {
        request.gid_map = value;
    } else if (strcmp(key, "argv") == 0) {
        add_word(request.argv, value);
    } else if (strcmp(key, "env") == 0) {
        add_word(request.env, value);
    } else {
        request.bad = "unknown key";
    }
}

static int missing(int index) { return index >= request.fd_count; }

static void parse(size_t size) {
    request.kind = request.id = "";
    request.channel = request.program = request.slot = -1;
    if (size == 0 || record[size - 1] != '\0') {
        request.bad = "not a record";
        return;
    }
    for (char *at = record, *next; at < record + size && !request.bad; at = next) {
        char *equals = strchr(at, '=');
        next = at + strlen(at) + 1;
        if (!equals) {
            request.bad = "not a record";
            return;
        }
        *equals = '\0';
        take_pair(at, equals + 1);
    }
    for (int i = 0; i < request.step_count; i++)
        if (request.steps[i].count < request.steps[i].operation->args)
            request.bad = "a step lacks arguments";
    if (missing(request.channel) || missing(request.program) || missing(request.slot))
        request.bad = "a descriptor is missing";
    if (strlen(request.id) >= ID_MAX)
        request.bad = "the id is too long";
}

/* Receive one record with its descriptors. Returns its size, 0 at the end, -1 to try again. */
ssize_t receive(uint64_t *received_ns) {
    union {
        char space[CMSG_SPACE(sizeof(int) * FDS_MAX)];
        struct cmsghdr align;
    } control;
    struct iovec part = {record, sizeof record};
    struct msghdr message = {.msg_iov = &part,
                             .msg_iovlen = 1,
                             .msg_control = &control,
                             .msg_controllen = sizeof control};
    ssize_t size = recvmsg(sock, &message, MSG_CMSG_CLOEXEC);
    *received_ns = now_ns();
    if (size < 0)
        return errno == EINTR || errno == EAGAIN ? -1 : 0;
    for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header;
         header = CMSG_NXTHDR(&message, header)) {
        if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS)
            continue;
        request.fd_count = (int)((header->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        memcpy(request.fds, CMSG_DATA(header), (size_t)request.fd_count * sizeof(int));
    }
    if (size > 0) {
        if (message.msg_flags & (MSG_TRUNC | MSG_CTRUNC))
            request.bad = "the request is too long";
        else
            parse((size_t)size);
    }
    return size;
}
