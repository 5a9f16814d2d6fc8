"""Write the command data set: plain-English requests and the JSON command each one means.

    python examples/commands/make_data.py                    # rewrites the files beside this script
    python examples/commands/make_data.py --out /tmp/mine --train 800 --seed 7

Four files: train.jsonl; two held-out ones, valid.jsonl (for the loss during training) and test.jsonl
(for the score); and instructions.txt, the schema with three training examples, to put before a request
for a model without training. Each line is {"prompt": "Request: ...\\nCommand:", "completion": " {...}"}.

The held-out files share no phrase and no slot value with the training file: every intent has two
lists of phrases and every slot two lists of values, and a line draws both from one side. The same
seed gives the same bytes on any machine: only `random.Random.random` is used, whose sequence Python keeps.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

# The commands, in the order that their keys are written: intent -> (slot, what it holds).
SCHEMA: dict[str, dict[str, str]] = {
    "set_alarm": {"time": "clock"},
    "set_timer": {"minutes": "minutes", "label": "dish"},
    "send_message": {"to": "person", "text": "text"},
    "play_music": {"artist": "artist", "room": "room"},
    "set_light": {"room": "room", "level": "level"},
    "add_item": {"list": "list", "item": "item"},
    "get_weather": {"place": "place", "day": "day"},
    "add_event": {"title": "title", "day": "day", "time": "clock"},
}

# Phrases: (for training, held out). A slot's name in braces stands for its value. In training the intents share
# their openers (please, put, I need, remind me, ...), so that only the rest of a request tells them apart.
PHRASES: dict[str, tuple[list[str], list[str]]] = {
    "set_alarm": (
        [
            "wake me up at {time}",
            "set an alarm for {time}",
            "I need to get up at {time}",
            "alarm at {time} please",
            "can you wake me at {time}?",
            "please set the alarm to {time}",
            "I want to be awake by {time}",
            "new alarm, {time}",
            "please wake me by {time}",
            "I have to be up at {time}",
            "make it an alarm for {time}",
            "don't let me sleep past {time}",
            "please let me get up at {time}",
            "I'd like to wake up at {time}",
            "get me up by {time}",
            "put my alarm on {time}",
            "start my day at {time}",
            "see that I wake up at {time}",
            "give me a wake-up call at {time}",
            "remind me to get up at {time}",
        ],
        ["make sure I'm up at {time}", "give me an alarm for {time}", "I must be out of bed by {time}"],
    ),
    "set_timer": (
        [
            "set a timer of {minutes} minutes for the {label}",
            "start a {minutes} minute timer for the {label}",
            "time the {label} for {minutes} minutes",
            "the {label} needs {minutes} minutes, set a timer",
            "{minutes} minutes on the timer for the {label}",
            "count down {minutes} minutes for the {label}",
            "{label} timer, {minutes} minutes",
            "can you time {minutes} minutes for my {label}?",
            "please start a timer for the {label}, {minutes} minutes",
            "I need {minutes} minutes for the {label}",
            "my {label} takes {minutes} minutes, time it",
            "let the timer run {minutes} minutes for my {label}",
            "put a timer on the {label} for {minutes} minutes",
            "please put on a timer for the {label}, {minutes} minutes",
            "keep the {label} on the timer for {minutes} minutes",
            "give the {label} {minutes} minutes",
            "make it {minutes} minutes for the {label}",
            "please let the {label} go for {minutes} minutes",
            "I'd like {minutes} minutes for the {label}",
            "remind me of the {label} in {minutes} minutes",
            "get me a timer for the {label}, {minutes} minutes",
            "let me know when the {label} had {minutes} minutes",
            "schedule {minutes} minutes for the {label}",
            "put {minutes} minutes on the timer for the {label}",
            "put the {label} on for {minutes} minutes",
            "please put my {label} timer at {minutes} minutes",
            "a timer for the {label}: {minutes} minutes",
        ],
        [
            "I want the timer at {minutes} minutes for the {label}",
            "please put the {label} on a timer for {minutes} minutes",
            "run a timer for my {label}, {minutes} minutes",
        ],
    ),
    "send_message": (
        [
            "tell {to} that {text}",
            "send {to} a message saying {text}",
            "text {to} that {text}",
            "let {to} know that {text}",
            "send a text to {to}: {text}",
            "write to {to} that {text}",
            'send "{text}" to {to}',
            "can you tell {to} {text}?",
            "please tell {to} {text}",
            "let {to} know {text}",
            "message to {to}: {text}",
            "drop {to} a line that {text}",
            'message "{text}" to {to}',
            'write "{text}" to {to}',
            'text {to}: "{text}"',
            "please write {to} that {text}",
            "I want {to} to know that {text}",
            "get word to {to} that {text}",
            "make sure {to} knows that {text}",
            "give {to} the message that {text}",
            "remind {to} that {text}",
            "I'd like to tell {to} that {text}",
            'put "{text}" in a message to {to}',
            "message for {to}: {text}",
            "message {to} and say {text}",
            "message {to} that {text}",
            "text {to} saying that {text}",
            "send {to} the words {text}",
            'text the words "{text}" to {to}',
            'please send "{text}" to {to}',
            'tell {to} "{text}"',
            '"{text}", tell that to {to}',
            "say to {to} that {text}",
        ],
        [
            "please let {to} know {text}",
            "message {to} saying {text}",
            'text "{text}" to {to}',
        ],
    ),
    "play_music": (
        [
            "play {artist} in the {room}",
            "put {artist} on in the {room}",
            "I want to hear {artist} in the {room}",
            "play songs by {artist} in the {room}",
            "start {artist} on the {room} speaker",
            "in the {room}, play {artist}",
            "can you play {artist} in the {room}?",
            "music by {artist} for the {room}",
            "please put {artist} on in the {room}",
            "I feel like {artist} in the {room}",
            "the {room} speaker should play {artist}",
            "let's have {artist} in the {room}",
            "please start {artist} in the {room}",
            "get {artist} going in the {room}",
            "give me {artist} in the {room}",
            "set the {room} speaker to {artist}",
            "I need some {artist} in the {room}",
            "make the {room} speaker play {artist}",
            "I'd like {artist} in the {room}",
            "turn on {artist} in the {room}",
            "let me listen to {artist} in the {room}",
            "let us hear {artist} in the {room}",
            "I'd love to hear {artist} in the {room}",
        ],
        [
            "let me hear some {artist} in the {room}",
            "please play {artist} on the speaker in the {room}",
            "let's listen to {artist} in the {room}",
        ],
    ),
    "set_light": (
        [
            "set the {room} lights to {level} percent",
            "dim the {room} to {level} percent",
            "{room} lights at {level} percent",
            "turn the {room} lights to {level}%",
            "make the {room} light {level} percent bright",
            "put the lights in the {room} at {level}%",
            "change the {room} light to {level} percent",
            "brightness of {level} percent in the {room}",
            "please dim the {room} light to {level}%",
            "I want the {room} lights at {level}%",
            "lights in the {room}: {level} percent",
            "the {room} should be lit at {level} percent",
            "please set the light in the {room} to {level}%",
            "I need {level} percent light in the {room}",
            "give me {level} percent in the {room}",
            "get the {room} lights to {level} percent",
            "let the {room} have {level} percent light",
            "start the {room} lights at {level}%",
            "please turn the {room} to {level} percent",
            "let me have the {room} lights at {level}%",
        ],
        [
            "I'd like the {room} lights at {level} percent",
            "dim the lights in the {room} to {level}%",
            "bring the {room} light to {level} percent",
        ],
    ),
    "add_item": (
        [
            "add {item} to the {list} list",
            "put {item} on my {list} list",
            "{item} goes on the {list} list",
            "write {item} on the {list} list",
            "my {list} list needs {item}",
            "can you add {item} to my {list} list?",
            "on the {list} list, add {item}",
            "I need {item} on the {list} list",
            "please add {item} to my {list} list",
            "the {list} list needs {item} too",
            "don't forget {item} for the {list} list",
            "my {list} list should include {item}",
            "{item} belongs on the {list} list",
            "{item} has to go on my {list} list",
            "the {list} list still lacks {item}",
            "there is no {item} on the {list} list yet",
            "please let the {list} list have {item}",
            "set {item} on my {list} list",
            "get {item} onto the {list} list",
            "make {item} part of my {list} list",
            "remember {item} for the {list} list",
            "remind me of {item} on the {list} list",
            "give my {list} list {item}",
            "note {item} for the {list} list",
            "{item} must be on my {list} list",
            "{item} is missing from the {list} list",
            "{item} should go on my {list} list",
            "the {list} list has no {item}",
            "the {list} list wants {item}",
            "is {item} on the {list} list? add it",
            "my {list} list is short of {item}",
        ],
        [
            "please put {item} on the {list} list",
            "the {list} list is missing {item}",
            "{item} should be on the {list} list",
        ],
    ),
    "get_weather": (
        [
            "what is the weather in {place} on {day}?",
            "weather for {place} on {day}",
            "will it rain in {place} on {day}?",
            "how warm will {place} be on {day}?",
            "give me the forecast for {place} on {day}",
            "is it sunny in {place} on {day}?",
            "on {day}, what is the weather in {place}?",
            "tell me the weather in {place} for {day}",
            "please check the weather in {place} on {day}",
            "do I need a coat in {place} on {day}?",
            "show the {day} forecast for {place}",
            "how hot will it get in {place} on {day}?",
            "please tell me about {day} in {place}, rain or sun?",
            "I need the weather for {place} on {day}",
            "get me the forecast for {place}, {day}",
            "I'd like the weather in {place} on {day}",
            "let me know if it rains in {place} on {day}",
            "make me a forecast of {place} for {day}",
            "remind me how {place} will be on {day}, wet or dry",
            "is snow likely in {place} on {day}?",
        ],
        [
            "how is the weather in {place} on {day}?",
            "show me the {place} forecast for {day}",
            "will it be cold in {place} on {day}?",
        ],
    ),
    "add_event": (
        [
            "add {title} on {day} at {time}",
            "schedule {title} for {day} at {time}",
            "put {title} in my calendar for {day} at {time}",
            "I have {title} on {day} at {time}",
            "book {title} at {time} on {day}",
            "on {day} at {time} I have {title}",
            "new event: {title}, {day}, {time}",
            "plan {title} for {time} on {day}",
            "please put {title} on {day} at {time}",
            "please schedule {title} for {time} on {day}",
            "my calendar needs {title} on {day} at {time}",
            "don't forget {title} on {day}, {time}",
            "remind me of {title} on {day} at {time}",
            "note {title} for {day} at {time}",
            "don't let me miss {title} on {day} at {time}",
            "please book {title} on {day} at {time}",
            "set {title} for {day} at {time}",
            "I need {title} at {time} on {day}",
            "give me {title} on {day} at {time}",
            "make {title} {day} at {time}",
            "let me have {title} on {day}, {time}",
            "remember that {title} is on {day} at {time}",
            "get {title} into my calendar, {time} on {day}",
            "please note {title} at {time} on {day}",
            "on {day} there is {title} at {time}",
            "I'd like {title} at {time} on {day}",
            "{title} is at {time} on {day}",
            "{title} on {day}, {time}",
            "we have {title} on {day} at {time}",
            "remember my {title} on {day} at {time}",
            "remember {title}, {day} at {time} sharp",
            "remember we have {title} at {time} on {day}",
        ],
        [
            "please schedule {title} at {time} on {day}",
            "my calendar should show {title} on {day} at {time}",
            "remember {title} on {day} at {time}",
        ],
    ),
}


def _names(text: str) -> list[str]:
    """Split a block of names at commas and line ends."""
    return [name.strip() for name in re.split(r"[,\n]", text) if name.strip()]


# Values of the named slots: (for training, held out). No word of a held-out value, short function words
# aside, is part of any training value. Most are common words that the tokenizer keeps whole: the task is
# to understand requests, and a model this small misspells rare names when it copies them.
NAMES: dict[str, tuple[list[str], list[str]]] = {
    "dish": (
        _names(
            """
            rice, bread, beans, pie, fish, ham, meat, eggs, pasta, pizza, break, bath, washing, printer,
            race, call, talk, reading, walk, run, plants, peas, hot tea, green beans, white rice,
            meat pie, brown rice, red beans, rice pudding, hot sauce, paper test, math test, hand wash,
            hair dye, water, fruit salad, dry pasta, side dish, main dish, phone call, video call,
            short walk, long walk, study break, cold brew, team call, bus ride, car wash, quick test,
            wine, pie crust, group talk, coffee, cake, chicken
            """
        ),
        _names("soup, corn, dough, rolls, speech, card game, face mask, exam"),
    ),
    "person": (
        _names(
            """
            Anna, Ben, Maria, David, Sarah, Paul, Henry, Daniel, Frank, Simon, Lily, Martin, George,
            John, Mary, James, Robert, William, Richard, Joseph, Thomas, Mark, Andrew, Jacob, Stephen,
            Alex, Jack, Adam, Emily, Anne, Elizabeth, Sam, Max, Ann, Ali, Arthur, Jean, Rose, Jim, Bob,
            Chris, Matt, Nick, Tim, Dan, Greg, Jeff, Ken, Don, Lee, Carl, Fred, Pat, Hope, Lou, Ross,
            Clark, Lewis, Grant
            """
        ),
        _names("Alice, Tom, Samuel, Marie, Luke, Victor, Edward, Jane, Kim, Scott"),
    ),
    "text": (
        _names(
            """
            I will be late, dinner is ready, the train is full, I lost my ticket, the lesson is over,
            we need more paint, I am at the station, the baby is asleep, my phone is broken,
            the car is fixed, I found the dog, we won the race, the door is open, I am on my way,
            the shop is closed, I can drive, it is snowing, I miss you, the plan has changed,
            we are home, the water is hot, I paid the rent, lunch was great, the bus was slow,
            I saw your brother, we can start, the results are good, my back hurts, I like the idea,
            they said yes, you were right, the music was loud, I need some help, she is at school,
            he called again
            """
        ),
        _names(
            """
            the package arrived, I forgot my wallet, we left early, the concert was amazing,
            the bridge is blocked, my aunt is well, the roof leaks, I sold the guitar
            """
        ),
    ),
    "artist": (
        _names(
            """
            Queen, Prince, America, Europe, Paul Simon, The Who, The Cure, Black Sabbath, Deep Purple,
            New Order, Simple Minds, Van Morrison, Phil Collins, Nick Drake, Lou Reed, Sam Smith,
            John Williams, John Legend, John Mayer, James Brown, James Blake, Frank Ocean, David Gray,
            Robert Plant, Mary Black, Jack White, Jack Johnson, George Harrison, Richard Strauss,
            Ben Howard, Adam Ant, Alex Turner, Nick Cave, Greg Lake, Jeff Beck, Carl Perkins,
            Blue October, Green River, Big Star, Big Country, New Edition, The Band, The Cars,
            The Beach Boys, The National, The Roots, Blood Orange, Air Supply, Third World,
            Soft Machine, Hot Chip, Bad Company
            """
        ),
        _names(
            """
            Louis Armstrong, Michael Jackson, Ray Charles, Taylor Swift, The Police, Genesis,
            Bill Evans, Neil Young, Peter Gabriel
            """
        ),
    ),
    "room": (
        _names(
            """
            kitchen, bedroom, bathroom, garage, living room, kids room, hall, study, den, stairs, pool,
            bar, store, lab, music room, back room, bath, deck, shop, reading corner, upper floor,
            ground floor, top floor, main hall, baby room, master bedroom, north room, south room,
            red room, blue room, first floor, second floor, third floor, side door, media room,
            training room, small room, large room, dark room, mail room, class room, great hall,
            upper hall, computer room, cold room, staff room, quiet room, water room, school room,
            green room, white room, common room, play room, entry
            """
        ),
        _names("office, library, tower, east wing, boat house, front porch, yard, shed"),
    ),
    "list": (
        _names(
            """
            party, hardware, school, reading, moving, baby, winter, food, home, market, fishing, art,
            music, daily, project, repair, farm, dog, cat, medical, health, road, trip, study, class,
            team, kids, car, event, menu, fruit, meat, water, plant, tool, goal, task, spring, store,
            city, lab, shop, field, camp, lake, ski, church, business, client, supply, order, personal,
            test, history, language, computer, phone, power, safety, training, run, bath, shopping,
            packing, garden
            """
        ),
        _names("travel, work, Christmas, family, science, weekly, pet, summer"),
    ),
    "item": (
        _names(
            """
            sugar, light bulbs, water, bread, salt, rice, wine, fish, meat, fruit, nuts, paper, ink,
            string, wood, brushes, sand, bags, boxes, shirts, coat, belt, ring, watch, phone, map,
            plants, pots, soil, chair, table, sheets, gas, chips, beans, peas, ham, comb,
            brush, bucket, filters, hose, plant food, dog food, hand soap, orange juice, blue paint,
            green tea, red wine, black pepper, brown sugar, white rice, water bottles, paper cups,
            rain coat, cold cuts, hot dogs, sea salt, fruit juice, plastic bags, wall paint, wood glue,
            hair brush, floor mats, phone charger, school bag, water filter, plant pots, road map,
            train tickets, color pencils, string lights, test kit, power cord, wood screws,
            running shoes, winter coat
            """
        ),
        _names(
            """
            milk, apples, keys, bird seed, medicine, sun hat, camera, flowers, ice cream, matches,
            wire, oil
            """
        ),
    ),
    "place": (
        _names(
            """
            Paris, Rome, New York, San Diego, San Francisco, Los Angeles, Washington, Cambridge,
            Lincoln, New Orleans, Salt Lake City, France, Spain, Germany, China, India, Mexico, Brazil,
            England, Britain, Russia, Israel, Iran, Australia, California, Florida, Virginia,
            New Jersey, New Delhi, New Mexico, New Zealand, South Korea, North Dakota, South Dakota,
            North Carolina, West Virginia, Long Island, Long Beach, San Antonio, San Jose, San Juan,
            El Paso, Saint Paul, Grand Rapids, Green Bay, Great Falls, Park City, St Andrews, Harvard,
            Union City, Berlin, Madrid, Tokyo, Oslo
            """
        ),
        _names("London, Boston, Texas, Italy, Japan, Egypt, Canada, Fort Worth, Oxford, Madison, Little Rock"),
    ),
    "title": (
        _names(
            """
            car service, doctor, eye test, Spanish class, tax adviser, coding workshop, training,
            practice, test, party, running, cycling, music lesson, math class, art class, history class,
            school play, blood test, phone call, video call, museum tour, city tour, church,
            reading group, study group, project review, budget talk, report deadline, product launch,
            staff training, window repair, fishing trip, road trip, train ride, bus tour, market day,
            school trip, math test, class trip, group call, group lunch, group dinner, music practice,
            team dinner, team lunch, team party, field trip, car wash, car repair, road race, city walk,
            dog walk, dog training, health check, heart check, plant sale, winter party, master class,
            language class, English class, computer class, data course, safety course, press call,
            budget review, contract review, code review, product demo, paper deadline, tax call,
            staff lunch, dance class, swimming, tennis
            """
        ),
        _names("book club, movie night, flight, fire drill, photo shoot, bank visit, board meeting, job fair"),
    ),
    "month": (
        _names("January, March, April, May, July, August, October, December"),
        _names("June, September, November"),
    ),
}
WEEKDAYS = (["Monday", "Wednesday", "Thursday", "Friday", "Sunday"], ["Tuesday", "Saturday"])


def _numbers(rng: random.Random) -> dict[str, tuple[list[Any], list[Any]]]:
    """Return the values of times, durations, levels and days: (for training, held out)."""
    # Whole hours are what people mostly ask for, so they come four times as often.
    minutes = [0] * 4 + list(range(5, 60, 5))
    clock = [f"{hour}:{minute:02d} {half}" for half in ("am", "pm") for hour in range(1, 13) for minute in minutes]
    split = {}
    for kind, pool in {"clock": clock, "minutes": list(range(2, 91)), "level": list(range(1, 100))}.items():
        held_out = set(_shuffled(sorted(set(pool), key=str), rng)[: len(set(pool)) // 4])
        split[kind] = ([v for v in pool if v not in held_out], [v for v in pool if v in held_out])
    days = []
    for months, weekdays in zip(NAMES["month"], WEEKDAYS, strict=True):
        dates = _shuffled([f"{month} {day}" for month in months for day in range(1, 31)], rng)[:36]
        days.append(dates + weekdays * (24 // len(weekdays)))
    return {**split, "day": (days[0], days[1])}


def _spoken(kind: str, value: Any, rng: random.Random) -> str:
    """Say a value as people do: for 6:40 pm also 6:40pm or 6:40 p.m., for 7:00 am always 7 am."""
    if kind != "clock":
        return str(value)
    number, half = value.split(" ")
    return number.removesuffix(":00") + _pick([f" {half}", half, f" {half[0]}.m."], rng)


def _pick(values: list[Any], rng: random.Random) -> Any:
    """Return one of the values."""
    return values[int(rng.random() * len(values))]


def _shuffled(values: list[Any], rng: random.Random) -> list[Any]:
    """Return the values in an order drawn from ``rng``."""
    keys = [rng.random() for _ in values]
    return [values[i] for i in sorted(range(len(values)), key=keys.__getitem__)]


class _Deck:
    """Deal values in random order, all of them once before any comes again."""

    def __init__(self, values: list[Any], rng: random.Random) -> None:
        self._values, self._rng, self._left = values, rng, []

    def deal(self) -> Any:
        if not self._left:
            self._left = _shuffled(self._values, self._rng)
        return self._left.pop()


def example(intent: str, phrase: str, values: dict[str, Any], rng: random.Random) -> dict[str, str]:
    """Build one line: the request from ``phrase``, the command with its keys in the schema's order."""
    slots = SCHEMA[intent]
    request = phrase.format(**{slot: _spoken(kind, values[slot], rng) for slot, kind in slots.items()})
    command = {"intent": intent, **{slot: values[slot] for slot in slots}}
    return {"prompt": f"Request: {request}\nCommand:", "completion": " " + json.dumps(command)}


