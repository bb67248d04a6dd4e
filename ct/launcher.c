/* The launcher: a small server that makes each instance's process. It decides nothing.
 *
 *     launcher SOCKET [CLEANUP ARGV...]
 *
 * SOCKET is a connected AF_UNIX SOCK_SEQPACKET descriptor. Requests and replies are records
 * (NUL-ended key=value strings, see bench/record.py), descriptors travel with them. A request
 * carries a list of steps, `do=NAME` followed by its `arg=`s, that are executed in order:
 *
 *   request=setup   the steps run in the launcher's own mount namespace (image mounts), or make
 *                   a network namespace that goes out with the reply (keep_netns), and a
 *                   descriptor `program=INDEX` to run in every later launch may come along
 *   request=launch  clone3 with `flags`, the steps in the child, then the program
 *   request=park    fork a helper that runs the steps (it joins control groups) and then waits
 *                   on `slot=INDEX`, a socket of its own, for exactly one `launch`. What it
 *                   clones is the launcher's child. All answers come on that socket but the end
 *                   of the instance, which the launcher reports under the id of the slot
 *   request=end     kill and reap every instance, exit
 *
 * The child shares the launcher's memory until it executes (CLONE_VM | CLONE_VFORK): no page
 * tables are copied, and stamps and errors need no pipe. It runs on its own stack, makes
 * system calls only and never allocates. When SOCKET ends without `end` the harness is dead:
 * everything is killed and reaped, then CLEANUP is executed in the original mount namespace.
 *
 * Its 1140 lines are one file because it is one program of one thread, read from the steps at
 * the top to the loop at the end; what could be decided elsewhere is decided in Python.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/loop.h>
#include <linux/netlink.h>
#include <linux/openat2.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    CHANNEL_FD = 3,  /* where the program finds its channel */
    NETNS_FD = 4,    /* the number the netlink message names as the peer's namespace */
    FIRST_FREE = 16, /* descriptors of ours and those passed to us start here */
    RECORD_MAX = 1 << 18,
    STEPS_MAX = 160,
    ARGS_MAX = 6,
    FDS_MAX = 64,
    WORDS_MAX = 64,
    INSTANCES_MAX = 4096,
    SLOTS_MAX = 4096,
    ID_MAX = 64,
};

#ifndef SYS_clone3
#define SYS_clone3 435
#endif
#ifndef SYS_openat2
#define SYS_openat2 437
#endif
#ifndef SYS_execveat
#error "execveat is needed"
#endif

struct clone_arguments { /* struct clone_args, which not every libc's headers have */
    uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid,
        set_tid_size, cgroup;
};
#define INTO_CGROUP 0x200000000ULL

struct step {
    const struct operation *operation;
    int count;
    char *arg[ARGS_MAX];
};

struct request {
    const char *kind, *id;
    uint64_t flags;
    int fds[FDS_MAX], fd_count;
    int channel, program, cgroup, slot; /* indices into fds, -1 where absent */
    const char *uid_map, *gid_map;
    char *argv[WORDS_MAX + 1], *env[WORDS_MAX + 1];
    struct step steps[STEPS_MAX];
    int step_count;
    const char *bad; /* what is wrong with it */
};

/* In shared memory: written by the child, read by the launcher, with or without CLONE_VM. */
struct outcome {
    uint64_t born_ns, exec_ns, step_ns[STEPS_MAX];
    int failed, error; /* index of the failed step, errno */
    int loop;          /* number of the loop device used, -1 */
    int away;          /* the steps left the network namespace they began in */
    int kept;          /* descriptor of a namespace for the harness, -1 */
};
enum { FAILED_NOTHING = -1, FAILED_EXEC = -2, FAILED_CLONE = -3, FAILED_MAPS = -4 };

struct operation {
    const char *name;
    int args;
    int (*run)(const struct step *);
};

