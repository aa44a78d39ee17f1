"""The checks of scripts/torture must find what they look for.

    python3 -m unittest discover -s tests/torture -p 'test_*.py'
"""
import json, os, shutil, sys, tempfile, types, unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from place import MARK, Gone, Violation  # noqa: E402
from workload import Workload  # noqa: E402


class Checks(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)
        place = types.SimpleNamespace(path=lambda *names: os.path.join(self.folder, *names), port=0, root="root")
        self.work = Workload(place, 1)

    def audit(self, *lines):
        with open(os.path.join(self.folder, "audit.log"), "a") as file:
            for kind, mark in lines:
                file.write(json.dumps({"type": kind, "request": {"id": "any", "headers": {MARK.lower(): [mark]}}}) + "\n")

    def acknowledge(self, what):
        mark = self.work.log.marks.next()
        self.work.log.marks.answered(mark, what)
        return mark

    def found(self, wanted, check, *arguments):
        with self.assertRaises(Violation) as caught:
            check(*arguments)
        self.assertIn(wanted, str(caught.exception))

    def test_whole_audit_files_pass_also_with_half_a_line(self):
        mark = self.acknowledge("DELETE kv1/a")
        self.audit(("request", mark), ("response", mark))
        self.work.tear_audit()
        self.work.check_audit()
        with open(os.path.join(self.folder, "audit.log"), "a") as file:
            file.write("\n")
        mark = self.acknowledge("PUT kv1/a")
        self.audit(("request", mark), ("response", mark))
        self.work.check_audit()

    def test_a_missing_line_of_an_answer_without_body_is_found(self):
        mark = self.acknowledge("DELETE kv1/a")
        self.audit(("request", mark))
        self.found("lacks the response lines of 1 of 1 acknowledged requests, as of DELETE kv1/a", self.work.check_audit)

    def test_a_missing_line_of_a_request_is_found(self):
        mark = self.acknowledge("PUT kv1/a")
        self.audit(("response", mark))
        self.found("lacks the request lines of 1 of 1", self.work.check_audit)

    def test_a_record_behind_half_a_line_is_found(self):
        self.work.tear_audit()
        self.audit(("request", "1"))
        self.found("appended to half a line", self.work.check_audit)

    def test_writes_that_are_acknowledged_and_not_done_are_found_although_later_ones_cover_them_up(self):
        for subject in (self.work.groups[5][0], self.work.groups[7][0], self.work.only):
            held = {}

            def ok(method, path, body=None, dropped=False):
                if not dropped:
                    held.pop(path, None) if method == "DELETE" else held.__setitem__(path, body or {})
                return {"data": {"ciphertext": "c", "plaintext": "b25seQ=="}}

            def call(method, path):
                return (200, {"data": held[path]}) if path in held else (404, {})

            client = types.SimpleNamespace(ok=ok, call=call)
            for _ in range(16):
                subject.step(client)
            client.ok = lambda method, path, body=None: ok(method, path, body, dropped=True)
            self.found("at step" if subject is not self.work.only else "key", subject.step, client)

    def test_a_writer_that_dies_is_found(self):
        for died, passes in ((Gone("the server was killed"), True), (KeyError("data"), False)):
            def step(_client, died=died):
                raise died
            self.work.groups = [[types.SimpleNamespace(name="one", step=step)]]
            self.work.start(rare=False)
            if passes:
                self.work.join()
            else:
                self.found("a writer died", self.work.join)

    def test_writers_that_hardly_wrote_are_found(self):
        self.work.steps = [5] * len(self.work.steps)
        self.work.log.count = 100
        self.work.demand(5, 100)
        self.found("of at least 101", self.work.demand, 5, 101)
        self.work.steps[5] = 4
        self.found("less than 5 steps of the writers of register-0", self.work.demand, 5, 100)


if __name__ == "__main__":
    unittest.main()
