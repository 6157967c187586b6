"""What a case.yaml may say, and how each kind of case is run and held against it.

A kind is a model with the fields of its case.yaml and a method `check(folder, scratch)` that runs the case and asserts
what is right. To add one: write the model with `kind: Literal["NAME"]` of its own, and add it to `Case` below.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import datasets
import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from rest_core import response
from rest_core.algorithm.regions import Region, read_response
from rest_core.algorithm.rewards import RewardScheme, tool_reward
from rest_core.chat import encode_response
from rest_core.config import DataSource, ModelConfig
from rest_core.data.sources import resolve
from rest_core.data.validate import problem
from rest_core.errors import UserError
from rest_core.model.loading import load_tokenizer
from rest_core.records import Sample, ToolCall
from rest_core.styles.create import built_in_style

Calls = list[dict[str, dict[str, Any]]]  # [{tool: arguments}, …]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ExpectedSample(Part):
    """A sample; what is not named is not looked at, except for calls and words: none named are none."""

    calls: Calls = []
    response: str | None = None
    think: str | None = None
    prompt_has: list[str] = []
    prompt_lacks: list[str] = []
    turns: list[str] | None = None  # of the prompt behind the system message: "role: content"
    parameters: dict[str, Any] | None = None  # of the first tool

    def check(self, sample: Sample) -> None:
        said = response.parse(sample.reference)
        assert said.well_formed, said.problems
        assert list(said.calls) == _calls(self.calls)
        assert said.response == self.response
        if self.think is not None:
            assert said.think == self.think
        prompt = "\n".join(message.content for message in sample.prompt)
        for text in self.prompt_has:
            assert text in prompt
        for text in self.prompt_lacks:
            assert text not in prompt
        if self.turns is not None:
            assert [f"{message.role}: {message.content}" for message in sample.prompt[1:]] == self.turns
        if self.parameters is not None:
            assert sample.tools[0].parameters == self.parameters


class ExpectedDrop(Part):
    reason: str
    at: str  # what follows the folder's name: "input.jsonl: line 2: field 'tools'"


class Source(Part):
    """A file or folder of the case, and what comes of it: samples and drops in their order, or an error."""

    location: str
    files: list[str] | None = None  # that are read, below the location
    format: str | None = None  # that is found
    style: Literal["compact", "toolrl"] = "compact"
    samples: list[ExpectedSample] = []
    dropped: list[ExpectedDrop] = []
    error: str | None = None  # a pattern in the `UserError`
    warns: str | None = None  # a pattern in the warnings

    def check(self, root: Path, caplog: pytest.LogCaptureFixture) -> None:
        location = root / self.location
        caplog.clear()
        if self.error is not None:
            with pytest.raises(UserError, match=self.error):
                resolve(DataSource(location=str(location)))
            return
        with caplog.at_level(logging.WARNING):
            found = resolve(DataSource(location=str(location)))
        assert bool(caplog.text) == (self.warns is not None), caplog.text
        assert self.warns is None or re.search(self.warns, caplog.text)
        if self.files is not None:
            assert [str(file.path.relative_to(location)) for file in found if file.path] == self.files
        if self.format is not None:
            assert {file.format for file in found} == {self.format}
        entries = [entry for file in found for entry in file.read(built_in_style(self.style))]
        checked = [
            (problem(entry, response.parse(entry.reference)) or entry) if isinstance(entry, Sample) else entry
            for entry in entries
        ]
        drops = [entry for entry in checked if not isinstance(entry, Sample)]
        assert [(drop.reason, drop.where.removeprefix(f"{root}/")) for drop in drops] == [
            (drop.reason, drop.at) for drop in self.dropped
        ], [str(drop) for drop in drops]
        kept = [entry for entry in checked if isinstance(entry, Sample)]
        assert len(kept) == len(self.samples)
        for sample, wanted in zip(kept, self.samples, strict=True):
            wanted.check(sample)


class MadeFile(Part):
    """A file that `datasets` writes from rows of JSON lines when the case is run."""

    rows: str
    by: Literal["Dataset.from_list", "load_dataset"]

    def write(self, folder: Path, target: Path) -> None:
        rows = folder / self.rows
        if self.by == "load_dataset":
            cache = str(target.with_suffix(".cache"))
            made = datasets.load_dataset("json", data_files=str(rows), split="train", cache_dir=cache)
        else:
            made = datasets.Dataset.from_list([json.loads(line) for line in rows.read_text("utf-8").splitlines()])
        made.to_parquet(target)


class DataCase(Part):
    """Data as somebody has it: every source of the case is read, validated and compared."""

    kind: Literal["data"]
    says: str
    make: dict[str, MadeFile] = {}
    sources: list[Source] = Field(min_length=1)

    def check(self, folder: Path, scratch: Path, caplog: pytest.LogCaptureFixture) -> None:
        for name, made in self.make.items():
            made.write(folder, scratch / name)
        for source in self.sources:
            source.check(scratch if source.location in self.make else folder, caplog)


class ResponseCase(Part):
    """A response in a file: what the one parser reads in it."""

    kind: Literal["response"]
    says: str
    text: str  # name of the file
    calls: Calls
    well_formed: bool

    def check(self, folder: Path, scratch: Path, caplog: pytest.LogCaptureFixture) -> None:
        said = response.parse((folder / self.text).read_text(encoding="utf-8"))
        assert list(said.calls) == _calls(self.calls)
        assert said.well_formed == self.well_formed, said.problems


class TokenizerCase(Part):
    """A response as ids of a tokenizer: what is read in them, what is learnt of the reference, and what it is worth."""

    kind: Literal["tokenizer"]
    says: str
    tokenizer: str  # name of the folder
    sampled: str  # name of the file with the text of the sampled ids
    reference: str  # name of the file
    calls: Calls
    learnt: str  # text of the ids that supervised training learns, the end token aside
    best: list[RewardScheme]  # rewards that are those of the reference

    def check(self, folder: Path, scratch: Path, caplog: pytest.LogCaptureFixture) -> None:
        tokenizer = load_tokenizer(folder / self.tokenizer, ModelConfig())
        sampled, reference = (
            (folder / name).read_text(encoding="utf-8").removesuffix("\n") for name in (self.sampled, self.reference)
        )
        ids = [*tokenizer(sampled, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        said, regions = read_response(ids, tokenizer)
        assert list(said.calls) == _calls(self.calls)
        assert said.well_formed, said.problems
        assert {Region.THINK, Region.FORMAT, Region.NAME, Region.ARGUMENTS} <= set(regions.tolist())
        assert tokenizer.decode(encode_response(tokenizer, reference)[:-1]) == self.learnt
        for scheme in self.best:
            wanted = tool_reward(reference, reference, scheme=scheme, step=1)
            assert tool_reward(said, reference, scheme=scheme, step=1) == wanted


Case = Annotated[DataCase | ResponseCase | TokenizerCase, Field(discriminator="kind")]
_CASE: TypeAdapter[Case] = TypeAdapter(Case)


def read_case(folder: Path) -> Case:
    return _CASE.validate_python(yaml.safe_load((folder / "case.yaml").read_text(encoding="utf-8")))


def _calls(named: Calls) -> list[ToolCall]:
    return [ToolCall(name, arguments) for call in named for name, arguments in call.items()]