static struct request request; /* one at a time; a child in shared memory reads it too */
static struct {
    pid_t pid;
    char id[ID_MAX];
} instances[INSTANCES_MAX];
static int instance_count;

/* In shared memory. The kernel writes `child` before that runs, so that we know whose end we
 * reap, however soon after the helper's clone3 it comes. */
static struct slot {
    int used;
    pid_t helper, child; /* 0: none (any more), not yet; a child that was reaped: -1 */
    char id[ID_MAX];
} * slots;
static int slot_count;        /* those beyond were never used */
static struct slot *own_slot; /* in a helper */

static int sock = -1, children = -1, host_route = -1, null_fd = -1, program_fd = -1;
static int home_ns = -1, home_net = -1; /* where we began: mounts and network */
static struct outcome *outcome;
static char record[RECORD_MAX], reply[1 << 16];
static size_t reply_size;
static _Alignas(16) char child_stack[1 << 17];

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000ULL + (uint64_t)now.tv_nsec;
}

/* ---- replies ------------------------------------------------------------------------- */

static void begin(const char *kind) {
    reply_size = (size_t)snprintf(reply, sizeof reply, "reply=%s", kind) + 1;
}

static void put(const char *key, const char *format, ...) {
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

static void send_reply(int fd) {
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

/* ---- the steps: system calls only, 0 or -1 with errno --------------------------------- */

static unsigned long number(const char *text) { return strtoul(text, NULL, 0); }

static int passed(const char *index) {
    unsigned long i = number(index);
    if (i < (unsigned long)request.fd_count)
        return request.fds[i];
    errno = EBADF;
    return -1;
}

/* Hex to bytes; returns the number of bytes, -1 when it is not hex or does not fit. */
static ssize_t unhex(const char *text, unsigned char *bytes, size_t room) {
    size_t size = 0;
    for (; text[0] && text[1]; text += 2) {
        int value = 0;
        for (int i = 0; i < 2; i++) {
            char c = text[i];
            int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
            if (digit < 0 || size == room) {
                errno = EINVAL;
                return -1;
            }
            value = value * 16 + digit;
        }
        bytes[size++] = (unsigned char)value;
    }
    return (ssize_t)size;
}

static int do_join(const struct step *step) {
    int fd = passed(step->arg[0]);
    if (fd < 0)
        return -1;
    return write(fd, "0", 1) == 1 ? 0 : -1;
}

static int do_unshare(const struct step *step) {
    int flags = (int)number(step->arg[0]), result = unshare(flags);
    if (result == 0 && flags & CLONE_NEWNET)
        outcome->away = 1;
    return result;
}

/* enter INDEX FLAGS: the namespace that was passed at INDEX, of the kind FLAGS. */
static int do_enter(const struct step *step) {
    int fd = passed(step->arg[0]);
    return fd < 0 ? -1 : setns(fd, (int)number(step->arg[1]));
}

/* The network namespace we are in, to be handed over with the reply. */
static int do_keep_netns(const struct step *step) {
    (void)step;
    outcome->kept = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
    return outcome->kept < 0 ? -1 : 0;
}

static int do_affinity(const struct step *step) {
    cpu_set_t set;
    CPU_ZERO(&set);
    for (const char *at = step->arg[0]; *at;) {
        char *end;
        unsigned long cpu = strtoul(at, &end, 10);
        if (end == at || cpu >= CPU_SETSIZE) {
            errno = EINVAL;
            return -1;
        }
        CPU_SET(cpu, &set);
        at = *end ? end + 1 : end;
    }
    return sched_setaffinity(0, sizeof set, &set);
}

/* Open a path of the image, which may be hostile. Right after the pivot the host's root is
 * /proc/self/cwd, and "/..", and a link would lead there. RESOLVE_NO_SYMLINKS: fail at any link.
 * RESOLVE_IN_ROOT: follow links below our root, but neither into another mount (a link to
 * /proc/sys) nor through one of /proc's own. */
static int open_inside(const char *path, int flags, uint64_t resolve) {
    int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    struct open_how how = {.flags = (uint64_t)flags | O_CLOEXEC,
                           .mode = flags & O_CREAT ? 0644 : 0,
                           .resolve = resolve | RESOLVE_NO_MAGICLINKS};
    if (root < 0)
        return -1;
    int fd = (int)syscall(SYS_openat2, root, path, &how, sizeof how), saved = errno;
    close(root);
    errno = saved;
    return fd;
}

/* Nobody else runs in this root yet, so what was no link when looked at is none when used. */
static int do_mount(const struct step *step) {
    if (step->arg[1][0] == '/') {
        int fd = open_inside(step->arg[1], O_PATH, RESOLVE_NO_SYMLINKS);
        if (fd < 0)
            return -1;
        close(fd);
    }
    return mount(step->arg[0], step->arg[1], step->arg[2], number(step->arg[3]), step->arg[4]);
}

/* Attach a file to a free loop device with direct I/O, and mount that. The device detaches
 * itself with its last user (AUTOCLEAR), so it cannot outlive the mount. */
static int do_loop_mount(const struct step *step) {
    int file = open(step->arg[0], O_RDONLY | O_CLOEXEC);
    int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
    int result = -1, device = -1, saved = errno;
    for (int attempt = 0; file >= 0 && control >= 0 && attempt < 32; attempt++) {
        char path[32];
        int free_number = ioctl(control, LOOP_CTL_GET_FREE);
        if (free_number < 0)
            break;
        snprintf(path, sizeof path, "/dev/loop%d", free_number);
        device = open(path, O_RDONLY | O_CLOEXEC);
        if (device < 0)
            break;
        struct loop_config config = {.fd = (uint32_t)file, .block_size = 4096};
        config.info.lo_flags = LO_FLAGS_READ_ONLY | LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO;
        result = ioctl(device, LOOP_CONFIGURE, &config);
        if (result == 0) {
            outcome->loop = free_number;
            result = mount(path, step->arg[1], step->arg[2], number(step->arg[3]), step->arg[4]);
            break;
        }
        if (errno != EBUSY) /* EBUSY: somebody else took it just now */
            break;
        close(device);
        device = -1;
    }
    if (result < 0)
        saved = errno;
    if (device >= 0)
        close(device);
    if (control >= 0)
        close(control);
    if (file >= 0)
        close(file);
    errno = saved;
    return result;
}

static int do_mkdir(const struct step *step) {
    int result = mkdir(step->arg[0], (mode_t)number(step->arg[1]));
    return result < 0 && errno == EEXIST ? 0 : result;
}

static int do_mknod(const struct step *step) {
    return mknod(step->arg[0], (mode_t)number(step->arg[1]),
                 makedev((unsigned)number(step->arg[2]), (unsigned)number(step->arg[3])));
}

static int do_symlink(const struct step *step) { return symlink(step->arg[0], step->arg[1]); }

static int do_write(const struct step *step) {
    int flags = O_WRONLY | O_CREAT | O_TRUNC | O_NONBLOCK; /* not to wait at a named pipe */
    int fd = open_inside(step->arg[0], flags, RESOLVE_NO_SYMLINKS);
    if (fd < 0 && errno == ELOOP)
        fd = open_inside(step->arg[0], flags, RESOLVE_IN_ROOT | RESOLVE_NO_XDEV);
    if (fd < 0)
        return -1;
    ssize_t size = (ssize_t)strlen(step->arg[1]);
    ssize_t wrote = write(fd, step->arg[1], (size_t)size);
    int saved = wrote < 0 ? errno : EIO;
    close(fd);
    errno = saved;
    return wrote == size ? 0 : -1;
}

/* The new root in place of the old one. Afterwards absolute paths are the instance's and
 * relative ones the host's, until `detach` lets go of the host's root. */
static int do_pivot(const struct step *step) {
    int old = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (old < 0 || chdir(step->arg[0]) < 0 || syscall(SYS_pivot_root, ".", ".") < 0)
        return -1;
    int result = fchdir(old);
    close(old);
    return result;
}

static int do_detach(const struct step *step) {
    (void)step;
    return umount2(".", MNT_DETACH) < 0 ? -1 : chdir("/");
}

static int do_hostname(const struct step *step) {
    return sethostname(step->arg[0], strlen(step->arg[0]));
}

/* Send one rtnetlink message (hex) through the host's socket; what it says about a network
 * namespace refers to NETNS_FD, which is `ns` here. */
static int send_link(const char *hex, const char *ns) {
    static _Alignas(struct nlmsghdr) unsigned char message[1024];
    ssize_t size = unhex(hex, message, sizeof message);
    if (size < (ssize_t)sizeof(struct nlmsghdr)) {
        errno = EINVAL;
        return -1;
    }
    int fd = open(ns, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || dup3(fd, NETNS_FD, O_CLOEXEC) < 0)
        return -1;
    close(fd);
    int error = 0;
    if (send(host_route, message, (size_t)size, 0) < 0) {
        error = errno;
    } else {
        static _Alignas(struct nlmsghdr) unsigned char answer[4096];
        ssize_t got = recv(host_route, answer, sizeof answer, 0);
        const struct nlmsghdr *header = (const struct nlmsghdr *)answer;
        if (got < (ssize_t)NLMSG_LENGTH(sizeof(struct nlmsgerr)))
            error = got < 0 ? errno : EPROTO;
        else if (header->nlmsg_type == NLMSG_ERROR)
            error = -((const struct nlmsgerr *)NLMSG_DATA(header))->error;
    }
    close(NETNS_FD);
    errno = error;
    return error ? -1 : 0;
}

static int do_link(const struct step *step) {
    if (request.uid_map) /* its rights do not reach the host: the parent does it */
        return 0;
    return send_link(step->arg[0], "/proc/thread-self/ns/net");
}

static void set_ipv4(struct sockaddr *address, const char *text) {
    struct sockaddr_in in = {.sin_family = AF_INET};
    inet_pton(AF_INET, text, &in.sin_addr);
    memcpy(address, &in, sizeof in);
}

/* interface NAME [IP NETMASK]: bring it up. */
static int do_interface(const struct step *step) {
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), result = fd < 0 ? -1 : 0;
    struct ifreq ifreq = {0};
    strncpy(ifreq.ifr_name, step->arg[0], IFNAMSIZ - 1);
    if (result == 0 && step->count == 3) {
        set_ipv4(&ifreq.ifr_addr, step->arg[1]);
        result = ioctl(fd, SIOCSIFADDR, &ifreq);
        if (result == 0) {
            set_ipv4(&ifreq.ifr_netmask, step->arg[2]);
            result = ioctl(fd, SIOCSIFNETMASK, &ifreq);
        }
    }
    if (result == 0)
        result = ioctl(fd, SIOCGIFFLAGS, &ifreq);
    if (result == 0) {
        ifreq.ifr_flags |= IFF_UP | IFF_RUNNING;
        result = ioctl(fd, SIOCSIFFLAGS, &ifreq);
    }
    int saved = errno;
    if (fd >= 0)
        close(fd);
    errno = saved;
    return result;
}

/* neighbour NAME IP MAC(hex): a permanent entry, so that the first answer waits for no ARP. */
static int do_neighbour(const struct step *step) {
    struct arpreq arp = {.arp_flags = ATF_PERM | ATF_COM, .arp_ha = {.sa_family = ARPHRD_ETHER}};
    set_ipv4(&arp.arp_pa, step->arg[1]);
    strncpy(arp.arp_dev, step->arg[0], sizeof arp.arp_dev - 1);
    if (unhex(step->arg[2], (unsigned char *)arp.arp_ha.sa_data, 6) != 6)
        return -1;
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    int result = ioctl(fd, SIOCSARP, &arp), saved = errno;
    close(fd);
    errno = saved;
    return result;
}

/* capabilities MASK: nothing beyond MASK in any set, the bounding set included. */
static int do_capabilities(const struct step *step) {
    uint64_t keep = strtoull(step->arg[0], NULL, 0);
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2] = {{0}};
    if (syscall(SYS_capget, &header, data) < 0)
        return -1;
    for (unsigned long cap = 0; cap < 64 && prctl(PR_CAPBSET_READ, cap) >= 0; cap++)
        if (!(keep >> cap & 1) && prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0)
            return -1;
    for (int i = 0; i < 2; i++) {
        uint32_t mask = (uint32_t)(keep >> (32 * i)) & data[i].permitted;
        data[i] = (struct __user_cap_data_struct){.effective = mask, .permitted = mask};
    }
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0)
        return -1;
    return (int)syscall(SYS_capset, &header, data);
}

