#!/bin/busybox sh
# The first process of a guest: makes a plain system, runs /lab/command, reports its status and switches off.
# ttyS0 is the kernel's log, ttyS1 the command's output, ttyS2 the status. Called again with `rooted`, see below.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root TERM=dumb

# pivot_root(2), which programs in mount namespaces use, does not work in the ramfs that the kernel unpacked into,
# but in a bind mount of it: make one, put it in the place of the root and go on there.
if [ "$1" != rooted ]; then
  /bin/busybox mkdir -p /bin /sbin /lab/root
  /bin/busybox --install -s /bin
  mount --bind / /lab/root
  cd /lab/root && mount --move . / && exec chroot . /init rooted
fi

mkdir -p /proc /sys /dev /run /tmp /root /var/tmp
chmod 1777 /tmp /var/tmp
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
for place in /dev/shm /run /tmp; do
  # A directory with something in it came with the guest, whose files a mount would hide.
  [ -n "$(ls -A $place)" ] || mount -t tmpfs -o mode=1777 tmpfs $place
done
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t securityfs securityfs /sys/kernel/security
mount -t tracefs tracefs /sys/kernel/tracing
mount -t debugfs debugfs /sys/kernel/debug
ln -s /proc/self/fd /dev/fd
hostname lab
ip link set lo up
for module in $(cat /lab/modules); do insmod "/lab/ko/$module"; done

for tty in ttyS1 ttyS2; do stty -F /dev/$tty raw -echo; done
setsid sh /lab/command </dev/null >/dev/ttyS1 2>&1
status=$?
stty -F /dev/ttyS1 raw -echo # waits until what was written is out
echo $status >/dev/ttyS2
poweroff -f
