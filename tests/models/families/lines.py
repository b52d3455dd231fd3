"""Lines to encode: many scripts, code, emoji, white space and everything that tokenizers differ on.

Deterministic: the same seed gives the same lines on every Python, so that a test can count them.
"""

# ruff: noqa: RUF001 - letters of other scripts that look like Latin ones are what this is for

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
"""Control tokens that the lines contain."""
ADDED = ("<think>", "</think>", "<tool_call>")
"""Added tokens that are text, not control."""

_PROSE = (
    "The quick brown fox jumps over the lazy dog while nobody is watching it sleep "
    "in the shade of an old oak tree near the river where children used to play "
    "before the mill was built",
    "Der größte Bär läuft schläfrig über die Brücke und ärgert sich über süße Äpfel, "
    "ÖFFNUNG ÜBERGANG Straßenbahn Fußgängerübergänge gemäß Größenordnung",
    "Où êtes-vous allés, élève naïf ? Ça coûte très cher à l'hôpital œuvre ÉCOLE À "
    "L'ÉTÉ aujourd'hui qu'est-ce que c'est",
    "Tiếng Việt có rất nhiều dấu thanh điệu phức tạp và những nguyên âm đặc biệt ở Hà Nội",
    "Příliš žluťoučký kůň úpěl ďábelské ódy ŽLUŤOUČKÝ ĎÁBEL čeština řeřicha",
    "İstanbul'da ılık bir gün ÇĞİÖŞÜ çğıöşü pijamalı hasta yağız şoföre çabucak güvendi",
    "Zażółć gęślą jaźń ZAŻÓŁĆ GĘŚLĄ JAŹŃ pchnąć w tę łódź jeża",
    "Съешь же ещё этих мягких французских булок, да выпей чаю МОСКВА Россия Ёлка ПРИВЕТ мир",
    "Їхав ґазда з Києва через ЄВРОПУ, щоб побачити море і з'їсти вареники",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία ΑΘΗΝΑ Ελλάδα ΐ ΰ ώρα ὁ ἄνθρωπος ἐν ἀρχῇ",
    "نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر السَّلَامُ عَلَيْكُمْ",
    "این یک متن آزمایشی است که می\u200cخواهیم آن را رمزگذاری کنیم گچپژ",
    "דג סקרן שט בים מאוכזב ולפתע מצא חברה שָׁלוֹם עוֹלָם",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश करने वाले विष्णुवतार",
    "আমার সোনার বাংলা আমি তোমায় ভালোবাসি চিরদিন তোমার আকাশ",
    "யாமறிந்த மொழிகளிலே தமிழ்மொழி போல் இனிதாவது எங்கும் காணோம்",
    "తెలుగు భాష చాలా అందమైనది మరియు మధురమైనది",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า กว่าบรรดาฝูงสัตว์เดรัจฉาน น้ำใจ",
    "ພາສາລາວ ເປັນພາສາທີ່ສວຍງາມ",
    "ភាសាខ្មែរ ជាភាសាផ្លូវការ របស់ប្រទេសកម្ពុជា",
    "မြန်မာဘာသာစကား သည် လှပသည်",
    "བོད་ཡིག་ནི་བོད་རིགས་ཀྱི་ཡི་གེ་ཡིན།",
    "天地玄黄,宇宙洪荒。日月盈昃,辰宿列张。我们今天去北京,明天回上海!繁體中文測試「引號」",
    "いろはにほへと ちりぬるを。カタカナ、ひらがな、漢字が混ざった文章です!がぎぐげご パピプペポ",
    "다람쥐 헌 쳇바퀴에 타고파. 안녕하세요 세계! 키스의 고유조건은 입술끼리 만나야 하고",
    "ქართული ენა არის ძალიან ძველი ᲥᲐᲠᲗᲣᲚᲘ საქართველო",
    "Բարեւ աշխարհ ՀԱՅԱՍՏԱՆ լեզու գեղեցիկ է",
    "ሰላም ለዓለም እንዴት ነህ አማርኛ ቋንቋ",
    "ᎠᏂᏴᏫᏯᎢ ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ ꭰꮒᏼ",
    "ᠮᠣᠩᠭᠣᠯ ᠪᠢᠴᠢᠭ",
    "සිංහල භාෂාව ශ්‍රී ලංකාවේ භාෂාවකි",
)
_CODE = (
    "def f(x: int, *args, **kw) -> None:\n    return [i ** 2 for i in range(x) if i % 2 == 0]\n",
    "    if (a && b || !c) {\n\t\treturn a->b[i]++;\n\t}\r\n",
    'fn main() { println!("{:?}", vec![1u8; 0xFF_u8 as usize]); }',
    "#include <stdio.h>\n#define MAX(a, b) ((a) > (b) ? (a) : (b))\nint main(void){return 0;}",
    "const f = async (x) => { await g?.(`${x}\\n`); /* TODO */ };",
    "SELECT id, COUNT(*) AS n FROM users WHERE name LIKE '%o''k%' GROUP BY 1 HAVING n >= 10;",
    '<div class="a b" id=\'c\'><a href="https://example.org/?q=1&amp;r=2#x">it\'s</a></div>',
    "for i in $(seq 1 10); do echo \"$i\" | sed -e 's/^/>> /' >> out.txt 2>&1; done",
    '{"key": [1, -2.5e-10, null, true], "nested": {"a\\u00e9": "\\ud83d\\ude00"}}',
    "public static final Map<String, List<Integer>> CACHE = new HashMap<>();\n\n\n}",
    "\\begin{equation} \\frac{\\partial f}{\\partial x} = \\sum_{i=0}^{n} x_i^2 \\end{equation}",
    "x = 3.14159; y := x != 2 ? 1 : 0 // 100% ~ `ok` @user #tag $var ^_^ <=> |> ::= ...",
    'package main\n\nimport (\n\t"fmt"\n)\n\nfunc main() {\n\tfmt.Println("hi")\n}\n',
    "myVariableName HTMLParser getHTTPResponseCode snake_case SCREAMING_CASE kebab-case x86_64",
    "/usr/local/bin//a.out C:\\\\Windows\\System32 ../..//etc/ http://a.b/c/\n/\n//\r\n/",
)
_WORDS = ("don", "I", "we", "they", "it", "you", "she", "Él", "o", "там", "X", "WE", "Don", "l", "")
_SUFFIXES = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'em", "'S", "'T", "'RE", "'Ve", "'M")
_SUFFIXES += ("'LL", "'lL", "'D", "\u2019s", "\u2019T", "'\u017f", "'x", "''s", "'tis", "'RED", "'")
_EMOJI = (
    "😀 👍🏽 👨\u200d👩\u200d👧\u200d👦 🏳\ufe0f\u200d🌈 \U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7 "
    "\U0001f1fa 👩🏿\u200d🚀 ❤\ufe0f ✈\ufe0e 1\ufe0f\u20e3 #\ufe0f\u20e3 \U0001fae8 🦙 ☃ "
    "🧑\u200d🤝\u200d🧑 🏴\U000e0067\U000e0062\U000e007f ⌚ \U0001fabf 🏿 "
).split()
_SPACES = [" ", " " * 2, " " * 3, " " * 4, " " * 8, " " * 17, *"\t\n\r\v\f\x1c\x1f"]
_SPACES += ["\t\t", "\n\n", "\r\n", " \n", "\n ", "\t \t", *"\u00a0\u2003\u3000\u2028\u2029\u0085"]
_SPACES += [*"\u200b\u200d\ufeff\u202f\u1680\u2060\u180e\u00ad"]
_PUNCTUATION = (
    "! ?! ... … —— -- === (( )) {} [] <> </ /> // /* */ \\ ` ``` '' \" « » “” 、 。 ، ؟ "
    "। § ¶ $ € ₿ + ± × ÷ ≠ ≤ ∑ → | ~ ^ # @ & % ° ‘ ’ ¿ ¡ • ※ 〜 ・ \u2581 _ __ - ; : , "
).split()
_PUNCTUATION += ["!\n", "/\r\n/"]
_MARKS = [*"\u0301\u0308\u0323\u0327\u0331\u034f\u20e3\u093c\u0651\u05b8\u0e49\u3099\ufe0f\u0489"]
_MARKS += [*"\u1dc4\U00011300\u0903\u0bbe"]
_DIGITS = "0123456789"
_NUMERALS = ("٠١٢٣٤٥ ०१२३ １２３４５ Ⅳ ⅻ ½ ¾ ² ³ ₁₂ ①② ㊿ 一二三 𝟘𝟙𝟚 ๑๒๓ 〇 ൰ 𐄇 ").split()
_LETTERS = (
    "ª º ʰ ˇ ǅ ǈ ᾈ ß ẞ ſ \u212a \u212b ﬁ ﬃ Ĳ ŉ ΐ ⓐ Ⓐ ℵ 𝒜𝓫 𝔄 ꙁ ⴰ ﷺ 々 ー ㆍ ｱ Ａｂ \uac01 "
    "\u1100\u1161\u11a8 \u0958 \u0344 \uf900 \u2126"
).split()
_RANGES = (
    (0x01, 0x1F), (0x7F, 0xFF), (0x100, 0x24F), (0x250, 0x2FF), (0x370, 0x3FF), (0x400, 0x52F),
    (0x530, 0x7FF), (0x800, 0x1FFF), (0x2000, 0x2BFF), (0x2C00, 0x2FFF), (0x3000, 0x33FF),
    (0x3400, 0x9FFF), (0xA000, 0xABFF), (0xAC00, 0xD7FF), (0xE000, 0xF8FF), (0xF900, 0xFFFF),
    (0x10000, 0x10FFF), (0x11000, 0x1FFFF), (0x20000, 0x323AF), (0xE0000, 0x10FFFF),
    (0x16D40, 0x16D79),  # Kirat Rai, of Unicode 16.
    (0x10D40, 0x10D8F),  # Garay, too: it has cases and digits.
)  # fmt: skip


