"""From jobs to answers: tokens in, checks, batches, tokens out. Used by one thread at a time."""

from __future__ import annotations

import codecs
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from frugalrec.errors import ConfigError, FrugalrecError, ModelError
from frugalrec.llm.batching import token_batches
from frugalrec.llm.prefix import attention_window
from frugalrec.llm.tree import check_trees
from frugalrec.serving.decoding import Plan, Text, Token, Writer, given
from frugalrec.serving.errors import contained
from frugalrec.serving.grammar import Expression, matches
from frugalrec.serving.jobs import Answer, Job, Piece
from frugalrec.serving.json_nested import ANY_OBJECT
from frugalrec.serving.json_schema import grammar_of
from frugalrec.serving.limits import Limits
from frugalrec.serving.masks import TokenBytes
from frugalrec.serving.prefixes import KeptPrefixes

if TYPE_CHECKING:
    from frugalrec.llm.local import LocalLM

log = logging.getLogger(__name__)


class JobError(FrugalrecError):
    """A job that this model cannot take, whatever else is going on; `code` is the protocol's."""

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


@dataclass(frozen=True, kw_only=True)
class _Ready:
    """A job whose prompt is tokens and whose settings are checked."""

    job: Job
    prompt: str
    tokens: list[int]
    plan: Plan


