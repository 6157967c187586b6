"""The sender: a process beside the stage that delivers its spool while the stage works.

A process of its own, for three reasons. The training loop never waits for a server or a database. MLflow's retry
settings (7 retries of up to 120 s) can only be changed by environment variables: they are set for this process alone,
and the stage's own environment is not touched. And when the stage is killed, somebody is left to say so: the sender
sees its standard input close, and ends the run as KILLED.

It writes its messages to standard error as `LEVEL message` lines; the stage's process logs them.
"""

from __future__ import annotations

import argparse
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from rest_core.operations.tracking import delivery, spool, store
from rest_core.processes import skip_last_collections

logger = logging.getLogger("rest_core.operations.tracking.sender")  # the process runs this module as __main__

_INCOMPLETE = 3  # exit code: records are left
_POLL_SECONDS = 0.5
_MAX_BACK_OFF_SECONDS = 5.0
_AWAY = "MLflow does not take records (%s); the work goes on, records are kept in %s and sent when it answers again"


class Sender:
    """The stage's handle on its sender process."""

    def __init__(self, folder: Path, section: int, uri: str, grace: float) -> None:
        """Start it.

        Args:
            folder: the spool.
            section: the section of the journal that the stage writes.
            uri: MLflow's address; it may carry credentials, which are passed on by environment only.
            grace: seconds without an answer after which the sender gives up once the stage has ended.
        """
        self.folder = folder
        self._process = _start(["--section", str(section), "--grace", str(grace), str(folder)], uri)
        self._reader = threading.Thread(target=_log_lines, args=(self._process,), name="mlflow-sender-log", daemon=True)
        self._reader.start()

    def finish(self, timeout: float = 120.0) -> bool:
        """Wait until everything is sent or the sender has given up; True when nothing is left.

        The section must have been closed (record `end`). After `timeout` seconds the sender is stopped; what it had
        not sent stays in the spool.
        """
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.terminate()
            code = self._process.wait()
        self._reader.join(timeout=5)
        if code not in (0, _INCOMPLETE):
            logger.error("the MLflow sender ended with exit code %d; what it had not sent is kept", code)
        return code == 0


def sync(folder: Path) -> delivery.Delivery:
    """Send what waits in a spool (or in all spools below a folder) now, and say what has become of it.

    Raises `UserError` when there is no spool, or a running stage is sending it.
    """
    spools = delivery.find_spools(folder)
    for one in spools:
        with spool.sending(one, wait=False):
            pass
    before = sum(_left(one) for one in spools)
    process = _start([str(folder)], uri=None)
    _log_lines(process)
    process.wait()
    left = sum(_left(one) for one in spools)
    problem = next((state.problem for one in spools if (state := spool.State.read(one)).problem), None)
    if process.returncode not in (0, _INCOMPLETE):
        problem = f"the MLflow sender ended with exit code {process.returncode}"
    return delivery.Delivery(before - left, left, sum(len(spool.read_rejected(one)) for one in spools), problem)


def _left(folder: Path) -> int:
    return sum(1 for _ in spool.read_records(folder, spool.State.read(folder).position))


def _start(arguments: list[str], uri: str | None) -> subprocess.Popen[bytes]:
    environment = {**store.SHORT_WAITS, **os.environ}  # what the user has set for MLflow stands
    if uri is not None:
        environment["MLFLOW_TRACKING_URI"] = uri
    return subprocess.Popen(
        [sys.executable, "-m", __name__, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,  # Ctrl-C stops the stage; the sender still reports that
    )


def _log_lines(process: subprocess.Popen[bytes]) -> None:
    assert process.stderr is not None
    for raw in process.stderr:
        line = raw.decode("utf-8", "replace").rstrip()
        level, _, message = line.partition(" ")
        if level in ("INFO", "WARNING", "ERROR"):
            logger.log(logging.getLevelNamesMapping()[level], "%s", message)
        else:
            logger.debug("%s", line)  # MLflow's own chatter


def _follow(folder: Path, section: int, grace: float) -> int:
    """Deliver until the section is closed and sent, or nothing has gone out for `grace` seconds after its end."""
    courier = delivery.Courier(folder)
    last_progress = time.monotonic()
    back_off, next_try = 0.0, 0.0
    alive, away, ended = True, False, False
    scanned = next(after for record, after in spool.read_records(folder) if _opens(record, section))
    while True:
        now = time.monotonic()
        if not ended:
            for record, after in spool.read_records(folder, scanned):
                scanned = after
                ended |= record["op"] in ("begin", "end") and record["section"] >= section
            if not alive and not ended and (begin := spool.open_section(folder)):
                spool.close_killed(folder, begin)
                ended = True
            if ended:
                last_progress, next_try = now, 0.0
        if now >= next_try:
            done = courier.run()
            if done.sent:
                last_progress = time.monotonic()
            if done.problem is None:
                if away:
                    logger.info("MLflow answers again; %d kept records are sent", done.sent)
                away, back_off = False, 0.0
                if ended and done.left == 0:
                    return 0
            else:
                if not away:
                    logger.warning(_AWAY, done.problem, folder)
                away = True
                back_off = 1.0 if ended else min(_MAX_BACK_OFF_SECONDS, max(0.5, 2 * back_off))
                next_try = time.monotonic() + back_off
        if ended and away and time.monotonic() - last_progress > grace:
            return _INCOMPLETE
        if alive:
            readable, _, _ = select.select([sys.stdin], [], [], _POLL_SECONDS)
            alive = not (readable and os.read(sys.stdin.fileno(), 4096) == b"")
        else:
            time.sleep(_POLL_SECONDS)


def _opens(record: spool.Record, section: int) -> bool:
    return bool(record["op"] == "begin" and record["section"] == section)


def main() -> int:
    skip_last_collections()
    parser = argparse.ArgumentParser(description="deliver a spool to MLflow")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--section", type=int, help="follow this section until it is closed and sent")
    parser.add_argument("--grace", type=float, default=10.0)
    arguments = parser.parse_args()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logging.getLogger("rest_core").addHandler(handler)
    logging.getLogger("rest_core").setLevel(logging.INFO)
    if arguments.section is None:
        return 0 if delivery.deliver(arguments.folder, wait=True).complete else _INCOMPLETE
    # Whoever ends the stage's whole process family ends the stage first: what is left to do is to record that. The end
    # of stdin says when.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with spool.sending(arguments.folder, wait=True):
        return _follow(arguments.folder, arguments.section, arguments.grace)


if __name__ == "__main__":
    sys.exit(main())
