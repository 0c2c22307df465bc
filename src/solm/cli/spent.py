"""What a reply cost, in lines for a terminal."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from solm.runtime.language_model import LanguageModel
    from solm.runtime.reply import Reply


def speed(moments: list[float]) -> str:
    """How fast a reply came after its first token."""
    from solm.runtime.reply import step_milliseconds

    step = step_milliseconds(moments)
    return "too short to be timed" if step is None else f"{1000 / step:.1f} tokens/s, {step:.1f} ms per token"


def lines(lm: "LanguageModel", budget: str | None, reply: "Reply", context: int) -> list[str]:
    """What was requested and what was realised, in all units that are known, and where times and losses come from.

    context: tokens that steps saw on average.
    """
    from solm.core.budget import in_words

    asked, met = reply.compute.requested, reply.compute.realised
    found = [f"requested: {'' if budget is None else f'{budget}: '}{in_words(asked)}", f"realised:  {in_words(met)}"]
    if lm.timings is not None:
        told = f"step times: measured on {lm.timings.measured_on}"
        if lm.trained is not None and lm.trained.curve is not None and asked.keys() & {"loss", "loss_above"}:
            told += f"; loss: from the policy's curve at {lm.trained.curve.nearest(context):,} tokens"
        found.append(f"           {told}")
    return found


def saved(lm: "LanguageModel", reply: "Reply", moments: list[float], prompt: int) -> str | None:
    """What the dial saved in a reply to `prompt` tokens; None where nothing was to be saved.

    The factor over dense steps is told where the model has timings of this machine and as many threads.
    """
    from solm.runtime.reply import step_milliseconds

    if reply.compute.requested["net"] >= 1:
        return None
    steps = len(reply.tokens) - 1  # the first token comes from reading the prompt
    if not steps:
        return "nothing, as the first token comes from reading the prompt; ask for a longer reply"
    told = f"steps read {reply.compute.bytes:.3f} of the bytes of dense ones"
    step = step_milliseconds(moments)
    if lm.timings is not None and lm.timings_note is None and step is not None:
        whole = lm.timings.dense(prompt + steps // 2)
        told += f", and are {whole / step:.2f} times as fast as dense ones ({whole:.1f} ms by the timings)"
    waited = reply.compute.whole_attention
    if waited and reply.compute.requested["attention"] < 1:
        told += f"; in the first {waited} of {steps} steps attention read everything, as it always reads the first "
        told += f"{lm.sparsity.sinks} tokens and the last {lm.sparsity.window}"
    return told
