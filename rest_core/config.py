"""Configuration: one typed model a stage, profiles in `configs/*.yaml`, overrides as `a.b=c`.

A profile is a YAML file with the sections below; what it leaves out has the default given here. `load` returns the
whole configuration; each stage takes only the sections that it reads, so that a cached stage is run again only when
something it depends on has changed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rest_core.errors import UserError, nearest

T = TypeVar("T", bound=BaseModel)

EMBEDDED_MODEL = "embedded:smollm2-135m-instruct"
EMBEDDED_DATA = "embedded:bfcl-executable"

# Settings of samplers that training must not have, whatever their value.
_TRUNCATION = {"top_p", "top_k", "min_p", "repetition_penalty"}


class Section(BaseModel):
    """A section of the configuration: unknown keys are refused, values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _read_null(cls, values: Any) -> Any:
        """A KFP parameter holds no null; the word stands for it (`to_parameter`)."""
        return {k: None if v == "null" else v for k, v in values.items()} if isinstance(values, dict) else values

    def to_parameter(self) -> dict[str, Any]:
        """The section as a KFP parameter: plain JSON types, every null as the word "null"; `validate` reads it back."""
        return _without_null(self.model_dump(mode="json"))


class ModelConfig(Section):
    source: str = Field(EMBEDDED_MODEL, description="embedded:NAME, a hub id, a folder, or an s3:// URI")
    revision: str | None = Field(None, description="branch, tag or commit of a hub id")
    dtype: Literal["bfloat16", "float32"] = Field(
        "bfloat16",
        description="compute type; master weights are always float32. A CPU that cannot multiply bfloat16 computes in "
        "float32",
    )
    trust_remote_code: bool = Field(False, description="run Python code that comes with the checkpoint")
    prompt_style: Literal["toolrl", "compact"] = Field(
        "toolrl", description="format instructions for data that brings none of its own, and for BFCL"
    )
    init: Literal["pretrained", "random"] = Field(
        "pretrained", description="'random' keeps the architecture and draws new weights (tests)"
    )


class DataSource(Section):
    location: str = Field(description="embedded:NAME, a hub id, a path, a glob, or an s3:// URI")
    format: Literal[
        "auto", "jsonl", "sharegpt", "trl", "glaive", "toolace", "xlam", "toolrl-sft", "toolrl-rl", "bfcl-executable"
    ] = Field("auto", description="the reader; 'auto' looks at each record")
    use: tuple[Literal["sft", "rl"], ...] = Field(("sft", "rl"), description="which stages train on it")
    limit: int | None = Field(None, ge=1, description="take at most this many records")


class DataConfig(Section):
    sources: tuple[DataSource, ...] = Field((DataSource(location=EMBEDDED_DATA),), min_length=1)
    on_invalid: Literal["drop", "stop"] = Field("drop", description="what happens to a record that does not validate")
    near_duplicate_threshold: float = Field(
        0.9, gt=0, le=1, description="Jaccard similarity from which two records count as one; 1 = exact only"
    )
    overlap_threshold: float = Field(0.9, gt=0, le=1, description="the same, against the evaluation questions")
    max_prompt_tokens: int = Field(2048, ge=16)
    max_response_tokens: int = Field(2048, ge=8, description="limit for the reference response")
    validation_fraction: float = Field(0.05, ge=0, lt=1)
    seed: int = 0


class LoraConfig(Section):
    r: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: str | tuple[str, ...] = "all-linear"