class Engine:
    """Answers jobs with a local model. A job's answer does not depend on the others, up to rounding."""

    def __init__(self, lm: LocalLM, limits: Limits) -> None:
        self.lm = lm
        self.limits = limits
        self.vocabulary = TokenBytes(lm.tokenizer)
        self.kept = KeptPrefixes(limits.kept_tokens)
        self.writer = Writer(lm, self.kept, self.vocabulary)

    def check(self) -> None:
        """See that the network can be served.

        Raises:
            ModelError: If it begins with a prefix of its own, or its layers ignore masks or positions.
        """
        if self.lm.known:
            raise ModelError(f"{self.lm.model} begins with a prefix of keys and values; load it without.")
        with self.lm._running():
            check_trees(self.lm)

    @property
    def context(self) -> int | None:
        """Tokens of prompt and answer together, or None where there is no bound."""
        bounds = [self.lm.max_tokens, attention_window(self.lm.network)]
        found = min(float("inf") if bound is None else bound for bound in bounds)
        return None if found == float("inf") else int(found)

    def run(self, jobs: Sequence[Job]) -> list[Answer | Exception]:
        """Answer jobs; one that fails gives an exception and harms no other."""
        done: list[Answer | Exception] = [ModelError("not answered")] * len(jobs)
        ready: dict[int, _Ready] = {}
        for number, job in enumerate(jobs):
            try:
                ready[number] = self._ready(job)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:
                done[number] = contained(error)
        numbers = list(ready)
        lengths = [len(ready[n].tokens) + ready[n].plan.max_tokens for n in numbers]
        for batch in token_batches(lengths, self.lm.max_batch_tokens) if numbers else []:
            chosen = [numbers[place] for place in batch]
            for number, answer in zip(chosen, self._answers([ready[n] for n in chosen]), strict=True):
                done[number] = answer
        return done

    def _answers(self, batch: Sequence[_Ready]) -> list[Answer | Exception]:
        try:
            with self.lm._running():
                return list(self._written(batch))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            if len(batch) == 1:
                if not isinstance(error, FrugalrecError):
                    log.exception("a job failed")
                return [contained(error)]
            log.warning("a batch of %d failed (%s); trying its jobs one by one", len(batch), error)
            return [answer for one in batch for answer in self._answers([one])]

    def _written(self, batch: Sequence[_Ready]) -> Iterator[Answer]:
        writing = [one for one in batch if one.plan.max_tokens]
        texts = iter(
            self.writer.write([o.tokens for o in writing], [o.plan for o in writing]) if writing else []
        )
        for one in batch:
            yield self._answer(one, next(texts) if one.plan.max_tokens else None)

    def _ready(self, job: Job) -> _Ready:
        prompt = job.prompt if job.prompt is not None else self._rendered(job.messages)
        (tokens,) = self.lm.encode([prompt])
        tokens = tokens or self.lm._start()
        if not tokens:
            raise JobError("the prompt is empty; a language model needs at least one token.", param="prompt")
        if job.echo and self.lm.is_encoder_decoder:
            raise JobError(
                "echo needs a decoder-only model: an encoder gives no probabilities.", param="echo"
            )
        grammar = None if job.schema is None else self._grammar(job.schema)
        plan = Plan(
            max_tokens=self._room(job, len(tokens)),
            temperature=job.temperature,
            top_p=job.top_p,
            seed=job.seed,
            stop=job.stop,
            top=job.top,
            grammar=grammar,
        )
        return _Ready(job=job, prompt=prompt, tokens=tokens, plan=plan)

    def _room(self, job: Job, used: int) -> int:
        """Return how many tokens the answer may have."""
        most, context = self.limits.max_tokens, self.context
        if job.max_tokens is not None and job.max_tokens > most:
            raise JobError(
                f"max_tokens is {job.max_tokens}, but this server writes at most {most}.", param="max_tokens"
            )
        if context is None or self.lm.is_encoder_decoder:
            return most if job.max_tokens is None else job.max_tokens
        wanted = max(1, min(most, context - used)) if job.max_tokens is None else job.max_tokens
        if used + wanted > context:
            raise JobError(
                f"the prompt has {used:,} tokens and the answer may have {wanted:,}, but this model holds "
                f"{context:,}. Shorten the prompt or lower max_tokens.",
                code="context_length_exceeded",
            )
        return wanted

    def _rendered(self, messages: Sequence[Mapping[str, str]]) -> str:
        if not self.lm.tokenizer.chat_template:
            raise JobError("this model has no chat template; use /v1/completions.", param="messages")
        try:
            text = self.lm.tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # templates are programs of the model's author; they raise what they like
            raise JobError(
                f"the model's chat template refuses these messages: {error}", param="messages"
            ) from None
        return str(text)

    def _grammar(self, schema: object) -> Expression:
        try:
            return ANY_OBJECT if schema is True else grammar_of(schema)
        except ConfigError as error:
            raise JobError(str(error), param="response_format") from None

    def _answer(self, ready: _Ready, written: Text | None) -> Answer:
        job, pieces, text = ready.job, [], written.text if written else ""
        if written and ready.plan.grammar is not None:
            self._check_held(written, ready.plan.grammar)
        if job.echo:
            if job.top is not None:
                pieces = self._given_pieces(ready)
            text = ready.prompt + text
        if written and job.top is not None:
            pieces = pieces + self._pieces(written, len(ready.prompt) if job.echo else 0)
        return Answer(
            text=text,
            finish=(written.finish or "stop") if written else "length",
            prompt_tokens=len(ready.tokens),
            cached_tokens=written.reused if written and not job.echo else 0,
            completion_tokens=written.written if written else 0,
            pieces=pieces,
        )

    def _check_held(self, written: Text, grammar: Expression) -> None:
        whole = b"".join(self.vocabulary.piece(token.token) for token in written.tokens)
        if (
            written.finish == "stop"
            and not written.plan.stop
            and (written.text.encode() != whole or not matches(grammar, whole))
        ):
            raise ModelError(
                f"{self.lm.model} left the answer's schema; its tokenizer cannot be held to one."
            )

    def _pieces(self, written: Text, start: int) -> list[Piece]:
        """Return a text's tokens; of those behind a stop word, none."""
        pieces, decoder = [], codecs.getincrementaldecoder("utf-8")("replace")
        offset, stop = start, start + len(written.text)
        for token in written.tokens:
            if written.plan.stop and offset >= stop:
                break
            pieces.append(self._piece(token, offset))
            offset += len(decoder.decode(self.vocabulary.shown(token.token)))
        return pieces

    def _given_pieces(self, ready: _Ready) -> list[Piece]:
        tokens = given(self.lm, ready.tokens, ready.plan.top)
        found = self.lm.tokenizer(ready.prompt, add_special_tokens=False, return_offsets_mapping=True)
        offsets = [start for start, _ in found["offset_mapping"]]
        offsets = [0] * (len(tokens) - len(offsets)) + offsets  # a start token stands before the text
        return [self._piece(token, offset) for token, offset in zip(tokens, offsets, strict=True)]

    def _piece(self, token: Token, offset: int) -> Piece:
        name = self.vocabulary.piece
        return Piece(
            content=name(token.token),
            logprob=token.logprob,
            top=tuple((name(other), value) for other, value in token.top),
            offset=offset,
        )
