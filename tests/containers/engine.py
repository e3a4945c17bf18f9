"""A Docker engine of our own, base images for it, and compose: for a machine without an engine or an image registry."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from schemas.config import PROJECT_ROOT

PYTHON_IMAGE = "fashion-ann-python"
POSTGRES_IMAGE = "postgres:15"
_HERE = Path(__file__).parent
_MIRROR = "awk '/^URIs:/{print $2; exit}' /etc/apt/sources.list.d/*.sources"
_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
# Docker Compose 2 and buildx are packages since trixie, and run on older releases. In the working directory.
_PLUGINS = r"""
set -e
mkdir -p lists/partial cache/archives/partial debs cli-plugins
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $MIRROR trixie main" > sources
options="-qq -o Dir::Etc::SourceList=$PWD/sources -o Dir::Etc::SourceParts=/dev/null -o Dir::State::Lists=$PWD/lists
    -o Dir::Cache=$PWD/cache -o APT::Sandbox::User=root"
apt-get $options update
(cd debs && apt-get $options download docker-compose docker-buildx)
for package in debs/*.deb; do dpkg-deb -x "$package" extracted; done
mv extracted/usr/libexec/docker/cli-plugins/* cli-plugins
"""


def _run(*command: str | Path, **options: object) -> str:
    """Run a command and return its output. A failure raises an error with the end of all that it printed."""
    done = subprocess.run(
        command,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        **options,  # type: ignore[call-overload]
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))} ended with {done.returncode}: {done.stdout[-3000:]}"
    return str(done.stdout)


def _restore_rules(before: str) -> None:
    """Restore the firewall. A table that iptables-save did not list before was empty, with the policy ACCEPT."""
    text = before
    for table in re.findall(r"(?ms)^\*\w+$.*?^COMMIT$", _run("iptables-save")):
        name = table.partition("\n")[0]
        if name not in before.splitlines():
            chains = re.findall(r"(?m)^:(\S+) (?!-)", table)  # built-in ones, which have a policy
            text += "\n".join([name, *(f":{chain} ACCEPT [0:0]" for chain in chains), "COMMIT", ""])
    _run("iptables-restore", input=text)


class Engine:
    """dockerd with all of its state in one folder, run as root."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._exec = folder / "exec"
        self._log = folder / "dockerd.log"
        self._rules = ""
        self.environment = {
            **os.environ,
            "DOCKER_HOST": f"unix://{folder}/docker.sock",
            "DOCKER_CONFIG": str(folder / "config"),
            "DOCKER_BUILDKIT": "1",
        }

    # --- the daemon ---

    def start(self) -> None:
        """Start the daemon, and wait until it answers. Containers with a restart policy start again, too."""
        with self._log.open("ab") as log:
            self._daemon = subprocess.Popen(
                [
                    *("dockerd", f"--data-root={self.folder / 'root'}", f"--exec-root={self._exec}"),
                    *(f"--host=unix://{self.folder}/docker.sock", f"--pidfile={self.folder / 'pid'}"),
                ],
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C stops the tests, which then stop the daemon
            )
        deadline = time.monotonic() + 120
        while subprocess.run(["docker", "version"], env=self.environment, capture_output=True, check=False).returncode:
            assert self._daemon.poll() is None, self._log.read_text()[-3000:]
            assert time.monotonic() < deadline, "dockerd did not answer"
            time.sleep(0.2)

    def cut_power(self) -> None:
        """Kill daemon, shims and containers at once. As after a reboot, no process, mount or runtime state is left."""
        self._daemon.kill()
        self._daemon.wait()
        self._kill_all()
        self._unmount()
        shutil.rmtree(self._exec)

    def _kill_all(self) -> None:
        """Kill the daemon's other processes: each has the folder in its command line, or a parent that has it."""
        killed: list[psutil.Process] = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if str(self.folder) in " ".join(process.cmdline()) and process.name().startswith(
                    ("containerd", "docker")
                ):
                    killed += [process, *process.children(recursive=True)]
        for process in killed:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(killed, timeout=30)

    def _unmount(self) -> None:
        mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        for mount in reversed(mounts):
            if mount.startswith(f"{self.folder}/"):
                _run("umount", "--lazy", mount)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the daemon until the end of the block. Then its folder, networks and firewall rules are gone."""
        assert not Path("/sys/class/net/docker0").exists(), (
            "another Docker engine runs here, or left its bridge docker0"
        )
        forwarding = Path("/proc/sys/net/ipv4/ip_forward")
        forwarded = forwarding.read_text()
        rules = _run("iptables-save")
        try:
            self.start()
            yield
        finally:
            bridges = self._bridges()
            if self._daemon.poll() is None:
                self._daemon.send_signal(signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    self._daemon.wait(timeout=60)
                self._daemon.kill()
            self._kill_all()
            self._unmount()
            for bridge in bridges:
                subprocess.run(["ip", "link", "delete", bridge], capture_output=True, check=False)
            _restore_rules(rules)
            forwarding.write_text(forwarded)
            shutil.rmtree(self.folder)

    def _bridges(self) -> list[str]:
        """Return the bridges of the daemon's networks, which outlive it."""
        try:
            networks = self.docker("network", "ls", "--filter", "driver=bridge", "--quiet", "--no-trunc").split()
        except AssertionError:
            return ["docker0"]
        return ["docker0", *(f"br-{network[:12]}" for network in networks)]

    def docker(self, *arguments: str, **environment: str) -> str:
        """Run `docker` and return its output."""
        return _run("docker", *arguments, cwd=PROJECT_ROOT, env=self.environment | environment)

    # --- what a registry would provide ---

    def install_plugins(self) -> None:
        """Install the plugins compose and buildx, for this engine's clients only."""
        config = self.folder / "config"
        config.mkdir()
        _run("sh", "-c", f"MIRROR=$({_MIRROR})\n{_PLUGINS}", cwd=config)

    def build_base_images(self) -> None:
        """Make stand-ins for the images python and postgres from Debian's packages, through the mirror of this machine.

        The first one has the certificates of this machine, because its registries may be mirrors with their own.
        """
        settings = self.folder / "settings"
        (settings / "etc/uv").mkdir(parents=True)
        (settings / "etc/pip.conf").write_text(f"[global]\ncert = {_CERTIFICATES}\n")
        (settings / "etc/uv/uv.toml").write_text("native-tls = true\n")
        archive = self.folder / "python.tar"
        _run(
            *("sh", "-c", f'. /etc/os-release; mmdebstrap "$@" "$VERSION_CODENAME" {archive} "$({_MIRROR})"', "sh"),
            *("--variant=minbase", "--include=python3,python3-venv,ca-certificates"),
            f"--customize-hook=copy-in {settings}/etc/pip.conf {settings}/etc/uv /etc",
            f"--customize-hook=copy-in {_CERTIFICATES} /etc/ssl/certs",
            '--customize-hook=ln -s python3 "$1/usr/bin/python"',
        )
        self.docker("import", str(archive), PYTHON_IMAGE)
        archive.unlink()
        self.docker("build", "--tag", POSTGRES_IMAGE, str(_HERE / "postgres"))
