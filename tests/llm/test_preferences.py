"""Yes/no questions: TALLRec's prompts byte for byte, and rated lists with the answers inside."""

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalrec.data.readers.tallrec import parse_prompts, read_prompts
from frugalrec.errors import ConfigError
from frugalrec.llm.preferences import STYLES, PreferencePrompt, interleave

TITLES = st.lists(st.text("abcdefgh ", min_size=1, max_size=8), max_size=6)


def test_alpaca_prompt_word_for_word():
    prompt = PreferencePrompt(noun="movie", style="alpaca").ask(["A", "B"], [], "C, The (1990)")
    assert prompt.text == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.  # noqa: E501\n\n"
        "### Instruction:\n"
        "Given the user's preference and unpreference, identify whether the user will like the target movie "
        'by answering "Yes." or "No.".\n\n'
        '### Input:\nUser Preference: "A", "B"\nUser Unpreference: \n'
        'Whether the user will like the target movie "C, The (1990)"?\n\n'
        "### Response:\n"
    )
    clean = PreferencePrompt(noun="movie", style="alpaca", remark=False).ask(["A", "B"], [], "C, The (1990)")
    assert clean.text == prompt.text.replace("  # noqa: E501", "")


@pytest.mark.slow
@pytest.mark.parametrize("domain", ["movie", "book"])
@pytest.mark.parametrize("fold", ["valid", "test"])
def test_published_rows_are_rebuilt_byte_for_byte(real_data, domain, fold):
    path = real_data / f"tallrec-{domain}" / f"{fold}.json"
    published, rows = json.loads(path.read_text(encoding="utf-8")), read_prompts(path)
    prompt = PreferencePrompt(noun=domain, style="alpaca")
    written = [
        {
            "instruction": prompt.instruction,
            "input": prompt.input(rows.liked[i], rows.disliked[i], rows.targets[i]),
            "output": prompt.answers[0 if rows.labels[i] else 1],
        }
        for i in range(len(rows))
    ]
    assert json.dumps(written, indent=4) == json.dumps(published, indent=4)


@given(TITLES, TITLES, st.text("xyz", min_size=1))
def test_alpaca_input_is_what_the_reader_reads(liked, disliked, target):
    words = PreferencePrompt(noun="movie", style="alpaca").input(liked, disliked, target)
    rows = parse_prompts([{"input": words, "output": "No."}])
    if not any(title != title.strip() for title in liked + disliked):
        assert (rows.liked[0], rows.disliked[0], rows.targets[0]) == (tuple(liked), tuple(disliked), target)


def test_chat_style_puts_the_same_words_into_a_turn():
    prompt = PreferencePrompt(noun="book", style="chat", frame=("<u>", "<a>"))
    words = prompt.input(['"Sula" written by Toni Morrison'], [], '"Emma" written by Jane Austen')
    assert '"Sula" written by Toni Morrison\n' in words
    assert words.endswith('the target book ""Emma" written by Jane Austen"?')
    asked = prompt.ask(['"Sula" written by Toni Morrison'], [], '"Emma" written by Jane Austen')
    assert asked.text == f"<u>{prompt.instruction}\n{words}<a>"


def test_rated_lines_carry_their_answers():
    prompt = PreferencePrompt(noun="movie", style="rated")
    asked = prompt.ask(["Net, The (1995)", "Heat (1995)"], ["Evita (1996)"], "Alien (1979)")
    lines = asked.text.split("\n")
    assert sorted(lines[1:4]) == ["Evita (1996): No", "Heat (1995): Yes", "The Net (1995): Yes"]
    assert lines[-1] == "Alien (1979):"
    for offset, like in asked.known:
        assert asked.text[offset:].startswith(prompt.answers[0 if like else 1] + "\n")
    assert [like for _, like in asked.known] == [line.endswith("Yes") for line in lines[1:4]]


@given(TITLES, TITLES, st.integers(0, 3))
def test_interleaving_keeps_both_orders(liked, disliked, view):
    merged = interleave(liked, disliked, view)
    assert [title for title, like in merged if like] == liked
    assert [title for title, like in merged if not like] == disliked
    assert merged == interleave(liked, disliked, view)


def test_views_draw_every_order():
    drawn = Counter(tuple(like for _, like in interleave(["a", "b"], ["c"], view)) for view in range(600))
    assert len(drawn) == 3
    assert min(drawn.values()) > 150  # 200 expected, deviation 12


def test_titles_are_shown_in_natural_order():
    prompt = PreferencePrompt(noun="movie")
    assert prompt.shown("Wings of Desire (Der Himmel) (1987)") == "Wings of Desire (Der Himmel) (1987)"
    assert prompt.shown("Affaire, L' (1994)") == "Affaire, L' (1994)"
    assert prompt.shown("Monde, Le (1994)") == "Le Monde (1994)"
    assert prompt.shown('"Sula" written by Toni Morrison') == "Sula by Toni Morrison"
    assert PreferencePrompt(years=False).shown("Heat (1995)") == "Heat"
    assert PreferencePrompt(years=False).shown("1984") == "1984"


def test_plain_leaves_out_an_empty_list():
    text = PreferencePrompt(noun="book", style="plain").ask([], ["A"], "B").text
    assert text == 'Books disliked: "A".\nWill they like the book "B"? Answer:'


@pytest.mark.parametrize("options", [{"style": "poem"}, {"max_title_chars": 3}, {"noun": "a\nb"}])
def test_bad_options_are_refused(options):
    with pytest.raises(ConfigError):
        PreferencePrompt(**options)


def test_every_style_asks_for_two_different_answers():
    for style in STYLES:
        yes, no = PreferencePrompt(style=style).answers
        assert yes.strip()[0] == "Y"
        assert no.strip()[0] == "N"
