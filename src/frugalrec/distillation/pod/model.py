"""POD, repaired: options, and a trained model as the other parts of this package use one.

After "Prompt Distillation for Efficient LLM-based Recommendation" (CIKM 2023). Three tasks are trained
together, each with P learned vectors before its text; see `templates`, `samples`, `batches`, `whole_word`.
`PodTrainer` trains, `legacy` keeps the published faults for comparison.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from frugalrec.distillation.pod.encoding import CUE
from frugalrec.distillation.pod.templates import SEQUENTIAL, TASKS, IdWriter, asked
from frugalrec.errors import ConfigError, DataError
from frugalrec.llm.next_title import NextTitlePrompt

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM

MANIFEST = "frugalrec_pod.json"
MODEL, ADAPTER, PROMPT, ROWS = "model", "adapter", "prompt", "whole_word.safetensors"
Mode = Literal["joint", "lora+prompt", "prompt-only", "prefix-kv", "discrete"]
TRAINS_ALL: tuple[Mode, ...] = ("joint", "discrete")
"""Modes that train all weights, and so keep a whole model."""
Start = Literal["words", "vocabulary", "uniform"]
Mean = Literal["rows", "tokens"]
Choice = Literal["loss", "ndcg"]


@dataclass(frozen=True, kw_only=True)
class Faults:
    """Faults of the published code, all of them off; `legacy.published` turns them on."""

    pads_in_loss: bool = False
    """The loss averages over the padding of answers too, as if it were to be written."""
    no_cross_mask: bool = False
    """The decoder attends to the padding of prompts, so that answers depend on the rest of a batch."""
    row_zero: bool = False
    """Whole-word rows start at N(0, 1), and row 0 is trained and added to all words."""
    patience_in_total: bool = False
    """Epochs without a better loss are counted together, not since the last better one."""
    telling_negatives: bool = False
    """Negatives of top-n prompts are kept apart from a user's held-out items too, which tells these apart."""
    equal_turns: bool = False
    """Every task gets as many batches, whatever its size, and each first pass is in the order of the file."""