def lines(count: int = 10_000, seed: int = 1) -> list[str]:
    """`count` lines of every kind in turn; some hold line ends."""
    draw = random.Random(seed)
    return [_KINDS[i % len(_KINDS)](draw) for i in range(count)]


def _prose(draw: random.Random) -> str:
    words = draw.choice(_PROSE).split(" ")
    start = draw.randrange(len(words))
    found = words[start : start + draw.randrange(1, 14)]
    if draw.random() < 0.2:
        found = [draw.choice((str.upper, str.lower, str.title))(w) for w in found]
    return " ".join(found)


def _unspaced(draw: random.Random) -> str:
    text = draw.choice(_PROSE)
    start = draw.randrange(len(text))
    return text[start : start + draw.randrange(1, 40)]


def _mixed_scripts(draw: random.Random) -> str:
    joiner = draw.choice(("", " ", ", ", "-", "/"))
    return joiner.join(_unspaced(draw)[:9] for _ in range(draw.randrange(2, 6)))


def _code(draw: random.Random) -> str:
    text = draw.choice(_CODE)
    if draw.random() < 0.5:
        start = draw.randrange(len(text))
        text = text[start : start + draw.randrange(5, 60)]
    return draw.choice(("", "    ", "\t", "  ")) + text


def _numbers(draw: random.Random) -> str:
    parts = []
    for _ in range(draw.randrange(1, 6)):
        size = draw.choice((1, 2, 3, 4, 5, 7, 10, 23))
        digits = "".join(draw.choice(_DIGITS) for _ in range(size))
        parts.append(
            draw.choice((digits, digits, f"{digits},{digits}", f"-{digits}.5e-7", f"0x{digits}F"))
        )
        parts.append(draw.choice((" ", "", "%", " €", "km", ":", *_NUMERALS)))
    return "".join(parts)


