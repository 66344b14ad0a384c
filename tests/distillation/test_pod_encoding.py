"""Tokens of samples, whole-word rows and the scratch T5: pieces against whole texts, tables against rules."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from frugalrec.data.splits import split
from frugalrec.distillation.pod.encoding import Encoder, Ragged
from frugalrec.distillation.pod.samples import sequential_draw, top_n_draw
from frugalrec.distillation.pod.scratch import number_tokenizer, scratch_t5
from frugalrec.distillation.pod.templates import SEQUENTIAL, TOP_N, IdWriter, bare, write_ids, write_titles
from frugalrec.distillation.pod.whole_word import (
    WholeWord,
    add_whole_word,
    check_rows,
    offset_spans,
    published_spans,
    whole_word,
)
from frugalrec.errors import ConfigError, ModelError
from frugalrec.grounding.item_ids import random_numbers, semantic
from frugalrec.llm.adapters import network_fingerprint
from frugalrec.llm.local import LocalLM
from frugalrec.llm.prompt_files import vocabulary_hash
from frugalrec.llm.prompt_vectors import TaskPrompt, add_prompt, token_embeddings
from frugalrec.testing.tiny_models import tiny_llama, tiny_qwen, tiny_t5
from frugalrec.testing.toys import cycle_dataset

TASKS = (SEQUENTIAL, TOP_N)
FOLDS = split(cycle_dataset(24, 25, 9, seed=1), "leave-last-out")
CODES = semantic(np.random.default_rng(0).standard_normal((25, 4)), FOLDS.train.item_ids, levels=2, size=4)
NUMBERS = write_ids(random_numbers(FOLDS.train.item_ids), n_users=24)


def scratch(folder: Path, **options: object) -> Path:
    sizes = {"width": 16, "layers": 1, "heads": 2, "feed_forward": 16, "dropout": 0.0}
    return scratch_t5(folder, **{**sizes, "symbols": CODES.symbols, **options})


MAKERS = {"scratch": scratch, "llama": tiny_llama, "start": lambda f: tiny_llama(f, start=True)}
MAKERS |= {"qwen": tiny_qwen, "t5": tiny_t5}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: make(root / name) for name, make in MAKERS.items()}


def prompted(folder: Path) -> tuple[LocalLM, dict[str, str]]:
    lm = LocalLM.load(folder, dtype="float32", device="cpu")
    prompt = TaskPrompt.uniform(TASKS, 3, token_embeddings(lm).shape[1], seed=0)
    add_prompt(lm, prompt)
    return lm, {task: prompt.text(task) for task in TASKS}


def writers(name: str) -> list[IdWriter]:
    found = [NUMBERS, write_ids(random_numbers(FOLDS.train.item_ids, digits=3))]
    if name != "t5":  # its tokenizer knows no sign that stands between titles
        found.append(write_titles(FOLDS.train.titles, FOLDS.train.item_ids))
    return [*found, write_ids(CODES)]


@pytest.mark.slow
@pytest.mark.parametrize("name", list(MAKERS))
def test_rows_have_the_tokens_of_their_whole_texts(name: str, folders: dict[str, Path]) -> None:
    lm, openings = prompted(folders[name])
    for writer in writers(name):
        encoder = Encoder(lm, writer, openings)
        for draw in (
            sequential_draw(FOLDS.train, window=20, seed=0, epoch=0),
            top_n_draw(FOLDS.train, negatives=6, seed=0, epoch=0),
        ):
            prompts, answers = encoder.lengths(draw)
            for number in range(len(draw)):
                row = encoder.row(draw, number)
                user, shown = int(draw.users[number]), draw.shown(number).tolist()
                text = encoder.text(draw.task, int(draw.templates[number]), user, shown)
                assert row.tokens.tolist() == lm.encode([text])[0]
                answer = f" {writer.answers[int(draw.targets[number])]}"
                end = [lm.tokenizer.eos_token_id]
                if lm.is_encoder_decoder:
                    wanted = lm.tokenizer(answer, add_special_tokens=False).input_ids + end
                    assert row.answer.tolist() == wanted
                else:
                    assert [*row.tokens, *row.answer] == lm.encode([text + answer])[0] + end
                assert (prompts[number], answers[number]) == (row.tokens.size, row.answer.size)


def test_ids_that_merge_with_their_neighbours_are_refused(folders: dict[str, Path]) -> None:
    lm, openings = prompted(folders["scratch"])
    # The blank at the end of the first is taken by a code behind it.
    blank = IdWriter(items=("2 ", CODES.symbols[0]), answers=("1", "2"), users=None, catalogue="")
    with pytest.raises(ModelError, match="joins ids"):
        Encoder(lm, blank, openings)


def test_ragged_rows_are_the_rows() -> None:
    rows = [[3, 4], [], [5], [6, 7, 8]]
    table = Ragged.of(rows)
    assert [table[r].tolist() for r in range(4)] == rows
    assert table.joined(np.array([3, 1, 0, 3])).tolist() == [6, 7, 8, 3, 4, 6, 7, 8]
    assert table.joined(np.array([], dtype=np.int64)).tolist() == []


def rows_of(lm: LocalLM, encoder: Encoder, **options: object) -> WholeWord:
    layer = lm.network.get_input_embeddings()
    size = layer.start + len(layer.task_prompt.tokens)
    cue = lm.tokenizer(encoder.cue, add_special_tokens=False).input_ids[-1:] if encoder.cue else []
    return WholeWord(
        token_embeddings(lm).shape[1],
        encoder.entities(),
        size,
        (layer.start, size),
        end=cue,
        **options,  # type: ignore[arg-type]
    )


def causal(folder: Path) -> Path:
    """A causal network that reads numbers in pieces."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = number_tokenizer(digits=2, symbols=CODES.symbols, words=["->"])
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # Causal networks have no end behind their prompts; it comes with the answer.
    return folder


