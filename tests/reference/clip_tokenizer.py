#!/usr/bin/env python3
"""Stored values of the CLIP tokenizer, from tokenizers 0.23.3 and transformers 5.23.0.

    tokenizer.py VOCABULARY            writes tests/data/tokenizer/ (VOCABULARY: folder with CLIP's vocab.json, merges.txt)
    tokenizer.py --differences         prints the tables of libcommon/model/tokenizer_text.c, from libutf8proc and tokenizers

random.txt, random-tiny.txt: for string i of random_text(i) the hash of its ids.  planes.txt: the hash of the ids of each 16
strings of plane_text, which together hold every code point twice.  cases.json: special and added tokens by every file that
can name them.  tests/unit/tokenizer.c makes the same strings."""
import json
import os
import shutil
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
from tokenizers import Regex, normalizers, pre_tokenizers  # noqa: E402
from transformers import CLIPTokenizer  # noqa: E402

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "data", "tokenizer")
M64 = (1 << 64) - 1
BOS, EOS = "<|startoftext|>", "<|endoftext|>"

WORDS = ["photo", "don't", "'LL", " Cat", EOS, "<|EndOfText|>", "<|STARTOFTEXT|>x", BOS, "!!!", ", ", " the ", "2023", "'s",
         "Stra\u00dfe", "\u03a3\u0391\u03a3", "\u0130", "caf\u00e9", "e\u0301", "\u1100\u1161\u11a8", "\U0001f468\u200d\U0001f469",
         "<s0>", "\u00bd", "\ufb01", "\u3000"]
SPACES = [9, 10, 11, 12, 13, 0x1C, 0x1D, 0x1E, 0x1F, 0x20, 0x85, 0xA0, 0x1680, 0x180E, 0x2003, 0x200A, 0x200B, 0x200D, 0x2028, 0x2029,
          0x202F, 0x205F, 0x2060, 0x3000, 0xFEFF, 0]


class Random:
    """splitmix64"""

    def __init__(self, seed):
        self.state = seed

    def below(self, n):
        self.state = (self.state + 0x9E3779B97F4A7C15) & M64
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & M64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & M64
        return (z ^ (z >> 31)) % n


def scalar(c):
    return chr(c - 0xD800 if 0xD800 <= c < 0xE000 else c)


def random_text(i):
    r, out = Random(i), ""
    for _ in range(1 + r.below(24)):
        kind = r.below(100)
        if kind < 30:
            out += chr(0x20 + r.below(95))
        elif kind < 42:
            out += WORDS[r.below(len(WORDS))]
        elif kind < 57:
            out += chr(0xA0 + r.below(0x490))
        elif kind < 64:
            out += chr(SPACES[r.below(len(SPACES))])
        elif kind < 74:
            out += chr(0x300 + r.below(0x70))
        elif kind < 82:
            out += chr(0x591 + r.below(0x900))
        elif kind < 87:
            out += chr(0x1100 + r.below(0x100))
        elif kind < 95:
            out += scalar(r.below(0x10000))
        else:
            out += scalar(r.below(0x110000))
    return out


def plane_text(i):
    out = ""
    for c in range(256 * i, 256 * i + 256):
        out += "a" + scalar(c) + "b a\u0345" + scalar(c) + "\u0334 "
    return out


def fnv(ids, h=0xCBF29CE484222325):
    for n in ids:
        for k in range(4):
            h = ((h ^ (n >> 8 * k & 255)) * 0x100000001B3) & M64
    return h


def encode(t, text):
    return t(text, add_special_tokens=False).input_ids


def save_hashes(name, hashes):
    with open(os.path.join(OUT, name), "w") as f:
        for i in range(0, len(hashes), 12):
            f.write(" ".join("%08x" % ((h ^ h >> 32) & 0xFFFFFFFF) for h in hashes[i:i + 12]) + "\n")


def token(text, normalized=True):
    return dict(content=text, lstrip=False, normalized=normalized, rstrip=False, single_word=False)


def typed(text, normalized=True):
    return dict(token(text, normalized), __type="AddedToken")


