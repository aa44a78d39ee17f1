"""A folder with a configuration, a store and a SoftHSM token, and the server that runs on it."""
import glob, http.client, json, os, shutil, signal, subprocess, sys, time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
PATIENCE = 40


class Violation(Exception):
    """Something that was promised does not hold."""


class Lost(Violation):
    """Something acknowledged is not there, or is not as it was acknowledged."""


class Gone(Exception):
    """The server went away before it answered; whether the request took effect is not known."""


def softhsm_module():
    named = os.environ.get("SOS_TEST_PKCS11")
    usual = ("/usr/lib/softhsm", "/usr/lib/*/softhsm", "/usr/lib64/softhsm", "/usr/lib64", "/usr/local/lib/softhsm")
    found = [named] if named else [path for folder in usual for path in glob.glob(folder + "/libsofthsm2.so")]
    if not found or not os.path.exists(found[0]):
        raise SystemExit("torture: SoftHSM 2 is not installed; run scripts/install-deps, or name a module in SOS_TEST_PKCS11")
    return found[0]


# A header by which the audit file tells requests apart, also those whose answers have no request_id.
MARK = "X-Torture"


class Connection:
    """One kept connection; requests one after the other. With `marks` each gets one of them, and those answered with 2xx are told."""

    def __init__(self, port, token=None, marks=None):
        self.http = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        self.token, self.marks = token, marks

    def call(self, method, path, body=None, token=None):
        """(status, JSON or None); raises Gone when the connection breaks."""
        headers = {}
        token = token or self.token
        if token:
            headers["X-Vault-Token"] = token
        raw = None if body is None else json.dumps(body).encode()
        mark = self.marks.next() if self.marks else None
        if mark:
            headers[MARK] = mark
        try:
            self.http.request(method, "/v1/" + path, raw, headers)
            reply = self.http.getresponse()
            text = reply.read()
        except (OSError, http.client.HTTPException) as error:
            self.http.close()
            raise Gone(repr(error)) from error
        if mark and 200 <= reply.status < 300:
            self.marks.answered(mark, "%s %s" % (method, path))
        try:
            return reply.status, json.loads(text) if text else None
        except ValueError:
            raise Violation("%s %s: the answer is no JSON: %r" % (method, path, text[:200]))

    def ok(self, method, path, body=None, token=None):
        status, answer = self.call(method, path, body, token)
        if not 200 <= status < 300:
            raise Violation("%s %s: %d %s" % (method, path, status, json.dumps(answer)[:300]))
        return answer

    def close(self):
        self.http.close()


# Servers that run, of all places.
RUNNING = set()


def kill_all():
    for process in list(RUNNING):
        process.kill()


