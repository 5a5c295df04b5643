"""The HTML page that shows two systems' captions side by side, image by image.

The page is one file that loads nothing from outside: images are thumbnails inside it, and it reads as a plain
document where scripts are disabled. Its styles and keyboard shortcuts are in `comparison.html`; what it
shares with the page of a study is in `page_head.html`.
"""

import base64
import io
import logging
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import NamedTuple

from captioning.errors import InputError
from captioning.evaluation.references import References
from captioning.evaluation.scoring import Evaluation
from captioning.evaluation.tables import Table
from captioning.features import read_image
from captioning.files import write_text

log = logging.getLogger(__name__)

THUMBNAIL = 320  # pixels, the largest width
_FOLDER = Path(__file__).parent


class Example(NamedTuple):
    """One image of the comparison: its file, its references, both captions and their scores (fractions)."""

    image_id: str
    path: Path
    references: Sequence[str]
    captions: tuple[str, str]
    scores: tuple[float, float]

    @property
    def difference(self) -> float:
        """First score minus second."""
        return self.scores[0] - self.scores[1]


def write_page(
    folder: str | Path,
    evaluations: Sequence[Evaluation],
    references: References,
    tables: Sequence[Table],
    *,
    metric: str,
    limit: int,
    several_runs: bool = False,
) -> None:
    """Write `comparison.html`, unless the metric is missing.

    Args:
        folder: where it goes.
        evaluations: of the two systems.
        references: what their captions were scored against.
        tables: shown above the images, all but the first folded.
        metric: that the images are sorted by.
        limit: images on the page at most.
        several_runs: whether the tables are of several runs of two settings, of which these are the first.
    """
    if any(metric not in evaluation.scores for evaluation in evaluations):
        log.warning("no page, as there is no %s to sort it by", metric)
        return
    examples = pair(evaluations, references.captions, references.paths, metric)
    text = render_page(
        choose(examples, limit),
        names=[evaluation.name for evaluation in evaluations],
        data=references.name,
        metric=metric,
        tables=tables,
        total=len(examples),
        several_runs=several_runs,
    )
    write_text(Path(folder) / "comparison.html", text)


def pair(
    evaluations: Sequence[Evaluation],
    references: Mapping[str, Sequence[str]],
    paths: Mapping[str, Path],
    metric: str,
) -> list[Example]:
    """Join two systems' captions and scores image by image; NaN, which SPICE may give, counts as 0."""
    columns = [evaluation.scores[metric].per_image for evaluation in evaluations]
    return [
        Example(
            image_id,
            paths[image_id],
            captions,
            (evaluations[0].captions[image_id], evaluations[1].captions[image_id]),
            (0.0 if math.isnan(first) else first, 0.0 if math.isnan(second) else second),
        )
        for (image_id, captions), first, second in zip(references.items(), *columns, strict=True)
    ]


def choose(examples: Sequence[Example], limit: int) -> list[Example]:
    """Keep the images where the systems differ most, half of them in favour of each where there are enough.

    They are sorted by difference; the image where the first system is furthest ahead comes first.
    """
    ranked = sorted(examples, key=lambda example: -example.difference)
    num_better = sum(example.difference > 0 for example in ranked)
    num_worse = len(ranked) - num_better
    # Where one side has fewer than half, the other takes its places.
    top = min(num_better, max((limit + 1) // 2, limit - num_worse))
    bottom = min(num_worse, limit - top)
    return ranked[:top] + ranked[len(ranked) - bottom :]


def render_page(
    examples: Sequence[Example],
    *,
    names: Sequence[str],
    data: str,
    metric: str,
    tables: Sequence[Table],
    total: int,
    several_runs: bool = False,
) -> str:
    """Return the page as HTML.

    Args:
        examples: sorted, as `choose` returns them.
        names: of the two systems.
        data: name of the references, for the title.
        metric: that the examples' scores are of.
        tables: shown above the examples, all but the first folded.
        total: number of images that `examples` were chosen from.
        several_runs: see `write_page`.
    """
    # Captions and names may hold anything, so every text goes through `escape` before it becomes HTML.
    first, second = map(escape, names)
    if len(examples) < total:
        share = f"{len(examples)} of {total} images, those where the two differ most either way"
    else:
        share = f"all {total} images"
    tested = (
        "the table is of all runs of either setting, the captions are those of its first run."
        if several_runs
        else "p is how often chance alone makes a difference that large (two-sided randomization test over "
        "images)."
    )
    values = {
        "tested": tested,
        "first": first,
        "second": second,
        "data": escape(data),
        "metric": escape(metric),
        "share": share,
        "tables": table_html(tables[0]),
        "details": "\n".join(map(table_html, tables[1:])),
        "rows": "\n".join(_row_html(example, names) for example in examples),
    }
    return fill_page("comparison.html", values, scripts="; script-src 'unsafe-inline'")


def fill_page(name: str, values: Mapping[str, str], *, scripts: str = "") -> str:
    """Fill in a template of this folder and the head that all pages share.

    Args:
        name: of the template.
        values: that it names, as HTML.
        scripts: what the page's security policy says of scripts; by default there are none.
    """
    head, page = (Template((_FOLDER / file).read_text(encoding="utf-8")) for file in ("page_head.html", name))
    return page.substitute(values, head=head.substitute(scripts=scripts).strip())


def table_html(table: Table) -> str:
    """Return a table as HTML, its note below it."""
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in table.headings)
    body = "\n".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in table.rows
    )
    caption = f"<caption>{escape(table.title)}</caption>"
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    rows = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="wide"><table>{caption}{rows}</table></div>{note}'


def _row_html(example: Example, names: Sequence[str]) -> str:
    image_id = escape(example.image_id)
    scores = [100 * score for score in example.scores]
    captions = "\n".join(
        f'<div class="caption {which}"><dt>{escape(name)} <span class="score">{score:.1f}</span></dt>'
        f'<dd dir="auto">{escape(text) if text.strip() else "<i>(empty)</i>"}</dd></div>'
        for which, name, score, text in zip(("first", "second"), names, scores, example.captions, strict=True)
    )
    references = "".join(f'<li dir="auto">{escape(reference)}</li>' for reference in example.references)
    data = f'data-id="{image_id}" data-first="{scores[0]:.4f}" data-second="{scores[1]:.4f}"'
    return f"""<li class="row" {data} aria-label="image {image_id}">
<figure>{_picture_html(example)}<figcaption>{image_id}</figcaption></figure>
<dl>{captions}</dl>
<p class="difference">{_verdict_html(scores[0] - scores[1], names)}</p>
<ul class="references" aria-label="references">{references}</ul>
</li>"""


def _verdict_html(difference: float, names: Sequence[str]) -> str:
    if abs(difference) < 0.05:
        return "<b>0.0</b> no difference"
    which = int(difference < 0)
    style = ("first", "second")[which]
    return f'<b class="{style}">{difference:+.1f}</b> {escape(names[which])} is better'


def _picture_html(example: Example) -> str:
    picture = thumbnail(example.path)
    if picture is None:
        return '<div class="none">no picture</div>'
    content = base64.b64encode(picture).decode()
    label = escape(f"photograph {example.image_id}")
    return f'<img src="data:image/jpeg;base64,{content}" alt="{label}">'


def thumbnail(path: Path) -> bytes | None:
    """Shrink an image to a JPEG of at most 320 pixels' width; None where it cannot be read."""
    try:
        upright = read_image(path)
    except InputError:
        return None
    upright.thumbnail((THUMBNAIL, 4 * THUMBNAIL))
    file = io.BytesIO()
    upright.save(file, "JPEG", quality=80)
    return file.getvalue()
