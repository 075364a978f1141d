"""Conditions: dropped, exchanged between samples, in another order, at another scale; and a target that leaks."""

from shadowlab.bench.mutants.mutant import Edit, mutant

_TASK = "shadowlab/tasks/shadow/task.py"
_VAE = "shadowlab/models/vae.py"
_ADAPTER = "shadowlab/models/adapter.py predict"
_SURGERY = "shadowlab/models/surgery.py"
_PART = f"{_TASK} ShadowTask.encode_part"
_JOINED = "return torch.cat([self.vae.encode(batch.object_image), mask_to_latent(batch.mask)], dim=1)"
_OWN_SIZE = "return F.avg_pool2d(mask.float(), DOWNSCALE)"

CONDITIONS = (
    mutant("object-dropped", _PART, "self.vae.encode(batch.object_image)", "0.0 * self.vae.encode(batch.object_image)"),
    mutant("mask-dropped", _PART, "mask_to_latent(batch.mask)]", "0.0 * mask_to_latent(batch.mask)]", says=("mask",)),
    mutant("mask-inverted", _PART, "mask_to_latent(batch.mask)]", "mask_to_latent(1.0 - batch.mask)]"),
    mutant(
        "object-of-another-sample",
        _PART,
        "self.vae.encode(batch.object_image)",
        "self.vae.encode(batch.object_image).roll(1, 0)",
        says=("object",),
    ),
    mutant(
        "mask-of-another-sample",
        _PART,
        "mask_to_latent(batch.mask)]",
        "mask_to_latent(batch.mask).roll(1, 0)]",
        says=("mask",),
    ),
    mutant(
        "mask-before-object",
        _PART,
        _JOINED,
        "return torch.cat([mask_to_latent(batch.mask), self.vae.encode(batch.object_image)], dim=1)",
    ),
    mutant(
        "target-leaks-into-object",
        _PART,
        "self.vae.encode(batch.object_image)",
        "self.vae.encode(batch.object_image) + 0.1 * self.vae.encode_grey(batch.shadow)",
        says=("object",),
    ),
    mutant(
        "target-leaks-into-mask",
        _PART,
        "mask_to_latent(batch.mask)]",
        "mask_to_latent(torch.maximum(batch.mask, 0.1 * batch.shadow))]",
        says=("mask",),
    ),
    mutant(
        "target-leaks-into-x_t",
        "shadowlab/training/step.py objective_loss",
        "predict(model, x_t,",
        "predict(model, x_t + 0.05 * batch.data,",
    ),
    mutant(
        "light-of-another-sample",
        f"{_TASK} ShadowTask.assemble",
        'self._embedded(numbers["light"])',
        'self._embedded(numbers["light"].roll(1, 0))',
        says=("light", "theta", "phi"),
    ),
    mutant(
        "light-of-the-first-sample",
        f"{_TASK} ShadowTask.assemble",
        'self._embedded(numbers["light"])',
        'self._embedded(numbers["light"][:1].expand_as(numbers["light"]))',
        says=("light", "theta", "phi"),
    ),
    mutant(
        "light-dropped",
        _ADAPTER,
        "conditions.embedding.float()",
        "torch.zeros_like(conditions.embedding).float()",
        says=("light", "theta", "phi"),
    ),
    mutant("conditions-before-x_t", _ADAPTER, "[x_t, conditions.concatenated]", "[conditions.concatenated, x_t]"),
    mutant("conditions-halved", _ADAPTER, "[x_t, conditions.concatenated]", "[x_t, conditions.concatenated * 0.5]"),
    mutant(
        "selected-without-their-conditions",
        "shadowlab/encoded_batch.py EncodedBatch.select",
        "conditions=self.conditions.select(index)",
        "conditions=self.conditions.select(torch.arange(len(index)))",
        says=("object", "mask", "theta", "phi", "pairs"),
    ),
    mutant(
        "joined-in-another-order",
        "shadowlab/encoded_batch.py joined",
        "[batch.conditions.named()[name] for batch in batches])",
        "[batch.conditions.named()[name] for batch in reversed(batches)])",
    ),
    mutant(
        "collated-with-another-mask",
        "shadowlab/tasks/shadow/samples.py collate",
        "[sample.mask for sample in samples]",
        "[sample.mask for sample in reversed(samples)]",
        says=("mask",),
    ),
    mutant(
        "collated-with-another-shadow",
        "shadowlab/tasks/shadow/samples.py collate",
        "[sample.shadow for sample in samples]",
        "[sample.shadow for sample in [*samples[1:], samples[0]]]",
        says=("shadow", "pairs"),
    ),
    mutant(
        "picked-with-another-light",
        "shadowlab/tasks/shadow/samples.py Batch.select",
        "light=self.light[rows]",
        "light=self.light[: len(rows)]",
        says=("light", "theta", "phi"),
    ),
    mutant(
        "scale-factor-missing-on-both-sides",
        f"{_VAE} ImageVae.encode",
        "- self.shift_factor) * self.scaling_factor",
        "- self.shift_factor)",
        more=(Edit(_VAE, "piece / self.scaling_factor + self.shift_factor", "piece + self.shift_factor"),),
        also=(f"{_VAE} ImageVae.decode", f"{_VAE} ImageVae.encode_grey"),
    ),
    mutant(
        "scale-factor-missing-when-decoding",
        f"{_VAE} ImageVae.decode",
        "piece / self.scaling_factor + self.shift_factor",
        "piece + self.shift_factor",
        also=(f"{_VAE} ImageVae.decode_grey",),
    ),
    mutant(
        "latent-is-drawn",
        "shadowlab/models/autoencoders.py latents_of",
        ".latent_dist.mode()",
        ".latent_dist.sample()",
        also=(f"{_VAE} ImageVae.encode", f"{_VAE} ImageVae.encode_grey"),
    ),
    mutant(
        "shadow-not-rescaled-on-both-sides",
        f"{_VAE} ImageVae.encode_grey",
        "maps.float().expand(-1, 3, -1, -1) * 2.0 - 1.0",
        "maps.float().expand(-1, 3, -1, -1)",
        more=(Edit(_VAE, "((self.decode(latents)[:, :1] + 1.0) / 2.0)", "self.decode(latents)[:, :1]"),),
        also=(f"{_VAE} ImageVae.decode_grey",),
    ),
    mutant(
        "shadow-inverted-when-encoded",
        f"{_VAE} ImageVae.encode_grey",
        "maps.float().expand(-1, 3, -1, -1) * 2.0 - 1.0",
        "1.0 - maps.float().expand(-1, 3, -1, -1) * 2.0",
    ),
    mutant(
        "mask-by-nearest-pixel",
        f"{_VAE} mask_to_latent",
        _OWN_SIZE,
        "return mask.float()[..., ::DOWNSCALE, ::DOWNSCALE]",
        also=(_PART,),
    ),
    mutant(
        "mask-by-maximum",
        f"{_VAE} mask_to_latent",
        _OWN_SIZE,
        "return F.max_pool2d(mask.float(), DOWNSCALE)",
        also=(_PART,),
    ),
    mutant(
        "new-channels-random",
        f"{_SURGERY} widen_conv_in",
        "        new.weight.zero_()\n",
        "",
        also=(f"{_SURGERY} adapt",),
        says=("conv_in",),
    ),
    mutant(
        "old-channels-halved",
        f"{_SURGERY} widen_conv_in",
        "new.weight[:, : old.in_channels] = old.weight",
        "new.weight[:, : old.in_channels] = old.weight / 2",
        also=(f"{_SURGERY} adapt",),
        says=("conv_in",),
    ),
    mutant(
        "cross-attention-stays",
        f"{_SURGERY} remove_cross_attention",
        "            module.attn2 = None\n            module.norm2 = None\n",
        "            module.attn2 = torch.nn.Identity()\n            module.norm2 = torch.nn.Identity()\n",
        says=("cross-attention",),
    ),
)
