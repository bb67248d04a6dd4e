/* Attempts to get out of an instance, or to change its host. Each runs in a child of its own and
 * is harmless where it succeeds: it opens without writing, mounts in its own namespace, or
 * passes arguments that the kernel refuses once rights have been checked.
 *
 *     escape HOST_PID      one line per attempt: title, a tab, 0 or errno (250: killed)
 *     escape who           exit status 0 when the effective user is root
 *
 * More than 400 lines, because it is one list: an attempt says what it does in its few lines.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/capability.h>
#include <linux/perf_event.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x80
#endif
enum { KILLED = 250, LATEST_CALL = 467 /* open_tree_attr */ };

static pid_t host_pid;

/* --- files ---------------------------------------------------------------------------- */

static long opens(const char *path, int flags) {
    int fd = open(path, flags | O_CLOEXEC);
    return fd < 0 ? -1 : close(fd);
}

/* A masked file is empty, a masked folder too. */
static long reads(const char *path) {
    char byte;
    struct stat info;
    if (stat(path, &info))
        return -1;
    if (S_ISDIR(info.st_mode)) {
        DIR *folder = opendir(path);
        int entries = 0;
        while (folder && readdir(folder))
            entries++;
        return folder && entries > 2 ? 0 : (errno = ENODATA, -1);
    }
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    ssize_t size = fd < 0 ? -1 : read(fd, &byte, 1);
    return size == 0 ? (errno = ENODATA, -1) : size < 0 ? -1 : 0;
}

static long writes(const char *path) { return opens(path, O_WRONLY); }

/* The number of a disk of this machine. */
static dev_t disk(void) {
    unsigned major = 8, minor = 0;
    DIR *disks = opendir("/sys/block");
    for (struct dirent *entry; disks && (entry = readdir(disks));) {
        char path[512];
        if (entry->d_name[0] == '.' || !strncmp(entry->d_name, "loop", 4) ||
            !strncmp(entry->d_name, "ram", 3) || !strncmp(entry->d_name, "nbd", 3))
            continue;
        snprintf(path, sizeof path, "/sys/block/%s/dev", entry->d_name);
        FILE *file = fopen(path, "re");
        if (file && fscanf(file, "%u:%u", &major, &minor) == 2)
            break;
    }
    return makedev(major, minor);
}

static long device(const char *path, mode_t type, dev_t number) {
    unlink(path);
    if (mknod(path, type | 0600, number))
        return -1;
    long result = opens(path, O_RDONLY);
    int saved = errno;
    unlink(path);
    errno = saved;
    return result;
}

static long disk_in_tmp(void) { return device("/tmp/disk", S_IFBLK, disk()); }
static long disk_in_dev(void) { return device("/dev/disk", S_IFBLK, disk()); }
static long disk_in_shm(void) { return device("/dev/shm/disk", S_IFBLK, disk()); }
static long memory_device(void) { return device("/dev/mem", S_IFCHR, makedev(1, 1)); }
static long log_device(void) { return device("/dev/kmsg", S_IFCHR, makedev(1, 11)); }
static long tunnel_device(void) { return device("/dev/tun", S_IFCHR, makedev(10, 200)); }
static long fuse_device(void) { return device("/dev/fuse", S_IFCHR, makedev(10, 229)); }
static long null_elsewhere(void) { return device("/tmp/null", S_IFCHR, makedev(1, 3)); }

static long in_proc(const char *name, int flags) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", host_pid, name);
    return opens(path, flags);
}

static long symbol_addresses(void) {
    unsigned long long address = 0;
    FILE *file = fopen("/proc/kallsyms", "re");
    if (!file)
        return -1;
    return fscanf(file, "%llx", &address) == 1 && address ? 0 : (errno = ENODATA, -1);
}

static long release_agent(void) {
    DIR *groups = opendir("/sys/fs/cgroup");
    errno = ENOENT;
    for (struct dirent *entry; groups && (entry = readdir(groups));) {
        char path[512];
        snprintf(path, sizeof path, "/sys/fs/cgroup/%s/release_agent", entry->d_name);
        if (access(path, F_OK) == 0)
            return writes(path);
        errno = ENOENT;
    }
    return -1;
}

static long own_limits(void) {
    static const char *const paths[] = {"/sys/fs/cgroup/memory/memory.limit_in_bytes",
                                        "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/cgroup.procs",
                                        "/sys/fs/cgroup/devices/devices.allow"};
    errno = ENOENT;
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++)
        if (access(paths[i], F_OK) == 0)
            return writes(paths[i]);
    return -1;
}

