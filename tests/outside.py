"""What others may write into any field: the material of the fuzz tests, and what may never come out at an edge."""

import random
import re
import unicodedata

_ATTACKS = (
    "\x1b]52;c;ZXZpbA==\x07", "\x1b]0;title\x07", "\x1b[2J\x1b[H", "\x9b31m", "\x1b[8mhidden\x1b[0m",
    "\x1b]8;;http://evil.test\x1b\\link\x1b]8;;\x1b\\", "\x1bP+q\x1b\\", "\r\n",
    "\n# another database from here on\n",
    "\n2026-01-01T00:00:00.000Z o-1 #9 completed by nobody workflow=checkout-o-1 pos=9.9\n", "\u2028", "\u2029",
    "\x85", "\x0b\x0c", "\x00", "\x7f", "\u202egnp.exe", "\u2066\u2069", "\u200b\u200d\u2060\ufeff",
    "\u3164\u115f\u034f", "\U000e0041", "\udcff", "[red]", "[/]", "[bold red on white]x[/]",
    "[link=http://evil.test]x[/link]", "[@click=app.quit]x[/]", ":warning:", "![x](http://evil.test/a.png)",
    "[x](http://evil.test)", "[x][1]\n\n[1]: http://evil.test", "<img src=http://evil.test/x>",
    "<a href='javascript:alert(1)'>x</a>", "<http://evil.test>", "<!-- x -->", "<script>alert(1)</script>",
    "http://evil.test", "HTTPS://evil.test/?a=b", "ftp://evil.test", "mailto:a@evil.test", "www.evil.test",
    "&lt;b&gt; &#60;", "`x`", "``", "```", "`", "\\", "$x$", "$$", "*a* **b** _c_ __d__ ~~e~~",
    "| a | b |\n|---|---|", "# heading", "1. one", "> quoted", "    code", "=cmd|' /C calc'!A0", "+1", "-1+1",
    "@SUM(1)", "%s %d {} {0} %(x)s", "'; DROP TABLE orders; --", "#1001", "gid://shop/Order/450", "TSHIRT/RED M",
    "ÄÖ-7", "e\u0301", "日本語", "😀", "a@b.test", "-- 1/2 (c) ...", "--help", " ", "a", "0", "!", "(", ")", "]", ":",
)  # fmt: skip
_LATIN = (range(0x20), range(0x7F, 0xA0), range(0x20, 0x7F))
_ANY = (*_LATIN, range(0xA0, 0x3000), range(0xDC80, 0xDD00), range(0x10000, 0x110000))

_INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u3164\uffa0]")
ALLOWED_CONTROLS = "\n"


def text(draw: random.Random, longest: int = 8) -> str:
    """Make up what somebody may have written."""
    parts = []
    for _ in range(draw.randint(1, longest)):
        if draw.random() < 0.6:
            parts.append(draw.choice(_ATTACKS))
        else:
            parts.append(chr(draw.choice(draw.choice(_ANY))))
    return "".join(parts)


def raw_controls(shown: str, allowed: str = ALLOWED_CONTROLS) -> list[str]:
    """List what a terminal would act on or hide."""
    if shown.replace(allowed, "").isprintable() and not _INVISIBLE.search(shown):
        return []
    return [
        f"{char!a}"
        for char in shown
        if char not in allowed
        and (unicodedata.category(char) in {"Cc", "Cf", "Cs", "Zl", "Zp"} or _INVISIBLE.match(char))
    ]


_OWN_SEQUENCE = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?25[lh]|\x1b\[[0-9]*[AK]|\r")


def without_own_sequences(shown: str) -> str:
    """Take away the colours of a terminal, and what a progress bar moves by."""
    return _OWN_SEQUENCE.sub("", shown)
