#!/usr/bin/env python3
"""walvault beside pgBackRest: the same data, the same worker count, in turn, in one run.

    make bench                                   everything
    benches/peers.py start push                  some of it: start, push, backup, incremental, small
    benches/peers.py --before OLD_BINARY push    this build beside an earlier one as well

Prints medians [least–most] and, below each contestant, ratios of medians. On a busy machine trust CPU and ratios.

    BENCH_GIB     data in GiB (2.25)            BENCH_ROUNDS  rounds of a backup and a restore (3)
    BENCH_PUSHES  segments of each kind (15)    BENCH_DIR     where the scratch goes (/var/tmp)
    BENCH_PG_BIN  PostgreSQL 15's programs      PGBACKREST    the program (pgbackrest)

Needs PostgreSQL 15 (tests/pg/install.sh test) and pgBackRest (apt-get install pgbackrest).
"""

import argparse
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile

from cluster import Cluster, Scratch, User, load, load_small, segments
from measure import in_turn, run, table

TREE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Walvault:
    """A build of walvault with so many workers."""

    def __init__(self, name, binary, cpus, scratch, user):
        self.name, self.binary, self.cpus, self.user = f"{name}, {cpus} CPU", binary, cpus, user
        self.root = f"{scratch}/{name}-{cpus}"

    def reset(self, cluster):
        """Makes an empty repository."""
        shutil.rmtree(self.root, ignore_errors=True)
        self.user.directory(self.root)
        self._prepare("init")

    def command(self, *words):
        """The command line of one call."""
        return [self.binary, "--repo", f"file://{self.root}/repo", "--cluster", "main", *words]

    def environment(self):
        """Its whole environment."""
        return {"PATH": "/usr/bin:/bin", "WALVAULT_CPUS": str(self.cpus)}

    def archive_command(self):
        """What the server archives with."""
        return f"WALVAULT_CPUS={self.cpus} " + shlex.join(self.command("wal", "push")) + ' "%p"'

    def push(self, cluster, segment):
        """One segment."""
        return self._run("wal", "push", segment, env={"WALVAULT_PGDATA": cluster.path})

    def backup(self, cluster):
        """A full backup."""
        connection = f"host={cluster.socket} port={cluster.port} user=postgres dbname=postgres"
        sample = self._run("backup", "--fast", "--dbname", connection, follow_memory=True)
        sample.stored = size_of(f"{self.root}/repo", but="wal")
        return sample

    def incremental(self, cluster):
        """What changed since the backup before."""
        before = size_of(f"{self.root}/repo", but="wal")
        sample = self.backup(cluster)
        sample.stored -= before
        return sample

    def delta(self, destination):
        """The backup into a directory that is there."""
        return self._run("restore", destination, "--delta", "--to-backup-end", "--as", "clone", follow_memory=True)

    def restore(self, destination):
        """The backup into a new directory."""
        return self._run("restore", destination, "--to-backup-end", "--as", "clone", follow_memory=True)

    def _run(self, *words, env=None, **options):
        return run(self.command(*words), self.user, env={**self.environment(), **(env or {})}, log=f"{self.root}/log", **options)

    def _prepare(self, *words):
        subprocess.run(self.command(*words), check=True, stdout=subprocess.DEVNULL, cwd="/", **self.user.popen())


class PgBackRest:
    """pgBackRest with some options and so many workers."""

    program = os.environ.get("PGBACKREST", "pgbackrest")
    # Where it is, unless it is a directory beside the configuration.
    repository = None

    def __init__(self, name, workers, options, scratch, user):
        self.name, self.workers, self.options, self.user = f"{name}, {workers} CPU", workers, options, user
        self.root = f"{scratch}/{name.replace(' ', '-')}-{workers}"

    @classmethod
    def version(cls):
        """(2, 45), for one; ends the benchmark if it is not there."""
        if not shutil.which(cls.program):
            raise SystemExit("pgBackRest is not here: apt-get install pgbackrest, or set PGBACKREST")
        text = subprocess.run([cls.program, "version"], capture_output=True, text=True, check=True).stdout
        return tuple(int(part) for part in "".join(c if c.isdigit() else " " for c in text.split()[1]).split()[:2])

    @classmethod
    def tuned(cls):
        """Its best options for the same work: zstd, small files bundled, blocks where this version has them."""
        options = {"compress-type": "zst", "compress-level": 3, "repo1-bundle": "y"}
        return {**options, "repo1-block": "y"} if cls.version() >= (2, 46) else options

    def reset(self, cluster):
        """Makes an empty repository."""
        shutil.rmtree(self.root, ignore_errors=True)
        self.user.directory(self.root)
        values = {
            **self.options,
            "process-max": self.workers,
            "start-fast": "y",
            "expire-auto": "n",
            "repo1-retention-full": 9,
            **{f"{kind}-path": self.user.directory(f"{self.root}/{kind}") for kind in ("log", "lock", "spool")},
            "repo1-path": self.repository or self.user.directory(f"{self.root}/repo"),
        }
        with open(f"{self.root}/conf", "w") as conf:
            conf.write("[global]\n" + "".join(f"{key}={value}\n" for key, value in values.items()))
            conf.write(f"[main]\npg1-path={cluster.path}\npg1-socket-path={cluster.socket}\npg1-port={cluster.port}\npg1-user=postgres\n")
        subprocess.run(self.command("stanza-create"), check=True, stdout=subprocess.DEVNULL, cwd="/", **self.user.popen())

    def command(self, *words):
        """The command line of one call."""
        return [self.program, f"--config={self.root}/conf", "--stanza=main", *words]

    def archive_command(self):
        """What the server archives with."""
        return shlex.join(self.command("archive-push")) + ' "%p"'

    def push(self, cluster, segment):
        """One segment."""
        return self._run("archive-push", segment)

    def backup(self, cluster):
        """A full backup."""
        sample = self._run("--type=full", "backup", follow_memory=True)
        sample.stored = size_of(f"{self.root}/repo/backup")
        return sample

    def incremental(self, cluster):
        """What changed since the backup before."""
        before = size_of(f"{self.root}/repo/backup")
        sample = self._run("--type=incr", "backup", follow_memory=True)
        sample.stored = size_of(f"{self.root}/repo/backup") - before
        return sample

    def delta(self, destination):
        """The backup into a directory that is there."""
        return self._run(f"--pg1-path={destination}", "--delta", "--type=immediate", "restore", follow_memory=True)

    def restore(self, destination):
        """The backup into a new directory."""
        self.user.directory(destination)
        return self._run(f"--pg1-path={destination}", "--type=immediate", "restore", follow_memory=True)

    def _run(self, *words, **options):
        return run(self.command(*words), self.user, env={"PATH": "/usr/bin:/bin"}, log=f"{self.root}/messages", **options)


