"""From configured sources to a dataset folder: read, validate, drop repeats, measure, split, write."""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from rest_core import manifest
from rest_core.chat import encode_prompt, encode_response
from rest_core.config import DataConfig, DataSource
from rest_core.data import sources, store
from rest_core.data.dedupe import EvaluationOverlap, Traits, duplicates, traits
from rest_core.data.fields import Rejected
from rest_core.data.readers import Use
from rest_core.data.sources import SourceFile
from rest_core.data.split import chosen_groups, families
from rest_core.data.validate import problem
from rest_core.disk import disk_errors
from rest_core.errors import UserError
from rest_core.records import Sample
from rest_core.styles.style import Style

REPORT = "report.json"
_PARTIAL = ".partial"  # inside the output folder, which may be a mount point that nothing can be renamed onto
_USES: tuple[Use, ...] = ("sft", "rl")
_BATCH = 256
_EXAMPLES = 3  # rejections a reason that the report shows
_REASONS, _EXAMPLE_WIDTH = 20, 160  # shown of them on a terminal

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Candidate:
    """A valid sample on its way through the filters."""

    sample: Sample
    location: str
    use: tuple[Use, ...]
    traits: Traits
    prompt_tokens: int = 0
    reference_tokens: int = 0

    @property
    def place(self) -> str:
        """Where the user's data has it: file, record and the answer's field."""
        origin = self.sample.origin
        assert origin is not None
        return f"{origin.where}: field {origin.answer!r}"

    def row(self) -> dict[str, Any]:
        return store.to_row(self.sample, prompt_tokens=self.prompt_tokens, reference_tokens=self.reference_tokens)


class _Drops:
    """Counts of records read and dropped, by source and reason, with examples for people."""

    def __init__(self) -> None:
        self.read: Counter[str] = Counter()
        self.by_source: dict[str, Counter[str]] = defaultdict(Counter)
        self.examples: dict[str, list[str]] = defaultdict(list)

    def add(self, location: str, reason: str, example: str) -> None:
        self.by_source[location][reason] += 1
        if len(self.examples[reason]) < _EXAMPLES:
            self.examples[reason].append(example)

    def by_reason(self) -> Counter[str]:
        return sum(self.by_source.values(), Counter())


def prepare(
    data: DataConfig,
    *,
    style: Style,
    tokenizer: PreTrainedTokenizerBase,
    evaluation_questions: Mapping[str, Sequence[str]],
    out: Path,
) -> dict[str, Any]:
    """Write a dataset folder (`rest_core.data.store`) and `report.json` to `out`; returns the report.

    A record is dropped, and counted under one reason, when it cannot be read or does not validate, repeats an
    evaluation question, is too long, or repeats an earlier sample. Repeats are looked for among the samples of one
    use: the same sample may serve both sft and rl, and then stands on the same side of the split in both.

    Args:
        data: sources, limits and thresholds.
        style: of data that brings no prompt of its own; reads the references.
        tokenizer: measures lengths; needs a chat template.
        evaluation_questions: by name of set, see `rest_core.data.evaluation_sets`.
        out: folder to fill; an earlier run's dataset is replaced once the new dataset is complete.

    Returns:
        {"sources": {location: {"read": n, "dropped": {reason: n}}}, "dropped": {reason: n}, "splits": {name: n},
        "inputs": [{"location", "file", "format", "use", "sha256"}], "examples": {reason: [where and why]}}.

    Raises:
        UserError: a source cannot be read, a record is invalid while `data.on_invalid` is "stop", the tokenizer has
            no usable chat template, nothing usable is left, or `out` cannot be written.
    """
    drops = _Drops()
    located = [(source, sources.resolve(source)) for source in data.sources]
    candidates = list(_valid(located, data, style, drops))
    overlap = EvaluationOverlap(evaluation_questions, data.overlap_threshold)
    candidates = list(_without_overlap(candidates, overlap, drops))
    candidates = list(_within_length(candidates, data, style, tokenizer, drops))
    candidates = list(_without_duplicates(candidates, data.near_duplicate_threshold, drops))
    pools = {use: [candidate for candidate in candidates if use in candidate.use] for use in _USES}
    splits = _split(pools, data)
    for use in _USES:
        wanted = any(use in file.use for _, files in located for file in files)
        if wanted and not splits[use]:
            raise _nothing_left(use, located, drops)
    report = {
        "sources": {
            location: {"read": n, "dropped": dict(drops.by_source[location].most_common())}
            for location, n in drops.read.items()
        },
        "dropped": dict(drops.by_reason().most_common()),
        "splits": {name: len(members) for name, members in splits.items()},
        "prompt_style": style.name,
        "inputs": [_input(source, file) for source, files in located for file in files],
        "examples": dict(drops.examples),
    }
    _write(splits, report, out)
    log.info("prepared %s out of %d records", report["splits"], sum(drops.read.values()))
    return report