@dataclass(frozen=True, kw_only=True)
class PodConfig:
    """How POD is trained."""

    mode: Mode = "joint"
    """`joint` trains all weights, `lora+prompt` LoRA matrices and vectors, `prompt-only` vectors alone,
    `prefix-kv` the keys and values of one task's opening words (causal networks). `discrete` has no vectors:
    all weights are trained on worded templates alone, and asked in words; what POD is compared with."""
    n_vectors: int = 10
    """P: learned vectors of a task."""
    start: Start = "words"
    """Where vectors start: a task's first template, tokens drawn from the vocabulary, or uniform."""
    weights: Mapping[str, float] = field(default_factory=lambda: {SEQUENTIAL: 1.0})
    """Task -> passes over its rows in an epoch (a share of them below 1); tasks left out are not trained."""
    window: int = 20
    """History items shown at most."""
    negatives: int = 99
    """Items beside the right one in top-n prompts, and in the fixed lists that `choose_by` ndcg ranks."""
    whole_word: bool = False
    """Add whole-word rows; a model with them cannot be exported."""
    max_entities: int = 512
    """Whole-word rows: users and items in one prompt, and one more."""
    explanation_tokens: int = 20
    """Longest explanation that is learned, without the end of text."""
    epochs: int = 10
    """Epochs at most."""
    learning_rate: float = 1e-3
    """Peak rate of AdamW; a tenth of the steps warms up, then it falls to 0."""
    prompt_learning_rate: float | None = None
    """Peak rate of the learned vectors; default: the same."""
    constant_rate: bool = False
    """The peak rate in every step."""
    weight_decay: float = 0.0
    clip: float = 1.0
    """Longest gradient; 0 for no limit."""
    batch_size: int = 64
    """Rows of a batch at most."""
    batch_tokens: int = 8192
    """Padded prompt tokens of a batch at most."""
    mean: Mean = "rows"
    """The loss is a mean over rows of the mean over a row's answer tokens, or over all answer `tokens`."""
    patience: int | None = 3
    """Stop after so many epochs without a better figure; None: never."""
    choose_by: Choice = "loss"
    """Epochs are judged by the validation loss, or by NDCG@10 among fixed negatives."""
    validation_users: int = 512
    """Users that judge epochs; 0: none, the last epoch is kept."""
    rank: int = 8
    alpha: int = 16
    dropout: float = 0.05
    """Of the LoRA matrices."""
    targets: str | tuple[str, ...] = "all-linear"
    """Layers that get LoRA matrices."""
    faults: Faults = Faults()
    seed: int = 0

    def __post_init__(self) -> None:
        """Check choices and ranges."""
        for name, kind in (("mode", Mode), ("start", Start), ("mean", Mean), ("choose_by", Choice)):
            if getattr(self, name) not in get_args(kind):
                known = ", ".join(get_args(kind))
                raise ConfigError(f"POD: {name} must be one of {known}, not {getattr(self, name)!r}.")
        for name in ("n_vectors", "window", "negatives", "epochs", "batch_size", "batch_tokens", "rank"):
            if getattr(self, name) < 1:
                raise ConfigError(f"POD: {name} must be at least 1, not {getattr(self, name)}.")
        unknown = sorted(set(self.weights) - set(TASKS))
        if unknown or not self.weights or min(self.weights.values()) <= 0:
            raise ConfigError(f"POD: weights need tasks of {TASKS}, each above 0, not {dict(self.weights)}.")
        if not 0 < self.learning_rate < 1:
            raise ConfigError(f"POD: learning_rate must lie between 0 and 1, not {self.learning_rate}.")
        if self.patience is not None and self.patience < 1:
            raise ConfigError(f"POD: patience must be at least 1, not {self.patience}.")
        self._check_mode()
        most = 1 + max(self.window, self.negatives + 1 if "top-n" in self.weights else 1)
        if self.whole_word and self.max_entities <= most:
            raise ConfigError(
                f"POD: prompts may name {most} users and items; give max_entities of {most + 1} or more, not "
                f"{self.max_entities}."
            )

    def _check_mode(self) -> None:
        """Check that the mode knows all that is asked for."""
        if self.mode == "prefix-kv" and (len(self.weights) > 1 or self.whole_word):
            raise ConfigError(
                "POD: a prefix of keys and values belongs to one task, and has no whole-word rows; train one "
                "model a task, or another mode."
            )
        if self.worded and (self.whole_word or self.prompt_learning_rate is not None):
            raise ConfigError(
                "POD: mode discrete has no learned vectors, behind which whole-word rows begin and which may "
                "have a rate of their own; leave whole_word and prompt_learning_rate out, or take mode joint."
            )

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that are trained."""
        return tuple(task for task in TASKS if task in self.weights)

    @property
    def worded(self) -> bool:
        """Whether words are all there is; see `templates.asked`."""
        return self.mode == "discrete"


@dataclass(frozen=True, kw_only=True)
class PodPrompt(NextTitlePrompt):
    """How a trained model is asked; for grounders, that is: titles are the answers of an `IdWriter`."""

    writer: IdWriter
    task: str = SEQUENTIAL
    template: int
    """Number of the template; see `templates.asked`."""
    task_opening: str = ""
    """The text of the task's learned vectors, if there are any."""
    cue: str = ""

    def written(self, user: int | None, items: Sequence[int]) -> str:
        """Return the prompt for a user code and item codes; see `IdWriter.text`."""
        return f"{self.task_opening}{self.writer.text(self.task, self.template, user, items)}{self.cue}"

    def question(self, history: Sequence[str]) -> str:
        """Return the prompt for some answers, oldest first.

        Raises:
            ConfigError: If users are written: then it takes a user, see `question_of`.
        """
        if self.writer.users is not None and history:
            raise ConfigError("these prompts name the user; ask with question_of, or train without users.")
        return self.written(None, self._items_of(history))

    def question_of(self, user: int, history: Sequence[str]) -> str:
        """Return the prompt for a user."""
        return self.written(user, self._items_of(history))

    def answer(self, title: str) -> str:
        """Return what is written for an item."""
        return f" {title}"

    def shown(self, history: Sequence[str]) -> list[str]:
        """Return the items that the prompt shows, as it shows them."""
        return [self.writer.items[item] for item in self._items_of(history)]

    def _items_of(self, history: Sequence[str]) -> list[int]:
        shown = history[-self.window :]
        if unknown := [title for title in shown if title not in self._codes]:
            raise DataError(
                f"{unknown[0]!r} is no id that this model was trained with; ground with "
                "titles=model.writer.answers."
            )
        return [self._codes[title] for title in shown]

    @cached_property
    def _codes(self) -> Mapping[str, int]:
        return {answer: item for item, answer in enumerate(self.writer.answers)}


@dataclass(frozen=True, kw_only=True)
class PodModel:
    """A trained model: a `LocalLM` that reads learned prompts, or words, and how to ask it."""

    lm: LocalLM
    writer: IdWriter
    folder: Path
    manifest: Mapping[str, Any]

    @property
    def evidence(self) -> Mapping[str, Any]:
        """How it was trained: losses, validation, seconds."""
        found: Mapping[str, Any] = self.manifest["evidence"]
        return found

    def opening(self, task: str) -> str:
        """Return what the prompts of a task begin with.

        Raises:
            ConfigError: If the model has not learned the task.
        """
        openings: Mapping[str, str] = self.manifest["openings"]
        if task not in openings:
            raise ConfigError(f"the model knows the tasks {', '.join(openings)}, not {task!r}.")
        return openings[task]

    def prompt_of(self, task: str) -> PodPrompt:
        """Return how the model is asked for a task."""
        config = self.manifest["config"]
        return PodPrompt(
            writer=self.writer,
            task=task,
            template=asked(task, worded=config["mode"] == "discrete"),
            task_opening=self.opening(task),
            cue="" if self.lm.is_encoder_decoder else CUE,
            window=int(config["window"]),
        )

    def question(self, task: str, user: int, items: Sequence[int]) -> str:
        """Return the prompt of a task, as validation and inference use it.

        Args:
            task: Its name.
            user: User code; not written where the writer has no users.
            items: Item codes: a history, oldest first (its last items are taken), candidates, or one item.
        """
        prompt = self.prompt_of(task)
        return prompt.written(user, items[-prompt.window :] if task == SEQUENTIAL else items)

    @property
    def prompt(self) -> PodPrompt:
        """The sequential task for grounders, with ``titles=model.writer.answers``."""
        return self.prompt_of(SEQUENTIAL)
