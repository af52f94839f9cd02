"""The one configuration: frozen, typed, read from a TOML recipe (recipe.py), validated before anything
starts."""

import re
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, field_validator, model_validator

from maskreid_shards.shown import without_secrets

Positive = Annotated[int, Field(gt=0, lt=2**31)]
Pixels = Annotated[int, Field(gt=0, le=8192)]  # sides of an input; beyond it a recipe is a slip, or a trap
Count = Annotated[int, Field(ge=0)]
# A folder or a URL. Dumped (into manifests, logs, trackers) without the URL's user, password and query.
Location = Annotated[str, PlainSerializer(without_secrets)]
Stream = Literal["raw", "masked"]
TrackerName = Literal["tensorboard", "wandb", "trackio", "mlflow"]
Fusing = Literal["pool", "conv", "none"]
Pooling = Literal["mean", "gem"]
Neck = Literal["bn", "bnneck"]
TIMM = "timm:"
MASK_DAMAGE = re.compile(r"(erode|dilate|shift)=[1-9][0-9]?|(drop|swap)=(0?\.[0-9]{1,9}|1|1\.0)")


def mask_damage(text: str) -> str:
    """The text. Raises ValueError: none of those that `DataConfig.mask_damage` knows."""
    if not MASK_DAMAGE.fullmatch(text):
        raise ValueError(
            "use erode=N, dilate=N or shift=N (1 to 99 pixels), drop=SHARE or swap=SHARE (0 to 1)"
        )
    return text


