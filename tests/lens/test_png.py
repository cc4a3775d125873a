"""A PNG shows what the SVG says, at its places and in its colours."""

from pathlib import Path

import numpy as np
import pytest

from bdh.lens.panels import draw_activity, spike_raster_plot
from bdh.lens.png import _outline
from bdh.lens.svg import Picture, picture, text

INK = (0x1D, 0x1F, 0x24)
BAR = (0x2B, 0x7A, 0xA8)


def pixels(drawn: Picture, path: Path) -> np.ndarray:
    import matplotlib.image

    image = matplotlib.image.imread(drawn.save(path / "drawn.png"))
    return np.round(255 * image[..., :3]).astype(int)


def test_marks_stand_at_their_places_in_the_colours_of_the_rules(tmp_path: Path) -> None:
    parts = [
        '<rect class="dot" x="10" y="20" width="30" height="10"/>',
        '<g><path class="spike" stroke-width="4" d="M60 10h20v20"/></g>',
        '<rect x="60" y="40" width="10" height="10" fill="#ff0000"/>',
        '<rect x="80" y="40" width="10" height="10" fill="rgb(0 255 0)" fill-opacity="0.5"/>',
    ]
    image = pixels(picture(100, 60, "marks", parts), tmp_path)
    assert image.shape == (120, 200, 3)
    assert tuple(image[50, 50]) == BAR  # two dots per pixel
    assert tuple(image[20, 140]) == tuple(image[50, 160]) == INK
    assert tuple(image[90, 130]) == (255, 0, 0)
    assert tuple(image[90, 170]) == pytest.approx((127, 255, 127), abs=1)
    for empty in ((2, 2), (50, 90), (40, 140), (110, 100)):
        assert tuple(image[empty]) == (255, 255, 255)


def test_words_are_drawn_as_they_are(tmp_path: Path) -> None:
    image = pixels(picture(120, 40, "words", [text(60, 20, "$x$ <& 漢", "name", "middle")]), tmp_path)
    dark = np.argwhere(image.sum(2) < 300)
    assert len(dark) > 50
    assert abs(dark[:, 1].mean() - 120) < 12  # in the middle
    assert dark[:, 0].max() < 50


@pytest.mark.parametrize(
    ("d", "vertices"),
    [
        ("M1 2L3 4L5 6", [(1, 2), (3, 4), (5, 6)]),
        ("M1 2h3v-4", [(1, 2), (4, 2), (4, -2)]),
        ("M1 2 3 4l1-1.5", [(1, 2), (3, 4), (4, 2.5)]),
        ("M1 2H9V8m1 1", [(1, 2), (9, 2), (9, 8), (10, 9)]),
        ("M1e1 2", [(10, 2)]),
    ],
)
def test_paths_are_read(d: str, vertices: list[tuple[float, float]]) -> None:
    assert _outline(d)[0] == vertices


@pytest.mark.parametrize("mark", ['<path d="M0 0C1 1 2 2 3 3"/>', "<image/>"])
def test_what_cannot_be_drawn_is_refused_and_nothing_is_written(mark: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"save .*\.svg"):
        Picture(10, 10, "x", mark).save(tmp_path / "x.png")
    assert not any(tmp_path.iterdir())


def test_a_raster_has_its_spikes(tmp_path: Path) -> None:
    import torch

    quiet = pixels(spike_raster_plot(torch.zeros(1, 9, 12)), tmp_path)
    loud = pixels(spike_raster_plot((torch.arange(108).reshape(1, 9, 12) % 5 == 0).float()), tmp_path)
    assert (np.abs(loud - np.array(INK)).sum(2) == 0).sum() > (np.abs(quiet - np.array(INK)).sum(2) == 0).sum()


def test_all_neurons_are_drawn_and_no_spike_vanishes(tmp_path: Path) -> None:
    import torch

    from bdh.lens.activity import pack_activity

    level = torch.zeros(300, 512)
    silent = draw_activity(pack_activity([level], 256), ["a"] * 300)
    level[123, 77] = 2.0
    drawn = draw_activity(pack_activity([level], 256), ["a"] * 300)
    assert silent.body.count("h") < drawn.body.count("h")
    changed = np.argwhere((pixels(silent, tmp_path) != pixels(drawn, tmp_path)).any(2))
    assert len(changed) > 0
    assert "12 neurons x 2 tokens" not in drawn.label
    assert "6 neurons x 2 tokens" in drawn.label
