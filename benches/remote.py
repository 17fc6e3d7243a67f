#!/usr/bin/env python3
"""Backups over the replication protocol: walvault beside pg_basebackup, in turn, in one run.

    benches/remote.py

walvault's stream and its reading of the same server's files, pg_basebackup as plain tar and compressed by the client with
zstd at the same level. CPU is that of the tool; "server CPU s" is what the server used meanwhile. pg_basebackup verifies
nothing and leaves tar files; walvault waits for the WAL in the archive, verifies it, and hashes every block.

Prints medians [least–most] and ratios of medians. On a busy machine trust CPU and ratios.

    BENCH_GIB     size of the database (2)          BENCH_ROUNDS  rounds (5)
    BENCH_WORKERS processors for walvault (1)       WALVAULT      program (target/release/walvault)
    BENCH_DIR     where the scratch goes (/var/tmp)
"""

import os
import shutil

import measure
from cluster import Cluster, Scratch, User, load
from measure import in_turn, run, table
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
        words = ["-h", cluster.socket, "-p", str(cluster.port), "-U", "postgres", "-c", "fast", "-X", "none", "-Ft"]
        before = server_cpu(cluster)
        command = [f"{cluster.bin}/pg_basebackup", *words, *self.options, "-D", self.root]
        sample = run(command, self.user, log=f"{self.root}.log", follow_memory=True)
        sample.requests = server_cpu(cluster) - before
        sample.stored = size_of(self.root)
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


def main():
    measure.COLUMNS = [("requests", "server CPU s") if key == "requests" else (key, head) for key, head in measure.COLUMNS]
    gib, rounds = float(os.environ.get("BENCH_GIB", "2")), int(os.environ.get("BENCH_ROUNDS", "5"))
    workers = int(os.environ.get("BENCH_WORKERS", "1"))
    binary = os.environ.get("WALVAULT", f"{TREE}/target/release/walvault")
    user = User()
    with Scratch(user) as scratch, Cluster(scratch, "main", user) as cluster:
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


if __name__ == "__main__":
    main()