class SftConfig(Section):
    enabled: bool = Field(True, description="false = cold start: the model goes to RL as it is")
    epochs: float = Field(2.0, gt=0)
    max_steps: int | None = Field(None, ge=1, description="stop after this many optimizer steps")
    batch_size: int = Field(8, ge=1, description="samples an optimizer step and process")
    micro_batch_size: int = Field(4, ge=1, description="samples a forward pass")
    learning_rate: float = Field(1e-5, gt=0)
    checkpoint_every: int | None = Field(None, ge=1, description="optimizer steps between checkpoints; null = none")
    warmup_ratio: float = Field(0.05, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    lora: LoraConfig | None = None
    seed: int = 0


EntropyRule = Literal["variance", "inverse"]


class _Clipped(Section):
    """Weights that are clipped to [w_min, w_max]."""

    w_min: float
    w_max: float

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.w_min > self.w_max:
            raise ValueError(f"w_min ({self.w_min}) is above w_max ({self.w_max})")
        return self


class PaperWeights(_Clipped):
    """Scheme `paper`. The bounds and slopes are not published: these are ours (docs/method.md says how chosen)."""

    scheme: Literal["paper"] = "paper"
    rule: EntropyRule = Field(
        "variance", description="weight of a region of entropy H: variance = 1 / (1 - e^-H), inverse = 1 / H"
    )
    w_min: float = Field(1.0, gt=0)
    w_max: float = Field(8.0, gt=0)
    alpha_format: float = Field(4.0, ge=0, description="how much FORMAT loses over the whole training")
    alpha_arguments: float = Field(2.0, ge=0, description="how much ARGUMENTS gains")
    alpha_think: float = Field(2.0, ge=0, description="how much THINK gains")
    floor: float = Field(
        1.0,
        gt=0,
        description="weight of RESPONSE and OTHER, of the mean over the response's other tokens; above 0 so that "
        "malformed output and the end of a response are trained",
    )
    curriculum: bool = Field(True, description="false = entropy weights only")


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
    w_min: float = Field(1.0, gt=0)
    w_max: float = Field(8.0, gt=0)


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
    surrogate: Literal["clip", "gspo", "cispo"] = Field(
        "clip",
        description="clip = GRPO's (PPO's); gspo = one ratio for the whole sequence, in its token form (arXiv "
        "2507.18071); cispo = the clipped ratio as a constant factor of the log-prob (arXiv 2506.13585)",
    )
    clip_low: float = Field(0.2, gt=0, le=1, description="the ratio is clipped at 1 - this; 1 = no lower bound")
    clip_high: float = Field(0.2, gt=0, description="and at 1 + this")
    dual_clip: float | None = Field(3.0, gt=1, description="lower bound c for negative advantages; null = off")
    aggregation: Literal["sequence_mean", "token_mean", "constant_length"] = Field(
        "sequence_mean",
        description="sequence_mean = the paper's objective; token_mean = the authors' code; constant_length = each "
        "response's sum divided by `length` (Dr. GRPO, arXiv 2503.20783)",
    )
    length: int | None = Field(
        None, ge=1, description="tokens that constant_length divides by; null = rl.max_response_tokens"
    )
    importance_cap: float | None = Field(
        2.0, ge=1, description="bound of the importance weight that corrects for the engine's log-probs; null = none"
    )
    kl_coefficient: float = Field(0.0, ge=0, description="penalty towards the reference policy (k3 estimator)")
    entropy_coefficient: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> LossConfig:
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

    function: str = Field(description="module:function, importable where the training runs")
    weight: float = Field(1.0, allow_inf_nan=False, description="what its reward is multiplied by")
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="more names for the sample's columns, where the function expects others: {solution: reference}",
    )


class OverlongPenalty(Section):
    """DAPO's soft over-long punishment (arXiv 2503.14476)."""

    buffer: int = Field(ge=1, description="tokens before rl.max_response_tokens at which the penalty begins, from 0 on")
    penalty: float = Field(1.0, gt=0, allow_inf_nan=False, description="what it has grown to at that length")


class TransformersEngineConfig(Section):
    """Rollouts by a copy of the policy in the trainer's process."""

    engine: Literal["transformers"] = "transformers"


class VllmEngineConfig(Section):
    """Rollouts by vLLM in the trainer's process, on the same device; a training of one process."""

    engine: Literal["vllm"] = "vllm"
    gpu_memory_utilization: float = Field(
        0.5, gt=0, lt=1, description="share of the GPU's memory that vLLM has during a rollout; 0 during updates"
    )


class VllmServerConfig(Section):
    """Rollouts by a vLLM server that `rest serve-rollouts` has started."""

    engine: Literal["vllm_server"] = "vllm_server"
    url: str = Field("http://127.0.0.1:8000", pattern=r"^https?://[^/]+/?$", description="where the server listens")
    weights: Literal["folder", "nccl"] = Field(
        "folder", description="how weights get there: files in `folder`, or from GPU to GPU"
    )
    folder: str | None = Field(
        None,
        description="a folder that trainer and server both see, below /dev/shm for memory; null = the temporary folder",
    )
    timeout: float = Field(
        600, gt=0, description="seconds to wait for the server: until it is up, and for each of its answers"
    )


EngineConfig = TransformersEngineConfig | VllmEngineConfig | VllmServerConfig


