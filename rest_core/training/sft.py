"""Supervised warm-up by transformers' Trainer, with loss on the response only."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments

from rest_core.algorithm.regions import Region, read_response
from rest_core.chat import encode_sample
from rest_core.config import ModelConfig, RegionName, SftConfig
from rest_core.disk import refuse_links
from rest_core.errors import UserError
from rest_core.model.batch import pad_rows
from rest_core.model.loading import with_lora
from rest_core.model.precision import compute_dtype
from rest_core.records import Sample
from rest_core.styles.formats import Tagged
from rest_core.styles.style import Style
from rest_core.training.distributed import on_first
from rest_core.training.sft_checkpoint import Hashes, newest
from rest_core.training.sft_mirror import SftMirror

IGNORED = -100  # label of positions without loss


def encode(
    tokenizer: Any,
    samples: Iterable[Sample],
    style: Style | None = None,
    region_weights: Mapping[RegionName, float] | None = None,
) -> Dataset:
    """Rows {input_ids, labels}: prompt and reference response; the prompt's labels are `IGNORED`.

    With `region_weights` (see `sft.region_weights`) rows have the `weights` of their tokens, 0 in the prompt.

    Raises:
        UserError: a sample cannot be encoded, see `encode_sample`.
    """
    parser = Tagged() if style is None else style.format
    rows = []
    for sample in samples:
        prompt, response = encode_sample(tokenizer, sample, style)
        row: dict[str, list[Any]] = {"input_ids": prompt + response, "labels": [IGNORED] * len(prompt) + response}
        if region_weights:
            _, regions = read_response(response, tokenizer, read=partial(parser.parse, tools=sample.tools))
            row["weights"] = [0.0] * len(prompt) + loss_weights(regions, region_weights).tolist()
        rows.append(row)
    return Dataset.from_list(rows)


def loss_weights(regions: torch.Tensor, region_weights: Mapping[RegionName, float]) -> torch.Tensor:
    """(T,) weights of a response's tokens by their regions (T,), of mean 1; where no token weighs anything, all 0."""
    given = {Region[name.upper()]: weight for name, weight in region_weights.items()}
    weights = torch.tensor([given.get(region, 1.0) for region in Region])[regions]
    return weights / weights.mean() if weights.any() else weights


def train(
    model: Any,
    tokenizer: Any,
    rows: Dataset,
    held_out: Dataset,
    config: SftConfig,
    model_config: ModelConfig,
    *,
    folder: Path,
    on_metrics: Callable[[dict[str, float], int], None],
    mirror: str | None = None,
) -> tuple[Any, dict[str, float]]:
    """Train `model` (float32) on reference responses; resumes from the newest checkpoint of an earlier attempt.

    Args:
        rows, held_out: see `encode`; `held_out` has no weights, and nothing is measured before and after without it.
        folder: where checkpoints go.
        mirror: where else they go, see `SftMirror`; None = nowhere.

    Returns:
        The trained model (with adapters where LoRA is configured), and its figures: samples, steps, final and mean
        training loss, validation loss before and after where there is a validation split.
    """
    if not rows:
        raise UserError("there are no samples for the warm-up: the dataset's split 'sft' is empty")
    if config.batch_size % min(config.micro_batch_size, config.batch_size):
        raise UserError(
            f"sft.micro_batch_size ({config.micro_batch_size}) does not divide sft.batch_size ({config.batch_size})"
        )
    refuse_links(folder.parent, folder)
    if config.region_weights:
        model.loss_function = _weighted(model.loss_function)
    if config.lora is not None:
        model = with_lora(model, config.lora)
    trainer = Trainer(
        model=model,
        args=_arguments(config, model_config, folder),
        train_dataset=rows,
        eval_dataset=held_out or None,
        data_collator=Collator(tokenizer.pad_token_id),
        callbacks=[_Report(on_metrics)],
    )
    # Its own reports are printed whether there is a terminal or not; `_Report` takes their place.
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    figures = {"sft/samples": float(len(rows))}
    if held_out:
        figures["sft/validation_loss_before"] = trainer.evaluate()["eval_loss"]
    trainer.add_callback(Hashes(folder))
    if mirror is not None and config.checkpoint_every is not None:
        copies = SftMirror(mirror, folder)
        copies.fetch()
        trainer.add_callback(copies)
    leftover = on_first(lambda: newest(folder))
    trainer.train(resume_from_checkpoint=None if leftover is None else str(leftover))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    if not losses or not math.isfinite(losses[-1]):
        raise UserError("the warm-up's loss is not a finite number: lower sft.learning_rate")
    figures |= {
        "sft/steps": float(trainer.state.global_step),
        "sft/loss": float(losses[-1]),
        "sft/mean_loss": sum(losses) / len(losses),  # earlier attempts' steps too; the Trainer leaves them out
    }
    if held_out:
        figures["sft/validation_loss_after"] = trainer.evaluate()["eval_loss"]
    return trainer.accelerator.unwrap_model(trainer.model), figures


