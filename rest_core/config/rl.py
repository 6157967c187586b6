"""The section `rl`: token weights, loss, reward, the engine of the rollouts, and the training itself."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from rest_core.config.address import Address
from rest_core.config.section import Section


class LoraConfig(Section):
    r: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: str | tuple[str, ...] = "all-linear"
    keep_adapter: bool = False
    """hand on the adapter too, in `adapter/` beside the merged weights, as peft reads it"""


EntropyRule = Literal["variance", "inverse"]


class _Clipped(Section):
    """Weights that are clipped to [w_min, w_max]."""

    w_min: float = Field(1.0, gt=0)
    w_max: float = Field(16.0, gt=0)

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.w_min > self.w_max:
            raise ValueError(f"w_min ({self.w_min}) is above w_max ({self.w_max})")
        return self


class PaperWeights(_Clipped):
    """Scheme `paper`. The bounds and slopes are not published: these are ours (docs/method.md says how chosen)."""

    scheme: Literal["paper"] = "paper"
    rule: EntropyRule = "variance"
    """weight of a region of entropy H: variance = 1 / (1 - e^-H), inverse = 1 / H"""
    alpha_format: float = Field(8.0, ge=0)
    """how much FORMAT loses over the whole training"""
    alpha_arguments: float = Field(4.0, ge=0)
    """how much ARGUMENTS gains"""
    alpha_think: float = Field(4.0, ge=0)
    """how much THINK gains"""
    floor: float = Field(1.0, gt=0)
    """weight of RESPONSE and OTHER, of the mean over the response's other tokens; above 0 so that malformed output and
    the end of a response are trained"""
    curriculum: bool = True
    """false = entropy weights only"""


class OfficialWeights(Section):
    scheme: Literal["official"] = "official"


class UniformWeights(Section):
    scheme: Literal["uniform"] = "uniform"


class MaskOnlyWeights(Section):
    scheme: Literal["mask_only"] = "mask_only"


class NameBoostWeights(Section):
    scheme: Literal["name_boost"] = "name_boost"
    boost: float = Field(2.0, gt=0)


class HighEntropyWeights(Section):
    scheme: Literal["high_entropy"] = "high_entropy"
    top_share: float = Field(0.2, gt=0, le=1)


class TokenEntropyWeights(_Clipped):
    """Scheme `token_entropy`: the paper's rule with each token's own entropy in place of its region's mean."""

    scheme: Literal["token_entropy"] = "token_entropy"
    rule: EntropyRule = "variance"


class FrequencyWeights(_Clipped):
    scheme: Literal["frequency"] = "frequency"
    w_min: float = Field(0.5, gt=0)
    w_max: float = Field(4.0, gt=0)


WeightsConfig = (
    PaperWeights
    | OfficialWeights
    | UniformWeights
    | MaskOnlyWeights
    | NameBoostWeights
    | HighEntropyWeights
    | TokenEntropyWeights
    | FrequencyWeights
)
WeightMean = Literal["trained", "weighted"]


class LossConfig(Section):
    surrogate: Literal["clip", "gspo", "cispo"] = "clip"
    """clip = GRPO's (PPO's); gspo = one ratio for the whole sequence, in its token form (arXiv 2507.18071); cispo = the
    clipped ratio as a constant factor of the log-prob (arXiv 2506.13585)"""
    clip_low: float = Field(0.2, gt=0, le=1)
    """the ratio is clipped at 1 - this; 1 = no lower bound"""
    clip_high: float = Field(0.2, gt=0)
    """and at 1 + this"""
    dual_clip: float | None = Field(3.0, gt=1)
    """lower bound c for negative advantages; null = off"""
    aggregation: Literal["sequence_mean", "token_mean", "constant_length"] = "sequence_mean"
    """sequence_mean = the paper's objective; token_mean = the authors' code; constant_length = each response's sum
    divided by `length` (Dr. GRPO, arXiv 2503.20783)"""
    length: int | None = Field(None, ge=1)
    """tokens that constant_length divides by; null = rl.max_response_tokens"""
    importance_cap: float | None = Field(2.0, ge=1)
    """bound of the importance weight that corrects for the engine's log-probs; null = none"""
    kl_coefficient: float = Field(0.0, ge=0)
    """penalty towards the reference policy (k3 estimator)"""
    entropy_coefficient: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.length is not None and self.aggregation != "constant_length":
            raise ValueError(
                f"length={self.length} belongs to aggregation=constant_length, which alone divides by it; leave it "
                f"out with {self.aggregation}"
            )
        if self.surrogate == "cispo" and self.dual_clip is not None:
            raise ValueError(
                "surrogate=cispo has no dual clip, since its ratio is bounded for negative advantages too; set "
                "dual_clip=null"
            )
        return self


