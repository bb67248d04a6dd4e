/* The steps that make an instance's network: its namespace, its link to the bridge, addresses. */
#define _GNU_SOURCE
#include "launcher.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

int host_route = -1;

/* The network namespace we are in, to be handed over with the reply. */
int do_keep_netns(const struct step *step) {
    (void)step;
    outcome->kept = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
    return outcome->kept < 0 ? -1 : 0;
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
    dup3(null_fd, NETNS_FD, O_CLOEXEC); /* taken again: see start() */
    errno = error;
    return error ? -1 : 0;
}

int do_link(const struct step *step) {
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
int do_interface(const struct step *step) {
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
int do_neighbour(const struct step *step) {
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

/* The link steps of a child in a user namespace, which may not take them itself, done by its
 * parent into the child's namespace `ns`. Returns 0 or an errno, with the step that failed. */
int link_from_outside(const char *ns, int *failed) {
    for (int i = 0; i < request.step_count; i++) {
        *failed = i;
        if (request.steps[i].operation->run == do_link &&
            send_link(request.steps[i].arg[0], ns) < 0)
            return errno;
    }
    return 0;
}
