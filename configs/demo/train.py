#!/usr/bin/env python3
"""Trains the demo model of Stagecoach: text, tokenizer, a GPT-2 of about two million parameters, held-out score.

Everything is made here: the stories come from corpus.py, the byte-level BPE is trained on them, the model is trained from
random weights. One machine, one PyTorch build and one seed give the same files again. Writes into --output

    config.json  model.safetensors (float16)  vocab.json  merges.txt  held_out.txt  training.json

in the form of a Hugging Face GPT-2 directory. Needs Python 3.9 or later with torch (1.13 or later, CPU), tokenizers,
safetensors and numpy:

    python3 train.py --output DIR             train with the recorded settings
    python3 train.py --steps 200 --output /tmp/demo        a quick trial
    python3 train.py --score --output DIR     only score the stored files on held_out.txt (of DIR, or the bundled one)
    python3 train.py --sample "A cold rain" --output DIR   only continue a text, greedily

`stagecoach convert --model DIR --output model.h5` makes the bundled model file of it.

With --checkpoint FILE the state is kept every --save-every steps, and the same command goes on from there.
"""
import argparse
import hashlib
import json
import math
import os
import platform
import time

import numpy
import safetensors
import safetensors.numpy
import tokenizers
import torch
from torch import nn
from torch.nn import functional

import corpus

END_OF_TEXT = "<|endoftext|>"
SHORT_WINDOW = 320  # most steps; every --long-every-th one has a window of n_positions


class Projection(nn.Module):
    """y = x W + b with W as GPT-2 stores it: (in, out)."""

    def __init__(self, n_in, n_out, scale):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_in, n_out) * scale)
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, x):
        return torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], -1)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head = config["n_head"]
        width = config["n_embd"]
        self.c_attn = Projection(width, 3 * width, 0.05)
        self.c_proj = Projection(width, width, 0.05 / math.sqrt(2 * config["n_layer"]))

    def forward(self, x, mask):
        batch, rows, width = x.shape
        query, key, value = (part.view(batch, rows, self.n_head, -1).transpose(1, 2)
                             for part in self.c_attn(x).split(width, dim=2))
        scores = query @ (key.transpose(2, 3) * (width // self.n_head) ** -0.5) + mask
        mixed = functional.softmax(scores, dim=-1) @ value
        return self.c_proj(mixed.transpose(1, 2).reshape(batch, rows, width))


class Mlp(nn.Module):
    def __init__(self, config):
        super().__init__()
        width = config["n_embd"]
        self.c_fc = Projection(width, 4 * width, 0.05)
        self.c_proj = Projection(4 * width, width, 0.05 / math.sqrt(2 * config["n_layer"]))

    def forward(self, x):
        return self.c_proj(functional.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config["n_embd"], eps=config["layer_norm_epsilon"])
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config["n_embd"], eps=config["layer_norm_epsilon"])
        self.mlp = Mlp(config)

    def forward(self, x, mask):
        x = x + self.attn(self.ln_1(x), mask)
        return x + self.mlp(self.ln_2(x))


class Gpt2(nn.Module):
    """Parameter names are those of the Hugging Face files without the `transformer.` prefix."""

    def __init__(self, config):
        super().__init__()
        self.wte = nn.Embedding(config["vocab_size"], config["n_embd"])
        self.wpe = nn.Embedding(config["n_positions"], config["n_embd"])
        nn.init.normal_(self.wte.weight, std=0.02)
        nn.init.normal_(self.wpe.weight, std=0.01)
        self.h = nn.ModuleList(Block(config) for _ in range(config["n_layer"]))
        self.ln_f = nn.LayerNorm(config["n_embd"], eps=config["layer_norm_epsilon"])

    def forward(self, tokens, first_position=None):
        """tokens (batch, rows) -> logits (batch, rows, vocab); first_position (batch, 1) shifts the position embeddings."""
        rows = tokens.shape[1]
        positions = torch.arange(rows) if first_position is None else first_position + torch.arange(rows)
        mask = torch.full((rows, rows), -1e9).triu(1)
        x = self.wte(tokens) + self.wpe(positions)
        for block in self.h:
            x = block(x, mask)
        return self.ln_f(x) @ self.wte.weight.T


def train_tokenizer(texts, vocab_size, folder):
    """Byte-level BPE as GPT-2's: all 256 bytes, merges, and <|endoftext|> as the last id."""
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = byte_level
    trained.train_from_iterator(texts, tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size - 1, min_frequency=2, show_progress=False, initial_alphabet=sorted(byte_level.alphabet())))
    trained.model.save(folder)
    path = os.path.join(folder, "vocab.json")
    with open(path, encoding="utf-8") as file:
        vocab = json.load(file)
    vocab[END_OF_TEXT] = len(vocab)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(vocab, file, ensure_ascii=False)
        file.write("\n")


