"""The virtual-machine arm: libvirt, QEMU, KVM or TCG."""
