"""Commands in processes of their own that need not import torch anew: each is forked from one that has it already.

Importing torch, transformers and datasets takes several seconds, and a suite starts over a hundred processes. A forked
process has arguments, environment, folder and memory of its own, like a started one; what it cannot show is that a
program imports all it needs, which the tests of fresh processes do (`test_stranger.py`).
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy

# what libraries read from the environment while they are imported, so that a fork cannot change it any more
READ_AT_IMPORT = ("HF_HUB_OFFLINE", "HF_HOME", "HF_ENDPOINT", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_TOKEN")
ENVIRONMENT = dict(os.environ)  # before any test changes it
THIRD_PARTY = ("torch._dynamo", "torch.distributed.tensor", "pandas", "pyarrow.dataset", "scipy.optimize", "httpx")
HUGGING_FACE = ("datasets", "accelerate", "peft", "transformers.trainer")


class Forked:
    """A process that was asked for, with the part of `subprocess.Popen` that tests use."""

    def __init__(self, end: socket.socket, files: dict):
        self._end, self._files, self.returncode = end.makefile("r"), files, None
        end.close()
        self.pid = int(self._end.readline())

    def wait(self) -> int:
        """The exit code, or the number of the signal that ended it, negative."""
        if self.returncode is None:
            self.returncode = int(self._end.readline())
            self._end.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def text(self, name: str) -> str:
        """What it has written to `stdout` or `stderr`."""
        return Path(self._files[name].name).read_text(encoding="utf-8")

    def lines(self, count: int, seconds: float = 120.0) -> list[str]:
        """The first lines on `stdout`, as soon as they are there."""
        deadline = time.monotonic() + seconds
        while len(found := self.text("stdout").split("\n")) <= count:  # the last has no end yet
            assert time.monotonic() < deadline, self.text("stderr")[-3000:]
            time.sleep(0.02)
        return found[:count]


def start(command: list, *, env: dict | None = None, cwd=None) -> Forked:
    """`python command`, whose first element is the script, `-c` or `-m`; `env` is the whole environment."""
    env = dict(os.environ if env is None else env)
    files = {name: tempfile.NamedTemporaryFile("a") for name in ("stdout", "stderr")}
    ours, theirs = socket.socketpair()
    request = {"command": list(map(str, command)), "env": env, "cwd": str(cwd or os.getcwd())}
    handed = [theirs.fileno(), *(file.fileno() for file in files.values())]
    # a process that talks to a Hub of its own imports the libraries that read its address, all others have them
    parent = _parent(any(env.get(name) != ENVIRONMENT.get(name) for name in READ_AT_IMPORT))
    socket.send_fds(parent, [json.dumps(request).encode()], handed)
    theirs.close()
    return Forked(ours, files)


def run(command: list, *, env: dict | None = None, cwd=None, processes: int = 1) -> subprocess.CompletedProcess:
    """The command to its end, in as many processes as `torchrun` would start, whose texts follow one another."""
    env = dict(os.environ if env is None else env)
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    shared |= {name: str(processes) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")}
    ranks = [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    started = [start(command, env=env | rank, cwd=cwd) for rank in (ranks if processes > 1 else [{}])]
    codes = [each.wait() for each in started]
    texts = ["".join(each.text(name) for each in started) for name in ("stdout", "stderr")]
    return subprocess.CompletedProcess(command, next((code for code in codes if code), 0), *texts)


@functools.cache
def _parent(only_third_party: bool) -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = {**ENVIRONMENT, "OMP_NUM_THREADS": "1"}
    modules = THIRD_PARTY if only_third_party else THIRD_PARTY + HUGGING_FACE
    command = [sys.executable, str(Path(__file__)), str(theirs.fileno()), *modules]
    subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
    theirs.close()
    atexit.register(ours.close)  # which ends it
    return ours


def _serve(requests: socket.socket) -> dict | None:
    """Forks for each request; returns what is to be run in the fork, and None in the parent at the end of all."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # whose forks nobody waits for
    gc.collect()
    gc.freeze()  # what is imported by now is no garbage, and no fork needs to look through it
    while True:
        message, handed, _, _ = socket.recv_fds(requests, 1 << 20, 3)
        if not message:
            return None
        if os.fork():
            for file in handed:
                os.close(file)
            continue
        # this fork waits for the one that runs, to tell how it ended
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        requests.close()
        end, *files = handed
        if worker := os.fork():
            os.write(end, f"{worker}\n".encode())
            _, status = os.waitpid(worker, 0)
            os.write(end, f"{os.waitstatus_to_exitcode(status)}\n".encode())
            os._exit(0)
        os.close(end)
        for target, file in zip((1, 2), files, strict=True):
            os.dup2(file, target)
            os.close(file)
        return json.loads(message)


def _become(command: list[str], env: dict[str, str], cwd: str) -> None:
    """Runs the command as if this process had been started with it."""
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    numpy.random.seed()  # as in a process that starts
    sys.path[0] = "" if command[0] in ("-c", "-m") else str(Path(command[0]).resolve().parent)
    sys.path[1:1] = filter(None, env.get("PYTHONPATH", "").split(os.pathsep))
    if command[0] == "-c":
        with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
            script.write(command[1])
            script.flush()
            sys.argv = ["-c", *command[2:]]
            runpy.run_path(script.name, run_name="__main__")
    elif command[0] == "-m":
        sys.argv = command[1:]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = command
        runpy.run_path(command[0], run_name="__main__")


if __name__ == "__main__":
    channel = socket.socket(fileno=int(sys.argv[1]))
    for name in sys.argv[2:]:
        importlib.import_module(name)
    if request := _serve(channel):
        _become(**request)
