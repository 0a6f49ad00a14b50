"""Questions without a picture, with the few facts that a model of this size can hold."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from handlens_export.reader.scene import Turn
from handlens_export.reader.words import COMMON


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _pairs(text: str) -> dict[str, str]:
    return dict(pair.split(":") for pair in text.split())


_CAPITALS = _pairs(
    """Austria:Vienna Belgium:Brussels Brazil:Brasilia Bulgaria:Sofia Canada:Ottawa Chile:Santiago China:Beijing
    Colombia:Bogota Croatia:Zagreb Cuba:Havana Denmark:Copenhagen Egypt:Cairo England:London Estonia:Tallinn
    Finland:Helsinki France:Paris Germany:Berlin Ghana:Accra Greece:Athens Hungary:Budapest Iceland:Reykjavik
    Indonesia:Jakarta Iran:Tehran Ireland:Dublin Italy:Rome Japan:Tokyo Kenya:Nairobi Latvia:Riga
    Lithuania:Vilnius Morocco:Rabat Norway:Oslo Peru:Lima Poland:Warsaw Portugal:Lisbon Romania:Bucharest
    Russia:Moscow Serbia:Belgrade Spain:Madrid Sweden:Stockholm Turkey:Ankara Ukraine:Kyiv Vietnam:Hanoi"""
)
_OPPOSITES = _pairs(
    """big:small hot:cold up:down left:right open:closed old:new fast:slow high:low long:short light:dark
    good:bad full:empty hard:soft wet:dry early:late first:last happy:sad loud:quiet near:far rich:poor strong:weak
    thick:thin top:bottom true:false wide:narrow yes:no day:night black:white clean:dirty"""
)
_DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
_MONTHS = _words("January February March April May June July August September October November December")
_FIXED = (
    (("Hello!", "Hello", "Hi", "Hi!", "Good morning."), "Hello! Show me a picture and ask."),
    (("Who are you?", "What are you?"), "I am a small model that reads pictures."),
    (("What can you do?", "How can you help me?"), "I read text in pictures and answer questions about it."),
    (("What is your name?", "What are you called?"), "I am the HandLens reader."),
    (("How are you?", "Are you well?"), "I am fine. What shall I read?"),
    (("Thank you.", "Thanks!", "Thanks"), "You are welcome."),
    (("Goodbye.", "Bye", "See you."), "Goodbye!"),
    (("Where do you run?", "Do you need the internet?"), "I run on your phone, without the internet."),
    (("How many days are in a week?", "How many days has a week?"), "7"),
    (("How many months are in a year?", "How many months has a year?"), "12"),
    (("Which days are there?", "List the days of the week."), ", ".join(_DAYS)),
)
_CAPITAL = ("What is the capital of {}?", "Capital of {}?", "Tell me the capital of {}.")
_COUNTRY = ("Which country has the capital {}?", "{} is the capital of which country?")
_OPPOSITE = ("What is the opposite of {}?", "Opposite of {}?")
_SUM = ("What is {} {} {}?", "{} {} {} =", "How much is {} {} {}?")
_AFTER, _BEFORE = ("What comes after {}?", "What follows {}?"), ("What comes before {}?", "What precedes {}?")
_REPEAT, _SPELL = ("Repeat {}.", "Say {}.", "Say {} again."), ("Spell {}.", "How do you spell {}?")

_Pair = tuple[str, str]


def chat(random: Random, count: int) -> tuple[Turn, ...]:
    """`count` turns; one may come again where they are many."""
    return tuple(Turn("chat", *random.choice(_MAKERS)(random)) for _ in range(count))


def _fixed(random: Random) -> _Pair:
    questions, answer = random.choice(_FIXED)
    return random.choice(questions), answer


def _capital(random: Random) -> _Pair:
    country, city = random.choice(list(_CAPITALS.items()))
    if random.random() < 0.3:
        return random.choice(_COUNTRY).format(city), country
    return random.choice(_CAPITAL).format(country), city


def _opposite(random: Random) -> _Pair:
    pair = random.choice(list(_OPPOSITES.items()))
    asked, answer = pair if random.random() < 0.5 else pair[::-1]
    return random.choice(_OPPOSITE).format(asked), answer


def _sum(random: Random) -> _Pair:
    total = random.randint(0, 20)
    part = random.randint(0, total)
    phrase = random.choice(_SUM)
    if random.random() < 0.5:
        return phrase.format(part, "+", total - part), str(total)
    return phrase.format(total, "-", part), str(total - part)


def _order(random: Random) -> _Pair:
    cycle = random.choice((_DAYS, _MONTHS))
    at, step = random.randrange(len(cycle)), random.choice((1, -1))
    return random.choice(_AFTER if step == 1 else _BEFORE).format(cycle[at]), cycle[(at + step) % len(cycle)]


def _repeat(random: Random) -> _Pair:
    text = " ".join(random.choice(COMMON) for _ in range(random.randint(1, 3)))
    return random.choice(_REPEAT).format(text), text


def _spell(random: Random) -> _Pair:
    word = random.choice([word for word in COMMON if len(word) <= 6])
    return random.choice(_SPELL).format(word), " ".join(word)


_MAKERS: tuple[Callable[[Random], _Pair], ...] = (_fixed, _capital, _opposite, _sum, _order, _repeat, _spell)

PHRASES: tuple[str, ...] = (
    *(question for questions, _ in _FIXED for question in questions),
    *(answer for _, answer in _FIXED),
    *(*_CAPITAL, *_COUNTRY, *_OPPOSITE, *_SUM, *_AFTER, *_BEFORE, *_REPEAT, *_SPELL),
)
"""The fixed sentences of this language, whose words are tokens."""
