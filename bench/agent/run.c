/* RUN: what the host says about the workload, as a struct. */
#define _GNU_SOURCE
#include "frames.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

bool number(const char *text, int base, uint64_t max, uint64_t *out) {
    char *end;
    if (!isxdigit((unsigned char)*text)) /* strtoull would take a sign or spaces */
        return false;
    errno = 0;
    unsigned long long value = strtoull(text, &end, base);
    if (errno || *end || value > max)
        return false;
    *out = value;
    return true;
}

bool hex(const char *text, unsigned char *bytes, size_t size) {
    for (size_t i = 0; i < size; i++) {
        char pair[3] = {text[2 * i], text[2 * i + 1], 0};
        uint64_t byte;
        if (!number(pair, 16, 255, &byte))
            return false;
        bytes[i] = (unsigned char)byte;
    }
    return true;
}

static bool parse_rlimit(struct run *run, char *value) {
    char *soft = strchr(value, ':');
    char *hard = soft ? strchr(soft + 1, ':') : NULL;
    if (!hard || run->rlimit_count == RLIM_NLIMITS)
        return false;
    *soft++ = *hard++ = 0;
    struct limit *limit = &run->rlimits[run->rlimit_count++];
    limit->resource = -1;
    for (int i = 0; i < RLIM_NLIMITS; i++)
        if (rlimit_names[i] && !strcmp(rlimit_names[i], value))
            limit->resource = i;
    uint64_t low = RLIM_INFINITY, high = RLIM_INFINITY;
    bool valid = (!strcmp(soft, "unlimited") || number(soft, 10, UINT64_MAX, &low)) &&
                 (!strcmp(hard, "unlimited") || number(hard, 10, UINT64_MAX, &high));
    limit->value = (struct rlimit){low, high};
    return valid && limit->resource >= 0;
}

static bool parse_seccomp(struct run *run, const char *value) {
    size_t digits = strlen(value);
    if (run->seccomp || digits == 0 || digits % 16 || digits / 16 > 4096)
        return false;
    if (!(run->seccomp = malloc(digits / 2)) || !hex(value, run->seccomp, digits / 2))
        return false;
    run->seccomp_bytes = digits / 2;
    return true;
}

/* One key of RUN. False when the value is none; `known` false when the key is none. */
static bool parse_pair(struct run *run, const char *key, char *value, bool *known) {
    uint64_t n = 0;
    struct guest *guest = &run->guest;
    struct {
        const char *key;
        const char **text;
    } const texts[] = {
        {"cwd", &run->cwd},
        {"hostname", &run->hostname},
        {"machine_id", &run->machine_id},
        {"guest.root", &guest->root},
        {"guest.scratch", &guest->scratch},
        {"guest.address", &guest->address},
        {"guest.mac", &guest->mac},
        {"guest.neighbour", &guest->neighbour},
        {"guest.thp", &guest->thp},
    };
    struct {
        const char *key;
        uint64_t *number;
    } const numbers[] = {
        {"output_limit", &run->output_limit},
        {"guest.writable_bytes", &guest->writable_bytes},
        {"guest.writable_inodes", &guest->writable_inodes},
        {"guest.shm_bytes", &guest->shm_bytes},
        {"guest.pids", &guest->pids},
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        if (!strcmp(key, texts[i].key))
            return (*texts[i].text = value), true;
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (!strcmp(key, numbers[i].key))
            return number(value, 10, UINT64_MAX, numbers[i].number);
#define CHOICE(name, field, no, yes)                                                               \
    if (!strcmp(key, name))                                                                        \
    return run->field = !strcmp(value, yes), run->field || !strcmp(value, no)
    CHOICE("output", stream, "spool", "stream");
    CHOICE("stdin", stdin_stream, "null", "stream");
    CHOICE("receipt", digest, "cheap", "digest");
    CHOICE("tty", tty, "0", "1");
    CHOICE("no_new_privs", no_new_privs, "0", "1");
#undef CHOICE
    if (!strcmp(key, "uid"))
        return number(value, 10, UINT32_MAX - 1, &n) && (run->uid = (uid_t)n, true);
    if (!strcmp(key, "gid"))
        return number(value, 10, UINT32_MAX - 1, &n) && (run->gid = (gid_t)n, true);
    if (!strcmp(key, "group"))
        return number(value, 10, UINT32_MAX - 1, &n) && run->group_count < GROUPS_MAX &&
               (run->groups[run->group_count++] = (gid_t)n, true);
    if (!strcmp(key, "umask"))
        return number(value, 8, 0777, &n) && (run->umask = (mode_t)n, true);
    if (!strcmp(key, "listen_port"))
        return number(value, 10, 65535, &n) && (run->listen_port = (unsigned)n, true);
    if (!strcmp(key, "caps"))
        return run->has_caps = number(value, 16, UINT64_MAX, &run->caps);
    if (!strcmp(key, "rlimit"))
        return parse_rlimit(run, value);
    if (!strcmp(key, "seccomp"))
        return parse_seccomp(run, value);
    *known = false;
    return true;
}

/* The values of a key that may come many times, in order and up to a NULL, into what `at` has left.
 */
static char **list(const char *key, char *data, size_t length, char ***at) {
    char **first = *at;
    size_t size = strlen(key);
    for (char *text = data; text < data + length; text += strlen(text) + 1)
        if (!strncmp(text, key, size) && text[size] == '=')
            *(*at)++ = text + size + 1;
    *(*at)++ = NULL;
    return first;
}

/* Fill `run` from a record that is valid; the result is NULL or what is wrong with it. The lists
 * have one static place, since there is one RUN (a PREPARE is over by then): a restored guest's
 * first allocation runs so much of its kernel for the first time that an emulator needs 20 ms. */
const char *run_parse(struct run *run, char *data, size_t length, bool guest_only) {
    static char *values[FRAME_MAX / sizeof "arg=" + 5];
    struct {
        const char *key;
        char ***values;
    } const lists[] = {
        {"arg", &run->argv},
        {"env", &run->env},
        {"guest.module", &run->guest.modules},
        {"guest.mask", &run->guest.masked},
        {"guest.read_only", &run->guest.read_only},
    };
    enum { LISTS = sizeof lists / sizeof *lists };
    char **at = values;
    *run = (struct run){.cwd = "/", .umask = 022, .output_limit = UINT64_MAX};
    for (size_t i = 0; i < LISTS; i++)
        *lists[i].values = list(lists[i].key, data, length, &at);
    for (char *key = data; key < data + length;) {
        char *value = strchr(key, '=');
        *value++ = 0;
        char *next = value + strlen(value) + 1;
        bool known = true;
        size_t which = 0;
        if (!strncmp(key, "guest.", 6))
            run->guest.wanted = true;
        else if (guest_only)
            return key;
        while (which < LISTS && strcmp(key, lists[which].key))
            which++;
        if (which == LISTS && (!parse_pair(run, key, value, &known) || !known))
            return key;
        key = next;
    }
    run->stream |= run->tty; /* a terminal that answers after the exit is none */
    if (run->cwd[0] != '/')
        return "cwd";
    return *run->argv || guest_only ? NULL : "arg";
}
