"""One LoRA training step on a CPU: where its time goes, and what packing and fast layers win back.

    python benchmarks/tuning_step.py [--quick] [--model smollm2-135m] [--threads 2] [--rows 16] [--tokens 200]

Each row of the table is one way to learn from the same prompts: a plain PEFT step (one prompt a row, the
logits of all tokens, the network's own loss); then, each on top of those before, the answers' logits
alone, users' prefixes computed once, and the fast LoRA layers and norms; then that with only the top
layers tuned. Ways are timed in turn, the least of several repeats counts. All ways with the loss over
(Yes, No) must give the same gradient, which is compared without dropout.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import peft
import polars as pl
import torch
import transformers

import frugalrec.data
from frugalrec.llm.local import LocalLM
from frugalrec.llm.prompts import RerankPrompt
from frugalrec.llm.queries import answer_queries
from frugalrec.rng import generator
from frugalrec.tuning import lora
from frugalrec.tuning.fast_lora import fast_lora
from frugalrec.tuning.losses import two_way_loss
from frugalrec.tuning.packing import answer_logits, collate, pack

FILMS = f"{next(iter(frugalrec.data.__path__))}/films.csv"
NEGATIVES = 3
TOP_LAYERS = (15, 8, 4)
STAGES = ("forward, no gradients", "forward", "backward", "optimizer")
Groups = list[list[tuple[int, ...]]]
"""Tokens of each user's prompts."""