/* A folder of somebody else's that was left open leads out of the root. */
static long inherited_folder(const char *fds) {
    DIR *open_files = opendir(fds);
    for (struct dirent *entry; open_files && (entry = readdir(open_files));) {
        char path[512];
        struct stat info;
        snprintf(path, sizeof path, "%s/%s", fds, entry->d_name);
        int own = !strcmp(fds, "/proc/self/fd") ? dirfd(open_files) : -1;
        if (entry->d_name[0] != '.' && atoi(entry->d_name) != own && stat(path, &info) == 0 &&
            S_ISDIR(info.st_mode))
            return 0;
    }
    return errno = ENODATA, -1;
}

static long own_folder(void) { return inherited_folder("/proc/self/fd"); }
static long first_folder(void) { return inherited_folder("/proc/1/fd"); }

static long chroot_and_up(void) {
    struct stat before, after;
    int home = open("/", O_RDONLY | O_DIRECTORY);
    mkdir("/tmp/jail", 0755);
    if (home < 0 || stat("/", &before) || chroot("/tmp/jail") || fchdir(home))
        return -1;
    for (int i = 0; i < 64; i++)
        if (chdir(".."))
            return -1;
    if (chroot(".") || stat("/", &after))
        return -1;
    if (before.st_dev == after.st_dev && before.st_ino == after.st_ino)
        return errno = EXDEV, -1;
    return 0;
}

static long file_handle(void) {
    uint32_t root[4] = {8, 1, 2, 0}; /* a handle: the root folder of most file systems */
    int mount_point = open("/etc/hosts", O_RDONLY);
    return syscall(SYS_open_by_handle_at, mount_point, root, O_RDONLY);
}

static long name_of_file(void) {
    uint32_t found[34] = {128};
    int mount_id;
    return syscall(SYS_name_to_handle_at, AT_FDCWD, "/", found, &mount_id, 0);
}

/* --- mounts and namespaces ------------------------------------------------------------- */

static long mounts(const char *type, const char *data) {
    mkdir("/tmp/mounted", 0755);
    return mount(type, "/tmp/mounted", type, 0, data);
}

static long mount_tmpfs(void) { return mounts("tmpfs", NULL); }
static long mount_proc(void) { return mounts("proc", NULL); }
static long mount_cgroup(void) { return mounts("cgroup", "memory"); }
static long mount_cgroup2(void) { return mounts("cgroup2", NULL); }
static long mount_devices(void) { return mounts("devtmpfs", NULL); }
static long mount_bind(void) {
    mkdir("/tmp/mounted", 0755);
    return mount("/", "/tmp/mounted", NULL, MS_BIND | MS_REC, NULL);
}
static long writable_sys(void) { return mount(NULL, "/sys", NULL, MS_REMOUNT | MS_BIND, NULL); }
static long writable_proc_sys(void) {
    return mount(NULL, "/proc/sys", NULL, MS_REMOUNT | MS_BIND, NULL);
}
static long unmask(void) { return umount2("/sys/firmware", MNT_DETACH); }
static long new_mount_api(void) { return syscall(SYS_fsopen, "tmpfs", 0); }
static long detached_tree(void) { return syscall(SYS_open_tree, AT_FDCWD, "/", 1 /* clone */); }
static long mount_attributes(void) {
    uint64_t attributes[4] = {0};
    return syscall(SYS_mount_setattr, AT_FDCWD, "/", 0, attributes, sizeof attributes);
}
static long moves_mount(void) {
    return syscall(SYS_move_mount, AT_FDCWD, "/proc", AT_FDCWD, "/tmp", 0);
}
static long pivots(void) { return syscall(SYS_pivot_root, "/tmp", "/tmp"); }

