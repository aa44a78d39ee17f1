"""Tables in Markdown and charts from the figures of one run."""
import os
import platform
import subprocess
import time

from . import svg, verdicts
from .drive import median
from .local import ROOT
from .verdicts import cpu_ratio, of, ratio


# Why a row is left out that there was no time for.
OVER = "the time was over"


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


def judged(value, goal):
    """A ratio and whether it reaches its goal."""
    if value is None:
        return ""
    said = "" if goal is None else " (goal %.1f)" % goal if value >= goal else " (**short of %.1f**)" % goal
    return "%.2f%s" % (value, said)


HEAD = ["row", "floor", "conns", "requests/s", "floor/s", "ratio", "p50 ms", "p99 ms", "floor p99", "CPU µs/request", "floor CPU µs", "CPU ratio"]


def line(name, each, conns):
    """One row beside its floor, in a run with so many connections."""
    ours, floor, row = each["ours"], each.get("floor"), each["row"]
    beside = lambda text: text() if floor else ""
    return [
        name, beside(lambda: row.floor), str(row.connections(conns)), "%.0f" % of(ours, "rps"), beside(lambda: "%.0f" % of(floor, "rps")),
        beside(lambda: judged(ratio(ours, floor), row.goal)), "%.2f" % of(ours, "p50"), "%.2f" % of(ours, "p99"),
        beside(lambda: "%.2f" % of(floor, "p99")), "%.1f" % of(ours, "cpu"), beside(lambda: "%.1f" % of(floor, "cpu")),
        beside(lambda: judged(cpu_ratio(ours, floor), row.goal))]


OPENBAO_HEAD = ["row", "requests/s", "OpenBao/s", "ratio"]
ELSEWHERE = """OpenBao 2.6 with Raft storage, measured elsewhere, on the same kind of machine (two cores, wrk with 32 connections, quiet, one run).
It says how far away the goals are and is no verdict; `--peer` runs both in one run and judges."""


def openbao(plain):
    """The rows that were measured there too."""
    known = [(name, each, verdicts.OPENBAO[name]) for name, each in plain.items() if name in verdicts.OPENBAO]
    return [[name, "%.0f" % of(each["ours"], "rps"), "%d" % theirs, judged(of(each["ours"], "rps") / theirs, verdicts.peer_goal(name))]
            for name, each, theirs in known]


PEER_HEAD = ["row", "requests/s", "peer/s", "ratio", "p50 ms", "peer p50", "p99 ms", "peer p99", "CPU µs/request", "peer CPU µs", "CPU ratio"]


def peer_line(name, each):
    """One row beside the peer."""
    ours, peer = each["ours"], each["peer"]
    cpu = cpu_ratio(ours, peer)
    known = cpu is not None
    return [
        name, "%.0f" % of(ours, "rps"), "%.0f" % of(peer, "rps"), "%.2f" % ratio(ours, peer), "%.2f" % of(ours, "p50"),
        "%.2f" % of(peer, "p50"), "%.2f" % of(ours, "p99"), "%.2f" % of(peer, "p99"), "%.1f" % of(ours, "cpu"),
        "%.1f" % of(peer, "cpu") if known else "", "%.2f" % cpu if known else ""]


def shown(name, each):
    """One row for the terminal."""
    yield "%-22s %8.0f/s  p50 %6.2f  p99 %7.2f ms  %6.1f µs CPU" % (name, *(of(each["ours"], part) for part in ("rps", "p50", "p99", "cpu")))
    for side, title in (("floor", "%s floor" % each["row"].floor), ("peer", "peer")):
        if each.get(side):
            cpu = cpu_ratio(each["ours"], each[side])
            yield "%s %8.0f/s, ratio %.2f%s" % (title, of(each[side], "rps"), ratio(each["ours"], each[side]), "" if cpu is None else ", CPU %.2f" % cpu)


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def section(title, *parts):
    return ["## " + title, ""] + [text for part in parts for text in (part, "")]


def listed(entries):
    return "\n".join("- " + entry for entry in entries)


def partial(figures):
    """What a reader must know before the goals."""
    rows = sum(why == OVER for _, why in figures["left_out"])
    few = ["%d of %d %s" % (found["written"], found["asked"], what) for key, what in verdicts.FILLED
           if (found := figures.get(key)) and found["written"] < found["asked"]]
    if not rows and not few:
        return ""
    return "**A partial run**: the time was over before all was measured. Left out: %s." % "; ".join(
        ["%d rows" % rows] * bool(rows) + ["all but " + each for each in few])


