"""The model card: what a registered model is, where it comes from, how good it is and how to load it (Markdown)."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rest_core.credentials import redact, redacted, without_credentials
from rest_core.evaluation.evaluation_report import code
from rest_core.operations.catalogue import benchmarks
from rest_core.operations.catalogue_entry import bound
from rest_core.serving.plugin import PLUGIN_FILE

_LONGEST = 160  # characters of a sample's question and answer


@dataclass(frozen=True)
class DataFact:
    """A dataset that the model has been trained on."""

    name: str  # "train", "sft" …
    source: str
    sha256: str  # of its content, hex
    rows: int


@dataclass(frozen=True)
class Sample:
    """An answer of the model in an evaluation."""

    question: str
    answer: str
    verdict: str


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model when it is registered."""

    base_model: str
    pipeline_run: str
    metrics: Mapping[str, float]  # e.g. "bfcl/call_accuracy": 0.41
    evaluations: Mapping[str, str]  # what "bfcl" was measured on: subset, size and seed, in words that are compared
    data: tuple[DataFact, ...]
    config: Mapping[str, Any]  # the configuration that made it: sections of plain values
    git_commit: str | None
    image: str | None = None  # reference of the image that it was trained in
    evaluated: str | None = None  # SHA-256 over the evaluations, its own and those beside it
    limits: tuple[str, ...] = field(default=())  # what a reader must not expect of it
    samples: tuple[Sample, ...] = ()
    training_run: str | None = None  # MLflow's id, with its experiment's before it: "1/0123…"


def model_card(name: str, facts: ModelFacts, *, use: str, verdict: str | None = None) -> str:
    """The card as Markdown, without title and configuration: what a registry shows beside the name.

    Args:
        name: of the registered model.
        facts: what is known of it.
        use: how it is used, as Markdown: `use_of_version` or `use_of_folder`.
        verdict: what the gate says of it, in one line.
    """
    parts = [
        f"**{verdict}**" if verdict else "",
        f"`{redact(facts.base_model)}` trained for tool use with ResT (reshaped token-level policy gradients, "
        f"arXiv 2509.21826) by the pipeline run “{facts.pipeline_run}”{_training_run(facts.training_run)}.",
        "## Evaluation",
        *_warnings(facts.metrics),
        *_main_figures(facts.metrics),
        _list([f"**{key}**: {text}" for key, text in sorted(facts.evaluations.items())]),
        "## How to use it",
        use,
        *_samples(facts.samples),
        "## Training data",
        _table(
            ("data", "source", "rows", "SHA-256"),
            [(one.name, redact(one.source), f"{one.rows:,}", f"`{one.sha256}`") for one in facts.data],
        ),
        "## Limits",
        _list(list(facts.limits) or ["None were recorded: read the evaluation before you rely on it."]),
        "## Origin",
        _list(
            [
                f"git commit: `{facts.git_commit or 'unknown'}`",
                f"image: `{facts.image or 'unknown (not run from an image)'}`",
                f"licence: that of `{redact(facts.base_model)}` and those of the data apply",
            ]
        ),
        "## All figures",
        _table(("metric", "value"), [(name, f"{value:.4f}") for name, value in sorted(facts.metrics.items())]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def use_of_version(name: str, version: str, tracking_uri: str) -> str:
    """How a registered version is used: commands that work as they stand, where this project is installed."""
    return f"""\
```bash
export MLFLOW_TRACKING_URI={shlex.quote(without_credentials(tracking_uri))}
rest serve {name}@{version}    # vLLM behind OpenAI's API: tools= in, tool_calls out
rest chat {name}@{version}     # in this terminal, without vLLM
mlflow artifacts download --artifact-uri models:/{name}/{version} --dst-path {name}-{version}
```"""


def use_of_folder(*, own_parser: bool) -> str:
    """How a checkpoint is used, from within its folder."""
    parser = f"rest --tool-parser-plugin ./{PLUGIN_FILE}" if own_parser else "FAMILY"
    which = "" if own_parser else " FAMILY is vLLM's name for the parser of this model's family."
    return f"""\
The folder is a flat Hugging Face checkpoint. With vLLM, of which `rest serve FOLDER` prints and runs the whole command:

```bash
vllm serve . --enable-auto-tool-choice --tool-call-parser {parser}
```

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer, model = AutoTokenizer.from_pretrained("."), AutoModelForCausalLM.from_pretrained(".")
```{which}"""


def _warnings(metrics: Mapping[str, float]) -> Iterator[str]:
    """What weakens the figures, before them."""
    parts = sorted(name.partition("/")[0] for name, value in metrics.items() if name.endswith("/subset") and value)
    if parts:
        yield f"SUBSET: a part of the questions of {', '.join(parts)} only; the intervals say how far that carries."


def _main_figures(metrics: Mapping[str, float]) -> Iterator[str]:
    """Those of the benchmarks side by side, with their 95 % intervals."""
    main = [figure.metric for stage in benchmarks() for figure in stage.figures if figure.metric in metrics]
    if not main:
        return
    yield "Read these together, never their mean:"
    rows = []
    for name in main:
        ends = [metrics[end] for end in (bound(name, "low"), bound(name, "high")) if end in metrics]
        rows.append((name, f"{metrics[name]:.4f}", " – ".join(f"{end:.4f}" for end in ends)))
    yield _table(("metric", "value", "95 % interval"), rows)


def _samples(samples: Sequence[Sample]) -> Iterator[str]:
    if samples:
        rows = [(_code(one.question), _code(one.answer), one.verdict) for one in samples]
        yield "## Sample answers"
        yield _table(("question", "answer", "verdict"), rows)


def _code(text: str) -> str:
    return code(text, longest=_LONGEST)


def _training_run(run: str | None) -> str:
    if run is None:
        return ""
    experiment, _, run_id = run.partition("/")
    return f" ([training](#/experiments/{experiment}/runs/{run_id}))"


def readme(name: str, facts: ModelFacts, *, own_parser: bool) -> str:
    """The card as a checkpoint's README.md: with the front matter that model hubs read, and the configuration.

    Args:
        own_parser: whether vLLM's parser for the project's format lies in the checkpoint.
    """
    card = model_card(name, facts, use=use_of_folder(own_parser=own_parser))
    config = json.dumps(redacted(facts.config), indent=1, ensure_ascii=False, default=str)
    return (
        f"---\nbase_model: {json.dumps(redact(facts.base_model))}\nlibrary_name: transformers\n"
        "pipeline_tag: text-generation\ntags: [tool-use, function-calling, rest]\n---\n\n"
        f"# {name}\n\n{card}\n## Configuration\n\n```json\n{config}\n```\n"
    )


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    if not rows:
        return "Nothing was recorded."
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _list(items: list[str]) -> str:
    return "\n".join(f"- {' '.join(item.split())}" for item in items)
