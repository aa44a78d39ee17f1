"""Builds the programs and runs servers of our own in a temporary folder; nothing is left behind on any exit."""
import atexit
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

from .rows import Server

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
MODULES = ("/usr/lib/softhsm", "/usr/lib/x86_64-linux-gnu/softhsm", "/usr/lib64/softhsm", "/usr/lib64/pkcs11")


def target():
    """Where cargo puts what it builds."""
    said = subprocess.run(["cargo", "metadata", "--locked", "--no-deps", "--format-version=1"], cwd=ROOT, check=True, capture_output=True)
    return json.loads(said.stdout)["target_directory"]


def build():
    """Paths of the server and of the bench tool. SOS_BIN and SOS_BENCH_BIN name binaries that are built already."""
    wanted, made = [], {"sos": os.environ.get("SOS_BIN"), "tool": os.environ.get("SOS_BENCH_BIN")}
    if not made["sos"]:
        wanted += ["--bin", "sos"]
        made["sos"] = os.path.join(target(), "release/sos")
    if not made["tool"]:
        wanted += ["--example", "bench"]
        made["tool"] = os.path.join(target(), "release/examples/bench")
    if wanted:
        subprocess.run(["cargo", "build", "--locked", "--release"] + wanted, cwd=ROOT, check=True)
    return made["sos"], made["tool"]


def softhsm():
    """SoftHSM's module."""
    for folder in MODULES:
        if os.path.exists(folder + "/libsofthsm2.so"):
            return folder + "/libsofthsm2.so"
    raise SystemExit("SoftHSM 2 is not installed (Debian: apt-get install softhsm2)")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Lab:
    """A temporary folder and the processes in it."""

    def __init__(self, sos, tool):
        self.sos, self.tool = sos, tool
        self.folder = tempfile.mkdtemp(prefix="sos-bench-")
        os.chmod(self.folder, 0o700)
        self.running = []
        atexit.register(self.close)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup means it
                signal.signal(number, lambda *_: sys.exit(130))

    def close(self):
        """Ends every process, then removes the folder; a second signal does not interrupt it."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        for process in self.running:
            process.terminate()
        for process in self.running:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.running = []
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self, command, log, env=None):
        with open(os.path.join(self.folder, log), "ab") as file:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env={**os.environ, **(env or {})})
        self.running.append(process)
        return process

    def stop(self, process, hard=False):
        process.send_signal(signal.SIGKILL if hard else signal.SIGTERM)
        process.wait(30)
        self.running.remove(process)

    def certificate(self):
        """A self-signed certificate and its key, made once; None without the openssl command."""
        cert, key = os.path.join(self.folder, "tls.crt"), os.path.join(self.folder, "tls.key")
        if not os.path.exists(cert):
            if not shutil.which("openssl"):
                return None
            subprocess.run(
                ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
                 "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert],
                check=True, capture_output=True)
            os.chmod(key, 0o600)
        return cert, key

    def tool_json(self, *arguments, token=None):
        """Runs a command of the bench tool; what it printed."""
        env = {**os.environ, **({"VAULT_TOKEN": token} if token else {})}
        done = subprocess.run([self.tool] + [str(one) for one in arguments], capture_output=True, text=True, env=env)
        if done.returncode:
            raise RuntimeError("bench %s: %s" % (arguments[0], done.stderr.strip()[-300:]))
        return json.loads(done.stdout)

    def floor(self, tls=False):
        """Starts the floor server; its process and address."""
        port = free_port()
        pair = self.certificate() if tls else ()
        process = self.start([self.tool, "floor", "127.0.0.1:%d" % port, *pair], "floor.log")
        wait_for("127.0.0.1", port, process)
        return process, Server("%s://127.0.0.1:%d" % ("https" if tls else "http", port), "none")


def wait_for(host, port, process):
    for _ in range(300):
        try:
            socket.create_connection((host, port), 1).close()
            return
        except OSError:
            if process.poll() is not None:
                break
            time.sleep(0.05)
    raise RuntimeError("a server did not come up on port %d" % port)


class Sos:
    """A server of ours with a token, a store and two listeners (plain and TLS) of its own."""

    def __init__(self, lab, name, storage="redb", module=None, sessions=None, env=None):
        self.lab, self.name = lab, name
        self.folder = os.path.join(lab.folder, name)
        self.store = os.path.join(self.folder, "store")
        os.makedirs(self.store, mode=0o700)
        label = "bench-" + name
        subprocess.run([os.path.join(ROOT, "softhsm/make-token"), self.folder + "/hsm", label], check=True, capture_output=True)
        self.env = {"SOFTHSM2_CONF": self.folder + "/hsm/softhsm2.conf", **(env or {})}
        self.config = self.folder + "/sos.hcl"
        ports = [free_port(), free_port()]
        pair = lab.certificate()
        lines = [
            'storage "%s" { path = "%s" }' % (storage, self.store),
            'listener "tcp" { address = "127.0.0.1:%d" tls_disable = true }' % ports[0],
            'seal "pkcs11" { lib = "%s" token_label = "%s" pin_file = "%s/hsm/pin" key_label = "bench"%s }'
            % (module or softhsm(), label, self.folder, ' max_sessions = "%d"' % sessions if sessions else ""),
            'audit_paths = ["%s"]' % tempfile.gettempdir(),
        ]
        if pair:
            lines.append('listener "tcp" { address = "127.0.0.1:%d" tls_cert_file = "%s" tls_key_file = "%s" }' % (ports[1], *pair))
        with open(self.config, "w") as file:
            file.write("\n".join(lines) + "\n")
        self.start()
        token = self.initialise(ports[0])
        self.plain = Server("http://127.0.0.1:%d" % ports[0], token)
        self.secure = Server("https://127.0.0.1:%d" % ports[1], token) if pair else None
        self.ready()

    def start(self):
        self.process = self.lab.start([self.lab.sos, "server", "-config=" + self.config], self.name + ".log", self.env)
        self.started = time.time()

    @property
    def pid(self):
        return self.process.pid

    def initialise(self, port):
        command = [self.lab.sos, "operator", "init", "-address=http://127.0.0.1:%d" % port, "-format=json",
                   "-recovery-shares=1", "-recovery-threshold=1"]
        for _ in range(200):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode == 0:
                return json.loads(done.stdout)["root_token"]
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        raise RuntimeError("the server cannot be initialised: " + done.stderr[-300:])

    def ready(self):
        for _ in range(600):
            try:
                if self.plain.ask("GET", "/v1/sys/health")[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.05)
        raise RuntimeError("the server does not unseal itself; see " + self.name + ".log")

    def store_mib(self):
        total = 0
        for folder, _, files in os.walk(self.store):
            total += sum(os.stat(os.path.join(folder, name)).st_blocks * 512 for name in files)
        return total / (1 << 20)

    def hsm_bench(self, waiting, batch=100, millis=1000):
        """What the HSM gives without a server in front of it (`sos hsm bench`)."""
        command = [self.lab.sos, "hsm", "bench", "-config=" + self.config, "-waiting=%d" % waiting, "-batch=%d" % batch,
                   "-millis=%d" % millis]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **self.env})
        if done.returncode:
            raise RuntimeError("sos hsm bench: " + done.stderr.strip()[-300:])
        return json.loads(done.stdout)
