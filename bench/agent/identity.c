/* What makes a guest itself and no other: address, names, clock, randomness. All of it comes last,
 * so that a guest may be saved before and be many afterwards. */
#define _GNU_SOURCE
#include "frames.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <netinet/ether.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static int set_flags(int fd, const char *link) {
    struct ifreq request = {0};
    snprintf(request.ifr_name, sizeof request.ifr_name, "%s", link);
    /* The driver's module is loaded, but its probe may still be under way. */
    for (int waited = 0; ioctl(fd, SIOCGIFFLAGS, &request); waited++) {
        if (waited == DEVICE_WAIT_MS)
            return -1;
        usleep(1000);
    }
    request.ifr_flags |= IFF_UP | IFF_RUNNING;
    return ioctl(fd, SIOCSIFFLAGS, &request);
}

static int set_address(int fd, const char *address) {
    struct ifreq request = {.ifr_name = "eth0"};
    struct sockaddr_in *place = (struct sockaddr_in *)&request.ifr_addr;
    char ip[INET_ADDRSTRLEN];
    uint64_t prefix;
    const char *slash = strchr(address, '/');
    if (!slash || (size_t)(slash - address) >= sizeof ip || !number(slash + 1, 10, 32, &prefix))
        return errno = EINVAL, -1;
    memcpy(ip, address, (size_t)(slash - address));
    ip[slash - address] = 0;
    place->sin_family = AF_INET;
    if (inet_pton(AF_INET, ip, &place->sin_addr) != 1)
        return errno = EINVAL, -1;
    if (ioctl(fd, SIOCSIFADDR, &request))
        return -1;
    place->sin_addr.s_addr = prefix ? htonl(~0u << (32 - prefix)) : 0;
    return ioctl(fd, SIOCSIFNETMASK, &request) ? -1 : set_flags(fd, "eth0");
}

/* "ip mac" as a permanent entry: the first packet must not wait for ARP. */
static int set_neighbour(int fd, const char *neighbour) {
    struct arpreq request = {.arp_flags = ATF_COM | ATF_PERM, .arp_dev = "eth0"};
    struct sockaddr_in *place = (struct sockaddr_in *)&request.arp_pa;
    char ip[INET_ADDRSTRLEN], mac[18];
    if (sscanf(neighbour, "%15s %17s", ip, mac) != 2 ||
        inet_pton(AF_INET, ip, &place->sin_addr) != 1)
        return errno = EINVAL, -1;
    struct ether_addr *hardware = ether_aton(mac);
    if (!hardware)
        return errno = EINVAL, -1;
    place->sin_family = AF_INET;
    request.arp_ha.sa_family = ARPHRD_ETHER;
    memcpy(request.arp_ha.sa_data, hardware, ETH_ALEN);
    return ioctl(fd, SIOCSARP, &request);
}

int guest_loopback(void) {
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || set_flags(fd, "lo"))
        return fail("guest.network", "lo");
    close(fd);
    return 0;
}

/* While the card is down: its driver wants that, and no frame may bear another's address. */
static int set_mac(int fd, const char *mac) {
    struct ifreq request = {.ifr_name = "eth0"};
    struct ether_addr *hardware = ether_aton(mac);
    if (!hardware)
        return errno = EINVAL, -1;
    request.ifr_hwaddr.sa_family = ARPHRD_ETHER;
    memcpy(request.ifr_hwaddr.sa_data, hardware, ETH_ALEN);
    return ioctl(fd, SIOCSIFHWADDR, &request);
}

static int set_network(const struct guest *guest) {
    if (!guest->mac && !guest->address && !guest->neighbour)
        return 0;
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return fail("guest.network", "socket");
    if (guest->mac && set_mac(fd, guest->mac))
        return fail("guest.mac", guest->mac);
    if (guest->address && set_address(fd, guest->address))
        return fail("guest.address", guest->address);
    if (guest->neighbour && set_neighbour(fd, guest->neighbour))
        return fail("guest.neighbour", guest->neighbour);
    close(fd);
    return 0;
}

static int hosts = -1, machine_id = -1; /* the files, before they have a name in them */

/* After the switch, so that links in the image lead where the image means. Before a guest is
 * saved: copying up a folder of the image is a third of what is left. */
int guest_open_names(void) {
    mkdir("/etc", 0755);
    if ((hosts = guest_create("/etc/hosts")) < 0)
        return fail("guest.hosts", "/etc/hosts");
    if ((machine_id = guest_create("/etc/machine-id")) < 0)
        return fail("guest.machine_id", "/etc/machine-id");
    return 0;
}

static int set_names(const struct run *run) {
    const char *name = run->hostname ? run->hostname : "localhost";
    const char *address = run->guest.address;
    if (sethostname(name, strlen(name)))
        return fail("hostname", name);
    if (dprintf(hosts, "127.0.0.1\tlocalhost\n::1\tlocalhost\n%.*s\t%s\n",
                address ? (int)strcspn(address, "/") : 9, address ? address : "127.0.1.1",
                name) < 0)
        return fail("guest.hosts", "/etc/hosts");
    if (run->machine_id && dprintf(machine_id, "%s\n", run->machine_id) < 0)
        return fail("guest.machine_id", "/etc/machine-id");
    close_fd(&hosts);
    close_fd(&machine_id);
    return 0;
}

int guest_own(const struct run *run) { return set_network(&run->guest) || set_names(run) ? -1 : 0; }

/* A saved clock stands where it stood: the host tells what time it is. And all that are restored
 * from one file have the same generator: from here on each has its own. */
int guest_wake(uint64_t realtime_ns, const unsigned char *seed, size_t size) {
    const uint64_t second = 1000000000;
    struct timespec now = {(time_t)(realtime_ns / second), (long)(realtime_ns % second)};
    if (clock_settime(CLOCK_REALTIME, &now)) /* at once, before time passes */
        return fail("guest.clock", "clock_settime");
    struct { /* rand_pool_info, whose last member has no size */
        int entropy_bits, size;
        unsigned char seed[ENTROPY_BYTES];
    } pool = {(int)size * 8, (int)size, {0}};
    memcpy(pool.seed, seed, size);
    int fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);
    if (fd < 0 || ioctl(fd, RNDADDENTROPY, &pool) || ioctl(fd, RNDRESEEDCRNG))
        return fail("guest.entropy", "/dev/urandom");
    close(fd);
    return 0;
}
