#!/usr/bin/env python3
"""A backup that builds on another, beside a full one and beside the server's own incremental backup of PostgreSQL 17.

    benches/incremental.py                  everything
    benches/incremental.py touched idle     some of it: touched, idle, relations

`touched` changes a twentieth of a large table's pages, `idle` none, `relations` none of very many small ones. Bytes read of
the data directory are walvault's own count. `summaries` reads what the server's summaries of its log name, `hashes`
(--read-all) compares everything.

    BENCH_GIB     data in GiB (1)           BENCH_RELATIONS  relations of that part, indexes and TOAST counted (100000)
    BENCH_DIR     where the scratch goes    BENCH_PG_BIN     programs of PostgreSQL 17 or later

Needs PostgreSQL 17 (tests/pg/install.sh test).
"""

import argparse
import glob
import json
import os
import shutil
import signal
import sys

from cluster import Cluster, Scratch, User, load
from measure import run, table
from peers import TREE, Walvault, size_of, touch


class Incremental(Walvault):
    """A build of walvault that says what it read."""

    def full(self, cluster):
        """A backup that builds on none."""
        return self._backup(cluster, "--full")

    def next(self, cluster, *options):
        """A backup that builds on the newest."""
        return self._backup(cluster, *options)

    def _backup(self, cluster, *options):
        before = size_of(f"{self.root}/repo", but="wal")
        log = f"{self.root}/backup.log"
        if os.path.exists(log):
            os.remove(log)
        connection = f"host={cluster.socket} port={cluster.port} user=postgres dbname=postgres"
        words = ["--json", "backup", "--fast", "--dbname", connection, *options]
        sample = run(self.command(*words), self.user, env=self.environment(), log=log, follow_memory=True)
        text = open(log).read()
        said = json.loads(text[text.index("{") : text.rindex("}") + 1])
        sample.read = (said["bytes"] - said["changes"]["unread_bytes"]) / 2**20
        sample.stored = size_of(f"{self.root}/repo", but="wal") - before
        return sample


class Server:
    """pg_basebackup, which the server sends whole files to or what its summaries name."""

    def __init__(self, scratch, user):
        self.root, self.user, self.number = f"{scratch}/server", user, 0

    def reset(self):
        """Forgets every backup."""
        shutil.rmtree(self.root, ignore_errors=True)
        self.user.directory(self.root)

    def full(self, cluster):
        """A full backup."""
        return self._take(cluster)

    def next(self, cluster):
        """An incremental backup on the one before."""
        return self._take(cluster, f"--incremental={self.root}/{self.number}/backup_manifest")

    def _take(self, cluster, *options):
        self.number += 1
        place = f"{self.root}/{self.number}"
        words = ["-h", cluster.socket, "-p", str(cluster.port), "-U", "postgres", "-D", place, "-c", "fast", "-X", "none"]
        program = [f"{cluster.bin}/pg_basebackup", *words, *options]
        sample = run(program, self.user, env={"PATH": "/usr/bin:/bin"}, log=f"{self.root}/log", follow_memory=True)
        sample.stored = size_of(place)
        return sample


def summarized(cluster):
    """Waits until the server's summaries have caught up."""
    cluster.sql("CHECKPOINT")
    for _ in range(600):
        if cluster.sql("SELECT summarized_lsn >= redo_lsn FROM pg_get_wal_summarizer_state(), pg_control_checkpoint()") == "t":
            return
        cluster.sql("SELECT pg_sleep(0.1)")
    raise SystemExit("the server's summaries do not catch up")


def fulls(bench, cluster):
    """Everybody's first backup."""
    bench.server.reset()
    samples = {}
    for peer in bench.ours:
        peer.reset(cluster)
        cluster.archive_with(peer.archive_command())
        samples[f"{peer.name}, full"] = [peer.full(cluster)]
        cluster.archive_with("/bin/true")
    samples["pg_basebackup, full"] = [bench.server.full(cluster)]
    return samples


def builds(bench, cluster, samples):
    """Everybody's next backup of the same change."""
    for peer in bench.ours:
        cluster.archive_with(peer.archive_command())
        samples[f"{peer.name}, summaries"] = [peer.next(cluster)]
        cluster.archive_with("/bin/true")
    samples["pg_basebackup, incremental"] = [bench.server.next(cluster)]
    bases = {}
    for peer in bench.ours:
        bases[f"{peer.name}, summaries"] = [f"{peer.name}, full", "pg_basebackup, incremental"]
        bases[f"{peer.name}, hashes"] = [f"{peer.name}, full"]
    return samples, bases


