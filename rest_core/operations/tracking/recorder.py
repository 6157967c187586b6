"""What a stage may record: figures, tables, plots, files, data sets, models, prompts and answers.

Everything goes to a journal at once, and from there to MLflow (`rest_core.operations.tracking.delivery`).
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json

from rest_core import manifest
from rest_core.call_json import without_surrogates
from rest_core.credentials import redact, redacted
from rest_core.errors import UserError
from rest_core.operations.tracking import journal, store, traces
from rest_core.operations.tracking.artifacts import MAX_TAG_VALUE
from rest_core.operations.tracking.journal import Journal, State
from rest_core.operations.tracking.records import Target
from rest_core.operations.tracking.sender import Sender

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

MAX_PARAM_VALUE = 6000  # MLflow's limit
MAX_KEY = 250  # MLflow's limit
_DIGEST_LENGTH = 36  # MLflow's limit
_ILLEGAL = re.compile(r"[^\w\-. :/]", re.ASCII)
_SOURCE_TYPES = {"s3": "s3", "http": "http", "https": "http", "hf": "hf"}
_TRACES_A_RECORD = 20  # a record is sent as a whole: of a server that is slow, some must be seen to go out


@dataclass(frozen=True)
class Measured:
    """What the figures of an evaluation are of: a model, and the data set that it answered."""

    identity: str
    """A checkpoint's hash, where the model was taken from, or "NAME version N"."""
    name: str
    dataset: str
    digest_sha256: str
    metrics: tuple[str, ...]
    """The figures that MLflow's page of models shows."""