static long unshare_user(void) { return unshare(CLONE_NEWUSER); }
static long unshare_mounts(void) { return unshare(CLONE_NEWNS); }
static long unshare_network(void) { return unshare(CLONE_NEWNET); }
static long unshare_pids(void) { return unshare(CLONE_NEWPID); }
static long unshare_cgroups(void) { return unshare(CLONE_NEWCGROUP); }
static long unshare_time(void) { return unshare(CLONE_NEWTIME); }
static long clones(unsigned long flags) {
    long pid = syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0);
    if (pid == 0)
        _exit(0);
    return pid < 0 ? -1 : 0;
}
static long clone_user(void) { return clones(CLONE_NEWUSER); }
static long clone_mounts(void) { return clones(CLONE_NEWNS); }
static long clone3_user(void) {
    struct {
        uint64_t flags, words[10];
    } arguments = {CLONE_NEWUSER, {0, 0, 0, SIGCHLD}};
    long pid = syscall(SYS_clone3, &arguments, sizeof arguments);
    if (pid == 0)
        _exit(0);
    return pid < 0 ? -1 : 0;
}
static long enter(const char *path) {
    int fd = open(path, O_RDONLY);
    return fd < 0 ? -1 : setns(fd, 0);
}
static long enter_network(void) { return enter("/proc/1/ns/net"); }
static long enter_user(void) { return enter("/proc/1/ns/user"); }
static long host_name(void) { return sethostname("hvct", 4); }
static long domain_name(void) { return setdomainname("hvct", 4); }

/* --- processes --------------------------------------------------------------------------- */

static long host_process(void) { return kill(host_pid, 0); }
static long trace_host(void) { return ptrace(PTRACE_SEIZE, host_pid, 0, 0); }
static long host_memory(void) { return in_proc("mem", O_RDONLY); }
static long host_root(void) { return in_proc("root", O_RDONLY | O_DIRECTORY); }
static long first_program(void) { return opens("/proc/1/exe", O_WRONLY); }
static long reads_memory(void) {
    char from = 1, to = 0;
    struct iovec local = {&to, 1}, remote = {&from, 1};
    return syscall(SYS_process_vm_readv, getpid(), &local, 1, &remote, 1, 0);
}
static long takes_descriptor(void) {
    long fd = syscall(434 /* pidfd_open */, getpid(), 0);
    return fd < 0 ? -1 : syscall(438 /* pidfd_getfd */, fd, 0, 0);
}
static long advises(void) { return syscall(440 /* process_madvise */, -1, NULL, 0, 0, 0); }
static long compares(void) { return syscall(SYS_kcmp, getpid(), getpid(), 0, 0, 1); }
static long moves_pages(void) { return syscall(SYS_move_pages, 0, 0, NULL, NULL, NULL, 0); }
static long memory_policy(void) { return syscall(SYS_set_mempolicy, 0, NULL, 0); }
static long set_user_id(void) {
    pid_t pid = fork();
    int status = 0;
    if (pid == 0) {
        if (setgid(1000) || setuid(1000))
            _exit(errno);
        execl("/bin/escape-suid", "escape-suid", "who", NULL);
        _exit(errno);
    }
    waitpid(pid, &status, 0);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : (errno = WEXITSTATUS(status), -1);
}
static long regains(int capability) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2] = {{0}};
    if (syscall(SYS_capget, &header, data))
        return -1;
    data[capability / 32].permitted |= 1u << capability % 32;
    data[capability / 32].effective |= 1u << capability % 32;
    return syscall(SYS_capset, &header, data);
}
static long regains_admin(void) { return regains(CAP_SYS_ADMIN); }
static long regains_mknod(void) { return regains(CAP_MKNOD); }
static long regains_search(void) { return regains(CAP_DAC_READ_SEARCH); }
static long hurries(void) { return setpriority(PRIO_PROCESS, 0, -20); }
static long real_time(void) {
    struct sched_param one = {.sched_priority = 1};
    /* musl's wrapper only says ENOSYS */
    return syscall(SYS_sched_setscheduler, 0, SCHED_FIFO, &one);
}
static long more_processes(void) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_max++;
    return setrlimit(RLIMIT_NOFILE, &limit);
}
static long personality_of(void) { return syscall(SYS_personality, 0x0040000 /* no random */); }
static long types_for_another(void) {
    char name[32];
    unsigned number = 0;
    int unlock = 0, master = open("/dev/ptmx", O_RDWR | O_NOCTTY);
    if (master < 0 || ioctl(master, TIOCSPTLCK, &unlock) || ioctl(master, TIOCGPTN, &number))
        return -1;
    snprintf(name, sizeof name, "/dev/pts/%u", number);
    int slave = open(name, O_RDWR | O_NOCTTY);
    return slave < 0 ? -1 : ioctl(slave, TIOCSTI, "x");
}

/* --- the kernel itself -------------------------------------------------------------------- */

