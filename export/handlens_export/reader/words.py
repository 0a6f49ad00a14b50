"""The words and values that drawn pages show. Most are drawn at random, so that they can only be read, not guessed."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from string import ascii_letters, ascii_lowercase, ascii_uppercase, digits


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FIRST_NAMES = _words(
    """Aaron Ada Adam Agnes Ahmed Alba Alice Amara Amir Ana Anders Anna Anton Arjun Astrid Aya Beatriz Ben Bianca Boris
    Bruno Carla Carlos Carmen Cecil Chen Chloe Clara Cyrus Dana Daniel Dario David Diana Diego Dina Dora Edgar Elena
    Eli Elif Elsa Emil Emma Enzo Erik Esra Esther Eva Farah Felix Fiona Frank Freya Gabor Gina Greta Gustav Hana Hans
    Harry Hasan Heidi Helen Hugo Ida Igor Ilya Ines Ingrid Irene Isaac Ivan Ivy Jack Jana Jasper Jin Joan Joel Jonas
    Jorge Julia Kai Karim Kate Kenji Kira Klaus Lara Laura Lena Leo Lidia Lin Liam Lucas Lucy Luna Maja Marco Maria
    Mark Marta Max Maya Mei Milan Mina Mira Mona Nadia Nina Noah Nora Olga Omar Oscar Otto Pablo Paula Pavel Petra
    Pia Priya Quinn Rafael Ravi Rita Robin Rosa Ruth Sam Sara Sven Tariq Tess Theo Tina Tom Uma Vera Victor Wanda
    Will Xenia Yara Yuki Yusuf Zara Zeno Zoe"""
)
SURNAMES = _words(
    """Abbott Adler Ali Alvarez Amato Bach Baker Bauer Becker Bell Berg Bianchi Blake Bose Braun Brown Byrne Carter
    Castro Chan Cohen Cole Costa Cruz Dahl Das Diaz Dubois Duran Eder Ellis Evans Ferrari Fischer Ford Fox Frank
    Garcia Gill Gomez Grant Gray Green Gupta Haas Hall Hansen Hart Hill Hoang Holm Horvat Hughes Hunt Ito Ivanov
    Jansen Jones Kaya Kelly Khan Kim Klein Koch Kovac Kumar Lang Larsen Lee Lopez Lund Mann Marino Marsh Martin Mason
    Mehta Meyer Mills Moore Mori Morris Murphy Nagy Nash Neri Novak Nunez Okafor Olsen Owens Park Patel Perez Petrov
    Pham Pope Quist Rahman Ramos Reed Reyes Ricci Roth Ruiz Russo Sato Shah Silva Singh Smith Sousa Stein Stone Suzuki
    Tanaka Torres Tran Turner Vega Vogt Wagner Walsh Wang Ward Weber West Wolf Wood Yamada Young Zeller Zhou"""
)
PLACES = _words(
    """Aachen Aarhus Accra Amman Ankara Antwerp Athens Baku Basel Bergen Berlin Bern Bogota Bonn Boston Bremen Brno
    Bruges Cairo Calgary Cardiff Chicago Cork Dakar Dallas Delhi Denver Dresden Dublin Dundee Durban Essen Faro
    Florence Fukuoka Galway Gdansk Geneva Genoa Ghent Glasgow Graz Hamburg Hanoi Havana Helsinki Houston Istanbul
    Izmir Jakarta Kiel Kobe Krakow Kyoto Lagos Lausanne Leeds Leipzig Lille Lima Linz Lisbon London Lugano Lyon
    Madrid Malaga Manila Miami Milan Minsk Montreal Munich Nairobi Nantes Naples Nice Odessa Osaka Oslo Ottawa Oxford
    Palermo Paris Perth Pisa Porto Prague Quito Reims Riga Rome Rouen Salzburg Seattle Seoul Seville Siena Skopje
    Sofia Split Sydney Tallinn Tampere Tbilisi Tirana Tokyo Toronto Trieste Turin Utrecht Valencia Venice Verona
    Vienna Vilnius Warsaw Wells York Zagreb Zurich"""
)
ITEMS = _words(
    """Almonds Apple Bagel Banana Basil Battery Beans Beer Bolts Bowl Box Bread Broom Brush Bun Butter Cable Cake
    Candle Candy Carrot Cereal Chair Cheese Cherry Chips Cider Cocoa Coffee Comb Cookie Cord Corn Cream Cup Curry Dates
    Drill Eggs Eraser Fan Figs Fish Flour Folder Fork Garlic Ginger Glass Gloves Glue Grapes Ham Hammer Hat Honey Hose
    Ink Jam Jar Juice Kettle Key Kiwi Knife Lamp Lemon Lentils Lime Lock Mango Map Melon Milk Mints Mop Mug Muffin
    Nails Napkins Needle Noodles Nuts Oats Oil Olives Onion Orange Paint Pan Paper Pasta Peach Pear Peas Pen Pencil
    Pepper Pie Pillow Pizza Plate Plum Pot Potato Radio Rake Rice Rope Ruler Salad Salt Sauce Saw Scarf Screws Shirt
    Shovel Soap Socks Soda Soup Spoon Stamp String Sugar Syrup Table Tape Tea Toast Tofu Tomato Towel Toy Vase Water
    Wax Wine Wire Wrench Yarn Yogurt"""
)
ADJECTIVES = _words(
    """Big Black Blue Bold Brown Clean Cold Cool Crisp Dark Dry Extra Fast Fine Fresh Gold Grand Green Hot Large Light
    Long Mild Mini New Old Plain Pure Quick Raw Red Rich Round Royal Sharp Short Silver Slim Small Smart Soft Sour Spicy
    Square Strong Sweet Tall Thin Tiny True Warm White Wide Wild Young"""
)
LABELS = _words(
    """Account Address Age Agent Amount Area Arrival Author Balance Bank Batch Bin Block Booking Branch Budget Bus Cabin
    Card Carrier Case Cashier Category Channel City Class Clerk Client Code Colour Contact Count Country Course Credit
    Date Day Deck Delay Delivery Deposit Depth Desk Discount Distance Door Driver Due Duration Email Engine Entry
    Expires Fare Fee File Flight Floor From Gate Grade Group Guest Hall Height Hotel Hours Index Invoice Item Label
    Lane Length Level Limit Line Loan Lot Mass Meal Member Memory Meter Model Month Network Note Number Offer Office
    Order Owner Page Paid Parcel Part Passenger Payment Phase Phone Pin Place Platform Points Port Post Power Price
    Product Profile Project Quantity Queue Rack Range Rate Ref Region Rent Report Result Room Route Row Score Season
    Seat Section Sender Serial Series Service Session Shelf Shift Ship Size Slot Source Speed Staff Stage Start State
    Station Status Stock Store Storage Street Subject Sum Tax Team Terminal Ticket Time Title Tower Track Train Unit
    User Value Vehicle Version Visit Volume Wagon Weight Width Year Zone"""
)
COMMON = _words(
    """about above after again air all also animal answer arm ask away back ball bank bear bed before begin bird blue
    boat body book both bridge bring build call came car care carry cat chair change child city close cloud coat cold
    come cook corner could cross cup cut dance day deep desk dog door down draw dream drink drive dry duck ear early
    earth east eat egg end evening every eye face fall far farm fast field fire fish five floor fly food foot forest
    friend front fruit full game garden girl give glass gold good grass great green ground group grow hair half hand
    happy hard hat head hear heart help high hill home horse hot hour house ice idea inside island job jump keep key
    kind king kitchen lake lamp land large last late leaf learn left letter life light line lion list live long look
    love low lunch make many map mark market milk mind minute money month moon more morning mother mountain mouse
    mouth move music name near neck never new night north nose note number ocean office oil old only open orange order
    other over page paint paper park part party people piece place plan plant play point pond price queen quick quiet
    rain read ready red rest rice right ring river road rock roof room rose round run safe salt same sand school sea
    seat second seed sell send seven shape sheep ship shoe shop short side sign silver simple sing sister sit six skin
    sky sleep slow small snow soft song soon sound south space spoon spring square star start station step stone stop
    store storm story street strong sugar summer sun sweet swim table tail talk tall tea ten thin thing think three
    time tired today top town toy train tree try turn two uncle under up very view village voice wait walk wall warm
    wash watch water wave way week west wet wheel white wide wild wind window winter wood word work world write yellow
    young zero"""
)
_ONSETS = (*"bcdfghjklmnprstvwz", "br", "ch", "dr", "fl", "gr", "kl", "pr", "sh", "st", "tr")
_NUCLEI = ("a", "e", "i", "o", "u", "ai", "ea", "io", "oo", "y")
_CODAS = ("", "", "", "l", "m", "n", "r", "s", "t", "x", "ck", "nd", "rt")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_CAPITALS = "ABCDEFGHJKLMNPQRSTUVWXYZ"
"""Without I and O: in many fonts they are the same drawing as l, 1 and 0, and no reader could tell."""
_SIGNS = "!#$%&()*+,-./:;<=>?@[]^_{}~'\"\\`"
Value = Callable[[Random], str]


def nonsense(random: Random) -> str:
    """A capitalised word of one to three random syllables, such as `Brenoor`."""
    syllables = random.choice((1, 2, 2, 2, 3))
    parts = [random.choice(_ONSETS) + random.choice(_NUCLEI) + random.choice(_CODAS) for _ in range(syllables)]
    return "".join(parts).capitalize()


def person(random: Random) -> str:
    """A name of two parts, one in three of them made up."""
    first = nonsense(random) if random.random() < 0.3 else random.choice(FIRST_NAMES)
    return f"{first} {nonsense(random) if random.random() < 0.3 else random.choice(SURNAMES)}"


def place(random: Random) -> str:
    """A town, one in three of them made up."""
    return nonsense(random) if random.random() < 0.35 else random.choice(PLACES)


def item(random: Random) -> str:
    """What a shop sells: `Mango`, `Sweet Corn`, `Flaroot`."""
    noun = nonsense(random) if random.random() < 0.25 else random.choice(ITEMS)
    return f"{random.choice(ADJECTIVES)} {noun}" if random.random() < 0.4 else noun


def label(random: Random) -> str:
    """The name of a field: `Gate`, `Batch`; one in five of them made up."""
    draw = random.random()
    if draw < 0.2:
        return nonsense(random)
    word = random.choice(LABELS)
    return f"{word} {random.choice(('No', 'ID', 'Code', 'A', 'B', '1', '2'))}" if draw < 0.35 else word


def company(random: Random) -> str:
    """`Kovac Foods`, `Brenoor Ltd`."""
    head = nonsense(random) if random.random() < 0.5 else random.choice(SURNAMES)
    return (
        f"{head} {random.choice(('Foods', 'Market', 'Ltd', 'Shop', 'Lines', 'Bank', 'Cafe', 'Hotel', 'Labs', 'Air'))}"
    )


def number(random: Random) -> str:
    """One to six digits."""
    length = random.randint(1, 6)
    return str(random.randrange(10 ** (length - 1), 10**length))


def amount(random: Random) -> float:
    """0.10 to 9999.99, small ones as likely as large ones."""
    return round(random.uniform(0.1, 1) * 10.0 ** random.randint(0, 4), 2)


def price(random: Random) -> str:
    """`12.50`, at times with a currency."""
    return random.choice(("", "", "", "$", "EUR ", "")) + f"{amount(random):.2f}"


def date(random: Random) -> str:
    """A day in one of five notations."""
    day, month, year = random.randint(1, 28), random.randint(1, 12), random.randint(1990, 2039)
    notations = (
        f"{year}-{month:02}-{day:02}",
        f"{day:02}/{month:02}/{year}",
        f"{day:02}.{month:02}.{year}",
        f"{day} {_MONTHS[month - 1]} {year}",
        f"{_MONTHS[month - 1]} {day}, {year}",
    )
    return random.choice(notations)


def clock(random: Random) -> str:
    """`07:45`."""
    return f"{random.randrange(24):02}:{random.randrange(60):02}"


def code(random: Random) -> str:
    """Letters and digits, such as `KX4821`, `B 17`, `7F-209A`."""
    characters = "".join(random.choice(_CAPITALS + digits) for _ in range(random.randint(4, 8)))
    letters = "".join(random.choice(_CAPITALS) for _ in range(random.randint(1, 3)))
    numerals = "".join(random.choice(digits) for _ in range(random.randint(2, 5)))
    cut = random.randint(2, len(characters) - 2)
    return random.choice(
        (
            *(characters, f"{letters}{numerals}", f"{letters}-{numerals}", f"{letters} {numerals}"),
            f"{characters[:cut]}-{characters[cut:]}",
        )
    )


def phone(random: Random) -> str:
    """`0721 443 918`, `+41 555 0182`."""
    groups = [str(random.randrange(100, 1000)) for _ in range(2)]
    if random.random() < 0.5:
        return f"0{random.randrange(10, 1000)} {groups[0]} {groups[1]}"
    return f"+{random.randrange(1, 100)} {groups[0]} {random.randrange(10000):04}"


def measure(random: Random) -> str:
    """A number with a unit: `250 g`, `18 km`, `42%`."""
    return random.choice(("{} g", "{} kg", "{} km", "{} m", "{} ml", "{} GB", "{}%", "x{}", "{} min")).format(
        random.randint(1, 999)
    )


def word(random: Random) -> str:
    """A common or made-up word, in any of three cases."""
    text = random.choice(COMMON) if random.random() < 0.5 else nonsense(random)
    return random.choice((text.lower(), text.capitalize(), text.upper()))


def phrase(random: Random) -> str:
    """Two to four words."""
    return " ".join(random.choice(COMMON) for _ in range(random.randint(2, 4)))


def scramble(random: Random) -> str:
    """Three to twelve random characters: letters of one case, digits, or a mixture with signs."""
    alphabet = random.choice((ascii_lowercase, ascii_uppercase, digits, _LETTERS + digits, _MIXED))
    return "".join(random.choice(alphabet) for _ in range(random.randint(3, 12)))


_LETTERS = "".join(sorted(set(ascii_letters) - set("IlO")))
_MIXED = _LETTERS + digits + _SIGNS * 2
_VALUES: tuple[Value, ...] = (price, price, date, clock, code, code, code, number, phone, measure, person, place, word)
_STRINGS: tuple[Value, ...] = (scramble, scramble, scramble, word, word, phrase, *_VALUES)


def value(random: Random) -> str:
    """Of a field: more than half of them are random digits or letters."""
    return random.choice(_VALUES)(random)


def string(random: Random) -> str:
    """Anything that a page may show."""
    return random.choice(_STRINGS)(random)
