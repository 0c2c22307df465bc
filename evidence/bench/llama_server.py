"""llama.cpp's server out of the package xllamacpp, for `serve.py --other`: as many slots as our server has rows.

python evidence/bench/llama_server.py FILE.gguf PORT     # threads: OMP_NUM_THREADS, else one for each of its cores
"""

import os
import signal
import sys

import xllamacpp

ROWS, CONTEXT = 16, 2048


def main() -> None:
    file, port = sys.argv[1:]
    threads = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    params = xllamacpp.CommonParams()
    params.model.path, params.port = file, int(port)
    params.n_parallel, params.n_ctx = ROWS, ROWS * CONTEXT
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)
    print(server.listening_address, xllamacpp.get_system_info(), flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
