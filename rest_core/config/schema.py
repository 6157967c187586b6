"""The configuration: one typed section a stage; what a profile leaves out has the default given here.

Each stage takes only the sections that it reads, so that a cached stage is run again only when something it depends on
has changed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from rest_core.config.address import Address, ServerAddress
from rest_core.config.rl import EngineConfig, LoraConfig, RlConfig, TransformersEngineConfig
from rest_core.config.section import Section
from rest_core.errors import nearest

EMBEDDED_MODEL = "embedded:smollm2-135m-instruct"
EMBEDDED_DATA = "embedded:bfcl-retired"
STYLE_TEMPLATES = Path(__file__).parents[1] / "styles" / "templates"
_NO_MODEL_NAME = re.compile(r"[/:'\"`\\\x00-\x1f\x7f]")
_LONGEST_MODEL_NAME = 250  # MLflow's column has 256 characters, and a folder has the name
_LONGEST_EXPERIMENT_NAME = 500  # MLflow's limit
PROMPT_STYLES = ("native", *sorted(path.stem for path in STYLE_TEMPLATES.glob("*.yaml")))


class ModelConfig(Section):
    source: Address = EMBEDDED_MODEL
    """embedded:NAME, a hub id, a folder, or an s3:// URI"""
    revision: str | None = None
    """branch, tag or commit of a hub id"""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """compute type; master weights are always float32. A CPU that cannot multiply bfloat16 computes in float32"""
    trust_remote_code: bool = False
    """run Python code that comes with the checkpoint"""
    prompt_style: str = "toolrl"
    """prompt template and response format (docs/evaluation.md): toolrl, compact, native, or file:PATH"""
    tool_parser: Literal["auto", "hermes", "llama3_json", "pythonic", "mistral", "qwen3_coder"] = "auto"
    """prompt_style=native: how the model's family writes calls, by vLLM's names; auto = by its chat template"""
    enable_thinking: bool | None = None
    """variable of the chat template; null = as the template has it"""
    init: Literal["pretrained", "random"] = "pretrained"
    """'random' keeps the architecture and draws new weights (tests)"""

    @field_validator("prompt_style")
    @classmethod
    def _known_style(cls, style: str) -> str:
        if style not in PROMPT_STYLES and not style.startswith("file:"):
            known = ", ".join(PROMPT_STYLES)
            raise ValueError(f"no such style{nearest(style, PROMPT_STYLES)} (known: {known}, file:PATH)")
        return style


class DataSource(Section):
    location: Address
    """embedded:NAME, a hub id, a path, a glob, or an s3:// URI"""
    format: Literal[
        "auto", "jsonl", "sharegpt", "trl", "glaive", "toolace", "xlam", "toolrl-sft", "toolrl-rl", "bfcl-retired"
    ] = "auto"
    """the reader; 'auto' looks at each record"""
    use: tuple[Literal["sft", "rl"], ...] = ("sft", "rl")
    """which stages train on it"""
    limit: int | None = Field(None, ge=1)
    """take at most this many records"""


class DataConfig(Section):
    sources: tuple[DataSource, ...] = Field((DataSource(location=EMBEDDED_DATA),), min_length=1)
    on_invalid: Literal["drop", "stop"] = "drop"
    """what happens to a record that does not validate"""
    near_duplicate_threshold: float = Field(0.9, gt=0, le=1)
    """Jaccard similarity from which two records count as one; 1 = exact only"""
    overlap_threshold: float = Field(0.9, gt=0, le=1)
    """the same, against the evaluation questions"""
    max_prompt_tokens: int = Field(2048, ge=16)
    max_response_tokens: int = Field(2048, ge=8)
    """limit for the reference response"""
    validation_fraction: float = Field(0.05, ge=0, lt=1)
    """held out from both stages, by families: the steps of a dialogue, and requests that the same calls answer"""
    rl_fraction: float | None = Field(None, gt=0, lt=1)
    """of the samples that serve both stages, RL trains on this share and SFT on the others; null = both train on all"""
    seed: int = 0


RegionName = Literal["name", "arguments", "format", "think", "response", "other"]