class Recorder:
    """What a stage may record. No method waits for MLflow; all raise `UserError` when the disk is full."""

    # Ends the run and its parent as FAILED, with a line that says why, where the `with` block itself cannot be left.
    fail: Callable[[str], None]

    def __init__(self, records: Journal, uri: str) -> None:
        self._journal = records
        self._uri = uri
        self._non_finite: dict[str, str] = {}

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the stage's run; None as long as the server has not answered."""
        ids = State.read(self._journal.path).ids
        return ids.run if ids else None

    def wait(self, timeout: float) -> bool:
        """Wait until all that was recorded so far has been sent; False when nothing is for `timeout` seconds."""
        before, deadline = -1, 0.0
        while left := journal.left(self._journal.path):
            if left != before:
                before, deadline = left, time.monotonic() + timeout
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Record figures of one step (of the whole stage, where `step` is None) on the stage's run.

        A run that somebody else made (KFP) may be joined by several attempts of a stage: steps that an earlier attempt
        has recorded there are not sent again.
        """
        self._metrics(values, step, "run")

    def summary(
        self, values: Mapping[str, float], *, on_parent: Collection[str] = (), of: Measured | None = None
    ) -> None:
        """Record the stage's figures.

        Args:
            on_parent: those that go on the parent as well, where pipeline runs are compared.
            of: the model that they are figures of.
        """
        self._metrics(values, None, "run", of)
        self._metrics({name: value for name, value in values.items() if name in on_parent}, None, "pipeline")

    def made_model(self, sha256: str, name: str) -> None:
        """Record the checkpoint that the stage has made as a model of MLflow.

        Args:
            sha256: the hash of the stage's output.
            name: of the model.
        """
        self._journal.append("model", identity=sha256, name=name)

    def prompt(self, name: str, template: str) -> None:
        """Record the prompt template that is used, as a version of a prompt in MLflow's registry.

        Args:
            name: `prompts.prompt_name`.
        """
        self._journal.append("prompt", name=name, template=template)

    def answers(self, rows: Sequence[Mapping[str, Any]], rules: Sequence[str]) -> None:
        """Record answers of an evaluation as traces, at most `traces.MAX_TRACES` of them.

        Args:
            rows: of rows.jsonl.
            rules: the columns with verdicts.
        """
        kept = traces.chosen(rows)
        for first in range(0, len(kept), _TRACES_A_RECORD):
            part = json.dumps(_plain(kept[first : first + _TRACES_A_RECORD])).encode()
            file = self._journal.keep(part, f"traces-{first}.json")
            self._journal.append("traces", to="run", file=file, rules=list(rules), first=first)

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags on the stage's run."""
        self._journal.append("tags", to="run", values=tag_values(values))

    def table(self, rows: Sequence[Mapping[str, Any]], name: str) -> None:
        """Record rows as the table artifact `tables/<name>.json`, which MLflow's UI shows as a table."""
        columns = list(dict.fromkeys(column for row in rows for column in row))
        cells = [[row.get(column) for column in columns] for row in _plain(rows)]
        data = [[json.dumps(cell) if isinstance(cell, (dict, list)) else cell for cell in row] for row in cells]
        content = json.dumps({"columns": columns, "data": data}, ensure_ascii=False).encode()
        self._artifact(content, f"{_file_name(name)}.json", "tables", table=True)

    def figure(self, figure: Figure, name: str) -> None:
        """Record a matplotlib figure as `figures/<name>.png`."""
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=120, bbox_inches="tight")
        self._artifact(content.getvalue(), f"{_file_name(name)}.png", "figures")

    def content(self, content: bytes, name: str) -> None:
        """Record bytes as an artifact of the stage's run."""
        self._artifact(content, name)

    def artifact(self, path: Path, folder: str = "", *, to: Target = "run") -> None:
        """Record a copy of a file as an artifact in `folder` of the stage's run, or of the parent."""
        if not path.is_file():
            raise UserError(f"{path}: no such file to record as an artifact")
        self._artifact(path, path.name, "/".join(_file_name(part) for part in folder.split("/") if part), to=to)

    def dataset(
        self,
        name: str,
        *,
        source: str,
        digest_sha256: str,
        rows: int,
        context: str,
        split: str | None = None,
        columns: Mapping[str, str] | None = None,
    ) -> None:
        """Record a dataset as an input of the stage's run and of the parent.

        Args:
            name: what it is, e.g. "train".
            source: where it came from (path, hub id or URI).
            digest_sha256: hex SHA-256 of its content. MLflow takes 36 characters; the tag `data/<name>/sha256` has all.
            rows: number of records.
            context: its use: "training", "validation" or "evaluation".
            split: the part of the content that is meant: MLflow tells datasets apart by their digests, so that it
                needs one of its own.
            columns: names and MLflow's types ("string", "long", …), which MLflow shows as the schema.
        """
        source = redact(source)
        self._journal.append(
            "dataset",
            name=name,
            source=source,
            source_type=_SOURCE_TYPES.get(source.split("://")[0], "local"),
            digest=_digest(digest_sha256, split),
            rows=rows,
            context=context,
            columns=dict(columns or {}),
        )
        for target in ("run", "pipeline"):
            self._journal.append("tags", to=target, values={_key(f"data/{name}/sha256"): digest_sha256})

    def parameters(self, values: Mapping[str, Any]) -> None:
        """Record configuration as `cfg/…` params of the stage's run and of the parent, and whole as config.json."""
        plain = redacted(_plain(values))
        params = {_key(f"cfg/{name}"): _parameter(value) for name, value in manifest.leaves(plain, "/")}
        for target in ("run", "pipeline"):
            self._journal.append("params", to=target, values=params)
        self._artifact(json.dumps(plain, indent=2, ensure_ascii=False).encode() + b"\n", "config.json")

    def _artifact(
        self, source: Path | bytes, name: str, folder: str = "", *, to: Target = "run", table: bool = False
    ) -> None:
        file = self._journal.keep(source, name)
        self._journal.append("artifact", to=to, file=file, folder=folder, table=table)

    def _metrics(
        self, values: Mapping[str, float], step: int | None, target: Target, of: Measured | None = None
    ) -> None:
        if not values:
            return
        # Strict JSON has no NaN and no infinities: they become the strings that `float` reads.
        odd = {_key(name): str(float(value)) for name, value in values.items() if not math.isfinite(value)}
        numbers = {_key(name): float(value) for name, value in values.items()} | odd
        described = {} if of is None else {"of": redacted(asdict(of)) | {"digest": _digest(of.digest_sha256)}}
        self._journal.append("metrics", to=target, step=step, values=numbers, **described)
        news = {name: f"step {step}: {value}" for name, value in odd.items() if name not in self._non_finite}
        if news:
            # Stores keep NaN, but clamp infinity, and the UI's charts leave both out: say it where it is seen.
            self._non_finite |= news
            logger.warning("metrics that are no finite number: %s", ", ".join(f"{k} ({v})" for k, v in news.items()))
            self.tags({"rest.non_finite": "; ".join(f"{name} at {where}" for name, where in self._non_finite.items())})

    def end(self, sender: Sender, status: str, error: str | None = None) -> None:
        """Write the journal's last record, and wait a bounded time until everything is sent."""
        self._journal.append("end", status=status, error=error)
        delivered = sender.finish()
        self._journal.close()
        path, uri = self._journal.path, redact(self._uri)
        if not delivered:
            message = "%d records could not be sent to MLflow at %s and are kept; send them with: %s"
            logger.warning(message, journal.left(path), uri, store.sync_command(path.parent, self._uri))
        if refused := State.read(path).refused:
            logger.warning("MLflow at %s has refused %d values or files; they stay in %s", uri, refused, path)


def _digest(sha256: str, split: str | None = None) -> str:
    """As MLflow knows a data set, or a part of it."""
    return (sha256 if split is None else hashlib.sha256(f"{sha256}/{split}".encode()).hexdigest())[:_DIGEST_LENGTH]


def _plain(values: Any) -> Any:
    """JSON values of a configuration or a table: models become dictionaries; NaN, paths and other objects text.

    Halves of surrogate pairs, which a model can write, become U+FFFD.
    """
    return json.loads(to_json(without_surrogates(values), inf_nan_mode="strings", fallback=str))


def _parameter(value: Any) -> str:
    """A value as MLflow takes it for a parameter: text that is not too long."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_PARAM_VALUE else f"{text[: MAX_PARAM_VALUE - 1]}…"


def _key(name: str) -> str:
    """`name` as MLflow takes it for metrics, params and tags: other characters become underscores."""
    return _ILLEGAL.sub("_", name)[:MAX_KEY]


def _file_name(name: str) -> str:
    """`name` as one file name: never a path, never hidden."""
    return _ILLEGAL.sub("_", name).replace("/", "_").lstrip(". ") or "_"


def tag_values(values: Mapping[str, str]) -> dict[str, str]:
    return {_key(name): redact(str(value))[:MAX_TAG_VALUE] for name, value in values.items()}