def hashes(bench, cluster, samples):
    """The same once more for each of ours, by comparing everything."""
    for peer in bench.ours:
        cluster.archive_with(peer.archive_command())
        samples[f"{peer.name}, hashes"] = [peer.next(cluster, "--read-all")]
        cluster.archive_with("/bin/true")


def large(bench, change):
    """A large cluster, changed in between."""
    with bench.cluster("large") as cluster:
        load(cluster, bench.gib)
        settle(cluster)
        samples = fulls(bench, cluster)
        change(cluster, 1)
        summarized(cluster)
        samples, bases = builds(bench, cluster, samples)
        change(cluster, 2)
        summarized(cluster)
        hashes(bench, cluster, samples)
        return samples, bases


def settle(cluster):
    """Makes what was loaded durable, and lets the summaries begin there."""
    cluster.sql("ALTER SYSTEM SET summarize_wal = on")
    cluster.settle()
    summarized(cluster)


def touched(bench):
    """A twentieth of the pages of the largest table."""

    yield table(f"a twentieth of the pages touched, {bench.gib} GiB", *large(bench, touch))


def idle(bench):
    """Nothing."""
    yield table(f"nothing touched, {bench.gib} GiB", *large(bench, lambda cluster, row: None))


def relations(bench):
    """Nothing, in a cluster of very many relations."""
    with bench.cluster("many") as cluster:
        tables = bench.relations // 4
        for first in range(0, tables, 1000):
            # A table, its index, its TOAST table and the index of that.
            cluster.sql(f"""DO $$ BEGIN FOR n IN {first}..{min(first + 1000, tables) - 1} LOOP
                EXECUTE format('CREATE TABLE small_%s (id int PRIMARY KEY, body text)', n);
                EXECUTE format('INSERT INTO small_%s SELECT m, md5(m::text) FROM generate_series(1, 10) AS m', n);
                END LOOP; END $$""")
        cluster.sql("CHECKPOINT")
        cluster.stop()
        os.sync()
        cluster.start()
        cluster.sql("ALTER SYSTEM SET summarize_wal = on; SELECT pg_reload_conf()")
        summarized(cluster)
        samples = fulls(bench, cluster)
        samples, bases = builds(bench, cluster, samples)
        hashes(bench, cluster, samples)
        yield table(f"nothing touched, {4 * tables} relations", samples, bases)


class Bench:
    """What all parts share."""

    def __init__(self, scratch, user, binary):
        self.scratch, self.user = scratch, user
        self.gib = float(os.environ.get("BENCH_GIB", "1"))
        self.relations = int(os.environ.get("BENCH_RELATIONS", "100000"))
        self.ours = [Incremental("walvault", binary, cpus, scratch, user) for cpus in (1, 2)]
        self.server, self.clusters = Server(scratch, user), 0

    def cluster(self, name):
        """A new server, whose directory goes when the run ends."""
        self.clusters += 1
        return Cluster(self.scratch, f"{name}-{self.clusters}", self.user)


PARTS = {part.__name__: part for part in (touched, idle, relations)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    if "BENCH_PG_BIN" not in os.environ:
        cache = os.environ.get("WALVAULT_TEST_PG", "/var/cache/walvault-test/pg")
        found = [os.path.dirname(os.path.realpath(path)) for path in glob.glob(f"{cache}/17/bin/postgres")]
        if not found:
            parser.error("PostgreSQL 17 is not here: run tests/pg/install.sh test, or set BENCH_PG_BIN")
        os.environ["BENCH_PG_BIN"] = found[0]
    # Leaves by the way that stops servers and removes the scratch.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    built = f"{os.environ.get('CARGO_TARGET_DIR', TREE + '/target')}/release/walvault"
    user = User()
    with Scratch(user) as scratch:
        # A copy, so that the server's user can reach it.
        binary = shutil.copy(built, f"{scratch}/walvault.program")
        print(f"# {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}\n", flush=True)
        bench = Bench(scratch, user, binary)
        for name in arguments.parts or PARTS:
            for result in PARTS[name](bench):
                print(result, flush=True)


if __name__ == "__main__":
    main()