def write(figures, folder, how):
    """Writes report.md and its charts."""
    os.makedirs(folder, exist_ok=True)
    plain, found = figures["plain"], verdicts.all_verdicts(figures)
    short = [one for one in found if not one.reached]
    parts = ["# The last run", "", "Written by `%s`; [how to read it](README.md)." % how, "",
             table(["", ""], [[name, value] for name, value in figures["machine"].items()]), ""]
    bad = list(verdicts.bad_runs(figures))
    if bad:
        parts += section("Bad answers: this run counts for nothing", listed("%s: %d, %s" % (where, run.bad, run.why) for where, run in bad))
    parts += section(
        "Goals", partial(figures), "%d of %d are reached." % (len([one for one in found if one.goal is not None]) - len(short), len([one for one in found if one.goal is not None])),
        table(["what", "measured", "goal", ""], [one.cells() for one in found]),
        "Not measured in this run:", listed(verdicts.elsewhere(figures)))
    if figures["left_out"]:
        parts += section("Left out", listed("%s (%s)" % pair for pair in figures["left_out"]))
    conns = figures["conns"]
    rounds = "Medians of %d alternating rounds of %d s." % (figures["rounds"], figures["seconds"])
    parts += section("Every row, no audit device, no TLS", rounds, table(HEAD, [line(name, each, conns) for name, each in plain.items()]))
    parts += section("Beside OpenBao, measured elsewhere", ELSEWHERE, table(OPENBAO_HEAD, openbao(plain)))
    beside = {name: each for name, each in plain.items() if each.get("peer")}
    if beside:
        parts += section("Beside the peer", peer_memory(figures["memory"]), table(PEER_HEAD, [peer_line(name, each) for name, each in beside.items()]))
    for key, title in (("audit", "With an audit file device"), ("tls", "Over TLS")):
        if figures.get(key):
            rounds = "Medians of %d alternating rounds of 1 s." % figures["rounds"]
            parts += section(title, rounds, table(HEAD, [line(name, each, conns) for name, each in figures[key].items()]))
    if figures.get("writers"):
        parts += section("Writers", writers_table(figures["writers"]), "![writers](writers.svg)")
        writers_chart(figures["writers"], folder)
    parts += section("Memory and growth", scale_table(figures)) + ["![reads](reads.svg)", "", "![transit](transit.svg)", ""]
    reads = [name for name in plain if not any(word in name for word in ("crypt", "sign", "hmac", "datakey"))]
    for file, title, names in (("reads.svg", "KV and tokens: requests per second", reads), ("transit.svg", "Transit: requests per second", [name for name in plain if name not in reads])):
        series = ["SOS", "floor"] + (["peer"] if beside else [])
        groups = []
        for name in names:
            each = plain[name]
            values = [of(each[key], "rps") if each.get(key) else None for key in ("ours", "floor", "peer")][: len(series)]
            goal = each["row"].goal
            groups.append((name, values, goal * values[1] if goal and values[1] else None))
        chart(folder, file, svg.bars(title, series, groups, "the share of the floor that the design asks for"))
    with open(os.path.join(folder, "report.md"), "w") as file:
        file.write("\n".join(parts))


def peer_memory(memory):
    if "peer_after" not in memory:
        return "The process of the peer was not found; its memory and CPU time are not known."
    theirs, ours = memory["peer_after"], memory["after"]
    return "Resident: idle %.1f MiB (ours %.1f), after the rows %.1f MiB (ours %.1f)." % (
        memory["peer_idle"]["server"], memory["idle"]["server"], theirs["server"], ours["server"])


def writers_chart(rounds, folder):
    counts = list(rounds[0])
    rates = [median([one[count][1].rps for one in rounds]) for count in counts]
    syncs = [median([one[count][0]["per_second"] for one in rounds]) for count in counts]
    names = ["SOS", "write + fdatasync, one by one"]
    chart(folder, "writers.svg", svg.lines("Acknowledged KV v2 writes per second", names, counts, [rates, syncs], "clients writing at once"))


def chart(folder, name, text):
    with open(os.path.join(folder, name), "w") as file:
        file.write(text)


def writers_table(rounds):
    """Each number of clients beside the syncs that were timed just before and after it."""
    rows = []
    for count in rounds[0]:
        of_all = lambda figure: median([figure(*one[count]) for one in rounds])
        rows.append([str(count), "%.0f" % of_all(lambda _, run: run.rps), "%.0f" % of_all(lambda sync, _: sync["per_second"])] + [
            "%.2f" % of_all(figure) for figure in (
                lambda _, run: run.p50, lambda sync, _: sync["p50_ms"], lambda _, run: run.p99, lambda sync, _: sync["p99_ms"])])
    return table(["clients", "writes/s", "syncs/s", "p50 ms", "sync p50 ms", "p99 ms", "sync p99 ms"], rows)


def resident(memory):
    together = "" if memory["together"] is None else "; together, shared pages once: %.1f MiB" % memory["together"]
    return "%.1f MiB resident; HSM worker %.1f MiB%s" % (memory["server"], memory["children"], together)


def scale_table(figures):
    memory = figures["memory"]
    rows = [["server with two listeners, idle after start", resident(memory["idle"])]]
    if memory.get("after"):
        rows.append(["server, after the rows", resident(memory["after"])])
    for key, what in verdicts.FILLED:
        one = figures.get(key)
        if not one:
            continue
        rows.append(["%d %s" % (one["written"], what), "written at %.0f/s by 256 clients; then %.1f MiB resident, store %.0f MiB" % (one["per_second"], one["rss_after"], one["store_mib"])])
        if "read" in one:
            rows.append(["reads at random among them", "%.0f/s, p99 %.2f ms" % (one["read"].rps, one["read"].p99)])
        else:
            rows.append(["with them", "look-up %.0f/s, p99 %.2f ms; create %.0f/s" % (one["look_up"].rps, one["look_up"].p99, one["create"].rps)])
    for one in figures.get("cold_start") or []:
        rows.append(["kill -9 and start, %d clients waiting, %s" % (one["clients"], one["store"]), "first answered after %.2f s, half after %.2f s, all after %.2f s; %s" % (one["first"], one["median"], one["last"], resident(one["memory"]))])
    return table(["what", "measured"], rows)
