#!/usr/bin/env python3
"""make_unicode.py > engine/unicode/data.c
make_unicode.py --sums          the sums in t/unit/unicode.c

The tables of engine/unicode/unicode.c.  Which characters decompose, compose or have a
combining class is asked of Hugging Face's normalizers themselves, because their
tables are of another Unicode version than anybody else's and ids must be
theirs.  Python's unicodedata only says how a character decomposes in one step.

Needs: tokenizers 0.23.
"""
import sys
import unicodedata
from tokenizers import Regex, normalizers as n

ALPHABET = ("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
            "abcdefghijklmnopqrstuvwxyz-_")
ALL = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
HANGUL = range(0xAC00, 0xAC00 + 11172)
NFC, NFD = n.NFC().normalize_str, n.NFD().normalize_str
NFKD, LOWER = n.NFKD().normalize_str, n.Lowercase().normalize_str


def number(v):
    """5 bits a character, least first; 32 says that more follow."""
    s = ""
    while v >= 32:
        s += ALPHABET[32 | v & 31]
        v >>= 5
    return s + ALPHABET[v]


def signed(v):
    return number(v << 1 if v >= 0 else (-v << 1) - 1)


def literal(name, comment, text):
    print(f"\n\n/* {comment} */\nconst char {name}[] =")
    lines = [text[i:i + 72] for i in range(0, len(text), 72)]
    print("\n".join(f'    "{line}"' for line in lines) + ";")


def one_step(c):
    """(is_compatibility, code points) of one decomposition, or None."""
    fields = unicodedata.decomposition(chr(c)).split()
    compat = bool(fields) and fields[0].startswith("<")
    return compat, [int(f, 16) for f in fields[compat:]]


def canonical():
    out, last = "", 0
    for c in ALL:
        if c in HANGUL or NFD(chr(c)) == chr(c):
            continue
        compat, to = one_step(c)
        assert not compat and len(to) <= 2, hex(c)
        assert "".join(map(NFD, map(chr, to))) == NFD(chr(c)), hex(c)
        composes = len(to) == 2 and NFC("".join(map(chr, to))) == chr(c)
        second = to[1] if len(to) == 2 else 0
        out += number(c - last) + signed(c - to[0])
        out += number(second << 1 | composes)
        last = c
    return out


def compatible():
    """Runs in which each next character gives the next one, and texts."""
    todo = {c: NFKD(chr(c)) for c in ALL
            if c not in HANGUL and NFKD(chr(c)) != NFD(chr(c))}
    out, last, c = "", 0, 0
    for c in sorted(todo):
        if c not in todo:
            continue
        to = [ord(x) for x in todo[c]]
        run = 1
        if len(to) == 1:
            while todo.get(c + run) == chr(to[0] + run):
                del todo[c + run]
                run += 1
        out += number(c - last) + number(len(to) - 1)
        out += number(run) + signed(to[0] - c) if len(to) == 1 else ""
        if len(to) > 1:
            out += "".join(map(number, to))
        last = c
    return out


def classes():
    """Combining classes of what does not decompose: above 0 and below 240 if it
    goes before U+0345; the class itself is Python's."""
    out, last, c = "", 0, 0
    while c < 0x110000:
        if 0xD800 <= c < 0xE000:
            c = 0xE000
        v = unicodedata.combining(chr(c))
        moved = NFD("\u0345" + chr(c)) == chr(c) + "\u0345"
        assert not moved or v, hex(c)
        if not moved and c != 0x345:
            v = 0
        run = 1
        if v:
            while (unicodedata.combining(chr(c + run)) == v
                   and NFD("\u0345" + chr(c + run)) == chr(c + run) + "\u0345"):
                run += 1
            out += number(c - last) + number(run) + number(v)
            last = c
        c += run
    return out


def lower():
    """Runs of characters step apart that all move by the same distance."""
    move = {}
    for c in ALL:
        to = LOWER(chr(c))
        if to != chr(c) and c != 0x130:
            assert len(to) == 1, hex(c)
            move[c] = ord(to) - c
    assert LOWER("\u0130") == "i\u0307"
    out, last = "", 0
    for c in sorted(move):
        if c not in move:
            continue
        d = move[c]
        step = 1 if move.get(c + 1) == d else 2
        run = 1
        while move.get(c + run * step) == d:
            del move[c + run * step]
            run += 1
        out += number(c - last) + number(step) + number(run) + signed(d)
        last = c
    return out


def members(regex):
    form = n.Replace(Regex(regex), "").normalize_str
    out = set()
    for base in range(0, 0x110000, 0x1000):
        block = [c for c in range(base, base + 0x1000)
                 if not 0xD800 <= c < 0xE000]
        out |= set(block) - set(map(ord, form("".join(map(chr, block)))))
    return out


def stand_ins():
    """Characters whose category is another one in Oniguruma's Unicode than in
    Python's, which is at most PCRE2's; for a run of them the nearest one that
    has it in both, is as long in UTF-8, and is or is not Han like them."""
    names = ["Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No",
             "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "Sm", "Sc", "Sk", "So",
             "Zs", "Zl", "Zp", "Cc", "Cf", "Co", "Cn"]
    kind = {c: name for name in names for c in members(f"\\p{{{name}}}")}
    han = members(r"\p{Han}")
    old = {c: unicodedata.category(chr(c)) for c in ALL}
    stable = {}
    for c in ALL:
        if old[c] == kind[c]:
            key = kind[c], c in han, len(chr(c).encode())
            stable.setdefault(key, []).append(c)
    out, last, c = "", 0, 0
    while c < 0x110000:
        if c not in old or old[c] == kind[c]:
            c += 1
            continue
        key = kind[c], c in han, len(chr(c).encode())
        run = 1
        while (old.get(c + run) != kind.get(c + run)
               and (kind[c + run], c + run in han,
                    len(chr(c + run).encode())) == key):
            run += 1
        to = min(stable[key], key=lambda x: abs(x - c))
        out += number(c - last) + number(run) + signed(to - c)
        last = c
        c += run
    return out


def main():
    print("""/*
 * unicode/data.c - made by t/tools/make_unicode.py; the tables of unicode.c.
 *
 * Each is a row of numbers, five bits a character from the least on, in the
 * alphabet 0-9A-Za-z-_ whose upper half says that more follows; signed ones
 * are zigzag.  Code points are told as the distance from the one before.
 */
#include "unicode/impl.h\"""")
    literal("unicode_canonical",
            "Code point, itself - first (signed), second * 2 + composes.",
            canonical())
    literal("unicode_compatible",
            "Code point, length - 1; of one: run, first - itself (signed);\n"
            " * of more: the characters.", compatible())
    literal("unicode_classes", "Code point, run, combining class.", classes())
    literal("unicode_lowercase",
            "Code point, step, run, distance (signed); U+0130 is apart.",
            lower())
    literal("unicode_stand_ins", "Code point, run, stand-in - it (signed).",
            stand_ins())


def sums():
    forms = {"NFC": n.NFC(), "NFD": n.NFD(), "NFKC": n.NFKC(),
             "NFKD": n.NFKD(), "lower": n.Lowercase()}
    for name, form in forms.items():
        h = 0xcbf29ce484222325
        for c in map(chr, ALL):
            text = c + "a\u0301" + c + "\u0323\u0307" + c + "\u1161\u11a8"
            for b in form.normalize_str(text).encode():
                h = (h ^ b) * 0x100000001b3 & (1 << 64) - 1
        print(f"{name} 0x{h:016x}")


sums() if "--sums" in sys.argv else main()
