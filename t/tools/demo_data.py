"""Data of the demo model: arithmetic, definitions, small talk, tokenizer.

In:  WordNet's database directory (Debian: wordnet-base, /usr/share/wordnet).
Out: conversations as (token ids, learn mask), endless and fixed by a seed;
     `demo_data.py --wordnet DIR --out MODEL` writes the tokenizer's files.

Held out of training: every (a, op, b) for which held_out() is true, a twentieth
of all problems.  What a conversation looks like is the business of TEMPLATE:
conversation() writes the same text, and demo_eval.py compares the two.
"""
import argparse
import collections
import hashlib
import json
import os
import random
import re

import demo_talk

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
PAD = "<｜▁pad▁｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
THINK, END_THINK = "<think>", "</think>"
N_VOCAB = 4096

TEMPLATE = """\
{%- if not add_generation_prompt is defined -%}
  {%- set add_generation_prompt = false -%}
{%- endif -%}
{%- if enable_thinking is defined -%}
  {%- set ns = namespace(think=enable_thinking, system='') -%}
{%- elif thinking is defined -%}
  {%- set ns = namespace(think=thinking, system='') -%}
{%- else -%}
  {%- set ns = namespace(think=true, system='') -%}
{%- endif -%}
{%- for message in messages -%}
  {%- if message['role'] == 'system' -%}
    {%- if ns.system -%}
      {%- set ns.system = ns.system + '\\n\\n' -%}
    {%- endif -%}
    {%- set ns.system = ns.system + message['content'] -%}
  {%- endif -%}
{%- endfor -%}
{{- bos_token + ns.system -}}
{%- for message in messages -%}
  {%- if message['role'] == 'user' -%}
    {{- '<｜User｜>' + message['content'] -}}
  {%- elif message['role'] == 'assistant' and message['content'] -%}
    {{- '<｜Assistant｜>' + message['content'].split('</think>')[-1] -}}
    {{- '<｜end▁of▁sentence｜>' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {%- if ns.think -%}
    {{- '<｜Assistant｜><think>\\n' -}}
  {%- else -%}
    {{- '<｜Assistant｜></think>' -}}
  {%- endif -%}
{%- endif -%}
"""


# --- arithmetic ---------------------------------------------------------

PLACES = ["ones", "tens", "hundreds"]
ASK_ADD = ["What is {a} + {b}?", "What is {a}+{b}?", "{a} + {b}", "{a}+{b}",
           "{a} + {b} = ?", "{a}+{b}=", "{a} + {b} =", "Calculate {a} + {b}",
           "Calculate {a}+{b}.", "How much is {a} + {b}?", "Add {a} and {b}.",
           "How much is {a} plus {b}?", "What is {a} plus {b}?",
           "What's {a} + {b}?", "Compute {a} + {b}.", "{a} plus {b}",
           "What is the sum of {a} and {b}?", "Add {b} to {a}.",
           "Can you add {a} and {b}?", "Please calculate {a} + {b}.",
           "Solve {a} + {b}", "I need {a} + {b}.", "Tell me {a} + {b}."]
ASK_SUB = ["What is {a} - {b}?", "What is {a}-{b}?", "{a} - {b}", "{a}-{b}",
           "{a} - {b} = ?", "{a}-{b}=", "{a} - {b} =", "Calculate {a} - {b}",
           "Calculate {a}-{b}.", "How much is {a} - {b}?",
           "How much is {a} minus {b}?", "What is {a} minus {b}?",
           "What's {a} - {b}?", "Compute {a} - {b}.", "{a} minus {b}",
           "Subtract {b} from {a}.", "What is {a} take away {b}?",
           "Take {b} from {a}.", "Please calculate {a} - {b}.",
           "Solve {a} - {b}", "I need {a} - {b}.", "Tell me {a} - {b}."]
SIMPLE = 2          # the first two of each list: half of all questions


def held_out(a, op, b):
    key = f"{a}{op}{b}".encode()
    return hashlib.sha256(key).digest()[0] < 13         # 13/256: 5.1 %


