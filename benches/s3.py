#!/usr/bin/env python3
"""walvault beside pgBackRest in a bucket: on loopback, plain and over TLS, and over TLS with 20 ms of round trip.

    benches/s3.py                         everything
    benches/s3.py push                    some of it: push, backup, incremental
    benches/s3.py --walvault BINARY push  another build than target/release/walvault

The bucket is benches/bucket.py: in memory, in a process of its own, so that times flatter everybody alike. Requests and
bytes are what it counted. pgBackRest speaks TLS only. On a busy machine trust requests, bytes, CPU and ratios.

    BENCH_GIB     data in GiB (1)               BENCH_ROUNDS  rounds of a backup and a restore (2)
    BENCH_PUSHES  segments of each way (8)      BENCH_RTT     round trip in ms (20)
    BENCH_DIR, BENCH_PG_BIN, PGBACKREST         as for benches/peers.py
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

from cluster import Cluster, Scratch, User, load, segments
from measure import in_turn, run, table
from peers import TREE, PgBackRest, Walvault, size_of, spoil, touch

KEYS = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench"}


class Bucket:
    """The server, and the ways to it."""

    def __init__(self, round_trip):
        fixtures = f"{TREE}/fixtures/tls"
        self.ca = f"{fixtures}/ca.pem"
        self.process = subprocess.Popen(
            [sys.executable, f"{TREE}/benches/bucket.py", f"{fixtures}/server.pem", f"{fixtures}/server.key", str(round_trip)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        plain, secure, far = map(int, self.process.stdout.readline().split())
        self.about = f"http://127.0.0.1:{plain}/-/"
        self.ways = {
            "plain": f"http://127.0.0.1:{plain}",
            "TLS": f"https://127.0.0.1:{secure}",
            f"TLS, {round_trip} ms": f"https://127.0.0.1:{far}",
        }

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()

    def clear(self):
        """Removes every object."""
        urllib.request.urlopen(urllib.request.Request(f"{self.about}clear", method="POST", data=b"")).read()

    def counted(self, work):
        """Does a piece of work and returns its Sample with what it asked of the bucket."""
        self.take()
        sample = work()
        counts = self.take()
        sample.requests = counts.get("requests", 0)
        sample.sent, sample.received = (counts.get(name, 0) / 2**20 for name in ("sent", "received"))
        return sample

    def take(self):
        return json.load(urllib.request.urlopen(f"{self.about}counts"))


class BucketWalvault(Walvault):
    """walvault in a bucket: each command by itself, or handing over to an agent."""

    def __init__(self, binary, cpus, agent, bucket, way, scratch, user):
        super().__init__("agent" if agent else "walvault", binary, cpus, scratch, user)
        self.bucket, self.way, self.agent, self.running = bucket, way, agent, None
        self.name = f"walvault{' by its agent' if agent else ''}, {cpus} CPU"
        self.root = f"{scratch}/{'agent' if agent else 'walvault'}-{cpus}-{way.replace(' ', '').replace(',', '-')}"

    def reset(self, cluster):
        self.stop()
        shutil.rmtree(self.root, ignore_errors=True)
        for place in ("", "/state", "/run"):
            self.user.directory(self.root + place)
        self._prepare("init")
        if self.agent:
            log = open(f"{self.root}/agent.log", "ab")
            self.running = subprocess.Popen(self.command("agent"), env=self.environment(), cwd="/", stdout=log, stderr=log, **self.user.popen())
            while not os.path.exists(f"{self.root}/run/main.sock"):
                if self.running.poll() is not None:
                    raise SystemExit(f"the agent ended\n{open(f'{self.root}/agent.log').read()}")
                time.sleep(0.05)

    def stop(self):
        """Ends the agent, if there is one."""
        if self.running:
            self.running.terminate()
            self.running.wait()
            self.running = None

    def command(self, *words):
        return [self.binary, "--repo", f"s3://bench/{os.path.basename(self.root)}", "--cluster", "main", *words]

    def environment(self):
        return {
            **super().environment(), **KEYS, "WALVAULT_S3_ENDPOINT": self.bucket.ways[self.way],
            "WALVAULT_CA_FILE": self.bucket.ca, "WALVAULT_STATE_DIR": f"{self.root}/state",
            "WALVAULT_RUNTIME_DIR": f"{self.root}/run", "WALVAULT_LOOK_AHEAD": "0",
        }  # fmt: skip

    def archive_command(self):
        variables = [f"{name}={shlex.quote(value)}" for name, value in self.environment().items()]
        return " ".join(variables) + " " + shlex.join(self.command("wal", "push")) + ' "%p"'

    def _prepare(self, *words):
        subprocess.run(self.command(*words), check=True, stdout=subprocess.DEVNULL, cwd="/", env=self.environment(), **self.user.popen())


class BucketPgBackRest(PgBackRest):
    """pgBackRest in a bucket, over TLS."""

    def __init__(self, workers, bucket, way, scratch, user):
        port = bucket.ways[way].rsplit(":", 1)[1]
        self.place = f"/pgbackrest-{workers}-{way.replace(' ', '').replace(',', '-')}"
        options = {
            **PgBackRest.tuned(), "repo1-type": "s3", "repo1-s3-endpoint": "localhost", "repo1-s3-bucket": "bench",
            "repo1-s3-key": "bench", "repo1-s3-key-secret": "bench", "repo1-s3-region": "us-east-1",
            "repo1-s3-uri-style": "path", "repo1-storage-host": "localhost", "repo1-storage-port": port,
            "repo1-storage-ca-file": bucket.ca,
        }  # fmt: skip
        super().__init__("pgbackrest zst-3", workers, options, scratch, user)
        self.root = scratch + self.place

    def reset(self, cluster):
        self.repository = self.place
        super().reset(cluster)

    def stop(self):
        """Nothing stays running."""


def peers(bench, way, agents):
    """The contestants of one way, in the order of their turns."""
    found = []
    for cpus in (1, 2):
        found.append(BucketWalvault(bench.binary, cpus, False, bench.bucket, way, bench.scratch, bench.user))
        if agents and cpus == 2:
            found.append(BucketWalvault(bench.binary, cpus, True, bench.bucket, way, bench.scratch, bench.user))
        if way != "plain":
            found.append(BucketPgBackRest(cpus, bench.bucket, way, bench.scratch, bench.user))
    return found


def bases(found):
    """Each of ours beside pgBackRest with as many workers."""
    return {peer.name: [f"pgbackrest zst-3, {peer.name.rsplit(', ', 1)[1]}"] for peer in found if isinstance(peer, BucketWalvault)}


def push(bench):
    """Busy segments, one call each, by every way."""
    with Cluster(bench.scratch, "push", bench.user) as cluster:
        load(cluster, 0.25)
        cluster.settle()
        kept, _ = segments(cluster, bench.scratch, bench.pushes, 1)
        for way in bench.bucket.ways:
            bench.bucket.clear()
            found = peers(bench, way, agents=True)
            for peer in found:
                peer.reset(cluster)
                for segment in kept[:2]:  # Lane, stanza and owner are known from the third call on.
                    peer.push(cluster, segment)
            left = {peer.name: iter(kept[2:]) for peer in found}
            call = lambda peer: bench.bucket.counted(lambda: peer.push(cluster, next(left[peer.name])))  # noqa: E731
            samples = in_turn(len(kept) - 2, {peer.name: lambda peer=peer: call(peer) for peer in found})
            for peer in found:
                peer.stop()
            yield table(f"push of a busy segment, {way}", samples, bases(found))


def backup(bench):
    """One cluster, backed up and restored, by every way."""
    with Cluster(bench.scratch, "large", bench.user) as cluster:
        load(cluster, bench.gib)
        cluster.settle()
        gib = size_of(cluster.path, but="pg_wal") / 1024
        for way in bench.bucket.ways:
            bench.bucket.clear()
            found = peers(bench, way, agents=False)
            for title, one in (("full backup", one_backup), ("restore", one_restore)):
                calls = {peer.name: lambda peer=peer: each_gib(one(bench, peer, cluster), gib) for peer in found}
                yield table(f"{title} of {gib:.2f} GiB, {way}", in_turn(bench.rounds, calls), bases(found))


def incremental(bench):
    """What changed since a full backup that is not measured, and a restore over a directory in which little differs."""
    with Cluster(bench.scratch, "growing", bench.user) as cluster:
        load(cluster, bench.gib)
        cluster.settle()
        row = 0
        for way in bench.bucket.ways:
            bench.bucket.clear()
            found = peers(bench, way, agents=False)
            touched, idle, deltas = {}, {}, {}
            for peer in found:
                row += 1
                peer.reset(cluster)
                cluster.archive_with(peer.archive_command())
                peer.backup(cluster)
                touch(cluster, row)
                touched[peer.name] = [bench.bucket.counted(lambda: peer.incremental(cluster))]
                idle[peer.name] = [bench.bucket.counted(lambda: peer.incremental(cluster))]
                destination = tempfile.mktemp(prefix="restored-", dir=bench.scratch)
                peer.restore(destination)
                spoil(cluster, destination)
                deltas[peer.name] = [bench.bucket.counted(lambda: peer.delta(destination))]
                shutil.rmtree(destination)
                cluster.archive_with("/bin/true")
                bench.forget(peer)
            yield table(f"incremental backup, a twentieth of the pages touched, {way}", touched, bases(found))
            yield table(f"incremental backup, nothing touched, {way}", idle, bases(found))
            yield table(f"restore over a directory, twenty blocks differ, {way}", deltas, bases(found))


def each_gib(sample, gib):
    """Says also what a GiB of data costs."""
    sample.requests_of_each, sample.moved_of_each = sample.requests / gib, (sample.sent + sample.received) / gib
    return sample


def one_backup(bench, peer, cluster):
    bench.forget(peer)
    peer.reset(cluster)
    cluster.archive_with(peer.archive_command())
    sample = bench.bucket.counted(lambda: peer.backup(cluster))
    cluster.archive_with("/bin/true")
    return sample


def one_restore(bench, peer, cluster):
    destination = tempfile.mktemp(prefix="restored-", dir=bench.scratch)
    sample = bench.bucket.counted(lambda: peer.restore(destination))
    shutil.rmtree(destination)
    return sample


class Bench:
    """What all parts share."""

    def __init__(self, scratch, user, binary, bucket):
        self.scratch, self.user, self.binary, self.bucket = scratch, user, binary, bucket
        self.gib = float(os.environ.get("BENCH_GIB", "1"))
        self.rounds = int(os.environ.get("BENCH_ROUNDS", "2"))
        self.pushes = int(os.environ.get("BENCH_PUSHES", "8")) + 2

    def forget(self, peer):
        """Removes what a contestant has in the bucket."""
        folder = peer.place if isinstance(peer, BucketPgBackRest) else f"/{os.path.basename(peer.root)}"
        urllib.request.urlopen(urllib.request.Request(f"{self.bucket.about}forget/bench{folder}/", method="POST", data=b"")).read()


PARTS = {part.__name__: part for part in (push, backup, incremental)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--walvault", metavar="BINARY", help="the build to measure")
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    built = arguments.walvault or f"{os.environ.get('CARGO_TARGET_DIR', TREE + '/target')}/release/walvault"
    user = User()
    with Scratch(user) as scratch, Bucket(int(os.environ.get("BENCH_RTT", "20"))) as bucket:
        # Copies, so that the server's user can reach them.
        binary = shutil.copy(built, f"{scratch}/walvault")
        bucket.ca = shutil.copy(bucket.ca, f"{scratch}/ca.pem")
        os.chmod(bucket.ca, 0o644)
        bench = Bench(scratch, user, binary, bucket)
        version = ".".join(map(str, PgBackRest.version()))
        for name in arguments.parts or PARTS:
            for result in PARTS[name](bench):
                print(f"# {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; pgBackRest {version}\n")
                print(result, flush=True)


if __name__ == "__main__":
    main()