class Section(BaseModel):
    """Strict: a float is no int, a string is no number, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class DataConfig(Section):
    """Where the shards are and what a sample looks like when it reaches the network."""

    shards: Location  # a folder, or a URL: http, https, or any that fsspec knows
    cache: str | None = None  # of a URL: a local folder for whole shards, shared by the ranks of a machine
    # Beyond it, the least recently opened shards are removed.
    cache_gb: Annotated[float, Field(gt=0)] | None = None
    # Of training: any sample by its byte range; or whole shards one after another, by webdataset, for stores
    # where a request costs more than bytes. Each data worker has shards of its own then, and draws its
    # batches out of a pool of so many identities.
    access: Literal["indexed", "stream"] = "indexed"
    stream_pool: Positive = 256
    # Conversion: a mask that is missing, unreadable, empty or coloured stops it, becomes the full image, or
    # skips the pair.
    on_bad_mask: Literal["fail", "full", "skip"] = "fail"
    height: Pixels = 144  # network input, pixels
    width: Pixels = 56
    resize_height: Pixels = 160  # before the random crop (training) or centre crop (evaluation)
    resize_width: Pixels = 64
    mirror: Annotated[float, Field(ge=0, le=1)] = 0.5  # probability
    brightness: Annotated[float, Field(ge=0, lt=1)] = 0.0  # factor drawn from [1 - b, 1 + b], the image only
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.0
    saturation: Annotated[float, Field(ge=0, lt=1)] = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    erasing: Annotated[float, Field(ge=0, le=1)] = 0.0  # probability of a random rectangle of the mean colour
    # The rectangle is no person in the mask either; without it the mask stays whole.
    erase_mask: bool = False
    # Masks made worse on purpose, at training and evaluation, to see how good they must be: "erode=2",
    # "dilate=4" and "shift=4" by pixels of the stored mask; "drop=0.5" and "swap=0.5" give so many of the
    # images a full mask, or that of another person.
    mask_damage: str | None = None
    # Of training; torchvision: libjpeg-turbo, faster; gpu: nvJPEG, and augmentation on the GPU, not yet run
    # on one.
    decoder: Literal["pillow", "torchvision", "gpu"] = "pillow"
    workers: Count = 2  # decoding processes per rank
    prefetch: Positive = 4  # batches that each of them prepares ahead
    # Most distinct bad samples a run may replace, each by the next image of its identity; 0 stops at the
    # first.
    bad_samples: Count = 0

    @field_validator("mask_damage")
    @classmethod
    def _damage_of_a_kind(cls, damage: str | None) -> str | None:
        return damage if damage is None else mask_damage(damage)

    @model_validator(mode="after")
    def _cache_is_of_a_url(self) -> Self:
        if self.cache_gb is not None and self.cache is None:
            raise ValueError("cache_gb limits a cache; name its folder with data.cache")
        if self.cache is not None and "://" not in self.shards:
            raise ValueError("data.cache is for shards behind a URL; leave it out")
        return self

    @model_validator(mode="after")
    def _decoder_can_replace(self) -> Self:
        if self.decoder == "gpu" and self.bad_samples:
            raise ValueError(
                'decoder "gpu" cannot replace bad samples; use "torchvision", or bad_samples = 0'
            )
        return self

    @model_validator(mode="after")
    def _decoder_can_damage(self) -> Self:
        if self.decoder == "gpu" and self.mask_damage:
            raise ValueError('decoder "gpu" cannot damage masks; use "torchvision", or leave mask_damage out')
        return self

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if self.resize_height < self.height or self.resize_width < self.width:
            raise ValueError(
                f"the crop {self.height}x{self.width} is larger than the resized image "
                f"{self.resize_height}x{self.resize_width}"
            )
        return self


class BatchConfig(Section):
    """One global batch, over all ranks.

    `pk`: `identities` x `images`. `paper`: one identity x 10 images + 54 images of 54 others, once per rank;
    of the other keys only `passes` matters then. An epoch is `passes` passes over the identities.
    """

    sampling: Literal["pk", "paper"] = "pk"
    identities: Positive = 16
    images: Positive = 4
    # Identities with fewer than `images` images: repeat them, take all of them once (a smaller batch), leave
    # them out.
    few_images: Literal["repeat", "all", "skip"] = "repeat"
    passes: Positive = 1
    # Gradient cache: most images of a rank that pass the network at once, in nearly equal parts of its rows;
    # the loss still sees the global batch. One more forward pass; batch normalisation is by part. 0: all at
    # once.
    micro_images: Count = 0

    @field_validator("micro_images")
    @classmethod
    def _not_single_images(cls, images: int) -> int:
        if images == 1:
            raise ValueError(
                "batch normalisation cannot train on single images; use at least 2, or 0 for all"
            )
        return images


class ModelConfig(Section):
    """The network; see maskreid_dist.model.network."""

    # The trunk: the paper's, or a model of the package timm ("timm:resnet50").
    backbone: Annotated[str, Field(pattern=r"^(inception|timm:[A-Za-z0-9_.-]+)$")] = "inception"
    streams: tuple[Stream, ...] = ("raw", "masked")
    # How a mask comes in: as the stream "masked", or as a fourth channel of the raw image.
    mask_input: Literal["stream", "channel"] = "stream"
    # The trunk's levels that are fused, from 0, or negative from its end.
    levels: Annotated[tuple[int, ...], Field(min_length=1)] = (-3, -2, -1)
    last_stride: Annotated[int, Field(ge=1, le=2)] = 2  # of the last of them; 1: twice the rows and columns
    ibn: bool = False  # of a ResNet of timm: instance beside batch normalisation in its first three stages
    pooling: Pooling = "mean"  # of a level; gem: generalised mean, its power is learnt
    # bnneck: the pair losses see features before the last normalisation, the classifier and a search those
    # after it.
    neck: Neck = "bn"
    fusing: Fusing = "pool"
    fusing_rows: Pixels = 1  # horizontal stripes that each level is averaged in; the paper does not say
    width: Annotated[float, Field(gt=0, le=16)] = 1.0  # of the paper's trunk
    embedding_dim: Annotated[int, Field(gt=0, le=65_536)] = 256
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    # At inference: an embedding is the mean of the image's and its mirror image's, for twice the work.
    with_mirror: bool = False
    # First weights: a safetensors file, a run directory or one of its checkpoints; what has the same name and
    # shape is taken. "pretrained:timm": what timm publishes of its trunk, fetched once.
    init: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _tuples_from_lists(cls, values: object) -> object:
        if not isinstance(values, dict):
            return values
        lists = {key: values.get(key) for key in ("streams", "levels")}
        found = {key: tuple(value) for key, value in lists.items() if isinstance(value, list)}
        if values.get("mask_input") == "channel":
            found.setdefault("streams", ("raw",))
        return {**values, **found}

    @model_validator(mode="after")
    def _streams_differ(self) -> Self:
        if not self.streams or len(set(self.streams)) != len(self.streams):
            raise ValueError('streams must be one or both of "raw" and "masked", each once')
        return self

    @model_validator(mode="after")
    def _mask_comes_in_once(self) -> Self:
        if self.mask_input == "channel" and self.streams != ("raw",):
            raise ValueError('mask_input = "channel" is of the raw stream alone; use streams = ["raw"]')
        return self

    @model_validator(mode="after")
    def _levels_of_the_trunk(self) -> Self:
        if len(set(self.levels)) != len(self.levels):
            raise ValueError("levels names one twice; name each once")
        if self.backbone != "inception":
            if self.width != 1.0:
                raise ValueError(f"width is of the paper's trunk; leave it out with {self.backbone}")
        elif self.ibn:
            raise ValueError("ibn is of a ResNet of timm, not of the paper's trunk; leave it out")
        elif not set(self.levels) <= set(range(-3, 3)) or len({n % 3 for n in self.levels}) < len(
            self.levels
        ):
            raise ValueError("the paper's trunk has the levels 0, 1 and 2; name each once")
        elif 2 not in {n % 3 for n in self.levels}:
            raise ValueError("the paper's trunk ends with level 2: it must be among the levels")
        return self


RENAMED_LOSSES = {"triplet": "batch_hard", "supcon": "supervised_contrastive"}
DEFAULT_MARGINS = {"all_pairs": 0.0, "circle": 0.25}  # what their papers take where a recipe does not say


class LossConfig(Section):
    """`ranking`: Eq. 5 of the paper. `batch_hard`: triplets, online hard mining. `softmax`: identification.

    `n_pair` and `all_pairs`: Eq. 3 and 4 of the paper. `circle`, `supervised_contrastive`: their papers'.
    Each reads the keys that name it. `identity_weight` adds that much of the softmax loss to the others; the
    paper adds none.
    """

    name: Literal[
        "ranking", "batch_hard", "softmax", "n_pair", "all_pairs", "circle", "supervised_contrastive"
    ] = "ranking"
    # of ranking, batch_hard, all_pairs (0) and circle (0.25)
    margin: Annotated[float, Field(ge=0)] | Literal["soft"] = 0.15
    pull: Annotated[float, Field(ge=0)] = 2.0  # lambda of Eq. 5
    negatives: Literal["all", "violating"] = "all"
    distance: Literal["euclidean", "squared_euclidean", "cosine"] = "euclidean"  # batch_hard
    scale: Annotated[float, Field(gt=0)] = 1.0  # n_pair, all_pairs: of the similarities in the exponent
    gamma: Annotated[float, Field(gt=0)] = 128.0  # circle
    temperature: Annotated[float, Field(gt=0)] = 0.1  # supervised_contrastive
    identity_weight: Annotated[float, Field(ge=0)] = 0.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of the softmax loss, by itself or added
    # Cross-batch memory: the loss of the batch against its own embeddings and those of the last `memory`
    # steps is added, `memory_weight` times, from step `memory_start` on. 0: none.
    memory: Count = 0
    memory_weight: Annotated[float, Field(gt=0)] = 1.0
    memory_start: Count = 0
    # Backend of `loss.name`; the added softmax uses auto.
    backend: Literal["auto", "reference", "dense", "chunked", "triton"] = "auto"
    # Of the triton backend's matrix products, see maskreid_kernels.precision; auto: what
    # torch.set_float32_matmul_precision says. Under backend "auto" it counts where that chooses triton.
    precision: Literal["auto", "bf16", "bf16x3", "tf32", "tf32x3", "ieee"] = "auto"

    @field_validator("name", mode="before")
    @classmethod
    def _not_an_old_name(cls, name: object) -> object:
        if isinstance(name, str) and name in RENAMED_LOSSES:
            raise ValueError(f'"{name}" is now called "{RENAMED_LOSSES[name]}"')
        return name

    @model_validator(mode="before")
    @classmethod
    def _margin_of_the_loss(cls, values: object) -> object:
        name = values.get("name") if isinstance(values, dict) else None
        if isinstance(values, dict) and isinstance(name, str) and name in DEFAULT_MARGINS:
            return {"margin": DEFAULT_MARGINS[name], **values}
        return values

    @model_validator(mode="after")
    def _belongs_together(self) -> Self:
        if self.margin == "soft" and self.name != "batch_hard":
            raise ValueError('margin = "soft" belongs to the batch_hard loss')
        if self.backend in ("dense", "triton") and self.name == "softmax":
            raise ValueError(f'the softmax loss has no {self.backend} backend; use backend = "auto"')
        if self.precision != "auto" and self.name == "softmax":
            raise ValueError(
                "the softmax loss has no triton backend, whose option precision is; leave it out"
            )
        if self.precision != "auto" and self.backend not in ("auto", "triton"):
            raise ValueError(
                f'precision is an option of the triton backend, not of "{self.backend}"; leave it out, or '
                'use backend = "triton"'
            )
        return self

    @model_validator(mode="after")
    def _smooths_a_softmax(self) -> Self:
        if self.label_smoothing and not self.classifies:
            raise ValueError("label_smoothing is of the softmax loss; set identity_weight, or leave it out")
        return self

    @model_validator(mode="after")
    def _memory_has_pairs(self) -> Self:
        if not self.memory:
            if (self.memory_weight, self.memory_start) != (1.0, 0):
                raise ValueError("memory_weight and memory_start are of a memory; set loss.memory, in steps")
        elif self.name == "softmax":
            raise ValueError("the softmax loss compares no embeddings, which memory keeps; leave it out")
        elif self.backend in ("dense", "triton"):
            raise ValueError(
                f"the {self.backend} backend takes no candidates beside the batch, which memory is; use "
                'backend = "auto"'
            )
        return self

    @property
    def classifies(self) -> bool:
        return self.name == "softmax" or self.identity_weight > 0


class OptimizerConfig(Section):
    """`schedule`: after `warmup_steps`, from `lr` to `lr * final_lr_factor` in `steps` steps of training.

    `staircase` is DGD's: falling linearly in `stairs` equal steps. Weight decay spares biases and
    normalisation.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: Annotated[float, Field(gt=0)] = 0.1
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # sgd
    steps: Positive = 55_000
    warmup_steps: Count = 0
    schedule: Literal["staircase", "linear", "cosine", "constant"] = "staircase"
    stairs: Positive = 20
    final_lr_factor: Annotated[float, Field(gt=0, le=1)] = 0.005
    gradient_clipping: Annotated[float, Field(ge=0)] = 0.0  # L2 norm; 0 for none
    # Moving average of the weights, kept as decay * average + (1 - decay) * weights after every step; it is
    # what evaluations and weights.safetensors have. 0: none.
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0


