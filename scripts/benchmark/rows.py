"""The workloads: what is asked of a Vault-compatible server, and what must be there before."""
import base64
import dataclasses
import http.client
import json
import os
import ssl
import tempfile
import time
import urllib.parse

DEK = base64.b64encode(bytes(range(32))).decode()
KIB4 = base64.b64encode(bytes(4096)).decode()
SECRET = {"dek": DEK, "disk": "113700571279"}
BATCH = 100
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# The yardstick beside a row, as `examples/bench floor` names it: reads need no body, Transit cannot do without parsing one.
BARE, PARSING = "bare", "parsing"
READ_GOAL, SOFTWARE_GOAL = 0.6, 0.5  # fractions of the floor that the design names


class Server:
    """A running, unsealed server on a loopback address."""

    def __init__(self, addr, token):
        url = urllib.parse.urlsplit(addr)
        if url.hostname not in LOOPBACK:
            raise SystemExit("%s: loopback addresses only" % addr)
        self.addr, self.host, self.port, self.token = addr.rstrip("/"), url.hostname, url.port, token
        self.left_out = {}  # what it cannot do, and what it said
        self.tls = url.scheme == "https"

    def ask(self, method, path, body=None):
        """Status and raw body of one request."""
        if self.tls:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            connection = http.client.HTTPSConnection(self.host, self.port, timeout=60, context=context)
        else:
            connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        data = body if body is None or isinstance(body, str) else json.dumps(body)
        connection.request(method, path, data, {"X-Vault-Token": self.token, "Content-Type": "application/json"})
        answer = connection.getresponse()
        raw = answer.read()
        connection.close()
        return answer.status, raw

    def call(self, method, path, body=None):
        """The decoded answer; an error for any status but 2xx."""
        status, raw = self.ask(method, path, body)
        if status >= 300:
            raise RuntimeError("%s %s: %d %s" % (method, path, status, raw[:200]))
        return json.loads(raw) if raw.strip() else None


@dataclasses.dataclass
class Row:
    """One workload. `mode`: "" the same path always, "spread" over `keys` numbered keys, "unique" a new key each time.

    `floor` names the yardstick beside it, "" where disk or device bound it and a floor would say nothing; `goal` is the
    fraction of that floor to reach, `conns` the most connections (0: no bound), `answer` the exact bytes of an answer, where known.
    """

    name: str
    method: str
    path: str
    body: object = None
    mode: str = ""
    items: int = 1
    keys: int = 1000
    conns: int = 0
    floor: str = ""
    goal: float = None
    answer: int = None

    def connections(self, conns):
        """How many of the run's connections it takes."""
        return min(conns, self.conns or conns)

    def once(self, number=1):
        """A path of one of its requests."""
        return {"spread": self.path + str(number % self.keys), "unique": "%sonce-%d" % (self.path, number)}.get(self.mode, self.path)


def at_floor(server, row):
    """The same request at the floor, which answers as many bytes as `server` does."""
    path = row.once()
    size = len(server.ask(row.method, path, row.body)[1])
    return dataclasses.replace(row, path="/%s/%d%s" % (row.floor, size, row.path), answer=size)


def optional(server, attempt, what):
    """The result, or None when the server does not have this, which is then noted."""
    try:
        return attempt()
    except RuntimeError as error:
        server.left_out[what] = str(error)[-160:].strip()
        return None


def setup(server):
    """Mounts and fills what the rows need; the rows that this server can do."""
    teardown(server)
    server.call("POST", "/v1/sys/mounts/bench-kv1", {"type": "kv", "options": {"version": "1"}})
    server.call("POST", "/v1/sys/mounts/bench-kv2", {"type": "kv", "options": {"version": "2"}})
    server.call("POST", "/v1/sys/mounts/bench-transit", {"type": "transit"})
    for _ in range(50):  # some servers answer for a moment that the mount is being upgraded
        try:
            server.call("POST", "/v1/bench-kv2/data/hot", {"data": SECRET})
            break
        except RuntimeError:
            time.sleep(0.1)
    server.call("POST", "/v1/bench-kv1/hot", SECRET)
    for number in range(1000):
        server.call("POST", "/v1/bench-kv2/data/disk/%d" % number, {"data": {"dek": DEK, "disk": str(number)}})
    return kv_rows() + token_rows(server) + transit_rows(server)


def few(server):
    """One secret on a server without anything else: its path."""
    server.call("POST", "/v1/sys/mounts/bench-few", {"type": "kv", "options": {"version": "2"}})
    server.call("POST", "/v1/bench-few/data/one", {"data": SECRET})
    return "/v1/bench-few/data/one"


def few_row():
    return Row("few-write", "POST", "/v1/bench-few/data/one", {"data": SECRET})