static int do_no_new_privs(const struct step *step) {
    (void)step;
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

static int do_seccomp(const struct step *step) {
    static _Alignas(struct sock_filter) unsigned char code[BPF_MAXINSNS * 8];
    ssize_t size = unhex(step->arg[0], code, sizeof code);
    if (size < 0)
        return -1;
    struct sock_fprog program = {(unsigned short)((size_t)size / sizeof(struct sock_filter)),
                                 (struct sock_filter *)code};
    return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program);
}

static const struct operation operations[] = {
    {"join", 1, do_join},
    {"unshare", 1, do_unshare},
    {"enter", 2, do_enter},
    {"keep_netns", 0, do_keep_netns},
    {"affinity", 1, do_affinity},
    {"mount", 5, do_mount},
    {"loop_mount", 5, do_loop_mount},
    {"mkdir", 2, do_mkdir},
    {"mknod", 4, do_mknod},
    {"symlink", 2, do_symlink},
    {"write", 2, do_write},
    {"pivot", 1, do_pivot},
    {"detach", 0, do_detach},
    {"hostname", 1, do_hostname},
    {"link", 1, do_link},
    {"interface", 1, do_interface},
    {"neighbour", 3, do_neighbour},
    {"capabilities", 1, do_capabilities},
    {"no_new_privs", 0, do_no_new_privs},
    {"seccomp", 1, do_seccomp},
};

