"""What was acknowledged, and what the server says of it after a crash.

Every subject (a KV key, a Transit key, a policy ...) is changed by one writer, one step after the other. A step is first
attempted and then acknowledged, or not when the server went away. After a crash the server must be at the last acknowledged
step, or at the one that was under way. With a journal of the disk each acknowledgement also carries how long the journal was
when it came, so that the same run can be checked against a power cut at any place of the journal.
"""
import base64, json, os, threading

from place import Lost

NEVER = float("inf")

# Each so many steps it is looked at once what was acknowledged is there.
LOOK_EVERY = 8


class Log:
    """The acknowledgements, in a file of this process that is written before the next request."""

    def __init__(self, path, journal=None):
        self.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.journal = journal
        self.count = 0
        self.marks = Marks()
        self.lock = threading.Lock()

    def acknowledged(self, who, step):
        mark = os.path.getsize(self.journal) if self.journal else 0
        with self.lock:
            os.write(self.fd, (json.dumps([who, step, mark]) + "\n").encode())
            self.count += 1
        return mark


class Marks:
    """What tells the writers' requests apart, and which of them were acknowledged since they were asked for last."""

    def __init__(self):
        self.given = 0
        self.known = {}
        self.lock = threading.Lock()

    def next(self):
        with self.lock:
            self.given += 1
            return str(self.given)

    def answered(self, mark, what):
        with self.lock:
            self.known[mark] = what

    def take(self):
        with self.lock:
            known, self.known = self.known, {}
        return known


class Subject:
    """Steps are numbered from 1; 0 is the state before the first."""

    def __init__(self, log, name):
        self.log, self.name = log, name
        self.attempted = self.acked = 0
        self.marks = {}
        self.content = {}

    def lost(self, text):
        raise Lost("%s %s: %s" % (type(self).__name__, self.name, text))

    def step(self, client):
        """Attempts the next step."""
        number = self.acked + 1
        self.attempted = number
        self.change(client, number)
        self.acked = number
        self.marks[number] = self.log.acknowledged(self.name, number)
        # What the next steps cover up no later check would see.
        if number % LOOK_EVERY == 1:
            self.check(client)

    def required(self, limit):
        return max((step for step, mark in self.marks.items() if mark <= limit), default=0)

    def check(self, client, limit=NEVER):
        """Where the server is; a violation when it is before what was acknowledged or beyond what was asked for."""
        found = self.find(client, limit)
        least = self.required(limit)
        if not least <= found <= self.attempted:
            self.lost("is at step %s although %d was acknowledged and %d asked for" % (found, least, self.attempted))
        return found

    def settle(self, found, limit=NEVER):
        """Goes on from what the server holds."""
        self.attempted = self.acked = found
        self.marks = {step: mark for step, mark in self.marks.items() if step <= found}
        for step in range(1, found + 1):
            self.marks[step] = 0


class KvChain(Subject):
    """A KV version 2 secret whose every version is written with check-and-set. Now and then an old version is destroyed."""

    def __init__(self, log, name, dice):
        super().__init__(log, name)
        self.dice = dice
        self.destroyed = {}

    def change(self, client, number):
        value = "%s version %d %08x " % (self.name, number, self.dice.getrandbits(32)) + "x" * self.dice.choice((0, 10, 500, 3000))
        self.content[number] = value
        answer = client.ok("POST", "kv/data/" + self.name, {"options": {"cas": number - 1}, "data": {"value": value}})
        if answer["data"]["version"] != number:
            self.lost("version %s was given where %d comes next" % (answer["data"]["version"], number))
        if number > 2 and number % 7 == 0:
            self.destroyed[number - 2] = NEVER
            client.ok("POST", "kv/destroy/" + self.name, {"versions": [number - 2]})
            self.destroyed[number - 2] = self.log.acknowledged(self.name, "destroyed %d" % (number - 2))

    def find(self, client, limit):
        status, meta = client.call("GET", "kv/metadata/" + self.name)
        if status == 404:
            return 0
        if status != 200:
            self.lost("its metadata: %d %s" % (status, meta))
        meta = meta["data"]
        found = meta["current_version"]
        versions = sorted(int(version) for version in meta["versions"])
        if versions != list(range(max(1, found - 9), found + 1)):
            self.lost("its versions are not consecutive: %s of %d" % (versions, found))
        for version in {found, self.dice.choice(versions)}:
            shown = meta["versions"][str(version)]["destroyed"]
            mark = self.destroyed.get(version, NEVER)
            if mark != NEVER and mark <= limit and not shown:
                self.lost("version %d was destroyed and is back" % version)
            if shown and version not in self.destroyed:
                self.lost("version %d is destroyed and nobody asked for it" % version)
            if shown:
                continue
            status, answer = client.call("GET", "kv/data/%s?version=%d" % (self.name, version))
            if status != 200 or answer["data"]["data"]["value"] != self.content.get(version):
                self.lost("version %d: %d %s instead of %s" % (version, status, json.dumps(answer)[:200], self.content.get(version, "")[:60]))
        return found

    def settle(self, found, limit=NEVER):
        super().settle(found, limit)
        # What was asked for and not acknowledged by then may have been done or not.
        self.destroyed = {version: 0 if mark <= limit and mark != NEVER else NEVER
                          for version, mark in self.destroyed.items() if version <= found}