def make_tiny(source):
    """A CLIP tokenizer of the first 150 merges, length 16, pad `!`; small enough to lie in the tree."""
    folder = os.path.join(OUT, "tiny")
    os.makedirs(folder, exist_ok=True)
    merges = [line.rstrip("\n") for line in open(source + "/merges.txt", encoding="utf-8")][1:151]
    big = json.load(open(source + "/vocab.json", encoding="utf-8"))
    vocab = {k: v for k, v in big.items() if v < 512 + len(merges)}
    vocab[BOS] = len(vocab)
    vocab[EOS] = len(vocab)
    with open(folder + "/vocab.json", "w", encoding="utf-8") as f:
        json.dump(vocab, f, ensure_ascii=False, separators=(",", ":"))
    with open(folder + "/merges.txt", "w", encoding="utf-8") as f:
        f.write("#version: 0.2\n" + "".join(m + "\n" for m in merges))
    with open(folder + "/special_tokens_map.json", "w") as f:
        json.dump(dict(bos_token=token(BOS), eos_token=token(EOS), unk_token=token(EOS), pad_token="!"), f, indent=1)
    with open(folder + "/tokenizer_config.json", "w") as f:
        json.dump(dict(tokenizer_class="CLIPTokenizer", model_max_length=16, pad_token=EOS), f, indent=1)
    return folder


def make_cases(source):
    sd1 = dict(bos_token=token(BOS), eos_token=token(EOS), pad_token=EOS, unk_token=token(EOS))
    sd2 = dict(sd1, pad_token="!")
    config = dict(bos_token=typed(BOS), eos_token=typed(EOS), unk_token=typed(EOS), pad_token=EOS, model_max_length=77,
                  tokenizer_class="CLIPTokenizer")
    decoder = {"49406": dict(token(BOS), special=True), "49407": dict(token(EOS), special=True)}
    stm, cfg, add = "special_tokens_map.json", "tokenizer_config.json", "added_tokens.json"
    cases = [       # name, files beside the tables, `normalized` of tokenizer.json's specials (None: there is none), both forms
        ("bare", {}, None),
        ("sd1 as published", {stm: sd1, cfg: config}, None),
        ("sd2 as published", {stm: sd2, cfg: config}, None),
        ("map only", {stm: sd1}, None),
        ("map, pad with flags", {stm: dict(sd1, pad_token=token(EOS))}, None),
        ("map, pad ! with flags", {stm: dict(sd1, pad_token=token("!"))}, None),
        ("map, plain eos, pad with flags", {stm: dict(sd1, eos_token=EOS, pad_token=token(EOS))}, None),
        ("map, plain unk", {stm: dict(sd1, unk_token=EOS, pad_token=token(EOS))}, None),
        ("config only", {cfg: config}, None),
        ("config, plain, pad !", {cfg: dict(bos_token=BOS, eos_token=EOS, unk_token=EOS, pad_token="!", model_max_length=64)}, None),
        ("decoder", {cfg: dict(config, added_tokens_decoder=decoder)}, None),
        ("decoder beats map", {stm: sd2, cfg: dict(config, added_tokens_decoder=decoder)}, None),
        ("added", {add: {"<Cat>": 49408, "sks": 49409}}, None),
        ("new pad", {stm: dict(sd1, pad_token="[PAD]")}, None),
        ("json", {}, False),
        ("json, normalized", {}, True),
        ("json, map does not change its flags", {stm: dict(sd2, eos_token=token(EOS, False))}, True),
        ("json and map, pad !", {stm: sd2}, False),
        ("json, decoder changes its flags", {cfg: dict(config, added_tokens_decoder={
            "0": dict(token("!", False), special=True), "49407": dict(token(EOS, False), special=True)}, pad_token="!")}, True),
    ]
    texts = ["a photo of a cat", "Hello, World's 2023 caf\u00e9!!", "<s0><s1> TOK", "na\u00efve \u6771\u4eac \U0001f600", "don't", "hi!!",
             "a <|endoftext|> b", "a <|EndOfText|>> b", "x<|STARTOFTEXT|>", "<CAT> asks SKS", "a[PAD]b [pad]", "", " \t\n ",
             "\u03a3\u1f7b\u03c2 \u0130", "'S 'LL", "''s !'s"]
    out = []
    for name, files, flag in cases:
        with tempfile.TemporaryDirectory() as folder:
            if flag is None:
                shutil.copy(source + "/vocab.json", folder)
                shutil.copy(source + "/merges.txt", folder)
            else:
                CLIPTokenizer.from_pretrained(source).save_pretrained(folder)
                os.remove(folder + "/tokenizer_config.json")
                machine = json.load(open(folder + "/tokenizer.json"))
                for a in machine["added_tokens"]:
                    a["normalized"] = flag
                json.dump(machine, open(folder + "/tokenizer.json", "w"))
            for file, content in files.items():
                json.dump(content, open(os.path.join(folder, file), "w"))
            t = CLIPTokenizer.from_pretrained(folder)
            out.append(dict(name=name, files=files, json=flag, bos=t.bos_token_id, eos=t.eos_token_id, pad=t.pad_token_id,
                            length=len(t), ids=[encode(t, x) for x in texts]))
    # learned tokens, as diffusers adds them
    t = CLIPTokenizer.from_pretrained(source)
    t.add_tokens(["<s0>", "sks", "<Dog>", "<Dog>_1", "<Dog>_2"])
    grown = ["a <s0> photo", "asks", "SKS,sks", "<s0><S0>", "<dog>_2 <dog>_10", "<s0", "\u017fks", "s\u212as"]
    with open(os.path.join(OUT, "cases.json"), "w", encoding="utf-8") as f:
        lines = ",\n".join("    " + json.dumps(c, ensure_ascii=False, separators=(",", ":")) for c in out)
        f.write('{"texts": %s,\n "cases": [\n%s],\n "grown": %s}\n' % (json.dumps(texts, ensure_ascii=False), lines, json.dumps(
            [dict(text=x, ids=encode(t, x)) for x in grown], ensure_ascii=False)))