static long loads_module(void) { return syscall(SYS_init_module, NULL, 0, ""); }
static long loads_module_file(void) { return syscall(SYS_finit_module, -1, "", 0); }
static long removes_module(void) {
    return syscall(SYS_delete_module, "no such module", O_NONBLOCK);
}
static long loads_kernel(void) { return syscall(SYS_kexec_load, 0L, 0L, NULL, ~0UL); }
static long reboots(void) { return syscall(SYS_reboot, 0, 0, 0, NULL); }
static long sets_time(void) { return syscall(SYS_settimeofday, NULL, NULL); }
static long swaps_on(void) { return syscall(SYS_swapon, "/no/such", 0); }
static long swaps_off(void) { return syscall(SYS_swapoff, "/no/such"); }
static long accounts(void) { return syscall(SYS_acct, "/no/such"); }
static long quota(void) { return syscall(SYS_quotactl, 0x80000100 /* sync */, NULL, 0, NULL); }
static long reads_log(void) {
    char text[64];
    return syscall(SYS_syslog, 3, text, sizeof text) < 0 ? -1 : 0;
}
static long hangs_up(void) { return syscall(SYS_vhangup); }
static long adds_key(void) { return syscall(SYS_add_key, "user", "hvct", "x", 1, -2); }
static long reads_keyring(void) { return syscall(SYS_keyctl, 0, -3, 0) < 0 ? -1 : 0; }
static long requests_key(void) { return syscall(SYS_request_key, "user", "hvct", NULL, -2); }
static long makes_map(void) {
    union bpf_attr attributes;
    memset(&attributes, 0, sizeof attributes);
    attributes.map_type = BPF_MAP_TYPE_ARRAY;
    attributes.key_size = attributes.value_size = 4;
    attributes.max_entries = 1;
    return syscall(SYS_bpf, BPF_MAP_CREATE, &attributes, sizeof attributes) < 0 ? -1 : 0;
}
static long counts_events(int pid, int cpu) {
    struct perf_event_attr attributes = {.type = PERF_TYPE_SOFTWARE,
                                         .size = sizeof attributes,
                                         .config = PERF_COUNT_SW_TASK_CLOCK,
                                         .exclude_kernel = 1};
    return syscall(SYS_perf_event_open, &attributes, pid, cpu, -1, 0) < 0 ? -1 : 0;
}
static long counts_own(void) { return counts_events(0, -1); }
static long counts_all(void) { return counts_events(-1, 0); }
static long ring(void) {
    char parameters[128] = {0};
    return syscall(425 /* io_uring_setup */, 1, parameters) < 0 ? -1 : 0;
}
static long handles_faults(void) { return syscall(SYS_userfaultfd, 0) < 0 ? -1 : 0; }
static long handles_own_faults(void) {
    return syscall(SYS_userfaultfd, 1 /* user mode only */) < 0 ? -1 : 0;
}
static long watches_files(void) { return syscall(SYS_fanotify_init, 0, 0) < 0 ? -1 : 0; }
static long cookie(void) { return syscall(SYS_lookup_dcookie, 0ULL, NULL, 0); }
static long latest_call(void) { return syscall(LATEST_CALL, -1, "", 0, NULL, 0); }
#ifdef __x86_64__
static long ports(void) { return syscall(SYS_iopl, 3); }
static long one_port(void) { return syscall(SYS_ioperm, 0x80, 1, 1); }
static long call_of_i386(void) {
    long result = 310; /* unshare there */
    __asm__ volatile("int $0x80"
                     : "+a"(result)
                     : "b"(CLONE_NEWUSER)
                     : "memory", "r8", "r9", "r10", "r11");
    return result < 0 ? (errno = (int)-result, -1) : 0;
}
static long call_of_x32(void) { return syscall(0x40000000 + SYS_unshare, CLONE_NEWUSER); }
#endif

/* --- sockets ------------------------------------------------------------------------------- */

