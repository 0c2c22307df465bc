"""A peer in a process of its own, perhaps in another Python environment: the standard library and the peer alone.

    python peer_worker.py serve                                      # answers the lines of `peers.Peer`
    python peer_worker.py first-token PEER FILE THREADS PROMPT       # writes a byte when the first token is there
    python peer_worker.py quantise FILE TARGET TYPE                  # by llama.cpp's own quantiser

`serve` reads one JSON object a line from standard input and writes one a line to standard output: `load`, `texts`,
`read` and `steps`, see `main`. An answer with `error` says why there is none. What the peer prints goes to standard
error.
"""

import ctypes
import json
import os
import sys
import time
from typing import Any

BATCH = 512
"""Tokens of a prompt that llama.cpp reads at a time, its default."""
INSTRUCTIONS = ("SSE3", "SSSE3", "AVX", "AVX2", "F16C", "FMA", "BMI2", "AVX512", "AVX512_VBMI", "AVX512_VNNI",
                "AVX512_BF16", "AMX_INT8", "AVX_VNNI", "NEON", "ARM_FMA", "DOTPROD", "MATMUL_INT8", "SVE")  # fmt: skip
"""Those that llama.cpp may say it was built with."""


class LlamaCpp:
    """llama.cpp through the C interface of llama-cpp-python; every row has a KV cache of its own, in float16."""

    def __init__(self, file: str, threads: int, fused: bool, guesses: int):
        import llama_cpp

        self.lib, self.threads, self.fused, self.context, self.guesses = llama_cpp, threads, fused, None, guesses
        self.version, self.instructions = str(llama_cpp.__version__), self._instructions()
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(file.encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot read {os.path.basename(file)}")

    def _instructions(self) -> str:
        """Of what llama.cpp says about the machine, the names that it says 1 of."""
        told = self.lib.llama_print_system_info().decode().replace(":", "|").split("|")
        pairs = (part.split("=") for part in told if "=" in part)
        return ", ".join(name.strip() for name, on in pairs if on.strip() == "1" and name.strip() in INSTRUCTIONS)

    def texts(self, texts: list[list[int]], room: int) -> None:
        lib = self.lib
        room += self.guesses
        if self.context is not None:
            lib.llama_batch_free(self.batch)
            lib.llama_free(self.context)
        options = lib.llama_context_default_params()
        known = {name for name, *_ in options._fields_}
        each = -(-(len(texts[0]) + room) // 256) * 256
        wanted = {
            "n_ctx": each * len(texts), "n_batch": max(BATCH, len(texts)), "n_ubatch": BATCH, "n_seq_max": len(texts),
            "n_threads": self.threads, "n_threads_batch": self.threads, "kv_unified": False,
            "flash_attn_type": int(self.fused), "flash_attn": self.fused,
        }  # fmt: skip
        for name in known & set(wanted):
            setattr(options, name, wanted[name])
        self.context = lib.llama_init_from_model(self.model, options)
        if not self.context:
            raise RuntimeError("llama.cpp cannot make a context")
        self.memory = lib.llama_get_memory(self.context)
        self.batch = lib.llama_batch_init(options.n_batch, 0, 1)
        self.rows = texts

    def read(self, row: int) -> float:
        self.lib.llama_memory_seq_rm(self.memory, row, -1, -1)
        prompt = self.rows[row][:-1]
        begun = time.perf_counter()
        for start in range(0, len(prompt), BATCH):
            part = prompt[start : start + BATCH]
            last = start + len(part) == len(prompt)
            self._decode([(token, start + i, row, last and i + 1 == len(part)) for i, token in enumerate(part)])
        return 1e3 * (time.perf_counter() - begun)

    def steps(self, rows: int, count: int) -> list[float]:
        if self.guesses:
            return [self._looked_up(count)]
        held, taken = len(self.rows[0]) - 1, []
        for step in range(count):
            begun = time.perf_counter()
            self._decode([(self.rows[row][-1], held + step, row, True) for row in range(rows)])
            taken.append(1e3 * (time.perf_counter() - begun))
        for row in range(rows):
            self.lib.llama_memory_seq_rm(self.memory, row, held, -1)
        return taken

    def _looked_up(self, count: int) -> float:
        """Milliseconds per token of going on greedily with the first row for at least `count` tokens."""
        import numpy as np
        from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

        guess = LlamaPromptLookupDecoding(num_pred_tokens=self.guesses)
        words = self.lib.llama_vocab_n_tokens(self.lib.llama_model_get_vocab(self.model))
        text = list(self.rows[0])
        held = first = len(text) - 1
        begun = time.perf_counter()
        while held - first < count:
            guessed = guess(np.array(text)).tolist()
            self._decode([(token, held + i, 0, True) for i, token in enumerate([text[-1], *guessed])])
            best = [
                int(np.ctypeslib.as_array(self.lib.llama_get_logits_ith(self.context, i), (words,)).argmax())
                for i in range(1 + len(guessed))
            ]
            right = next((i for i, token in enumerate(guessed) if token != best[i]), len(guessed))
            text += best[: right + 1]
            held += right + 1
            self.lib.llama_memory_seq_rm(self.memory, 0, held, -1)  # what was guessed wrong
        taken = 1e3 * (time.perf_counter() - begun)
        self.lib.llama_memory_seq_rm(self.memory, 0, first, -1)
        return taken / (held - first)

    def _decode(self, tokens: list[tuple[int, int, int, bool]]) -> None:
        """Decode tokens: id, position, row, whether its logits are wanted."""
        batch = self.batch
        batch.n_tokens = len(tokens)
        for i, (token, position, row, wanted) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, row
        code = self.lib.llama_decode(self.context, batch)
        if code:
            raise RuntimeError(f"llama_decode returned {code}")
        self.lib.llama_synchronize(self.context)


class OpenVino:
    """OpenVINO GenAI's pipeline with continuous batching. A text that was read once is in its prefix cache, so that a
    round of steps need not read it again."""

    BLOCK = 32
    """Tokens of a block of its KV cache on the CPU."""

    instructions = ""
    """It does not say which it chose when it started."""

    def __init__(self, file: str, threads: int, fused: bool, guesses: int):
        import openvino
        import openvino_genai

        self.lib, self.tensor, self.version = openvino_genai, openvino.Tensor, str(openvino_genai.__version__)
        self.file, self.threads, self.requests, self.guesses = file, threads, 0, guesses
        self.pipe = self._load(blocks=8)  # says at once whether it reads the file

    def _load(self, blocks: int) -> Any:
        """A pipeline whose KV cache has `blocks` blocks."""
        scheduling = self.lib.SchedulerConfig()
        scheduling.enable_prefix_caching, scheduling.num_kv_blocks = True, blocks
        scheduling.max_num_batched_tokens = 1 << 20  # a prompt is one pass, as in its pipeline for one user
        scheduling.dynamic_split_fuse = False
        options = {"INFERENCE_NUM_THREADS": self.threads} | ({"prompt_lookup": True} if self.guesses else {})
        return self.lib.ContinuousBatchingPipeline(self.file, scheduling, "CPU", options)

    def texts(self, texts: list[list[int]], room: int) -> None:
        self.rows = texts
        blocks = len(texts) * ((len(texts[0]) + room + self.guesses) // self.BLOCK + 2)
        self.pipe = None
        self.pipe = self._load(blocks)

    def read(self, row: int) -> float:
        begun = time.perf_counter()
        handle = self._ask(self.rows[row][:-1], 1)
        while self.pipe.has_non_finished_requests():
            self.pipe.step()
        taken = 1e3 * (time.perf_counter() - begun)
        handle.read_all()
        return taken

    def steps(self, rows: int, count: int) -> list[float]:
        if self.guesses:
            return [self._looked_up(count)]
        handles = [self._ask(self.rows[row], count + 1) for row in range(rows)]
        taken, produced = [], [0] * rows
        while self.pipe.has_non_finished_requests():
            whole = all(produced)
            begun = time.perf_counter()
            self.pipe.step()
            ended = time.perf_counter()
            for row, handle in enumerate(handles):
                if handle.can_read():
                    produced[row] += sum(len(found.generated_ids) for found in handle.read().values())
            if whole:
                taken.append(1e3 * (ended - begun))
        if len(taken) < count // 2:
            raise RuntimeError(f"OpenVINO GenAI made {len(taken)} steps of {count}")
        return taken

    def _looked_up(self, count: int) -> float:
        """Milliseconds per token of going on greedily with the first row, but for the first token."""
        handle, produced, begun = self._ask(self.rows[0], count + 1), 0, 0.0
        first = 0
        while self.pipe.has_non_finished_requests():
            self.pipe.step()
            if handle.can_read():
                produced += sum(len(found.generated_ids) for found in handle.read().values())
            if produced and not first:
                first, begun = produced, time.perf_counter()
            ended = time.perf_counter()
        if produced <= first:
            raise RuntimeError(f"OpenVINO GenAI made {produced} tokens of {count}")
        return 1e3 * (ended - begun) / (produced - first)

    def _ask(self, tokens: list[int], new: int) -> Any:
        import numpy as np

        options = self.lib.GenerationConfig()
        options.max_new_tokens, options.ignore_eos, options.do_sample = new, True, False
        if self.guesses:
            options.num_assistant_tokens, options.max_ngram_size = self.guesses, 2
        self.requests += 1
        return self.pipe.add_request(self.requests, self.tensor(np.array([tokens], dtype=np.int64)), options)


PEERS = {"llama.cpp": LlamaCpp, "openvino": OpenVino}


def first_token(peer: str, file: str, threads: int, prompt: str, write: Any) -> None:
    """Load a peer as a user does and generate one token; write() is called when it is there."""
    if peer == "llama.cpp":
        from llama_cpp import Llama

        llama = Llama(file, n_ctx=512, n_threads=threads, n_threads_batch=threads, verbose=False)
        for _ in llama.create_completion(prompt, max_tokens=2, temperature=0.0, stream=True):
            write()
            return
    else:
        import openvino_genai

        pipe = openvino_genai.LLMPipeline(file, "CPU", INFERENCE_NUM_THREADS=threads)
        pipe.generate(prompt, max_new_tokens=1, do_sample=False)
        write()


def quantise(file: str, target: str, kind: str) -> None:
    """Write the weights of `file` in llama.cpp's type `kind`, such as Q8_0, to `target`, whole or not at all."""
    import llama_cpp

    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    options.allow_requantize = True
    work = f"{target}.part"
    if llama_cpp.llama_model_quantize(file.encode(), work.encode(), ctypes.byref(options)):
        raise SystemExit(f"llama.cpp could not write {kind} of {file}")
    os.replace(work, target)


def serve(answers: Any) -> None:
    peer: Any = None
    for line in sys.stdin:
        asked = json.loads(line)
        verb = asked.pop("do")
        try:
            if verb == "load":  # peer, file, threads, fused, guesses: version and instructions
                peer = PEERS[asked.pop("peer")](**asked)
                found: Any = [peer.version, peer.instructions]
            elif verb == "texts":  # texts [rows][context + 1] and tokens of room: nothing
                found = peer.texts(**asked)
            elif verb == "read":  # row: milliseconds that reading all of its text but the last token takes
                found = peer.read(**asked)
            else:  # rows, count: milliseconds of each of `count` steps of the first rows after their texts
                found = peer.steps(**asked)
            answer = {"found": found}
        except Exception as error:  # whatever a peer raises is told, and the others go on
            lines = str(error).strip().splitlines()
            answer = {"error": f"{type(error).__name__}: {lines[-1] if lines else ''}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def main() -> None:
    # What a peer's libraries print must not be taken for answers.
    out = os.dup(1)
    os.dup2(2, 1)
    verb, *given = sys.argv[1:]
    if verb == "serve":
        serve(os.fdopen(out, "w"))
    elif verb == "first-token":
        peer, file, threads, prompt = given
        first_token(peer, file, int(threads), prompt, lambda: os.write(out, b"."))
    else:
        quantise(*given)


if __name__ == "__main__":
    main()