@pytest.mark.parametrize("kind", ["scratch", "causal"])
def test_whole_word_rows_are_those_of_the_offsets(
    kind: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    lm, openings = prompted(folders["scratch"] if kind == "scratch" else causal(tmp_path))
    for writer in (NUMBERS, write_ids(CODES)):
        encoder = Encoder(lm, writer, openings)
        module = rows_of(lm, encoder)
        draw = top_n_draw(FOLDS.train, negatives=6, seed=0, epoch=0)
        for number in range(0, len(draw), 3):
            row = encoder.row(draw, number)
            user, shown = int(draw.users[number]), draw.shown(number).tolist()
            text = encoder.text(draw.task, int(draw.templates[number]), user, shown)
            names = [writer.items[item] for item in shown]
            names += [] if writer.users is None else [writer.users[user]]
            wanted = offset_spans(lm.tokenizer, text, sorted(places(text, names)))
            wanted += [0] * (row.tokens.size - len(wanted))  # the end of text
            assert encoder.spans(draw, number) == wanted
            ids = torch.from_numpy(row.tokens[None].astype(np.int64))
            assert module.rows(ids)[0][0].tolist() == wanted
            # What is generated has no rows, and left padding shifts them only.
            both = torch.from_numpy(np.concatenate([row.tokens, row.answer])[None].astype(np.int64))
            if not lm.is_encoder_decoder:
                assert module.rows(both)[0][0, row.tokens.size :].eq(0).all()
            padded = torch.nn.functional.pad(ids, (3, 0), value=lm.pad_id)
            assert module.rows(padded)[0][0, 3:].tolist() == wanted


def places(text: str, names: list[str]) -> list[tuple[int, int]]:
    """Where names stand in a text, each followed by a blank or the end."""
    found = [re.search(rf"{re.escape(name)}(?= |$)", text) for name in names]
    return [match.span() for match in found if match is not None]


def test_words_that_look_like_ids_are_found_out(folders: dict[str, Path]) -> None:
    lm, openings = prompted(folders["llama"])  # it spells "it" as it spells "item"
    encoder = Encoder(lm, NUMBERS, openings)
    module = rows_of(lm, encoder)
    draw = top_n_draw(FOLDS.train, negatives=6, seed=0, epoch=0)
    prompts = [encoder.prompt(draw, number).tolist() for number in range(len(draw))]
    with pytest.raises(ConfigError, match="look like ids"):
        check_rows(module, prompts, [encoder.spans(draw, number) for number in range(len(draw))])


def test_whole_word_rows_of_numbers_follow_the_published_rule(folders: dict[str, Path]) -> None:
    lm, openings = prompted(folders["scratch"])
    encoder = Encoder(lm, NUMBERS, openings)
    module = rows_of(lm, encoder)
    draw = sequential_draw(FOLDS.train, window=20, seed=0, epoch=0)
    for number in range(len(draw)):
        row = encoder.row(draw, number)
        ids = torch.from_numpy(row.tokens[None].astype(np.int64))
        tokens = lm.tokenizer.convert_ids_to_tokens(row.tokens.tolist())
        assert module.rows(ids)[0][0].tolist() == published_spans(tokens)


def test_row_zero_stays_zero_and_answers_get_none(folders: dict[str, Path]) -> None:
    lm, openings = prompted(folders["scratch"])
    encoder = Encoder(lm, NUMBERS, openings)
    plain = sequential_draw(FOLDS.train, window=20, seed=0, epoch=0)
    ids = torch.from_numpy(encoder.row(plain, 0).tokens[None].astype(np.int64))
    before = lm.network.get_encoder()(input_ids=ids).last_hidden_state
    add_whole_word(lm, rows_of(lm, encoder))
    module = whole_word(lm)
    assert module is not None and not module.table.weight.any()
    torch.testing.assert_close(lm.network.get_encoder()(input_ids=ids).last_hidden_state, before)
    labels = torch.from_numpy(encoder.row(plain, 0).answer[None].astype(np.int64))
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, weight_decay=0.1)
    lm.network(input_ids=ids, labels=labels).loss.backward()
    optimizer.step()
    used = module.rows(ids)[0].max()
    assert not module.table.weight[0].any()
    assert module.table.weight[1 : used + 1].abs().sum(dim=1).min() > 0
    assert not module.table.weight[used + 1 :].any()
    # Texts without learned vectors, such as the decoder's, read as before.
    assert not module(labels).any()


