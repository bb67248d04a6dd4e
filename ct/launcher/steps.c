/* The steps: system calls only, 0 or -1 with errno. */
#define _GNU_SOURCE
#include "launcher.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/loop.h>
#include <linux/openat2.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#ifndef SYS_openat2
#define SYS_openat2 437
#endif

struct outcome *outcome;

unsigned long number(const char *text) { return strtoul(text, NULL, 0); }

static int passed(const char *index) {
    unsigned long i = number(index);
    if (i < (unsigned long)request.fd_count)
        return request.fds[i];
    errno = EBADF;
    return -1;
}

/* Hex to bytes; returns the number of bytes, -1 when it is not hex or does not fit. */
ssize_t unhex(const char *text, unsigned char *bytes, size_t room) {
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
    int fd = open(step->arg[0], O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    ssize_t wrote = write(fd, "0", 1);
    int saved = errno;
    close(fd);
    errno = saved;
    return wrote == 1 ? 0 : -1;
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

/* capabilities MASK: nothing beyond MASK in any set, the bounding set included. */
static int do_capabilities(const struct step *step) {
    uint64_t keep = strtoull(step->arg[0], NULL, 0);
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2] = {{0}};
    if (syscall(SYS_capget, &header, data) < 0)
        return -1;
    for (unsigned long cap = 0; cap < 64; cap++)
        if (!(keep >> cap & 1) && prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0) {
            if (errno != EINVAL || cap == 0)
                return -1;
            break; /* there are no more */
        }
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

const struct operation *operation_named(const char *name) {
    for (size_t i = 0; i < sizeof operations / sizeof *operations; i++)
        if (strcmp(operations[i].name, name) == 0)
            return &operations[i];
    return NULL;
}

void run_steps(void) {
    for (int i = 0; i < request.step_count; i++) {
        if (request.steps[i].operation->run(&request.steps[i]) < 0) {
            outcome->failed = i;
            outcome->error = errno;
            return;
        }
        outcome->step_ns[i] = now_ns();
    }
}