class EngineConfig(Section):
    """What DeepSpeed is told; its JSON is generated from this and written into the run directory."""

    # ZeRO: what the ranks share instead of each holding it; optimizer states (1), gradients (2), weights (3).
    zero_stage: Annotated[int, Field(ge=0, le=3)] = 0
    # To host memory: the optimizer's states and its step (from stage 1 on), the weights too (stage 3).
    offload: Literal["none", "optimizer", "all"] = "none"
    # Stems and trunk keep their inputs alone for the backward pass and compute the rest again: the same step.
    activation_checkpointing: bool = False
    # Batch normalisation by the statistics of all ranks; GPUs only, torch has none for CPUs.
    sync_batchnorm: bool = False
    autocast: Literal["float32", "bfloat16"] = "float32"  # of activations; weights stay float32
    collective_timeout_s: Positive = 600  # then a rank that does not come is named, and all leave
    # Ranks that the recipe is for; another number is an error at the start. Without it, any.
    world: Positive | None = None

    @model_validator(mode="after")
    def _offload_of_a_stage(self) -> Self:
        least = {"none": 0, "optimizer": 1, "all": 3}[self.offload]
        if self.zero_stage < least:
            raise ValueError(
                f'offload = "{self.offload}" is of ZeRO; use engine.zero_stage = {least} or more'
            )
        return self


