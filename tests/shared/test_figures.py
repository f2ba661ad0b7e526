"""`shared.figures`: what a grid draws, measured in its pixels."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from shared import figures
from shared.figures import Picture, grid_of_pictures

RAMP = np.add.outer(np.arange(20.0), np.arange(30.0))
MASK = np.zeros((20, 30), bool)
MASK[5:15, 8:22] = True


def drawn(path):
    from matplotlib.image import imread

    return imread(path)[..., :3]


def pixels_near(picture, colour, tolerance=0.12):
    return int((np.abs(picture - to_rgb(colour)).max(-1) < tolerance).sum())


def images_of(axis):
    return [image for image in axis.get_images()]


def test_a_grid_holds_what_it_was_given(tmp_path):
    rows = [
        [RAMP, Picture(RAMP, truth=MASK), Picture(torch.from_numpy(RAMP), truth=MASK, found=np.roll(MASK, 3, 1))],
        [None, Picture(text="none predicted"), Picture(RAMP, labels=MASK.astype(int))],
    ]
    out, open_before = tmp_path / "new" / "panel.png", figures.pyplot().get_fignums()
    grid = grid_of_pictures(rows, ["image", "truth", "found"], out, row_labels=["a", "b"], label_names=["organ"])
    assert grid.axes.shape == (2, 3) and grid.room is None
    np.testing.assert_array_equal(images_of(grid.axes[0, 2])[0].get_array(), RAMP)
    assert not images_of(grid.axes[1, 0]) and not images_of(grid.axes[1, 1])
    assert [axis.get_title() for axis in grid.axes[0]] == ["image", "truth", "found"]
    assert [axis.get_ylabel() for axis in grid.axes[:, 0]] == ["a", "b"]
    assert grid.axes[1, 1].texts[0].get_text() == "none predicted"
    picture = drawn(out)
    assert pixels_near(picture, figures.TRUTH) > 100 and pixels_near(picture, figures.FOUND) > 50
    legend = [text.get_text() for text in grid.figure.legends[0].get_texts()]
    assert legend == ["organ", "truth", "found"]
    assert figures.pyplot().get_fignums() == open_before, "the figure is still open"


def test_no_outline_without_a_mask_or_with_one_that_has_no_edge():
    for mask, outlines in ((None, 0), (np.zeros_like(MASK), 0), (np.ones_like(MASK), 0), (MASK, 1)):
        grid = grid_of_pictures([[Picture(RAMP, found=mask)]], ["image"], None)
        assert len(grid.axes[0, 0].collections) == outlines
        figures.pyplot().close(grid.figure)


def test_labels_are_told_apart_and_leave_the_background(tmp_path):
    labels = np.zeros((20, 30), int)
    labels[:, 10:20], labels[:, 20:] = 1, 12  # the twelfth has the colour of the second
    grid = grid_of_pictures([[Picture(np.zeros((20, 30)), labels=labels, window=(0, 1))]], [], None)
    overlay = images_of(grid.axes[0, 0])[1].get_array()
    assert overlay[0, 5, 3] == 0 and overlay[0, 15, 3] == overlay[0, 25, 3] > 0.3
    np.testing.assert_allclose(overlay[0, 15, :3], to_rgb(figures.LABELS[0]))
    np.testing.assert_allclose(overlay[0, 25, :3], to_rgb(figures.LABELS[1]))
    figures.pyplot().close(grid.figure)


def limits(axis):
    return images_of(axis)[0].get_clim()


def test_a_row_has_one_window():
    rows = [[RAMP, 2 * RAMP, Picture(RAMP, window=(-1, 1), cmap="RdBu_r")], [RAMP], [np.full((4, 4), 3.0)]]
    grid = grid_of_pictures(rows, [], None, cmap=["gray", "inferno", "gray"])
    both = np.percentile(np.concatenate([RAMP.ravel(), 2 * RAMP.ravel()]), (1, 99.5))
    for axis in grid.axes[0, :2]:
        np.testing.assert_allclose(limits(axis), both)
    assert limits(grid.axes[0, 2]) == (-1, 1) and images_of(grid.axes[0, 2])[0].get_cmap().name == "RdBu_r"
    assert images_of(grid.axes[1, 0])[0].get_cmap().name == "inferno"
    np.testing.assert_allclose(limits(grid.axes[2, 0]), (2.5, 3.5))
    figures.pyplot().close(grid.figure)
    for window, expected in (((0, 5), [(0, 5)] * 3), ([(0, 1), (0, 2), (0, 3)], [(0, 1), (0, 2), (0, 3)])):
        grid = grid_of_pictures(rows, [], None, window=window)
        assert [limits(axis) for axis in grid.axes[:, 0]] == expected
        figures.pyplot().close(grid.figure)


def test_colour_in_any_layout():
    colour = np.random.default_rng(0).random((20, 30, 3))
    channels_first = torch.from_numpy(colour).permute(2, 0, 1)
    grid = grid_of_pictures([[colour, channels_first, (255 * colour).astype(np.uint8), RAMP[None]]], [], None)
    for axis in grid.axes[0, :2]:
        np.testing.assert_allclose(images_of(axis)[0].get_array(), colour)
    assert images_of(grid.axes[0, 2])[0].get_array().dtype == np.uint8
    assert images_of(grid.axes[0, 3])[0].get_array().shape == (20, 30)
    figures.pyplot().close(grid.figure)


def test_thick_slices_and_room_for_plots(tmp_path):
    grid = grid_of_pictures([[Picture(RAMP, aspect=3.0)]], ["a"], None, room=("below", 2.0), heading="case 7")
    grid.room.subplots(1, 1).plot([0, 1])
    assert images_of(grid.axes[0, 0])[0].axes.get_aspect() == 3.0
    assert grid.figure.get_size_inches()[1] > 5
    figures.save_figure(grid.figure, tmp_path / "a.png")
    assert drawn(tmp_path / "a.png").std() > 0.02


@pytest.mark.parametrize(
    ("rows", "titles", "options", "message"),
    [
        ([], [], {}, "at least one cell"),
        ([[RAMP]], ["a", "b"], {}, "2 titles for 1 columns"),
        ([[RAMP]], [], {"row_labels": ["a", "b"]}, "row_labels has 2"),
        ([[RAMP]], [], {"window": [(0, 1), (0, 1)]}, "window has 2"),
        ([[RAMP]], [], {"cmap": ["gray", "gray"]}, "cmap has 2"),
        ([[RAMP[0]]], [], {}, "an image must be"),
        ([[Picture(RAMP, truth=MASK[1:])]], [], {}, r"truth has the shape \(19, 30\)"),
        ([[Picture(RAMP, labels=MASK.T)]], [], {}, "labels has the shape"),
    ],
)
def test_what_does_not_fit(rows, titles, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        grid_of_pictures(rows, titles, tmp_path / "a.png", **options)
    assert not (tmp_path / "a.png").exists() and not figures.pyplot().get_fignums()


def test_a_figure_that_cannot_be_written_is_closed(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises((OSError, ValueError)):
        grid_of_pictures([[RAMP]], [], tmp_path / "file" / "a.png")
    assert not figures.pyplot().get_fignums()