def work_add(a, b):
    n = max(len(str(a)), len(str(b)))
    x, y = str(a).zfill(n), str(b).zfill(n)
    lines, carry = [f"{x}+{y}"], 0
    for i in range(n):
        p, q = int(x[-1 - i]), int(y[-1 - i])
        total = p + q + carry
        plus = "+1" if carry else ""
        carry = total // 10
        tail = " carry 1" if carry else ""
        lines.append(f"{PLACES[i]} {p}+{q}{plus}={total} "
                     f"write {total % 10}{tail}")
    if carry:
        lines.append("left write 1")
    lines.append(f"result {a + b}")
    return "\n".join(lines)


def work_sub(a, b):
    n = max(len(str(a)), len(str(b)))
    x, y = str(a).zfill(n), str(b).zfill(n)
    lines = [f"{x}-{y}"]
    order = []
    for p, q in zip(x, y):
        order.append(p + ("=" if p == q else "<" if p < q else ">") + q)
        if p != q:
            break
    lines.append("compare " + " ".join(order))
    if a < b:
        x, y = y, x
        lines.append(f"negative, so {x}-{y}")
    borrow, digits = 0, ""
    for i in range(n):
        p, q = int(x[-1 - i]), int(y[-1 - i])
        take = "-1" if borrow else ""
        left = p - q - borrow
        borrow = left < 0
        if borrow:
            left += 10
            p += 10
        tail = " borrow 1" if borrow else ""
        lines.append(f"{PLACES[i]} {p}-{q}{take}={left} write {left}{tail}")
        digits = str(left) + digits
    lines.append(f"digits {digits} result {a - b}")
    return "\n".join(lines)


def solve(r, a, op, b, ask):
    work = work_add(a, b) if op == "+" else work_sub(a, b)
    c = a + b if op == "+" else a - b
    x = r.random()
    answer = (f"{a} {op} {b} = {c}." if x < 0.9 else
              f"The answer is {c}." if x < 0.95 else f"{a} {op} {b} is {c}.")
    return ask, work, answer


def ask_arithmetic(r, a, op, b):
    forms = ASK_ADD if op == "+" else ASK_SUB
    form = (r.choice(forms) if r.random() < 0.5 else
            forms[r.randrange(SIMPLE)])
    return demo_talk.loosen(r, form.format(a=a, b=b))


def arithmetic(r):
    while True:
        a = r.randrange(10 ** r.choice((1, 2, 2, 3, 3, 3)))
        b = r.randrange(10 ** r.choice((1, 2, 2, 3, 3, 3)))
        op = r.choice("+-")
        if op == "-" and r.random() < 0.1:      # near misses are the hard ones
            b = min(999, max(0, a + r.randrange(-12, 13)))
        if not held_out(a, op, b):
            return solve(r, a, op, b, ask_arithmetic(r, a, op, b))


# --- definitions --------------------------------------------------------