static long socket_of(int family, int type, int protocol) {
    int fd = socket(family, type, protocol);
    return fd < 0 ? -1 : close(fd);
}
static long raw_socket(void) { return socket_of(AF_INET, SOCK_RAW, 1); }
static long packet_socket(void) { return socket_of(AF_PACKET, SOCK_RAW, 0); }
static long vsock(void) { return socket_of(40, SOCK_STREAM, 0); }
static long crypto(void) { return socket_of(38, SOCK_SEQPACKET, 0); }
static long audit(void) {
    struct {
        uint32_t length;
        uint16_t type, flags;
        uint32_t sequence, port;
    } get = {16, 1000 /* AUDIT_GET */, 1, 1, 0};
    char answer[256];
    int32_t error = 0;
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK, 9);
    if (fd < 0 || send(fd, &get, sizeof get, 0) < 0)
        return -1;
    ssize_t size = recv(fd, answer, sizeof answer, 0);
    if (size < 0)
        return -1;
    if (size >= 20)
        memcpy(&error, answer + 16, sizeof error);
    return error ? (errno = -error, -1) : 0;
}
static long changes_link(void) {
    struct ifreq request = {.ifr_name = "lo"};
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (fd < 0 || ioctl(fd, SIOCGIFFLAGS, &request))
        return -1;
    return ioctl(fd, SIOCSIFFLAGS, &request);
}
/* The abstract names of the host's own sockets would be here without a network namespace. */
static long host_sockets(void) {
    char line[512];
    FILE *file = fopen("/proc/net/unix", "re");
    for (int lines = 0; file && fgets(line, sizeof line, file); lines++)
        if (lines > 0 && strchr(line, '@'))
            return 0;
    return errno = ENODATA, -1;
}

/* --- the list --------------------------------------------------------------------------------- */

