"""The configuration of a run: one frozen section a stage, read from YAML, every field documented."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from frugalrec.errors import ConfigError
from frugalrec.ledger import Prices


class Section(BaseModel):
    """Base of all sections: frozen, unknown fields refused, docstrings become field descriptions."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class DataConfig(Section):
    """Where the interactions come from and how they are split."""

    source: str = "film-club"
    """A file, a folder, or `film-club` for the simulated film club."""
    format: str = "auto"
    """Reader; `auto` recognises it."""
    columns: dict[str, str] = {}
    """Which columns hold user, item, value and time, where they cannot be guessed."""
    items: str | None = None
    """A table of item texts, where the reader does not find one."""
    item_columns: dict[str, str] = {}
    """Which columns of the items table hold item and title."""
    time_unit: Literal["auto", "s", "ms"] = "auto"
    encoding: str = "utf-8"
    """Text encoding of CSV files."""
    members: int = Field(default=600, ge=20)
    """Members of the simulated film club."""
    split: Literal["auto", "time", "user-time", "leave-last-out", "given"] = "auto"
    """`auto`: the publisher's folds where given, else global time, else leave-last-out."""
    valid: float = 0.1
    """Share of interactions in validation (`time` and `user-time`)."""
    test: float = 0.1
    """Share of interactions in test (`time` and `user-time`)."""
    allow: tuple[str, ...] = ()
    """Error-level audit findings to go on with, knowingly."""


class RecommendersConfig(Section):
    """The cheap models and the first-stage ranking."""

    names: tuple[str, ...] = (
        "random",
        "max-id",
        "popularity",
        "recent-popularity",
        "markov",
        "item-knn",
        "ease",
        "als",
        "bpr",
        "sasrec",
    )
    """Models of the table in `frugalrec.recommenders`."""
    options: dict[str, dict[str, Any]] = {}
    """Options of single models, by name."""
    first_stage: str = "auto"
    """Which model's list the LLM re-ranks; `auto` takes the best on validation."""
    learning_to_rank: bool = True
    """Also re-order the first stage's candidates by boosted trees, where LightGBM is installed: a rival."""
    refit: bool = True
    """Fit again on train and validation before the test, as a deployment would."""
    depth: int = Field(default=100, ge=10)
    """Length of the stored lists."""


class SelectionConfig(Section):
    """Which training samples the LLM is tuned on."""

    scorer: str = "random"
    """`random`, `longest`, `recent`, `influence`, `effort`, `dealrec`, `el2n`, `grand`, `ccs`, `tf-dcon` or
    `recranker`."""
    options: dict[str, Any] = {}
    """Options of the scorer, for example `{n_surrogates: 3}`."""
    budget: str | int | float = "auto"
    """Samples to keep: a number, or a share such as `2%`; `auto` takes 64, or all where there are fewer."""
    window: int = Field(default=8, ge=1)
    """Longest history in a prompt, in items."""
    min_history: int = Field(default=3, ge=1)
    """Samples with a shorter history are no candidates."""


class TuningConfig(Section):
    """Few-shot LoRA tuning with yes/no scoring."""

    enabled: bool = True
    negatives: int = Field(default=3, ge=1)
    """Candidates of the cheap model shown as No, per sample."""
    epochs: int = Field(default=2, ge=1)
    learning_rate: float = Field(default=5e-4, gt=0)
    rank: int = Field(default=8, ge=1)
    """LoRA rank."""
    batch_size: int = Field(default=16, ge=1)


