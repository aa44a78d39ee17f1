"""Clients that write for as long as the server lives, and the check of all that they were promised."""
import json, random, threading, time

from ledger import NEVER, Kv1Register, KvChain, Log, Policy, Terms, TokenKeys, Tokens, TransitKey, ZoneVersions
from place import Gone, Violation

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
        # These write to the token for good, or much: a step or two in every run.
        self.rare = [self.zones, self.only]
        self.failures = []
        self.threads = []
        self.stopping = False

    def subjects(self):
        return [subject for group in self.groups for subject in group] + self.rare

    def prepare(self):
        client = self.place.client()
        for path, kind, version in (("kv", "kv", "2"), ("kv1", "kv", "1"), ("transit", "transit", None)):
            options = {"options": {"version": version}} if version else {}
            client.ok("POST", "sys/mounts/" + path, {"type": kind, **options})
        client.ok("PUT", "sys/audit/file", {"type": "file", "options": {"file_path": self.place.path("audit.log")}})
        client.close()

    def start(self, rare=True):
        """Lets the writers loose."""
        self.stopping = False
        work = list(self.groups) + ([self.rare] if rare else [])
        self.threads = [threading.Thread(target=self.write, args=(group, group is self.rare, self.dice.getrandbits(64))) for group in work]
        for thread in self.threads:
            thread.start()

    def write(self, group, rare, seed):
        dice, client = random.Random(seed), self.place.client()
        try:
            for number in range(2 if rare else 1 << 60):
                if self.stopping:
                    return
                dice.choice(group).step(client)
                if rare:
                    time.sleep(dice.random() / 5)
        except Gone:
            pass
        except Violation as violation:
            self.failures.append(str(violation))
        finally:
            client.close()

    def join(self):
        """Waits for the writers, which end when the server is gone or `stopping` is set."""
        for thread in self.threads:
            thread.join()
        self.threads = []
        if self.failures:
            raise Violation("; ".join(self.failures))

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
        """The audit file holds an answer's line for every acknowledged request since the last check."""
        wanted, self.log.requests = set(self.log.requests), []
        with open(self.place.path("audit.log"), encoding="utf-8", errors="replace") as file:
            file.seek(self.audited if hasattr(self, "audited") else 0)
            for line in file:
                try:
                    entry = json.loads(line)
                except ValueError:
                    if line.startswith(TORN) and line.strip() != TORN:
                        raise Violation("a record was appended to half a line: %s" % line[:200])
                    continue  # cut off by the crash
                if entry.get("type") == "response":
                    wanted.discard(entry["request"]["id"])
            self.audited = file.tell()
        if wanted:
            raise Violation("the audit file lacks %d acknowledged requests, as %s" % (len(wanted), wanted.pop()))

    def check_objects(self):
        """The token holds what the records name: the seal key, the master keys, the keys at `hsm-only`, and nothing else."""
        wanted = 1 + 1 + self.zones.acked + self.levels[2].acked + self.only.objects()
        until = time.monotonic() + 8
        while len(found := self.place.hsm_objects()) != wanted:
            if time.monotonic() > until:
                raise Violation("the token holds %d objects although the records name %d: %s" % (len(found), wanted, found))
            time.sleep(0.1)