def load_tokenizer(folder):
    loaded = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(
        os.path.join(folder, "vocab.json"), os.path.join(folder, "merges.txt")))
    loaded.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    loaded.decoder = tokenizers.decoders.ByteLevel()
    return loaded


def encode_stories(tokenizer, count, seed, end_of_text):
    """All stories in one row, each behind an end-of-text token, and the place of each story's first token."""
    pieces, starts, length = [], [], 0
    batch = list(corpus.stories(seed, count))
    for first in range(0, count, 2000):
        for encoding in tokenizer.encode_batch(batch[first:first + 2000]):
            pieces.append(numpy.array(encoding.ids + [end_of_text], dtype=numpy.int16))
            starts.append(length)
            length += len(pieces[-1])
    return torch.from_numpy(numpy.concatenate(pieces)), torch.tensor(starts)


def draw_batch(data, starts, window, count, n_positions, generator):
    """Windows that begin with a story. Half of them sit at position 0, the others anywhere, which trains every position."""
    usable = int((starts < len(data) - window - 1).sum())
    chosen = starts[torch.randint(usable, (count,), generator=generator)]
    offset = torch.randint(n_positions - window + 1, (count, 1), generator=generator)
    offset[torch.rand(count, 1, generator=generator) < 0.5] = 0
    rows = torch.stack([data[start:start + window + 1] for start in chosen.tolist()]).long()
    return rows[:, :-1], rows[:, 1:], offset


def perplexity_of(model, tokenizer, lines):
    """Each line alone, from position 0; every token but the line's first counts. Returns perplexity and token count."""
    total, count = 0.0, 0
    with torch.no_grad():
        for line in lines:
            ids = torch.tensor(tokenizer.encode(line).ids)
            logits = model(ids[None, :-1])[0]
            total += functional.cross_entropy(logits.double(), ids[1:], reduction="sum").item()
            count += len(ids) - 1
    return math.exp(total / count), count


def continue_text(model, tokenizer, prompt, count, end_of_text):
    ids = tokenizer.encode(prompt).ids
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
            if ids[-1] == end_of_text:
                return tokenizer.decode(ids[:-1], skip_special_tokens=False) + END_OF_TEXT
    return tokenizer.decode(ids, skip_special_tokens=False)


def learning_rate(step, options):
    """A short linear rise, a plateau, and over the last 40 % of the steps a straight line down to 2 % of the peak.

    Nothing before the last 40 % depends on --steps, so a run that turns out slow can be stopped on the plateau and
    continued from its checkpoint with fewer steps: the result is that of the smaller number from the start.
    """
    remaining = (options.steps - step) / (0.4 * options.steps)
    return options.rate * min((step + 1) / 60, max(0.02, min(1.0, remaining)))


