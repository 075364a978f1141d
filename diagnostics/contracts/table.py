"""The contracts by name."""

from diagnostics.contracts.contract import Contract

_DOCS = "https://docs.pytorch.org/docs/stable"
_LISTED = (
    # Optimizers and parameters
    Contract(
        "parameter-without-optimizer",
        "alarm",
        "a parameter that trains gets a gradient, no optimizer holds it, and it does not move, twice; modules in plain "
        "lists, tuples and dicts and plain tensors that train are looked at, too; or an attribute of a module was "
        "computed from an nn.Parameter that is none of the model's",
        "accelerate#2665: an optimizer built before a layer was replaced",
        "build the optimizer after the model is finished, or set requires_grad_(False) on what is not to train",
    ),
    Contract(
        "parameter-in-two-groups",
        "alarm",
        "a parameter stands twice in an optimizer, or two optimizers step on the same gradient of it",
        "pytorch#40967: duplicate parameters in one group",
        "give each parameter to one group of one optimizer",
    ),
    Contract(
        "optimizer-holds-stranger",
        "alarm",
        "an optimizer holds parameters that are not the models', have got no gradient when it steps for the second "
        "time, and have the shape of one that no optimizer holds; or it holds none of the models' and none has one",
        "accelerate#2665, pytorch#7844: parameters replaced after the optimizer was built",
        "build the optimizer after the model was moved, wrapped, copied or changed, from its parameters of now",
    ),
    Contract(
        "parameter-without-gradient",
        "alarm",
        "a parameter that an optimizer trains has had no gradient in 3 of its steps in a row (20 where those that have "
        "one change from step to step), though its layer ran and others have one; a warning where this is less than "
        "2 % of what the optimizer trains, or its layer did not run; or a layer's weight has a gradient of zeros in 3 "
        "looks, and its bias has not, a warning where the batch holds zeros; a warning, too, where a parameter had a "
        "gradient of zeros in each of its first 3 looks, and others had not",
        "discuss.pytorch.org/t/84911; a detach, no_grad or .data on the way to the loss",
        "find what cuts its output off from the loss (detach, no_grad, .data, .item, numpy), or freeze it",
    ),
    # Motion
    Contract(
        "parameter-stands-still",
        "alarm",
        "an optimizer steps with a learning rate above 0 on a gradient that is not 0, the update is larger than "
        "rounding, and the bits of the parameter are the same, in 2 steps",
        "arxiv.org/abs/2506.14813 (TrainCheck): parameters change in a step",
        "look at what the optimizer's step does with this parameter, and at what writes it back",
    ),
    Contract(
        "frozen-parameter-moves",
        "alarm",
        "an optimizer's step changes the bits of a parameter with requires_grad=False; or the running statistics of a "
        "batch normalisation inside a frozen module move in 3 steps with gradients, and no weight of that "
        "module does; or a module has an attribute requires_grad = False, or a "
        "misspelt one, and trains",
        f"{_DOCS}/notes/autograd.html#setting-requires-grad: a gradient left behind, or weight decay, moves it",
        "set its grad to None when you freeze it, or leave it out of the optimizer",
    ),
    Contract(
        "half-precision-weights",
        "alarm",
        "parameters of 16 bits: more than half of the elements whose gradient is not 0 do not change in a step of "
        "torch's optimizer, or all of them of one parameter, in 2 steps; looked at in up to 4096 elements of "
        "each; or a step writes to parameters of 16 bits that no optimizer holds, and 95 % of their elements keep "
        "their bits, in 2 steps",
        "arxiv.org/abs/1710.03740 section 3.1: updates below half an ulp of the weight vanish",
        "keep the weights in float32 and compute under autocast",
    ),
    Contract(
        "learning-rate-zero",
        "alarm",
        "all rates of an optimizer are 0 in 5 of its steps in a row, 50 while a scheduler of it moves; a warning "
        "after 3",
        "huggingface/transformers#21851: a schedule with a wrong number of steps",
        "look at the schedule: number of warm-up and total steps, and whether scheduler.step() is called",
    ),
    # The graph
    Contract(
        "loss-without-gradient",
        "alarm",
        "an optimizer steps twice in a row without any gradient: nothing was differentiated, or what was does not "
        "reach its parameters; or all gradients of it are 0 in 12 looks, a warning after 3",
        "github.com/prs-eth/Marigold and others: a loss made of .item() or of a tensor without graph",
        "differentiate the loss that the model computed: no .item(), .data, detach or torch.tensor(loss) on the way",
    ),
    Contract(
        "loss-term-without-gradient",
        "alarm",
        "the step returns named terms whose sum is the loss that was differentiated, and one of them has no graph; or "
        "a variable of the loop that is named as a loss has none, and what is constant in the loss is a multiple of "
        "it; a warning where a returned loss has a graph that is not differentiated; in 2 steps",
        "discuss.pytorch.org: a term computed by .item(), numpy or under no_grad adds a constant",
        "compute the term from tensors with a graph, and add it to what is differentiated",
    ),
    Contract(
        "input-without-influence",
        "alarm",
        "a floating input of the batch is handed to the model, and nothing that is differentiated is computed from it, "
        "in 3 steps; a warning where an integer input is handed to the model and to no operator, or a "
        "picture or condition of the batch to nobody, or where it met a factor of 0, or a variable that is named as a "
        "target is computed and no operator takes it",
        "arxiv.org/abs/2506.14813; conditions that a forward takes and does not use",
        "use the argument in forward, or leave it out",
    ),
    # Order of calls
    Contract(
        "no-optimizer-step",
        "alarm",
        "gradients were computed and dropped twice (8 times where an optimizer of another model steps), or nothing "
        "was differentiated in 1000 steps, a warning after 3, or those of 3 steps or more were dropped at once, and "
        "since the watch began no optimizer has stepped and no parameter has changed; or accelerate's accumulation "
        "came to its end twice in a row without a step, a warning after the first, or does not come to it",
        "discuss.pytorch.org: optimizer.step() missing, or training_step returns None",
        "call optimizer.step() after backward and before zero_grad()",
    ),
    Contract(
        "gradients-not-cleared",
        "alarm",
        "backward adds to the gradient of an earlier step of the optimizer, and it steps on the sum; or it steps, "
        "twice, on the sum of its own loss's gradients and of those on which another optimizer has stepped; "
        "or a call of its closure adds to the gradient of the call before",
        "stackoverflow.com/questions/60335387: no zero_grad, or that of another model",
        "call zero_grad() of this optimizer once between its step and the next backward",
    ),
    Contract(
        "gradients-cleared-too-early",
        "alarm",
        "an optimizer steps without gradient, for they were cleared between backward and step; or, of several "
        "optimizers, none steps on what a backward left before all of it is cleared, before 2 steps in a row",
        f"{_DOCS}/optim.html#taking-an-optimization-step",
        "the order is zero_grad(), backward(), step()",
    ),
    Contract(
        "stale-gradients",
        "alarm",
        "an optimizer steps once more on the gradient that it has stepped on, of all parameters or of some, in 2 steps",
        f"{_DOCS}/optim.html#taking-an-optimization-step; a backward on another loss, or a second step()",
        "one backward for each step(), on a loss that reaches these parameters",
    ),
    Contract(
        "accumulation-count",
        "alarm",
        "in 2 steps of the only optimizer in a row, or before one where they are 3, all but the last of several "
        "backward passes were dropped; or an optimizer steps before the end of an accumulation of accelerate's, "
        "twice; a warning where the first step of the only optimizer comes after one backward pass and its second "
        "after more, or a later one after more than all before, or one after 3 dropped passes",
        f"{_DOCS}/notes/amp_examples.html#gradient-accumulation",
        "call zero_grad() once an accumulation, after optimizer.step()",
    ),
    Contract(
        "scaler-not-updated",
        "alarm",
        "a gradient scaler steps the same optimizer again without an update() in between; a warning where gradients of "
        "a scaled loss were unscaled by hand in 2 steps, and the scaler was asked nothing, or another "
        "scaler steps an optimizer than before",
        f"{_DOCS}/amp.html#gradient-scaling",
        "call scaler.update() once after the steps",
    ),
    Contract(
        "scaler-bypassed",
        "alarm",
        "gradients of a scaled loss reach optimizer.step() without unscale_ or scaler.step, and nobody wrote to them; "
        "or scaler.step divides gradients of a loss that was not scaled, in 2 steps; or optimizer.step() "
        "follows on scaler.step(optimizer)",
        f"{_DOCS}/notes/amp_examples.html#typical-mixed-precision-training",
        "call scaler.step(optimizer) in place of optimizer.step()",
    ),
    Contract(
        "scheduler-order",
        "warning",
        "a scheduler has stepped before the first step of its optimizer, in the watched step or before it",
        f"{_DOCS}/optim.html#how-to-adjust-learning-rate; torch's own warning",
        "call scheduler.step() after optimizer.step()",
    ),
    Contract(
        "scheduler-count",
        "alarm",
        "a scheduler steps twice or more for each step of the only optimizer, 2 times in a row; a warning where half a "
        "cosine goes on beyond its T_max steps, or a cycle that is made for steps (OneCycleLR) stands still in 3",
        "accelerate#1398: once a process; or once a micro-batch of an accumulation",
        "call scheduler.step() once for each optimizer.step(), or make the schedule that much longer",
    ),
    Contract(
        "clipping-before-unscaling",
        "alarm",
        "gradients of a scaled loss are clipped before unscale_",
        f"{_DOCS}/notes/amp_examples.html#gradient-clipping",
        "call scaler.unscale_(optimizer) before clipping",
    ),
    Contract(
        "clipping-after-step",
        "alarm",
        "gradients are clipped, to a finite norm, after the optimizer has stepped on them and before a new backward",
        f"{_DOCS}/notes/amp_examples.html#gradient-clipping",
        "clip between backward() and optimizer.step()",
    ),
    Contract(
        "clipping-before-backward",
        "alarm",
        "gradients are clipped, to a finite limit, where no parameter has one, 2 times in a row; or those of an "
        "optimizer are clipped and cleared before it steps, before 2 of its steps in a row",
        f"{_DOCS}/notes/amp_examples.html#gradient-clipping",
        "clip between backward() and optimizer.step()",
    ),
    # Modes
    Contract(
        "evaluation-mode-in-training",
        "alarm",
        "a model with dropout or batch normalisation that trained in training mode is stepped in evaluation mode; a "
        "warning where it has dropout and was never in training mode in 2 steps, or where a part of it that has "
        "dropout and trains is not",
        "transformers#33844; model.eval() in validation without model.train() after it",
        "call model.train() before the training steps",
    ),
    Contract(
        "training-mode-in-evaluation",
        "alarm",
        "between two steps the model runs without gradients in training mode, with dropout or batch normalisation; or "
        "in evaluation mode, with dropout that is called as a function and does not know of it",
        f"{_DOCS}/notes/autograd.html#evaluation-mode-nn-module-eval",
        "call model.eval() before validation and model.train() after it",
    ),
    # Data
    Contract(
        "constant-input",
        "alarm",
        "the largest floating input, of 64 elements a sample or more, is one number throughout, in 3 steps; a warning "
        "where a number or a vector of each of 4 samples or more is 0 throughout, by its name no mask or weight, or "
        "all texts of a batch are one of 3 tokens at most, twice",
        "arxiv.org/abs/2112.04036 (DeepDiagnosis): unchanging inputs",
        "look at what is read: a failed decoding, a mask that covers everything, a factor of 0",
    ),
    Contract(
        "input-out-of-range",
        "alarm",
        "the largest magnitude of an input is over 16 times, or below a 16th of, what it was in the first steps (4 "
        "or more); a warning where floating pictures are whole numbers up to 64..255, or never above 1/255, or all "
        "but one grey, in 2 steps; an alarm where targets of a binary cross-entropy are outside of [0, 1]",
        "karpathy.github.io/2019/04/25/recipe: 0..255 where 0..1 was",
        "normalise every source of the input in the same way",
    ),
    Contract(
        "labels-constant",
        "warning",
        "integer labels (named label, target or y) of 4 samples or more are one number in 3 steps in a row",
        "karpathy.github.io/2019/04/25/recipe: verify what comes out of the loader",
        "shuffle, and look at how labels are read",
    ),
    Contract(
        "batch-repeats",
        "alarm",
        "after 4 different batches in a row the same contents come 4 times in a row; inputs that repeat come with "
        "other labels, twice; or the same contents come 3 times as the first batch of a new iterator that has more; "
        "a warning where half of the samples of a batch or more are there twice, in all its tensors, in 2 steps, 3 "
        "batches come in the order of an earlier epoch, or torch's generator begins a step that draws in a state "
        "that it had before",
        "github.com/pytorch/pytorch/issues/5059: one random state for several readers",
        "take the next batch in each step; look at iter(loader) inside the loop, and at the sampler",
    ),
    Contract(
        "workers-repeat",
        "alarm",
        "a tensor of the batch comes in runs of the same length, 2 or more, twice, each time in an object of its "
        "own, a warning, or three times, and changes after them; the second run need not end where nothing else of "
        "the batch repeats",
        "pytorch#5059, stackoverflow.com/questions/67180955: workers share NumPy's seed",
        "seed NumPy and random in worker_init_fn by torch.initial_seed(), and shard an IterableDataset by worker",
    ),
    # Processes
    Contract(
        "ranks-differ",
        "alarm",
        "parameters that were the same on all ranks, or are DistributedDataParallel's, differ in their bits in one "
        "of the first 4 steps or one that is due; or they differ from the beginning, and the gradients that are "
        "stepped on do not, in 2 looks",
        "pytorch#104336, BLOOM-176B chronicles: ranks that drift apart",
        "call the wrapped model, and let every rank take every step",
    ),
    Contract(
        "gradients-not-averaged",
        "alarm",
        "parameters began the same on all ranks, and the gradients that an optimizer steps on are not, in one of the "
        "first 4 steps or one that is due; or a parameter began to train after DistributedDataParallel was made",
        "pytorch#104336; the raw module called in place of DistributedDataParallel",
        "call the model that DistributedDataParallel returned, and leave no_sync() for the last micro-batch",
    ),
    Contract(
        "ranks-share-samples",
        "alarm",
        "parameters are the same on all ranks, and so are the batches or one of their tensors, which change from step "
        "to step, in 2 looks; a warning where the step draws from torch's generator, whose state is one on all ranks",
        f"{_DOCS}/data.html#torch.utils.data.distributed.DistributedSampler",
        "use a DistributedSampler, and seed by rank what draws samples",
    ),
    # Judging
    Contract(
        "metric-direction",
        "alarm",
        "a result is kept as the best although an earlier kept one is better, or a better one is not kept, by the "
        "direction that was given or that the metric's name has, in `watch.metric` or in a variable of the loop named "
        "best; or ReduceLROnPlateau, a callback of Lightning's or the Trainer of transformers takes the worse for the "
        "better; a warning where a variable named best begins at a value that no result is better than",
        "github.com/prs-eth/Marigold-like trainers: best checkpoint by min of an accuracy",
        "compare in the direction in which the metric improves",
    ),
)

CONTRACTS: dict[str, Contract] = {one.name: one for one in _LISTED}
"""By name, in the order of topics."""
