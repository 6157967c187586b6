"""The process that executes and judges the calls of BFCL's dialogues; it runs `executor_process.py`.

Calls are model output, and some take all time or memory there is: `power(10, 10**10)`. A signal handler cannot
interrupt them. So they run in a process of their own that is killed at a deadline and started again; each request
carries all calls of its dialogue, so that nothing is lost with the process but the one dialogue.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

from rest_core.data.bfcl_wheel import data_folder
from rest_core.environments.environment import EnvironmentFailed, Verdict

_PROCESS = Path(__file__).with_name("executor_process.py")
_START_SECONDS = 120.0
OUT_OF_MEMORY = 3  # exit code, the same in executor_process.py
Memory = dict[str, Any]
_KEPT_VARIABLES = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")  # no other, credentials among them, reaches the process
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # numpy's take address space for each


class Executor:
    """Starts its process when it is first needed; `close` ends it.

    Args:
        seconds: deadline of a request, wall clock. An honest one takes milliseconds.
    """

    def __init__(self, seconds: float = 10.0) -> None:
        self.seconds = seconds
        self.restarts = 0  # how often the process was killed, or died
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._log: IO[bytes] | None = None
        self._resources = ExitStack()

    def execute(self, id_: str, steps: Sequence[Sequence[str]], memory: Memory | None = None) -> list[str]:
        """Results of the last step's calls, after those of all steps before.

        Args:
            id_: of the dialogue, which decides classes and their initial state.
            steps: calls as Python text, of every step so far.
            memory: that a dialogue of a memory category begins with.

        Raises:
            EnvironmentFailed: the calls took too much time or memory.
        """
        results: list[str] = self._ask({"execute": id_, "steps": steps, "memory": memory})["results"]
        return results

    def judge(self, id_: str, turns: Sequence[Sequence[Sequence[str]]]) -> Verdict:
        """The official verdict on a dialogue's calls, by turn and step, on fresh state."""
        return self._judged({"judge": id_, "turns": turns})

    def memory_prompt(self, id_: str, memory: Memory | None) -> str:
        """The official system prompt of a memory category's dialogue, with the memory that it begins with.

        Raises:
            EnvironmentFailed: the process has ended.
        """
        prompt: str = self._ask({"show": id_, "memory": memory})["prompt"]
        return prompt

    def memory_after(self, id_: str, steps: Sequence[Sequence[str]], memory: Memory | None) -> Memory:
        """The memory after a dialogue's calls: the content of bfcl-eval's own snapshot file.

        Raises:
            EnvironmentFailed: it is too large.
        """
        kept: Memory = self._ask({"keep": id_, "steps": steps, "memory": memory})["memory"]
        return kept

    def judge_answer(self, id_: str, answer: str) -> Verdict:
        """The official verdict on the answer to a memory category's question; "" is none."""
        return self._judged({"judge_answer": id_, "answer": answer})

    def _judged(self, request: dict[str, Any]) -> Verdict:
        try:
            reply = self._ask(request)
        except EnvironmentFailed as error:
            return Verdict(False, "checker_error:EnvironmentFailed", str(error))
        return Verdict(reply["valid"], reply.get("error_type"), reply.get("error"))

    def close(self) -> None:
        """End the process; the next request starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._connection is not None:
            self._connection.close()
        self._process = self._connection = None
        self._resources.close()

    def _ask(self, request: dict[str, Any]) -> Any:
        connection = self._connection or self._start()
        try:
            connection.send_bytes(json.dumps(request).encode())
            if connection.poll(self.seconds):
                return json.loads(connection.recv_bytes())
            problem = f"the calls took more than {self.seconds:g} s"
        except (EOFError, OSError):
            problem = f"the calls ended the process that executes them{self._last_words()}"
        self.restarts += 1
        self.close()
        raise EnvironmentFailed(problem)

    def _start(self) -> Connection:
        data_folder()  # a clear error where bfcl-eval is not installed
        scratch = Path(self._resources.enter_context(tempfile.TemporaryDirectory(prefix="bfcl-")))
        for name in ("empty", "bfcl"):
            (scratch / name).mkdir()
        kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        self._log = log = self._resources.enter_context((scratch / "log").open("w+b"))
        self._connection, theirs = Pipe()
        with theirs:
            # -P: the script's own directory is no place to import from.
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(_PROCESS), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=scratch / "empty",
                env={**kept, "BFCL_PROJECT_ROOT": str(scratch / "bfcl"), "TZ": "UTC", "PYTHONUTF8": "1"} | _ONE_THREAD,
                pass_fds=[theirs.fileno()],
            )
        try:
            if self._connection.poll(_START_SECONDS):
                self._connection.recv_bytes()
                return self._connection
            problem = f" was not ready after {_START_SECONDS:g} s"
        except EOFError:
            problem = self._last_words()
        self.close()
        raise RuntimeError(f"the process of bfcl-eval's executor did not start{problem}")

    def _last_words(self) -> str:
        """How the process ended."""
        assert self._process is not None and self._log is not None
        code = self._process.wait()
        if code == OUT_OF_MEMORY:
            return ": they took too much memory"
        self._log.seek(0)
        log = self._log.read().decode(errors="replace").strip()[-500:]
        return f" (exit code {code}): {log}"