class RlConfig(Section):
    enabled: bool = True
    steps: int = Field(105, ge=1, description="rollout rounds")
    prompts_per_step: int = Field(512, ge=1)
    group_size: int = Field(4, ge=2, description="responses a prompt (G)")
    mini_batch_prompts: int | None = Field(
        None, ge=1, description="prompts an optimizer update; null = one update a rollout"
    )
    micro_batch_tokens: int = Field(16384, ge=64, description="tokens a forward pass and process, prompts counted once")
    rollout_batch_tokens: int = Field(65536, ge=64, description="padded tokens that are generated together")
    max_response_tokens: int = Field(2048, ge=8)
    temperature: float = Field(
        1.0, gt=0, description="sampling temperature; the loss is exact at 1.0 only, others are refused"
    )
    learning_rate: float = Field(1e-6, gt=0)
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    reward: Literal["toolrl", "rest", "strict"] = "rest"
    reward_one_call_a_line: bool = Field(
        False,
        description="for toolrl and rest, as in their authors' code: calls of another layout, or with 'arguments' for "
        "'parameters', cost the whole correctness",
    )
    reward_weight: float = Field(
        1.0, ge=0, allow_inf_nan=False, description="weight of `reward` beside reward functions; 0 = these alone"
    )
    reward_functions: tuple[RewardFunction, ...] = Field((), description="added to the reward, with their weights")
    overlong: OverlongPenalty | None = Field(None, description="penalty on long responses, added to the reward")
    advantage_std: Literal["group", "batch", "none"] = Field(
        "group",
        description="what advantages are divided by: the standard deviation of the group's rewards; that of r - mean "
        "over the whole step (REINFORCE++, arXiv 2501.03262); nothing (Dr. GRPO, arXiv 2503.20783)",
    )
    mask_truncated: bool = Field(
        False,
        description="responses cut off at max_response_tokens are not trained on; their rewards still count in their "
        "group's mean (DAPO's overlong filtering, arXiv 2503.14476)",
    )
    resample_rounds: int = Field(
        0,
        ge=0,
        description="at most so many times a step, groups that carry no signal are sampled anew with further prompts "
        "(DAPO's dynamic sampling); 0 = never",
    )
    weights: WeightsConfig = Field(PaperWeights(), discriminator="scheme")
    weight_mean: WeightMean = Field(
        "trained",
        description="weights have mean 1 over: trained = all trained tokens, so that schemes do not differ in the size "
        "of the gradient; weighted = those of positive weight, as in the authors' code",
    )
    entropy_momentum: float = Field(0.9, ge=0, lt=1, description="decay of the running per-region entropies, a step")
    loss: LossConfig = LossConfig()
    engine: EngineConfig = Field(
        TransformersEngineConfig(), discriminator="engine", description="what samples the responses"
    )
    lora: LoraConfig | None = None
    gradient_checkpointing: bool = False
    max_loss: float = Field(1e4, gt=0, description="a larger absolute loss stops the training")
    checkpoint_every: int = Field(10, ge=1, description="steps between checkpoints; the last step always has one")
    keep_checkpoints: int = Field(2, ge=1, description="the newest that stay; the best on the task stays besides")
    mirror: str | None = Field(
        None,
        description="s3:// URI or folder (a mounted volume) where checkpoints are copied to while training goes on, "
        "and taken up from where the output folder has no newer one; null = off",
    )
    grace_seconds: float = Field(
        25.0, ge=0, le=3600, description="from SIGTERM to the end of the process; keep it below the cluster's period"
    )
    evaluate_every: int | None = Field(
        None,
        ge=1,
        description="steps between measurements of task accuracy on held-out prompts (the dataset's split "
        "rl_validation), which choose the best checkpoint; null = off",
    )
    evaluate_prompts: int = Field(256, ge=1, description="at most this many held-out prompts")
    final: Literal["last", "best"] = Field(
        "last", description="the weights that are handed on: after the last step, or best by task accuracy"
    )
    table_every: int = Field(10, ge=1, description="steps between tables of completions")
    reward_probe_prompts: int = Field(
        32, ge=0, description="training prompts on which reward is measured before and after; 0 = off"
    )
    seed: int = 0

    @model_validator(mode="after")
    def _samples_the_policy(self) -> RlConfig:
        if self.temperature != 1.0:
            raise ValueError(
                f"temperature is {self.temperature}: training samples at 1.0, anything else biases the ratio"
            )
        return self

    @model_validator(mode="after")
    def _updates_take_whole_groups(self) -> RlConfig:
        if self.mini_batch_prompts is not None and self.prompts_per_step % self.mini_batch_prompts:
            raise ValueError(
                f"mini_batch_prompts ({self.mini_batch_prompts}) does not divide prompts_per_step "
                f"({self.prompts_per_step}): an update takes whole groups of group_size responses; choose a divisor, "
                "or null for one update a rollout"
            )
        return self

    @model_validator(mode="after")
    def _has_a_reward(self) -> RlConfig:
        if not self.reward_weight and not self.reward_functions:
            raise ValueError("reward_weight is 0 and reward_functions is empty: there is nothing to train for")
        return self

    @model_validator(mode="after")
    def _one_call_a_line_is_read(self) -> RlConfig:
        if self.reward_one_call_a_line and self.reward == "strict":
            raise ValueError(
                "reward_one_call_a_line=true is for reward=toolrl and reward=rest: strict reads calls of any layout; "
                "leave it out with strict"
            )
        return self

    @model_validator(mode="after")
    def _buffer_fits(self) -> RlConfig:
        if self.overlong is not None and self.overlong.buffer > self.max_response_tokens:
            raise ValueError(
                f"overlong.buffer ({self.overlong.buffer}) is above max_response_tokens ({self.max_response_tokens}): "
                "the penalty would begin below a length of 0; choose a smaller one"
            )
        return self

    @model_validator(mode="after")
    def _best_is_known(self) -> RlConfig:
        if self.final == "best" and self.evaluate_every is None:
            raise ValueError("final=best needs evaluate_every: without it no checkpoint is known to be the best")
        return self