def size_of(path, but=None):
    """MiB of the files below, leaving out directories called `but`."""
    total = 0
    for folder, folders, files in os.walk(path):
        folders[:] = [name for name in folders if name != but]
        total += sum(os.lstat(f"{folder}/{name}").st_size for name in files)
    return total / 2**20


def start(bench):
    """Processes that have nothing to do: the cost of every call."""
    rounds, user = 40, bench.user
    ours = {name: [binary, "wal", "push", "--help"] for name, binary in bench.binaries.items()}
    contestants = {"/bin/true": ["/bin/true"], "pgbackrest": [PgBackRest.program, "help", "archive-push"], **ours}
    calls = {name: lambda command=command: run(command, user, env={}) for name, command in contestants.items()}
    yield table("wal push --help", in_turn(rounds, calls), {name: ["pgbackrest"] for name in ours})


def push(bench):
    """Segments, one call each, each into every repository."""
    with Cluster(bench.scratch, "push", bench.user) as cluster:
        load(cluster, 0.25)
        cluster.settle()
        kinds = segments(cluster, bench.scratch, bench.pushes, bench.pushes)
        peers = bench.peers(defaults=True)
        for title, of_kind in zip(("push of a busy segment", "push of a nearly empty segment"), kinds):
            for peer in peers:
                peer.reset(cluster)
                peer.push(cluster, of_kind[0])  # Lane, stanza and directories are there from the second call on.
            left = {peer.name: iter(of_kind[1:]) for peer in peers}
            calls = {peer.name: lambda peer=peer: peer.push(cluster, next(left[peer.name])) for peer in peers}
            samples = in_turn(len(of_kind) - 1, calls)
            for peer in peers:
                stored = sum(size_of(f"{peer.root}/repo/{place}") for place in stored_wal(peer)) / len(of_kind)
                for sample in samples[peer.name]:
                    sample.stored = stored
            yield table(title, samples, bench.bases())


def stored_wal(peer):
    return ["archive"] if isinstance(peer, PgBackRest) else ["main"]


def backup(bench):
    """One large cluster, backed up and restored."""
    with Cluster(bench.scratch, "large", bench.user) as cluster:
        load(cluster, bench.gib)
        yield from whole(bench, cluster, keep=False)


def incremental(bench):
    """A backup after a twentieth of a large table's pages changed, one after nothing did, and a restore over a directory in
    which little differs. Each contestant builds on its own full backup, which is not measured."""
    with Cluster(bench.scratch, "growing", bench.user) as cluster:
        load(cluster, bench.gib)
        cluster.settle()
        peers = bench.peers()
        touched, idle, deltas = {}, {}, {}
        for number, peer in enumerate(peers, 1):
            peer.reset(cluster)
            cluster.archive_with(peer.archive_command())
            peer.backup(cluster)
            touch(cluster, number)
            touched[peer.name] = [peer.incremental(cluster)]
            idle[peer.name] = [peer.incremental(cluster)]
            destination = tempfile.mktemp(prefix="restored-", dir=bench.scratch)
            peer.restore(destination)
            spoil(cluster, destination)
            deltas[peer.name] = [peer.delta(destination)]
            shutil.rmtree(destination)
            cluster.archive_with("/bin/true")
        yield table("incremental backup, a twentieth of the pages touched", touched, bench.bases())
        yield table("incremental backup, nothing touched", idle, bench.bases())
        yield table("restore over a directory, twenty blocks differ", deltas, bench.bases())


