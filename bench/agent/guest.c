/* The agent in a virtual machine, as its /init or below the init of a distribution: find the port,
 * then build the same root that the launcher builds for a container: the image under an overlay,
 * /proc, /sys, /dev. */
#define _GNU_SOURCE
#include "frames.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#define PORT_NAME "org.hvct.agent"

/* Before there is a channel, the kernel's log is the only place that is seen. */
__attribute__((format(printf, 1, 2))) static void complain(const char *format, ...) {
    char text[512];
    va_list values;
    va_start(values, format);
    int size = snprintf(text, sizeof text, "<3>hvct-agent: ");
    vsnprintf(text + size, sizeof text - (size_t)size, format, values);
    va_end(values);
    int fd = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
    if (fd >= 0 && write(fd, text, strlen(text)) >= 0)
        close(fd);
}

_Noreturn void guest_power_off(void) {
    reboot(RB_POWER_OFF); /* nothing here outlives the machine, so nothing is
                             synced */
    for (;;)
        pause();
}

static int load_module(const char *name) {
    char path[PATH_MAX];
    snprintf(path, sizeof path, "/modules/%s", name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    const char *suffix = strrchr(name, '.');
    unsigned flags = suffix && strcmp(suffix, ".ko") ? 4 /* MODULE_INIT_COMPRESSED_FILE */ : 0;
    int failed = syscall(SYS_finit_module, fd, "", flags) && errno != EEXIST;
    int error = errno;
    close(fd);
    unlink(path); /* its memory is the workload's */
    return errno = error, failed ? -1 : 0;
}

static void load_first_modules(void) {
    FILE *order = fopen("/modules/order", "re");
    char name[256];
    while (order && fgets(name, sizeof name, order)) {
        name[strcspn(name, "\n")] = 0;
        if (*name && load_module(name))
            complain("module %s: %s", name, strerror(errno));
    }
    if (order)
        fclose(order);
}

/* The port's device by its name; its number depends on the machine. */
static int find_port(void) {
    static const char class[] = "/sys/class/virtio-ports";
    DIR *ports = opendir(class);
    int fd = -1;
    for (struct dirent *entry; ports && fd < 0 && (entry = readdir(ports));) {
        char path[PATH_MAX], name[128];
        snprintf(path, sizeof path, "%s/%s/name", class, entry->d_name);
        if (entry->d_name[0] == '.' || !read_text(path, name, sizeof name) ||
            strcmp(name, PORT_NAME))
            continue;
        snprintf(path, sizeof path, "/dev/%s", entry->d_name);
        fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
    }
    if (ports)
        closedir(ports);
    return fd;
}

/* Below a distribution's init: a mount namespace whose root is as empty as an initramfs. From there
 * on all is as for /init; the distribution's own root is not to be seen from it. */
static int leave_distribution(void) {
    if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
        mount("tmpfs", "/mnt", "tmpfs", MS_NODEV, "mode=0755") || chdir("/mnt"))
        return -1;
    /* Onto the same folder: the old root then lies over the new one, and is taken off. */
    if (syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH))
        return -1;
    return chdir("/");
}

/* Without a channel nothing shows that this machine is ours to end, unless we are its init. */
static _Noreturn void give_up(void) {
    if (agent.pid1)
        guest_power_off();
    _exit(1);
}