def _contractions(draw: random.Random) -> str:
    return draw.choice((" ", "", "\n")).join(
        draw.choice(_WORDS) + draw.choice(_SUFFIXES) + draw.choice(("", "", " x", "ve", "Y", "é"))
        for _ in range(draw.randrange(1, 6))
    )


def _series(
    first: Sequence[str], after: Sequence[str], below: int, times: Sequence[int] = ()
) -> Callable[[random.Random], str]:
    """Up to `below` times one of `first`, perhaps repeated, and one of `after`."""

    def make(draw: random.Random) -> str:
        parts = []
        for _ in range(draw.randrange(1, below)):
            part = draw.choice(first) * (draw.choice(times) if times else 1)
            parts.append(part + draw.choice(after))
        return "".join(parts)

    return make


_emoji = _series(_EMOJI, ("", "", " ", "a", "!", "\n"), 7)
_spaces = _series(_SPACES, ("", "", "a", "Zu", "1", "!", "文", "é", " b"), 10, (1, 1, 1, 2, 3))
_after_punctuation = ("", "", "", " ", "a", "B", "7", "\n", "\r\n", "ß", "я")
_punctuation = _series(_PUNCTUATION, _after_punctuation, 12, (1, 1, 1, 2, 5))
_letters = _series((*_LETTERS, *_NUMERALS), ("", "", " ", "a", "B", "'s", "1"), 9)


