"""Make the conversations of the calibration texts, plain ones and ones with tool calls.

    python scripts/make_chat.py calibration

The material, chat_material.json, was written for this purpose. Numbers, dates and choices are drawn
from a seed, so that the same bytes come out on every machine. `chat.jsonl` has a list of messages
on each line, `tool-calls.jsonl` an object with `tools` and `messages`. Roles are plain (system,
user, assistant, tool), so a model's own chat template can be applied to them. All orders, files and
places to call are made up, and no person is described.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from random import Random
from typing import Any

from make_tool_calls import MATERIAL, tool_calls

Message = dict[str, Any]
SEED = 20261123
LANGUAGES = ["German", "French", "Spanish", "Italian", "Portuguese", "Dutch", "Polish", "Russian"]
LANGUAGES += ["Turkish", "Japanese", "Chinese", "Korean"]
SYSTEM_SHARE = 0.35


def turns(*pairs: tuple[str, str]) -> list[Message]:
    """Messages of a conversation, from pairs of question and answer."""
    messages: list[Message] = []
    for question, answer in pairs:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    return messages


def amount(value: float) -> str:
    """A number as people write it: at most two decimals, none that say nothing."""
    return f"{value:,.2f}".rstrip("0").rstrip(".") if value % 1 else f"{value:,.0f}"


# --- plain conversations --------------------------------------------------------------------------


def topics(random: Random) -> list[list[Message]]:
    conversations = []
    for topic in MATERIAL["topics"]:
        (question, answer), *rest = topic
        opener = random.choice(MATERIAL["openers"])
        first = opener + (question if opener else question[0].upper() + question[1:])
        conversations.append(turns((first, answer), *map(tuple, rest)))
    return conversations + [turns(*map(tuple, talk)) for talk in MATERIAL["conversations"]]


def recipe(random: Random) -> list[Message]:
    name, serves, ingredients, method = random.choice(MATERIAL["recipes"])
    guests = random.choice([n for n in range(1, 16) if n != serves])
    factor = guests / serves

    def line(item: list[Any]) -> str:
        return f"- {amount(item[1])} {item[2]} {item[0]}".replace("  ", " ")

    scaled = [[what, round(quantity * factor, 1), unit] for what, quantity, unit in ingredients]
    ask = random.choice(
        ["How do I make {}?", "A recipe for {}, please.", "I'd like to cook {} tonight."]
    )
    return turns(
        (
            ask.format(name),
            f"For {serves}:\n" + "\n".join(map(line, ingredients)) + f"\n\n{method}",
        ),
        (
            random.choice(
                ["We will be {}.", "Can you scale that for {}?", "There are {} of us."]
            ).format(guests),
            f"Multiply everything by {amount(round(factor, 2))}:\n"
            + "\n".join(map(line, scaled))
            + "\n\n"
            + ("Round the eggs up if need be; " if "eggs" in str(scaled) else "")
            + random.choice(
                [
                    "taste before you add all the salt.",
                    "the time changes little, the pot matters more.",
                ]
            ),
        ),
    )


UNITS = MATERIAL["units"]


def conversion(random: Random) -> list[Message]:
    source, target, factor = random.choice(UNITS)
    first, second = random.randint(2, 900), random.randint(1, 400)
    return turns(
        (
            f"How many {target} are {first} {source}?",
            f"About {amount(round(first * factor, 2))} {target}. Multiply by {factor}.",
        ),
        (
            f"And {second} {target} in {source}?",
            f"The other way you divide: {second} / {factor} ≈ "
            f"{amount(round(second / factor, 2))} {source}.",
        ),
    )


def arithmetic(random: Random) -> list[Message]:
    kind = random.randrange(5)
    if kind == 0:
        thing = random.choice(["lamp", "tent", "printer", "guitar", "desk", "monitor"])
        price, off, tax = (
            random.randint(20, 900),
            random.choice([5, 10, 15, 20, 30]),
            random.choice([7, 19, 21]),
        )
        reduced = price * (100 - off) / 100
        return turns(
            (
                f"A {thing} costs {price}. There's {off}% off, then {tax}% tax is added. What "
                "do I pay?",
                f"Step by step:\n1. {off}% of {price} is {amount(price * off / 100)}, so "
                f"{amount(reduced)} "
                f"remain.\n2. {tax}% tax on that is {amount(reduced * tax / 100)}.\n"
                f"Total: **{amount(reduced * (100 + tax) / 100)}**.",
            ),
            (
                "Does the order matter?",
                f"No. Both steps multiply: {price} × {(100 - off) / 100} × {(100 + tax) / 100} "
                "is the same "
                "either way. Only the amount of tax you see in between differs.",
            ),
        )
    if kind == 1:
        speed, distance = random.randint(40, 130), random.randint(60, 900)
        minutes = round(distance / speed * 60)
        pause = random.choice([15, 20, 30, 45])
        whole = minutes + pause
        return turns(
            (
                f"How long does a trip of {distance} km take at {speed} km/h?",
                f"{distance} / {speed} ≈ {distance / speed:.2f} hours, that is {minutes // 60} "
                f"h {minutes % 60} min.",
            ),
            (
                f"With a {pause}-minute break, and I leave at 8:10?",
                f"You're on the road for {whole // 60} h {whole % 60} min in all, so you "
                "arrive about "
                f"{(490 + whole) // 60 % 24}:{(490 + whole) % 60:02d}.",
            ),
        )
    if kind == 2:
        n = random.randint(60, 5000)
        rest, factors, p = n, [], 2
        while rest > 1:
            while rest % p == 0:
                factors.append(p)
                rest //= p
            p += 1
        product = r" \cdot ".join(map(str, factors))
        count = math.prod(factors.count(p) + 1 for p in set(factors))
        return turns(
            (f"Factor {n} into primes.", f"$${n} = {product}$$"),
            (
                "How many divisors does it have?",
                "Add one to every exponent and multiply: $"
                + r" \cdot ".join(f"({factors.count(p)}+1)" for p in sorted(set(factors)))
                + f" = {count}$ divisors.",
            ),
        )
    if kind == 3:
        a, b, c = random.randint(2, 6), random.randint(-9, 9), random.randint(-20, 20)
        disc = b * b - 4 * a * c
        start = f"For ${a}x^2 {b:+d}x {c:+d} = 0$ the discriminant is $b^2 - 4ac = {disc}$. "
        if disc < 0:
            end = "It's negative, so there is no real solution; the two complex ones are " + (
                rf"$x = \frac{{{-b} \pm i\sqrt{{{-disc}}}}}{{{2 * a}}}$."
            )
        else:
            roots = [(-b + sign * math.sqrt(disc)) / (2 * a) for sign in (1, -1)]
            end = rf"So $x = \frac{{{-b} \pm \sqrt{{{disc}}}}}{{{2 * a}}}$, " + (
                f"about {roots[0]:.3f} and {roots[1]:.3f}."
            )
        return turns(
            (f"Solve {a}x² {b:+d}x {c:+d} = 0", start + end),
            (
                "Where is the vertex of the parabola?",
                f"At $x = -b/(2a) = {-b / (2 * a):.3f}$, with the value "
                f"${c - b * b / (4 * a):.3f}$.",
            ),
        )
    values = [random.randint(1, 60) for _ in range(random.randint(5, 9))]
    ordered, n = sorted(values), len(values)
    mean = sum(values) / n
    median = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    return turns(
        (
            f"Mean and median of {', '.join(map(str, values))}?",
            f"Sum {sum(values)} over {n} values gives a mean of {amount(round(mean, 2))}. Sorted: "
            f"{', '.join(map(str, ordered))}; the median is {amount(median)}.",
        ),
        (
            "And the sample standard deviation?",
            f"{deviation:.2f}, with n − 1 = {n - 1} in the denominator.",
        ),
    )


TABLES = MATERIAL["tables"]


def query(random: Random) -> list[Message]:
    table, key, value, when = random.choice(TABLES)
    top, days = random.randint(3, 25), random.choice([7, 14, 30, 60, 365])
    function = random.choice(["SUM", "AVG", "MAX"])
    alias = f"{function.lower()}_{value}"
    select = f"SELECT {key}, {function}({value}) AS {alias}, COUNT(*) AS n\nFROM {table}\n"
    where = f"WHERE {when} >= CURRENT_DATE - INTERVAL '{days} days'\n"
    end = f"GROUP BY {key}\nORDER BY {alias} DESC\nLIMIT {top};"
    return turns(
        (
            f"Write SQL for my table `{table}({key}, {value}, {when})`: the {top} best {key}s by "
            f"{function.lower()} of {value} in the last {days} days.",
            f"```sql\n{select}{where}{end}\n```",
        ),
        (
            f"Only those with at least {top * 2} rows.",
            f"A condition on a group goes into HAVING:\n```sql\n{select}{where}GROUP BY {key}\n"
            f"HAVING COUNT(*) >= {top * 2}\nORDER BY {alias} DESC\nLIMIT {top};\n```",
        ),
        (
            "It's slow. What index would help?",
            f"```sql\nCREATE INDEX ON {table} ({when}, {key}) INCLUDE ({value});\n```\nThe "
            f"range on `{when}` "
            f"comes first. With `{value}` included the table itself need not be read.",
        ),
    )


def snippet(random: Random) -> list[Message]:
    language, task, code, remark = random.choice(MATERIAL["snippets"])
    ask = random.choice(
        ["Write {} that {}.", "I need {} that {}.", "Could you show me {} that {}?"]
    )
    fence = f"```{language.lower()}\n{code}\n```"
    review = random.choice(["Explain the choice.", "Anything I should know?", "Is there a catch?"])
    return turns((ask.format(f"{language} code", task), fence), (review, remark))


def translation(random: Random) -> list[Message]:
    phrases = random.sample(MATERIAL["phrases"], 2)
    first, second = random.sample(LANGUAGES, 2)
    return turns(
        (f"Translate into {first}: “{phrases[0]['English']}”", phrases[0][first]),
        (f"And in {second}?", phrases[0][second]),
        (f"What does “{phrases[1][first]}” mean?", f"It is {first} for “{phrases[1]['English']}”"),
    )


def proofreading(random: Random) -> list[Message]:
    chosen = random.sample(MATERIAL["proofreading"], random.randint(1, 3))
    wrong = "\n".join(f"{i}. {item[0]}" for i, item in enumerate(chosen, 1))
    right = "\n".join(f"{i}. {item[1]} ({item[2]})" for i, item in enumerate(chosen, 1))
    ask = random.choice(["Please correct:", "Any mistakes here?", "Proofread this for me:"])
    return turns((f"{ask}\n{wrong}", right))


def trip(random: Random) -> list[Message]:
    city = random.choice(sorted(MATERIAL["trips"]))
    days = random.randint(2, 4)
    sights = random.sample(MATERIAL["trips"][city], 5)
    plan = [f"Day {i + 1}: {sights[i]}" for i in range(days)]
    month = random.choice(["March", "May", "July", "September", "November"])
    return turns(
        (f"I have {days} days in {city} in {month}. What should I see?", "\n".join(plan)),
        (
            f"We don't care for {sights[0]}.",
            f"Then swap it for {sights[4]} and keep the rest. Check the opening days before "
            "you go, as some "
            "places close once a week.",
        ),
        (
            random.choice(
                ["It's supposed to rain.", "One of us can't walk far.", "We're on a small budget."]
            ),
            f"Then give more time to {sights[1]}, take the bus, and leave an afternoon free.",
        ),
    )


def table(random: Random) -> list[Message]:
    """Text to a table, to JSON, and a question about it."""
    items = random.sample(
        ["bolts", "washers", "hinges", "brackets", "drill bits", "sandpaper", "paint"], 4
    )
    rows = [(item, random.randint(1, 90), random.randint(20, 4000) / 100) for item in items]
    text = "; ".join(f"{count} {item} at {price:.2f} each" for item, count, price in rows)
    head = "| item | count | price |\n|---|---:|---:|\n"
    body = "\n".join(f"| {item} | {count} | {price:.2f} |" for item, count, price in rows)
    as_json = json.dumps([{"item": i, "count": c, "price": p} for i, c, p in rows], indent=1)
    total = sum(count * price for _, count, price in rows)
    dearest = max(rows, key=lambda row: row[1] * row[2])[0]
    return turns(
        (f"Make a table of this: {text}.", head + body),
        ("The same as JSON, please.", f"```json\n{as_json}\n```"),
        (
            "What's the total, and what costs most?",
            f"The total is {total:,.2f}; most goes to {dearest}.",
        ),
    )


def calendar(random: Random) -> list[Message]:
    first = date(2024, 1, 1) + timedelta(days=random.randrange(1400))
    span = random.randint(10, 400)
    other = first + timedelta(days=span)
    return turns(
        (f"What weekday is {first:%d %B %Y}?", f"A {first:%A}."),
        (
            f"And {span} days later?",
            f"{other:%d %B %Y}, a {other:%A}. {span} days are {span // 7} weeks and {span % 7} "
            "days.",
        ),
        (
            "Which ISO week is that?",
            f"Week {other.isocalendar().week} of {other.isocalendar().year}.",
        ),
    )


PATTERNS = MATERIAL["patterns"]


def pattern(random: Random) -> list[Message]:
    what, expression, remark = random.choice(PATTERNS)
    tool = random.choice(["grep -P", "Python", "JavaScript", "an editor"])
    return turns(
        (f"I need a regular expression for {what}, to use with {tool}.", f"`{expression}`"),
        ("Can you explain it?", remark),
    )


def letter(random: Random) -> list[Message]:
    subject = random.choice(
        [
            "the broken heating",
            "the late delivery",
            "the wrong invoice",
            "the noise at night",
            "the lost parcel",
        ]
    )
    days, wish = (
        random.randint(3, 21),
        random.choice(["a repair", "a refund", "a reply", "a new date"]),
    )
    body = (
        f"Dear Sir or Madam,\n\n{days} days ago I wrote to you about {subject}. Since then "
        "nothing has happened. "
        f"I would be grateful for {wish} within {days + 4} days.\n\nKind regards"
    )
    other = (
        f"Hello,\n\nI wanted to ask again about {subject}, which I mentioned {days} days ago. "
        "I know you are busy. "
        f"Could you let me know when I can expect {wish}?\n\nMany thanks"
    )
    return turns(
        (f"Write a firm letter about {subject}; I want {wish}.", body),
        ("That's too harsh.", other),
        (
            "Give me a subject line.",
            f"{subject.removeprefix('the ').capitalize()}: request for {wish}",
        ),
    )


PLAIN: list[tuple[Callable[[Random], list[Message]], int]] = [
    (recipe, 12),
    (conversion, 12),
    (arithmetic, 60),
    (query, 10),
    (snippet, 60),
    (translation, 30),
    (proofreading, 14),
    (trip, 10),
    (table, 14),
    (calendar, 12),
    (pattern, 40),
    (letter, 10),
]


def without_repetition(conversations: list[list[Message]]) -> list[list[Message]]:
    """Those whose first answer no earlier one gave."""
    first: dict[str, list[Message]] = {}
    for conversation in conversations:
        first.setdefault(conversation[1]["content"], conversation)
    return list(first.values())


def chats() -> list[list[Message]]:
    random = Random(SEED)
    conversations = topics(random)
    for make, count in PLAIN:
        conversations += [make(random) for _ in range(count)]
    conversations = without_repetition(conversations)
    random.shuffle(conversations)
    for conversation in conversations:
        if random.random() < SYSTEM_SHARE:
            conversation.insert(
                0, {"role": "system", "content": random.choice(MATERIAL["systems"])}
            )
    return conversations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("texts", type=Path, help="folder that the texts are written to")
    given = parser.parse_args()
    given.texts.mkdir(parents=True, exist_ok=True)
    texts: dict[str, list[Any]] = {"chat.jsonl": chats(), "tool-calls.jsonl": tool_calls(SEED)}
    for name, rows in texts.items():
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        (given.texts / name).write_bytes(content)
        print(
            f"{name}: {len(rows)} conversations, {len(content):,} bytes, sha256 "
            f"{hashlib.sha256(content).hexdigest()}"
        )


if __name__ == "__main__":
    main()
