/* The identity receipt: what really runs, gathered by the workload's own process just before its
 * exec. Content digests are made on the host from fetched files. */
#define _GNU_SOURCE
#include "frames.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/capability.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <unistd.h>

const char *const rlimit_names[RLIM_NLIMITS] = {
    [RLIMIT_CPU] = "CPU",           [RLIMIT_FSIZE] = "FSIZE",
    [RLIMIT_DATA] = "DATA",         [RLIMIT_STACK] = "STACK",
    [RLIMIT_CORE] = "CORE",         [RLIMIT_RSS] = "RSS",
    [RLIMIT_NPROC] = "NPROC",       [RLIMIT_NOFILE] = "NOFILE",
    [RLIMIT_MEMLOCK] = "MEMLOCK",   [RLIMIT_AS] = "AS",
    [RLIMIT_LOCKS] = "LOCKS",       [RLIMIT_SIGPENDING] = "SIGPENDING",
    [RLIMIT_MSGQUEUE] = "MSGQUEUE", [RLIMIT_NICE] = "NICE",
    [RLIMIT_RTPRIO] = "RTPRIO",     [RLIMIT_RTTIME] = "RTTIME",
};

/* The beginning of a small file, without the newline at its end. */
bool read_text(const char *path, char *buffer, size_t size) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    size_t have = 0;
    for (ssize_t n = 1; fd >= 0 && n > 0 && have<size - 1; have += n> 0 ? (size_t)n : 0)
        n = read(fd, buffer + have, size - 1 - have);
    buffer[have] = 0;
    if (have && buffer[have - 1] == '\n')
        buffer[have - 1] = 0;
    return fd >= 0 && close(fd) == 0;
}

/* Add the value that follows `label` (at the start of a line) in `text`. */
static void add_line(struct record *out, const char *key, const char *text, const char *label) {
    size_t size = strlen(label);
    while (text && strncmp(text, label, size))
        if ((text = strchr(text, '\n')))
            text++;
    if (!text)
        return;
    text += size + strspn(text + size, " \t:");
    record_add(out, key, "%.*s", (int)strcspn(text, "\n"), text);
}

static void add_number(struct record *out, const char *key, uint64_t value) {
    record_add(out, key, "%llu", (unsigned long long)value);
}

static void add_file(struct record *out, const char *key, const char *path) {
    char text[4096];
    if (read_text(path, text, sizeof text))
        record_add(out, key, "%s", text);
}

/* The guest's own: elsewhere it is the host's, no fact of the instance, and private. */
static void add_guest(struct record *out) {
    char text[4096];
    const char *line;
    unsigned long long kib;
    add_file(out, "cmdline", "/proc/cmdline");
    if (read_text("/proc/meminfo", text, sizeof text) && (line = strstr(text, "MemAvailable:")) &&
        sscanf(line, "MemAvailable: %llu kB", &kib) == 1)
        add_number(out, "mem_available_bytes", kib * 1024);
}

static void add_rlimits(struct record *out) {
    for (int i = 0; i < RLIM_NLIMITS; i++) {
        struct rlimit limit;
        char text[2][24] = {"unlimited", "unlimited"};
        if (!rlimit_names[i] || getrlimit(i, &limit))
            continue;
        if (limit.rlim_cur != RLIM_INFINITY)
            snprintf(text[0], sizeof text[0], "%llu", (unsigned long long)limit.rlim_cur);
        if (limit.rlim_max != RLIM_INFINITY)
            snprintf(text[1], sizeof text[1], "%llu", (unsigned long long)limit.rlim_max);
        record_add(out, "rlimit", "%s:%s:%s", rlimit_names[i], text[0], text[1]);
    }
}

static void add_set(struct record *out, const char *key, uint64_t set) {
    record_add(out, key, "%016llx", (unsigned long long)set);
}

/* As /proc/self/status has them; the kernel takes several times as long to write that. */
static void add_capabilities(struct record *out) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct half[2];
    uint64_t inheritable, bounding = 0, ambient = 0;
    if (syscall(SYS_capget, &header, half))
        return;
    inheritable = half[0].inheritable | (uint64_t)half[1].inheritable << 32;
    for (int cap = 0, held; cap < 64 && (held = prctl(PR_CAPBSET_READ, cap, 0, 0, 0)) >= 0; cap++)
        bounding |= (uint64_t)held << cap;
    /* What is not inheritable is not ambient. */
    for (int cap = 0; cap < 64 && inheritable >> cap; cap++)
        if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, cap, 0, 0) > 0)
            ambient |= 1ULL << cap;
    add_set(out, "cap_inheritable", inheritable);
    add_set(out, "cap_permitted", half[0].permitted | (uint64_t)half[1].permitted << 32);
    add_set(out, "cap_effective", half[0].effective | (uint64_t)half[1].effective << 32);
    add_set(out, "cap_bounding", bounding);
    add_set(out, "cap_ambient", ambient);
}

static void add_identity(struct record *out) {
    char text[PATH_MAX];
    gid_t groups[GROUPS_MAX];
    int count = getgroups(GROUPS_MAX, groups);
    mode_t mask = umask(0);
    umask(mask);
    if (getcwd(text, sizeof text))
        record_add(out, "cwd", "%s", text);
    record_add(out, "uid", "%u", getuid());
    record_add(out, "gid", "%u", getgid());
    for (int i = 0; i < count; i++)
        record_add(out, "group", "%u", groups[i]);
    record_add(out, "umask", "%04o", (unsigned)mask);
    record_add(out, "pid", "%d", getpid());
    record_add(out, "securebits", "%d", prctl(PR_GET_SECUREBITS, 0, 0, 0, 0));
    record_add(out, "timerslack_ns", "%d", prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0));
    record_add(out, "nice", "%d", getpriority(PRIO_PROCESS, 0));
    record_add(out, "no_new_privs", "%d", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
    add_capabilities(out);
}

