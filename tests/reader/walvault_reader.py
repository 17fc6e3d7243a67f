#!/usr/bin/env python3
"""A second reader of walvault's stored format, written from docs/format.md alone.

It shows that the page is complete, and that a repository outlives the program that wrote it: Python's standard library
and the `zstd` program are all it needs. It is slow and holds whole packs in memory; it restores no links, no recovery
settings and no pg_control that is safe to start from.

    walvault_reader.py restore <repository directory> <cluster> <backup> <new directory>
    walvault_reader.py relations <repository directory> <cluster> <backup>
    walvault_reader.py config <repository directory> <cluster> <backup> <new directory>
    walvault_reader.py wal <repository directory> <cluster> <lane> <file name> <destination>
    walvault_reader.py changes <repository directory> <cluster> <lane> <segment>
    walvault_reader.py hint <repository directory> <cluster> <lane> <segment>

Every digest is verified. Numbers in parentheses are sections of docs/format.md.
"""

import datetime
import hashlib
import json
import os
import re
import struct
import subprocess
import sys
import tempfile

FRONT_BYTES, TAIL_BYTES = 256, 96
FRONT_MAGIC, TRAILER_MAGIC = 0x184D2A57, 0x184D2A58
KINDS = {1: "WAL file", 2: "pack", 3: "manifest"}
WAL, PACK, MANIFEST = KINDS
DOCUMENT_LIMIT = 4 << 20
CHANGES_LIMIT = 4 << 20
MANIFEST_LIMIT = 256 << 20
FRAME_LIMIT = 4 << 20
LEAF_LIMIT = 1 << 20
PIECE_BYTES = 1 << 20
SMALL_FILE_LIMIT = 16 << 20
CONTROL = b"global/pg_control"


class Refused(Exception):
    """The bytes are not what they should be."""


def check(holds, problem):
    if not holds:
        raise Refused(problem)


# ---------------------------------------------------------------- digests

def sha256(*parts):
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()


def wal_digest(contents):
    """The digest of an archived file (5)."""
    if len(contents) <= PIECE_BYTES:
        return sha256(contents)
    pieces = (contents[at:at + PIECE_BYTES] for at in range(0, len(contents), PIECE_BYTES))
    return sha256(*(sha256(piece) for piece in pieces), struct.pack("<Q", len(contents)))


def _crc_table():
    """CRC-32C of every two bytes: one look-up for each pair halves the time of the loop."""
    one = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        one.append(byte)
    return [one[(pair >> 8) ^ (one[pair & 255] & 255)] ^ (one[pair & 255] >> 8) for pair in range(65536)], one


PAIRS, SINGLES = _crc_table()


