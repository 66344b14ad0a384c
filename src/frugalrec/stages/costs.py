"""What asking about each user will cost, estimated before anything is asked, in the unit of the budget."""

from __future__ import annotations

from collections.abc import Sequence

from frugalrec.allocation.costs import Budget, UserCosts, user_costs
from frugalrec.config import RunConfig
from frugalrec.data.dataset import Dataset
from frugalrec.errors import ConfigError
from frugalrec.ledger import Usage
from frugalrec.llm.models import is_endpoint
from frugalrec.stages.asking import Calibration
from frugalrec.stages.cheap import CheapArm
from frugalrec.stages.data import Prepared
from frugalrec.stages.reranking import chars_read, questions
from frugalrec.types import DoubleArray, Ranking

CHARS_PER_TOKEN = 4
"""Of English text, about."""
ANSWER_TOKENS, ITEM_TOKENS = 32, 6
"""The longest listwise answer: as many tokens, and so many for each candidate."""


def budget_of(config: RunConfig) -> Budget:
    """Return the run's budget; a plain number counts users."""
    given = config.allocation.budget
    if isinstance(given, str) and not given.strip().isdigit():
        return Budget.parse(given)
    return Budget(kind="users", amount=float(given))


def costs_of(
    config: RunConfig,
    data: Prepared,
    histories: Dataset,
    ranking: Ranking,
    first: CheapArm,
    asked: Sequence[Calibration],
) -> UserCosts:
    """Estimate what asking about each user costs, in the budget's unit.

    Prompts are measured in characters. What a character costs comes from the calibration users; at an
    endpoint, where their answers may have come from an earlier run, from a rule of thumb and the longest
    answer that is allowed.

    Args:
        config: The run's configuration.
        data: Its data.
        histories: What is known of the users.
        ranking: Their lists.
        first: The first stage.
        asked: The ways to use the LLM that will be asked.
    """
    chars, sent = chars_read(config, histories, ranking), questions(config, ranking)
    usage = sum((one.stage.usage for one in asked), Usage())
    if is_endpoint(config.llm.model):
        longest = ANSWER_TOKENS + ITEM_TOKENS * config.llm.candidates
        if budget_of(config).kind == "seconds" and not usage.llm_calls:
            raise ConfigError(
                "what a call takes is not known: its answers are of an earlier run; budget tokens."
            )
        each = usage.wall_s / max(usage.llm_calls, 1)
        return _costs(config, ranking, chars / CHARS_PER_TOKEN, sent * longest, 0 * chars, sent, sent * each)
    known = first.rankings["valid"].take(asked[0].rows)
    shares = chars / max(chars_read(config, data.split.history("valid"), known).sum(), 1)
    calls = sent * usage.llm_calls / max(questions(config, known).sum(), 1)
    amounts = (usage.tokens_in * shares, usage.tokens_out * shares, usage.tokens_cached * shares)
    return _costs(config, ranking, *amounts, calls, usage.wall_s * shares)


def _costs(
    config: RunConfig,
    ranking: Ranking,
    tokens_in: DoubleArray,
    tokens_out: DoubleArray,
    tokens_cached: DoubleArray,
    calls: DoubleArray,
    seconds: DoubleArray,
) -> UserCosts:
    kind = budget_of(config).kind
    return user_costs(
        ranking.users,
        "tokens" if kind == "share" or kind == "unlimited" else kind,
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        tokens_cached=tokens_cached,
        calls=calls,
        seconds=seconds,
        prices=config.price_table(),
    )
