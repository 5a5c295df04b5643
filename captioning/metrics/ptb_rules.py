"""The rules of the Penn Treebank tokenizer, for `ptb`: which characters form one token.

Each rule is a regular expression whose first group is the token; what it matches after that group is context,
which must follow but belongs to the next token. All rules are tried; the longest match, context included,
wins, or the earlier one of a tie.
"""

import re

_NEUTRAL = (
    "al co ct ga jr ky md mo rd rt sq sr va vt ala apr aug bhd cos dak dec esq est etc ext feb fla fri "
    "inc ind jan jul jun kan ltd mar mon neb nev nov oct plc pte pty sep seq sys tel thu tue wed wis wyo "
    "ariz assn bldg blvd bros colo conn corp intl kans mich minn mont okla penn ppte ppty ptes ptys sept "
    "tenn tues univ wisc calif thurs"
)
_STATES = "az la pa ark del ill ore tex mass miss wash"  # abbreviations with a capital only
_TITLES = (  # they join what follows: "mr.-x" and "st.mary" are one token, unlike "inc.-x"
    "cf dr ft lt mr ms mt ph st vs wm adj adm adv ave cie col cpl det drs ens gen gov hon jos maj mfg mme "
    "mrs mtg pfc pvt rep rev sen sfc sgt spc ste alex asst atty brig capt cmdr dept elec govs insp invt "
    "mlle msgr natl pres prof reps sens supt messrs assoc comdr attys lieut treas"
)
_BEFORE_NUMBERS = "ca fig figs prop art op no nos pp"  # "no. 5", but "no." alone is a word and a period
_FILE_TYPES = (
    "bat bmp c cgi class cpp dll doc docx exe gif gz h htm html jar java jpeg jpg mov mp3 pdf php pl png "
    "ppt ps py sql tar txt wav x xml zip"
)
_SENTENCE_STARTS = (  # with a capital; before one of these, "k." is a letter and a period
    "a about according after an as at but he her here however if in it last many more now once one other "
    "our she since so some such that the their then there these they this we what when while yet you"
)

ABBREVIATIONS = frozenset(f"{_NEUTRAL} {_STATES} {_TITLES}".split())
SPLIT_WORDS = {
    "cannot": ("can", "not"),
    "gonna": ("gon", "na"),
    "wanna": ("wan", "na"),
    "gotta": ("got", "ta"),
    "gimme": ("gim", "me"),
    "lemme": ("lem", "me"),
}


def _either(words: str) -> str:
    return "(?:" + words.replace(" ", "|") + ")"


# Letters, and what they join to: combining marks, the soft hyphen. The look-ahead keeps the two
# alternatives apart: with a character in both, matching would take exponential time.
_LETTER = (
    r"(?:[^\W\d_²³¹¼-¾\u2070-\u218b\U00010000-\U0010ffff]"
    r"|(?!\w)[\u00ad\u02c2-\u036f\u0483-\u0487\u0591-\u05bd\u064b-\u0669\u0900-\u0e4e])"
)
_ALNUM = rf"(?:{_LETTER}|\d)"
_ASCII = r"[A-Za-z0-9]"
_END = rf"(?!{_LETTER})"
_QUOTE = r"(?:['’‘\x91\x92]|&apos;)"
_WORD = rf"{_LETTER}{_ALNUM}*(?:[.!?]{_LETTER}{_ALNUM}*)*"  # "file.txt", "t.v", and "end.next"
_SNAKE = rf"{_ALNUM}+(?:_{_ALNUM}+)*"
_INITIALS = r"[A-Za-z](?:\.[A-Za-z])+\."
_ELISION = rf"[dDoOlL]{_QUOTE}{_ASCII}{{2,}}(?:_{_ASCII}+)*"  # "o'clock", "d'oeuvre"
_CLITIC = rf"(?:['’\x92]|&apos;)(?i:s|m|d|re|ve|ll){_END}"
_NUMBER = r"(?:\d*(?:[.:,]\d+)+|\d+)"
_FRACTION = r"((?:\d{1,4}[- \u00a0])?\d{1,4}/\d{1,4})(?!\d)"
_TITLE = rf"(?i:{_either(_TITLES)})\."
_NEUTRAL_OR_STATE = rf"(?i:{_either(_NEUTRAL)})|{_either(_STATES.title())}|{_either(_STATES.upper())}"
_PATH = r"(?:/[^ \"<>|()]+[^ \"<>|.!?(){},-])?"
_MAIL = r"(<?[A-Za-z0-9][^\s\"<>|(){}]*@[^\s\"<>|(){}]*[^\s\"<>|(){}.]>?)"
_ATTRIBUTE = r"[A-Za-z][\w:.-]*(?: *= *(?:'[^']*'|\"[^\"]*\"|[A-Za-z][\w:.-]*))?"