def write_examples(count: int, side: int, numbers: dict[str, Any], rng: random.Random, seen: set[str]) -> list[str]:
    """Return ``count`` JSON lines of one side (0: training, 1: held out), none of them in ``seen``.

    Intents and phrases take turns, so that each appears as often as its siblings.
    """
    kinds = {**NAMES, **numbers}
    values = {kind: _Deck(pool[side], rng) for kind, pool in kinds.items()}
    phrases = {intent: _Deck(pool[side], rng) for intent, pool in PHRASES.items()}
    intents = _Deck(list(SCHEMA), rng)
    lines: list[str] = []
    while len(lines) < count:
        intent = intents.deal()
        line = None
        while line is None or line in seen:
            drawn = {slot: values[kind].deal() for slot, kind in SCHEMA[intent].items()}
            if not _overlap(drawn):
                line = json.dumps(example(intent, phrases[intent].deal(), drawn, rng))
        seen.add(line)
        lines.append(line)
    return lines


def _overlap(values: dict[str, Any]) -> bool:
    """Say whether two values share a word: "my power list needs power cord" does not tell which is which."""
    words = [set(str(value).lower().split()) for value in values.values()]
    return len(set().union(*words)) < sum(map(len, words))


def instructions(lines: list[str]) -> str:
    """Describe the schema and show three of ``lines``: what a model without training gets to see."""
    shown: dict[str, str] = {}
    for line in map(json.loads, lines):
        shown.setdefault(json.loads(line["completion"])["intent"], line["prompt"] + line["completion"])
    keys = [f"{intent}: {', '.join(slots)}" for intent, slots in SCHEMA.items()]
    examples = [shown[intent] for intent in ("set_light", "send_message", "add_event")]
    return "\n".join(["Turn each request into a JSON command. Intents and their keys:", *keys, "", *examples, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description="Write train.jsonl, valid.jsonl and test.jsonl.")
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to (default: beside this script)")
    parser.add_argument("--train", type=int, default=960, help="training examples (default 960)")
    parser.add_argument("--valid", type=int, default=32, help="held-out examples for the loss (default 32)")
    parser.add_argument("--test", type=int, default=120, help="held-out examples for the score (default 120)")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other examples (default 0)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(args.seed)
    numbers = _numbers(rng)
    seen: set[str] = set()
    for name, count, side in (("train", args.train, 0), ("valid", args.valid, 1), ("test", args.test, 1)):
        lines = write_examples(count, side, numbers, rng, seen)
        (args.out / f"{name}.jsonl").write_bytes("".join(line + "\n" for line in lines).encode())
        print(f"{args.out / name}.jsonl: {count} examples")
        if name == "train":
            (args.out / "instructions.txt").write_bytes(instructions(lines).encode())


if __name__ == "__main__":
    main()
