"""Diagnostics in a training loop that is not ours: a small GPT-2 with random weights, trained by a plain loop.

The loop means to learn answers and no prompts, so it sets the prompt's labels to -100. In the fourth batch the prompts
are as long as the sequences: every label is ignored, and the mean over no label at all is 0 / 0.

    python examples/watch_transformers.py

Needs `pip install transformers`; downloads nothing. Ends with the verdict and exit code 1, as a failing run does; the
evidence goes to the folder that the first argument names, or to incidents/. Three lines are added to the loop.
"""

import sys
from collections.abc import Iterator

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from diagnostics import Watch  # added, 1 of 3

BATCH_SIZE, LENGTH, VOCABULARY = 4, 12, 64


def batches() -> Iterator[dict[str, torch.Tensor]]:
    """Tokens, and labels in which the prompt does not count."""
    for prompt_length in (3, 5, 4, LENGTH, 2):
        tokens = torch.randint(VOCABULARY, (BATCH_SIZE, LENGTH))
        labels = tokens.clone()
        labels[:, :prompt_length] = -100
        yield {"input_ids": tokens, "labels": labels}


def main() -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "n_positions": LENGTH, "n_embd": 32, "n_layer": 2, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    watch = Watch(model, optimizer, incidents=sys.argv[1] if sys.argv[1:] else "incidents")  # added, 2 of 3

    def train_one(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    for number, batch in enumerate(batches(), 1):
        loss = watch.step(lambda batch=batch: train_one(batch), batch=batch)  # added, 3 of 3
        print(f"step {number}: loss {loss.item():.4f}")


if __name__ == "__main__":
    main()
