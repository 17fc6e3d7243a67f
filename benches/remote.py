#!/usr/bin/env python3
"""Backups over the replication protocol: walvault beside pg_basebackup, in turn, in one run.

    benches/remote.py                    full
    benches/remote.py full incremental   both

Full: walvault's stream and its reading of the same server's files, pg_basebackup as plain tar and compressed by the client with
zstd at the same level, with the WAL that they need. CPU is that of the tool; "server CPU s" is what the server used meanwhile.
pg_basebackup verifies nothing and leaves tar files; walvault waits for the WAL in the archive, verifies it, and hashes every
block. And from there to a server that answers: walvault's restore, which verifies what it writes, beside tar.

Incremental, for which BENCH_PG_BIN must be of PostgreSQL 17 or later: a twentieth of the pages of the largest table touched,
then walvault's backup beside `pg_basebackup --incremental`; and from there to a server that answers: walvault's restore
beside `pg_combinebackup`, each with the server's start. pg_basebackup keeps plain files, with the WAL that they need.

Prints medians [least–most] and ratios of medians. On a busy machine trust CPU and ratios.

    BENCH_GIB     size of the database (2)          BENCH_ROUNDS  rounds (5)
    BENCH_WORKERS processors for walvault (1)       WALVAULT      program (target/release/walvault)
    BENCH_DIR     where the scratch goes (/var/tmp)
"""

import os
import shutil
import subprocess
import sys
import time

import measure
from cluster import Cluster, Scratch, User, load
from measure import Sample, in_turn, run, table
from peers import TREE, Walvault, size_of

TICKS = os.sysconf("SC_CLK_TCK")


class Remote(Walvault):
    """walvault as a host that sees nothing of the server's."""

    source = "remote"

    def backup(self, cluster):
        connection = f"host={cluster.socket} port={cluster.port} user=postgres dbname=postgres"
        words = ["backup", "--from", self.source, "--fast", "--dbname", connection]
        before = server_cpu(cluster)
        sample = self._run(*words, follow_memory=True)
        sample.requests = server_cpu(cluster) - before
        sample.stored = size_of(f"{self.root}/repo", but="wal")
        return sample


    def changes(self, cluster):
        """What changed since the backup before."""
        before = size_of(f"{self.root}/repo", but="wal")
        sample = self.backup(cluster)
        sample.stored -= before
        return sample

    def answer(self, cluster, place):
        """The last backup as a running server."""
        words = ["restore", place, "--to-backup-end", "--as", "clone", "--target-action", "promote"]
        return until_it_answers(cluster, place, lambda: self._run(*words, follow_memory=True))


class Local(Remote):
    """walvault that reads the files."""

    source = "local"


class PgBasebackup:
    """PostgreSQL's own tool."""

    def __init__(self, name, options, scratch, user):
        self.name, self.options, self.user = name, options, user
        self.root = f"{scratch}/{name.replace(' ', '-')}"

    def backup(self, cluster):
        shutil.rmtree(self.root, ignore_errors=True)
        words = ["-h", cluster.socket, "-p", str(cluster.port), "-U", "postgres", "-c", "fast", "-X", "stream", "-Ft"]
        before = server_cpu(cluster)
        command = [f"{cluster.bin}/pg_basebackup", *words, *self.options, "-D", self.root]
        sample = run(command, self.user, log=f"{self.root}.log", follow_memory=True)
        sample.requests = server_cpu(cluster) - before
        sample.stored = size_of(self.root)
        return sample

    def answer(self, cluster, place):
        """The tar files as a running server."""
        return until_it_answers(cluster, place, lambda: self._unpack(place))

    def _unpack(self, place):
        self.user.directory(place)
        samples = []
        # The data directory before the log, which goes into it.
        for name in sorted(name for name in os.listdir(self.root) if ".tar" in name):
            into = f"{place}/pg_wal" if name.startswith("pg_wal") else place
            command = ["tar", *(["--zstd"] if name.endswith(".zst") else []), "-xf", f"{self.root}/{name}", "-C", into]
            samples.append(run(command, self.user, log=f"{self.root}.log", follow_memory=True))
        total = {key: sum(getattr(sample, key) for sample in samples) for key in ("wall", "cpu", "written")}
        return Sample(**total, peak=max(sample.peak for sample in samples))


class Combining:
    """PostgreSQL's own tools: an incremental copy, and putting it together with the full one before."""

    name = "pg_basebackup --incremental, pg_combinebackup"

    def __init__(self, scratch, user):
        self.root, self.user = f"{scratch}/own", user

    def reset(self, cluster):
        """Takes the full copy, which is not measured."""
        shutil.rmtree(self.root, ignore_errors=True)
        self.user.directory(self.root)
        self._copy(cluster, "full")

    def _copy(self, cluster, name, *options):
        words = ["-h", cluster.socket, "-p", str(cluster.port), "-U", "postgres", "-c", "fast", "-X", "fetch"]
        command = [f"{cluster.bin}/pg_basebackup", *words, "-D", f"{self.root}/{name}", *options]
        return run(command, self.user, log=f"{self.root}/log", follow_memory=True)

    def changes(self, cluster):
        """What changed since the full copy."""
        before = server_cpu(cluster)
        sample = self._copy(cluster, "changes", f"--incremental={self.root}/full/backup_manifest")
        sample.requests = server_cpu(cluster) - before
        sample.stored = size_of(f"{self.root}/changes")
        return sample

    def answer(self, cluster, place):
        """Both copies as a running server."""
        command = [f"{cluster.bin}/pg_combinebackup", f"{self.root}/full", f"{self.root}/changes", "-o", place]
        return until_it_answers(
            cluster, place, lambda: run(command, self.user, log=f"{self.root}/log", follow_memory=True)
        )


