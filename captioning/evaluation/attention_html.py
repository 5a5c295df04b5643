"""A caption as HTML for notebooks: the photograph, and below it words that light where the model looked.

A word is a button: the mouse, a tap or the Tab key lights its place in the photograph. There is no script and
no request to the outside, so it works where notebooks strip scripts; where styles are stripped too, the
photograph and the caption remain. It takes about 40 kB. Brightness is scaled for each word as in `visualise`.
"""

import io
from base64 import b64encode
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from captioning.evaluation.visualise import heat_map
from captioning.features.grid import grid_margin
from captioning.vocabulary import printable

MAX_SIDE = 384  # pixels of the photograph's longer side
_DARKEST = 0.7  # opacity of the shade where the weight is smallest
_SHADE_SIDE = 64  # pixels of a shade's longer side; browsers smooth it
_LEVELS = 32  # of opacity: fewer compress better
_BRIGHT = 0.9  # share of the largest weight, from which a place counts as the one that is looked at
_DIFFUSE = 2.0  # attention whose largest weight is below this many times the mean has no place

_STYLE = """<style>
.captioning{position:relative;width:%dpx;max-width:100%%;font:1rem/1.5 system-ui,sans-serif}
.captioning img{display:block;width:100%%;height:auto;margin:0}
.captioning p{margin:.4em 0}
.captioning button{all:unset;cursor:pointer;padding:.15em .3em;border-radius:.3em;border-bottom:2px dotted}
.captioning button:hover,.captioning button:focus{outline:2px solid #b06000;outline-offset:-1px}
.captioning i{position:absolute;left:0;top:0;width:100%%;aspect-ratio:%d/%d;background-size:100%% 100%%;
opacity:0;pointer-events:none}
.captioning button:hover>i,.captioning button:focus>i{opacity:1}
.captioning p:hover button:focus:not(:hover)>i{opacity:0}
</style>"""


def attention_html(
    image: Image.Image,
    words: Sequence[str],
    attention: np.ndarray | None,
    *,
    text: str | None = None,
    boxes: np.ndarray | None = None,
    grid: tuple[int, int] | None = None,
    image_size: Sequence[int] | None = None,
    alternatives: Sequence[tuple[str, float]] = (),
) -> str:
    """Write a caption as an HTML fragment.

    Args:
        image: RGB, any size.
        words: T words.
        attention: (T, R) weights of each word over the regions; None writes the words alone.
        text: the words put together; by default with spaces between them.
        boxes: see `attention_figure`.
        grid: see `attention_figure`.
        image_size: see `attention_figure`.
        alternatives: further captions with their log-probabilities.

    Raises:
        ValueError: see `attention_figure`.
    """
    image = image.copy()
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    margin = grid_margin(image_size, grid) if boxes is None and grid and image_size else (0.0, 0.0)
    shown = [escape(printable(word)) for word in words]
    if attention is not None:
        scale = _SHADE_SIDE / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        shown = [
            _button(word, weights, heat_map(size, weights, boxes=boxes, grid=grid, margin=margin))
            for word, weights in zip(words, attention, strict=True)
        ]
    text = " ".join(words) if text is None else text
    line = _line(shown, joined(text, words))
    text = escape(printable(text), quote=True)
    return "\n".join(
        [
            f'<div class="captioning" role="group" aria-label="Caption: {text}">',
            _STYLE % (image.width, image.width, image.height),
            f'<img {_source(image)} alt="{text}">',
            f"<p>{line}</p>",
            *_alternatives(alternatives),
            "</div>",
        ]
    )


def _source(image: Image.Image) -> str:
    return f'src="{_data_url(image, "JPEG")}" width="{image.width}" height="{image.height}"'


def _line(parts: Sequence[str], follow: Sequence[bool]) -> str:
    spaced = [part if follows else f" {part}" for part, follows in zip(parts, follow, strict=True)]
    return "".join(spaced).strip()


def joined(text: str, words: Sequence[str]) -> list[bool]:
    """Tell for each word of a text whether it follows without a space: a character, or a part of a word."""
    found, end = [], 0
    for word in words:
        start = max(text.find(word, end), end)
        found.append(end > 0 and start == end)
        end = start + len(word)
    return found


def _button(word: str, weights: np.ndarray, heat: np.ndarray) -> str:
    word = escape(printable(word), quote=True)
    opacity = (1 - heat) * _DARKEST * 255
    opacity = (opacity / 255 * (_LEVELS - 1)).round() * (255 / (_LEVELS - 1))
    shade = Image.fromarray(np.stack([np.zeros_like(opacity), opacity], -1).astype(np.uint8))  # black, alpha
    # Safari gives a clicked button the focus only if it has a tabindex.
    return (
        f'<button type="button" tabindex="0" aria-label="{word}: {place(weights, heat)}">{word}'
        f'<i style="background-image:url({_data_url(shade, "PNG")})"></i></button>'
    )


def place(weights: np.ndarray, heat: np.ndarray) -> str:
    """Say in words where the attention is, for those who do not see it."""
    if weights.max() < _DIFFUSE * weights.mean():
        return "looked at the whole picture"
    rows, columns = np.nonzero(heat > _BRIGHT * heat.max())
    down = ("upper", "middle", "lower")[int(3 * (rows.mean() + 0.5) / heat.shape[0])]
    across = ("left", "centre", "right")[int(3 * (columns.mean() + 0.5) / heat.shape[1])]
    return f"looked at the {'centre' if (down, across) == ('middle', 'centre') else f'{down} {across}'}"


def _alternatives(alternatives: Sequence[tuple[str, float]]) -> list[str]:
    if not alternatives:
        return []
    count = f"{len(alternatives)} alternative{'s' if len(alternatives) > 1 else ''}"
    items = [f"<li>{escape(printable(text))} ({log_prob:.2f})</li>" for text, log_prob in alternatives]
    return [f"<details><summary>{count}</summary><ol>{''.join(items)}</ol></details>"]


def _data_url(image: Image.Image, kind: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 75} if kind == "JPEG" else {"optimize": True}))
    return f"data:image/{kind.lower()};base64,{b64encode(buffer.getvalue()).decode()}"
