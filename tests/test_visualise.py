"""Figures of attention: light falls where the weights are."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from captioning.evaluation.fonts import find_font, installed_fonts, warn_that_words_are_numbered
from captioning.evaluation.visualise import (
    PICTURE_FORMATS,
    attention_figure,
    close,
    overlay,
    save,
)
from captioning.features import Backbone
from captioning.features.grid import grid_margin

GREY = Image.new("RGB", (160, 80), (128, 128, 128))


def brightest(picture: np.ndarray) -> tuple[float, float]:
    """Centre of the brightest pixels, as fractions of height and width."""
    light = picture.astype(float).sum(-1)
    rows, columns = np.nonzero(light >= np.quantile(light, 0.99))
    return rows.mean() / picture.shape[0], columns.mean() / picture.shape[1]


def test_row_by_row_from_the_top_left() -> None:
    weights = np.zeros(16)
    weights[1 * 4 + 3] = 1.0  # second row, last column
    down, across = brightest(overlay(GREY, weights))
    assert abs(down - 1.5 / 4) < 0.05 and across > 0.8


def test_a_grid_may_be_wider_than_high() -> None:
    weights = np.zeros(2 * 8)
    weights[1 * 8 + 2] = 1.0  # second row of two, third column of eight
    down, across = brightest(overlay(GREY, weights, grid=(2, 8)))
    assert down > 0.6 and abs(across - 2.5 / 8) < 0.05


def test_a_margin_on_two_sides_leaves_the_others_as_they_are() -> None:
    lit = overlay(GREY, np.array([1.0, 1.0, 0.0, 0.0]), grid=(1, 4), margin=(0.0, 0.25)).astype(float).sum(-1)
    assert np.ptp(lit, axis=0).max() == 0  # the only row covers the whole height
    assert lit[0, 40:80].mean() > lit[0, :20].mean()  # outside the grid it is dark


def test_boxes_light_up_their_own_place() -> None:
    boxes = np.array([[0.0, 0.0, 0.25, 0.5], [0.5, 0.5, 1.0, 1.0]])
    down, across = brightest(overlay(GREY, np.array([0.1, 0.9]), boxes=boxes)[1:-1, 1:-1])
    assert down > 0.5 and across > 0.5


def test_uniform_weights_light_the_whole_middle_alike() -> None:
    lit = overlay(GREY, np.full(64, 1 / 64)).astype(float)[10:-10, 20:-20]
    assert np.ptp(lit) < 12


def test_a_grid_of_convolutions_without_padding_covers_less_than_the_picture() -> None:
    assert grid_margin((224, 224), (7, 7)) == (0, 0)
    assert grid_margin((299, 224), (8, 7)) == pytest.approx(((299 - 256) / 2 / 299, 0))


@pytest.mark.parametrize(("pixels", "cells"), [(260, 9), (518, 37), (384, 12), (240, 8)])
def test_a_grid_that_covers_the_picture_or_more_has_no_margin(pixels: int, cells: int) -> None:
    """Padded convolutions at other sizes than multiples of their stride, and patches of 14 pixels."""
    assert grid_margin((pixels, pixels), (cells, cells)) == (0, 0)


@pytest.mark.parametrize(
    ("architecture", "node", "size"),
    [("inception_v3", "maxpool2", 83), ("inception_v3", "Mixed_6a", 155), ("resnet18", "layer2", 64)],
)
def test_light_falls_on_what_the_cell_saw(architecture: str, node: str, size: int) -> None:
    """A dot moved over the picture is lit where it is: the cell that reacts most is drawn over the dot."""
    backbone = Backbone(
        architecture=architecture,
        node=node,
        weights="random",
        image_size=[size, size],
        mean=[0.5] * 3,
        std=[0.5] * 3,
    )
    blank = torch.full((1, 3, size, size), 128, dtype=torch.uint8)
    for down, across in ((0.2, 0.3), (0.5, 0.5), (0.75, 0.25)):
        dotted = blank.clone()
        y, x = round(down * size), round(across * size)
        dotted[..., y - 3 : y + 3, x - 3 : x + 3] = 255
        change = (backbone(dotted) - backbone(blank)).abs().sum(-1).flatten().numpy()
        margin = grid_margin(backbone.image_size, backbone.grid)
        image = Image.new("RGB", (200, 200), (128, 128, 128))
        found = brightest(overlay(image, change / change.sum(), grid=backbone.grid, margin=margin))
        assert abs(found[0] - down) < 0.11 and abs(found[1] - across) < 0.11  # a cell is 0.1 or more


def test_a_picture_a_word_and_the_image_itself(tmp_path: Path) -> None:
    words = [f"word{i}" for i in range(15)]
    figure = attention_figure(GREY, words, np.random.default_rng(0).random((15, 64)), title="all of it")
    shown = [axis.get_title() for axis in figure.axes if axis.get_title()]
    assert shown == ["picture", *words]
    save(figure, tmp_path / "a.png")
    close(figure)
    assert Image.open(tmp_path / "a.png").size[0] > 900


def test_the_figure_places_the_grid_of_what_the_network_saw() -> None:
    attention = np.random.default_rng(0).random((1, 64))
    figure = attention_figure(GREY, ["dog"], attention, grid=(8, 8), image_size=[299, 299])
    expected = overlay(GREY, attention[0], grid=(8, 8), margin=grid_margin((299, 299), (8, 8)))
    np.testing.assert_array_equal(figure.axes[1].images[0].get_array(), expected)


def test_a_figure_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    figure = attention_figure(GREY, ["dog"], np.ones((1, 4)))
    for suffix in PICTURE_FORMATS:
        save(figure, tmp_path / f"a{suffix}")
    assert {path.suffix for path in tmp_path.iterdir()} == set(PICTURE_FORMATS)
    with pytest.raises(ValueError, match="not supported"):
        save(figure, tmp_path / "b.xyz")
    assert not list(tmp_path.glob("b*"))


def test_regions_that_are_no_square_need_their_grid_or_boxes() -> None:
    with pytest.raises(
        ValueError, match=r"7 regions are no square grid; pass their grid=\(H, W\) or their boxes"
    ):
        overlay(GREY, np.ones(7))
    with pytest.raises(ValueError, match="7 regions do not fill a grid of 2 × 4 cells"):
        overlay(GREY, np.ones(7), grid=(2, 4))


NOBODYS = "\U000f1234"  # for private use: no font of a system has it


def test_a_font_has_every_character_of_the_text() -> None:
    default = installed_fonts()[0]
    assert find_font("ein mädchen", [default]) == default
    assert find_font("一只狗", [default]) is None  # DejaVu has no Chinese
    assert find_font(f"dog {NOBODYS}") is None


def test_files_that_are_no_font_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    default = installed_fonts()[0]
    assert find_font("dog", [tmp_path / "broken.ttf", default]) == default


def test_words_that_cannot_be_drawn_are_numbered_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    warn_that_words_are_numbered.cache_clear()
    for _ in range(2):
        figure = attention_figure(GREY, ["dog", NOBODYS], np.ones((2, 4)), title=f"dog {NOBODYS}")
        assert [axis.get_title() for axis in figure.axes[1:3]] == ["1", "2"] and not figure.get_suptitle()
    assert caplog.text.count("their pictures number the words instead, and have no title") == 1


@pytest.mark.skipif(find_font("一只狗") is None, reason="no font of this machine has Chinese characters")
def test_chinese_is_drawn_in_a_font_that_has_it() -> None:
    figure = attention_figure(GREY, list("一只狗"), np.ones((3, 4)), title="一只狗")
    assert figure.axes[1].title.get_text() == "一" and figure.get_suptitle() == "一只狗"
    assert figure.axes[1].title.get_fontproperties().get_file() == str(find_font("一只狗"))