def touch(cluster, row):
    """Changes every twentieth page of a large table, by one of its rows: another one each time, for it moves elsewhere."""
    cluster.sql(f"""UPDATE pgbench_accounts SET filler = 'touched' WHERE ctid IN (
        SELECT format('(%s,{row})', page)::tid FROM generate_series(0, pg_relation_size('pgbench_accounts') / 8192 - 1, 20) AS page)""")
    cluster.sql("CHECKPOINT")


def spoil(cluster, destination):
    """Makes twenty blocks of a restored directory others."""
    for name in ("pgbench_accounts", "events"):
        path = cluster.sql(f"SELECT pg_relation_filepath('{name}')")
        with open(f"{destination}/{path}", "r+b") as table_file:
            for block in range(0, 1000, 100):
                table_file.seek(block * 8192 + 5000)
                table_file.write(b"differs")


def small(bench):
    """Many small files, backed up and restored."""
    with Cluster(bench.scratch, "small", bench.user) as cluster:
        load_small(cluster, 2000)
        # ext4 passes over inodes that were freed a moment ago, one by one: whoever creates thousands of files after
        # thousands were removed pays for it, many times what the restore itself costs.
        yield from whole(bench, cluster, keep=True)


def whole(bench, cluster, keep):
    cluster.settle()
    files = sum(len(files) for _, _, files in os.walk(cluster.path))
    data = f"{size_of(cluster.path, but='pg_wal') / 1024:.2f} GiB in {files} files"
    peers, defaults = bench.peers(), bench.peers(defaults=True)[-1:]
    rounds = {len(peers): bench.rounds, len(defaults): 1}
    backups, restores = {}, {}
    for group in (peers, defaults):
        backups |= in_turn(rounds[len(group)], {peer.name: lambda peer=peer: one_backup(peer, cluster) for peer in group})
        restores |= in_turn(rounds[len(group)], {peer.name: lambda peer=peer: one_restore(peer, bench, keep) for peer in group})
    yield table(f"full backup of {data}", backups, bench.bases())
    yield table(f"restore of {data}", restores, bench.bases())


def one_backup(peer, cluster):
    peer.reset(cluster)
    cluster.archive_with(peer.archive_command())
    sample = peer.backup(cluster)
    cluster.archive_with("/bin/true")
    return sample


def one_restore(peer, bench, keep):
    destination = tempfile.mktemp(prefix="restored-", dir=bench.scratch)
    sample = peer.restore(destination)
    if not keep:
        shutil.rmtree(destination)
    return sample


class Bench:
    """What all parts share."""

    def __init__(self, scratch, user, binaries):
        self.scratch, self.user, self.binaries = scratch, user, binaries
        self.gib = float(os.environ.get("BENCH_GIB", "2.25"))
        self.rounds = int(os.environ.get("BENCH_ROUNDS", "3"))
        self.pushes = int(os.environ.get("BENCH_PUSHES", "15")) + 1

    def peers(self, defaults=False):
        """The contestants, in the order of their turns."""
        found = []
        for cpus in (1, 2):
            found += [Walvault(name, path, cpus, self.scratch, self.user) for name, path in self.binaries.items()]
            found.append(PgBackRest("pgbackrest zst-3", cpus, PgBackRest.tuned(), self.scratch, self.user))
        if defaults:
            found.append(PgBackRest("pgbackrest defaults", 1, {}, self.scratch, self.user))
        return found

    def bases(self):
        """What each of ours is compared with."""
        bases = {}
        for cpus in (1, 2):
            earlier = [f"before, {cpus} CPU"] if "before" in self.binaries else []
            bases[f"walvault, {cpus} CPU"] = [*earlier, f"pgbackrest zst-3, {cpus} CPU", "pgbackrest defaults, 1 CPU"]
            bases[f"before, {cpus} CPU"] = [f"pgbackrest zst-3, {cpus} CPU"]
        return bases


PARTS = {part.__name__: part for part in (start, push, backup, incremental, small)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--before", metavar="BINARY", help="an earlier build to compare with")
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    # Leaves by the way that stops servers and removes the scratch.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    built = f"{os.environ.get('CARGO_TARGET_DIR', TREE + '/target')}/release/walvault"
    user = User()
    with Scratch(user) as scratch:
        # Copies, so that the server's user can reach them.
        binaries = {"before": arguments.before, "walvault": built} if arguments.before else {"walvault": built}
        binaries = {name: shutil.copy(path, f"{scratch}/{name}") for name, path in binaries.items()}
        print(f"# {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; pgBackRest {'.'.join(map(str, PgBackRest.version()))}")
        print(f"# binary of {os.path.getsize(binaries['walvault']) / 2**20:.2f} MiB\n", flush=True)
        bench = Bench(scratch, user, binaries)
        for name in arguments.parts or PARTS:
            for result in PARTS[name](bench):
                print(result, flush=True)


if __name__ == "__main__":
    main()
