"""Benign steps in other people's loops: infinities and NaN that are meant, and exceptions that no number caused."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shadowlab.bench.corpus.case import Fault, Scene
from shadowlab.bench.corpus.steps import training_step


def loader_ran_dry() -> Scene:
    """An epoch ends inside the step: StopIteration passes, and nothing is the matter."""
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = iter([torch.randn(3, 4), torch.randn(3, 4)])

    def step() -> Tensor:
        x = next(loader)
        optimizer.zero_grad()
        loss = model(x).pow(2).mean()
        loss.backward()
        optimizer.step()
        return loss

    return Scene(step, model, optimizer, before=(step, step), raises=StopIteration)


def sizes_that_differ() -> Scene:
    """A mistake of shapes after the forward pass, next to attention that is masked by -inf: no number is to blame."""
    torch.manual_seed(1)
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = {"x": torch.randn(3, 5, 4), "y": torch.randn(3, 6, 4)}
    causal = torch.full((5, 5), -torch.inf).triu(1)

    def compute_loss() -> Tensor:
        keys = model(batch["x"])
        seen = (keys @ batch["x"].transpose(1, 2) + causal).softmax(-1) @ batch["x"]
        return (seen - batch["y"]).pow(2).mean()

    return Scene(training_step(compute_loss, optimizer), model, optimizer, batch, raises=RuntimeError)


def illegal_moves() -> Scene:
    """A policy masks illegal moves by -inf; Categorical draws, and its entropy knows how to take 0 * -inf."""
    torch.manual_seed(2)
    model = nn.Linear(5, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batch = {"boards": torch.randn(4, 5), "legal": torch.tensor([[1, 1, 0, 1]] * 4).bool(), "gain": torch.randn(4)}

    def compute_loss() -> Tensor:
        logits = model(batch["boards"]).masked_fill(~batch["legal"], -torch.inf)
        policy = torch.distributions.Categorical(logits=logits, validate_args=False)
        moves = policy.sample()
        return -(policy.log_prob(moves) * batch["gain"] + 0.01 * policy.entropy()).mean()

    return Scene(training_step(compute_loss, optimizer), model, optimizer, batch)


def forbidden_transitions() -> Scene:
    """A CRF forbids transitions by -inf and leaves every sentence a path; its loss and slopes are finite."""
    torch.manual_seed(3)
    emit, transitions = nn.Linear(5, 3), nn.Parameter(torch.randn(3, 3))
    model = nn.ModuleList([emit])
    model.register_parameter("transitions", transitions)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    allowed = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 1]]).bool()
    batch = {"words": torch.randn(4, 5, 5), "tags": torch.tensor([[0, 1, 2, 2, 0]] * 4)}

    def compute_loss() -> Tensor:
        emissions = emit(batch["words"])
        scores = transitions.masked_fill(~allowed, -torch.inf)
        alpha = emissions[:, 0]
        for t in range(1, 5):
            alpha = (alpha[:, :, None] + scores).logsumexp(1) + emissions[:, t]
        gold = emissions.gather(2, batch["tags"][..., None]).sum((1, 2))
        gold = gold + transitions[batch["tags"][:, :-1], batch["tags"][:, 1:]].sum(1)
        return (alpha.logsumexp(-1) - gold).mean()

    return Scene(training_step(compute_loss, optimizer), model, optimizer, batch)


def too_short_for_its_text() -> Scene:
    """CTC with `zero_infinity`: an utterance that is shorter than its text costs inf, which becomes zero as asked."""
    torch.manual_seed(4)
    model = nn.LSTM(4, 6, batch_first=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batch = {"frames": torch.randn(3, 6, 4), "text": torch.randint(1, 6, (3, 4)), "length": torch.tensor([6, 2, 6])}

    def compute_loss() -> Tensor:
        likely = model(batch["frames"])[0].log_softmax(-1).transpose(0, 1)
        return F.ctc_loss(likely, batch["text"], batch["length"], torch.tensor([4, 4, 3]), zero_infinity=True)

    return Scene(training_step(compute_loss, optimizer), model, optimizer, batch)


def perplexity_for_the_log() -> Scene:
    """A language model's loss is 95 at first; its perplexity overflows, is printed, and is no part of the loss."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 9))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batch = {"input_ids": torch.randint(9, (3, 6))}
    with torch.no_grad():
        model.get_parameter("0.weight").mul_(150)
    log: list[str] = []

    def compute_loss() -> Tensor:
        logits = model(batch["input_ids"][:, :-1])
        loss = F.cross_entropy(logits.transpose(1, 2), batch["input_ids"][:, 1:])
        log.append(f"perplexity {(loss.detach() * 10).exp().item():.1f}")
        return loss

    return Scene(training_step(compute_loss, optimizer), model, optimizer, batch)


def missing_readings() -> Scene:
    """Traffic sensors: readings that are missing are NaN in the target, and are taken out by index before the loss."""
    torch.manual_seed(6)
    model = nn.GRU(2, 1, batch_first=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batch = {"speed": torch.randn(3, 6, 2), "target": torch.randn(3, 6)}
    batch["target"][0, 2:4] = torch.nan
    batch["target"][2] = torch.nan

    def compute_loss() -> Tensor:
        predicted = model(batch["speed"])[0][..., 0]
        known = ~batch["target"].isnan()
        weights = known.float() / known.float().mean()
        return ((predicted[known] - batch["target"][known]).abs() * weights[known]).mean()

    return Scene(training_step(compute_loss, optimizer), model, optimizer, batch)


def best_of_several_beams() -> Scene:
    """Beam search inside the step: dead beams score -inf, their difference is NaN and is thrown away by `where`."""
    torch.manual_seed(7)
    model = nn.Linear(4, 5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = {"x": torch.randn(3, 4)}

    def compute_loss() -> Tensor:
        logits = model(batch["x"])
        with torch.no_grad():
            beams = torch.full((3, 2), -torch.inf)
            beams[:, 0] = 0.0
            scores = (beams[:, :, None] + logits.log_softmax(-1)[:, None]).flatten(1)
            top, where = scores.topk(6, -1)
            gaps = top[:, :-1] - top[:, 1:]
            margin = torch.where(top[:, 1:].isinf(), 0.0, gaps).mean()
        return F.cross_entropy(logits, where[:, 0] % 5) + 0.0 * margin

    return Scene(training_step(compute_loss, optimizer), model, optimizer, batch)


FAULTS: tuple[Fault, ...] = (
    Fault("loader_ran_dry", "amdegroot/ssd.pytorch#214", loader_ran_dry, None, ("raises",)),
    Fault("sizes_that_differ", "kyegomez/BitNet#19", sizes_that_differ, None, ("raises", "mask")),
    Fault("illegal_moves", "hill-a/stable-baselines#453", illegal_moves, None, ("mask",)),
    Fault("forbidden_transitions", "allenai/allennlp#4478", forbidden_transitions, None, ("mask",)),
    Fault("too_short_for_its_text", "wenet-e2e/wenet#2299", too_short_for_its_text, None, ("where",)),
    Fault("perplexity_for_the_log", "facebookresearch/fairseq#515", perplexity_for_the_log, None),
    Fault("missing_readings", "chemprop/chemprop#1303", missing_readings, None, ("where",)),
    Fault("best_of_several_beams", "tinygrad/tinygrad#17853", best_of_several_beams, None, ("where", "mask")),
)
