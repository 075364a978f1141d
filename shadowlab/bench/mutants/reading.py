"""Reading of pictures: channels, ranges, binarisation, masks, sizes, substitutes."""

from shadowlab.bench.mutants.mutant import Edit, Stage, mutant

_DECODING = "shadowlab/data/decoding.py"
_RESIZING = "shadowlab/data/resizing.py"
_PICTURES = "shadowlab/tasks/shadow/pictures.py"
_STRIPS = f"{_DECODING} object_strips"
_SHADOW = f"{_DECODING} read_shadow"
_SAMPLE = f"{_PICTURES} make_sample"
_RGB = "rgb = (colour * 2 - 1).expand(3, -1, -1)"
_GREY = 'return _grey(colour, where, "shadow")'
_TARGET = "shadow=fit_square(pictures.shadow, image_size, 0.0)"
_READERS = (f"{_PICTURES} read_sample", f"{_PICTURES} make_sample", f"{_PICTURES} decode_entry")
_ALL: tuple[Stage, ...] = ("check-forward", "data check", "overfit", "train")

READING = (
    mutant("shadow-binarised", _SHADOW, _GREY, f"{_GREY}.ge(0.5).float()", stages=_ALL, also=_READERS, says=("binar",)),
    mutant(
        "shadow-inverted",
        _SHADOW,
        _GREY,
        'return 1 - _grey(colour, where, "shadow")',
        stages=_ALL,
        also=_READERS,
        says=("invert",),
    ),
    mutant("shadow-with-another-gamma", _SHADOW, _GREY, f"{_GREY} ** 2.2", stages=_ALL, also=_READERS, says=("gamma",)),
    mutant("shadow-mirrored", _SAMPLE, _TARGET, f"{_TARGET}.flip(-1)", stages=_ALL, also=_READERS, says=("mirror",)),
    mutant(
        "shadow-upside-down",
        _SAMPLE,
        _TARGET,
        f"{_TARGET}.flip(-2)",
        stages=_ALL,
        also=_READERS,
        says=("mirror", "upside"),
    ),
    mutant("shadow-shifted", _SAMPLE, _TARGET, f"{_TARGET}.roll(8, -1)", stages=_ALL, also=_READERS, says=("shift",)),
    mutant(
        "shadow-of-another-sample",
        "shadowlab/tasks/shadow/folder.py _Folder.source",
        "(self.files[role] or {}).get(sample)",
        '(self.files[role] or {}).get(sample if role != "shadow" else min(self.files[role] or [sample]))',
        stages=_ALL,
        also=_READERS,
        says=("shadow",),
    ),
    mutant("object-in-bgr", _STRIPS, _RGB, f"{_RGB}.flip(0)", also=(f"{_DECODING} read_object", *_READERS)),
    mutant(
        "object-in-grey",
        _STRIPS,
        _RGB,
        "rgb = (colour.mean(0, keepdim=True) * 2 - 1).expand(3, -1, -1)",
        also=(f"{_DECODING} read_object", *_READERS),
    ),
    mutant(
        "object-from-zero-to-one",
        _STRIPS,
        _RGB,
        "rgb = colour.expand(3, -1, -1)",
        also=(f"{_DECODING} read_object", *_READERS),
    ),
    mutant(
        "object-with-its-transparent-parts",
        _STRIPS,
        "yield rgb if alpha is None else rgb * alpha + BACKGROUND * (1 - alpha)",
        "yield rgb",
        also=(f"{_DECODING} read_object", *_READERS),
    ),
    mutant(
        "orientation-ignored",
        f"{_DECODING} decode",
        "ImageOps.exif_transpose(image, in_place=True)",
        "image.load()",
        also=(f"{_DECODING} read_object", *_READERS),
    ),
    mutant(
        "sixteen-bits-cut-off",
        f"{_DECODING} _channels",
        "(levels / 65535.0).astype(np.float32)",
        "(levels % 256 / 255.0).astype(np.float32)",
        also=(_SHADOW, *_READERS),
    ),
    mutant(
        "mask-inverted-when-read",
        f"{_DECODING} read_mask",
        "lambda coverage: coverage >= MASK_THRESHOLD",
        "lambda coverage: coverage < MASK_THRESHOLD",
        stages=_ALL,
        also=_READERS,
        says=("mask",),
    ),
    mutant(
        "mask-too-large",
        f"{_RESIZING} fit_object_strips",
        "(fit_square(mask, image_size, 0.0) >= MASK_THRESHOLD)",
        "(fit_square(mask, image_size, 0.0) > 0.0)",
        stages=_ALL,
        also=(f"{_RESIZING} fit_object", *_READERS),
        says=("mask",),
    ),
    mutant(
        "mask-not-binarised",
        f"{_RESIZING} fit_object_strips",
        "small_mask = (fit_square(mask, image_size, 0.0) >= MASK_THRESHOLD).float()",
        "small_mask = fit_square(mask, image_size, 0.0)",
        options="--set data.image_size=64",
        also=(f"{_RESIZING} fit_object", *_READERS),
        says=("mask",),
    ),
    mutant(
        "background-stays-around-the-object",
        f"{_RESIZING} fit_object_strips",
        "return composite(small_rgb, small_mask), small_mask",
        "return small_rgb, small_mask",
        more=(Edit(_RESIZING, "yield composite(strip, mask[:, top:bottom])", "yield strip"),),
        also=(f"{_RESIZING} fit_object", f"{_RESIZING} _composited", *_READERS),
        says=("background", "leak"),
    ),
    mutant(
        "background-resized-into-the-rim",
        f"{_RESIZING} _composited",
        "yield composite(strip, mask[:, top:bottom])",
        "yield strip",
        options="--set data.image_size=64",
        also=(f"{_RESIZING} fit_object", f"{_RESIZING} fit_object_strips", *_READERS),
    ),
    mutant(
        "aspect-lost",
        f"{_RESIZING} _fitted",
        "return max(round(height * image_size / longer), 1), max(round(width * image_size / longer), 1)",
        "return (image_size, image_size) if longer else (0, 0)",
        also=(f"{_RESIZING} fit_square", f"{_RESIZING} _fit_strips", f"{_RESIZING} fit_object", *_READERS),
    ),
    mutant(
        "picture-in-the-corner",
        f"{_RESIZING} _fit_strips",
        "(columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)",
        "(0, columns, 0, rows)",
        also=(f"{_RESIZING} fit_square", f"{_RESIZING} fit_object", *_READERS),
    ),
    mutant(
        "resized-to-the-nearest-pixel",
        f"{_RESIZING} _resize",
        'mode="bilinear", antialias=True',
        'mode="nearest"',
        options="--set data.image_size=64",
        also=(*(f"{_RESIZING} {name}" for name in ("fit_square", "_fit_strips", "fit_object_strips")), *_READERS),
    ),
    mutant(
        "another-sample-for-a-damaged-one",
        "shadowlab/data/indexed.py IndexedDataset.__getitem__",
        '            where = one_line(str(self.path))\n            raise UserError(f"{problems[0]} (sample of',
        "            where = one_line(str(self.path))\n            return self[(i + 1) % len(self)]\n"
        '            raise UserError(f"{problems[0]} (sample of',
        says=("damaged", "substitute"),
    ),
    mutant(
        "another-sample-for-one-in-the-stream",
        "shadowlab/data/loader.py _Stream.__getitem__",
        "        except UserError as error:\n            return error\n\n\n@dataclass",
        "        except UserError:\n            return self._read(self._indices[0], position)\n\n\n@dataclass",
        says=("damaged", "substitute"),
    ),
)
