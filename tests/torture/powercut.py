"""What a disk may hold after the power was cut, from the journal that tests/powercut writes.

Synced writes are there. Of the others each block of 512 or 4096 bytes is as of any moment since the last sync, whatever the
other blocks are as of; the length is any that the file had since then. Names made, changed or removed since the last sync of
their folder are there up to some moment, in the order in which they changed.
"""
import os, shutil, struct

from place import Violation

CREATE, KNOWN, WRITE, TRUNCATE, SYNC, RENAME, UNLINK, MKDIR, SYNC_FOLDER, ESCAPE = range(1, 11)
HEADER = struct.Struct("<BIQI")
# Made by calls that do not go through the C library, and empty of meaning.
IGNORED = {"reserve", "lock"}


def records(path, limit):
    """(kind, file, offset, payload, end of the record) up to `limit` bytes of the journal."""
    with open(path, "rb") as file:
        data = file.read(limit)
    at = 0
    while at + HEADER.size <= len(data):
        kind, number, offset, length = HEADER.unpack_from(data, at)
        end = at + HEADER.size + length
        if end > len(data):
            return
        yield kind, number, offset, data[at + HEADER.size:end], end
        at = end


def first_append(path, begin):
    """Where the first record behind `begin` ends that comes before a write to the store's own journal."""
    names, before = {}, begin
    for kind, number, _, payload, end in records(path, -1):
        if kind in (CREATE, KNOWN):
            names[number] = payload.decode()
        if end > begin and kind == WRITE and os.path.basename(os.path.dirname(names.get(number, ""))) == "journal":
            break
        before = max(before, end)
    return before


class File:
    def __init__(self, content):
        self.durable = bytearray(content)
        self.pending = []  # (offset, bytes) or (length, None)

    def sync(self):
        for offset, data in self.pending:
            apply(self.durable, offset, data)
        self.pending = []

    def after_cut(self, dice, block):
        """The content, drawn at random from what is possible."""
        if not self.pending:
            return bytes(self.durable)
        content, lengths = bytearray(self.durable), [len(self.durable)]
        whole = bytearray(self.durable)
        touching = {}
        for step, (offset, data) in enumerate(self.pending):
            apply(whole, offset, data)
            lengths.append(len(whole))
            if data:
                for number in range(offset // block, (offset + len(data) - 1) // block + 1):
                    touching.setdefault(number, []).append(step)
        # With some cuts nearly everything arrived, with others nearly nothing.
        share = dice.choice((0.1, 0.5, 0.9))
        for number, steps in touching.items():
            if dice.random() >= share:
                continue
            for step in steps[:dice.randint(1, len(steps))]:
                offset, data = self.pending[step]
                begin, end = max(offset, number * block), min(offset + len(data), (number + 1) * block)
                apply(content, begin, data[begin - offset:end - offset])
        length = dice.choice(lengths)
        return bytes(content[:length].ljust(length, b"\0"))


def apply(content, offset, data):
    if data is None:
        del content[offset:]
        content.extend(bytes(offset - len(content)))
        return
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    content[offset:offset + len(data)] = data


class Disk:
    """The state of the watched folder after a part of the journal."""

    def __init__(self, base, root):
        self.base, self.root = base, root.rstrip("/")
        self.files = {}
        self.folders = {""}
        self.names = {}          # durable: relative path -> File
        self.changes = []        # names since the last sync of their folder: (folder, function of names)
        for folder, folders, files in os.walk(base):
            below = os.path.relpath(folder, base)
            below = "" if below == "." else below
            self.folders |= {os.path.join(below, name) for name in folders}
            for name in files:
                with open(os.path.join(folder, name), "rb") as file:
                    self.names[os.path.join(below, name)] = File(file.read())

    def relative(self, path):
        path = path.decode() if isinstance(path, bytes) else path
        return path[len(self.root):].lstrip("/")

    def now(self):
        names = dict(self.names)
        for _, change in self.changes:
            change(names)
        return names

    def replay(self, journal, limit):
        for kind, number, offset, payload, _ in records(journal, limit):
            if kind == CREATE:
                # Each process counts its files anew.
                file, path = File(b""), self.relative(payload)
                self.files[number] = file
                self.change(path, lambda names, path=path, file=file: names.__setitem__(path, file))
            elif kind == KNOWN:
                self.files[number] = self.now().get(self.relative(payload)) or File(b"")
            elif kind == WRITE:
                self.files[number].pending.append((offset, payload))
            elif kind == TRUNCATE:
                self.files[number].pending.append((offset, None))
            elif kind == SYNC:
                self.files[number].sync()
            elif kind == RENAME:
                old, new = (self.relative(path) for path in payload.split(b"\0"))
                file = self.now().get(old) or File(b"")
                self.change(new, lambda names, new=new, file=file: names.__setitem__(new, file))
                self.change(old, lambda names, old=old: names.pop(old, None))
            elif kind == UNLINK:
                path = self.relative(payload)
                self.change(path, lambda names, path=path: names.pop(path, None))
            elif kind == MKDIR:
                self.folders.add(self.relative(payload))
            elif kind == SYNC_FOLDER:
                folder = self.relative(payload)
                rest = []
                for where, change in self.changes:
                    if where == folder:
                        change(self.names)
                    else:
                        rest.append((where, change))
                self.changes = rest
            elif kind == ESCAPE:
                raise Violation("the journal does not see everything: %s" % payload.decode())
        return self

    def change(self, path, change):
        self.changes.append((os.path.dirname(path), change))

    def unsynced(self, folder):
        """The files in a folder that hold what a power cut may take."""
        return sorted(name for name, file in self.now().items() if os.path.dirname(name) == folder and file.pending)

    def write(self, folder, dice):
        """Writes what is there after the cut; without dice nothing that was not synced."""
        block = dice.choice((512, 4096)) if dice else 0
        names = dict(self.names)
        for folder_of in sorted({where for where, _ in self.changes}):
            changes = [change for where, change in self.changes if where == folder_of]
            for change in changes[:dice.randint(0, len(changes)) if dice else 0]:
                change(names)
        os.makedirs(folder, mode=0o700)
        for name in sorted(self.folders - {""}):
            os.makedirs(os.path.join(folder, name), mode=0o700, exist_ok=True)
        drawn = {}
        for name, file in names.items():
            if os.path.basename(name) in IGNORED:
                continue
            content = drawn.setdefault(id(file), file.after_cut(dice, block) if dice else bytes(file.durable))
            with open(os.path.join(folder, name), "wb") as out:
                out.write(content)

    def compare(self, folder):
        """Nothing must have gone past the journal: with every write done it gives the real files."""
        names = self.now()
        for name, file in names.items():
            if os.path.basename(name) in IGNORED:
                continue
            file.sync()
            try:
                with open(os.path.join(folder, name), "rb") as real:
                    same = real.read() == bytes(file.durable)
            except FileNotFoundError:
                same = False
            if not same:
                raise Violation("the journal and the real file %s differ: a write was not seen" % name)
        for where, _, files in os.walk(folder):
            for name in files:
                path = os.path.relpath(os.path.join(where, name), folder)
                if path not in names and name not in IGNORED:
                    raise Violation("the journal knows no file %s" % path)


def copy_store(source, target):
    shutil.copytree(source, target, ignore=lambda _, names: [name for name in names if name in IGNORED])
