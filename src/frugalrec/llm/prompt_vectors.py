"""Learned prompts: a few vectors a task, which a network reads as extra rows of its vocabulary.

After POD (CIKM 2023), where a task's worded prompt becomes P vectors in front of the text. Here each
vector has a token of its own, ``<|sequential:0|>``, behind the vocabulary; the input embedding looks
these tokens up in the learned table, and the output layer does not know them. So whatever works on token
ids works on learned prompts: scoring, shared prefixes, tries and beams.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from frugalrec.errors import ConfigError, ModelError
from frugalrec.rng import generator

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM

POD_BOUND = 0.1
"""POD draws its vectors uniformly from -0.1 to 0.1."""
_TASK = re.compile(r"[a-z][a-z0-9-]*")


class TaskPrompt(nn.Module):
    """P learned vectors for each of some tasks."""

    def __init__(self, tasks: Sequence[str], values: Tensor) -> None:
        """Store the vectors.

        Args:
            tasks: Names of the tasks: lower case, such as sequential or top-n.
            values: (n_tasks, P, width).

        Raises:
            ConfigError: If a name is no plain word or is given twice, or the shape is another.
        """
        super().__init__()
        wrong = [task for task in tasks if not _TASK.fullmatch(task)]
        if wrong or len(set(tasks)) != len(tasks) or not tasks:
            raise ConfigError(f"tasks need different names in lower case, not {list(tasks)}.")
        if values.ndim != 3 or len(values) != len(tasks) or not values.shape[1]:
            raise ConfigError(f"prompt vectors of {len(tasks)} tasks cannot be {tuple(values.shape)}.")
        self.tasks = tuple(tasks)
        self.weight = nn.Parameter(values.detach().clone().float())

    @classmethod
    def uniform(
        cls, tasks: Sequence[str], n_vectors: int, width: int, *, seed: int, bound: float = POD_BOUND
    ) -> Self:
        """Return vectors drawn uniformly from -bound to bound, POD's start."""
        rng = generator(seed, "prompt-vectors", "uniform")
        drawn = rng.uniform(-bound, bound, (len(tasks), n_vectors, width))
        return cls(tasks, torch.from_numpy(drawn))

    @classmethod
    def from_vocabulary(cls, lm: LocalLM, tasks: Sequence[str], n_vectors: int, *, seed: int) -> Self:
        """Return embeddings of tokens drawn at random from a model's vocabulary."""
        table = token_embeddings(lm)
        rng = generator(seed, "prompt-vectors", "vocabulary")
        drawn = rng.integers(0, min(len(lm.tokenizer), len(table)), (len(tasks), n_vectors))
        return cls(tasks, table[torch.from_numpy(drawn)])

    @classmethod
    def from_words(cls, lm: LocalLM, words: Mapping[str, str], n_vectors: int) -> Self:
        """Return the embeddings of worded prompts, each squeezed or stretched to P vectors.

        Vector j is the mean over the j-th of P parts of the words' tokens, as even as they get; with
        fewer tokens than vectors, tokens are repeated.

        Args:
            lm: The model whose embeddings are taken.
            words: The worded prompt of each task.
            n_vectors: P.
        """
        table, found = token_embeddings(lm), []
        for task, text in words.items():
            ids = lm.tokenizer(text, add_special_tokens=False).input_ids
            if not ids:
                raise ConfigError(f"the words of the task {task!r} hold no token.")
            edges = [len(ids) * j // n_vectors for j in range(n_vectors + 1)]
            parts = [ids[low : max(high, low + 1)] for low, high in zip(edges, edges[1:], strict=False)]
            found.append(torch.stack([table[torch.tensor(part)].mean(dim=0) for part in parts]))
        return cls(list(words), torch.stack(found))

    @property
    def n_vectors(self) -> int:
        """P, the vectors a task."""
        return int(self.weight.shape[1])

    @property
    def tokens(self) -> list[str]:
        """The token of each vector, task after task."""
        return [f"<|{task}:{j}|>" for task in self.tasks for j in range(self.n_vectors)]

    def text(self, task: str) -> str:
        """Return what stands in a text for a task's vectors."""
        if task not in self.tasks:
            raise ConfigError(f"no prompt for the task {task!r}; there are {', '.join(self.tasks)}.")
        return "".join(f"<|{task}:{j}|>" for j in range(self.n_vectors))

    @property
    def sha256(self) -> str:
        """Hash of names and values."""
        digest = hashlib.sha256(json.dumps(self.tokens).encode())
        digest.update(self.weight.detach().cpu().numpy().tobytes())
        return digest.hexdigest()


class PromptedEmbedding(nn.Module):
    """A network's input embedding with the rows of a learned prompt behind its vocabulary."""

    def __init__(self, base_layer: Any, task_prompt: TaskPrompt, start: int) -> None:
        """Store both; the vectors' tokens have the ids from `start` on."""
        super().__init__()
        self.base_layer = base_layer
        self.task_prompt = task_prompt
        self.start = start

    @property
    def weight(self) -> Tensor:
        """The vocabulary's own rows, (vocabulary, width)."""
        weight: Tensor = self.base_layer.weight
        return weight

    @property
    def num_embeddings(self) -> int:
        """Rows of the vocabulary."""
        return len(self.weight)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the vectors of token ids, (..., width)."""
        rows = self.task_prompt.weight.flatten(0, 1)
        learned = (ids >= self.start) & (ids < self.start + len(rows))
        words: Tensor = self.base_layer(ids.masked_fill(learned, 0))
        prompts = nn.functional.embedding((ids - self.start).masked_fill(~learned, 0), rows)
        return torch.where(learned[..., None], prompts.to(words.dtype), words)


def token_embeddings(lm: LocalLM) -> Tensor:
    """Return what a network reads for each token of its vocabulary, (vocabulary, width) float32."""
    layer = lm.network.get_input_embeddings()
    layer = getattr(layer, "base_layer", layer)
    scale = getattr(layer, "embed_scale", 1.0)  # of networks that scale what they look up (Gemma)
    table: Tensor = layer.weight.detach().float()
    return table * torch.as_tensor(scale).to(table)


def learned_prompt(lm: LocalLM) -> TaskPrompt | None:
    """Return the learned prompt that a model reads, if any."""
    layer = lm.network.get_input_embeddings()
    return layer.task_prompt if isinstance(layer, PromptedEmbedding) else None


def add_prompt(lm: LocalLM, prompt: TaskPrompt) -> None:
    """Let a model read a learned prompt, in place; texts without its tokens read as before.

    Args:
        lm: A model without learned prompt.
        prompt: The vectors; they go to the network's device and stay float32, to be trained.

    Raises:
        ModelError: If the model has a learned prompt, or vectors of another width, or its tokenizer
            knows the tokens.
    """
    layer = lm.network.get_input_embeddings()
    if isinstance(layer, PromptedEmbedding):
        raise ModelError(f"{lm.model} reads a learned prompt already; load it without.")
    if layer.weight.shape[1] != prompt.weight.shape[2]:
        raise ModelError(
            f"prompt vectors of width {prompt.weight.shape[2]} do not fit {lm.model}, whose embeddings have "
            f"{layer.weight.shape[1]}; take the prompt that was made for this model."
        )
    start = len(lm.tokenizer)
    tokenizer = copy.deepcopy(lm.tokenizer)
    added = tokenizer.add_tokens([special_token(token) for token in prompt.tokens], special_tokens=True)
    if added != len(prompt.tokens):
        raise ModelError(f"the tokenizer of {lm.model} knows {prompt.tokens[0]} already; rename the tasks.")
    if tokenizer.convert_tokens_to_ids(prompt.tokens) != list(range(start, start + added)):
        raise ModelError(f"the tokenizer of {lm.model} has gaps in its ids; it cannot take learned prompts.")
    lm.tokenizer = tokenizer
    prompt.to(layer.weight.device)
    lm.network.set_input_embeddings(PromptedEmbedding(layer, prompt, start))


def special_token(token: str) -> Any:
    """Return a token that a tokenizer keeps whole and takes no blank beside."""
    from transformers import AddedToken

    return AddedToken(token, special=True, normalized=False, lstrip=False, rstrip=False)


def remove_prompt(lm: LocalLM) -> None:
    """Take a learned prompt away again, in place; the tokenizer keeps its tokens.

    Raises:
        ModelError: If there is none.
    """
    layer = lm.network.get_input_embeddings()
    if not isinstance(layer, PromptedEmbedding):
        raise ModelError(f"{lm.model} reads no learned prompt.")
    lm.network.set_input_embeddings(layer.base_layer)
