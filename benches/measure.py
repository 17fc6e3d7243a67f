"""One process and everything it starts: how long, how much CPU, how much memory, how many bytes written."""

import json
import os
import resource
import statistics
import subprocess
import threading
import time
from dataclasses import dataclass


@dataclass
class Sample:
    """What one run took."""

    wall: float  # seconds
    cpu: float  # seconds of user and system time, descendants included
    peak: float  # MiB resident: the largest process, or the proportional sum of all where that was sampled; 0 if unknown
    written: float  # MiB sent to storage
    stored: float = 0.0  # MiB added to the repository
    requests: float = 0.0  # made of a bucket
    sent: float = 0.0  # MiB of bodies sent to it
    received: float = 0.0  # MiB of bodies received of it
    requests_of_each: float = 0.0  # for each GiB of data
    moved_of_each: float = 0.0  # MiB sent and received for each GiB of data


def run(command, user, *, env=None, cwd="/", log=None, statuses=(0,), follow_memory=False):
    """Runs a command as `user` and returns its Sample; ends the benchmark if its status is not among `statuses`."""
    # What earlier runs left in the page cache is not this one's to write.
    os.sync()
    starter = Starter.of(user)
    pid = starter.start({"command": command, "env": env, "cwd": cwd, "log": log})
    memory = Memory(pid) if follow_memory else None
    wall, cpu, peak, written, status, floor = starter.end()
    if status not in statuses:
        tail = open(log, errors="replace").read()[-2000:] if log else ""
        raise SystemExit(f"{' '.join(command)}\nended with status {status}\n{tail}")
    # A process counts what it was before it became the command: the starter. What needs less cannot be told.
    peak = 0.0 if peak <= floor else peak / 1024
    return Sample(wall=wall, cpu=cpu, peak=max(peak, memory.stop()) if memory else peak, written=written * 512 / 2**20)


class Starter:
    """A small process of a user's that starts commands.

    To start one from here, as another user, this whole process is copied first, which takes longer than the shortest
    commands and would be counted as theirs. PostgreSQL too starts them from a process that is cheap to copy.
    """

    KNOWN = {}

    def __init__(self, user):
        asked, self.asks = os.pipe()
        self.answers, answers = os.pipe()
        if os.fork() == 0:
            # Not by another interpreter: this one may lie where the user may not go.
            os.close(self.asks), os.close(self.answers)
            if os.getuid() == 0:
                os.setgroups([]), os.setgid(user.gid), os.setuid(user.uid)
            self._serve(os.fdopen(asked), os.fdopen(answers, "w"))
            os._exit(0)
        os.close(asked), os.close(answers)
        self.asks, self.answers = os.fdopen(self.asks, "w"), os.fdopen(self.answers)

    @staticmethod
    def _serve(asked, answers):
        for line in asked:
            ask = json.loads(line)
            out = open(ask["log"], "ab") if ask["log"] else subprocess.DEVNULL
            began = time.perf_counter()
            process = subprocess.Popen(
                ask["command"], cwd=ask["cwd"], env=ask["env"], stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )
            print(process.pid, file=answers, flush=True)
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.perf_counter() - began
            process.returncode = os.waitstatus_to_exitcode(status)
            own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            cpu = usage.ru_utime + usage.ru_stime
            print(json.dumps([wall, cpu, usage.ru_maxrss, usage.ru_oublock, process.returncode, own]), file=answers, flush=True)

    @classmethod
    def of(cls, user):
        """The one that starts this user's commands."""
        if user.uid not in cls.KNOWN:
            cls.KNOWN[user.uid] = cls(user)
        return cls.KNOWN[user.uid]

    def start(self, asked):
        """Starts a command and returns its process."""
        print(json.dumps(asked), file=self.asks, flush=True)
        return int(self.answers.readline())

    def end(self):
        """Waits for it and returns what it took."""
        return json.loads(self.answers.readline())


class Memory:
    """Samples the proportional set size of a process and its descendants: shared pages count once."""

    STEP = 0.05

    def __init__(self, pid):
        self.pid, self.peak, self.over = pid, 0.0, threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()

    def stop(self):
        """Returns the peak in MiB."""
        self.over.set()
        self.thread.join()
        return self.peak

    def _watch(self):
        while not self.over.wait(self.STEP):
            self.peak = max(self.peak, sum(map(_pss, _tree(self.pid))))


def _tree(pid):
    pids = [pid]
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as children:
                for child in children.read().split():
                    pids += _tree(int(child))
    except OSError:
        pass  # ended meanwhile
    return pids


def _pss(pid):
    try:
        with open(f"/proc/{pid}/smaps_rollup") as rollup:
            return next((int(line.split()[1]) / 1024 for line in rollup if line.startswith("Pss:")), 0.0)
    except OSError:
        return 0.0


def in_turn(rounds, contestants):
    """Calls each contestant once a round, so that whatever else the machine does meets all of them alike.

    `contestants` maps a name to a function that returns a Sample; returns their samples by name.
    """
    samples = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, contest in contestants.items():
            samples[name].append(contest())
    return samples


COLUMNS = [
    ("wall", "wall s"),
    ("cpu", "CPU s"),
    ("peak", "peak MiB"),
    ("written", "written MiB"),
    ("stored", "stored MiB"),
    ("requests", "requests"),
    ("sent", "sent MiB"),
    ("received", "received MiB"),
    ("requests_of_each", "requests a GiB"),
    ("moved_of_each", "moved MiB a GiB"),
]


def table(title, samples, bases):
    """Returns medians, extremes and, below each contestant, its ratios to those of `bases` that ran with it."""
    lines = [f"### {title}", ""]
    shown = [(key, head) for key, head in COLUMNS if any(getattr(s, key) for all_ in samples.values() for s in all_)]
    lines.append("| | n | " + " | ".join(head for _, head in shown) + " |")
    lines.append("|---|---|" + "---|" * len(shown))
    for name, taken in samples.items():
        cells = [_cell([getattr(sample, key) for sample in taken]) for key, _ in shown]
        lines.append(f"| {name} | {len(taken)} | " + " | ".join(cells) + " |")
        for base in bases.get(name, []):
            if base in samples:
                ratios = [_ratio(taken, samples[base], key) for key, _ in shown]
                lines.append(f"| … to {base} | | " + " | ".join(ratios) + " |")
    return "\n".join(lines) + "\n"


def _cell(values):
    if not all(values):
        return ""
    middle = statistics.median(values)
    digits = 4 if middle < 1 else 2 if middle < 100 else 0
    if len(values) == 1:
        return f"{middle:.{digits}f}"
    return f"{middle:.{digits}f} [{min(values):.{digits}f}–{max(values):.{digits}f}]"


def _ratio(ours, theirs, key):
    ours, theirs = (statistics.median(getattr(sample, key) for sample in taken) for taken in (ours, theirs))
    return f"**×{ours / theirs:.2f}**" if ours and theirs else ""