@dataclass
class Way:
    """One way to compute a step, and its least times."""

    name: str
    loss: Callable[[Any], torch.Tensor]
    context: Callable[[Any], AbstractContextManager[Any]] = nullcontext
    wall: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)

    def seconds(self, times: dict[str, float]) -> float:
        """Return the time of a whole step."""
        return sum(times.get(stage, 0.0) for stage in STAGES[1:])

    def run(self, model: Any) -> None:
        """Time one step; a rate of 0 leaves the weights as they are."""
        tuned = [parameter for parameter in model.parameters() if parameter.requires_grad]
        model.zero_grad()
        with self.context(model):
            with torch.no_grad(), self.timing(STAGES[0]):
                self.loss(model)
            if not tuned:
                return
            with self.timing(STAGES[1]):
                loss = self.loss(model)
            with self.timing(STAGES[2]):
                loss.backward()
        optimizer = torch.optim.AdamW(tuned, lr=0.0, weight_decay=0.0, fused=True)
        for _ in range(2):  # the first one also makes the optimizer's state
            with self.timing(STAGES[3]):
                optimizer.step()

    @contextmanager
    def timing(self, stage: str) -> Iterator[None]:
        """Keep the least wall and CPU time of a stage."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.cpu[stage] = min(self.cpu.get(stage, 1e9), time.process_time() - cpu)
        self.wall[stage] = min(self.wall.get(stage, 1e9), time.perf_counter() - wall)

    def gradient(self, model: Any) -> torch.Tensor:
        """Return the gradient of a step without dropout, as one vector."""
        model.zero_grad()
        model.eval()
        with self.context(model):
            self.loss(model).backward()
        model.train()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def token_groups(base: LocalLM, users: int, tokens: int, seed: int) -> tuple[Groups, list[int]]:
    """Return the tokens of each user's prompts, four candidates each, and of the answers.

    Histories are as long as it takes for the first prompt to have about so many tokens.
    """
    titles = pl.read_csv(FILMS)["title"].to_list()
    rng = generator(seed, "benchmark", "tuning_step")
    shuffled = [rng.permutation(len(titles)).tolist() for _ in range(users)]
    for window in range(1, len(titles) - NEGATIVES):
        prompt = RerankPrompt(noun="film", window=window)
        groups = [
            prompt.group(items[:window], None, items[window:][: 1 + NEGATIVES], titles) for items in shuffled
        ]
        queries = answer_queries(base, groups, prompt.answers)
        if len(queries[0][0].tokens) >= tokens:
            break
    return [[query.tokens for query in group] for group in queries], queries[0][0].targets[0].tolist()


def plain_loss(groups: Groups, answers: Sequence[int]) -> Callable[[Any], torch.Tensor]:
    """Return the loss as a plain script has it: one prompt a row, padded, all logits."""
    labels = [0 if place == 0 else 1 for group in groups for place, _ in enumerate(group)]
    prompts = [[*tokens, answers[label]] for tokens, label in zip(sum(groups, []), labels, strict=True)]
    width = max(map(len, prompts))
    ids = torch.tensor([[*tokens, *[0] * (width - len(tokens))] for tokens in prompts])
    ends = torch.tensor([len(tokens) for tokens in prompts])[:, None]
    mask = (torch.arange(width)[None] < ends).long()
    targets = torch.where(torch.arange(width)[None] == ends - 1, ids, -100)
    return lambda model: model(input_ids=ids, attention_mask=mask, labels=targets, use_cache=False).loss


def answer_loss(rows: list[list[tuple[int, ...]]], answers: list[int]) -> Callable[[Any], torch.Tensor]:
    """Return the loss over (Yes, No) of packed rows; each is a list of prompts."""
    batch = collate([pack(row) for row in rows], torch.float32)
    labels = torch.arange(batch["rows"].numel()) % (1 + NEGATIVES) == 0
    return lambda model: two_way_loss(answer_logits(model, batch, answers), labels, batch["rows"])


def with_lora(network: Any, options: argparse.Namespace, layers: int | None = None) -> Any:
    """Return the network with LoRA matrices that are not zero."""
    model = lora.add_lora(
        network,
        rank=8,
        alpha=16,
        dropout=options.dropout,
        targets="all-linear",
        seed=options.seed,
        layers=layers,
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return model.train()


def table(ways: list[Way], rows: int) -> str:
    """Return the least seconds of each stage of each way as text; samples per second of wall and CPU time."""
    titles = ("no grad", *STAGES[1:], "step", "samples/s", "CPU s", "per CPU s")
    lines = [f"{'':34}" + "".join(f"{title:>11}" for title in titles)]
    for way in ways:
        cells = [f"{way.wall[stage]:.3f}" for stage in STAGES if stage in way.wall]
        for step in (way.seconds(way.wall), way.seconds(way.cpu)):
            cells += [f"{step:.3f}", f"{rows / step:.2f}"] if step else []
        lines.append(f"{way.name:34}" + "".join(f"{cell:>11}" for cell in cells))
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one user a step, one repeat")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument(
        "--rows", type=int, default=None, help="prompts a step, in fours; default: 8 (quick: 4)"
    )
    parser.add_argument("--tokens", type=int, default=200, help="tokens of a prompt, about")
    parser.add_argument("--dropout", type=float, default=0.05, help="of the LoRA layers; PEFT's default is 0")
    parser.add_argument("--repeats", type=int, default=None)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def in_turn(model: Any, ways: Sequence[Way], repeats: int) -> None:
    for _ in range(repeats):
        for way in ways:
            way.run(model)


def main() -> None:
    options = parse()
    if options.threads:
        torch.set_num_threads(options.threads)
    base = LocalLM.load(options.model, dtype="float32", device="cpu")
    users = max(1, (options.rows or (4 if options.quick else 8)) // (1 + NEGATIVES))
    repeats = options.repeats or (1 if options.quick else 4)
    groups, answers = token_groups(base, users, options.tokens, options.seed)
    alone, packed = [[tokens] for group in groups for tokens in group], groups
    rows = len(alone)
    base.network.requires_grad_(False)
    bare = Way("the network alone, answers' logits", answer_loss(alone, answers))
    bare.run(base.network)  # warm up
    plain = Way("plain PEFT", plain_loss(groups, answers))
    thrifty = Way("+ answers' logits alone", answer_loss(alone, answers))
    packs = Way("+ prefixes once", answer_loss(packed, answers))
    ours = Way("+ fast layers (ours)", answer_loss(packed, answers), fast_lora)
    unpacked = Way("fast layers without packing", answer_loss(alone, answers), fast_lora)
    in_turn(base.network, [bare], repeats)
    model = with_lora(base.network, options)
    in_turn(model, [plain, thrifty, packs, ours, unpacked], repeats)
    reference = thrifty.gradient(model)
    differences = {
        way.name: float((way.gradient(model) - reference).norm() / reference.norm())
        for way in (packs, ours, unpacked)
    }
    tops = []
    depth = base.network.config.get_text_config().num_hidden_layers
    for layers in (n for n in TOP_LAYERS if n < depth):
        base.network = model.unload()
        model = with_lora(base.network, options, layers)
        tops.append(Way(f"ours, top {layers} layers of {depth}", answer_loss(packed, answers), fast_lora))
        in_turn(model, tops[-1:], repeats)
    ways = [bare, plain, thrifty, packs, ours, unpacked, *tops]
    print(table(ways, rows))
    print(
        json.dumps(
            {
                "benchmark": "tuning_step",
                "ours_s": ours.seconds(ours.wall),
                "baseline_s": plain.seconds(plain.wall),
                "ratio": plain.seconds(plain.wall) / ours.seconds(ours.wall),
                "equal": max(differences.values()) < 1e-3,
                # CPU seconds hardly change when the machine is busy with something else.
                "ours_cpu_s": ours.seconds(ours.cpu),
                "baseline_cpu_s": plain.seconds(plain.cpu),
                "ratio_cpu": plain.seconds(plain.cpu) / ours.seconds(ours.cpu),
                "ratio_of_packing": thrifty.seconds(thrifty.cpu) / packs.seconds(packs.cpu),
                "ratio_of_fast_layers": packs.seconds(packs.cpu) / ours.seconds(ours.cpu),
                "ratio_of_fast_layers_unpacked": thrifty.seconds(thrifty.cpu)
                / unpacked.seconds(unpacked.cpu),
                "gradient_relative_differences": differences,
                "rows": rows,
                "rows_per_s": rows / ours.seconds(ours.wall),
                "rows_per_cpu_s": rows / ours.seconds(ours.cpu),
                "ways": {way.name: {"wall_s": way.wall, "cpu_s": way.cpu} for way in ways},
                "tokens_packed": sum(pack(group).length for group in packed),
                "tokens_alone": sum(len(tokens) for (tokens,) in alone),
                "dropout": options.dropout,
                "seed": options.seed,
                "threads": torch.get_num_threads(),
                "model": options.model,
                "versions": {m.__name__: m.__version__ for m in (torch, transformers, peft)},
            }
        )
    )


if __name__ == "__main__":
    main()