def crc32c(data):
    crc = 0xFFFFFFFF
    even = len(data) & ~1
    for (pair,) in struct.iter_unpack("<H", memoryview(data)[:even]):
        crc = crc >> 16 ^ PAIRS[(crc ^ pair) & 0xFFFF]
    for byte in data[even:]:
        crc = crc >> 8 ^ SINGLES[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


# ---------------------------------------------------------------- documents (3)

def document(data, name, version=None):
    check(len(data) <= DOCUMENT_LIMIT, f"{name} is too large")
    at = data.rfind(b'"sha256": "')
    last = re.fullmatch(rb'"sha256": "([0-9a-fA-F]{64})"}\n', data[at:]) if at >= 0 else None
    check(last and bytes.fromhex(last[1].decode()) == sha256(data[:at]), f"{name} is damaged")
    value = json.loads(data)
    check(version is None or value["version"] <= version, f"{name} is newer than this reader")
    return value


# ---------------------------------------------------------------- objects (4)

def decompress(stored, raw_len):
    """Contents of zstd frames; never reads more than one byte past what they should be."""
    raw = decompress_most(stored, raw_len)
    check(len(raw) == raw_len, f"frames hold other than {raw_len} bytes")
    return raw


def decompress_most(stored, limit):
    """Contents of zstd frames, at most so many bytes."""
    with tempfile.TemporaryFile() as source:
        source.write(stored)
        source.seek(0)
        with subprocess.Popen(["zstd", "-q", "-d", "-c"], stdin=source, stdout=subprocess.PIPE) as zstd:
            raw = zstd.stdout.read(limit + 1)
            if len(raw) > limit:
                zstd.kill()
            else:
                check(zstd.wait() == 0, "zstd refuses the frames")
    check(len(raw) <= limit, f"frames hold more than {limit} bytes")
    return raw


class Object:
    """Front, body, trailer; all that can be checked without decompressing is checked (4.3)."""

    def __init__(self, data, kind, identity):
        self.kind = kind
        self.front(data, kind, identity)
        check(len(data) >= FRONT_BYTES + 8 + TAIL_BYTES, "the object is cut off")
        tail = data[-TAIL_BYTES:]
        check(tail[92:] == b"WVTL", "the object does not end in a tail")
        self.raw, before, self.raw_len, trailer_at, version, tail_kind, section_crc, tail_crc = struct.unpack(
            "<32s32sQQHHII", tail[:92])
        check(tail_crc == crc32c(tail[:88]), "the tail is damaged")
        check(version == 1, f"version {version} of the object shape is not known")
        check(FRONT_BYTES <= trailer_at <= len(data) - 8 - TAIL_BYTES, "the trailer is nowhere")
        check(sha256(data[:-TAIL_BYTES]) == before, "the object is damaged")
        magic, length = struct.unpack_from("<II", data, trailer_at)
        check(magic == TRAILER_MAGIC and trailer_at + 8 + length == len(data), "the trailer is damaged")
        self.section = data[trailer_at + 8:-TAIL_BYTES]
        check(crc32c(self.section) == section_crc, "the trailer's section is damaged")
        check(tail_kind == kind and self.raw_len == self.front_raw_len, "front and tail differ")
        check(self.salted == sha256(self.salt, self.raw), "front and contents do not belong together")
        self.data, self.trailer_at = data, trailer_at

    def front(self, data, kind, identity):
        check(len(data) >= FRONT_BYTES, "the object is cut off")
        front = data[:FRONT_BYTES]
        magic, _, name, version, found_kind, must_know, _, _ = struct.unpack_from("<II8sHHIII", front)
        check(magic == FRONT_MAGIC and name == b"WALVAULT", "these are not the bytes of a walvault object")
        check(struct.unpack_from("<I", front, 252)[0] == crc32c(front[:252]), "the front is damaged")
        check(version == 1, f"version {version} of the object shape is not known")
        check(must_know == 0, f"features {must_know:#x} are not known")
        check(found_kind in KINDS, f"kind {found_kind} is not known")
        self.salt, self.salted, self.front_raw_len = struct.unpack_from("<16s32sQ", front, 32)
        found = front[129:129 + front[128]].decode("ascii")
        check(front[128] <= 120, "the identity is too long")
        check((found_kind, found) == (kind, identity), f"this was made for {found}, not for {identity}")

    @property
    def body(self):
        return self.data[FRONT_BYTES:self.trailer_at]

    def contents(self, limit):
        check(self.raw_len <= limit, f"{self.raw_len} bytes make no sense here")
        raw = decompress(self.body, self.raw_len)
        check((wal_digest(raw) if self.kind == WAL else sha256(raw)) == self.raw, "the contents are damaged")
        return raw


# ---------------------------------------------------------------- packs (6)

class Pack:
    def __init__(self, data, identity, reference):
        check(sha256(data) == reference["sha256"], f"{identity} is not the pack that the manifest names")
        self.object = Object(data, PACK, identity)
        section = self.object.section
        check(sha256(section) == self.object.raw, "the frame table is damaged")
        check(sha256(section) == reference["table_sha256"], f"{identity} has another frame table")
        count, _ = struct.unpack_from("<II", section)
        check(count == reference["frames"], f"{identity} has {count} frames")
        self.frames, at, blocks = [], FRONT_BYTES, 0
        for place in range(count):
            stored, raw, hashes, digest = struct.unpack_from("<III32s", section, 8 + 44 * place)
            check(raw <= FRAME_LIMIT, f"a frame of {raw} bytes makes no sense")
            self.frames.append((at, stored, raw, digest))
            at, blocks = at + stored, blocks + hashes
        check(at == self.object.trailer_at, "the frames do not fill the body")
        check(len(section) == 8 + 44 * count + 12 * blocks, "the frame table has another length")
        self.kept = {}

    def frame(self, place):
        check(place < len(self.frames), f"there is no frame {place}")
        if place not in self.kept:
            at, stored, raw, digest = self.frames[place]
            data = self.object.data[at:at + stored]
            check(sha256(data) == digest, f"frame {place} is damaged")
            self.kept = {place: decompress(data, raw)}
        return self.kept[place]

    def read(self, frame, offset, length):
        """Yields the bytes of a piece, which may run over several frames."""
        while length > 0:
            part = self.frame(frame)[offset:offset + length]
            check(part, "a piece begins past the end of its frame")
            yield part
            frame, offset, length = frame + 1, 0, length - len(part)


# ---------------------------------------------------------------- tables and leaves (7.3 to 7.6)

class Fields:
    """Fields one after the other, after three letters and a version."""

    def __init__(self, data, name):
        self.data, self.at = data, 0
        check(self.take(4) == name + b"\x01", f"this is no {name.decode()} that this reader knows")

    def take(self, length):
        check(self.at + length <= len(self.data), "the fields are cut off")
        self.at += length
        return self.data[self.at - length:self.at]

    def byte(self):
        return self.take(1)[0]

    def varint(self):
        number = 0
        for shift in range(0, 64, 7):
            byte = self.byte()
            check(not (byte == 0 and shift) and not (shift == 63 and byte > 1), "a number in a longer spelling")
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                return number
        raise Refused("a number of more than 64 bits")

    def signed(self):
        number = self.varint()
        return number >> 1 ^ -(number & 1)

    def option(self):
        """One more than a signed number (8.1)."""
        number = self.varint()
        return number - 1 >> 1 ^ -(number - 1 & 1) if number else None

    def counted(self):
        return self.take(self.varint())

    def more(self):
        return self.at < len(self.data)


def pack_table(data):
    """The packs by place; None where a place is vacant."""
    fields = Fields(data, b"WVP")
    backups = []
    for _ in range(fields.varint()):
        check(fields.byte() == 1, "packs of a kind that is not known")
        backups.append(fields.counted().decode())
    packs = []
    for _ in range(fields.varint()):
        source = fields.varint()
        check(source <= len(backups), "a pack of a backup that is not listed")
        packs.append(source and {
            "backup": backups[source - 1], "number": fields.varint(), "stored_bytes": fields.varint(),
            "frames": fields.varint(), "sha256": fields.take(32), "table_sha256": fields.take(32)} or None)
    check(not fields.more(), "bytes after the last pack")
    return packs


def leaf_index(data, packs):
    """Where the leaves are: of files, and of relations."""
    fields, lists = Fields(data, b"WVI"), []
    for _ in range(2):
        leaves, last = [], b""
        for _ in range(fields.varint()):
            pack, frame, entries = fields.varint(), fields.varint(), fields.varint()
            digest, first = fields.take(32), fields.counted()
            check(pack < len(packs) and packs[pack] and frame < packs[pack]["frames"], "a leaf in no pack")
            check(first >= last, "leaves out of order")
            leaves.append((pack, frame, entries, digest, first))
            last = first
        lists.append(leaves)
    check(not fields.more(), "bytes after the last leaf")
    return lists


def entries_of(data):
    """Yields path, mode and None for a directory; path, offset, pieces and facts for a part of a file."""
    fields = Fields(data, b"WVL")
    while fields.more():
        kind, path = fields.byte(), fields.counted()
        inside = all(part not in (b"", b".", b"..") for part in path.split(b"/"))
        check(len(path) <= 4096 and b"\0" not in path and inside, f"path {path!r} leaves the data directory")
        check(kind in (1, 2, 3), f"an entry of kind {kind}")
        if kind == 2:
            yield path, 0, None, fields.varint() & 0o777
            continue
        at = fields.varint() if kind == 3 else 0
        check((kind == 3) == (at > 0), "the rest of a file from its beginning")
        pieces = [piece_of(fields) for _ in range(fields.varint())]
        ends = fields.byte()
        check(ends < 2, f"a file that ends with {ends}")
        yield path, at, pieces, facts_of(fields) if ends else None


def facts_of(fields):
    size, mode, _modified = fields.varint(), fields.varint() & 0o777, fields.varint()
    crc, flags = struct.unpack("<IB", fields.take(5))
    check(flags < 4, f"file flags {flags:#x}")
    return size, mode, crc, fields.take(32) if flags & 1 else None


def piece_of(fields):
    """A piece as a tuple that ends in its length."""
    kind = fields.byte()
    if kind == 1:
        piece = ("frames", fields.varint(), fields.varint(), fields.varint(), fields.varint())
    elif kind == 2:
        piece = ("zeros", fields.varint())
    elif kind == 3:
        data = fields.counted()
        piece = ("inline", data, len(data))
    else:
        raise Refused(f"a piece of kind {kind}")
    check(piece[-1] > 0, "a piece that covers nothing")
    return piece


def relations_of(data):
    """Yields database, schema, name, number, number of the file, tablespace and kind."""
    fields = Fields(data, b"WVR")
    while fields.more():
        names = fields.varint(), fields.counted(), fields.counted()
        yield *names, fields.varint(), fields.varint(), fields.varint(), chr(fields.byte())


# ---------------------------------------------------------------- the repository (2, 3)

class Repository:
    def __init__(self, directory, cluster):
        self.root = os.path.join(directory, cluster)
        facts = document(self.load("repository.json"), "repository.json")
        check(max(facts["format"], facts["minimum_reader"]) <= 1, "the repository is newer than this reader")
        check(facts["create"] in ("conditional", "content-addressed") and facts["sealing"] == "none",
              "the repository is made another way")
        self.suffix = facts["suffix"]
        self.by_contents = facts["create"] == "content-addressed"

    by_contents = False

    def load(self, key):
        with open(os.path.join(self.root, self.place(key)), "rb") as file:
            return file.read()

    def place(self, key):
        """Where an object lies (2.1)."""
        if not self.by_contents:
            return key
        names = [name for name in os.listdir(os.path.join(self.root, key + "@"))
                 if re.fullmatch(r"[0-9a-f]{64}-[0-9a-f]{16}", name)]
        check(len({name[:64] for name in names}) == 1, f"{key} has {len(names)} objects with different contents")
        return f"{key}@/{min(names)}"

    def names(self, folder):
        """Names of the objects in a folder."""
        found = os.listdir(os.path.join(self.root, folder))
        return [name.removesuffix("@") for name in found if name.endswith("@") or not self.by_contents]

    def lane(self, lane):
        facts = document(self.load(f"{lane}/lane.json"), "lane.json", version=1)
        check(f"{facts['system_id']}-{facts['epoch']}" == lane, f"lane.json of {lane} is another lane's")
        return facts

    def lane_of_backup(self, backup):
        lanes = [lane for lane in os.listdir(self.root) if re.fullmatch(r"[1-9][0-9]*-[1-9][0-9]*", lane)]
        found = [lane for lane in lanes if os.path.isdir(os.path.join(self.root, lane, "backups", backup))]
        check(len(found) == 1, f"backup {backup} is in {len(found)} lanes")
        return found[0]

    def wal_key(self, lane, name):
        if re.fullmatch(r"[0-9A-F]{8}\.history", name):
            return f"{lane}/wal/{name[:8]}/{name}{self.suffix}"
        if re.fullmatch(r"[0-9A-F]{24}\.partial", name):
            folder = f"{lane}/wal/{name[:8]}/{name[8:16]}/{name}"
            found = self.names(folder)
            check(len(found) == 1, f"there are {len(found)} files called {name}")
            return f"{folder}/{found[0]}"
        if re.fullmatch(r"[0-9A-F]{24}(\.[0-9A-F]{8}\.backup)?", name):
            return f"{lane}/wal/{name[:8]}/{name[8:16]}/{name}{self.suffix}"
        check(re.fullmatch(r"[0-9A-Za-z][0-9A-Za-z.]{0,63}", name), f"{name!r} is no name of a WAL file")
        return f"{lane}/wal/other/{name}{self.suffix}"

    def wal(self, lane, name):
        limit = max(self.lane(lane)["segment_size"], SMALL_FILE_LIMIT)
        return self.wal_object(lane, name).contents(limit)

    def wal_object(self, lane, name):
        return Object(self.load(self.wal_key(lane, name)), WAL, f"{lane}/{name}")

    def manifest(self, lane, backup):
        folder = f"{lane}/backups/{backup}"
        names = [name for name in self.names(folder) if name.endswith(self.suffix)]
        check(not os.path.exists(os.path.join(self.root, folder, "void")), "the backup was declared void")
        generation = max(int(name.removesuffix(self.suffix)) for name in names)
        data = self.load(f"{folder}/{generation:06}{self.suffix}")
        stored = Object(data, MANIFEST, f"{lane}/backups/{backup}/{generation}")
        check(len(stored.section) == 160, "the manifest's section has another length")
        check(sha256(stored.section) == stored.raw, "the manifest is damaged")
        at, parts = 0, []
        for length, raw_length, digest in struct.iter_unpack("<II32s", stored.section):
            part = stored.body[at:at + length]
            check(sha256(part) == digest, "the manifest is damaged")
            check(raw_length <= MANIFEST_LIMIT, "the manifest is too large")
            parts.append(decompress(part, raw_length))
            at += length
        check(at == len(stored.body), "the manifest's frames do not fill its body")
        documents = [json.loads(part) for part in parts[:2]]
        check(all(one["version"] <= 1 for one in documents), "the manifest is newer than this reader")
        packs = pack_table(parts[2])
        return *documents, packs, leaf_index(parts[3], packs)

    def pack(self, lane, reference):
        check(reference, "a piece in no pack")
        backup, number = reference["backup"], reference["number"]
        data = self.load(f"{lane}/packs/{backup}/{number:06}{self.suffix}")
        return Pack(data, f"{lane}/packs/{backup}/{number}", reference)


# ---------------------------------------------------------------- restore (8)

class Restore:
    def __init__(self, repository, backup):
        self.repository, self.lane = repository, repository.lane_of_backup(backup)
        repository.lane(self.lane)
        self.envelope, self.root, self.packs, self.leaves = repository.manifest(self.lane, backup)
        check((self.envelope["lane"], self.envelope["backup"]) == (self.lane, backup), "the manifest is another's")
        self.open = (None, None)

    def pack(self, place):
        if self.open[0] != place:
            check(place < len(self.packs), "a piece in no pack")
            self.open = (place, self.repository.pack(self.lane, self.packs[place]))
        return self.open[1]

    def leaf(self, reference, read):
        pack, frame, count, digest, _ = reference
        data = self.pack(pack).frame(frame)
        check(len(data) <= LEAF_LIMIT and sha256(data) == digest, "a leaf is damaged")
        entries = list(read(data))
        check(len(entries) == count > 0, "a leaf has another number of entries")
        return entries

    def entries(self):
        """Yields path, mode and None for directories; path, mode and (size, crc, digest, pieces) for files."""
        last, begun = b"", None
        for reference in self.leaves[0]:
            for place, (path, at, pieces, facts) in enumerate(self.leaf(reference, entries_of)):
                check(place or path == reference[4], "a leaf begins with another path")
                check(path != CONTROL, "pg_control among the files")
                if begun:
                    check(place == 0 and path == last and at == sum(piece[-1] for piece in begun), "a file breaks off")
                else:
                    check(path > last and at == 0, "entries out of order")
                last = path
                if pieces is None:
                    yield path, facts, None
                    continue
                begun = (begun or []) + pieces
                if facts:
                    size, mode, crc, digest = facts
                    check(sum(piece[-1] for piece in begun) == size, "pieces do not cover their file")
                    yield path, mode, (size, crc, digest, begun)
                    begun = None
        check(begun is None, "the last file does not end")

    def relations(self):
        last = (0, b"", b"")
        for reference in self.leaves[1]:
            entries = self.leaf(reference, relations_of)
            check(entries[0][0] == int.from_bytes(reference[4], "big"), "a leaf begins with another database")
            for entry in entries:
                check(entry[:3] > last, "relations out of order")
                last = entry[:3]
                yield entry

    def bytes_of(self, pieces):
        for piece in pieces:
            if piece[0] == "frames":
                _, pack, frame, offset, length = piece
                yield from self.pack(pack).read(frame, offset, length)
            elif piece[0] == "zeros":
                yield bytes(piece[1])
            else:
                yield piece[1]

    def write(self, path, mode, file):
        size, crc, digest, pieces = file
        data = b"".join(self.bytes_of(pieces))
        check(len(data) == size, f"{path!r} has another length")
        # A digest says more than a CRC, and is a hundred times faster here.
        check(sha256(data) == digest if digest else crc32c(data) == crc, f"{path!r} has other contents")
        with open(path, "xb") as out:
            out.write(data)
            os.chmod(out.fileno(), mode)

    def perform(self, destination):
        os.mkdir(destination, 0o700)
        root = os.fsencode(destination)
        entries = list(self.entries())
        for tablespace in self.root["tablespaces"]:
            os.makedirs(os.path.join(destination, "pg_tblspc", str(tablespace["oid"])), 0o700)
        for path, mode, _ in (entry for entry in entries if entry[2] is None):
            os.makedirs(os.path.join(root, path), exist_ok=True)
            os.chmod(os.path.join(root, path), mode)
        # By pack, so that each is read once.
        first_pack = lambda entry: min((piece[1] for piece in entry[2][3] if piece[0] == "frames"), default=-1)
        files = sorted((entry for entry in entries if entry[2]), key=first_pack)
        for path, mode, file in files:
            self.write(os.path.join(root, path), mode, file)
        with open(os.path.join(destination, "backup_label"), "x", newline="") as label:
            label.write(self.root["backup_label"])
            os.chmod(label.fileno(), 0o600)
        control = bytes.fromhex(self.root["pg_control"])
        check(len(files) + 1 == self.envelope["files"], "the envelope counts other files")
        total = sum(entry[2][0] for entry in files) + len(control)
        check(total == self.envelope["bytes"], "the envelope counts other bytes")
        with open(os.path.join(root, CONTROL), "xb") as out:
            out.write(control)
            os.chmod(out.fileno(), 0o600)


    def configuration(self, destination):
        """Configuration files from outside the data directory, below a directory that stands for the root (7.7)."""
        kept = self.root["configuration"]
        check(kept is not None, "all configuration lies in the data directory")
        data = self.pack(kept["pack"]).frame(kept["frame"])
        sizes = [entry["file"]["size"] for entry in kept["entries"] if entry["file"]]
        check(sum(sizes) == len(data), "the configuration has another length")
        os.mkdir(destination, 0o700)
        for entry in kept["entries"]:
            first, *parts = entry["path"].split("/")
            check(first == "" and not {"", ".", ".."} & set(parts), f"a file at {entry['path']}")
            place = os.path.join(destination, *parts)
            os.makedirs(os.path.dirname(place) if entry["file"] else place, exist_ok=True)
            if entry["file"]:
                contents, data = data[:entry["file"]["size"]], data[entry["file"]["size"]:]
                check(sha256(contents).hex() == entry["file"]["sha256"], f"{entry['path']} has other contents")
                with open(place, "xb") as out:
                    out.write(contents)
                    os.chmod(out.fileno(), entry["mode"])


# ---------------------------------------------------------------- what a segment changes (5.1)

def changes(found):
    """Yields tablespace, database, relation, limit (or None) and runs of blocks of a segment's object."""
    end = found.trailer_at
    digest, length, name = struct.unpack("<32sI4s", found.data[end - 40:end])
    check(name in (b"WVCB", b"WVCZ"), "the segment does not say what it changes")
    frame = found.data[end - length:end]
    check(struct.unpack_from("<II", frame) == (0x184D2A59, length - 8), "the frame of changes is damaged")
    check(sha256(found.raw, frame[8:-40]) == digest, "the changes are damaged")
    payload = decompress_most(frame[8:-40], CHANGES_LIMIT) if name == b"WVCZ" else frame[8:-40]
    # A version takes the place of the three letters that other tables begin with.
    fields = Fields(b"WVX" + payload, b"WVX")

    def part():
        fields.varint()
        fields.take(4)
        check(len(fields.counted()) <= 1024, "too much of a record")

    def option():
        number = fields.varint()
        return number - 1 if number else None

    flags, _ = fields.byte(), fields.varint()
    option(), option()
    if flags & 16:
        part()
    match fields.byte():
        case 1:
            fields.varint(), fields.varint()
            part()
        case 3:
            fields.varint()
        case other:
            check(other in (0, 2), "an end that there is not")
    last, blocks = None, 0
    for _ in range(fields.varint()):
        relation = fields.varint(), fields.varint(), fields.varint()
        check(last is None or relation > last, "relations out of order")
        limit, runs, at, last = option(), [], 0, relation
        for _ in range(fields.varint()):
            gap = fields.varint()
            length = fields.varint() + 2 if gap & 1 else 1
            runs.append((at + (gap >> 1), length))
            at, blocks = at + (gap >> 1) + length, blocks + length
        yield *relation, limit, runs
    check(blocks <= 131072 and not fields.more(), "too many blocks, or something behind them")


# ---------------------------------------------------------------- the hint (5)

def hint(section):
    """The hint of a segment as an object of JSON, in whichever form it is stored; None without one."""
    if section[:1] != b"\x01":
        return json.loads(section) if section else None
    fields = Fields(b"WVX" + section, b"WVX")
    start, base = fields.varint(), fields.signed()
    bits = fields.byte()

    def position(offset):
        at = None if offset is None else (start + offset) % (1 << 64)
        return None if at is None else f"{at >> 32:X}/{at & 0xFFFFFFFF:X}"

    def time():
        micros = fields.option()
        since = datetime.datetime(2000, 1, 1)
        return None if micros is None else (since + datetime.timedelta(microseconds=base + micros)).isoformat() + "Z"

    found = {"begins": {"kind": ("unknown", "record", "continuation", "overwrite")[bits >> 4 & 3]}}
    if found["begins"]["kind"] == "continuation":
        found["begins"]["remaining"] = fields.varint()
    found["indexer"] = fields.varint()
    for name in ("first_record", "last_complete_start", "last_complete_end"):
        found[name] = position(fields.option())
    for name in ("records", "commits", "aborts"):
        found[name] = fields.varint()
    for name in ("min_time", "max_time"):
        found[name] = time()
    for name in ("min_xid", "max_xid"):
        found[name] = fields.option()
    match fields.byte():
        case 0:
            pass
        case 1:
            found["end"] = {"kind": "clean"}
        case 2:
            at, manager, info = position(fields.signed()), fields.option(), fields.option()
            found["end"] = {"kind": "open", "start": at, "resource_manager": manager, "info": info}
        case 3:
            found["end"] = {"kind": "inside"}
        case 4:
            found["end"] = {"kind": "switched", "at": position(fields.signed())}
        case end:
            raise Refused(f"a segment that ends with {end}")
    if bits & 8:
        found.update(json.loads(fields.counted()))
    check(not fields.more(), "something behind the hint")
    return found


def main(arguments):
    try:
        match arguments:
            case ["restore", directory, cluster, backup, destination]:
                Restore(Repository(directory, cluster), backup).perform(destination)
            case ["relations", directory, cluster, backup]:
                for database, schema, name, *numbers in Restore(Repository(directory, cluster), backup).relations():
                    print(database, schema.decode(), name.decode(), *numbers)
            case ["config", directory, cluster, backup, destination]:
                Restore(Repository(directory, cluster), backup).configuration(destination)
            case ["wal", directory, cluster, lane, name, destination]:
                data = Repository(directory, cluster).wal(lane, name)
                with open(destination, "xb") as out:
                    out.write(data)
            case ["changes", directory, cluster, lane, name]:
                for *numbers, runs in changes(Repository(directory, cluster).wal_object(lane, name)):
                    print(*numbers, *(f"{first}+{length}" for first, length in runs))
            case ["hint", directory, cluster, lane, name]:
                print(json.dumps(hint(Repository(directory, cluster).wal_object(lane, name).section)))
            case _:
                print(__doc__, file=sys.stderr)
                return 64
    except (Refused, OSError, KeyError, ValueError, IndexError, struct.error) as problem:
        print(f"refused: {type(problem).__name__}: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
