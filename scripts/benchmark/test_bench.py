"""What the benchmark says about itself: bad answers are seen, goals are judged, processes are found. Runs in seconds:

    python3 -m unittest discover -s scripts -t scripts -p 'test_*.py'
"""
import http.server
import os
import subprocess
import sys
import tempfile
import threading
import unittest

from benchmark import report, rows, verdicts
from benchmark.drive import Run, family, judge, load, memory, process_at

GOOD = b"x" * 600


class Answers(http.server.BaseHTTPRequestHandler):
    """/good, /missing (404), /moved (307 without a body), /empty (200 without a body), /turns (good at first, then 307)."""

    protocol_version = "HTTP/1.1"
    asked = 0

    def do_GET(self):
        kind = self.path.split("/")[1]
        if kind == "turns":
            Answers.asked += 1
            kind = "good" if Answers.asked == 1 else "moved"
        status, body = {"good": (200, GOOD), "missing": (404, b"no"), "moved": (307, b""), "empty": (200, b"")}[kind]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Served(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        cls.http.handle_error = lambda *_: None  # wrk closes its connections as it likes
        threading.Thread(target=cls.http.serve_forever, daemon=True).start()
        cls.server = rows.Server("http://127.0.0.1:%d" % cls.http.server_port, "t")

    @classmethod
    def tearDownClass(cls):
        cls.http.shutdown()
        cls.http.server_close()

    def run_of(self, path, **more):
        return load(self.server, rows.Row("row", "GET", path, **more), 1, 2)

    def test_good_answers_are_good(self):
        run = self.run_of("/good", answer=len(GOOD))
        self.assertEqual((run.bad, run.why), (0, ""))
        self.assertGreater(run.rps, 0)

    def test_every_other_answer_is_bad_whoever_gives_it(self):
        for path, why in (("/missing", "status 404"), ("/moved", "status 307"), ("/turns", "less than the body")):
            run = self.run_of(path)
            self.assertGreater(run.bad, 0, path)
            self.assertIn(why, run.why)
        run = self.run_of("/empty", answer=len(GOOD))
        self.assertIn("0 bytes instead of 600", run.why)

    def test_the_floor_answers_as_many_bytes_as_the_server(self):
        row = rows.at_floor(self.server, rows.Row("row", "GET", "/good", floor=rows.BARE))
        self.assertEqual((row.path, row.answer), ("/bare/600/good", 600))

    def test_the_process_behind_a_port_is_found(self):
        self.assertEqual(process_at(self.http.server_port), os.getpid())


class Judged(unittest.TestCase):
    def test_failures_of_the_connection_and_silence_count(self):
        self.assertEqual(judge([(9, "")] * 2, 10, 0, 3, 1000)[0], 3)
        self.assertEqual(judge([(9, "")] * 2, 0, 0, 0, 0), (1, "no answers"))

    def test_bad_runs_are_found_wherever_they_lie(self):
        bad = Run(1, 1, 1, 1, 2, 1, "status 404")
        good = Run(1, 1, 1, 1, 0, 1)
        figures = {"plain": {"a": {"row": rows.Row("a", "GET", "/"), "ours": [good], "floor": [bad], "peer": [bad]}},
                   "sign": [{"raw": {"rsa-2048": 3.0}, "sign-p256": bad}], "hsm": [{"batch": bad}], "slow_hsm": {2: {"run": bad}},
                   "writers": [{8: ({"per_second": 1.0}, bad)}], "secrets": {"read": bad}, "leases": {"create": bad}}
        self.assertEqual([where for where, _ in verdicts.bad_runs(figures)],
                         ["plain a floor", "plain a peer", "sign sign-p256", "hsm batch", "slow_hsm 2 run", "writers 8", "secrets read", "leases create"])

    def figures(self):
        run = lambda rps, cpu=10.0, p50=1.0: Run(rps, p50, p50 * 2, 9, 0, cpu)
        sync = {"per_second": 100.0, "p50_ms": 10.0, "p99_ms": 20.0}
        mib = lambda server: {"server": server, "children": 5.0, "together": server + 1}
        start = lambda store, first: {"store": store, "clients": 9, "first": first, "median": first, "last": first, "memory": mib(99.0)}
        each = {"row": rows.Row("kv2-read", "GET", "/", floor=rows.BARE, goal=0.6), "ours": [run(80, 20.0)], "floor": [run(100)], "peer": [run(20)]}
        fill = {"written": 5, "asked": 10, "per_second": 1.0, "rss_after": 1.0, "store_mib": 1.0}
        return {
            "machine": {}, "rounds": 1, "seconds": 1, "conns": 32, "peer": True, "left_out": [("approle-login: no auth method approle", "400"), ("tls: health", report.OVER)],
            "plain": {"kv2-read": each, "sign-p256-batch100": {"row": rows.Row("sign-p256-batch100", "GET", "/", conns=4), "ours": [run(7)]}},
            "sign": [{"raw": {"rsa-2048": 100.0, "cpu_us": {"rsa-2048": 900.0}}, "sign-rsa2048": run(80, 1000.0), "sign-rsa2048-batch100": run(0.9, 100_000.0)}], "writers": [{1: (sync, run(50, p50=30.0)), 8: (sync, run(400)), 32: (sync, run(200))}],
            "memory": {"idle": mib(20.0), "after": mib(40.0), "peer_idle": mib(90.0), "peer_after": mib(200.0)},
            "cold_start": [start("store 1 MiB", 1.0), start("store 9 MiB", 4.0)],
            "secrets": {**fill, "read": run(1)}, "leases": {**fill, "look_up": run(1), "create": run(1)}}

    def test_every_goal_is_judged(self):
        said = {one.what: (round(one.value, 2), one.reached) for one in verdicts.all_verdicts(self.figures())}
        for what, expected in {
            "kv2-read: requests/s over the bare floor's": (0.8, True),
            "kv2-read: CPU per request of the bare floor over ours": (0.5, False),
            "kv2-read: requests/s over the peer's": (4.0, False),
            "one writer: p50 of a write over p50 of one write + fdatasync at the same time": (3.0, False),
            "writers: acknowledged writes/s of 8 over those of 1 (grow until disk or processors are full)": (8.0, True),
            "writers: acknowledged writes/s of 32 over those of 8 (grow until disk or processors are full)": (0.5, False),
            "memory, idle after start: server": (20.0, True),
            "memory, after the rows: server (a quarter of the peer's)": (40.0, True),
            "start until the first answer, store 9 MiB, over the start of a fresh store": (4.0, False),
            "secrets written, of those asked for": (0.5, False),
            "rsa-2048: single signatures/s over the library's own rate on the same cores": (0.8, False),
            "rsa-2048: single signatures, CPU per signature of the library alone over ours": (0.9, True),
            "rsa-2048: signatures in batches of 100, CPU per signature of the library alone over ours": (0.9, True),
        }.items():
            self.assertEqual(said.get(what), expected, what)
        without = self.figures()
        del without["memory"]["peer_after"]
        quarter = [one for one in verdicts.all_verdicts(without) if "after the rows" in one.what]
        self.assertEqual([(one.goal, one.reached) for one in quarter], [(37.5, False)])

    def test_the_report_shows_goals_floors_peer_and_what_is_left_out(self):
        with tempfile.TemporaryDirectory() as folder:
            report.write(self.figures(), folder, "test")
            with open(folder + "/report.md") as file:
                text = file.read()
        row = "| kv2-read | bare | 32 | 80 | 100 | 0.80 (goal 0.6) | 1.00 | 2.00 | 2.00 | 20.0 | 10.0 | 0.50 (**short of 0.6**) |"
        peer = "| kv2-read | 80 | 20 | 4.00 | 1.00 | 1.00 | 2.00 | 2.00 | 20.0 | 10.0 | 0.50 |"
        for part in (row, peer, "- approle-login: no auth method approle (400)", "after the rows 200.0 MiB (ours 40.0)", "**short**", "| 32 | 200 | 100 |", "**A partial run**", "Left out: 1 rows; all but 5 of 10 secrets; all but 5 of 10 tokens",
                     "| sign-p256-batch100 |  | 4 | 7 |", "| kv2-read | 80 | 8700 | 0.01 (**short of 8.0**) |", "measured elsewhere"):
            self.assertIn(part, text)


class Children(unittest.TestCase):
    def test_children_are_those_of_the_moment(self):
        # A process whose first child is gone and which has another one now.
        shell = subprocess.Popen(["sh", "-c", "true; sleep 30 & wait"], start_new_session=True)
        try:
            for _ in range(200):
                if len(family(shell.pid)) == 2:
                    break
                threading.Event().wait(0.01)
            found = memory(shell.pid)
            self.assertGreater(found["children"], 0)
            self.assertGreater(found["server"], 0)
        finally:
            os.killpg(shell.pid, 9)
            shell.wait()


if __name__ == "__main__":
    sys.exit(unittest.main())