class GenerationConfig(Section):
    max_response_tokens: int = Field(1024, ge=8)
    max_prompt_tokens: int = Field(8192, ge=16, description="a longer prompt is counted as failed, not cut")
    batch_tokens: int = Field(65536, ge=64, description="padded tokens that are generated together")


class BfclConfig(Section):
    enabled: bool = True
    categories: tuple[str, ...] = Field(("non_live", "live"), description="categories, or the groups non_live and live")
    limit_per_category: int | None = Field(None, ge=1, description="a seeded subset; the summary names it")
    generation: GenerationConfig = GenerationConfig()
    seed: int = 0


class ApiBankConfig(Section):
    enabled: bool = True
    location: str | None = Field(
        None, description="folder or s3:// URI of ToolRL's processed files; null = download once"
    )
    limit_per_level: int | None = Field(None, ge=1)
    generation: GenerationConfig = GenerationConfig()
    seed: int = 0


class RegistryConfig(Section):
    enabled: bool = True
    name: str = Field("rest-tool-use", description="name of the registered model")
    metric: str = Field("bfcl/overall", description="the metric that promotion compares")
    destination: str | None = Field(
        None, description="folder or s3:// URI for the checkpoint; null = the run's artifacts"
    )


class StorageConfig(Section):
    """Where the stages' large outputs go: the pods hand on a small folder that refers to them."""

    location: str | None = Field(
        None,
        description="s3://bucket/prefix, or a folder that every stage sees; null = outputs travel as they are",
        pattern=r"^[\w./:~+=@-]+$",
    )


class TrainJobConfig(Section):
    """A training on several nodes, as a TrainJob of Kubeflow Trainer; objects are spelled as Kubernetes spells them."""

    nodes: int = Field(ge=1)
    runtime: str = Field(description="TrainingRuntime of the namespace, or ClusterTrainingRuntime")
    namespace: str | None = Field(None, description="null = the pod's own")
    image: str | None = Field(None, description="null = the runtime's")
    deadline_seconds: int = Field(7 * 24 * 3600, ge=1, description="after which the cluster ends the TrainJob")
    labels: dict[str, str] = {}
    annotations: dict[str, str] = Field({}, description="of the pods")
    resources: dict[str, str] = Field({}, description="of a node: {cpu: 8, memory: 64Gi, nvidia.com/gpu: 8}")
    environment: dict[str, str] = Field({}, description="variables that are no secrets")
    service_account: str | None = None
    node_selector: dict[str, str] = {}
    tolerations: tuple[dict[str, Any], ...] = ()
    volumes: tuple[dict[str, Any], ...] = ()
    volume_mounts: tuple[dict[str, Any], ...] = ()
    pull_secrets: tuple[str, ...] = ()
    security_context: dict[str, Any] = {}


class LaunchConfig(Section):
    """In how many processes the training stages run."""

    processes: int | None = Field(None, ge=1, description="on this machine; null = one a GPU")
    sharding: Literal["ddp", "fsdp2"] = Field(
        "ddp", description="of several processes: each holds the whole model, or a shard of it (docs/training.md)"
    )
    train_job: TrainJobConfig | None = Field(None, description="rest-rl only: train on several nodes")


class TrackingConfig(Section):
    uri: str | None = Field(None, description="MLflow server; null = MLFLOW_TRACKING_URI, else SQLite in mlruns/")
    experiment: str = "rest"