static void run_steps(void) {
    for (int i = 0; i < request.step_count; i++) {
        if (request.steps[i].operation->run(&request.steps[i]) < 0) {
            outcome->failed = i;
            outcome->error = errno;
            return;
        }
        outcome->step_ns[i] = now_ns();
    }
}

/* ---- requests ------------------------------------------------------------------------ */

static void add_step(const char *name) {
    if (request.step_count == STEPS_MAX) {
        request.bad = "too many steps";
        return;
    }
    for (size_t i = 0; i < sizeof operations / sizeof *operations; i++)
        if (strcmp(operations[i].name, name) == 0) {
            struct step *step = &request.steps[request.step_count++];
            *step = (struct step){.operation = &operations[i]};
            return;
        }
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
        request.cgroup = (int)number(value);
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
    request.channel = request.program = request.cgroup = request.slot = -1;
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
    if (missing(request.channel) || missing(request.program) || missing(request.cgroup) ||
        missing(request.slot))
        request.bad = "a descriptor is missing";
    if (strlen(request.id) >= ID_MAX)
        request.bad = "the id is too long";
}

/* Receive one record with its descriptors. Returns its size, 0 at the end, -1 to try again. */
static ssize_t receive(uint64_t *received_ns) {
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

/* ---- launching ----------------------------------------------------------------------- */

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
    for (int i = 0; i < request.step_count; i++) {
        *failed = i;
        if (request.steps[i].operation->run == do_link &&
            send_link(request.steps[i].arg[0], path) < 0)
            return errno;
    }
    return 0;
}