def kv_rows():
    write = {"data": {"dek": DEK, "disk": "1"}}
    return [
        Row("health", "GET", "/v1/sys/health", floor=BARE),
        Row("kv1-read", "GET", "/v1/bench-kv1/hot", floor=BARE, goal=READ_GOAL),
        Row("kv2-read", "GET", "/v1/bench-kv2/data/hot", floor=BARE, goal=READ_GOAL),
        Row("kv2-read-1000", "GET", "/v1/bench-kv2/data/disk/", mode="spread", floor=BARE, goal=READ_GOAL),
        Row("kv2-list-1000", "GET", "/v1/bench-kv2/metadata/disk?list=true", floor=BARE),
        Row("kv2-write-new", "POST", "/v1/bench-kv2/data/new/", write, mode="unique"),
        Row("kv2-write-same", "POST", "/v1/bench-kv2/data/same", write),
    ]


def token_rows(server):
    rows = [
        Row("token-lookup-self", "GET", "/v1/auth/token/lookup-self", floor=BARE, goal=READ_GOAL),
        Row("token-create", "POST", "/v1/auth/token/create", {"policies": ["default"], "ttl": "10m"}),
    ]
    if optional(server, lambda: server.call("POST", "/v1/sys/auth/bench-approle", {"type": "approle"}) or True, "approle-login: no auth method approle"):
        role = "/v1/auth/bench-approle/role/r"
        server.call("POST", role, {"token_ttl": "10m", "token_policies": ["default"]})
        role_id = server.call("GET", role + "/role-id")["data"]["role_id"]
        secret_id = server.call("POST", role + "/secret-id", {})["data"]["secret_id"]
        rows.append(Row("approle-login", "POST", "/v1/auth/bench-approle/login", {"role_id": role_id, "secret_id": secret_id}))
    return rows


def transit_rows(server):
    at = "/v1/bench-transit/"

    def make(name, kind, level):
        # Other servers ignore the unknown parameter.
        made = lambda: server.call("POST", at + "keys/" + name, {"type": kind, "protection_level": level}) or True
        return optional(server, made, "%s keys at level %s" % (kind, level))

    def encrypted(key, plaintext):
        return server.call("POST", at + "encrypt/" + key, {"plaintext": plaintext})["data"]["ciphertext"]

    rows = []
    for suffix, level in (("", "software"), ("-hsm", "hsm")):
        key = "aes" + suffix
        if not make(key, "aes256-gcm96", level):
            continue
        small = encrypted(key, DEK)
        goal = None if suffix else SOFTWARE_GOAL
        rows += [
            Row("encrypt-32B" + suffix, "POST", at + "encrypt/" + key, {"plaintext": DEK}, goal=goal),
            Row("decrypt-32B" + suffix, "POST", at + "decrypt/" + key, {"ciphertext": small}, goal=goal),
            Row("encrypt-batch100" + suffix, "POST", at + "encrypt/" + key, {"batch_input": [{"plaintext": DEK}] * BATCH}, items=BATCH),
            Row("decrypt-batch100" + suffix, "POST", at + "decrypt/" + key, {"batch_input": [{"ciphertext": small}] * BATCH}, items=BATCH),
        ]
    rows += [
        Row("encrypt-4KiB", "POST", at + "encrypt/aes", {"plaintext": KIB4}, goal=SOFTWARE_GOAL),
        Row("decrypt-4KiB", "POST", at + "decrypt/aes", {"ciphertext": encrypted("aes", KIB4)}, goal=SOFTWARE_GOAL),
        Row("datakey", "POST", at + "datakey/plaintext/aes", {}, goal=SOFTWARE_GOAL),
        Row("hmac", "POST", at + "hmac/aes", {"input": DEK}, goal=SOFTWARE_GOAL),
    ]
    made = {name for name, kind in SIGNING.items() if make(name, kind, "software")}
    rows += [row for row in signing_rows() if row.path.rsplit("/", 1)[1] in made]
    return [dataclasses.replace(row, floor=PARSING) for row in rows]


SIGNING = {"p256": "ecdsa-p256", "ed25519": "ed25519", "rsa2048": "rsa-2048"}


def signing_rows():
    rows = []
    for name in SIGNING:
        path = "/v1/bench-transit/sign/" + name
        rows.append(Row("sign-" + name, "POST", path, {"input": DEK}))
        # More connections would only wait: a batch of RSA signatures takes 60 ms.
        rows.append(Row("sign-%s-batch100" % name, "POST", path, {"batch_input": [{"input": DEK}] * BATCH}, items=BATCH, conns=4))
    return rows


def teardown(server):
    """Removes what setup made, and the audit device."""
    for path in ("mounts/bench-kv1", "mounts/bench-kv2", "mounts/bench-transit", "auth/bench-approle", "audit/bench"):
        try:
            server.call("DELETE", "/v1/sys/" + path)
        except RuntimeError:
            pass


def audit_file(server):
    return os.path.join(tempfile.gettempdir(), "bench-audit-%d.log" % server.port)


def enable_audit(server):
    """A file audit device at `audit_file`."""
    server.call("PUT", "/v1/sys/audit/bench", {"type": "file", "options": {"file_path": audit_file(server)}})


def empty_audit(server):
    """Cuts the audit file, to which the server appends, so that a run does not fill the disk."""
    if os.path.exists(audit_file(server)):
        os.truncate(audit_file(server), 0)


def disable_audit(server):
    server.call("DELETE", "/v1/sys/audit/bench")
    if os.path.exists(audit_file(server)):
        os.unlink(audit_file(server))
