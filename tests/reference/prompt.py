#!/usr/bin/env python3
"""Stored values of prompt weights and chunks: the rules of A1111's prompts, said once more with Python's regular expressions
and lists, over random prompts.  Ids come from transformers, with tests/data/tokenizer/tiny (run tokenizer.py first).

    prompt.py                           writes tests/data/tokenizer/prompts.txt

A line per prompt: hash of its items (text, weight as a double), then of its chunks (ids, weights as floats) for texts of 16, 40
and 77 ids.  tests/unit/prompt.c makes the same prompts."""
import os
import re
import struct

from tokenizer import M64, OUT, Random
from transformers import CLIPTokenizer

PIECES = ["(", "(", "((", ")", ")", "[", "]", ":1.3)", ": 0.5 )", ":-.25)", ":+2.)", ":", "\\(", "\\)", "\\[", "\\]", "\\\\", "\\", "\\x",
          "BREAK", " BREAK ", "xBREAK", "BREAK_", "BREAK\u00e9", "\u3000BREAK\n", "BREAK BREAK", "a cat", ", ", ",", " ", "\n", "<toy>",
          " photo of a dog", "\u00e9", "the in er an on", "1.5", ":-1)", " a b c d e f g h", "<toy><toy>", "x, y"]
TOKEN = re.compile(r"(?P<literal>\\[()\[\]\\]|\\)|(?P<open>[(\[])|:\s*(?P<weight>[+-]?[.\d]+)\s*\)|(?P<close>[)\]])|[^\\()\[\]:]+|:")
BREAK = re.compile(r"\s*\bBREAK\b\s*")
VECTORS = 5         # of <toy>
REACH = 20


def items_of(prompt):
    items, starts = [], {"(": [], "[": []}

    def scale(start, factor):
        for item in items[start:]:
            item[1] *= factor

    for m in TOKEN.finditer(prompt):
        if m["literal"]:
            items.append([m["literal"][1:], 1.0])
        elif m["open"]:
            starts[m["open"]].append(len(items))
        elif m["weight"] and starts["("]:
            scale(starts["("].pop(), float(m["weight"]))
        elif m["close"] == ")" and starts["("]:
            scale(starts["("].pop(), 1.1)
        elif m["close"] == "]" and starts["["]:
            scale(starts["["].pop(), 1 / 1.1)
        else:
            first, *others = BREAK.split(m[0])
            items.append([first, 1.0])
            for part in others:
                items += [["BREAK", -1], [part, 1.0]]
    for start in starts["("]:
        scale(start, 1.1)
    for start in starts["["]:
        scale(start, 1 / 1.1)
    merged = []
    for text, weight in items or [["", 1.0]]:
        if merged and merged[-1][1] == weight:
            merged[-1][0] += text
        else:
            merged.append([text, weight])
    return merged


def groups_of(tokenizer, text):
    """Lists of ids that must stay together."""
    first = tokenizer.convert_tokens_to_ids("<toy>")
    for token in tokenizer(text, add_special_tokens=False).input_ids:
        yield list(range(first, first + VECTORS)) if token == first else [token]


def chunks_of(tokenizer, items, length):
    room, comma, chunks, open_chunk = length - 2, tokenizer.get_vocab()[",</w>"], [], []
    unseen = 0      # upstream does not note a comma that is the first of a chunk because the one before was full
    for text, weight in items:
        if text == "BREAK" and weight == -1:
            chunks.append(open_chunk)
            open_chunk, unseen = [], 0
            continue
        for group in groups_of(tokenizer, text):
            full = len(open_chunk) == room
            commas = [i for i, (token, _) in enumerate(open_chunk) if token == comma and i >= unseen]
            if full and group != [comma] and commas and room - commas[-1] <= REACH:
                chunks.append(open_chunk[:commas[-1] + 1])
                open_chunk, unseen = open_chunk[commas[-1] + 1:], 0
            if len(open_chunk) == room or len(open_chunk) + len(group) > room:
                chunks.append(open_chunk)
                open_chunk, unseen = [], int(group == [comma])
            open_chunk += [(token, weight) for token in group]
    if open_chunk or not chunks:
        chunks.append(open_chunk)
    bos, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    for chunk in chunks:
        filling = [(eos, 1.0)] + [(pad, 1.0)] * (room - len(chunk))
        yield [(bos, 1.0)] + chunk + filling


def hashed(data):
    h = 0xCBF29CE484222325
    for byte in data:
        h = ((h ^ byte) * 0x100000001B3) & M64
    return "%08x" % ((h ^ h >> 32) & 0xFFFFFFFF)


def main():
    tokenizer = CLIPTokenizer.from_pretrained(os.path.join(OUT, "tiny"))
    tokenizer.add_tokens(["<toy>"] + ["<toy>_%d" % i for i in range(1, VECTORS)])
    with open(os.path.join(OUT, "prompts.txt"), "w") as f:
        for i in range(1500):
            r = Random(i)
            prompt = "".join(PIECES[r.below(len(PIECES))] for _ in range(1 + r.below(40)))
            items = items_of(prompt)
            line = [hashed(b"".join(t.encode() + b"\0" + struct.pack("<d", w) for t, w in items))]
            for length in (16, 40, 77):
                chunks = [x for chunk in chunks_of(tokenizer, items, length) for x in chunk]
                line.append(hashed(b"".join(struct.pack("<if", *x) for x in chunks)))
            f.write(" ".join(line) + "\n")


main()
