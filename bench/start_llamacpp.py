"""start_llamacpp.py MODEL THREADS TEXT: the first token that llama.cpp writes behind TEXT, from nothing, through Python."""

import sys

import llamacpp_worker

llamacpp_worker.load(sys.argv[1], int(sys.argv[2]), 256)
llamacpp_worker.run(llamacpp_worker.tokenize(sys.argv[3])["tokens"])
print(llamacpp_worker.likeliest_piece(), flush=True)