def _marks(draw: random.Random) -> str:
    return "".join(
        draw.choice(("a", "E", "ö", "я", "ح", "क", "か", " ", "1", "!", "한", "x"))
        + "".join(draw.choice(_MARKS) for _ in range(draw.choice((0, 1, 1, 2, 3))))
        for _ in range(draw.randrange(1, 12))
    )


def _rare(draw: random.Random) -> str:
    low, high = draw.choice(_RANGES)
    return "".join(
        draw.choice((chr(draw.randint(low, high)), chr(draw.randint(low, high)), *"aZ 9!"))
        for _ in range(draw.randrange(1, 12))
    )


def _cases(draw: random.Random) -> str:
    """Words of mixed case, some letters with and without diacritics."""
    pool = draw.choice(
        ("abcDEF", "aéÉñÑzZ", "яЯжЖёЁ", "αΑωΩά", "ծԾաԱ", "aAǅßſİı", "ქᲥა", "a文Bあ", "sSſ'tT")
    )
    words = (
        "".join(draw.choice(pool) for _ in range(draw.randrange(1, 9)))
        for _ in range(draw.randrange(1, 6))
    )
    return draw.choice((" ", "_", "-", ".", "'")).join(words)


def _control(draw: random.Random) -> str:
    def character() -> str:
        drawn = chr(draw.randrange(0x20)), chr(draw.randrange(0x80, 0xA0))
        return draw.choice((drawn[0], "\x7f", drawn[1], "\x00", "a", " ", "b1"))

    return "".join(character() for _ in range(draw.randrange(1, 10)))


def _special(draw: random.Random) -> str:
    """Special tokens amid text, with and without spaces about them."""
    parts = []
    for _ in range(draw.randrange(1, 5)):
        parts.append(draw.choice((_prose, _unspaced, _code, _spaces, _punctuation))(draw)[:30])
        parts.append(draw.choice(("", " ", "\n")) + draw.choice((*SPECIAL, *ADDED)))
        parts.append(draw.choice(("", "", " ", "\n", "  ")))
    return "".join(parts) + draw.choice(("", "user\n", " end"))


def _repeated(draw: random.Random) -> str:
    """A short pattern over and over: ties between merges."""
    text = draw.choice((_unspaced, _punctuation, _prose, _emoji))(draw)[: draw.randrange(1, 5)]
    return text * draw.randrange(2, 25)


def _jumble(draw: random.Random) -> str:
    return "".join(draw.choice(_KINDS[:-1])(draw)[:12] for _ in range(draw.randrange(2, 6)))


_KINDS: tuple[Callable[[random.Random], str], ...] = (
    _prose, _unspaced, _mixed_scripts, _code, _numbers, _contractions, _emoji, _spaces,
    _punctuation, _marks, _rare, _letters, _cases, _control, _special, _repeated, _prose, _code,
    _jumble,
)  # fmt: skip