class RewardFunction(Section):
    """A reward function in TRL's plain-function contract (docs/adopting.md)."""

    function: str
    """module:function, importable where the training runs"""
    weight: float = Field(1.0, allow_inf_nan=False)
    """what its reward is multiplied by"""
    columns: dict[str, str] = Field({})
    """more names for the sample's columns, where the function expects others: {solution: reference}"""


class OverlongPenalty(Section):
    """DAPO's soft over-long punishment (arXiv 2503.14476)."""

    buffer: int = Field(ge=1)
    """tokens before rl.max_response_tokens at which the penalty begins, from 0 on"""
    penalty: float = Field(1.0, gt=0, allow_inf_nan=False)
    """what it has grown to at that length"""


class TransformersEngineConfig(Section):
    """Rollouts by a copy of the policy in the trainer's process."""

    engine: Literal["transformers"] = "transformers"


class VllmEngineConfig(Section):
    """Rollouts by vLLM in the trainer's process, on the same device; a training of one process."""

    engine: Literal["vllm"] = "vllm"
    gpu_memory_utilization: float = Field(0.5, gt=0, lt=1)
    """share of the GPU's memory that vLLM has during a rollout; 0 during updates"""


class VllmServerConfig(Section):
    """Rollouts by a vLLM server that `rest serve-rollouts` has started."""

    engine: Literal["vllm_server"] = "vllm_server"
    url: Address = Field("http://127.0.0.1:8000", pattern=r"^https?://[^/]+/?$")
    """where the server listens"""
    weights: Literal["folder", "nccl"] = "folder"
    """how weights get there: files in `folder`, or from GPU to GPU"""
    folder: str | None = None
    """a folder that trainer and server both see, below /dev/shm for memory; null = the temporary folder"""
    timeout: float = Field(600, gt=0)
    """seconds to wait for the server: until it is up, and for each of its answers"""


EngineConfig = TransformersEngineConfig | VllmEngineConfig | VllmServerConfig


