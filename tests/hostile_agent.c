/* An agent that is none: says what it is told in place of the workload's command.
 *
 *     RUN with arg=NAME, arg=BYTES (hex), arg=TIMES, arg=wait|end
 *
 * It stands where the real agent would, as the first process of an instance. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char run[1 << 20], bytes[1 << 18];

int main(void) {
    size_t have = 0, size = 0;
    unsigned char head[8];
    if (read(3, head, sizeof head) != sizeof head)
        return 1;
    size_t want = head[4] | head[5] << 8 | head[6] << 16;
    while (have < want) {
        ssize_t got = read(3, run + have, want - have);
        if (got <= 0)
            return 1;
        have += (size_t)got;
    }
    const char *args[4] = {0};
    int count = 0;
    for (char *at = run; at < run + want && count < 4; at += strlen(at) + 1)
        if (strncmp(at, "arg=", 4) == 0)
            args[count++] = at + 4;
    if (count < 4)
        return 1;
    for (const char *at = args[1]; at[0] && at[1]; at += 2) {
        char pair[3] = {at[0], at[1], 0};
        bytes[size++] = (char)strtoul(pair, NULL, 16);
    }
    for (long left = atol(args[2]); left > 0; left--)
        for (size_t sent = 0; sent < size;) {
            ssize_t wrote = write(3, bytes + sent, size - sent);
            if (wrote <= 0)
                return 1;
            sent += (size_t)wrote;
        }
    if (strcmp(args[3], "wait") == 0)
        pause();
    return 0;
}
