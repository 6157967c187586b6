"""ResT in TRL's GRPOTrainer: token weights on its advantages, and our reward as one of its reward functions.

Everything else is TRL's: sampling, groups, advantages, clipping, loss, optimizer, checkpoints. TRL's loss takes
advantages of shape (B, T) as well as (B,), and all that this adapter does to it is to multiply each response's
advantage by its token weights. With all weights 1 a training is TRL's own, to the bit (tested).

Needs the optional extra `trl`; nothing else in the project imports this module.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOTrainer

from rest_core.algorithm.entropy import region_sums
from rest_core.algorithm.regions import Region, batch_regions, read_response
from rest_core.algorithm.rest import ResT
from rest_core.algorithm.rewards import RewardScheme, reward_ranges, tool_reward
from rest_core.algorithm.weights import weight_settings
from rest_core.chat import Opening, continuation, opened_by, opening
from rest_core.config import RlConfig, WeightMean, WeightsConfig
from rest_core.errors import UserError

log = logging.getLogger(__name__)

# Losses that are sums over tokens of advantage times something that does not depend on the advantage's size: there a
# weight on a token's advantage is a weight on its gradient.
LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "vespo")
STATE_FILE = "rest_state.json"
_OF_TRL = {"completions", "log_extra", "log_metric"}  # what reward functions get besides the columns
_NOT_TRUNCATED: dict[str, tuple[Any, ...]] = {
    "top_p": (None, 1.0),
    "top_k": (None, 0, -1),
    "min_p": (None, 0.0),
    "repetition_penalty": (None, 1.0),
}


def rest_reward(
    tokenizer: Any, scheme: RewardScheme = "rest", *, reference: str = "reference"
) -> Callable[..., list[float]]:
    """Our reward (format + correctness) as a reward function of TRL.

    Args:
        tokenizer: the policy's; the response is read from the sampled ids, not from decoded text.
        scheme: "toolrl", "rest" or "strict" (`rest_core.algorithm.rewards`). The ranges of `rest` move with the
            trainer's step, counted in optimizer steps from 1.
        reference: the dataset's column with the wanted response, in the project's response format.
    """
    reward_ranges(scheme, 0)  # an unknown scheme is refused now, not after the first rollout
    opening(tokenizer)  # and so is a tokenizer that cannot be used

    def rest_reward(
        prompts: Sequence[Any], completion_ids: Sequence[Sequence[int]], trainer_state: Any = None, **columns: Any
    ) -> list[float]:
        if reference not in columns:
            raise UserError(
                f"rest_reward: the dataset has no column {reference!r} with the wanted response (it has: "
                f"{', '.join(sorted(columns.keys() - _OF_TRL)) or 'none'}); name it: rest_reward(..., reference=NAME)"
            )
        step = 1 if trainer_state is None else trainer_state.global_step + 1
        rewards = []
        for prompt, ids, wanted in zip(prompts, completion_ids, columns[reference], strict=True):
            opened = _opened(prompt, tokenizer)
            continuation(tokenizer, wanted, opened)  # refused where no response could be like it
            response, _ = read_response(ids, tokenizer, opened)
            rewards.append(tool_reward(response, wanted, scheme=scheme, step=step).total)
        return rewards

    return rest_reward


def _opened(prompt: Any, tokenizer: Any) -> Opening:
    """What a prompt of the dataset opens: a text by itself, a conversation by the chat template."""
    return opened_by(tokenizer, prompt) if isinstance(prompt, str) else opening(tokenizer)


class RestGRPOTrainer(GRPOTrainer):
    """TRL's GRPOTrainer with ResT's token weights on the advantages of training; evaluation is left as it is.

    A step, for the curriculum, is an optimizer step of TRL, of `state.max_steps`.

    Args:
        token_weights: a scheme's name, or its settings.
        weight_mean: what weights have mean 1 over (`rest_core.algorithm.weights.token_weights`).
        entropy_momentum: decay of the running region entropies, which come from the training forward. In a rollout
            with a region that no such forward has seen (`paper`), or in each (`high_entropy`, `token_entropy`), one
            more forward gives those of the sampling policy.

    Raises:
        UserError: settings under which token weights would not mean what they say.
    """

    args: Any
    model: Any

    def __init__(
        self,
        *args: Any,
        token_weights: str | WeightsConfig = "paper",
        weight_mean: WeightMean = "trained",
        entropy_momentum: float = 0.9,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        weights = weight_settings(token_weights)
        config = RlConfig(weights=weights, weight_mean=weight_mean, entropy_momentum=entropy_momentum)
        self.algorithm = ResT(config, self._tokenizer)
        self.region_entropy = self.algorithm.entropy
        self._entropy_sums = torch.zeros(2, len(Region), dtype=torch.float64)  # sums and counts, since the last update
        self._entropies: Tensor | None = None  # (b, T) of the last forward that computed them
        self._check_settings()

    def _check_settings(self) -> None:
        if self.loss_type not in LOSS_TYPES:
            raise UserError(
                f"GRPOConfig.loss_type is {self.loss_type!r}: token weights have no meaning in it; "
                f"choose one of {', '.join(LOSS_TYPES)}"
            )
        if self.importance_sampling_level != "token":
            raise UserError(
                f"GRPOConfig.importance_sampling_level is {self.importance_sampling_level!r}: a ratio of the whole "
                "sequence spreads each token's weight over all of them; choose 'token'"
            )
        given = {name: getattr(self.args, name) for name in _NOT_TRUNCATED} | (self.args.generation_kwargs or {})
        for name, neutral in _NOT_TRUNCATED.items():
            if given[name] not in neutral:
                raise UserError(
                    f"GRPOConfig.{name} is {given[name]}: training samples from the policy's whole distribution, "
                    "anything else biases the ratio; leave it out"
                )
        if self._is_vlm:
            raise UserError("RestGRPOTrainer trains text models: regions are found on the ids of a tokenizer")
        opening(self._tokenizer)  # refused now where it cannot be used
        if self.tools or self.environment_factories is not None:
            raise UserError(
                "RestGRPOTrainer weights single responses: tools and environment_factory, where a completion has "
                "several turns, are not supported"
            )

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if not self.model.training:
            return output
        if "tool_mask" in output:
            raise UserError("RestGRPOTrainer: rollout_func returned a mask of several turns, which is not supported")
        ids, mask = output["completion_ids"], output["completion_mask"].bool()  # (B, T)
        opened = self._opened([row["prompt"] for row in inputs], output)
        output["regions"] = batch_regions(ids, mask, self._tokenizer, opened).to(ids.device)
        output["advantages"] = output["advantages"][:, None] * self._token_weights(output)  # (B, T)
        return output

    def _opened(self, prompts: Sequence[Any], output: dict[str, Any]) -> list[Opening]:
        """What each of the B prompts opens, by the dataset, as `rest_reward` has it; the ids must say the same."""
        expected = [_opened(prompt, self._tokenizer) for prompt in prompts]
        rows = zip(output["prompt_ids"], output["prompt_mask"].bool(), expected, strict=True)
        for ids, mask, usual in rows:
            found = opened_by(self._tokenizer, ids[mask].tolist())
            if found != usual:
                raise UserError(
                    f"a prompt opens {found} in its ids, but {usual} by the tokenizer's chat template: leave "
                    "GRPOConfig.chat_template_kwargs out and give the tokenizer the chat template that is meant"
                )
        return expected

    def _token_weights(self, output: dict[str, Any]) -> Tensor:
        """(B, T) weights of this process's responses, made of those of all processes at once."""
        self._observe_entropies()
        ids = self._everyone(output["completion_ids"])
        mask = self._everyone(output["completion_mask"]).bool()
        regions = self._everyone(output["regions"], fill=Region.OTHER)
        entropies = None
        if self.algorithm.wants_entropies(regions, mask):
            entropies = self._everyone(self._sampling_entropies(output))
        step, total = self.state.global_step + 1, self.state.max_steps
        weights = self.algorithm.weights(ids, regions, mask, entropies, step, total_steps=total)
        rows, width = output["completion_ids"].shape
        sums, counts = region_sums(weights, regions, mask)
        self._log_regions("weight", sums / counts, counts)
        return weights[self.accelerator.process_index * rows :][:rows, :width]

    def _sampling_entropies(self, output: dict[str, Any]) -> Tensor:
        """(B, T) entropies in nats of the policy that has just sampled."""
        with torch.no_grad():
            _, entropies, _ = super()._get_per_token_logps_and_entropies(
                self.model,
                torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1),
                torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1),
                output["completion_ids"].shape[1],
                batch_size=self.args.per_device_train_batch_size,
                compute_entropy=True,
            )
        assert entropies is not None  # asked for
        return entropies

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        result = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        self._entropies = result[1]
        return result

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        loss: Tensor = super()._compute_loss(model, inputs)
        entropies, self._entropies = self._entropies, None
        if "regions" in inputs and entropies is not None:
            # Of the rows that the policy gradient is made of, as the project's own trainer.
            signal = (inputs["advantages"] != 0).any(dim=1, keepdim=True)  # (b, 1)
            sums = region_sums(entropies, inputs["regions"], inputs["completion_mask"].bool() & signal)
            self._entropy_sums += torch.stack(sums)
        return loss

    def _observe_entropies(self) -> None:
        """Take what the training forwards of all processes have shown since the last time into the running means."""
        sums, counts = self.accelerator.reduce(self._entropy_sums.to(self.accelerator.device), "sum").cpu()
        self._entropy_sums.zero_()
        if counts.sum():
            self._log_regions("entropy", self.algorithm.observe(sums, counts), counts)

    def _log_regions(self, what: str, means: Tensor, counts: Tensor) -> None:
        for region in Region:
            if counts[region]:
                self._metrics["train"][f"rest/{what}/{region.name.lower()}"].append(float(means[region]))

    def _everyone(self, rows: Tensor, fill: int = 0) -> Tensor:
        """Rows (B, T) of all processes, padded to the widest, in the order of the processes."""
        padded = self.accelerator.pad_across_processes(rows, dim=1, pad_index=fill)
        gathered: Tensor = self.accelerator.gather(padded)
        return gathered

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self._observe_entropies()  # what is not taken in now would be missing after a resume
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            (folder / STATE_FILE).write_text(json.dumps(self.region_entropy.state()), encoding="utf-8")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        path = Path(checkpoint) / STATE_FILE
        if path.is_file():
            self.region_entropy.load_state(json.loads(path.read_text(encoding="utf-8")))
        else:
            log.warning("%s has no %s: the running region entropies start from nothing", checkpoint, STATE_FILE)
