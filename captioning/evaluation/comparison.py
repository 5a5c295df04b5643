"""Tables of one evaluation or two, and the HTML page that shows two systems' captions side by side.

The page is one file that asks for nothing from anywhere: pictures are thumbnails inside it, and it reads as a
plain document where scripts are off. Its looks and keys are in `comparison.html`.
"""

import base64
import csv
import io
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import NamedTuple

from PIL import Image, ImageOps

from captioning.metrics import Score
from captioning.metrics.statistics import Difference, Interval
from captioning.results import Evaluation, percent
from captioning.vocabulary import tokenize

THUMBNAIL = 320  # pixels, the longest width
_TEMPLATE = Path(__file__).with_name("comparison.html")
_SHARES = {
    "mean_length": "words a caption",
    "vocabulary": "different words used",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "novel": "novel captions",
    "unique": "captions no other image has",
    "repeated_words": "a word twice in a row",
    "repeated_trigrams": "three words that come again",
    "bad_endings": "ends in a function word",
}
_PLAIN = {"mean_length": ".2f", "vocabulary": "d", "distinct_1": ".3f", "distinct_2": ".3f"}


class Table(NamedTuple):
    """A table of text for the terminal and the page; the first column holds the names of the rows."""

    title: str
    headings: list[str]
    rows: list[list[str]]


class Example(NamedTuple):
    """One image of the comparison: where its picture is, its references, two captions and their scores."""

    image_id: str
    path: Path
    references: Sequence[str]
    captions: tuple[str, str]
    scores: tuple[float, float]

    @property
    def difference(self) -> float:
        """First score minus second."""
        return self.scores[0] - self.scores[1]


