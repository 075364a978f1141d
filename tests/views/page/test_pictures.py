"""Which pictures of samples/ are on the page."""

from pathlib import Path

from PIL import Image

from shadowlab.views.page.pictures import Gallery


def save(folder: Path, *names: str) -> None:
    folder.mkdir(exist_ok=True)
    for name in names:
        Image.new("RGB", (8, 4)).save(folder / f"{name}.png")


def test_the_last_of_each_series_of_a_long_run_is_shown_and_comes_first(tmp_path: Path) -> None:
    """150,000 steps, validated every 500: 300 comparisons, 300 sweeps, whose names come first in the alphabet."""
    steps = [f"{step:08d}" for step in range(500, 150_001, 500)]
    save(tmp_path, "input", *(f"step-{step}" for step in steps), *(f"light-sweep-step-{step}" for step in steps))
    gallery = Gallery.of(tmp_path)
    names = [picture.name for picture in gallery.pictures]
    assert names[:2] == ["step-00150000", "light-sweep-step-00150000"]
    assert [picture.is_last for picture in gallery.pictures] == [True, True] + [False] * 6
    assert len(names) == len(set(names)) == 8 and names[2] == "input"
    assert gallery.pictures[0].title == "Comparison, step 150,000"
    assert gallery.pictures[1].title == "Light sweep, step 150,000"
    assert ["593 pictures of 601 left out" in note for note in gallery.notes] == [True]


def test_a_last_picture_that_is_damaged_gives_way_to_the_one_before(tmp_path: Path) -> None:
    save(tmp_path, "step-00000010", "step-00000020")
    (tmp_path / "step-00000030.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    gallery = Gallery.of(tmp_path)
    assert [(picture.name, picture.is_last) for picture in gallery.pictures] == [
        ("step-00000020", True),
        ("step-00000010", False),
    ]
    assert ["step-00000030.png: no picture" in note for note in gallery.notes] == [True]


def test_a_series_of_damaged_pictures_is_not_read_through(tmp_path: Path) -> None:
    save(tmp_path)
    for number in range(1000):
        (tmp_path / f"step-{number:08d}.png").write_bytes(b"none")
    gallery = Gallery.of(tmp_path)
    assert gallery.pictures == () and len(gallery.notes) <= 12