def describe_drops(report: Mapping[str, Any]) -> list[str]:
    """Why records were dropped, for people: a line for each reason, the most frequent first, each with an example."""
    dropped: Mapping[str, int] = report["dropped"]
    if not dropped:
        return []
    read = sum(source["read"] for source in report["sources"].values())
    lines = [f"dropped {sum(dropped.values())} of {read} (more examples: {REPORT}):"]
    for reason, count in list(dropped.items())[:_REASONS]:
        example = report["examples"][reason][0].replace(f": {reason}", "", 1).replace("\n", " ")
        lines.append(f"  {count:6}  {reason}, e.g. {example[:_EXAMPLE_WIDTH]}{'…' * (len(example) > _EXAMPLE_WIDTH)}")
    if len(dropped) > _REASONS:
        lines.append(f"          and for {len(dropped) - _REASONS} further reasons")
    return lines


def _nothing_left(use: Use, located: Iterable[tuple[DataSource, Sequence[SourceFile]]], drops: _Drops) -> UserError:
    names = ", ".join(source.location for source, _ in located)
    top = drops.by_reason().most_common(3)
    why = ", ".join(f"{reason}: {n}" for reason, n in top) or "all validate another use"
    example = f"; for example {drops.examples[top[0][0]][0]}" if top else ""
    return UserError(f"{names}: none of {sum(drops.read.values())} records is usable for {use} ({why}){example}")


def _valid(
    located: Iterable[tuple[DataSource, Sequence[SourceFile]]], data: DataConfig, style: Style, drops: _Drops
) -> Iterator[_Candidate]:
    seen: Counter[str] = Counter()
    for source, files in located:
        entries = _limited(files, source.limit, style)
        for file, entry in tqdm(entries, desc=f"reading {source.location}", unit=" records", disable=None, leave=False):
            drops.read[source.location] += 1
            checked = entry if isinstance(entry, Rejected) else _checked(entry, source.location, file.use, style)
            if isinstance(checked, Rejected):
                if data.on_invalid == "stop":
                    raise UserError(f"{checked}; mend the record, or set data.on_invalid=drop")
                drops.add(source.location, checked.reason, str(checked))
                continue
            seen[checked.sample.id] += 1
            if (number := seen[checked.sample.id]) > 1:  # files of one name in different directories
                checked = replace(checked, sample=replace(checked.sample, id=f"{checked.sample.id}~{number}"))
            yield checked


def _checked(sample: Sample, location: str, use: tuple[Use, ...], style: Style) -> _Candidate | Rejected:
    reference = style.parse(sample.reference, sample.tools)
    return problem(sample, reference) or _Candidate(sample, location, use, traits(sample, reference))


def _limited(
    files: Sequence[SourceFile], limit: int | None, style: Style
) -> Iterator[tuple[SourceFile, Sample | Rejected]]:
    """The entries of a source's files; `limit` holds for each format, so that in a folder none uses up the others'."""
    for format in dict.fromkeys(file.format for file in files):
        same = (file for file in files if file.format == format)
        yield from islice(((file, entry) for file in same for entry in file.read(style)), limit)


def _without_overlap(
    candidates: Iterable[_Candidate], overlap: EvaluationOverlap, drops: _Drops
) -> Iterator[_Candidate]:
    for candidate in candidates:
        name = overlap.find(candidate.traits)
        if name is None:
            yield candidate
        else:
            drops.add(candidate.location, f"overlaps {name}", candidate.place)