class Place:
    def __init__(self, folder, binary, storage, preload=None):
        self.folder, self.binary, self.storage, self.preload = folder, binary, storage, preload
        self.process = None
        self.port = None
        self.root = None
        self.audited = None
        os.makedirs(self.path("store"), mode=0o700, exist_ok=True)
        if not os.path.exists(self.path("hsm")):
            made = subprocess.run([os.path.join(ROOT, "softhsm/make-token"), self.path("hsm"), "sos-test"], capture_output=True)
            if made.returncode:
                raise SystemExit("torture: no token: " + made.stderr.decode())

    def path(self, *names):
        return os.path.join(self.folder, *names)

    def configure(self):
        """Writes the configuration. The least `compact_above` has the store's files written anew every second or so."""
        with open(self.path("sos.hcl"), "w") as file:
            file.write(
                'storage "%s" { path = "%s" compact_above = "64KiB" }\n'
                'listener "tcp" { address = "127.0.0.1:0" tls_disable = true }\n'
                'seal "pkcs11" { lib = "%s" token_label = "sos-test" pin_file = "%s" key_label = "test" }\n'
                'audit_paths = ["%s"]\ndisable_mlock = true\n'
                % (self.storage, self.path("store"), softhsm_module(), self.path("hsm/pin"), self.audited or self.folder))
        # A copied token still names the folder that it was copied from.
        with open(self.path("hsm/softhsm2.conf"), "w") as file:
            file.write("directories.tokendir = %s\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n" % self.path("hsm/tokens"))

    def launch(self, more=None):
        """Starts the server's process; answers where its log goes on."""
        self.configure()
        env = {"PATH": os.environ.get("PATH", ""), "SOFTHSM2_CONF": self.path("hsm/softhsm2.conf")}
        env.update(more or {})
        log = self.path("server.log")
        begin = os.path.getsize(log) if os.path.exists(log) else 0
        with open(log, "ab") as out:
            self.process = subprocess.Popen(
                [self.binary, "server", "-config=" + self.path("sos.hcl")], stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env)
        RUNNING.add(self.process)
        return begin

    def start(self, more=None, must=True):
        """Starts the server and waits until it listens. Unless it `must`, it may end before; the answer says which."""
        begin = self.launch(more)
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            with open(self.path("server.log"), "rb") as file:
                file.seek(begin)
                text = file.read().decode(errors="replace")
            if "listening url=http://127.0.0.1:" in text:
                self.port = int(text.split("listening url=http://127.0.0.1:")[1].split()[0])
                return True
            if self.process.poll() is not None:
                if must:
                    raise Violation("the server does not start:\n" + text[-2000:])
                return False
            time.sleep(0.01)
        raise Violation("the server does not listen:\n" + text[-2000:])

    def client(self):
        return Connection(self.port, self.root)

    def status(self):
        client = self.client()
        try:
            return client.ok("GET", "sys/seal-status")
        finally:
            client.close()

    def wait(self, good, what):
        until = time.monotonic() + PATIENCE
        while True:
            status = self.status()
            if good(status):
                return status
            if time.monotonic() > until:
                raise Violation("never %s: %s" % (what, json.dumps(status)))
            time.sleep(0.02)

    def wait_unsealed(self):
        """Unsealed and serving."""
        if self.status()["initialized"] is False:
            raise Violation("the server says that it is not initialized")
        self.wait(lambda status: status["sealed"] is False, "unsealed")

    def init(self):
        client = Connection(self.port)
        until = time.monotonic() + PATIENCE
        while True:
            status, answer = client.call("PUT", "sys/init", {"recovery_shares": 1, "recovery_threshold": 1})
            if status == 200:
                break
            if status != 503 or time.monotonic() > until:
                raise Violation("init: %d %s" % (status, answer))
            time.sleep(0.05)
        client.close()
        self.root = answer["root_token"]
        self.wait_unsealed()

    def kill(self):
        if self.process:
            self.process.kill()
            self.process.wait()
            RUNNING.discard(self.process)

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(PATIENCE)
        RUNNING.discard(self.process)
        if code:
            raise Violation("SIGTERM: the server ended with %s" % code)

    def wait_dead(self, seconds):
        """Whether the server has ended by itself within that time."""
        try:
            self.process.wait(seconds)
            return True
        except subprocess.TimeoutExpired:
            return False

    def hsm_objects(self):
        """The labels of the objects that the token holds."""
        command = [sys.executable, os.path.join(HERE, "objects.py"), softhsm_module(), "sos-test", self.path("hsm/pin")]
        done = subprocess.run(command, env={"SOFTHSM2_CONF": self.path("hsm/softhsm2.conf")}, capture_output=True, text=True, timeout=PATIENCE)
        if done.returncode:
            raise Violation("the token cannot be listed: " + done.stderr)
        return sorted(done.stdout.split())

    def clone(self, folder, store):
        """A place with a copy of this token and the store in `store`, which is moved there."""
        os.makedirs(folder)
        shutil.copytree(self.path("hsm"), os.path.join(folder, "hsm"))
        os.rename(store, os.path.join(folder, "store"))
        place = Place(folder, self.binary, self.storage)
        place.root, place.audited = self.root, self.folder
        return place