/* Returns the pid, or -1 with `outcome` saying why. */
static pid_t spawn(int *pidfd) {
    int gone_pipe[2] = {-1, -1};
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
    if (request.cgroup >= 0) {
        arguments.flags |= INTO_CGROUP;
        arguments.cgroup = (uint64_t)request.fds[request.cgroup];
    }
    if (request.uid_map) {
        /* Its maps must be written by a parent that runs: a copy, not shared memory. */
        if (pipe2(release_pipe, O_CLOEXEC) < 0 || pipe2(gone_pipe, O_CLOEXEC) < 0) {
            outcome->failed = FAILED_MAPS;
            outcome->error = errno;
            return -1;
        }
    } else {
        arguments.flags |= CLONE_VM | CLONE_VFORK;
        arguments.stack = (uint64_t)(uintptr_t)child_stack;
        arguments.stack_size = sizeof child_stack;
    }
    long pid = clone3_call(&arguments, child);
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

static void put_failure(void) {
    static const char *const names[] = {"exec", "clone3", "user namespace"};
    int failed = outcome->failed;
    put("step", "%d", failed);
    put("name", "%s", failed >= 0 ? request.steps[failed].operation->name : names[-2 - failed]);
    put("errno", "%d", outcome->error);
}

static void refuse(void) {
    begin("bad");
    put("id", "%s", request.id);
    put("message", "%s", request.bad);
    send_reply(-1);
}

static void launch(uint64_t accepted_ns) {
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
        put("pid", "%d", own_slot ? own_slot->child : 0); /* whose end will be reported */
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

/* ---- slots --------------------------------------------------------------------------- */

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

static void park(void) {
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

static void setup(void) {
    if (!request.bad && request.program >= 0) {
        if (program_fd >= 0)
            close(program_fd);
        program_fd = fcntl(request.fds[request.program], F_DUPFD_CLOEXEC, FIRST_FREE);
    }
    if (!request.bad)
        run_steps();
    if (outcome->away && setns(home_net, CLONE_NEWNET) < 0)
        _exit(1); /* all that follows would be made in the wrong place */
    begin(request.bad ? "bad" : outcome->failed == FAILED_NOTHING ? "done" : "failed");
    put("id", "%s", request.id);
    put("message", "%s", request.bad ? request.bad : "");
    put("loop", "%d", outcome->loop);
    if (outcome->failed != FAILED_NOTHING)
        put_failure();
    send_reply(outcome->failed == FAILED_NOTHING ? outcome->kept : -1);
    if (outcome->kept >= 0)
        close(outcome->kept);
}

/* ---- ending -------------------------------------------------------------------------- */

static void report(const char *id, int status, const struct rusage *usage) {
    begin("exited");
    put("id", "%s", id);
    put("status", "%d", status);
    put("monotonic_ns", "%llu", (unsigned long long)now_ns());
    put("user_us", "%lld", (long long)usage->ru_utime.tv_sec * 1000000 + usage->ru_utime.tv_usec);
    put("system_us", "%lld", (long long)usage->ru_stime.tv_sec * 1000000 + usage->ru_stime.tv_usec);
    put("max_rss_kib", "%ld", usage->ru_maxrss);
    send_reply(-1);
}

static void report_exit(pid_t pid, int status, const struct rusage *usage) {
    for (int i = 0; i < instance_count; i++)
        if (instances[i].pid == pid) {
            report(instances[i].id, status, usage);
            instances[i] = instances[--instance_count];
            return;
        }
    for (struct slot *slot = slots; slot < slots + slot_count; slot++) {
        if (!slot->used || (slot->helper != pid && slot->child != pid))
            continue;
        if (slot->helper == pid) {
            slot->helper = 0;
        } else {
            slot->child = -1;
            report(slot->id, status, usage);
        }
        slot->used = slot->helper != 0 || slot->child > 0;
        return;
    }
}

static void reap(void) {
    struct rusage usage;
    int status;
    pid_t pid;
    while ((pid = wait4(-1, &status, WNOHANG, &usage)) > 0)
        report_exit(pid, status, &usage);
}

/* Kill every child. What a killed one leaves behind becomes ours (child subreaper) and is
 * killed in the next round. */
static void kill_all(void) {
    for (int i = 0; i < instance_count; i++)
        kill(instances[i].pid, SIGKILL);
    do {
        int fd = open("/proc/thread-self/children", O_RDONLY | O_CLOEXEC);
        ssize_t size = fd < 0 ? 0 : read(fd, record, sizeof record - 1);
        if (fd >= 0)
            close(fd);
        record[size > 0 ? size : 0] = '\0';
        for (char *at = record, *end; *at; at = end) {
            long pid = strtol(at, &end, 10);
            if (end == at)
                break;
            if (pid > 1)
                kill((pid_t)pid, SIGKILL);
        }
    } while (waitpid(-1, NULL, 0) > 0 || errno == EINTR);
}

static void start(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, NULL);
    int occupied = fcntl(sock, F_DUPFD_CLOEXEC, FIRST_FREE);
    null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    null_fd = fcntl(null_fd, F_DUPFD_CLOEXEC, FIRST_FREE);
    home_ns = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
    home_ns = fcntl(home_ns, F_DUPFD_CLOEXEC, FIRST_FREE);
    home_net = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
    home_net = fcntl(home_net, F_DUPFD_CLOEXEC, FIRST_FREE);
    sock = occupied;
    /* Numbers 3 to 15 stay taken, so that no descriptor passed to us ever has one of them. */
    for (int fd = CHANNEL_FD; fd < FIRST_FREE; fd++)
        dup3(null_fd, fd, O_CLOEXEC);
    host_route = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    outcome =
        mmap(NULL, sizeof *outcome, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    slots = mmap(NULL, SLOTS_MAX * sizeof *slots, PROT_READ | PROT_WRITE,
                 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (sock < 0 || null_fd < 0 || home_ns < 0 || home_net < 0 || outcome == MAP_FAILED ||
        slots == MAP_FAILED)
        return;
    umask(0); /* modes in steps mean what they say */
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    /* Image mounts live and die with this namespace, however we die. */
    if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        return;
    children = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    begin(children < 0 ? "failed" : "ready");
    send_reply(-1);
}

int main(int argc, char **argv) {
    if (argc < 2)
        return 2;
    sock = (int)number(argv[1]);
    start();
    if (children < 0) {
        begin("failed");
        put("name", "start");
        put("errno", "%d", errno);
        send_reply(-1);
        return 1;
    }
    for (;;) {
        struct pollfd polls[] = {{sock, POLLIN, 0}, {children, POLLIN, 0}};
        if (poll(polls, 2, -1) < 0)
            continue;
        if (polls[1].revents) {
            struct signalfd_siginfo info;
            while (read(children, &info, sizeof info) > 0)
                ;
            reap();
        }
        if (!polls[0].revents)
            continue;
        memset(&request, 0, sizeof request);
        outcome->failed = FAILED_NOTHING;
        outcome->loop = outcome->kept = -1;
        outcome->away = 0;
        uint64_t accepted_ns;
        ssize_t size = receive(&accepted_ns);
        if (size < 0)
            continue;
        int end = size > 0 && strcmp(request.kind, "end") == 0;
        if (size > 0 && !end) {
            if (strcmp(request.kind, "launch") == 0)
                launch(accepted_ns);
            else if (strcmp(request.kind, "park") == 0)
                park();
            else
                setup();
            for (int i = 0; i < request.fd_count; i++)
                close(request.fds[i]);
            continue;
        }
        kill_all();
        if (end || argc < 3)
            return 0;
        setns(home_ns, CLONE_NEWNS);
        execv(argv[2], argv + 2);
        return 1;
    }
}
