"""Tables in Markdown and charts from the figures of one run."""
import os
import platform
import subprocess
import time

from . import rows as workloads, svg
from .drive import median
from .local import ROOT
from .scale import ratio

# Fractions of the floor that the design names.
GOALS = {"kv1-read": 0.6, "kv2-read": 0.6, "kv2-read-1000": 0.6, "token-lookup-self": 0.6, "encrypt-32B": 0.5, "decrypt-32B": 0.5}


def of(runs, part):
    return median([getattr(run, part) for run in runs])


def output(*command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
        return (done.stdout or done.stderr).strip().splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def machine():
    """Where the figures come from."""
    model = "unknown"
    with open("/proc/cpuinfo") as file:
        for line in file:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    with open("/proc/meminfo") as file:
        memory = int(file.readline().split()[1]) >> 20
    dirty = "" if output("git", "status", "--porcelain", "--", "src", "Cargo.toml") == "unknown" else " with changes"
    return {
        "CPU": "%s, %d threads" % (model, os.cpu_count()),
        "Memory": "%d GiB" % memory,
        "System": "%s, Linux %s" % (output("sh", "-c", ". /etc/os-release; echo $PRETTY_NAME"), platform.release()),
        "Commit": output("git", "log", "-1", "--format=%h of %cs") + dirty,
        "Rust": output("rustc", "--version"),
        "wrk": output("sh", "-c", "wrk -v 2>&1 | head -1"),
        "SoftHSM": output("softhsm2-util", "--version"),
        "Load before the run": "%.1f (1 min), %.1f (5 min)" % os.getloadavg()[:2],
        "When": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def line(name, each):
    """One row: ours, the floor, their ratio, latencies, CPU."""
    ours, floor = each["ours"], each.get("floor")
    share = ratio(ours, floor) if floor else None
    goal = GOALS.get(name)
    peer = ""
    if each.get("peer"):
        peer = "%.2f" % ratio(ours, each["peer"])
    verdict = "" if goal is None or share is None else (" (goal %.1f)" % goal if share >= goal else " (**short of %.1f**)" % goal)
    return [
        name, "%.0f" % of(ours, "rps"), "%.0f" % of(floor, "rps") if floor else "", "%.2f%s" % (share, verdict) if share else "",
        "%.2f" % of(ours, "p50"), "%.2f" % of(ours, "p99"), "%.2f" % of(floor, "p99") if floor else "",
        "%.1f" % of(ours, "cpu"), "%.1f" % of(floor, "cpu") if floor else "",
        "%.2f" % (of(floor, "cpu") / of(ours, "cpu")) if floor else "", peer]


def shown(name, each):
    """One row for the terminal."""
    yield "%-22s %8.0f/s  p50 %6.2f  p99 %7.2f ms  %6.1f µs CPU" % (name, *(of(each["ours"], part) for part in ("rps", "p50", "p99", "cpu")))
    for side in ("floor", "peer"):
        if each.get(side):
            yield "%s %8.0f/s, ratio %.2f" % (side, of(each[side], "rps"), ratio(each["ours"], each[side]))


HEAD = ["row", "requests/s", "floor/s", "ratio", "p50 ms", "p99 ms", "floor p99", "CPU µs/request", "floor CPU µs", "CPU ratio", "vs peer"]


def table(head, rows):
    if not any(row[-1] for row in rows):
        head, rows = head[:-1], [row[:-1] for row in rows]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def derived(figures):
    """The ratios that are not one row against the floor: (what, figure, goal or None)."""
    rows, found = figures["plain"], []
    rps = lambda name: of(rows[name]["ours"], "rps") if name in rows else None

    def share(what, top, bottom, goal):
        if top and bottom:
            found.append((what, top / bottom, goal))

    for op in ("encrypt", "decrypt"):
        batch, single = rps(op + "-batch100"), rps(op + "-32B")
        share("%s, `software`: items/s in batches of 100 over single requests/s" % op, batch and batch * 100, single, 10)
    sign = figures.get("sign") or []
    for name, kind in workloads.SIGNING.items():
        for row, items, what, goal in (
            ("sign-" + name, 1, "single signatures/s", 0.9 if name == "rsa2048" else None),
            ("sign-%s-batch100" % name, 100, "signatures/s in batches of 100", 0.9 if name != "ed25519" else None),
        ):
            shares = [one[row].rps * items / one["raw"][kind] for one in sign if row in one]
            if shares:
                found.append(("%s: %s over the library's own rate on the same cores" % (kind, what), median(shares), goal))
    hsm = figures.get("hsm")
    if hsm:
        singles = [one["run"].rps / one["bare"]["single"] for one in hsm]
        found.append(("`hsm`: single requests/s over the bare loop over the same worker, as many waiting", median(singles), 0.9))
        floor = rows.get("encrypt-32B-hsm", {}).get("floor")
        if floor:
            # One after the other on the same processors: what HTTP alone leaves of the bare loop's rate.
            possible = [one["run"].rps * (1 / one["bare"]["single"] + 1 / of(floor, "rps")) for one in hsm]
            found.append(("the same over what bare loop and floor together could give on these processors", median(possible), None))
        batches = [one["batch"].rps * 100 / one["bare"]["raw"] for one in hsm if one["bare"]["raw"]]
        found.append(("`hsm`: items/s in batches of 100 over the raw C_Encrypt loop", median(batches), 0.8))
        found.append(("bare worker loop, batches of 100: items/s over the raw C_Encrypt loop", median([one["bare"]["batch"] / one["bare"]["raw"] for one in hsm]), None))
    for pool, one in sorted((figures.get("slow_hsm") or {}).items()):
        found.append(("HSM with 2 ms latency, %d sessions: requests/s over sessions / latency" % pool, one["rps"] / one["bound"], 0.9))
        found.append(("HSM with 2 ms latency, %d sessions: requests/s over the bare loop, as many waiting" % pool, one["rps"] / one["bare"], 0.9))
    write = figures.get("writers")
    if write:
        sync = median([one["per_second"] for one in write["fsync"]])
        for count, runs in write["conns"].items():
            found.append(("KV v2 writes, %d clients: acknowledged writes/s over the disk's syncs/s" % count, of(runs, "rps") / sync, None))
    return found


def derived_table(figures):
    rows = []
    for what, value, goal in derived(figures):
        verdict = "" if goal is None else ("goal %g" % goal if value >= goal else "**short of %g**" % goal)
        rows.append([what, "%.2f" % value, verdict])
    return table(["what", "ratio", ""], rows) if rows else ""


def write(figures, folder, how):
    """Writes report.md and its charts."""
    os.makedirs(folder, exist_ok=True)
    plain = figures["plain"]
    parts = ["# The last run", "", "Written by `%s`; [how to read it](README.md)." % how, "",
             table(["", "", ""], [[name, value, ""] for name, value in figures["machine"].items()]), "",
             "## Every row, no audit device, no TLS", "", "32 connections; medians of %d alternating rounds." % figures["rounds"], "",
             table(HEAD, [line(name, each) for name, each in plain.items()]), "",
             "## Ratios of one run", "", derived_table(figures), ""]
    for key, title in (("audit", "With an audit file device"), ("tls", "Over TLS")):
        if figures.get(key):
            parts += ["## " + title, "", table(HEAD, [line(name, each) for name, each in figures[key].items()]), ""]
    if figures.get("writers"):
        parts += ["## Writers", "", writers_table(figures["writers"]), "", "![writers](writers.svg)", ""]
        count = list(figures["writers"]["conns"])
        rates = [of(figures["writers"]["conns"][one], "rps") for one in count]
        sync = median([one["per_second"] for one in figures["writers"]["fsync"]])
        chart(folder, "writers.svg", svg.lines("Acknowledged KV v2 writes per second", ["SOS", "write + fdatasync, one by one"], count, [rates, [sync] * len(count)], "clients writing at once"))
    parts += ["## Memory and growth", "", scale_table(figures), ""]
    parts += ["![reads](reads.svg)", "", "![transit](transit.svg)", ""]
    reads = [name for name in plain if not any(word in name for word in ("crypt", "sign", "hmac", "datakey"))]
    for file, title, names in (("reads.svg", "KV and tokens: requests per second", reads), ("transit.svg", "Transit: requests per second", [name for name in plain if name not in reads])):
        series = ["SOS", "floor"] + (["peer"] if figures.get("peer") else [])
        groups = []
        for name in names:
            each = plain[name]
            values = [of(each[key], "rps") if each.get(key) else None for key in ("ours", "floor", "peer")][: len(series)]
            goal = GOALS.get(name)
            groups.append((name, values, goal * values[1] if goal and values[1] else None))
        chart(folder, file, svg.bars(title, series, groups, "the share of the floor that the design asks for"))
    with open(os.path.join(folder, "report.md"), "w") as file:
        file.write("\n".join(parts))


def chart(folder, name, text):
    with open(os.path.join(folder, name), "w") as file:
        file.write(text)


def writers_table(figures):
    sync = figures["fsync"]
    cells = lambda name, *values: [name, "%.0f" % values[0], "%.2f" % values[1], "%.2f" % values[2], ""]
    alone = [median([one[part] for one in sync]) for part in ("per_second", "p50_ms", "p99_ms")]
    rows = [cells("write + fdatasync of 1 KiB, one by one", *alone)]
    rows += [cells("%d clients" % count, *(of(runs, part) for part in ("rps", "p50", "p99"))) for count, runs in figures["conns"].items()]
    return table(["", "per second", "p50 ms", "p99 ms", ""], rows)


def scale_table(figures):
    rows = []
    memory = figures["memory"]
    rows.append(["server, idle after start", "%.1f MiB resident; HSM worker %.1f MiB" % (memory["idle"], memory["worker"])])
    rows.append(["server, after all rows", "%.1f MiB resident; HSM worker %.1f MiB" % (memory["after"], memory["worker_after"])])
    for key, what in (("secrets", "secrets"), ("leases", "tokens with a lease")):
        one = figures.get(key)
        if not one:
            continue
        rows.append(["%d %s" % (one["written"], what), "written at %.0f/s by 256 clients; then %.1f MiB resident, store %.0f MiB" % (one["per_second"], one["rss_after"], one["store_mib"])])
        if "read" in one:
            rows.append(["reads at random among them", "%.0f/s, p99 %.2f ms" % (one["read"].rps, one["read"].p99)])
        else:
            rows.append(["with them", "look-up %.0f/s, p99 %.2f ms; create %.0f/s" % (one["look_up"].rps, one["look_up"].p99, one["create"].rps)])
    for one in figures.get("cold_start", []):
        rows.append(["kill -9 and start, %d clients waiting, %s" % (one["clients"], one["store"]), "first answered after %.2f s, half after %.2f s, all after %.2f s; %.1f MiB resident" % (one["first"], one["median"], one["last"], one["rss"])])
    return table(["what", "measured", ""], [row + [""] for row in rows])
