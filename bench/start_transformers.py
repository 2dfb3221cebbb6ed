"""start_transformers.py DIRECTORY THREADS TEXT: the first token that transformers writes behind TEXT, from nothing."""

import sys

import torch
import transformers

transformers.logging.disable_progress_bar()
torch.set_num_threads(int(sys.argv[2]))
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
with torch.no_grad():
    token = model(torch.tensor([tokenizer(sys.argv[3]).input_ids])).logits[0, -1].argmax()
print(tokenizer.decode([int(token)]), flush=True)