static const struct {
    const char *title;
    long (*attempt)(void);
    long (*with_path)(const char *);
    const char *path;
} attempts[] = {
#define TRY(title, attempt)                                                                        \
    { title, attempt, NULL, NULL }
#define READ(path)                                                                                 \
    { "read " path, NULL, reads, path }
#define WRITE(path)                                                                                \
    { "write " path, NULL, writes, path }
    TRY("mount a tmpfs", mount_tmpfs),
    TRY("mount /proc anew", mount_proc),
    TRY("mount cgroup v1 (release_agent)", mount_cgroup),
    TRY("mount cgroup v2", mount_cgroup2),
    TRY("mount the host's /dev", mount_devices),
    TRY("bind / elsewhere", mount_bind),
    TRY("make /sys writable", writable_sys),
    TRY("make /proc/sys writable", writable_proc_sys),
    TRY("unmask /sys/firmware", unmask),
    TRY("fsopen", new_mount_api),
    TRY("open_tree with a clone", detached_tree),
    TRY("mount_setattr", mount_attributes),
    TRY("move_mount", moves_mount),
    TRY("pivot_root", pivots),
    TRY("chroot and climb out", chroot_and_up),
    TRY("a folder left open in the program", own_folder),
    TRY("a folder left open in process 1", first_folder),
    TRY("open_by_handle_at", file_handle),
    TRY("name_to_handle_at", name_of_file),
    TRY("make a disk's node in /tmp and open it", disk_in_tmp),
    TRY("make a disk's node in /dev and open it", disk_in_dev),
    TRY("make a disk's node in /dev/shm and open it", disk_in_shm),
    TRY("make /dev/mem and open it", memory_device),
    TRY("make /dev/kmsg and open it", log_device),
    TRY("make /dev/net/tun and open it", tunnel_device),
    TRY("make /dev/fuse and open it", fuse_device),
    TRY("make another /dev/null", null_elsewhere),
    WRITE("/proc/sysrq-trigger"),
    WRITE("/proc/sys/kernel/core_pattern"),
    WRITE("/proc/sys/kernel/modprobe"),
    WRITE("/proc/sys/vm/panic_on_oom"),
    WRITE("/proc/sys/net/ipv4/ip_forward"),
    WRITE("/proc/sys/fs/binfmt_misc/register"),
    WRITE("/proc/irq/default_smp_affinity"),
    WRITE("/sys/kernel/uevent_helper"),
    WRITE("/sys/kernel/mm/transparent_hugepage/enabled"),
    WRITE("/sys/kernel/profiling"),
    WRITE("/sys/power/state"),
    TRY("write a release_agent", release_agent),
    TRY("write limits of the own cgroup", own_limits),
    READ("/proc/kcore"),
    READ("/proc/keys"),
    READ("/proc/timer_list"),
    READ("/proc/latency_stats"),
    READ("/proc/sched_debug"),
    READ("/proc/interrupts"),
    READ("/proc/kmsg"),
    READ("/proc/acpi"),
    READ("/proc/scsi"),
    READ("/proc/vmallocinfo"),
    READ("/sys/firmware"),
    READ("/sys/kernel/debug"),
    READ("/sys/kernel/security"),
    READ("/sys/devices/virtual/powercap"),
    TRY("read addresses of kernel symbols", symbol_addresses),
    TRY("see a process of the host", host_process),
    TRY("trace a process of the host", trace_host),
    TRY("open the memory of a process of the host", host_memory),
    TRY("open the root of a process of the host", host_root),
    TRY("write the program of process 1", first_program),
    TRY("process_vm_readv", reads_memory),
    TRY("pidfd_getfd", takes_descriptor),
    TRY("process_madvise", advises),
    TRY("kcmp", compares),
    TRY("move_pages", moves_pages),
    TRY("set_mempolicy", memory_policy),
    TRY("gain rights by a set-user-ID program", set_user_id),
    TRY("regain CAP_SYS_ADMIN", regains_admin),
    TRY("regain CAP_MKNOD", regains_mknod),
    TRY("regain CAP_DAC_READ_SEARCH", regains_search),
    TRY("raise the priority", hurries),
    TRY("real-time scheduling", real_time),
    TRY("raise a hard limit", more_processes),
    TRY("personality: no address randomisation", personality_of),
    TRY("type into another terminal (TIOCSTI)", types_for_another),
    TRY("unshare a user namespace", unshare_user),
    TRY("unshare a mount namespace", unshare_mounts),
    TRY("unshare a network namespace", unshare_network),
    TRY("unshare a pid namespace", unshare_pids),
    TRY("unshare a cgroup namespace", unshare_cgroups),
    TRY("unshare a time namespace", unshare_time),
    TRY("clone a user namespace", clone_user),
    TRY("clone a mount namespace", clone_mounts),
    TRY("clone3 a user namespace", clone3_user),
    TRY("setns to a network namespace", enter_network),
    TRY("setns to a user namespace", enter_user),
    TRY("sethostname", host_name),
    TRY("setdomainname", domain_name),
    TRY("init_module", loads_module),
    TRY("finit_module", loads_module_file),
    TRY("delete_module", removes_module),
    TRY("kexec_load", loads_kernel),
    TRY("reboot", reboots),
    TRY("settimeofday", sets_time),
    TRY("swapon", swaps_on),
    TRY("swapoff", swaps_off),
    TRY("acct", accounts),
    TRY("quotactl", quota),
    TRY("read the kernel's log", reads_log),
    TRY("vhangup", hangs_up),
    TRY("add_key", adds_key),
    TRY("keyctl", reads_keyring),
    TRY("request_key", requests_key),
    TRY("bpf: make a map", makes_map),
    TRY("perf_event_open on itself", counts_own),
    TRY("perf_event_open on a whole CPU", counts_all),
    TRY("io_uring_setup", ring),
    TRY("userfaultfd", handles_faults),
    TRY("userfaultfd for user mode only", handles_own_faults),
    TRY("fanotify_init", watches_files),
    TRY("lookup_dcookie", cookie),
    TRY("a call that is newer than the filter", latest_call),
#ifdef __x86_64__
    TRY("iopl", ports),
    TRY("ioperm", one_port),
    TRY("unshare by the i386 ABI", call_of_i386),
    TRY("unshare by the x32 ABI", call_of_x32),
#endif
    TRY("a raw socket", raw_socket),
    TRY("a packet socket", packet_socket),
    TRY("a vsock socket", vsock),
    TRY("a socket of the kernel's cryptography", crypto),
    TRY("ask the audit system", audit),
    TRY("change a network interface", changes_link),
    TRY("see abstract sockets of the host", host_sockets),
};

int main(int argc, char **argv) {
    if (argc != 2)
        return 2;
    if (!strcmp(argv[1], "who"))
        return geteuid() == 0 ? 0 : EPERM;
    host_pid = atoi(argv[1]);
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (size_t i = 0; i < sizeof attempts / sizeof *attempts; i++) {
        int status = 0;
        pid_t pid = fork();
        if (pid == 0) {
            alarm(5);
            errno = 0;
            long result = attempts[i].attempt ? attempts[i].attempt()
                                              : attempts[i].with_path(attempts[i].path);
            _exit(result < 0 ? errno : 0);
        }
        waitpid(pid, &status, 0);
        printf("%s\t%d\n", attempts[i].title, WIFEXITED(status) ? WEXITSTATUS(status) : KILLED);
    }
    return 0;
}
