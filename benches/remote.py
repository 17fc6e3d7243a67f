#!/usr/bin/env python3
"""Backups over the replication protocol: walvault beside pg_basebackup, in turn, in one run.

    benches/remote.py

walvault's stream and its reading of the same server's files, pg_basebackup as plain tar and compressed by the client with
zstd at the same level, with the WAL that it needs (-X stream). CPU is that of the tool; "server CPU s" is what the server used
meanwhile. pg_basebackup verifies nothing and leaves tar files; walvault waits for the WAL in the archive, verifies it, and
hashes every block. Then what came of it is restored and started, until the server answers a query: walvault verifies what it
restores, tar unpacks.

Prints medians [least–most] and ratios of medians. On a busy machine trust CPU and ratios.

    BENCH_GIB     size of the database (2)          BENCH_ROUNDS  rounds (5)
    BENCH_WORKERS processors for walvault (1)       WALVAULT      program (target/release/walvault)
    BENCH_DIR     where the scratch goes (/var/tmp)
"""

import os
import shutil
import subprocess
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


    def unpack(self, destination):
        """The backup into a new directory."""
        return [self.restore(destination)]


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


    def unpack(self, destination):
        """The tar files into a new directory."""
        self.user.directory(destination)
        samples = []
        for name in sorted(os.listdir(self.root)):
            if ".tar" in name:
                into = f"{destination}/pg_wal" if name.startswith("pg_wal") else destination
                zstd = ["--zstd"] if name.endswith(".zst") else []
                command = ["tar", *zstd, "-xf", f"{self.root}/{name}", "-C", into]
                samples.append(run(command, self.user, log=f"{self.root}.log", follow_memory=True))
        return samples


def until_it_answers(cluster, tool, scratch, user):
    """Restores what a tool has, starts a server over it, and asks until it answers."""
    data, socket = f"{scratch}/answering", f"{scratch}/answering-socket"
    for path in (data, socket):
        shutil.rmtree(path, ignore_errors=True)
    user.directory(socket)
    os.sync()
    began = time.perf_counter()
    samples = tool.unpack(data)
    words = ["-D", data, "-k", socket, "-p", "54322", "-c", "archive_mode=off", "-c", "hot_standby=on"]
    with open(f"{scratch}/answering.log", "w") as out:
        server = subprocess.Popen([f"{cluster.bin}/postgres", *words], stdout=out, stderr=out, cwd="/", **user.popen())
    query = [f"{cluster.bin}/psql", "-h", socket, "-p", "54322", "-U", "postgres", "-qAtX", "-c", "select count(*) from noise"]
    while subprocess.run(query, cwd="/", capture_output=True, check=False, **user.popen()).returncode:
        if server.poll() is not None:
            raise SystemExit(open(f"{scratch}/answering.log", errors="replace").read()[-3000:])
        time.sleep(0.02)
    wall = time.perf_counter() - began
    # At once: what a clean end costs is nobody's.
    server.send_signal(3)
    _, _, usage = os.wait4(server.pid, 0)
    server.returncode = 0
    return Sample(
        wall=wall,
        cpu=sum(sample.cpu for sample in samples),
        peak=max(sample.peak for sample in samples),
        written=sum(sample.written for sample in samples),
        requests=usage.ru_utime + usage.ru_stime,
    )


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
        restored = [remote, *tools]
        contestants = {tool.name: lambda tool=tool: until_it_answers(cluster, tool, scratch, user) for tool in restored}
        bases = {remote.name: [tool.name for tool in tools]}
        print(table("From that backup to a server that answers", in_turn(rounds, contestants), bases))


if __name__ == "__main__":
    main()
