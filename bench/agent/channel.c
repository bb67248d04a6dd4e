/* The channel: frames and records, in both directions, in fixed buffers. */
#define _GNU_SOURCE
#include "frames.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum {
    BULK_BELOW = 4 * CHUNK, /* there is room while less than this is unsent */
    FRAMES_A_TURN = 16,
};

static struct {
    uint8_t header[HEADER_BYTES];
    char payload[FRAME_MAX + 1];
    size_t have;
} in;

/* Pages that are never touched cost nothing: only a host that does not read fills this. */
static struct {
    uint8_t data[BULK_BELOW + 2 * FRAME_MAX];
    size_t start, end;
} out;

struct failure failure;

int fail(const char *step, const char *subject) {
    failure.error = errno;
    failure.step = step;
    snprintf(failure.message, sizeof failure.message, "%s", subject);
    return -1;
}

void record_add(struct record *record, const char *key, const char *format, ...) {
    char *at = record->data + record->length;
    size_t room = record->capacity - record->length;
    int prefix = snprintf(at, room, "%s=", key);
    if ((size_t)prefix >= room) {
        record->full = true;
        return;
    }
    va_list values;
    va_start(values, format);
    int size = vsnprintf(at + prefix, room - (size_t)prefix, format, values);
    va_end(values);
    if (size < 0 || (size_t)prefix + (size_t)size >= room)
        record->full = true;
    else
        record->length += (size_t)prefix + (size_t)size + 1;
}

/* Every string has a key and ends: what the other functions rely on. */
bool record_valid(const char *data, size_t length) {
    if (length && data[length - 1])
        return false;
    for (size_t at = 0; at < length; at += strlen(data + at) + 1)
        if (!strchr(data + at, '='))
            return false;
    return true;
}

const char *record_get(const char *data, size_t length, const char *key) {
    size_t size = strlen(key);
    for (size_t at = 0; at < length; at += strlen(data + at) + 1)
        if (!strncmp(data + at, key, size) && data[at + size] == '=')
            return data + at + size + 1;
    return NULL;
}

static size_t unsent(void) { return out.end - out.start; }

bool channel_room(void) { return unsent() < BULK_BELOW; }

bool channel_unsent(void) { return unsent() > 0; }

/* Room for one frame of this payload, always there: bulk frames are begun only below BULK_BELOW,
 * and nothing is read from the channel above it. */
static uint8_t *frame_begin(size_t length) {
    if (out.end + HEADER_BYTES + length > sizeof out.data) {
        memmove(out.data, out.data + out.start, unsent());
        out.end = unsent();
        out.start = 0;
    }
    return out.data + out.end + HEADER_BYTES;
}

static void frame_end(enum frame_type type, size_t length) {
    uint8_t *header = out.data + out.end;
    memset(header, 0, HEADER_BYTES);
    header[0] = (uint8_t)type;
    for (int i = 0; i < 4; i++)
        header[4 + i] = (uint8_t)(length >> 8 * i);
    out.end += HEADER_BYTES + length;
}

void frame(enum frame_type type, const void *data, size_t length) {
    memcpy(frame_begin(length), data, length);
    frame_end(type, length);
}

/* Read up to a chunk from `fd` straight into a frame; the result is read's. */
ssize_t frame_from(enum frame_type type, int fd, uint64_t most) {
    uint8_t *payload = frame_begin(CHUNK);
    ssize_t n = read(fd, payload, most < CHUNK ? (size_t)most : (size_t)CHUNK);
    if (n > 0)
        frame_end(type, (size_t)n);
    return n;
}

void send_record(enum frame_type type, const struct record *record) {
    frame(type, record->data, record->length);
}

void send_failure(void) {
    RECORD(record, 512);
    record_add(&record, "step", "%s", failure.step);
    record_add(&record, "errno", "%d", failure.error);
    record_add(&record, "message", "%s", failure.message);
    send_record(ERROR, &record);
}

void send_event(const char *name, uint64_t stamp_ns) {
    RECORD(record, 128);
    record_add(&record, "name", "%s", name);
    record_add(&record, "monotonic_ns", "%llu", (unsigned long long)stamp_ns);
    send_record(EVENT, &record);
}

void channel_flush(void) {
    while (unsent()) {
        ssize_t n = write(agent.channel, out.data + out.start, unsent());
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno != EAGAIN)
            agent.ended = true;
        if (n <= 0)
            return;
        out.start += (size_t)n;
    }
    out.start = out.end = 0;
}

/* The host broke the protocol: say so and end. */
void violation(const char *what) {
    errno = EPROTO;
    fail("protocol", what);
    send_failure();
    channel_flush();
    agent.ended = true;
}

static uint32_t payload_length(void) {
    const uint8_t *header = in.header;
    return (uint32_t)header[4] | (uint32_t)header[5] << 8 | (uint32_t)header[6] << 16 |
           (uint32_t)header[7] << 24;
}

/* Read until one frame is complete; false when there is no more for now. */
static bool read_frame(void) {
    for (;;) {
        uint32_t length = in.have < HEADER_BYTES ? 0 : payload_length();
        const uint8_t *header = in.header;
        if (in.have >= HEADER_BYTES && (length > FRAME_MAX || header[1] | header[2] | header[3]))
            return violation("a frame header is malformed"), false;
        if (in.have >= HEADER_BYTES && in.have == HEADER_BYTES + (size_t)length)
            break;
        bool head = in.have < HEADER_BYTES;
        ssize_t n = head ? read(agent.channel, in.header + in.have, HEADER_BYTES - in.have)
                         : read(agent.channel, in.payload + in.have - HEADER_BYTES,
                                HEADER_BYTES + length - in.have);
        if (n < 0 && errno == EINTR)
            continue;
        if (n == 0 || (n < 0 && errno != EAGAIN))
            agent.ended = true; /* the host has gone */
        if (n <= 0)
            return false;
        in.have += (size_t)n;
    }
    return true;
}

/* Read what has come; nothing more while the host does not read our answers. */
void channel_read(void (*dispatch)(int type, const char *data, size_t length)) {
    for (int i = 0; i < FRAMES_A_TURN && !agent.ended && channel_room() && read_frame(); i++) {
        size_t length = in.have - HEADER_BYTES;
        in.have = 0;
        in.payload[length] = 0;
        dispatch(in.header[0], in.payload, length);
    }
}
