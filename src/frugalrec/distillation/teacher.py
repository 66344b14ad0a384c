"""What the teacher answers: computed once, kept on disk as constants."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from frugalrec.llm.scoring import CausalScorer, Query, Seq2SeqScorer
from frugalrec.runs import storage_errors

if TYPE_CHECKING:
    from frugalrec.distillation.options import Over
    from frugalrec.llm.local import LocalLM

CHUNK = 16
"""Prompts that are asked at a time: their distributions over all tokens are in memory."""
Table = NDArray[np.float16]


def taught(lm: LocalLM, queries: Sequence[Query], over: Over, folder: Path, key: str) -> Table:
    """Return the teacher's log-probabilities at all positions of some queries, in their order.

    Args:
        lm: The teacher.
        queries: What it is asked.
        over: Log-probabilities of all tokens, or of a query's targets.
        folder: Where the table is kept; one of the same key, model and queries is read, not computed.
        key: What else the table depends on: the teacher's fingerprint.

    Returns:
        (n_positions, vocabulary or n_targets). Half precision: what that rounds off a log-probability of
        -10 is 0.004, which counts by the probability e^-10. Read from disk as it is needed.
    """
    said = [[query.tokens, query.positions, query.decoder, query.targets.tolist()] for query in queries]
    digest = hashlib.sha256(json.dumps([key, over, said]).encode()).hexdigest()[:16]
    path = folder / f"teacher-{digest}.npy"
    if not path.is_file():
        aside = folder / f".teacher-{digest}-{os.getpid()}.npy"
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            _write(lm, queries, over, aside)
            os.replace(aside, path)
    table: Table = np.load(path, mmap_mode="r", allow_pickle=False)
    return table


def _write(lm: LocalLM, queries: Sequence[Query], over: Over, path: Path) -> None:
    rows = sum(len(query.positions) for query in queries)
    vocabulary = int(lm.network.get_output_embeddings().weight.shape[0])
    width = vocabulary if over == "vocabulary" else queries[0].targets.shape[1]
    table = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(rows, width))
    scorer: CausalScorer | Seq2SeqScorer = (
        Seq2SeqScorer(lm.network, pad=lm.pad_id, max_batch_tokens=lm.max_batch_tokens)
        if lm.is_encoder_decoder
        else CausalScorer(lm.network, pad=lm.pad_id, max_batch_tokens=lm.max_batch_tokens)
    )
    every, at = np.arange(vocabulary), 0
    for start in range(0, len(queries), CHUNK):
        part = list(queries[start : start + CHUNK])
        if over == "vocabulary":
            part = [replace(q, targets=np.tile(every, (len(q.positions), 1))) for q in part]
        with lm._running():
            (found,), _ = scorer.score([part])
        for values in found:
            table[at : at + len(values)] = values
            at += len(values)
    table.flush()
