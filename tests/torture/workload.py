"""Clients that write for as long as the server lives, and the check of all that they were promised."""
import json, random, threading, time, traceback

from ledger import NEVER, Kv1Register, KvChain, Log, Policy, Terms, TokenKeys, Tokens, TransitKey, ZoneVersions
from place import MARK, Connection, Gone, Violation

TORN = '{"type":"response","torn":'


class Workload:
    def __init__(self, place, seed, journal=None):
        self.place = place
        self.dice = random.Random(seed)
        self.log = Log(place.path("acknowledged.log"), journal)
        dice = lambda: random.Random(self.dice.getrandbits(64))
        self.levels = [TransitKey(self.log, "level-" + level, level, dice(), every)
                       for level, every in (("software", 12), ("hsm", 12), ("hsm-only", 200))]
        self.zones, self.only, self.terms = ZoneVersions(self.log, "zone"), TokenKeys(self.log, "only"), Terms(self.log, "terms")
        self.groups = [[KvChain(self.log, "chain-%d-%d" % (writer, key), dice()) for key in range(4)] for writer in range(5)]
        self.groups += [[Kv1Register(self.log, "register-%d" % number) for number in range(3)],
                        # sled gives values of this size files of their own.
                        [Kv1Register(self.log, "large-%d" % number, 400_000) for number in range(2)],
                        [Policy(self.log, "policy-%d" % number) for number in range(2)] + [Tokens(self.log, "tokens", dice())],
                        self.levels[:2], [self.levels[2], self.terms]]
        # These write to the token for good, or much: a few steps in every run.
        self.rare = [self.zones, self.only]
        self.failures = []
        # How many steps each group of writers has done.
        self.steps = [0] * (len(self.groups) + 1)
        self.threads = []
        self.stopping = False

    def subjects(self):
        return [subject for group in self.groups for subject in group] + self.rare

    def prepare(self):
        client = self.place.client()
        for path, kind, version in (("kv", "kv", "2"), ("kv1", "kv", "1"), ("transit", "transit", None)):
            options = {"options": {"version": version}} if version else {}
            client.ok("POST", "sys/mounts/" + path, {"type": kind, **options})
        client.ok("PUT", "sys/config/auditing/request-headers/" + MARK, {"hmac": False})
        client.ok("PUT", "sys/audit/file", {"type": "file", "options": {"file_path": self.place.path("audit.log")}})
        client.close()

    def client(self):
        """For writers: what it asks for must be found in the audit file."""
        return Connection(self.place.port, self.place.root, self.log.marks)

    def start(self, rare=True):
        """Lets the writers loose."""
        self.stopping = False
        work = list(self.groups) + ([self.rare] if rare else [])
        self.threads = [threading.Thread(target=self.write, args=(at, group, group is self.rare, self.dice.getrandbits(64)))
                        for at, group in enumerate(work)]
        for thread in self.threads:
            thread.start()

    def write(self, at, group, rare, seed):
        dice, client = random.Random(seed), self.client()
        try:
            for number in range(3 if rare else 1 << 60):
                if self.stopping:
                    return
                # Of the rare ones each comes to all of its steps, deletions too.
                subject = min(group, key=lambda subject: subject.acked) if rare else dice.choice(group)
                subject.step(client)
                self.steps[at] += 1
                if rare:
                    time.sleep(dice.random() / 5)
        except Gone:
            pass
        except Violation as violation:
            self.failures.append(str(violation))
        except Exception:  # an answer that is not of the expected shape, or a defect of the writer: it writes no more
            self.failures.append("a writer died: " + traceback.format_exc())
        finally:
            client.close()

    def join(self):
        """Waits for the writers, which end when the server is gone or `stopping` is set."""
        for thread in self.threads:
            thread.join()
        self.threads = []
        if self.failures:
            raise Violation("; ".join(self.failures))

    def demand(self, each, total):
        """Clients that hardly wrote prove nothing: so many steps of each group of writers, and so many in all."""
        idle = [group[0].name for group, steps in zip(self.groups, self.steps) if steps < each]
        if idle or self.log.count < total:
            raise Violation("too little was written to prove anything: %d acknowledged writes of at least %d; less than %d steps of the writers of %s"
                            % (self.log.count, total, each, ", ".join(idle) or "none"))

    def check(self, limit=NEVER, place=None):
        """Compares everything with the ledger; answers where each subject is."""
        client = (place or self.place).client()
        try:
            return {subject: subject.check(client, limit) for subject in self.subjects()}
        finally:
            client.close()

    def settle(self, found, limit=NEVER):
        for subject, step in found.items():
            subject.settle(step, limit)

    def tear_audit(self):
        """Ends the audit file in half a line, as a power cut or a full disk may."""
        with open(self.place.path("audit.log"), "a", encoding="utf-8") as file:
            file.write(TORN)

    def check_audit(self):
        """The audit file holds a request's line and an answer's line for every acknowledged request since the last check, also
        for those answered without a body."""
        wanted = self.log.marks.take()
        missing = {"request": dict(wanted), "response": dict(wanted)}
        with open(self.place.path("audit.log"), encoding="utf-8", errors="replace") as file:
            file.seek(self.audited if hasattr(self, "audited") else 0)
            for line in file:
                try:
                    entry = json.loads(line)
                except ValueError:
                    if line.startswith(TORN) and line.strip() != TORN:
                        raise Violation("a record was appended to half a line: %s" % line[:200])
                    continue  # cut off by the crash
                for mark in entry["request"].get("headers", {}).get(MARK.lower(), ()):
                    missing.get(entry["type"], {}).pop(mark, None)
            self.audited = file.tell()
        for kind, lacking in missing.items():
            if lacking:
                raise Violation("the audit file lacks the %s lines of %d of %d acknowledged requests, as of %s"
                                % (kind, len(lacking), len(wanted), next(iter(lacking.values()))))

    def check_objects(self):
        """The token holds what the records name: the seal key, the master keys, the keys at `hsm-only`, and nothing else."""
        wanted = 1 + 1 + self.zones.acked + self.levels[2].acked + self.only.objects()
        until = time.monotonic() + 8
        while len(found := self.place.hsm_objects()) != wanted:
            if time.monotonic() > until:
                raise Violation("the token holds %d objects although the records name %d: %s" % (len(found), wanted, found))
            time.sleep(0.1)