class Kv1Register(Subject):
    """A KV version 1 secret of up to so many bytes that is written and deleted in turn; every fifth step deletes."""

    def __init__(self, log, name, most=2000):
        super().__init__(log, name)
        self.most = most

    def filling(self, number):
        return chr(ord("a") + number % 26) * (number * 7919 * (self.most // 2000) % self.most)

    def change(self, client, number):
        if number % 5 == 4:
            client.ok("DELETE", "kv1/" + self.name)
        else:
            client.ok("PUT", "kv1/" + self.name, {"step": number, "filling": self.filling(number)})

    def find(self, client, limit):
        status, answer = client.call("GET", "kv1/" + self.name)
        if status == 404:
            least = self.required(limit)
            gone = [step for step in range(least, self.attempted + 1) if step == 0 or step % 5 == 4]
            if not gone:
                self.lost("is absent although step %d was acknowledged" % least)
            return gone[-1] if least not in gone else least
        if status != 200 or answer["data"]["filling"] != self.filling(answer["data"]["step"]):
            self.lost("%d %s" % (status, json.dumps(answer)[:200]))
        return answer["data"]["step"]


class Policy(Subject):
    """A policy whose text is replaced."""

    def text(self, number):
        return 'path "kv/data/%s/*" { capabilities = ["read"] } # step %d' % (self.name, number)

    def change(self, client, number):
        client.ok("PUT", "sys/policies/acl/" + self.name, {"policy": self.text(number)})

    def find(self, client, limit):
        status, answer = client.call("GET", "sys/policies/acl/" + self.name)
        if status == 404:
            return 0
        if status != 200:
            self.lost("%d %s" % (status, answer))
        text = answer["data"]["policy"]
        number = int(text.rsplit(" ", 1)[1])
        if text != self.text(number):
            self.lost("its text is %r" % text)
        return number


class Tokens(Subject):
    """Tokens made one after the other; every third step revokes the token of the step before."""

    def __init__(self, log, name, dice):
        super().__init__(log, name)
        self.dice = dice

    def change(self, client, number):
        if number % 3 == 0:
            client.ok("POST", "auth/token/revoke", {"token": self.content[number - 1]})
            return
        answer = client.ok("POST", "auth/token/create", {"policies": ["default"], "ttl": "6h", "meta": {"step": str(number)}})
        self.content[number] = answer["auth"]["client_token"]

    def alive(self, client, number):
        status, answer = client.call("GET", "auth/token/lookup-self", token=self.content[number])
        if status == 200 and answer["data"]["meta"]["step"] != str(number):
            self.lost("the token of step %d is another one: %s" % (number, json.dumps(answer)[:200]))
        if status not in (200, 403):
            self.lost("the token of step %d: %d %s" % (number, status, answer))
        return status == 200

    def find(self, client, limit):
        least = self.required(limit)
        recent = range(max(1, least - 6), least + 1)
        for number in set(recent) | {self.dice.randint(1, least) for _ in range(4) if least}:
            if number % 3 == 0:
                continue
            alive, revoked = self.alive(client, number), number % 3 == 2 and number + 1 <= least
            if alive and revoked:
                self.lost("the token of step %d was revoked and is valid again" % number)
            if not alive and not revoked and not (number % 3 == 2 and number + 1 <= self.attempted):
                self.lost("the token of step %d is not valid any more" % number)
        # Steps past the last that must be there: a token whose answer is known tells, others cannot be asked for.
        found = least
        for number in range(least + 1, self.attempted + 1):
            if number % 3 and (number not in self.content or not self.alive(client, number)):
                # It may be revoked by the step behind it.
                if not (number % 3 == 2 and number < self.attempted):
                    break
            elif number % 3 == 0 and self.alive(client, number - 1):
                break
            found = number
        return found

    def settle(self, found, limit=NEVER):
        super().settle(found, limit)
        self.content = {step: token for step, token in self.content.items() if step <= found}


class TransitKey(Subject):
    """A Transit key that is rotated; what its versions encrypted must open for ever."""

    def __init__(self, log, name, level, dice, every=12):
        super().__init__(log, name)
        self.level, self.dice, self.every = level, dice, every
        self.sealed = []
        self.made = False

    def change(self, client, number):
        if not self.made:
            client.ok("POST", "transit/keys/" + self.name, {"protection_level": self.level})
            self.made = True
        else:
            client.ok("POST", "transit/keys/%s/rotate" % self.name, {})

    def step(self, client):
        if self.acked == 0 or self.dice.randrange(self.every) == 0:
            return super().step(client)
        plaintext = base64.b64encode(b"%s %d %08x" % (self.name.encode(), len(self.sealed), self.dice.getrandbits(32))).decode()
        answer = client.ok("POST", "transit/encrypt/" + self.name, {"plaintext": plaintext})
        mark = self.log.acknowledged(self.name, "encrypted")
        self.sealed.append((answer["data"]["ciphertext"], plaintext, mark))

    def find(self, client, limit):
        status, answer = client.call("GET", "transit/keys/" + self.name)
        if status == 404:
            return 0
        if status != 200:
            self.lost("%d %s" % (status, answer))
        versions = sorted(int(version) for version in answer["data"]["keys"])
        if versions != list(range(1, answer["data"]["latest_version"] + 1)):
            self.lost("its versions are not consecutive: %s" % versions)
        known = [(sealed, plain) for sealed, plain, mark in self.sealed if mark <= limit]
        chosen = known[-40:] + self.dice.sample(known, min(40, len(known)))
        if chosen:
            batch = {"batch_input": [{"ciphertext": sealed} for sealed, _ in chosen]}
            answers = client.ok("POST", "transit/decrypt/" + self.name, batch)["data"]["batch_results"]
            for (sealed, plain), got in zip(chosen, answers):
                if got.get("plaintext") != plain:
                    self.lost("%s opens as %s and not as %s" % (sealed, got, plain))
        return answer["data"]["latest_version"]

    def settle(self, found, limit=NEVER):
        super().settle(found, limit)
        self.made = found > 0
        self.sealed = [(sealed, plain, 0) for sealed, plain, _ in self.sealed if int(sealed.split(":")[1][1:]) <= found]


class Terms(Subject):
    """Rotations of the barrier's key; the first term is made at init."""

    def change(self, client, number):
        client.ok("PUT", "sys/rotate", {})

    def find(self, client, limit):
        return client.ok("GET", "sys/key-status")["data"]["term"] - 1


class ZoneVersions(Subject):
    """Rotations of the default zone's master key; the first version is made at init."""

    def change(self, client, number):
        client.ok("POST", "sys/sos/zones/default/rotate", {})

    def find(self, client, limit):
        zone = client.ok("GET", "sys/sos/zones/default")["data"]
        if sorted(int(version) for version in zone["versions"]) != list(range(1, zone["current_version"] + 1)):
            self.lost("its versions are not consecutive: %s" % sorted(zone["versions"]))
        return zone["current_version"] - 1


class TokenKeys(Subject):
    """`hsm-only` keys: step 2n makes key n, step 2n+1 deletes key n-1 (where there is one)."""

    def key(self, number):
        return "%s-%d" % (self.name, number)

    def change(self, client, number):
        which, deletes = divmod(number, 2)
        if not deletes:
            client.ok("POST", "transit/keys/" + self.key(which), {"protection_level": "hsm-only"})
            sealed = client.ok("POST", "transit/encrypt/" + self.key(which), {"plaintext": "b25seQ=="})
            self.content[which] = sealed["data"]["ciphertext"]
        elif which > 1:
            client.ok("POST", "transit/keys/%s/config" % self.key(which - 1), {"deletion_allowed": True})
            client.ok("DELETE", "transit/keys/" + self.key(which - 1))

    def there(self, client, which):
        status, answer = client.call("GET", "transit/keys/" + self.key(which))
        if status not in (200, 404):
            self.lost("key %d: %d %s" % (which, status, answer))
        return status == 200

    def find(self, client, limit):
        least = self.required(limit)
        found = least
        for step in range(least + 1, self.attempted + 1):
            which, deletes = divmod(step, 2)
            if deletes and which > 1 and self.there(client, which - 1) or not deletes and not self.there(client, which):
                break
            found = step
        newest = found // 2
        for which in range(max(1, newest - 2), newest + 1):
            wanted = which == newest or which == newest - 1 and found % 2 == 0
            there = self.there(client, which)
            if there != wanted:
                self.lost("key %d is %s at step %d" % (which, "there" if there else "absent", found))
            if there and which in self.content:
                opened = client.ok("POST", "transit/decrypt/" + self.key(which), {"ciphertext": self.content[which]})
                if opened["data"]["plaintext"] != "b25seQ==":
                    self.lost("key %d decrypts wrongly" % which)
        return found

    def objects(self):
        """Objects on the token after a check that was settled."""
        newest = self.acked // 2
        return min(newest, 2) if self.acked % 2 == 0 else min(newest, 1)
