#!/usr/bin/env python3
"""The quickstart's second half: initialise a new server, then give every disk of a list its key.

Starts the server in --home with its `start` script, initialises it with `sos operator init`, makes a zone, a Transit mount
with a KEK used inside the HSM, and a KV mount; wraps one DEK per disk and stores it; restarts the server; reads all back,
unwraps and compares. Secrets stay in this process: none is written to a file or given on a command line.
"""
import argparse, base64, hashlib, http.client, json, os, secrets, signal, subprocess, sys, time, urllib.parse

ZONE = "tk1a"
TRANSIT = "transit-tk1a"
KEK = "disk-kek"
KV = "disks"


class Failed(Exception):
    """What went wrong, for the person at the terminal."""


class Server:
    def __init__(self, home, binary, address):
        self.home, self.binary, self.address, self.token = home, binary, address, None
        place = urllib.parse.urlsplit(address)
        self.host, self.port = place.hostname, place.port

    def start(self):
        subprocess.run([os.path.join(self.home, "start")], check=True)

    def pid(self):
        try:
            with open(os.path.join(self.home, "sos.pid")) as f:
                return int(f.read())
        except (OSError, ValueError):
            return None

    def stop(self):
        pid = self.pid()
        if pid is None:
            return
        os.kill(pid, signal.SIGTERM)
        for _ in range(150):
            if self.pid() is None and not os.path.exists("/proc/%d" % pid):
                return
            time.sleep(0.1)
        raise Failed("the server did not stop within 15 seconds")

    def request(self, method, path, body=None):
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        headers = {"X-Vault-Request": "true", "Content-Type": "application/json"}
        if self.token:
            headers["X-Vault-Token"] = self.token
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        reply = connection.getresponse()
        raw = reply.read()
        connection.close()
        return reply.status, json.loads(raw) if raw.strip() else None

    def call(self, method, path, body=None):
        status, reply = self.request(method, "/v1/" + path, body)
        if status >= 300:
            raise Failed("%s %s was answered with %d: %s" % (method, path, status, "; ".join((reply or {}).get("errors", []))))
        return reply

    def wait(self, good, what):
        """Waits until seal-status satisfies `good`."""
        status = None
        for _ in range(600):
            try:
                status = self.request("GET", "/v1/sys/seal-status")[1]
                if good(status):
                    return
            except OSError:
                pass
            time.sleep(0.05)
        raise Failed("%s; it says %s" % (what, json.dumps(status)))

    def initialise(self):
        """Through the command line, as an operator does. Answers the escrow shares."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("VAULT_")}
        done = subprocess.run([self.binary, "operator", "init", "-address=" + self.address, "-format=json"],
                              stdout=subprocess.PIPE, env=environment)
        if done.returncode:
            raise Failed("sos operator init failed")
        made = json.loads(done.stdout)
        self.token = made["root_token"]
        return made["recovery_keys_b64"], made["recovery_keys_threshold"]


def disks(path):
    with open(path) as f:
        lines = [line.split() for line in f if line.strip() and not line.startswith("#")]
    return [dict(zip(("rack", "slot", "model", "serial"), line)) for line in lines]


def provision(server, listed):
    """Makes, wraps and stores one DEK per disk; answers a hash of each, to compare with later."""
    fingerprints = {}
    for disk in listed:
        dek = secrets.token_bytes(32)
        fingerprints[disk["serial"]] = hashlib.sha256(dek).digest()
        wrapped = server.call("POST", "%s/encrypt/%s" % (TRANSIT, KEK), {"plaintext": base64.b64encode(dek).decode()})
        record = dict(disk, wrapped_dek=wrapped["data"]["ciphertext"])
        server.call("POST", "%s/data/%s/%s" % (KV, disk["rack"], disk["serial"]), {"data": record})
    return fingerprints


def verify(server, listed, fingerprints):
    for disk in listed:
        record = server.call("GET", "%s/data/%s/%s" % (KV, disk["rack"], disk["serial"]))["data"]["data"]
        opened = server.call("POST", "%s/decrypt/%s" % (TRANSIT, KEK), {"ciphertext": record["wrapped_dek"]})
        dek = base64.b64decode(opened["data"]["plaintext"])
        if hashlib.sha256(dek).digest() != fingerprints[disk["serial"]]:
            raise Failed("the key of disk %s came back changed" % disk["serial"])


def work(server, listed):
    say = lambda text: print(text, flush=True)
    try:
        server.request("GET", "/v1/sys/health")
        raise Failed("something already answers at %s; choose another address: SOS_LISTEN=127.0.0.1:8300 ./scripts/quickstart" % server.address)
    except OSError:
        pass
    server.start()
    server.wait(lambda s: s.get("sealed_reason") == "not-initialized", "the server did not come up")
    shares, threshold = server.initialise()
    server.wait(lambda s: not s["sealed"], "the server did not unseal after init")
    say("Started the server and initialised it: the root key is wrapped by the HSM and by %d escrow shares (any %d open it)." % (len(shares), threshold))
    server.call("POST", "sys/sos/zones/" + ZONE, {})
    server.call("POST", "sys/mounts/" + TRANSIT, {"type": "transit", "options": {"zone": ZONE}})
    server.call("POST", "%s/keys/%s" % (TRANSIT, KEK), {"type": "aes256-gcm96", "protection_level": "hsm"})
    level = server.call("GET", "%s/keys/%s" % (TRANSIT, KEK))["data"].get("protection_level")
    if level != "hsm":
        raise Failed("the key %s is held at level %s instead of hsm" % (KEK, level))
    say("Made the zone %s with its master key in the HSM, and the key %s/%s (KEK), which is used inside the HSM only." % (ZONE, TRANSIT, KEK))
    server.call("POST", "sys/mounts/" + KV, {"type": "kv", "options": {"version": "2"}})
    began = time.monotonic()
    fingerprints = provision(server, listed)
    say("Made a key (DEK) for each of %d disks, wrapped it with the KEK and stored it under %s/ in %.2f s." % (len(listed), KV, time.monotonic() - began))
    server.stop()
    began = time.monotonic()
    server.start()
    server.wait(lambda s: s["initialized"] and not s["sealed"], "the server did not unseal itself")
    say("Restarted the server: it unsealed itself through the HSM and answered after %.2f s." % (time.monotonic() - began))
    verify(server, listed, fingerprints)
    say("Read all %d wrapped keys back, unwrapped them and compared: every one is the same." % len(listed))
    return shares, threshold


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("home", "binary", "address", "disks"):
        parser.add_argument("--" + name, required=True)
    a = parser.parse_args()
    server = Server(a.home, a.binary, a.address)
    try:
        shares, threshold = work(server, disks(a.disks))
    except (Failed, OSError, subprocess.SubprocessError) as error:
        print("quickstart: %s" % error, file=sys.stderr)
        print("The server's log is %s/sos.log. Clean up before the next try: %srm -rf %s"
              % (a.home, "kill %d; " % server.pid() if server.pid() else "", a.home), file=sys.stderr)
        return 1
    print("\nEscrow shares, shown only now. Any %d of them unseal this server without its HSM; keep them apart and offline." % threshold)
    for number, share in enumerate(shares, 1):
        print("  share %d: %s" % (number, share))
    print("\nThe server runs at %s. Stop it: kill %d   Start it again: %s/start" % (a.address, server.pid(), a.home))
    print("Point Vault's command line or an SDK at it; the second line holds the root token, shown only now:\n")
    print("export VAULT_ADDR='%s'" % a.address)
    print("export VAULT_TOKEN='%s'" % server.token)
    return 0


if __name__ == "__main__":
    sys.exit(main())
