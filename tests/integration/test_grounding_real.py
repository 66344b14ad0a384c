"""Grounding with the embedded LLM over the titles of real games."""

import numpy as np
import pytest

from frugalrec.data.readers import read
from frugalrec.grounding import TitleLikelihood, TrieGrounder
from frugalrec.llm.local import LocalLM
from frugalrec.llm.next_title import NextTitlePrompt

PROMPT = NextTitlePrompt(noun="game")


@pytest.mark.slow
def test_beams_over_all_games_are_real_items_with_the_scores_of_whole_texts(real_data, smollm2):
    data = read(real_data / "dealrec-games")
    history = data.where(data.folds == 0)
    lm = LocalLM.load(smollm2)
    grounder = TrieGrounder(lm, PROMPT, beams=4)
    users = np.flatnonzero(history.lengths >= 3)[:2]
    ranking, usage = grounder.ground(history, users, k=6)
    assert grounder.trie(history).n_titles < history.n_items  # some games share a title
    for user, items in zip(users, ranking.items, strict=True):
        assert len(set(items.tolist())) == 6 and ((items >= 0) & (items < history.n_items)).all()
        assert not set(items.tolist()) & set(history.history(int(user)).tolist())
    whole, _ = TitleLikelihood(lm, PROMPT).score(history, ranking)
    np.testing.assert_allclose(ranking.scores, whole, atol=5e-3 if lm.dtype == "float32" else 1.0)
    questions = [PROMPT.question([history.titles[i] for i in history.history(int(u))]) for u in users]
    assert usage.tokens_in == sum(map(len, lm.encode(questions)))  # each prompt once