class Config(Section):
    profile: str = "quickstart"
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    sft: SftConfig = SftConfig()
    rl: RlConfig = RlConfig()
    bfcl: BfclConfig = BfclConfig()
    api_bank: ApiBankConfig = ApiBankConfig()
    registry: RegistryConfig = RegistryConfig()
    tracking: TrackingConfig = TrackingConfig()
    storage: StorageConfig = StorageConfig()
    launch: LaunchConfig = LaunchConfig()

    def enabled(self, switch: str | None) -> bool:
        """Whether a stage with this switch (`rest_core.operations.catalogue`) does its work, or passes on its input."""
        return switch is None or bool(getattr(self, switch).enabled)

    def inputs(self) -> list[tuple[str, str]]:
        """What a run reads from elsewhere: the field's name and the location."""
        sources = [("data.sources", source.location) for source in self.data.sources]
        return [*sources, ("model.source", self.model.source), *_given("api_bank.location", self.api_bank.location)]

    def outputs(self) -> list[tuple[str, str]]:
        """Where a run writes to besides its own folder and MLflow: the field's name and the location."""
        return [*_given("rl.mirror", self.rl.mirror), *_given("registry.destination", self.registry.destination)]


def _given(name: str, location: str | None) -> list[tuple[str, str]]:
    return [(name, location)] if location else []


def profile_folder() -> Path:
    """Where the profiles lie: inside the package when installed, beside it in a checkout."""
    here = Path(__file__).resolve().parent
    return here / "configs" if (here / "configs").is_dir() else here.parent / "configs"


def profiles() -> list[str]:
    """Names of the profiles that come with the project."""
    return sorted(path.stem for path in profile_folder().glob("*.yaml"))


def load(profile: str, overrides: tuple[str, ...] = ()) -> Config:
    """The configuration of a profile (a name, or the path of a YAML or JSON file) with `a.b=value` overrides applied.

    Values of overrides are read as YAML: `rl.steps=5`, `rl.lora={r: 8}`, `sft.enabled=false`.
    """
    path = Path(profile) if profile.endswith((".yaml", ".yml", ".json")) else profile_folder() / f"{profile}.yaml"
    if not path.is_file():
        raise UserError(f"unknown profile {profile!r}{nearest(profile, profiles())} (known: {', '.join(profiles())})")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: a profile is a mapping of sections, not {type(values).__name__}")
    values["profile"] = path.stem
    for override in overrides:
        _apply(values, override)
    return validate(Config, values, where=f"profile {path.stem}")


def validate(model: type[T], values: Any, where: str) -> T:
    """`values` as a `model`; a wrong key or value is a `UserError` that names it and the nearest known key."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            if first["loc"][-1] in _TRUNCATION and RlConfig in _models_at(model, first["loc"][:-1]):
                raise UserError(
                    f"{where}: {name}: training samples from the policy's whole distribution, a truncated or penalised "
                    "one biases the ratio; leave it out"
                ) from None
            raise UserError(
                f"{where}: unknown key {name!r}{nearest(str(first['loc'][-1]), _known_keys(model, first['loc'][:-1]))}"
            ) from None
        ours = first["type"] == "value_error"  # said by a validator of this module, about fields that it names
        message = str(first["ctx"]["error"]) if ours else first["msg"].lower()
        given = first["input"]
        got = "" if ours and isinstance(given, dict) else f" (got {given!r:.80})"
        raise UserError(f"{where}: {f'{name}: ' if name else ''}{message}{got}") from None


def _without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_null(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_null(inner) for inner in value]
    return "null" if value is None else value


def _apply(values: dict[str, Any], override: str) -> None:
    name, separator, text = override.partition("=")
    if not separator or not name:
        raise UserError(f"--set {override!r}: write it as section.key=value")
    *sections, last = name.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise UserError(f"--set {override!r}: {section!r} has no keys below it")
        values = inner
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"--set {override!r}: the value is not valid YAML") from None


def _known_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    return [key for candidate in _models_at(model, location) for key in candidate.model_fields]


def _models_at(model: type[BaseModel], location: tuple[int | str, ...]) -> list[type[BaseModel]]:
    """Sections that a validation error's location may point into; tagged unions add their tag to it."""
    models: list[type[BaseModel]] = [model]
    for part in location:
        below: list[type[BaseModel]] = []
        for candidate in models:
            field = candidate.model_fields.get(str(part))
            if field is not None:
                below += _models_in(field.annotation)
        models = below or models
    return models


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]
