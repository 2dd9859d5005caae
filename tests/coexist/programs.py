"""Other programs that change the packet filter: each starts in the lab as its service would start it."""

from __future__ import annotations

import os
import shlex
import time
from abc import ABC, abstractmethod
from collections.abc import Callable

from tests.lab.networks import SECOND_CARD
from vpcctl.lab import HOST, INTERNET, RUN_LAB, Lab

FAR = str(INTERNET)
NEIGHBOUR = "neighbour"
# Each gets a file system of its own: the lab's /run allows no device files, and the configuration is the real
# machine's.
OWN = ("/etc", "/run/images")
GROUP = f"vpcctl-coexist-{os.getpid()}"
IMAGE = "/run/images/image.tar"
# Control groups belong to the real machine, so those of a container have to be removed with the lab.
GROUPS_GONE = f"find /sys/fs/cgroup/{GROUP} -depth -type d -exec rmdir {{}} + 2>/dev/null || true"


def prepare(lab: Lab) -> None:
    """Make copies of the directories that programs write to, with the files of their packages."""
    mounts = "".join(
        f"mkdir -p {path} /run/copies; mount -t tmpfs own /run/copies;"
        f" cp -a {path}/. /run/copies/; mount --move /run/copies {path}\n"
        for path in OWN
    )
    lab.run(["sh", "-ec", mounts + "mkdir -p /run/dbus"])


def shell(lab: Lab, script: str, netns: str | None = None, timeout: float = 60) -> str:
    """Run a script to its end; returns its output."""
    return lab.run(["sh", "-ec", script], netns=netns, timeout=timeout).stdout


def fetches(lab: Lab, address: str, prefix: list[str] | None = None, netns: str | None = None, wait: int = 6) -> bool:
    """Is a page served at `address` within `wait` seconds?"""
    words = ["curl", "-s", "-o/dev/null", "--connect-timeout", "1", "--retry", str(wait), "--retry-all-errors"]
    words += ["--retry-delay", "1", "--retry-max-time", str(wait), "--max-time", "2", f"http://{address}/"]
    return lab.run([*(prefix or []), *words], netns=netns, check=False).returncode == 0


def works_in_container(lab: Lab, pid: str, wait: int) -> bool:
    """Does the container of a process reach the internet, and the LAN its published port?"""
    # Our client in the container's namespace: the image has no client.
    out = fetches(lab, FAR, ["nsenter", f"--net=/proc/{shell(lab, f'echo {pid}').strip()}/ns/net"], wait=wait)
    return out and fetches(lab, f"{HOST}:9090", netns=NEIGHBOUR, wait=wait)


def serve(lab: Lab, port: int, netns: str | None = None) -> None:
    """A web server that ends with the lab."""
    words = f"setsid python3 -m http.server {port} --directory /run/images >/dev/null 2>&1 </dev/null &"
    shell(lab, words, netns=netns)


