"""Re-ranking outside a run, with what the run left: its endpoint, its tuned model, or a student of that."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from frugalrec.config import RunConfig
from frugalrec.data.dataset import Dataset
from frugalrec.errors import ConfigError
from frugalrec.grounding.candidates import CandidateReranker
from frugalrec.grounding.reranking import Reranker, ScoreReranker
from frugalrec.llm.prompts import RerankPrompt
from frugalrec.stages.artefacts import load_json
from frugalrec.stages.llm import OpenModel
from frugalrec.stages.reranking import endpoint_of, fused, reranker_for
from frugalrec.types import Ranking

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM


def rerank_live(folder: Path, histories: Dataset, ranking: Ranking, student: Path | None = None) -> Ranking:
    """Re-rank lists with what a finished run left: its tuned model and its fusion weight.

    Args:
        folder: The run's folder.
        histories: What is known of the users.
        ranking: Their lists.
        student: Ask with this distilled prompt (`frugalrec distil`) instead of the run's words.
    """
    import yaml

    report = load_json(folder / "report.json")
    config = RunConfig.model_validate(yaml.safe_load(report["config_yaml"]))
    reranker = _live(config, histories, folder, student)
    scores = reranker.rerank(histories, ranking).scores
    return fused(config, ranking, scores, float(report["weights"]["chosen"]))


def _live(config: RunConfig, histories: Dataset, folder: Path, student: Path | None) -> Reranker:
    """Return what re-ranks as a run did: its endpoint, its tuned model, or a student of that."""
    adapter = folder / "tuning" / "adapter"
    own = adapter if adapter.is_dir() else None
    if student is not None:
        lm, prompt = _student(config, own, student)
        return ScoreReranker(CandidateReranker(lm, prompt), depth=config.llm.candidates)
    model = OpenModel(config.llm)
    if model.is_endpoint:
        return reranker_for(config, histories, lm=None, chat=endpoint_of(config, folder), cache=None)
    return reranker_for(config, histories, lm=model.load(own), chat=None, cache=None)


def _student(config: RunConfig, adapter: Path | None, student: Path) -> tuple[LocalLM, RerankPrompt]:
    """Return a student and its prompt."""
    from frugalrec.distillation.saving import load_student, read_student

    if OpenModel(config.llm).is_endpoint:
        raise ConfigError(f"the run asked the endpoint {config.llm.model}; a student needs a model here.")
    own = {} if read_student(student).evidence["options"]["mode"] == "lora" else {"adapter": adapter}
    lm, prompt = load_student(student, config.llm.model, dtype=config.llm.dtype, **own)
    if not isinstance(prompt, RerankPrompt):
        raise ConfigError(
            f"{student} was distilled from another kind of prompt than a run's; distil the run."
        )
    return lm, prompt