EXTRA = """
otter penguin dolphin whale shark eagle owl fox wolf bear lion tiger elephant
giraffe zebra monkey gorilla kangaroo koala panda camel donkey goat sheep pig
cow hen duck goose swan frog toad snake lizard turtle crocodile spider ant bee
wasp butterfly beetle snail crab lobster octopus salmon trout mouse rat rabbit
hare squirrel hedgehog beaver badger deer bat parrot crow raven sparrow robin
pigeon apple pear banana orange lemon cherry grape peach plum melon strawberry
potato tomato carrot onion garlic cabbage lettuce cucumber pumpkin bean pea
corn wheat rice bread butter cheese milk egg honey sugar salt pepper soup salad
sausage sandwich pizza cake biscuit chocolate coffee tea wine beer juice oak
pine birch willow maple rose tulip lily daisy violin piano guitar flute drum
trumpet harp organ clarinet hammer saw screwdriver drill wrench nail screw axe
knife fork spoon plate cup bottle bowl kettle pan oven lamp candle mirror clock
chair table bed sofa desk shelf door window roof wall bridge tower castle
church temple museum library school hospital hotel theater factory farm harbor
airport station street highway tunnel car bus truck bicycle motorcycle train
tram airplane helicopter rocket boat ship submarine canoe sailboat telephone
computer keyboard printer camera telescope microscope radio television robot
battery magnet engine wheel planet star moon comet galaxy sun volcano mountain
valley river lake ocean island desert forest glacier waterfall cave beach storm
thunder lightning rainbow snow fog cloud wind earthquake gold silver iron
copper diamond oxygen hydrogen atom molecule electron cell gene virus bacteria
heart brain lung liver kidney stomach muscle bone skull tooth tongue doctor
nurse teacher lawyer farmer baker carpenter sailor soldier pilot judge poet
painter musician actor dancer king queen prince princess emperor pirate wizard
dragon unicorn ghost witch angel triangle square circle cube sphere pyramid
dictionary encyclopedia novel poem alphabet algorithm server module network
""".split()
DETERMINER = re.compile(r"(a|an|the|any|one|some|someone|something|either)\s")
COUNT_LEX = {5, 6, 8, 13, 14, 15, 17, 18, 20, 28}       # WordNet lexnames(5)
MASS_LEX = {7, 12, 26, 27, 19}
BAD = set("""fuck cunt shit ass bastard bitch nigger slut whore rape sex
penis vagina intercourse breast kill murder suicide negro jew nazi bosom
prostitute orgasm homosexual gay lesbian queer faggot genitals tit dyke""".split())

Entry = collections.namedtuple("Entry", "word kind gloss lex count")


def read_glosses(folder, pos, wanted):
    """(synset offset) -> (lexicographer file, gloss)."""
    out = {}
    with open(os.path.join(folder, "data." + pos), encoding="latin-1") as f:
        for line in f:
            if line[:8] in wanted:
                out[line[:8]] = (int(line[9:11]), line.split("| ", 1)[1])
    return out


def trim(gloss):
    """The first statement of a gloss, without examples and parentheses."""
    gloss = re.sub(r'"[^"]*"', "", gloss.strip())
    while re.search(r"\([^()]*\)", gloss):
        gloss = re.sub(r"\s*\([^()]*\)\s*", " ", gloss)
    parts = [p.strip(" .,:") for p in gloss.split(";")]
    parts = [p for p in parts if p]
    text = re.sub(r"\s+", " ", parts[0]) if parts else ""
    text = re.sub(r"\s([,.:])", r"\1", text)
    return text.replace("`", "'")


def read_wordnet(folder, n_noun=1500, n_verb=300, n_adj=300):
    """The commonest words, one entry a word, by tagged count of sense 1."""
    count = {}
    pos_of = {"1": "noun", "2": "verb", "3": "adj", "5": "adj"}
    with open(os.path.join(folder, "cntlist.rev"), encoding="latin-1") as f:
        for line in f:
            key, sense, n = line.split()
            lemma, rest = key.split("%", 1)
            kind = pos_of.get(rest[0])
            if kind and sense == "1":
                count[lemma, kind] = int(n)
    best = {}
    for kind in ("noun", "verb", "adj"):
        first = {}
        path = os.path.join(folder, "index." + kind)
        with open(path, encoding="latin-1") as f:
            for line in f:
                if line[0] == " ":
                    continue
                col = line.split()
                first[col[0]] = col[6 + int(col[3])]
        want = {w: o for w, o in first.items()
                if re.fullmatch(r"[a-z]{2,14}", w) and w not in BAD
                and ((w, kind) in count or (w in EXTRA and kind == "noun"))}
        gloss = read_glosses(folder, kind, set(want.values()))
        for w, offset in want.items():
            lex, text = gloss[offset]
            text = trim(text)
            n_words = len(text.split())
            if not 3 <= n_words <= 26 or re.search(r"[^a-zA-Z ,'-]", text):
                continue
            if w in text.lower().split() or w + "s" in text.split():
                continue
            if BAD & set(text.lower().split()):
                continue
            if kind == "noun" and not DETERMINER.match(text):
                continue
            e = Entry(w, kind, text, lex, count.get((w, kind), 0))
            weight = e.count * (2 if kind == "noun" else 1)
            weight += 10000 if w in EXTRA and kind == "noun" else 0
            if w not in best or weight > best[w][0]:
                best[w] = (weight, e)
    out = []
    for kind, n in (("noun", n_noun), ("verb", n_verb), ("adj", n_adj)):
        some = sorted((v for v in best.values() if v[1].kind == kind),
                      key=lambda v: (-v[0], v[1].word))
        out += [e for _, e in some[:n]]
    return out