def train(options, config, tokenizer):
    torch.manual_seed(options.seed)
    end_of_text = config["eos_token_id"]
    data, starts = encode_stories(tokenizer, options.stories, options.seed, end_of_text)
    check_lines = list(corpus.stories(options.seed + 2, 20))
    model = Gpt2(config)
    decayed = [p for p in model.parameters() if p.dim() == 2]
    plain = [p for p in model.parameters() if p.dim() != 2]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}],
                                  betas=(0.9, 0.98), eps=1e-8)
    step, seconds, tokens_seen = 0, 0.0, 0
    if options.checkpoint and os.path.exists(options.checkpoint):
        state = torch.load(options.checkpoint)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, seconds, tokens_seen = state["step"], state["seconds"], state["tokens_seen"]
    print(f"{len(starts)} stories, {len(data)} tokens, {sum(p.numel() for p in model.parameters())} parameters", flush=True)
    mean_loss = None
    began = time.monotonic() - seconds
    while step < options.steps:
        window = config["n_positions"] if step % options.long_every == options.long_every - 1 else SHORT_WINDOW
        count = max(1, options.batch_tokens // window)
        generator = torch.Generator().manual_seed(options.seed * 1_000_003 + step)
        tokens, targets, offset = draw_batch(data, starts, window, count, config["n_positions"], generator)
        loss = functional.cross_entropy(model(tokens, offset).view(-1, config["vocab_size"]), targets.reshape(-1))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options)
        optimizer.step()
        step += 1
        tokens_seen += window * count
        seconds = time.monotonic() - began
        mean_loss = loss.item() if mean_loss is None else 0.95 * mean_loss + 0.05 * loss.item()
        if step % 25 == 0:
            print(f"step {step} loss {mean_loss:.3f} seconds {seconds:.0f} tokens/s {tokens_seen / seconds:.0f}", flush=True)
        if step % options.save_every == 0 or step == options.steps:
            print(f"step {step} check perplexity {perplexity_of(model, tokenizer, check_lines)[0]:.4f}", flush=True)
            print(continue_text(model, tokenizer, "The coach was late that day, and", 80, end_of_text), flush=True)
            if options.checkpoint:
                torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step,
                            "seconds": seconds, "tokens_seen": tokens_seen}, options.checkpoint + ".new")
                os.replace(options.checkpoint + ".new", options.checkpoint)
    return model, seconds, tokens_seen


def make_config(options, vocab_size):
    return {
        "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.0,
        "bos_token_id": vocab_size - 1, "embd_pdrop": 0.0, "eos_token_id": vocab_size - 1, "initializer_range": 0.05,
        "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 2048, "n_embd": options.width, "n_head": options.heads,
        "n_inner": None, "n_layer": options.blocks, "n_positions": 2048, "reorder_and_upcast_attn": False, "resid_pdrop": 0.0,
        "scale_attn_by_inverse_layer_idx": False, "scale_attn_weights": True, "summary_activation": None,
        "summary_first_dropout": 0.1, "summary_proj_to_labels": True, "summary_type": "cls_index", "summary_use_proj": True,
        "tie_word_embeddings": True, "torch_dtype": "float16", "use_cache": True, "vocab_size": vocab_size,
    }


def store(model, folder):
    tensors = {}
    for name, value in model.state_dict().items():
        half = value.numpy().astype(numpy.float16)
        assert numpy.isfinite(half).all(), name
        tensors["transformer." + name] = numpy.ascontiguousarray(half)
    safetensors.numpy.save_file(tensors, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})


def load(folder):
    """The stored float16 weights, computed with in float32."""
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    model = Gpt2(config)
    stored = safetensors.numpy.load_file(os.path.join(folder, "model.safetensors"))
    model.load_state_dict({name[len("transformer."):]: torch.from_numpy(value.astype(numpy.float32))
                           for name, value in stored.items()})
    return model, load_tokenizer(folder), config