class RunConfig(Section):
    """Logging and checkpoints."""

    log_every: Positive = 10  # steps
    # Where numbers go besides metrics.jsonl. All but tensorboard are packages of their own.
    tracker: tuple[TrackerName, ...] = ("tensorboard",)
    project: str = "maskreid"  # of wandb and trackio; mlflow's experiment
    checkpoint_every: Positive = 500  # steps
    # Steps from one evaluation to the next, over all ranks; one after the last step too; 0: none. The
    # checkpoint with the best mAP (hits) is kept besides the newest.
    evaluate_every: Count = 0
    evaluate_shards: Location | None = None  # with the splits query and gallery; none: data.shards
    keep_checkpoints: Annotated[int, Field(ge=2)] = 2  # the newest can be damaged: the one before must exist
    # Each machine has a run directory of its own (--runs on a local disk) and keeps the pieces of its ranks
    # there. Resuming needs them all.
    local_checkpoints: bool = False
    # Steps from one comparison of the ranks' weights to the next; 0: only before each save. A host sync each.
    check_every: Count = 0
    # A loss or gradient that is not finite ends the training before a save (stop), or its step is left out
    # (skip: a host sync each step), at most `non_finite_budget` times in a run.
    non_finite: Literal["stop", "skip"] = "stop"
    non_finite_budget: Positive = 10

    @model_validator(mode="before")
    @classmethod
    def _trackers_from_list(cls, values: object) -> object:
        if isinstance(values, dict) and isinstance(values.get("tracker"), list):
            return {**values, "tracker": tuple(values["tracker"])}
        return values