def _weighted(plain: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A model's loss in which tokens weigh `shift_weights`, where a batch has them; it divides by what `plain` does."""

    def loss(logits: torch.Tensor, labels: torch.Tensor, vocab_size: int, **others: Any) -> torch.Tensor:
        weights = others.pop("shift_weights", None)
        if weights is None:  # held-out rows
            return plain(logits=logits, labels=labels, vocab_size=vocab_size, **others)
        targets = others["shift_labels"].flatten()
        each = cross_entropy(logits.float().flatten(0, 1), targets, ignore_index=IGNORED, reduction="none")
        count = others.get("num_items_in_batch")
        return (each * weights.flatten()).sum() / ((targets != IGNORED).sum() if count is None else count)

    return loss


def _arguments(config: SftConfig, model_config: ModelConfig, folder: Path) -> TrainingArguments:
    micro_batch_size = min(config.micro_batch_size, config.batch_size)
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=micro_batch_size,
        per_device_eval_batch_size=config.micro_batch_size,
        gradient_accumulation_steps=config.batch_size // micro_batch_size,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        learning_rate=config.learning_rate,
        warmup_steps=config.warmup_ratio,  # below 1 it is a share of all steps
        weight_decay=config.weight_decay,
        lr_scheduler_type="cosine",
        bf16=compute_dtype(model_config) is torch.bfloat16,
        use_cpu=not torch.cuda.is_available(),
        seed=config.seed,
        train_sampling_strategy="group_by_length",
        logging_steps=1,
        logging_nan_inf_filter=False,  # a loss that is not finite must be seen
        save_strategy="no" if config.checkpoint_every is None else "steps",
        save_steps=config.checkpoint_every or 500,
        save_total_limit=1,
        report_to=[],
        remove_unused_columns=False,
    )


class Collator:
    """Pads rows {input_ids, labels} on the right to the longest of the batch.

    The model gives logits from the first position whose next token has a loss, since a prompt's are not used.
    `shift_labels` (B, `logits_to_keep`) are the next tokens there; `shift_weights` their weights, where rows have any.
    """

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor | int]:
        width = max(len(row["input_ids"]) for row in rows)
        shape = (len(rows), width)
        ids, labels = torch.full(shape, self.pad_id), torch.full(shape, IGNORED)
        attention = torch.zeros(shape, dtype=torch.int64)
        for index, row in enumerate(rows):
            length = len(row["input_ids"])
            ids[index, :length] = torch.tensor(row["input_ids"])
            labels[index, :length] = torch.tensor(row["labels"])
            attention[index, :length] = 1
        following = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
        first = int((following != IGNORED).any(dim=0).to(torch.int8).argmax())
        batch: dict[str, torch.Tensor | int] = {
            "input_ids": ids,
            "labels": labels,
            "attention_mask": attention,
            "shift_labels": following[:, first:].contiguous(),
            "logits_to_keep": width - first,
        }
        if "weights" in rows[0]:
            weights = pad_rows([row["weights"] for row in rows], width + 1, torch.float32)
            batch["shift_weights"] = weights[:, first + 1 :].contiguous()
        return batch


class _Report(TrainerCallback):
    """Draws a progress bar, hands the Trainer's logs of each step on, and stops at a loss that is not finite."""

    def __init__(self, on_metrics: Callable[[dict[str, float], int], None]) -> None:
        self.on_metrics = on_metrics
        self.bar: tqdm[Any] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        hidden = None if state.is_world_process_zero else True  # None: where there is a terminal
        self.bar = tqdm(
            total=state.max_steps, initial=state.global_step, desc="sft-warmup", unit="step", disable=hidden
        )

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        values = {f"sft/{name}": float(value) for name, value in (logs or {}).items() if isinstance(value, int | float)}
        self.on_metrics(values, state.global_step)
        loss = values.get("sft/loss")
        if loss is not None and not math.isfinite(loss):
            raise UserError(f"step {state.global_step}: the warm-up's loss is not finite: lower sft.learning_rate")
        if self.bar is not None and loss is not None:
            self.bar.set_postfix(loss=f"{loss:.3f}")
            self.bar.update(state.global_step - self.bar.n)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.bar is not None:
            self.bar.close()
