"""From captions to numbers, tables and pictures.

    captions.py      a model's captions of a split
    results.py       result files of any system: read with checks, written
    references.py    what captions are scored against
    sources.py       references and data that are given, or a checkpoint's own
    scoring.py       scores with confidence intervals; tests of whether two systems differ
    tables.py        the tables of one system or two
    report.py        scores.json, images.csv, tables on the terminal
    comparison.py    the HTML page of two systems' captions (comparison.html)
    runs.py          run folders of trainings
    study.py         trainings side by side: means over seeds, tests, curves (curves.py), a page (study.html)
    baselines.py     captions without a caption model
    visualise.py     figures of attention
    fonts.py         a font that has a caption's characters
    attention_html.py  a caption as HTML for notebooks, with its attention
    caption_file.py  captions of photographs as JSON lines, or in COCO's format

No config object comes in here; the commands unpack it.
"""

from captioning.evaluation.baselines import most_frequent, nearest_neighbour
from captioning.evaluation.caption_file import CaptionFile
from captioning.evaluation.captions import SplitCaptions, caption_split, write_captions
from captioning.evaluation.comparison import write_page
from captioning.evaluation.options import check_options, compared_files
from captioning.evaluation.references import References
from captioning.evaluation.report import print_table, write_report
from captioning.evaluation.results import read_results, read_systems, results_json
from captioning.evaluation.scoring import Evaluation, compare, score
from captioning.evaluation.sources import GivenData, datamodule_of, read_references, references_of
from captioning.evaluation.study import write_study
from captioning.evaluation.visualise import attention_figure, close, picture_paths, save

__all__ = [
    "CaptionFile",
    "Evaluation",
    "GivenData",
    "References",
    "SplitCaptions",
    "attention_figure",
    "caption_split",
    "check_options",
    "close",
    "compare",
    "compared_files",
    "datamodule_of",
    "most_frequent",
    "nearest_neighbour",
    "picture_paths",
    "print_table",
    "read_references",
    "read_results",
    "read_systems",
    "references_of",
    "results_json",
    "save",
    "score",
    "write_captions",
    "write_page",
    "write_report",
    "write_study",
]