def lines_of(path):
    with open(path, encoding="utf-8") as file:
        return file.read().splitlines()


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def main():
    here = os.path.dirname(os.path.abspath(__file__))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, metavar="DIR", help="where the files go, or are")
    parser.add_argument("--seed", type=int, default=1, help="stories, initial weights and batches (default %(default)s)")
    parser.add_argument("--steps", type=int, default=1800, help="optimizer steps (default %(default)s)")
    parser.add_argument("--stories", type=int, default=30000, help="training stories (default %(default)s)")
    parser.add_argument("--held-out", type=int, default=70, metavar="N", help="held-out stories (default %(default)s)")
    parser.add_argument("--vocab", type=int, default=2048, help="vocabulary size (default %(default)s)")
    parser.add_argument("--blocks", type=int, default=8, help="transformer blocks (default %(default)s)")
    parser.add_argument("--width", type=int, default=128, help="n_embd (default %(default)s)")
    parser.add_argument("--heads", type=int, default=4, help="n_head (default %(default)s)")
    parser.add_argument("--batch-tokens", type=int, default=2560, help="tokens of a step (default %(default)s)")
    parser.add_argument("--long-every", type=int, default=16, metavar="N",
                        help="every N-th step has a window of n_positions tokens (default %(default)s)")
    parser.add_argument("--rate", type=float, default=2.5e-3, help="peak learning rate (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default %(default)s)")
    parser.add_argument("--checkpoint", metavar="FILE", help="keep the training state here, and go on from it")
    parser.add_argument("--save-every", type=int, default=100, metavar="N", help="steps between checkpoints (default %(default)s)")
    parser.add_argument("--score", action="store_true", help="only score the stored files on held_out.txt")
    parser.add_argument("--sample", metavar="TEXT", help="only continue TEXT greedily with the stored files")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    held_out_path = os.path.join(options.output, "held_out.txt")
    if options.sample is not None:
        model, tokenizer, config = load(options.output)
        print(continue_text(model, tokenizer, options.sample, 100, config["eos_token_id"]))
        return
    if options.score:
        if not os.path.exists(held_out_path):
            held_out_path = os.path.join(here, "held_out.txt")
        model, tokenizer, _ = load(options.output)
        perplexity, count = perplexity_of(model, tokenizer, lines_of(held_out_path))
        print(f"perplexity {perplexity:.6f} over {count} tokens")
        return

    os.makedirs(options.output, exist_ok=True)
    train_tokenizer(corpus.stories(options.seed, 8000), options.vocab, options.output)
    tokenizer = load_tokenizer(options.output)
    config = make_config(options, tokenizer.get_vocab_size())
    with open(os.path.join(options.output, "config.json"), "w", encoding="utf-8") as file:
        json.dump(config, file, indent=2)
        file.write("\n")
    with open(held_out_path, "w", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in corpus.stories(options.seed + 1, options.held_out))

    model, seconds, tokens_seen = train(options, config, tokenizer)
    store(model, options.output)
    model, tokenizer, config = load(options.output)
    perplexity, count = perplexity_of(model, tokenizer, lines_of(held_out_path))
    files = ["config.json", "model.safetensors", "vocab.json", "merges.txt", "held_out.txt"]
    record = {
        "seed": options.seed, "steps": options.steps, "batch_tokens": options.batch_tokens, "long_every": options.long_every,
        "peak_rate": options.rate, "stories": options.stories, "tokens_seen": tokens_seen,
        "parameters": sum(p.numel() for p in model.parameters()), "training_seconds": round(seconds),
        "threads": options.threads,
        "held_out": {"stories": options.held_out, "scored_tokens": count, "perplexity": round(perplexity, 6)},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__,
                     "tokenizers": tokenizers.__version__, "safetensors": safetensors.__version__},
        "sha256": {name: sha256(os.path.join(options.output, name)) for name in files},
    }
    with open(os.path.join(options.output, "training.json"), "w", encoding="utf-8") as file:
        json.dump(record, file, indent=2)
        file.write("\n")
    print(f"perplexity {perplexity:.6f} over {count} tokens, {record['parameters']} parameters, {seconds:.0f} s")


if __name__ == "__main__":
    main()