def eventually(condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
    """Wait for a condition of the machine, at most so long."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"{what} did not happen within {seconds:.0f} s")
        time.sleep(0.2)


def succeeds(lab: Lab, *words: str) -> bool:
    return lab.run(list(words), check=False).returncode == 0


class Program(ABC):
    """A program, and the traffic that it makes possible."""

    name: str
    # Programs that the test needs.
    needs: tuple[str, ...]
    # Address and port that stay closed to VPCs even after the remedy of `vpcctl doctor`.
    closed: str = ""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def surroundings(self) -> None:  # noqa: B027 # most need nothing
        """Prepare the machine, before the program and `vpcctl` start."""

    @abstractmethod
    def start(self) -> None:
        """Start it for the first time, with a container or peer that uses it."""

    @abstractmethod
    def restart(self) -> None:
        """Stop it and start it again, as `systemctl restart` does."""

    @abstractmethod
    def works(self, wait: int = 6) -> bool:
        """Does the traffic pass that the program makes possible?"""

    def reload(self) -> None:
        """Make it write its rules again without a restart, if its row has such a command."""
        raise NotImplementedError

    def end(self) -> None:  # noqa: B027 # most need nothing
        """Remove what the end of the lab does not remove."""

    def daemon(self, words: str, log: str) -> None:
        """Start a long-running process that does not hold our pipes."""
        self.lab.run(["sh", "-ec", f"setsid {words} >/run/{log}.log 2>&1 </dev/null & echo $! >/run/{log}.started"])

    def stop(self, log: str) -> None:
        """End a process that `daemon` started, as systemd does, and wait until it has ended."""
        pid = shell(self.lab, f"cat /run/{log}.started").strip()
        shell(self.lab, f"kill {pid}")
        eventually(lambda: not succeeds(self.lab, "kill", "-0", pid), f"the end of {log}")


class Docker(Program):
    """dockerd with a container that has a published port."""

    name = "Docker"
    needs = ("dockerd", "docker", "/bin/busybox")
    closed = "172.17.0.2:81"

    def start(self) -> None:
        shell(self.lab, "mount -t cgroup2 none /sys/fs/cgroup")
        shell(self.lab, "mkdir /run/images/root /run/images/root/bin; cp /bin/busybox /run/images/root/bin")
        self._serve()
        shell(self.lab, "tar -C /run/images/root -c . | docker import - image")
        run = "docker run --detach --name page --restart always --publish 9090:80"
        shell(self.lab, f"{run} --cgroup-parent /{GROUP} image /bin/busybox httpd -f -p 80")
        # Docker itself opens a published port to everybody; this port is not published.
        pid = shell(self.lab, "docker inspect -f '{{.State.Pid}}' page").strip()
        inside = f"nsenter --net=/proc/{pid}/ns/net python3 -m http.server 81 --directory /run/images"
        shell(self.lab, f"setsid {inside} >/dev/null 2>&1 </dev/null &")

    def _serve(self) -> None:
        place = "--data-root /run/images/data --exec-root /run/images/exec --pidfile /run/images/docker.pid"
        self.daemon(f"dockerd {place} --storage-driver vfs --exec-opt native.cgroupdriver=cgroupfs", "dockerd")
        eventually(lambda: succeeds(self.lab, "docker", "info"), "the start of dockerd")

    def restart(self) -> None:
        self.stop("dockerd")
        self._serve()
        running = "docker inspect -f '{{.State.Running}}' page | grep -q true"
        eventually(lambda: succeeds(self.lab, "sh", "-c", running), "the start of the container")

    def works(self, wait: int = 6) -> bool:
        pid = "$(docker inspect -f '{{.State.Pid}}' page)"
        return works_in_container(self.lab, pid, wait)

    def end(self) -> None:
        self.lab.run(["sh", "-c", "docker rm --force page"], check=False)
        self.lab.run(["sh", "-c", "kill $(cat /run/dockerd.started)"], check=False)
        eventually(lambda: not succeeds(self.lab, "sh", "-c", "kill -0 $(cat /run/dockerd.started)"), "its end")
        self.lab.run(["sh", "-c", GROUPS_GONE], check=False)


class Podman(Program):
    """podman with netavark, with a container that has a published port."""

    name = "podman"
    needs = ("podman", "crun", "/usr/lib/podman/netavark", "/bin/busybox")
    _settings = """
[network]
network_backend = "netavark"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
runtime = "crun"
"""
    _call = "podman --root /run/images/data --runroot /run/images/state --tmpdir /run/images/tmp --storage-driver vfs"

    def start(self) -> None:
        shell(self.lab, "mount -t cgroup2 none /sys/fs/cgroup")
        shell(self.lab, "mkdir -p /run/images/root/bin; cp /bin/busybox /run/images/root/bin")
        settings = "mkdir -p /etc/containers; cat >/etc/containers/containers.conf"
        self.lab.run(["sh", "-c", settings], input=self._settings)
        shell(self.lab, f"tar -C /run/images/root -cf {IMAGE} .")
        self._podman(f"import {IMAGE} image")
        # What a container needs where the machine has no control groups to delegate.
        limits = "--cgroups=disabled --no-hosts --ulimit nofile=20000:20000 --ulimit nproc=20000:20000"
        self._podman(f"run --detach --name page --publish 9090:80 {limits} image /bin/busybox httpd -f -p 80")

    def _podman(self, words: str) -> None:
        shell(self.lab, f"{self._call} {words} >/dev/null")

    def restart(self) -> None:
        self._podman("restart --time 0 page")

    def reload(self) -> None:
        self._podman("network reload --all")

    def works(self, wait: int = 6) -> bool:
        return works_in_container(self.lab, f"$({self._call} inspect -f '{{{{.State.Pid}}}}' page)", wait)

    def end(self) -> None:
        self.lab.run(["sh", "-c", f"{self._call} rm --force --time 0 page"], check=False)


OPEN, SHUT = 22, 7777


class HostFirewall(Program):
    """A firewall of the host: a port that it allows answers, another one does not, and networks stay separate."""

    closed = "192.0.2.9:80"

    def surroundings(self) -> None:
        shell(self.lab, SECOND_CARD)
        for port in (OPEN, SHUT):
            serve(self.lab, port)
        serve(self.lab, 80, "lan2")

    def works(self, wait: int = 6) -> bool:
        open_ = fetches(self.lab, f"{HOST}:{OPEN}", netns=NEIGHBOUR, wait=wait)
        return open_ and not fetches(self.lab, f"{HOST}:{SHUT}", netns=NEIGHBOUR, wait=0)


class Firewalld(HostFirewall):
    """firewalld as Debian configures it, with a D-Bus of its own."""

    name = "firewalld"
    needs = ("firewalld", "firewall-cmd", "dbus-daemon")

    def start(self) -> None:
        bus = "unix:path=/run/dbus/system_bus_socket"
        self.daemon(f"dbus-daemon --system --nofork --nopidfile --address={bus}", "dbus")
        self._serve()

    def _serve(self) -> None:
        # firewalld uses Debian's Python, and modules of ours would hide Debian's.
        self.daemon("env --unset=PYTHONPATH firewalld --nofork --nopid", "firewalld")
        eventually(lambda: succeeds(self.lab, "firewall-cmd", "--state"), "the start of firewalld")

    def restart(self) -> None:
        self.stop("firewalld")
        self._serve()


class Ufw(HostFirewall):
    """ufw as Debian configures it, with a port for SSH."""

    name = "ufw"
    needs = ("ufw",)

    def start(self) -> None:
        shell(self.lab, f"ufw allow {OPEN}/tcp; ufw --force enable")

    def restart(self) -> None:
        shell(self.lab, "/lib/ufw/ufw-init stop; /lib/ufw/ufw-init start")

    def reload(self) -> None:
        shell(self.lab, "ufw reload")


class Libvirt(Program):
    """libvirtd with its default network, and a namespace on its bridge in place of a virtual machine."""

    name = "libvirt"
    needs = ("libvirtd", "virsh", "dnsmasq")
    _machine = """
ip netns add machine
ip link add vnet0 type veth peer name eth0 netns machine
ip link set vnet0 master virbr0 up
ip -n machine address add 192.168.122.10/24 dev eth0
ip -n machine link set eth0 up
ip -n machine route add default via 192.168.122.1
"""

    def start(self) -> None:
        places = "/var/lib/libvirt /var/lib/libvirt/dnsmasq /var/lib/libvirt/qemu /var/lib/libvirt/network"
        shell(
            self.lab, f"mount -t tmpfs own /var/lib/libvirt; mount -t tmpfs own /var/cache/libvirt; mkdir -p {places}"
        )
        self._serve()
        shell(self.lab, "virsh -c network:///system net-start default")
        shell(self.lab, self._machine)

    def _serve(self) -> None:
        self.daemon("libvirtd", "libvirtd")
        eventually(lambda: succeeds(self.lab, "virsh", "-c", "network:///system", "net-list"), "the start of libvirtd")

    def restart(self) -> None:
        self.stop("libvirtd")
        self._serve()

    def works(self, wait: int = 6) -> bool:
        return fetches(self.lab, FAR, netns="machine", wait=wait)


class WgQuick(Program):
    """A WireGuard tunnel as default route, by wg-quick; its server is in the lab's internet."""

    name = "wg-quick"
    needs = ("wg", "wg-quick", "wireguard-go", "/dev/net/tun")

    def start(self) -> None:
        ours, server = (shell(self.lab, "wg genkey").strip() for _ in range(2))
        ours_public, server_public = (shell(self.lab, f"echo {key} | wg pubkey").strip() for key in (ours, server))
        far = f"[Interface]\nPrivateKey = {server}\nListenPort = 51820\n[Peer]\nPublicKey = {ours_public}\n"
        self.lab.run(["sh", "-c", "umask 77; cat >/run/images/far.conf"], input=far + "AllowedIPs = 192.0.2.2/32\n")
        near = f"[Interface]\nPrivateKey = {ours}\nAddress = 192.0.2.2/24\n[Peer]\nPublicKey = {server_public}\n"
        near += "Endpoint = 198.51.100.1:51820\nAllowedIPs = 0.0.0.0/0\n"
        self.lab.run(["sh", "-c", "mkdir -p /etc/wireguard; umask 77; cat >/etc/wireguard/wg0.conf"], input=near)
        inside = "wireguard-go wgfar >/dev/null 2>&1 </dev/null; wg setconf wgfar /run/images/far.conf"
        address = "ip address add 192.0.2.1/24 dev wgfar; ip link set wgfar up"
        shell(self.lab, f"nsenter --net={RUN_LAB}/internet sh -ec {shlex.quote(f'{inside}; {address}')}")
        self._up()

    def _up(self) -> None:
        shell(self.lab, "wg-quick up wg0 >/run/images/up.log 2>&1 </dev/null || { cat /run/images/up.log; exit 1; }")

    def restart(self) -> None:
        shell(self.lab, "wg-quick down wg0 >/dev/null 2>&1")
        self._up()

    def works(self, wait: int = 6) -> bool:
        page = self.lab.run(["curl", "-s", "--max-time", str(max(wait, 2)), f"http://{FAR}/"], check=False).stdout
        # By the tunnel, not by the LAN.
        return page.strip().endswith("heard you from 192.0.2.2")


PROGRAMS: dict[str, type[Program]] = {one.name: one for one in (Docker, Podman, Firewalld, Ufw, Libvirt, WgQuick)}
