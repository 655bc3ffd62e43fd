"""Tokens per second of Hugging Face transformers on one GPU, for comparison: GPT-2 XL's shape, random weights.

  python3 tests/bench/decode_transformers.py [PROMPT_TOKENS] [NEW_TOKENS]

Greedy decoding of one sequence in float16, eager and with the library's default attention; medians of 5.
"""
import statistics
import sys
import time

import torch
import transformers

prompt_tokens = int(sys.argv[1]) if len(sys.argv) > 1 else 128
new_tokens = int(sys.argv[2]) if len(sys.argv) > 2 else 128
config = transformers.GPT2Config(n_embd=1600, n_layer=48, n_head=25)
with torch.device("cuda"):
    model = transformers.GPT2LMHeadModel(config).half().eval()
prompt = torch.randint(0, config.vocab_size, (1, prompt_tokens), device="cuda")


def seconds(count):
    torch.cuda.synchronize()
    start = time.perf_counter()
    model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count, min_new_tokens=count,
                   do_sample=False, pad_token_id=0)
    torch.cuda.synchronize()
    return time.perf_counter() - start


with torch.inference_mode():
    seconds(8)
    rates = [(new_tokens - 1) / (seconds(new_tokens) - seconds(1)) for _ in range(5)]
print(f"transformers {transformers.__version__}, torch {torch.__version__}: "
      f"{statistics.median(rates):.1f} tokens/s decoding one sequence")