def names_of(paths: Sequence[str | Path]) -> list[str]:
    """Call each file by its stem, with as many of its folders as tell the files apart."""
    parts = [Path(path).absolute().with_suffix("").parts for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{part[-1]} ({number})" for number, part in enumerate(parts, start=1)]


def score_table(evaluations: Sequence[Evaluation], paired: Mapping[str, Difference]) -> Table:
    """Tabulate scores times 100 with intervals; for two systems their difference and its p-value too."""
    headings = ["metric", *(evaluation.name for evaluation in evaluations)]
    metrics = dict.fromkeys(metric for evaluation in evaluations for metric in evaluation.scores)
    rows = [
        [metric, *(_score(e.scores.get(metric), e.intervals.get(metric)) for e in evaluations)]
        for metric in metrics
    ]
    if len(evaluations) > 1:
        headings += ["difference", "p"]
        for row in rows:
            test = paired.get(row[0])
            known = test and not math.isnan(test.p_value)
            row += [f"{100 * test.difference:+.1f}", f"{test.p_value:.3f}"] if test and known else ["–", "–"]
    return Table("scores × 100 [95 % interval]", headings, rows)


def _score(score: Score | None, interval: Interval | None) -> str:
    if score is None:
        return "–"
    told = f"{100 * score.corpus:.1f}"
    return f"{told} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]" if interval else told


def diversity_table(evaluations: Sequence[Evaluation]) -> Table:
    """Tabulate what references don't tell."""
    rows = []
    for key, name in _SHARES.items():
        values = [getattr(evaluation.diversity, key) for evaluation in evaluations]
        told = [f"{value:{_PLAIN.get(key, '.1%')}}".replace("%", " %") for value in values]
        if key == "novel":
            told = [t if e.novel_is_known else "–" for t, e in zip(told, evaluations, strict=True)]
        rows.append([name, *told])
    return Table("captions", ["", *(evaluation.name for evaluation in evaluations)], rows)


def length_table(evaluations: Sequence[Evaluation]) -> Table:
    """Tabulate the mean score by caption length, with the number of captions."""
    buckets = [{(b.first, b.last): b for b in evaluation.lengths} for evaluation in evaluations]
    spans = sorted({span for found in buckets for span in found})
    rows = []
    for first, last in spans:
        words = f"{first} and more" if last is None else f"{first} to {last}"
        cells = [found.get((first, last)) for found in buckets]
        rows.append([words, *(f"{100 * b.score:.1f} ({b.captions})" if b else "–" for b in cells)])
    title = f"mean {evaluations[0].length_metric} × 100 by words a caption (captions)"
    return Table(title, ["words", *(evaluation.name for evaluation in evaluations)], rows)


def csv_text(evaluations: Sequence[Evaluation]) -> str:
    """Write a line an image: its id, then for each system caption, number of words and scores times 100."""
    names = [""] if len(evaluations) == 1 else ["_first", "_second"]
    columns: dict[str, list[object]] = {"image_id": list(evaluations[0].captions)}
    for name, evaluation in zip(names, evaluations, strict=True):
        columns[f"caption{name}"] = list(evaluation.captions.values())
        columns[f"words{name}"] = [len(tokenize(caption)) for caption in evaluation.captions.values()]
        for metric, score in evaluation.scores.items():
            columns[f"{metric}{name}"] = [percent(value) for value in score.per_image]
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return file.getvalue()


def pair(
    evaluations: Sequence[Evaluation],
    references: Mapping[str, Sequence[str]],
    paths: Mapping[str, Path],
    metric: str,
) -> list[Example]:
    """Put two systems' captions and scores of each image together; a score of NaN counts as 0."""
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
    """Keep the images where the systems differ most, half of them either way if there are as many.

    They come sorted by difference, the first system's best image at the top.
    """
    ranked = sorted(examples, key=lambda example: -example.difference)
    num_better = sum(example.difference > 0 for example in ranked)
    num_worse = len(ranked) - num_better
    top = min(num_better, max((limit + 1) // 2, limit - num_worse))
    bottom = min(num_worse, limit - top)
    return ranked[:top] + ranked[len(ranked) - bottom :]


def page(
    examples: Sequence[Example],
    *,
    names: Sequence[str],
    data: str,
    metric: str,
    tables: Sequence[Table],
    total: int,
) -> str:
    """Build the page.

    Args:
        examples: as `choose` gives them.
        names: of the two systems.
        data: what the captions are of, for the title.
        metric: what the examples' scores are (fractions).
        tables: shown above them, all but the first folded.
        total: number of images that `examples` were chosen from.
    """
    first, second = map(escape, names)
    if len(examples) < total:
        share = f"{len(examples)} of {total} images, those where the two differ most either way"
    else:
        share = f"all {total} images"
    values = {
        "first": first,
        "second": second,
        "data": escape(data),
        "metric": escape(metric),
        "share": share,
        "tables": _table(tables[0]),
        "details": "\n".join(map(_table, tables[1:])),
        "rows": "\n".join(_row(example, names) for example in examples),
    }
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(values)


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in table.headings)
    body = "\n".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in table.rows
    )
    caption = f"<caption>{escape(table.title)}</caption>"
    return (
        f'<div class="wide"><table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _row(example: Example, names: Sequence[str]) -> str:
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
<figure>{_picture(example)}<figcaption>{image_id}</figcaption></figure>
<dl>{captions}</dl>
<p class="difference">{_verdict(scores[0] - scores[1], names)}</p>
<ul class="references" aria-label="references">{references}</ul>
</li>"""


def _verdict(difference: float, names: Sequence[str]) -> str:
    if abs(difference) < 0.05:
        return "<b>0.0</b> no difference"
    which = int(difference < 0)
    style = ("first", "second")[which]
    return f'<b class="{style}">{difference:+.1f}</b> {escape(names[which])} is better'


def _picture(example: Example) -> str:
    picture = thumbnail(example.path)
    if picture is None:
        return '<div class="none">no picture</div>'
    content = base64.b64encode(picture).decode()
    label = escape(f"photograph {example.image_id}")
    return f'<img src="data:image/jpeg;base64,{content}" alt="{label}">'


def thumbnail(path: Path) -> bytes | None:
    """Shrink a picture to a JPEG of at most 320 pixels' width; None where it can't be read."""
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # what Pillow raises
        return None
    upright.thumbnail((THUMBNAIL, 4 * THUMBNAIL))
    file = io.BytesIO()
    upright.save(file, "JPEG", quality=80)
    return file.getvalue()
