r"""The COCO caption toolkit's tokenizer without Java: Penn Treebank tokens, lower-cased, no punctuation.

The toolkit runs Stanford's PTBTokenizer 3.4.1 (``-preserveLines -lowerCase``) and then drops a list of
punctuation tokens. The rules here follow what is known of its grammar and were fitted by feeding it captions
and hostile strings: equal on all 60,434 captions of COCO val2017 and Flickr8k (train, val), and on all but 15
of 49,604 random strings of punctuation, digits and odd letters it was not fitted on. Its quirks are kept:
brackets stay as ``-lrb-`` to ``-rcb-`` (the toolkit drops them in capitals only), and a mixed number is one
token with a no-break space ("22 3/4").

What differs, and why:
- A single letter and a period ending a caption ("a sign that reads K.") loses the period. The toolkit does
  this where the next caption of its file starts with "A", "The" and the like, as COCO's do; here a caption
  has no neighbours.
- Line breaks other than "\n" are white space; the toolkit would shift every later caption by a line.
- Some words with a quote inside: s'mores, cap'n, li'l and c'est stay whole in the toolkit and are cut at the
  quote here, j'more and y'more the other way round. None is in a caption at hand, so no rule was fitted.
- Some scripts and symbols that the tokenizer's Unicode tables (about 2010) do not know, telephone numbers
  with spaces, and some smileys and web addresses full of punctuation are cut elsewhere.
"""

import re

from captioning.metrics.ptb_rules import ABBREVIATIONS, RULES_FOR_OTHERS, RULES_FOR_WORDS, SPLIT_WORDS

_REMOVED = frozenset(["", "''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("“«\x93", "``"),
        **dict.fromkeys('"”»\x94', "''"),
        **dict.fromkeys("‘‹‛\x91", "`"),
        **dict.fromkeys("’›\x92", "'"),
        **dict.fromkeys("–—―\x96\x97", "--"),
        **dict.fromkeys("€¤₠\x80", "$"),
        **{"(": "-lrb-", ")": "-rrb-"},
        **{"½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"},
        **{"…": "...", "£": "#", "¢": "cents", "\xad": "", " ": "\xa0"},
    }
)
_BRACKETS = {"[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}  # alone; those of smileys stay
_ENTITIES = {
    "&amp;": "&",
    "&lt;": "<",
    "&gt;": ">",
    "&quot;": "''",
    "&apos;": "'",
    "&nbsp;": "",
    "&mdash;": "--",
}
_ENTITY = re.compile("|".join(_ENTITIES))
_SHORT_DASH_OR_DOTS = re.compile(r"-{2,4}|\.{3,}|[–—―]+")
_DROPPED = re.compile(  # what the tokenizer cannot place: control and format characters, rare blocks, emoji
    r"[^\w!-~\u00a1-\u00bf×÷\u2013-\u2026\u2030-\u203b\u203e-\u2044\u2070-\u208e\u20a0\u20a4\u20ac"
    r"\u2100-\u214f\u2153-\u215e\u2190-\u2bff\u3001\u3002\u3012\uff01-\uffe6]|[\U00010000-\U0010ffff]"
)

_SENTENCE = re.compile(r"((?:[A-Za-z]+[ \t\n]+)*)([A-Za-z]{2,})[ \t\n]*\.?[ \t\n]*")
_PLAIN_RUN = re.compile(r"(?:[A-Za-z]+\s+)*[A-Za-z]+(?=\s|$)")
_SPACE = re.compile(r"\s+")


def ptb_tokenize(caption: str) -> list[str]:
    """Split one caption into lower-case tokens; a caption of nothing but punctuation has none."""
    # Nine of ten captions are words and a period, for which no rule needs to be tried.
    sentence = _SENTENCE.fullmatch(caption)
    if sentence and sentence[2].lower() not in ABBREVIATIONS:
        return _split(caption.lower().replace(".", " "))
    return [token for token in _read(caption) if token not in _REMOVED]


def _split(plain: str) -> list[str]:
    words = plain.split()
    if SPLIT_WORDS.keys().isdisjoint(words):
        return words
    return [part for word in words for part in SPLIT_WORDS.get(word, (word,))]


def _read(caption: str) -> list[str]:
    tokens: list[str] = []
    place = 0
    while place < len(caption):
        if space := _SPACE.match(caption, place):
            place = space.end()
        elif run := _PLAIN_RUN.match(caption, place):
            tokens += _split(run[0].lower())
            place = run.end()
        else:
            token, place = _longest(caption, place)
            tokens.append(_normalize(token))
    return tokens


def _longest(caption: str, place: int) -> tuple[str, int]:
    """Return the token at `place` and where it ends: the longest match, of a tie the earlier rule's."""
    rules = RULES_FOR_WORDS if caption[place].isalnum() else RULES_FOR_OTHERS
    matches = [match for rule in rules if (match := rule.match(caption, place))]
    best = max(matches, key=re.Match.end)  # max keeps the first of equals
    return best[1], best.end(1)


def _normalize(token: str) -> str:
    """Lower-case a token; spell brackets, quotes, dashes, currencies, fractions as the tokenizer does."""
    token = token.lower()
    if token.isalnum() and token.isascii():
        return token
    if _SHORT_DASH_OR_DOTS.fullmatch(token):
        return "--"
    if token[0] == "<" and token[-1] == ">":  # a tag or an address
        return token.replace(" ", "\xa0")
    if "&" in token:
        token = _ENTITY.sub(lambda entity: _ENTITIES[entity[0]], token)
    if len(token) == 1 and _DROPPED.match(token):
        return ""
    return _BRACKETS.get(token) or token.translate(_CHARACTERS)
