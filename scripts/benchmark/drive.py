"""Drives one row with wrk, checks its answers, and reads what the kernel counted meanwhile."""
import dataclasses
import http.client
import json
import os
import re
import subprocess
import tempfile

LUA = """
wrk.method = %(method)s
wrk.headers["X-Vault-Token"] = %(token)s
wrk.headers["Content-Type"] = "application/json"
wrk.body = %(body)s
local n, mode, base, keys = 0, %(mode)s, %(path)s, %(keys)d
local seed = %(seed)d
if mode ~= "" then
  request = function()
    n = n + 1
    if mode == "spread" then return wrk.format(nil, base .. tostring((n * 7919) %% keys)) end
    return wrk.format(nil, base .. seed .. "-" .. n)
  end
end
done = function(summary, latency, requests)
  io.write(string.format("RESULT %%f %%f %%f %%f %%d %%d %%d %%d\\n", summary.requests / (summary.duration / 1e6),
    latency:percentile(50) / 1000, latency:percentile(99) / 1000, latency.max / 1000, summary.requests, summary.errors.status,
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout, summary.bytes))
end
"""
TICKS = os.sysconf("SC_CLK_TCK")
seeds = iter(range(int.from_bytes(os.urandom(2), "big") * 1000, 1 << 40))


@dataclasses.dataclass
class Run:
    """One run of one row: requests/s, latencies in ms, bad answers and what was bad, CPU in µs per request (server and children)."""

    rps: float
    p50: float
    p99: float
    max: float
    bad: int
    cpu: float
    why: str = ""


def load(server, row, seconds, conns, pid=None):
    """Loads `server` with `row` over `conns` connections; `pid` is the server process, where it is known.

    One request is asked and looked at before and one after; of those between wrk counts statuses from 400 on, and the bytes tell
    whether answers were empty or another kind (a redirect), which wrk takes for good.
    """
    quote, seed = json.dumps, next(seeds)
    lua = LUA % dict(
        method=quote(row.method), token=quote(server.token), body="nil" if row.body is None else quote(json.dumps(row.body)),
        mode=quote(row.mode), path=quote(row.path), keys=row.keys, seed=seed)
    with tempfile.NamedTemporaryFile("w", suffix=".lua", delete=False) as file:
        file.write(lua)
    conns = row.connections(conns)
    asked = [look(server, row, seed)]
    before = cpu_seconds(pid)
    try:
        done = subprocess.run(
            ["wrk", "-t1", "-c%d" % conns, "-d%ds" % seconds, "--timeout", "10s", "-s", file.name, server.addr + row.path],
            capture_output=True, text=True)
    finally:
        os.unlink(file.name)
    spent = cpu_seconds(pid) - before
    match = re.search(r"RESULT (\S+) (\S+) (\S+) (\S+) (\d+) (\d+) (\d+) (\d+)", done.stdout)
    if not match:
        raise RuntimeError("wrk said: " + (done.stdout + done.stderr)[-300:])
    asked.append(look(server, row, seed + 1))
    rps, p50, p99, worst = map(float, match.groups()[:4])
    requests, status, errors, received = map(int, match.groups()[4:])
    bad, why = judge(asked, requests, status, errors, received)
    return Run(rps, p50, p99, worst, bad, spent * 1e6 / max(requests, 1), why)


def look(server, row, number):
    """One request outside of the load: the bytes of its answer, and what is wrong with it ("" for nothing)."""
    try:
        status, body = server.ask(row.method, row.once(number), row.body)
    except (OSError, http.client.HTTPException) as error:
        return 0, "no answer: %s" % error
    if not 200 <= status < 300:
        return len(body), "status %d" % status
    if row.answer not in (None, len(body)):
        return len(body), "%d bytes instead of %d" % (len(body), row.answer)
    return len(body), ""


def judge(asked, requests, status, errors, received):
    """How many answers of a run were bad, and why."""
    faults = [(1, why) for _, why in asked if why]
    faults += [(status, "%d answers of 400 or above" % status), (errors, "%d failures of the connection" % errors)]
    # What wrk counts has the header lines too, so whole answers are never below this.
    if requests == 0:
        faults.append((1, "no answers"))
    elif received / requests < min([size for size, why in asked if not why] or [0]):
        faults.append((requests, "%d bytes per answer on average, less than the body of a good one" % (received / requests)))
    faults = [(count, why) for count, why in faults if count]
    return sum(count for count, _ in faults), "; ".join(dict.fromkeys(why for _, why in faults))


def family(pid):
    """A process and its children: the HSM worker is one of the server's."""
    pids = [pid]
    try:
        for task in os.listdir("/proc/%d/task" % pid):
            with open("/proc/%d/task/%s/children" % (pid, task)) as file:
                pids += [int(child) for child in file.read().split()]
    except OSError:
        pass
    return pids


def cpu_seconds(pid):
    """User and system time of a process and its children."""
    total = 0
    for one in family(pid) if pid else []:
        try:
            with open("/proc/%d/stat" % one) as file:
                fields = file.read().rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
        except OSError:
            pass
    return total / TICKS


def resident_mib(pid):
    """Resident memory of a process alone."""
    return memory_field("/proc/%d/status" % pid, "VmRSS") or 0.0


def memory(pid):
    """Resident MiB of a server alone and of its children as they are now, and of all together with what they have in common
    counted once (None where the system does not tell): of each part of a file the most that one of them has of it. The kernel's own
    Pss is only an estimate where files lie in large folios."""
    pids = family(pid)
    own, files = 0.0, {}
    try:
        for one in pids:
            for part, (resident, anonymous) in mappings(one).items():
                own += anonymous
                files[part] = max(files.get(part, 0), resident - anonymous)
        together = own + sum(files.values())
    except OSError:
        together = None
    return {"server": resident_mib(pid), "children": sum(resident_mib(one) for one in pids if one != pid), "together": together}


def mappings(pid):
    """Resident and anonymous MiB by the part of a file, or the place, that is mapped (proc(5), smaps)."""
    found, part = {}, None
    with open("/proc/%d/smaps" % pid) as file:
        for line in file:
            words = line.split()
            if "-" in words[0]:
                part = tuple(words[1:3] + words[5:]) if words[5:] and words[5].startswith("/") else (pid, words[0])
                found.setdefault(part, [0, 0])
            elif words[0] in ("Rss:", "Anonymous:"):
                found[part][words[0] == "Anonymous:"] += int(words[1]) / 1024
    return found


def memory_field(file, name):
    try:
        with open(file) as opened:
            return int(re.search(name + r":\s+(\d+)", opened.read()).group(1)) / 1024
    except (OSError, AttributeError):
        return None


def process_at(port):
    """The process that listens on a TCP port, or None when it cannot be found."""
    sockets = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table) as file:
                lines = [line.split() for line in file.readlines()[1:]]
        except OSError:
            continue
        # State 0A is listening; the tenth column is the socket's inode.
        sockets |= {"socket:[%s]" % line[9] for line in lines if line[3] == "0A" and int(line[1].rsplit(":", 1)[1], 16) == port}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            folder = "/proc/%s/fd/" % pid
            if any(os.readlink(folder + name) in sockets for name in os.listdir(folder)):
                return int(pid)
        except OSError:
            pass
    return None


def median(values):
    values = sorted(values)
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2
