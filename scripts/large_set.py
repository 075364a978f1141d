"""A data set of any number of samples out of a small one, by hard links: what a file system and a machine make of it.

    python scripts/large_set.py SOURCE OUT --samples 257612     # as many as the paper renders

Every copy of a sample has an id and an object of its own and the same bytes on the disk, so that 257,612 samples of
the embedded set take no more than their names. Commands then meet that many files, entries and objects:

    shadowlab data check OUT --processes 2
    shadowlab train --data OUT --max-steps 1

Its near duplicates are no accident; `data check` says so. Remove it with `rm -r OUT`.
"""

import argparse
import json
import os
from pathlib import Path

FOLDERS = ("objects", "masks", "shadows")


def make_large_set(source: Path, out: Path, num_samples: int) -> None:
    """Link every sample of the folder `source` as often as it takes. Raises OSError where links are not possible."""
    metadata = json.loads((source / "metadata.json").read_text())
    files = {folder: {path.stem: path for path in (source / folder).iterdir()} for folder in FOLDERS}
    for folder in FOLDERS:
        (out / folder).mkdir(parents=True)
    entries = {}
    names = sorted(metadata)
    for i in range(num_samples):
        copy, name = divmod(i, len(names))
        old = names[name]
        new = f"{copy:05d}_{old}"
        entries[new] = {**metadata[old], "object": f"{copy:05d}_{metadata[old].get('object', old)}"}
        for folder in FOLDERS:
            path = files[folder][old]
            os.link(path, out / folder / f"{new}{path.suffix}")
    (out / "metadata.json").write_text(json.dumps(entries))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a folder data set on the same file system")
    parser.add_argument("out", type=Path, help="new folder")
    parser.add_argument("--samples", type=int, default=257_612)
    given = parser.parse_args()
    make_large_set(given.source, given.out, given.samples)
    print(f"{given.samples} samples in {given.out}")


if __name__ == "__main__":
    main()