static void add_file_system(struct record *out, const char *path, const char *prefix) {
    struct statfs info;
    char key[64];
    if (statfs(path, &info))
        return;
    snprintf(key, sizeof key, "%s_magic", prefix);
    record_add(out, key, "%lx", (unsigned long)info.f_type);
    snprintf(key, sizeof key, "%s_bytes", prefix);
    add_number(out, key, (uint64_t)info.f_blocks * (uint64_t)info.f_bsize);
    snprintf(key, sizeof key, "%s_inodes", prefix);
    add_number(out, key, info.f_files);
}

static void add_machine(struct record *out) {
    cpu_set_t cpus;
    struct utsname name;
    struct sysinfo memory;
    if (sched_getaffinity(0, sizeof cpus, &cpus) == 0)
        record_add(out, "cpus_allowed", "%d", CPU_COUNT(&cpus));
    add_file(out, "cpus_online", "/sys/devices/system/cpu/online");
    if (sysinfo(&memory) == 0) {
        add_number(out, "mem_total_bytes", (uint64_t)memory.totalram * memory.mem_unit);
        add_number(out, "swap_total_bytes", (uint64_t)memory.totalswap * memory.mem_unit);
    }
    if (uname(&name) == 0) {
        record_add(out, "hostname", "%s", name.nodename);
        record_add(out, "release", "%s", name.release);
        record_add(out, "machine", "%s", name.machine);
    }
    add_file_system(out, "/", "writable");
    add_file_system(out, "/dev/shm", "shm");
}

static void add_vulnerabilities(struct record *out) {
    static const char folder[] = "/sys/devices/system/cpu/vulnerabilities";
    DIR *listing = opendir(folder);
    for (struct dirent *entry; listing && (entry = readdir(listing));) {
        char path[PATH_MAX], text[512];
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        if (entry->d_name[0] != '.' && read_text(path, text, sizeof text))
            record_add(out, "vulnerability", "%s:%s", entry->d_name, text);
    }
    if (listing)
        closedir(listing);
}

/* What else a kernel is told to do, and programs notice. */
static void add_settings(struct record *out) {
    static const char *const paths[] = {
        "/proc/sys/kernel/numa_balancing",
        "/proc/sys/kernel/sched_autogroup_enabled",
        "/proc/sys/net/core/rmem_max",
        "/proc/sys/net/core/somaxconn",
        "/proc/sys/net/core/wmem_max",
        "/proc/sys/net/ipv4/tcp_congestion_control",
        "/proc/sys/net/ipv4/tcp_rmem",
        "/proc/sys/net/ipv4/tcp_wmem",
        "/proc/sys/vm/dirty_background_ratio",
        "/proc/sys/vm/dirty_ratio",
        "/proc/sys/vm/max_map_count",
        "/proc/sys/vm/swappiness",
        "/sys/kernel/mm/transparent_hugepage/defrag",
        "/sys/kernel/mm/transparent_hugepage/shmem_enabled",
    };
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        char text[256];
        if (read_text(paths[i], text, sizeof text))
            record_add(out, "setting", "%s=%s", paths[i], text);
    }
}

static void add_digest_level(struct record *out) {
    char text[8192];
    struct utsname name;
    if (uname(&name) == 0)
        record_add(out, "version", "%s", name.version);
    if (read_text("/proc/cpuinfo", text, sizeof text)) {
        add_line(out, "cpu_vendor", text, "vendor_id");
        add_line(out, "cpu_model", text, "model name");
        add_line(out, "cpu_microcode", text, "microcode");
        add_line(out, "cpu_flags", text, "flags");
        add_line(out, "cpu_bugs", text, "bugs");
    }
    add_vulnerabilities(out);
    add_file(out, "thp", "/sys/kernel/mm/transparent_hugepage/enabled");
    add_file(out, "clocksource",
             "/sys/devices/system/clocksource/clocksource0/current_clocksource");
    add_file(out, "entropy_avail", "/proc/sys/kernel/random/entropy_avail");
    add_file(out, "overcommit_memory", "/proc/sys/vm/overcommit_memory");
    add_file(out, "randomize_va_space", "/proc/sys/kernel/randomize_va_space");
    add_settings(out);
}

void receipt_gather(struct record *out, const struct run *run, const char *program) {
    struct stat info;
    for (char **arg = run->argv; *arg; arg++)
        record_add(out, "arg", "%s", *arg);
    for (char **env = run->env; *env; env++)
        record_add(out, "env", "%s", *env);
    record_add(out, "program", "%s", program);
    if (stat(program, &info) == 0) {
        record_add(out, "program_inode", "%llu", (unsigned long long)info.st_ino);
        record_add(out, "program_size", "%llu", (unsigned long long)info.st_size);
        record_add(out, "program_mode", "%04o", (unsigned)info.st_mode & 07777);
    }
    add_identity(out);
    add_rlimits(out);
    add_machine(out);
    if (run->digest && agent.virtual_machine)
        add_guest(out);
    if (run->digest)
        add_digest_level(out);
}