def test_whole_word_rows_enter_the_fingerprint(folders: dict[str, Path]) -> None:
    """Models that answer differently have other cache keys; rows that come back from disk have the same."""
    found = []
    for options in (None, {}, {"init": 0.5}, {"init": 0.5, "seed": 1}, {"init": 0.5, "max_entities": 4}):
        lm, openings = prompted(folders["scratch"])
        if options is not None:
            add_whole_word(lm, rows_of(lm, Encoder(lm, NUMBERS, openings), **options))
        found.append(lm.fingerprint)
    assert len(set(found)) == len(found)
    module = whole_word(lm)
    assert module is not None
    again, _ = prompted(folders["scratch"])
    saved = WholeWord.from_facts(module.facts)
    saved.load_state_dict(module.state_dict())
    add_whole_word(again, saved)
    assert again.fingerprint == lm.fingerprint == found[-1]
    with torch.no_grad():
        module.table.weight[1, 0] += 1
    assert lm.fingerprint != found[-1]


def test_more_entities_than_rows_share_the_last_row(folders: dict[str, Path]) -> None:
    lm, openings = prompted(folders["scratch"])
    encoder = Encoder(lm, NUMBERS, openings)
    draw = top_n_draw(FOLDS.train, negatives=6, seed=0, epoch=0)
    ids = torch.from_numpy(encoder.row(draw, 0).tokens[None].astype(np.int64))
    full = rows_of(lm, encoder).rows(ids)[0]
    few = rows_of(lm, encoder, max_entities=4).rows(ids)[0]
    assert full.max() == 8  # a user and seven items
    assert few.equal(full.clamp(max=3))


def test_ids_without_visible_ends_cannot_have_rows(folders: dict[str, Path]) -> None:
    lm, openings = prompted(folders["llama"])
    titled = Encoder(lm, write_titles(FOLDS.train.titles, FOLDS.train.item_ids), openings)
    broken = [[5, 6], [6, 7]]
    with pytest.raises(ConfigError, match="both begins ids"):
        WholeWord(4, broken, 20, (18, 20))
    assert titled.entities()


def test_published_rule_by_hand() -> None:
    tokens = "user _ 2 3 took item _ 73 91 , item _ 5 </s> <pad>".split()
    assert published_spans(tokens) == [1, 1, 1, 1, 0, 2, 2, 2, 2, 0, 3, 3, 3, 0, 0]


def test_numbers_are_split_into_pieces_from_the_left() -> None:
    tokenizer = number_tokenizer(digits=2, symbols=["<a_1>", "<b_2>"])
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(" item_7391 <a_1><b_2> 1001").input_ids)
    assert tokens == ["▁item", "_", "73", "91", "<a_1>", "<b_2>", "▁10", "01", "</s>"]
    for text in ("1001", "7", "<a_1><b_2>", "some words, and 12 more"):
        ids = tokenizer(f" {text}").input_ids
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text
    three = number_tokenizer(digits=3)
    assert three.convert_ids_to_tokens(three(" 12345").input_ids) == ["▁123", "45", "</s>"]


def test_scratch_t5_is_a_model_of_its_seed(tmp_path: Path) -> None:
    one, two, other = (
        LocalLM.load(scratch(tmp_path / str(n), seed=seed), dtype="float32", device="cpu")
        for n, seed in enumerate((0, 0, 1))
    )
    found = [network_fingerprint(lm.network) for lm in (one, two, other)]
    assert found[0] == found[1] != found[2]
    assert vocabulary_hash(one.tokenizer) == vocabulary_hash(other.tokenizer)
    assert one.network.get_input_embeddings().num_embeddings == len(one.tokenizer)
    with pytest.raises(ConfigError, match="multiple of heads"):
        scratch_t5(tmp_path / "bad", width=10, heads=4)


def test_whole_word_rows_come_back_from_disk(folders: dict[str, Path]) -> None:
    lm, openings = prompted(folders["scratch"])
    encoder = Encoder(lm, NUMBERS, openings)
    module = rows_of(lm, encoder, init=0.5, seed=3)
    again = WholeWord.from_facts(module.facts)
    again.load_state_dict(module.state_dict())
    text = encoder.text(SEQUENTIAL, bare(SEQUENTIAL), 2, [3, 1, 4])
    ids = torch.tensor(lm.encode([text]))
    torch.testing.assert_close(again(ids), module(ids))
    assert module(ids).any()