class LLMConfig(Section):
    """The language model and how many users it may serve."""

    model: str = "smollm2-135m"
    """An embedded model, a folder, a Hugging Face id, an endpoint such as
    `http://localhost:8000/v1#name-of-model`, or `none`."""
    style: Literal["auto", "pointwise", "listwise", "first-token", "likelihood"] = "auto"
    """How candidates are asked about: one yes/no question each (`pointwise`, the only one that is tuned), one
    question for an order (`listwise`, `first-token`), or the likelihood of titles; `auto` is pointwise,
    and listwise at an endpoint."""
    replicas: int = Field(default=1, ge=1)
    """Orders in which listwise candidates are shown; their answers are merged."""
    promotion_cap: int | None = Field(default=None, ge=0)
    """Listwise: no item moves up more than so many places."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    candidates: int = Field(default=20, ge=2)
    """How many items of the cheap list are re-ranked."""
    noun: str = "auto"
    """What one item is called in the prompt, such as film or game; `auto` guesses from the data."""
    min_like: float | None = None
    """With a number, history items rated at least so are shown as liked, the others as disliked."""
    zero_shot: bool = True
    """Also re-rank with the untuned model, for comparison."""
    weights: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
    """Weights of the LLM in the fused score that validation chooses from; 0 is the cheap list."""
    calibration_users: int = Field(default=100, ge=1)
    """Validation users re-ranked to choose the fusion weight."""


class EndpointConfig(Section):
    """How an OpenAI-compatible endpoint is called, where `llm.model` is an address."""

    profile: str = "generic"
    """`openai`, `vllm`, `ollama`, `llamacpp` or `generic`."""
    api_key_env: str | None = None
    """The environment variable that holds the key."""
    cap: str | None = None
    """The most that all calls of the run may cost, retries included: `2 USD`, `1M tokens`, `5000 calls`."""
    concurrency: int = Field(default=16, ge=1)
    requests_per_minute: float | None = Field(default=None, gt=0)
    tokens_per_minute: float | None = Field(default=None, gt=0)
    deadline_s: float = Field(default=120.0, gt=0)
    """Seconds a request may take, waiting and retries included; then its user keeps the cheap list."""


class AllocationConfig(Section):
    """Which test users get the LLM."""

    policy: str = "random"
    """`random` measures what the LLM gains; `gain-per-cost` spends where it pays; also `all`, `none`,
    `fewest-interactions`, `uncertainty`, `weak-quantile`."""
    budget: str | int = 300
    """The most that may be spent on test users: a number of them, or `20%` (of what all would cost),
    `1M tokens`, `5000 calls`, `600 s`, `2.50 USD`, `unlimited`."""
    floor: float = Field(default=0.0, ge=0, le=1)
    """At least this share of the budget goes to the least active tenth, as far as the policy allows."""
    z: float = Field(default=1.0, ge=0)
    """`gain-per-cost` spends where the expected gain less so many standard errors is above 0."""


class EvaluationConfig(Section):
    """Metrics and intervals."""

    metrics: tuple[str, ...] = ("ndcg@10", "recall@10", "hit@10", "mrr@10")
    primary: str = "ndcg@10"
    """The metric that validation choices and the plots use."""
    resamples: int = Field(default=2000, ge=100)
    """Bootstrap resamples."""
    level: float = Field(default=0.95, gt=0, lt=1)
    """Level of the intervals."""


class RunConfig(Section):
    """Everything a run depends on."""

    seed: int = 0
    data: DataConfig = DataConfig()
    recommenders: RecommendersConfig = RecommendersConfig()
    selection: SelectionConfig = SelectionConfig()
    tuning: TuningConfig = TuningConfig()
    llm: LLMConfig = LLMConfig()
    endpoint: EndpointConfig = EndpointConfig()
    allocation: AllocationConfig = AllocationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    prices: dict[str, Any] | None = None
    """A dated price table (see `frugalrec.ledger.Prices`); without one, no money is shown."""

    def price_table(self) -> Prices | None:
        """Return the price table, or None."""
        if self.prices is None:
            return None
        try:
            return Prices(**self.prices)
        except TypeError as error:
            raise ConfigError(f"prices: {error}; a price table needs as_of: YYYY-MM-DD.") from None

    def to_yaml(self) -> str:
        """Return the configuration as YAML; `load` reads it back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load(path: Path | None, overrides: dict[str, Any]) -> RunConfig:
    """Read a configuration file and lay dotted overrides over it.

    Args:
        path: A YAML file, or None for the defaults.
        overrides: Such as ``{"llm.model": "none"}``; None values are left out.

    Raises:
        ConfigError: On an unreadable file, an unknown field or a value out of range.
    """
    content: Any = {}
    if path is not None:
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except FileNotFoundError:
            raise ConfigError(f"there is no configuration file {path}.") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
        if not isinstance(content, dict):
            raise ConfigError(f"{path} holds {content!r}, not sections such as data: and llm:.")
    for dotted, value in overrides.items():
        if value is None:
            continue
        *sections, field = dotted.split(".")
        target = content
        for section in sections:
            target = target.setdefault(section, {})
        target[field] = value
    try:
        return RunConfig.model_validate(content)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg']} (got {e.get('input')!r})" for e in error.errors()
        )
        raise ConfigError(f"the configuration does not fit: {faults}.") from None