int guest_open_channel(void) {
    umask(022);
    if (!agent.pid1 && leave_distribution()) {
        complain("no root of its own: %s", strerror(errno));
        give_up();
    }
    mkdir("/proc", 0755);
    mkdir("/sys", 0755);
    mkdir("/dev", 0755);
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    mount("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, NULL); /* EBUSY: it is there */
    /* 0, 1 and 2 are taken before the channel is; by whoever started us, where that was not the
     * kernel. */
    for (int fd = 0; agent.pid1 && fd >= 0 && fd < 2;)
        fd = open("/dev/null", O_RDWR);
    load_first_modules();
    for (int waited = 0; waited < DEVICE_WAIT_MS; waited++) {
        struct pollfd port = {find_port(), 0, 0};
        /* Open, but the host's end is announced later; until then it reads as hung up. */
        for (; port.fd >= 0 && waited < DEVICE_WAIT_MS; waited++, usleep(1000))
            if (poll(&port, 1, 0) == 0)
                return port.fd;
        usleep(1000);
    }
    complain("no connected virtio port is named " PORT_NAME);
    give_up();
}

/* Open a path of the image as ct/launcher.c does: where a container refuses the image's links, a
 * guest does too. */
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

/* mkdir + mount, the way every mount below is made. */
static int attach(const char *source, const char *target, const char *type, unsigned long flags,
                  const char *data) {
    int fd = -1;
    if ((mkdir(target, 0755) && errno != EEXIST) ||
        (fd = open_inside(target, O_PATH, RESOLVE_NO_SYMLINKS)) < 0)
        return fail("guest.mount", target);
    close(fd);
    return mount(source, target, type, flags, data) ? fail("guest.mount", target) : 0;
}

static int wait_for_device(const char *step, const char *path) {
    for (int waited = 0; access(path, F_OK); waited++) {
        if (waited == DEVICE_WAIT_MS)
            return fail(step, path);
        usleep(1000);
    }
    return 0;
}

static int mount_root(const struct guest *guest) {
    char options[128];
    snprintf(options, sizeof options, "mode=0755,size=%llu,nr_inodes=%llu",
             (unsigned long long)guest->writable_bytes, (unsigned long long)guest->writable_inodes);
    if (wait_for_device("guest.root", guest->root))
        return -1;
    mkdir("/lower", 0755);
    if (mount(guest->root, "/lower", "erofs", MS_RDONLY, NULL))
        return fail("guest.root", guest->root);
    if (attach("tmpfs", "/writable", "tmpfs", MS_NODEV, options))
        return -1;
    mkdir("/writable/upper", 0755);
    mkdir("/writable/work", 0755);
    /* xino=off: a file's inode number is the image's own, the same in every arm. */
    return attach("overlay", "/root", "overlay", MS_NODEV,
                  "lowerdir=/lower,upperdir=/writable/upper,workdir=/writable/work,xino=off");
}

static int make_devices(const char *dev) {
    static const struct {
        const char *name;
        unsigned major, minor;
    } nodes[] = {{"null", 1, 3},   {"zero", 1, 5},    {"full", 1, 7},
                 {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}};
    static const char *const links[][2] = {{"pts/ptmx", "ptmx"},
                                           {"/proc/self/fd", "fd"},
                                           {"/proc/self/fd/0", "stdin"},
                                           {"/proc/self/fd/1", "stdout"},
                                           {"/proc/self/fd/2", "stderr"}};
    char path[PATH_MAX];
    umask(0);
    for (size_t i = 0; i < sizeof nodes / sizeof *nodes; i++) {
        snprintf(path, sizeof path, "%s/%s", dev, nodes[i].name);
        if (mknod(path, S_IFCHR | 0666, makedev(nodes[i].major, nodes[i].minor)))
            return fail("guest.dev", path);
    }
    umask(022);
    for (size_t i = 0; i < sizeof links / sizeof *links; i++) {
        snprintf(path, sizeof path, "%s/%s", dev, links[i][1]);
        if (symlink(links[i][0], path))
            return fail("guest.dev", path);
    }
    return 0;
}

static int mount_system(const struct guest *guest) {
    char options[64];
    unsigned long safe = MS_NOSUID | MS_NODEV | MS_NOEXEC;
    snprintf(options, sizeof options, "mode=1777,size=%llu", (unsigned long long)guest->shm_bytes);
    if (attach("proc", "/root/proc", "proc", safe, NULL) ||
        attach("sysfs", "/root/sys", "sysfs", safe | MS_RDONLY, NULL) ||
        attach("tmpfs", "/root/dev", "tmpfs", MS_NOSUID | MS_NOEXEC, "mode=755,size=64k") ||
        make_devices("/root/dev") ||
        attach("devpts", "/root/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC,
               "newinstance,ptmxmode=0666,mode=0620,gid=5") ||
        attach("shm", "/root/dev/shm", "tmpfs", safe, options))
        return -1;
    mkdir("/root/dev/mqueue", 0755);
    mount("mqueue", "/root/dev/mqueue", "mqueue", safe, NULL); /* not in every kernel */
    return 0;
}

/* fsopen() would say more, but mount(2) exists everywhere: try what a scratch disk holds. */
static int mount_scratch(const char *device) {
    if (wait_for_device("guest.scratch", device))
        return -1;
    mkdir("/root/scratch", 0755);
    int fd = open_inside("/root/scratch", O_PATH, RESOLVE_NO_SYMLINKS);
    if (fd < 0)
        return fail("guest.scratch", "/scratch");
    close(fd);
    if (mount(device, "/root/scratch", "ext4", MS_NOATIME, NULL) &&
        mount(device, "/root/scratch", "xfs", MS_NOATIME, NULL))
        return fail("guest.scratch", device);
    return 0;
}

int guest_create(const char *path) {
    int flags = O_WRONLY | O_CREAT | O_TRUNC | O_NONBLOCK; /* not to wait at a named pipe */
    int fd = open_inside(path, flags, RESOLVE_NO_SYMLINKS);
    if (fd < 0 && errno == ELOOP)
        fd = open_inside(path, flags, RESOLVE_IN_ROOT | RESOLVE_NO_XDEV);
    return fd;
}

__attribute__((format(printf, 2, 3))) static int guest_write(const char *path, const char *format,
                                                             ...) {
    int fd = guest_create(path);
    va_list values;
    va_start(values, format);
    int size = fd < 0 ? -1 : vdprintf(fd, format, values);
    va_end(values);
    if (fd >= 0)
        close(fd);
    return size < 0 ? -1 : 0;
}

/* The workload's own cgroup: the agent's process does not count. */
static int limit_pids(uint64_t pids) {
    if (attach("cgroup2", "/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL))
        return -1;
    mkdir("/cgroup/workload", 0755);
    if (guest_write("/cgroup/cgroup.subtree_control", "+pids") ||
        guest_write("/cgroup/workload/pids.max", "%llu", (unsigned long long)pids))
        return fail("guest.pids", "pids.max");
    guest_cgroup = open("/cgroup/workload", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return guest_cgroup < 0 ? fail("guest.pids", "open") : 0;
}

static int switch_root(void) {
    if (chdir("/root") || mount(".", "/", NULL, MS_MOVE, NULL) || chroot(".") || chdir("/"))
        return fail("guest.root", "move");
    return 0;
}

/* What ct/security.py has done to a container's /proc and /sys; what the kernel lacks is fine. */
static int confine(const struct guest *guest) {
    const unsigned long safe = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC;
    struct stat info;
    for (char **path = guest->masked; *path; path++)
        if (stat(*path, &info) == 0 &&
            (S_ISDIR(info.st_mode) ? mount("tmpfs", *path, "tmpfs", safe, "size=4k,nr_inodes=2")
                                   : mount("/dev/null", *path, NULL, MS_BIND, NULL)))
            return fail("guest.mask", *path);
    for (char **path = guest->read_only; *path; path++)
        if (stat(*path, &info) == 0 &&
            (mount(*path, *path, NULL, MS_BIND, NULL) ||
             mount(NULL, *path, NULL, MS_BIND | MS_REMOUNT | safe, NULL)))
            return fail("guest.read_only", *path);
    return 0;
}

/* A kernel decides by its memory's size; here it is as on the host, whatever the size. */
static int set_huge_pages(const char *mode) {
    static const char path[] = "/sys/kernel/mm/transparent_hugepage/enabled";
    if (access(path, F_OK) == 0 && guest_write(path, "%s", mode))
        return fail("guest.thp", mode);
    return 0;
}

int guest_prepare(const struct guest *guest) {
    if (!guest->root)
        return errno = EINVAL, fail("guest.root", "no device was named");
    if (guest->thp && set_huge_pages(guest->thp))
        return -1;
    for (char **module = guest->modules; *module; module++)
        if (load_module(*module))
            return fail("guest.module", *module);
    if (guest_loopback() || mount_root(guest) || mount_system(guest))
        return -1;
    if (guest->scratch && mount_scratch(guest->scratch))
        return -1;
    if (guest->pids && limit_pids(guest->pids))
        return -1;
    return switch_root() || confine(guest) ? -1 : 0;
}
