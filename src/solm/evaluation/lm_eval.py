"""lm-eval's model class for a controlled model: `solm` in its registry."""

import logging
from typing import Any

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, has_bos_prefix, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from solm.backends.session import AnyPolicy
from solm.core.actions import AXES, WHOLE, ActionSpace
from solm.core.budget import Budget, BudgetLike
from solm.core.errors import BudgetError, SolmError
from solm.evaluation.likelihoods import Scorer
from solm.runtime.controlled import UNTRAINED
from solm.runtime.language_model import LanguageModel
from solm.runtime.load import load
from solm.runtime.reply import Compute

# Beneath lm-eval's own, so that its command line shows what was spent beside the scores.
log = logging.getLogger("lm_eval.solm")

_Encoded = tuple[tuple[str, str] | None, list[int], list[int]]
"""A request's texts, where it has such, and the token ids of its context and its continuation."""
_LENGTH = 2048
"""Tokens of a context where the model does not say how many it holds, as lm-eval's `hf` takes it."""


@register_model("solm")
class ControlledLM(TemplateLM):
    """lm-eval's model class for any backend: every score and every text is made under a compute budget.

    Tokenisation, chat templates and few-shot prompts are as lm-eval's `hf` model has them; what differs is how
    likelihoods and texts come about, and that `compute` says what they cost.

    Model arguments: pretrained (a model's name or a `LanguageModel`); backend, precision; policy, who decides (as for
    `solm.load`, or ``dense``, ``static`` or ``random``; by default ``dense``, or ``static`` with a budget); space
    (without a trained policy: an action space preset); budget (in any form of `LanguageModel.budget`) or attention,
    mlp, bits; context (tokens seen, for which a share of bytes or milliseconds are meant); sparsity, seed, dtype,
    max_length (tokens of a context and its continuation). In Python, policy may be a policy itself, or ``policy`` for
    that of a `LanguageModel`. max_batch_size: lm-eval's command line passes it, and it means nothing here.
    """

    max_gen_toks = 256

    def __init__(
        self,
        pretrained: str | LanguageModel,
        policy: str | AnyPolicy | None = None,
        space: str | None = None,
        budget: BudgetLike = None,
        attention: float | None = None,
        mlp: float | None = None,
        bits: float | None = None,
        context: int = 1024,
        sparsity: str | None = None,
        seed: int = 0,
        dtype: str = "auto",
        backend: str = "torch",
        precision: str | None = None,
        batch_size: int | str = 16,
        max_batch_size: int | None = None,
        max_length: int | None = None,
        device: str | None = None,
    ):
        super().__init__()
        if str(batch_size).startswith("auto"):
            raise SolmError(f"batch_size {batch_size!r} is not supported; give a number of contexts a pass, such as 16")
        if not isinstance(pretrained, LanguageModel):
            trained = policy if isinstance(policy, str) and policy not in UNTRAINED else None
            here = backend == "torch" and torch.cuda.is_available()  # lm-eval's own default is cuda:0
            device = None if str(device).startswith("cuda") and not here else device
            pretrained = load(
                pretrained, trained, sparsity=sparsity, dtype=dtype, backend=backend, precision=precision, device=device
            )
            policy = None if trained is not None else policy
        self.controlled, self.seed, self.context_tokens = pretrained, seed, int(context)
        given = ActionSpace.preset(space) if space is not None else pretrained.space
        per_axis = {axis: value for axis, value in zip(AXES, (attention, mlp, bits), strict=True) if value is not None}
        if per_axis and budget is not None:
            raise BudgetError(f"budget {budget} and {', '.join(per_axis)} say the same thing twice; give one of them")
        if per_axis:
            budget = Budget(**per_axis)
        if policy is None:
            policy = "policy" if pretrained.trained is not None else "dense" if budget is None else "static"
        self.policy = pretrained.policy(policy, given) if isinstance(policy, str) else policy
        self.target = pretrained.budget(budget, int(context), self.policy)
        target = torch.tensor(self.target.shares, dtype=torch.float64)
        self.scorer = Scorer(pretrained, self.policy, target, int(batch_size))
        self.tokenizer, self.batch_size = pretrained.tokenizer, int(batch_size)
        self.max_length = int(max_length or pretrained.context or _LENGTH)

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        first = self.tokenizer.bos_token_id
        return self.eot_token_id if first is None else int(first)

    @property
    def tokenizer_name(self) -> str:
        return self.controlled.name.replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                chat_history, tokenize=False, add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )  # fmt: skip

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        if add_special_tokens is None:  # a text that begins with the first token needs none
            add_special_tokens = not has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id))
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens))

    def tok_decode(self, tokens: int | list[int], skip_special_tokens: bool = True) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=skip_special_tokens))

    def _loglikelihood_tokens(
        self, requests: list[_Encoded], disable_tqdm: bool = False, **_options: Any
    ) -> list[tuple[float, bool]]:
        pairs = [(context[-max(1, self.max_length + 1 - len(rest)) :], rest) for _, context, rest in requests]
        with tqdm(total=len(requests), disable=disable_tqdm, desc="Scoring under control") as bar:
            answers = self.scorer.score(pairs, lambda done: bar.update(done - bar.n))
        self._tell()
        for (key, _, _), answer in zip(requests, answers, strict=True):
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, answer)
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of every text, in windows of the longest context, each after one token."""
        windows: list[_Encoded] = []
        counts = []
        for request in requests:
            tokens = self.tok_encode(request.args[0])
            parts = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1)
            made = [(None, *make_disjoint_window(part)) for part in parts]
            windows += made
            counts.append(len(made))
        scores = [score for score, _ in self._loglikelihood_tokens(windows, disable_tqdm)]
        found, start = [], 0
        for request, count in zip(requests, counts, strict=True):
            found.append(sum(scores[start : start + count]))
            start += count
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, found[-1])
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """One text per request, each with the budget to itself."""
        texts = []
        end = self.tok_decode(self.eot_token_id, skip_special_tokens=False)
        for request in tqdm(requests, disable=disable_tqdm, desc="Generating under control"):
            prompt, given = request.args
            options = normalize_gen_kwargs(given, self.max_gen_toks)
            stops = handle_stop_sequences(options.pop("until", None), eos=end)
            longest = options.pop("max_gen_toks")
            room = self.max_length - longest
            if longest < 1 or room < 1:
                raise SolmError(f"max_gen_toks must lie between 1 and {self.max_length - 1}, got {longest}")
            ids = self.tok_encode(prompt)[-room:]
            reply = self.controlled.generate(
                torch.tensor([ids]), budget=self.target, policy=self.policy, max_new_tokens=longest, seed=self.seed,
                stop_strings=stops, **options,
            )  # fmt: skip
            text = self.tok_decode([token.id for token in reply.tokens])
            text = postprocess_generated_text(generation=text, stop=stops, think_end_token=None)
            if len(reply.tokens) > 1:  # the first comes from reading the prompt
                steps = ([getattr(token, name) for token in reply.tokens[1:]] for name in ("shares", "on", "seen"))
                self.scorer.spent.add(*map(np.array, steps))
            texts.append(text)
            self.cache_hook.add_partial("generate_until", request.args, text)
        self._tell()
        return texts

    @property
    def compute(self) -> Compute:
        """Budget and what was spent so far, averages over the steps that could be controlled on an axis."""
        asked = self.controlled.budgets(self.policy).terms(self.target, self.context_tokens)
        return Compute(asked, self.scorer.spent.terms(self.context_tokens, priced=False))

    def get_model_info(self) -> dict[str, Any]:
        """lm-eval keeps this beside its results."""
        compute = self.compute
        told = {"requested": compute.requested, "realised": compute.realised}
        return {"model_dtype": self.controlled.backend.dtype, "backend": self.controlled.backend.name, "compute": told}

    def _tell(self) -> None:
        compute, spent = self.compute, self.scorer.spent
        line = ", ".join(
            f"{axis} {compute.realised[axis] * scale:.3g} of {compute.requested[axis] * scale:.3g}"
            for axis, scale in zip((*AXES, "net"), (*WHOLE, 1), strict=True)
        )
        log.info("spent: %s; attention controllable in %d of %d steps", line, spent.ledger.steps[0], spent.steps)
        for axis, low in zip(AXES, self.policy.space.ranges, strict=True):
            if compute.requested[axis] < 1 and compute.realised[axis] == 1 and low[0] < 1:
                log.warning("the axis %s never acted: every step was dense on it, so its budget means nothing", axis)
