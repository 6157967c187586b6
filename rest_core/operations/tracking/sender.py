"""The sender: a thread that delivers a stage's journal while the stage runs, so that the stage never waits."""

from __future__ import annotations

import logging
import threading
import time

from rest_core.credentials import redact
from rest_core.operations.tracking import journal, store, waits
from rest_core.operations.tracking.delivery import REQUEST_SECONDS, Delivery, Replay, deliver
from rest_core.operations.tracking.journal import Journal

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
_MAX_BACK_OFF_SECONDS = 5.0
_FINISH_SECONDS = 120.0
_TOLD_AFTER = 5.0


class Sender(threading.Thread):
    """Sends one journal, after those that earlier attempts of the stage have left."""

    def __init__(self, records: Journal, uri: str, grace: float) -> None:
        """Start it.

        Args:
            records: where the stage writes.
            uri: MLflow's address; it may carry credentials.
            grace: seconds without an answer after which the sender gives up once the stage has ended.
        """
        super().__init__(name="mlflow-sender", daemon=True)
        self._path, self._uri, self._grace = records.path, uri, grace
        self._earlier = [path for path in journal.find(records.path.parent) if path < records.path]
        self._replay = Replay(records.path, uri)
        self._ended = threading.Event()
        self._away = False
        self.start()

    def finish(self) -> bool:
        """Wait until everything is sent or the sender gives up, at most 2 minutes; True when nothing is left.

        The journal must have its `end`. What has not been sent stays in it.
        """
        self._ended.set()
        self.join(_TOLD_AFTER)
        if self.is_alive() and store.is_server(self._uri):
            left, host = journal.left(self._path), redact(self._uri)
            logger.warning("waiting for MLflow at %s to take %d records, at most %.0f s", host, left, _FINISH_SECONDS)
        self.join(_FINISH_SECONDS - _TOLD_AFTER)
        return journal.left(self._path) == 0

    def run(self) -> None:
        with waits.at_most(REQUEST_SECONDS, told=False):
            self._run()

    def _run(self) -> None:
        pause, progress = _POLL_SECONDS, time.monotonic()
        while True:
            ended = self._ended.is_set()
            done = self._deliver()
            self._log_change(done)
            if done.sent or not ended:
                progress = time.monotonic()
            if ended and (done.left == 0 or time.monotonic() - progress > self._grace):
                return
            pause = min(_MAX_BACK_OFF_SECONDS, 2 * pause) if self._away and not ended else _POLL_SECONDS
            (time.sleep if ended else self._ended.wait)(pause)

    def _deliver(self) -> Delivery:
        while self._earlier:
            done = deliver(self._earlier[0], self._uri)
            if done.away is not None:
                return done
            if done.problem is not None:  # another process sends it, it is damaged, or of another address
                logger.warning("records of an earlier attempt are not sent: %s", done.problem)
            del self._earlier[0]
        return self._replay.run()

    def _log_change(self, done: Delivery) -> None:
        if done.problem is None and self._away:
            logger.info("MLflow answers again; %d kept records are sent", done.sent)
        elif done.problem is not None and not self._away:
            message = (
                "MLflow at %s does not take records (%s); the stage continues, and they are kept in %s until it does"
            )
            logger.warning(message, redact(self._uri), done.problem, self._path)
        self._away = done.problem is not None