class SftConfig(Section):
    enabled: bool = True
    """false = cold start: the model goes to RL as it is"""
    epochs: float = Field(2.0, gt=0)
    max_steps: int | None = Field(None, ge=1)
    """stop after this many optimizer steps"""
    batch_size: int = Field(8, ge=1)
    """samples an optimizer step and process"""
    micro_batch_size: int = Field(4, ge=1)
    """samples a forward pass"""
    learning_rate: float = Field(1e-5, gt=0)
    checkpoint_every: int | None = Field(None, ge=1)
    """optimizer steps between checkpoints; null = none"""
    warmup_ratio: float = Field(0.05, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    region_weights: dict[RegionName, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field({})
    """weights of the loss by region of the response, 1 where none is given, of mean 1 in each response: {name: 2,
    arguments: 2} is the paper's baseline TSFT, {think: 2} its RSFT"""
    lora: LoraConfig | None = None
    seed: int = 0


class GenerationConfig(Section):
    max_response_tokens: int = Field(1024, ge=8)
    max_prompt_tokens: int = Field(8192, ge=16)
    """a longer prompt is counted as failed, not cut"""
    batch_tokens: int = Field(65536, ge=64)
    """padded tokens that are generated together"""
    prefix_cache_gib: float = Field(2.0, ge=0)
    """memory for keys and values of earlier prompts and responses: what a prompt begins with is not computed again"""
    temperature: float = Field(0.0, ge=0)
    """0 takes the most likely token; above it, responses are sampled by seeds"""


PolicyName = Literal["base", "warmup", "trained", "champion"]


class EndpointConfig(Section):
    """Requests to a policy `openai:MODEL@URL`; the key is OPENAI_API_KEY, from the environment alone."""

    prompting: Literal["tools", "prompt"] = "tools"
    """tools = the request has the tools, and the structured calls of the answer count; prompt = the prompt of
    model.prompt_style, and the answer's text is read as a local model's"""
    parallel: int = Field(16, ge=1, le=256)
    """requests at the same time"""
    timeout_seconds: float = Field(120, gt=0)
    """for one attempt"""
    deadline_seconds: float = Field(600, gt=0)
    """for one question, all attempts and pauses together"""


class EvaluationConfig(Section):
    """Which policies a pipeline evaluates on every benchmark, and the engine that runs them."""

    policies: tuple[PolicyName, ...] = ("base", "warmup", "trained", "champion")
    """base = model.source, warmup = after sft, trained = after rl, champion = the registry's, where it has one"""
    engine: EngineConfig = Field(TransformersEngineConfig(), discriminator="engine")
    """generates the responses; settings as of rl.engine"""
    endpoint: EndpointConfig = EndpointConfig()


class BfclConfig(Section):
    enabled: bool = True
    categories: tuple[str, ...] = ("non_live", "live")
    """categories, or the groups non_live, live, multi_turn and format_sensitivity"""
    limit_per_category: int | None = Field(None, ge=1)
    """a seeded subset; the summary names it"""
    generation: GenerationConfig = GenerationConfig()
    max_dialogue_tokens: int = Field(49152, ge=16)
    """generation.max_prompt_tokens of multi-turn and memory categories, whose prompts grow from step to step"""
    samples: int = Field(1, ge=1)
    """dialogues of each multi-turn or memory item; several give pass@k and pass^k, at a temperature above 0"""
    seed: int = 0

    @model_validator(mode="after")
    def _several_samples_differ(self) -> BfclConfig:
        if self.samples > 1 and self.generation.temperature == 0:
            raise ValueError("bfcl.samples above 1 needs bfcl.generation.temperature above 0")
        return self


class ApiBankConfig(Section):
    enabled: bool = True
    location: Address | None = None
    """folder or s3:// URI of ToolRL's processed files; null = download once"""
    limit_per_level: int | None = Field(None, ge=1)
    generation: GenerationConfig = GenerationConfig()
    seed: int = 0


class RegistryConfig(Section):
    enabled: bool = True
    name: str = "rest-tool-use"
    """name of the registered model"""
    destination: Address | None = None
    """folder or s3:// URI for the checkpoint; null = the run's artifacts"""

    @field_validator("name")
    @classmethod
    def _taken_by_the_registry(cls, name: str) -> str:
        if not name.strip() or name != name.strip() or name in (".", ".."):
            raise ValueError("give the model a name, without blanks around it")
        if _NO_MODEL_NAME.search(name):
            raise ValueError("MLflow's registry and its filters take no name with / : quotes, backslashes or line ends")
        if len(name.encode()) > _LONGEST_MODEL_NAME:
            raise ValueError(f"a model's name has at most {_LONGEST_MODEL_NAME} bytes")
        return name

    @field_validator("destination")
    @classmethod
    def _is_a_path_for_mlflow(cls, value: str | None) -> str | None:
        if value is not None and "://" in value and set(value) & set("?#"):
            raise ValueError("MLflow looks for no model behind a '?' or '#' of a URI; choose another prefix")
        return value


class GateConfig(Section):
    """What a version must show to become `champion`; differences are paired, on the same items, as fractions."""

    metric: str = "bfcl/call_accuracy"
    """the figure that decides, higher is better"""
    margin: float = Field(0.0, ge=0, le=1)
    """how far below the champion's the figure may lie, by the lower bound of the difference's 95 % interval; 0 = it
    must be clearly better"""
    max_category_loss: float = Field(0.0, ge=0, le=1)
    """no category may be clearly worse than the champion's, and by more than this"""
    better_than_base: bool = True
    """the figure must be clearly better than the base model's; without a champion it must be in any case"""
    min_well_formed: float = Field(0.5, ge=0, le=1)
    """share of responses exactly in the format"""
    min_questions: int = Field(40, ge=1)
    """behind the figure"""
    approval_tag: str | None = Field(None, min_length=1)
    """a tag of the version that somebody must have set, e.g. in MLflow's pages; null = none"""
    webhook: str | None = Field(None, pattern=r"^https?://")
    """a URL that gets a JSON POST of each move of `champion`; null = none"""


class StorageConfig(Section):
    """Where the stages' large outputs go: the pods hand on a small folder that refers to them."""

    location: Address | None = Field(None, pattern=r"^[\w./:~+=@-]+$")
    """s3://bucket/prefix, or a folder that every stage sees; null = outputs travel as they are"""


class TrainJobConfig(Section):
    """A training on several nodes, as a TrainJob of Kubeflow Trainer; objects are spelled as Kubernetes spells them."""

    nodes: int = Field(ge=1)
    runtime: str
    """TrainingRuntime of the namespace, or ClusterTrainingRuntime"""
    namespace: str | None = None
    """null = the pod's own"""
    image: str | None = None
    """null = the runtime's"""
    deadline_seconds: int = Field(7 * 24 * 3600, ge=1)
    """after which the cluster ends the TrainJob"""
    labels: dict[str, str] = Field({})
    annotations: dict[str, str] = Field({})
    """of the pods"""
    resources: dict[str, str] = Field({})
    """of a node: {cpu: 8, memory: 64Gi, nvidia.com/gpu: 8}"""
    environment: dict[str, str] = Field({})
    """variables that are no secrets"""
    service_account: str | None = None
    node_selector: dict[str, str] = Field({})
    affinity: dict[str, Any] = Field({})
    tolerations: tuple[dict[str, Any], ...] = ()
    volumes: tuple[dict[str, Any], ...] = ()
    volume_mounts: tuple[dict[str, Any], ...] = ()
    pull_secrets: tuple[str, ...] = ()
    security_context: dict[str, Any] = Field({})


class LaunchConfig(Section):
    """In how many processes the training stages run."""

    processes: int | None = Field(None, ge=1)
    """on this machine; null = one a GPU"""
    sharding: Literal["ddp", "fsdp2"] = "ddp"
    """of several processes: each holds the whole model, or a shard of it (docs/training.md)"""
    train_job: TrainJobConfig | None = None
    """rest-rl only: train on several nodes"""


class TrackingConfig(Section):
    uri: ServerAddress | None = None
    """MLflow server; null = MLFLOW_TRACKING_URI, else SQLite in mlruns/"""
    experiment: str = "rest"

    @field_validator("experiment")
    @classmethod
    def _taken_by_mlflow(cls, name: str) -> str:
        if not name.strip() or len(name) > _LONGEST_EXPERIMENT_NAME or not name.isprintable():
            raise ValueError(f"give the experiment a name of 1 to {_LONGEST_EXPERIMENT_NAME} printable characters")
        return name


class Config(Section):
    profile: str = "quickstart"
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    sft: SftConfig = SftConfig()
    rl: RlConfig = RlConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    bfcl: BfclConfig = BfclConfig()
    api_bank: ApiBankConfig = ApiBankConfig()
    registry: RegistryConfig = RegistryConfig()
    gate: GateConfig = GateConfig()
    tracking: TrackingConfig = TrackingConfig()
    storage: StorageConfig = StorageConfig()
    launch: LaunchConfig = LaunchConfig()

    def enabled(self, switch: str | None) -> bool:
        """Whether a stage with this switch (`rest_core.operations.catalogue`) does its work, or passes on its input."""
        return switch is None or bool(getattr(self, switch).enabled)

    def inputs(self) -> list[tuple[str, str]]:
        """What a run reads from elsewhere: the field's name and the location."""
        sources = [("data.sources", source.location) for source in self.data.sources]
        given = {"model.source": self.model.source, "api_bank.location": self.api_bank.location}
        return [*sources, *((name, location) for name, location in given.items() if location)]

    def outputs(self) -> list[tuple[str, str]]:
        """Where a run writes to besides its own folder and MLflow: the field's name and the location."""
        given = {"rl.mirror": self.rl.mirror, "registry.destination": self.registry.destination}
        return [(name, location) for name, location in given.items() if location]
