"""One run of POD: a copy of the base model with its learned prompt, its rows, validation and training."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from frugalrec.data.dataset import concatenate
from frugalrec.distillation.pod.encoding import Encoder, Row
from frugalrec.distillation.pod.loading import drop_cross_mask
from frugalrec.distillation.pod.model import TRAINS_ALL, PodConfig
from frugalrec.distillation.pod.rows import PodRows, RowWeights
from frugalrec.distillation.pod.samples import Draw, next_items, unmet_items
from frugalrec.distillation.pod.templates import (
    EXPLANATION,
    ITEMS,
    SEQUENTIAL,
    TEMPLATES,
    TOP_N,
    USER,
    IdWriter,
    asked,
)
from frugalrec.rng import generator
from frugalrec.tuning.base import Progress
from frugalrec.types import IntArray

if TYPE_CHECKING:
    from frugalrec.data.readers.p5 import Explanations
    from frugalrec.data.splits import Split
    from frugalrec.llm.local import LocalLM
    from frugalrec.llm.prompt_vectors import TaskPrompt


class PodRun:
    """One training run, on a copy of the base model."""

    def __init__(
        self,
        config: PodConfig,
        base: LocalLM,
        split: Split,
        writer: IdWriter,
        explanations: Explanations | None,
    ) -> None:
        from frugalrec.tuning.reload import fresh_copy

        self.config, self.base, self.split, self.writer = config, base, split, writer
        self.lm = fresh_copy(base)
        self.openings = self._prepare()
        self.encoder = Encoder(self.lm, writer, self.openings)
        if explanations is not None:
            self.encoder.set_texts(explanations.texts, config.explanation_tokens)
        self.whole_word = self._add_whole_word() if config.whole_word else None
        telling = config.faults.telling_negatives
        met = concatenate(split.history("test"), split.test) if telling else None
        self.rows: PodRows = PodRows(self.encoder, config, split.train, explanations, met)

    def train(self, checkpoints: Path, progress: Progress | None) -> dict[str, Any]:
        """Train in place; return the evidence."""
        from frugalrec.distillation.pod.task import PodTask
        from frugalrec.tuning.schedule import Course
        from frugalrec.tuning.spent import Spent
        from frugalrec.tuning.training import follow

        config, spent = self.config, Spent()
        spent.resume(checkpoints)
        validation, candidates = self._validation()
        task = PodTask(
            self.lm,
            mean=config.mean,
            pads_in_loss=config.faults.pads_in_loss,
            candidates=candidates if config.choose_by == "ndcg" else (),
        )
        order, ends = self.rows.order()
        course = Course(
            order=order,
            ends=ends,
            learning_rate=config.learning_rate,
            constant=config.constant_rate,
            weight_decay=config.weight_decay,
            clip=config.clip,
            patience=config.patience,
            patience_resets=not config.faults.patience_in_total,
        )
        found = follow(
            self.lm.network,
            task,
            self.rows,
            course,
            validation,
            checkpoints,
            weights=RowWeights(self.rows, config.mean == "tokens"),
            seed=config.seed,
            progress=progress,
            saved=lambda: spent.keep(checkpoints),
            groups=self._groups(),
        )
        trained = sum(p.numel() for p in self.lm.network.parameters() if p.requires_grad)
        return {**found, "batches": len(order), "trainable_parameters": trained, **spent.read()}

    def save(self, out: Path, key: str, evidence: dict[str, Any]) -> None:
        """Write what was learned; the manifest comes last."""
        from frugalrec.distillation.pod.saving import write_pod

        whole_word = None if self.whole_word is None else self.whole_word.facts
        manifest = {
            "key": key,
            "config": {**asdict(self.config), "weights": dict(self.config.weights)},
            "catalogue": self.writer.catalogue,
            "ids": self.writer.fingerprint,
            "openings": self.openings,
            "whole_word": whole_word,
            "evidence": evidence,
        }
        write_pod(self.lm, self.base, out, manifest)

    def _prepare(self) -> dict[str, str]:
        """Give the copy its learned prompt, say what is trained, and return what prompts begin with."""
        from frugalrec.llm.prompt_vectors import add_prompt
        from frugalrec.tuning import lora

        config, lm = self.config, self.lm
        if config.mode == "prefix-kv":
            return self._prefix()
        prompt = None if config.worded else self._vectors()
        if config.mode == "lora+prompt":
            options: dict[str, Any] = {"targets": config.targets, "seed": config.seed}
            lm.network = lora.add_lora(
                lm.network, rank=config.rank, alpha=config.alpha, dropout=config.dropout, **options
            )
        else:
            lm.network.requires_grad_(config.mode in TRAINS_ALL)
        if prompt is not None:
            add_prompt(lm, prompt)
        if config.faults.no_cross_mask:
            drop_cross_mask(lm.network)
        return {task: "" if prompt is None else prompt.text(task) for task in config.tasks}

    def _vectors(self) -> TaskPrompt:
        """Return the learned vectors at their start."""
        from frugalrec.llm.prompt_vectors import TaskPrompt, token_embeddings

        config, lm = self.config, self.lm
        if config.start == "words":
            words = {task: _all_words(task) for task in config.tasks}
            return TaskPrompt.from_words(lm, words, config.n_vectors)
        if config.start == "vocabulary":
            return TaskPrompt.from_vocabulary(lm, config.tasks, config.n_vectors, seed=config.seed)
        width = token_embeddings(lm).shape[1]
        return TaskPrompt.uniform(config.tasks, config.n_vectors, width, seed=config.seed)

    def _prefix(self) -> dict[str, str]:
        """Let the network begin with learned keys and values, which stand for the task's words."""
        from frugalrec.llm.kv_prefix import KVPrefix, add_kv_prefix

        config, lm = self.config, self.lm
        (task,) = config.tasks
        opening = _all_words(task)
        (tokens,) = lm.encode([opening])
        lm.network.requires_grad_(False)
        read = KVPrefix.read(lm, tokens)
        add_kv_prefix(lm, read.shortened(min(config.n_vectors, read.n_vectors)))
        return {task: opening}

    def _add_whole_word(self) -> Any:
        from frugalrec.distillation.pod.whole_word import WholeWord, add_whole_word, check_rows
        from frugalrec.llm.prompt_vectors import learned_prompt, token_embeddings

        prompt = learned_prompt(self.lm)
        start = self.lm.network.get_input_embeddings().start
        size = len(prompt.tokens) if prompt is not None else 0
        faulty, cue = self.config.faults.row_zero, self.encoder.cue
        tokens = self.lm.tokenizer(cue, add_special_tokens=False).input_ids[-1:] if cue else []
        rows = WholeWord(
            token_embeddings(self.lm).shape[1],
            self.encoder.entities(),
            start + size,
            (start, start + size),
            end=tokens,
            max_entities=self.config.max_entities,
            zero_row=not faulty,
            init=1.0 if faulty else 0.0,
            seed=self.config.seed,
        )
        draws = [self._every_template(task) for task in self.config.tasks]
        shown = [(draw, number) for draw in draws for number in range(len(draw))]
        prompts = [self.encoder.prompt(draw, number).tolist() for draw, number in shown]
        check_rows(rows, prompts, [self.encoder.spans(draw, number) for draw, number in shown])
        add_whole_word(self.lm, rows)
        return rows

    def _every_template(self, task: str) -> Draw:
        """Return prompts of a few items in each template of a task."""
        n, rows = len(self.writer.items), 4 * len(TEMPLATES[task])
        drawn = generator(self.config.seed, "pod", "whole-word-check", task)
        return Draw(
            task=task,
            users=drawn.integers(0, self.split.train.n_users, rows).astype(np.int32),
            templates=np.arange(rows) // 4,
            indptr=np.arange(rows + 1, dtype=np.int64) * 5,
            items=drawn.integers(0, n, rows * 5).astype(np.int32),
            targets=np.zeros(rows, dtype=np.int32),
        )

    def _groups(self) -> list[dict[str, Any]] | None:
        """Return parameter groups where the vectors have a rate of their own."""
        rate = self.config.prompt_learning_rate
        if rate is None:
            return None
        named = [(n, p) for n, p in self.lm.network.named_parameters() if p.requires_grad]
        learned = [p for n, p in named if ".task_prompt." in n or ".kv_prefix." in n]
        others = [p for n, p in named if ".task_prompt." not in n and ".kv_prefix." not in n]
        groups: list[dict[str, Any]] = [{"params": learned, "lr": rate}]
        return groups if not others else [{"params": others}, *groups]

    def _validation(self) -> tuple[list[Row], list[list[IntArray]]]:
        """Return rows of held-out items, asked as at inference, and what they are ranked among."""
        config, split = self.config, self.split
        users = split.users("valid")
        if not config.validation_users or not users.size:
            return [], []
        chosen = generator(config.seed, "pod", "validation-users").permutation(users.size)
        users = np.sort(users[chosen[: config.validation_users]])
        template = asked(SEQUENTIAL, worded=config.worded)
        draw = next_items(split.train, split.valid, users, window=config.window, template=template)
        among = None
        if config.choose_by == "ndcg" or TOP_N in config.tasks:
            stream = ("pod", "validation-negatives")
            unmet = unmet_items(split.history("test"), config.negatives, seed=config.seed, stream=stream)
            among = np.concatenate([draw.targets[:, None], unmet[users]], axis=1)
        rows: list[Row] = []
        candidates: list[list[IntArray]] = []
        for task in config.tasks:
            if task == EXPLANATION:
                continue
            found = draw if among is None or task == SEQUENTIAL else _among(draw, among, config)
            rows += [self.encoder.row(found, row) for row in range(len(found))]
            if among is not None:
                candidates += [[self.encoder.answers[item] for item in items] for items in among]
        return rows, candidates


def _among(draw: Draw, among: IntArray, config: PodConfig) -> Draw:
    """Return the top-n prompts of some targets, candidates in an order of their own."""
    order = generator(config.seed, "pod", "validation-order").random(among.shape).argsort(axis=1)
    return Draw(
        task=TOP_N,
        users=draw.users,
        templates=np.full(len(draw), asked(TOP_N, worded=config.worded), dtype=np.int64),
        indptr=np.arange(len(draw) + 1, dtype=np.int64) * among.shape[1],
        items=np.take_along_axis(among, order, axis=1).ravel().astype(np.int32),
        targets=draw.targets,
    )


def _all_words(task: str) -> str:
    """Return the words of a task's first template, without ids."""
    return " ".join(TEMPLATES[task][0].replace(USER, "").replace(ITEMS, "").split())