class RlConfig(Section):
    enabled: bool = True
    steps: int = Field(105, ge=1)
    """rollout rounds"""
    prompts_per_step: int = Field(512, ge=1)
    group_size: int = Field(4, ge=2)
    """responses a prompt (G)"""
    mini_batch_prompts: int | None = Field(None, ge=1)
    """prompts an optimizer update; null = one update a rollout"""
    micro_batch_tokens: int = Field(16384, ge=64)
    """tokens a forward pass and process, prompts counted once"""
    rollout_batch_tokens: int = Field(65536, ge=64)
    """padded tokens that are generated together"""
    max_response_tokens: int = Field(2048, ge=8)
    temperature: float = Field(1.0, gt=0)
    """sampling temperature; the loss is exact at 1.0 only, others are refused"""
    learning_rate: float = Field(1e-6, gt=0)
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    reward: Literal["toolrl", "rest", "strict"] = "rest"
    reward_one_call_a_line: bool = False
    """for toolrl and rest, as in their authors' code: calls of another layout, or with 'arguments' for 'parameters',
    cost the whole correctness"""
    reward_weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    """weight of `reward` beside reward functions; 0 = these alone"""
    reward_functions: tuple[RewardFunction, ...] = ()
    """added to the reward, with their weights"""
    overlong: OverlongPenalty | None = None
    """penalty on long responses, added to the reward"""
    advantage_std: Literal["group", "batch", "none"] = "group"
    """what advantages are divided by: the standard deviation of the group's rewards; that of r - mean over the whole
    step (REINFORCE++, arXiv 2501.03262); nothing (Dr. GRPO, arXiv 2503.20783)"""
    mask_truncated: bool = False
    """responses cut off at max_response_tokens are not trained on; their rewards still count in their group's mean
    (DAPO's overlong filtering, arXiv 2503.14476)"""
    resample_rounds: int = Field(0, ge=0)
    """at most so many times a step, groups that carry no signal are sampled anew with further prompts (DAPO's dynamic
    sampling); 0 = never"""
    weights: WeightsConfig = Field(PaperWeights(), discriminator="scheme")
    weight_mean: WeightMean = "trained"
    """weights have mean 1 over: trained = all trained tokens, so that schemes do not differ in the size of the
    gradient; weighted = those of positive weight, as in the authors' code"""
    entropy_momentum: float = Field(0.9, ge=0, lt=1)
    """decay of the running per-region entropies, a step"""
    loss: LossConfig = LossConfig()
    engine: EngineConfig = Field(TransformersEngineConfig(), discriminator="engine")
    """what samples the responses"""
    lora: LoraConfig | None = None
    gradient_checkpointing: bool = False
    max_loss: float = Field(1e4, gt=0)
    """a larger absolute loss stops the training"""
    checkpoint_every: int = Field(10, ge=1)
    """steps between checkpoints; the last step always has one"""
    keep_checkpoints: int = Field(2, ge=1)
    """the newest that stay; the best on the task stays besides"""
    mirror: Address | None = None
    """s3:// URI or folder (a mounted volume) where checkpoints are copied to while training goes on, and taken up from
    where the output folder has no newer one; null = off"""
    grace_seconds: float = Field(25.0, ge=0, le=3600)
    """from SIGTERM to the end of the process; keep it below the cluster's period"""
    evaluate_every: int | None = Field(None, ge=1)
    """steps between measurements of task accuracy on held-out prompts (the dataset's split rl_validation), which choose
    the best checkpoint; null = off"""
    evaluate_at_start: bool = True
    """measure it before the first step as well"""
    evaluate_prompts: int = Field(256, ge=1)
    """at most this many held-out prompts"""
    evaluate_samples: int = Field(0, ge=0)
    """responses that are sampled to each of them as in training, whose mean counts; 0 = the most likely one alone"""
    final: Literal["last", "best"] = "last"
    """the weights that are handed on: after the last step, or best by task accuracy"""
    table_every: int = Field(10, ge=1)
    """steps between tables of completions"""
    reward_probe_prompts: int = Field(32, ge=0)
    """prompts on which reward is measured before and after: held-out ones (the dataset's split rl_validation) where
    there are so many, else training prompts; 0 = off"""
    seed: int = 0

    @model_validator(mode="after")
    def _trains_the_policy_it_samples(self) -> Self:
        if self.temperature != 1.0:
            raise ValueError(
                f"temperature is {self.temperature}: training samples at 1.0, anything else biases the ratio"
            )
        if self.mini_batch_prompts is not None and self.prompts_per_step % self.mini_batch_prompts:
            raise ValueError(
                f"mini_batch_prompts ({self.mini_batch_prompts}) does not divide prompts_per_step "
                f"({self.prompts_per_step}): an update takes whole groups of group_size responses; choose a divisor, "
                "or null for one update a rollout"
            )
        if self.final == "best" and self.evaluate_every is None:
            raise ValueError("final=best needs evaluate_every: without it no checkpoint is known to be the best")
        return self

    @model_validator(mode="after")
    def _has_a_reward(self) -> Self:
        if not self.reward_weight and not self.reward_functions:
            raise ValueError("reward_weight is 0 and reward_functions is empty: there is nothing to train for")
        if self.reward_one_call_a_line and self.reward == "strict":
            raise ValueError(
                "reward_one_call_a_line=true is for reward=toolrl and reward=rest: strict reads calls of any layout; "
                "leave it out with strict"
            )
        if self.overlong is not None and self.overlong.buffer > self.max_response_tokens:
            raise ValueError(
                f"overlong.buffer ({self.overlong.buffer}) is above max_response_tokens ({self.max_response_tokens}): "
                "the penalty would begin below a length of 0; choose a smaller one"
            )
        return self