def _within_length(
    candidates: Sequence[_Candidate],
    data: DataConfig,
    style: Style,
    tokenizer: PreTrainedTokenizerBase,
    drops: _Drops,
) -> Iterator[_Candidate]:
    for start in tqdm(range(0, len(candidates), _BATCH), desc="measuring lengths", disable=None, leave=False):
        batch = candidates[start : start + _BATCH]
        prompts = [
            len(encode_prompt(tokenizer, candidate.sample.prompt, style, candidate.sample.tools)) for candidate in batch
        ]
        references = [_reference_tokens(tokenizer, candidate) for candidate in batch]
        for candidate, prompt, reference in zip(batch, prompts, references, strict=True):
            if prompt > data.max_prompt_tokens:
                reason, length, name = "prompt too long", prompt, "max_prompt_tokens"
            elif reference > data.max_response_tokens:
                reason, length, name = "reference too long", reference, "max_response_tokens"
            else:
                yield replace(candidate, prompt_tokens=prompt, reference_tokens=reference)
                continue
            drops.add(
                candidate.location,
                reason,
                f"{candidate.place}: {length} tokens, data.{name} is {getattr(data, name)}",
            )


def _reference_tokens(tokenizer: PreTrainedTokenizerBase, candidate: _Candidate) -> int:
    try:
        return len(encode_response(tokenizer, candidate.sample.reference))
    except UserError as error:  # the reference cannot go on from what the chat template opens
        raise UserError(f"{candidate.place}: {error}") from None


def _without_duplicates(candidates: Sequence[_Candidate], threshold: float, drops: _Drops) -> Iterator[_Candidate]:
    """Candidates without the uses in which they repeat an earlier one; those that lose every use are dropped."""
    lost: dict[int, dict[Use, str]] = defaultdict(dict)
    found: dict[tuple[int, ...], dict[int, str]] = {}  # both uses mostly have the same members
    for use in _USES:
        members = tuple(place for place, candidate in enumerate(candidates) if use in candidate.use)
        if members not in found:
            found[members] = duplicates([candidates[place].traits for place in members], threshold)
        for position, reason in found[members].items():
            lost[members[position]][use] = reason
    for place, candidate in enumerate(candidates):
        left = tuple(use for use in candidate.use if use not in lost[place])
        if left == candidate.use:
            yield candidate
            continue
        reason = next(iter(lost[place].values()))
        if left:
            reason = f"{reason}, kept for {' and '.join(left)}"
            yield replace(candidate, use=left)
        drops.add(candidate.location, reason, candidate.place)


def _split(pools: Mapping[Use, Sequence[_Candidate]], data: DataConfig) -> dict[str, list[_Candidate]]:
    """Training and validation for each use. A family of samples stays together, in both uses."""
    family_of = families((member.traits.opening, member.traits.calls) for pool in pools.values() for member in pool)
    found = {use: [family_of[member.traits.opening] for member in pool] for use, pool in pools.items()}
    chosen = (chosen_groups(names, data.validation_fraction, data.seed) for names in found.values())
    held_out: set[str] = set().union(*chosen)
    left_out: dict[Use, set[str]] = {"sft": set(), "rl": set()}
    shared = (set(found["sft"]) & set(found["rl"])) - held_out
    if data.rl_fraction is not None and len(shared) > 1:
        for_rl = chosen_groups([name for name in found["rl"] if name in shared], data.rl_fraction, data.seed)
        left_out = {"sft": for_rl, "rl": shared - for_rl}
    splits: dict[str, list[_Candidate]] = {}
    for use, pool in pools.items():
        named = list(zip(pool, found[use], strict=True))
        without = held_out | left_out[use]
        splits[use] = [member for member, name in named if name not in without]
        splits[f"{use}_validation"] = [member for member, name in named if name in held_out]
    return splits


def _input(source: DataSource, file: SourceFile) -> dict[str, Any]:
    return {
        "location": source.location,
        "file": file.name if file.path is None else file.path.name,
        "format": file.format,
        "use": list(file.use),
        "sha256": None if file.path is None else manifest.sha256_file(file.path),
    }


def _write(splits: Mapping[str, Sequence[_Candidate]], report: Mapping[str, Any], out: Path) -> None:
    """Write to a directory inside `out`, then move each file; the one that marks the dataset as whole moves last."""
    aside = out / _PARTIAL
    with disk_errors(out):
        try:
            out.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(aside, ignore_errors=True)
            store.save({name: [candidate.row() for candidate in members] for name, members in splits.items()}, aside)
            (aside / REPORT).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            (out / store.DESCRIPTION).unlink(missing_ok=True)
            for path in sorted(aside.iterdir(), key=lambda path: path.name == store.DESCRIPTION):
                target = out / path.name
                if target.is_dir():
                    shutil.rmtree(target)
                path.replace(target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
