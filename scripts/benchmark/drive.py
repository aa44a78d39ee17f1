"""Drives one row with wrk and reads what the kernel counted meanwhile."""
import dataclasses
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
  io.write(string.format("RESULT %%f %%f %%f %%f %%d %%d %%d\\n", summary.requests / (summary.duration / 1e6),
    latency:percentile(50) / 1000, latency:percentile(99) / 1000, latency.max / 1000, summary.requests, summary.errors.status,
    summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout))
end
"""
TICKS = os.sysconf("SC_CLK_TCK")
seeds = iter(range(int.from_bytes(os.urandom(2), "big") * 1000, 1 << 40))


@dataclasses.dataclass
class Run:
    """One run of one row: requests/s, latencies in ms, failures, CPU in µs per request (server and its children)."""

    rps: float
    p50: float
    p99: float
    max: float
    bad: int
    cpu: float


def load(server, row, seconds, conns, pid=None):
    """Loads `server` with `row` over `conns` connections; `pid` is the server process, where it is ours."""
    quote = json.dumps
    lua = LUA % dict(
        method=quote(row.method), token=quote(server.token), body="nil" if row.body is None else quote(json.dumps(row.body)),
        mode=quote(row.mode), path=quote(row.path), keys=row.keys, seed=next(seeds))
    with tempfile.NamedTemporaryFile("w", suffix=".lua", delete=False) as file:
        file.write(lua)
    conns = min(conns, row.conns or conns)
    before = cpu_seconds(pid)
    try:
        done = subprocess.run(
            ["wrk", "-t1", "-c%d" % conns, "-d%ds" % seconds, "--timeout", "10s", "-s", file.name, server.addr + row.path],
            capture_output=True, text=True)
    finally:
        os.unlink(file.name)
    match = re.search(r"RESULT (\S+) (\S+) (\S+) (\S+) (\d+) (\d+) (\d+)", done.stdout)
    if not match:
        raise RuntimeError("wrk said: " + (done.stdout + done.stderr)[-300:])
    rps, p50, p99, worst = map(float, match.groups()[:4])
    requests, status, errors = map(int, match.groups()[4:])
    return Run(rps, p50, p99, worst, status + errors, (cpu_seconds(pid) - before) * 1e6 / max(requests, 1))


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
    try:
        with open("/proc/%d/status" % pid) as file:
            return int(re.search(r"VmRSS:\s+(\d+)", file.read()).group(1)) / 1024
    except (OSError, AttributeError):
        return 0.0


def median(values):
    values = sorted(values)
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2
