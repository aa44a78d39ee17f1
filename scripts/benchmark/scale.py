"""What one row cannot show: many secrets, many leases, many writers, many waiting clients, a slow HSM."""
import json
import os
import subprocess
import time

from . import rows as workloads
from .drive import load, memory, resident_mib
from .local import ROOT, Sos, softhsm

DISK = json.dumps({"data": workloads.SECRET})


def address(server):
    return "%s:%d" % (server.host, server.port)


def writers(lab, sos, counts, seconds, rounds):
    """KV v2 writes to new keys by how many clients write at once. The disk's own syncs are timed before and after each run, as
    what a disk does changes from minute to minute: a list of rounds, each {clients: (mean of the two syncs, Run)}."""
    row = next(row for row in workloads.kv_rows() if row.name == "kv2-write-new")
    sync = lambda: lab.tool_json("fsync", sos.store, 1024, 0.4)
    found = []
    for _ in range(rounds):
        before, each = sync(), {}
        for count in counts:
            run = load(sos.plain, row, seconds, count, sos.pid)
            after = sync()
            each[count] = ({part: (before[part] + after[part]) / 2 for part in ("per_second", "p50_ms", "p99_ms")}, run)
            before = after
        found.append(each)
    return found


def many_secrets(lab, sos, count, limit):
    """Fills a KV v2 mount with `count` secrets, or as many as `limit` seconds allow; reads them at random."""
    server = sos.plain
    server.call("POST", "/v1/sys/mounts/bench-many", {"type": "kv", "options": {"version": "2"}})
    before = resident_mib(sos.pid)
    done = lab.tool_json("fill", address(server), "/v1/bench-many/data/disk-{}", DISK, count, limit, 256, token=server.token)
    row = workloads.Row("read", "GET", "/v1/bench-many/data/disk-", mode="spread", keys=max(done["written"] - 256, 1))
    read = load(server, row, 4, 32, sos.pid)
    return {"asked": count, "written": done["written"], "per_second": done["written"] / done["seconds"], "read": read,
            "rss_before": before, "rss_after": resident_mib(sos.pid), "store_mib": sos.store_mib()}


def many_leases(lab, sos, count, limit):
    """Makes `count` tokens, each with a lease of a day, or as many as `limit` seconds allow."""
    server = sos.plain
    body = json.dumps({"policies": ["default"], "ttl": "24h", "no_default_policy": True})
    done = lab.tool_json("fill", address(server), "/v1/auth/token/create", body, count, limit, 256, token=server.token)
    look_up = load(server, workloads.Row("look-up", "GET", "/v1/auth/token/lookup-self"), 4, 32, sos.pid)
    create = workloads.Row("create", "POST", "/v1/auth/token/create", json.loads(body))
    return {"asked": count, "written": done["written"], "per_second": done["written"] / done["seconds"], "look_up": look_up,
            "create": load(server, create, 4, 32, sos.pid), "rss_after": resident_mib(sos.pid), "store_mib": sos.store_mib()}


def cold_start(lab, sos, clients, path):
    """Kills the server, lets `clients` wait for it, and starts it: seconds from the start of the process to answers."""
    lab.stop(sos.process, hard=True)
    server = sos.plain
    crowd = subprocess.Popen([lab.tool, "crowd", address(server), path, str(clients), "120"], stdout=subprocess.PIPE, text=True,
                             env={**os.environ, "VAULT_TOKEN": server.token})
    time.sleep(0.5)
    sos.start()
    out = json.loads(crowd.communicate()[0])
    if out["answered"] != clients:
        raise RuntimeError("only %d of %d waiting clients were answered" % (out["answered"], clients))
    since = {name: out[name] - sos.started for name in ("first", "median", "last")}
    return {"clients": clients, "memory": memory(sos.pid), **since}


def slow_hsm(lab, latency_ms, pools, seconds):
    """Through the proxy module, which adds a latency to every operation: requests/s by number of sessions."""
    module = os.path.join(ROOT, "softhsm/target/debug/libsos_pkcs11_proxy.so")
    if not os.path.exists(module):
        return None
    faults = os.path.join(lab.folder, "faults")
    os.makedirs(faults, exist_ok=True)
    figures = {}
    for pool in pools:
        with open(os.path.join(faults, "latency_ms"), "w") as file:
            file.write("0")
        # One session of the configured number is the keeper's.
        sos = Sos(lab, "slow-%d" % pool, module=module, sessions=pool + 1,
                  env={"SOS_PROXY_MODULE": softhsm(), "SOS_PROXY_FAULTS": faults, "SOS_PROXY_MANUFACTURER": "Network HSM"})
        sos.plain.call("POST", "/v1/sys/mounts/bench-transit", {"type": "transit"})
        sos.plain.call("POST", "/v1/bench-transit/keys/aes", {"type": "aes256-gcm96", "protection_level": "hsm"})
        row = workloads.Row("slow", "POST", "/v1/bench-transit/encrypt/aes", {"plaintext": workloads.DEK})
        with open(os.path.join(faults, "latency_ms"), "w") as file:
            file.write(str(latency_ms))
        waiting = max(4 * pool, 32)
        run = load(sos.plain, row, seconds, waiting, sos.pid)
        bare = sos.hsm_bench(waiting, batch=1, millis=1000)["single"]
        figures[pool] = {"run": run, "bound": pool * 1000 / latency_ms, "bare": bare}
        with open(os.path.join(faults, "latency_ms"), "w") as file:
            file.write("0")
        lab.stop(sos.process)
    return figures
