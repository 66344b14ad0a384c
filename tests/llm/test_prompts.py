import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frugalrec.errors import ConfigError
from frugalrec.llm.prompts import UNTITLED, RerankPrompt, chat_frame, clean_title, has_text


def test_history_prompt_word_for_word():
    prompt = RerankPrompt(noun="film", window=2)
    text = prompt.prefix(["Heat", "Alien", "Brazil"]) + prompt.suffix('The "Burbs"')
    assert text == 'Films watched: "Alien", "Brazil".\nNext film: "The \\"Burbs\\""? Answer:'


def test_rated_prompt_splits_by_value_and_keeps_order():
    prompt = RerankPrompt(noun="book", window=3, min_like=4)
    text = prompt.for_history([0, 1, 2, 3], [5, 2, 4, 5], ["A", "B", "C", "D"])
    assert text == 'Books liked: "C", "D".\nBooks disliked: "B".\nWill like the book'
    assert prompt.for_history([1], [1], ["A", "B"]) == 'Books disliked: "B".\nWill like the book'
    assert RerankPrompt(noun="book").for_history([1], [1], ["A", "B"]).startswith('Books read: "B".')


def test_empty_history_asks_without_a_list():
    assert RerankPrompt().prefix([]) == "Next item:"


def test_chat_style_puts_the_question_in_the_frame():
    prompt = RerankPrompt(style="chat", frame=("<U>", "<A>"))
    assert prompt.prefix(["A"]) + prompt.suffix("B") == '<U>Items chosen: "A".\nNext item: "B"?<A>'
    assert prompt.answers == ("Yes", "No")
    assert RerankPrompt().answers == (" Yes", " No")


def test_group_is_prefix_and_one_suffix_per_candidate_with_the_target_last():
    prompt = RerankPrompt(noun="film")
    group = prompt.group([0, 1], None, [2, 0], ["Heat", "Alien", "Brazil"])
    assert group.prefix == prompt.prefix(["Heat", "Alien"])
    assert group.suffixes == (prompt.suffix("Brazil"), prompt.suffix("Heat"))
    assert "Brazil" not in group.prefix


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("  Alien\n\t(1979) ", "Alien (1979)"),
        ("Al\u200bi\u202een\x00\ufeff", "Alien"),
        ("Ｈｅａｔ", "Heat"),
        ("", UNTITLED),
        ("\u200b\n", UNTITLED),
        ("<|im_end|>x</s>[INST]", "< |im_end|>x< /s>[ INST]"),
        ("I <3 you [2001]", "I <3 you [2001]"),
        ("a\u2028b\u2029c", "a b c"),
    ],
)
def test_titles_are_cleaned(raw, clean):
    assert clean_title(raw) == clean
    assert has_text(raw) == (clean != UNTITLED)


@given(st.text())
def test_text_is_what_cleaning_leaves(title):
    assert has_text(title) == (clean_title(title + ".", 1 << 20) != ".")


def test_long_titles_are_cut_with_a_mark():
    assert clean_title("x" * 500, 10) == "x" * 9 + "…"
    assert clean_title("x" * 10, 10) == "x" * 10
    assert len(clean_title("\ufdfa" * 10_000)) == 120  # NFKC makes 18 characters of one


@given(st.text(max_size=300))
def test_any_title_stays_on_one_line_inside_its_quotes(title):
    clean = clean_title(title)
    assert 0 < len(clean) <= 120
    assert not any(unicodedata.category(c)[0] == "C" for c in clean)
    assert "<|" not in clean and "</" not in clean
    assert clean_title(clean) == clean
    suffix = RerankPrompt().suffix(title)
    assert "\n" not in suffix
    quoted = suffix.removeprefix(" ").removesuffix("? Answer:")
    assert json.loads(quoted) == clean


def test_bad_options_name_the_value():
    with pytest.raises(ConfigError, match="window >= 1 .* not 0"):
        RerankPrompt(window=0)
    with pytest.raises(ConfigError, match="'alpaca'; choose plain or chat"):
        RerankPrompt(style="alpaca")
    with pytest.raises(ConfigError, match="noun"):
        RerankPrompt(noun="film\n")


class Templated:
    chat_template = "something"

    def apply_chat_template(self, messages, tokenize, add_generation_prompt):
        return f"[u]{messages[0]['content']}[a]"


def test_chat_frame_is_read_from_the_template():
    assert chat_frame(Templated()) == ("[u]", "[a]")
    with pytest.raises(ConfigError, match="no chat template"):
        chat_frame(object())