def until_it_answers(cluster, place, make):
    """Makes a data directory and starts a server over it; the wall time is that of both."""
    began = time.perf_counter()
    sample = make()
    words = ["-D", place, "-w", "-t", "600", "-l", f"{place}.log"]
    options = f"-c port={cluster.port + 1} -c archive_mode=off -c unix_socket_directories={cluster.socket}"
    cluster._program("pg_ctl", *words, "-o", options, "start")
    socket = ["-h", cluster.socket, "-p", str(cluster.port + 1), "-U", "postgres", "-qAtX"]
    asked = [f"{cluster.bin}/psql", *socket, "-c", "select count(*) from pg_class"]
    subprocess.run(asked, check=True, stdout=subprocess.DEVNULL, cwd="/", **cluster.user.popen())
    sample.wall = time.perf_counter() - began
    cluster._program("pg_ctl", "-D", place, "-m", "immediate", "-w", "stop")
    shutil.rmtree(place)
    return sample


def server_cpu(cluster):
    """Returns the seconds that the postmaster, its children, and those that ended have used."""
    with open(f"{cluster.path}/postmaster.pid") as lines:
        postmaster = int(lines.readline())
    seconds = 0
    for pid in measure._tree(postmaster):
        try:
            with open(f"/proc/{pid}/stat") as stat:
                fields = stat.read().rpartition(")")[2].split()
            seconds += sum(map(int, fields[11:15])) / TICKS
        except OSError:
            pass  # ended meanwhile, and counts with the postmaster's
    return seconds


def full(scratch, user, binary, gib, rounds, workers):
    """Everything."""
    with Cluster(scratch, "main", user) as cluster:
        load(cluster, gib)
        cluster.settle()
        remote, local = Remote("remote", binary, workers, scratch, user), Local("local", binary, workers, scratch, user)
        tools = [
            PgBasebackup("pg_basebackup, tar", [], scratch, user),
            PgBasebackup("pg_basebackup, zstd", ["--compress=client-zstd:level=3"], scratch, user),
        ]

        def archived(tool):
            def contest():
                tool.reset(cluster)
                cluster.archive_with(tool.archive_command())
                return tool.backup(cluster)

            return contest

        contestants = {tool.name: archived(tool) for tool in (remote, local)}
        contestants |= {tool.name: lambda tool=tool: tool.backup(cluster) for tool in tools}
        samples = in_turn(rounds, contestants)
        bases = {remote.name: [local.name, *(tool.name for tool in tools)]}
        print(table(f"Full backup of {gib:g} GiB over a local socket, {rounds} rounds", samples, bases))
        contestants = {tool.name: lambda tool=tool: tool.answer(cluster, f"{scratch}/restored") for tool in (remote, *tools)}
        bases = {remote.name: [tool.name for tool in tools]}
        print(table(f"From that to a server that answers, {gib:g} GiB, {rounds} rounds", in_turn(rounds, contestants), bases))


def incremental(scratch, user, binary, gib, rounds, workers):
    """What changed."""
    with Cluster(scratch, "growing", user) as cluster:
        cluster.sql("ALTER SYSTEM SET summarize_wal = on")
        cluster.sql("SELECT pg_reload_conf()")
        load(cluster, gib)
        cluster.settle()
        ours = Remote("changes", binary, workers, scratch, user)
        contestants = [ours, Combining(scratch, user)]
        changes, answers = ({one.name: [] for one in contestants} for _ in range(2))
        touched = 0
        for _ in range(rounds):
            for one in contestants:
                one.reset(cluster)
                if one is ours:
                    cluster.archive_with(one.archive_command())
                    one.backup(cluster)
                # Every twentieth page, by one of its rows: another one each time, for it moves elsewhere.
                touched += 1
                cluster.sql(f"""UPDATE pgbench_accounts SET filler = 'touched' WHERE ctid IN (
                    SELECT format('(%s,{touched})', page)::tid
                    FROM generate_series(0, pg_relation_size('pgbench_accounts') / 8192 - 1, 20) AS page)""")
                cluster.sql("CHECKPOINT")
                changes[one.name].append(one.changes(cluster))
                answers[one.name].append(one.answer(cluster, f"{scratch}/restored"))
                cluster.archive_with("/bin/true")
        bases = {ours.name: [Combining.name]}
        what = f"{gib:g} GiB, every twentieth page of the largest table touched, {rounds} rounds"
        print(table(f"Changes of {what}", changes, bases))
        print(table(f"From those to a server that answers, {what}", answers, bases))


PARTS = {part.__name__: part for part in (full, incremental)}


def main():
    measure.COLUMNS = [("requests", "server CPU s") if key == "requests" else (key, head) for key, head in measure.COLUMNS]
    gib, rounds = float(os.environ.get("BENCH_GIB", "2")), int(os.environ.get("BENCH_ROUNDS", "5"))
    workers = int(os.environ.get("BENCH_WORKERS", "1"))
    binary = os.environ.get("WALVAULT", f"{TREE}/target/release/walvault")
    user = User()
    with Scratch(user) as scratch:
        for name in sys.argv[1:] or ["full"]:
            PARTS[name](scratch, user, binary, gib, rounds, workers)


if __name__ == "__main__":
    main()