class Config(Section):
    """A whole recipe. `runs/<name>` holds everything that the run writes."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    data: DataConfig
    batch: BatchConfig = BatchConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    engine: EngineConfig = EngineConfig()
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _averages_whole_weights(self) -> Self:
        if self.optimizer.ema and self.engine.zero_stage == 3:
            raise ValueError(
                "optimizer.ema needs whole weights on a rank; use engine.zero_stage 0 to 2, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _ranks_have_as_many_parts(self) -> Self:
        ragged = self.batch.sampling == "pk" and self.batch.few_images == "all"
        if self.batch.micro_images and ragged and self.engine.sync_batchnorm:
            raise ValueError(
                'batch.micro_images with few_images = "all" goes without engine.sync_batchnorm: ranks whose '
                "batches differ in size would exchange statistics a different number of times"
            )
        if self.batch.micro_images and ragged and self.engine.zero_stage >= 2:
            raise ValueError(
                'batch.micro_images with few_images = "all" needs engine.zero_stage 0 or 1: ranks whose '
                "batches differ in size would reduce their gradients a different number of times"
            )
        return self

    @model_validator(mode="after")
    def _batch_has_pairs(self) -> Self:
        mined = self.loss.name != "softmax" and self.batch.sampling == "pk"
        if mined and (self.batch.identities < 2 or self.batch.images < 2):
            raise ValueError(
                f"the {self.loss.name} loss compares images of one identity with those of others: "
                "batch.identities and batch.images must be at least 2"
            )
        return self