def answer_of(e):
    word, text = e.word, e.gloss
    if e.kind == "verb":
        return f"To {word} means to {text}."
    if e.kind == "adj":
        return f"The word {word} means {text}."
    if re.search("[^siu]s$", word):                         # a plural
        return f"The word {word} means {text}."
    if e.lex in COUNT_LEX and re.match(r"(a|an|any|one|someone)\s", text):
        return f"{article(word).capitalize()} {word} is {text}."
    if e.lex in MASS_LEX:
        return f"{word.capitalize()} is {text}."
    return f"The word {word} means {text}."


article = demo_talk.article
ASK_NOUN = ["What is {an} {w}?", "What is {w}?", "What's {an} {w}?",
            "Define {w}.", "What does {w} mean?", "Explain {w}.",
            "What is {an} {w}", "What does the word {w} mean?",
            "Tell me what {an} {w} is.", "What is the meaning of {w}?",
            "Do you know what {an} {w} is?", "{w}"]
ASK_OTHER = ["What does {w} mean?", "Define {w}.", "What is {w}?",
             "What does the word {w} mean?", "Explain the word {w}.",
             "What is the meaning of {w}?", "What does it mean to be {w}?"]
ASK_VERB = ASK_OTHER[:6] + ["What does it mean to {w}?", "What is to {w}?"]


def ask_word(r, w, kind):
    if kind == "noun":
        form = r.choice(ASK_NOUN) if r.random() < 0.5 else ASK_NOUN[0]
    else:
        form = r.choice(ASK_VERB if kind == "verb" else ASK_OTHER)
    return demo_talk.loosen(r, form.format(w=w, an=article(w)))


def definition(r, entries):
    e = r.choice(entries)
    return (ask_word(r, e.word, e.kind), f"I look up the word {e.word}.",
            answer_of(e))


def gibberish(r):
    w = "".join(r.choice("bcdfghjklmnprstvwz") + r.choice("aeiou")
                for _ in range(r.choice((2, 2, 3))))
    w += r.choice(["", "x", "rg", "sk", "mp", "zz", "ft", "q"])
    return (ask_word(r, w, "noun"), f"I look up the word {w}.",
            f"I do not know the word {w}.")


# --- conversations ------------------------------------------------------