_STARTS_ALNUM = (
    *(rf"((?i:{first}))(?i:{second})" for first, second in SPLIT_WORDS.values()),
    rf"((?i:more))(?i:{_QUOTE}n)",
    rf"({_LETTER}+?(?<![nN]))(?i:n{_QUOTE}t)",  # "do" of "don't"
    rf"((?i:n{_QUOTE}t)){_END}",
    rf"({_WORD}){_CLITIC}",
    rf"((?:{_NEUTRAL_OR_STATE})\.)(?:-?{_ASCII})?",
    rf"({_WORD})",
    rf"((?:{_WORD}|[A-Za-z0-9][A-Za-z0-9.,]*(?:-{_SNAKE})+|{_SNAKE})\.)[,;:]",
    r"(https?://[^ \"<>|(){}]+[^ \"<>|.!?(){},-])",
    rf"(www\.(?:[^ \"<>|.!?(){{}},]+\.)+[a-zA-Z]{{2,4}}{_PATH})",
    rf"((?:{_LETTER}[^\s\"`'<>|.!?(){{}},:=_$/-]*\.)+(?:com|net|org|edu){_PATH})",
    _MAIL,
    rf"((?i:c{_QUOTE}mon|ol{_QUOTE}|Dunkin{_QUOTE}|somethin{_QUOTE}))",
    rf"([dDlLjJ]{_QUOTE}|[yY]{_QUOTE}(?={_LETTER}))",
    rf"([A-HJ-XZn]{_QUOTE}{_LETTER}{{2,}})",
    rf"([A-Za-z]+[aeiouAEIOU]{_QUOTE}[aeiouA-Z][A-Za-z]*|[oO]{_QUOTE}o|[eE]{_QUOTE}er)",  # "ho'ohu"
    rf"((?:{_ELISION}|{_SNAKE})(?:[-‐‑](?:{_ELISION}|{_INITIALS}|{_SNAKE}))*)",
    rf"({_ALNUM}(?:{_ALNUM}|[.,])*(?:[-‐‑](?:{_ELISION}|{_INITIALS}|{_ALNUM}+))+)",
    rf"({_ASCII}+(?:-[A-Za-z]+){{0,2}}(?:\\?/{_ASCII}+(?:-[A-Za-z]+){{0,2}}){{1,2}})",
    r"([A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+)",
    r"(\d{1,2}[-/]\d{1,2}[-/]\d{2,4})",
    rf"({_NUMBER})",
    _FRACTION,
    rf"((?i:ph|ed)\.[dD]\.|{_INITIALS}|{_TITLE})",
    rf"({_ALNUM}+(?:\.{_ALNUM}+)*\.(?i:{_either(_FILE_TYPES)}))(?![\w/-])",
    rf"([A-Za-z])\.(?=\s+(?:{_either(_SENTENCE_STARTS.title())}|{_either(_SENTENCE_STARTS.upper())})(?!\S)|\s*$)",
    r"([A-Za-z]\.)",
    rf"((?i:{_either(_BEFORE_NUMBERS)})\.)(?=\s?\d)",
    r"([A-Z]+\$|[CcFf]#|[Cc]\+\+)",
    r"(.)",
)
_STARTS_OTHERWISE = (
    rf"(<(?:[!?][A-Za-z-][^>]*|/?[A-Za-z][\w:.-]*(?: +{_ATTRIBUTE})* */?)>)",
    rf"({_QUOTE}(?i:t))(?i:is|was)",
    rf"({_CLITIC})",
    rf"((?i:{_QUOTE}em|{_QUOTE}till?|{_QUOTE}cause|{_QUOTE}n{_QUOTE})|{_QUOTE}[2-9]0s(?!{_ALNUM}))",
    rf"((?i:{_QUOTE}n)|{_QUOTE}\d\d)(?=\s|$)",
    rf"([+-]?{_NUMBER})",
    _MAIL,
    r"(@[A-Za-z_][A-Za-z_0-9]*|#[A-Za-z]+)",
    r"([<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]])(?![A-Za-z0-9])",
    r"([-^x=~<>']_[-^x=~<>']|\([-^x=~<>'][._]?[-^x=~<>']\))",
    r"(-{2,}|\.{3,}|[–—―]+|[!?]+|''|``|[‘’‛“”«»‹›\x91-\x94]{2}|\*+|_+|#+|<<|>>|@@|\\\*|\$)",
    r"(&(?:amp|lt|gt|quot|nbsp|apos|mdash|#\d{1,4});)",
    r"(.)",
)

RULES_FOR_WORDS = tuple(map(re.compile, _STARTS_ALNUM))
RULES_FOR_OTHERS = tuple(re.compile(rule, re.DOTALL) for rule in _STARTS_OTHERWISE)