def main(source):
    os.makedirs(OUT, exist_ok=True)
    make_cases(source)
    clip = CLIPTokenizer.from_pretrained(source)
    save_hashes("random.txt", [fnv(encode(clip, random_text(i))) for i in range(10000)])
    planes = []
    for i in range(0, 0x1100, 16):
        h = 0xCBF29CE484222325
        for k in range(16):
            h = fnv(encode(clip, plane_text(i + k)), h)
        planes.append(h)
    save_hashes("planes.txt", planes)
    tiny = CLIPTokenizer.from_pretrained(make_tiny(source))
    save_hashes("random-tiny.txt", [fnv(encode(tiny, random_text(i))) for i in range(1000)])


def ranges(points):
    out = []
    for c in points:
        if out and out[-1][1] == c - 1:
            out[-1][1] = c
        else:
            out.append([c, c])
    return " ".join("{ 0x%X, 0x%X }," % tuple(x) for x in out)


def differences():
    import ctypes
    u, libc = ctypes.CDLL("libutf8proc.so.2"), ctypes.CDLL(None)
    u.utf8proc_category_string.restype = u.utf8proc_unicode_version.restype = ctypes.c_char_p
    u.utf8proc_NFC.restype = ctypes.c_void_p

    def nfc(text):
        p = u.utf8proc_NFC(text.encode())
        out = ctypes.string_at(p).decode()
        libc.free(ctypes.c_void_p(p))
        return out

    def is_class(name):
        split = pre_tokenizers.Split(Regex(name), behavior="removed")
        return lambda text: not split.pre_tokenize_str(text)

    letter, number, lower, theirs = is_class(r"\p{L}"), is_class(r"\p{N}"), normalizers.Lowercase(), normalizers.NFC()
    table = dict(letters=[], numbers=[], lost=[], barriers=[])
    print("utf8proc has Unicode", u.utf8proc_unicode_version().decode())
    for c in [*range(1, 0xD800), *range(0xE000, 0x110000)]:
        x, category = chr(c), u.utf8proc_category_string(c).decode()[0]
        want = "L" if letter(x) else "N" if number(x) else ""
        if want != (category if category in "LN" else ""):
            table[{"L": "letters", "N": "numbers", "": "lost"}[want]].append(c)
        if lower.normalize_str(x) != chr(u.utf8proc_tolower(c)):
            print("lower %X: %s" % (c, " ".join("%X" % ord(y) for y in lower.normalize_str(x))))
        probes = (x, "a\u0345" + x + "\u0334", x + "\u0334", "a" + x + "\u0301", "\U00011935" + x)
        if any(theirs.normalize_str(p) != nfc(p) for p in probes):
            table["barriers"].append(c)
    for name, points in table.items():
        print(name, ranges(points))


if __name__ == "__main__":
    if sys.argv[1:] == ["--differences"]:
        differences()
    else:
        main(sys.argv[1])