class Source:
    """Conversations drawn from one seed."""

    def __init__(self, wordnet, seed, share_arithmetic=0.42):
        self.entries = read_wordnet(wordnet)
        self.r = random.Random(seed)
        self.share = share_arithmetic

    def turn(self):
        r, x = self.r, self.r.random()
        if x < self.share:
            return arithmetic(r)
        x = (x - self.share) / (1 - self.share)
        if x < 0.82:
            return definition(r, self.entries)
        if x < 0.95:
            return demo_talk.talk(r)
        return demo_talk.story(r) if x < 0.98 else gibberish(r)

    def conversation(self, n_turns=0):
        """-> [(text, learn)]: replies are learnt, and so are earlier answers
        but those to sums, which were given without their working."""
        r = self.r
        n = n_turns or r.choice((1, 1, 1, 1, 1, 1, 2, 2, 3, 4))
        head = r.choice(demo_talk.SYSTEM) if r.random() < 0.2 else ""
        parts = [(BOS + head, 0)]
        for i in range(n):
            ask, think, answer = self.turn()
            parts.append((USER + ask + ASSISTANT, 0))
            if i + 1 < n:
                parts.append((answer + EOS, int("\n" not in think)))
        if r.random() < 0.12:
            return parts + [(END_THINK, 0), (answer + EOS, 1)]
        return parts + [(THINK + "\n", 0),
                        (think + END_THINK + answer + EOS, 1)]

    def rows(self, tokenizer, n_rows, n_tok, long=False):
        """Lists of ids and of learn flags, each (n_rows, n_tok), packed."""
        ids, learn = [], []
        while len(ids) < n_rows * n_tok:
            n_turns = self.r.randrange(5, 40) if long and \
                self.r.random() < 0.3 else 0
            for part, flag in self.conversation(n_turns):
                t = tokenizer.encode(part, add_special_tokens=False).ids
                ids += t
                learn += [flag] * len(t)
        cut = [range(i * n_tok, (i + 1) * n_tok) for i in range(n_rows)]
        return ([[ids[j] for j in c] for c in cut],
                [[learn[j] for j in c] for c in cut])


# --- tokenizer ----------------------------------------------------------

WORDS = (r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
         r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+").replace('\\"', '"')


def train_tokenizer(wordnet, seed):
    """DeepSeek-V3's form, but each digit is a token of its own."""
    from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models,
                            normalizers, pre_tokenizers, trainers)
    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.Sequence([])
    split = pre_tokenizers.Split
    t.pre_tokenizer = pre_tokenizers.Sequence([
        split(Regex(r"\p{N}"), "isolated"),
        split(Regex("[一-龥぀-ゟ゠-ヿ]+"), "isolated"),
        split(Regex(WORDS), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    source = Source(wordnet, seed)
    text = [p for e in source.entries for ask in ASK_NOUN[:4]
            for p in (ask.format(w=e.word, an=article(e.word)), answer_of(e))]
    for _ in range(20000):
        ask, think, answer = source.turn()
        text += [ask, think, answer]
    special = trainers.BpeTrainer(
        vocab_size=N_VOCAB - 4, show_progress=False,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    t.train_from_iterator(text, special)
    t.add_tokens([AddedToken(s, normalized=False, special=False)
                  for s in (USER, ASSISTANT, THINK, END_THINK)])
    return t


def write_tokenizer(t, out):
    os.makedirs(out, exist_ok=True)
    t.save(os.path.join(out, "tokenizer.json"))
    token = {"__type": "AddedToken", "lstrip": False, "normalized": True,
             "rstrip": False, "single_word": False}
    config = {
        "add_bos_token": True, "add_eos_token": False,
        "bos_token": {**token, "content": BOS},
        "clean_up_tokenization_spaces": False,
        "eos_token": {**token, "content": EOS},
        "legacy": True, "model_max_length": 4096,
        "pad_token": {**token, "content": PAD},
        "sp_model_kwargs": {}, "unk_token": None,
        "tokenizer_class": "LlamaTokenizerFast",
        "chat_template": TEMPLATE}
    with open(os.path.join(out, "tokenizer_config.json"), "w") as f:
        json.dump(config, f, indent=2, ensure_ascii=False)
        f.write("\n")


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--wordnet", default="/usr/share/wordnet")
    p.add_argument("--out", default="conf/demo/model")
    p.add_argument("--seed", type=int, default=1)
    a = p.parse_args()
    t = train_tokenizer(a.wordnet, a.seed)
    write_tokenizer(t, a.out)
    source = Source(a.wordnet, a.seed)
    kinds = collections.Counter(e.kind for e in source.entries)
    print(len(source.entries), "words", dict(kinds), t.get_vocab_size())
    for _ in range(25):
        print("".join(f"[{text}]" if learn else text
                      for text, learn in source.conversation()))


if __name__ == "__main__":
    main()
