"""Conversations with tools: definitions, calls, results, errors. make_chat.py writes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

Json = dict[str, Any]
MATERIAL: Json = json.loads(Path(__file__).with_name("chat_material.json").read_text("utf-8"))


def tool(name: str, description: str, required: str, **properties: Json) -> Json:
    """Definition of a tool; `required` names arguments, separated by spaces."""
    parameters = {"type": "object", "properties": properties, "required": required.split()}
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


def string(description: str, *choices: str) -> Json:
    schema: Json = {"type": "string", "description": description}
    return schema | ({"enum": list(choices)} if choices else {})


def number(description: str, kind: str = "number") -> Json:
    return {"type": kind, "description": description}


def strings(description: str) -> Json:
    return {"type": "array", "items": {"type": "string"}, "description": description}


TOOLS = {
    definition["function"]["name"]: definition
    for definition in [
        tool(
            "get_weather",
            "Current weather and forecast for a city.",
            "city",
            city=string("Name of the city"),
            days=number("Days of forecast, 1 to 10", "integer"),
            units=string("System of units", "metric", "imperial"),
        ),
        tool(
            "convert_currency",
            "Convert an amount at today's rate.",
            "amount source target",
            amount=number("Amount of money"),
            source=string("ISO 4217 code"),
            target=string("ISO 4217 code"),
        ),
        tool(
            "read_file",
            "Read a text file of the project.",
            "path",
            path=string("Path relative to the project"),
            first_line=number("First line", "integer"),
            last_line=number("Last line", "integer"),
        ),
        tool(
            "search_code",
            "Search the project with a regular expression.",
            "pattern",
            pattern=string("Regular expression"),
            glob=string("Only files that match this"),
        ),
        tool(
            "edit_file",
            "Replace a text that occurs exactly once in a file.",
            "path old new",
            path=string("Path relative to the project"),
            old=string("Text to replace"),
            new=string("New text"),
        ),
        tool(
            "run_command",
            "Run a shell command and return its output.",
            "command",
            command=string("Command line"),
            timeout_s=number("Limit in seconds", "integer"),
        ),
        tool(
            "query_database",
            "Run a read-only SQL query.",
            "sql",
            sql=string("A single SELECT"),
            limit=number("Most rows to return", "integer"),
        ),
        tool(
            "list_events",
            "Events of the user's calendar on a day.",
            "day",
            day=string("Date as YYYY-MM-DD"),
        ),
        tool(
            "create_event",
            "Put an event into the calendar.",
            "title start minutes",
            title=string("Title"),
            start=string("ISO 8601 time"),
            minutes=number("Length", "integer"),
            place=string("Room or link"),
        ),
        tool(
            "search_trains",
            "Find train connections.",
            "origin destination departure",
            origin=string("Station"),
            destination=string("Station"),
            departure=string("ISO 8601 time"),
            bicycle=number("Whether a bicycle comes along", "boolean"),
        ),
        tool(
            "book_train",
            "Book a connection that search_trains returned.",
            "connection seats",
            connection=string("Identifier"),
            seats=number("Seats", "integer"),
            travel_class=string("Class", "first", "second"),
        ),
        tool("get_order", "Status of an order.", "order_id", order_id=string("Such as A-10442")),
        tool(
            "refund_order",
            "Refund an order or part of it.",
            "order_id reason",
            order_id=string("Order"),
            reason=string("Why", "damaged", "late", "wrong_item", "other"),
            amount=number("All if left out"),
        ),
        tool(
            "web_search",
            "Search the web.",
            "query",
            query=string("Words to search"),
            count=number("Results wanted", "integer"),
        ),
        tool(
            "open_page",
            "Return the text of a page from web_search.",
            "id",
            id=string("Identifier of a result"),
        ),
        tool(
            "run_python",
            "Run Python in a sandbox; returns what was printed.",
            "code",
            code=string("Python code"),
        ),
        tool(
            "set_device",
            "Change a device at home.",
            "device",
            device=string("Name of the device"),
            on=number("On or off", "boolean"),
            level=number("Brightness or temperature"),
        ),
        tool("list_devices", "Devices at home and their states.", ""),
        tool(
            "create_ticket",
            "Open a ticket in the issue tracker.",
            "title body",
            title=string("Title"),
            body=string("Description in Markdown"),
            labels=strings("Labels"),
            priority=string("Priority", "low", "normal", "high", "urgent"),
        ),
        tool(
            "search_tickets",
            "Search tickets.",
            "text",
            text=string("Words"),
            state=string("State", "open", "closed", "any"),
        ),
        tool(
            "get_metrics",
            "Time series of a service.",
            "service metric",
            service=string("Service"),
            metric=string("Metric", "latency_p95_ms", "error_rate", "cpu", "memory_mb"),
            minutes=number("How far back", "integer"),
        ),
        tool(
            "get_logs",
            "Last log lines of a service.",
            "service",
            service=string("Service"),
            level=string("Least level", "debug", "info", "warning", "error"),
            count=number("Lines", "integer"),
        ),
        tool(
            "set_reminder",
            "Remind the user later.",
            "text at",
            text=string("What of"),
            at=string("ISO 8601 time"),
        ),
        tool(
            "find_route",
            "Route between two places.",
            "origin destination mode",
            origin=string("Place"),
            destination=string("Place"),
            mode=string("How", "walk", "bicycle", "car", "transit"),
        ),
        tool(
            "check_stock",
            "Stock of an article in every warehouse.",
            "sku",
            sku=string("Article number"),
        ),
        tool(
            "move_stock",
            "Move stock between warehouses.",
            "sku count source target",
            sku=string("Article number"),
            count=number("Pieces", "integer"),
            source=string("Warehouse"),
            target=string("Warehouse"),
        ),
        tool(
            "send_message",
            "Send a message to a channel.",
            "channel text",
            channel=string("Channel, such as #release"),
            text=string("Message"),
        ),
    ]
}


class Talk:
    """A conversation that is being written."""

    def __init__(self, random: Random, *names: str) -> None:
        self.random = random
        others = sorted(set(TOOLS) - set(names))
        chosen = [*names, *random.sample(others, random.randint(0, 2))]
        random.shuffle(chosen)
        self.tools = [TOOLS[name] for name in chosen]
        self.messages: list[Json] = []

    def user(self, text: str) -> None:
        self.messages.append({"role": "user", "content": text})

    def say(self, text: str) -> None:
        self.messages.append({"role": "assistant", "content": text})

    def call(self, *calls: tuple[str, Json, Any], thought: str = "") -> None:
        """One message with calls, then the result of each."""
        entries, results = [], []
        for name, arguments, result in calls:
            key = f"{self.random.getrandbits(40):010x}"[:9]  # as long as Mistral's templates want
            function = {"name": name, "arguments": arguments}
            entries.append({"id": key, "type": "function", "function": function})
            content = result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)
            results.append({"role": "tool", "tool_call_id": key, "name": name, "content": content})
        self.messages.append({"role": "assistant", "content": thought, "tool_calls": entries})
        self.messages += results

    def done(self) -> Json:
        return {"tools": self.tools, "messages": self.messages}


def moment(random: Random) -> datetime:
    return datetime(2026, 1, 5, 7) + timedelta(
        days=random.randrange(340), minutes=15 * random.randrange(48)
    )


CITIES = MATERIAL["cities"]
SKIES = MATERIAL["skies"]
WEATHER_TALK = MATERIAL["weather"]


def weather(random: Random) -> Json:
    talk = Talk(random, "get_weather")
    first, second = random.sample(CITIES, 2)
    ta, tb = random.sample(range(-9, 36), 2)
    sa, sb = random.sample(SKIES, 2)
    question, answer = WEATHER_TALK[random.choice(sorted(WEATHER_TALK))]
    values = {
        "a": first,
        "b": second,
        "ta": ta,
        "tb": tb,
        "sa": sa,
        "sb": sb,
        "w": first if ta > tb else second,
    }
    talk.user(question.format(**values))
    talk.call(
        (
            "get_weather",
            {"city": first},
            {"city": first, "temperature": ta, "sky": sa, "wind_kmh": random.randint(0, 60)},
        ),
        (
            "get_weather",
            {"city": second},
            {"city": second, "temperature": tb, "sky": sb, "wind_kmh": random.randint(0, 60)},
        ),
    )
    talk.say(answer.format(**values))
    if random.random() < 0.5:
        days = random.randint(2, 4)
        forecast = [
            {
                "day": i + 1,
                "low": (low := random.randint(-8, 20)),
                "high": low + random.randint(2, 11),
                "rain_mm": random.choice([0, 0, 0, 1.5, 6, 14.2]),
            }
            for i in range(days)
        ]
        talk.user(f"{days} days ahead for {second}, please. Do I need an umbrella?")
        talk.call(
            (
                "get_weather",
                {"city": second, "days": days, "units": "metric"},
                {"forecast": forecast},
            )
        )
        wet = [day["day"] for day in forecast if day["rain_mm"]]
        lines = "\n".join(
            f"- day {d['day']}: {d['low']} to {d['high']} °C, {d['rain_mm']} mm of rain"
            for d in forecast
        )
        talk.say(
            lines
            + (
                "\n\nTake one on day " + " and ".join(map(str, wet)) + "."
                if wet
                else "\n\nIt stays dry."
            )
        )
    return talk.done()


RATES = {
    "EUR": 1.0,
    "USD": 1.09,
    "JPY": 168.4,
    "CHF": 0.94,
    "PLN": 4.27,
    "INR": 94.1,
    "BRL": 6.31,
    "ZAR": 19.8,
}


def currency(random: Random) -> Json:
    talk = Talk(random, "convert_currency")
    source, *targets = random.sample(sorted(RATES), random.randint(2, 4))
    amount = random.randint(10, 4000)
    results = {t: round(amount * RATES[t] / RATES[source], 2) for t in targets}
    talk.user(f"What are {amount} {source} in {' and '.join(targets)}?")
    talk.call(
        *(
            (
                "convert_currency",
                {"amount": amount, "source": source, "target": t},
                {"result": results[t], "rate": round(RATES[t] / RATES[source], 6)},
            )
            for t in targets
        )
    )
    talk.say(
        f"{amount:,} {source} are "
        + " and ".join(f"{results[t]:,.2f} {t}" for t in targets)
        + " at today's rate."
    )
    if random.random() < 0.4:
        talk.user("And in doubloons?")
        talk.say(
            "There's no rate for doubloons: they aren't a currency in use. As gold they'd be "
            "worth what the metal is."
        )
    return talk.done()


BUGS = MATERIAL["bugs"]


def coding(random: Random) -> Json:
    talk = Talk(random, "read_file", "search_code", "edit_file", "run_command")
    path, function, old, new, error, cause = random.choice(BUGS)
    line, passed = random.randint(8, 140), random.randint(11, 240)
    test = f"tests/test_{path.split('/')[-1]}"
    talk.user(
        random.choice(
            [
                f"`{test}` fails since this morning. Can you fix it?",
                f"The test for {function} is red. Please find out why and repair it.",
                f"Something is wrong with {function}() in {path}. Run the tests first.",
            ]
        )
    )
    talk.call(
        (
            "run_command",
            {"command": f"python -m pytest -q {test}", "timeout_s": 120},
            f"F{'.' * random.randint(3, 20)}\n{test}:{random.randint(5, 60)}: {error}\n1 "
            f"failed, {passed} passed in 0.{random.randint(11, 99)}s",
        )
    )
    if random.random() < 0.6:
        talk.call(
            (
                "search_code",
                {"pattern": rf"def {function}\b", "glob": "**/*.py"},
                f"{path}:{line}: def {function}(",
            )
        )
    numbered = f"{line}\tdef {function}(\n{line + 1}\t    ...\n{line + 2}\t    {old}"
    reading = {"path": path, "first_line": line, "last_line": line + 12}
    talk.call(("read_file", reading, numbered), thought="Let me look at the function itself.")
    if random.random() < 0.35:
        talk.call(
            (
                "edit_file",
                {"path": path, "old": old.strip() + " ", "new": new},
                {"error": "old text not found"},
            ),
            thought=f"The cause is that {cause}.",
        )
        talk.call(
            ("edit_file", {"path": path, "old": old, "new": new}, {"ok": True, "replaced": 1}),
            thought="There was a blank too many in what I searched for.",
        )
    else:
        talk.call(
            ("edit_file", {"path": path, "old": old, "new": new}, {"ok": True, "replaced": 1}),
            thought=f"The cause is that {cause}.",
        )
    talk.call(
        (
            "run_command",
            {"command": "python -m pytest -q"},
            f"{passed + 1} passed in {random.randint(1, 30)}.4s",
        )
    )
    talk.say(
        f"Fixed. In `{path}` {cause}. I changed one line to\n\n```python\n{new}\n```\n\nand "
        f"all {passed + 1} tests pass."
    )
    if random.random() < 0.4:
        talk.user("Commit it with a sensible message.")
        message = f"Fix {function}: {cause}"
        talk.call(
            (
                "run_command",
                {"command": f'git commit -qam "{message}" && git log --oneline -1'},
                f"{random.getrandbits(28):07x} {message}",
            )
        )
        talk.say("Committed; nothing was pushed.")
    return talk.done()


SALES = MATERIAL["sales"]


def database(random: Random) -> Json:
    talk = Talk(random, "query_database")
    key, names, relation, value = random.choice(SALES)
    year = random.randint(2019, 2026)
    rows = sorted(([name, random.randint(40, 9000)] for name in names), key=lambda row: -row[1])
    talk.user(f"Which {key} had the most {value} in {year}?")
    sql = f"SELECT {key}, SUM({value}) AS total FROM {relation} WHERE year = {year}"
    sql += f" GROUP BY {key} ORDER BY total DESC"
    if random.random() < 0.4:
        wrong = sql.replace(f"year = {year}", f"yr = {year}")
        talk.call(
            (
                "query_database",
                {"sql": wrong, "limit": 10},
                {"error": 'column "yr" does not exist', "hint": f"columns: {key}, {value}, year"},
            )
        )
    talk.call(
        ("query_database", {"sql": sql, "limit": 10}, {"columns": [key, "total"], "rows": rows})
    )
    best, worst = rows[0], rows[-1]
    talk.say(
        f"{best[0].capitalize()} with {best[1]:,} {value}. The last one is {worst[0]} with "
        f"{worst[1]:,}."
    )
    talk.user("What share is that of the whole?")
    total = sum(row[1] for row in rows)
    talk.say(f"{best[1]:,} of {total:,}, which is {100 * best[1] / total:.1f} percent.")
    return talk.done()


MEETINGS = [
    "design review",
    "budget talk",
    "retrospective",
    "interview",
    "lesson plan",
    "release check",
    "yoga",
]


def meeting(random: Random) -> Json:
    talk = Talk(random, "list_events", "create_event")
    start = moment(random).replace(hour=random.randint(9, 15), minute=0)
    title, minutes = random.choice(MEETINGS), random.choice([30, 45, 60, 90])
    day = f"{start:%Y-%m-%d}"
    talk.user(
        f"Put a {title} of {minutes} minutes into my calendar on {start:%d %B %Y} at {start:%H:%M}."
    )
    busy = random.random() < 0.5
    events = (
        [{"title": random.choice(MEETINGS), "start": f"{start:%Y-%m-%dT%H:%M}", "minutes": 60}]
        if busy
        else []
    )
    events.append({"title": "lunch", "start": f"{day}T12:30", "minutes": 45})
    talk.call(("list_events", {"day": day}, events))
    if busy:
        later = start + timedelta(hours=2)
        talk.say(
            f"You already have “{events[0]['title']}” then. {later:%H:%M} is free. Shall I "
            "take that?"
        )
        talk.user(random.choice(["Yes, please.", "OK, do that.", "Fine, but add a video link."]))
        start = later
    arguments = {"title": title, "start": f"{start:%Y-%m-%dT%H:%M}", "minutes": minutes}
    talk.call(
        ("create_event", arguments, {"id": f"ev{random.randint(100, 9999)}", "status": "confirmed"})
    )
    talk.say(
        f"Done: {title} on {start:%A, %d %B} from {start:%H:%M} to "
        f"{start + timedelta(minutes=minutes):%H:%M}."
    )
    return talk.done()


STATIONS = [
    "Utrecht",
    "Basel",
    "Lyon",
    "Bologna",
    "Linz",
    "Gdańsk",
    "Leuven",
    "Zaragoza",
    "Aarhus",
    "Brno",
]


def train(random: Random) -> Json:
    talk = Talk(random, "search_trains", "book_train")
    origin, destination = random.sample(STATIONS, 2)
    departure = moment(random)
    talk.user(f"I need a train from {origin} to {destination}.")
    talk.say("On which day and at what time would you like to leave?")
    talk.user(
        f"{departure:%d.%m.%Y}, around {departure:%H:%M}. "
        + random.choice(["Two of us.", "Just me.", "Three seats."])
    )
    seats = {"Tw": 2, "Ju": 1, "Th": 3}[talk.messages[-1]["content"].split(". ")[-1][:2]]
    found: list[Json] = []
    for i in range(3):
        leaves = departure + timedelta(minutes=25 * i + random.randint(0, 20))
        minutes = random.randint(95, 420)
        found.append(
            {
                "connection": f"{origin[:2].upper()}{random.randint(100, 999)}",
                "departure": f"{leaves:%Y-%m-%dT%H:%M}",
                "arrival": f"{leaves + timedelta(minutes=minutes):%Y-%m-%dT%H:%M}",
                "changes": random.randint(0, 3),
                "price": round(random.uniform(19, 140), 2),
            }
        )
    talk.call(
        (
            "search_trains",
            {
                "origin": origin,
                "destination": destination,
                "departure": f"{departure:%Y-%m-%dT%H:%M}",
            },
            found,
        )
    )
    cheapest = min(found, key=lambda c: c["price"])
    lines = [
        f"{i}. {c['departure'][11:]} to {c['arrival'][11:]}, {c['changes']} changes, "
        f"{c['price']:.2f} EUR"
        for i, c in enumerate(found, 1)
    ]
    talk.say("\n".join(lines) + "\n\nWhich one shall I book?")
    talk.user("The cheapest, second class.")
    booking = {"connection": cheapest["connection"], "seats": seats, "travel_class": "second"}
    if random.random() < 0.3:
        talk.call(
            (
                "book_train",
                booking,
                {"error": "sold_out", "message": "no seats left in second class"},
            )
        )
        talk.say(
            "Second class is sold out on that train. First class is still open, or I take "
            "another train. What do you prefer?"
        )
        talk.user("Then first class.")
        booking = booking | {"travel_class": "first"}
    talk.call(
        (
            "book_train",
            booking,
            {
                "booking": f"{random.getrandbits(24):06X}",
                "total": round(cheapest["price"] * seats, 2),
            },
        )
    )
    talk.say(
        f"Booked: {seats} seat{'s' * (seats > 1)} on {cheapest['connection']}, in all "
        f"{cheapest['price'] * seats:.2f} EUR."
    )
    return talk.done()


ORDER_TALK = MATERIAL["orders"]


def order(random: Random) -> Json:
    talk = Talk(random, "get_order", "refund_order")
    key = f"{random.choice('ABCDE')}-{random.randint(10000, 99999)}"
    sent = date(2026, 1, 2) + timedelta(days=random.randrange(330))
    question, answer = ORDER_TALK[random.choice(sorted(ORDER_TALK))]
    values = {"o": key, "d": sent.isoformat(), "n": random.randint(2, 6)}
    if random.random() < 0.3:
        mistyped = key.replace("-", "")
        talk.user(question.format(**(values | {"o": mistyped})))
        talk.call(
            (
                "get_order",
                {"order_id": mistyped},
                {"error": "not_found", "message": f"no order {mistyped}"},
            )
        )
        talk.call(
            (
                "get_order",
                {"order_id": key},
                {"order_id": key, "status": "shipped", "shipped": values["d"]},
            ),
            thought="Perhaps the hyphen is missing.",
        )
    else:
        talk.user(question.format(**values))
        items = random.sample(
            ["lamp", "notebook", "headphones", "rucksack", "kettle", "raincoat", "keyboard"], 2
        )
        talk.call(
            (
                "get_order",
                {"order_id": key},
                {"order_id": key, "status": "shipped", "shipped": values["d"], "items": items},
            )
        )
    talk.say(answer.format(**values))
    if random.random() < 0.4:
        value = round(random.uniform(8, 90), 2)
        talk.user(f"One thing arrived broken. I'd like {value:.2f} back.")
        talk.call(
            (
                "refund_order",
                {"order_id": key, "reason": "damaged", "amount": value},
                {"refund": f"R{random.randint(1000, 9999)}", "amount": value},
            )
        )
        talk.say(f"I'm sorry about that. {value:.2f} will be back on your account in a few days.")
    return talk.done()


PAGES = MATERIAL["pages"]


def research(random: Random) -> Json:
    talk = Talk(random, "web_search", "open_page")
    query, title, text, answer = random.choice(PAGES)
    other = random.choice([page for page in PAGES if page[0] != query])
    keys = [f"r{random.randint(10, 99)}a", f"r{random.randint(10, 99)}b"]
    talk.user(
        random.choice(
            ["Look this up, please: {}", "Can you find out about this: {}?", "Search for: {}"]
        ).format(query)
    )
    hits = [
        {"id": keys[0], "title": title, "snippet": text[:60] + "…"},
        {"id": keys[1], "title": other[1], "snippet": other[2][:50] + "…"},
    ]
    talk.call(("web_search", {"query": query, "count": 2}, hits))
    if random.random() < 0.3:
        talk.call(("open_page", {"id": keys[0]}, {"error": "timeout", "after_s": 10}))
    talk.call(("open_page", {"id": keys[0]}, text))
    talk.say(f"{answer} (Source: “{title}”)")
    return talk.done()


def computing(random: Random) -> Json:
    talk = Talk(random, "run_python")
    kind = random.randrange(4)
    if kind == 0:
        n = random.randint(30, 400)
        value = 1
        for i in range(2, n + 1):
            value *= i
        talk.user(f"How many digits has {n} factorial, and how many zeros are at its end?")
        text = str(value)
        zeros = len(text) - len(text.rstrip("0"))
        code = (
            f"import math\ns = str(math.factorial({n}))\nprint(len(s), len(s) - len(s.rstrip('0')))"
        )
        talk.call(("run_python", {"code": code}, f"{len(text)} {zeros}\n"))
        talk.say(f"{n}! has {len(text)} digits and ends in {zeros} zeros.")
    elif kind == 1:
        limit = random.randint(200, 20_000)
        primes = [p for p in range(2, limit) if all(p % q for q in range(2, int(p**0.5) + 1))]
        code = (
            f"n = {limit}\nsieve = [True] * n\nfor i in range(2, int(n**0.5) + 1):\n"
            "    if sieve[i]:\n        sieve[i*i::i] = [False] * len(sieve[i*i::i])\n"
            "print(sum(sieve[2:]), max(i for i in range(2, n) if sieve[i]))"
        )
        talk.user(f"How many primes are below {limit:,}, and which is the largest?")
        talk.call(("run_python", {"code": code}, f"{len(primes)} {primes[-1]}\n"))
        talk.say(f"There are {len(primes):,}; the largest is {primes[-1]:,}.")
    elif kind == 2:
        values = [round(random.gauss(20, 6), 1) for _ in range(8)]
        mean = sum(values) / 8
        talk.user(f"Average of {values} without the largest and the smallest value?")
        trimmed = sum(sorted(values)[1:-1]) / 6
        talk.call(
            (
                "run_python",
                {"code": f"v = sorted({values})\nprint(statistics.mean(v[1:-1]))"},
                "NameError: name 'statistics' is not defined",
            )
        )
        talk.call(
            (
                "run_python",
                {
                    "code": f"import statistics\nv = sorted({values})\n"
                    "print(round(statistics.mean(v[1:-1]), 3))"
                },
                f"{trimmed:.3f}\n",
            ),
            thought="I forgot the import.",
        )
        talk.say(f"{trimmed:.3f}; with all eight values it would be {mean:.3f}.")
    else:
        capital, rate, years = (
            random.randint(1, 40) * 500,
            random.randint(1, 8),
            random.randint(3, 30),
        )
        final = capital * (1 + rate / 100) ** years
        talk.user(
            f"{capital} at {rate}% a year for {years} years: what comes out, and how much of "
            "it is interest?"
        )
        talk.call(
            (
                "run_python",
                {
                    "code": f"x = {capital} * (1 + {rate}/100) ** {years}\n"
                    f"print(round(x, 2), round(x - {capital}, 2))"
                },
                f"{final:.2f} {final - capital:.2f}\n",
            )
        )
        talk.say(f"{final:,.2f}, of which {final - capital:,.2f} is interest.")
    return talk.done()


DEVICES = ["kitchen light", "hall light", "heating", "blinds", "fan", "coffee machine", "desk lamp"]


def home(random: Random) -> Json:
    talk = Talk(random, "set_device", "list_devices")
    chosen = random.sample(DEVICES, random.randint(2, 4))
    talk.user(
        random.choice(
            ["I'm off. Turn off {}.", "Please switch off {}.", "Good night! Everything off: {}."]
        ).format(", ".join(chosen))
    )
    states = [{"device": d, "on": random.random() < 0.7 or d in chosen[:1]} for d in DEVICES]
    talk.call(("list_devices", {}, states))
    active = [s["device"] for s in states if s["on"] and s["device"] in chosen]
    broken = random.choice(active) if random.random() < 0.3 else None
    talk.call(
        *(
            (
                "set_device",
                {"device": d, "on": False},
                {"error": "device does not answer"} if d == broken else {"ok": True},
            )
            for d in active
        )
    )
    already = [d for d in chosen if d not in active]
    text = (
        "Off: " + ", ".join(d for d in active if d != broken) + "."
        if len(active) > (broken is not None)
        else ""
    )
    text += f" Already off: {', '.join(already)}." if already else ""
    text += f" The {broken} doesn't answer; please have a look at it." if broken else ""
    talk.say(text.strip())
    return talk.done()


INCIDENTS = MATERIAL["incidents"]


def incident(random: Random) -> Json:
    talk = Talk(random, "get_metrics", "get_logs", "search_tickets", "create_ticket")
    service, line, cause, label = random.choice(INCIDENTS)
    before, now = random.randint(80, 240), random.randint(1500, 9000)
    rate = round(random.uniform(2, 40), 1)
    talk.user(
        random.choice(
            [
                f"{service} is slow. What's going on?",
                f"We get complaints about {service}.",
                f"Alarm on {service}, can you look?",
            ]
        )
    )
    talk.call(
        (
            "get_metrics",
            {"service": service, "metric": "latency_p95_ms", "minutes": 60},
            {"points": [before, before + 9, before + 31, now // 2, now]},
        ),
        (
            "get_metrics",
            {"service": service, "metric": "error_rate", "minutes": 60},
            {"points": [0.1, 0.2, 0.1, rate / 2, rate]},
        ),
    )
    start = moment(random)
    lines = [
        f"{start + timedelta(seconds=random.randint(1, 20) * i):%Y-%m-%dT%H:%M:%S}Z ERROR "
        f"{service}[{random.randint(100, 4000)}]: {line}"
        for i in range(1, 5)
    ]
    talk.call(("get_logs", {"service": service, "level": "error", "count": 4}, "\n".join(lines)))
    talk.say(
        f"The 95th percentile rose from {before} to {now} ms and {rate}% of the requests fail. "
        f"The log repeats\n\n    {line}\n\nso probably {cause}."
    )
    talk.user("Open a ticket unless there is one.")
    known = random.random() < 0.35
    number = random.randint(100, 4000)
    talk.call(
        (
            "search_tickets",
            {"text": f"{service} {label}", "state": "open"},
            [{"id": number, "title": f"{service}: {cause}"}] if known else [],
        )
    )
    if known:
        talk.say(f"There is one already, #{number}. I left it as it is.")
    else:
        body = (
            f"**Seen:** p95 {now} ms (before: {before} ms), {rate}% errors\n\n"
            f"**Log:** `{line}`\n\n**Likely cause:** {cause}"
        )
        talk.call(
            (
                "create_ticket",
                {
                    "title": f"{service}: {cause}",
                    "body": body,
                    "labels": ["incident", label],
                    "priority": "high" if rate > 10 else "normal",
                },
                {"id": number},
            )
        )
        talk.say(f"Opened #{number} with the numbers and the log line.")
    return talk.done()


REMINDERS = MATERIAL["reminders"]


def reminder(random: Random) -> Json:
    talk = Talk(random, "set_reminder")
    question, answer, things = REMINDERS[random.choice(sorted(REMINDERS))]
    at, what = moment(random), random.choice(things)
    time = f"{at:%H:%M}"
    talk.user(question.format(t=time, x=what))
    talk.call(
        (
            "set_reminder",
            {"text": what, "at": f"{at:%Y-%m-%dT%H:%M}"},
            {"id": random.randint(1, 500), "at": f"{at:%Y-%m-%dT%H:%M}"},
        )
    )
    talk.say(answer.format(t=time))
    return talk.done()


def stock(random: Random) -> Json:
    talk = Talk(random, "check_stock", "move_stock", "send_message")
    sku = f"{random.choice(['HX', 'PT', 'QL', 'VM'])}-{random.randint(100, 999)}"
    houses = random.sample(["Ghent", "Turin", "Malmö", "Cork", "Split"], 3)
    levels = {house: random.randint(5, 600) for house in houses}
    low, high = min(levels, key=lambda h: levels[h]), max(levels, key=lambda h: levels[h])
    count = (levels[high] - levels[low]) // 2
    talk.user(f"Even out {sku} between the fullest and the emptiest warehouse and tell #logistics.")
    talk.call(("check_stock", {"sku": sku}, {"sku": sku, "stock": levels}))
    move = {"sku": sku, "count": count, "source": high, "target": low}
    if random.random() < 0.3:
        talk.call(("move_stock", move, {"error": "reserved", "available": count - 3}))
        count -= 3
        move = move | {"count": count}
    talk.call(("move_stock", move, {"ok": True, "transfer": f"T{random.randint(1000, 9999)}"}))
    text = f"{count} pieces of {sku} go from {high} to {low}."
    talk.call(("send_message", {"channel": "#logistics", "text": text}, {"ok": True}))
    talk.say(
        f"{text} Afterwards {high} holds {levels[high] - count} and {low} "
        f"{levels[low] + count}. #logistics knows."
    )
    return talk.done()


def route(random: Random) -> Json:
    talk = Talk(random, "find_route")
    origin, destination = random.sample(
        [
            "the museum",
            "the harbour",
            "the stadium",
            "the old mill",
            "the hospital",
            "campus north",
        ],
        2,
    )
    modes = random.sample(["walk", "bicycle", "car", "transit"], 2)
    times = random.sample(range(6, 75), 2)
    talk.user(f"Is it quicker from {origin} to {destination} by {modes[0]} or by {modes[1]}?")
    talk.call(
        *(
            (
                "find_route",
                {"origin": origin, "destination": destination, "mode": mode},
                {"minutes": time, "km": round(time * random.uniform(0.08, 0.7), 1)},
            )
            for mode, time in zip(modes, times, strict=True)
        )
    )
    quick = min(zip(times, modes, strict=True))
    talk.say(
        f"By {quick[1]}: {quick[0]} minutes, {max(times) - quick[0]} fewer than by the other way."
    )
    return talk.done()


DIRECT = MATERIAL["direct"]


def direct(random: Random) -> Json:
    talk = Talk(random, *random.sample(sorted(TOOLS), 2))
    question, answer = random.choice(DIRECT)
    talk.user(question)
    talk.say(answer)
    return talk.done()


SCENARIOS: list[tuple[Callable[[Random], Json], int]] = [
    (weather, 13),
    (currency, 6),
    (coding, 16),
    (database, 9),
    (meeting, 7),
    (train, 8),
    (order, 11),
    (research, 8),
    (computing, 9),
    (home, 6),
    (incident, 8),
    (reminder, 8),
    (stock, 6),
    (route, 4),
    (direct, 6),
]


def tool_calls(seed: int) -> list[Json]:
    random = Random(seed)
    conversations = [make(random) for make, count in SCENARIOS for _ in range(count)]
    random.shuffle(conversations)
    return conversations
