"""Hosts of one network as Linux namespaces: no two of them share a folder, a process or a loopback address.

Needs root and iproute2. The first process of a host is the first one of its PID namespace. When it ends, the kernel
kills all others, and removes the mounts and the interfaces. It dies with the process that made the host, so nothing
remains after a test run that is killed.
"""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import psutil

_SECONDS_FOR_A_COMMAND = 600
_SECONDS_TO_END = 20
# The addresses for tests of networks, RFC 2544. Two test runs on one machine use different ones.
_NETWORK = f"198.18.{os.getpid() % 256}"
_UNSHARE = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--pid", "--mount-proc", "--fork", "--kill-child"]
# On every host the folder $0, in which all hosts have their folders, is the own one.
_BEGIN = 'hostname "$1" && mount --bind "$0/$1" "$0" && ip link set lo up && echo begun && exec sleep infinity'


class Host:
    """A host of a `Network`. ``folder``: its folder, which its own processes see as `Network.folder`."""

    def __init__(self, network: "Network", name: str, address: str) -> None:
        self.name = name
        self.address = address
        self.folder = network.folder / name
        self.environment: dict[str, str] = {}
        self._network = network
        self.folder.mkdir()
        self.power_on()

    def power_on(self) -> None:
        """Begin with no processes. Files of an earlier time are there."""
        self.first = _Namespaces(["--mount", "--uts"], _BEGIN, self._network.folder, self.name)
        self._port = self._network.connect(self.first, self.address)

    def power_off(self) -> None:
        """Kill all processes at once. As after a power cut, no other host is informed that a connection ended."""
        self._network.switch("set", self._port, "down")
        self.first.end()

    def command(self, *command: str | Path, **environment: str) -> list[str]:
        """Return a command line for this process that executes ``command`` in the network's folder of the host."""
        variables = [f"{name}={value}" for name, value in {**self.environment, **environment}.items()]
        begin = ("--mount", "--uts", "env", f"--chdir={self._network.folder}")
        return self.first.enter(*begin, *variables, *map(str, command))

    def run(self, *command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """Execute a command on the host, and return its result."""
        line = self.command(*command, **environment)
        return subprocess.run(
            line, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=_SECONDS_FOR_A_COMMAND
        )

    def start(self, log: str, *command: str | Path, **environment: str) -> None:
        """Start a process that ends with the host. Its output is added to the file ``log`` in the folder."""
        with (self.folder / log).open("ab") as output:
            subprocess.Popen(self.command(*command, **environment), stdout=output, stderr=output)

    def cut_link(self, seconds: float) -> None:
        """Cut the link to all other hosts for some time."""
        self._network.switch("set", self._port, "down")
        time.sleep(seconds)
        self._network.switch("set", self._port, "up")


class Network:
    """Hosts on one switch. This process reaches them, and has the address ``address`` there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = f"{_NETWORK}.254"
        self._ports = count(1)
        # In a namespace of its own, where no firewall rule of this machine applies.
        self._switch = _Namespaces(
            [], "ip link add switch type bridge && ip link set switch up && echo begun && exec sleep infinity"
        )
        self._hosts: list[Host] = []
        self.connect(None, self.address)

    def host(self, name: str) -> Host:
        """Add a host."""
        self._hosts.append(Host(self, name, f"{_NETWORK}.{len(self._hosts) + 1}"))
        return self._hosts[-1]

    def connect(self, host: "_Namespaces | None", address: str) -> str:
        """Connect a host to the switch, by default this process, and return the name of the switch's interface."""
        port, own = f"port{(number := next(self._ports))}", f"fa{os.getpid()}n{number}"
        where = os.getpid() if host is None else host.pid
        ends = ("add", port, "netns", str(self._switch.pid), "type", "veth", "peer", "name", own, "netns", str(where))
        subprocess.run(["ip", "link", *ends], check=True)
        self.switch("set", port, "master", "switch", "up")
        enter = [] if host is None else host.enter()
        for arguments in (("addr", "add", f"{address}/24", "dev", own), ("link", "set", own, "up")):
            subprocess.run([*enter, "ip", *arguments], check=True)
        return port

    def switch(self, *arguments: str) -> None:
        """Execute `ip link` on the switch."""
        subprocess.run([*self._switch.enter(), "ip", "link", *arguments], check=True)

    def end(self) -> None:
        """End all hosts."""
        for namespaces in (*(host.first for host in self._hosts), self._switch):
            namespaces.end()


@contextmanager
def network(folder: Path) -> Iterator[Network]:
    """Run a network until the end of the block. ``folder``: an empty one, which holds those of the hosts."""
    made = Network(folder)
    try:
        yield made
    finally:
        made.end()


class _Namespaces:
    """A process that is the first one in new namespaces for the network, for processes and for ``kinds``."""

    def __init__(self, kinds: list[str], script: str, *arguments: str | Path) -> None:
        self._outer = subprocess.Popen(
            [*_UNSHARE, *kinds, "sh", "-c", script, *map(str, arguments)], stdout=subprocess.PIPE, text=True
        )
        assert self._outer.stdout is not None
        assert self._outer.stdout.readline() == "begun\n"
        (self._first,) = psutil.Process(self._outer.pid).children()
        self.pid = self._first.pid

    def enter(self, *arguments: str | Path) -> list[str]:
        """Return the start of a command line that executes the rest of it in the namespaces."""
        return ["nsenter", f"--target={self.pid}", "--net", "--pid", *map(str, arguments)]

    def end(self) -> None:
        self._outer.kill()
        self._outer.wait()
        psutil.wait_procs([self._first], timeout=_SECONDS_TO_END)
